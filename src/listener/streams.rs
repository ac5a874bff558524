//! The streams of HTTP/2 connections: hyper has a task for each, in which it waits for the client as long as that likes.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use hyper::rt::Executor;
use tokio::sync::Semaphore;
use tokio::time::{Sleep, sleep};

use super::activity::Activity;
use super::cut::cut;
use super::exchange::Progress;

/// Runs the streams of a connection.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    activity: Arc<Activity>,
    /// How long a client may take for a part of an answer.
    patience: Duration,
    /// One slot for each request that runs.
    slots: Arc<Semaphore>,
}

impl Streams {
    pub(super) fn new(activity: Arc<Activity>, patience: Duration, slots: Arc<Semaphore>) -> Self {
        Self { activity, patience, slots }
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        // hyper hands over a stream as soon as the service was asked to answer it.
        let progress = self.activity.latest().unwrap_or_default();
        // Without a slot the stream is dropped, which resets it: the memory for another is not there.
        let Ok(slot) = self.slots.clone().try_acquire_owned() else { return };
        let run = run(stream, progress, self.activity.clone(), self.patience);
        tokio::spawn(async move {
            run.await;
            drop(slot);
        });
    }
}

/// Runs a stream to its end, or until its client has let the time pass to take a part of the answer, or has kept it from
/// being cut. Dropped before its end, it is reset.
async fn run(stream: impl Future<Output = ()>, progress: Arc<Progress>, activity: Arc<Activity>, patience: Duration) {
    let mut stream = pin!(stream);
    let mut cuts = activity.cuts.next();
    let mut next_cut = pin!(cut(cuts.clone()));
    let (mut asked, mut cuts_now) = (false, false);
    let mut timer = pin!(None::<Sleep>);
    let mut parts = 0;
    poll_fn(|cx| {
        loop {
            if stream.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            if std::mem::take(&mut cuts_now) && progress.is_deaf() {
                return Poll::Ready(());
            }
            if (!asked || cuts.has_changed().unwrap_or(false)) && next_cut.as_mut().poll(cx).is_ready() {
                cuts.mark_unchanged();
                next_cut.set(cut(cuts.clone()));
                (asked, cuts_now) = (false, true);
                continue;
            }
            asked = true;
            if !progress.waits_for_client() {
                timer.set(None);
                return Poll::Pending;
            }
            if timer.is_none() || parts != progress.parts() {
                parts = progress.parts();
                timer.set(Some(sleep(patience)));
            }
            ready!(timer.as_mut().as_pin_mut().map_or(Poll::Pending, |timer| timer.poll(cx)));
            return Poll::Ready(());
        }
    })
    .await;
}
