//! Requests that wait for maintenance to end.

use std::sync::Arc;
use std::time::Instant;

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::sleep_until;

use crate::maintenance::state::{Mode, State};
use crate::shutdown::Stop;

/// The places of those that wait.
#[derive(Clone, Debug)]
pub struct Places {
    free: Arc<Semaphore>,
    held: IntGauge,
}

/// A place, until it is dropped.
pub(in crate::gate) struct Place {
    _place: OwnedSemaphorePermit,
    held: IntGauge,
}

impl Places {
    /// So many. `held` tells how many are taken.
    #[must_use]
    pub fn new(limit: usize, held: IntGauge) -> Self {
        Self { free: Arc::new(Semaphore::new(limit)), held }
    }

    /// One of them, if there is one left.
    pub(in crate::gate) fn take(&self) -> Option<Place> {
        let place = self.free.clone().try_acquire_owned().ok()?;
        self.held.inc();
        Some(Place { _place: place, held: self.held.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.held.dec();
    }
}

/// Waits for maintenance to end, and returns whether it has. Not past `until`, not when the client has `left`, and not when
/// the process is about to end.
pub(in crate::gate) async fn wait(
    state: &mut watch::Receiver<State>,
    until: Instant,
    left: impl Future<Output = ()>,
    stop: &mut Stop,
) -> bool {
    let over = async { state.wait_for(|state| matches!(state.mode(), Mode::Off)).await.is_ok() };
    tokio::select! {
        biased;
        over = over => over,
        () = stop.stopping() => false,
        () = left => false,
        () = sleep_until(until.into()) => false,
    }
}
