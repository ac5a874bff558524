//! The refusal in each format, rendered once a change of the state.

use std::borrow::Cow;
use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, VARY,
};
use hyper::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Serialize;

use super::format::Format;
use crate::maintenance::printable;
use crate::maintenance::state::{Maintenance, Mode};

/// How much of the reason a gRPC client is sent, in bytes: many limit all headers together to 8 KiB.
const GRPC_MESSAGE: usize = 1024;
/// gRPC's `UNAVAILABLE`.
const UNAVAILABLE: HeaderValue = HeaderValue::from_static("14");
/// What a gRPC message cannot hold as it is: all but the printable ASCII characters, and the percent sign
/// ("gRPC over HTTP2", Status-Message).
const GRPC_ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// What a client is told that the application has not answered. Rendered each time: these are rare.
#[must_use]
pub fn failure(status: StatusCode, format: Format, head: bool) -> Response<Full<Bytes>> {
    let heading = status.canonical_reason().unwrap_or("Error");
    let content = Content { status, heading, reason: None, since: None, until: None };
    let mut page = match format {
        Format::Html => Page::new(HTML, content.html(), None),
        Format::Json => Page::new(JSON, content.json(), None),
        Format::Text => Page::new(TEXT, content.text(), None),
        Format::Grpc => Page::grpc(content.grpc_message(), None),
    };
    if format != Format::Grpc {
        page.status = status;
    }
    page.response(head)
}

const HTML: &str = "text/html; charset=utf-8";
const JSON: &str = "application/problem+json";
const TEXT: &str = "text/plain; charset=utf-8";

/// The refusal in every format.
#[derive(Debug)]
pub struct Pages {
    html: Page,
    json: Page,
    text: Page,
    grpc: Page,
    until: Option<Timestamp>,
}

/// A refusal in one format. A copy of it is all that a request needs.
#[derive(Debug)]
struct Page {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// What a page says.
struct Content<'a> {
    status: StatusCode,
    heading: &'static str,
    reason: Option<&'a str>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
}

impl Pages {
    /// Renders all formats. `retry_after` is for when the end is not known, or past.
    #[must_use]
    pub fn render(mode: &Mode, retry_after: Duration) -> Self {
        let now = Timestamp::now();
        let content = match mode {
            Mode::On(Maintenance { reason, since, until, .. }) => Content {
                status: StatusCode::SERVICE_UNAVAILABLE,
                heading: "Down for maintenance",
                reason: reason.as_deref(),
                since: Some((*since).min(now)),
                until: until.filter(|until| *until > now),
            },
            // Who comes here then found no instance that is ready.
            Mode::Off | Mode::Unknown => Content {
                status: StatusCode::SERVICE_UNAVAILABLE,
                heading: "Temporarily unavailable",
                reason: None,
                since: None,
                until: None,
            },
        };
        Self {
            html: Page::new(HTML, content.html(), Some(retry_after)),
            json: Page::new(JSON, content.json(), Some(retry_after)),
            text: Page::new(TEXT, content.text(), Some(retry_after)),
            grpc: Page::grpc(content.grpc_message(), Some(retry_after)),
            until: content.until,
        }
    }

    /// Whether they promise an end that has passed.
    #[must_use]
    pub fn is_outdated(&self) -> bool {
        self.until.is_some_and(|until| until <= Timestamp::now())
    }

    /// The answer to a request. One to `HEAD` has the headers of the whole and no body.
    #[must_use]
    pub fn response(&self, format: Format, head: bool) -> Response<Full<Bytes>> {
        let page = match format {
            Format::Html => &self.html,
            Format::Json => &self.json,
            Format::Text => &self.text,
            Format::Grpc => &self.grpc,
        };
        let mut response = page.response(head);
        let headers = response.headers_mut();
        if let Some(left) = self.until.and_then(|until| seconds_up(until.duration_since(Timestamp::now()))) {
            headers.insert(RETRY_AFTER, HeaderValue::from(left));
        }
        response
    }
}

impl Page {
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

    fn new(content_type: &'static str, body: String, retry_after: Option<Duration>) -> Self {
        let mut headers = common_headers(content_type, retry_after);
        headers.insert(VARY, HeaderValue::from_static("Accept, Accept-Language"));
        Self { status: StatusCode::SERVICE_UNAVAILABLE, headers, body: body.into() }
    }

    /// Status 200 and no body: gRPC says what went wrong in trailers, and without a body those are sent as headers.
    fn grpc(message: HeaderValue, retry_after: Option<Duration>) -> Self {
        let mut headers = common_headers("application/grpc", retry_after);
        headers.insert(HeaderName::from_static("grpc-status"), UNAVAILABLE);
        headers.insert(HeaderName::from_static("grpc-message"), message);
        Self { status: StatusCode::OK, headers, body: Bytes::new() }
    }
}

fn common_headers(content_type: &'static str, retry_after: Option<Duration>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Some(time) = retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(time.as_secs() + u64::from(time.subsec_nanos() > 0)));
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers
}

/// In whole seconds, rounded up: who comes back in time should not come too early. `None` if it is past.
fn seconds_up(left: SignedDuration) -> Option<i64> {
    left.is_positive().then(|| left.as_secs().saturating_add(i64::from(left.subsec_nanos() > 0)))
}

/// RFC 9457. A type of `about:blank` says no more than the status, and has its title.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

impl Content<'_> {
    fn html(&self) -> String {
        let heading = self.heading;
        let mut page = String::with_capacity(2048);
        page.push_str(concat!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n",
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
            "<meta name=\"robots\" content=\"noindex\">\n",
        ));
        // Writing to a string cannot fail.
        let _ = write!(
            page,
            "<title>{heading}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{heading}</h1>\n"
        );
        if let Some(reason) = self.reason {
            let _ = writeln!(page, "<p class=\"reason\" dir=\"auto\">{}</p>", escape(&printable(reason)));
        }
        match self.until {
            Some(until) => {
                let shown = until.strftime("%-d %B %Y, %H:%M UTC");
                let _ = writeln!(page, "<p>We expect to be back by <time datetime=\"{until}\">{shown}</time>.</p>");
            }
            None => page.push_str("<p>Please try again in a little while.</p>\n"),
        }
        page.push_str("</main>\n</body>\n</html>\n");
        page
    }

    fn json(&self) -> String {
        let problem = Problem {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            detail: self.reason,
            since: self.since.map(|time| time.to_string()),
            until: self.until.map(|time| time.to_string()),
        };
        // Strings and a number always serialize.
        serde_json::to_string(&problem).unwrap_or_default() + "\n"
    }

    fn text(&self) -> String {
        let mut text = printable(self.reason.unwrap_or(self.heading));
        text.push('\n');
        if let Some(until) = self.until {
            let _ = writeln!(text, "\nExpected to end: {until}");
        }
        text
    }

    fn grpc_message(&self) -> HeaderValue {
        let reason = self.reason.unwrap_or(self.heading);
        let end = (0..=GRPC_MESSAGE.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end));
        let message = utf8_percent_encode(&reason[..end.unwrap_or_default()], GRPC_ESCAPED).to_string();
        HeaderValue::try_from(message).unwrap_or(HeaderValue::from_static(""))
    }
}

fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '"', '\'']) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 32);
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped.into()
}

const STYLE: &str = "\
:root { color-scheme: light dark; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; font: 1.125rem/1.6 system-ui, sans-serif;
  color: #1c2024; background: #f6f7f8; }
main { box-sizing: border-box; width: 100%; max-width: 36rem; padding: 2rem; overflow-wrap: anywhere; }
h1 { margin: 0 0 1rem; font-size: 1.75rem; line-height: 1.25; }
p { margin: 0 0 1rem; }
.reason { white-space: pre-line; }
@media (prefers-color-scheme: dark) { body { color: #e6e8ea; background: #16191d; } }
";

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    fn pages(reason: &str) -> Pages {
        let maintenance = Maintenance {
            reason: Some(reason.to_owned()),
            since: Timestamp::UNIX_EPOCH,
            until: None,
            file: "MAINTENANCE".into(),
        };
        Pages::render(&Mode::On(maintenance), Duration::from_secs(60))
    }

    async fn body(pages: &Pages, format: Format) -> String {
        let bytes = pages.response(format, false).into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_reason_is_text_in_every_format() {
        let pages = pages("<script>alert(\"1\")</script> & 'x'\u{0}\u{1b}[31m\u{202e}\nline");
        let html = body(&pages, Format::Html).await;
        let escaped = "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &#39;x&#39;[31m\nline</p>";
        assert!(html.contains(escaped), "{html}");
        assert_eq!(body(&pages, Format::Text).await, "<script>alert(\"1\")</script> & 'x'[31m\nline\n");
        let problem: serde_json::Value = serde_json::from_str(&body(&pages, Format::Json).await).unwrap();
        assert_eq!(problem["detail"], "<script>alert(\"1\")</script> & 'x'\u{0}\u{1b}[31m\u{202e}\nline");
        let message = pages.response(Format::Grpc, false).headers()["grpc-message"].clone();
        assert_eq!(message, "<script>alert(\"1\")</script> & 'x'%00%1B[31m%E2%80%AE%0Aline");
    }

    #[test]
    fn a_grpc_message_has_a_limit() {
        let message = |reason: &str| pages(reason).grpc.headers["grpc-message"].to_str().unwrap().to_owned();
        assert_eq!(message("100 % \u{e9}"), "100 %25 %C3%A9");
        assert_eq!(message(&"x".repeat(16 * 1024)).len(), 1024);
        // 1,023 bytes hold 341 of these, each encoded in nine.
        assert_eq!(message(&"€".repeat(1000)), "%E2%82%AC".repeat(341));
    }

    #[test]
    fn when_to_come_back() {
        let retry_after = |until: Option<Timestamp>| {
            let mut pages = pages("x");
            pages.until = until;
            let value = pages.response(Format::Text, false).headers()[RETRY_AFTER].clone();
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
        let maintenance = Maintenance { reason: None, since: Timestamp::UNIX_EPOCH, until: None, file: "m".into() };
        let on = Pages::render(&Mode::On(maintenance), Duration::from_secs(60));
        assert_eq!(body(&on, Format::Text).await, "Down for maintenance\n");
        let off = Pages::render(&Mode::Off, Duration::from_secs(60));
        assert_eq!(body(&off, Format::Text).await, "Temporarily unavailable\n");
        let expected = "{\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503}\n";
        assert_eq!(body(&off, Format::Json).await, expected);
        assert!(!body(&off, Format::Html).await.contains("class=\"reason\""));
    }
}
