//! A request that was let in: what it holds, what becomes of it, and when it has to end.

use std::future::pending;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::metrics::Requests;
use crate::server::slots::Slots;
use crate::upstream::InFlight;

/// Aborts the requests that still run when the drain timeout has passed.
#[derive(Clone, Debug)]
pub struct Aborts {
    signal: watch::Sender<()>,
    slots: Arc<Slots>,
}

impl Aborts {
    /// Aborts for the requests on these connections.
    #[must_use]
    pub fn new(slots: Arc<Slots>) -> Self {
        Self { signal: watch::Sender::new(()), slots }
    }

    /// Aborts all requests that run and hold a permit. Their responses break off.
    pub fn abort(&self) {
        self.signal.send_replace(());
        // A connection's task does not wait for the signal, which would cost each request. It looks when it is woken.
        self.slots.wake_all();
    }

    /// Notifies of the next abort.
    #[must_use]
    pub fn next(&self) -> watch::Receiver<()> {
        self.signal.subscribe()
    }
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The application has responded.
    Forwarded,
    /// The application has not responded in full.
    Failed,
    /// The drain timeout has passed before the application has responded.
    Aborted,
}

/// Tracks a request from the decision to the end of its response, and counts it.
#[derive(Debug)]
pub struct RequestTracker {
    /// When the request began.
    pub begun: Instant,
    /// `None` where a policy has let the request in: nobody waits for it, so that there is no reason to abort it.
    aborts: Option<watch::Receiver<()>>,
    in_flight: Option<InFlight>,
    requests: Arc<Requests>,
    is_counted: bool,
}

impl RequestTracker {
    /// Tracks a request that was let in while maintenance mode was off.
    #[must_use]
    pub fn new(requests: Arc<Requests>, in_flight: InFlight, aborts: &Aborts) -> Self {
        let aborts = Some(aborts.next());
        Self { begun: Instant::now(), aborts, in_flight: Some(in_flight), requests, is_counted: false }
    }

    /// Tracks a request that a policy lets through. It counts as allowed, whatever becomes of it.
    #[must_use]
    pub fn allowed(requests: Arc<Requests>) -> Self {
        Self { begun: Instant::now(), aborts: None, in_flight: None, requests, is_counted: false }
    }

    /// Whether the request has to end.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.aborts.as_ref().is_some_and(|aborts| aborts.has_changed().unwrap_or(false))
    }

    /// Waits until the request has to end.
    pub fn aborted(&self) -> impl Future<Output = ()> + Send + use<> {
        let aborts = self.aborts.clone();
        async move {
            if let Some(mut aborts) = aborts
                && aborts.changed().await.is_ok()
            {
                return;
            }
            pending::<()>().await;
        }
    }

    /// Takes what is held while the application is at work on the request. Dropped, it says that the application is done.
    pub fn take_in_flight(&mut self) -> Option<InFlight> {
        self.in_flight.take()
    }

    /// Restores what is held: the request is sent again.
    pub fn restore(&mut self, in_flight: Option<InFlight>) {
        self.in_flight = in_flight;
    }

    /// The application has responded in full.
    pub fn complete(&mut self) {
        self.in_flight = None;
        self.count(Outcome::Forwarded);
    }

    /// Counts the request, once.
    pub fn count(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.is_counted, true) {
            return;
        }
        let counter = match outcome {
            _ if self.aborts.is_none() => &self.requests.allowed,
            Outcome::Forwarded => &self.requests.forwarded,
            Outcome::Failed => &self.requests.failed,
            Outcome::Aborted => &self.requests.cut,
        };
        counter.inc();
        self.requests.duration.observe(self.begun.elapsed().as_secs_f64());
    }
}

impl Drop for RequestTracker {
    fn drop(&mut self) {
        // If the outcome is not certain, the client has left, or has not read the response before the abort.
        self.count(if self.is_aborted() { Outcome::Aborted } else { Outcome::Forwarded });
    }
}
