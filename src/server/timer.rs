//! A timer whose deadline moves with every request.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A connection's only timer. To put the deadline off costs nothing: the runtime's timer fires at the earlier time and is
/// set anew then. To bring it
/// forward costs a registration.
#[derive(Debug)]
pub struct Timer {
    sleep: Pin<Box<Sleep>>,
    /// When the runtime's timer fires.
    fires: Instant,
    deadline: Instant,
    /// Whether the runtime's timer wakes the task. It is always the same one.
    is_armed: bool,
}

impl Timer {
    /// A timer with its first deadline.
    #[must_use]
    pub fn new(deadline: Instant) -> Self {
        Self { sleep: Box::pin(sleep_until(deadline)), fires: deadline, deadline, is_armed: false }
    }

    /// Sets the deadline.
    pub fn set(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Sets the deadline to that much time from now.
    pub fn start(&mut self, time: Duration) {
        self.set(after(Instant::now(), time));
    }

    /// Ready when the deadline has passed.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.deadline < self.fires {
            self.reset();
        }
        // To ask costs less than to poll.
        if self.is_armed && !self.sleep.is_elapsed() {
            return Poll::Pending;
        }
        loop {
            self.is_armed = true;
            ready!(self.sleep.as_mut().poll(cx));
            if Instant::now() >= self.deadline {
                return Poll::Ready(());
            }
            self.reset();
        }
    }

    fn reset(&mut self) {
        self.fires = self.deadline;
        self.sleep.as_mut().reset(self.fires);
        self.is_armed = false;
    }
}

/// A time that cannot be represented is as good as never.
#[must_use]
pub fn after(start: Instant, time: Duration) -> Instant {
    const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
    start.checked_add(time).unwrap_or_else(|| start + NEVER)
}
