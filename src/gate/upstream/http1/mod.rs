//! The connections to the application: how many there may be, and those that wait for a request.

pub(in crate::gate) mod connection;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use hyper::body::Body;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use self::connection::Connection;
use super::resolver::Resolver;

/// So many connections without a request are kept.
const KEPT: usize = 1024;
/// How often those are looked at: one that the application has closed takes up a file descriptor here, and one that the
/// gate keeps takes one up there.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// The connections to the application.
pub(in crate::gate) struct Pool<B: Body + 'static> {
    resolver: Resolver,
    places: Arc<Semaphore>,
    /// How long one is kept without a request.
    idle_timeout: Duration,
    idle: Arc<Mutex<Idle<B>>>,
}

/// Those without a request.
struct Idle<B: Body + 'static> {
    /// Each with how many sweeps there were before it was kept: to ask the clock would cost each request. The latest is the
    /// last.
    connections: Vec<(u64, Box<Connection<B>>)>,
    sweeps: u64,
    /// Whether somebody sweeps: nobody does while there is nothing to look at.
    is_swept: bool,
}

impl<B> Pool<B>
where
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    B::Data: Send,
{
    /// One of connections that have a place each, and are kept for that long without a request.
    pub(in crate::gate) fn new(resolver: Resolver, places: Arc<Semaphore>, idle_timeout: Duration) -> Self {
        let idle = Arc::new(Mutex::new(Idle { connections: Vec::new(), sweeps: 0, is_swept: false }));
        Self { resolver, places, idle_timeout, idle }
    }

    /// A connection that was used before, if there is one: the latest, so that those which are not needed go idle. The
    /// application may have closed it: a request is not sent then, since the connection is read first.
    pub(in crate::gate) fn reuse(&self) -> Option<Box<Connection<B>>> {
        loop {
            let (_, connection) = lock(&self.idle).connections.pop()?;
            if !connection.has_ended() {
                return Some(connection);
            }
        }
    }

    /// Waits until there may be another connection.
    pub(in crate::gate) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().acquire_owned().await.ok()
    }

    /// A new connection.
    ///
    /// # Errors
    ///
    /// The application does not accept it.
    pub(in crate::gate) async fn open(&self, place: OwnedSemaphorePermit) -> io::Result<Box<Connection<B>>> {
        Connection::open(&self.resolver, place).await
    }

    /// Takes back a connection whose request has ended, and what was held for that. Returns one on which it has not.
    pub(in crate::gate) fn take_back(
        &self,
        mut connection: Box<Connection<B>>,
        cx: &mut Context<'_>,
    ) -> Option<Box<Connection<B>>> {
        let is_ready = connection.is_ready(cx);
        if !is_ready && !connection.has_ended() {
            return Some(connection);
        }
        drop(connection.release());
        if is_ready {
            self.keep(connection);
        }
        None
    }

    /// Keeps a connection for the next request, unless there are enough, or somebody waits for its place.
    fn keep(&self, connection: Box<Connection<B>>) {
        let mut idle = lock(&self.idle);
        if idle.connections.len() < KEPT && self.places.available_permits() > 0 {
            let sweeps = idle.sweeps;
            idle.connections.push((sweeps, connection));
            if !std::mem::replace(&mut idle.is_swept, true) {
                tokio::spawn(sweep(self.idle.clone(), self.idle_timeout, self.places.clone()));
            }
        }
    }
}

fn lock<B: Body + 'static>(idle: &Mutex<Idle<B>>) -> MutexGuard<'_, Idle<B>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closes the connections that the application has closed, and those that nobody has needed for long, or that somebody else
/// waits for, until none is left.
async fn sweep<B>(idle: Arc<Mutex<Idle<B>>>, idle_timeout: Duration, places: Arc<Semaphore>)
where
    B: Body<Error: Into<Box<dyn std::error::Error + Send + Sync>>> + 'static,
    B::Data: Send,
{
    let interval = SWEEP_EVERY.min(idle_timeout);
    // The first one may come at once.
    let most = u64::try_from(idle_timeout.as_nanos().div_ceil(interval.as_nanos())).unwrap_or(u64::MAX);
    loop {
        sleep(interval).await;
        let mut idle = lock(&idle);
        idle.sweeps += 1;
        let sweeps = idle.sweeps;
        let cx = &mut Context::from_waker(Waker::noop());
        let has_room = places.available_permits() > 0;
        idle.connections.retain_mut(|(kept, connection)| has_room && sweeps - *kept <= most && connection.is_ready(cx));
        if idle.connections.is_empty() {
            idle.is_swept = false;
            return;
        }
    }
}
