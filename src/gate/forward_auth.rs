//! `/forward-auth` on the admin listener: whether a request that a proxy has received may pass to the application, and, if
//! not, the refusal. It is for proxies that ask this for every request and pass a refusal on to the client, such as Traefik's
//! `ForwardAuth` and Caddy's `forward_auth`.
//!
//! What passes holds no permit, and no policy applies: only the gate itself can do that.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, HeaderValue};
use http::{Method, Request, Response};
use prometheus::IntCounter;
use tokio::sync::watch;

use super::admission::{NO_POLICY, moment};
use super::verdict::{Verdict, verdict};
use crate::maintenance::state::State;
use crate::page::negotiation::Asked;
use crate::page::{Cause, Renderer};
use crate::server::head::Head;

/// The path.
pub const PATH: &str = "/forward-auth";

/// The method of the client's request. That of the question is the proxy's own.
const FORWARDED_METHOD: &str = "x-forwarded-method";

/// Answers proxies.
#[derive(Clone, Debug)]
pub struct ForwardAuth {
    state: watch::Receiver<State>,
    renderer: Arc<Renderer>,
    refused: IntCounter,
}

impl ForwardAuth {
    /// Answers by this state. `refused` counts the refusals.
    #[must_use]
    pub fn new(state: watch::Receiver<State>, renderer: Arc<Renderer>, refused: IntCounter) -> Self {
        Self { state, renderer, refused }
    }

    /// 200 while maintenance mode is known to be off, else the refusal.
    #[must_use]
    pub fn answer<B>(&self, question: &Request<B>) -> Response<Bytes> {
        let head = Head::of(question, false);
        // Without a policy the client's address does not matter.
        let client = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let verdict = verdict(moment(&self.state.borrow(), None), &head, client, &NO_POLICY);
        if verdict == Verdict::Forward {
            let mut response = Response::default();
            response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            return response;
        }
        let forwarded = question.headers().get(FORWARDED_METHOD);
        let method = forwarded.and_then(|value| Method::from_bytes(value.as_bytes()).ok());
        let asked = Asked::for_client(&head, method.as_ref().unwrap_or(question.method()).as_str());
        self.refused.inc();
        self.renderer.render(Cause::Refused, &asked).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    use http::StatusCode;
    use http::header::{CONTENT_LENGTH, CONTENT_TYPE};

    use crate::maintenance::notice::Notice;
    use crate::maintenance::observation::{Observation, Switch};

    /// The status, the beginning of the content type, and how long the body is, beside how long it is said to be.
    fn answer(seen: Option<Observation>, method: &str, headers: &[(&str, &str)]) -> (StatusCode, String, usize, usize) {
        let mut state = State::new([std::path::Path::new("MAINTENANCE")]);
        if let Some(seen) = seen {
            state.see(0, seen, std::time::Instant::now());
        }
        let (_sender, state) = watch::channel(state);
        let refused = IntCounter::new("refused", "refused").unwrap();
        let (_designs, design) = watch::channel(Arc::default());
        let renderer = Renderer::new(state.clone(), design, Duration::from_secs(60), false);
        let mut request = Request::builder().method(method).uri(PATH);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let forward_auth = ForwardAuth::new(state, Arc::new(renderer), refused.clone());
        let response = forward_auth.answer(&request.body(()).unwrap());
        let status = response.status();
        assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
        assert_eq!(refused.get(), u64::from(status != StatusCode::OK));
        let content_type = response.headers().get(CONTENT_TYPE).map_or("", |value| value.to_str().unwrap());
        let content_type = content_type.split(';').next().unwrap_or_default().to_owned();
        let said = response.headers().get(CONTENT_LENGTH).map(|value| value.to_str().unwrap().parse().unwrap());
        let length = response.into_body().len();
        (status, content_type, length, said.unwrap_or(length))
    }

    fn on() -> Option<Observation> {
        let notice = Notice { reason: Some("Updating".to_owned()), until: None };
        Some(Observation::On(Switch { notice, modified: jiff::Timestamp::UNIX_EPOCH, unreadable: None }))
    }

    #[test]
    fn only_known_to_be_off_is_open() {
        let grpc = [("content-type", "application/grpc"), ("x-forwarded-method", "POST")];
        for method in ["GET", "POST", "HEAD", "BREW"] {
            for headers in [&[][..], &grpc[..1], &grpc] {
                let open = (StatusCode::OK, String::new(), 0, 0);
                assert_eq!(answer(Some(Observation::Off), method, headers), open, "{method} {headers:?}");
                for seen in [on(), None] {
                    let (status, content_type, length, said) = answer(seen.clone(), method, headers);
                    let what = format!("{seen:?} {method} {headers:?}");
                    assert_eq!((status, &*content_type), (StatusCode::SERVICE_UNAVAILABLE, "text/plain"), "{what}");
                    assert!(said > 0 && length == if method == "HEAD" { 0 } else { said }, "{what}: {length}, {said}");
                }
            }
        }
    }

    #[test]
    fn the_refusal_is_for_the_client() {
        let html = ("accept", "text/html");
        let json = ("accept", "application/json");
        let for_method = |method| ("x-forwarded-method", method);
        let table = [
            ("GET", vec![html], "text/html"),
            ("GET", vec![html, for_method("POST")], "text/html"),
            ("GET", vec![json], "application/problem+json"),
            // Asked by a GET, a proxy waits for the body whose length it is told.
            ("GET", vec![html, for_method("HEAD")], "text/html"),
            ("HEAD", vec![html, for_method("HEAD")], "text/html"),
            ("HEAD", vec![html, for_method("GET")], "text/html"),
            ("GET", vec![html, for_method("no method")], "text/html"),
            ("GET", vec![html, for_method("")], "text/html"),
        ];
        for (method, headers, expected) in table {
            let (status, content_type, length, said) = answer(on(), method, &headers);
            assert_eq!((status, &*content_type), (StatusCode::SERVICE_UNAVAILABLE, expected), "{method} {headers:?}");
            assert_eq!(length, if method == "HEAD" { 0 } else { said }, "{method} {headers:?}");
        }
    }
}
