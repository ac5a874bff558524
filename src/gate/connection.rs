//! Connections to the application, and what is held while it is at work.

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Body;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use prometheus::IntGauge;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep, timeout_at};

use super::resolver::Resolver;
use crate::maintenance::state::Permits;

/// A message may have this many header lines: hyper's 100 are too few for what some applications, and those in front of
/// this, add.
pub const HEADER_LINES: usize = 256;
/// How much of a message is kept in memory at a time, in bytes, and how long the head of an answer may be. hyper's 400 KiB
/// would be kept for each client that does not read.
const BUFFER: usize = 64 * 1024;
/// How much an application may send that nobody hears, in bytes, before it is told by a reset.
const UNHEARD: usize = 1024 * 1024;
/// For how long; and how long it then has to take notice.
pub(super) const UNHEARD_FOR: Duration = Duration::from_secs(10);

/// A connection to the application. It is worked on by whoever has a request on it, and by nobody else: that spares a
/// task and its wake-ups.
pub(super) struct Connection<B: Body + 'static> {
    pub(super) sender: SendRequest<B>,
    engine: http1::Connection<Stream, B>,
    ended: bool,
    held: Held,
    /// The timer of the request before.
    pub(super) timer: Option<Pin<Box<Sleep>>>,
}

/// What is held for the request that runs on a connection.
type Held = Arc<Mutex<Option<Hold>>>;

/// What a request holds for as long as the application may be at work on it.
#[derive(Debug)]
pub(super) struct Hold(Option<(Permits, IntGauge)>);

impl Hold {
    /// Counts as in flight.
    pub(super) fn new(permits: Permits, in_flight: IntGauge) -> Self {
        in_flight.inc();
        Self(Some((permits, in_flight)))
    }

    /// Nothing: nobody waits for the request.
    pub(super) fn nothing() -> Self {
        Self(None)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some((_, in_flight)) = &self.0 {
            in_flight.dec();
        }
    }
}

impl<B> Connection<B>
where
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + 'static,
    B::Data: Send,
{
    /// A new connection. It keeps its place for as long as it is open.
    ///
    /// # Errors
    ///
    /// The application does not accept it.
    pub(super) async fn open(resolver: &Resolver, place: OwnedSemaphorePermit) -> io::Result<Box<Self>> {
        let stream = TokioIo::new(resolver.connect().await?);
        let held = Held::default();
        let stream = Stream { stream: Some(stream), held: held.clone(), place: Some(place) };
        let (sender, engine) = http1::Builder::new()
            .max_headers(HEADER_LINES)
            .max_buf_size(BUFFER)
            .handshake(stream)
            .await
            .map_err(io::Error::other)?;
        Ok(Box::new(Self { sender, engine, ended: false, held, timer: None }))
    }

    /// Holds this for a request that begins: when the connection is dropped before it has been answered in full, until
    /// the application has closed, too.
    pub(super) fn hold(&self, hold: Hold) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(hold);
    }

    /// Takes it back.
    pub(super) fn release(&self) -> Option<Hold> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Works on the connection.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        // An error is told to whoever waits for the answer, or reads its body.
        if !self.ended && Pin::new(&mut self.engine).poll(cx).is_ready() {
            self.ended = true;
        }
    }

    /// Waits until HTTP on it has ended with an upgrade, and gives the connection, with what has come on it already.
    pub(super) async fn upgraded(mut self: Box<Self>) -> (Stream, Bytes) {
        poll_fn(|cx| {
            self.poll(cx);
            if self.ended { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let parts = self.engine.into_parts();
        (parts.io, parts.read_buf)
    }

    /// Whether it is over.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether a request can be sent on it now.
    pub(super) fn is_ready(&mut self, cx: &mut Context<'_>) -> bool {
        self.poll(cx);
        !self.ended && matches!(self.sender.poll_ready(cx), Poll::Ready(Ok(())))
    }
}

/// The application's end of a connection.
///
/// When it is dropped in the middle of a request, the application may still be at work on it. It is told that nobody
/// waits any more, and the permits are held until it closes, too.
pub(super) struct Stream {
    stream: Option<TokioIo<TcpStream>>,
    held: Held,
    place: Option<OwnedSemaphorePermit>,
}

impl Stream {
    /// The application has closed: it is at work no longer.
    pub(super) fn release(&self) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Some(hold), Some(stream)) = (held, self.stream.take())
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(closed(stream.into_inner(), hold, self.place.take()));
        }
    }
}

/// Lets the system ask whether the other host is still there, when nothing has come for a while.
pub(super) fn find_out_if_gone(stream: &TcpStream) -> io::Result<()> {
    let alive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    SockRef::from(stream).set_tcp_keepalive(&alive)
}

/// Waits until the application has closed. It may take its time, as long as it is at work in silence; a host that has
/// vanished is found out.
///
/// One that goes on sending may not have looked whether anybody listens, and finds out only if it cannot send. After that
/// its end is not seen here: it gets time for it.
async fn closed(stream: TcpStream, _hold: Hold, _place: Option<OwnedSemaphorePermit>) -> io::Result<()> {
    find_out_if_gone(&stream)?;
    let stream = stream.into_std()?;
    stream.shutdown(Shutdown::Write)?;
    let mut stream = TcpStream::from_std(stream)?;
    let (mut buffer, mut left) = ([0; 4096], UNHEARD);
    let mut until = None;
    while left > 0 {
        let read = match until {
            None => stream.read(&mut buffer).await?,
            Some(until) => match timeout_at(until, stream.read(&mut buffer)).await {
                Ok(read) => read?,
                Err(_) => break,
            },
        };
        if read == 0 {
            return Ok(());
        }
        left = left.saturating_sub(read);
        until.get_or_insert_with(|| Instant::now() + UNHEARD_FOR);
    }
    drop(stream);
    sleep(UNHEARD_FOR).await;
    Ok(())
}

impl Stream {
    fn inner(self: Pin<&mut Self>) -> io::Result<Pin<&mut TokioIo<TcpStream>>> {
        self.get_mut().stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Read for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        self.inner()?.poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.inner()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.inner()?.poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // In the middle of a request it is shut down by who waits for the application.
        let at_work = self.held.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        if at_work { Poll::Ready(Ok(())) } else { self.inner()?.poll_shutdown(cx) }
    }
}
