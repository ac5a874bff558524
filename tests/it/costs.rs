//! What watching costs: an idle sidecar sleeps, and a busy directory does not keep it busy.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::file::never;
use crate::fixture::{Sidecar, eventually};
use crate::kernel::{Thread, looks, ticks, wake_ups_of_threads};

/// The wake-ups of all threads but the one that looks.
fn others(sidecar: &Sidecar) -> u64 {
    wake_ups_of_threads(sidecar).iter().filter(|(name, _)| name != "watch-0").map(|(_, count)| count).sum()
}

#[test]
fn idle_it_wakes_for_its_poll_alone() {
    let sidecar = Sidecar::with(|command| _ = command.args(["--poll", "100ms"]));
    for enabled in [false, true] {
        if enabled {
            fs::write(sidecar.file(), "Updating").unwrap();
        }
        eventually("it has taken that up", || sidecar.state()["enabled"] == enabled);
        // What it was asked just now has to come to its end first. From now on nobody asks.
        eventually("it is idle", || {
            let (before, from) = (others(&sidecar), looks(&sidecar));
            eventually("it looks", || looks(&sidecar) > from + 2);
            others(&sidecar) == before
        });
        let (before, from, used) = (wake_ups_of_threads(&sidecar), looks(&sidecar), ticks(&sidecar));
        let others_before = others(&sidecar);
        eventually("it looks", || looks(&sidecar) >= from + 30);
        let woken = others(&sidecar) - others_before;
        assert!(
            woken <= 1,
            "in 30 polls other threads woke {woken} times: {before:?}, then {:?}",
            wake_ups_of_threads(&sidecar)
        );
        let used = ticks(&sidecar) - used;
        assert!(used <= 30, "{used} ticks for 30 polls");
    }
}

/// Stops the storm, however the test ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn a_busy_neighbour_brings_few_looks() {
    let sidecar = Sidecar::with(never);
    fs::write(sidecar.file(), "Updating").unwrap();
    eventually("it is on", || sidecar.is_on(Some("Updating")));
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let neighbour = sidecar.path().join("database");
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        let storm = scope.spawn(|| {
            while !stop.load(Relaxed) && written.load(Relaxed) < 10_000_000 {
                fs::write(&neighbour, "x").unwrap();
                written.fetch_add(1, Relaxed);
            }
        });
        // Two calls read the file in one look: the text, and its end.
        let watch = Thread::watch(&sidecar);
        let (from, began) = (watch.reads() / 2, Instant::now());
        eventually("the neighbour is written often", || written.load(Relaxed) >= 20_000);
        let (looks, took) = (watch.reads() / 2 - from, began.elapsed());
        let most = 10 + 2 * took.as_millis() / Duration::from_millis(20).as_millis();
        let written = written.load(Relaxed);
        assert!(looks > 0, "a neighbour may be what a symlink leads to");
        assert!(u128::from(looks) <= most, "{looks} looks in {took:?} at {written} changes");

        fs::remove_file(sidecar.file()).unwrap();
        eventually("it is off", || sidecar.is_off());
        fs::write(sidecar.file(), "Updating again").unwrap();
        eventually("it is on", || sidecar.is_on(Some("Updating again")));
        assert!(!storm.is_finished(), "all that meanwhile");
    });
}
