//! Properties that hold for any input. Generated messages and `tests/fuzz` check them.

use super::body::{Decoder, Framing, Piece, TRAILER_FIELDS, encode_chunk, encode_end, parse_trailers};
use super::error::{BodyError, HeadError};
use super::fields::{self, Field, Kind};
use super::request::{self, Request};
use super::response::{self, Response};
use super::{Version, checker};

/// Small, so that generated heads exceed it.
const LIMIT: usize = 512;

/// A request is the same however it arrives, is one to the strict reading as well, and is the same once written again.
pub(super) fn request_head(input: &[u8]) {
    arrives_in_any_parts(input, |input| {
        Request::parse(input, &mut fields::storage(), LIMIT)
            .map(|request| request.map(|request| format!("{request:?}")))
    });
    let mut storage = fields::storage();
    let Ok(Some(parsed)) = Request::parse(input, &mut storage, LIMIT) else { return };
    let head = &input[..parsed.length];
    let start = head.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or_default();
    let reading = checker::Reading {
        body: body(parsed.framing),
        persists: parsed.persists,
        fields: parsed.fields.all().iter().map(line).collect(),
    };
    assert_eq!(checker::request(&head[start..]), Some(reading), "{:?}", head.escape_ascii().to_string());

    if parsed.host().is_some() && parsed.fields.has(Kind::Host) {
        let mut written = Vec::new();
        request::encode_line(&mut written, parsed.method, parsed.target);
        encode_fields(&mut written, parsed.fields.all());
        let mut storage = fields::storage();
        let again = Request::parse(&written, &mut storage, usize::MAX).unwrap().unwrap();
        let slash = if parsed.target.needs_slash() { "/" } else { "" };
        assert_eq!(again.target.path_and_query(), [slash, parsed.target.path_and_query()].concat());
        assert_eq!((again.method, again.fields, again.framing), (parsed.method, parsed.fields, parsed.framing));
        assert_eq!(again.length, written.len());
    }
}

/// A response is the same however it arrives, is one to the strict reading as well, and is the same once written again.
pub(super) fn response_head(input: &[u8]) {
    for is_head in [false, true] {
        arrives_in_any_parts(input, |input| {
            let mut storage = fields::storage();
            let response = Response::parse(input, &mut storage, is_head, LIMIT);
            response.map(|response| response.map(|response| format!("{response:?}")))
        });
        let mut storage = fields::storage();
        let Ok(Some(parsed)) = Response::parse(input, &mut storage, is_head, LIMIT) else { continue };
        let head = &input[..parsed.length];
        let reading = checker::Reading {
            body: body(parsed.framing),
            persists: parsed.persists,
            fields: parsed.fields.all().iter().map(line).collect(),
        };
        assert_eq!(checker::response(head, is_head), Some(reading), "{:?}", head.escape_ascii().to_string());

        let mut written = Vec::new();
        response::encode_line(&mut written, parsed.status, parsed.reason);
        encode_fields(&mut written, parsed.fields.all());
        let length = written.len();
        let mut storage = fields::storage();
        let again = Response::parse(&written, &mut storage, is_head, usize::MAX).unwrap().unwrap();
        // The persistence is that of the version that was written.
        let expected = Response { version: Version::Http11, persists: again.persists, length, ..parsed };
        assert_eq!(again, expected);
    }
}

/// A body is the same however it arrives, is one to the strict reading as well, and is the same once written again.
pub(super) fn chunked_body(input: &[u8]) {
    let parts: Vec<usize> = input.iter().map(|byte| usize::from(byte % 11) + 1).collect();
    let whole = decode(Framing::Chunked, input, &[input.len().max(1)]);
    assert_eq!(decode(Framing::Chunked, input, &parts), whole);
    assert_eq!(decode(Framing::Chunked, input, &[1]), whole);
    if let Ok((data, section, Some(consumed))) = whole {
        let mut room = [httparse::EMPTY_HEADER; TRAILER_FIELDS];
        let trailers: &[Field<'_>] =
            if section.is_empty() { &[] } else { parse_trailers(&section, &mut room).unwrap() };
        let reading = (data.clone(), trailers.iter().map(line).collect(), consumed);
        assert_eq!(checker::chunked(input), Some(reading), "{:?}", input.escape_ascii().to_string());

        let mut written = Vec::new();
        data.chunks(20).for_each(|chunk| encode_chunk(&mut written, chunk));
        encode_end(&mut written, trailers.iter().map(line));
        let (again, section, consumed) = decode(Framing::Chunked, &written, &parts).unwrap();
        assert_eq!((again, consumed), (data, Some(written.len())));
        let mut room = [httparse::EMPTY_HEADER; TRAILER_FIELDS];
        let again: &[Field<'_>] = if section.is_empty() { &[] } else { parse_trailers(&section, &mut room).unwrap() };
        assert_eq!(again, trailers);
    }

    // The other framings pass on what they are given.
    let length = input.len() / 2;
    let halves = (input[..length].to_vec(), Vec::new(), Some(length));
    assert_eq!(decode(Framing::Length(length as u64), input, &parts), Ok(halves));
    assert_eq!(decode(Framing::UntilClose, input, &parts), Ok((input.to_vec(), Vec::new(), None)));
}

/// What has arrived of a head gives no result, or the result of the whole.
fn arrives_in_any_parts(input: &[u8], parse: impl Fn(&[u8]) -> Result<Option<String>, HeadError>) {
    let whole = parse(input);
    for end in 0..input.len() {
        match parse(&input[..end]) {
            Ok(None) => {}
            // It is complete before the end of the input, or broken already.
            early => {
                assert_eq!(early, whole, "{end} of {:?}", input.escape_ascii().to_string());
                return;
            }
        }
    }
}

fn body(framing: Framing) -> checker::Body {
    match framing {
        Framing::Length(length) => checker::Body::Length(length),
        Framing::Chunked => checker::Body::Chunked,
        Framing::UntilClose => checker::Body::UntilClose,
    }
}

fn line<'b>(field: &Field<'b>) -> checker::Line<'b> {
    (field.name.as_bytes(), field.value)
}

fn encode_fields(out: &mut Vec<u8>, fields: &[Field<'_>]) {
    fields.iter().for_each(|field| fields::encode(out, field.name.as_bytes(), field.value));
    out.extend_from_slice(b"\r\n");
}

/// The data, the trailer section, and how many bytes were consumed if the body has ended.
pub(super) type Decoded = Result<(Vec<u8>, Vec<u8>, Option<usize>), BodyError>;

/// Decodes input that arrives in parts of these sizes, the last one again and again.
pub(super) fn decode(framing: Framing, input: &[u8], parts: &[usize]) -> Decoded {
    let mut decoder = Decoder::new(framing);
    let (mut data, mut trailers, mut consumed, mut arrived) = (Vec::new(), Vec::new(), 0, 0);
    let mut parts = parts.iter().chain(std::iter::repeat(parts.last().unwrap_or(&1)));
    loop {
        let (length, piece) = decoder.decode(&input[consumed..arrived])?;
        consumed += length;
        match piece {
            Piece::Data(piece) => {
                assert!(!piece.is_empty());
                data.extend_from_slice(piece);
            }
            Piece::Trailers(section) => trailers.extend_from_slice(section),
            Piece::End => return Ok((data, trailers, Some(consumed))),
            Piece::More if arrived == input.len() => return Ok((data, trailers, None)),
            Piece::More => arrived = (arrived + parts.next().unwrap_or(&1)).min(input.len()),
        }
    }
}
