//! The client's side of an exchange.

use std::task::{Context, Poll};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Response;
use http::header::CONTENT_LENGTH;

use super::frame::{Frame, ReadError, ResponseHead, Sending, poll_frame, poll_received, send_frame};
use crate::http1::Version;
use crate::http1::body::Decoder;
use crate::http1::response::encode_line;
use crate::proxy::error::Error;
use crate::proxy::headers;
use crate::server::buffer;
use crate::server::connection::{self, Next};
use crate::server::head::{Fields, encode_end, insert_date};
use crate::server::stream::Socket;

/// The client is gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone;

/// The client's side of an exchange.
pub(super) enum Downstream<'a, C> {
    Http1 {
        connection: &'a mut connection::Connection<C>,
        body: Decoder,
        is_chunked: bool,
        is_head: bool,
        version: Version,
        persists: bool,
        must_continue: bool,
        /// What becomes of the connection.
        next: Next,
    },
    Http2 {
        respond: SendResponse<Bytes>,
        sending: Option<Sending>,
        receiving: RecvStream,
    },
}

impl<C: Socket> Downstream<'_, C> {
    /// The next part of the request's body.
    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, Error>> {
        let read = match self {
            Self::Http2 { receiving, .. } => poll_received(receiving, cx).map_err(ReadError::Stream),
            Self::Http1 { connection, body, must_continue, .. } => {
                if std::mem::take(must_continue) {
                    connection.send_continue(cx).map_err(|_| Error::ClientGone)?;
                }
                poll_frame(&mut connection.stream, &mut connection.input, body, cx)
            }
        };
        read.map_err(|error| match error {
            ReadError::Body(error) => Error::Body(error),
            ReadError::Io(_) | ReadError::Stream(_) => Error::ClientGone,
        })
    }

    /// Sends a head. The response is over if it has no body.
    pub(super) fn send_head(&mut self, cx: &mut Context<'_>, head: &ResponseHead) -> Result<(), Gone> {
        match self {
            Self::Http2 { respond, sending, .. } => {
                let mut response = Response::new(());
                *response.status_mut() = head.status;
                let has_date = headers::response(Fields::Map(&head.fields), head.status, response.headers_mut());
                if head.is_interim {
                    return respond.send_informational(response).map_err(|_| Gone);
                }
                if !has_date {
                    insert_date(response.headers_mut());
                }
                let stream = respond.send_response(response, !head.has_body).map_err(|_| Gone)?;
                *sending = Some(Sending::new(stream));
                Ok(())
            }
            Self::Http1 { connection, is_chunked, is_head, version, persists, must_continue, next, .. } => {
                let is_http11 = *version == Version::Http11;
                if head.is_interim && !is_http11 {
                    return Ok(());
                }
                // Without either, the response would end with the connection (RFC 9112 §6.3).
                let is_empty = !head.has_body && !*is_head && !matches!(head.status.as_u16(), 204 | 304);
                let has_length = head.fields.contains_key(CONTENT_LENGTH) || !head.has_body;
                *is_chunked = is_http11 && !has_length;
                let persistence =
                    connection.persistence(*version, *persists && !*must_continue && (has_length || is_http11));
                buffer::assemble(|out| {
                    encode_line(out, head.status.as_u16(), head.status.canonical_reason().unwrap_or_default());
                    let has_date = headers::response(Fields::Map(&head.fields), head.status, out);
                    if is_empty && !head.is_interim && !head.fields.contains_key(CONTENT_LENGTH) {
                        out.extend_from_slice(b"content-length: 0\r\n");
                    }
                    if head.is_interim {
                        out.extend_from_slice(b"\r\n");
                    } else {
                        encode_end(out, *is_chunked, persistence, has_date);
                    }
                });
                if !head.is_interim {
                    *next = persistence.into();
                }
                connection.send(cx).map_err(|_| Gone)
            }
        }
    }

    /// Ready when the client has room for the next part of the response.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        match self {
            Self::Http1 { connection, .. } => connection.poll_flush(cx).map_err(|_| Gone),
            Self::Http2 { sending: Some(sending), .. } => sending.poll_flush(cx).map_err(|_| Gone),
            Self::Http2 { .. } => Poll::Ready(Ok(())),
        }
    }

    /// Whether an HTTP/2 client has reset the stream.
    pub(super) fn is_reset(&mut self, cx: &mut Context<'_>) -> bool {
        match self {
            Self::Http1 { .. } => false,
            Self::Http2 { sending: Some(sending), .. } => sending.stream.poll_reset(cx).is_ready(),
            Self::Http2 { respond, .. } => respond.poll_reset(cx).is_ready(),
        }
    }

    /// Sends a part of the response. Returns whether it has ended.
    pub(super) fn send(&mut self, cx: &mut Context<'_>, frame: Option<Frame>) -> Result<bool, Gone> {
        match self {
            Self::Http2 { sending, .. } => match sending {
                Some(sending) => sending.send(cx, frame).map_err(|_| Gone),
                None => Err(Gone),
            },
            Self::Http1 { connection, is_chunked, .. } => {
                let connection::Connection { stream, output, .. } = &mut **connection;
                send_frame(stream, output, cx, *is_chunked, frame.as_ref()).map_err(|_| Gone)
            }
        }
    }
}
