//! Room for new connections: at the limit, the connection that has waited longest for a request is closed, as nginx reuses its
//! connections. Clients that send half a head, or nothing, keep nobody out.

use std::sync::{Arc, Weak};
use std::time::Duration;

use prometheus::IntCounter;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::activity::Activity;

/// How often to look for a connection that waits, while all of them have requests.
const RETRY: Duration = Duration::from_millis(50);
/// The least time between two log lines about this.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// So many candidates are found by one search, so that its cost is shared by as many new connections.
const CANDIDATES: usize = 64;

/// The connections of one thread, which alone may close them: on its own thread none of them runs meanwhile, so that what is
/// seen of it stays true.
pub(super) struct Waiting {
    connections: Vec<Weak<Activity>>,
    /// Forget the closed ones at this length. It is twice what was left last time, so that the cost for each connection is
    /// constant.
    forget_at: usize,
    /// Those that have waited longest, the longest last, each with when it began to wait.
    candidates: Vec<(u64, Weak<Activity>)>,
    /// For the log: the number of connections that may be open.
    limit: usize,
    evictions: IntCounter,
    logged: Option<Instant>,
}

impl Waiting {
    pub(super) fn new(limit: usize, evictions: IntCounter) -> Self {
        Self { connections: Vec::new(), forget_at: 64, candidates: Vec::new(), limit, evictions, logged: None }
    }

    /// Adds a connection.
    pub(super) fn add(&mut self, activity: &Arc<Activity>) {
        if self.connections.len() >= self.forget_at {
            self.connections.retain(|connection| connection.strong_count() > 0);
            self.forget_at = (2 * self.connections.len()).max(64);
        }
        self.connections.push(Arc::downgrade(activity));
    }

    /// Waits for room for one more connection, and makes it where a connection waits for a request.
    ///
    /// # Errors
    ///
    /// The listener is closed.
    pub(super) async fn make_room(&mut self, places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, AcquireError> {
        if let Ok(place) = places.clone().try_acquire_owned() {
            return Ok(place);
        }
        loop {
            self.evict();
            if let Ok(place) = timeout(RETRY, places.clone().acquire_owned()).await {
                return place;
            }
        }
    }

    /// Closes the connection that has waited longest for a request, if one waits.
    fn evict(&mut self) {
        let Some(longest) = self.next_candidate() else { return };
        longest.evict();
        self.evictions.inc();
        let now = Instant::now();
        if self.logged.is_none_or(|logged| now - logged >= LOG_INTERVAL) {
            self.logged = Some(now);
            let limit = self.limit;
            warn!("all {limit} connections are open: closing those that have waited longest for a request");
        }
    }

    fn next_candidate(&mut self) -> Option<Arc<Activity>> {
        let mut has_searched = false;
        loop {
            while let Some((since, connection)) = self.candidates.pop() {
                // It may have had a request meanwhile.
                let still_waits = |activity: &Arc<Activity>| activity.waiting_since() == Some(since);
                if let Some(activity) = connection.upgrade().filter(still_waits) {
                    return Some(activity);
                }
            }
            if std::mem::replace(&mut has_searched, true) {
                return None;
            }
            let waiting = self.connections.iter().filter_map(|connection| {
                let since = connection.upgrade()?.waiting_since()?;
                Some((since, connection.clone()))
            });
            self.candidates.extend(waiting);
            self.candidates.sort_unstable_by_key(|(since, _)| *since);
            self.candidates.truncate(CANDIDATES);
            self.candidates.reverse();
        }
    }
}
