//! The response of pitstop's own: the refusal in the client's format and language, rendered once per change of the state, when it
//! is first asked for.
//!
//! - [`negotiation`]: the format and the language that the client can read.
//! - `content`: the content of a page, and its forms for machines and terminals.
//! - `template` and `csp`: the page for people, and what their browser may run.
//! - [`design`]: the operator's [`brand`] on the built-in template, or a template of their own, read from [`files`].

pub mod brand;
mod content;
mod csp;
pub mod design;
pub mod files;
mod logo;
pub mod negotiation;
mod reason;
mod template;
mod texts;

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderName,
    HeaderValue, RETRY_AFTER, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use self::content::{Content, Sent, Subject};
use self::design::Design;
use self::negotiation::format::Format;
use self::negotiation::language::LanguageCache;
use self::negotiation::{Asked, Wanted};
use self::texts::{Language, Texts};
use crate::maintenance::state::{Mode, State};
use crate::server::head::{self, Persistence, encode_map};

/// The memory for what is rendered, in bytes: one page more than that, at most.
const RENDERED_SIZE: usize = 512 * 1024;
/// What a page takes beside its body, about.
const HEADERS_SIZE: usize = 1024;

/// gRPC's `UNAVAILABLE`.
const UNAVAILABLE: HeaderValue = HeaderValue::from_static("14");

/// Why pitstop answers instead of the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The request is refused. The application has received nothing of it.
    Refused,
    /// The drain timeout has passed. The application may have received the request.
    Aborted,
    /// The application has not answered, or the request is not one that it could answer.
    Failed {
        /// The status.
        status: StatusCode,
        /// Whether the application may have received the request.
        received: bool,
    },
}

/// Renders pages for the state and the design of the moment.
#[derive(Debug)]
pub struct Renderer(Mutex<Shared>);

#[derive(Debug)]
struct Shared {
    state: watch::Receiver<State>,
    design: watch::Receiver<Arc<Design>>,
    retry_after: Duration,
    /// Whether nobody is refused while maintenance mode is off.
    forwards: bool,
    languages: LanguageCache,
    pages: Pages,
}

impl Renderer {
    /// A renderer that tells clients to come back after `retry_after` where the end of maintenance is not known. `forwards` tells
    /// whether nobody is refused while maintenance mode is off.
    #[must_use]
    pub fn new(
        mut state: watch::Receiver<State>,
        mut design: watch::Receiver<Arc<Design>>,
        retry_after: Duration,
        forwards: bool,
    ) -> Self {
        let pages = Pages::new(state.borrow_and_update().mode(), retry_after, design.borrow_and_update().clone());
        let languages = LanguageCache::default();
        Self(Mutex::new(Shared { state, design, retry_after, forwards, languages, pages }))
    }

    /// The response to a request that asks for this format and language.
    pub fn render(&self, cause: Cause, asked: &Asked<'_>) -> Rendered {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        shared.refresh();
        let wanted = asked.wanted(&mut shared.languages);
        shared.pages.render(cause, wanted)
    }
}

impl Shared {
    /// Starts anew if the state or the design has changed, or the expected end has passed: not once per request.
    fn refresh(&mut self) {
        if self.state.has_changed().unwrap_or(false) || self.pages.is_outdated() {
            let state = self.state.borrow_and_update();
            // A request that is refused while maintenance ends still gets the reason.
            if !(self.forwards && matches!(state.mode(), Mode::Off)) {
                self.pages = Pages::new(state.mode(), self.retry_after, self.design.borrow().clone());
            }
        }
        if self.design.has_changed().unwrap_or(false) {
            self.pages.redesign(self.design.borrow_and_update().clone());
        }
    }
}

/// The response in every format and language that was asked for.
#[derive(Debug)]
struct Pages {
    content: Content,
    design: Arc<Design>,
    /// For when the end is not known, or past. In seconds.
    retry_after: u64,
    rendered: Vec<(Key, Arc<Page>)>,
}

/// What one page differs in from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    status: StatusCode,
    format: Format,
    language: Language,
    sent: Sent,
}

/// A page in one format and language, ready to be sent.
#[derive(Debug)]
struct Page {
    status: StatusCode,
    headers: HeaderMap,
    /// The headers as they are sent over HTTP/1.1.
    fields: Vec<u8>,
    body: Bytes,
}

/// A response. It shares the page with all others.
#[derive(Clone, Debug)]
pub struct Rendered {
    page: Arc<Page>,
    retry_after: Option<u64>,
    is_head: bool,
}

impl Pages {
    fn new(mode: &Mode, retry_after: Duration, design: Arc<Design>) -> Self {
        let retry_after = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
        Self { content: Content::refusal(mode), design, retry_after, rendered: Vec::new() }
    }

    /// The same pages in another design.
    fn redesign(&mut self, design: Arc<Design>) {
        self.design = design;
        self.rendered.clear();
    }

    /// Whether the pages promise an end that has passed.
    fn is_outdated(&self) -> bool {
        self.content.until.is_some_and(|until| until <= Timestamp::now())
    }

    fn render(&mut self, cause: Cause, wanted: Wanted) -> Rendered {
        let (failure, received) = match cause {
            Cause::Refused => (None, false),
            Cause::Aborted => (None, true),
            Cause::Failed { status, received } => (Some(Content::failure(status)), received),
        };
        let content = failure.as_ref().unwrap_or(&self.content);
        let Wanted { format, is_head, .. } = wanted;
        // What a status means is known in English only.
        let language = if content.subject == Subject::Status { Language::ENGLISH } else { wanted.language };
        // Only HTML pages speak of it.
        let sent = match (format == Format::Html && wanted.sends, received) {
            (false, _) => Sent::Nothing,
            (true, false) => Sent::Refused,
            (true, true) => Sent::Perhaps,
        };
        let key = Key { status: content.status, format, language, sent };
        let index = self.rendered.iter().position(|(rendered, _)| *rendered == key).unwrap_or_else(|| {
            let page = Page::new(content, &self.design, key, self.retry_after);
            self.rendered.push((key, Arc::new(page)));
            let size = |(_, page): &(Key, Arc<Page>)| page.body.len() + HEADERS_SIZE;
            while self.rendered.len() > 1 && self.rendered.iter().map(size).sum::<usize>() > RENDERED_SIZE {
                self.rendered.remove(0);
            }
            self.rendered.len() - 1
        });
        let retry_after = failure.is_none().then(|| {
            let left = self.content.until.and_then(|until| seconds_up(until.duration_since(Timestamp::now())));
            left.unwrap_or(self.retry_after)
        });
        Rendered { page: self.rendered[index].1.clone(), retry_after, is_head }
    }
}

impl Page {
    fn new(content: &Content, design: &Design, key: Key, retry_after: u64) -> Self {
        let Key { format, language, sent, .. } = key;
        // The tests parse all of them.
        let texts = || Texts::of(language).unwrap_or_default();
        let mut headers = HeaderMap::with_capacity(12);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let (content_type, body) = match format {
            Format::Html => {
                let html = design.html(content, language, sent, retry_after);
                headers.insert(CONTENT_LANGUAGE, HeaderValue::from_static(language.tag()));
                headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
                if let Ok(policy) = HeaderValue::try_from(html.policy) {
                    headers.insert(CONTENT_SECURITY_POLICY, policy);
                }
                ("text/html; charset=utf-8", html.page)
            }
            Format::Json => ("application/problem+json", content.json()),
            Format::Text => ("text/plain; charset=utf-8", content.text(&texts())),
            // No body: gRPC reports errors in trailers, and without a body those are sent as headers.
            Format::Grpc => {
                headers.insert(HeaderName::from_static("grpc-status"), UNAVAILABLE);
                headers.insert(HeaderName::from_static("grpc-message"), content.grpc_message(&texts()));
                ("application/grpc", String::new())
            }
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        let status = if format == Format::Grpc { StatusCode::OK } else { content.status };
        if format != Format::Grpc {
            headers.insert(VARY, HeaderValue::from_static("Accept, Accept-Language"));
            headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        let mut fields = Vec::new();
        encode_map(&mut fields, &headers);
        if format == Format::Grpc {
            fields.extend_from_slice(b"content-length: 0\r\n");
        }
        Self { status, headers, fields, body: body.into() }
    }
}

impl Rendered {
    /// Appends the response for HTTP/1.1. `more` are further field lines, each with its end.
    pub fn encode(&self, out: &mut Vec<u8>, more: &[u8], persistence: Persistence) {
        let mut line = [0; 40];
        let mut room = &mut line[..];
        if let Some(seconds) = self.retry_after {
            // There is room for any number.
            let _ = write!(room, "retry-after: {seconds}\r\n");
        }
        let left = room.len();
        let retry_after = &line[..line.len() - left];
        let Page { status, fields, body, .. } = &*self.page;
        let response =
            head::Response { status: *status, fields, more: [retry_after, more], body, is_head: self.is_head };
        response.encode(out, persistence);
    }

    /// The response as other servers want it.
    #[must_use]
    pub fn into_response(self) -> Response<Bytes> {
        let mut response = Response::new(if self.is_head { Bytes::new() } else { self.page.body.clone() });
        *response.status_mut() = self.page.status;
        response.headers_mut().clone_from(&self.page.headers);
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }

    /// The trailers that tell a gRPC client why a response breaks off.
    #[must_use]
    pub fn into_trailers(self) -> HeaderMap {
        let of_grpc = |name: &HeaderName| matches!(name.as_str(), "grpc-status" | "grpc-message");
        let headers = self.page.headers.iter().filter(|(name, _)| of_grpc(name));
        headers.map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

/// In whole seconds, rounded up: a client that comes back in time should not come too early. `None` if it is past.
fn seconds_up(left: SignedDuration) -> Option<u64> {
    let seconds = u64::try_from(left.as_secs()).ok().filter(|_| left.is_positive())?;
    Some(seconds.saturating_add(u64::from(left.subsec_nanos() > 0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maintenance::state::Maintenance;
    fn on(reason: Option<&str>, until: Option<Timestamp>) -> Pages {
        let reason = reason.map(str::to_owned);
        let maintenance = Maintenance { reason, since: Timestamp::UNIX_EPOCH, until, file: "MAINTENANCE".into() };
        Pages::new(&Mode::On(maintenance), Duration::from_secs(60), Arc::default())
    }

    fn pages(reason: &str) -> Pages {
        on(Some(reason), None)
    }

    fn wanted(format: Format) -> Wanted {
        Wanted { format, language: Language::ENGLISH, is_head: false, sends: false }
    }

    fn refusal(pages: &mut Pages, wanted: Wanted) -> Response<Bytes> {
        pages.render(Cause::Refused, wanted).into_response()
    }

    fn failure(pages: &mut Pages, status: StatusCode, received: bool, wanted: Wanted) -> Response<Bytes> {
        pages.render(Cause::Failed { status, received }, wanted).into_response()
    }

    fn body(pages: &mut Pages, format: Format) -> String {
        read(refusal(pages, wanted(format)))
    }

    fn read(response: Response<Bytes>) -> String {
        String::from_utf8(response.into_body().to_vec()).unwrap()
    }

    #[test]
    fn a_reason_is_text_in_every_format() {
        let mut pages = pages("<script>alert(\"1\")</script> & 'x'\u{0}\u{1b}[31m\u{202e}\nline");
        let html = body(&mut pages, Format::Html);
        let escaped = "&lt;script&gt;alert(&quot;1&quot;)&lt;&#x2f;script&gt; &amp; &#x27;x&#x27;[31m\nline</p>";
        assert!(html.contains(escaped), "{html}");
        assert_eq!(body(&mut pages, Format::Text), "<script>alert(\"1\")</script> & 'x'[31m\nline\n");
        let problem: serde_json::Value = serde_json::from_str(&body(&mut pages, Format::Json)).unwrap();
        assert_eq!(problem["detail"], "<script>alert(\"1\")</script> & 'x'\u{0}\u{1b}[31m\u{202e}\nline");
        let message = refusal(&mut pages, wanted(Format::Grpc)).headers()["grpc-message"].clone();
        assert_eq!(message, "<script>alert(\"1\")</script> & 'x'%00%1B[31m%E2%80%AE%0Aline");
    }

    #[test]
    fn a_grpc_message_has_a_limit() {
        let message = |reason: &str| {
            let response = refusal(&mut pages(reason), wanted(Format::Grpc));
            response.headers()["grpc-message"].to_str().unwrap().to_owned()
        };
        assert_eq!(message("100 % \u{e9}"), "100 %25 %C3%A9");
        assert_eq!(message(&"x".repeat(16 * 1024)).len(), 1024);
        // 1,023 bytes hold 341 of these, each encoded in nine.
        assert_eq!(message(&"€".repeat(1000)), "%E2%82%AC".repeat(341));
    }

    #[test]
    fn when_to_come_back() {
        let retry_after = |until: Option<Timestamp>| {
            let value = refusal(&mut on(None, until), wanted(Format::Text)).headers()[RETRY_AFTER].clone();
            value.to_str().unwrap().parse::<i64>().unwrap()
        };
        let now = Timestamp::now();
        assert_eq!(retry_after(None), 60);
        assert_eq!(retry_after(Some(now - Duration::from_secs(5))), 60);
        let left = retry_after(Some(now + Duration::from_secs(1000)));
        assert!((900..=1000).contains(&left), "{left}");
        let table = [(-1, None), (0, None), (1, Some(1)), (1000, Some(1)), (1001, Some(2)), (60_000, Some(60))];
        for (milliseconds, seconds) in table {
            assert_eq!(seconds_up(SignedDuration::from_millis(milliseconds)), seconds, "{milliseconds} ms");
        }
    }

    #[test]
    fn without_a_reason() {
        assert_eq!(body(&mut on(None, None), Format::Text), "Down for maintenance\n");
        let mut off = Pages::new(&Mode::Off, Duration::from_secs(60), Arc::default());
        assert_eq!(body(&mut off, Format::Text), "Temporarily unavailable\n");
        let expected = "{\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503}\n";
        assert_eq!(body(&mut off, Format::Json), expected);
        assert!(!body(&mut off, Format::Html).contains("class=\"reason\""));
    }

    fn german() -> Language {
        Language::all().find(|language| language.tag() == "de").unwrap()
    }

    #[test]
    fn every_language_is_small() {
        let until = Timestamp::now() + Duration::from_secs(3600);
        for language in Language::all() {
            let tag = language.tag();
            for mut pages in [on(None, Some(until)), Pages::new(&Mode::Off, Duration::from_secs(60), Arc::default())] {
                for sends in [false, true] {
                    let response = refusal(&mut pages, Wanted { language, sends, ..wanted(Format::Html) });
                    assert_eq!(response.headers()[CONTENT_LANGUAGE], tag);
                    let html = read(response);
                    assert!(html.contains(&format!("<html lang=\"{tag}\"")), "{html}");
                    assert!(html.ends_with("</html>"), "{tag} {sends}: {html}");
                    assert!(html.len() < 8000, "{tag}: {}", html.len());
                }
            }
        }
    }

    #[test]
    fn what_is_rendered_takes_little_memory() {
        let mut pages = pages(&"x".repeat(16 * 1024));
        let mut many = 0;
        for sends in [false, true] {
            for language in Language::all() {
                let response = refusal(&mut pages, Wanted { language, sends, ..wanted(Format::Html) });
                assert!(response.body().len() > 16 * 1024);
                many = many.max(pages.rendered.len());
            }
        }
        assert!((10..RENDERED_SIZE / (16 * 1024)).contains(&many), "{many}");
    }

    #[test]
    fn what_may_have_been_received_is_not_said_to_be_lost() {
        let mut pages = pages("Updating");
        let post = Wanted { sends: true, ..wanted(Format::Html) };
        let said = "What you sent was not received.";
        assert!(read(refusal(&mut pages, post)).contains(said));
        assert!(read(failure(&mut pages, StatusCode::BAD_GATEWAY, false, post)).contains(said));
        for response in [
            pages.render(Cause::Aborted, post).into_response(),
            failure(&mut pages, StatusCode::GATEWAY_TIMEOUT, true, post),
        ] {
            let html = read(response);
            assert!(!html.contains(said) && !html.contains("<script") && !html.contains("http-equiv"), "{html}");
        }
        for response in [
            refusal(&mut pages, wanted(Format::Html)),
            failure(&mut pages, StatusCode::BAD_GATEWAY, true, wanted(Format::Html)),
        ] {
            let html = read(response);
            assert!(!html.contains(said) && html.contains("<script") && html.contains("http-equiv"), "{html}");
        }
        // To ask for that again would be of no use.
        let html = read(failure(
            &mut pages,
            StatusCode::BAD_REQUEST,
            true,
            Wanted { language: german(), ..wanted(Format::Html) },
        ));
        assert!(html.contains("<h1>Bad Request</h1>") && !html.contains("<script"), "{html}");
        assert!(html.contains("<html lang=\"en\""), "what it says is English: {html}");
    }

    #[test]
    fn rendered_once() {
        let mut pages = pages("Updating");
        let pointer = |response: Response<Bytes>| response.into_body().as_ptr();
        let german = Wanted { language: german(), ..wanted(Format::Html) };
        let first = pointer(refusal(&mut pages, wanted(Format::Html)));
        assert_ne!(pointer(refusal(&mut pages, german)), first);
        assert_eq!(pointer(refusal(&mut pages, wanted(Format::Html))), first);
        assert_eq!(pages.rendered.len(), 2);
        let text = Wanted { sends: true, ..wanted(Format::Text) };
        let _ = (refusal(&mut pages, text), refusal(&mut pages, wanted(Format::Text)));
        assert_eq!(pages.rendered.len(), 3, "text says the same to both");
    }
}
