//! One HTTP/2 connection to the application.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::server::stream::Socket as _;
use crate::upstream::resolver::Resolver;

/// How much of an answer that its client does not read is kept, in bytes: the application has to wait then.
const WINDOW: u32 = 256 * 1024;
/// The same for all answers of a connection together: no limit, since clients that do not read would hold up all others.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// The largest piece of an answer, in bytes: large ones cost less.
const FRAME: u32 = 64 * 1024;
/// How much of a request's body waits to be written, in bytes.
const SEND_BUFFER: usize = 128 * 1024;
/// The size of an answer's head, in bytes: what hyper's HTTP/1 takes.
const HEADER_SIZE: u32 = 8192 + 4096 * 100;
/// So many streams that were reset here are remembered for a second, since the application may go on until it hears of that.
const RESETS: usize = 1024;
/// What no application can set as the number of requests at once: it has not said yet what it allows.
const UNKNOWN: usize = usize::MAX - 1;

/// Why a connection cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The application does not accept it.
    #[error("does not accept a connection: {0}")]
    Connect(io::Error),
    /// It answers, but in HTTP/1.
    #[error("answers in HTTP/1: give it as http:// instead of h2c://, or let it speak HTTP/2 with prior knowledge")]
    Http1,
    /// It closes it at once.
    #[error("closes a new connection before it has said anything: does it speak HTTP/2 with prior knowledge (h2c://)?")]
    Closed,
    /// It answers something else.
    #[error("does not begin with HTTP/2: {0}: does it speak that with prior knowledge (h2c://)?")]
    Protocol(h2::Error),
}

/// A connection, as those see it who send requests on it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: SendRequest<Bytes>,
    /// How many requests run on it.
    pub(super) running: AtomicUsize,
    /// How many it has had.
    pub(super) used: AtomicUsize,
    /// How often something has come on it.
    pub(super) heard: Arc<AtomicUsize>,
    /// It never changes, but is gone when the connection is.
    pub(super) closed: watch::Receiver<()>,
}

/// The part that has to be driven.
pub(super) struct Engine {
    pub(super) http: h2::client::Connection<Socket>,
    /// To be dropped when the application is at work on none of its requests any more.
    pub(super) open: watch::Sender<()>,
    /// Whether the application has closed it.
    pub(super) is_closed: Arc<AtomicBool>,
}

impl Connection {
    /// Connects, and waits until the application has begun HTTP/2 by saying what it allows.
    pub(super) async fn open(resolver: &Resolver) -> Result<(Self, Engine), OpenError> {
        let stream = resolver.connect().await.map_err(OpenError::Connect)?;
        stream.keep_alive();
        let heard = Arc::<AtomicUsize>::default();
        let (is_http1, is_closed) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
        let socket = Socket { stream, heard: heard.clone(), is_http1: is_http1.clone(), is_closed: is_closed.clone() };
        let failed = |error: h2::Error| match () {
            () if is_http1.load(Relaxed) => OpenError::Http1,
            () if heard.load(Relaxed) == 0 => OpenError::Closed,
            () => OpenError::Protocol(error),
        };
        let (sender, mut http) = builder().handshake(socket).await.map_err(failed)?;
        poll_fn(|cx| match Pin::new(&mut http).poll(cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Err(OpenError::Closed)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(failed(error))),
            Poll::Pending if http.max_concurrent_send_streams() == UNKNOWN => Poll::Pending,
            Poll::Pending => Poll::Ready(Ok(())),
        })
        .await?;
        let (open, closed) = watch::channel(());
        let connection = Self { sender, running: AtomicUsize::new(0), used: AtomicUsize::new(0), heard, closed };
        Ok((connection, Engine { http, open, is_closed }))
    }

    /// Whether a request can be sent on it: not after `GOAWAY`, nor when all numbers of streams are used up.
    pub(super) fn takes_requests(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        matches!(self.sender.clone().poll_ready(&mut cx), Poll::Ready(Ok(())))
    }

    /// Whether the application allows another one now.
    pub(super) fn has_room(&self) -> bool {
        self.running.load(Relaxed) < self.sender.current_max_send_streams()
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(HEADER_SIZE)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(RESETS)
        // The application is trusted: what it still sends on streams that were reset here is no attack.
        .max_local_error_reset_streams(None)
        .initial_max_send_streams(UNKNOWN)
        .enable_push(false);
    builder
}

/// The socket, and what is known of what comes on it.
pub(super) struct Socket {
    stream: TcpStream,
    heard: Arc<AtomicUsize>,
    is_http1: Arc<AtomicBool>,
    is_closed: Arc<AtomicBool>,
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let socket = self.get_mut();
        let before = buffer.filled().len();
        let result = ready!(Pin::new(&mut socket.stream).poll_read(cx, buffer));
        match buffer.filled().get(before..) {
            Some(read @ [_, ..]) => {
                if socket.heard.fetch_add(1, Relaxed) == 0 {
                    socket.is_http1.store(read.starts_with(b"HTTP/"), Relaxed);
                }
            }
            // Its end, or a failure.
            _ => socket.is_closed.store(true, Relaxed),
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
