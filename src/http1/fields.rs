//! Rules that request and response heads share: limits, lists, lengths and codings.

use std::mem::MaybeUninit;

use super::Version;
use super::error::HeadError;

/// A field line: its name as sent, and its value without surrounding white space (RFC 9112 §5).
pub type Field<'b> = httparse::Header<'b>;

/// A head may have this many fields. Other servers stop at 100, which some applications exceed together with the proxies
/// in front of them.
pub const LIMIT: usize = 256;

/// Room for the fields of one head.
#[derive(Debug)]
pub struct Storage<'b> {
    /// Not initialized: that would cost more than to parse a usual head.
    pub(super) lines: [MaybeUninit<Field<'b>>; LIMIT],
    pub(super) kinds: [Kind; LIMIT],
}

/// Empty room for the fields of one head.
#[must_use]
pub fn storage<'b>() -> Storage<'b> {
    Storage { lines: [const { MaybeUninit::uninit() }; LIMIT], kinds: [Kind::Other; LIMIT] }
}

/// A field that has a meaning to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `Connection`.
    Connection,
    /// `Content-Length`.
    ContentLength,
    /// `Cookie`.
    Cookie,
    /// `Date`.
    Date,
    /// `Expect`.
    Expect,
    /// `X-Forwarded-For`.
    ForwardedFor,
    /// `X-Forwarded-Host`.
    ForwardedHost,
    /// `X-Forwarded-Proto`.
    ForwardedProto,
    /// `Host`.
    Host,
    /// `HTTP2-Settings`.
    Http2Settings,
    /// `Keep-Alive`.
    KeepAlive,
    /// `Proxy-Connection`.
    ProxyConnection,
    /// `TE`.
    Te,
    /// `Transfer-Encoding`.
    TransferEncoding,
    /// `Upgrade`.
    Upgrade,
    /// Any other.
    Other,
}

impl Kind {
    /// The kind of the field with this name, in any case.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let name = name.as_bytes();
        match name.len() {
            2 if lower(name) == *b"te" => Self::Te,
            4 if lower(name) == *b"date" => Self::Date,
            4 if lower(name) == *b"host" => Self::Host,
            6 if lower(name) == *b"cookie" => Self::Cookie,
            6 if lower(name) == *b"expect" => Self::Expect,
            7 if lower(name) == *b"upgrade" => Self::Upgrade,
            10 if lower(name) == *b"connection" => Self::Connection,
            10 if lower(name) == *b"keep-alive" => Self::KeepAlive,
            14 if lower(name) == *b"content-length" => Self::ContentLength,
            14 if lower(name) == *b"http2-settings" => Self::Http2Settings,
            15 if lower(name) == *b"x-forwarded-for" => Self::ForwardedFor,
            16 if lower(name) == *b"proxy-connection" => Self::ProxyConnection,
            16 if lower(name) == *b"x-forwarded-host" => Self::ForwardedHost,
            17 if lower(name) == *b"transfer-encoding" => Self::TransferEncoding,
            17 if lower(name) == *b"x-forwarded-proto" => Self::ForwardedProto,
            _ => Self::Other,
        }
    }

    fn bit(self) -> u16 {
        1 << self as u16
    }

    /// The name in lower case; empty for [`Kind::Other`].
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::ContentLength => "content-length",
            Self::Cookie => "cookie",
            Self::Date => "date",
            Self::Expect => "expect",
            Self::ForwardedFor => "x-forwarded-for",
            Self::ForwardedHost => "x-forwarded-host",
            Self::ForwardedProto => "x-forwarded-proto",
            Self::Host => "host",
            Self::Http2Settings => "http2-settings",
            Self::KeepAlive => "keep-alive",
            Self::ProxyConnection => "proxy-connection",
            Self::Te => "te",
            Self::TransferEncoding => "transfer-encoding",
            Self::Upgrade => "upgrade",
            Self::Other => "",
        }
    }
}

/// A name of this length in lower case, in registers: a loop over its characters would take longer than all else that is done
/// with it. Besides upper case, only characters that no name has change (RFC 9110 §5.6.2).
fn lower<const N: usize>(name: &[u8]) -> [u8; N] {
    name.first_chunk().map_or([0; N], |name| name.map(|byte| byte | 0x20))
}

/// The field lines of a head, in order. Their kinds are determined once, so that asking for a field that is absent, as most
/// are, costs next to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lines<'h, 'b> {
    lines: &'h [Field<'b>],
    kinds: &'h [Kind],
    all_kinds: u16,
}

impl<'h, 'b> Lines<'h, 'b> {
    /// These lines. `kinds` is room for what kind each of them is.
    #[must_use]
    pub fn new(lines: &'h [Field<'b>], kinds: &'h mut [Kind; LIMIT]) -> Self {
        let mut all_kinds = 0;
        for (kind, line) in kinds.iter_mut().zip(lines) {
            *kind = Kind::of(line.name);
            all_kinds |= kind.bit();
        }
        Self { lines, kinds: &kinds[..lines.len()], all_kinds }
    }

    /// Whether a line of this kind is among them.
    #[must_use]
    pub fn has(self, kind: Kind) -> bool {
        self.all_kinds & kind.bit() != 0
    }

    /// All lines.
    #[must_use]
    pub fn all(self) -> &'h [Field<'b>] {
        self.lines
    }

    /// What kind each of the lines is.
    #[must_use]
    pub fn kinds(self) -> &'h [Kind] {
        self.kinds
    }

    /// The values of all lines of this kind.
    pub fn values(self, kind: Kind) -> impl Iterator<Item = &'b [u8]> {
        let kinds = if self.has(kind) { self.kinds } else { &[] };
        let lines = kinds.iter().zip(self.lines);
        lines.filter(move |(line, _)| **line == kind).map(|(_, line)| line.value)
    }

    /// Whether any line of this kind lists the token, in any case and with any parameters.
    #[must_use]
    pub fn list(self, kind: Kind, token: &str) -> bool {
        self.values(kind).any(|list| has_token(list, token))
    }
}

/// The elements of a comma-separated list, without surrounding white space and without empty ones (RFC 9110 §5.6.1).
pub fn elements(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// Whether a list has this token, in any case and with any parameters.
#[must_use]
pub fn has_token(list: &[u8], token: &str) -> bool {
    elements(list).any(|element| {
        let name = element.split(|byte| *byte == b';').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(token.as_bytes())
    })
}

/// Parses `Content-Length`, in bytes. `None` if there is none.
///
/// # Errors
///
/// [`HeadError::ContentLength`]: anything but digits, more than 2⁶⁴ − 1, or values that differ. Equal values are accepted
/// in neither form (`7, 7` or two lines), though RFC 9112 §6.3 allows it: recipients disagree about them.
pub fn content_length(fields: Lines<'_, '_>) -> Result<Option<u64>, HeadError> {
    let mut values = fields.values(Kind::ContentLength);
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() || value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(HeadError::ContentLength);
    }
    // Digits are UTF-8.
    let number = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
    number.map(Some).ok_or(HeadError::ContentLength)
}

/// Whether the message is chunked.
///
/// # Errors
///
/// Anything but a single `chunked` on a single line. [`HeadError::Coding`]: there is another coding, which would have to be
/// undone here. [`HeadError::TransferEncoding`]: `chunked` is repeated, which is one coding to some recipients and two to
/// others, or not the last, or the list has an empty element.
pub fn is_chunked(fields: Lines<'_, '_>) -> Result<bool, HeadError> {
    if !fields.has(Kind::TransferEncoding) {
        return Ok(false);
    }
    let codings = || {
        let lists = fields.values(Kind::TransferEncoding);
        lists.flat_map(|list| list.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
    };
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let chunked = codings().filter(|coding| is_chunked(coding)).count();
    match codings().last().is_some_and(is_chunked) {
        true if chunked > 1 || codings().any(<[u8]>::is_empty) => Err(HeadError::TransferEncoding),
        true if codings().count() == 1 => Ok(true),
        true => Err(HeadError::Coding),
        false => Err(HeadError::TransferEncoding),
    }
}

/// Whether the connection persists after the message. `close` wins over `keep-alive` (RFC 9112 §9.3).
#[must_use]
pub fn persists(fields: Lines<'_, '_>, version: Version) -> bool {
    let lists = |token| fields.list(Kind::Connection, token);
    !lists("close") && (version == Version::Http11 || lists("keep-alive"))
}

/// Checks that every line of a head ends in CR LF: httparse takes a lone LF for the end of a line, others do not.
pub(super) fn check_line_ends(head: &[u8]) -> Result<(), HeadError> {
    let is_lone = |at: usize| at == 0 || head[at - 1] != b'\r';
    if memchr::memchr_iter(b'\n', head).any(is_lone) { Err(HeadError::LineEnd) } else { Ok(()) }
}

/// What has arrived of a head, up to the limit. What follows is never looked at, so that the result is the same however the
/// head arrives.
pub(super) fn within(input: &[u8], limit: usize) -> &[u8] {
    &input[..input.len().min(limit)]
}

/// Checks what has arrived of a head that is not complete.
pub(super) fn check_partial(input: &[u8], limit: usize) -> Result<(), HeadError> {
    if input.len() >= limit { Err(HeadError::TooLarge) } else { Ok(()) }
}

/// The start line, once it is complete. Empty lines may precede it (RFC 9112 §2.2).
pub(super) fn start_line(input: &[u8]) -> Option<&[u8]> {
    let start = input.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let end = input[start..].iter().position(|byte| *byte == b'\n')?;
    Some(input[start..start + end].trim_ascii_end())
}

/// Appends a field line to a head.
pub fn encode(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields<'b>(lines: &[(&'b str, &'b str)]) -> Vec<Field<'b>> {
        lines.iter().map(|(name, value)| Field { name, value: value.as_bytes() }).collect()
    }

    #[test]
    fn knows_each_kind_by_its_name_alone() {
        use Kind::*;
        let kinds = [
            Connection,
            ContentLength,
            Cookie,
            Date,
            Expect,
            ForwardedFor,
            ForwardedHost,
            ForwardedProto,
            Host,
            Http2Settings,
            KeepAlive,
            ProxyConnection,
            Te,
            TransferEncoding,
            Upgrade,
        ];
        for kind in kinds {
            let name = kind.name();
            assert_eq!(Kind::of(name), kind);
            assert_eq!(Kind::of(&name.to_ascii_uppercase()), kind);
            for at in 0..name.len() {
                let mut other = name.to_owned();
                other.replace_range(at..=at, "_");
                assert_eq!(Kind::of(&other), Other, "{other}");
                assert_eq!(Kind::of(&name[..at]), Other, "{name} cut at {at}");
            }
            let fields = [Field { name: "a", value: b"1" }, Field { name, value: b"2" }];
            for other in kinds {
                assert_eq!(Lines::new(&fields, &mut [Other; LIMIT]).has(other), other == kind);
                assert_eq!(Lines::new(&fields, &mut [Other; LIMIT]).values(other).count(), usize::from(other == kind));
            }
        }
        assert_eq!((Kind::of(""), Kind::of("user-agent"), Other.name()), (Other, Other, ""));
    }

    #[test]
    fn finds_tokens_in_lists() {
        let table: &[(&[(&str, &str)], bool)] = &[
            (&[], false),
            (&[("Connection", "close")], true),
            (&[("connection", "Keep-Alive, CLOSE")], true),
            (&[("connection", "keep-alive"), ("CONNECTION", ",, close ;x=1")], true),
            (&[("connection", "closed")], false),
            (&[("connection", "x;close")], false),
            (&[("x-connection", "close")], false),
        ];
        for (lines, expected) in table {
            assert_eq!(
                Lines::new(&fields(lines), &mut [Kind::Other; LIMIT]).list(Kind::Connection, "close"),
                *expected,
                "{lines:?}"
            );
        }
    }

    #[test]
    fn accepts_one_content_length_of_digits() {
        let length = |values: &[&'static str]| {
            let lines = values.iter().map(|v| Field { name: "Content-Length", value: v.as_bytes() });
            content_length(Lines::new(&lines.collect::<Vec<_>>(), &mut [Kind::Other; LIMIT]))
        };
        assert_eq!(length(&[]), Ok(None));
        for (text, number) in [("0", 0), ("42", 42), ("007", 7), ("18446744073709551615", u64::MAX)] {
            assert_eq!(length(&[text]), Ok(Some(number)));
        }
        for text in ["", "-1", "+1", "1 2", "1,1", "1, 1", "0x10", "1.0", "18446744073709551616", "١"] {
            assert_eq!(length(&[text]), Err(HeadError::ContentLength), "{text}");
        }
        assert_eq!(length(&["1", "1"]), Err(HeadError::ContentLength));
        assert_eq!(length(&["1", "2"]), Err(HeadError::ContentLength));
    }

    #[test]
    fn accepts_no_coding_but_a_single_chunked() {
        let chunked = |values: &[&'static str]| {
            let lines = values.iter().map(|v| Field { name: "transfer-ENCODING", value: v.as_bytes() });
            is_chunked(Lines::new(&lines.collect::<Vec<_>>(), &mut [Kind::Other; LIMIT]))
        };
        assert_eq!(chunked(&[]), Ok(false));
        assert_eq!(chunked(&["chunked"]), Ok(true));
        assert_eq!(chunked(&["Chunked"]), Ok(true));
        let table: &[(&[&'static str], HeadError)] = &[
            (&["gzip"], HeadError::TransferEncoding),
            (&["identity"], HeadError::TransferEncoding),
            (&["gzip, chunked"], HeadError::Coding),
            (&["gzip", "chunked"], HeadError::Coding),
            (&["chunked;q=1"], HeadError::TransferEncoding),
            (&["xchunked"], HeadError::TransferEncoding),
            (&["\"chunked\""], HeadError::TransferEncoding),
            (&["chunked\u{b}"], HeadError::TransferEncoding),
            (&[""], HeadError::TransferEncoding),
            (&[",chunked"], HeadError::TransferEncoding),
            (&["chunked,"], HeadError::TransferEncoding),
            (&["chunked", ""], HeadError::TransferEncoding),
            (&["gzip,"], HeadError::TransferEncoding),
            (&["chunked, chunked"], HeadError::TransferEncoding),
            (&["chunked", "chunked"], HeadError::TransferEncoding),
            (&["chunked, gzip"], HeadError::TransferEncoding),
            (&["chunked", "gzip"], HeadError::TransferEncoding),
            (&["gzip, chunked, chunked"], HeadError::TransferEncoding),
        ];
        for (codings, error) in table {
            assert_eq!(chunked(codings), Err(*error), "{codings:?}");
        }
    }

    #[test]
    fn close_wins_over_keep_alive() {
        use Version::{Http10, Http11};
        let table = [
            (Http11, &[][..], true),
            (Http11, &["keep-alive"], true),
            (Http11, &["close"], false),
            (Http11, &["keep-alive, Close"], false),
            (Http11, &["close", "keep-alive"], false),
            (Http10, &[], false),
            (Http10, &["x"], false),
            (Http10, &["Keep-Alive"], true),
            (Http10, &["keep-alive", "close"], false),
            (Http10, &["close, keep-alive"], false),
        ];
        for (version, values, expected) in table {
            let fields: Vec<_> = values.iter().map(|v| Field { name: "Connection", value: v.as_bytes() }).collect();
            assert_eq!(
                persists(Lines::new(&fields, &mut [Kind::Other; LIMIT]), version),
                expected,
                "{version:?} {values:?}"
            );
        }
    }

    #[test]
    fn finds_the_start_line_after_empty_ones() {
        for (input, line) in [
            ("", None),
            ("\r\n", None),
            ("GET", None),
            ("GET /\r", None),
            ("GET /\r\nHost", Some("GET /")),
            ("\r\n\r\nGET /\n", Some("GET /")),
        ] {
            assert_eq!(start_line(input.as_bytes()), line.map(str::as_bytes), "{input:?}");
        }
    }

    #[test]
    fn writes_field_lines() {
        let mut out = b"a: b\r\n".to_vec();
        encode(&mut out, b"Host", b"shop");
        assert_eq!(out, b"a: b\r\nHost: shop\r\n");
    }
}
