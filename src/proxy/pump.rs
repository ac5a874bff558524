//! Passes the bytes of one exchange from socket to socket, through the thread's buffers.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::HEAD_SIZE;
use super::error::{Error, end_of_file};
use super::exchange::{Exchange, encode_body, encode_trailers};
use super::headers;
use super::tracker::Outcome;
use crate::http1::Version;
use crate::http1::body::{Decoder, Framing, Piece, encode_chunk, encode_end};
use crate::http1::error::HeadError;
use crate::http1::fields;
use crate::http1::request::Request;
use crate::http1::response::{Response, encode_line};
use crate::server::buffer::{self, Input};
use crate::server::connection::{self, Next};
use crate::server::head::{self, Fields};
use crate::server::stream::Socket;
use crate::server::timer::after;
use crate::upstream::connection::{Connection, Upstream};

/// Whether what has arrived of a response may be the beginning of one in HTTP/1.1.
pub(super) fn could_be_http(input: &[u8]) -> bool {
    const START: &[u8] = b"HTTP/1.";
    input.starts_with(START) || START.starts_with(input)
}

/// How an exchange has ended.
#[derive(Debug)]
pub(super) enum End {
    /// The response is sent. The second tells whether the upstream connection can be used again.
    Complete(Next, bool),
    /// The client and the application speak another protocol from here on.
    Upgraded,
    /// The application has closed an idle connection before it read the request: it can be sent again.
    Unsent,
    /// The response has not begun.
    Failed(Error),
    /// The response has broken off: by the client if there is no error.
    Broken(Option<Error>),
}

/// How far the response is.
#[derive(Debug)]
enum ResponseState {
    /// Its head has not arrived.
    Head,
    /// The application switches protocols before the request is complete.
    Switching,
    /// The head of a switch of protocols is passed on.
    Switched,
    /// Its body is passed on, as chunks or as it is.
    Body(Decoder, bool),
    /// It is passed on.
    Done,
}

/// Passes the request's body in one direction and the response in the other.
pub(super) struct Pump<'a, C, U> {
    client: &'a mut connection::Connection<C>,
    pub(super) upstream: Option<Connection<U>>,
    exchange: &'a mut Exchange,
    timeout: Duration,
    /// What the application has not taken yet of the request.
    pending: Vec<u8>,
    is_started: bool,
    /// Whether the application takes the rest of the request.
    takes_body: bool,
    has_received: bool,
    response_state: ResponseState,
    /// What becomes of the client's connection.
    next: Next,
    upstream_persists: bool,
    since: Instant,
}

impl<'a, C: Socket, U: Upstream> Pump<'a, C, U> {
    pub(super) fn new(
        client: &'a mut connection::Connection<C>,
        upstream: Connection<U>,
        exchange: &'a mut Exchange,
        timeout: Duration,
    ) -> Self {
        let since = if upstream.is_reused { exchange.tracker.begun } else { Instant::now() };
        Self {
            client,
            upstream: Some(upstream),
            exchange,
            timeout,
            pending: Vec::new(),
            is_started: false,
            takes_body: true,
            has_received: false,
            response_state: ResponseState::Head,
            next: Next::Persist,
            upstream_persists: false,
            since,
        }
    }

    /// Whether the rest of the request's body is to be passed on.
    fn has_body(&self) -> bool {
        self.takes_body && !self.exchange.body.has_ended()
    }

    /// Whether nothing more of the request is to be sent.
    fn is_sent(&self) -> bool {
        !self.takes_body || (self.exchange.body.has_ended() && self.pending.is_empty())
    }

    /// Ready when the exchange has ended.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if !self.is_started {
            self.is_started = true;
            if let Err(error) = self.start(cx) {
                return Poll::Ready(error);
            }
        }
        let mut has_ever_moved = false;
        loop {
            if self.exchange.tracker.is_aborted()
                && !(matches!(self.response_state, ResponseState::Done) && self.is_sent())
            {
                return Poll::Ready(self.fail(Error::Aborted));
            }
            let mut has_moved = false;
            for step in [Self::poll_client_output, Self::poll_upstream_output, Self::poll_response, Self::poll_body] {
                match step(self, cx) {
                    Ok(moved) => has_moved |= moved,
                    Err(end) => return Poll::Ready(end),
                }
            }
            if let Some(end) = self.end() {
                return Poll::Ready(end);
            }
            if has_moved {
                has_ever_moved = true;
                continue;
            }
            if has_ever_moved {
                self.since = Instant::now();
            }
            return self.poll_timeout(cx).map(|()| self.timed_out());
        }
    }

    /// Sends the head and what came with it.
    fn start(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let Some(upstream) = &mut self.upstream else { return Err(End::Broken(None)) };
        let exchange = &mut *self.exchange;
        let written = match Pin::new(&mut upstream.stream).poll_write(cx, &exchange.sent) {
            Poll::Ready(Ok(written)) => written,
            Poll::Pending => 0,
            // Nothing was delivered.
            Poll::Ready(Err(_)) if upstream.is_reused => return Err(End::Unsent),
            Poll::Ready(Err(error)) => return Err(End::Failed(Error::Closed(error))),
        };
        if written < exchange.sent.len() {
            self.pending = exchange.sent[written..].to_vec();
        }
        if exchange.sent.len() > exchange.head_length && (written >= exchange.head_length || !upstream.is_reused) {
            exchange.sent.truncate(exchange.head_length);
            exchange.sent.shrink_to_fit();
        }
        Ok(())
    }

    fn poll_client_output(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let before = self.client.output.len();
        if before == 0 {
            return Ok(false);
        }
        match self.client.poll_flush(cx) {
            Poll::Ready(Err(_)) => Err(End::Broken(None)),
            Poll::Ready(Ok(())) | Poll::Pending => Ok(self.client.output.len() < before),
        }
    }

    fn poll_upstream_output(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let before = self.pending.len();
        let (1.., Some(upstream)) = (before, &mut self.upstream) else { return Ok(false) };
        match buffer::poll_flush(&mut upstream.stream, cx, &mut self.pending) {
            Poll::Ready(Err(_)) => {
                self.stop_body();
                Ok(true)
            }
            Poll::Ready(Ok(())) | Poll::Pending => Ok(self.pending.len() < before),
        }
    }

    /// The application takes no more of the request. It may still have responded.
    fn stop_body(&mut self) {
        self.takes_body = false;
        self.pending = Vec::new();
    }

    /// Passes on more of the response.
    fn poll_response(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if !self.client.output.is_empty() {
            return Ok(false);
        }
        let is_sent = self.is_sent();
        let Some(upstream) = &mut self.upstream else { return Ok(false) };
        let mut reader = Reader {
            response_state: &mut self.response_state,
            exchange: self.exchange,
            client: self.client,
            next: &mut self.next,
            upstream_persists: &mut self.upstream_persists,
            is_sent,
            takes_body: self.takes_body,
        };
        let read = match reader.response_state {
            ResponseState::Switched => return Ok(false),
            ResponseState::Switching if !is_sent => return Ok(false),
            ResponseState::Switching => {
                *reader.response_state = ResponseState::Head;
                let parsed = buffer::take_kept(&mut upstream.input, |input| reader.read(input));
                Poll::Ready(Ok(Input::Read(parsed)))
            }
            ResponseState::Done if is_sent => return Ok(false),
            _ => buffer::poll_read(&mut upstream.stream, cx, &mut upstream.input, |input| reader.read(input)),
        };
        match read {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(Input::Read(parsed))) => {
                self.has_received = true;
                if matches!(self.response_state, ResponseState::Done) && is_sent {
                    // Before the client has its response: whoever reads the metrics after that finds it counted.
                    self.exchange.tracker.complete();
                }
                if self.client.send(cx).is_err() {
                    return Err(End::Broken(None));
                }
                match parsed {
                    Ok(()) => Ok(true),
                    Err(error) => Err(self.fail(error)),
                }
            }
            Poll::Ready(Ok(Input::End)) => self.upstream_closed(cx, None),
            Poll::Ready(Err(error)) => self.upstream_closed(cx, Some(error)),
        }
    }

    /// The application has closed the connection.
    fn upstream_closed(&mut self, cx: &mut Context<'_>, error: Option<io::Error>) -> Result<bool, End> {
        self.upstream_persists = false;
        match &self.response_state {
            ResponseState::Body(decoder, is_chunked) if error.is_none() && decoder.may_end_with_connection() => {
                let is_chunked = *is_chunked;
                self.response_state = ResponseState::Done;
                self.stop_body();
                self.exchange.tracker.complete();
                buffer::assemble(|out| {
                    if is_chunked {
                        encode_end(out, []);
                    }
                });
                self.client.send(cx).map_err(|_| End::Broken(None))?;
                Ok(true)
            }
            ResponseState::Done => {
                self.stop_body();
                Ok(true)
            }
            _ => {
                let input = self.upstream.as_ref().map_or(&[][..], |upstream| &upstream.input);
                if matches!(self.response_state, ResponseState::Head) && !could_be_http(input) {
                    return Err(self.fail(Error::Head(HeadError::StartLine)));
                }
                let error = error.unwrap_or_else(end_of_file);
                let is_unsent = matches!(self.response_state, ResponseState::Head)
                    && !self.has_received
                    && self.upstream.as_ref().is_some_and(|upstream| upstream.is_reused)
                    && self.exchange.is_idempotent
                    && !self.exchange.has_body;
                Err(if is_unsent { End::Unsent } else { self.fail(Error::Closed(error)) })
            }
        }
    }

    /// Passes on more of the request's body.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        if !self.has_body() || !self.pending.is_empty() {
            return Ok(false);
        }
        if self.exchange.must_continue {
            if !matches!(self.response_state, ResponseState::Head) || !self.client.output.is_empty() {
                return Ok(false);
            }
            self.exchange.must_continue = false;
            self.client.send_continue(cx).map_err(|_| End::Broken(None))?;
        }
        let Some(upstream) = &mut self.upstream else { return Ok(false) };
        let exchange = &mut *self.exchange;
        let read = self.client.poll_next(cx, |input| {
            buffer::assemble(|out| match encode_body(&mut exchange.body, exchange.is_chunked, input, out) {
                Ok(consumed) => (consumed, Ok(())),
                Err(error) => (input.len(), Err(error)),
            })
        });
        match read {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(Input::Read(Ok(())))) => {
                if buffer::send(&mut upstream.stream, cx, &mut self.pending).is_err() {
                    self.stop_body();
                }
                Ok(true)
            }
            Poll::Ready(Ok(Input::Read(Err(error)))) => {
                self.exchange.invalid = Some(error);
                Err(self.fail(Error::Body(error)))
            }
            Poll::Ready(Ok(Input::End) | Err(_)) => Err(self.fail(Error::ClientGone)),
        }
    }

    /// How the exchange has ended, if it has.
    fn end(&mut self) -> Option<End> {
        match self.response_state {
            ResponseState::Switched => Some(End::Upgraded),
            ResponseState::Done if self.is_sent() => {
                self.exchange.tracker.complete();
                let may_keep = self.upstream_persists
                    && self.takes_body
                    && self.upstream.as_ref().is_some_and(|upstream| upstream.input.is_empty());
                if !may_keep {
                    self.upstream = None;
                }
                self.client.output.is_empty().then_some(End::Complete(self.next, may_keep))
            }
            ResponseState::Done => {
                // The rest of the request is still on its way.
                self.exchange.tracker.count(Outcome::Forwarded);
                None
            }
            _ => None,
        }
    }

    fn fail(&self, error: Error) -> End {
        match self.response_state {
            ResponseState::Head | ResponseState::Switching => End::Failed(error),
            // The response is complete; only the rest of the request is lost.
            ResponseState::Done => End::Broken(None),
            ResponseState::Body(..) | ResponseState::Switched => End::Broken(Some(error)),
        }
    }

    fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = if self.client.output.is_empty() { self.timeout } else { self.client.idle_timeout() };
        self.client.timer.set(after(self.since, limit));
        self.client.timer.poll(cx)
    }

    fn timed_out(&mut self) -> End {
        match &self.response_state {
            _ if !self.client.output.is_empty() => End::Broken(None),
            ResponseState::Head | ResponseState::Switching if self.has_body() && self.pending.is_empty() => {
                End::Failed(Error::ClientTimeout)
            }
            ResponseState::Head | ResponseState::Switching => End::Failed(Error::Timeout("does not answer")),
            ResponseState::Done => End::Broken(None),
            _ if self.has_body() && self.pending.is_empty() => End::Broken(Some(Error::ClientTimeout)),
            _ => End::Broken(Some(Error::Timeout("does not go on with its answer"))),
        }
    }
}

/// Reads a response and assembles the client's.
struct Reader<'r, C> {
    response_state: &'r mut ResponseState,
    exchange: &'r Exchange,
    client: &'r connection::Connection<C>,
    next: &'r mut Next,
    upstream_persists: &'r mut bool,
    is_sent: bool,
    takes_body: bool,
}

impl<C: Socket> Reader<'_, C> {
    /// Assembles the available part of a response. Returns the number of bytes consumed.
    fn read(&mut self, input: &[u8]) -> (usize, Result<(), Error>) {
        buffer::assemble(|out| {
            let mut consumed = 0;
            match self.pass(input, &mut consumed, out) {
                Ok(()) => (consumed, Ok(())),
                Err(error) => (input.len(), Err(error)),
            }
        })
    }

    fn pass(&mut self, input: &[u8], consumed: &mut usize, out: &mut Vec<u8>) -> Result<(), Error> {
        loop {
            let rest = &input[*consumed..];
            match self.response_state {
                ResponseState::Head | ResponseState::Switching => {
                    let mut storage = fields::storage();
                    let parsed = Response::parse(rest, &mut storage, self.exchange.is_head, HEAD_SIZE)?;
                    let Some(response) = parsed else { return Ok(()) };
                    if response.status == 101 && !self.may_switch(&response)? {
                        *self.response_state = ResponseState::Switching;
                        return Ok(());
                    }
                    *consumed += response.length;
                    self.pass_head(&response, out);
                }
                ResponseState::Body(decoder, is_chunked) => {
                    let is_chunked = *is_chunked;
                    let (length, piece) = decoder.decode(rest).map_err(Error::ResponseBody)?;
                    *consumed += length;
                    match piece {
                        Piece::Data(data) if is_chunked => encode_chunk(out, data),
                        Piece::Data(data) => out.extend_from_slice(data),
                        Piece::More => return Ok(()),
                        Piece::Trailers(section) => {
                            if is_chunked {
                                encode_trailers(section, out).map_err(Error::ResponseBody)?;
                            }
                            *self.response_state = ResponseState::Done;
                        }
                        Piece::End => {
                            if is_chunked {
                                encode_end(out, []);
                            }
                            *self.response_state = ResponseState::Done;
                        }
                    }
                }
                ResponseState::Switched | ResponseState::Done => return Ok(()),
            }
        }
    }

    /// Whether the protocol is switched now. Nothing may follow a request before that, so that it has to be complete.
    fn may_switch(&self, response: &Response<'_, '_>) -> Result<bool, Error> {
        let mut storage = fields::storage();
        let head = self.exchange.head();
        let request = Request::parse_again(head, &mut storage);
        let protocols = request.as_ref().and_then(|request| Fields::Lines(request.fields).get("upgrade"));
        if !headers::is_asked_for(protocols, Fields::Lines(response.fields)) || !self.takes_body {
            return Err(Error::Unasked);
        }
        Ok(self.is_sent)
    }

    fn pass_head(&mut self, response: &Response<'_, '_>, out: &mut Vec<u8>) {
        let is_http11 = self.exchange.version == Version::Http11;
        let status = StatusCode::from_u16(response.status).unwrap_or(StatusCode::BAD_GATEWAY);
        if response.is_interim() {
            // The gate sends its own 100. HTTP/1.0 has no interim responses (RFC 9110 §15.2).
            if response.status != 100 && is_http11 {
                encode_line(out, response.status, response.reason);
                headers::response(Fields::Lines(response.fields), status, out);
                out.extend_from_slice(b"\r\n");
            }
            return;
        }
        encode_line(out, response.status, response.reason);
        let has_date = headers::response(Fields::Lines(response.fields), status, out);
        if response.status == 101 {
            out.extend_from_slice(b"\r\n");
            *self.response_state = ResponseState::Switched;
            return;
        }
        let has_length = matches!(response.framing, Framing::Length(_));
        let is_chunked = is_http11 && !has_length;
        *self.response_state = match Decoder::new(response.framing) {
            body if body.has_ended() => ResponseState::Done,
            body => ResponseState::Body(body, is_chunked),
        };
        // A client that still waits for 100 may send the body or not (RFC 9110 §10.1.1).
        let persists = self.exchange.persists && (has_length || is_http11) && !self.exchange.must_continue;
        let persistence = self.client.persistence(self.exchange.version, persists);
        *self.next = persistence.into();
        *self.upstream_persists = response.persists;
        head::encode_end(out, is_chunked, persistence, has_date);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::sync::Arc;

    use prometheus::Registry;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::JoinHandle;
    use tokio::time::sleep;

    use crate::metrics::{Metrics, Requests};
    use crate::proxy::tracker::{Aborts, RequestTracker};
    use crate::server::Limits;
    use crate::server::connection::Client;
    use crate::server::head::Persistence;
    use crate::server::slots::Slots;
    use crate::upstream::InFlight;

    const TIMEOUT: Duration = Duration::from_secs(60);
    const IDLE: Duration = Duration::from_secs(75);

    /// An exchange between a client and an application in memory.
    struct Running {
        client: DuplexStream,
        application: DuplexStream,
        aborts: Aborts,
        requests: Arc<Requests>,
        start: Instant,
        task: JoinHandle<String>,
    }

    fn second(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Begins an exchange with this head and what came with it. Each side has so much room.
    async fn run(request: &str, (client_room, application_room): (usize, usize), is_reused: bool) -> Running {
        let limits = Limits { header_timeout: TIMEOUT, idle_timeout: IDLE, ..Limits::ONE };
        let slots = Slots::one();
        let requests = Arc::new(Metrics::register(Registry::new()).unwrap().forwarding().unwrap());
        let aborts = Aborts::new(slots.clone());
        let (client, stream) = duplex(client_room);
        let (application, upstream) = duplex(application_room);
        let mut connection = connection::Connection::for_test(stream, &slots, limits).await;
        let mut upstream = Connection::new(upstream, None);
        upstream.is_reused = is_reused;
        let tracker =
            RequestTracker::new(requests.clone(), InFlight::new(Arc::from([]), requests.in_flight.clone()), &aborts);
        let mut exchange = {
            let mut storage = fields::storage();
            let parsed = Request::parse(request.as_bytes(), &mut storage, usize::MAX).unwrap().unwrap();
            let (raw, body) = request.as_bytes().split_at(parsed.length);
            let client = Client::new([192, 0, 2, 1].into());
            let persistence = Persistence::Persists;
            let received = connection::Exchange { request: &parsed, raw, body, client: &client, persistence };
            let (exchange, consumed) = Exchange::prepare((b"app", true), &received, tracker, None, &mut Vec::new());
            connection.input = body[consumed..].to_vec();
            exchange
        };
        let task = tokio::spawn(async move {
            poll_fn(|cx| {
                connection.register(cx);
                Poll::Ready(())
            })
            .await;
            let mut pump = Pump::new(&mut connection, upstream, &mut exchange, TIMEOUT);
            let end = poll_fn(|cx| pump.poll(cx)).await;
            let upstream = pump.upstream.take();
            let what = match &end {
                End::Complete(next, may_keep) => format!("{next:?} {may_keep}"),
                End::Upgraded => "Upgraded".to_owned(),
                End::Unsent => "Unsent".to_owned(),
                End::Failed(error) => format!("Failed: {error}"),
                End::Broken(Some(error)) => format!("Broken: {error}"),
                End::Broken(None) => "Broken".to_owned(),
            };
            if let Some(upstream) = upstream
                && !matches!(end, End::Complete(..))
            {
                upstream.abandon(exchange.tracker.take_in_flight());
            }
            what
        });
        Running { client, application, aborts, requests, start: Instant::now(), task }
    }

    impl Running {
        /// How the exchange has ended, and after how many seconds.
        async fn end(self) -> (String, u64) {
            let what = self.task.await.unwrap();
            (what, self.start.elapsed().as_secs())
        }

        async fn reads(&mut self, expected: &str) {
            reads(&mut self.client, expected).await;
        }

        async fn responds(&mut self, bytes: &str) {
            self.application.write_all(bytes.as_bytes()).await.unwrap();
        }

        /// Reads the head of the request.
        async fn head(&mut self) -> String {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                head.push(self.application.read_u8().await.unwrap().into());
            }
            head
        }
    }

    async fn reads(stream: &mut DuplexStream, expected: &str) {
        let mut bytes = vec![0; expected.len()];
        stream.read_exact(&mut bytes).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
    }

    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
    const OK: &str = "HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 5\r\n\r\nhello";
    const ROOM: (usize, usize) = (65536, 65536);

    #[tokio::test(start_paused = true)]
    async fn passes_a_response_on() {
        let table = [
            (OK, OK, "Persist true"),
            (
                "HTTP/1.1 204 No Content\r\nDate: now\r\n\r\n",
                "HTTP/1.1 204 No Content\r\nDate: now\r\n\r\n",
                "Persist true",
            ),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 0\r\n\r\n",
                "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 0\r\n\r\n",
                "Persist true",
            ),
            (
                "HTTP/1.1 200 OK\r\nDate: now\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nSum: 1\r\n\r\n",
                "HTTP/1.1 200 OK\r\nDate: now\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nSum: 1\r\n\r\n",
                "Persist true",
            ),
            (
                "HTTP/1.1 200 OK\r\nDate: now\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
                "HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 5\r\n\r\nhello",
                "Persist false",
            ),
            // What follows is nobody's response.
            (
                "HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
                "HTTP/1.1 200 OK\r\nDate: now\r\nContent-Length: 0\r\n\r\n",
                "Persist false",
            ),
        ];
        for (response, received, end) in table {
            for step in [1, 7, response.len()] {
                if received.contains("chunked") && step < response.len() {
                    // Chunks are passed on as they come.
                    continue;
                }
                let mut running = run(GET, ROOM, false).await;
                let head = running.head().await;
                assert_eq!(
                    head,
                    "GET / HTTP/1.1\r\nHost: a\r\nx-forwarded-for: 192.0.2.1\r\nx-forwarded-proto: http\r\nx-forwarded-host: a\r\n\r\n"
                );
                for part in response.as_bytes().chunks(step) {
                    // The connection may be complete before all is written.
                    let _ = running.application.write_all(part).await;
                    sleep(Duration::from_millis(1)).await;
                }
                running.reads(received).await;
                assert_eq!(running.requests.in_flight.get(), 0, "the application is done");
                let end = if step < response.len() && response.ends_with("OK\r\n\r\n") { "Persist true" } else { end };
                assert_eq!(running.end().await.0, end, "{response} by {step}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_may_end_with_the_connection() {
        let mut running = run(GET, ROOM, false).await;
        running.head().await;
        running.responds("HTTP/1.1 200 OK\r\nDate: now\r\n\r\nhello").await;
        running.application.shutdown().await.unwrap();
        running
            .reads("HTTP/1.1 200 OK\r\nDate: now\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
            .await;
        assert_eq!(running.end().await.0, "Persist false");
    }

    #[tokio::test(start_paused = true)]
    async fn passes_a_body_on_as_it_comes() {
        let mut running = run(&format!("{POST}he"), ROOM, false).await;
        running.head().await;
        reads(&mut running.application, "he").await;
        running.client.write_all(b"lloGET").await.unwrap();
        reads(&mut running.application, "llo").await;
        running.responds(OK).await;
        running.reads(OK).await;
        assert_eq!(running.end().await.0, "Persist true");

        let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nhe\r\n3\r\nl";
        let mut running = run(chunked, ROOM, false).await;
        assert!(running.head().await.ends_with("transfer-encoding: chunked\r\n\r\n"));
        reads(&mut running.application, "2\r\nhe\r\n1\r\nl\r\n").await;
        running.client.write_all(b"lo\r\n0\r\nSum: 1\r\n\r\n").await.unwrap();
        reads(&mut running.application, "2\r\nlo\r\n0\r\nSum: 1\r\n\r\n").await;
        running.responds(OK).await;
        assert_eq!(running.end().await.0, "Persist true");
    }

    #[tokio::test(start_paused = true)]
    async fn asks_for_a_body_that_waits_for_it() {
        let request = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
        let mut running = run(request, ROOM, false).await;
        running.reads("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert!(!running.head().await.contains("xpect"));
        running.client.write_all(b"hello").await.unwrap();
        running.responds(OK).await;
        running.reads(OK).await;
        assert_eq!(running.end().await.0, "Persist true");
    }

    #[tokio::test(start_paused = true)]
    async fn times_out_where_a_side_stalls() {
        // The request, the response so far, and how the exchange ends after how many seconds.
        let begun = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello";
        let table = [
            (GET, "", "Failed: does not answer in time", 60),
            (GET, "HTTP/1.1 200 O", "Failed: does not answer in time", 60),
            (GET, "HTTP/1.1 103 Early Hints\r\n\r\n", "Failed: does not answer in time", 60),
            (GET, begun, "Broken: does not go on with its answer in time", 60),
            (POST, "", "Failed: the client does not send the rest of its request", 60),
            (POST, begun, "Broken: the client does not send the rest of its request", 60),
            // The application has responded; it may want the rest of the request.
            (POST, OK, "Broken", 60),
        ];
        for (request, response, end, seconds) in table {
            let mut running = run(request, ROOM, false).await;
            running.head().await;
            running.responds(response).await;
            assert_eq!(running.end().await, (end.to_owned(), seconds), "{request} {response}");
        }
        // What moves is given time.
        let mut running = run(GET, ROOM, false).await;
        running.head().await;
        for byte in OK.as_bytes() {
            sleep(second(59)).await;
            running.application.write_all(&[*byte]).await.unwrap();
        }
        assert_eq!(running.end().await, ("Persist true".to_owned(), 59 * OK.len() as u64));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_loses_its_connection() {
        let mut running = run(GET, (16, 65536), false).await;
        running.head().await;
        running.responds(OK).await;
        sleep(second(1)).await;
        assert_eq!(running.requests.in_flight.get(), 0, "the application is done");
        assert_eq!(running.end().await, ("Broken".to_owned(), 75));
        // As long as it reads a bit now and then, it is given time.
        let mut running = run(GET, (16, 65536), false).await;
        running.head().await;
        running.responds(OK).await;
        for byte in OK.as_bytes() {
            sleep(second(70)).await;
            assert_eq!(running.client.read_u8().await.unwrap(), *byte);
        }
        assert_eq!(running.end().await.0, "Persist true");
    }

    #[tokio::test(start_paused = true)]
    async fn an_application_that_closes() {
        // The request, what the application sends before it closes, whether the connection is reused, and how the exchange ends.
        let table = [
            (GET, "", false, "Failed: has closed the connection instead of an answer: end of file"),
            (GET, "HTTP/1.1 200", true, "Failed: has closed the connection instead of an answer: end of file"),
            (GET, "garbage", false, "Failed: does not answer in HTTP: the start line is malformed (RFC 9112 §3, §4)"),
            (GET, "", true, "Unsent"),
            (POST, "", true, "Failed: has closed the connection instead of an answer: end of file"),
            (
                GET,
                "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
                true,
                "Broken: has closed the connection instead of an answer: end of file",
            ),
            (
                GET,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
                true,
                "Broken: has closed the connection instead of an answer: end of file",
            ),
            (POST, OK, false, "Persist false"),
            (
                GET,
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
                false,
                "Failed: switches to a protocol that it was not asked for",
            ),
            (
                GET,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
                false,
                "Failed: answers in a transfer coding other than chunked",
            ),
            (
                GET,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx",
                false,
                "Broken: does not answer in HTTP: a chunk size is malformed (RFC 9112 §7.1)",
            ),
        ];
        for (request, response, is_reused, end) in table {
            let mut running = run(request, ROOM, is_reused).await;
            running.head().await;
            running.responds(response).await;
            running.application.shutdown().await.unwrap();
            assert_eq!(running.end().await, (end.to_owned(), 0), "{request} {response}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_leaves() {
        for (sent, end) in [("", "Failed: the client has left"), ("hel", "Failed: the client has left")] {
            let mut running = run(POST, ROOM, false).await;
            running.head().await;
            running.client.write_all(sent.as_bytes()).await.unwrap();
            running.client.shutdown().await.unwrap();
            let requests = running.requests.clone();
            let mut application = std::mem::replace(&mut running.application, duplex(1).0);
            assert_eq!(running.end().await, (end.to_owned(), 0));
            assert_eq!(requests.in_flight.get(), 1, "the application may still be at work");
            let mut rest = String::new();
            application.read_to_string(&mut rest).await.unwrap();
            drop(application);
            sleep(second(1)).await;
            assert_eq!(requests.in_flight.get(), 0);
        }
        // Half-closed after a whole request, it still gets its response.
        let mut running = run(GET, ROOM, false).await;
        running.client.shutdown().await.unwrap();
        running.head().await;
        sleep(second(30)).await;
        running.responds(OK).await;
        running.reads(OK).await;
        assert_eq!(running.end().await, ("Persist true".to_owned(), 30));
    }

    #[tokio::test(start_paused = true)]
    async fn a_malformed_body_goes_no_further() {
        let request = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut running = run(request, ROOM, false).await;
        running.head().await;
        running.client.write_all(b"5\r\nhelloXX").await.unwrap();
        let end = "Failed: the request's body is malformed: a chunk does not end in CR LF (RFC 9112 §7.1)";
        assert_eq!(running.end().await, (end.to_owned(), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_abort_ends_what_is_not_complete() {
        let begun = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello";
        for (request, response, end) in [
            (GET, "", "Failed: aborted"),
            (POST, "", "Failed: aborted"),
            (GET, begun, "Broken: aborted"),
            (POST, OK, "Broken"),
        ] {
            let mut running = run(request, ROOM, false).await;
            running.head().await;
            running.responds(response).await;
            sleep(second(5)).await;
            assert_eq!(running.requests.in_flight.get(), 1);
            running.aborts.abort();
            let requests = running.requests.clone();
            let application = std::mem::replace(&mut running.application, duplex(1).0);
            assert_eq!(running.end().await, (end.to_owned(), 5), "{request} {response}");
            sleep(second(5)).await;
            assert_eq!(requests.in_flight.get(), 1, "the application may still be at work");
            drop(application);
            sleep(second(5)).await;
            assert_eq!(requests.in_flight.get(), 0);
        }
        // A response that is complete is not aborted, even if its client has not read it.
        let mut running = run(GET, (16, 65536), false).await;
        running.head().await;
        running.responds(OK).await;
        sleep(second(5)).await;
        running.aborts.abort();
        sleep(second(5)).await;
        running.reads(OK).await;
        assert_eq!(running.end().await, ("Persist true".to_owned(), 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_switch_waits_for_the_whole_request() {
        let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 5\r\n\r\n";
        let switch = "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n";
        let mut running = run(request, ROOM, false).await;
        running.head().await;
        running.responds(switch).await;
        sleep(second(5)).await;
        running.client.write_all(b"hello").await.unwrap();
        running.reads(switch).await;
        assert_eq!(running.end().await, ("Upgraded".to_owned(), 5));

        let mut running = run(request, ROOM, false).await;
        running.head().await;
        running.responds(switch).await;
        let end = "Failed: the client does not send the rest of its request";
        assert_eq!(running.end().await, (end.to_owned(), 60));
    }
}
