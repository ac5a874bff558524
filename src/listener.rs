//! Listening: bind, accept, limits, timeouts, and a drain that ends. Both listeners are made of this.
//!
//! The engine is hyper. What is added is what `axum::serve` lacks: a limit on connections, one on the time to send a
//! header and one on idleness, a pause when accepting fails, and a connection that is read for a while after its
//! last answer so that the client gets to see it.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::Service;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulConnection;
use pin_project_lite::pin_project;
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, warn};

use crate::shutdown::Stop;

/// The system may keep this many connections that are not accepted yet.
const BACKLOG: i32 = 1024;
/// How long to wait when accepting fails for want of file descriptors or memory: trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// After the last answer, how much more a client may send before its connection is closed, in bytes.
const LINGER: usize = 1024 * 1024;
/// And for how long.
const LINGER_FOR: Duration = Duration::from_secs(5);

/// What a client may use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The size of a request's header, in bytes. Above it the answer is 431.
    pub header_size: usize,
    /// The time to send it.
    pub header_timeout: Duration,
    /// The time a connection may be kept without a request.
    pub idle_timeout: Duration,
    /// The number of connections. The next one waits in the system's backlog.
    pub connections: usize,
}

/// A socket that listens.
#[derive(Debug)]
pub struct Listener {
    socket: StdListener,
    address: SocketAddr,
}

/// A socket that cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// `EADDRINUSE`.
    #[error("{flag} {address} is in use by another process: stop that one, or choose another address")]
    InUse {
        /// The flag that chose the address.
        flag: &'static str,
        /// Where it was to listen.
        address: SocketAddr,
    },
    /// Anything else that the system says.
    #[error("cannot listen at {flag} {address}: {source}")]
    Other {
        /// The flag that chose the address.
        flag: &'static str,
        /// Where it was to listen.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

impl Listener {
    /// Listens at the address. `[::]` takes IPv4 connections as well, and is `0.0.0.0` on a host without IPv6.
    /// `flag` is named in errors.
    ///
    /// # Errors
    ///
    /// See [`BindError`].
    pub fn bind(flag: &'static str, address: SocketAddr) -> Result<Self, BindError> {
        let bound = bind(address).or_else(|error| match Errno::from_io_error(&error) {
            Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) if address.is_ipv6() && address.ip().is_unspecified() => {
                bind((Ipv4Addr::UNSPECIFIED, address.port()).into())
            }
            _ => Err(error),
        });
        let socket = bound.map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { flag, address },
            _ => BindError::Other { flag, address, source },
        })?;
        let address = socket.local_addr().map_err(|source| BindError::Other { flag, address, source })?;
        Ok(Self { socket, address })
    }

    /// Where it listens; the port is the one that the system chose if 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves HTTP/1 and HTTP/2 until it is told to stop, then lets the requests finish that run. Returns when the
    /// last connection is closed: whoever calls sets a limit to that.
    ///
    /// # Errors
    ///
    /// The runtime cannot use the socket.
    pub async fn serve<S, B>(self, service: S, limits: Limits, mut stop: Stop) -> io::Result<()>
    where
        S: HttpService<B> + Clone + Send + 'static,
        S::Future: Send,
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        let listener = TcpListener::from_std(self.socket)?;
        let builder = builder(limits);
        let places = Arc::new(Semaphore::new(limits.connections));
        loop {
            let accepted = tokio::select! {
                accepted = accept(&listener, &places) => accepted,
                () = stop.draining() => break,
            };
            let (stream, place) = match accepted {
                Ok(accepted) => accepted,
                // The client has left before it was its turn.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    warn!("cannot accept a connection, trying again in {ACCEPT_PAUSE:?}: {error}");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let activity = Arc::new(Activity::default());
            let client = Client { stream: TokioIo::new(stream), place: Some(place), activity: activity.clone() };
            let service = Tracked { service: service.clone(), activity: activity.clone() };
            let connection = builder.serve_connection(client, service).into_owned();
            tokio::spawn(converse(connection, limits, stop.clone(), activity));
        }
        drop(listener);
        // Every connection, and what lingers of one, holds a place.
        let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
        let _ = places.acquire_many(all).await;
        Ok(())
    }
}

/// What answers requests: it never fails, errors are answers too.
pub trait HttpService<B>: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> {}

impl<B, S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>> HttpService<B> for S {}

fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    // Answers are written in one piece: there is nothing to wait for.
    let _ = stream.set_nodelay(true);
    Ok((stream, place))
}

fn builder(limits: Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // The timeouts are this module's: hyper's counts idle time as time to send a header.
    builder.http1().max_buf_size(limits.header_size).header_read_timeout(None).pipeline_flush(true);
    builder
        .http2()
        .max_header_list_size(u32::try_from(limits.header_size).unwrap_or(u32::MAX))
        .max_concurrent_streams(128);
    builder
}

/// Serves one connection until its last request is answered or a time limit passes.
async fn converse<C>(protocols: C, limits: Limits, mut stop: Stop, activity: Arc<Activity>)
where
    C: GracefulConnection<Error: std::fmt::Display>,
{
    let mut protocols = pin!(protocols);
    let mut clock = Clock::new(&activity, limits);
    let mut timer = pin!(sleep_until(clock.deadline));
    let mut draining = Some(pin!(stop.draining()));
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(result) = protocols.as_mut().poll(cx) {
                if let Err(error) = result {
                    debug!("a connection failed: {error}");
                }
                return Poll::Ready(());
            }
            if draining.as_mut().is_some_and(|draining| draining.as_mut().poll(cx).is_ready()) {
                draining = None;
                protocols.as_mut().graceful_shutdown();
                continue;
            }
            if clock.is_early() {
                timer.as_mut().reset(clock.deadline);
            }
            ready!(timer.as_mut().poll(cx));
            if clock.is_over() {
                activity.give_up();
                return Poll::Ready(());
            }
            timer.as_mut().reset(clock.deadline);
        }
    })
    .await;
}

/// What a connection is doing, as far as its time limits go.
#[derive(Debug, Default)]
struct Activity {
    /// Requests that are being answered.
    requests: AtomicUsize,
    /// Whether all that has come since the last request was taken up is less than a header.
    idle: AtomicBool,
    /// Whether the client may have more to send that nobody reads.
    unread: AtomicBool,
    /// Counts the changes of the first two.
    changes: AtomicUsize,
}

/// What a connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// The rest of a header; of a new connection, all of it.
    Header,
    /// The service.
    Answer,
    /// The next request.
    Request,
}

impl Activity {
    fn waiting(&self) -> Waiting {
        match (self.requests.load(Relaxed), self.idle.load(Relaxed)) {
            (0, false) => Waiting::Header,
            (0, true) => Waiting::Request,
            _ => Waiting::Answer,
        }
    }

    /// The client has sent something.
    fn received(&self) {
        if self.requests.load(Relaxed) == 0 && self.idle.swap(false, Relaxed) {
            self.changes.fetch_add(1, Relaxed);
        }
    }

    fn begin<B: Body>(self: &Arc<Self>, request: &Request<B>) -> Answering {
        let has_body = request.version() < Version::HTTP_2 && !request.body().is_end_stream();
        self.unread.store(has_body, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        self.changes.fetch_add(1, Relaxed);
        Answering(self.clone())
    }

    fn give_up(&self) {
        self.unread.store(false, Relaxed);
        self.idle.store(true, Relaxed);
    }

    /// Whether closing the connection now could reset it under the client's hands.
    fn must_linger(&self) -> bool {
        self.unread.load(Relaxed) || self.waiting() == Waiting::Header
    }
}

/// A request that is being answered.
#[derive(Debug)]
struct Answering(Arc<Activity>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.idle.store(true, Relaxed);
        self.0.requests.fetch_sub(1, Relaxed);
        self.0.changes.fetch_add(1, Relaxed);
    }
}

/// When a connection has to be given up. The deadline is put off only when its time has come, not with each request.
#[derive(Debug)]
struct Clock<'a> {
    activity: &'a Activity,
    limits: Limits,
    /// Since when the connection waits for what it waits for, as of so many changes.
    since: Instant,
    changes: usize,
    deadline: Instant,
}

impl<'a> Clock<'a> {
    fn new(activity: &'a Activity, limits: Limits) -> Self {
        let since = Instant::now();
        Self { activity, limits, since, changes: 0, deadline: since + limits.header_timeout }
    }

    /// `None` while the service is at work.
    fn limit(&mut self) -> Option<Instant> {
        let changes = self.activity.changes.load(Relaxed);
        if changes != self.changes {
            self.changes = changes;
            self.since = Instant::now();
        }
        match self.activity.waiting() {
            Waiting::Header => Some(self.since + self.limits.header_timeout),
            Waiting::Answer => None,
            Waiting::Request => Some(self.since + self.limits.idle_timeout),
        }
    }

    /// Whether the deadline has moved closer.
    fn is_early(&mut self) -> bool {
        match self.limit() {
            Some(limit) if limit < self.deadline => {
                self.deadline = limit;
                true
            }
            _ => false,
        }
    }

    /// Whether the time is over; if not, the deadline is put off.
    fn is_over(&mut self) -> bool {
        let now = Instant::now();
        match self.limit() {
            Some(limit) if limit <= now => true,
            Some(limit) => {
                self.deadline = limit;
                false
            }
            None => {
                self.deadline = now + self.limits.idle_timeout;
                false
            }
        }
    }
}

/// A service that tells when it is at work.
#[derive(Clone, Debug)]
struct Tracked<S> {
    service: S,
    activity: Arc<Activity>,
}

impl<S, B> Service<Request<Incoming>> for Tracked<S>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
{
    type Response = Response<TrackedBody<B>>;
    type Error = Infallible;
    type Future = TrackedFuture<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let answering = Some(self.activity.begin(&request));
        TrackedFuture { future: self.service.call(request), answering }
    }
}

pin_project! {
    struct TrackedFuture<F> {
        #[pin]
        future: F,
        answering: Option<Answering>,
    }
}

impl<F, B> Future for TrackedFuture<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = Result<Response<TrackedBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(response) = ready!(this.future.poll(cx));
        let answering = this.answering.take();
        Poll::Ready(Ok(response.map(|body| TrackedBody { body, answering })))
    }
}

pin_project! {
    /// A body: until it ends or is lost, its request is being answered.
    struct TrackedBody<B> {
        #[pin]
        body: B,
        answering: Option<Answering>,
    }
}

impl<B: Body> Body for TrackedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The client's end of a connection.
///
/// When hyper is done with it, it may linger: closing a socket on which something is unread resets the connection,
/// and with that the client may lose the answer (RFC 9112 §9.6).
#[derive(Debug)]
struct Client {
    stream: TokioIo<TcpStream>,
    place: Option<OwnedSemaphorePermit>,
    activity: Arc<Activity>,
}

impl Read for Client {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        self.activity.received();
        Poll::Ready(result)
    }
}

impl Write for Client {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.activity.must_linger()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
            && let Ok(stream) = self.stream.inner().as_fd().try_clone_to_owned()
        {
            runtime.spawn(linger(stream, self.place.take()));
        }
    }
}

async fn linger(stream: OwnedFd, _place: Option<OwnedSemaphorePermit>) -> io::Result<()> {
    let stream = TcpStream::from_std(StdStream::from(stream))?;
    let mut buffer = [0; 4096];
    let mut left = LINGER;
    let read = async {
        while left > 0 {
            stream.readable().await?;
            match stream.try_read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => left = left.saturating_sub(length),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    timeout(LINGER_FOR, read).await?
}
