//! What a request that is let in carries with it.

use std::sync::Arc;

use tokio::time::Instant;

use crate::listener::Cut;
use crate::metrics::Requests;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The application has answered.
    Forwarded,
    /// It has not.
    Failed,
    /// Maintenance has begun, and the time to finish was over.
    Cut,
}

/// A request that was let in: it is counted when it is over, and hears when it has to end.
pub(super) struct Pass {
    /// What has become of it, once that is certain.
    pub(super) outcome: Option<Outcome>,
    pub(super) cut: Cut,
    requests: Arc<Requests>,
    begun: Instant,
}

impl Pass {
    pub(super) fn new(requests: Arc<Requests>, cut: Cut) -> Self {
        Self { outcome: None, cut, requests, begun: Instant::now() }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        // If it is not certain, its client has left, or has not taken the answer until it was cut.
        let uncertain = if self.cut.is_due() { Outcome::Cut } else { Outcome::Forwarded };
        let counter = match self.outcome.unwrap_or(uncertain) {
            Outcome::Forwarded => &self.requests.forwarded,
            Outcome::Failed => &self.requests.failed,
            Outcome::Cut => &self.requests.cut,
        };
        counter.inc();
        self.requests.duration.observe(self.begun.elapsed().as_secs_f64());
    }
}
