//! Listening: bind, accept, limits, timeouts, and a drain that ends. Both listeners are made of this.
//!
//! The engine is hyper. What is added is what `axum::serve` lacks: a limit on connections, one on the time to send a
//! header and one on idleness, a pause when accepting fails, and a connection that is read for a while after its
//! last answer so that the client gets to see it.

mod activity;
mod client;
mod clock;
mod connection;
mod cut;
mod eviction;
mod exchange;
mod streams;

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Body;
use hyper::service::Service;
use hyper::{Request, Response};
use prometheus::IntCounter;
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tracing::warn;

pub use self::client::{Client, Upgraded, find_out_if_gone};
use self::connection::Engines;
pub use self::cut::{Cut, Cuts};
use self::eviction::Waiting;
pub use self::exchange::{RequestBody, Upgrade};
use crate::shutdown::Stop;

/// The system may keep this many connections that are not accepted yet.
const BACKLOG: i32 = 1024;
/// How long to wait when accepting fails for want of file descriptors or memory: trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a client may use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The size of a request's header, in bytes. Above it the answer is 431.
    pub header_size: usize,
    /// The number of header lines, if it is another than hyper's 100, for which it needs no memory. The same then.
    pub header_lines: Option<usize>,
    /// The time to send it.
    pub header_timeout: Duration,
    /// The time a connection may be kept without a request.
    pub idle_timeout: Duration,
    /// The number of connections. At the limit, the connection that has waited longest for a request makes room for the next
    /// one, which waits only while all of them have requests.
    pub connections: usize,
    /// The number of HTTP/2 requests at once, on all connections of a thread. Those above it are reset.
    pub streams: usize,
}

/// A socket that listens.
#[derive(Debug)]
pub struct Listener {
    socket: StdListener,
    address: SocketAddr,
    limits: Limits,
    /// Every connection, and what lingers of one, holds one.
    places: Arc<Semaphore>,
}

/// A socket that cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// `EADDRINUSE`.
    #[error("{flag} {address} is in use: stop what listens there, or choose another address")]
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
    pub fn bind(flag: &'static str, address: SocketAddr, limits: Limits) -> Result<Self, BindError> {
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
        let places = Arc::new(Semaphore::new(limits.connections));
        Ok(Self { socket, address, limits, places })
    }

    /// The same socket for another thread: whoever has time takes the next connection. The limits are those of all together.
    ///
    /// # Errors
    ///
    /// There is no file descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let socket = self.socket.try_clone()?;
        Ok(Self { socket, address: self.address, limits: self.limits, places: self.places.clone() })
    }

    /// Where it listens; the port is the one that the system chose if 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves HTTP/1 and HTTP/2 until it is told to stop, then lets the requests finish that run. Returns when the
    /// last connection is closed: whoever calls sets a limit to that. `cuts` ends requests before, of which the service
    /// has said that it may. `evictions` counts the connections that made room for others.
    ///
    /// # Errors
    ///
    /// The runtime cannot use the socket.
    pub async fn serve<S, B>(self, service: S, cuts: Cuts, evictions: IntCounter, mut stop: Stop) -> io::Result<()>
    where
        S: HttpService<B> + Clone + Send + 'static,
        S::Future: Send,
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let Self { socket, limits, places, .. } = self;
        let listener = TcpListener::from_std(socket)?;
        let engines = Arc::new(Engines::new(limits));
        let mut failing = false;
        let mut waiting = Waiting::new(limits.connections, evictions);
        loop {
            let accepted = tokio::select! {
                accepted = accept(&listener, &places, &mut waiting) => accepted,
                () = stop.draining() => break,
            };
            let (stream, address, place) = match accepted {
                Ok(accepted) => {
                    failing = false;
                    accepted
                }
                // The client has left before it was its turn.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!("cannot accept connections, trying again every {ACCEPT_PAUSE:?}: {error}");
                    }
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let service = service.clone();
            let client = Client::new(stream, address.ip(), cuts.clone(), place);
            waiting.add(client.activity());
            tokio::spawn(connection::serve(client, service, engines.clone(), limits, stop.clone()));
        }
        drop(listener);
        let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
        let _ = places.acquire_many(all).await;
        Ok(())
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What answers requests: it never fails, errors are answers too.
pub trait HttpService<B>: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible> {}

impl<B, S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible>> HttpService<B> for S {}

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

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
    waiting: &mut Waiting,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let (stream, address) = listener.accept().await?;
    let place = waiting.make_room(places).await.map_err(io::Error::other)?;
    // Answers are written in one piece: there is nothing to wait for.
    let _ = stream.set_nodelay(true);
    Ok((stream, address, place))
}
