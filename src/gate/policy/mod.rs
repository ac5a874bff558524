//! The requests that an operator lets through in maintenance.
//!
//! A request that is unclear is not let through: it could reach data that is being migrated.

pub mod bypass;
pub mod network;
mod origin;
pub mod token;

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use http::Method;

use self::network::Network;
use crate::proxy::headers;
use crate::server::head::{Fields, Head};

/// What an operator lets through, or lets wait.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Requests with these methods are let through, if they are what they say.
    pub methods: Vec<AllowedMethod>,
    /// Those for these paths.
    pub paths: Vec<AllowedPath>,
    /// Those from these addresses.
    pub clients: Vec<Network>,
    /// Whose `X-Forwarded-For` is believed.
    pub proxies: Vec<Network>,
    /// For how long after maintenance has begun the others wait for its end.
    pub hold: Duration,
}

impl Policy {
    /// Lets nothing through, and holds nothing.
    pub const NONE: Self =
        Self { methods: Vec::new(), paths: Vec::new(), clients: Vec::new(), proxies: Vec::new(), hold: Duration::ZERO };

    /// Whether the request is let through in maintenance. `peer` is the other end of the connection.
    pub(in crate::gate) fn allows(&self, head: &Head<'_>, peer: IpAddr) -> bool {
        self.allows_method(head) || self.allows_path(head.path, head.fields) || self.allows_client(peer, head.fields)
    }

    /// A method says what a request does only if nothing else says otherwise. Nobody knows what an upgraded connection is used for:
    /// a WebSocket begins with `GET`. A body of a safe method has no meaning (RFC 9110 §9.3.1), so that some applications leave it
    /// unread and take it for the next request.
    fn allows_method(&self, head: &Head<'_>) -> bool {
        const OVERRIDES: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];
        let has_odd_body = head.is_safe() && head.has_body;
        self.methods.iter().any(|AllowedMethod(allowed)| allowed.as_str() == head.method)
            && !has_odd_body
            && headers::upgrade(head.fields, head.version).is_none()
            && !has_any(head.fields, &OVERRIDES)
    }

    /// Some servers and applications take the path, or how much of it is theirs, from a header, if there is one: `SCRIPT_NAME`
    /// is gunicorn's, from whoever connects from its own host, as this does.
    fn allows_path(&self, path: &str, fields: Fields<'_>) -> bool {
        const OVERRIDES: [&str; 7] = [
            "x-original-url",
            "x-rewrite-url",
            "x-script-name",
            "script-name",
            "path-info",
            "daphne-root-path",
            "x-vhm-root",
        ];
        self.paths.iter().any(|allowed| allowed.covers(path)) && !has_any(fields, &OVERRIDES)
    }

    fn allows_client(&self, peer: IpAddr, fields: Fields<'_>) -> bool {
        !self.clients.is_empty()
            && origin::client(peer, fields, &self.proxies)
                .is_some_and(|client| self.clients.iter().any(|network| network.contains(client)))
    }
}

/// Whether there is one of these headers, also in a spelling that many applications cannot tell from it.
fn has_any(fields: Fields<'_>, names: &[&str]) -> bool {
    fields.iter().any(|(name, _)| names.iter().any(|known| plain(name).eq(known.bytes())))
}

/// The name of a header, with a dash for all that is neither letter nor digit. RFC 3875 §4.1.18 makes dashes underscores; some
/// servers do the same to dots, or to any such character.
fn plain(name: &str) -> impl Iterator<Item = u8> {
    name.bytes().map(|byte| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' })
}

/// A method that is let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedMethod(Method);

/// A method that cannot be let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllowedMethodError {
    /// It is not in upper case, as those in use are; case makes a difference (RFC 9110 §9.1). Whether anybody knows it is not
    /// asked: one that is misspelt lets through only what is misspelt in the same way.
    #[error("not a method: write it in upper case, such as GET")]
    Malformed,
    /// `CONNECT`.
    #[error("tunnels are never forwarded")]
    Tunnel,
}

impl FromStr for AllowedMethod {
    type Err = AllowedMethodError;

    fn from_str(text: &str) -> Result<Self, AllowedMethodError> {
        match Method::from_str(text) {
            Ok(Method::CONNECT) => Err(AllowedMethodError::Tunnel),
            Ok(method) if text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') => Ok(Self(method)),
            _ => Err(AllowedMethodError::Malformed),
        }
    }
}

/// A path that is let through, or, if it ends in a slash, all that are below it, and itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedPath(String);

/// A path that cannot be let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllowedPathError {
    /// It does not begin with a slash.
    #[error("not a path such as /webhooks/: it must begin with a slash")]
    Relative,
    /// No request would be let through by it.
    #[error("a path that could be read in two ways is never let through: leave out %, ;, \\, //, . and .. segments")]
    Ambiguous,
}

impl AllowedPath {
    fn covers(&self, path: &str) -> bool {
        let covers = if self.0.ends_with('/') { path.starts_with(&self.0) } else { path == self.0 };
        covers && is_clear(path)
    }
}

impl FromStr for AllowedPath {
    type Err = AllowedPathError;

    fn from_str(text: &str) -> Result<Self, AllowedPathError> {
        match text {
            _ if !text.starts_with('/') => Err(AllowedPathError::Relative),
            _ if !is_clear(text) => Err(AllowedPathError::Ambiguous),
            _ => Ok(Self(text.to_owned())),
        }
    }
}

/// Whether a path has one reading only, whatever is behind this: nothing to decode, nothing to cut off, and no segments
/// that are empty or made of dots (RFC 3986 §5.2.4). Of the characters of a path (RFC 3986 §3.3) that leaves out the percent
/// sign, and the semicolon, from which on some do not count it.
fn is_clear(path: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@".contains(&byte);
    let Some(rest) = path.strip_prefix('/') else { return false };
    let (last, before) = rest.rsplit_once('/').map_or((rest, None), |(before, last)| (last, Some(before)));
    let dots = |segment: &str| !segment.is_empty() && segment.bytes().all(|byte| byte == b'.');
    let mut segments = before.into_iter().flat_map(|before| before.split('/')).chain([last]);
    rest.bytes().all(|byte| byte == b'/' || is_plain(byte))
        && before.is_none_or(|before| before.split('/').all(|segment| !segment.is_empty()))
        && !segments.any(dots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use proptest::prelude::*;

    fn allowing(methods: &[&str], paths: &[&str]) -> Policy {
        Policy {
            methods: methods.iter().map(|method| method.parse().unwrap()).collect(),
            paths: paths.iter().map(|path| path.parse().unwrap()).collect(),
            ..Policy::default()
        }
    }

    const SOMEBODY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn lets_through(policy: &Policy, request: &Request<String>, peer: IpAddr) -> bool {
        policy.allows(&Head::of(request, !request.body().is_empty()), peer)
    }

    fn request(method: &str, target: &str, headers: &[(&str, &str)]) -> Request<String> {
        let builder = Request::builder().method(method).uri(target);
        let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
        builder.body(String::new()).unwrap()
    }

    fn by_path(allowed: &[&str], target: &str) -> bool {
        lets_through(&allowing(&[], allowed), &request("POST", target, &[]), SOMEBODY)
    }

    #[test]
    fn a_path_is_exact_or_all_below_it() {
        let table = [
            ("/webhooks/", "/webhooks/", true),
            ("/webhooks/", "/webhooks/github", true),
            ("/webhooks/", "/webhooks/github/push?x=../..", true),
            ("/webhooks/", "/webhooks/a.b/..c/d...", true),
            ("/webhooks/", "/webhooks/~me@x:1,2'(3)*!$&+=-_", true),
            ("/webhooks/", "http://shop.example/webhooks/github", true),
            ("/webhooks/", "/webhooks", false),
            ("/webhooks/", "/webhooks2/", false),
            ("/webhooks/", "/", false),
            ("/webhooks/", "/a/webhooks/", false),
            ("/webhooks/", "http://webhooks/", false),
            ("/healthz", "/healthz", true),
            ("/healthz", "/healthz?full", true),
            ("/healthz", "/healthz/", false),
            ("/healthz", "/healthz/db", false),
            ("/healthz", "/healthzz", false),
            ("/", "/", true),
            ("/", "/anything/else", true),
            ("/", "http://shop.example", true),
        ];
        for (allowed, target, expected) in table {
            assert_eq!(by_path(&[allowed], target), expected, "{target} where {allowed} is allowed");
        }
        assert!(by_path(&["/a", "/webhooks/"], "/webhooks/x"));
        assert!(!by_path(&[], "/webhooks/x"));
    }

    #[test]
    fn a_path_cannot_be_talked_around() {
        for target in [
            "/webhooks/../admin",
            "/webhooks/..",
            "/webhooks/.",
            "/webhooks/./../admin",
            "/webhooks/a/../../admin",
            "/webhooks/.../admin",
            "/webhooks/%2e%2e/admin",
            "/webhooks/.%2E/admin",
            "/webhooks/%2E./admin",
            "/webhooks/..%2fadmin",
            "/webhooks%2f",
            "/webhooks%2F../admin",
            "/webhooks/..%5cadmin",
            "/webhooks/..\\admin",
            "/webhooks/\\admin",
            "/webhooks/..;/admin",
            "/webhooks/;/admin",
            "/webhooks/;x=../admin",
            "/webhooks;/admin",
            "/webhooks/..;a=b/admin",
            "//webhooks/",
            "/webhooks//admin",
            "/webhooks//",
            "//admin/webhooks/",
            "/webhooks/%00",
            "/webhooks/..%00/admin",
            "/webhooks/%0a..",
            "/webhooks/%0d%0aHost:x",
            "/webhooks/%7f",
            "/webhooks/%252e%252e/admin",
            "/webhooks/%25%32%65",
            "/webhooks/%%32e",
            "/webhooks/%",
            "/webhooks/%zz",
            "/webhooks/%c0%ae%c0%ae/admin",
            "/webhooks/%ef%bc%8e",
            "/webhooks/%u002e",
            "/webhooks/\u{ff0e}\u{ff0e}/admin",
            "/webhooks/%3fx",
            "/webhooks/%23x",
            "/webhooks/%77",
            "/%77ebhooks/",
            "/Webhooks/",
            "/WEBHOOKS/x",
            "/webhooks/{x}",
            "/webhooks/\"x\"",
            "/webhooks/a|b",
            "/webhooks/^",
            "/./webhooks/",
            "/../webhooks/",
            "/x/../webhooks/",
            "http://shop.example/webhooks/../admin",
            "http://shop.example//webhooks/",
            "*",
        ] {
            // What is no target at all never gets here.
            let Ok(uri) = target.parse::<http::Uri>() else { continue };
            let request = Request::builder().method("POST").uri(uri).body(String::new()).unwrap();
            assert!(!lets_through(&allowing(&[], &["/webhooks/"]), &request, SOMEBODY), "{target}");
        }
        for name in [
            "X-Original-URL",
            "X-Rewrite-URL",
            "X_Original_Url",
            "X.Original.URL",
            "X-Script-Name",
            "Script-Name",
            "SCRIPT_NAME",
            "PATH_INFO",
            "Daphne-Root-Path",
            "X-VHM-Root",
        ] {
            let request = request("POST", "/webhooks/x", &[(name, "/admin")]);
            assert!(!lets_through(&allowing(&[], &["/webhooks/"]), &request, SOMEBODY), "{name}");
        }
        // For CONNECT, and for OPTIONS as such.
        let mut request = request("OPTIONS", "*", &[]);
        assert!(!lets_through(&allowing(&[], &["/"]), &request, SOMEBODY));
        *request.uri_mut() = http::Uri::from_static("shop.example:80");
        assert!(!lets_through(&allowing(&[], &["/"]), &request, SOMEBODY));
    }

    #[test]
    fn paths_that_make_no_sense_are_told_at_once() {
        for text in ["", "webhooks/", "*", "http://shop.example/", "?x"] {
            assert_eq!(text.parse::<AllowedPath>(), Err(AllowedPathError::Relative), "{text}");
        }
        for text in ["/a//", "//", "/../", "/a/.", "/a%20b", "/a;b", "/a?b", "/a#b", "/a b", "/ä", "/a\\", "/a/*?"] {
            assert_eq!(text.parse::<AllowedPath>(), Err(AllowedPathError::Ambiguous), "{text}");
        }
    }

    #[test]
    fn a_method_is_what_it_says() {
        let policy = allowing(&["GET", "HEAD", "OPTIONS", "TRACE", "POST"], &[]);
        let allows = |method: &str, target: &str, headers: &[(&str, &str)]| {
            lets_through(&policy, &request(method, target, headers), SOMEBODY)
        };
        assert!(allows("GET", "/any/../thing%2f", &[("accept", "*/*")]));
        assert!(allows("HEAD", "/", &[]));
        assert!(allows("OPTIONS", "*", &[]));
        for method in ["PUT", "DELETE", "get", "GETX", "CONNECT", "PROPFIND"] {
            let target = if method == "CONNECT" { "shop.example:80" } else { "/" };
            assert!(!allows(method, target, &[]), "{method}");
        }
        for name in [
            "X-HTTP-Method-Override",
            "X-HTTP-Method",
            "X-Method-Override",
            "X_HTTP_Method_Override",
            "X.HTTP.Method.Override",
            "X!HTTP-Method~Override",
        ] {
            assert!(!allows("GET", "/", &[(name, "DELETE")]), "{name}");
            assert!(!allows("GET", "/", &[(name, "")]), "{name}");
        }
        // A WebSocket.
        assert!(!allows("GET", "/", &[("connection", "upgrade"), ("upgrade", "websocket")]));
        // Which the application does not get to see, and so does not take for one.
        assert!(allows("GET", "/", &[("upgrade", "websocket")]));
        assert!(allows("GET", "/", &[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")]));
        // A body where there should be none.
        for (method, expected) in
            [("GET", false), ("HEAD", false), ("OPTIONS", false), ("TRACE", false), ("POST", true)]
        {
            let request = request(method, "/", &[]).map(|_| "POST / HTTP/1.1".to_owned());
            assert_eq!(lets_through(&policy, &request, SOMEBODY), expected, "{method}");
        }
        // Where its path is let through, so is it.
        let policy = allowing(&["GET"], &["/chat"]);
        let upgrade = [("connection", "upgrade"), ("upgrade", "websocket")];
        assert!(lets_through(&policy, &request("GET", "/chat", &upgrade), SOMEBODY));
        assert!(!lets_through(&policy, &request("GET", "/", &upgrade), SOMEBODY));
    }

    #[test]
    fn methods_that_make_no_sense_are_told_at_once() {
        for text in ["", "get", "Get", "GE T", "GET\n", "G(T", "*", "GÉT"] {
            assert_eq!(text.parse::<AllowedMethod>(), Err(AllowedMethodError::Malformed), "{text}");
        }
        assert_eq!("CONNECT".parse::<AllowedMethod>(), Err(AllowedMethodError::Tunnel));
        assert_eq!("M-SEARCH".parse::<AllowedMethod>(), Ok(AllowedMethod("M-SEARCH".parse().unwrap())));
    }

    #[test]
    fn an_address_is_the_clients() {
        let policy = Policy {
            clients: vec!["192.0.2.0/24".parse().unwrap()],
            proxies: vec!["10.0.0.1".parse().unwrap()],
            ..Policy::default()
        };
        let allows = |peer: &str, forwarded: &[(&str, &str)]| {
            lets_through(&policy, &request("POST", "/", forwarded), peer.parse().unwrap())
        };
        assert!(allows("192.0.2.9", &[]));
        assert!(allows("::ffff:192.0.2.9", &[]));
        assert!(!allows("198.51.100.1", &[]));
        assert!(!allows("198.51.100.1", &[("x-forwarded-for", "192.0.2.9")]));
        assert!(!allows("192.0.2.9", &[("x-forwarded-for", "192.0.2.9")]));
        assert!(allows("10.0.0.1", &[("x-forwarded-for", "192.0.2.9")]));
        assert!(!allows("10.0.0.1", &[("x-forwarded-for", "192.0.2.9, 198.51.100.1")]));
        assert!(!allows("10.0.0.1", &[]));
    }

    /// What the laxest of applications might make of a path: decodes as long as there is something to decode, takes
    /// backslashes for slashes, cuts off parameters and what follows a NUL, and then resolves it.
    fn resolved(path: &str) -> Vec<String> {
        let mut path = path.to_owned();
        loop {
            let decoded = percent_encoding::percent_decode_str(&path).decode_utf8_lossy().into_owned();
            if decoded == path {
                break;
            }
            path = decoded;
        }
        let path = path.split(['\0', '?', '#']).next().unwrap_or_default().replace('\\', "/").to_lowercase();
        let mut segments: Vec<String> = Vec::new();
        for segment in path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()) {
            match segment {
                "" | "." => {}
                ".." => _ = segments.pop(),
                other => segments.push(other.to_owned()),
            }
        }
        segments
    }

    /// A path made of what has served to talk others around.
    fn tricky() -> impl Strategy<Value = String> {
        let piece = proptest::sample::select(vec![
            "/", "/", "/", ".", "..", "webhooks", "admin", "a", "%2e", "%2F", "%5c", "\\", ";", "%00", "%252e", "%3b",
            "%", "%c0%ae", "Webhooks", "...", "%2", "e", "~", "?", "#",
        ]);
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| format!("/webhooks/{}", pieces.concat()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn what_is_allowed_is_below_the_path_however_it_is_read(target in tricky()) {
            if let Ok(uri) = target.parse::<http::Uri>() {
                let request = Request::builder().method("POST").uri(uri).body(String::new()).unwrap();
                if lets_through(&allowing(&[], &["/webhooks/"]), &request, SOMEBODY) {
                    let path = request.uri().path();
                    prop_assert_eq!(resolved(path), path.split('/').filter(|segment| !segment.is_empty()).map(str::to_lowercase).collect::<Vec<_>>());
                    prop_assert_eq!(&resolved(path)[0], "webhooks");
                }
            }
        }

        #[test]
        fn an_exact_path_is_that_path(target in "/[ -~]{0,12}") {
            if let Ok(uri) = target.parse::<http::Uri>() {
                let request = Request::builder().method("POST").uri(uri).body(String::new()).unwrap();
                let path = request.uri().path().to_owned();
                prop_assert_eq!(lets_through(&allowing(&[], &["/a/b"]), &request, SOMEBODY), path == "/a/b");
            }
        }
    }
}
