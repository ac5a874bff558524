//! HTTP/2 to the application: a few connections that all requests share.
//!
//! A request goes on the oldest connection that has room for it. Where none has, since the application allows only so many
//! at once (RFC 9113 §5.1.2), another connection is opened, by one request at a time. So there are as few as can be, and
//! those that are no longer needed go idle, and are closed.

mod connection;

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::ResponseFuture;
use hyper::Request;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::debug;

use self::connection::{Connection, Engine};
use super::resolver::Resolver;
use super::{InFlight, UNHEARD_FOR};

/// Why a connection cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(in crate::gate) enum OpenError {
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

/// The connections.
pub(in crate::gate) struct Multiplexed {
    resolver: Resolver,
    connections: Arc<Connections>,
    /// Whoever opens a connection.
    opening: tokio::sync::Mutex<()>,
    /// A connection that no request has used for this long is closed, within twice that.
    idle_for: Duration,
}

impl Multiplexed {
    pub(in crate::gate) fn new(resolver: Resolver, idle_for: Duration) -> Self {
        Self { resolver, connections: Arc::default(), opening: tokio::sync::Mutex::default(), idle_for }
    }

    /// A place for a request.
    ///
    /// # Errors
    ///
    /// See [`OpenError`].
    pub(in crate::gate) async fn place(&self) -> Result<Place, OpenError> {
        if let Some(place) = self.connections.place() {
            return Ok(place);
        }
        let _opening = self.opening.lock().await;
        // Meanwhile somebody else may have opened one.
        if let Some(place) = self.connections.place() {
            return Ok(place);
        }
        let (connection, engine) = Connection::open(&self.resolver).await?;
        let connection = Arc::new(connection);
        // Whatever the limit is: where it is 0 for the moment, the request waits for that to change.
        let place = Place::of(&connection, true);
        tokio::spawn(drive(engine, Arc::downgrade(&connection), self.connections.clone(), self.idle_for));
        self.connections.lock().push(connection);
        Ok(place)
    }

    /// Sends no more requests on the connection of this place.
    pub(in crate::gate) fn retire(&self, place: &Place) {
        self.connections.retire(&place.connection);
    }
}

/// Those on which requests can be sent, the oldest first.
#[derive(Default)]
struct Connections(Mutex<Vec<Arc<Connection>>>);

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place on a connection that has room.
    fn place(&self) -> Option<Place> {
        let mut connections = self.lock();
        loop {
            let (index, connection) = connections.iter().enumerate().find(|(_, connection)| connection.has_room())?;
            if connection.takes_requests() {
                return Some(Place::of(connection, false));
            }
            connections.remove(index);
        }
    }

    fn retire(&self, connection: &Arc<Connection>) {
        self.lock().retain(|other| !Arc::ptr_eq(connection, other));
    }

    /// Takes a connection out that has no request, and has had none since it had `used` of them. Returns how many it has had.
    fn retire_idle(&self, connection: &Arc<Connection>, used: usize) -> usize {
        // Under the lock nobody takes a place.
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
        sleep(UNHEARD_FOR).await;
    }
    drop(open);
}

/// A place for a request on a connection.
pub(in crate::gate) struct Place {
    connection: Arc<Connection>,
    /// Whether the connection was opened for it. If not, the application may be closing it at this moment.
    pub(in crate::gate) is_first: bool,
}

impl Place {
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
    pub(in crate::gate) fn send(
        &self,
        request: Request<()>,
        is_whole: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        self.connection.sender.clone().send_request(request, is_whole)
    }

    /// How often the application has sent something on this connection.
    pub(in crate::gate) fn heard(&self) -> usize {
        self.connection.heard.load(Relaxed)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connection.running.fetch_sub(1, Relaxed);
    }
}

/// A request that runs: its place, and what is held for as long as the application may be at work on it.
///
/// When it is dropped before it [has ended](Self::end), the application is told by a reset of the stream. But nothing in
/// HTTP/2 tells when it has heeded that. So the hold is kept for a further 10 s ([`UNHEARD_FOR`]), as over HTTP/1 after a
/// reset, or until the application closes the connection.
pub(in crate::gate) struct Running {
    pub(in crate::gate) place: Place,
    in_flight: Option<InFlight>,
}

impl Running {
    pub(in crate::gate) fn new(place: Place, in_flight: InFlight) -> Self {
        Self { place, in_flight: Some(in_flight) }
    }

    /// The application is at work on it no longer.
    pub(in crate::gate) fn end(mut self) -> Option<InFlight> {
        self.in_flight.take()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(in_flight) = self.in_flight.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let mut closed = self.place.connection.closed.clone();
            runtime.spawn(async move {
                let _ = timeout(UNHEARD_FOR, closed.changed()).await;
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
        let place = multiplexed.place().await.ok().unwrap();
        let connections = &multiplexed.connections;
        let connection = place.connection.clone();
        assert_eq!(connections.retire_idle(&connection, 1), 1, "one runs");
        drop(place);
        assert_eq!(connections.lock().len(), 1);
        drop(multiplexed.place().await.ok().unwrap());
        assert_eq!(connections.retire_idle(&connection, 1), 2, "one has run since");
        assert_eq!(connections.lock().len(), 1);
        connections.retire_idle(&connection, 2);
        assert_eq!(connections.lock().len(), 0);
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed() {
        let (resolver, closed) = application().await;
        let multiplexed = Multiplexed::new(resolver, Duration::from_millis(10));
        drop(multiplexed.place().await.ok().unwrap());
        timeout(Duration::from_secs(30), closed).await.unwrap().unwrap();
    }
}
