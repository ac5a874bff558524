//! The application's side of an exchange.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use h2::client::ResponseFuture;
use h2::{Reason, RecvStream};
use http::StatusCode;
use http::header::CONTENT_LENGTH;
use tokio::net::TcpStream;

use super::frame::{Frame, ReadError, ResponseHead, Sending, poll_frame, poll_received, send_frame};
use crate::http1::body::Decoder;
use crate::http1::error::HeadError;
use crate::http1::fields;
use crate::http1::response::Response;
use crate::proxy::HEAD_SIZE;
use crate::proxy::error::{Error, end_of_file};
use crate::proxy::pump::could_be_http;
use crate::server::buffer::{self, Input};
use crate::server::head::Fields;
use crate::upstream::connection::Connection;
use crate::upstream::http2::Running;

/// The application's side of an exchange.
pub(super) enum Origin {
    Http1 {
        connection: Connection<TcpStream>,
        output: Vec<u8>,
        /// The body of the response.
        body: Decoder,
        is_head: bool,
        /// Whether the request is chunked.
        is_chunked: bool,
        persists: bool,
        has_sent: bool,
        has_received: bool,
    },
    Http2 {
        running: Running,
        response: ResponseFuture,
        sending: Option<Sending>,
        receiving: Option<RecvStream>,
        is_head: bool,
        /// What the application has sent on the connection before.
        heard: usize,
        /// How much of the response is still to come, in bytes, where its head says so.
        left: Option<u64>,
    },
}

impl Origin {
    /// Ready when the application has room for the next part of the request.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        match self {
            Self::Http1 { connection, output, has_sent, .. } => {
                let before = output.len();
                let flushed = buffer::poll_flush(&mut connection.stream, cx, output).map_err(|_| ());
                *has_sent |= output.len() < before;
                flushed
            }
            Self::Http2 { sending: Some(sending), .. } => match sending.poll_flush(cx) {
                // The application may want no more of the request while it still responds.
                Poll::Pending if sending.stream.poll_reset(cx).is_ready() => Poll::Ready(Err(())),
                flushed => flushed.map_err(|_| ()),
            },
            Self::Http2 { .. } => Poll::Ready(Err(())),
        }
    }

    /// Sends a part of the request. Returns whether it has ended.
    pub(super) fn send(&mut self, cx: &mut Context<'_>, frame: Option<Frame>) -> Result<bool, ()> {
        match self {
            Self::Http1 { connection, output, is_chunked, .. } => {
                send_frame(&mut connection.stream, output, cx, *is_chunked, frame.as_ref()).map_err(|_| ())
            }
            Self::Http2 { sending: Some(sending), .. } => sending.send(cx, frame).map_err(|_| ()),
            Self::Http2 { .. } => Err(()),
        }
    }

    /// The application has responded in full.
    pub(super) fn complete(&mut self) {
        if let Self::Http2 { running, receiving, .. } = self
            && receiving.as_ref().is_none_or(RecvStream::is_end_stream)
        {
            drop(running.end());
        }
    }

    /// The client does not send the rest of its request.
    pub(super) fn reset(&mut self) {
        if let Self::Http2 { sending: Some(sending), .. } = self {
            sending.stream.send_reset(Reason::CANCEL);
        }
    }

    /// The next head of a response.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Error>> {
        match self {
            Self::Http1 { connection, body, is_head, persists, has_received, .. } => {
                let is_head = *is_head;
                let mut parse = |input: &[u8]| parse_head(input, is_head, body, persists);
                loop {
                    let read = buffer::poll_next(&mut connection.stream, cx, &mut connection.input, &mut parse);
                    let parsed = match ready!(read) {
                        Ok(Input::Read(parsed)) => {
                            *has_received = true;
                            parsed
                        }
                        Ok(Input::End) if !could_be_http(&connection.input) => Err(Error::Head(HeadError::StartLine)),
                        Ok(Input::End) => Err(Error::Closed(end_of_file())),
                        Err(error) => Err(Error::Closed(error)),
                    };
                    if let Some(head) = parsed.transpose() {
                        return Poll::Ready(head);
                    }
                }
            }
            Self::Http2 { response, receiving, is_head, left, .. } => {
                if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
                    let (head, ()) = interim.into_parts();
                    return Poll::Ready(Ok(ResponseHead {
                        status: head.status,
                        fields: head.headers,
                        has_body: false,
                        is_interim: true,
                    }));
                }
                let answered = ready!(Pin::new(response).poll(cx)).map_err(Error::of_stream)?;
                let (head, stream) = answered.into_parts();
                let no_body = *is_head || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
                *left = match no_body {
                    true => Some(0),
                    false => head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok()),
                };
                let has_body = !no_body && !stream.is_end_stream();
                *receiving = Some(stream);
                Poll::Ready(Ok(ResponseHead { status: head.status, fields: head.headers, has_body, is_interim: false }))
            }
        }
    }

    /// The next part of the response's body.
    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, Error>> {
        match self {
            Self::Http1 { connection, body, .. } => {
                let read = poll_frame(&mut connection.stream, &mut connection.input, body, cx);
                read.map_err(|error| match error {
                    ReadError::Io(error) => Error::Closed(error),
                    ReadError::Body(error) => Error::ResponseBody(error),
                    ReadError::Stream(error) => Error::of_stream(error),
                })
            }
            Self::Http2 { receiving, left, .. } => {
                let Some(stream) = receiving else { return Poll::Ready(Ok(None)) };
                let frame = ready!(poll_received(stream, cx)).map_err(Error::of_stream)?;
                if let (Some(left), Some(Frame::Data(data, _))) = (left, &frame) {
                    *left = left.saturating_sub(data.len() as u64);
                }
                Poll::Ready(Ok(frame))
            }
        }
    }
}

/// Parses a response's head. 101 is never asked for here.
fn parse_head(
    input: &[u8],
    is_head: bool,
    body: &mut Decoder,
    persists: &mut bool,
) -> (usize, Result<Option<ResponseHead>, Error>) {
    let mut storage = fields::storage();
    let response = match Response::parse(input, &mut storage, is_head, HEAD_SIZE) {
        Ok(Some(response)) => response,
        Ok(None) => return (0, Ok(None)),
        Err(error) => return (input.len(), Err(error.into())),
    };
    if response.status == 101 {
        return (response.length, Err(Error::Unasked));
    }
    let Ok(status) = StatusCode::from_u16(response.status) else {
        return (input.len(), Err(Error::Head(HeadError::Status)));
    };
    *body = Decoder::new(response.framing);
    *persists = response.persists;
    let has_body = !body.has_ended() && !response.is_interim();
    let head = ResponseHead {
        status,
        fields: Fields::Lines(response.fields).to_map(),
        has_body,
        is_interim: response.is_interim(),
    };
    (response.length, Ok(Some(head)))
}
