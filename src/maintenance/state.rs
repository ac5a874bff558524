//! What is known about the maintenance files, and what follows from it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use serde::Serialize;

use super::lock::Permit;
use super::observation::Observation;

/// One `--file`.
#[derive(Debug)]
struct Watched {
    path: Arc<Path>,
    /// The result of the last successful look. `None` before the first one: maintenance mode may be on.
    seen: Option<Observation>,
    /// Why the latest look failed, if it did. `seen` is kept then.
    trouble: Option<String>,
    /// Held while the file does not exist. It was taken before the look that found this.
    permit: Option<Permit>,
}

/// How often maintenance mode has changed since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// From off to on.
    pub on: u64,
    /// From on to off.
    pub off: u64,
}

/// The maintenance mode that results from all files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No file is known to exist, and at least one has not been looked at successfully.
    Unknown,
    /// No file exists.
    Off,
    /// At least one file exists.
    On(Maintenance),
}

/// The details of maintenance mode while it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maintenance {
    /// The reason of the first file that has one.
    pub reason: Option<String>,
    /// The earliest modification time. It may be in the future if a file's is.
    pub since: Timestamp,
    /// The latest `Until`, because maintenance ends when the last file is removed.
    pub until: Option<Timestamp>,
    /// The first file that exists.
    pub file: PathBuf,
}

/// The state of all maintenance files. Only `watch` changes the published one.
#[derive(Debug)]
pub struct State {
    files: Vec<Watched>,
    mode: Mode,
    changes: Changes,
    began: Option<Instant>,
    permits: Permits,
}

/// The permits of all files. Work that was let in while maintenance mode was off holds a clone. They are released when the
/// last clone is dropped.
pub type Permits = Arc<[Permit]>;

impl State {
    /// The state before the first look at the files with these paths.
    #[must_use]
    pub fn new<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let watched = |path: &Path| Watched { path: path.into(), seen: None, trouble: None, permit: None };
        Self {
            files: paths.into_iter().map(watched).collect(),
            mode: Mode::Unknown,
            changes: Changes::default(),
            began: None,
            permits: Arc::default(),
        }
    }

    /// Applies a successful look at file `index`, which ended at `now`. Returns whether the state differs from before.
    pub fn see(&mut self, index: usize, seen: Observation, now: Instant) -> bool {
        let file = &mut self.files[index];
        let seen = Some(seen);
        if file.seen == seen && file.trouble.is_none() {
            return false;
        }
        file.seen = seen;
        file.trouble = None;
        let before = std::mem::replace(&mut self.mode, merge(&self.files));
        match (&before, &self.mode) {
            (Mode::Off, Mode::On(_)) => {
                self.changes.on += 1;
                self.began = Some(now);
            }
            (Mode::On(_), Mode::Off) => self.changes.off += 1,
            _ => {}
        }
        if self.mode == Mode::Off {
            self.began = None;
        }
        true
    }

    /// Applies a failed look at file `index`. Returns whether the state differs from before.
    pub fn fail(&mut self, index: usize, trouble: String) -> bool {
        let trouble = Some(trouble);
        let differs = self.files[index].trouble != trouble;
        self.files[index].trouble = trouble;
        differs
    }

    /// Replaces the permit for file `index`, and returns the former one.
    pub fn keep(&mut self, index: usize, permit: Option<Permit>) -> Option<Permit> {
        let before = std::mem::replace(&mut self.files[index].permit, permit);
        self.permits = self.files.iter().filter_map(|file| file.permit.clone()).collect();
        before
    }

    /// The permits that work let in now has to hold.
    #[must_use]
    pub fn permits(&self) -> &Permits {
        &self.permits
    }

    /// The permit for file `index`.
    #[must_use]
    pub fn permit(&self, index: usize) -> Option<&Permit> {
        self.files[index].permit.as_ref()
    }

    /// Why the latest look at file `index` failed, if it did.
    #[must_use]
    pub fn trouble(&self, index: usize) -> Option<&str> {
        self.files[index].trouble.as_deref()
    }

    /// The maintenance mode that results from all files.
    #[must_use]
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// How often maintenance mode has changed.
    #[must_use]
    pub fn changes(&self) -> Changes {
        self.changes
    }

    /// When this process saw the current maintenance begin. `None` if maintenance mode is off or was already on at the first
    /// look. Another reason or another file does not change it.
    #[must_use]
    pub fn began(&self) -> Option<Instant> {
        self.began
    }

    /// For each file without a successful look so far, the reason for that.
    pub fn unseen(&self) -> impl Iterator<Item = String> {
        self.files.iter().filter(|file| file.seen.is_none()).map(|file| match &file.trouble {
            Some(trouble) => trouble.clone(),
            None => format!("{} has not been looked at yet", file.path.display()),
        })
    }

    /// For each file whose latest look failed, the reason for that.
    pub fn troubles(&self) -> impl Iterator<Item = &str> {
        self.files.iter().filter_map(|file| file.trouble.as_deref())
    }

    /// The state as it is presented at the time `now`.
    #[must_use]
    pub fn report(&self, now: Timestamp) -> Report<'_> {
        match &self.mode {
            Mode::Unknown => Report::default(),
            Mode::Off => Report { enabled: Some(false), ..Report::default() },
            Mode::On(maintenance) => Report {
                enabled: Some(true),
                reason: maintenance.reason.as_deref(),
                since: Some(maintenance.since.min(now)),
                until: maintenance.until,
                file: Some(&maintenance.file),
            },
        }
    }
}

/// The state as one JSON object.
#[derive(Debug, Default, Serialize)]
pub struct Report<'a> {
    /// Whether maintenance mode is on; `null` before the first successful look.
    pub enabled: Option<bool>,
    /// The reason.
    pub reason: Option<&'a str>,
    /// When it began, RFC 3339. Never in the future.
    #[serde(serialize_with = "rfc3339")]
    pub since: Option<Timestamp>,
    /// When it is expected to end, RFC 3339.
    #[serde(serialize_with = "rfc3339")]
    pub until: Option<Timestamp>,
    /// The first file that exists.
    #[serde(serialize_with = "displayed")]
    pub file: Option<&'a Path>,
}

#[expect(clippy::ref_option, reason = "serde's signature")]
fn rfc3339<S: serde::Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(time),
        None => serializer.serialize_none(),
    }
}

/// JSON is UTF-8, but a path need not be.
fn displayed<S: serde::Serializer>(path: &Option<&Path>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => serializer.collect_str(&path.display()),
        None => serializer.serialize_none(),
    }
}

fn merge(files: &[Watched]) -> Mode {
    let on = || {
        files.iter().filter_map(|file| match &file.seen {
            Some(Observation::On(switch)) => Some((file, switch)),
            Some(Observation::Off) | None => None,
        })
    };
    let Some((first, _)) = on().next() else {
        let unknown = files.iter().any(|file| file.seen.is_none());
        return if unknown { Mode::Unknown } else { Mode::Off };
    };
    Mode::On(Maintenance {
        reason: on().find_map(|(_, switch)| switch.notice.reason.clone()),
        since: on().map(|(_, switch)| switch.modified).min().unwrap_or_default(),
        until: on().filter_map(|(_, switch)| switch.notice.until).max(),
        file: first.path.to_path_buf(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::maintenance::notice::Notice;
    use crate::maintenance::observation::Switch;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn on(reason: Option<&str>, modified: i64, until: Option<i64>) -> Observation {
        let notice = Notice { reason: reason.map(str::to_owned), until: until.map(at) };
        Observation::On(Switch { notice, modified: at(modified), unreadable: None })
    }

    fn two_files() -> State {
        State::new(["/pod/MAINTENANCE", "/fleet/MAINTENANCE"].map(Path::new))
    }

    #[test]
    fn on_while_any_file_exists() {
        let now = Instant::now();
        let mut state = two_files();
        assert_eq!(state.mode(), &Mode::Unknown);
        state.see(0, Observation::Off, now);
        assert_eq!(state.mode(), &Mode::Unknown, "the other file may exist");
        state.see(1, on(Some("fleet"), 20, Some(90)), now);
        state.see(0, on(None, 10, Some(80)), now);
        let expected = Maintenance {
            reason: Some("fleet".into()),
            since: at(10),
            until: Some(at(90)),
            file: "/pod/MAINTENANCE".into(),
        };
        assert_eq!(state.mode(), &Mode::On(expected));
        state.see(0, Observation::Off, now);
        assert!(matches!(state.mode(), Mode::On(m) if m.since == at(20)));
        state.see(1, Observation::Off, now);
        assert_eq!(state.mode(), &Mode::Off);
    }

    #[test]
    fn on_if_a_file_exists_and_another_is_unknown() {
        let now = Instant::now();
        let mut state = two_files();
        state.see(1, on(None, 5, None), now);
        assert!(matches!(state.mode(), Mode::On(_)));
    }

    #[test]
    fn a_failed_look_keeps_the_state() {
        let now = Instant::now();
        let mut state = two_files();
        assert!(state.fail(0, "stale handle".into()));
        assert_eq!(
            state.unseen().collect::<Vec<_>>(),
            ["stale handle", "/fleet/MAINTENANCE has not been looked at yet"]
        );
        state.see(0, on(Some("x"), 1, None), now);
        state.see(1, Observation::Off, now);
        let before = state.mode().clone();
        assert!(state.fail(0, "I/O error".into()));
        assert!(!state.fail(0, "I/O error".into()), "the same failure changes nothing");
        assert_eq!(state.mode(), &before);
        assert_eq!(state.troubles().collect::<Vec<_>>(), ["I/O error"]);
        assert!(state.see(0, on(Some("x"), 1, None), now), "the failure is over");
        assert_eq!(state.troubles().count(), 0);
    }

    #[test]
    fn counts_only_changes_between_on_and_off() {
        let now = Instant::now();
        let mut state = State::new([Path::new("f")]);
        state.see(0, on(None, 1, None), now);
        assert_eq!(state.changes(), Changes::default());
        state.see(0, Observation::Off, now);
        state.see(0, on(None, 2, None), now);
        assert!(state.see(0, on(Some("why"), 2, None), now), "a new reason is a change");
        assert!(!state.see(0, on(Some("why"), 2, None), now));
        assert_eq!(state.changes(), Changes { on: 1, off: 1 });
    }

    #[test]
    fn maintenance_began_when_it_was_first_seen_on() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let (empty, reason) = (on(None, 1, None), on(Some("why"), 2, None));
        // Seconds, file, what is seen there, when maintenance began.
        let table = [
            (0, 0, empty.clone(), None, "it was already on"),
            (1, 0, Observation::Off, None, "the other file is unknown"),
            (2, 0, empty.clone(), None, "the other file may have existed all the time"),
            (3, 0, Observation::Off, None, "unknown"),
            (4, 1, Observation::Off, None, "off"),
            (5, 1, empty.clone(), Some(5), "it begins"),
            (6, 1, reason, Some(5), "another reason"),
            (7, 0, empty.clone(), Some(5), "another file"),
            (8, 1, Observation::Off, Some(5), "the first file is left"),
            (9, 0, Observation::Off, None, "it ends"),
            (10, 0, empty, Some(10), "it begins again"),
        ];
        let mut state = two_files();
        for (seconds, index, seen, began, why) in table {
            state.see(index, seen, after(seconds));
            assert_eq!(state.began(), began.map(after), "{why}");
        }
    }

    #[test]
    fn reports_since_as_at_most_now() {
        let now = Instant::now();
        let mut state = State::new([Path::new("f")]);
        let json = |state: &State| serde_json::to_string(&state.report(at(100))).unwrap();
        assert_eq!(json(&state), r#"{"enabled":null,"reason":null,"since":null,"until":null,"file":null}"#);
        state.see(0, Observation::Off, now);
        assert_eq!(json(&state), r#"{"enabled":false,"reason":null,"since":null,"until":null,"file":null}"#);
        state.see(0, on(Some("a \"b\""), 200, Some(300)), now);
        let expected = concat!(
            r#"{"enabled":true,"reason":"a \"b\"","since":"1970-01-01T00:01:40Z","#,
            r#""until":"1970-01-01T00:05:00Z","file":"f"}"#
        );
        assert_eq!(json(&state), expected);
    }
}
