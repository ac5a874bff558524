//! A record of the looks at the maintenance files, for metrics and warnings.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// A look that takes at least this long counts as failed.
pub const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// The looks at all files.
#[derive(Debug)]
pub struct Looks(Vec<(PathBuf, Mutex<Record>)>);

/// The looks at one file.
#[derive(Debug, Default)]
struct Record {
    /// When the look in progress began.
    began: Option<Instant>,
    failed: u64,
    /// When the last successful look ended.
    succeeded: Option<Timestamp>,
}

/// How a look ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The file does not exist or was read. Holds the time of day.
    Success(Timestamp),
    /// The file could not be examined or read.
    Failure,
    /// The lock was busy, so the look does not count.
    Busy,
}

impl Looks {
    pub(super) fn new<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        Self(paths.into_iter().map(|path| (path.to_owned(), Mutex::default())).collect())
    }

    fn record(&self, index: usize) -> MutexGuard<'_, Record> {
        self.0[index].1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the beginning of a look at file `index`.
    pub(super) fn begin(&self, index: usize, now: Instant) {
        self.record(index).began = Some(now);
    }

    /// Records the end of a look at file `index`. Returns how long the look took.
    pub(super) fn end(&self, index: usize, outcome: Outcome, now: Instant) -> Duration {
        self.record(index).end(outcome, now)
    }

    /// How many looks have failed, including those in progress for at least [`LOOK_LIMIT`].
    #[must_use]
    pub fn failed(&self) -> u64 {
        let now = Instant::now();
        (0..self.0.len()).map(|index| self.record(index).failed(now)).sum()
    }

    /// When the last look succeeded; with several files, the earliest of these times. `None` before each file has had one.
    #[must_use]
    pub fn last(&self) -> Option<Timestamp> {
        (0..self.0.len()).map(|index| self.record(index).succeeded).min().flatten()
    }

    /// A warning for each look in progress for at least [`LOOK_LIMIT`].
    pub fn hanging(&self) -> impl Iterator<Item = String> {
        let now = Instant::now();
        self.0.iter().enumerate().filter_map(move |(index, (path, _))| {
            let time = self.record(index).hanging(now)?;
            Some(format!("a look at {} has not ended for {} s", path.display(), time.as_secs()))
        })
    }
}

impl Record {
    fn end(&mut self, outcome: Outcome, now: Instant) -> Duration {
        let took = self.began.take().map(|began| now.saturating_duration_since(began)).unwrap_or_default();
        if outcome == Outcome::Failure || took >= LOOK_LIMIT {
            self.failed += 1;
        }
        if let Outcome::Success(time) = outcome {
            self.succeeded = Some(time);
        }
        took
    }

    fn failed(&self, now: Instant) -> u64 {
        self.failed + u64::from(self.hanging(now).is_some())
    }

    /// How long the look in progress has taken, if that is at least [`LOOK_LIMIT`].
    fn hanging(&self, now: Instant) -> Option<Duration> {
        self.began.map(|began| now.saturating_duration_since(began)).filter(|time| *time >= LOOK_LIMIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_a_look_once_whether_it_fails_or_hangs() {
        let start = Instant::now();
        let time = Timestamp::UNIX_EPOCH;
        // How long the look takes, how it ends; failures while in progress and afterwards, last success.
        let table = [
            (0, Outcome::Success(time), 0, 0, Some(time)),
            (0, Outcome::Failure, 0, 1, None),
            (0, Outcome::Busy, 0, 0, None),
            (4, Outcome::Success(time), 0, 0, Some(time)),
            (5, Outcome::Success(time), 1, 1, Some(time)),
            (6, Outcome::Failure, 1, 1, None),
            (6, Outcome::Busy, 1, 1, None),
        ];
        for (seconds, outcome, in_progress, afterwards, succeeded) in table {
            let now = start + Duration::from_secs(seconds);
            let mut record = Record { began: Some(start), ..Record::default() };
            assert_eq!(record.failed(now), in_progress, "{seconds} s, {outcome:?}");
            assert_eq!(record.hanging(now), (in_progress > 0).then(|| now - start), "{seconds} s, {outcome:?}");
            assert_eq!(record.end(outcome, now), now - start);
            assert_eq!((record.failed(now), record.succeeded), (afterwards, succeeded), "{seconds} s, {outcome:?}");
            assert_eq!(record.failed(now + LOOK_LIMIT), afterwards, "no look is in progress");
        }
    }
}
