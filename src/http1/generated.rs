//! Checks the properties over inputs that are nearly messages.

use proptest::collection::vec;
use proptest::prelude::*;

use super::body::{Framing, encode_chunk, encode_end};
use super::properties::{chunked_body, decode, request_head, response_head};

/// Lines of heads, sound and unsound.
const LINES: &[&str] = &[
    "Host: a\r\n",
    "Host: a\r\n",
    "Host: a\r\n",
    "Host: [::1]:80\r\n",
    "Host:\r\n",
    "Host: a,b\r\n",
    "X: y\r\n",
    "X: y\n",
    "X: \0\r\n",
    "X: a\r\n b\r\n",
    "X\r\n",
    ": y\r\n",
    "\rX: y\r\n",
    "Content-Length: 3\r\n",
    "Content-Length: 3\r\n",
    "Content-Length: 3, 3\r\n",
    "Content-Length: +3\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "transfer-encoding:\tchunked\t\r\n",
    "Connection: close\r\n",
    "Connection: keep-alive\r\n",
    "connection: x ,Host;a\r\n",
];

const REQUEST_LINES: &[&str] = &[
    "GET / HTTP/1.1\r\n",
    "GET / HTTP/1.1\r\n",
    "POST /a?b HTTP/1.1\r\n",
    "POST /a?b HTTP/1.1\r\n",
    "GET / HTTP/1.0\r\n",
    "OPTIONS * HTTP/1.1\r\n",
    "OPTIONS http://a HTTP/1.1\r\n",
    "GET http://a/ HTTP/1.1\r\n",
    "GET  / HTTP/1.1\r\n",
    "GET /\tx HTTP/1.1\r\n",
    "GET / HTTP/1.1\n",
    "GET / HTTP/2.0\r\n",
    "GET / http/1.1\r\n",
    "CONNECT a:1 HTTP/1.1\r\n",
    "\r\nGET / HTTP/1.1\r\n",
    "",
];

const STATUS_LINES: &[&str] = &[
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 404 Not  Found\r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 204\r\n",
    "HTTP/1.1 101 \r\n",
    "HTTP/1.1 099 X\r\n",
    "HTTP/1.1 200 OK\n",
    "HTTP/1.1  200 OK\r\n",
    "HTTP/2.0 200 OK\r\n",
    "HTTP/2 200 OK\r\n",
    "\r\nHTTP/1.1 200 OK\r\n",
    "",
];

const CHUNKS: &[&str] = &[
    "3\r\nabc\r\n",
    "3\r\nabc\r\n",
    "1;x=y\r\na\r\n",
    "1 ; x = \"\\\"\" ;z\r\na\r\n",
    "2 \r\nab\r\n",
    "2 x;y\r\nab\r\n",
    "3\nabc\r\n",
    "3\r\nabcd\r\n",
    "g\r\n",
    "ffffffffffffffffff\r\n",
    "0\r\n\r\n",
    "0\r\nA: b\r\n\r\n",
    "\r\n",
    "0;\x01\r\n",
];

const BODY_ENDS: &[&str] =
    &["0\r\n\r\n", "0\r\n\r\n", "0\r\nA: b\r\nC: d\r\n\r\n", "0\r\nA\r\n\r\n", "0\r\nA: b\n\r\n\r\n", ""];

fn one(parts: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    prop::sample::select(parts)
}

fn head(start_lines: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    let end = prop_oneof![8 => Just("\r\n"), 1 => Just("\n"), 1 => Just("")];
    (one(start_lines), vec(one(LINES), 0..5), end)
        .prop_map(|(start, lines, end)| [start, &lines.concat(), end].concat().into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn requests_have_one_reading(input in head(REQUEST_LINES)) {
        request_head(&input);
    }

    #[test]
    fn responses_have_one_reading(input in head(STATUS_LINES)) {
        response_head(&input);
    }

    #[test]
    fn chunked_bodies_have_one_reading(chunks in vec(one(CHUNKS), 0..5), end in one(BODY_ENDS)) {
        chunked_body([&chunks.concat(), end].concat().as_bytes());
    }

    #[test]
    fn no_bytes_make_the_parsers_panic(input in vec(any::<u8>(), 0..200), cut in 0..40_usize) {
        for start in ["GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n", "HTTP/1.1 200 OK\r\nA: b\r\n", "1;a\r\na\r\n0\r\nA: b\r\n"] {
            let mut started = start.as_bytes().to_vec();
            started.truncate(cut);
            started.extend_from_slice(&input);
            request_head(&started);
            response_head(&started);
            chunked_body(&started);
        }
    }

    #[test]
    fn decoding_undoes_encoding(
        pieces in vec(vec(any::<u8>(), 0..40), 0..6),
        has_trailers: bool,
        parts in vec(1..9_usize, 1..20),
    ) {
        let mut encoded = Vec::new();
        pieces.iter().for_each(|piece| encode_chunk(&mut encoded, piece));
        let trailers: &[(&[u8], &[u8])] = if has_trailers { &[(b"A", b"b"), (b"C", b"")] } else { &[] };
        encode_end(&mut encoded, trailers.iter().copied());
        let section: &[u8] = if has_trailers { b"A: b\r\nC: \r\n\r\n" } else { b"" };
        let expected = (pieces.concat(), section.to_vec(), Some(encoded.len()));
        prop_assert_eq!(decode(Framing::Chunked, &encoded, &parts), Ok(expected));
    }
}
