//! Request heads (RFC 9112 §3).

use super::Version;
use super::authority::is_authority;
use super::body::Framing;
use super::error::{self, HeadError};
use super::fields::{self, Kind, Lines, Storage};

/// A request head, as it was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'h, 'b> {
    /// The method. Case is significant (RFC 9110 §9.1).
    pub method: &'b str,
    /// The request target.
    pub target: Target<'b>,
    /// The version that the client speaks.
    pub version: Version,
    /// The field lines, in order.
    pub fields: Lines<'h, 'b>,
    /// The framing of the body. Requests are never delimited by the end of the connection (RFC 9112 §6.3).
    pub framing: Framing,
    /// Whether the client lets the connection persist (RFC 9112 §9.3).
    pub persists: bool,
    /// Whether the client waits for `100 Continue` before it sends the body (RFC 9110 §10.1.1).
    pub expects_continue: bool,
    /// The length of the head in bytes. The body begins there.
    pub length: usize,
}

/// A request target in one of the forms of RFC 9112 §3.2. `CONNECT` and its authority form are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'b> {
    /// A path with an optional query.
    Origin(&'b str),
    /// A URL. Its authority replaces `Host` (RFC 9112 §3.2.2).
    Absolute {
        /// Whether the scheme is `https`.
        is_https: bool,
        /// The host, with an optional port.
        authority: &'b str,
        /// The path with an optional query. If the URL ends after the authority, it is empty, and `*` for `OPTIONS`.
        path: &'b str,
    },
    /// `*`, of `OPTIONS` only (RFC 9112 §3.2.4).
    Asterisk,
}

impl<'h, 'b> Request<'h, 'b> {
    /// Parses the head at the start of `input`. `None` if it is not complete yet. `limit` is the size of a head in bytes.
    ///
    /// # Errors
    ///
    /// See [`HeadError`]. The connection cannot be used after any of them, since nothing says where the next request
    /// begins.
    pub fn parse(input: &'b [u8], storage: &'h mut Storage<'b>, limit: usize) -> Result<Option<Self>, HeadError> {
        let input = fields::within(input, limit);
        let mut parsed = httparse::Request::new(&mut []);
        let length = match parsed.parse_with_uninit_headers(input, &mut storage.lines) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return fields::check_partial(input, limit).map(|()| None),
            // What kind of error it is depends on bytes that may not have arrived yet.
            Err(httparse::Error::Version) => match fields::start_line(input) {
                Some(line) => {
                    return Err(error::version(line.splitn(3, |byte| *byte == b' ').nth(2).unwrap_or_default()));
                }
                None => return fields::check_partial(input, limit).map(|()| None),
            },
            Err(error) => return Err(error.into()),
        };
        fields::check_line_ends(&input[..length])?;
        let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
            return Err(HeadError::StartLine);
        };
        let version = if version == 0 { Version::Http10 } else { Version::Http11 };
        let fields = Lines::new(parsed.headers, &mut storage.kinds);
        let target = Target::parse(method, target)?;
        check_host(fields, version, target)?;
        check_connection(fields)?;
        let framing = framing(fields, version)?;
        let persists = fields::persists(fields, version);
        // HTTP/1.0 clients do not know interim responses.
        let expects_continue =
            version == Version::Http11 && framing != Framing::Length(0) && fields.list(Kind::Expect, "100-continue");
        Ok(Some(Self { method, target, version, fields, framing, persists, expects_continue, length }))
    }

    /// Parses a head that was accepted before, and kept.
    #[must_use]
    pub fn parse_again(head: &'b [u8], storage: &'h mut Storage<'b>) -> Option<Self> {
        Self::parse(head, storage, usize::MAX).ok().flatten()
    }

    /// The authority that the client asked for: the target's, else that of `Host`, which may be empty. `None` for HTTP/1.0
    /// without either.
    #[must_use]
    pub fn host(&self) -> Option<&'b [u8]> {
        match self.target {
            Target::Absolute { authority, .. } => Some(authority.as_bytes()),
            Target::Origin(_) | Target::Asterisk => self.fields.values(Kind::Host).next(),
        }
    }
}

impl<'b> Target<'b> {
    fn parse(method: &str, target: &'b str) -> Result<Self, HeadError> {
        if method == "CONNECT" {
            return Err(HeadError::Tunnel);
        }
        // A fragment is no part of a target; some applications would cut the path off there.
        if target.contains('#') {
            return Err(HeadError::Target);
        }
        if target.starts_with('/') {
            return Ok(Self::Origin(target));
        }
        if target == "*" {
            return if method == "OPTIONS" { Ok(Self::Asterisk) } else { Err(HeadError::Target) };
        }
        let (scheme, rest) = target.split_once("://").ok_or(HeadError::Target)?;
        let is_https = scheme.eq_ignore_ascii_case("https");
        if !is_https && !scheme.eq_ignore_ascii_case("http") {
            return Err(HeadError::Target);
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if !is_authority(authority.as_bytes()) {
            return Err(HeadError::Host);
        }
        // Such a URL asks for `*` (RFC 9112 §3.2.4).
        let path = if method == "OPTIONS" && path.is_empty() { "*" } else { path };
        Ok(Self::Absolute { is_https, authority, path })
    }

    /// The path with the query, as an application is asked for it (RFC 9112 §3.2.1). It lacks the leading slash if a URL has a
    /// query but no path: see [`Target::needs_slash`].
    #[must_use]
    pub fn path_and_query(&self) -> &'b str {
        match self {
            Self::Origin(path) | Self::Absolute { path, .. } => path,
            Self::Asterisk => "*",
        }
    }

    /// Whether a slash has to precede [`Target::path_and_query`].
    #[must_use]
    pub fn needs_slash(&self) -> bool {
        matches!(self, Self::Absolute { path, .. } if !path.starts_with(['/', '*']))
    }
}

fn check_host(fields: Lines<'_, '_>, version: Version, target: Target<'_>) -> Result<(), HeadError> {
    let mut hosts = fields.values(Kind::Host);
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => Err(HeadError::Hosts),
        // RFC 9110 §7.2: empty if the URL has no authority.
        (Some([]), None) if !matches!(target, Target::Absolute { .. }) => Ok(()),
        (Some(host), None) if is_authority(host) => Ok(()),
        (Some(_), None) => Err(HeadError::Host),
        (None, None) if version == Version::Http10 => Ok(()),
        (None, None) => Err(HeadError::NoHost),
    }
}

fn check_connection(fields: Lines<'_, '_>) -> Result<(), HeadError> {
    let are_listed = ["host", "content-length", "transfer-encoding"];
    if are_listed.iter().any(|name| fields.list(Kind::Connection, name)) {
        return Err(HeadError::Connection);
    }
    Ok(())
}

fn framing(fields: Lines<'_, '_>, version: Version) -> Result<Framing, HeadError> {
    let length = fields::content_length(fields)?;
    if version == Version::Http10 && fields.has(Kind::TransferEncoding) {
        return Err(HeadError::OldCoding);
    }
    match (fields::is_chunked(fields)?, length) {
        (true, Some(_)) => Err(HeadError::TwoLengths),
        (true, None) => Ok(Framing::Chunked),
        (false, length) => Ok(Framing::Length(length.unwrap_or(0))),
    }
}

/// Appends a request line for HTTP/1.1 to a head.
pub fn encode_line(out: &mut Vec<u8>, method: &str, target: Target<'_>) {
    out.extend_from_slice(method.as_bytes());
    out.push(b' ');
    if target.needs_slash() {
        out.push(b'/');
    }
    out.extend_from_slice(target.path_and_query().as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 8192;

    /// Parses `input`, and passes the result to `check`, since the head borrows from the room for its fields.
    fn parse<T>(input: &[u8], check: impl FnOnce(Result<Option<Request<'_, '_>>, HeadError>) -> T) -> T {
        check(Request::parse(input, &mut fields::storage(), LIMIT))
    }

    #[track_caller]
    fn refuses(head: &str, error: HeadError) {
        parse(head.as_bytes(), |request| assert_eq!(request.err(), Some(error), "{head:?}"));
    }

    #[test]
    fn parses_a_request() {
        let input = b"POST /cart?id=1 HTTP/1.1\r\nHost: shop\r\nContent-Length: 3\r\nX-Empty:\r\n\r\nabc";
        parse(input, |request| {
            let request = request.unwrap().unwrap();
            assert_eq!((request.method, request.target), ("POST", Target::Origin("/cart?id=1")));
            assert_eq!((request.version, request.framing), (Version::Http11, Framing::Length(3)));
            assert!(request.persists && !request.expects_continue);
            assert_eq!(&input[request.length..], b"abc");
            let fields: Vec<_> = request.fields.all().iter().map(|field| (field.name, field.value)).collect();
            assert_eq!(fields, [("Host", &b"shop"[..]), ("Content-Length", b"3"), ("X-Empty", b"")]);
            assert_eq!(request.host(), Some(&b"shop"[..]));
        });
    }

    #[test]
    fn waits_for_the_rest_of_a_head() {
        let whole = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for end in 0..whole.len() {
            parse(&whole[..end], |request| assert_eq!(request, Ok(None), "{end}"));
        }
        parse(whole, |request| assert_eq!(request.unwrap().unwrap().length, whole.len()));
    }

    #[test]
    fn limits_the_size_of_a_head() {
        let head = |filling: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(filling));
        let most = LIMIT - head(0).len();
        parse(head(most).as_bytes(), |request| assert!(request.unwrap().is_some()));
        refuses(&head(most + 1), HeadError::TooLarge);
        // One that is not complete cannot become complete within the limit once it has reached it.
        let partial = head(most + 1);
        parse(&partial.as_bytes()[..LIMIT - 1], |request| assert_eq!(request, Ok(None)));
        parse(&partial.as_bytes()[..LIMIT], |request| assert_eq!(request, Err(HeadError::TooLarge)));
    }

    #[test]
    fn limits_the_number_of_fields() {
        let head = |more: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(more));
        parse(head(fields::LIMIT - 1).as_bytes(), |request| {
            assert_eq!(request.unwrap().unwrap().fields.all().len(), fields::LIMIT);
        });
        refuses(&head(fields::LIMIT), HeadError::TooManyFields);
    }

    #[test]
    fn reads_each_form_of_target() {
        let absolute = |is_https, authority, path| Target::Absolute { is_https, authority, path };
        let table = [
            ("GET", "/", Target::Origin("/"), "/"),
            ("GET", "//a/../b", Target::Origin("//a/../b"), "//a/../b"),
            ("GET", "http://shop", absolute(false, "shop", ""), "/"),
            ("GET", "HTTPS://shop:8080/a?b", absolute(true, "shop:8080", "/a?b"), "/a?b"),
            ("GET", "http://shop?b", absolute(false, "shop", "?b"), "/?b"),
            ("GET", "http://[2001:db8::1]/", absolute(false, "[2001:db8::1]", "/"), "/"),
            ("OPTIONS", "http://shop", absolute(false, "shop", "*"), "*"),
            ("OPTIONS", "http://shop/", absolute(false, "shop", "/"), "/"),
            ("OPTIONS", "http://shop?b", absolute(false, "shop", "?b"), "/?b"),
            ("OPTIONS", "*", Target::Asterisk, "*"),
        ];
        for (method, target, expected, asked) in table {
            let head = format!("{method} {target} HTTP/1.1\r\nHost: other\r\n\r\n");
            parse(head.as_bytes(), |request| {
                let request = request.unwrap().unwrap();
                assert_eq!(request.target, expected);
                let mut line = Vec::new();
                encode_line(&mut line, method, request.target);
                assert_eq!(String::from_utf8(line).unwrap(), format!("{method} {asked} HTTP/1.1\r\n"));
                if let Target::Absolute { authority, .. } = expected {
                    assert_eq!(request.host(), Some(authority.as_bytes()), "the target names the host");
                } else {
                    assert_eq!(request.host(), Some(&b"other"[..]));
                }
            });
        }
        for (line, error) in [
            ("GET shop", HeadError::Target),
            ("GET shop:80", HeadError::Target),
            ("GET *", HeadError::Target),
            ("GET ftp://shop/", HeadError::Target),
            ("GET /a#b", HeadError::Target),
            ("GET mailto:a", HeadError::Target),
            ("GET http:/a", HeadError::Target),
            ("GET ://a/", HeadError::Target),
            ("OPTIONS **", HeadError::Target),
            ("OPTIONS *?", HeadError::Target),
            ("options *", HeadError::Target),
            ("GET http:///a", HeadError::Host),
            ("GET http://", HeadError::Host),
            ("GET http://?a", HeadError::Host),
            ("GET http://:80/", HeadError::Host),
            ("GET http://a,b/", HeadError::Host),
            ("GET http://a:x/", HeadError::Host),
            ("GET http://a\\b/", HeadError::Host),
            ("GET http://[::1/", HeadError::Host),
            ("GET http://user@shop/", HeadError::Host),
            ("CONNECT shop:80", HeadError::Tunnel),
            ("CONNECT /", HeadError::Tunnel),
        ] {
            refuses(&format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n"), error);
        }
    }

    #[test]
    fn requires_exactly_one_host() {
        refuses("GET / HTTP/1.1\r\n\r\n", HeadError::NoHost);
        refuses("GET http://a/ HTTP/1.1\r\n\r\n", HeadError::NoHost);
        refuses("OPTIONS * HTTP/1.1\r\n\r\n", HeadError::NoHost);
        refuses("GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", HeadError::Hosts);
        refuses("GET http://a/ HTTP/1.1\r\nHost: a b\r\n\r\n", HeadError::Host);
        refuses("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", HeadError::Hosts);
        refuses("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", HeadError::Hosts);
        for host in ["a b", "a/b", "a@b", "a\"", "\u{e9}", "a?b", "a#", "a\\", "a,b", "a:b", "[a]", ":80"] {
            refuses(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), HeadError::Host);
        }
        for (line, host) in [("", None), ("Host:\r\n", Some(&b""[..])), ("HOST: a:80\r\n", Some(b"a:80"))] {
            let head = format!("GET / HTTP/1.0\r\n{line}\r\n");
            parse(head.as_bytes(), |request| assert_eq!(request.unwrap().unwrap().host(), host));
        }
    }

    #[test]
    fn allows_an_empty_host_only_without_an_authority() {
        for (line, host) in [("GET / HTTP/1.1", &b""[..]), ("OPTIONS * HTTP/1.1", b""), ("GET / HTTP/1.0", b"")] {
            let head = format!("{line}\r\nHost:\r\n\r\n");
            parse(head.as_bytes(), |request| assert_eq!(request.unwrap().unwrap().host(), Some(host), "{line}"));
        }
        refuses("GET http://a/ HTTP/1.1\r\nHost:\r\n\r\n", HeadError::Host);
        refuses("GET http://a/ HTTP/1.0\r\nHost:\r\n\r\n", HeadError::Host);
    }

    #[test]
    fn refuses_connection_options_that_name_host_or_framing() {
        for option in ["host", "Host", "close, Content-Length", "transfer-encoding", "x ,HOST"] {
            refuses(&format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: {option}\r\n\r\n"), HeadError::Connection);
        }
        let lines = "Connection: close\r\nConnection: host";
        refuses(&format!("GET / HTTP/1.0\r\n{lines}\r\n\r\n"), HeadError::Connection);
        let input = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: hosts, te, x-host\r\n\r\n";
        parse(input, |request| assert!(request.unwrap().is_some()));
    }

    #[test]
    fn frames_bodies() {
        let table = [
            ("1.1", "", Ok(Framing::Length(0))),
            ("1.1", "Content-Length: 0\r\n", Ok(Framing::Length(0))),
            ("1.1", "content-length: 7\r\n", Ok(Framing::Length(7))),
            ("1.0", "Content-Length: 7\r\n", Ok(Framing::Length(7))),
            ("1.1", "Transfer-Encoding: chunked\r\n", Ok(Framing::Chunked)),
            ("1.1", "Transfer-Encoding: chunked\r\nContent-Length: 7\r\n", Err(HeadError::TwoLengths)),
            ("1.1", "Content-Length: 7\r\nTransfer-Encoding: chunked\r\n", Err(HeadError::TwoLengths)),
            ("1.0", "Transfer-Encoding: chunked\r\n", Err(HeadError::OldCoding)),
            ("1.0", "Transfer-Encoding: gzip\r\n", Err(HeadError::OldCoding)),
            ("1.0", "Content-Length: 7\r\nTransfer-Encoding: chunked\r\n", Err(HeadError::OldCoding)),
            ("1.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Err(HeadError::TransferEncoding)),
            ("1.1", "Transfer-Encoding: chunked, gzip\r\n", Err(HeadError::TransferEncoding)),
            ("1.1", "Transfer-Encoding:\r\n", Err(HeadError::TransferEncoding)),
            ("1.1", "Content-Length:\r\n", Err(HeadError::ContentLength)),
            ("1.1", "Content-Length: +7\r\n", Err(HeadError::ContentLength)),
            ("1.1", "Content-Length: 18446744073709551616\r\n", Err(HeadError::ContentLength)),
            ("1.1", "Transfer-Encoding: gzip\r\n", Err(HeadError::TransferEncoding)),
            ("1.1", "Transfer-Encoding: gzip, chunked\r\n", Err(HeadError::Coding)),
            ("1.1", "Content-Length: 7\r\nContent-Length: 7\r\n", Err(HeadError::ContentLength)),
            ("1.1", "Content-Length: 7, 7\r\n", Err(HeadError::ContentLength)),
        ];
        for (version, lines, expected) in table {
            let head = format!("POST / HTTP/{version}\r\nHost: a\r\n{lines}\r\n");
            parse(head.as_bytes(), |request| assert_eq!(request.map(|r| r.unwrap().framing), expected, "{head}"));
        }
    }

    #[test]
    fn knows_whether_the_connection_persists() {
        let table = [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: x\r\nConnection: Close, y\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: keep-alive\r\n", true),
            ("1.0", "Connection: keep-alive, close\r\n", false),
            ("1.1", "Connection: close, keep-alive\r\n", false),
        ];
        for (version, lines, expected) in table {
            let head = format!("GET / HTTP/{version}\r\nHost: a\r\n{lines}\r\n");
            parse(head.as_bytes(), |request| assert_eq!(request.unwrap().unwrap().persists, expected, "{head}"));
        }
    }

    #[test]
    fn knows_whether_the_client_waits_for_100_continue() {
        let table = [
            ("1.1", "Content-Length: 1\r\n", false),
            ("1.1", "Content-Length: 1\r\nExpect: 100-continue\r\n", true),
            ("1.1", "Transfer-Encoding: chunked\r\nexpect: 100-Continue\r\n", true),
            ("1.1", "Content-Length: 0\r\nExpect: 100-continue\r\n", false),
            ("1.0", "Content-Length: 1\r\nExpect: 100-continue\r\n", false),
            ("1.1", "Content-Length: 1\r\nExpect: other\r\n", false),
        ];
        for (version, lines, expected) in table {
            let head = format!("POST / HTTP/{version}\r\nHost: a\r\n{lines}\r\n");
            parse(head.as_bytes(), |request| {
                assert_eq!(request.unwrap().unwrap().expects_continue, expected, "{head}");
            });
        }
    }

    #[test]
    fn refuses_malformed_heads() {
        let table = [
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", HeadError::LineEnd),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", HeadError::LineEnd),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n", HeadError::LineEnd),
            ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::LineEnd),
            ("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::LineEnd),
            ("GET / HTTP/1.1\rHost: a\r\n\r\n", HeadError::LineEnd),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", HeadError::LineEnd),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", HeadError::Version),
            ("\r\nGET / HTTP/2.0\r\nHost: a\r\n\r\n", HeadError::Version),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HeadError::Version),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", HeadError::Version),
            ("GET / HTTP/0.9\r\nHost: a\r\n\r\n", HeadError::Version),
            ("GET / http/1.1\r\nHost: a\r\n\r\n", HeadError::StartLine),
            ("GET / HTTP/1\r\nHost: a\r\n\r\n", HeadError::StartLine),
            ("GET / HTTP/2\r\nHost: a\r\n\r\n", HeadError::StartLine),
            ("GET / HTTP/2.0 x\r\nHost: a\r\n\r\n", HeadError::StartLine),
            ("GET /  HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::StartLine),
            ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::StartLine),
            ("GET /\r\n\r\n", HeadError::StartLine),
            ("GET HTTP/1.1\r\n\r\n", HeadError::StartLine),
            ("\tGET / HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::StartLine),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", HeadError::FieldName),
            ("GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", HeadError::FieldName),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n\tb\r\n\r\n", HeadError::FieldName),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\x7fb\r\n\r\n", HeadError::FieldValue),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\x0bb\r\n\r\n", HeadError::FieldValue),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n", HeadError::FieldValue),
            ("G@T / HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::StartLine),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::StartLine),
            (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", HeadError::StartLine),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", HeadError::FieldName),
            ("GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", HeadError::FieldName),
            ("GET / HTTP/1.1\r\nHost: a\r\nX Y: b\r\n\r\n", HeadError::FieldName),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", HeadError::FieldName),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", HeadError::FieldValue),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", HeadError::FieldValue),
        ];
        for (head, error) in table {
            refuses(head, error);
        }
    }

    #[test]
    fn waits_for_the_line_before_it_judges_the_version() {
        let head = b"GET / HTTP/2.0\r\nHost: a\r\n\r\n";
        for end in 0..=head.len() {
            let expected = if end < 16 { Ok(None) } else { Err(HeadError::Version) };
            parse(&head[..end], |request| assert_eq!(request, expected, "{end}"));
        }
        // Nothing beyond the limit is looked at.
        let long = format!("GET / HTTP/2.{}\r\n", "0".repeat(LIMIT));
        refuses(&long, HeadError::TooLarge);
        refuses(&format!("GET / HTTP/1.1\r\nX: {}\r\n \r\n", "y".repeat(LIMIT)), HeadError::TooLarge);
    }
}
