//! Reloads small files while pitstop runs.
//!
//! The files are polled. The volume of a Secret or ConfigMap is replaced as a whole, which a watch on a file in it would
//! miss. A thread of its own looks at them, because a volume may hang.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;
use tokio::sync::watch;
use tracing::{info, warn};

/// How long to wait for the first look at the files.
const FIRST_LOOK: Duration = Duration::from_millis(500);

/// How to reload a value.
#[derive(Clone, Copy, Debug)]
pub struct Reload {
    /// The name of the thread.
    pub thread: &'static str,
    /// The stack of the thread, in bytes. Only the part in use takes memory.
    pub stack: usize,
    /// The pause between two looks.
    pub every: Duration,
    /// Logged behind an error: its consequence.
    pub failed: &'static str,
    /// Logged when no error is left.
    pub recovered: &'static str,
    /// Logged when the value changes after the first look.
    pub changed: Option<&'static str>,
}

/// The result of a look.
#[derive(Debug)]
pub struct Look<T> {
    /// The new value, if there is one.
    pub value: Option<T>,
    /// What is wrong with the files. The same error is logged once.
    pub error: Option<String>,
}

impl Reload {
    /// Publishes `initial` and then each new value, until the last receiver is dropped. Returns after the first look, or
    /// after half a second if that takes longer.
    ///
    /// # Errors
    ///
    /// The thread cannot be started.
    pub fn start<T: Send + Sync + 'static>(
        self,
        initial: T,
        mut look: impl FnMut() -> Look<T> + Send + 'static,
    ) -> io::Result<watch::Receiver<T>> {
        let (publish, receiver) = watch::channel(initial);
        let (looked, first_look) = mpsc::sync_channel(1);
        thread::Builder::new().name(self.thread.to_owned()).stack_size(self.stack).spawn(move || {
            let mut is_first = true;
            let mut logged = None;
            while !publish.is_closed() {
                let Look { value, error } = look();
                if let Some(value) = value {
                    publish.send_replace(value);
                    if let Some(changed) = self.changed.filter(|_| !is_first) {
                        info!("{changed}");
                    }
                }
                match &error {
                    Some(error) if logged.as_ref() != Some(error) => warn!("{error}: {}", self.failed),
                    None if logged.is_some() => info!("{}", self.recovered),
                    _ => {}
                }
                logged = error;
                if std::mem::take(&mut is_first) {
                    // Fails if `start` has stopped waiting.
                    let _ = looked.try_send(());
                }
                thread::sleep(self.every);
            }
        })?;
        let _ = first_look.recv_timeout(FIRST_LOOK);
        Ok(receiver)
    }
}

/// A file with its last good value.
#[derive(Debug)]
pub struct Source<T, E> {
    flag: &'static str,
    path: PathBuf,
    limit: usize,
    parse: fn(&Path, &[u8]) -> Result<T, E>,
    seen: Seen,
    good: Option<(Vec<u8>, T)>,
    error: Option<SourceError<E>>,
}

/// What the looks at a file have found so far.
///
/// A change is applied when two looks in a row find the same bytes. At the first of them, the file may be half written.
#[derive(Debug)]
enum Seen {
    /// There was no look yet. The first one is applied at once.
    Nothing,
    /// The file could not be read.
    Unreadable,
    /// One look has found these bytes.
    Once(Vec<u8>),
    /// These bytes have been applied.
    Applied(Vec<u8>),
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum SourceError<E> {
    /// It cannot be read.
    #[error("{flag} {} cannot be read: {source}", path.display())]
    Read {
        /// The flag that names the file.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// It is too large.
    #[error("{flag} {} is larger than {} KiB", path.display(), limit / 1024)]
    Size {
        /// The flag that names the file.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// In bytes.
        limit: usize,
    },
    /// It cannot be parsed.
    #[error(transparent)]
    Parse(E),
}

impl<T, E> Source<T, E> {
    /// A file of at most `limit` bytes that a flag names.
    pub fn new(flag: &'static str, path: PathBuf, limit: usize, parse: fn(&Path, &[u8]) -> Result<T, E>) -> Self {
        Self { flag, path, limit, parse, seen: Seen::Nothing, good: None, error: None }
    }

    /// The last good value.
    pub fn value(&self) -> Option<&T> {
        self.good.as_ref().map(|(_, value)| value)
    }

    /// What is wrong with the file. The last good value stays.
    pub fn error(&self) -> Option<&SourceError<E>> {
        self.error.as_ref()
    }

    /// Reads the file. Returns whether it has another good value than before.
    pub fn look(&mut self) -> bool {
        let found = read(&self.path, self.limit as u64 + 1);
        self.see(found)
    }

    fn see(&mut self, found: io::Result<Vec<u8>>) -> bool {
        let before = std::mem::replace(&mut self.seen, Seen::Unreadable);
        match (found, before) {
            (Err(source), _) => {
                self.error = Some(SourceError::Read { flag: self.flag, path: self.path.clone(), source });
                false
            }
            (Ok(bytes), Seen::Applied(before)) if bytes == before => {
                self.seen = Seen::Applied(bytes);
                false
            }
            (Ok(bytes), Seen::Once(before)) if bytes == before => self.apply(bytes),
            (Ok(bytes), Seen::Nothing) => self.apply(bytes),
            (Ok(bytes), _) => {
                self.seen = Seen::Once(bytes);
                false
            }
        }
    }

    fn apply(&mut self, bytes: Vec<u8>) -> bool {
        let is_good = self.good.as_ref().is_some_and(|(good, _)| *good == bytes);
        let parsed = match bytes.len() > self.limit {
            true => Err(SourceError::Size { flag: self.flag, path: self.path.clone(), limit: self.limit }),
            false if is_good => Ok(None),
            false => (self.parse)(&self.path, &bytes).map(Some).map_err(SourceError::Parse),
        };
        self.seen = Seen::Applied(bytes.clone());
        match parsed {
            Ok(None) => self.error = None,
            Ok(Some(value)) => {
                (self.good, self.error) = (Some((bytes, value)), None);
                return true;
            }
            Err(error) => self.error = Some(error),
        }
        false
    }
}

/// Reads the first `limit` bytes of a file. A FIFO does not block it.
///
/// # Errors
///
/// The file cannot be read, or is not a regular file.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::ParseIntError;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Instant;

    /// A number of at most four digits.
    fn source(path: PathBuf) -> Source<u32, ParseIntError> {
        Source::new("--number", path, 4, |_, bytes| String::from_utf8_lossy(bytes).parse())
    }

    fn eventually(mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
    }

    #[test]
    fn keeps_the_last_good_value_until_two_looks_find_another() {
        let missing = || Err(io::ErrorKind::NotFound.into());
        let bytes = |text: &str| Ok(text.as_bytes().to_vec());
        type Row = (io::Result<Vec<u8>>, bool, Option<u32>, Option<&'static str>);
        let unreadable = Some("--number f cannot be read: entity not found");
        let invalid = Some("invalid digit found in string");
        let large = Some("--number f is larger than 0 KiB");
        // What a look finds; whether the value changes, the value, the error.
        let table: [Row; 19] = [
            (bytes("1"), true, Some(1), None),
            (bytes("1"), false, Some(1), None),
            (bytes("2"), false, Some(1), None),
            (bytes("23"), false, Some(1), None),
            (bytes("23"), true, Some(23), None),
            (missing(), false, Some(23), unreadable),
            (bytes("23"), false, Some(23), unreadable),
            (bytes("23"), false, Some(23), None),
            (bytes("x"), false, Some(23), None),
            (bytes("x"), false, Some(23), invalid),
            (bytes("x"), false, Some(23), invalid),
            (bytes("12345"), false, Some(23), invalid),
            (bytes("12345"), false, Some(23), large),
            (bytes("23"), false, Some(23), large),
            (bytes("23"), false, Some(23), None),
            (missing(), false, Some(23), unreadable),
            (bytes("4"), false, Some(23), unreadable),
            (missing(), false, Some(23), unreadable),
            (bytes("4"), false, Some(23), unreadable),
        ];
        let mut source = source("f".into());
        for (index, (found, changes, value, error)) in table.into_iter().enumerate() {
            assert_eq!(source.see(found), changes, "look {index}");
            assert_eq!(source.value().copied(), value, "look {index}");
            assert_eq!(source.error().map(ToString::to_string).as_deref(), error, "look {index}");
        }
    }

    #[test]
    fn a_source_that_starts_broken_has_no_value() {
        for (found, error) in [
            (Err(io::ErrorKind::NotFound.into()), "--number f cannot be read: entity not found"),
            (Ok(b"x".to_vec()), "invalid digit found in string"),
        ] {
            let mut source = source("f".into());
            assert!(!source.see(found));
            assert_eq!((source.value(), source.error().unwrap().to_string().as_str()), (None, error));
            assert!(!source.see(Ok(b"1".to_vec())));
            assert!(source.see(Ok(b"1".to_vec())));
            assert!(source.value() == Some(&1) && source.error().is_none());
        }
    }

    #[test]
    fn reads_regular_files_up_to_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let (file, fifo) = (directory.path().join("file"), directory.path().join("fifo"));
        std::fs::write(&file, "12345").unwrap();
        assert_eq!(read(&file, 4).unwrap(), b"1234");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
        for path in [&fifo, directory.path()] {
            assert_eq!(read(path, 4).unwrap_err().to_string(), "it is no regular file");
        }
        assert_eq!(read(&directory.path().join("none"), 4).unwrap_err().kind(), io::ErrorKind::NotFound);
        let mut source = source(file);
        assert!(!source.look());
        assert!(matches!(source.error(), Some(SourceError::Size { limit: 4, .. })));
    }

    #[test]
    fn publishes_values_until_the_last_receiver_is_dropped() {
        let number = Arc::new(AtomicU32::new(0));
        let found = number.clone();
        let mut last = None;
        let reload = Reload {
            thread: "number",
            stack: 2 * 1024 * 1024,
            every: Duration::ZERO,
            failed: "",
            recovered: "",
            changed: None,
        };
        let receiver = reload
            .start(42, move || {
                let value = found.load(Ordering::Relaxed);
                Look { value: (last.replace(value) != Some(value)).then_some(value), error: None }
            })
            .unwrap();
        assert_eq!(*receiver.borrow(), 0, "the first look is over");
        number.store(1, Ordering::Relaxed);
        eventually(|| *receiver.borrow() == 1);
        drop(receiver);
        eventually(|| Arc::strong_count(&number) == 1);
    }
}
