//! Permits: who may let work reach the data while maintenance mode is off.
//!
//! A permit is a shared `flock(2)` on a file beside the maintenance file. Whoever waits until maintenance has been
//! taken up asks for the exclusive lock: the kernel grants it when the last permit is gone, even one that was held
//! by a process which was killed.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, FdFlags};

use super::file::MaintenanceFile;
use super::one_line;
use super::state::{Seen, Switch};

/// How often to open a lock file that is replaced each time before it is locked.
const TRIES: usize = 100;

/// The lock file of one maintenance file.
#[derive(Clone, Debug)]
pub struct LockFile {
    path: PathBuf,
}

/// A shared lock. It is given back when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Permit(Arc<OwnedFd>);

/// The exclusive lock: while it is held nobody has a permit.
#[derive(Debug)]
pub struct Exclusive(#[expect(dead_code, reason = "holds the lock")] OwnedFd);

/// Why a lock was not granted.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody holds one that excludes it. Ask again.
    #[error("the lock {} is held by another process", .0.display())]
    Busy(PathBuf),
    /// No lock can be had here.
    #[error("cannot lock {}: {source}", path.display())]
    Unavailable {
        /// The lock file.
        path: PathBuf,
        /// What the system says: the directory is read-only, the file system has no locks, …
        source: io::Error,
    },
}

impl LockError {
    /// Whether there is no lock because nothing can be written there.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::Unavailable { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem)
    }
}

/// The answer to who wants to open.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry<P, S> {
    /// Maintenance mode is off, and will not be taken for taken up while `P` is held.
    Open(P),
    /// It is on.
    Closed(S),
}

/// The protocol of everybody who lets work reach the data: look, take a permit, look again.
///
/// Only the second look counts: it is made with the permit in hand, so that whoever turned maintenance mode on
/// before it is seen, and whoever does so later has to wait for the permit. The first look spares the lock during
/// maintenance.
///
/// # Errors
///
/// Those of the look and of the permit, as they are.
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

/// The protocol of who has turned maintenance mode on and waits until everybody has taken it up: take the exclusive
/// lock, and see that maintenance mode is still on. Returns whether it is.
///
/// # Errors
///
/// Those of the lock and of the look, as they are.
pub fn settle<X, S, E>(
    take: impl FnOnce() -> Result<X, E>,
    look: impl FnOnce() -> Result<Option<S>, E>,
) -> Result<bool, E> {
    let _exclusive = take()?;
    Ok(look()?.is_some())
}

impl Seen {
    /// What [`enter`] asks a look: the switch if it is on. Nothing seen is never returned by a look.
    #[must_use]
    pub fn switch(self) -> Option<Switch> {
        match self {
            Self::On(switch) => Some(switch),
            Self::Off | Self::Nothing => None,
        }
    }
}

impl LockFile {
    /// The lock beside this file: `.MAINTENANCE.lock` for `MAINTENANCE`.
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
    /// [`LockError::Busy`] while somebody holds the exclusive lock.
    pub fn share(&self) -> Result<Permit, LockError> {
        self.lock(OFlags::RDONLY, FlockOperation::NonBlockingLockShared).map(|fd| Permit(Arc::new(fd)))
    }

    /// Takes the exclusive lock, without waiting.
    ///
    /// # Errors
    ///
    /// [`LockError::Busy`] while anybody holds a permit.
    pub fn exclude(&self) -> Result<Exclusive, LockError> {
        // NFS turns flock into a byte-range lock, which is exclusive only on a file open for writing (flock(2)).
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
                // Somebody removed the file between open and lock: a lock on it would lock nobody out.
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Err(LockError::Busy(self.path.clone())),
                Err(errno) => return Err(self.unavailable(errno)),
            }
        }
        // Not by chance: the file system numbers a file anew each time it is asked.
        Err(self.unavailable(Errno::STALE))
    }

    fn open(&self, access: OFlags) -> Result<OwnedFd, Errno> {
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        loop {
            match rustix::fs::open(&self.path, flags, Mode::empty()) {
                Err(Errno::NOENT) => {}
                result => return result,
            }
            // Created by itself: in a sticky directory, fs.protected_regular refuses O_CREAT on another user's file.
            let create = flags | OFlags::CREATE | OFlags::EXCL;
            match rustix::fs::open(&self.path, create, Mode::from_raw_mode(0o666)) {
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
                Ok(fd) => {
                    // It is never written to, and its other users must be able to open it, whatever the umask here.
                    let _ = rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o666));
                    return Ok(fd);
                }
            }
        }
    }

    /// Whether this is the file that others find under the path.
    fn is_current(&self, fd: impl AsFd) -> bool {
        let ours = rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
        let theirs = rustix::fs::statat(rustix::fs::CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW);
        ours.is_ok_and(|ours| theirs.is_ok_and(|theirs| ours == (theirs.st_dev, theirs.st_ino)))
    }

    /// Whether the permit still locks the file that others lock; not so after someone removed or replaced it.
    #[must_use]
    pub fn is_valid(&self, permit: &Permit) -> bool {
        self.is_current(&permit.0)
    }

    fn unavailable(&self, errno: Errno) -> LockError {
        LockError::Unavailable { path: self.path.clone(), source: errno.into() }
    }

    /// The processes that hold the lock, as far as this one may see them: `PID COMMAND`.
    ///
    /// The kernel lists locks in `/proc/locks` with the process that took each, by inode; processes that have
    /// inherited one are found by their open files, where permissions allow. Processes of other PID namespaces,
    /// such as those of other containers, are not seen.
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
        // The kernel still names who took the lock when that process is gone, and one that inherited it is not.
        let commands = pids.into_iter().map(|pid| (pid, command_of(pid))).filter(|(_, command)| !command.is_empty());
        commands.map(|(pid, command)| format!("{pid} {command}")).collect()
    }
}

/// The processes that took a flock on the inode. Its device is not compared: /proc/locks tells another one than
/// stat(2) does on btrfs and overlayfs.
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
    /// Lets the program that this process becomes, or starts, hold the permit too.
    ///
    /// # Errors
    ///
    /// Those of `fcntl(2)` with `F_SETFD`.
    pub fn pass_on(&self) -> io::Result<()> {
        Ok(rustix::io::fcntl_setfd(&self.0, FdFlags::empty())?)
    }
}
