//! Every combination of versions but HTTP/1.1 to HTTP/1.1: messages are frames, whatever they are on the wire.
//!
//! - `downstream` and `origin`: the two sides of an exchange, in either version.
//! - `frame`: what passes between them.

mod downstream;
mod frame;
mod origin;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, StatusCode, Uri, Version};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use self::downstream::{Downstream, Gone};
use self::frame::{Sending, poll_received};
use self::origin::Origin;
use super::Proxy;
use super::error::Error;
use super::exchange::{Exchange, Failed};
use super::headers::{self, Filter, RequestContext};
use super::http1::{Origins, break_off, complete};
use super::tracker::{Outcome, RequestTracker};
use crate::http1::body::{Decoder, Framing};
use crate::http1::{fields, request};
use crate::server::connection::{self, Client, Next};
use crate::server::head::Fields;
use crate::server::http2::discard;
use crate::server::stream::Socket;
use crate::server::timer::after;
use crate::upstream::http2::{Multiplexed, Running, Slot};
use crate::upstream::{InFlight, UNREAD_TIME};

/// A request as the application gets it.
enum UpstreamRequest {
    Http1 { head: Vec<u8>, is_chunked: bool },
    Http2(Request<()>),
}

/// What matters of a request beside its head.
#[derive(Clone, Copy, Debug)]
struct About {
    is_head: bool,
    is_idempotent: bool,
    has_body: bool,
}

/// An HTTP/2 request whose response is not complete.
pub struct StreamFailed {
    /// Why.
    pub error: Error,
    /// The response so far.
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
            End::Complete => {
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
        mut exchange: Box<Exchange>,
        client: &mut connection::Connection<C>,
    ) -> Result<Next, Box<Failed>> {
        let Some(outgoing) = for_http2(exchange.head()) else {
            return Err(exchange.failed(Error::Ambiguous(headers::Ambiguous::Host)));
        };
        let about =
            About { is_head: exchange.is_head, is_idempotent: exchange.is_idempotent, has_body: exchange.has_body };
        let idle_timeout = client.idle_timeout();
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
        let end = self
            .exchange(UpstreamRequest::Http2(outgoing), about, &mut downstream, &mut exchange.tracker, idle_timeout)
            .await;
        let Downstream::Http1 { body, must_continue, next, .. } = downstream else { return Ok(Next::Close) };
        exchange.body = body;
        exchange.must_continue = must_continue;
        let has_begun = next != Next::Linger;
        match end {
            End::Complete => {
                drop(exchange.tracker);
                Ok(complete(client, next, exchange.body).await)
            }
            End::ClientGone => Ok(Next::Close),
            End::Failed(error) => {
                self.report(&error, &mut exchange.tracker);
                if has_begun {
                    Ok(break_off(client, &error, exchange.version).await)
                } else {
                    Err(exchange.failed(error))
                }
            }
        }
    }

    /// Turns an HTTP/2 client's request into the application's.
    fn outgoing(
        &self,
        head: &http::request::Parts,
        client: &Client,
        filter: Option<Filter>,
        about: About,
    ) -> Result<UpstreamRequest, Error> {
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
            return Ok(UpstreamRequest::Http2(with_authority(request)));
        }
        let mut out = Vec::new();
        let target = if path == "*" { request::Target::Asterisk } else { request::Target::Origin(path) };
        request::encode_line(&mut out, head.method.as_str(), target);
        headers::request(fields, &context, &mut out);
        let is_chunked = about.has_body && !head.headers.contains_key(CONTENT_LENGTH);
        if is_chunked {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        }
        out.extend_from_slice(b"\r\n");
        Ok(UpstreamRequest::Http1 { head: out, is_chunked })
    }

    /// Sends a request, once more where the application has not processed it, and passes the response on.
    async fn exchange<C: Socket>(
        &self,
        outgoing: UpstreamRequest,
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
            if let Some(end) = self.close(origin, end, (about, is_again), tracker) {
                return end;
            }
            is_again = true;
        }
    }

    /// Sends a request's head.
    async fn open(
        &self,
        outgoing: &UpstreamRequest,
        about: About,
        tracker: &mut RequestTracker,
        is_again: bool,
    ) -> Result<Origin, Error> {
        let (multiplexed, request) = match (outgoing, &self.multiplexed) {
            (UpstreamRequest::Http2(request), Some(multiplexed)) => (multiplexed, request),
            (UpstreamRequest::Http1 { head, is_chunked }, _) => {
                let kept = match is_again {
                    true => None,
                    false => poll_fn(|cx| Poll::Ready(self.pool.reuse(cx))).await,
                };
                let connection = match kept {
                    Some(connection) => connection,
                    None => Box::pin(self.connect(tracker)).await?,
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
            (UpstreamRequest::Http2(_), None) => return Err(Error::Unasked),
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
        if let Some(slot) = multiplexed.reuse() {
            return Ok(slot);
        }
        // Rare, and large.
        Box::pin(async {
            tokio::select! {
                slot = timeout(self.timeout, multiplexed.slot()) => match slot {
                    Ok(slot) => Ok(slot?),
                    Err(_) => Err(Error::Timeout("does not accept a connection")),
                },
                () = tracker.aborted() => Err(Error::Aborted),
            }
        })
        .await
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
            response: ResponseState::Head,
            tracker,
            is_complete: false,
            since: Instant::now(),
            timeout: self.timeout,
            idle_timeout,
        };
        let end = poll_fn(|cx| relay.poll(cx, aborted.as_mut(), timer.as_mut())).await;
        if matches!(relay.response, ResponseState::Done) {
            relay.tracker.count(Outcome::Forwarded);
        }
        end
    }

    /// Releases what the exchange held, as far as the application is not at work any more. Returns `None` if the application has not
    /// processed the request, which is sent once more then.
    fn close(
        &self,
        origin: Origin,
        end: End,
        (about, is_again): (About, bool),
        tracker: &mut RequestTracker,
    ) -> Option<End> {
        let is_repeatable = about.is_idempotent && !about.has_body;
        match origin {
            Origin::Http1 { connection, persists, has_sent, has_received, .. } => {
                let in_flight = tracker.take_in_flight();
                let is_unread = !has_sent || (!has_received && is_repeatable);
                match &end {
                    End::Complete => {
                        if persists && connection.input.is_empty() {
                            self.pool.keep(connection);
                        }
                    }
                    End::Failed(Error::Closed(_)) if !is_again && connection.is_reused && is_unread => {
                        tracker.restore(in_flight);
                        return None;
                    }
                    End::Failed(Error::Closed(_)) => {}
                    End::Failed(_) | End::ClientGone => connection.abandon(in_flight),
                }
            }
            Origin::Http2 { mut running, receiving, heard, left, .. } => match &end {
                End::Complete => match receiving {
                    Some(stream) if !stream.is_end_stream() => _ = tokio::spawn(finish(stream, running)),
                    _ => _ = running.end(),
                },
                // All that was announced is the whole response to an HTTP/1.1 client, with the end of the stream yet to come.
                End::ClientGone if left == Some(0) => {
                    if let Some(stream) = receiving {
                        tokio::spawn(finish(stream, running));
                    }
                }
                End::Failed(Error::Timeout(_)) if running.slot.heard() == heard => {
                    // Perhaps the application's host is gone.
                    if let Some(multiplexed) = &self.multiplexed {
                        multiplexed.retire(&running.slot);
                    }
                }
                End::Failed(error @ (Error::Refused(_) | Error::Reset(_) | Error::Lost(_))) => {
                    let in_flight = running.end();
                    let is_unread = receiving.is_none()
                        && match error {
                            Error::Refused(_) => !about.has_body,
                            Error::Lost(_) => is_repeatable && !running.slot.is_first,
                            _ => false,
                        };
                    if is_unread && !is_again {
                        tracker.restore(in_flight);
                        return None;
                    }
                }
                End::Failed(_) | End::ClientGone => {}
            },
        }
        Some(end)
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

/// Turns a request's head for HTTP/1.1 into one for HTTP/2.
fn for_http2(head: &[u8]) -> Option<Request<()>> {
    let mut storage = fields::storage();
    let parsed = request::Request::parse_again(head, &mut storage)?;
    let mut request = Request::new(());
    *request.method_mut() = parsed.method.parse().ok()?;
    *request.uri_mut() = parsed.target.path_and_query().parse().ok()?;
    *request.headers_mut() = Fields::Lines(parsed.fields).to_map();
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
enum ResponseState {
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
    response: ResponseState,
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
            let is_done = matches!(self.response, ResponseState::Done) && !self.has_body;
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
            ResponseState::Done => End::ClientGone,
            _ if waiting.for_body => End::Failed(Error::ClientTimeout),
            ResponseState::Head => End::Failed(Error::Timeout("does not answer")),
            ResponseState::Body => End::Failed(Error::Timeout("does not go on with its answer")),
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
            ResponseState::Head => match self.origin.poll_head(cx) {
                Poll::Pending => Ok(false),
                Poll::Ready(Err(error)) => Err(End::Failed(error)),
                Poll::Ready(Ok(head)) => {
                    if !(head.is_interim && head.status == StatusCode::CONTINUE) {
                        self.client.send_head(cx, &head).map_err(|Gone| End::ClientGone)?;
                    }
                    if !head.is_interim {
                        self.response = if head.has_body { ResponseState::Body } else { ResponseState::Done };
                    }
                    Ok(true)
                }
            },
            ResponseState::Body => match self.origin.poll_body(cx) {
                Poll::Pending => Ok(false),
                Poll::Ready(Err(error)) => Err(End::Failed(error)),
                Poll::Ready(Ok(frame)) => {
                    if self.client.send(cx, frame).map_err(|Gone| End::ClientGone)? {
                        self.response = ResponseState::Done;
                    }
                    Ok(true)
                }
            },
            ResponseState::Done => {
                // An application that speaks HTTP/2 and has responded in full does not want the rest of the request.
                if matches!(self.origin, Origin::Http2 { .. }) {
                    self.has_body = false;
                }
                Ok(false)
            }
        }
    }
}
