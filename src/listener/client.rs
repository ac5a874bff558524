//! The client's end of a connection.

use std::io;
use std::net::{IpAddr, Shutdown, TcpStream as StdStream};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::activity::Activity;
use super::cut::Cuts;

/// How much of what a client still sends after its last answer is read, in bytes.
const LINGER: usize = 1024 * 1024;
/// How long it may take to close the connection itself.
const LINGER_FOR: Duration = Duration::from_secs(5);

/// How an HTTP/2 connection begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The client's end of a connection that is no longer HTTP.
pub type Upgraded = TokioIo<Client>;

/// The client's end of a connection.
///
/// When hyper is done with it, it may linger: closing a socket on which something is unread resets the connection,
/// and with that the client may lose the answer (RFC 9112 §9.6).
#[derive(Debug)]
pub struct Client {
    stream: TokioIo<TcpStream>,
    /// What has been read already and is to be read again.
    unread: Bytes,
    place: Option<OwnedSemaphorePermit>,
    activity: Arc<Activity>,
}

impl Client {
    pub(super) fn new(stream: TcpStream, address: IpAddr, cuts: Cuts, place: OwnedSemaphorePermit) -> Self {
        let activity = Arc::new(Activity::new(address, cuts));
        Self { stream: TokioIo::new(stream), unread: Bytes::new(), place: Some(place), activity }
    }

    /// Lets the system ask whether the other host is still there, when nothing has come for a while.
    pub fn find_out_if_gone(&self) {
        let _ = find_out_if_gone(self.stream.inner());
    }

    pub(super) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Reads as much as tells HTTP/2 from HTTP/1. `None` if the client leaves before.
    pub(super) async fn begins_http2(&mut self) -> Option<bool> {
        let mut read = BytesMut::with_capacity(PREFACE.len());
        while read.len() < PREFACE.len() && PREFACE.starts_with(&read) {
            let mut more = [0; PREFACE.len()];
            self.readable().await.ok()?;
            match self.stream.inner().try_read(&mut more[read.len()..]) {
                Ok(0) => return None,
                Ok(length) => read.extend_from_slice(&more[read.len()..][..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            }
        }
        let http2 = read == PREFACE;
        self.unread = read.freeze();
        Some(http2)
    }

    /// Waits until the client has sent something, or has left.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.stream.inner().readable().await
    }

    /// Gives back what has been read, to be read again. Returns whether that is anything.
    pub(super) fn put_back(&mut self, bytes: Bytes) -> bool {
        // Even an empty one would keep the whole buffer that it is a part of.
        self.unread = if bytes.is_empty() { Bytes::new() } else { bytes };
        !self.unread.is_empty()
    }
}

impl Read for Client {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        } else {
            let length = self.unread.len().min(buffer.remaining());
            buffer.put_slice(&self.unread[..length]);
            self.unread.advance(length);
        }
        self.activity.received();
        Poll::Ready(Ok(()))
    }
}

impl Write for Client {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        self.activity.wrote();
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices));
        self.activity.wrote();
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes when it has written all that it has.
        self.activity.flushed();
        if let Some(watcher) = self.activity.watcher()
            && let Ok(descriptor) = self.stream.inner().as_fd().try_clone_to_owned()
        {
            let _ = watcher.send(descriptor);
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.activity.must_reset() {
            let _ = SockRef::from(self.stream.inner()).set_linger(Some(Duration::ZERO));
        } else if self.activity.must_linger()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
            && let Ok(stream) = self.stream.inner().as_fd().try_clone_to_owned()
        {
            runtime.spawn(linger(stream, self.place.take()));
        }
    }
}

/// Lets the system ask whether the other host is still there, when nothing has come for a while.
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn find_out_if_gone(stream: &TcpStream) -> io::Result<()> {
    let alive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    SockRef::from(stream).set_tcp_keepalive(&alive)
}

/// Waits until the client has closed its direction, or all of the connection, whatever is still to be read of it: hyper,
/// which lets a client close its direction, does not look before it has answered.
pub(super) async fn left(stream: OwnedFd) -> io::Result<()> {
    let stream = TcpStream::from_std(StdStream::from(stream))?;
    while !stream.ready(Interest::READABLE).await?.is_read_closed() {
        // Waits for news instead of reading. What hyper reads from has a readiness of its own.
        let _ = stream.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
    Ok(())
}

/// Reads what the client still sends, up to a limit, and then waits for it to close: what it sends beyond that stays
/// in the system's buffers, which holds it up until it has read the answer.
async fn linger(stream: OwnedFd, _place: Option<OwnedSemaphorePermit>) -> io::Result<()> {
    let stream = StdStream::from(stream);
    // Tells the client that there is no more to come, where hyper has not.
    stream.shutdown(Shutdown::Write)?;
    let stream = TcpStream::from_std(stream)?;
    let mut buffer = [0; 4096];
    let mut left = LINGER;
    let closed = async {
        while !stream.ready(Interest::READABLE).await?.is_read_closed() || left > 0 {
            let read = match left {
                // Waits for news instead of reading.
                0 => stream.try_io(Interest::READABLE, || Err(io::ErrorKind::WouldBlock.into())),
                _ => stream.try_read(&mut buffer),
            };
            match read {
                Ok(0) => break,
                Ok(length) => left = left.saturating_sub(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    timeout(LINGER_FOR, closed).await?
}
