//! The client's end of an HTTP/1.1 connection.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;

use super::buffer::{self, Input};
use super::head::Persistence;
use super::limits::Limits;
use super::slots::{Occupied, Slots};
use super::stream::Socket;
use super::timer::{Timer, after};
use crate::http1::Version;
use crate::http1::body::{Decoder, Piece};
use crate::http1::request::Request;

/// The time in which a client may send what nobody wants, so that it gets to read its response.
pub(super) const DISCARD: Duration = Duration::from_secs(30);
/// The time in which a client may send nothing of that.
const DISCARD_SILENCE: Duration = Duration::from_secs(5);

/// The client of a connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its address, as the system says. An IPv4 client of an IPv6 socket has an IPv4-mapped address.
    pub address: IpAddr,
    text: Box<str>,
}

impl Client {
    /// A client with this address.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        Self { address, text: address.to_canonical().to_string().into() }
    }

    /// The address as text. An IPv4-mapped address is an IPv4 address.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// The client's end of an HTTP/1.1 connection. It owns the socket; buffers belong to the thread.
#[derive(Debug)]
pub struct Connection<S> {
    /// The socket.
    pub stream: S,
    /// What has arrived and is not consumed yet.
    pub input: Vec<u8>,
    /// What the socket has not taken yet.
    pub output: Vec<u8>,
    /// The connection's only timer.
    pub timer: Timer,
    /// The client.
    pub client: Client,
    pub(super) slot: Occupied,
    pub(super) limits: Limits,
}

/// What becomes of a connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It waits for the next request.
    Persist,
    /// It closes after the client has had time to read: it may still be sending.
    Linger,
    /// It closes.
    Close,
    /// It is reset, so that the client does not take what it received for a whole response.
    Reset,
}

impl From<Persistence> for Next {
    fn from(persistence: Persistence) -> Self {
        match persistence {
            Persistence::Closes => Self::Close,
            Persistence::Keeps | Persistence::Persists => Self::Persist,
        }
    }
}

impl<S: Socket> Connection<S> {
    /// How long the client may take nothing of its response.
    #[must_use]
    pub fn idle_timeout(&self) -> Duration {
        self.limits.idle_timeout
    }

    /// What a response says of the connection, given what the request says.
    #[must_use]
    pub fn persistence(&self, version: Version, persists: bool) -> Persistence {
        persistence(self.slot.all(), version, persists)
    }

    /// Sends the output that was assembled, and keeps what the socket does not take.
    ///
    /// # Errors
    ///
    /// The client is gone.
    pub fn send(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        buffer::send(&mut self.stream, cx, &mut self.output)
    }

    /// Ready when the socket has taken all output.
    ///
    /// # Errors
    ///
    /// The client is gone.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        buffer::poll_flush(&mut self.stream, cx, &mut self.output)
    }

    /// Reads once, and passes all that is not consumed yet to `take`, which returns how much it has consumed.
    ///
    /// # Errors
    ///
    /// The client is gone.
    pub fn poll_read<T>(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> (usize, T),
    ) -> Poll<io::Result<Input<T>>> {
        buffer::poll_read(&mut self.stream, cx, &mut self.input, take)
    }

    /// Passes all that is not consumed yet to `take`, and reads only if it consumes none of that.
    ///
    /// # Errors
    ///
    /// The client is gone.
    pub fn poll_next<T>(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnMut(&[u8]) -> (usize, T),
    ) -> Poll<io::Result<Input<T>>> {
        buffer::poll_next(&mut self.stream, cx, &mut self.input, take)
    }

    /// Asks for a body that waits for it (RFC 9110 §10.1.1).
    ///
    /// # Errors
    ///
    /// The client is gone.
    pub fn send_continue(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        buffer::assemble(|out| out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n"));
        self.send(cx)
    }

    /// Sends a whole response while the rest of its request is discarded: see [`Connection::finish`].
    pub async fn respond(&mut self, encode: impl Fn(&mut Vec<u8>), body: Option<Decoder>) -> bool {
        let sent = poll_fn(|cx| {
            buffer::assemble(&encode);
            Poll::Ready(self.send(cx))
        })
        .await;
        sent.is_ok() && self.finish(body).await
    }

    /// Waits until the client has closed its direction or is gone. What it sends meanwhile is kept, up to the size of a head.
    pub async fn left(&mut self) {
        poll_fn(|cx| {
            loop {
                if self.input.len() >= self.limits.header_size {
                    return Poll::Pending;
                }
                match ready!(self.poll_read(cx, |_| (0, ()))) {
                    Ok(Input::Read(())) => {}
                    Ok(Input::End) | Err(_) => return Poll::Ready(()),
                }
            }
        })
        .await;
    }

    /// Sends the rest of a response while the rest of its request is read and thrown away, so that clients that send all before
    /// they read get their response. Returns whether the request has ended and all is sent.
    pub async fn finish(&mut self, body: Option<Decoder>) -> bool {
        let mut body = body.filter(|body| !body.has_ended());
        let mut since = Instant::now();
        let limit = after(since, DISCARD);
        let mut waits = false;
        poll_fn(|cx| {
            loop {
                let before = self.output.len();
                let is_flushed = match self.poll_flush(cx) {
                    Poll::Ready(Err(_)) => return Poll::Ready(false),
                    flushed => flushed.is_ready(),
                };
                let mut has_moved = self.output.len() < before;
                if let Some(decoder) = &mut body {
                    match self.poll_next(cx, |input| discard(decoder, input)) {
                        Poll::Ready(Ok(Input::Read(true))) => has_moved = true,
                        Poll::Ready(_) => return Poll::Ready(false),
                        Poll::Pending => {}
                    }
                }
                body = body.take().filter(|body| !body.has_ended());
                if is_flushed && body.is_none() {
                    return Poll::Ready(true);
                }
                if has_moved {
                    since = Instant::now();
                    continue;
                }
                if is_flushed && !std::mem::replace(&mut waits, true) {
                    self.slot.wait();
                }
                self.timer.set(if is_flushed { limit } else { after(since, self.limits.idle_timeout) });
                if self.timer.poll(cx).is_ready() || (is_flushed && self.slot.is_evicted()) {
                    return Poll::Ready(false);
                }
                return Poll::Pending;
            }
        })
        .await
    }

    /// Closes the connection after the client has had time to read its response: to close a socket on which something is unread
    /// resets the connection, and the client may lose the response (RFC 9112 §9.6).
    pub async fn linger(&mut self) {
        self.input = Vec::new();
        let limit = after(Instant::now(), DISCARD);
        self.slot.wait();
        self.timer.start(DISCARD_SILENCE);
        poll_fn(|cx| {
            if self.output.is_empty() {
                let _ = Pin::new(&mut self.stream).poll_shutdown(cx);
            }
            loop {
                match self.poll_flush(cx) {
                    Poll::Ready(Ok(())) => _ = Pin::new(&mut self.stream).poll_shutdown(cx),
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
                match self.poll_read(cx, |input| (input.len(), ())) {
                    Poll::Ready(Ok(Input::Read(()))) => {
                        self.timer.start(DISCARD_SILENCE);
                        if Instant::now() >= limit {
                            return Poll::Ready(());
                        }
                    }
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => break,
                }
            }
            if self.slot.is_evicted() { Poll::Ready(()) } else { self.timer.poll(cx) }
        })
        .await;
    }
}

/// Discards the available part of a body. Returns the number of bytes consumed, and whether they are valid.
fn discard(decoder: &mut Decoder, input: &[u8]) -> (usize, bool) {
    let mut consumed = 0;
    loop {
        match decoder.decode(&input[consumed..]) {
            Ok((length, piece)) => {
                consumed += length;
                match piece {
                    Piece::Data(_) => {}
                    Piece::Trailers(_) | Piece::End | Piece::More => return (consumed, true),
                }
            }
            Err(_) => return (input.len(), false),
        }
    }
}

/// What a response says of the connection, given what the request says.
pub(super) fn persistence(slots: &Slots, version: Version, persists: bool) -> Persistence {
    match version {
        _ if !persists || slots.is_draining() => Persistence::Closes,
        Version::Http10 => Persistence::Keeps,
        Version::Http11 => Persistence::Persists,
    }
}

/// What is known of a connection when a request is decided upon.
#[derive(Clone, Copy, Debug)]
pub struct Exchange<'a> {
    /// The request.
    pub request: &'a Request<'a, 'a>,
    /// The bytes of its head.
    pub raw: &'a [u8],
    /// What has arrived after the head.
    pub body: &'a [u8],
    /// The client.
    pub client: &'a Client,
    /// What the response says of the connection.
    pub persistence: Persistence,
}

#[cfg(any(test, fuzzing))]
impl<S> Connection<S> {
    /// Registers the task that serves the connection.
    #[cfg(test)]
    pub(crate) fn register(&self, cx: &Context<'_>) {
        self.slot.register(cx.waker());
    }

    /// A connection for tests, from 192.0.2.1.
    pub(crate) async fn for_test(stream: S, slots: &std::sync::Arc<Slots>, limits: Limits) -> Self {
        Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            timer: Timer::new(after(Instant::now(), limits.header_timeout)),
            client: Client::new([192, 0, 2, 1].into()),
            slot: slots.take().await,
            limits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_mapped_address_is_written_as_ipv4() {
        for (address, text) in
            [("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("2001:db8::1", "2001:db8::1")]
        {
            assert_eq!(Client::new(address.parse().unwrap()).text(), text);
        }
    }
}
