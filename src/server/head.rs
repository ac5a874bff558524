//! A request's head in any version of HTTP, and the heads of pitstop's own responses.

use std::iter::Zip;

use http::header::{DATE, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, Version};

use super::date;
use crate::http1;
use crate::http1::body::Framing;
use crate::http1::fields::{self, Field, Kind, Lines};
use crate::http1::request::{Request, Target};
use crate::http1::response::encode_line;

/// A request's head, borrowed from where it was received.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// The method. Case is significant (RFC 9110 §9.1).
    pub method: &'a str,
    /// The path without the query; `*` for the asterisk form of `OPTIONS`.
    pub path: &'a str,
    /// Whether the target says that the client's scheme is `https`.
    pub is_https: bool,
    /// The version that the client speaks.
    pub version: Version,
    /// The field lines.
    pub fields: Fields<'a>,
    /// Whether a body follows.
    pub has_body: bool,
}

/// Field lines, in order.
#[derive(Clone, Copy, Debug)]
pub enum Fields<'a> {
    /// Of an HTTP/1.1 message.
    Lines(Lines<'a, 'a>),
    /// Of an HTTP/2 message, or of one that another server has parsed.
    Map(&'a HeaderMap),
}

impl<'a> Fields<'a> {
    /// All lines: names and values. The names are in lower case only in HTTP/2.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        self.with_kinds().map(|(_, name, value)| (name, value))
    }

    /// All lines: kinds, names and values.
    #[must_use]
    pub fn with_kinds(self) -> Iter<'a> {
        match self {
            Self::Lines(lines) => Iter::Lines(lines.kinds().iter().zip(lines.all())),
            Self::Map(map) => Iter::Map(map.iter()),
        }
    }

    /// Whether a line of this kind is among them.
    #[must_use]
    pub fn has(self, kind: Kind) -> bool {
        match self {
            Self::Lines(lines) => lines.has(kind),
            Self::Map(map) => map.contains_key(kind.name()),
        }
    }

    /// All lines, or none if none can be of this kind.
    fn candidates(self, kind: Kind) -> Iter<'a> {
        match kind == Kind::Other || self.has(kind) {
            true => self.with_kinds(),
            false => Iter::Lines([].iter().zip(&[])),
        }
    }

    /// The values of all lines of this kind.
    pub fn values(self, kind: Kind) -> impl Iterator<Item = &'a [u8]> {
        self.candidates(kind).filter(move |(line, ..)| *line == kind).map(|(.., value)| value)
    }

    /// The values of all lines with this name.
    pub fn all(self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let lines = self.candidates(Kind::of(name));
        lines.filter(move |(_, line, _)| line.eq_ignore_ascii_case(name)).map(|(.., value)| value)
    }

    /// The value of the first line with this name.
    #[must_use]
    pub fn get(self, name: &str) -> Option<&'a [u8]> {
        self.all(name).next()
    }

    /// The lines as a map. Whatever a parser has accepted can be in one.
    #[must_use]
    pub fn to_map(self) -> HeaderMap {
        let mut map = HeaderMap::new();
        self.iter().for_each(|(name, value)| append(&mut map, name, value));
        map
    }

    /// Whether any line with this name lists the token, whatever its parameters.
    #[must_use]
    pub fn lists(self, name: &str, token: &str) -> bool {
        self.all(name).any(|value| fields::has_token(value, token))
    }
}

/// Adds a field to a map.
pub fn append(map: &mut HeaderMap, name: &str, value: &[u8]) {
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
        map.append(name, value);
    }
}

/// Iterates over field lines and their kinds.
#[derive(Debug)]
pub enum Iter<'a> {
    /// Of an HTTP/1.1 message.
    Lines(Zip<std::slice::Iter<'a, Kind>, std::slice::Iter<'a, Field<'a>>>),
    /// Of a map.
    Map(http::header::Iter<'a, HeaderValue>),
}

impl<'a> Iterator for Iter<'a> {
    type Item = (Kind, &'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Lines(lines) => lines.next().map(|(kind, line)| (*kind, line.name, line.value)),
            Self::Map(map) => {
                map.next().map(|(name, value)| (Kind::of(name.as_str()), name.as_str(), value.as_bytes()))
            }
        }
    }
}

impl<'a> Head<'a> {
    /// The head of an HTTP/1.1 request.
    #[must_use]
    pub fn of_http1(request: &Request<'a, 'a>) -> Self {
        let is_https = matches!(request.target, Target::Absolute { is_https: true, .. });
        Self {
            method: request.method,
            path: without_query(request.target.path_and_query()),
            is_https,
            version: request.version.into(),
            fields: Fields::Lines(request.fields),
            has_body: request.framing != Framing::Length(0),
        }
    }

    /// The head of a request that another server has parsed.
    #[must_use]
    pub fn of<B>(request: &'a http::Request<B>, has_body: bool) -> Self {
        Self {
            method: request.method().as_str(),
            path: request.uri().path(),
            is_https: request.uri().scheme() == Some(&http::uri::Scheme::HTTPS),
            version: request.version(),
            fields: Fields::Map(request.headers()),
            has_body,
        }
    }

    /// Whether the method only asks (RFC 9110 §9.2.1).
    #[must_use]
    pub fn is_safe(&self) -> bool {
        matches!(self.method, "GET" | "HEAD" | "OPTIONS" | "TRACE")
    }
}

impl From<http1::Version> for Version {
    fn from(version: http1::Version) -> Self {
        match version {
            http1::Version::Http10 => Self::HTTP_10,
            http1::Version::Http11 => Self::HTTP_11,
        }
    }
}

fn without_query(target: &str) -> &str {
    match target.split('?').next() {
        Some("") | None => "/",
        Some(path) => path,
    }
}

/// Whether an HTTP/1.1 connection persists after a response (RFC 9112 §9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// It does, which goes without saying.
    Persists,
    /// It does. The client speaks HTTP/1.0 and has to be told.
    Keeps,
    /// It closes.
    Closes,
}

impl Persistence {
    /// The field that says so.
    #[must_use]
    pub fn field(self) -> &'static [u8] {
        match self {
            Self::Persists => b"",
            Self::Keeps => b"connection: keep-alive\r\n",
            Self::Closes => b"connection: close\r\n",
        }
    }
}

/// A response of pitstop's own.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    /// The status.
    pub status: StatusCode,
    /// The field lines as they are sent, each with its end. `Content-Length` is one of them.
    pub fields: &'a [u8],
    /// What is not the same for each client.
    pub more: [&'a [u8]; 2],
    /// The body.
    pub body: &'a [u8],
    /// Whether the request was `HEAD`: the body is not sent.
    pub is_head: bool,
}

impl Response<'_> {
    /// Appends the response.
    pub fn encode(&self, out: &mut Vec<u8>, persistence: Persistence) {
        encode_line(out, self.status.as_u16(), self.status.canonical_reason().unwrap_or_default());
        out.extend_from_slice(self.fields);
        self.more.iter().for_each(|more| out.extend_from_slice(more));
        out.extend_from_slice(persistence.field());
        encode_date(out);
        out.extend_from_slice(b"\r\n");
        if !self.is_head {
            out.extend_from_slice(self.body);
        }
    }
}

/// Appends `Date`, which a server with a clock has to send (RFC 9110 §6.6.1).
fn encode_date(out: &mut Vec<u8>) {
    out.extend_from_slice(b"date: ");
    date::with(|date| out.extend_from_slice(date.as_bytes()));
    out.extend_from_slice(b"\r\n");
}

/// Ends the head of a response that is passed on: its framing and what becomes of the connection. `Date` is added if it is missing,
/// as RFC 9110 §6.6.1 asks of recipients that forward a response.
pub fn encode_end(out: &mut Vec<u8>, is_chunked: bool, persistence: Persistence, has_date: bool) {
    if is_chunked {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    out.extend_from_slice(persistence.field());
    if !has_date {
        encode_date(out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Inserts `Date` into a map.
pub fn insert_date(map: &mut HeaderMap) {
    if let Ok(date) = date::with(HeaderValue::from_str) {
        map.insert(DATE, date);
    }
}

/// Appends the fields of a map as lines.
pub fn encode_map(out: &mut Vec<u8>, map: &HeaderMap) {
    for (name, value) in map {
        fields::encode(out, name.as_str().as_bytes(), value.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_fields_in_either_form() {
        let lines = [Field { name: "Accept", value: b"a" }, Field { name: "ACCEPT", value: b"b;q=1, C" }];
        let map: HeaderMap = lines
            .iter()
            .map(|line| {
                let name = http::HeaderName::from_bytes(line.name.as_bytes()).unwrap();
                (name, HeaderValue::from_bytes(line.value).unwrap())
            })
            .collect();
        for fields in [Fields::Lines(Lines::new(&lines, &mut [Kind::Other; fields::LIMIT])), Fields::Map(&map)] {
            assert_eq!(fields.get("accept"), Some(&b"a"[..]));
            assert_eq!(fields.all("Accept").collect::<Vec<_>>(), [&b"a"[..], b"b;q=1, C"]);
            assert_eq!(fields.get("host"), None);
            assert!(fields.lists("accept", "B") && fields.lists("accept", "c") && !fields.lists("accept", "q"));
        }
    }

    #[test]
    fn a_path_ends_before_the_query() {
        for (target, path) in [("/a?b", "/a"), ("/a", "/a"), ("?b", "/"), ("", "/"), ("*", "*"), ("/?", "/")] {
            assert_eq!(without_query(target), path, "{target}");
        }
    }

    #[test]
    fn a_response_says_what_becomes_of_the_connection() {
        let response = |is_head| Response {
            status: StatusCode::SERVICE_UNAVAILABLE,
            fields: b"content-length: 2\r\n",
            more: [b"retry-after: ", b"1\r\n"],
            body: b"x\n",
            is_head,
        };
        let encoded = |is_head, persistence| {
            let mut out = Vec::new();
            response(is_head).encode(&mut out, persistence);
            String::from_utf8(out).unwrap()
        };
        let start = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\nretry-after: 1\r\n";
        let persists = encoded(false, Persistence::Persists);
        assert!(persists.starts_with(&format!("{start}date: ")) && persists.ends_with("GMT\r\n\r\nx\n"), "{persists}");
        assert!(encoded(true, Persistence::Keeps).starts_with(&format!("{start}connection: keep-alive\r\ndate: ")));
        let closes = encoded(true, Persistence::Closes);
        assert!(closes.contains("connection: close\r\n") && closes.ends_with("GMT\r\n\r\n"), "{closes}");
    }
}
