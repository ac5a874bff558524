//! `pitstop run`: a job that does not start during maintenance, and holds a permit while it lives.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use tempfile::tempdir;

use crate::fixture::{Printed, eventually, signal};
use crate::permits::{enabled, start, started, wait_in};
use crate::running::{Running, pitstop_in, run_in};

#[test]
fn a_job_does_not_start_during_maintenance() {
    let directory = tempdir().unwrap();
    std::fs::write(directory.path().join("MAINTENANCE"), "Updating\nthe \u{202e}instance\u{7}").unwrap();
    let skipped = "Maintenance mode is enabled: Updating the instance; skipping touch\n";
    for (arguments, code) in [
        (&["run", "--", "touch", "done"][..], 0),
        (&["run", "--skip-code", "75", "--", "touch", "done"], 75),
        (&["run", "--terminate", "--", "touch", "done"], 0),
        (&["run", "--terminate", "--skip-code", "255", "touch", "done"], 255),
    ] {
        let expected = Printed { code: Some(code), stdout: String::new(), stderr: skipped.to_owned() };
        assert_eq!(run_in(directory.path(), arguments), expected, "{arguments:?}");
    }
    assert!(!directory.path().join("done").exists());
}

#[test]
fn a_job_waits_for_an_exclusive_lock() {
    let directory = tempdir().unwrap();
    let lock = File::create(directory.path().join(".MAINTENANCE.lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let mut job = start(directory.path(), &["run", "echo", "done"]);
    job.keeps_asking();
    flock(&lock, FlockOperation::Unlock).unwrap();
    assert_eq!(job.ended(), Printed { code: Some(0), stdout: "done\n".to_owned(), stderr: String::new() });

    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let mut job = start(directory.path(), &["run", "echo", "done"]);
    job.keeps_asking();
    std::fs::write(directory.path().join("MAINTENANCE"), "").unwrap();
    flock(&lock, FlockOperation::Unlock).unwrap();
    assert_eq!(job.ended().stderr, "Maintenance mode is enabled; skipping echo\n", "it looks again");
}

#[test]
fn pitstop_becomes_the_job() {
    let directory = tempdir().unwrap();
    let mut job = start(directory.path(), &["run", "sh", "-c", "echo $$; echo >&2 to stderr; exit 7"]);
    let expected = Printed { code: Some(7), stdout: format!("{}\n", job.pid()), stderr: "to stderr\n".to_owned() };
    assert_eq!(job.ended(), expected);

    for (name, number) in [("TERM", 15), ("KILL", 9), ("PIPE", 13), ("HUP", 1)] {
        let script = format!("kill -s {name} $$");
        let mut job = start(directory.path(), &["run", "--", "sh", "-c", &script]);
        assert_eq!(job.status().signal(), Some(number), "{name}");
    }
}

#[test]
fn the_streams_are_the_jobs_own() {
    let directory = tempdir().unwrap();
    std::fs::write(directory.path().join("input"), "from stdin").unwrap();
    for flags in [&["run"][..], &["run", "--terminate"]] {
        let mut command = pitstop_in(directory.path(), &[flags, &["--", "cat"]].concat());
        let input = File::open(directory.path().join("input")).unwrap();
        assert_eq!(command.stdin(input).output().unwrap().stdout, b"from stdin", "{flags:?}");
    }
}

#[test]
fn a_job_that_cannot_be_started() {
    let directory = tempdir().unwrap();
    std::fs::write(directory.path().join("text"), "not a program").unwrap();
    for (job, code, error) in [
        ("./missing", 127, "No such file or directory (os error 2)"),
        ("no-such-program", 127, "No such file or directory (os error 2)"),
        ("./text", 126, "Permission denied (os error 13)"),
        (".", 126, "Permission denied (os error 13)"),
    ] {
        for flags in [&["run"][..], &["run", "--terminate"]] {
            let expected = Printed {
                code: Some(code),
                stdout: String::new(),
                stderr: format!("pitstop: cannot start {job}: {error}\n"),
            };
            assert_eq!(run_in(directory.path(), &[flags, &["--", job]].concat()), expected);
        }
    }
}

/// A job under `run --terminate` that prints each signal it gets, and ends with the number of that if it is told to. It
/// does not outlive its directory.
fn start_supervised(directory: &Path, ends: bool) -> Running {
    let mut script = String::new();
    for (name, number) in [("HUP", 1), ("INT", 2), ("QUIT", 3), ("USR1", 10), ("USR2", 12), ("TERM", 15)] {
        let end = if ends { format!("; exit {number}") } else { String::new() };
        script.push_str(&format!("trap 'echo {name}{end}' {name}; "));
    }
    script.push_str("echo started $$; while [ -d \"$PWD\" ]; do sleep 0.01; done");
    started(start(directory, &["run", "--terminate", "--", "sh", "-c", &script, "long-import"]))
}

fn job_pid(supervised: &Running) -> u32 {
    supervised.stdout().lines().next().unwrap().strip_prefix("started ").unwrap().parse().unwrap()
}

#[test]
fn a_supervised_job_gets_sigterm_when_maintenance_begins() {
    let directory = tempdir().unwrap();
    let mut job = start_supervised(directory.path(), true);
    assert_ne!(job_pid(&job), job.pid());
    assert_eq!(wait_in(directory.path()).ended(), enabled());
    let printed = job.ended();
    assert_eq!(printed.code, Some(15), "its own exit code");
    assert!(printed.stdout.ends_with("\nTERM\n"), "{}", printed.stdout);
    assert!(printed.stderr.contains(" INFO maintenance mode is on: the job is sent SIGTERM\n"), "{}", printed.stderr);
}

#[test]
fn a_supervised_job_may_take_its_time() {
    let directory = tempdir().unwrap();
    let mut job = start_supervised(directory.path(), false);
    let mut wait = wait_in(directory.path());
    eventually("the job gets SIGTERM", || job.stdout().ends_with("\nTERM\n"));
    wait.keeps_asking();
    signal(job_pid(&job), "KILL");
    assert_eq!(wait.ended(), enabled());
    assert_eq!(job.ended().code, Some(128 + 9));
}

#[test]
fn signals_are_forwarded_to_a_supervised_job() {
    let directory = tempdir().unwrap();
    let mut job = start_supervised(directory.path(), false);
    let mut expected = job.stdout();
    for name in ["HUP", "INT", "QUIT", "USR1", "USR2", "TERM"] {
        job.signal(name);
        expected.push_str(&format!("{name}\n"));
        eventually(name, || job.stdout() == expected);
        job.runs();
    }
    signal(job_pid(&job), "KILL");
    assert_eq!(job.ended().code, Some(128 + 9));
}

#[test]
fn a_supervised_job_that_ends_gives_its_exit_code() {
    let directory = tempdir().unwrap();
    for (script, code) in [("exit 0", 0), ("exit 3", 3), ("kill -s KILL $$", 128 + 9)] {
        let printed = run_in(directory.path(), &["run", "--terminate", "--", "sh", "-c", script]);
        assert_eq!(printed.code, Some(code), "{script}");
    }
}

#[test]
fn a_job_whose_supervisor_is_killed_still_holds_its_permit() {
    let directory = tempdir().unwrap();
    let mut supervisor = start_supervised(directory.path(), false);
    let job = job_pid(&supervisor);
    supervisor.signal("KILL");
    assert_eq!(supervisor.status().signal(), Some(9));

    let printed = run_in(directory.path(), &["maintenance-mode", "Updating", "--wait=0"]);
    assert_eq!(printed.code, Some(1));
    // Besides the job there may be its sleep, but nobody who is dead.
    let holders = printed.stderr.strip_prefix("pitstop: still busy after 0ns: ").unwrap();
    let holds = |pid: u32| holders.split(", ").any(|holder| holder.starts_with(&format!("{pid} ")));
    assert!(holds(job) && !holds(supervisor.pid()), "{holders}");

    let mut wait = wait_in(directory.path());
    wait.keeps_asking();
    signal(job, "KILL");
    assert_eq!(wait.ended(), enabled());
}
