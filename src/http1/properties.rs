//! Properties of the parser and the decoder, over inputs that are nearly messages.

use proptest::collection::vec;
use proptest::prelude::*;

use super::body::{Decoder, Framing, Piece, encode_chunk, encode_end};
use super::error::{BodyError, HeadError};
use super::request::Request;
use super::response::Response;
use super::{checker, fields};

const LIMIT: usize = 4096;

/// Bits of requests, sound and unsound, so that most inputs get past the start line.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let start = prop_oneof![
        4 => Just("GET / HTTP/1.1\r\n"), 2 => Just("POST /a?b HTTP/1.1\r\n"), 1 => Just("GET / HTTP/1.0\r\n"),
        1 => Just("OPTIONS * HTTP/1.1\r\n"), 1 => Just("GET http://a/ HTTP/1.1\r\n"), 1 => Just("GET  / HTTP/1.1\r\n"),
        1 => Just("CONNECT a:1 HTTP/1.1\r\n"), 1 => Just("GET /\tx HTTP/1.1\r\n"), 1 => Just("GET / HTTP/1.1\n"),
        1 => Just("\r\nGET / HTTP/1.1\r\n"), 1 => Just(""),
    ];
    let line = prop_oneof![
        4 => Just("Host: a\r\n"), 2 => Just("X: y\r\n"), 2 => Just("Content-Length: 3\r\n"),
        2 => Just("Transfer-Encoding: chunked\r\n"), 1 => Just("Content-Length: 3, 3\r\n"),
        1 => Just("Transfer-Encoding: gzip, chunked\r\n"), 1 => Just("Transfer-Encoding : chunked\r\n"),
        1 => Just("Content-Length: +3\r\n"), 1 => Just("X: a\r\n b\r\n"), 1 => Just("X: y\n"), 1 => Just("X: \0\r\n"),
        1 => Just("transfer-encoding:\tchunked\t\r\n"), 1 => Just(": y\r\n"), 1 => Just("X\r\n"), 1 => Just("\rX: y\r\n"),
    ];
    let end = prop_oneof![8 => Just("\r\n"), 1 => Just("\n"), 1 => Just("")];
    (start, vec(line, 0..5), end).prop_map(|(start, lines, end)| [start, &lines.concat(), end].concat().into_bytes())
}

fn chunks() -> impl Strategy<Value = Vec<u8>> {
    let bit = prop_oneof![
        4 => Just("3\r\nabc\r\n"), 2 => Just("1;x=y\r\na\r\n"), 1 => Just("2 \r\nab\r\n"), 1 => Just("3\nabc\r\n"),
        1 => Just("3\r\nabcd\r\n"), 1 => Just("g\r\n"), 1 => Just("ffffffffffffffffff\r\n"), 1 => Just("0\r\n\r\n"),
        1 => Just("0\r\nA: b\r\n\r\n"), 1 => Just("\r\n"), 1 => Just("0;\x01\r\n"),
    ];
    let end = prop_oneof![4 => Just("0\r\n\r\n"), 1 => Just("0\r\nA: b\r\nC: d\r\n\r\n"), 1 => Just("0\r\nA\r\n\r\n"), 1 => Just("")];
    (vec(bit, 0..5), end).prop_map(|(bits, end)| [&bits.concat(), end].concat().into_bytes())
}

/// What is compared of a request, since the rest borrows.
fn read_request(input: &[u8]) -> Result<Option<(String, Framing, usize)>, HeadError> {
    let mut room = fields::storage();
    let parsed = Request::parse(input, &mut room, LIMIT)?;
    Ok(parsed.map(|request| (format!("{request:?}"), request.framing, request.length)))
}

type Decoded = Result<(Vec<u8>, Vec<u8>, Option<usize>), BodyError>;

/// Decodes input that arrives in parts of these sizes, the last one again and again.
fn decode(framing: Framing, input: &[u8], parts: &[usize]) -> Decoded {
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn accepts_no_request_that_the_strict_reading_refuses(input in request()) {
        if let Ok(Some((_, framing, length))) = read_request(&input) {
            let head = &input[..length];
            let start = head.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(0);
            let expected = match framing {
                Framing::Length(length) => checker::Body::Length(length),
                _ => checker::Body::Chunked,
            };
            prop_assert_eq!(checker::request(&head[start..]), Some(expected), "{:?}", String::from_utf8_lossy(head));
        }
    }

    #[test]
    fn a_head_is_the_same_however_it_arrives(input in request()) {
        let whole = read_request(&input);
        for end in 0..input.len() {
            match read_request(&input[..end]) {
                Ok(None) => {}
                // It is complete before the end of the input, or broken already.
                early => {
                    prop_assert_eq!(early, whole);
                    break;
                }
            }
        }
    }

    #[test]
    fn no_bytes_make_the_parsers_panic(input in vec(any::<u8>(), 0..200), cut in 0..40_usize) {
        let _ = read_request(&input);
        let _ = Response::parse(&input, &mut fields::storage(), false, LIMIT);
        let mut started = b"HTTP/1.1 200 OK\r\nA: b\r\n".to_vec();
        started.truncate(cut);
        started.extend_from_slice(&input);
        let _ = Response::parse(&started, &mut fields::storage(), true, LIMIT);
        let _ = decode(Framing::Chunked, &input, &[7]);
    }

    #[test]
    fn accepts_no_chunked_body_that_the_strict_reading_refuses(input in chunks()) {
        if let Ok((data, _, Some(consumed))) = decode(Framing::Chunked, &input, &[input.len().max(1)]) {
            prop_assert_eq!(checker::chunked(&input), Some((data, consumed)));
        }
    }

    #[test]
    fn a_body_is_the_same_however_it_arrives(input in chunks(), parts in vec(1..9_usize, 1..20)) {
        let whole = decode(Framing::Chunked, &input, &[input.len().max(1)]);
        prop_assert_eq!(decode(Framing::Chunked, &input, &parts), whole.clone());
        prop_assert_eq!(decode(Framing::Chunked, &input, &[1]), whole);
    }

    #[test]
    fn decoding_undoes_encoding(pieces in vec(vec(any::<u8>(), 0..40), 0..6), with_trailers: bool, parts in vec(1..9_usize, 1..20)) {
        let mut encoded = Vec::new();
        pieces.iter().for_each(|piece| encode_chunk(&mut encoded, piece));
        let trailers: &[(&[u8], &[u8])] = if with_trailers { &[(b"A", b"b"), (b"C", b"")] } else { &[] };
        encode_end(&mut encoded, trailers.iter().copied());
        let section: &[u8] = if with_trailers { b"A: b\r\nC: \r\n\r\n" } else { b"" };
        let expected = (pieces.concat(), section.to_vec(), Some(encoded.len()));
        prop_assert_eq!(decode(Framing::Chunked, &encoded, &parts), Ok(expected));
    }
}
