//! A file system that refuses locks: an empty lock file and, if wanted, a maintenance file. Needs root and /dev/fuse.

use std::ffi::OsStr;
use std::io;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, Request,
};
use tempfile::TempDir;

/// Where it is mounted; unmounted on drop.
pub struct Lockless {
    _session: BackgroundSession,
    pub directory: TempDir,
}

impl Lockless {
    pub fn mount(maintenance: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("lockless".to_owned())];
        let session = fuser::spawn_mount(Files { maintenance }, directory.path(), &config);
        Self { _session: session.expect("this test needs root and /dev/fuse; install fuse3"), directory }
    }
}

struct Files {
    maintenance: bool,
}

const LOCK: INodeNo = INodeNo(2);
const MAINTENANCE: INodeNo = INodeNo(3);
const NO_CACHE: Duration = Duration::ZERO;

fn attributes(ino: INodeNo) -> FileAttr {
    let (kind, perm) = match ino {
        INodeNo::ROOT => (FileType::Directory, 0o755),
        _ => (FileType::RegularFile, 0o666),
    };
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 512,
        flags: 0,
    }
}

impl Filesystem for Files {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Otherwise the kernel does flock(2) by itself, and nobody is asked.
        config.add_capabilities(InitFlags::FUSE_FLOCK_LOCKS).map_err(|_| io::ErrorKind::Unsupported.into())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str() {
            Some(".MAINTENANCE.lock") => reply.entry(&NO_CACHE, &attributes(LOCK), Generation(0)),
            Some("MAINTENANCE") if self.maintenance => {
                reply.entry(&NO_CACHE, &attributes(MAINTENANCE), Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&NO_CACHE, &attributes(ino));
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(&[]);
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
