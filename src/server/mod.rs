//! Listening: bind, accept, limits, timeouts, and a drain that ends. Both listeners use this module.
//!
//! - `http1`: one loop per connection, with [`buffer`]s that the thread shares and one [`timer`].
//! - [`http2`]: the `h2` crate, with a task for each stream.
//! - [`slots`] limit the connections, and make room where one of them waits.

pub mod buffer;
pub mod connection;
mod date;
pub mod head;
mod http1;
pub mod http2;
pub mod limits;
pub mod service;
pub mod slots;
pub mod stream;
pub mod timer;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use tracing::warn;

use self::connection::{Client, Connection};
#[cfg(fuzzing)]
pub(crate) use self::http1::serve as serve_http1;
pub use self::limits::Limits;
pub use self::service::{Begin, Service};
use self::slots::{Occupied, Slots};
use self::timer::{Timer, after};
use crate::metrics::LimitCounters;
use crate::shutdown::Stop;

/// The system may keep this many connections that are not accepted yet.
const BACKLOG: i32 = 1024;
/// How long to wait when accepting fails for want of file descriptors or memory: trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A socket that listens.
#[derive(Debug)]
pub struct Listener {
    socket: StdListener,
    address: SocketAddr,
    limits: Limits,
    /// Each connection holds one.
    slots: Arc<Slots>,
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
    /// `flag` is named in errors. `counters` count what happens at the limits.
    ///
    /// # Errors
    ///
    /// See [`BindError`].
    pub fn bind(
        flag: &'static str,
        address: SocketAddr,
        limits: Limits,
        counters: LimitCounters,
    ) -> Result<Self, BindError> {
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
        Ok(Self { socket, address, limits, slots: Slots::new(&limits, counters) })
    }

    /// The same socket for another thread: the first thread that has time accepts the next connection. The limits apply to all
    /// threads together.
    ///
    /// # Errors
    ///
    /// There is no file descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let socket = self.socket.try_clone()?;
        Ok(Self { socket, address: self.address, limits: self.limits, slots: self.slots.clone() })
    }

    /// Where it listens; the port is the one that the system chose if 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The connections, for signals to all of them.
    #[must_use]
    pub fn slots(&self) -> &Arc<Slots> {
        &self.slots
    }

    /// Serves HTTP/1.1 and HTTP/2 until the process drains, then lets the running requests finish. Returns when the last
    /// connection is closed: the caller limits the time for that.
    ///
    /// # Errors
    ///
    /// The runtime cannot use the socket.
    pub async fn serve<V: Service>(self, service: V, mut stop: Stop) -> io::Result<()> {
        let Self { socket, limits, slots, .. } = self;
        let listener = TcpListener::from_std(socket)?;
        let mut is_failing = false;
        loop {
            let accepted = tokio::select! {
                accepted = accept(&listener, &slots) => accepted,
                () = stop.draining() => break,
            };
            let (stream, address, slot) = match accepted {
                Ok(accepted) => {
                    is_failing = false;
                    accepted
                }
                // The client has left before it was its turn.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        warn!("cannot accept connections, trying again every {ACCEPT_PAUSE:?}: {error}");
                    }
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let connection = Box::new(Connection {
                stream,
                input: Vec::new(),
                output: Vec::new(),
                timer: Timer::new(after(Instant::now(), limits.header_timeout)),
                client: Client::new(address.ip()),
                slot,
                limits,
            });
            let service = service.clone();
            tokio::spawn(async move {
                if let Some(connection) = http1::serve(connection, &service).await {
                    Box::pin(http2::serve(connection, service)).await;
                }
            });
        }
        drop(listener);
        slots.drain();
        slots.closed().await;
        Ok(())
    }
}

fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

async fn accept(listener: &TcpListener, slots: &Arc<Slots>) -> io::Result<(TcpStream, SocketAddr, Occupied)> {
    let (stream, address) = listener.accept().await?;
    let slot = slots.take().await;
    // Responses are written in one piece: there is nothing to wait for.
    let _ = stream.set_nodelay(true);
    Ok((stream, address, slot))
}
