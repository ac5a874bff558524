//! When to look next: when the poll is due, and as soon as a hint arrives.
//!
//! The directory may hold the application's database, so a token bucket limits the looks that hints cause. A look that
//! a hint causes takes a token, and one token is added per [`INTERVAL`]. Single changes are therefore looked at at once,
//! and a sustained stream of them leads to one look per interval. The other files in the directory have a bucket of
//! their own, so that they do not delay looks after a change of the maintenance file.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The time in which a token is added to each bucket, and after which a busy lock is tried again.
const INTERVAL: Duration = Duration::from_millis(20);

/// The size of the bucket for changes of the maintenance file, in tokens.
const FILE_BURST: u32 = 256;

/// The size of the bucket for all other changes in its directory, in tokens.
const DIRECTORY_BURST: u32 = 8;

/// Why to look before the poll is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hint {
    /// The maintenance file changed.
    File,
    /// Another file in its directory changed. The maintenance file may be a symlink to it.
    Neighbour,
    /// The directory itself changed, or events were lost. The watch on the directory may be gone.
    Directory,
    /// The lock was busy.
    Lock,
}

#[derive(Debug)]
struct Schedule {
    /// When the next look is due.
    due: Instant,
    /// The watch on the directory may be gone.
    lost: bool,
    file: Hints,
    directory: Hints,
}

/// Hints that share a bucket.
#[derive(Debug)]
struct Hints {
    /// A hint has arrived since the last look began.
    pending: bool,
    bucket: Bucket,
}

/// A token bucket that knows when it will be full instead of how full it is.
#[derive(Debug)]
struct Bucket {
    burst: u32,
    full_at: Instant,
}

impl Bucket {
    fn full(burst: u32, now: Instant) -> Self {
        Self { burst, full_at: now }
    }

    /// When a token is available, from `now` on.
    fn available(&self, now: Instant) -> Instant {
        let until_full = self.full_at.saturating_duration_since(now);
        now + until_full.saturating_sub(INTERVAL * (self.burst - 1))
    }

    /// Takes a token. An empty bucket stays empty and owes nothing.
    fn take(&mut self, now: Instant) {
        self.full_at = (self.full_at.max(now) + INTERVAL).min(now + INTERVAL * self.burst);
    }
}

impl Hints {
    fn new(burst: u32, now: Instant) -> Self {
        Self { pending: false, bucket: Bucket::full(burst, now) }
    }

    /// Records a hint. Returns when to look.
    fn hint(&mut self, now: Instant) -> Instant {
        self.pending = true;
        self.bucket.available(now)
    }

    fn begin(&mut self, now: Instant) {
        if std::mem::take(&mut self.pending) {
            self.bucket.take(now);
        }
    }
}

impl Schedule {
    /// The first look is due at once.
    fn new(now: Instant) -> Self {
        Self { due: now, lost: false, file: Hints::new(FILE_BURST, now), directory: Hints::new(DIRECTORY_BURST, now) }
    }

    /// Records a hint. Returns whether it makes the next look due earlier.
    fn hint(&mut self, hint: Hint, now: Instant) -> bool {
        self.lost |= hint == Hint::Directory;
        let due = match hint {
            Hint::File => self.file.hint(now),
            Hint::Neighbour | Hint::Directory => self.directory.hint(now),
            Hint::Lock => now + INTERVAL,
        };
        let earlier = due < self.due;
        self.due = self.due.min(due);
        earlier
    }

    /// Begins a look, which serves all pending hints. Later hints need another look.
    fn begin(&mut self, now: Instant, poll: Duration) {
        self.due = now + poll;
        self.file.begin(now);
        self.directory.begin(now);
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

    /// Records a hint.
    pub(super) fn hint(&self, hint: Hint, now: Instant) {
        if self.schedule().hint(hint, now) {
            self.earlier.notify_one();
        }
    }

    /// Sleeps until a look is due, and records that it begins. The next look is due after `poll` or on a hint.
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

    /// Whether the watch on the directory may be gone. Resets it.
    pub(super) fn take_lost(&self) -> bool {
        std::mem::take(&mut self.schedule().lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: u64 = 10_000;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// When looks begin if these hints arrive and each look takes `look`, all in milliseconds. The first look is over.
    fn looks(hints: &[(u64, Hint)], look: u64, until: u64) -> Vec<u64> {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        schedule.begin(start, ms(POLL));
        let (mut hints, mut looks, mut idle_from) = (hints.iter().peekable(), Vec::new(), 0);
        for time in 0..until {
            let now = start + ms(time);
            while let Some((_, hint)) = hints.next_if(|(at, _)| *at <= time) {
                schedule.hint(*hint, now);
            }
            if schedule.due <= now && idle_from <= time {
                schedule.begin(now, ms(POLL));
                looks.push(time);
                idle_from = time + look;
            }
        }
        looks
    }

    fn stream(hint: Hint, times: std::ops::Range<u64>) -> Vec<(u64, Hint)> {
        times.map(|time| (time, hint)).collect()
    }

    #[test]
    fn looks_at_single_changes_at_once() {
        use Hint::{Directory, File, Lock, Neighbour};
        type Row<'a> = (&'a str, &'a [(u64, Hint)], u64, &'a [u64]);
        // What happens, the hints, how long a look takes, when looks begin.
        let table: &[Row] = &[
            ("created empty, then written", &[(100, File), (101, File)], 1, &[100, 101]),
            ("written during the look at the empty file", &[(100, File), (101, File)], 7, &[100, 107]),
            ("another change 3 ms later", &[(100, File), (103, File)], 1, &[100, 103]),
            ("many events before a look begins", &[(100, File), (101, File), (102, File)], 5, &[100, 105]),
            ("a temporary file is written and renamed", &[(100, Neighbour), (100, File)], 1, &[100]),
            ("the target of a symlink changes", &[(100, Neighbour), (103, Neighbour)], 1, &[100, 103]),
            ("the directory is replaced", &[(100, Directory), (101, Directory)], 1, &[100, 101]),
            ("the lock is busy twice", &[(100, Lock), (121, Lock)], 1, &[120, 141]),
            ("a hint while the lock is busy", &[(100, Lock), (105, File)], 1, &[105]),
        ];
        for (what, hints, look, expected) in table {
            assert_eq!(looks(hints, *look, 200), *expected, "{what}");
        }
    }

    #[test]
    fn a_sustained_stream_leads_to_one_look_per_interval() {
        for (hint, burst) in [(Hint::File, 256), (Hint::Neighbour, 8), (Hint::Directory, 8)] {
            let looks = looks(&stream(hint, 0..POLL), 1, POLL);
            let refilled = POLL / 20;
            assert!((refilled..=refilled + burst).contains(&(looks.len() as u64)), "{hint:?}: {}", looks.len());
            assert!(looks.iter().zip(0..burst).all(|(look, time)| *look == time), "{hint:?}: a burst first");
            let last_second: Vec<_> = looks.iter().filter(|look| **look >= POLL - 1000).collect();
            assert_eq!(last_second.len(), 50, "{hint:?}");
            assert!(last_second.windows(2).all(|pair| pair[1] - pair[0] == 20), "{hint:?}: {last_second:?}");
        }
    }

    #[test]
    fn a_busy_neighbour_does_not_delay_the_file() {
        let mut hints = stream(Hint::Neighbour, 0..5000);
        let changes: Vec<u64> = (1..100).map(|round| 50 * round + 7).collect();
        hints.extend(changes.iter().map(|time| (*time, Hint::File)));
        hints.sort_by_key(|(time, _)| *time);
        let looks = looks(&hints, 1, 5000);
        assert!(changes.iter().all(|change| looks.contains(change)), "{looks:?}");
    }

    #[test]
    fn a_busy_file_does_not_put_its_neighbours_in_debt() {
        let mut hints = stream(Hint::Neighbour, 0..100);
        hints.extend(stream(Hint::File, 0..100));
        hints.sort_by_key(|(time, _)| *time);
        hints.push((110, Hint::Neighbour));
        assert_eq!(looks(&hints, 1, 200).last(), Some(&119), "20 ms after the last look");
    }

    #[test]
    fn a_bucket_refills_up_to_its_size() {
        let start = Instant::now();
        // Milliseconds without a look, and how many looks begin at once after that.
        for (pause, burst) in [(0, 0), (19, 0), (20, 1), (100, 5), (160, 8), (1000, 8)] {
            let mut bucket = Bucket::full(8, start);
            (0..8).for_each(|_| bucket.take(start));
            let now = start + ms(pause);
            let mut taken = 0;
            while bucket.available(now) == now {
                bucket.take(now);
                taken += 1;
            }
            assert_eq!(taken, burst, "after {pause} ms");
        }
    }

    #[test]
    fn a_poll_takes_no_token() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        for poll in 0..1000 {
            schedule.begin(start + ms(poll), ms(1));
            assert_eq!(schedule.due, start + ms(poll + 1));
        }
        assert_eq!(schedule.file.bucket.full_at, start);
    }

    #[test]
    fn wakes_the_thread_only_for_an_earlier_look() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start);
        schedule.begin(start, ms(POLL));
        assert!(schedule.hint(Hint::Lock, start), "before the poll");
        assert!(schedule.hint(Hint::File, start + ms(1)), "before the lock is tried again");
        assert!(!schedule.hint(Hint::File, start + ms(2)), "the look is already due");
    }
}
