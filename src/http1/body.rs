//! Bodies: decoding and encoding (RFC 9112 §6 and §7).

use std::io::Write;

use super::error::BodyError;
use super::fields::{self, Field};

/// All chunk extensions of a body may take this many bytes (RFC 9112 §7.1.1 asks for a limit).
pub const EXTENSIONS: usize = 16 * 1024;
/// A chunk size may have this many digits, with leading zeros. More would exceed 64 bits.
const SIZE_DIGITS: u8 = 16;
/// The trailer section of a body may take this many bytes.
pub const TRAILERS: usize = 16 * 1024;
/// A trailer section may have this many fields.
pub const TRAILER_FIELDS: usize = 64;

/// How the end of a body is found (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After this many bytes.
    Length(u64),
    /// By a chunk of size 0 (RFC 9112 §7.1).
    Chunked,
    /// With the connection. Of responses only.
    UntilClose,
}

/// Decodes one body. It is fed the input that was not consumed before, with more of it behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoder(State);

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes are left.
    Length(u64),
    UntilClose,
    Chunked {
        at: Chunk,
        extensions: usize,
    },
    Trailers,
    End,
}

/// Where in a chunked body the decoder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    /// Before the first digit of a size.
    Start,
    /// Within a size, after this many digits of it.
    Size(u64, u8),
    /// After a size, at this place of its extensions.
    Extension(u64, Extension),
    /// After the CR that ends the line with a size.
    SizeEnd(u64),
    /// So many bytes of the chunk are left.
    Data(u64),
    /// Before the CR that follows a chunk.
    DataEnd,
    /// Before the LF that follows a chunk.
    DataLineFeed,
}

/// Where in the extensions of a chunk the decoder is (RFC 9112 §7.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    /// In white space after the size. It may end the line: servers have padded sizes so.
    Padding,
    /// After a semicolon, before a name.
    Start,
    /// Within a name.
    Name,
    /// In white space after a name.
    NameEnd,
    /// After the equals sign, before a value.
    Equals,
    /// Within a value that is a token.
    Value,
    /// Within a quoted string.
    Quoted,
    /// After a backslash in a quoted string.
    Escaped,
    /// After a quoted string.
    QuotedEnd,
    /// In white space after a value.
    ValueEnd,
}

impl Extension {
    /// Whether the line may end here.
    fn may_end(self) -> bool {
        matches!(self, Self::Padding | Self::Name | Self::Value | Self::QuotedEnd)
    }

    /// Where the next byte leads. `None` if it breaks the grammar.
    fn next(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Quoted, b'"') => Self::QuotedEnd,
            (Self::Quoted, b'\\') => Self::Escaped,
            (Self::Quoted | Self::Escaped, b'\t' | b' '..=b'~' | 0x80..) => Self::Quoted,
            (Self::Padding | Self::Start | Self::NameEnd | Self::Equals | Self::ValueEnd, b' ' | b'\t') => self,
            (Self::Name, b' ' | b'\t') => Self::NameEnd,
            (Self::Value | Self::QuotedEnd, b' ' | b'\t') => Self::ValueEnd,
            (Self::Start | Self::Equals, b';') => return None,
            (_, b';') => Self::Start,
            (Self::Name | Self::NameEnd, b'=') => Self::Equals,
            (Self::Equals, b'"') => Self::Quoted,
            (Self::Start | Self::Name, byte) if is_token_byte(byte) => Self::Name,
            (Self::Equals | Self::Value, byte) if is_token_byte(byte) => Self::Value,
            _ => return None,
        })
    }
}

/// What the decoder found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'b> {
    /// A part of the body, never empty.
    Data(&'b [u8]),
    /// The trailer section, with the empty line that ends it, and the end of the body.
    Trailers(&'b [u8]),
    /// The end of the body.
    End,
    /// Nothing without more input.
    More,
}

impl Decoder {
    /// Decodes a body with this framing.
    #[must_use]
    pub fn new(framing: Framing) -> Self {
        Self(match framing {
            Framing::Length(0) => State::End,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Chunked { at: Chunk::Start, extensions: 0 },
            Framing::UntilClose => State::UntilClose,
        })
    }

    /// Whether the body has ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.0 == State::End
    }

    /// Whether the body may end here with the connection.
    #[must_use]
    pub fn may_end_with_connection(&self) -> bool {
        matches!(self.0, State::End | State::UntilClose)
    }

    /// Decodes the next piece of `input`, and returns how many bytes of it were consumed.
    ///
    /// # Errors
    ///
    /// See [`BodyError`].
    pub fn decode<'b>(&mut self, input: &'b [u8]) -> Result<(usize, Piece<'b>), BodyError> {
        match &mut self.0 {
            State::End => Ok((0, Piece::End)),
            State::UntilClose => Ok((input.len(), if input.is_empty() { Piece::More } else { Piece::Data(input) })),
            State::Length(left) => {
                let data = first(input, *left);
                *left -= data.len() as u64;
                if *left == 0 {
                    self.0 = State::End;
                }
                Ok((data.len(), if data.is_empty() { Piece::More } else { Piece::Data(data) }))
            }
            State::Chunked { .. } => self.decode_chunked(input),
            State::Trailers => self.decode_trailers(input),
        }
    }

    fn decode_chunked<'b>(&mut self, input: &'b [u8]) -> Result<(usize, Piece<'b>), BodyError> {
        let State::Chunked { at, extensions } = &mut self.0 else { return Ok((0, Piece::More)) };
        let mut consumed = 0;
        while let Some(&byte) = input.get(consumed) {
            if let Chunk::Data(left) = *at {
                let data = first(&input[consumed..], left);
                let left = left - data.len() as u64;
                *at = if left == 0 { Chunk::DataEnd } else { Chunk::Data(left) };
                return Ok((consumed + data.len(), Piece::Data(data)));
            }
            consumed += 1;
            *at = match (*at, byte) {
                (Chunk::Start, _) => Chunk::Size(digit(byte).ok_or(BodyError::ChunkSize)?, 1),
                (Chunk::Size(size, _), b'\r') => Chunk::SizeEnd(size),
                (Chunk::Size(size, _), b' ' | b'\t' | b';') => {
                    *extensions += 1;
                    let place = if byte == b';' { Extension::Start } else { Extension::Padding };
                    Chunk::Extension(size, place)
                }
                (Chunk::Size(_, SIZE_DIGITS), _) => return Err(BodyError::ChunkSize),
                (Chunk::Size(size, digits), _) => {
                    Chunk::Size(size * 16 + digit(byte).ok_or(BodyError::ChunkSize)?, digits + 1)
                }
                (Chunk::Extension(size, place), b'\r') if place.may_end() => Chunk::SizeEnd(size),
                (Chunk::Extension(size, place), _) => {
                    *extensions += 1;
                    Chunk::Extension(size, place.next(byte).ok_or(BodyError::Extension)?)
                }
                (Chunk::SizeEnd(0), b'\n') => {
                    self.0 = State::Trailers;
                    let (more, piece) = self.decode_trailers(&input[consumed..])?;
                    return Ok((consumed + more, piece));
                }
                (Chunk::SizeEnd(size), b'\n') => Chunk::Data(size),
                (Chunk::SizeEnd(_), _) => return Err(BodyError::ChunkSize),
                (Chunk::DataEnd, b'\r') => Chunk::DataLineFeed,
                (Chunk::DataLineFeed, b'\n') => Chunk::Start,
                (Chunk::DataEnd | Chunk::DataLineFeed, _) => return Err(BodyError::ChunkEnd),
                // Handled before.
                (Chunk::Data(left), _) => Chunk::Data(left),
            };
            if *extensions > EXTENSIONS {
                return Err(BodyError::Extensions);
            }
        }
        Ok((consumed, Piece::More))
    }

    /// Consumes the trailer section as a whole, once all of it is there.
    fn decode_trailers<'b>(&mut self, input: &'b [u8]) -> Result<(usize, Piece<'b>), BodyError> {
        if input.starts_with(b"\r\n") {
            self.0 = State::End;
            return Ok((2, Piece::End));
        }
        let length = input.windows(4).position(|bytes| bytes == b"\r\n\r\n").map(|start| start + 4);
        match length {
            Some(length) if length <= TRAILERS => {
                let section = &input[..length];
                parse_trailers(section, &mut [httparse::EMPTY_HEADER; TRAILER_FIELDS])?;
                self.0 = State::End;
                Ok((length, Piece::Trailers(section)))
            }
            None if input.len() < TRAILERS => Ok((0, Piece::More)),
            _ => Err(BodyError::TrailersTooLarge),
        }
    }
}

/// The first bytes of `input`, at most `limit` of them.
fn first(input: &[u8], limit: u64) -> &[u8] {
    &input[..usize::try_from(limit).unwrap_or(usize::MAX).min(input.len())]
}

fn digit(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}

/// Whether a token may contain this byte (RFC 9110 §5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Parses a trailer section that [`Piece::Trailers`] has found.
///
/// # Errors
///
/// [`BodyError::Trailers`]: a line is not a field. [`BodyError::TrailersTooLarge`]: there are more than `room` holds.
pub fn parse_trailers<'h, 'b>(section: &'b [u8], room: &'h mut [Field<'b>]) -> Result<&'h [Field<'b>], BodyError> {
    fields::check_line_ends(section).map_err(|_| BodyError::Trailers)?;
    match httparse::parse_headers(section, room) {
        Ok(httparse::Status::Complete((length, trailers))) if length == section.len() => Ok(trailers),
        Err(httparse::Error::TooManyHeaders) => Err(BodyError::TrailersTooLarge),
        _ => Err(BodyError::Trailers),
    }
}

/// Appends a chunk (RFC 9112 §7.1). Empty data is skipped: an empty chunk would end the body.
pub fn encode_chunk(out: &mut Vec<u8>, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    // Writing to a vector cannot fail.
    let _ = write!(out, "{:x}\r\n", data.len());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Appends the last chunk and the trailers, which end a chunked body.
pub fn encode_end<'t>(out: &mut Vec<u8>, trailers: impl IntoIterator<Item = (&'t [u8], &'t [u8])>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        fields::encode(out, name, value);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data, the trailer section, and the number of bytes that are left over after the end.
    type Decoded = Result<(Vec<u8>, Vec<u8>, Option<usize>), BodyError>;

    /// Decodes all of `input`.
    fn decode(framing: Framing, mut input: &[u8]) -> Decoded {
        let mut decoder = Decoder::new(framing);
        let (mut data, mut trailers) = (Vec::new(), Vec::new());
        loop {
            let (consumed, piece) = decoder.decode(input)?;
            input = &input[consumed..];
            match piece {
                Piece::Data(piece) => data.extend_from_slice(piece),
                Piece::Trailers(section) => trailers.extend_from_slice(section),
                Piece::End => return Ok((data, trailers, Some(input.len()))),
                Piece::More => return Ok((data, trailers, None)),
            }
        }
    }

    #[test]
    fn decodes_by_length() {
        let text = |data: &[u8], left| Ok((data.to_vec(), Vec::new(), left));
        assert_eq!(decode(Framing::Length(0), b"GET"), text(b"", Some(3)));
        assert_eq!(decode(Framing::Length(3), b"abcGET"), text(b"abc", Some(3)));
        assert_eq!(decode(Framing::Length(4), b"abc"), text(b"abc", None));
        assert_eq!(decode(Framing::UntilClose, b"abc"), text(b"abc", None));
        let mut decoder = Decoder::new(Framing::Length(2));
        assert!(!decoder.has_ended() && !decoder.may_end_with_connection());
        assert_eq!(decoder.decode(b""), Ok((0, Piece::More)));
        assert_eq!(decoder.decode(b"a"), Ok((1, Piece::Data(b"a"))));
        assert!(!decoder.has_ended());
        assert_eq!(decoder.decode(b"bc"), Ok((1, Piece::Data(b"b"))));
        assert!(decoder.has_ended() && decoder.may_end_with_connection());
        assert_eq!(decoder.decode(b"c"), Ok((0, Piece::End)));
        let mut decoder = Decoder::new(Framing::UntilClose);
        assert!(decoder.may_end_with_connection() && !decoder.has_ended());
        assert_eq!(decoder.decode(b""), Ok((0, Piece::More)));
    }

    #[test]
    fn decodes_chunks() {
        let table: &[(&str, &str, &str, Option<usize>)] = &[
            ("0\r\n\r\n", "", "", Some(0)),
            ("3\r\nabc\r\n0\r\n\r\nGET", "abc", "", Some(3)),
            ("3\r\nabc\r\n00a\r\n0123456789\r\n0\r\n\r\n", "abc0123456789", "", Some(0)),
            ("A\r\n0123456789\r\n0\r\n\r\n", "0123456789", "", Some(0)),
            ("12\r\n0123456789abcdefgh\r\n0\r\n\r\n", "0123456789abcdefgh", "", Some(0)),
            ("3;name=value\r\nabc\r\n0;x\r\n\r\n", "abc", "", Some(0)),
            ("3 ; a=\"b c\"\r\nabc\r\n0\t\r\n\r\n", "abc", "", Some(0)),
            ("3\r\n\r\n0\r\n0\r\n\r\n", "\r\n0", "", Some(0)),
            ("0\r\nA: b\r\nC: d\r\n\r\nGET", "", "A: b\r\nC: d\r\n\r\n", Some(3)),
            // Not complete.
            ("", "", "", None),
            ("3", "", "", None),
            ("3\r\nab", "ab", "", None),
            ("3\r\nabc", "abc", "", None),
            ("3\r\nabc\r\n0\r\n", "abc", "", None),
            ("0\r\nA: b\r\n", "", "", None),
            ("0\r\n\r", "", "", None),
        ];
        for (input, data, trailers, left) in table {
            let expected = (data.as_bytes().to_vec(), trailers.as_bytes().to_vec(), *left);
            assert_eq!(decode(Framing::Chunked, input.as_bytes()), Ok(expected), "{input:?}");
        }
        let decoder = Decoder::new(Framing::Chunked);
        assert!(!decoder.has_ended() && !decoder.may_end_with_connection());
    }

    #[test]
    fn refuses_malformed_chunks() {
        use BodyError::{ChunkEnd, ChunkSize, Trailers};
        let table = [
            ("\r\n", ChunkSize),
            ("x\r\n", ChunkSize),
            ("-1\r\n", ChunkSize),
            ("+1\r\n", ChunkSize),
            (" 1\r\n", ChunkSize),
            ("0x1\r\n", ChunkSize),
            (";a\r\n", ChunkSize),
            ("1g\r\n", ChunkSize),
            ("1\n", ChunkSize),
            ("1\rx", ChunkSize),
            ("10000000000000000\r\n", ChunkSize),
            ("00000000000000001\r\n", ChunkSize),
            ("1_0\r\n", ChunkSize),
            ("1\r\r\n", ChunkSize),
            ("1\r\na\r\n\r\n", ChunkSize),
            ("1\r\nab", ChunkEnd),
            ("1\r\na\n", ChunkEnd),
            ("1\r\na\rb", ChunkEnd),
            ("0\r\nno field\r\n\r\n", Trailers),
            ("0\r\nA: b\nC: d\r\n\r\n", Trailers),
            ("0\r\nA : b\r\n\r\n", Trailers),
        ];
        for (input, error) in table {
            assert_eq!(decode(Framing::Chunked, input.as_bytes()), Err(error), "{input:?}");
        }
        let mut padded = Decoder::new(Framing::Chunked);
        assert_eq!(padded.decode(b"0000000000000001\r\na"), Ok((19, Piece::Data(b"a"))));
        let mut largest = Decoder::new(Framing::Chunked);
        assert_eq!(largest.decode(b"ffffffffffffffff\r\n"), Ok((18, Piece::More)));
    }

    #[test]
    fn checks_the_grammar_of_extensions() {
        for line in [
            "1",
            "1 ",
            "1\t \t",
            "1;a",
            "1 ; a",
            "1;a=b",
            "1;a = b",
            "1 \t;\ta\t=\tb",
            "1;a;b",
            "1;a ;b=c ; d",
            "1;a=\"\"",
            "1;a=\" ;=\t\"",
            "1;a=\"\\\"\\\\\"",
            "1;a=\"\u{e9}\\\u{e9}\";b",
            "1;a=\"b\" ; c",
            "1;!#$%&'*+-.^_`|~=A0",
        ] {
            let input = format!("{line}\r\nx\r\n0;a\r\n\r\n");
            assert_eq!(
                decode(Framing::Chunked, input.as_bytes()),
                Ok((b"x".to_vec(), Vec::new(), Some(0))),
                "{line:?}"
            );
        }
        for line in [
            "1 x",
            "1 x;a=b",
            "1\tx;a",
            "1 =b",
            "1 \"",
            "1;",
            "1; ",
            "1;;a",
            "1;=b",
            "1;\"a\"",
            "1;a=",
            "1;a= ",
            "1;a=;b",
            "1;a==b",
            "1;a b",
            "1;a=b c",
            "1;a=b=c",
            "1;a ",
            "1;a=b ",
            "1;a=\"b\" ",
            "1;a=\"b",
            "1;a=\"b\\",
            "1;a=\"b\"c",
            "1;a=\"b\"=",
            "1;a=b\"",
            "1;a,b",
            "1;a@b",
            "1;\u{e9}",
            "1;a=\u{e9}",
            "1;a\nb",
            "1;a=b\n",
            "1;\n",
            "1 \n",
            "1;a=\"\n\"",
            "1;a=\"\\\n\"",
            "1;a=\"\r\"",
            "1;a\0",
            "1;\x7f",
            "1;a=\"\x7f\"",
            "1;a=\"\x1f\"",
            "1;a=\"\\\0\"",
        ] {
            let input = format!("{line}\r\nx\r\n0\r\n\r\n");
            assert_eq!(decode(Framing::Chunked, input.as_bytes()), Err(BodyError::Extension), "{line:?}");
        }
    }

    #[test]
    fn limits_extensions_and_trailers() {
        assert_eq!((EXTENSIONS, TRAILERS), (16_384, 16_384));
        let extended = |length: usize| format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(length - 1));
        assert!(decode(Framing::Chunked, extended(EXTENSIONS).as_bytes()).is_ok());
        assert_eq!(decode(Framing::Chunked, extended(EXTENSIONS + 1).as_bytes()), Err(BodyError::Extensions));
        let many = "1;12345678\r\na\r\n".repeat(EXTENSIONS / 9 + 1);
        assert_eq!(decode(Framing::Chunked, many.as_bytes()), Err(BodyError::Extensions));
        let section = |length: usize| format!("0\r\nX: {}\r\n\r\n", "y".repeat(length - 7));
        assert!(decode(Framing::Chunked, section(TRAILERS).as_bytes()).is_ok());
        let long = section(TRAILERS + 1);
        assert_eq!(decode(Framing::Chunked, long.as_bytes()), Err(BodyError::TrailersTooLarge));
        // 3 bytes before the section; without its end it waits for one byte less than the limit.
        let partial = &long.as_bytes()[..TRAILERS + 2];
        assert!(decode(Framing::Chunked, partial).is_ok_and(|(_, _, left)| left.is_none()));
        assert_eq!(decode(Framing::Chunked, &long.as_bytes()[..TRAILERS + 3]), Err(BodyError::TrailersTooLarge));
        let fields = |count: usize| format!("0\r\n{}\r\n", "X: y\r\n".repeat(count));
        assert!(decode(Framing::Chunked, fields(TRAILER_FIELDS).as_bytes()).is_ok());
        assert_eq!(decode(Framing::Chunked, fields(TRAILER_FIELDS + 1).as_bytes()), Err(BodyError::TrailersTooLarge));
    }

    #[test]
    fn parses_a_whole_trailer_section() {
        let parse = |section: &[u8]| {
            let mut room = [httparse::EMPTY_HEADER; 2];
            parse_trailers(section, &mut room).map(<[_]>::len)
        };
        assert_eq!(parse(b"A: b\r\nC:\r\n\r\n"), Ok(2));
        assert_eq!(parse(b"A: b\r\n"), Err(BodyError::Trailers));
        assert_eq!(parse(b"A: b\r\n\r\nC: d\r\n"), Err(BodyError::Trailers));
        assert_eq!(parse(b"A: b\r\nC:\r\nE:\r\n\r\n"), Err(BodyError::TrailersTooLarge));
    }

    #[test]
    fn encodes_chunks() {
        let mut out = Vec::new();
        encode_chunk(&mut out, b"");
        encode_chunk(&mut out, b"0123456789abcdefg");
        encode_end(&mut out, [(&b"A"[..], &b"b"[..])]);
        assert_eq!(out, b"11\r\n0123456789abcdefg\r\n0\r\nA: b\r\n\r\n");
    }
}
