//! HTTP/2 to the application: a few connections that all requests share.
//!
//! A request goes on the oldest connection that has room for it. Where none has, since the application allows only so many
//! at once (RFC 9113 §5.1.2), another connection is opened, by one request at a time. So there are as few as can be, and
//! those that are no longer needed go idle, and are closed.

mod connection;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::ResponseFuture;
use http::Request;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::debug;

pub use self::connection::OpenError;
use self::connection::{Connection, Engine};
use super::resolver::Resolver;
use super::{InFlight, UNREAD_TIME};

/// The connections.
#[derive(Debug)]
pub struct Multiplexed {
    resolver: Resolver,
    connections: Arc<Connections>,
    /// Whoever opens a connection.
    opening: tokio::sync::Mutex<()>,
    /// A connection that no request has used for this long is closed, within twice that.
    idle_for: Duration,
}

impl Multiplexed {
    /// Connections to the addresses that the resolver finds. One that no request has used for `idle_for` is closed.
    #[must_use]
    pub fn new(resolver: Resolver, idle_for: Duration) -> Self {
        Self { resolver, connections: Arc::default(), opening: tokio::sync::Mutex::default(), idle_for }
    }

    /// A slot for a request on a connection that has room.
    #[must_use]
    pub fn reuse(&self) -> Option<Slot> {
        self.connections.slot()
    }

    /// A slot for a request, on a new connection where no other has room.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub async fn slot(&self) -> Result<Slot, OpenError> {
        let _opening = self.opening.lock().await;
        // Somebody else may have opened one meanwhile.
        if let Some(slot) = self.reuse() {
            return Ok(slot);
        }
        let (connection, engine) = Connection::open(&self.resolver).await?;
        let connection = Arc::new(connection);
        // Whatever the limit is: where it is 0 for the moment, the request waits for that to change.
        let slot = Slot::of(&connection, true);
        tokio::spawn(drive(engine, Arc::downgrade(&connection), self.connections.clone(), self.idle_for));
        self.connections.lock().push(connection);
        Ok(slot)
    }

    /// Sends no more requests on the connection of this slot.
    pub fn retire(&self, slot: &Slot) {
        self.connections.retire(&slot.connection);
    }
}

/// Those on which requests can be sent, the oldest first.
#[derive(Debug, Default)]
struct Connections(Mutex<Vec<Arc<Connection>>>);

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot on a connection that has room.
    fn slot(&self) -> Option<Slot> {
        let mut connections = self.lock();
        loop {
            let (index, connection) = connections.iter().enumerate().find(|(_, connection)| connection.has_room())?;
            if connection.takes_requests() {
                return Some(Slot::of(connection, false));
            }
            connections.remove(index);
        }
    }

    fn retire(&self, connection: &Arc<Connection>) {
        self.lock().retain(|other| !Arc::ptr_eq(connection, other));
    }

    /// Takes a connection out that has no request, and has had none since it had `used` of them. Returns how many it has had.
    fn retire_idle(&self, connection: &Arc<Connection>, used: usize) -> usize {
        // Under the lock nobody takes a slot.
        let mut connections = self.lock();
        let now = connection.used.load(Relaxed);
        if now == used && connection.running.load(Relaxed) == 0 {
            connections.retain(|other| !Arc::ptr_eq(connection, other));
        }
        now
    }
}

/// Works on a connection until it is closed. It is closed here when nobody can send a request on it any more and the last one
/// has ended.
async fn drive(engine: Engine, connection: Weak<Connection>, connections: Arc<Connections>, idle_for: Duration) {
    let Engine { mut http, open, is_closed } = engine;
    let (mut used, mut due) = (0, Instant::now() + idle_for);
    let ended = loop {
        tokio::select! {
            ended = &mut http => break ended,
            () = sleep_until(due) => {
                if let Some(connection) = connection.upgrade() {
                    used = connections.retire_idle(&connection, used);
                }
                due = Instant::now() + idle_for;
            }
        }
    };
    drop(http);
    if let Some(connection) = connection.upgrade() {
        connections.retire(&connection);
    }
    if let Err(error) = ended {
        debug!("a connection to the application failed: {error}");
    }
    if !is_closed.load(Relaxed) {
        // It was closed here, which the application has yet to notice.
        sleep(UNREAD_TIME).await;
    }
    drop(open);
}

/// A slot for a request on a connection.
pub struct Slot {
    connection: Arc<Connection>,
    /// Whether the connection was opened for it. If not, the application may be closing it at this moment.
    pub is_first: bool,
}

impl Slot {
    fn of(connection: &Arc<Connection>, is_first: bool) -> Self {
        connection.running.fetch_add(1, Relaxed);
        connection.used.fetch_add(1, Relaxed);
        Self { connection: connection.clone(), is_first }
    }

    /// Sends the head of a request, which is all of it if it `is_whole`.
    ///
    /// # Errors
    ///
    /// The connection takes no more requests. This one was not sent.
    pub fn send(&self, request: Request<()>, is_whole: bool) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        self.connection.sender.clone().send_request(request, is_whole)
    }

    /// How often the application has sent something on this connection.
    pub fn heard(&self) -> usize {
        self.connection.heard.load(Relaxed)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connection.running.fetch_sub(1, Relaxed);
    }
}

/// A request that runs: its slot, and what is held for as long as the application may be at work on it.
///
/// When it is dropped before it [has ended](Self::end), the application is told by a reset of the stream. But nothing in
/// HTTP/2 tells when it has heeded that. So the hold is kept for a further 10 s ([`UNREAD_TIME`]), as over HTTP/1 after a
/// reset, or until the application closes the connection.
pub struct Running {
    /// The request's slot.
    pub slot: Slot,
    in_flight: Option<InFlight>,
}

impl Running {
    /// A request that was sent in this slot.
    #[must_use]
    pub fn new(slot: Slot, in_flight: InFlight) -> Self {
        Self { slot, in_flight: Some(in_flight) }
    }

    /// The application is at work on it no longer.
    pub fn end(&mut self) -> Option<InFlight> {
        self.in_flight.take()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(in_flight) = self.in_flight.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let mut closed = self.slot.connection.closed.clone();
            runtime.spawn(async move {
                let _ = timeout(UNREAD_TIME, closed.changed()).await;
                drop(in_flight);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;
    use tokio::sync::oneshot;

    /// An application, and when its first connection is closed.
    async fn application() -> (Resolver, oneshot::Receiver<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let resolver = Resolver::new(address.ip().to_string(), address.port());
        let (close, closed) = oneshot::channel();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while connection.accept().await.is_some() {}
            close.send(())
        });
        (resolver, closed)
    }

    #[tokio::test]
    async fn a_connection_is_idle_that_has_had_no_request_for_a_while() {
        let (resolver, _closed) = application().await;
        let multiplexed = Multiplexed::new(resolver, Duration::from_secs(60));
        let slot = multiplexed.slot().await.ok().unwrap();
        let connections = &multiplexed.connections;
        let connection = slot.connection.clone();
        assert_eq!(connections.retire_idle(&connection, 1), 1, "one runs");
        drop(slot);
        assert_eq!(connections.lock().len(), 1);
        drop(multiplexed.slot().await.ok().unwrap());
        assert_eq!(connections.retire_idle(&connection, 1), 2, "one has run since");
        assert_eq!(connections.lock().len(), 1);
        connections.retire_idle(&connection, 2);
        assert_eq!(connections.lock().len(), 0);
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed() {
        let (resolver, closed) = application().await;
        let multiplexed = Multiplexed::new(resolver, Duration::from_millis(10));
        drop(multiplexed.slot().await.ok().unwrap());
        timeout(Duration::from_secs(30), closed).await.unwrap().unwrap();
    }
}
