//! Response heads (RFC 9112 §4).

use super::Version;
use super::body::Framing;
use super::error::{self, HeadError};
use super::fields::{self, Kind, Lines, Storage};

/// A response head, as it was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'h, 'b> {
    /// The status, from 100 to 999.
    pub status: u16,
    /// The reason phrase, which may be empty.
    pub reason: &'b str,
    /// The version that the server speaks.
    pub version: Version,
    /// The field lines, in order.
    pub fields: Lines<'h, 'b>,
    /// The framing of the body.
    pub framing: Framing,
    /// Whether the server lets the connection persist (RFC 9112 §9.3).
    pub persists: bool,
    /// The length of the head in bytes. The body begins there.
    pub length: usize,
}

impl<'h, 'b> Response<'h, 'b> {
    /// Parses the head at the start of `input`. `None` if it is not complete yet. `is_head` tells whether the request was
    /// `HEAD`; `limit` is the size of a head in bytes.
    ///
    /// # Errors
    ///
    /// See [`HeadError`].
    pub fn parse(
        input: &'b [u8],
        storage: &'h mut Storage<'b>,
        is_head: bool,
        limit: usize,
    ) -> Result<Option<Self>, HeadError> {
        let input = fields::within(input, limit);
        // httparse skips empty lines, as servers do before a request (RFC 9112 §2.2). Here they are left from another body.
        if input.first().is_some_and(|byte| matches!(byte, b'\r' | b'\n')) {
            return Err(HeadError::StartLine);
        }
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let length = match config.parse_response_with_uninit_headers(&mut parsed, input, &mut storage.lines) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return fields::check_partial(input, limit).map(|()| None),
            // What kind of error it is depends on bytes that may not have arrived yet.
            Err(httparse::Error::Version) => match fields::start_line(input) {
                Some(line) => return Err(error::version(line.split(|byte| *byte == b' ').next().unwrap_or_default())),
                None => return fields::check_partial(input, limit).map(|()| None),
            },
            Err(error) => return Err(error.into()),
        };
        fields::check_line_ends(&input[..length])?;
        let (Some(status), Some(version)) = (parsed.code, parsed.version) else { return Err(HeadError::StartLine) };
        if status < 100 {
            return Err(HeadError::Status);
        }
        let version = if version == 0 { Version::Http10 } else { Version::Http11 };
        let fields = Lines::new(parsed.headers, &mut storage.kinds);
        let framing = framing(fields, status, is_head)?;
        // HTTP/1.0 has no transfer codings: an intermediary may have passed this one on unread (RFC 9112 §6.1). A length beside a
        // coding may be an attempt to split the response (RFC 9112 §6.3).
        let is_faulty = (version == Version::Http10 && fields.has(Kind::TransferEncoding))
            || (framing == Framing::Chunked && fields.has(Kind::ContentLength));
        let persists = framing != Framing::UntilClose && !is_faulty && fields::persists(fields, version);
        let reason = parsed.reason.unwrap_or_default();
        Ok(Some(Self { status, reason, version, fields, framing, persists, length }))
    }

    /// Whether another response follows to the same request. 101 is final: what follows is another protocol.
    #[must_use]
    pub fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }
}

/// The framing (RFC 9112 §6.3).
fn framing(fields: Lines<'_, '_>, status: u16, is_head: bool) -> Result<Framing, HeadError> {
    // A coding that is unknown here is an error in any case: it would be lost.
    let is_chunked = fields::is_chunked(fields)?;
    if is_head || matches!(status, 100..=199 | 204 | 304) {
        // Whatever else the fields say: they are those of the response to GET.
        return Ok(Framing::Length(0));
    }
    match (is_chunked, fields::content_length(fields)?) {
        // The length is ignored (RFC 9112 §6.3). The connection does not persist: see below.
        (true, _) => Ok(Framing::Chunked),
        (false, Some(length)) => Ok(Framing::Length(length)),
        (false, None) => Ok(Framing::UntilClose),
    }
}

/// Appends a status line for HTTP/1.1 to a head. `status` is from 100 to 999.
pub fn encode_line(out: &mut Vec<u8>, status: u16, reason: &str) {
    out.extend_from_slice(b"HTTP/1.1 ");
    for place in [100, 10, 1] {
        // A digit.
        out.push(b'0' + u8::try_from(status / place % 10).unwrap_or_default());
    }
    out.push(b' ');
    out.extend_from_slice(reason.as_bytes());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 8192;

    fn parse<T>(
        input: &[u8],
        is_head: bool,
        check: impl FnOnce(Result<Option<Response<'_, '_>>, HeadError>) -> T,
    ) -> T {
        check(Response::parse(input, &mut fields::storage(), is_head, LIMIT))
    }

    #[test]
    fn parses_a_response() {
        let input = b"HTTP/1.1 404 Not  Found\r\nContent-Length: 3\r\nX: y\r\n\r\nabc";
        parse(input, false, |response| {
            let response = response.unwrap().unwrap();
            assert_eq!((response.status, response.reason, response.version), (404, "Not  Found", Version::Http11));
            assert_eq!((response.framing, response.persists), (Framing::Length(3), true));
            assert_eq!((response.fields.all().len(), &input[response.length..]), (2, &b"abc"[..]));
        });
        for line in ["HTTP/1.1 200", "HTTP/1.1 200 "] {
            let head = format!("{line}\r\n\r\n");
            parse(head.as_bytes(), false, |response| assert_eq!(response.unwrap().unwrap().reason, ""));
        }
    }

    #[test]
    fn waits_for_the_rest_of_a_head_within_the_limit() {
        let whole = b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n";
        for end in 0..whole.len() {
            parse(&whole[..end], false, |response| assert_eq!(response, Ok(None), "{end}"));
        }
        let head = |filling: usize| format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "y".repeat(filling));
        let most = LIMIT - head(0).len();
        parse(head(most).as_bytes(), false, |response| assert!(response.unwrap().is_some()));
        let large = head(most + 1);
        parse(large.as_bytes(), false, |response| assert_eq!(response, Err(HeadError::TooLarge)));
        parse(&large.as_bytes()[..LIMIT], false, |response| assert_eq!(response, Err(HeadError::TooLarge)));
    }

    #[test]
    fn frames_bodies() {
        let none = Framing::Length(0);
        let table = [
            (200, "", false, Ok((Framing::UntilClose, false))),
            (200, "Content-Length: 7\r\n", false, Ok((Framing::Length(7), true))),
            (200, "Content-Length: 7\r\n", true, Ok((none, true))),
            (200, "", true, Ok((none, true))),
            (204, "Content-Length: 7\r\n", false, Ok((none, true))),
            (304, "Content-Length: 7\r\n", false, Ok((none, true))),
            (304, "Transfer-Encoding: chunked\r\n", false, Ok((none, true))),
            (103, "", false, Ok((none, true))),
            (100, "", false, Ok((none, true))),
            (199, "", false, Ok((none, true))),
            (205, "", false, Ok((Framing::UntilClose, false))),
            (303, "", false, Ok((Framing::UntilClose, false))),
            (200, "Transfer-Encoding: chunked\r\n", false, Ok((Framing::Chunked, true))),
            (200, "Transfer-Encoding: chunked\r\nContent-Length: 7\r\n", false, Ok((Framing::Chunked, false))),
            (200, "Content-Length: 7\r\nTransfer-Encoding: chunked\r\n", false, Ok((Framing::Chunked, false))),
            (200, "Transfer-Encoding: chunked, chunked\r\n", false, Err(HeadError::TransferEncoding)),
            (200, "Content-Length: 7\r\nConnection: keep-alive, close\r\n", false, Ok((Framing::Length(7), false))),
            (200, "Transfer-Encoding: gzip\r\n", false, Err(HeadError::TransferEncoding)),
            (200, "Content-Length: 7\r\nContent-Length: 8\r\n", false, Err(HeadError::ContentLength)),
            (200, "Content-Length: x\r\n", false, Err(HeadError::ContentLength)),
            (200, "Content-Length: 7\r\nConnection: close\r\n", false, Ok((Framing::Length(7), false))),
        ];
        for (status, lines, is_head, expected) in table {
            let head = format!("HTTP/1.1 {status} X\r\n{lines}\r\n");
            let framed = parse(head.as_bytes(), is_head, |response| {
                response.map(|response| response.map(|response| (response.framing, response.persists)).unwrap())
            });
            assert_eq!(framed, expected, "{head}");
        }
    }

    #[test]
    fn closes_the_connection_after_http_1_0_unless_asked_to_keep_it() {
        let table = [
            ("Content-Length: 0\r\n", (Framing::Length(0), false)),
            ("Content-Length: 0\r\nConnection: keep-alive\r\n", (Framing::Length(0), true)),
            ("Content-Length: 0\r\nConnection: close, keep-alive\r\n", (Framing::Length(0), false)),
            ("Connection: keep-alive\r\n", (Framing::UntilClose, false)),
            ("Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n", (Framing::Chunked, false)),
        ];
        for (lines, expected) in table {
            let head = format!("HTTP/1.0 200 OK\r\n{lines}\r\n");
            parse(head.as_bytes(), false, |response| {
                let response = response.unwrap().unwrap();
                assert_eq!((response.framing, response.persists), expected, "{lines}");
            });
        }
        // Even where it is no part of the framing.
        let head = b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n";
        parse(head, true, |response| assert!(!response.unwrap().unwrap().persists));
    }

    #[test]
    fn tells_interim_responses_from_final_ones() {
        for (status, expected) in [(100, true), (101, false), (102, true), (103, true), (199, true), (200, false)] {
            let head = format!("HTTP/1.1 {status} X\r\n\r\n");
            parse(head.as_bytes(), false, |response| {
                assert_eq!(response.unwrap().unwrap().is_interim(), expected, "{status}");
            });
        }
    }

    #[test]
    fn refuses_malformed_heads() {
        let table = [
            ("HTTP/1.1 099 X\r\n\r\n", HeadError::Status),
            ("HTTP/1.1 20 X\r\n\r\n", HeadError::Status),
            ("HTTP/1.1 abc X\r\n\r\n", HeadError::Status),
            ("HTTP/1.1 2000 X\r\n\r\n", HeadError::Status),
            ("HTTP/1.1  200 X\r\n\r\n", HeadError::Status),
            ("HTTP/1.1 200 a\rb\r\n\r\n", HeadError::Status),
            ("HTTP/1.1 200 a\x7f\r\n\r\n", HeadError::Status),
            ("HTTP/1.2 200 OK\r\n\r\n", HeadError::Version),
            ("HTTP/2.0 200 OK\r\n\r\n", HeadError::Version),
            ("HTTP/2 200 OK\r\n\r\n", HeadError::StartLine),
            ("HTTP/1.1\r\n\r\n", HeadError::StartLine),
            ("HTTP/1.10 200 OK\r\n\r\n", HeadError::StartLine),
            ("nonsense\r\n\r\n", HeadError::StartLine),
            ("\r\nHTTP/1.1 200 OK\r\n\r\n", HeadError::StartLine),
            ("\nHTTP/1.1 200 OK\r\n\r\n", HeadError::StartLine),
            (" HTTP/1.1 200 OK\r\n\r\n", HeadError::StartLine),
            ("HTTP/1.1 200 OK\n\r\n", HeadError::LineEnd),
            ("HTTP/1.1 200 OK\r\nX : y\r\n\r\n", HeadError::FieldName),
            ("HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", HeadError::FieldName),
            ("HTTP/1.1 200 OK\r\nX: a\0\r\n\r\n", HeadError::FieldValue),
        ];
        for (head, error) in table {
            parse(head.as_bytes(), false, |response| assert_eq!(response, Err(error), "{head:?}"));
        }
    }

    #[test]
    fn writes_a_status_line() {
        let mut out = Vec::new();
        encode_line(&mut out, 503, "Service Unavailable");
        encode_line(&mut out, 100, "");
        assert_eq!(out, b"HTTP/1.1 503 Service Unavailable\r\nHTTP/1.1 100 \r\n");
    }
}
