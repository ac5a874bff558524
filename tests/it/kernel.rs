//! What the kernel tells of a process, in `/proc`: reading it does not wake the process, as asking it would.

use std::path::PathBuf;
use std::process::Command;

use crate::fixture::{Sidecar, eventually};

/// The files `/proc/PID/task/*/NAME`, each with the thread's name. While one ends, the list may miss others.
fn of_threads(sidecar: &Sidecar, name: &str) -> Vec<(String, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", sidecar.child.id())).unwrap();
    let read = |task: PathBuf, name: &str| std::fs::read_to_string(task.join(name)).ok();
    tasks
        .map(|task| task.unwrap().path())
        .filter_map(|task| Some((read(task.clone(), "comm")?.trim_end().to_owned(), read(task, name)?)))
        .collect()
}

/// The value of `NAME: value` in a text of many such lines.
fn value(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// That file of the thread that watches the first maintenance file.
#[track_caller]
fn of_watcher(sidecar: &Sidecar, name: &str) -> String {
    let mut found = None;
    eventually("the thread watch-0 is listed", || {
        found = of_threads(sidecar, name).into_iter().find(|(thread, _)| thread == "watch-0");
        found.is_some()
    });
    found.unwrap().1
}

fn voluntary_switches(status: &str) -> u64 {
    value(status, "voluntary_ctxt_switches").unwrap()
}

/// How often each thread has gone to sleep and was woken again.
pub fn wake_ups(sidecar: &Sidecar) -> Vec<(String, u64)> {
    of_threads(sidecar, "status").into_iter().map(|(name, status)| (name, voluntary_switches(&status))).collect()
}

/// How often the thread that watches the first file has been woken: at least once a look.
#[track_caller]
pub fn looks(sidecar: &Sidecar) -> u64 {
    voluntary_switches(&of_watcher(sidecar, "status"))
}

/// Waits until it has looked again, in full and more than once.
#[track_caller]
pub fn has_looked_again(sidecar: &Sidecar) {
    let before = looks(sidecar);
    eventually("it looks again", || looks(sidecar) >= before + 4);
}

/// How many times the thread that watches the first file has called read(2).
#[track_caller]
pub fn reads(sidecar: &Sidecar) -> u64 {
    value(&of_watcher(sidecar, "io"), "syscr").unwrap()
}

/// The processor time it has used, in ticks: 100 a second.
pub fn ticks(sidecar: &Sidecar) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", sidecar.child.id())).unwrap();
    // After the name in brackets, which may hold anything, comes field 3; utime and stime are 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// The most memory it has ever had, in KiB.
pub fn peak_memory(sidecar: &Sidecar) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", sidecar.child.id())).unwrap();
    value(&status, "VmHWM").unwrap()
}

/// The inodes that it watches through inotify.
pub fn watched_inodes(sidecar: &Sidecar) -> Vec<u64> {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fdinfo", sidecar.child.id())).unwrap();
    let texts = descriptors.filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok());
    let inode = |line: &str| {
        let inode = line.strip_prefix("inotify ")?.split(' ').find_map(|field| field.strip_prefix("ino:"))?;
        Some(u64::from_str_radix(inode, 16).unwrap())
    };
    texts.flat_map(|text| text.lines().filter_map(inode).collect::<Vec<_>>()).collect()
}

/// Runs a command behind another one, which ends in running what it is given, as `setpriv` does.
pub fn behind(wrapper: &[&str], command: &mut Command) {
    let mut wrapped = Command::new(wrapper[0]);
    wrapped.args(&wrapper[1..]).arg(command.get_program()).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        wrapped.current_dir(directory);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    *command = wrapped;
}

/// Takes from a command that is run by root what lets root pass by permissions.
pub fn without_privileges(command: &mut Command) {
    behind(&["setpriv", "--bounding-set", "-dac_override,-dac_read_search"], command);
}
