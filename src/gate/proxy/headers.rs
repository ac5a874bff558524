//! What is changed of a message that is forwarded, which is as little as possible.

use bytes::Bytes;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, Entry, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING,
    UPGRADE,
};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{Response, StatusCode, Uri, Version};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// A request that cannot be forwarded, since it could be read in more than one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::gate) enum Ambiguous {
    /// HTTP/1.1 without `Host` (RFC 9112 §3.2).
    #[error("the request has no Host")]
    NoHost,
    /// More than one, or one that differs from `:authority` (RFC 9113 §8.3.1).
    #[error("the request has more than one Host")]
    Hosts,
    /// One that is none (RFC 9112 §3.2).
    #[error("the request's Host is no host")]
    NotAHost,
    /// Neither a path nor a URL: a host alone is what `CONNECT` asks for (RFC 9112 §3.2.3).
    #[error("the request's target is no path")]
    NotAPath,
    /// Another transfer coding than `chunked`, which would be lost here.
    #[error("the request has a transfer coding that is not known")]
    Coding,
}

/// Makes of a request's headers those that the application gets. Returns its `Host`, which only HTTP/1.0 may be without.
/// `client` is the address of who has sent it.
///
/// # Errors
///
/// See [`Ambiguous`].
pub(in crate::gate) fn of_request(
    headers: &mut HeaderMap,
    uri: &Uri,
    version: Version,
    client: &HeaderValue,
) -> Result<Option<HeaderValue>, Ambiguous> {
    if uri.authority().is_some() && uri.scheme().is_none() {
        return Err(Ambiguous::NotAPath);
    }
    if concern_connection(headers) {
        if has_other_coding(headers) {
            return Err(Ambiguous::Coding);
        }
        let upgrade = upgrade(headers, version);
        let takes_trailers = headers.get_all(TE).iter().any(|value| has_token(value, "trailers"));
        remove_hop_by_hop(headers);
        // Answered here: the body is asked for as soon as it is read.
        headers.remove(EXPECT);
        if takes_trailers {
            // "TE" names itself in "Connection" (RFC 9110 §10.1.4).
            headers.insert(TE, TRAILERS);
            headers.insert(CONNECTION, HeaderValue::from_static("te"));
        }
        if let Some(protocol) = upgrade {
            headers.insert(UPGRADE, protocol);
            headers.append(CONNECTION, HeaderValue::from_static("upgrade"));
        }
    }
    let host = set_host(headers, uri, version)?;
    if version >= Version::HTTP_2 {
        join_cookies(headers);
    }
    forwarded(headers, client, host.as_ref());
    Ok(host)
}

/// Whether any of these is about the connection. Most messages have none, and one look at their names costs less than to ask
/// for each.
fn concern_connection(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| {
        matches!(
            name.as_str(),
            "connection"
                | "expect"
                | "http2-settings"
                | "keep-alive"
                | "proxy-connection"
                | "te"
                | "transfer-encoding"
                | "upgrade"
        )
    })
}

/// Makes of a request for HTTP/1.1 one for HTTP/2: the `Host` goes into the URL, and what concerns a connection goes (RFC 9113
/// §8.2.2, §8.3.1). A `Host` that cannot be in a URL stays where it is, as that section allows.
pub(in crate::gate) fn for_http2(headers: &mut HeaderMap, uri: Uri) -> Uri {
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    let Some(Ok(authority)) = headers.get(HOST).map(|host| Authority::try_from(host.as_bytes())) else { return uri };
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority);
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    let Ok(uri) = Uri::from_parts(parts) else { return uri };
    headers.remove(HOST);
    uri
}

/// Makes of trailers those that may be sent over HTTP/2.
pub(in crate::gate) fn of_trailers(trailers: &mut HeaderMap) {
    remove_hop_by_hop(trailers);
}

/// Makes of an answer's headers those that the client gets.
pub(in crate::gate) fn of_answer(headers: &mut HeaderMap, status: StatusCode) {
    if !concern_connection(headers) {
        return;
    }
    let protocol = headers.get(UPGRADE).filter(|_| status == StatusCode::SWITCHING_PROTOCOLS).cloned();
    if headers.contains_key(TRANSFER_ENCODING) {
        // It would be another answer's (RFC 9112 §6.3).
        headers.remove(CONTENT_LENGTH);
    }
    remove_hop_by_hop(headers);
    if let Some(protocol) = protocol {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// The protocol that a client asks to go on with on its connection (RFC 9110 §7.8). Not HTTP/2: it has prior knowledge for
/// that, and what it would send then nobody could judge.
pub(in crate::gate) fn upgrade(headers: &HeaderMap, version: Version) -> Option<HeaderValue> {
    let protocol = headers.get(UPGRADE)?;
    let asked =
        version == Version::HTTP_11 && headers.get_all(CONNECTION).iter().any(|value| has_token(value, "upgrade"));
    let names = protocol.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let mut names_http2 = names.filter(|name| name.to_ascii_lowercase().starts_with(b"h2"));
    (asked && names_http2.next().is_none()).then(|| protocol.clone())
}

/// Whether an answer goes on in one of the protocols that its request has named (RFC 9110 §7.8).
pub(in crate::gate) fn is_asked_for<B>(protocols: Option<&HeaderValue>, answer: &Response<B>) -> bool {
    let (Some(protocols), Some(protocol)) = (protocols, answer.headers().get(UPGRADE)) else { return false };
    protocol.to_str().is_ok_and(|protocol| has_token(protocols, protocol.trim()))
}

/// Whether a message has a transfer coding that hyper does not undo: it takes `chunked` at the end for all there is.
pub(in crate::gate) fn has_other_coding(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let first = codings.next();
    codings.next().is_some() || first.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
}

/// What concerns one connection only (RFC 9110 §7.6.1), and what `Connection` names. Framing is made anew.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if let Entry::Occupied(connection) = headers.entry(CONNECTION) {
        let (_, values) = connection.remove_entry_mult();
        let named: Vec<_> = values
            .flat_map(|value| {
                let tokens = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
                tokens.filter_map(|token| HeaderName::from_bytes(token).ok()).collect::<Vec<_>>()
            })
            .collect();
        for name in named.into_iter().filter(|name| !is_of_proxies(name)) {
            headers.remove(name);
        }
    }
    for name in [HTTP2_SETTINGS, KEEP_ALIVE, PROXY_CONNECTION, TE, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
}

/// Whether a header says what those in front have seen. A client that names one in `Connection` would have them unsaid;
/// whoever may send it must not name it there (RFC 9110 §7.6.1).
fn is_of_proxies(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with("x-forwarded-") || matches!(name, "forwarded" | "via" | "x-real-ip")
}

/// Whether a list has this token, whatever its parameters.
fn has_token(value: &HeaderValue, token: &str) -> bool {
    let elements = value.as_bytes().split(|byte| *byte == b',');
    elements
        .filter_map(|element| element.split(|byte| *byte == b';').next())
        .any(|name| name.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// The application gets exactly one `Host`: the client's, and where the target names one, that (RFC 9112 §3.2.2).
fn set_host(headers: &mut HeaderMap, uri: &Uri, version: Version) -> Result<Option<HeaderValue>, Ambiguous> {
    let mut hosts = headers.get_all(HOST).iter();
    let (first, more) = (hosts.next(), hosts.next());
    if more.is_some() {
        return Err(Ambiguous::Hosts);
    }
    match (first, uri.authority()) {
        (Some(host), None) if !is_host(host.as_bytes()) => Err(Ambiguous::NotAHost),
        (_, Some(authority)) if !is_host(authority.as_str().as_bytes()) => Err(Ambiguous::NotAHost),
        (Some(host), Some(authority))
            if version >= Version::HTTP_2 && host.as_bytes() != authority.as_str().as_bytes() =>
        {
            Err(Ambiguous::Hosts)
        }
        (_, Some(authority)) => {
            let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Ambiguous::Hosts)?;
            headers.insert(HOST, host.clone());
            Ok(Some(host))
        }
        (Some(host), None) => Ok(Some(host.clone())),
        (None, None) if version == Version::HTTP_10 => Ok(None),
        (None, None) => Err(Ambiguous::NoHost),
    }
}

/// Whether these are the characters of a host and a port, or nothing (RFC 3986 §3.2.2).
fn is_host(host: &[u8]) -> bool {
    host.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(byte))
}

/// HTTP/2 may split `Cookie`, HTTP/1 may not (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (cookies.next(), cookies.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for cookie in std::iter::once(second).chain(cookies) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_maybe_shared(Bytes::from(joined)) {
        headers.insert(COOKIE, joined);
    }
}

/// Who asks, and for what, as those before have said it or as it is seen here.
fn forwarded(headers: &mut HeaderMap, client: &HeaderValue, host: Option<&HeaderValue>) {
    match headers.entry(X_FORWARDED_FOR) {
        Entry::Vacant(entry) => _ = entry.insert(client.clone()),
        Entry::Occupied(mut entry) => {
            // What is no text names no address.
            let mut addresses: Vec<_> = entry.iter().filter_map(|value| value.to_str().ok()).collect();
            addresses.extend(client.to_str());
            if let Ok(addresses) = HeaderValue::try_from(addresses.join(", ")) {
                entry.insert(addresses);
            }
        }
    }
    headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    if let Some(host) = host {
        headers.entry(X_FORWARDED_HOST).or_insert_with(|| host.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let entry = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        lines.iter().map(entry).collect()
    }

    fn request(
        lines: &[(&'static str, &'static str)],
        target: &'static str,
        version: Version,
    ) -> Result<HeaderMap, Ambiguous> {
        let mut headers = headers(lines);
        of_request(&mut headers, &Uri::from_static(target), version, &HeaderValue::from_static("192.0.2.1"))
            .map(|_| headers)
    }

    #[test]
    fn what_concerns_one_connection_stops_here() {
        let lines = [
            ("host", "shop"),
            ("connection", "close, X-Mine"),
            ("connection", "x-other,, \"x\""),
            ("x-mine", "1"),
            ("x-other", "2"),
            ("keep-alive", "5"),
            ("proxy-connection", "close"),
            ("te", "gzip"),
            ("transfer-encoding", "Chunked"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("trailer", "x-sum"),
            ("x-kept", "3"),
        ];
        let kept = request(&lines, "/", Version::HTTP_11).unwrap();
        let expected = headers(&[
            ("host", "shop"),
            ("trailer", "x-sum"),
            ("x-kept", "3"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "shop"),
        ]);
        assert_eq!(kept, expected);
        let mut answer = headers(&[("connection", "x-a, keep-alive"), ("x-a", "1"), ("keep-alive", "1"), ("x-b", "2")]);
        of_answer(&mut answer, StatusCode::OK);
        assert_eq!(answer, headers(&[("x-b", "2")]));
    }

    #[test]
    fn trailers_are_still_wanted() {
        for te in ["trailers", "gzip;q=1, Trailers", "trailers;q=0.5"] {
            let kept = request(&[("host", "a"), ("te", te)], "/", Version::HTTP_2).unwrap();
            assert_eq!((&kept[TE], &kept[CONNECTION]), (&TRAILERS, &HeaderValue::from_static("te")), "{te}");
        }
    }

    #[test]
    fn over_http_2_the_host_is_in_the_url() {
        let table = [
            ("shop", "/a?b=c", "http://shop/a?b=c", None),
            ("shop:8080", "*", "http://shop:8080*", None),
            ("[2001:db8::1]:80", "/", "http://[2001:db8::1]:80/", None),
            // What no URL can have.
            ("", "/", "/", Some("")),
            ("a%20b", "/", "/", Some("a%20b")),
        ];
        for (host, target, uri, left) in table {
            let mut sent = request(
                &[("host", host), ("te", "trailers"), ("connection", "upgrade"), ("upgrade", "websocket")],
                target,
                Version::HTTP_11,
            )
            .unwrap();
            sent.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            assert_eq!(for_http2(&mut sent, Uri::from_static(target)).to_string(), uri);
            assert_eq!(sent.get(HOST).map(|host| host.to_str().unwrap()), left, "{host}");
            assert_eq!(sent[TE], TRAILERS);
            for name in [CONNECTION, UPGRADE, TRANSFER_ENCODING] {
                assert!(!sent.contains_key(name));
            }
        }
    }

    #[test]
    fn cookies_are_one_header_again() {
        let lines = [("host", "a"), ("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")];
        let cookies = |version| {
            let headers = request(&lines, "/", version).unwrap();
            headers.get_all(COOKIE).iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(cookies(Version::HTTP_2), ["a=1; b=2; c=3"]);
        assert_eq!(cookies(Version::HTTP_11), ["a=1", "b=2", "c=3"], "as the client has sent them");
    }

    #[test]
    fn there_is_one_host() {
        let host = |lines: &[(&'static str, &'static str)], target, version| {
            request(lines, target, version)
                .map(|headers| headers.get(HOST).map(|host| host.to_str().unwrap().to_owned()))
        };
        let some = |host: &str| Ok(Some(host.to_owned()));
        assert_eq!(host(&[("host", "a")], "/", Version::HTTP_11), some("a"));
        assert_eq!(host(&[("host", "a")], "http://b:1/", Version::HTTP_11), some("b:1"), "the target counts");
        assert_eq!(host(&[], "http://b/", Version::HTTP_2), some("b"));
        assert_eq!(host(&[("host", "b")], "http://b/", Version::HTTP_2), some("b"));
        assert_eq!(host(&[("host", "a")], "http://b/", Version::HTTP_2), Err(Ambiguous::Hosts));
        assert_eq!(host(&[("host", "a"), ("host", "a")], "/", Version::HTTP_11), Err(Ambiguous::Hosts));
        assert_eq!(host(&[], "/", Version::HTTP_11), Err(Ambiguous::NoHost));
        assert_eq!(host(&[], "/", Version::HTTP_10), Ok(None));
        for none in ["a b", "a/b", "a?", "me@a", "a\\b", "a\"", "<a>", "a#b"] {
            assert_eq!(host(&[("host", none)], "/", Version::HTTP_11), Err(Ambiguous::NotAHost), "{none}");
        }
        for one in ["", "a.example:80", "[2001:db8::1]:80", "a_b-c~%20", "192.0.2.1"] {
            assert_eq!(host(&[("host", one)], "/", Version::HTTP_11), some(one));
        }
        assert_eq!(host(&[], "http://me:secret@a/", Version::HTTP_2), Err(Ambiguous::NotAHost));
        assert_eq!(host(&[("host", "a")], "a", Version::HTTP_11), Err(Ambiguous::NotAPath));
    }

    #[test]
    fn no_coding_is_lost() {
        for (coding, other) in [("chunked", false), ("CHUNKED", false), ("gzip, chunked", true), ("identity", true)] {
            assert_eq!(has_other_coding(&headers(&[("transfer-encoding", coding)])), other, "{coding}");
        }
        assert!(!has_other_coding(&headers(&[])));
        assert!(has_other_coding(&headers(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")])));
    }

    #[test]
    fn who_has_forwarded_it_is_kept() {
        let lines = [
            ("host", "a"),
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-for", "198.51.100.7"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "shop.example"),
        ];
        let kept = request(&lines, "/", Version::HTTP_11).unwrap();
        assert_eq!(kept[X_FORWARDED_FOR], "203.0.113.9, 198.51.100.7, 192.0.2.1");
        assert_eq!(kept.get_all(X_FORWARDED_FOR).iter().count(), 1);
        assert_eq!(
            (&kept[X_FORWARDED_PROTO], &kept[X_FORWARDED_HOST]),
            (&"https".parse().unwrap(), &"shop.example".parse().unwrap())
        );
    }
}
