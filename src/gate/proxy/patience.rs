//! How long is waited for the application.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::failure::Failure;
use super::outgoing::Progress;

/// A timer, which goes from request to request: it is put off only when its time has come.
pub(super) type Timer = Pin<Box<Sleep>>;

/// How long nothing may happen.
pub(super) struct Patience {
    limit: Duration,
    /// When something has happened last, as far as the clock was asked: that is done only when there is something to wait for.
    since: Instant,
    has_moved: bool,
    /// It is made when there is something to wait for. It may be set to a time before the limit is over.
    pub(super) timer: Option<Timer>,
    /// How the request's body gets on, if it has one: as long as it does, the application may well wait for the rest.
    pub(super) request: Option<Arc<Progress>>,
}

impl Patience {
    /// Since then, with a timer that is there already, if one is.
    pub(super) fn new(limit: Duration, since: Instant, request: Option<Arc<Progress>>, timer: Option<Timer>) -> Self {
        Self { limit, since, has_moved: false, timer, request }
    }

    /// Something has happened.
    pub(super) fn begin_anew(&mut self) {
        self.has_moved = true;
    }

    /// Whether the client has left in the middle of the request's body.
    pub(super) fn is_client_gone(&self) -> bool {
        self.request.as_ref().is_some_and(|request| request.broken.load(Relaxed))
    }

    /// Ready when nothing has happened for that long, with whose fault it is: the application's `silence`, or that of the
    /// client, for whose request it waits.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, silence: &'static str) -> Poll<Failure> {
        if std::mem::take(&mut self.has_moved) {
            self.since = Instant::now();
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(self.since + self.limit)));
        loop {
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            let (moved, waiting) = match &self.request {
                Some(request) => (request.moved.swap(false, Relaxed), request.waiting.load(Relaxed)),
                None => (false, false),
            };
            if moved {
                self.since = now;
            }
            if now >= self.since + self.limit {
                return Poll::Ready(if waiting { Failure::ClientTimeout } else { Failure::Timeout(silence) });
            }
            timer.as_mut().reset(self.since + self.limit);
        }
    }
}
