//! What a request that is let in carries with it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::Instant;

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
    pub(super) outcome: Outcome,
    requests: Arc<Requests>,
    begun: Instant,
    cut: Pin<Box<OwnedNotified>>,
    is_cut: bool,
}

impl Pass {
    /// `cut` tells all requests that run to end.
    pub(super) fn new(requests: Arc<Requests>, cut: Arc<Notify>) -> Self {
        let cut = Box::pin(cut.notified_owned());
        Self { outcome: Outcome::Forwarded, requests, begun: Instant::now(), cut, is_cut: false }
    }

    /// Whether it has to end.
    pub(super) fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_cut {
            self.is_cut = self.cut.as_mut().poll(cx).is_ready();
        }
        if self.is_cut { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let counter = match self.outcome {
            Outcome::Forwarded => &self.requests.forwarded,
            Outcome::Failed => &self.requests.failed,
            Outcome::Cut => &self.requests.cut,
        };
        counter.inc();
        self.requests.duration.observe(self.begun.elapsed().as_secs_f64());
    }
}
