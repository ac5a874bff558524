//! Aborts the requests that still run when the drain timeout after the beginning of maintenance has passed.

use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::warn;

use crate::maintenance::state::{Mode, State};
use crate::proxy::tracker::Aborts;

/// Aborts, each time that maintenance begins, the requests that still run after this time.
pub async fn abort_after(mut state: watch::Receiver<State>, in_flight: IntGauge, limit: Duration, aborts: Aborts) {
    let is_on = |state: &State| matches!(state.mode(), Mode::On(_));
    loop {
        // Until the channel is gone.
        let Ok(began) = state.wait_for(is_on).await.map(|state| state.changes()) else { return };
        // It may have been over for so short a time that only the count of its changes tells.
        let over = |state: &State| !is_on(state) || state.changes() != began;
        if timeout(limit, state.wait_for(over)).await.is_err() {
            let left = in_flight.get();
            if left > 0 {
                warn!("{left} requests still run after {limit:?} of maintenance: they are aborted");
            }
            aborts.abort();
            let _ = state.wait_for(over).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::time::Instant;

    use crate::maintenance::notice::Notice;
    use crate::maintenance::observation::{Observation, Switch};
    use crate::server::slots::Slots;

    fn on() -> Observation {
        let notice = Notice { reason: None, until: None };
        Observation::On(Switch { notice, modified: jiff::Timestamp::UNIX_EPOCH, unreadable: None })
    }

    #[tokio::test]
    async fn maintenance_that_was_over_for_a_moment_has_begun_anew() {
        let mut before = State::new([Path::new("MAINTENANCE")]);
        before.see(0, Observation::Off, Instant::now());
        let (states, state) = watch::channel(before);
        let in_flight = IntGauge::new("in_flight", "in flight").unwrap();
        let aborts = Aborts::new(Slots::one());
        let mut aborted = aborts.next();
        tokio::spawn(abort_after(state, in_flight, Duration::from_millis(1), aborts));
        states.send_modify(|state| _ = state.see(0, on(), Instant::now()));
        aborted.changed().await.unwrap();
        for _ in 0..3 {
            // Nobody sees that it is over.
            let now = Instant::now();
            states.send_modify(|state| _ = state.see(0, Observation::Off, now) && state.see(0, on(), now));
            timeout(Duration::from_secs(30), aborted.changed()).await.expect("it aborts again").unwrap();
        }
    }
}
