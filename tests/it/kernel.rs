//! What the kernel tells of a process and its threads, in `/proc`: reading it does not wake them, as asking would.

use std::fs;
use std::path::PathBuf;

use crate::fixture::{Sidecar, eventually};

/// A thread of a sidecar.
pub struct Thread(PathBuf);

impl Thread {
    /// All that there are. While one ends, the list may miss others.
    fn all(sidecar: &Sidecar) -> impl Iterator<Item = Self> {
        let tasks = fs::read_dir(format!("/proc/{}/task", sidecar.child.id())).unwrap();
        tasks.map(|task| Self(task.unwrap().path()))
    }

    /// Those of that name.
    pub fn all_of(sidecar: &Sidecar, name: &str) -> impl Iterator<Item = Self> {
        Self::all(sidecar).filter(move |thread| thread.name().as_deref() == Some(name))
    }

    /// The one of that name, which a thread takes only after it has begun.
    #[track_caller]
    pub fn of(sidecar: &Sidecar, name: &str) -> Self {
        let mut found = None;
        eventually(&format!("a thread is called {name}"), || {
            found = Self::all_of(sidecar, name).next();
            found.is_some()
        });
        found.unwrap()
    }

    /// The one that watches the first maintenance file.
    #[track_caller]
    pub fn watch(sidecar: &Sidecar) -> Self {
        Self::of(sidecar, "watch-0")
    }

    /// Its name, unless it has ended.
    fn name(&self) -> Option<String> {
        Some(self.read("comm")?.trim_end().to_owned())
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.0.file_name().unwrap().to_str().unwrap().parse().unwrap()
    }

    /// How often it has gone to sleep of its own accord and was woken again.
    pub fn wake_ups(&self) -> u64 {
        wake_ups_in(&self.read("status").unwrap()).unwrap()
    }

    /// How many times it has called read(2).
    pub fn reads(&self) -> u64 {
        value(&self.read("io").unwrap(), "syscr").unwrap()
    }

    /// The processor time it has used, in ticks: 100 a second.
    pub fn ticks(&self) -> u64 {
        ticks_in(&self.read("stat").unwrap())
    }

    /// The process that traces it, or 0.
    pub fn tracer(&self) -> u32 {
        value(&self.read("status").unwrap(), "TracerPid").unwrap().try_into().unwrap()
    }

    /// A file of it, unless it has ended.
    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.0.join(name)).ok()
    }
}

/// The value of `NAME: value` in a text of many such lines.
fn value(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Of a `status`; that of a process that has just ended has none.
fn wake_ups_in(status: &str) -> Option<u64> {
    value(status, "voluntary_ctxt_switches")
}

/// Of a `stat`.
fn ticks_in(stat: &str) -> u64 {
    // After the name in brackets, which may hold anything, comes field 3; utime and stime are 14 and 15 (proc(5)).
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// A file of a process as a whole.
fn of_process(process: u32, name: &str) -> String {
    fs::read_to_string(format!("/proc/{process}/{name}")).unwrap()
}

/// How often the first thread of a process has been woken; 0 if it has just ended.
pub fn wake_ups(process: u32) -> u64 {
    wake_ups_in(&of_process(process, "status")).unwrap_or(0)
}

/// How often each thread has been woken.
pub fn wake_ups_of_threads(sidecar: &Sidecar) -> Vec<(String, u64)> {
    let wake_ups = |thread: Thread| Some((thread.name()?, wake_ups_in(&thread.read("status")?)?));
    Thread::all(sidecar).filter_map(wake_ups).collect()
}

/// How often the thread that watches the first file has been woken: at least once a look.
#[track_caller]
pub fn looks(sidecar: &Sidecar) -> u64 {
    Thread::watch(sidecar).wake_ups()
}

/// Waits until it has looked again, in full and more than once.
#[track_caller]
pub fn has_looked_again(sidecar: &Sidecar) {
    let before = looks(sidecar);
    eventually("it looks again", || looks(sidecar) >= before + 4);
}

/// The processor time that a sidecar has used, in ticks: 100 a second.
pub fn ticks(sidecar: &Sidecar) -> u64 {
    ticks_in(&of_process(sidecar.child.id(), "stat"))
}

/// The most memory it has ever had, in KiB.
pub fn peak_memory(sidecar: &Sidecar) -> u64 {
    value(&of_process(sidecar.child.id(), "status"), "VmHWM").unwrap()
}

/// The inodes that it watches through inotify.
pub fn watched_inodes(sidecar: &Sidecar) -> Vec<u64> {
    let descriptors = fs::read_dir(format!("/proc/{}/fdinfo", sidecar.child.id())).unwrap();
    let texts = descriptors.filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok());
    let inode = |line: &str| {
        let inode = line.strip_prefix("inotify ")?.split(' ').find_map(|field| field.strip_prefix("ino:"))?;
        Some(u64::from_str_radix(inode, 16).unwrap())
    };
    texts.flat_map(|text| text.lines().filter_map(inode).collect::<Vec<_>>()).collect()
}
