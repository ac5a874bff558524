//! A request of an HTTP/1.1 client on its way to the application.

use super::Proxy;
use super::error::Error;
use super::headers::{self, Filter, RequestContext};
use super::tracker::RequestTracker;
use crate::http1::Version;
use crate::http1::body::{Decoder, Framing, Piece, encode_chunk, encode_end};
use crate::http1::error::BodyError;
use crate::http1::request::{Target, encode_line};
use crate::server::connection;
use crate::server::head::Fields;

/// A request on its way to the application.
#[derive(Debug)]
pub struct Exchange {
    pub(super) tracker: RequestTracker,
    /// The head as the application gets it, followed by the part of the body that came with it until that is sent. The head is
    /// kept: the request may have to be sent again, and it says what kind of response the client can read.
    pub(super) sent: Vec<u8>,
    pub(super) head_length: usize,
    pub(super) body: Decoder,
    pub(super) is_chunked: bool,
    /// What is wrong with the body.
    pub(super) invalid: Option<BodyError>,
    /// Whether `100 Continue` has to be sent before the body is read.
    pub(super) must_continue: bool,
    pub(super) is_head: bool,
    pub(super) is_idempotent: bool,
    pub(super) has_body: bool,
    pub(super) version: Version,
    pub(super) persists: bool,
}

/// A request whose response has not begun.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub error: Error,
    /// The head as the application was to get it.
    pub head: Vec<u8>,
    /// The rest of the request's body. `None` if nothing says where it ends.
    pub body: Option<Decoder>,
    /// The version that the client speaks.
    pub version: Version,
    /// Whether the request lets the connection persist.
    pub persists: bool,
}

impl Exchange {
    /// Turns a client's request into the application's. `out` is scratch space. Returns the number of body bytes consumed.
    pub fn new(
        proxy: &Proxy,
        exchange: &connection::Exchange<'_>,
        tracker: RequestTracker,
        filter: Option<Filter>,
        out: &mut Vec<u8>,
    ) -> (Self, usize) {
        Self::prepare((proxy.host.as_bytes(), proxy.multiplexed.is_none()), exchange, tracker, filter, out)
    }

    /// The same for an application with this host. `takes_body` tells whether the body is passed on as bytes.
    pub(super) fn prepare(
        (host, takes_body): (&[u8], bool),
        exchange: &connection::Exchange<'_>,
        tracker: RequestTracker,
        filter: Option<Filter>,
        out: &mut Vec<u8>,
    ) -> (Self, usize) {
        let request = exchange.request;
        let context = RequestContext {
            version: request.version.into(),
            host: request.host(),
            replaces_host: matches!(request.target, Target::Absolute { .. }),
            fallback: host,
            client: exchange.client.text(),
            filter,
        };
        out.clear();
        encode_line(out, request.method, request.target);
        headers::request(Fields::Lines(request.fields), &context, out);
        let is_chunked = request.framing == Framing::Chunked;
        if is_chunked {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        out.extend_from_slice(b"\r\n");
        let head_length = out.len();
        let mut body = Decoder::new(request.framing);
        let has_body = !body.has_ended();
        let (mut consumed, mut invalid) = (0, None);
        if has_body && takes_body {
            match encode_body(&mut body, is_chunked, exchange.body, out) {
                Ok(length) => consumed = length,
                Err(error) => invalid = Some(error),
            }
        }
        let exchange = Self {
            tracker,
            sent: out.as_slice().into(),
            head_length,
            body,
            is_chunked,
            invalid,
            must_continue: request.expects_continue && exchange.body.is_empty(),
            is_head: request.method == "HEAD",
            // RFC 9110 §9.2.2.
            is_idempotent: matches!(request.method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"),
            has_body,
            version: request.version,
            persists: request.persists,
        };
        out.clear();
        (exchange, consumed)
    }

    /// The head as the application gets it.
    pub(super) fn head(&self) -> &[u8] {
        &self.sent[..self.head_length]
    }

    /// The response has not begun, and will not.
    pub(super) fn failed(mut self, error: Error) -> Box<Failed> {
        let may_continue = !self.must_continue && self.invalid.is_none() && !matches!(error, Error::Body(_));
        self.sent.truncate(self.head_length);
        Box::new(Failed {
            error,
            head: std::mem::take(&mut self.sent),
            body: may_continue.then_some(self.body),
            version: self.version,
            persists: self.persists,
        })
    }
}

/// Encodes the available part of a body. Returns the number of bytes consumed.
pub(super) fn encode_body(
    decoder: &mut Decoder,
    is_chunked: bool,
    input: &[u8],
    out: &mut Vec<u8>,
) -> Result<usize, BodyError> {
    let mut consumed = 0;
    while !decoder.has_ended() {
        let (length, piece) = decoder.decode(&input[consumed..])?;
        consumed += length;
        match piece {
            Piece::Data(data) if is_chunked => encode_chunk(out, data),
            Piece::Data(data) => out.extend_from_slice(data),
            Piece::Trailers(section) if is_chunked => encode_trailers(section, out)?,
            Piece::End if is_chunked => encode_end(out, []),
            Piece::Trailers(_) | Piece::End => {}
            Piece::More => break,
        }
    }
    Ok(consumed)
}

/// Ends a chunked body with these trailers.
pub(super) fn encode_trailers(section: &[u8], out: &mut Vec<u8>) -> Result<(), BodyError> {
    out.extend_from_slice(b"0\r\n");
    headers::trailer_section(section, out)?;
    out.extend_from_slice(b"\r\n");
    Ok(())
}
