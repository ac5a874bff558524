//! What a client is told instead of the application's answer: the refusal in each format and language, rendered once a
//! change of the state, when it is first asked for.
//!
//! `content` is what a page says, and how machines and terminals are told it. For people a `template` is filled in, with the
//! texts of their language and the `reason` as HTML; `csp` says what their browser may run. The `design` is an operator's:
//! their `brand` on the built-in template, or one of their own, read from `files`.

pub mod brand;
mod content;
mod csp;
pub mod design;
pub mod files;
mod logo;
mod reason;
mod template;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    CACHE_CONTROL, CONTENT_LANGUAGE, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderName,
    HeaderValue, RETRY_AFTER, VARY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};

use self::content::{Content, Subject};
use self::design::Design;
use super::negotiation::Wanted;
use super::negotiation::format::Format;
use super::texts::{Language, Texts};
use crate::maintenance::state::Mode;

/// How much of memory may be taken by what is rendered, in bytes: one page more than that, at most.
const RENDERED_SIZE: usize = 512 * 1024;
/// What a page takes beside its body, about.
const HEADERS_SIZE: usize = 1024;

/// gRPC's `UNAVAILABLE`.
const UNAVAILABLE: HeaderValue = HeaderValue::from_static("14");

/// The refusal in every format and language that it was asked for.
#[derive(Debug)]
pub(super) struct Pages {
    content: Content,
    design: Arc<Design>,
    /// For when the end is not known, or past. In seconds.
    retry_after: u64,
    rendered: Vec<(Key, Page)>,
}

/// What one page differs in from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    status: StatusCode,
    format: Format,
    language: Language,
    sent: Sent,
}

/// What a request has brought to the application, as far as its client cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// It only asks.
    Nothing,
    /// A form, say, that was not received.
    Refused,
    /// One of which nobody knows.
    Perhaps,
}

/// An answer in one format. A copy of it is all that a request needs.
#[derive(Debug)]
struct Page {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Pages {
    /// Those for this state. `retry_after` is for when the end is not known, or past.
    #[must_use]
    pub(super) fn new(mode: &Mode, retry_after: Duration, design: Arc<Design>) -> Self {
        let retry_after = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
        Self { content: Content::refusal(mode), design, retry_after, rendered: Vec::new() }
    }

    /// The same in another design.
    pub(super) fn redesign(&mut self, design: Arc<Design>) {
        self.design = design;
        self.rendered.clear();
    }

    /// Whether they promise an end that has passed.
    #[must_use]
    pub(super) fn is_outdated(&self) -> bool {
        self.content.until.is_some_and(|until| until <= Timestamp::now())
    }

    /// The answer to a request that has not reached the application.
    #[must_use]
    pub(super) fn refusal(&mut self, wanted: Wanted) -> Response<Full<Bytes>> {
        self.response(None, false, wanted)
    }

    /// The answer to one that may have, before it was cut.
    #[must_use]
    pub(super) fn cut(&mut self, wanted: Wanted) -> Response<Full<Bytes>> {
        self.response(None, true, wanted)
    }

    /// What a client is told that the application has not answered. Whether it may have received the request is not always
    /// known.
    #[must_use]
    pub(super) fn failure(&mut self, status: StatusCode, received: bool, wanted: Wanted) -> Response<Full<Bytes>> {
        self.response(Some(status), received, wanted)
    }

    /// The refusal, or the page for a failure with this status, to a request that the application may have received or not.
    fn response(&mut self, failure: Option<StatusCode>, received: bool, wanted: Wanted) -> Response<Full<Bytes>> {
        let failure = failure.map(Content::failure);
        let content = failure.as_ref().unwrap_or(&self.content);
        let Wanted { format, head, .. } = wanted;
        // What a status means is known in English only.
        let language = if content.subject == Subject::Status { Language::ENGLISH } else { wanted.language };
        // Only pages speak of it.
        let sent = match (format == Format::Html && wanted.sends, received) {
            (false, _) => Sent::Nothing,
            (true, false) => Sent::Refused,
            (true, true) => Sent::Perhaps,
        };
        let key = Key { status: content.status, format, language, sent };
        let index = self.rendered.iter().position(|(rendered, _)| *rendered == key).unwrap_or_else(|| {
            let mut page = Page::new(content, &self.design, key, self.retry_after);
            if failure.is_none() {
                page.headers.insert(RETRY_AFTER, HeaderValue::from(self.retry_after));
            }
            self.rendered.push((key, page));
            let size = |(_, page): &(Key, Page)| page.body.len() + HEADERS_SIZE;
            while self.rendered.len() > 1 && self.rendered.iter().map(size).sum::<usize>() > RENDERED_SIZE {
                self.rendered.remove(0);
            }
            self.rendered.len() - 1
        });
        let mut response = self.rendered[index].1.response(head);
        let until = self.content.until.filter(|_| failure.is_none());
        if let Some(left) = until.and_then(|until| seconds_up(until.duration_since(Timestamp::now()))) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(left));
        }
        response
    }
}

impl Page {
    fn new(content: &Content, design: &Design, key: Key, retry_after: u64) -> Self {
        let Key { format, language, sent, .. } = key;
        // The tests see to it that all can be read.
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
            // No body: gRPC says what went wrong in trailers, and without a body those are sent as headers.
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
        }
        Self { status, headers, body: body.into() }
    }

    /// The answer. One to `HEAD` has the headers of the whole and no body.
    fn response(&self, head: bool) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(if head { Bytes::new() } else { self.body.clone() }));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.clone_from(&self.headers);
        if head {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        }
        response
    }
}

/// In whole seconds, rounded up: who comes back in time should not come too early. `None` if it is past.
fn seconds_up(left: SignedDuration) -> Option<i64> {
    left.is_positive().then(|| left.as_secs().saturating_add(i64::from(left.subsec_nanos() > 0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maintenance::state::Maintenance;
    use http_body_util::BodyExt;

    fn on(reason: Option<&str>, until: Option<Timestamp>) -> Pages {
        let reason = reason.map(str::to_owned);
        let maintenance = Maintenance { reason, since: Timestamp::UNIX_EPOCH, until, file: "MAINTENANCE".into() };
        Pages::new(&Mode::On(maintenance), Duration::from_secs(60), Arc::default())
    }

    fn pages(reason: &str) -> Pages {
        on(Some(reason), None)
    }

    fn wanted(format: Format) -> Wanted {
        Wanted { format, language: Language::ENGLISH, head: false, sends: false }
    }

    async fn body(pages: &mut Pages, format: Format) -> String {
        read(pages.refusal(wanted(format))).await
    }

    async fn read(response: Response<Full<Bytes>>) -> String {
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_reason_is_text_in_every_format() {
        let mut pages = pages("<script>alert(\"1\")</script> & 'x'\u{0}\u{1b}[31m\u{202e}\nline");
        let html = body(&mut pages, Format::Html).await;
        let escaped = "&lt;script&gt;alert(&quot;1&quot;)&lt;&#x2f;script&gt; &amp; &#x27;x&#x27;[31m\nline</p>";
        assert!(html.contains(escaped), "{html}");
        assert_eq!(body(&mut pages, Format::Text).await, "<script>alert(\"1\")</script> & 'x'[31m\nline\n");
        let problem: serde_json::Value = serde_json::from_str(&body(&mut pages, Format::Json).await).unwrap();
        assert_eq!(problem["detail"], "<script>alert(\"1\")</script> & 'x'\u{0}\u{1b}[31m\u{202e}\nline");
        let message = pages.refusal(wanted(Format::Grpc)).headers()["grpc-message"].clone();
        assert_eq!(message, "<script>alert(\"1\")</script> & 'x'%00%1B[31m%E2%80%AE%0Aline");
    }

    #[test]
    fn a_grpc_message_has_a_limit() {
        let message = |reason: &str| {
            let response = pages(reason).refusal(wanted(Format::Grpc));
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
            let value = on(None, until).refusal(wanted(Format::Text)).headers()[RETRY_AFTER].clone();
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

    #[tokio::test]
    async fn without_a_reason() {
        assert_eq!(body(&mut on(None, None), Format::Text).await, "Down for maintenance\n");
        let mut off = Pages::new(&Mode::Off, Duration::from_secs(60), Arc::default());
        assert_eq!(body(&mut off, Format::Text).await, "Temporarily unavailable\n");
        let expected = "{\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503}\n";
        assert_eq!(body(&mut off, Format::Json).await, expected);
        assert!(!body(&mut off, Format::Html).await.contains("class=\"reason\""));
    }

    fn german() -> Language {
        Language::all().find(|language| language.tag() == "de").unwrap()
    }

    #[tokio::test]
    async fn every_language_is_small() {
        let until = Timestamp::now() + Duration::from_secs(3600);
        for language in Language::all() {
            let tag = language.tag();
            for mut pages in [on(None, Some(until)), Pages::new(&Mode::Off, Duration::from_secs(60), Arc::default())] {
                for sends in [false, true] {
                    let response = pages.refusal(Wanted { language, sends, ..wanted(Format::Html) });
                    assert_eq!(response.headers()[CONTENT_LANGUAGE], tag);
                    let html = read(response).await;
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
                let response = pages.refusal(Wanted { language, sends, ..wanted(Format::Html) });
                assert!(hyper::body::Body::size_hint(response.body()).lower() > 16 * 1024);
                many = many.max(pages.rendered.len());
            }
        }
        assert!((10..RENDERED_SIZE / (16 * 1024)).contains(&many), "{many}");
    }

    #[tokio::test]
    async fn what_may_have_been_received_is_not_said_to_be_lost() {
        let mut pages = pages("Updating");
        let post = Wanted { sends: true, ..wanted(Format::Html) };
        let said = "What you sent was not received.";
        assert!(read(pages.refusal(post)).await.contains(said));
        assert!(read(pages.failure(StatusCode::BAD_GATEWAY, false, post)).await.contains(said));
        for response in [pages.cut(post), pages.failure(StatusCode::GATEWAY_TIMEOUT, true, post)] {
            let html = read(response).await;
            assert!(!html.contains(said) && !html.contains("<script") && !html.contains("http-equiv"), "{html}");
        }
        for response in
            [pages.refusal(wanted(Format::Html)), pages.failure(StatusCode::BAD_GATEWAY, true, wanted(Format::Html))]
        {
            let html = read(response).await;
            assert!(!html.contains(said) && html.contains("<script") && html.contains("http-equiv"), "{html}");
        }
        // To ask for that again would be of no use.
        let html =
            read(pages.failure(StatusCode::BAD_REQUEST, true, Wanted { language: german(), ..wanted(Format::Html) }))
                .await;
        assert!(html.contains("<h1>Bad Request</h1>") && !html.contains("<script"), "{html}");
        assert!(html.contains("<html lang=\"en\""), "what it says is English: {html}");
    }

    #[tokio::test]
    async fn rendered_once() {
        let mut pages = pages("Updating");
        let pointer = |response: Response<Full<Bytes>>| async {
            response.into_body().collect().await.unwrap().to_bytes().as_ptr()
        };
        let german = Wanted { language: german(), ..wanted(Format::Html) };
        let first = pointer(pages.refusal(wanted(Format::Html))).await;
        assert_ne!(pointer(pages.refusal(german)).await, first);
        assert_eq!(pointer(pages.refusal(wanted(Format::Html))).await, first);
        assert_eq!(pages.rendered.len(), 2);
        let text = Wanted { sends: true, ..wanted(Format::Text) };
        let _ = (pages.refusal(text), pages.refusal(wanted(Format::Text)));
        assert_eq!(pages.rendered.len(), 3, "text says the same to both");
    }
}
