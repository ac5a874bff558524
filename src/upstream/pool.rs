//! The HTTP/1.1 connections to the application: how many there may be, and those that wait for a request.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use super::connection::{Connection, Upstream};
use super::resolver::Resolver;

/// So many idle connections are kept.
const KEPT: usize = 1024;
/// How often idle connections are checked. A connection that the application has closed uses a file descriptor of pitstop, and an
/// idle connection uses one of the application.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// The connections to the application.
#[derive(Debug)]
pub struct Pool {
    resolver: Resolver,
    permits: Arc<Semaphore>,
    /// How long a connection is kept without a request.
    idle_timeout: Duration,
    idle: Arc<Mutex<Idle>>,
}

/// The connections without a request.
#[derive(Debug, Default)]
struct Idle {
    /// Each with the number of sweeps before it was kept: to read the clock would cost each request. The latest is the last.
    connections: Vec<(u64, Connection<TcpStream>)>,
    sweeps: u64,
    /// Whether a task sweeps. None does while there is nothing to check.
    is_swept: bool,
}

impl Pool {
    /// A pool of connections that hold a permit each.
    #[must_use]
    pub fn new(resolver: Resolver, permits: Arc<Semaphore>, idle_timeout: Duration) -> Self {
        Self { resolver, permits, idle_timeout, idle: Arc::default() }
    }

    /// The idle connection that was used last, if there is one, so that those which are not needed time out.
    pub fn reuse(&self, cx: &mut Context<'_>) -> Option<Connection<TcpStream>> {
        loop {
            let (_, mut connection) = lock(&self.idle).connections.pop()?;
            if connection.stream.is_quiet(cx) {
                return Some(connection);
            }
        }
    }

    /// Waits until there may be another connection.
    pub async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        self.permits.clone().acquire_owned().await.ok()
    }

    /// A new connection.
    ///
    /// # Errors
    ///
    /// The application does not accept it.
    pub async fn connect(&self, permit: Option<OwnedSemaphorePermit>) -> io::Result<Connection<TcpStream>> {
        Ok(Connection::new(self.resolver.connect().await?, permit))
    }

    /// Keeps a connection whose request has ended for the next one, unless enough are kept or somebody waits for its permit.
    pub fn keep(&self, mut connection: Connection<TcpStream>) {
        connection.is_reused = true;
        connection.input = Vec::new();
        let mut idle = lock(&self.idle);
        if idle.connections.len() < KEPT && self.permits.available_permits() > 0 {
            let sweeps = idle.sweeps;
            idle.connections.push((sweeps, connection));
            if !std::mem::replace(&mut idle.is_swept, true) {
                tokio::spawn(sweep(self.idle.clone(), self.idle_timeout, self.permits.clone()));
            }
        }
    }
}

fn lock(idle: &Mutex<Idle>) -> MutexGuard<'_, Idle> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Closes the connections that the application has closed, that were idle for too long, or whose permit somebody waits for, until
/// none is left.
async fn sweep(idle: Arc<Mutex<Idle>>, idle_timeout: Duration, permits: Arc<Semaphore>) {
    let interval = SWEEP_EVERY.min(idle_timeout);
    // The first sweep may come at once.
    let most = u64::try_from(idle_timeout.as_nanos().div_ceil(interval.as_nanos())).unwrap_or(u64::MAX);
    loop {
        sleep(interval).await;
        let mut idle = lock(&idle);
        idle.sweeps += 1;
        let sweeps = idle.sweeps;
        let cx = &mut Context::from_waker(Waker::noop());
        let has_room = permits.available_permits() > 0;
        idle.connections
            .retain_mut(|(kept, connection)| has_room && sweeps - *kept <= most && connection.stream.is_quiet(cx));
        if idle.connections.is_empty() {
            idle.is_swept = false;
            idle.connections.shrink_to_fit();
            return;
        }
    }
}
