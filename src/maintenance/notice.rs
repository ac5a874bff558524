//! The text of the maintenance file: the reason and the trailers.

use jiff::Timestamp;

use super::plain::one_line;

/// How much of the file is read, in bytes. The rest is ignored.
pub const LIMIT: usize = 16 * 1024;

const UNTIL: &str = "Until";

/// The parsed text of a maintenance file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// The reason: the text without known trailers and trailing white space. `None` if nothing printable is left.
    pub reason: Option<String>,
    /// The trailer `Until`: when maintenance is expected to end.
    pub until: Option<Timestamp>,
}

impl Notice {
    /// Reads the bytes of a maintenance file.
    ///
    /// It never fails. Invalid UTF-8 is replaced, a text longer than [`LIMIT`] is truncated at a character, and an
    /// unreadable trailer stays part of the reason.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        // A byte order mark, from an editor on Windows.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        if bytes.len() > LIMIT {
            // The last paragraph, which may hold trailers, is beyond the limit.
            return Self { reason: non_blank(&line_feeds(&String::from_utf8_lossy(truncate(bytes)))), until: None };
        }
        let text = String::from_utf8_lossy(bytes);
        let text = &line_feeds(text.trim_end());
        let mut until = None;
        let mut reason = String::with_capacity(text.len());
        let (body, trailers) = split_trailers(text);
        reason.push_str(body);
        for line in trailers.split_inclusive('\n') {
            match expected_end(line) {
                Some(time) => until = Some(time),
                None => reason.push_str(line),
            }
        }
        Self { reason: non_blank(&reason), until }
    }

    /// The text of a file from which [`Notice::parse`] reads this notice. It does not end in a line break, because
    /// fietsboek shows every byte of the file.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = self.reason.clone().unwrap_or_default();
        if let Some(until) = self.until {
            if !text.is_empty() {
                // If the reason ends in a paragraph of other trailers, this one joins it: only the last paragraph counts.
                text.push_str(if split_trailers(&text).1.is_empty() { "\n\n" } else { "\n" });
            }
            text.push_str(&format!("{UNTIL}: {until}"));
        }
        text
    }
}

/// The first [`LIMIT`] bytes, without a character that crosses the limit.
fn truncate(bytes: &[u8]) -> &[u8] {
    let head = &bytes[..LIMIT];
    match (1..=3).find(|back| head[LIMIT - back] >= 0b1100_0000) {
        Some(back) if width(head[LIMIT - back]) > back => &head[..LIMIT - back],
        _ => head,
    }
}

/// The length in bytes of the character that begins with this byte.
fn width(lead: u8) -> usize {
    match lead {
        0b1111_0000.. => 4,
        0b1110_0000.. => 3,
        0b1100_0000.. => 2,
        _ => 1,
    }
}

/// With CR LF as LF, which ends a line everywhere but on Windows.
fn line_feeds(text: &str) -> String {
    text.replace("\r\n", "\n")
}

fn non_blank(text: &str) -> Option<String> {
    let text = text.trim_end();
    (!one_line(text).is_empty()).then(|| text.to_owned())
}

/// Splits off the last paragraph if every line in it is a trailer, as defined by git-interpret-trailers(1).
fn split_trailers(text: &str) -> (&str, &str) {
    let mut start = text.len();
    for line in text.split_inclusive('\n').rev() {
        if line.trim().is_empty() {
            break;
        }
        if trailer(line).is_none() {
            return (text, "");
        }
        start -= line.len();
    }
    text.split_at(start)
}

/// `Token: value`: letters, digits and hyphens, then a colon and a space.
fn trailer(line: &str) -> Option<(&str, &str)> {
    let (token, value) = line.split_once(':')?;
    let is_token = !token.is_empty() && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    (is_token && value.starts_with([' ', '\t'])).then(|| (token, value.trim()))
}

fn expected_end(line: &str) -> Option<Timestamp> {
    let (token, value) = trailer(line)?;
    token.eq_ignore_ascii_case(UNTIL).then(|| value.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> (Option<String>, Option<String>) {
        let notice = Notice::parse(text.as_bytes());
        (notice.reason, notice.until.map(|t| t.to_string()))
    }

    #[test]
    fn texts_and_trailers() {
        let end = "2026-11-22T18:00:00Z";
        let table: &[(&str, Option<&str>, Option<&str>)] = &[
            ("", None, None),
            (" \n\t\n", None, None),
            ("\0\u{1b}\n\u{202e}\u{9b}", None, None),
            ("Updating\n", Some("Updating"), None),
            ("  indented stays \r\n\n", Some("  indented stays"), None),
            ("Updating\n\nUntil: 2026-11-22T18:00:00Z\n", Some("Updating"), Some(end)),
            ("Updating\n\nuntil:  2026-11-22T19:00:00+01:00", Some("Updating"), Some(end)),
            ("Until: 2026-11-22T18:00:00Z", None, Some(end)),
            ("Updating\n\nUntil: soon", Some("Updating\n\nUntil: soon"), None),
            ("Updating\nUntil: 2026-11-22T18:00:00Z", Some("Updating\nUntil: 2026-11-22T18:00:00Z"), None),
            ("Until: 2026-11-22T18:00:00Z\n\nUpdating", Some("Until: 2026-11-22T18:00:00Z\n\nUpdating"), None),
            ("A\n\nBy: me\nUntil: 2026-11-22T18:00:00Z\nTicket: 7", Some("A\n\nBy: me\nTicket: 7"), Some(end)),
            ("A\n\nUntil: 2026-01-01T00:00:00Z\nUntil: 2026-11-22T18:00:00Z", Some("A"), Some(end)),
            ("Back at 18:00", Some("Back at 18:00"), None),
            ("See https://example.org", Some("See https://example.org"), None),
            (
                "\u{feff}Updating\r\nthe instance\r\n\r\nUntil: 2026-11-22T18:00:00Z\r\n",
                Some("Updating\nthe instance"),
                Some(end),
            ),
            ("a\rb\u{feff}", Some("a\rb\u{feff}"), None),
        ];
        for (text, reason, until) in table {
            assert_eq!(parse(text), (reason.map(str::to_owned), until.map(str::to_owned)), "{text:?}");
        }
    }

    #[test]
    fn invalid_utf8_is_read_lossily() {
        assert_eq!(Notice::parse(b"a\xffb\n").reason.as_deref(), Some("a\u{fffd}b"));
    }

    #[test]
    fn a_long_text_is_truncated_at_a_character() {
        for (character, length) in [("a", 1), ("é", 2), ("€", 3), ("😀", 4)] {
            for shift in 0..4 {
                let text = "x".repeat(shift) + &character.repeat(LIMIT);
                let reason = Notice::parse(text.as_bytes()).reason.unwrap();
                assert!(text.starts_with(&reason), "{character} after {shift}");
                assert!(reason.len() <= LIMIT && reason.len() > LIMIT - length, "{character} after {shift}");
            }
        }
        assert_eq!(Notice::parse(&[b'a'; LIMIT]).reason.unwrap().len(), LIMIT);
        assert_eq!(Notice::parse(&[0x80; LIMIT + 1]).reason.unwrap(), "\u{fffd}".repeat(LIMIT));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(text in any::<String>(), until in proptest::option::of(0i64..4_000_000_000)) {
            let reason = Notice::parse(text.as_bytes()).reason;
            let notice = Notice { reason, until: until.map(|s| Timestamp::from_second(s).unwrap()) };
            // A reason may end in a paragraph that parses as a trailer.
            prop_assume!(Notice::parse(notice.reason.clone().unwrap_or_default().as_bytes()).until.is_none());
            prop_assert_eq!(Notice::parse(notice.to_text().as_bytes()), notice);
        }

        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let reason = Notice::parse(&bytes).reason;
            prop_assert!(reason.is_none_or(|r| !r.trim().is_empty()));
        }
    }
}
