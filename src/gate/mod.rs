//! The traffic listener: every request is refused with the reason, in the format that the client asks for.

pub mod format;
pub mod page;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use hyper::header::{CONNECTION, EXPECT, HeaderValue};
use hyper::{Method, Request, Response, Version};
use prometheus::IntCounter;
use tokio::sync::watch;

use self::format::Format;
use self::page::Pages;
use crate::listener::RequestBody;
use crate::maintenance::state::State;

/// How much of a refused request's body is read and thrown away, in bytes, so that the connection can be kept.
const DISCARD: usize = 1024 * 1024;
/// For how long.
const DISCARD_FOR: Duration = Duration::from_secs(5);

/// Refuses requests.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    refused: IntCounter,
    rendered: Mutex<Rendered>,
}

/// The pages, and where to hear that they are out of date.
#[derive(Debug)]
struct Rendered {
    state: watch::Receiver<State>,
    retry_after: Duration,
    pages: Pages,
}

impl Gate {
    /// A gate that refuses with the reason in `state`, and tells clients to come back after `retry_after` where the
    /// end is not known. It counts what it refuses.
    #[must_use]
    pub fn new(mut state: watch::Receiver<State>, retry_after: Duration, refused: IntCounter) -> Self {
        let pages = Pages::render(state.borrow_and_update().mode(), retry_after);
        Self(Arc::new(Shared { refused, rendered: Mutex::new(Rendered { state, retry_after, pages }) }))
    }

    fn refuse<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let format = Format::of(request.method(), request.headers());
        let mut rendered = self.0.rendered.lock().unwrap_or_else(PoisonError::into_inner);
        rendered.refresh();
        let response = rendered.pages.response(format, request.method() == Method::HEAD);
        drop(rendered);
        self.0.refused.inc();
        response
    }
}

impl Rendered {
    /// Renders anew if the state has changed, or the end that was expected has passed: not once a request.
    fn refresh(&mut self) {
        if self.state.has_changed().unwrap_or(false) || self.pages.is_outdated() {
            self.pages = Pages::render(self.state.borrow_and_update().mode(), self.retry_after);
        }
    }
}

impl hyper::service::Service<Request<RequestBody>> for Gate {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<RequestBody>) -> Self::Future {
        let mut response = self.refuse(&request);
        if !request.body().is_end_stream() {
            let is_http1 = request.version() < Version::HTTP_2;
            if is_http1 && request.body().size_hint().lower() > DISCARD as u64 {
                // The connection will not outlive this: the client need not send the rest, nor use it again.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            } else if !is_http1 || !request.headers().contains_key(EXPECT) {
                tokio::spawn(discard(request.into_body()));
            }
            // Else the client waits for `100 Continue`: it sees the answer and sends nothing.
        }
        ready(Ok(response))
    }
}

/// Reads a body to its end so that the next request on its connection can be read. If it is too long, the
/// connection closes instead; over HTTP/2 only its stream is reset, and not before the client has had time to take up
/// the answer: against RFC 9113 §8.1, curl 7.88 loses it if the reset comes with it.
async fn discard(mut body: RequestBody) {
    let mut left = DISCARD;
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_FOR, read).await;
}
