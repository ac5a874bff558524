//! What the kernel tells of this process, under the names that Prometheus's client libraries give it.
//!
//! Not by the `process` feature of the prometheus crate: it brings procfs, and an older rustix beside ours, which make
//! the program 48 kB larger.

use std::fs;

use prometheus::{Counter, IntGauge, Registry};
use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use super::registration::added;

/// The metrics `process_*`.
#[derive(Debug)]
pub(super) struct Process {
    cpu: Counter,
    open_files: IntGauge,
    max_files: IntGauge,
    resident: IntGauge,
    start: IntGauge,
    threads: IntGauge,
    virtual_size: IntGauge,
}

/// `/proc/self/stat`, as far as it is of use (proc_pid_stat(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// In clock ticks, in user and in kernel mode.
    cpu: u64,
    threads: i64,
    /// In clock ticks after the boot.
    start: u64,
    /// In bytes.
    virtual_size: i64,
    /// In pages.
    resident: i64,
}

impl Process {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name, help| IntGauge::new(name, help).and_then(|gauge| added(registry, gauge));
        let cpu = Counter::new("process_cpu_seconds_total", "Processor time, user and system, in seconds.")?;
        Ok(Self {
            cpu: added(registry, cpu)?,
            open_files: gauge("process_open_fds", "Open file descriptors.")?,
            max_files: gauge("process_max_fds", "How many file descriptors may be open.")?,
            resident: gauge("process_resident_memory_bytes", "Resident memory, in bytes.")?,
            start: gauge("process_start_time_seconds", "When the process began, in seconds since the epoch.")?,
            threads: gauge("process_threads", "Threads.")?,
            virtual_size: gauge("process_virtual_memory_bytes", "Virtual memory, in bytes.")?,
        })
    }

    /// Asks the kernel. What it does not tell stays as it was.
    pub(super) fn update(&self) {
        let limit = getrlimit(Resource::Nofile).current.and_then(|limit| i64::try_from(limit).ok());
        self.max_files.set(limit.unwrap_or(i64::MAX));
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            // Less the one that reads them.
            self.open_files.set(i64::try_from(files.count()).unwrap_or(i64::MAX) - 1);
        }
        let Some(stat) = fs::read_to_string("/proc/self/stat").ok().and_then(|text| Stat::parse(&text)) else { return };
        let ticks = clock_ticks_per_second();
        #[expect(clippy::cast_precision_loss, reason = "exact up to ten million years of ticks")]
        let cpu = stat.cpu as f64 / ticks as f64;
        self.cpu.inc_by((cpu - self.cpu.get()).max(0.0));
        self.threads.set(stat.threads);
        self.virtual_size.set(stat.virtual_size);
        self.resident.set(stat.resident * i64::try_from(page_size()).unwrap_or_default());
        if let Some(boot) = fs::read_to_string("/proc/stat").ok().and_then(|text| boot_time(&text)) {
            self.start.set(i64::try_from(boot + stat.start / ticks).unwrap_or_default());
        }
    }
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // Field 2, the name in parentheses, may hold anything; field 3 follows the last of those.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3);
        Some(Self {
            cpu: field(14)?.parse::<u64>().ok()? + field(15)?.parse::<u64>().ok()?,
            threads: field(20)?.parse().ok()?,
            start: field(22)?.parse().ok()?,
            virtual_size: field(23)?.parse().ok()?,
            resident: field(24)?.parse().ok()?,
        })
    }
}

/// When the system was booted, in seconds since the epoch.
fn boot_time(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 12 34 0 0 20 0 4 0 5678 3014656 752 1 2 3 0 0\n";
        let stat = Stat { cpu: 46, threads: 4, start: 5678, virtual_size: 3_014_656, resident: 752 };
        assert_eq!(Stat::parse(text), Some(stat));
        assert_eq!(Stat::parse("7 (a) S 1"), None);
        assert_eq!(boot_time("cpu 1 2\nbtime 1795366000\nprocesses 7\n"), Some(1_795_366_000));
    }
}
