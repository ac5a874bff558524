//! The lock that says who may let work reach the data.
//!
//! A permit is a shared `flock(2)` on a file beside the maintenance file. A process is open while it holds one.
//! `maintenance-mode --wait` takes the lock exclusively. The kernel grants that after the last permit is released, which
//! includes those of processes that were killed.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, FdFlags};

use super::file::MaintenanceFile;
use super::plain::one_line;

/// How often to retry when the lock file is replaced between opening and locking it.
const TRIES: usize = 100;

/// The lock file of one maintenance file.
#[derive(Clone, Debug)]
pub struct LockFile {
    path: PathBuf,
}

/// A shared lock. It is released when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Permit(Arc<OwnedFd>);

/// The exclusive lock. No permit exists while it is held.
#[derive(Debug)]
pub struct Exclusive(#[expect(dead_code, reason = "holds the lock")] OwnedFd);

/// Why a lock was not granted.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds a lock that excludes this one. Try again.
    #[error("the lock {} is held by another process", .0.display())]
    Busy(PathBuf),
    /// Locks do not work here.
    #[error("cannot lock {}: {source}", path.display())]
    Unavailable {
        /// The lock file.
        path: PathBuf,
        /// The error of the system, such as a read-only directory or a file system without locks.
        source: io::Error,
    },
}

impl LockError {
    /// Whether the cause is a read-only file system.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::Unavailable { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem)
    }
}

/// The result of [`enter`].
#[derive(Debug, PartialEq, Eq)]
pub enum Entry<P, S> {
    /// Maintenance mode is off. [`settle`] does not succeed while `P` is held.
    Open(P),
    /// Maintenance mode is on.
    Closed(S),
}

/// Opens a process: look, take a permit, look again.
///
/// Only the second look counts, because the permit is held by then. A file written before this look is seen. The writer
/// of a later file has to wait for the permit. The first look avoids taking the lock during maintenance.
///
/// # Errors
///
/// Errors of `look` and `take` are passed on.
pub fn enter<P, S, E>(
    mut look: impl FnMut() -> Result<Option<S>, E>,
    take: impl FnOnce() -> Result<P, E>,
) -> Result<Entry<P, S>, E> {
    if let Some(on) = look()? {
        return Ok(Entry::Closed(on));
    }
    let permit = take()?;
    Ok(match look()? {
        None => Entry::Open(permit),
        Some(on) => Entry::Closed(on),
    })
}

/// Confirms that every process has closed: take the exclusive lock, then look. Returns whether maintenance mode is still
/// on.
///
/// # Errors
///
/// Errors of `take` and `look` are passed on.
pub fn settle<X, S, E>(
    take: impl FnOnce() -> Result<X, E>,
    look: impl FnOnce() -> Result<Option<S>, E>,
) -> Result<bool, E> {
    let _exclusive = take()?;
    Ok(look()?.is_some())
}

impl LockFile {
    /// The lock file of this maintenance file: `.MAINTENANCE.lock` for `MAINTENANCE`.
    #[must_use]
    pub fn of(file: &MaintenanceFile) -> Self {
        let mut name = OsString::from(".");
        name.push(file.name());
        name.push(".lock");
        Self { path: file.directory().join(name) }
    }

    /// Takes a permit, without waiting.
    ///
    /// # Errors
    ///
    /// [`LockError::Busy`] while another process holds the exclusive lock.
    pub fn share(&self) -> Result<Permit, LockError> {
        self.lock(OFlags::RDONLY, FlockOperation::NonBlockingLockShared).map(|fd| Permit(Arc::new(fd)))
    }

    /// Takes the exclusive lock, without waiting.
    ///
    /// # Errors
    ///
    /// [`LockError::Busy`] while any permit is held.
    pub fn exclude(&self) -> Result<Exclusive, LockError> {
        // NFS emulates flock by byte-range locks. An exclusive one needs a file that is open for writing (flock(2)).
        self.lock(OFlags::RDWR, FlockOperation::NonBlockingLockExclusive)
            .or_else(|error| match error {
                LockError::Unavailable { source, .. } if is_denied(&source) => {
                    self.lock(OFlags::RDONLY, FlockOperation::NonBlockingLockExclusive)
                }
                error => Err(error),
            })
            .map(Exclusive)
    }

    fn lock(&self, access: OFlags, operation: FlockOperation) -> Result<OwnedFd, LockError> {
        for _ in 0..TRIES {
            let fd = self.open(access).map_err(|errno| self.unavailable(errno))?;
            match rustix::fs::flock(&fd, operation) {
                Ok(()) if self.is_current(&fd) => return Ok(fd),
                // The file was removed between opening and locking it. A lock on it would exclude nobody.
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Err(LockError::Busy(self.path.clone())),
                Err(errno) => return Err(self.unavailable(errno)),
            }
        }
        // This is no race: the file system reports another inode number each time.
        Err(self.unavailable(Errno::STALE))
    }

    fn open(&self, access: OFlags) -> Result<OwnedFd, Errno> {
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        loop {
            match rustix::fs::open(&self.path, flags, Mode::empty()) {
                Err(Errno::NOENT) => {}
                result => return result,
            }
            // A separate step, because fs.protected_regular refuses O_CREAT on another user's file in a sticky directory.
            let create = flags | OFlags::CREATE | OFlags::EXCL;
            match rustix::fs::open(&self.path, create, Mode::from_raw_mode(0o666)) {
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
                Ok(fd) => {
                    // The file stays empty. Other users must be able to open it, whatever the umask of this process.
                    let _ = rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o666));
                    return Ok(fd);
                }
            }
        }
    }

    /// Whether the path still leads to this file.
    fn is_current(&self, fd: impl AsFd) -> bool {
        let ours = rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
        let theirs = rustix::fs::statat(rustix::fs::CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW);
        ours.is_ok_and(|ours| theirs.is_ok_and(|theirs| ours == (theirs.st_dev, theirs.st_ino)))
    }

    /// Whether the permit locks the file that other processes would lock. It does not after the file was removed or
    /// replaced.
    #[must_use]
    pub fn is_valid(&self, permit: &Permit) -> bool {
        self.is_current(&permit.0)
    }

    fn unavailable(&self, errno: Errno) -> LockError {
        LockError::Unavailable { path: self.path.clone(), source: errno.into() }
    }

    /// The visible processes that hold the lock, each as `PID COMMAND`.
    ///
    /// `/proc/locks` lists each lock by inode, with the process that took it. Processes that inherited a lock are found
    /// by their open files, where permissions allow that. Processes in other PID namespaces, such as those of other
    /// containers, are not visible.
    #[must_use]
    pub fn holders(&self) -> Vec<String> {
        let Ok(lock) = rustix::fs::statat(rustix::fs::CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW) else {
            return Vec::new();
        };
        let mut pids: BTreeSet<u32> = locking_pids(lock.st_ino).collect();
        pids.extend(all_pids().filter(|pid| {
            let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            files
                .filter_map(|file| rustix::fs::statat(rustix::fs::CWD, file.path(), AtFlags::empty()).ok())
                .any(|stat| (stat.st_dev, stat.st_ino) == (lock.st_dev, lock.st_ino))
        }));
        pids.remove(&std::process::id());
        // The kernel names the process that took the lock, even if that has exited and only a child still holds it.
        let commands = pids.into_iter().map(|pid| (pid, command_of(pid))).filter(|(_, command)| !command.is_empty());
        commands.map(|(pid, command)| format!("{pid} {command}")).collect()
    }
}

/// The processes that took a flock on the inode. The device is not compared, because /proc/locks and stat(2) disagree on
/// it on btrfs and overlayfs.
fn locking_pids(inode: u64) -> impl Iterator<Item = u32> {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let pids: Vec<u32> = locks
        .lines()
        // 1: FLOCK  ADVISORY  READ 4711 08:01:1234 0 EOF
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().skip(1).filter(|field| *field != "->").collect();
            let [kind, _, _, pid, file, ..] = fields.as_slice() else { return None };
            let same = *kind == "FLOCK" && file.rsplit(':').next()?.parse() == Ok(inode);
            same.then(|| pid.parse().ok())?
        })
        .collect();
    pids.into_iter()
}

fn all_pids() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn command_of(pid: u32) -> String {
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = one_line(&String::from_utf8_lossy(&arguments).replace('\0', " "));
    match command.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &command[..end]),
        None => command,
    }
}

fn is_denied(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

impl Permit {
    /// Lets programs that this process executes inherit the permit.
    ///
    /// # Errors
    ///
    /// See `fcntl(2)` with `F_SETFD`.
    pub fn pass_on(&self) -> io::Result<()> {
        Ok(rustix::io::fcntl_setfd(&self.0, FdFlags::empty())?)
    }
}
