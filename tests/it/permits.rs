//! Permits: `maintenance-mode --wait` returns when everybody has given way.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use tempfile::{TempDir, tempdir};

use crate::filesystem::Volume;
use crate::fixture::{Printed, Sidecar, behind, eventually};
use crate::running::{Running, done, failed, mounted, pitstop_in, run_in, user};

/// Says that it has started, and ends when its standard input does.
const JOB: [&str; 4] = ["sh", "-c", "echo started; read line; :", "nightly-report"];
/// The job in a list of processes.
const JOB_LINE: &str = "sh -c echo started; read line; : nightly-report";

pub fn started(job: Running) -> Running {
    eventually("the job starts", || job.stdout().starts_with("started"));
    job
}

fn start_job(directory: &Path) -> Running {
    started(Running::start(pitstop_in(directory, &[&["run", "--"], &JOB[..]].concat())))
}

pub fn start(directory: &Path, arguments: &[&str]) -> Running {
    Running::start(pitstop_in(directory, arguments))
}

pub fn enabled() -> Printed {
    done("Maintenance mode is enabled: Updating\n")
}

/// `maintenance-mode Updating --wait` in this directory.
pub fn wait_in(directory: &Path) -> Running {
    start(directory, &["maintenance-mode", "Updating", "--wait"])
}

/// Shows that `--wait` in this directory waits for this sidecar to look.
#[track_caller]
fn assert_waited_for(sidecar: &Sidecar, directory: &Path) {
    sidecar.signal("STOP");
    let mut wait = wait_in(directory);
    eventually("the file is there", || directory.join("MAINTENANCE").exists());
    wait.keeps_asking();
    sidecar.signal("CONT");
    assert_eq!(wait.ended(), enabled());
    assert!(sidecar.is_on(Some("Updating")));
}

#[test]
fn wait_returns_when_all_sidecars_are_closed_and_all_jobs_have_ended() {
    let one = Sidecar::start();
    let two = Sidecar::sharing(one.directory(), |_| {});
    let mut jobs = [start_job(one.path()), start_job(one.path()), start_job(one.path())];

    let mut wait = wait_in(one.path());
    eventually("both sidecars are closed", || one.is_on(Some("Updating")) && two.is_on(Some("Updating")));
    for job in &mut jobs {
        wait.keeps_asking();
        job.runs();
        assert_eq!(job.ended().code, Some(0));
    }
    assert_eq!(wait.ended(), enabled());
}

#[test]
fn wait_waits_for_a_sidecar_that_has_not_looked() {
    let sidecar = Sidecar::start();
    assert_waited_for(&sidecar, sidecar.path());
}

#[test]
fn past_its_limit_wait_names_who_is_busy_and_maintenance_stays_on() {
    let directory = tempdir().unwrap();
    let mut job = start_job(directory.path());
    let printed = run_in(directory.path(), &["maintenance-mode", "Updating", "--wait=200ms"]);
    let busy = format!("pitstop: still busy after 200ms: {} {JOB_LINE}; maintenance mode stays on\n", job.pid());
    assert_eq!(printed, Printed { code: Some(1), stderr: busy, ..enabled() });
    assert_eq!(std::fs::read_to_string(directory.path().join("MAINTENANCE")).unwrap(), "Updating");
    job.runs();
}

#[test]
fn the_command_line_of_who_is_busy_cannot_break_the_line() {
    let directory = tempdir().unwrap();
    let name = "two\nlines \u{1b}[31m\u{202e}";
    let _job = started(start(directory.path(), &["run", "--", "sh", "-c", "echo started; read line; :", name]));
    let printed = run_in(directory.path(), &["maintenance-mode", "Updating", "--wait=0"]);
    assert!(printed.stderr.ends_with(": two lines [31m; maintenance mode stays on\n"), "{}", printed.stderr);
}

#[test]
fn a_job_that_is_killed_is_waited_for_no_longer() {
    let directory = tempdir().unwrap();
    let mut job = start_job(directory.path());
    let mut wait = wait_in(directory.path());
    wait.keeps_asking();
    job.signal("KILL");
    assert_eq!(wait.ended(), enabled());
    assert_eq!(job.status().signal(), Some(9));
}

#[test]
fn wait_gives_up_when_somebody_turns_maintenance_mode_off() {
    let directory = tempdir().unwrap();
    let mut job = start_job(directory.path());
    let mut wait = wait_in(directory.path());
    wait.keeps_asking();
    assert_eq!(run_in(directory.path(), &["maintenance-mode", "--disable"]).code, Some(0));
    let printed = wait.ended();
    assert_eq!(printed.stderr, "pitstop: somebody has turned maintenance mode off meanwhile\n");
    assert_eq!(printed.code, Some(1));
    job.runs();
    assert_eq!(job.ended().code, Some(0));
}

#[test]
fn wait_tells_of_a_reason_that_somebody_else_has_changed() {
    let directory = tempdir().unwrap();
    let mut job = start_job(directory.path());
    let mut wait = wait_in(directory.path());
    wait.keeps_asking();
    assert_eq!(run_in(directory.path(), &["maintenance-mode", "Something else"]).code, Some(0));
    wait.keeps_asking();
    assert_eq!(job.ended().code, Some(0));
    let printed = wait.ended();
    assert_eq!(printed.code, Some(0));
    assert!(
        printed.stderr.ends_with(" WARN somebody has changed the reason meanwhile: Something else\n"),
        "{}",
        printed.stderr
    );
}

#[test]
fn ctrl_c_ends_the_wait_and_says_that_maintenance_stays_on() {
    let directory = tempdir().unwrap();
    let mut job = start_job(directory.path());
    for (signal, said) in [("INT", "interrupted"), ("TERM", "terminated")] {
        let mut wait = wait_in(directory.path());
        wait.keeps_asking();
        wait.signal(signal);
        let printed = wait.ended();
        let stays = "maintenance mode stays on; `pitstop maintenance-mode --disable` turns it off";
        assert_eq!((printed.code, printed.stderr), (Some(1), format!("pitstop: {said}: {stays}\n")));
    }
    job.runs();
    assert_eq!(job.ended().code, Some(0));
}

#[test]
fn wait_without_a_reason_waits_for_the_file_that_is_there() {
    let (pod, fleet) = (tempdir().unwrap(), tempdir().unwrap());
    let files = |command: &'static [&'static str]| {
        let mut all = pitstop_in(pod.path(), command);
        all.env("PITSTOP_FILE", format!("MAINTENANCE:{}/MAINTENANCE", fleet.path().display()));
        Running::start(all)
    };
    let mut job = started(files(&["run", "--", "sh", "-c", "echo started; read line; :"]));
    std::fs::write(fleet.path().join("MAINTENANCE"), "Fleet").unwrap();
    let mut wait = files(&["maintenance-mode", "--wait"]);
    wait.keeps_asking();
    assert_eq!(job.ended().code, Some(0));
    assert_eq!(wait.ended(), done("Maintenance mode is enabled: Fleet\n"));
}

#[test]
fn users_share_the_lock_whoever_has_created_it() {
    for (worker, waiter) in [(0, 65534), (65534, 0), (65534, 65533), (0, 0)] {
        let directory = tempdir().unwrap();
        let path = directory.path();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
        let run = [&["run", "--"], &JOB[..]].concat();
        let mut job = started(Running::start(user(path, worker, "077", &run)));

        let wait = Running::start(user(path, waiter, "077", &["maintenance-mode", "Updating", "--wait=0"])).ended();
        assert_eq!(wait.code, Some(1), "{worker} {waiter}");
        assert!(wait.stderr.contains(&format!(" {} {JOB_LINE};", job.pid())), "{worker} {waiter}: {}", wait.stderr);
        assert_eq!(job.ended().code, Some(0));

        let wait = Running::start(user(path, waiter, "077", &["maintenance-mode", "Updating", "--wait"])).ended();
        assert_eq!(wait, enabled(), "{worker} {waiter}");
        let skipped = Running::start(user(path, worker, "077", &run)).ended();
        assert_eq!(skipped.stdout, "", "{worker} {waiter}");
    }
}

const READ_ONLY_ERROR: &str = "pitstop: m is read-only: is it a ConfigMap? Change it with kubectl\n";

/// Runs a command on the file in `m`, for which `m` is read-only.
fn read_only(directory: &Path, arguments: &[&str]) -> Printed {
    let mounts = "mount --bind m m; mount -o remount,bind,ro m";
    mounted(directory, mounts, &[&["--file", "m/MAINTENANCE"], arguments].concat())
}

fn with_subdirectory() -> TempDir {
    let directory = tempdir().unwrap();
    std::fs::create_dir(directory.path().join("m")).unwrap();
    directory
}

#[test]
fn a_read_only_directory_has_no_lock() {
    let directory = with_subdirectory();
    let command = |arguments: &[&str]| {
        let printed = read_only(directory.path(), arguments);
        (printed.code, printed.stdout, printed.stderr)
    };
    let (code, stdout, stderr) = command(&["run", "echo", "done"]);
    assert_eq!((code, stdout.as_str()), (Some(0), "done\n"));
    assert!(stderr.contains("WARN cannot lock m/.MAINTENANCE.lock: Read-only file system"), "{stderr}");
    assert!(stderr.ends_with("`maintenance-mode --wait` will not wait for this job\n"), "{stderr}");
    assert_eq!(command(&["maintenance-mode", "Updating"]), (Some(1), String::new(), READ_ONLY_ERROR.to_owned()));
    let disabled = "Maintenance mode is disabled\n".to_owned();
    assert_eq!(command(&["maintenance-mode", "--disable"]), (Some(0), disabled, String::new()), "it is off already");

    std::fs::write(directory.path().join("m/MAINTENANCE"), "").unwrap();
    let unknown = "pitstop: cannot tell whether all work has ended: cannot lock m/.MAINTENANCE.lock: \
                   Read-only file system (os error 30)\n";
    let on = "Maintenance mode is enabled\n".to_owned();
    assert_eq!(command(&["maintenance-mode", "--wait"]), (Some(1), on, unknown.to_owned()));
    assert_eq!(command(&["maintenance-mode", "--disable"]), (Some(1), String::new(), READ_ONLY_ERROR.to_owned()));
}

#[test]
fn a_read_only_switch_beside_ones_own_is_no_reason_to_warn() {
    let log = |files: [&str; 2]| {
        let directory = Arc::new(with_subdirectory());
        let mounts = "mount --bind m m; mount -o remount,bind,ro m; exec \"$@\"";
        let sidecar = Sidecar::sharing(directory, |command| {
            command.args(files.map(|file| format!("--file={file}")));
            behind(&["unshare", "--mount", "sh", "-c", mounts, "sh"], command);
        });
        sidecar.log()
    };
    let warning = "WARN cannot lock m/.MAINTENANCE.lock: Read-only file system";
    assert!(!log(["MAINTENANCE", "m/MAINTENANCE"]).contains("WARN"));
    let first = log(["m/MAINTENANCE", "MAINTENANCE"]);
    assert!(first.contains(warning), "{first}");
}

#[test]
fn a_read_only_directory_has_a_lock_if_somebody_else_has_created_it() {
    let directory = with_subdirectory();
    File::create(directory.path().join("m/.MAINTENANCE.lock")).unwrap();
    let command = |arguments: &[&str]| read_only(directory.path(), arguments);
    assert_eq!(command(&["run", "echo", "done"]), done("done\n"));

    let mut job = start_job(&directory.path().join("m"));
    std::fs::write(directory.path().join("m/MAINTENANCE"), "Updating").unwrap();
    let busy = command(&["maintenance-mode", "--wait=0"]);
    assert!(busy.stderr.contains(JOB_LINE), "{}", busy.stderr);
    assert_eq!(job.ended().code, Some(0));
    assert_eq!(command(&["maintenance-mode", "--wait"]), enabled());
}

#[test]
fn a_file_system_may_refuse_locks() {
    let volume = Volume::without_locks();
    let printed = run_in(volume.path(), &["run", "echo", "done"]);
    assert_eq!((printed.code, printed.stdout.as_str()), (Some(0), "done\n"));
    assert!(printed.stderr.contains("WARN cannot lock ./.MAINTENANCE.lock: No locks available"), "{}", printed.stderr);

    volume.set(Some(""));
    let printed = run_in(volume.path(), &["maintenance-mode", "--wait"]);
    let unknown = "pitstop: cannot tell whether all work has ended: cannot lock ./.MAINTENANCE.lock: \
                   No locks available (os error 37)\n";
    let expected =
        Printed { code: Some(1), stdout: "Maintenance mode is enabled\n".to_owned(), stderr: unknown.to_owned() };
    assert_eq!(printed, expected);
}

#[test]
fn a_file_that_is_mounted_by_itself_cannot_be_changed() {
    let directory = with_subdirectory();
    for name in ["m/MAINTENANCE", "elsewhere"] {
        std::fs::write(directory.path().join(name), "Mounted").unwrap();
    }
    let stderr = "pitstop: m/MAINTENANCE is mounted by itself, so it cannot be replaced: mount its directory instead\n";
    for arguments in [&["maintenance-mode", "Updating"][..], &["maintenance-mode", "--disable"]] {
        let arguments = [&["--file", "m/MAINTENANCE"], arguments].concat();
        let printed = mounted(directory.path(), "mount --bind elsewhere m/MAINTENANCE", &arguments);
        assert_eq!(printed, failed(1, stderr));
    }
    assert_eq!(std::fs::read_dir(directory.path().join("m")).unwrap().count(), 1, "nothing is left over");
}

#[test]
fn a_sidecar_takes_a_new_permit_when_the_lock_file_is_removed_or_the_directory_replaced() {
    type Change = fn(&Path);
    let changes: [Change; 3] = [
        |directory| std::fs::remove_file(directory.join(".MAINTENANCE.lock")).unwrap(),
        |directory| std::fs::rename(directory.join(".MAINTENANCE.lock"), directory.join("aside")).unwrap(),
        |directory| {
            std::fs::rename(directory, directory.with_extension("aside")).unwrap();
            std::fs::create_dir(directory).unwrap();
        },
    ];
    for change in changes {
        let directory = Arc::new(with_subdirectory());
        let path = directory.path().join("m");
        let sidecar = Sidecar::sharing(directory.clone(), |command| {
            command.args(["--file", "m/MAINTENANCE"]);
        });
        change(&path);
        // An exclusive lock on the new file is refused while the sidecar has its permit.
        eventually("the sidecar has a permit on the new lock file", || {
            let Ok(lock) = File::open(path.join(".MAINTENANCE.lock")) else { return false };
            let refused = flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err();
            // Closing would not do: a process that another test is about to start may have inherited it.
            flock(&lock, FlockOperation::Unlock).unwrap();
            refused
        });
        assert_waited_for(&sidecar, &path);
    }
}

#[test]
fn disable_with_wait_returns_when_the_local_sidecar_is_open() {
    let sidecar = Sidecar::start();
    assert_eq!(sidecar.run(&["maintenance-mode", "Updating", "--wait"]), enabled());
    let disabled = || done("Maintenance mode is disabled\n");

    sidecar.signal("STOP");
    let admin = sidecar.admin.to_string();
    let mut wait = start(sidecar.path(), &["maintenance-mode", "--disable", "--wait", "--admin-listen", &admin]);
    eventually("the file is gone", || !sidecar.file().exists());
    wait.runs();
    sidecar.signal("CONT");
    assert_eq!(wait.ended(), disabled());
    assert!(sidecar.is_off());
    assert_eq!(sidecar.run(&["maintenance-mode", "--wait"]), disabled());
}

#[test]
fn disable_with_wait_says_so_if_the_local_sidecar_stays_closed() {
    let fleet = tempdir().unwrap();
    let file = fleet.path().join("MAINTENANCE");
    std::fs::write(&file, "Fleet").unwrap();
    let sidecar = Sidecar::with(|command| {
        command.arg("--file=MAINTENANCE").arg("--file").arg(&file);
    });
    let admin = sidecar.admin;
    let printed = sidecar.run(&["maintenance-mode", "--disable", "--wait=100ms"]);
    let stderr = format!("pitstop: the sidecar is still closed after 100ms: see /readyz?verbose at {admin}\n");
    assert_eq!((printed.code, printed.stderr), (Some(1), stderr));

    let directory = sidecar.directory();
    drop(sidecar);
    let none = ["maintenance-mode", "--disable", "--wait", "--admin-listen", &admin.to_string()];
    let printed = run_in(directory.path(), &none);
    let stderr = format!(
        "pitstop: no sidecar answers at {admin} (Connection refused (os error 111)): does `pitstop serve` run, \
         with this --admin-listen?\n"
    );
    assert_eq!((printed.code, printed.stderr), (Some(1), stderr));
}
