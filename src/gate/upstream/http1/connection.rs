//! Connections to the application, and what is held while it is at work.

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::Body;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep, timeout_at};

use crate::gate::upstream::resolver::Resolver;
use crate::gate::upstream::{HEADER_LINES, InFlight, UNHEARD_FOR};
use crate::listener::find_out_if_gone;

/// How much of a message is kept in memory at a time, in bytes, and how long the head of an answer may be. hyper's 400 KiB
/// would be kept for each client that does not read.
const BUFFER: usize = 256 * 1024;
/// How much an application may send that nobody hears, in bytes, before it is told by a reset.
const UNHEARD: usize = 1024 * 1024;

/// A connection to the application. It is worked on by whoever has a request on it, and by nobody else: that spares a
/// task and its wake-ups.
pub(in crate::gate) struct Connection<B: Body + 'static> {
    pub(in crate::gate) sender: SendRequest<B>,
    /// `None` when it was given up.
    engine: Option<http1::Connection<Stream, B>>,
    ended: bool,
    held: Held,
    /// The timer of the request before.
    pub(in crate::gate) timer: Option<Pin<Box<Sleep>>>,
}

/// What is held for the request that runs on a connection, if one does.
#[derive(Clone, Default)]
pub(in crate::gate) struct Held(Arc<Mutex<Option<InFlight>>>);

impl Held {
    fn lock(&self) -> MutexGuard<'_, Option<InFlight>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it back.
    pub(in crate::gate) fn release(&self) -> Option<InFlight> {
        self.lock().take()
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
    pub(in crate::gate) async fn open(resolver: &Resolver, place: OwnedSemaphorePermit) -> io::Result<Box<Self>> {
        let stream = TokioIo::new(resolver.connect().await?);
        let held = Held::default();
        let stream = Stream { stream: Some(stream), held: held.clone(), place: Some(place), is_upgraded: false };
        let (sender, engine) = http1::Builder::new()
            .max_headers(HEADER_LINES)
            .max_buf_size(BUFFER)
            .handshake(stream)
            .await
            .map_err(io::Error::other)?;
        Ok(Box::new(Self { sender, engine: Some(engine), ended: false, held, timer: None }))
    }

    /// Holds this for a request that begins: when the connection is dropped before it has been answered in full, until
    /// the application has closed, too.
    pub(in crate::gate) fn begin(&self, in_flight: InFlight) {
        *self.held.lock() = Some(in_flight);
    }

    /// Gives up a connection that is over: hyper gives back a request that it has not sent only then. Returns what was held.
    pub(in crate::gate) fn give_up(&mut self) -> Option<InFlight> {
        let in_flight = self.release();
        self.engine = None;
        in_flight
    }

    /// Takes it back.
    pub(in crate::gate) fn release(&self) -> Option<InFlight> {
        self.held.release()
    }

    /// Works on the connection.
    pub(in crate::gate) fn poll(&mut self, cx: &mut Context<'_>) {
        // An error is told to whoever waits for the answer, or reads its body.
        if let (false, Some(engine)) = (self.ended, &mut self.engine) {
            self.ended = Pin::new(engine).poll(cx).is_ready();
        }
    }

    /// Waits until HTTP on it has ended with an upgrade, and gives the connection, with what has come on it already.
    pub(in crate::gate) async fn upgraded(mut self: Box<Self>) -> Option<(Stream, Bytes)> {
        poll_fn(|cx| {
            self.poll(cx);
            if self.ended { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let parts = self.engine?.into_parts();
        let mut stream = parts.io;
        stream.is_upgraded = true;
        if let Some(stream) = &stream.stream {
            let _ = find_out_if_gone(stream.inner());
        }
        Some((stream, parts.read_buf))
    }

    /// Whether it is over.
    pub(in crate::gate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether a request can be sent on it now.
    pub(in crate::gate) fn is_ready(&mut self, cx: &mut Context<'_>) -> bool {
        self.poll(cx);
        !self.ended && matches!(self.sender.poll_ready(cx), Poll::Ready(Ok(())))
    }
}

/// The application's end of a connection.
///
/// When it is dropped in the middle of a request, the application may still be at work on it. It is told that nobody
/// waits any more, and the permits are held until it closes, too.
pub(in crate::gate) struct Stream {
    stream: Option<TokioIo<TcpStream>>,
    held: Held,
    place: Option<OwnedSemaphorePermit>,
    /// Whether it speaks HTTP no longer.
    is_upgraded: bool,
}

impl Stream {
    /// What is held while the application is at work.
    pub(in crate::gate) fn held(&self) -> Held {
        self.held.clone()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let (Some(in_flight), Some(stream)) = (self.held.release(), self.stream.take())
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(closed(stream.into_inner(), in_flight, self.place.take()));
        }
    }
}

/// Waits until the application has closed. It may take its time, as long as it is at work in silence; a host that has
/// vanished is found out.
///
/// One that goes on sending may not have looked whether anybody listens, and finds out only if it cannot send. After that
/// its end is not seen here: it gets time for it.
async fn closed(stream: TcpStream, _in_flight: InFlight, _place: Option<OwnedSemaphorePermit>) -> io::Result<()> {
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
        // The system is faster with one piece that is given as such.
        match slices {
            [one] => self.inner()?.poll_write(cx, one),
            _ => self.inner()?.poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // In the middle of a request it is shut down by who waits for the application.
        let at_work = self.held.lock().is_some();
        if at_work && !self.is_upgraded { Poll::Ready(Ok(())) } else { self.inner()?.poll_shutdown(cx) }
    }
}
