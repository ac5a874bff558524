//! Requests that wait for maintenance to end.

use std::sync::Arc;
use std::time::Instant;

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::sleep_until;

use crate::maintenance::state::{Mode, State};
use crate::shutdown::Stop;

/// The slots of requests that wait.
#[derive(Clone, Debug)]
pub struct HoldSlots {
    free: Arc<Semaphore>,
    held: IntGauge,
}

/// A slot. It is free again when it is dropped.
#[derive(Debug)]
pub struct HoldSlot {
    _permit: OwnedSemaphorePermit,
    held: IntGauge,
}

impl HoldSlots {
    /// So many slots. `held` counts those that are taken.
    #[must_use]
    pub fn new(limit: usize, held: IntGauge) -> Self {
        Self { free: Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))), held }
    }

    /// A slot, if one is free.
    pub(super) fn take(&self) -> Option<HoldSlot> {
        let permit = self.free.clone().try_acquire_owned().ok()?;
        self.held.inc();
        Some(HoldSlot { _permit: permit, held: self.held.clone() })
    }
}

impl Drop for HoldSlot {
    fn drop(&mut self) {
        self.held.dec();
    }
}

/// Waits for maintenance to end, and returns whether it has. Gives up at `until`, when the client has `left`, and when the process is
/// about to end.
pub(super) async fn wait(
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
