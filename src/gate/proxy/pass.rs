//! What a request that is let in carries with it.

use std::future::pending;
use std::sync::Arc;

use tokio::time::Instant;

use crate::listener::Cut;
use crate::metrics::Requests;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gate) enum Outcome {
    /// The application has answered.
    Forwarded,
    /// It has not.
    Failed,
    /// Maintenance has begun, and the time to finish was over.
    Cut,
}

/// A request that was let in: it is counted when it is over, and hears when it has to end.
pub(in crate::gate) struct Pass {
    /// What has become of it, once that is certain.
    pub(in crate::gate) outcome: Option<Outcome>,
    /// `None` where a policy has let it in: it holds up nothing, so that there is no reason to cut it.
    cut: Option<Cut>,
    requests: Arc<Requests>,
    pub(in crate::gate) begun: Instant,
}

impl Pass {
    /// That of a request which has to end when `cut` says so.
    pub(in crate::gate) fn new(requests: Arc<Requests>, cut: Cut) -> Self {
        Self { outcome: None, cut: Some(cut), requests, begun: Instant::now() }
    }

    /// That of a request which a policy lets through. It is counted as such, whatever becomes of it.
    pub(in crate::gate) fn allowed(requests: Arc<Requests>) -> Self {
        Self { outcome: None, cut: None, requests, begun: Instant::now() }
    }

    /// Whether it has to end. Its task is woken when it does.
    pub(in crate::gate) fn is_cut(&self) -> bool {
        self.cut.as_ref().is_some_and(Cut::is_due)
    }

    /// Waits until it has to, for work that goes on without the connection.
    pub(in crate::gate) fn cut(&self) -> impl Future<Output = ()> + Send + use<> {
        let due = self.cut.as_ref().map(Cut::due);
        async {
            match due {
                Some(due) => due.await,
                None => pending().await,
            }
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        // If it is not certain, its client has left, or has not taken the answer until it was cut.
        let uncertain = if self.is_cut() { Outcome::Cut } else { Outcome::Forwarded };
        let counter = match self.outcome.unwrap_or(uncertain) {
            _ if self.cut.is_none() => &self.requests.allowed,
            Outcome::Forwarded => &self.requests.forwarded,
            Outcome::Failed => &self.requests.failed,
            Outcome::Cut => &self.requests.cut,
        };
        counter.inc();
        self.requests.duration.observe(self.begun.elapsed().as_secs_f64());
    }
}
