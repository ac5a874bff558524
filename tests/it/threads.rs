//! What the kernel tells of the threads of a process.

use std::fs;
use std::path::PathBuf;
use std::process::Child;

use crate::fixture::eventually;

/// A thread of another process.
pub struct Thread(PathBuf);

impl Thread {
    /// The one of that name, which a thread takes only after it has begun.
    pub fn of(process: &Child, name: &str) -> Self {
        let directory = format!("/proc/{}/task", process.id());
        let mut found = None;
        eventually(&format!("a thread is called {name}"), || {
            let mut tasks = fs::read_dir(&directory).unwrap().map(|task| task.unwrap().path());
            found = tasks.find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name));
            found.is_some()
        });
        Self(found.unwrap())
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.0.file_name().unwrap().to_str().unwrap().parse().unwrap()
    }

    /// How long it has been on a processor, in hundredths of a second.
    pub fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(self.0.join("stat")).unwrap();
        // Fields 14 and 15, the first after the name in parentheses being the third (proc(5)).
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// How often it has gone to sleep of its own accord.
    pub fn switches(&self) -> u64 {
        self.status("voluntary_ctxt_switches").into()
    }

    /// The process that traces it, or 0.
    pub fn tracer(&self) -> u32 {
        self.status("TracerPid")
    }

    fn status(&self, field: &str) -> u32 {
        let status = fs::read_to_string(self.0.join("status")).unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap().trim().parse().unwrap()
    }
}
