//! Messages as frames, and what they are on the wire of either version.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::StatusCode;
use http::header::HeaderMap;

use crate::http1::body::{Decoder, Piece, encode_chunk, encode_end};
use crate::http1::error::BodyError;
use crate::proxy::error::end_of_file;
use crate::proxy::headers;
use crate::server::buffer::{self, Input};
use crate::server::head::Fields;
use crate::server::stream::Socket;

/// A response's head.
#[derive(Debug)]
pub(super) struct ResponseHead {
    pub(super) status: StatusCode,
    pub(super) fields: HeaderMap,
    pub(super) has_body: bool,
    pub(super) is_interim: bool,
}

/// A part of a body.
#[derive(Debug)]
pub(super) enum Frame {
    /// Data, and whether it is certain that it is the last part.
    Data(Bytes, bool),
    /// The trailers, which end the body.
    Trailers(HeaderMap),
}

/// Why a body cannot be read.
#[derive(Debug)]
pub(super) enum ReadError {
    Io(io::Error),
    Body(BodyError),
    Stream(h2::Error),
}

/// What one step of a decoder found.
enum Decoded {
    Frame(Frame),
    End,
    More,
}

fn decode(decoder: &mut Decoder, input: &[u8]) -> (usize, Result<Decoded, BodyError>) {
    match decoder.decode(input) {
        Err(error) => (input.len(), Err(error)),
        Ok((consumed, piece)) => (
            consumed,
            match piece {
                Piece::Data(data) => Ok(Decoded::Frame(Frame::Data(Bytes::copy_from_slice(data), decoder.has_ended()))),
                Piece::Trailers(section) => {
                    let mut trailers = HeaderMap::new();
                    let passed = headers::trailer_section(section, &mut trailers);
                    passed.map(|()| Decoded::Frame(Frame::Trailers(trailers)))
                }
                Piece::End => Ok(Decoded::End),
                Piece::More => Ok(Decoded::More),
            },
        ),
    }
}

/// The next part of a body that arrives on an HTTP/1.1 connection.
pub(super) fn poll_frame<S: Socket>(
    stream: &mut S,
    input: &mut Vec<u8>,
    decoder: &mut Decoder,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Frame>, ReadError>> {
    while !decoder.has_ended() {
        match ready!(buffer::poll_next(stream, cx, input, |input| decode(decoder, input))) {
            Ok(Input::Read(Ok(Decoded::Frame(frame)))) => return Poll::Ready(Ok(Some(frame))),
            Ok(Input::Read(Ok(Decoded::More))) => {}
            Ok(Input::Read(Ok(Decoded::End))) => break,
            Ok(Input::Read(Err(error))) => return Poll::Ready(Err(ReadError::Body(error))),
            Ok(Input::End) if decoder.may_end_with_connection() => break,
            Ok(Input::End) => return Poll::Ready(Err(ReadError::Io(end_of_file()))),
            Err(error) => return Poll::Ready(Err(ReadError::Io(error))),
        }
    }
    Poll::Ready(Ok(None))
}

/// Sends a part of a body on an HTTP/1.1 connection. The part before has been taken. Without a frame, the body ends. Returns whether
/// it has ended.
pub(super) fn send_frame<S: Socket>(
    stream: &mut S,
    output: &mut Vec<u8>,
    cx: &mut Context<'_>,
    is_chunked: bool,
    frame: Option<&Frame>,
) -> io::Result<bool> {
    buffer::assemble(|out| match frame {
        Some(Frame::Data(data, _)) if is_chunked => encode_chunk(out, data),
        Some(Frame::Data(data, _)) => out.extend_from_slice(data),
        Some(Frame::Trailers(trailers)) if is_chunked => {
            encode_end(out, trailers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())));
        }
        None if is_chunked => encode_end(out, []),
        Some(Frame::Trailers(_)) | None => {}
    });
    buffer::send(stream, cx, output)?;
    Ok(match frame {
        Some(Frame::Data(_, is_last)) => *is_last && !is_chunked,
        Some(Frame::Trailers(_)) | None => true,
    })
}

/// The half of an HTTP/2 stream on which a body is sent.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) stream: SendStream<Bytes>,
    /// What the peer has no room for yet, and whether the body ends with it.
    pending: Option<(Bytes, bool)>,
}

impl Sending {
    pub(super) fn new(stream: SendStream<Bytes>) -> Self {
        Self { stream, pending: None }
    }

    /// Ready when nothing is pending.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while let Some((data, is_last)) = &mut self.pending {
            if data.is_empty() {
                let is_last = *is_last;
                self.pending = None;
                self.stream.reserve_capacity(0);
                if is_last {
                    self.stream.send_data(Bytes::new(), true)?;
                }
                break;
            }
            self.stream.reserve_capacity(data.len());
            if self.stream.capacity() == 0 {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(capacity) => _ = capacity?,
                    // The peer wants no more.
                    None => return Poll::Ready(Err(Reason::NO_ERROR.into())),
                }
                continue;
            }
            let part = data.split_to(self.stream.capacity().min(data.len()));
            let ends = data.is_empty() && *is_last;
            if data.is_empty() {
                self.pending = None;
            }
            self.stream.send_data(part, ends)?;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends a frame. Nothing may be pending. Without a frame, the body ends. Returns whether it has ended.
    pub(super) fn send(&mut self, cx: &mut Context<'_>, frame: Option<Frame>) -> Result<bool, h2::Error> {
        match frame {
            Some(Frame::Data(data, is_last)) => {
                self.pending = Some((data, is_last));
                if let Poll::Ready(Err(error)) = self.poll_flush(cx) {
                    return Err(error);
                }
                Ok(is_last)
            }
            Some(Frame::Trailers(trailers)) => self.stream.send_trailers(trailers).map(|()| true),
            None => self.stream.send_data(Bytes::new(), true).map(|()| true),
        }
    }
}

/// The next part of a body that arrives on an HTTP/2 stream. Its size is released at once, so that the peer may send as fast as the
/// other side reads.
pub(super) fn poll_received(stream: &mut RecvStream, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, h2::Error>> {
    Poll::Ready(match ready!(stream.poll_data(cx)).transpose()? {
        Some(data) => {
            stream.flow_control().release_capacity(data.len())?;
            Ok(Some(Frame::Data(data, stream.is_end_stream())))
        }
        None => ready!(stream.poll_trailers(cx)).map(|received| {
            received.map(|received| {
                let mut passed = HeaderMap::new();
                headers::trailers(Fields::Map(&received).iter(), &mut passed);
                Frame::Trailers(passed)
            })
        }),
    })
}
