//! A small FUSE file system that fails, or stops answering, on command: what a network file system does when its
//! server does. It may also refuse locks, as some do. Needs root and /dev/fuse.

use std::ffi::OsStr;
use std::io;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, Request,
};
use tempfile::TempDir;

use crate::fixture::program;

const FILE: INodeNo = INodeNo(2);
const LOCK: INodeNo = INodeNo(3);

/// What may fail or hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Opening the directory.
    OpenDirectory,
    /// Finding a name in it, or the attributes of what has been found.
    Examine,
    /// Opening the file.
    Open,
    /// Reading the file.
    Read,
    /// Everything to do with the lock file.
    Lock,
}

impl Operation {
    /// All that a look consists of.
    pub const ALL: [Self; 4] = [Self::OpenDirectory, Self::Examine, Self::Open, Self::Read];
}

#[derive(Default)]
struct Server {
    refuses_locks: bool,
    state: Mutex<State>,
    answers_again: Condvar,
}

#[derive(Default)]
struct State {
    /// The text of `MAINTENANCE`, where it is there.
    text: Option<String>,
    failing: Option<(Operation, i32)>,
    silent: Vec<Operation>,
    /// How many requests wait for an answer.
    waiting: usize,
}

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Before each answer: waits while there is to be none, then tells whether it is to be an error.
    fn begin(&self, operation: Operation) -> Result<MutexGuard<'_, State>, Errno> {
        let mut state = self.state();
        state.waiting += 1;
        state = self.answers_again.wait_while(state, |state| state.silent.contains(&operation)).unwrap();
        state.waiting -= 1;
        match state.failing {
            Some((failing, errno)) if failing == operation => Err(Errno::from_i32(errno)),
            _ => Ok(state),
        }
    }

    fn attributes(&self, inode: INodeNo) -> Result<FileAttr, Errno> {
        let operation = if inode == LOCK { Operation::Lock } else { Operation::Examine };
        let state = self.begin(operation)?;
        let size = match (inode, &state.text) {
            (FILE, None) => return Err(Errno::ENOENT),
            (FILE, Some(text)) => text.len() as u64,
            _ => 0,
        };
        let directory = inode == INodeNo::ROOT;
        Ok(FileAttr {
            ino: inode,
            size,
            blocks: 1,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH + Duration::from_secs(1_000_000_000),
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if directory { FileType::Directory } else { FileType::RegularFile },
            perm: if directory { 0o755 } else { 0o644 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 512,
            flags: 0,
        })
    }
}

/// What the kernel asks; it may keep no answer.
struct Answers(Arc<Server>);

impl Filesystem for Answers {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        if self.0.refuses_locks {
            // Otherwise the kernel does flock(2) by itself, and nobody is asked.
            config.add_capabilities(InitFlags::FUSE_FLOCK_LOCKS).map_err(|_| io::ErrorKind::Unsupported)?;
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let inode = match name.to_str() {
            Some("MAINTENANCE") => FILE,
            Some(".MAINTENANCE.lock") => LOCK,
            _ => return reply.error(Errno::ENOENT),
        };
        match self.0.attributes(inode) {
            Ok(attributes) => reply.entry(&Duration::ZERO, &attributes, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.attributes(inode) {
            Ok(attributes) => reply.attr(&Duration::ZERO, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.0.begin(Operation::OpenDirectory) {
            Ok(_) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.0.begin(if inode == LOCK { Operation::Lock } else { Operation::Open }) {
            Ok(_) => reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.begin(Operation::Read) {
            Ok(state) => {
                let text = state.text.as_deref().unwrap_or_default().as_bytes();
                let start = text.len().min(usize::try_from(offset).unwrap());
                let end = text.len().min(start + size as usize);
                reply.data(&text[start..end]);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn setlk(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOLCK);
    }
}

/// A mount of it, with `MAINTENANCE` in its root.
pub struct Volume {
    server: Arc<Server>,
    device: u64,
    session: Option<BackgroundSession>,
    directory: TempDir,
}

impl Volume {
    pub fn mount() -> Self {
        Self::of(Server::default())
    }

    /// One that refuses every lock.
    pub fn without_locks() -> Self {
        Self::of(Server { refuses_locks: true, ..Server::default() })
    }

    fn of(server: Server) -> Self {
        assert!(Path::new("/dev/fuse").exists(), "install fuse3, load the module fuse, and run this as root");
        let directory = tempfile::tempdir().unwrap();
        let server = Arc::new(server);
        let mut config = Config::default();
        // One that hangs must not keep the others from being answered.
        config.n_threads = Some(8);
        let session = fuser::spawn_mount(Answers(server.clone()), directory.path(), &config).unwrap();
        let device = std::fs::metadata(directory.path()).unwrap().st_dev();
        Self { server, device, session: Some(session), directory }
    }

    /// The maintenance file.
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("MAINTENANCE")
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// From now on the file has this text, or is gone; as if done on another machine, so that no event tells.
    pub fn set(&self, text: Option<&str>) {
        self.server.state().text = text.map(str::to_owned);
    }

    /// From now on an operation fails, or none does.
    pub fn fail(&self, failing: Option<(Operation, i32)>) {
        self.server.state().failing = failing;
    }

    /// These are not answered until what is returned is dropped. Drop it before any process that waits for an
    /// answer is waited for: not even SIGKILL ends that one.
    #[must_use]
    pub fn silence(&self, operations: &[Operation]) -> Silence {
        self.server.state().silent = operations.to_vec();
        Silence(self.server.clone())
    }

    /// Whether anybody waits for an answer.
    pub fn is_waited_for(&self) -> bool {
        self.server.state().waiting > 0
    }

    /// Cuts the connection between the kernel and the file system: whatever waits, or comes, fails.
    pub fn abort(&self) {
        let minor = rustix::fs::minor(self.device);
        let script = format!(
            "mount -t fusectl fusectl /sys/fs/fuse/connections; echo 1 > /sys/fs/fuse/connections/{minor}/abort"
        );
        let status = program("unshare").args(["--mount", "sh", "-ec", &script]).status().unwrap();
        assert!(status.success(), "{script}");
    }

    /// Unmounts it, used or not.
    pub fn unmount(&self) {
        assert!(self.unmounted());
    }

    fn unmounted(&self) -> bool {
        let output = Command::new("umount").arg("-l").arg(self.path()).output();
        output.is_ok_and(|output| output.status.success())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        drop(Silence(self.server.clone()));
        self.unmounted();
        drop(self.session.take());
    }
}

/// As long as it lives, some operations are not answered.
pub struct Silence(Arc<Server>);

impl Drop for Silence {
    fn drop(&mut self) {
        self.0.state().silent.clear();
        self.0.answers_again.notify_all();
    }
}
