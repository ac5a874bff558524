//! Rules that request and response heads share: limits, lists, lengths and codings.

use std::mem::MaybeUninit;

use super::Version;
use super::error::HeadError;

/// A field line: its name as sent, and its value without surrounding white space (RFC 9112 §5).
pub type Field<'b> = httparse::Header<'b>;

/// A head may have this many fields. Other servers stop at 100, which some applications exceed together with the proxies
/// in front of them.
pub const LIMIT: usize = 256;

/// Room for the fields of one head. It is not initialized: that would cost more than to parse a usual head.
pub type Storage<'b> = [MaybeUninit<Field<'b>>; LIMIT];

/// Empty room for the fields of one head.
#[must_use]
pub fn storage<'b>() -> Storage<'b> {
    [const { MaybeUninit::uninit() }; LIMIT]
}

/// The values of all fields with this name, which is compared without regard to case.
pub fn values<'f>(fields: &'f [Field<'f>], name: &'f str) -> impl Iterator<Item = &'f [u8]> {
    fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
}

/// The elements of a comma-separated list, without surrounding white space and without empty ones (RFC 9110 §5.6.1).
pub fn elements(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// Whether any field with this name lists the token, in any case and with any parameters.
#[must_use]
pub fn lists(fields: &[Field<'_>], name: &str, token: &str) -> bool {
    values(fields, name).any(|list| has_token(list, token))
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
pub fn content_length(fields: &[Field<'_>]) -> Result<Option<u64>, HeadError> {
    let mut values = values(fields, "content-length");
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
pub fn is_chunked(fields: &[Field<'_>]) -> Result<bool, HeadError> {
    // Nearly all messages.
    if values(fields, "transfer-encoding").next().is_none() {
        return Ok(false);
    }
    let codings = || {
        let lists = values(fields, "transfer-encoding");
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
pub fn persists(fields: &[Field<'_>], version: Version) -> bool {
    let lists = |token| lists(fields, "connection", token);
    !lists("close") && (version == Version::Http11 || lists("keep-alive"))
}

/// Checks that every line of a head ends in CR LF: httparse takes a lone LF for the end of a line, others do not.
pub(super) fn check_line_ends(head: &[u8]) -> Result<(), HeadError> {
    let mut before = 0;
    for &byte in head {
        if byte == b'\n' && before != b'\r' {
            return Err(HeadError::LineEnd);
        }
        before = byte;
    }
    Ok(())
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
            assert_eq!(lists(&fields(lines), "connection", "close"), *expected, "{lines:?}");
        }
    }

    #[test]
    fn accepts_one_content_length_of_digits() {
        let length = |values: &[&'static str]| {
            content_length(
                &values.iter().map(|v| Field { name: "Content-Length", value: v.as_bytes() }).collect::<Vec<_>>(),
            )
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
            is_chunked(
                &values.iter().map(|v| Field { name: "transfer-ENCODING", value: v.as_bytes() }).collect::<Vec<_>>(),
            )
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
            assert_eq!(persists(&fields, version), expected, "{version:?} {values:?}");
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
