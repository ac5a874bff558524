//! Every combination of versions but HTTP/1.1 to HTTP/1.1: messages are frames, whatever they were on the wire.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::error::Error;
use super::headers::{self, Filter, RequestContext};
use super::http1::{Exchange, Failed, could_be_http};
use super::tracker::{Outcome, RequestTracker};
use super::{HEAD_SIZE, Proxy};
use crate::http1::body::{Decoder, Framing, Piece, TRAILER_FIELDS, encode_chunk, encode_end, parse_trailers};
use crate::http1::error::{BodyError, HeadError};
use crate::http1::fields;
use crate::http1::request::{Target, encode_line as encode_request_line};
use crate::http1::response::encode_line as encode_status_line;
use crate::server::buffer::{self, Input};
use crate::server::connection::{self, Client, Next};
use crate::server::head::{Fields, Persistence, encode_date, insert_date};
use crate::server::http2::discard;
use crate::server::stream::Socket;
use crate::server::timer::after;
use crate::upstream::connection::Connection;
use crate::upstream::http2::{Multiplexed, Running, Slot};
use crate::upstream::{InFlight, UNREAD_TIME};

/// A part of a body.
#[derive(Debug)]
enum Frame {
    /// Data, and whether it is certain that it is the last part.
    Data(Bytes, bool),
    /// The trailers, which end the body.
    Trailers(HeaderMap),
}

/// Why a body cannot be read.
#[derive(Debug)]
enum ReadError {
    Io(io::Error),
    Body(BodyError),
    Stream(h2::Error),
}

/// One direction of an HTTP/1.1 connection each: a body that is decoded, and one that is encoded.
#[derive(Debug)]
struct Http1<'a, S> {
    stream: &'a mut S,
    input: &'a mut Vec<u8>,
    output: &'a mut Vec<u8>,
    decoder: Decoder,
    is_chunked: bool,
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
                Piece::Trailers(section) => trailers(section).map(|trailers| Decoded::Frame(Frame::Trailers(trailers))),
                Piece::End => Ok(Decoded::End),
                Piece::More => Ok(Decoded::More),
            },
        ),
    }
}

fn trailers(section: &[u8]) -> Result<HeaderMap, BodyError> {
    let mut room = [httparse::EMPTY_HEADER; TRAILER_FIELDS];
    let mut map = HeaderMap::new();
    headers::trailers(Fields::Lines(parse_trailers(section, &mut room)?), &mut map);
    Ok(map)
}

impl<S: Socket> Http1<'_, S> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, ReadError>> {
        loop {
            if self.decoder.has_ended() {
                return Poll::Ready(Ok(None));
            }
            let decoder = &mut self.decoder;
            let decoded = if self.input.is_empty() {
                Ok(Decoded::More)
            } else {
                buffer::take_kept(self.input, |input| decode(decoder, input))
            };
            let decoded = match decoded {
                Ok(Decoded::More) => {
                    let read = buffer::poll_read(self.stream, cx, self.input, |input| decode(decoder, input));
                    match ready!(read) {
                        Ok(Input::Read(decoded)) => decoded,
                        Ok(Input::End) if self.decoder.may_end_with_connection() => Ok(Decoded::End),
                        Ok(Input::End) => {
                            let error = io::Error::new(io::ErrorKind::UnexpectedEof, "end of file");
                            return Poll::Ready(Err(ReadError::Io(error)));
                        }
                        Err(error) => return Poll::Ready(Err(ReadError::Io(error))),
                    }
                }
                decoded => decoded,
            };
            match decoded {
                Ok(Decoded::Frame(frame)) => return Poll::Ready(Ok(Some(frame))),
                Ok(Decoded::End) => return Poll::Ready(Ok(None)),
                Ok(Decoded::More) => {}
                Err(error) => return Poll::Ready(Err(ReadError::Body(error))),
            }
        }
    }

    /// Sends a frame. The one before has been taken. Without a frame, the body ends.
    fn send(&mut self, cx: &mut Context<'_>, frame: Option<&Frame>) -> io::Result<()> {
        let is_chunked = self.is_chunked;
        buffer::assemble(|out| match frame {
            Some(Frame::Data(data, _)) if is_chunked => encode_chunk(out, data),
            Some(Frame::Data(data, _)) => out.extend_from_slice(data),
            Some(Frame::Trailers(trailers)) if is_chunked => {
                let fields = trailers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
                encode_end(out, fields);
            }
            None if is_chunked => encode_end(out, []),
            Some(Frame::Trailers(_)) | None => {}
        });
        buffer::send(self.stream, cx, self.output)
    }
}

/// The half of an HTTP/2 stream on which a body is sent.
#[derive(Debug)]
struct Sending {
    stream: SendStream<Bytes>,
    /// What the peer has no room for yet, and whether the body ends with it.
    pending: Option<(Bytes, bool)>,
}

impl Sending {
    fn new(stream: SendStream<Bytes>) -> Self {
        Self { stream, pending: None }
    }

    /// Ready when nothing is pending.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
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
    fn send(&mut self, cx: &mut Context<'_>, frame: Option<Frame>) -> Result<bool, h2::Error> {
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

/// The next part of a body on an HTTP/2 stream. What is handed on has room again: as fast as one side reads, the other may send.
fn poll_received(stream: &mut RecvStream, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, h2::Error>> {
    Poll::Ready(match ready!(stream.poll_data(cx)).transpose()? {
        Some(data) => {
            stream.flow_control().release_capacity(data.len())?;
            Ok(Some(Frame::Data(data, stream.is_end_stream())))
        }
        None => ready!(stream.poll_trailers(cx)).map(|received| {
            received.map(|received| {
                let mut passed = HeaderMap::new();
                headers::trailers(Fields::Map(&received), &mut passed);
                Frame::Trailers(passed)
            })
        }),
    })
}

/// A response's head.
#[derive(Debug)]
struct ResponseHead {
    status: StatusCode,
    fields: HeaderMap,
    has_body: bool,
    is_interim: bool,
}

/// The client's side of an exchange.
enum Downstream<'a, C> {
    Http1 {
        connection: &'a mut connection::Connection<C>,
        body: Decoder,
        is_chunked: bool,
        is_head: bool,
        version: crate::http1::Version,
        persists: bool,
        must_continue: bool,
        next: Next,
    },
    Http2 {
        respond: SendResponse<Bytes>,
        sending: Option<Sending>,
        receiving: RecvStream,
    },
}

impl<C: Socket> Downstream<'_, C> {
    fn http1(&mut self) -> Option<Http1<'_, C>> {
        let Self::Http1 { connection, body, is_chunked, .. } = self else { return None };
        let connection::Connection { stream, input, output, .. } = &mut **connection;
        Some(Http1 { stream, input, output, decoder: body.clone(), is_chunked: *is_chunked })
    }

    /// The next part of the request's body.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, Error>> {
        if let Self::Http1 { connection, must_continue, .. } = self
            && std::mem::take(must_continue)
        {
            buffer::assemble(|out| out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n"));
            connection.send(cx).map_err(|_| Error::ClientGone)?;
        }
        let read = match self {
            Self::Http2 { receiving, .. } => poll_received(receiving, cx).map_err(ReadError::Stream),
            Self::Http1 { .. } => {
                let Some(mut http1) = self.http1() else { return Poll::Pending };
                let read = http1.poll_frame(cx);
                let decoder = http1.decoder;
                if let Self::Http1 { body, .. } = self {
                    *body = decoder;
                }
                read
            }
        };
        read.map_err(|error| match error {
            ReadError::Body(error) => Error::Body(error),
            ReadError::Io(_) | ReadError::Stream(_) => Error::ClientGone,
        })
    }

    /// Sends a head. The response is over if it has no body.
    fn send_head(&mut self, cx: &mut Context<'_>, head: &ResponseHead) -> Result<(), Gone> {
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
                let is_http11 = *version == crate::http1::Version::Http11;
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
                    encode_status_line(out, head.status.as_u16(), head.status.canonical_reason().unwrap_or_default());
                    let has_date = headers::response(Fields::Map(&head.fields), head.status, out);
                    if !head.is_interim {
                        if *is_chunked {
                            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
                        }
                        if is_empty && !head.fields.contains_key(CONTENT_LENGTH) {
                            out.extend_from_slice(b"content-length: 0\r\n");
                        }
                        out.extend_from_slice(persistence.field());
                        if !has_date {
                            encode_date(out);
                        }
                    }
                    out.extend_from_slice(b"\r\n");
                });
                if !head.is_interim {
                    *next = if persistence == Persistence::Closes { Next::Close } else { Next::Persist };
                }
                connection.send(cx).map_err(|_| Gone)
            }
        }
    }

    /// Ready when the client has room for the next part of the response.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        match self {
            Self::Http1 { connection, .. } => connection.poll_flush(cx).map_err(|_| Gone),
            Self::Http2 { sending: Some(sending), .. } => sending.poll_flush(cx).map_err(|_| Gone),
            Self::Http2 { .. } => Poll::Ready(Ok(())),
        }
    }

    /// Whether an HTTP/2 client has reset the stream.
    fn is_reset(&mut self, cx: &mut Context<'_>) -> bool {
        match self {
            Self::Http1 { .. } => false,
            Self::Http2 { sending: Some(sending), .. } => sending.stream.poll_reset(cx).is_ready(),
            Self::Http2 { respond, .. } => respond.poll_reset(cx).is_ready(),
        }
    }

    /// Sends a part of the response. Returns whether it has ended.
    fn send(&mut self, cx: &mut Context<'_>, frame: Option<Frame>) -> Result<bool, Gone> {
        match self {
            Self::Http2 { sending, .. } => match sending {
                Some(sending) => sending.send(cx, frame).map_err(|_| Gone),
                None => Err(Gone),
            },
            Self::Http1 { .. } => {
                let Some(mut http1) = self.http1() else { return Err(Gone) };
                let is_last = matches!(frame, Some(Frame::Data(_, true))) && !http1.is_chunked;
                http1.send(cx, frame.as_ref()).map_err(|_| Gone)?;
                Ok(is_last || matches!(frame, None | Some(Frame::Trailers(_))))
            }
        }
    }
}

/// The client is gone.
#[derive(Clone, Copy, Debug)]
struct Gone;

/// The application's side of an exchange.
enum Origin {
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
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
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
    fn send(&mut self, cx: &mut Context<'_>, frame: Option<Frame>) -> Result<bool, ()> {
        match self {
            Self::Http1 { connection, output, is_chunked, .. } => {
                let ends = matches!(frame, None | Some(Frame::Trailers(_)))
                    || (!*is_chunked && matches!(frame, Some(Frame::Data(_, true))));
                let mut http1 = Http1 {
                    stream: &mut connection.stream,
                    input: &mut Vec::new(),
                    output,
                    decoder: Decoder::new(Framing::Length(0)),
                    is_chunked: *is_chunked,
                };
                http1.send(cx, frame.as_ref()).map_err(|_| ())?;
                Ok(ends)
            }
            Self::Http2 { sending: Some(sending), .. } => sending.send(cx, frame).map_err(|_| ()),
            Self::Http2 { .. } => Err(()),
        }
    }

    /// The application has responded in full.
    fn complete(&mut self) {
        if let Self::Http2 { running, receiving, .. } = self
            && receiving.as_ref().is_none_or(RecvStream::is_end_stream)
        {
            drop(running.end());
        }
    }

    /// The client does not send the rest of its request.
    fn reset(&mut self) {
        if let Self::Http2 { sending: Some(sending), .. } = self {
            sending.stream.send_reset(Reason::CANCEL);
        }
    }

    /// The next head of a response.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Error>> {
        match self {
            Self::Http1 { connection, body, is_head, persists, has_received, .. } => {
                let is_head = *is_head;
                let mut parse = |input: &[u8]| parse_head(input, is_head, body, persists);
                let mut parsed = Ok(None);
                if !connection.input.is_empty() {
                    parsed = buffer::take_kept(&mut connection.input, &mut parse);
                }
                while let Ok(None) = parsed {
                    let read = buffer::poll_read(&mut connection.stream, cx, &mut connection.input, &mut parse);
                    parsed = match ready!(read) {
                        Ok(Input::Read(parsed)) => {
                            *has_received = true;
                            parsed
                        }
                        Ok(Input::End) if !could_be_http(&connection.input) => Err(Error::Head(HeadError::StartLine)),
                        Ok(Input::End) => {
                            Err(Error::Closed(io::Error::new(io::ErrorKind::UnexpectedEof, "end of file")))
                        }
                        Err(error) => Err(Error::Closed(error)),
                    };
                }
                Poll::Ready(parsed.and_then(|head| head.ok_or(Error::Unasked)))
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
                if has_other_coding(&head.headers) {
                    return Poll::Ready(Err(Error::Coding));
                }
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
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame>, Error>> {
        match self {
            Self::Http1 { connection, output, body, .. } => {
                let decoder = body.clone();
                let mut http1 = Http1 {
                    stream: &mut connection.stream,
                    input: &mut connection.input,
                    output,
                    decoder,
                    is_chunked: false,
                };
                let read = http1.poll_frame(cx);
                *body = http1.decoder;
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
    let response = match crate::http1::response::Response::parse(input, &mut storage, is_head, HEAD_SIZE) {
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
    let mut map = HeaderMap::new();
    for field in response.fields {
        headers::Sink::field(&mut map, field.name, field.value);
    }
    *body = Decoder::new(response.framing);
    *persists = response.persists;
    let has_body = !body.has_ended() && !response.is_interim();
    let head = ResponseHead { status, fields: map, has_body, is_interim: response.is_interim() };
    (response.length, Ok(Some(head)))
}

fn has_other_coding(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let first = codings.next();
    codings.next().is_some() || first.is_some_and(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
}

/// A request as the application gets it.
enum Outgoing {
    Http1 { head: Vec<u8>, is_chunked: bool },
    Http2(Request<()>),
}

/// What matters of a request beside its head.
#[derive(Clone, Copy, Debug)]
struct About {
    /// Whether the request may be sent once more.
    may_repeat: bool,
    is_head: bool,
    is_idempotent: bool,
    has_body: bool,
}

/// An HTTP/2 request whose response is not complete.
pub struct StreamFailed {
    /// Why.
    pub error: Error,
    /// How the client is told.
    pub responder: Responder,
    /// The request's body, of which the client may still send the rest.
    pub body: RecvStream,
}

/// How far the response to an HTTP/2 client is.
pub enum Responder {
    /// It has not begun.
    Unsent(SendResponse<Bytes>),
    /// Its head is sent.
    Started(SendStream<Bytes>),
}

/// How an exchange has ended.
enum End {
    Complete,
    /// The request was not processed, and can be sent again.
    Unsent,
    /// The client is gone, or reads nothing.
    ClientGone,
    Failed(Error),
}

impl Proxy {
    /// Forwards an HTTP/2 request and its response.
    ///
    /// # Errors
    ///
    /// The response is not complete: the caller answers.
    pub async fn forward_stream(
        &self,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        client: &Client,
        mut tracker: RequestTracker,
        (filter, idle_timeout): (Option<Filter>, Duration),
    ) -> Result<(), Box<StreamFailed>> {
        let (head, body) = request.into_parts();
        let about = About {
            may_repeat: true,
            is_head: head.method == Method::HEAD,
            is_idempotent: head.method.is_idempotent(),
            has_body: !body.is_end_stream(),
        };
        let mut downstream: Downstream<'_, TcpStream> = Downstream::Http2 { respond, sending: None, receiving: body };
        let end = match self.outgoing(&head, client, filter, about) {
            Ok(outgoing) => self.exchange(outgoing, about, &mut downstream, &mut tracker, idle_timeout).await,
            Err(error) => End::Failed(error),
        };
        let Downstream::Http2 { respond, sending, receiving } = downstream else { return Ok(()) };
        match end {
            End::Failed(error) => {
                self.report(&error, &mut tracker);
                let responder = match sending {
                    Some(sending) => Responder::Started(sending.stream),
                    None => Responder::Unsent(respond),
                };
                Err(Box::new(StreamFailed { error, responder, body: receiving }))
            }
            End::Complete | End::Unsent => {
                drop((sending, tracker));
                discard(receiving).await;
                Ok(())
            }
            End::ClientGone => {
                if let Some(mut sending) = sending {
                    sending.stream.send_reset(Reason::CANCEL);
                }
                Ok(())
            }
        }
    }

    /// Forwards an HTTP/1.1 request to an application that speaks HTTP/2.
    pub(super) async fn forward_to_http2<C: Socket>(
        &self,
        exchange: Exchange,
        client: &mut connection::Connection<C>,
    ) -> Result<Next, Failed> {
        let Some(outgoing) = for_http2(exchange.head()) else {
            return Err(exchange.failed(Error::Ambiguous(headers::Ambiguous::Host)));
        };
        let about = About {
            may_repeat: true,
            is_head: exchange.is_head,
            is_idempotent: exchange.is_idempotent,
            has_body: exchange.has_body,
        };
        let idle_timeout = client.idle_timeout();
        let mut exchange = exchange;
        let mut downstream = Downstream::Http1 {
            connection: &mut *client,
            body: exchange.body.clone(),
            is_chunked: false,
            is_head: exchange.is_head,
            version: exchange.version,
            persists: exchange.persists,
            must_continue: exchange.must_continue,
            next: Next::Linger,
        };
        let end =
            self.exchange(Outgoing::Http2(outgoing), about, &mut downstream, &mut exchange.tracker, idle_timeout).await;
        let Downstream::Http1 { body, must_continue, next, .. } = downstream else { return Ok(Next::Close) };
        exchange.body = body;
        exchange.must_continue = must_continue;
        let has_begun = next != Next::Linger;
        match end {
            End::Complete | End::Unsent => {
                drop(exchange.tracker);
                Ok(match next {
                    Next::Persist if client.finish(Some(exchange.body.clone())).await => Next::Persist,
                    Next::Close if exchange.body.has_ended() && client.input.is_empty() => Next::Close,
                    _ => Next::Linger,
                })
            }
            End::ClientGone => Ok(Next::Close),
            End::Failed(error) => {
                self.report(&error, &mut exchange.tracker);
                if !has_begun {
                    return Err(exchange.failed(error));
                }
                if !matches!(error, Error::Aborted) || client.output.is_empty() {
                    client.finish(None).await;
                }
                Ok(if exchange.version == crate::http1::Version::Http10 { Next::Reset } else { Next::Close })
            }
        }
    }

    /// Makes of an HTTP/2 client's request the application's.
    fn outgoing(
        &self,
        head: &http::request::Parts,
        client: &Client,
        filter: Option<Filter>,
        about: About,
    ) -> Result<Outgoing, Error> {
        if head.method == Method::CONNECT {
            return Err(Error::Tunnel);
        }
        let fields = Fields::Map(&head.headers);
        let host = headers::http2_host(fields, head.uri.authority().map(Authority::as_str))?;
        let context = RequestContext {
            version: Version::HTTP_2,
            host: Some(host),
            replaces_host: false,
            fallback: self.host.as_bytes(),
            client: client.text(),
            filter,
        };
        let path = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        if self.multiplexed.is_some() {
            let mut request = Request::new(());
            *request.method_mut() = head.method.clone();
            *request.uri_mut() = path.parse().map_err(|_| headers::Ambiguous::Host)?;
            headers::request(fields, &context, request.headers_mut());
            return Ok(Outgoing::Http2(with_authority(request)));
        }
        let mut out = Vec::new();
        let target = if path == "*" { Target::Asterisk } else { Target::Origin(path) };
        encode_request_line(&mut out, head.method.as_str(), target);
        headers::request(fields, &context, &mut out);
        let is_chunked = about.has_body && !head.headers.contains_key(CONTENT_LENGTH);
        if is_chunked {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        out.extend_from_slice(b"\r\n");
        Ok(Outgoing::Http1 { head: out, is_chunked })
    }

    /// Sends a request, once more where the application has not processed it, and passes the response on.
    async fn exchange<C: Socket>(
        &self,
        outgoing: Outgoing,
        about: About,
        client: &mut Downstream<'_, C>,
        tracker: &mut RequestTracker,
        idle_timeout: Duration,
    ) -> End {
        let mut is_again = false;
        loop {
            let mut origin = match self.open(&outgoing, about, tracker, is_again).await {
                Ok(origin) => origin,
                Err(error) => return End::Failed(error),
            };
            let end = self.relay(&mut origin, about, client, tracker, idle_timeout).await;
            let end = self.close(origin, end, About { may_repeat: !is_again, ..about }, tracker);
            if !matches!(end, End::Unsent) {
                return end;
            }
            is_again = true;
        }
    }

    /// Sends a request's head.
    async fn open(
        &self,
        outgoing: &Outgoing,
        about: About,
        tracker: &mut RequestTracker,
        is_again: bool,
    ) -> Result<Origin, Error> {
        let (multiplexed, request) = match (outgoing, &self.multiplexed) {
            (Outgoing::Http2(request), Some(multiplexed)) => (multiplexed, request),
            (Outgoing::Http1 { head, is_chunked }, _) => {
                let kept = match is_again {
                    true => None,
                    false => poll_fn(|cx| Poll::Ready(self.pool.reuse(cx))).await,
                };
                let connection = match kept {
                    Some(connection) => connection,
                    None => self.connect(tracker).await?,
                };
                return Ok(Origin::Http1 {
                    connection,
                    output: head.clone(),
                    body: Decoder::new(Framing::Length(0)),
                    is_head: about.is_head,
                    is_chunked: *is_chunked,
                    persists: false,
                    has_sent: false,
                    has_received: false,
                });
            }
            (Outgoing::Http2(_), None) => return Err(Error::Unasked),
        };
        let mut slot = self.slot(multiplexed, tracker).await?;
        let mut sent = slot.send(request.clone(), !about.has_body);
        if sent.is_err() {
            // The application has closed the connection meanwhile. Nothing was sent.
            multiplexed.retire(&slot);
            slot = self.slot(multiplexed, tracker).await?;
            sent = slot.send(request.clone(), !about.has_body);
        }
        let (response, stream) = sent.map_err(Error::of_stream)?;
        let heard = slot.heard();
        let in_flight = tracker.take_in_flight().unwrap_or_else(InFlight::nothing);
        Ok(Origin::Http2 {
            running: Running::new(slot, in_flight),
            response,
            sending: about.has_body.then(|| Sending::new(stream)),
            receiving: None,
            is_head: about.is_head,
            heard,
            left: None,
        })
    }

    async fn slot(&self, multiplexed: &Multiplexed, tracker: &RequestTracker) -> Result<Slot, Error> {
        tokio::select! {
            slot = timeout(self.timeout, multiplexed.slot()) => match slot {
                Ok(slot) => Ok(slot?),
                Err(_) => Err(Error::Timeout("does not accept a connection")),
            },
            () = tracker.aborted() => Err(Error::Aborted),
        }
    }

    /// Passes the request's body in one direction and the response in the other.
    async fn relay<C: Socket>(
        &self,
        origin: &mut Origin,
        about: About,
        client: &mut Downstream<'_, C>,
        tracker: &mut RequestTracker,
        idle_timeout: Duration,
    ) -> End {
        let mut aborted = pin!(tracker.aborted());
        let mut timer = pin!(sleep_until(after(Instant::now(), self.timeout.min(idle_timeout))));
        let mut relay = Relay {
            origin,
            client,
            has_body: about.has_body,
            response: ResponseProgress::Head,
            tracker,
            is_complete: false,
            since: Instant::now(),
            timeout: self.timeout,
            idle_timeout,
        };
        let end = poll_fn(|cx| relay.poll(cx, aborted.as_mut(), timer.as_mut())).await;
        if matches!(relay.response, ResponseProgress::Done) {
            relay.tracker.count(Outcome::Forwarded);
        }
        end
    }

    /// Releases what the exchange held, as far as the application is not at work any more.
    fn close(&self, origin: Origin, end: End, about: About, tracker: &mut RequestTracker) -> End {
        match origin {
            Origin::Http1 { connection, persists, has_sent, has_received, .. } => {
                let in_flight = tracker.take_in_flight();
                let is_unread = !has_sent || (!has_received && about.is_idempotent && !about.has_body);
                match end {
                    End::Complete => {
                        if persists && connection.input.is_empty() {
                            self.pool.keep(connection);
                        }
                        End::Complete
                    }
                    End::Failed(Error::Closed(_)) if about.may_repeat && connection.is_reused && is_unread => {
                        tracker.restore(in_flight);
                        End::Unsent
                    }
                    End::Failed(error @ Error::Closed(_)) => End::Failed(error),
                    end => {
                        connection.abandon(in_flight);
                        end
                    }
                }
            }
            Origin::Http2 { mut running, receiving, heard, left, sending, .. } => {
                drop(sending);
                match end {
                    End::Complete => {
                        match receiving {
                            Some(stream) if !stream.is_end_stream() => _ = tokio::spawn(finish(stream, running)),
                            _ => _ = running.end(),
                        }
                        End::Complete
                    }
                    // All that was announced is the whole response to an HTTP/1.1 client, with the end of the stream yet to come.
                    End::ClientGone if left == Some(0) => {
                        if let Some(stream) = receiving {
                            tokio::spawn(finish(stream, running));
                        }
                        End::ClientGone
                    }
                    End::Failed(error) => match &error {
                        Error::Timeout(_) if running.slot.heard() == heard => {
                            // Perhaps the application's host is gone.
                            if let Some(multiplexed) = &self.multiplexed {
                                multiplexed.retire(&running.slot);
                            }
                            End::Failed(error)
                        }
                        Error::Refused(_) if about.may_repeat && receiving.is_none() && !about.has_body => {
                            tracker.restore(running.end());
                            End::Unsent
                        }
                        Error::Lost(_)
                            if about.may_repeat
                                && receiving.is_none()
                                && !about.has_body
                                && about.is_idempotent
                                && !running.slot.is_first =>
                        {
                            tracker.restore(running.end());
                            End::Unsent
                        }
                        Error::Refused(_) | Error::Reset(_) | Error::Lost(_) => {
                            running.end();
                            End::Failed(error)
                        }
                        _ => End::Failed(error),
                    },
                    end => end,
                }
            }
        }
    }
}

/// Waits for the end of a response that is all there, so that the application is not told that nobody wanted it.
async fn finish(mut stream: RecvStream, mut running: Running) {
    let end = poll_fn(|cx| {
        loop {
            if ready!(poll_received(&mut stream, cx))?.is_none() {
                return Poll::Ready(Ok::<(), h2::Error>(()));
            }
        }
    });
    if let Ok(Ok(())) = timeout(UNREAD_TIME, end).await {
        running.end();
    }
}

/// Makes of a request's head for HTTP/1.1 one for HTTP/2.
fn for_http2(head: &[u8]) -> Option<Request<()>> {
    let mut storage = fields::storage();
    let parsed = crate::http1::request::Request::parse(head, &mut storage, usize::MAX).ok().flatten()?;
    let mut request = Request::new(());
    *request.method_mut() = parsed.method.parse().ok()?;
    *request.uri_mut() = parsed.target.path_and_query().parse().ok()?;
    for field in parsed.fields {
        headers::Sink::field(request.headers_mut(), field.name, field.value);
    }
    Some(with_authority(request))
}

/// Puts the `Host` into the URL, and leaves out what concerns a connection (RFC 9113 §8.2.2, §8.3.1). A `Host` that cannot be in a
/// URL stays where it is, as that section allows.
fn with_authority(mut request: Request<()>) -> Request<()> {
    for name in [CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        request.headers_mut().remove(name);
    }
    let host = request.headers().get(HOST).map(|host| Authority::try_from(host.as_bytes()));
    let Some(Ok(authority)) = host else { return request };
    let mut parts = request.uri().clone().into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority);
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(HOST);
    }
    request
}

/// How far the response is.
enum ResponseProgress {
    Head,
    Body,
    Done,
}

/// Passes frames in both directions.
struct Relay<'r, 'c, C> {
    origin: &'r mut Origin,
    client: &'r mut Downstream<'c, C>,
    /// Whether more of the request's body is to be passed on.
    has_body: bool,
    response: ResponseProgress,
    tracker: &'r mut RequestTracker,
    /// Whether the application is done with the request.
    is_complete: bool,
    since: Instant,
    timeout: Duration,
    idle_timeout: Duration,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, Default)]
struct Waiting {
    /// The client, to read more of the response.
    for_room: bool,
    /// The client, to send more of its request.
    for_body: bool,
}

impl<C: Socket> Relay<'_, '_, C> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut aborted: Pin<&mut impl Future<Output = ()>>,
        mut timer: Pin<&mut Sleep>,
    ) -> Poll<End> {
        let mut has_ever_moved = false;
        let waiting = loop {
            if !self.is_complete && aborted.as_mut().poll(cx).is_ready() {
                return Poll::Ready(End::Failed(Error::Aborted));
            }
            let mut waiting = Waiting::default();
            let body = match self.poll_request(cx, &mut waiting) {
                Ok(moved) => moved,
                Err(error) => return Poll::Ready(End::Failed(error)),
            };
            let response = match self.poll_response(cx, &mut waiting) {
                Ok(moved) => moved,
                Err(end) => return Poll::Ready(end),
            };
            let is_done = matches!(self.response, ResponseProgress::Done) && !self.has_body;
            if is_done && !std::mem::replace(&mut self.is_complete, true) {
                // The application is not at work any more, however slowly the client reads.
                self.origin.complete();
                self.tracker.complete();
            }
            if body || response {
                has_ever_moved = true;
                continue;
            }
            if is_done && !waiting.for_room {
                return Poll::Ready(End::Complete);
            }
            break waiting;
        };
        if self.client.is_reset(cx) {
            return Poll::Ready(End::ClientGone);
        }
        if has_ever_moved {
            self.since = Instant::now();
        }
        let deadline = after(self.since, if waiting.for_room { self.idle_timeout } else { self.timeout });
        loop {
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(self.timed_out(waiting));
            }
        }
    }

    fn timed_out(&self, waiting: Waiting) -> End {
        match self.response {
            _ if waiting.for_room => End::ClientGone,
            ResponseProgress::Done => End::ClientGone,
            _ if waiting.for_body => End::Failed(Error::ClientTimeout),
            ResponseProgress::Head => End::Failed(Error::Timeout("does not answer")),
            ResponseProgress::Body => End::Failed(Error::Timeout("does not go on with its answer")),
        }
    }

    /// Passes on more of the request.
    fn poll_request(&mut self, cx: &mut Context<'_>, waiting: &mut Waiting) -> Result<bool, Error> {
        match self.origin.poll_ready(cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(())) => {
                // The application wants no more. It may have responded.
                self.has_body = false;
            }
        }
        if !self.has_body {
            return Ok(false);
        }
        match self.client.poll_body(cx) {
            Poll::Pending => {
                waiting.for_body = true;
                Ok(false)
            }
            Poll::Ready(Ok(frame)) => {
                match self.origin.send(cx, frame) {
                    Ok(has_ended) => self.has_body = !has_ended,
                    Err(()) => self.has_body = false,
                }
                Ok(true)
            }
            Poll::Ready(Err(error)) => {
                self.has_body = false;
                self.origin.reset();
                Err(error)
            }
        }
    }

    /// Passes on more of the response.
    fn poll_response(&mut self, cx: &mut Context<'_>, waiting: &mut Waiting) -> Result<bool, End> {
        match self.client.poll_ready(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(Gone)) => return Err(End::ClientGone),
            Poll::Pending => {
                waiting.for_room = true;
                return Ok(false);
            }
        }
        match self.response {
            ResponseProgress::Head => match self.origin.poll_head(cx) {
                Poll::Pending => Ok(false),
                Poll::Ready(Err(error)) => Err(End::Failed(error)),
                Poll::Ready(Ok(head)) => {
                    if !(head.is_interim && head.status == StatusCode::CONTINUE) {
                        self.client.send_head(cx, &head).map_err(|Gone| End::ClientGone)?;
                    }
                    if !head.is_interim {
                        self.response = if head.has_body { ResponseProgress::Body } else { ResponseProgress::Done };
                    }
                    Ok(true)
                }
            },
            ResponseProgress::Body => match self.origin.poll_body(cx) {
                Poll::Pending => Ok(false),
                Poll::Ready(Err(error)) => Err(End::Failed(error)),
                Poll::Ready(Ok(frame)) => {
                    if self.client.send(cx, frame).map_err(|Gone| End::ClientGone)? {
                        self.response = ResponseProgress::Done;
                    }
                    Ok(true)
                }
            },
            ResponseProgress::Done => {
                // An application that speaks HTTP/2 and has responded in full does not want the rest of the request.
                if matches!(self.origin, Origin::Http2 { .. }) {
                    self.has_body = false;
                }
                Ok(false)
            }
        }
    }
}
