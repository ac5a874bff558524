//! What is known of the maintenance files, and what follows from it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use serde::Serialize;

use super::notice::Notice;
use super::permit::Permit;

/// A maintenance file that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// What its text says.
    pub notice: Notice,
    /// The file's modification time.
    pub modified: Timestamp,
    /// Why its text could not be read, where it could not.
    pub unreadable: Option<String>,
}

/// What the last successful look at a file saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seen {
    /// No look has succeeded yet: nobody may rely on maintenance being off.
    #[default]
    Nothing,
    /// There is no file.
    Off,
    /// There is one.
    On(Switch),
}

/// One `--file`.
#[derive(Debug)]
struct Watched {
    path: Arc<Path>,
    seen: Seen,
    /// Why the latest look failed, where it did. What was seen before stays.
    trouble: Option<String>,
    /// Held from before the look that found the file gone, until one finds it there.
    permit: Option<Permit>,
}

/// How often maintenance mode has changed since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// From off to on.
    pub on: u64,
    /// From on to off.
    pub off: u64,
}

/// Maintenance mode as all files together say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// At least one file has not been seen yet, and no other is there.
    Unknown,
    /// No file is there.
    Off,
    /// At least one file is there.
    On(Maintenance),
}

/// Maintenance while it lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maintenance {
    /// What people are told: that of the first file which has a reason.
    pub reason: Option<String>,
    /// The earliest modification time; of a file that bears a time in the future, that time.
    pub since: Timestamp,
    /// The latest `Until`: maintenance is over when no file is left.
    pub until: Option<Timestamp>,
    /// The first file that is there.
    pub file: PathBuf,
}

/// All that is known of the maintenance files. One writer, [`super::watch`], changes it.
#[derive(Debug)]
pub struct State {
    files: Vec<Watched>,
    mode: Mode,
    changes: Changes,
    began: Option<Instant>,
    permits: Permits,
}

/// The permits of all files, for work that was let in while maintenance mode was off. They are given back when the last
/// clone is dropped.
pub type Permits = Arc<[Permit]>;

impl State {
    /// Before the first look at the files with these paths.
    #[must_use]
    pub fn new<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let watched = |path: &Path| Watched { path: path.into(), seen: Seen::Nothing, trouble: None, permit: None };
        Self {
            files: paths.into_iter().map(watched).collect(),
            mode: Mode::Unknown,
            changes: Changes::default(),
            began: None,
            permits: Arc::default(),
        }
    }

    /// Takes up what a look at file `index` saw. Returns whether anything differs from before.
    pub fn see(&mut self, index: usize, seen: Seen) -> bool {
        let file = &mut self.files[index];
        if file.seen == seen && file.trouble.is_none() {
            return false;
        }
        file.seen = seen;
        file.trouble = None;
        let before = std::mem::replace(&mut self.mode, merge(&self.files));
        match (&before, &self.mode) {
            (Mode::Off, Mode::On(_)) => {
                self.changes.on += 1;
                self.began = Some(Instant::now());
            }
            (Mode::On(_), Mode::Off) => self.changes.off += 1,
            _ => {}
        }
        if self.mode == Mode::Off {
            self.began = None;
        }
        true
    }

    /// Takes up that a look at file `index` failed. Returns whether anything differs from before.
    pub fn fail(&mut self, index: usize, trouble: String) -> bool {
        let trouble = Some(trouble);
        let differs = self.files[index].trouble != trouble;
        self.files[index].trouble = trouble;
        differs
    }

    /// Keeps a permit for file `index`, or none, and gives back the one that was kept.
    pub fn keep(&mut self, index: usize, permit: Option<Permit>) -> Option<Permit> {
        let before = std::mem::replace(&mut self.files[index].permit, permit);
        self.permits = self.files.iter().filter_map(|file| file.permit.clone()).collect();
        before
    }

    /// What work has to hold that is let in now.
    #[must_use]
    pub fn permits(&self) -> &Permits {
        &self.permits
    }

    /// The permit kept for file `index`.
    #[must_use]
    pub fn permit(&self, index: usize) -> Option<&Permit> {
        self.files[index].permit.as_ref()
    }

    /// Why the latest look at file `index` failed, where it did.
    #[must_use]
    pub fn trouble(&self, index: usize) -> Option<&str> {
        self.files[index].trouble.as_deref()
    }

    /// What all files together say.
    #[must_use]
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// How often that has changed.
    #[must_use]
    pub fn changes(&self) -> Changes {
        self.changes
    }

    /// When this process saw maintenance begin that is not over; `None` if it was on before the first look. Another reason or
    /// another file does not begin it anew.
    #[must_use]
    pub fn began(&self) -> Option<Instant> {
        self.began
    }

    /// The files that no look has seen yet, each with why.
    pub fn unseen(&self) -> impl Iterator<Item = String> {
        self.files.iter().filter(|file| file.seen == Seen::Nothing).map(|file| match &file.trouble {
            Some(trouble) => trouble.clone(),
            None => format!("{} has not been looked at yet", file.path.display()),
        })
    }

    /// The files whose latest look failed, each with why.
    pub fn troubles(&self) -> impl Iterator<Item = &str> {
        self.files.iter().filter_map(|file| file.trouble.as_deref())
    }

    /// The state as people and programs are shown it at the time `now`.
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
    /// What people are told.
    pub reason: Option<&'a str>,
    /// When it began, RFC 3339.
    #[serde(serialize_with = "rfc3339")]
    pub since: Option<Timestamp>,
    /// When it is expected to end, RFC 3339.
    #[serde(serialize_with = "rfc3339")]
    pub until: Option<Timestamp>,
    /// The file that has turned it on.
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

/// A path need not be UTF-8, but JSON has to be.
fn displayed<S: serde::Serializer>(path: &Option<&Path>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => serializer.collect_str(&path.display()),
        None => serializer.serialize_none(),
    }
}

fn merge(files: &[Watched]) -> Mode {
    let on = || {
        files.iter().filter_map(|file| match &file.seen {
            Seen::On(switch) => Some((file, switch)),
            _ => None,
        })
    };
    let Some((first, _)) = on().next() else {
        let unknown = files.iter().any(|file| file.seen == Seen::Nothing);
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

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn on(reason: Option<&str>, modified: i64, until: Option<i64>) -> Seen {
        let notice = Notice { reason: reason.map(str::to_owned), until: until.map(at) };
        Seen::On(Switch { notice, modified: at(modified), unreadable: None })
    }

    fn two_files() -> State {
        State::new(["/pod/MAINTENANCE", "/fleet/MAINTENANCE"].map(Path::new))
    }

    #[test]
    fn on_while_any_file_is_there() {
        let mut state = two_files();
        assert_eq!(state.mode(), &Mode::Unknown);
        state.see(0, Seen::Off);
        assert_eq!(state.mode(), &Mode::Unknown, "the other file may be there");
        state.see(1, on(Some("fleet"), 20, Some(90)));
        state.see(0, on(None, 10, Some(80)));
        let expected = Maintenance {
            reason: Some("fleet".into()),
            since: at(10),
            until: Some(at(90)),
            file: "/pod/MAINTENANCE".into(),
        };
        assert_eq!(state.mode(), &Mode::On(expected));
        state.see(0, Seen::Off);
        assert!(matches!(state.mode(), Mode::On(m) if m.since == at(20)));
        state.see(1, Seen::Off);
        assert_eq!(state.mode(), &Mode::Off);
    }

    #[test]
    fn a_file_that_is_there_counts_before_all_are_seen() {
        let mut state = two_files();
        state.see(1, on(None, 5, None));
        assert!(matches!(state.mode(), Mode::On(_)));
    }

    #[test]
    fn a_failed_look_keeps_the_state() {
        let mut state = two_files();
        assert!(state.fail(0, "stale handle".into()));
        assert_eq!(
            state.unseen().collect::<Vec<_>>(),
            ["stale handle", "/fleet/MAINTENANCE has not been looked at yet"]
        );
        state.see(0, on(Some("x"), 1, None));
        state.see(1, Seen::Off);
        let before = state.mode().clone();
        assert!(state.fail(0, "I/O error".into()));
        assert!(!state.fail(0, "I/O error".into()), "the same trouble is no news");
        assert_eq!(state.mode(), &before);
        assert_eq!(state.troubles().collect::<Vec<_>>(), ["I/O error"]);
        assert!(state.see(0, on(Some("x"), 1, None)), "that it is over is");
        assert_eq!(state.troubles().count(), 0);
    }

    #[test]
    fn only_changes_between_known_states_count() {
        let mut state = State::new([Path::new("f")]);
        state.see(0, on(None, 1, None));
        assert_eq!(state.changes(), Changes::default());
        state.see(0, Seen::Off);
        state.see(0, on(None, 2, None));
        assert!(state.see(0, on(Some("why"), 2, None)), "a new reason is news");
        assert!(!state.see(0, on(Some("why"), 2, None)));
        assert_eq!(state.changes(), Changes { on: 1, off: 1 });
    }

    #[test]
    fn when_it_began_is_known_to_who_saw_it_begin() {
        let mut state = two_files();
        state.see(0, on(None, 1, None));
        assert_eq!(state.began(), None, "it was on before");
        state.see(0, Seen::Off);
        state.see(0, on(None, 1, None));
        assert_eq!(state.began(), None, "the other file may have been there all the time");
        state.see(0, Seen::Off);
        state.see(1, Seen::Off);
        assert_eq!(state.began(), None);
        let before = Instant::now();
        state.see(1, on(None, 1, None));
        let began = state.began();
        assert!(began.is_some_and(|began| began >= before));
        state.see(1, on(Some("why"), 2, None));
        state.see(0, on(None, 3, None));
        state.see(1, Seen::Off);
        assert_eq!(state.began(), began, "it has gone on");
        state.see(0, Seen::Off);
        assert_eq!(state.began(), None);
        state.see(0, on(None, 4, None));
        assert!(state.began() > began);
    }

    #[test]
    fn the_report_is_at_most_now() {
        let mut state = State::new([Path::new("f")]);
        let json = |state: &State| serde_json::to_string(&state.report(at(100))).unwrap();
        assert_eq!(json(&state), r#"{"enabled":null,"reason":null,"since":null,"until":null,"file":null}"#);
        state.see(0, Seen::Off);
        assert_eq!(json(&state), r#"{"enabled":false,"reason":null,"since":null,"until":null,"file":null}"#);
        state.see(0, on(Some("a \"b\""), 200, Some(300)));
        let expected = concat!(
            r#"{"enabled":true,"reason":"a \"b\"","since":"1970-01-01T00:01:40Z","#,
            r#""until":"1970-01-01T00:05:00Z","file":"f"}"#
        );
        assert_eq!(json(&state), expected);
    }
}
