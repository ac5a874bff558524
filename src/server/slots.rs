//! The connections of a listener and their HTTP/2 streams: how many there may be, and which connection makes room for another.
//!
//! At the limit, the connection that has waited longest for a request is closed, as nginx reuses its connections. Clients that
//! send half a head, or nothing, keep nobody out.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::limits::Limits;
use crate::metrics::LimitCounters;

/// How long a connection may take to close before another one has to, in case its thread is busy.
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
    /// For connections that speak HTTP/2.
    http2: Arc<Semaphore>,
    /// For the streams of all connections together.
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
    is_http2: AtomicBool,
    /// Wakes the connection's task.
    waker: Mutex<Option<Waker>>,
    _free: Option<OwnedSemaphorePermit>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slots {
    /// Slots for as many connections and streams as these limits allow.
    #[must_use]
    pub fn new(limits: &Limits, counters: LimitCounters) -> Arc<Self> {
        let semaphore = |limit: usize| Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self {
            limit: limits.connections,
            free: semaphore(limits.connections),
            open: Mutex::default(),
            http2: semaphore(limits.http2_connections),
            streams: semaphore(limits.streams),
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
        let counters = LimitCounters { evictions: counter(), refused_streams: counter() };
        Self::new(&Limits::ONE, counters)
    }

    /// Room for another stream. `None` if there is none: the stream is to be refused.
    pub(super) fn take_stream(&self) -> Option<OwnedSemaphorePermit> {
        let taken = self.streams.clone().try_acquire_owned().ok();
        if taken.is_none() {
            self.refused();
        }
        taken
    }

    /// Room for a connection to speak HTTP/2, where another one makes room if need be. `None` if all of them have requests.
    pub(super) async fn take_http2(&self, slot: &Slot) -> Option<OwnedSemaphorePermit> {
        loop {
            if let Ok(taken) = self.http2.clone().try_acquire_owned() {
                slot.is_http2.store(true, Relaxed);
                return Some(taken);
            }
            let longest = lock(&self.open).longest_of_http2();
            let Some(longest) = longest else {
                self.refused();
                return None;
            };
            self.close(&longest, format_args!("as many connections speak HTTP/2 as memory allows"));
            yield_now().await;
        }
    }

    fn refused(&self) {
        self.counters.refused_streams.inc();
        if self.refusal_logged.is_due() {
            warn!("memory allows no more HTTP/2 requests at once: refusing them");
        }
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
            is_http2: AtomicBool::new(false),
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
        // A connection that closes at this moment makes room by itself.
        yield_now().await;
        loop {
            if let Ok(free) = self.free.clone().try_acquire_owned() {
                return Some(free);
            }
            let patience = if self.evict() { GRACE } else { RETRY };
            if let Ok(free) = timeout(patience, self.free.clone().acquire_owned()).await {
                // The semaphore is never closed.
                return free.ok();
            }
        }
    }

    /// Closes the connection that has waited longest for a request. Returns whether one waits.
    fn evict(&self) -> bool {
        let Some(longest) = lock(&self.open).next_candidate() else { return false };
        self.close(&longest, format_args!("all {} connections are open", self.limit));
        true
    }

    fn close(&self, slot: &Slot, why: fmt::Arguments<'_>) {
        slot.is_evicted.store(true, Relaxed);
        slot.wake();
        self.counters.evictions.inc();
        if self.eviction_logged.is_due() {
            warn!("{why}: closing those that have waited longest for a request");
        }
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
    fn longest_of_http2(&self) -> Option<Arc<Slot>> {
        let of_http2 = self.connections.iter().flatten().filter(|slot| slot.is_http2.load(Relaxed));
        let waiting = of_http2.filter_map(|slot| Some((slot.waiting_since()?, slot)));
        waiting.min_by_key(|(since, _)| *since).map(|(_, slot)| slot.clone())
    }

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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn room_is_made_without_waiting() {
        let slots = Slots::one();
        let start = Instant::now();
        for _ in 0..1000 {
            let slot = slots.take().await;
            tokio::spawn(poll_fn(move |cx| {
                slot.register(cx.waker());
                if slot.is_evicted() { Poll::Ready(()) } else { Poll::Pending }
            }));
            yield_now().await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert_eq!(slots.counters.evictions.get(), 999);
    }
}
