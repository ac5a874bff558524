//! How long a connection may do what it does.

use std::time::Duration;

use tokio::time::Instant;

use super::Limits;
use super::activity::{Activity, Waiting};

/// A connection without a request is parked after this: it gives back its buffers. Far more than passes between two
/// requests of a client in a hurry.
const PARK_AFTER: Duration = Duration::from_millis(10);

/// What has to be done with a connection whose time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Close it.
    Close,
    /// Park it.
    Park,
    /// Nothing yet.
    Nothing,
}

/// When something has to be done with a connection. The deadline is put off only when its time has come, not with each
/// request.
#[derive(Debug)]
pub(super) struct Clock<'a> {
    pub(super) activity: &'a Activity,
    limits: Limits,
    parks: bool,
    /// Since when the connection waits for what it waits for, as of so many changes.
    since: Instant,
    changes: usize,
    /// Whether the deadline is that for parking: nothing is due before that, so that until then the time need not be read.
    soon: bool,
    /// When to ask [`Clock::due`].
    pub(super) deadline: Instant,
}

impl<'a> Clock<'a> {
    /// A clock for a connection that can be parked, or cannot.
    pub(super) fn new(activity: &'a Activity, limits: Limits, parks: bool) -> Self {
        let since = Instant::now();
        let changes = activity.changes();
        Self { activity, limits, parks, since, changes, soon: false, deadline: since + limits.header_timeout }
    }

    /// What is to be done when; `None` while it is the service that is waited for.
    fn next(&mut self) -> Option<(Due, Instant)> {
        let changes = self.activity.changes();
        if changes != self.changes {
            self.changes = changes;
            self.since = Instant::now();
        }
        match self.activity.waiting() {
            Waiting::Answer => None,
            Waiting::Header => Some((Due::Close, self.since + self.limits.header_timeout)),
            Waiting::Request if self.parks => Some((Due::Park, self.since + PARK_AFTER)),
            Waiting::Request | Waiting::Client => Some((Due::Close, self.since + self.limits.idle_timeout)),
        }
    }

    /// Whether the deadline has moved closer.
    pub(super) fn is_earlier(&mut self) -> bool {
        if self.soon {
            return false;
        }
        match self.next() {
            Some((due, at)) if at < self.deadline => {
                self.soon = due == Due::Park;
                self.deadline = at;
                true
            }
            _ => false,
        }
    }

    /// What to do now that the deadline has come. If nothing, it is put off.
    pub(super) fn due(&mut self) -> Due {
        let now = Instant::now();
        let next = self.next();
        self.soon = matches!(next, Some((Due::Park, _)));
        match next {
            Some((due, at)) if at <= now => return due,
            Some((_, at)) => self.deadline = at,
            None => self.deadline = now + self.limits.idle_timeout,
        }
        Due::Nothing
    }
}
