//! The connections of a listener and their HTTP/2 streams: how many there may be, and which connection makes room for another.
//!
//! At the limit, the connection that has waited longest for a request is closed, as nginx reuses its connections. Clients that
//! send half a head, or nothing, keep nobody out.

use std::ops::Deref;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::metrics::LimitCounters;

/// A connection that closes at this moment makes room by itself: so long is waited for that.
const GRACE: Duration = Duration::from_millis(10);
/// How often to look for a connection that waits, while all of them have requests.
const RETRY: Duration = Duration::from_millis(50);
/// The least time between two log lines about this.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// So many candidates are found by one search, so that its cost is shared by as many new connections.
const CANDIDATES: usize = 64;

/// The source of [`Slot::waiting`]. An order is enough, and reading a clock would cost each request.
static TURNS: AtomicU64 = AtomicU64::new(1);

/// The connections of a listener, on all of its threads.
#[derive(Debug)]
pub struct Slots {
    limit: usize,
    free: Arc<Semaphore>,
    open: Mutex<Open>,
    /// Those of all connections.
    streams: Arc<Semaphore>,
    is_draining: AtomicBool,
    counters: LimitCounters,
    eviction_logged: Logged,
    refusal_logged: Logged,
}

/// When something was last logged.
#[derive(Debug, Default)]
struct Logged(Mutex<Option<Instant>>);

impl Logged {
    /// Whether it may be logged again.
    fn is_due(&self) -> bool {
        let now = Instant::now();
        let mut logged = lock(&self.0);
        let is_due = logged.is_none_or(|logged| now - logged >= LOG_INTERVAL);
        if is_due {
            *logged = Some(now);
        }
        is_due
    }
}

#[derive(Debug, Default)]
struct Open {
    /// By their numbers.
    connections: Vec<Option<Arc<Slot>>>,
    /// The numbers that are free.
    numbers: Vec<usize>,
    /// Those that have waited longest, the longest last, each with when it began to wait.
    candidates: Vec<(u64, Weak<Slot>)>,
}

/// A connection's hold on its slot. Dropped, it frees the slot.
#[derive(Debug)]
pub struct Occupied {
    slot: Arc<Slot>,
    number: usize,
    slots: Arc<Slots>,
}

impl Deref for Occupied {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        &self.slot
    }
}

impl Occupied {
    /// The slots that it is one of.
    pub(super) fn all(&self) -> &Slots {
        &self.slots
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        let mut open = lock(&self.slots.open);
        open.connections[self.number] = None;
        if open.numbers.len() + 1 == open.connections.len() {
            // All are free. What is left would keep the memory of those that were open at the same time.
            *open = Open::default();
        } else {
            open.numbers.push(self.number);
        }
    }
}

/// The state of one connection, as far as it matters to others.
#[derive(Debug)]
pub struct Slot {
    /// When the connection began to wait for a request, in the order of all connections. 0 while it has one.
    waiting: AtomicU64,
    is_evicted: AtomicBool,
    /// Wakes the connection's task.
    waker: Mutex<Option<Waker>>,
    _free: Option<OwnedSemaphorePermit>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slots {
    /// Slots for so many connections, and so many streams on all of them together.
    #[must_use]
    pub fn new(limit: usize, streams: usize, counters: LimitCounters) -> Arc<Self> {
        Arc::new(Self {
            limit,
            free: Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))),
            open: Mutex::default(),
            streams: Arc::new(Semaphore::new(streams.min(Semaphore::MAX_PERMITS))),
            is_draining: AtomicBool::new(false),
            counters,
            eviction_logged: Logged::default(),
            refusal_logged: Logged::default(),
        })
    }

    /// One slot, for tests.
    #[cfg(any(test, fuzzing))]
    #[allow(clippy::unwrap_used, reason = "for tests")]
    pub(crate) fn one() -> Arc<Self> {
        let counter = || prometheus::IntCounter::new("count", "count").unwrap();
        Self::new(1, 1, LimitCounters { evictions: counter(), refused_streams: counter() })
    }

    /// Room for another stream. `None` if there is none: the stream is to be refused.
    pub(super) fn take_stream(&self) -> Option<OwnedSemaphorePermit> {
        let taken = self.streams.clone().try_acquire_owned().ok();
        if taken.is_none() {
            self.counters.refused_streams.inc();
            if self.refusal_logged.is_due() {
                warn!("as many HTTP/2 requests are running as memory allows: refusing more");
            }
        }
        taken
    }

    /// Waits for a free slot, and makes room where a connection waits for a request.
    pub(super) async fn take(self: &Arc<Self>) -> Occupied {
        let free = match self.free.clone().try_acquire_owned() {
            Ok(free) => Some(free),
            Err(_) => self.make_room().await,
        };
        let slot = Arc::new(Slot {
            waiting: AtomicU64::new(TURNS.fetch_add(1, Relaxed)),
            is_evicted: AtomicBool::new(false),
            waker: Mutex::new(None),
            _free: free,
        });
        let mut open = lock(&self.open);
        let number = open.numbers.pop().unwrap_or(open.connections.len());
        if number == open.connections.len() {
            open.connections.push(None);
        }
        open.connections[number] = Some(slot.clone());
        Occupied { slot, number, slots: self.clone() }
    }

    async fn make_room(&self) -> Option<OwnedSemaphorePermit> {
        let mut patience = GRACE;
        loop {
            if let Ok(free) = timeout(patience, self.free.clone().acquire_owned()).await {
                // The semaphore is never closed.
                return free.ok();
            }
            patience = if self.evict() { GRACE } else { RETRY };
        }
    }

    /// Closes the connection that has waited longest for a request. Returns whether one waits.
    fn evict(&self) -> bool {
        let Some(longest) = lock(&self.open).next_candidate() else { return false };
        longest.is_evicted.store(true, Relaxed);
        longest.wake();
        self.counters.evictions.inc();
        if self.eviction_logged.is_due() {
            let limit = self.limit;
            warn!("all {limit} connections are open: closing those that have waited longest for a request");
        }
        true
    }

    /// Wakes the tasks of all connections, so that they notice an abort or a drain.
    pub fn wake_all(&self) {
        for slot in lock(&self.open).connections.iter().flatten() {
            slot.wake();
        }
    }

    /// Lets no connection wait for another request.
    pub(super) fn drain(&self) {
        self.is_draining.store(true, Relaxed);
        self.wake_all();
    }

    /// Whether connections end with the request that they have.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Relaxed)
    }

    /// Waits until all connections are closed.
    pub(super) async fn closed(&self) {
        let all = u32::try_from(self.limit.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        let _ = self.free.acquire_many(all).await;
    }
}

impl Open {
    fn next_candidate(&mut self) -> Option<Arc<Slot>> {
        let mut has_searched = false;
        loop {
            while let Some((since, slot)) = self.candidates.pop() {
                // It may have had a request meanwhile.
                if let Some(slot) = slot.upgrade().filter(|slot| slot.waiting_since() == Some(since)) {
                    return Some(slot);
                }
            }
            if std::mem::replace(&mut has_searched, true) {
                return None;
            }
            let waiting = self.connections.iter().flatten();
            let waiting = waiting.filter_map(|slot| Some((slot.waiting_since()?, Arc::downgrade(slot))));
            self.candidates.extend(waiting);
            self.candidates.sort_unstable_by_key(|(since, _)| *since);
            self.candidates.truncate(CANDIDATES);
            self.candidates.reverse();
        }
    }
}

impl Slot {
    /// Registers the task that serves the connection.
    pub(super) fn register(&self, waker: &Waker) {
        *lock(&self.waker) = Some(waker.clone());
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = &*lock(&self.waker) {
            waker.wake_by_ref();
        }
    }

    /// The connection waits for a request from now on.
    pub(super) fn wait(&self) {
        self.waiting.store(TURNS.fetch_add(1, Relaxed), Relaxed);
    }

    /// The connection has a request, which an eviction must not interrupt.
    pub(super) fn work(&self) {
        self.waiting.store(0, Relaxed);
        self.is_evicted.store(false, Relaxed);
    }

    /// Whether the connection has to close, if it still waits.
    pub(super) fn is_evicted(&self) -> bool {
        self.is_evicted.load(Relaxed)
    }

    fn waiting_since(&self) -> Option<u64> {
        let since = self.waiting.load(Relaxed);
        (since > 0 && !self.is_evicted()).then_some(since)
    }
}
