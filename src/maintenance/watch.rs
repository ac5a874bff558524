//! Watches the maintenance files: looks on hints and polls, compares, and publishes differences.
//!
//! Events are only hints to look. The poll finds every change, with or without an event.
//!
//! Each file has a thread that looks, so that a hung mount delays neither requests nor the other files. The thread
//! sleeps until the poll is due or a hint arrives. Nothing else wakes an idle process.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use notify::{EventKindMask, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::file::{Directory, DirectoryId, LookError, MaintenanceFile};
use super::lock::{self, Entry, LockError, LockFile, Permit};
use super::looks::Outcome;
pub use super::looks::{LOOK_LIMIT, Looks};
use super::observation::{Observation, Switch};
use super::plain::one_line;
use super::schedule::{Alarm, Hint};
use super::state::{Mode, State};

/// Whether this process lets work reach the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It does. It holds a permit for each file that does not exist.
    Open,
    /// It does not, and takes no permits.
    Observe,
}

/// Watches the files and publishes the state that results from them, until the last receiver is dropped.
///
/// # Errors
///
/// A thread cannot be started.
pub fn start(
    files: &[MaintenanceFile],
    poll: Duration,
    role: Role,
) -> io::Result<(watch::Receiver<State>, Arc<Looks>)> {
    let (sender, receiver) = watch::channel(State::new(files.iter().map(MaintenanceFile::path)));
    let sender = Arc::new(sender);
    let looks = Arc::new(Looks::new(files.iter().map(MaintenanceFile::path)));
    for (index, file) in files.iter().enumerate() {
        let alarm = Arc::new(Alarm::new());
        let mut file_watch = FileWatch {
            index,
            directory: DirectoryWatch {
                alarm: alarm.clone(),
                file: file.clone(),
                watched: None,
                watcher: None,
                polling: false,
            },
            file: file.clone(),
            lock: (role == Role::Open).then(|| LockFile::of(file)),
            no_lock: None,
            unreadable: None,
            busy_since: None,
            alarm,
            state: sender.clone(),
            looks: looks.clone(),
        };
        thread::Builder::new().name(format!("watch-{index}")).spawn(move || file_watch.run(poll))?;
    }
    Ok((receiver, looks))
}

/// The thread of one file.
struct FileWatch {
    index: usize,
    file: MaintenanceFile,
    lock: Option<LockFile>,
    /// Why no permit is available, if that has been logged.
    no_lock: Option<String>,
    /// Why the text cannot be read, if that has been logged.
    unreadable: Option<String>,
    /// Since when another process has held the exclusive lock.
    busy_since: Option<Instant>,
    directory: DirectoryWatch,
    alarm: Arc<Alarm>,
    state: Arc<watch::Sender<State>>,
    looks: Arc<Looks>,
}

/// Why a look has no result.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Look(#[from] LookError),
    #[error(transparent)]
    Lock(LockError),
}

impl FileWatch {
    fn run(&mut self, poll: Duration) {
        while !self.state.is_closed() {
            self.alarm.wait(poll);
            self.looks.begin(self.index, Instant::now());
            let seen = self.observe();
            let outcome = match &seen {
                Ok((Observation::On(Switch { unreadable: Some(_), .. }), _)) | Err(Failure::Look(_)) => {
                    Outcome::Failure
                }
                Ok(_) => Outcome::Success(Timestamp::now()),
                Err(Failure::Lock(_)) => Outcome::Busy,
            };
            let took = self.looks.end(self.index, outcome, Instant::now());
            if took >= LOOK_LIMIT {
                warn!(file = %self.file.path().display(), "a look took {} s", took.as_secs());
            }
            match seen {
                Ok((seen, permit)) => self.publish(&seen, permit),
                Err(failure) => self.report(&failure),
            }
        }
    }

    fn observe(&mut self) -> Result<(Observation, Option<Permit>), Failure> {
        let directory = self.file.open_directory()?;
        self.directory.update(directory.as_ref());
        let look = || Ok(self.file.look_in(directory.as_ref())?);
        let Some(lock) = &self.lock else { return Ok((look()?, None)) };
        // Cloned, so that the state is not borrowed while the check accesses the disk, which may hang.
        let held = self.state.borrow().permit(self.index).cloned();
        let held = held.filter(|permit| lock.is_valid(permit));
        let entry = lock::enter(
            || look().map(Observation::switch),
            || match held.map_or_else(|| lock.share(), Ok) {
                Err(busy @ LockError::Busy(_)) => Err(Failure::Lock(busy)),
                permit => Ok(permit),
            },
        )?;
        Ok(match entry {
            Entry::Closed(switch) => (Observation::On(switch), None),
            Entry::Open(Ok(permit)) => {
                self.no_lock = None;
                (Observation::Off, Some(permit))
            }
            Entry::Open(Err(unavailable)) => {
                // Without a directory there is no data to protect yet.
                let why = unavailable.to_string();
                if directory.is_some() && self.no_lock.as_ref() != Some(&why) {
                    // A ConfigMap beside a file of the pod: `--wait` uses the lock of the first file.
                    if self.index > 0 && unavailable.is_read_only() {
                        debug!("{why}");
                    } else {
                        warn!("{why}: `maintenance-mode --wait` will not wait for this process");
                    }
                    self.no_lock = Some(why);
                }
                (Observation::Off, None)
            }
        })
    }

    fn publish(&mut self, seen: &Observation, permit: Option<Permit>) {
        self.busy_since = None;
        let (mut before, mut after, mut recovered) = (None, None, false);
        let mut released = None;
        self.state.send_if_modified(|state| {
            recovered = state.trouble(self.index).is_some();
            let old = state.mode().clone();
            let differs = state.see(self.index, seen.clone(), Instant::now());
            released = state.keep(self.index, permit);
            if differs {
                before = Some(old);
                after = Some(state.mode().clone());
            }
            differs
        });
        // Released only after the new state is published, and outside the channel's lock, because closing may block.
        drop(released);
        self.log_unreadable(seen);
        let (Some(before), Some(after)) = (before, after) else { return };
        if recovered {
            info!(file = %self.file.path().display(), "the file can be examined again");
        }
        log_change(&before, &after);
    }

    /// Logs each cause once, not with every change of the modification time, as by a write to a FIFO.
    fn log_unreadable(&mut self, seen: &Observation) {
        let why = match seen {
            Observation::On(switch) => switch.unreadable.as_ref(),
            Observation::Off => None,
        };
        if self.unreadable.as_ref() == why {
            return;
        }
        if let Some(why) = why {
            warn!("{why}; maintenance mode is on all the same");
        }
        self.unreadable = why.cloned();
    }

    fn report(&mut self, failure: &Failure) {
        if let Failure::Lock(_) = failure {
            let now = Instant::now();
            self.alarm.hint(Hint::Lock, now);
            if now - *self.busy_since.get_or_insert(now) < LOOK_LIMIT {
                return;
            }
        }
        let mut differs = false;
        self.state.send_if_modified(|state| {
            differs = state.fail(self.index, failure.to_string());
            differs
        });
        if differs {
            warn!("{failure}; what was known before stays");
        }
    }
}

fn log_change(before: &Mode, after: &Mode) {
    match (before, after) {
        (_, Mode::On(now)) if before != after => {
            let message = match before {
                Mode::On(_) => "maintenance mode changed",
                _ => "maintenance mode enabled",
            };
            let reason = one_line(now.reason.as_deref().unwrap_or_default());
            let until = now.until.map(|time| time.to_string());
            info!(reason, file = %now.file.display(), since = %now.since, until, "{message}");
        }
        (Mode::On(_), Mode::Off) => info!("maintenance mode disabled"),
        _ => {}
    }
}

/// The inotify watch on the directory of the file. It turns events into hints.
struct DirectoryWatch {
    file: MaintenanceFile,
    alarm: Arc<Alarm>,
    watched: Option<DirectoryId>,
    watcher: Option<RecommendedWatcher>,
    /// Whether it has been logged that there are no hints.
    polling: bool,
}

impl DirectoryWatch {
    /// Watches this directory, if it is not the watched one already. A watch follows the inode, not the path.
    fn update(&mut self, directory: Option<&Directory>) {
        let id = directory.map(Directory::id);
        let lost = self.alarm.take_lost();
        if self.watched == id && !lost {
            return;
        }
        self.watcher = None;
        self.watched = None;
        if id.is_none() {
            return;
        }
        match self.watch() {
            Ok(watcher) => {
                self.watcher = Some(watcher);
                self.watched = id;
                if std::mem::take(&mut self.polling) {
                    info!(directory = %self.file.directory().display(), "changes are noticed at once again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.polling, true) {
                    let directory = self.file.directory().display();
                    warn!(%directory, "{error}: changes are noticed only when the file is polled");
                }
            }
        }
    }

    fn watch(&self) -> notify::Result<RecommendedWatcher> {
        let (alarm, directory, name) =
            (self.alarm.clone(), self.file.directory().to_owned(), self.file.name().to_owned());
        let hint = move |event: notify::Result<notify::Event>| {
            // An error or a queue overflow has no paths. Anything may have happened.
            let paths = event.map(|event| event.paths).unwrap_or_default();
            let concerns = if paths.is_empty() || paths.contains(&directory) {
                Hint::Directory
            } else if paths.iter().any(|path| path.file_name() == Some(&name)) {
                Hint::File
            } else {
                Hint::Neighbour
            };
            alarm.hint(concerns, Instant::now());
        };
        // No access events: a look causes them, so each look would lead to the next one.
        let kinds = EventKindMask::CREATE
            | EventKindMask::REMOVE
            | EventKindMask::MODIFY_DATA
            | EventKindMask::MODIFY_META
            | EventKindMask::MODIFY_NAME;
        let mut watcher = RecommendedWatcher::new(hint, notify::Config::default().with_event_kinds(kinds))?;
        watcher.watch(self.file.directory(), RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }
}
