//! When to look next: at once after a hint, but not again and again, and at the poll in any case.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The least time between two looks that hints of one kind bring about: the directory may hold the application's
/// database.
pub(super) const PAUSE: Duration = Duration::from_millis(20);

/// What a hint is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// The maintenance file's own name.
    File,
    /// Another name in its directory: through a symlink it may matter all the same.
    Neighbour,
    /// The directory itself: the watch on it may be gone.
    Directory,
    /// The lock was taken: try again after the pause.
    Lock,
}

#[derive(Debug)]
struct Schedule {
    due: Instant,
    lost: bool,
    own: Hinted,
    other: Hinted,
}

/// Hints of one kind.
#[derive(Clone, Copy, Debug)]
struct Hinted {
    pending: bool,
    /// Before this time a further hint has to wait.
    quiet_until: Instant,
}

impl Schedule {
    /// A first look is due now.
    fn new(now: Instant) -> Self {
        let hinted = Hinted { pending: false, quiet_until: now };
        Self { due: now, lost: false, own: hinted, other: hinted }
    }

    /// Takes up a hint. Returns whether the next look is due earlier for it.
    fn hint(&mut self, about: About, now: Instant) -> bool {
        let at = match about {
            About::File => self.own.hint(now),
            About::Neighbour => self.other.hint(now),
            About::Directory => {
                self.lost = true;
                self.other.hint(now)
            }
            About::Lock => now + PAUSE,
        };
        let earlier = at < self.due;
        self.due = self.due.min(at);
        earlier
    }

    /// A look begins.
    fn begin(&mut self, now: Instant, poll: Duration) {
        self.due = now + poll;
        self.own.begin(now);
        self.other.begin(now);
    }
}

impl Hinted {
    fn hint(&mut self, now: Instant) -> Instant {
        self.pending = true;
        self.quiet_until.max(now)
    }

    fn begin(&mut self, now: Instant) {
        if std::mem::take(&mut self.pending) {
            self.quiet_until = now + PAUSE;
        }
    }
}

/// Wakes the thread that looks when a look is due.
#[derive(Debug)]
pub(super) struct Alarm {
    schedule: Mutex<Schedule>,
    earlier: Condvar,
}

impl Alarm {
    pub(super) fn new() -> Self {
        Self { schedule: Mutex::new(Schedule::new(Instant::now())), earlier: Condvar::new() }
    }

    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up a hint.
    pub(super) fn hint(&self, about: About, now: Instant) {
        if self.schedule().hint(about, now) {
            self.earlier.notify_one();
        }
    }

    /// Sleeps until a look is due, and takes it that it begins. The one after is due in `poll`, or with a hint.
    pub(super) fn wait(&self, poll: Duration) {
        let mut schedule = self.schedule();
        loop {
            let now = Instant::now();
            if schedule.due <= now {
                return schedule.begin(now, poll);
            }
            let left = schedule.due - now;
            schedule = self.earlier.wait_timeout(schedule, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether the watch on the directory may be gone; asked once.
    pub(super) fn take_lost(&self) -> bool {
        std::mem::take(&mut self.schedule().lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_secs(1);

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn a_hint_is_followed_at_once_and_the_next_after_a_pause() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        schedule.begin(start, POLL);
        assert_eq!(schedule.due, start + POLL);

        assert!(schedule.hint(About::Neighbour, start + ms(100)));
        assert_eq!(schedule.due, start + ms(100));
        schedule.begin(start + ms(100), POLL);
        assert!(schedule.hint(About::Neighbour, start + ms(101)));
        assert!(!schedule.hint(About::Neighbour, start + ms(102)), "nobody is woken twice");
        assert_eq!(schedule.due, start + ms(120));
    }

    #[test]
    fn a_busy_neighbour_does_not_hold_up_the_file() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        schedule.begin(start, POLL);
        schedule.hint(About::Neighbour, start);
        schedule.begin(start, POLL);
        schedule.hint(About::File, start + ms(1));
        assert_eq!(schedule.due, start + ms(1));
        schedule.begin(start + ms(1), POLL);
        schedule.hint(About::File, start + ms(2));
        assert_eq!(schedule.due, start + ms(21), "but its own rewriting does");
    }

    #[test]
    fn a_poll_brings_no_pause() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        schedule.begin(start, POLL);
        schedule.hint(About::File, start + ms(1));
        assert_eq!(schedule.due, start + ms(1));
    }
}
