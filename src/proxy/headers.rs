//! The fields of a forwarded message: as few as possible change. The rules work on names and values in order, and write to a
//! [`Sink`], so that they are the same for each combination of versions.

use http::header::HeaderMap;
use http::{StatusCode, Version};

use crate::http1::authority::is_authority;
use crate::http1::body::{TRAILER_FIELDS, parse_trailers};
use crate::http1::error::BodyError;
use crate::http1::fields::{self, Kind};
use crate::server::head::{self, Fields};

/// A request that could be read in more than one way. In HTTP/1.1 the parser finds these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ambiguous {
    /// Neither `:authority` nor `Host` (RFC 9113 §8.3.1).
    #[error("the request has no host (RFC 9113 §8.3.1)")]
    NoHost,
    /// More than one `Host`, or one that differs from `:authority` (RFC 9113 §8.3.1).
    #[error("the request has more than one host (RFC 9113 §8.3.1)")]
    Hosts,
    /// The host is malformed (RFC 9110 §7.2).
    #[error("the request's host is malformed (RFC 9110 §7.2)")]
    Host,
}

/// Receives the fields of a message, in order.
pub trait Sink {
    /// Adds a field.
    fn field(&mut self, name: &str, value: &[u8]);
}

impl Sink for Vec<u8> {
    fn field(&mut self, name: &str, value: &[u8]) {
        fields::encode(self, name.as_bytes(), value);
    }
}

impl Sink for HeaderMap {
    fn field(&mut self, name: &str, value: &[u8]) {
        head::append(self, name, value);
    }
}

/// What the gate makes of a field that is meant for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filtered {
    /// The field is passed on.
    Keep,
    /// The field is left out.
    Drop,
    /// The field is passed on with this value.
    Replace(Vec<u8>),
}

/// Leaves out what is meant for the gate.
pub type Filter = fn(&str, &[u8]) -> Filtered;

/// A request, as far as its fields depend on it.
#[derive(Clone, Copy, Debug)]
pub struct RequestContext<'a> {
    /// The version that the client speaks.
    pub version: Version,
    /// The host that the client asks for: the target's, else that of `Host`.
    pub host: Option<&'a [u8]>,
    /// Whether that is the target's, which replaces `Host` (RFC 9112 §3.2.2).
    pub replaces_host: bool,
    /// The application's own host, for clients of HTTP/1.0 that name none.
    pub fallback: &'a [u8],
    /// The client's address.
    pub client: &'a str,
    /// Leaves out what is meant for the gate.
    pub filter: Option<Filter>,
}

/// Whether the field is of one connection only (RFC 9110 §7.6.1).
fn is_hop_by_hop(kind: Kind) -> bool {
    use Kind::{Connection, Http2Settings, KeepAlive, ProxyConnection, Te, TransferEncoding, Upgrade};
    matches!(kind, Connection | Http2Settings | KeepAlive | ProxyConnection | Te | TransferEncoding | Upgrade)
}

/// Passes a request's fields on. Framing is the caller's: `Content-Length` is passed on, `Transfer-Encoding` is not.
pub fn request(fields: Fields<'_>, context: &RequestContext<'_>, sink: &mut impl Sink) {
    let named = Named::of(fields);
    let is_http2 = context.version >= Version::HTTP_2;
    // Only HTTP/1.0 may be without.
    if is_http2 || !fields.has(Kind::Host) {
        sink.field("host", context.host.unwrap_or(context.fallback));
    }
    let (mut has_for, mut has_cookie) = (false, false);
    for (kind, name, value) in fields.with_kinds() {
        match kind {
            _ if is_hop_by_hop(kind) => continue,
            // It is answered here: the body is asked for when it is read.
            Kind::Expect => continue,
            Kind::Host => {
                if !is_http2 {
                    sink.field(name, if context.replaces_host { context.host.unwrap_or(value) } else { value });
                }
                continue;
            }
            Kind::ForwardedFor => {
                if !std::mem::replace(&mut has_for, true) {
                    sink.field(name, &forwarded_for(fields, context.client));
                }
                continue;
            }
            // HTTP/2 may split `Cookie`, HTTP/1.1 may not (RFC 9113 §8.2.3).
            Kind::Cookie if is_http2 => {
                if !std::mem::replace(&mut has_cookie, true) {
                    let cookies: Vec<_> = fields.values(Kind::Cookie).collect();
                    pass(context.filter, name, &cookies.join(&b"; "[..]), sink);
                }
                continue;
            }
            _ => {}
        }
        if !named.contain(name) {
            pass(context.filter, name, value, sink);
        }
    }
    if takes_trailers(fields) {
        // `TE` names itself in `Connection` (RFC 9110 §10.1.4).
        sink.field("te", b"trailers");
        sink.field("connection", b"te");
    }
    if let Some(protocol) = upgrade(fields, context.version) {
        sink.field("upgrade", protocol);
        sink.field("connection", b"upgrade");
    }
    if !has_for {
        sink.field("x-forwarded-for", context.client.as_bytes());
    }
    if !fields.has(Kind::ForwardedProto) {
        sink.field("x-forwarded-proto", b"http");
    }
    if let Some(host) = context.host.filter(|_| !fields.has(Kind::ForwardedHost)) {
        sink.field("x-forwarded-host", host);
    }
}

fn pass(filter: Option<Filter>, name: &str, value: &[u8], sink: &mut impl Sink) {
    match filter.map_or(Filtered::Keep, |filter| filter(name, value)) {
        Filtered::Keep => sink.field(name, value),
        Filtered::Drop => {}
        Filtered::Replace(value) => sink.field(name, &value),
    }
}

/// The addresses of those before, and the client's. What is no text names no address.
fn forwarded_for(fields: Fields<'_>, client: &str) -> Vec<u8> {
    let is_text = |value: &&[u8]| value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    let mut addresses: Vec<_> = fields.values(Kind::ForwardedFor).filter(is_text).collect();
    addresses.push(client.as_bytes());
    addresses.join(&b", "[..])
}

/// Passes a response's fields on, without framing. Returns whether they include `Date`.
pub fn response(fields: Fields<'_>, status: StatusCode, sink: &mut impl Sink) -> bool {
    let named = Named::of(fields);
    // The length of another response (RFC 9112 §6.3, RFC 9110 §8.6).
    let drops_length =
        fields.has(Kind::TransferEncoding) || status.is_informational() || status == StatusCode::NO_CONTENT;
    for (kind, name, value) in fields.with_kinds() {
        match kind {
            _ if is_hop_by_hop(kind) => continue,
            Kind::ContentLength if drops_length => continue,
            _ if named.contain(name) => {}
            _ => sink.field(name, value),
        }
    }
    if let Some(protocol) = fields.values(Kind::Upgrade).next().filter(|_| status == StatusCode::SWITCHING_PROTOCOLS) {
        sink.field("upgrade", protocol);
        sink.field("connection", b"upgrade");
    }
    fields.has(Kind::Date)
}

/// Passes trailers on. Fields that frame, route or authenticate a message have no place there (RFC 9110 §6.5.1).
pub fn trailers<'a>(fields: impl Iterator<Item = (&'a str, &'a [u8])>, sink: &mut impl Sink) {
    for (name, value) in fields {
        if matches!(Kind::of(name), Kind::Other | Kind::Date | Kind::Cookie) && !name.eq_ignore_ascii_case("trailer") {
            sink.field(name, value);
        }
    }
}

/// Passes on a trailer section that a decoder has found.
///
/// # Errors
///
/// See [`parse_trailers`].
pub fn trailer_section(section: &[u8], sink: &mut impl Sink) -> Result<(), BodyError> {
    let mut room = [httparse::EMPTY_HEADER; TRAILER_FIELDS];
    trailers(parse_trailers(section, &mut room)?.iter().map(|field| (field.name, field.value)), sink);
    Ok(())
}

/// The fields that `Connection` names, beside those that are always of one connection only.
struct Named<'a> {
    fields: Fields<'a>,
    has_any: bool,
}

impl<'a> Named<'a> {
    fn of(fields: Fields<'a>) -> Self {
        let known = ["close", "keep-alive", "upgrade", "te", "http2-settings"];
        let is_known = |token: &[u8]| known.iter().any(|known| token.eq_ignore_ascii_case(known.as_bytes()));
        let has_any = fields.values(Kind::Connection).flat_map(fields::elements).any(|token| !is_known(token));
        Self { fields, has_any }
    }

    /// Whether the field is named. Fields that say what the proxies in front have seen are not: a client that names one would have
    /// it unsaid, and the proxy that may send it must not name it (RFC 9110 §7.6.1).
    fn contain(&self, name: &str) -> bool {
        // Without its length, a message would end elsewhere for the next recipient (RFC 9112 §6.3).
        self.has_any
            && Kind::of(name) != Kind::ContentLength
            && !is_of_proxies(name)
            && self.fields.lists("connection", name)
    }
}

fn is_of_proxies(name: &str) -> bool {
    let prefix = name.get(.."x-forwarded-".len());
    prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case("x-forwarded-"))
        || ["forwarded", "via", "x-real-ip"].iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// Whether the client accepts trailers (RFC 9110 §10.1.4).
fn takes_trailers(fields: Fields<'_>) -> bool {
    fields.values(Kind::Te).any(|list| fields::has_token(list, "trailers"))
}

/// The protocol that a client asks to continue with on its connection (RFC 9110 §7.8). Not HTTP/2: clients use prior knowledge for
/// that, and the gate could not judge what they send then.
#[must_use]
pub fn upgrade(fields: Fields<'_>, version: Version) -> Option<&[u8]> {
    let protocol = fields.values(Kind::Upgrade).next()?;
    let mut names = fields::elements(protocol);
    let names_http2 = names.any(|name| name.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(b"h2")));
    (version == Version::HTTP_11 && fields.lists("connection", "upgrade") && !names_http2).then_some(protocol)
}

/// Whether a response continues in one of the protocols that its request has named (RFC 9110 §7.8).
#[must_use]
pub fn is_asked_for(protocols: Option<&[u8]>, response: Fields<'_>) -> bool {
    let (Some(protocols), Some(protocol)) = (protocols, response.get("upgrade")) else { return false };
    std::str::from_utf8(protocol).is_ok_and(|protocol| fields::has_token(protocols, protocol.trim()))
}

/// The host of an HTTP/2 request.
///
/// # Errors
///
/// See [`Ambiguous`].
pub fn http2_host<'a>(fields: Fields<'a>, authority: Option<&'a str>) -> Result<&'a [u8], Ambiguous> {
    let mut hosts = fields.all("host");
    let host = match (authority.map(str::as_bytes), hosts.next(), hosts.next()) {
        (_, Some(_), Some(_)) => return Err(Ambiguous::Hosts),
        (Some(authority), Some(host), None) if authority != host => return Err(Ambiguous::Hosts),
        (Some(host), _, _) | (None, Some(host), _) => host,
        (None, None, _) => return Err(Ambiguous::NoHost),
    };
    if is_authority(host) { Ok(host) } else { Err(Ambiguous::Host) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::fields::Lines;
    use http::header::{HeaderName, HeaderValue};

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let entry = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        lines.iter().map(entry).collect()
    }

    fn context(version: Version) -> RequestContext<'static> {
        RequestContext {
            version,
            host: Some(b"shop"),
            replaces_host: false,
            fallback: b"app:80",
            client: "192.0.2.1",
            filter: None,
        }
    }

    /// The lines that the application receives.
    fn sent(lines: &[(&'static str, &'static str)], context: &RequestContext<'_>) -> Vec<String> {
        let mut out = Vec::new();
        request(Fields::Map(&map(lines)), context, &mut out);
        String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
    }

    fn answered(lines: &[(&'static str, &'static str)], status: u16) -> Vec<String> {
        let mut out = Vec::new();
        response(Fields::Map(&map(lines)), StatusCode::from_u16(status).unwrap(), &mut out);
        String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
    }

    const FORWARDED: [&str; 3] = ["x-forwarded-for: 192.0.2.1", "x-forwarded-proto: http", "x-forwarded-host: shop"];

    #[test]
    fn hop_by_hop_fields_end_here() {
        let lines = [
            ("host", "shop"),
            ("connection", "close, X-Mine"),
            ("connection", "x-other,, \"x\""),
            ("x-mine", "1"),
            ("x-other", "2"),
            ("keep-alive", "5"),
            ("proxy-connection", "close"),
            ("http2-settings", "x"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("content-length", "3"),
            ("trailer", "x-sum"),
            ("date", "today"),
            ("x-kept", "3"),
        ];
        let expected =
            [&["host: shop", "content-length: 3", "trailer: x-sum", "date: today", "x-kept: 3"][..], &FORWARDED]
                .concat();
        assert_eq!(sent(&lines, &context(Version::HTTP_11)), expected);
        let lines =
            [("connection", "x-a, keep-alive"), ("x-a", "1"), ("keep-alive", "1"), ("x-b", "2"), ("upgrade", "x")];
        assert_eq!(answered(&lines, 200), ["x-b: 2"]);
    }

    #[test]
    fn a_name_keeps_its_case_and_its_place() {
        let lines = [
            fields::Field { name: "X-A", value: b"1" },
            fields::Field { name: "HOST", value: b"shop" },
            fields::Field { name: "x-A", value: b"2" },
        ];
        let mut out = Vec::new();
        request(
            Fields::Lines(Lines::new(&lines, &mut [Kind::Other; fields::LIMIT])),
            &context(Version::HTTP_11),
            &mut out,
        );
        assert!(out.starts_with(b"X-A: 1\r\nHOST: shop\r\nx-A: 2\r\nx-forwarded-for"), "{out:?}");
    }

    #[test]
    fn connection_does_not_hide_what_proxies_say() {
        let lines = [
            ("host", "shop"),
            ("connection", "x-forwarded-for, via, forwarded, x-real-ip, x-forwarded-port"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-port", "1"),
            ("via", "2"),
            ("forwarded", "3"),
            ("x-real-ip", "4"),
        ];
        let expected = [
            "host: shop",
            "x-forwarded-for: 203.0.113.9, 192.0.2.1",
            "x-forwarded-port: 1",
            "via: 2",
            "forwarded: 3",
            "x-real-ip: 4",
            "x-forwarded-proto: http",
            "x-forwarded-host: shop",
        ];
        assert_eq!(sent(&lines, &context(Version::HTTP_11)), expected);
    }

    #[test]
    fn trailers_are_still_accepted() {
        for te in ["trailers", "gzip;q=1, Trailers", "trailers;q=0.5"] {
            let lines = sent(&[("host", "shop"), ("te", te)], &context(Version::HTTP_2));
            assert_eq!(lines[1..3], ["te: trailers", "connection: te"], "{te}");
        }
        assert_eq!(sent(&[("te", "gzip")], &context(Version::HTTP_2))[1..], FORWARDED);
    }

    #[test]
    fn an_upgrade_is_passed_on() {
        let lines = [("host", "shop"), ("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")];
        let passed = ["upgrade: websocket", "connection: upgrade"];
        assert_eq!(sent(&lines, &context(Version::HTTP_11))[1..3], passed);
        assert_eq!(answered(&lines[1..], 101), passed);
        assert_eq!(answered(&lines[1..], 200), [""; 0]);
        for version in [Version::HTTP_10, Version::HTTP_2] {
            assert_eq!(sent(&lines, &context(version))[1..], FORWARDED, "{version:?}");
        }
        for (connection, protocol) in [("close", "websocket"), ("upgrade", "h2c"), ("upgrade", "websocket, H2C")] {
            let lines = [("host", "shop"), ("connection", connection), ("upgrade", protocol)];
            assert_eq!(sent(&lines, &context(Version::HTTP_11))[1..], FORWARDED, "{connection} {protocol}");
        }
        let names = |asked: Option<&str>, answer: &[(&'static str, &'static str)]| {
            is_asked_for(asked.map(str::as_bytes), Fields::Map(&map(answer)))
        };
        assert!(names(Some("a, WebSocket"), &[("upgrade", "websocket")]));
        assert!(!names(Some("a"), &[("upgrade", "websocket")]));
        assert!(!names(Some("a"), &[]));
        assert!(!names(None, &[("upgrade", "websocket")]));
    }

    #[test]
    fn cookies_of_http2_become_one_line() {
        let lines = [("host", "shop"), ("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")];
        assert_eq!(sent(&lines, &context(Version::HTTP_2))[1], "cookie: a=1; b=2; c=3");
        assert_eq!(sent(&lines, &context(Version::HTTP_11))[1..4], ["cookie: a=1", "cookie: b=2", "cookie: c=3"]);
    }

    #[test]
    fn the_application_gets_one_host() {
        let lines = [("host", "shop")];
        let replaced = RequestContext { host: Some(b"b:1"), replaces_host: true, ..context(Version::HTTP_11) };
        assert_eq!(sent(&lines, &replaced)[0], "host: b:1");
        assert_eq!(sent(&lines, &replaced).last().unwrap(), "x-forwarded-host: b:1");
        let old = RequestContext { host: Some(b"b:1"), replaces_host: true, ..context(Version::HTTP_10) };
        assert_eq!(sent(&[], &old)[0], "host: b:1");
        let none = RequestContext { host: None, ..context(Version::HTTP_10) };
        assert_eq!(sent(&[], &none), ["host: app:80", FORWARDED[0], FORWARDED[1]]);
        assert_eq!(sent(&lines, &context(Version::HTTP_2)).iter().filter(|line| line.starts_with("host")).count(), 1);
    }

    #[test]
    fn http2_has_one_host() {
        let host = |lines: &[(&'static str, &'static str)], authority| {
            http2_host(Fields::Map(&map(lines)), authority).map(|host| std::str::from_utf8(host).unwrap().to_owned())
        };
        assert_eq!(host(&[], Some("b")), Ok("b".to_owned()));
        assert_eq!(host(&[("host", "b")], Some("b")), Ok("b".to_owned()));
        assert_eq!(host(&[("host", "b")], None), Ok("b".to_owned()));
        assert_eq!(host(&[("host", "a")], Some("b")), Err(Ambiguous::Hosts));
        assert_eq!(host(&[("host", "a"), ("host", "a")], None), Err(Ambiguous::Hosts));
        assert_eq!(host(&[], None), Err(Ambiguous::NoHost));
        assert_eq!(host(&[], Some("me:secret@a")), Err(Ambiguous::Host));
    }

    #[test]
    fn the_proxies_before_are_kept() {
        let lines = [
            ("host", "shop"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-for", "198.51.100.7"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "shop.example"),
        ];
        let expected = [
            "host: shop",
            "x-forwarded-for: 203.0.113.9, 198.51.100.7, 192.0.2.1",
            "x-forwarded-proto: https",
            "x-forwarded-host: shop.example",
        ];
        assert_eq!(sent(&lines, &context(Version::HTTP_11)), expected);
        let odd = [fields::Field { name: "x-forwarded-for", value: b"\xff" }];
        assert_eq!(forwarded_for(Fields::Lines(Lines::new(&odd, &mut [Kind::Other; fields::LIMIT])), "a"), b"a");
    }

    #[test]
    fn a_length_that_is_not_the_bodys_is_left_out() {
        let lines = [("content-length", "5"), ("transfer-encoding", "chunked"), ("date", "x")];
        assert_eq!(answered(&lines, 200), ["date: x"]);
        let lines = [("content-length", "5")];
        for (status, kept) in [(200, true), (304, true), (204, false), (103, false)] {
            assert_eq!(!answered(&lines, status).is_empty(), kept, "{status}");
        }
        let has_date = |lines: &[(&'static str, &'static str)]| {
            response(Fields::Map(&map(lines)), StatusCode::OK, &mut Vec::new())
        };
        assert!(has_date(&[("date", "x")]) && !has_date(&[("x-date", "x")]));
    }

    #[test]
    fn connection_does_not_take_the_length_away() {
        let lines = [("connection", "content-length, x-a"), ("content-length", "5"), ("x-a", "1"), ("date", "x")];
        assert_eq!(answered(&lines, 200), ["content-length: 5", "date: x"]);
        let passed = sent(&[&[("host", "shop")], &lines[..]].concat(), &context(Version::HTTP_11));
        assert_eq!(passed[..3], ["host: shop", "content-length: 5", "date: x"]);
    }

    #[test]
    fn trailers_do_not_frame() {
        let lines = [
            ("x-sum", "1"),
            ("content-length", "5"),
            ("host", "a"),
            ("trailer", "x"),
            ("te", "x"),
            ("grpc-status", "0"),
        ];
        let mut out = Vec::new();
        trailers(Fields::Map(&map(&lines)).iter(), &mut out);
        assert_eq!(out, b"x-sum: 1\r\ngrpc-status: 0\r\n");
    }

    #[test]
    fn the_gate_keeps_what_is_meant_for_it() {
        let filter: Filter = |name, value| match name {
            "x-token" => Filtered::Drop,
            "cookie" => Filtered::Replace([value, b"!"].concat()),
            _ => Filtered::Keep,
        };
        let filtering = RequestContext { filter: Some(filter), ..context(Version::HTTP_11) };
        let lines = [("host", "shop"), ("x-token", "1"), ("cookie", "a"), ("x-b", "2")];
        assert_eq!(sent(&lines, &filtering)[..3], ["host: shop", "cookie: a!", "x-b: 2"]);
    }
}
