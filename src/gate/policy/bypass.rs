//! Who has a token bypasses maintenance: by a header, or, in a browser, by a cookie that a visit to `/.pitstop/TOKEN` sets.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::header::{CACHE_CONTROL, CONTENT_LENGTH, HeaderMap, HeaderValue, LOCATION, REFERRER_POLICY, SET_COOKIE};
use jiff::Timestamp;
use tokio::sync::watch;

use super::token::{COOKIE_AGE, Token, TokenError};
use crate::proxy::headers::Filtered;
use crate::reload::{self, Look, Reload};
use crate::server::head::{Fields, Head};

/// The header that bears the token.
const HEADER: &str = "pitstop-bypass";
/// The cookie.
const COOKIE_NAME: &str = "pitstop-bypass";
/// The paths that are answered here, not by the application.
const OWN: &str = "/.pitstop";
/// A file of more bytes than this holds no token.
const FILE_SIZE: u64 = 4096;
/// The stack of the thread that reloads the token, in bytes: as much as std gives other threads.
const STACK: usize = 2 * 1024 * 1024;

/// The token, reloaded from its file.
#[derive(Debug)]
pub struct Bypass {
    /// `None` while the file holds no token. No request bypasses maintenance then.
    token: watch::Receiver<Option<Arc<Token>>>,
}

/// Why no token is available.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// It cannot be read.
    #[error("--bypass-token-file {} cannot be read: {source}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What it holds is no token.
    #[error("--bypass-token-file {} {source}", file.display())]
    Token {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        source: TokenError,
    },
    /// The thread that reloads it cannot be started.
    #[error(transparent)]
    Thread(io::Error),
}

impl Bypass {
    /// Reads the token, and reloads it from then on.
    ///
    /// # Errors
    ///
    /// See [`TokenFileError`].
    pub fn open(file: PathBuf, every: Duration) -> Result<Arc<Self>, TokenFileError> {
        let token = read(&file)?;
        let reload = Reload {
            thread: "bypass-token",
            stack: STACK,
            every,
            failed: "nobody bypasses maintenance",
            recovered: "the bypass token can be read again",
            changed: None,
        };
        let look = move || match read(&file) {
            Ok(token) => Look { value: Some(Some(token)), error: None },
            Err(error) => Look { value: Some(None), error: Some(error.to_string()) },
        };
        let token = reload.start(Some(token), look).map_err(TokenFileError::Thread)?;
        Ok(Arc::new(Self { token }))
    }

    fn token(&self) -> Option<Arc<Token>> {
        self.token.borrow().clone()
    }

    /// Whether a request with these fields bypasses maintenance.
    pub(in crate::gate) fn admits(&self, fields: Fields<'_>, now: Timestamp) -> bool {
        let mut values = fields.all(HEADER).peekable();
        let mut lines = fields.all("cookie").peekable();
        if values.peek().is_none() && lines.peek().is_none() {
            return false;
        }
        let Some(token) = self.token() else { return false };
        let mut cookies = lines.flat_map(|line| line.split(|byte| *byte == b';')).filter_map(own_cookie);
        values.any(|value| token.is(value)) || cookies.any(|cookie| token.signed(cookie, now))
    }

    /// Whether the application has no say in this path.
    pub(in crate::gate) fn owns(path: &str) -> bool {
        path.strip_prefix(OWN).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The fields of the response to a visit with the right token: a cookie, and a redirect. `None` with any other token.
    pub(in crate::gate) fn visit(&self, head: &Head<'_>, now: Timestamp) -> Option<HeaderMap> {
        let candidate = head.path.strip_prefix(OWN)?.strip_prefix('/')?;
        // No token has a slash: one at the end was added on the way.
        let candidate = candidate.strip_suffix('/').unwrap_or(candidate);
        let token = self.token().filter(|_| matches!(head.method, "GET" | "HEAD"))?;
        if !token.is(candidate.as_bytes()) {
            return None;
        }
        let value = token.cookie(now.checked_add(COOKIE_AGE).ok()?);
        let secure = if is_https(head) { "; Secure" } else { "" };
        let age = COOKIE_AGE.as_secs();
        let cookie = format!("{COOKIE_NAME}={value}; Max-Age={age}; Path=/; HttpOnly; SameSite=Lax{secure}");
        let mut headers = HeaderMap::new();
        headers.insert(SET_COOKIE, HeaderValue::try_from(cookie).ok()?);
        headers.insert(LOCATION, HeaderValue::from_static("/"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        Some(headers)
    }

    /// Leaves out what is meant for the gate: the application need not know the token, and could not keep it secret.
    pub(in crate::gate) fn filter(name: &str, value: &[u8]) -> Filtered {
        if name.eq_ignore_ascii_case(HEADER) {
            return Filtered::Drop;
        }
        if !name.eq_ignore_ascii_case("cookie") {
            return Filtered::Keep;
        }
        let mut pairs = value.split(|byte| *byte == b';');
        if pairs.clone().all(|pair| own_cookie(pair).is_none()) {
            return Filtered::Keep;
        }
        let kept: Vec<&[u8]> = pairs.by_ref().filter(|pair| own_cookie(pair).is_none()).collect();
        match kept.join(&b';').trim_ascii_start() {
            [] => Filtered::Drop,
            kept => Filtered::Replace(kept.to_vec()),
        }
    }
}

fn read(path: &Path) -> Result<Arc<Token>, TokenFileError> {
    let bytes =
        reload::read(path, FILE_SIZE).map_err(|source| TokenFileError::Read { file: path.to_owned(), source })?;
    let token = Token::read(&bytes).map_err(|source| TokenFileError::Token { file: path.to_owned(), source })?;
    Ok(Arc::new(token))
}

/// The value of a cookie, if it is the one that was set here.
fn own_cookie(pair: &[u8]) -> Option<&[u8]> {
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    (pair[..equals].trim_ascii() == COOKIE_NAME.as_bytes()).then(|| pair[equals + 1..].trim_ascii())
}

/// Whether the client came by TLS, as whoever ended it says: the first in a list is the one next to the client. A client
/// that lies about this makes only its own cookie useless.
fn is_https(head: &Head<'_>) -> bool {
    let first = head.fields.get("x-forwarded-proto").and_then(|said| said.split(|byte| *byte == b',').next());
    first.map_or(head.is_https, |first| first.trim_ascii().eq_ignore_ascii_case(b"https"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use http::header::{COOKIE, HeaderName};
    use proptest::prelude::*;

    use crate::proxy::headers::Sink;

    const TOKEN: &str = "0123456789abcdef";

    fn bypass() -> Bypass {
        let token = Token::read(TOKEN.as_bytes()).unwrap();
        Bypass { token: watch::channel(Some(Arc::new(token))).1 }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    fn visit(method: &str, path: &str, lines: &[(&'static str, &str)]) -> Option<HeaderMap> {
        let mut request = Request::builder().method(method).uri(path).body(()).unwrap();
        *request.headers_mut() = headers(lines);
        bypass().visit(&Head::of(&request, false), at(1000))
    }

    fn admits(bypass: &Bypass, lines: &[(&'static str, &str)], second: i64) -> bool {
        bypass.admits(Fields::Map(&headers(lines)), at(second))
    }

    /// The fields that the application receives.
    fn filtered(sent: &HeaderMap) -> HeaderMap {
        let mut passed = HeaderMap::new();
        for (name, value) in sent {
            match Bypass::filter(name.as_str(), value.as_bytes()) {
                Filtered::Keep => passed.field(name.as_str(), value.as_bytes()),
                Filtered::Drop => {}
                Filtered::Replace(value) => passed.field(name.as_str(), &value),
            }
        }
        passed
    }

    #[test]
    fn a_visit_with_the_token_gets_a_cookie() {
        let path = format!("/.pitstop/{TOKEN}");
        let answer = visit("GET", &path, &[]).unwrap();
        let expected = [("location", "/"), ("cache-control", "no-store"), ("referrer-policy", "no-referrer")];
        for (name, value) in expected {
            assert_eq!(answer[name], value);
        }
        let cookie = answer[SET_COOKIE].to_str().unwrap();
        let (pair, attributes) = cookie.split_once("; ").unwrap();
        assert_eq!(attributes, "Max-Age=43200; Path=/; HttpOnly; SameSite=Lax");
        assert!(admits(&bypass(), &[("cookie", pair)], 1000 + 43199));
        assert!(!admits(&bypass(), &[("cookie", pair)], 1000 + 43200));
        assert!(visit("HEAD", &format!("{path}?x=y"), &[]).is_some());
        assert!(visit("GET", &format!("{path}/"), &[]).is_some(), "as it comes from some clipboards");
        for (proto, secure) in
            [("https", true), ("HTTPS , http", true), ("http", false), ("http, https", false), ("", false)]
        {
            let answer = visit("GET", &path, &[("x-forwarded-proto", proto)]).unwrap();
            assert_eq!(answer[SET_COOKIE].to_str().unwrap().ends_with("; Secure"), secure, "{proto}");
        }
        let answer = visit("GET", &format!("https://shop{path}"), &[]).unwrap();
        assert!(answer[SET_COOKIE].to_str().unwrap().ends_with("; Secure"));
    }

    #[test]
    fn any_other_visit_gets_none() {
        for path in [
            "/.pitstop",
            "/.pitstop/",
            "/.pitstop/0123456789abcde",
            "/.pitstop/0123456789abcdef//",
            "/.pitstop//0123456789abcdef",
            "/.pitstop/0123456789abcdef/x",
            "/.pitstop/%30123456789abcdef",
        ] {
            assert!(Bypass::owns(path), "{path}");
            assert!(visit("GET", path, &[]).is_none(), "{path}");
        }
        assert!(visit("POST", &format!("/.pitstop/{TOKEN}"), &[]).is_none());
        for path in ["/", "/.pitstops", "/x/.pitstop/", "//.pitstop/", "/.Pitstop/"] {
            assert!(!Bypass::owns(path), "{path}");
        }
    }

    #[test]
    fn who_bypasses() {
        let signed = Token::read(TOKEN.as_bytes()).unwrap().cookie(at(2000));
        let own = format!("pitstop-bypass={signed}");
        let table: &[(&[(&'static str, &str)], bool)] = &[
            (&[], false),
            (&[("pitstop-bypass", TOKEN)], true),
            (&[("pitstop-bypass", "wrong"), ("pitstop-bypass", TOKEN)], true),
            (&[("pitstop-bypass", "")], false),
            (&[("pitstop-bypass", &signed)], false),
            (&[("cookie", &own)], true),
            (&[("cookie", &format!("a=1;{own};b=2"))], true),
            (&[("cookie", "a=1"), ("cookie", &own)], true),
            (&[("cookie", &format!("pitstop-bypass=old; {own}"))], true),
            (&[("cookie", &format!("x{own}"))], false),
            (&[("cookie", &format!("Pitstop-Bypass={signed}"))], false),
            (&[("cookie", &format!("pitstop-bypass={TOKEN}"))], false),
            (&[("cookie", &format!("pitstop-bypass={signed}x"))], false),
        ];
        for (lines, expected) in table {
            assert_eq!(admits(&bypass(), lines, 1000), *expected, "{lines:?}");
        }
        let gone = Bypass { token: watch::channel(None).1 };
        assert!(!admits(&gone, &[("pitstop-bypass", TOKEN), ("cookie", &own)], 1000));
        assert!(!admits(&gone, &[("pitstop-bypass", "")], 1000));
    }

    #[test]
    fn the_application_gets_the_other_cookies_as_they_are() {
        let table: &[(&[&str], &[&str])] = &[
            (&["a=1"], &["a=1"]),
            (&["a=1 ;b=\"2\";;  c ;"], &["a=1 ;b=\"2\";;  c ;"]),
            (&["pitstop-bypass=x"], &[]),
            (&["pitstop-bypass="], &[]),
            (&["a=1; pitstop-bypass=x"], &["a=1"]),
            (&["pitstop-bypass=x; a=1"], &["a=1"]),
            (&["a=1; pitstop-bypass=x; b=2"], &["a=1; b=2"]),
            (&["a=1;pitstop-bypass =x;b=2; pitstop-bypass=y;c"], &["a=1;b=2;c"]),
            (&["a=1", "pitstop-bypass=x", "b=2"], &["a=1", "b=2"]),
            (&["pitstop-bypass=x", "pitstop-bypass=y"], &[]),
            (
                &["pitstop-bypassed=1; xpitstop-bypass=2; pitstop-bypass"],
                &["pitstop-bypassed=1; xpitstop-bypass=2; pitstop-bypass"],
            ),
        ];
        for (before, after) in table {
            let mut sent = HeaderMap::new();
            sent.insert("x-other", HeaderValue::from_static("1"));
            sent.insert(HEADER, HeaderValue::from_static(TOKEN));
            before.iter().for_each(|line| _ = sent.append(COOKIE, HeaderValue::from_str(line).unwrap()));
            let sent = filtered(&sent);
            let kept: Vec<_> = sent.get_all(COOKIE).iter().map(|line| line.to_str().unwrap()).collect();
            assert_eq!(&kept, after, "{before:?}");
            assert!(!sent.contains_key(HEADER) && sent.contains_key("x-other"));
        }
        let mut sent = HeaderMap::new();
        sent.insert(COOKIE, HeaderValue::from_bytes(b"a=\xff\x80; pitstop-bypass=\xfe; b=\xc3").unwrap());
        let sent = filtered(&sent);
        assert_eq!(sent[COOKIE].as_bytes(), b"a=\xff\x80; b=\xc3");
    }

    proptest! {
        #[test]
        fn no_own_cookie_is_left_and_no_other_lost(pairs in proptest::collection::vec("[ab= ]{0,4}|pitstop-bypass=[a-z;=]{0,5}", 0..6)) {
            let line = pairs.join(";");
            let sent = filtered(&headers(&[("cookie", &line)]));
            let others = |line: &str| {
                let pairs = line.split(';').filter(|pair| own_cookie(pair.as_bytes()).is_none());
                pairs.map(|pair| pair.trim().to_owned()).filter(|pair| !pair.is_empty()).collect::<Vec<_>>()
            };
            let kept = sent.get(COOKIE).map(|line| line.to_str().unwrap()).unwrap_or_default();
            prop_assert_eq!(others(kept), others(&line));
            prop_assert!(kept.split(';').all(|pair| own_cookie(pair.as_bytes()).is_none()));
        }
    }
}
