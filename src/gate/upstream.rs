//! The application: where it is, and connections to it.

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::Uri;
use hyper::body::Body;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use prometheus::IntGauge;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

use crate::maintenance::state::Permits;

/// A message may have this many header lines: hyper's 100 are too few for what some applications, and those in front of
/// this, add.
pub const HEADER_LINES: usize = 256;
/// So many connections without a request are kept.
const KEPT: usize = 1024;
/// How much an application may send that nobody hears, in bytes, before it is told by a reset.
const UNHEARD: usize = 1024 * 1024;
/// For how long; and how long it then has to take notice.
const UNHEARD_FOR: Duration = Duration::from_secs(10);

/// Where requests are forwarded to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    host: String,
    port: u16,
}

/// An `--upstream` that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// It is no URL.
    #[error("not a URL such as http://127.0.0.1:3000")]
    Malformed,
    /// Its scheme is another.
    #[error("the scheme is {0}, known is http")]
    Scheme(String),
    /// It has more than a scheme, a host and a port.
    #[error("no more than a scheme, a host and a port can be given: paths are forwarded as they come")]
    More,
}

impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(url: &str) -> Result<Self, UpstreamError> {
        let uri: Uri = url.parse().map_err(|_| UpstreamError::Malformed)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(UpstreamError::Malformed);
        };
        if scheme != "http" {
            return Err(UpstreamError::Scheme(scheme.to_owned()));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || authority.as_str().contains('@') {
            return Err(UpstreamError::More);
        }
        let port = authority.port().map(|port| port.as_str().parse()).transpose();
        let port = port.map_err(|_| UpstreamError::Malformed)?.unwrap_or(80);
        // An IPv6 address is in brackets in a URL, and without them elsewhere.
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port })
    }
}

impl std::fmt::Display for Upstream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(formatter, "[{}]:{}", self.host, self.port),
            false => write!(formatter, "{}:{}", self.host, self.port),
        }
    }
}

/// A connection to the application. It is worked on by whoever has a request on it, and by nobody else: that spares a
/// task and its wake-ups.
pub(super) struct Connection<B: Body + 'static> {
    pub(super) sender: SendRequest<B>,
    engine: http1::Connection<Stream, B>,
    ended: bool,
    held: Held,
    /// Whether it has served a request before. The application may have closed it since.
    pub(super) is_reused: bool,
}

/// What is held for the request that runs on a connection.
type Held = Arc<Mutex<Option<Hold>>>;

/// What a request holds for as long as the application may be at work on it.
#[derive(Debug)]
pub(super) struct Hold {
    _permits: Permits,
    in_flight: IntGauge,
}

impl Hold {
    /// Counts as in flight.
    pub(super) fn new(permits: Permits, in_flight: IntGauge) -> Self {
        in_flight.inc();
        Self { _permits: permits, in_flight }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.in_flight.dec();
    }
}

impl<B> Connection<B>
where
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + 'static,
    B::Data: Send,
{
    async fn open(upstream: &Upstream) -> io::Result<Self> {
        let stream = TcpStream::connect((upstream.host.as_str(), upstream.port)).await?;
        stream.set_nodelay(true)?;
        let held = Held::default();
        let stream = Stream { stream: Some(TokioIo::new(stream)), held: held.clone() };
        let (sender, engine) =
            http1::Builder::new().max_headers(HEADER_LINES).handshake(stream).await.map_err(io::Error::other)?;
        Ok(Self { sender, engine, ended: false, held, is_reused: false })
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

    /// Whether a request can be sent on it now.
    fn is_ready(&mut self, cx: &mut Context<'_>) -> bool {
        self.poll(cx);
        !self.ended && matches!(self.sender.poll_ready(cx), Poll::Ready(Ok(())))
    }
}

/// The connections without a request.
pub(super) struct Pool<B: Body + 'static> {
    upstream: Upstream,
    #[expect(clippy::vec_box, reason = "they are large, and go from hand to hand")]
    idle: Mutex<Vec<Box<Connection<B>>>>,
}

impl<B> Pool<B>
where
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + 'static,
    B::Data: Send,
{
    pub(super) fn new(upstream: Upstream) -> Self {
        Self { upstream, idle: Mutex::default() }
    }

    pub(super) fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// A connection that was used before, if there is one which the application has not closed: the latest, so that those
    /// which are not needed go idle.
    pub(super) fn reuse(&self, cx: &mut Context<'_>) -> Option<Box<Connection<B>>> {
        loop {
            let mut connection = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if connection.is_ready(cx) {
                return Some(connection);
            }
        }
    }

    /// A new connection.
    ///
    /// # Errors
    ///
    /// The application does not accept it.
    pub(super) async fn open(&self) -> io::Result<Box<Connection<B>>> {
        Connection::open(&self.upstream).await.map(Box::new)
    }

    /// Keeps a connection whose answer has been read to its end, if it can take another request.
    pub(super) fn keep(&self, mut connection: Box<Connection<B>>, cx: &mut Context<'_>) {
        drop(connection.release());
        if connection.is_ready(cx) {
            connection.is_reused = true;
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < KEPT {
                idle.push(connection);
            }
        }
    }
}

/// The application's end of a connection.
///
/// When it is dropped in the middle of a request, the application may still be at work on it. It is told that nobody
/// waits any more, and the permits are held until it closes, too.
pub(super) struct Stream {
    stream: Option<TokioIo<TcpStream>>,
    held: Held,
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
            runtime.spawn(closed(stream.into_inner(), hold));
        }
    }
}

/// Waits until the application has closed. It may take its time, as long as it is at work in silence; a host that has
/// vanished is found out.
///
/// One that goes on sending may not have looked whether anybody listens, and finds out only if it cannot send. After that
/// its end is not seen here: it gets time for it.
async fn closed(stream: TcpStream, _hold: Hold) -> io::Result<()> {
    let alive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    SockRef::from(&stream).set_tcp_keepalive(&alive)?;
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
