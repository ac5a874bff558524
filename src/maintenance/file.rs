//! The maintenance file on disk: look, enable, disable. No other code touches it.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::notice::{self, Notice};
use super::observation::{Observation, Switch};

/// The path of a maintenance file, which need not exist.
#[derive(Clone, Debug)]
pub struct MaintenanceFile {
    path: PathBuf,
    directory: PathBuf,
    name: OsString,
}

/// An open directory. Looks in it do not depend on what its path leads to meanwhile.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    id: DirectoryId,
}

/// Identifies a directory, whatever its path: device and inode.
pub type DirectoryId = (u64, u64);

/// The path names no file.
#[derive(Debug, thiserror::Error)]
#[error("{} does not name a file: give a path such as /maintenance/MAINTENANCE", .0.display())]
pub struct NotAFileName(PathBuf);

/// A look could not determine whether the file exists.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be examined: {source}", path.display())]
pub struct LookError {
    path: PathBuf,
    source: io::Error,
}

/// A change failed, or may not survive a crash of the machine.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// `EROFS`.
    #[error("{} is read-only: is it a ConfigMap? Change it with kubectl", .0.display())]
    ReadOnly(PathBuf),
    /// `rename(2)` and `unlink(2)` refuse a mount point.
    #[error("{} is mounted by itself, so it cannot be replaced: mount its directory instead", .0.display())]
    Mount(PathBuf),
    /// The directory does not exist.
    #[error("there is no directory {}: create it, or name another file with --file", .0.display())]
    NoDirectory(PathBuf),
    /// The path is a directory.
    #[error("{} is a directory: remove it, then try again", .0.display())]
    IsDirectory(PathBuf),
    /// `EACCES`, `EPERM`.
    #[error("no permission to change {}: run as a user who may write to its directory", .0.display())]
    Denied(PathBuf),
    /// `ENOSPC`, `EDQUOT`.
    #[error("no space left in {}: free some, then try again", .0.display())]
    Full(PathBuf),
    /// Any other error of the system.
    #[error("cannot change {}: {source}", path.display())]
    Other {
        /// The maintenance file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
}

impl MaintenanceFile {
    /// A file at this path, which need not exist.
    ///
    /// # Errors
    ///
    /// The path is empty or ends in `..` or `/`.
    pub fn new(path: &Path) -> Result<Self, NotAFileName> {
        let ends_in_slash = path.as_os_str().as_encoded_bytes().ends_with(b"/");
        let name = path.file_name().filter(|_| !ends_in_slash).ok_or_else(|| NotAFileName(path.to_owned()))?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        Ok(Self { path: path.to_owned(), directory: directory.to_owned(), name: name.to_owned() })
    }

    /// The path, as passed to [`MaintenanceFile::new`].
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of the file.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The name of the file in its directory.
    #[must_use]
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// Opens the directory. Returns `None` if it does not exist.
    ///
    /// An NFS client revalidates its cache when the directory is opened (close-to-open, nfs(5)). A `stat` of a path may
    /// be answered from the cache.
    ///
    /// # Errors
    ///
    /// The directory may exist, but the system refuses to open it.
    pub fn open_directory(&self) -> Result<Option<Directory>, LookError> {
        let open =
            |flags| rustix::fs::open(&self.directory, flags | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        // With search permission only, O_PATH still allows to look up a name.
        let opened = open(OFlags::RDONLY).or_else(|errno| match errno {
            Errno::ACCESS => open(OFlags::PATH),
            errno => Err(errno),
        });
        match opened.and_then(|fd| Ok((rustix::fs::fstat(&fd)?, fd))) {
            Ok((stat, fd)) => Ok(Some(Directory { fd, id: (stat.st_dev, stat.st_ino) })),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(self.cannot_examine(errno)),
        }
    }

    /// Checks whether the file exists, and reads it.
    ///
    /// # Errors
    ///
    /// The system does not tell whether the file exists.
    pub fn look(&self) -> Result<Observation, LookError> {
        self.look_in(self.open_directory()?.as_ref())
    }

    /// The same in a directory that is already open.
    ///
    /// # Errors
    ///
    /// The system does not tell whether the file exists.
    pub fn look_in(&self, directory: Option<&Directory>) -> Result<Observation, LookError> {
        let Some(directory) = directory else { return Ok(Observation::Off) };
        match self.read(&directory.fd) {
            Ok(switch) => Ok(Observation::On(switch)),
            // A dangling symlink means off, and so does a path through something that is not a directory.
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(Observation::Off),
            Err(errno) => Err(self.cannot_examine(errno)),
        }
    }

    fn read(&self, directory: impl AsFd) -> Result<Switch, Errno> {
        let stat = rustix::fs::statat(&directory, &self.name, AtFlags::empty())?;
        let unreadable = |stat, why: &str| Switch {
            notice: Notice::default(),
            modified: modified(&stat),
            unreadable: Some(format!("{} {why}", self.path.display())),
        };
        // Opening a FIFO waits for a writer. Opening a device may have any effect.
        if let Some(kind) = irregular(stat.st_mode) {
            return Ok(unreadable(stat, &format!("is {kind}, not a regular file")));
        }
        // O_NONBLOCK, because a FIFO may have replaced the file since.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&directory, &self.name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ACCESS | Errno::PERM) => return Ok(unreadable(stat, "cannot be read: permission denied")),
            Err(errno) => return Err(errno),
        };
        let stat = rustix::fs::fstat(&file)?;
        if let Some(kind) = irregular(stat.st_mode) {
            return Ok(unreadable(stat, &format!("is {kind}, not a regular file")));
        }
        let mut bytes = Vec::new();
        file.take(notice::LIMIT as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        Ok(Switch { notice: Notice::parse(&bytes), modified: modified(&stat), unreadable: None })
    }

    fn cannot_examine(&self, errno: Errno) -> LookError {
        LookError { path: self.path.clone(), source: errno.into() }
    }

    /// Turns maintenance mode on, or changes the text of the file and keeps its modification time.
    ///
    /// The change is atomic and durable: a temporary file is synced and renamed over the old one, and the directory is
    /// synced.
    ///
    /// # Errors
    ///
    /// See [`WriteError`].
    pub fn enable(&self, notice: &Notice) -> Result<(), WriteError> {
        self.replace(notice).map_err(|source| self.cannot_change(source))
    }

    /// Turns maintenance mode on with an empty file, for which there is room on many a full disk.
    ///
    /// # Errors
    ///
    /// See [`WriteError`]. If it already is on, the file stays as it is, and that is an error.
    pub fn enable_without_reason(&self) -> Result<(), WriteError> {
        let create = || {
            let file = File::create_new(&self.path)?;
            file.set_permissions(Permissions::from_mode(0o644))?;
            self.sync_directory()
        };
        create().map_err(|source| self.cannot_change(source))
    }

    fn replace(&self, notice: &Notice) -> io::Result<()> {
        let mut temporary =
            tempfile::Builder::new().prefix(".MAINTENANCE.").suffix(".tmp").tempfile_in(&self.directory)?;
        temporary.as_file_mut().write_all(notice.to_text().as_bytes())?;
        // Every user of the volume must be able to read the file, whatever the umask of this process.
        temporary.as_file().set_permissions(Permissions::from_mode(0o644))?;
        if let Ok(before) = self.path.metadata().and_then(|metadata| metadata.modified()) {
            temporary.as_file().set_modified(before)?;
        }
        temporary.as_file().sync_all()?;
        temporary.persist(&self.path)?;
        self.sync_directory()
    }

    /// Turns maintenance mode off. It is not an error if it already is.
    ///
    /// # Errors
    ///
    /// See [`WriteError`].
    pub fn disable(&self) -> Result<(), WriteError> {
        match std::fs::remove_file(&self.path) {
            Ok(()) => self.sync_directory(),
            Err(error) if is_absent(&error) => Ok(()),
            // On a read-only file system, unlink(2) fails with EROFS even if the file does not exist.
            Err(_) if self.path.symlink_metadata().is_err_and(|error| is_absent(&error)) => Ok(()),
            Err(error) => Err(error),
        }
        .map_err(|source| self.cannot_change(source))
    }

    fn sync_directory(&self) -> io::Result<()> {
        match File::open(&self.directory).and_then(|directory| directory.sync_all()) {
            // Syncing needs read permission on the directory. Some file systems cannot sync directories.
            Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput) => {
                Ok(())
            }
            result => result,
        }
    }

    fn cannot_change(&self, source: io::Error) -> WriteError {
        let path = self.path.clone();
        if self.is_mount_point() {
            return WriteError::Mount(path);
        }
        if std::fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.is_dir()) {
            return WriteError::IsDirectory(path);
        }
        match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => WriteError::ReadOnly(self.directory.clone()),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => WriteError::NoDirectory(self.directory.clone()),
            io::ErrorKind::PermissionDenied => WriteError::Denied(path),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => WriteError::Full(self.directory.clone()),
            _ => WriteError::Other { path, source },
        }
    }

    fn is_mount_point(&self) -> bool {
        rustix::fs::statx(rustix::fs::CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)
            .is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
    }
}

impl Directory {
    /// The identity of this directory.
    #[must_use]
    pub fn id(&self) -> DirectoryId {
        self.id
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The type of a file that is not a regular file.
fn irregular(mode: u32) -> Option<&'static str> {
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile => None,
        FileType::Directory => Some("a directory"),
        FileType::Fifo => Some("a FIFO"),
        FileType::Socket => Some("a socket"),
        _ => Some("a device"),
    }
}

fn modified(stat: &rustix::fs::Stat) -> Timestamp {
    let nanoseconds = i32::try_from(stat.st_mtime_nsec).unwrap_or_default();
    Timestamp::new(stat.st_mtime, nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH)
}
