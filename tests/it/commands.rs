//! What all commands have in common, and those that are small: `wait`, `probe`, `install`, `completions`.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::tempdir;

use crate::fixture::{Printed, Sidecar, behind, eventually, pitstop, pitstop_at, program};
use crate::running::{Place, Running, done, failed, pitstop_in, run_in};

const ALL: [&str; 7] = ["serve", "maintenance-mode", "run", "wait", "probe", "install", "completions"];

#[test]
fn wrong_usage_is_exit_code_2() {
    let place = Place::new();
    let both = "pitstop: Cannot enable and disable maintenance mode at the same time\n";
    assert_eq!(place.maintenance_mode(&["Updating", "--disable"]), failed(2, both));
    assert_eq!(place.maintenance_mode(&["--disable", ""]), failed(2, both));
    let past = "pitstop: --until 2001-01-01T00:00:00Z is in the past\n";
    assert_eq!(place.maintenance_mode(&["Updating", "--until", "2001-01-01T00:00:00Z"]), failed(2, past));
    let long = "pitstop: invalid value '9999999999999' for '--for <TIME>': it must be at most 100 years (see --help)\n";
    assert_eq!(place.maintenance_mode(&["x", "--for", "9999999999999"]), failed(2, long));

    for arguments in [
        &[][..],
        &["no-such-command"],
        &["run"],
        &["install"],
        &["completions"],
        &["completions", "no-such-shell"],
        &["probe", "healthz"],
        &["wait", "--until-disabled", "--until-enabled"],
        &["wait", "--timeout", "soon"],
        &["run", "--skip-code", "256", "true"],
        &["maintenance-mode", "one", "two"],
        &["maintenance-mode", "--disable", "--for", "1h"],
        &["maintenance-mode", "--disable", "--until", "2999-01-01T00:00:00Z"],
        &["maintenance-mode", "x", "--for", "1h", "--until", "2999-01-01T00:00:00Z"],
        &["maintenance-mode", "x", "--for", "0"],
        &["maintenance-mode", "x", "--until", "tomorrow"],
        &["maintenance-mode", "x", "--file", ""],
        &["maintenance-mode", "--wait=soon"],
        &["maintenance-mode", "--output", "yaml"],
        &["maintenance-mode", "--log", "loud=silent"],
    ] {
        let printed = place.run(arguments);
        assert_eq!((printed.code, printed.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert_ne!(printed.stderr, "", "{arguments:?}");
    }
    for command in ALL {
        let printed = place.run(&[command, "--no-such-flag"]);
        assert_eq!((printed.code, printed.stdout.as_str()), (Some(2), ""), "{command}");
        assert!(printed.stderr.contains("--no-such-flag"), "{}", printed.stderr);
    }
    assert_eq!(place.names(), [""; 0], "nothing was changed");
}

#[test]
fn every_command_has_help_with_examples() {
    let place = Place::new();
    let help = place.run(&["--help"]);
    assert_eq!(help.code, Some(0));
    for command in ALL {
        assert!(help.stdout.contains(&format!("\n  {command} ")), "{command} is not in the list");
        for arguments in [[command, "--help"], ["help", command]] {
            let printed = place.run(&arguments);
            assert_eq!((printed.code, printed.stderr.as_str()), (Some(0), ""), "{arguments:?}");
            assert!(printed.stdout.contains("\nExample"), "{arguments:?}");
            assert!(printed.stdout.contains(&format!("pitstop {command}")), "{arguments:?}");
        }
    }
    assert!(help.stdout.contains("\nExamples:"));
    assert_eq!(place.run(&["--version"]), done(concat!("pitstop ", env!("CARGO_PKG_VERSION"), "\n")));
}

#[test]
fn settings_have_environment_variables() {
    let place = Place::new();
    let run = |settings: &[(&str, &str)], arguments: &[&str]| {
        Printed::from(pitstop_in(place.path(), arguments).envs(settings.iter().copied()).output().unwrap())
    };
    let files = [("PITSTOP_FILE", "pod:fleet")];
    assert_eq!(run(&files, &["maintenance-mode", "Pod"]), done("Maintenance mode is enabled: Pod\n"));
    assert_eq!(place.names(), ["pod"], "the first is written");
    place.write("fleet", "Fleet");
    assert_eq!(run(&files, &["maintenance-mode", "--disable"]).code, Some(1));
    assert_eq!(run(&files, &["wait", "--timeout", "0"]).code, Some(1));
    let flag = run(&files, &["maintenance-mode", "--file", "other"]);
    assert_eq!(flag, done("Maintenance mode is disabled\n"), "a flag takes precedence");

    // No lock can be had, which is logged.
    let lockless = |settings: &[(&str, &str)]| {
        let arguments = ["run", "--file", "missing/MAINTENANCE", "true"];
        let printed = run(settings, &arguments);
        assert_eq!(printed.code, Some(0));
        printed.stderr
    };
    assert!(lockless(&[]).contains(" WARN cannot lock"));
    assert_eq!(lockless(&[("PITSTOP_LOG", "off")]), "");
    let line = lockless(&[("PITSTOP_LOG_FORMAT", "json")]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["level"], "WARN");

    let sidecar = Sidecar::start();
    let address = sidecar.admin.to_string();
    assert_eq!(run(&[("PITSTOP_ADMIN_LISTEN", &address)], &["probe"]), done("ok\n"));
    assert_eq!(run(&[("PITSTOP_ADMIN_LISTEN", "nowhere")], &["probe"]).code, Some(2));
}

/// `pitstop wait` in this place, once it watches. What it sees meanwhile it logs on stderr.
fn waiting(place: &Place, arguments: &[&str]) -> Running {
    let mut wait = Running::start(pitstop_in(place.path(), &[&["wait"], arguments].concat()));
    watches(&mut wait);
    wait
}

fn assert_done(mut wait: Running) {
    let printed = wait.ended();
    assert_eq!((printed.code, printed.stdout.as_str()), (Some(0), ""), "{}", printed.stderr);
}

#[test]
fn wait_until_disabled() {
    let place = Place::new();
    for arguments in [&[][..], &["--until-disabled"], &["--timeout", "1h"]] {
        assert_eq!(place.run(&[&["wait"], arguments].concat()), done(""), "it is off: {arguments:?}");
        place.write("MAINTENANCE", "");
        let mut wait = waiting(&place, arguments);
        place.write("MAINTENANCE", "Still on");
        place.write("something else", "");
        eventually("it hears of the change", || wait.stderr().contains("Still on"));
        wait.runs();
        fs::remove_file(place.path().join("MAINTENANCE")).unwrap();
        assert_done(wait);
    }
}

#[test]
fn wait_for_one_of_several_files() {
    let place = Place::new();
    let files = ["--file", "later/MAINTENANCE", "--file", "MAINTENANCE"];
    let wait = waiting(&place, &[&["--until-enabled"], &files[..]].concat());
    fs::create_dir(place.path().join("later")).unwrap();
    place.write("later/MAINTENANCE", "In a directory that was not there");
    assert_done(wait);

    fs::remove_file(place.path().join("later/MAINTENANCE")).unwrap();
    place.write("MAINTENANCE", "Second");
    let mut wait = waiting(&place, &files);
    let hears = |wait: &Running, what: &str, times| {
        eventually(what, || wait.stderr().matches(&format!("reason=\"{what}\"")).count() == times);
    };
    hears(&wait, "Second", 1);
    place.maintenance_mode(&["First", "--file", "later/MAINTENANCE"]);
    hears(&wait, "First", 1);
    fs::remove_file(place.path().join("later/MAINTENANCE")).unwrap();
    hears(&wait, "Second", 2);
    wait.runs();
    fs::remove_file(place.path().join("MAINTENANCE")).unwrap();
    assert_done(wait);
}

#[test]
fn wait_for_no_time_only_asks() {
    let place = Place::new();
    for (file, flag, code) in [
        (false, "--until-disabled", 0),
        (false, "--until-enabled", 1),
        (true, "--until-disabled", 1),
        (true, "--until-enabled", 0),
    ] {
        if file {
            place.write("MAINTENANCE", "");
        }
        assert_eq!(place.run(&["wait", flag, "--timeout", "0"]), failed(code, ""), "{file} {flag}");
    }
}

#[test]
fn wait_has_a_time_limit() {
    let place = Place::new();
    let began = Instant::now();
    let off = "pitstop: maintenance mode is still off after 50ms\n";
    assert_eq!(place.run(&["wait", "--until-enabled", "--timeout", "50ms"]), failed(1, off));
    place.write("MAINTENANCE", "");
    let on = "pitstop: maintenance mode is still on after 50ms\n";
    let printed = place.run(&["wait", "--timeout", "50ms"]);
    assert!(printed.code == Some(1) && printed.stderr.ends_with(on), "{printed:?}");
    assert!(began.elapsed() >= Duration::from_millis(100));
}

#[test]
fn wait_hears_of_a_change_before_it_polls() {
    let mut fastest = Duration::MAX;
    eventually("it takes less than half the time between two polls", || {
        let place = Place::new();
        place.write("MAINTENANCE", "");
        let wait = waiting(&place, &[]);
        // A second after this look it looks again, without a hint.
        eventually("it has looked", || wait.stderr().contains("maintenance mode enabled"));
        let began = Instant::now();
        fs::remove_file(place.path().join("MAINTENANCE")).unwrap();
        assert_done(wait);
        fastest = fastest.min(began.elapsed());
        fastest < Duration::from_millis(500)
    });
}

/// Waits until it has an inotify watch.
fn watches(wait: &mut Running) {
    let files = format!("/proc/{}/fdinfo", wait.pid());
    eventually("it watches", || {
        wait.runs();
        let mut entries = fs::read_dir(&files).unwrap().flatten();
        entries.any(|entry| fs::read_to_string(entry.path()).is_ok_and(|info| info.contains("inotify wd:")))
    });
}

#[test]
fn probe() {
    let sidecar = Sidecar::start();
    for probe in [&["probe"][..], &["probe", "readyz"], &["probe", "livez"]] {
        assert_eq!(sidecar.run(probe), done("ok\n"), "{probe:?}");
    }
    sidecar.run(&["maintenance-mode", "Up\u{1b}[2Jdating\n[+]maintenance ok"]);
    eventually("it is in maintenance", || !sidecar.is_off());
    let stdout = "[+]ping ok\n[+]maintenance-file ok\n[-]maintenance failed: Up[2Jdating [+]maintenance ok\n\
                  [+]shutdown ok\nreadyz check failed\n";
    for probe in [&["probe"][..], &["probe", "readyz"]] {
        assert_eq!(sidecar.run(probe), Printed { code: Some(1), ..done(stdout) }, "{probe:?}");
    }
    assert_eq!(sidecar.run(&["probe", "livez"]), done("ok\n"));

    let (admin, directory) = (sidecar.admin, sidecar.directory());
    drop(sidecar);
    let stderr = format!(
        "pitstop: no sidecar answers at {admin} (Connection refused (os error 111)): does `pitstop serve` run, \
         with this --admin-listen?\n"
    );
    for probe in ["readyz", "livez"] {
        let arguments = ["probe", probe, "--admin-listen", &admin.to_string()];
        assert_eq!(run_in(directory.path(), &arguments), failed(1, &stderr));
    }
}

#[test]
fn probe_finds_a_sidecar_that_listens_at_every_address() {
    for listen in ["[::]:0", "0.0.0.0:0"] {
        let directory = Arc::new(tempdir().unwrap());
        let serve = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", listen];
        let sidecar = Sidecar::spawn(directory.clone(), pitstop_in(directory.path(), &serve));
        assert_eq!(sidecar.run(&["probe"]), done("ok\n"), "{listen}");
    }
}

#[test]
fn install() {
    let place = Place::new();
    let tools = place.path().join("tools");
    fs::create_dir(&tools).unwrap();
    let script = "umask 077; exec \"$@\"";
    let mut command = pitstop_in(place.path(), &["install", "tools"]);
    behind(&["sh", "-c", script, "sh"], &mut command);
    assert_eq!(Printed::from(command.output().unwrap()), done("installed tools/pitstop\n"));
    let copy = tools.join("pitstop");
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o7777, 0o755);

    // A copy that runs is replaced, by itself or by another, and goes on.
    place.write("MAINTENANCE", "");
    let mut command = pitstop_at(&copy);
    command.arg("wait").current_dir(place.path());
    let mut wait = Running::start(command);
    watches(&mut wait);
    for program in [pitstop().get_program().to_owned(), copy.clone().into()] {
        let printed = Command::new(program).args(["install", "tools"]).current_dir(place.path()).output().unwrap();
        assert_eq!(Printed::from(printed), done("installed tools/pitstop\n"));
    }
    wait.runs();
    fs::remove_file(place.path().join("MAINTENANCE")).unwrap();
    assert_done(wait);
    assert!(fs::read(&copy).unwrap() == fs::read(pitstop().get_program()).unwrap(), "a copy is the same program");
    assert_eq!(fs::read_dir(&tools).unwrap().count(), 1, "no temporary file is left");

    let printed = place.run(&["install", "missing"]);
    assert_eq!(printed.code, Some(1));
    let expected = "pitstop: cannot install to missing/pitstop: No such file or directory (os error 2)";
    assert!(printed.stderr.starts_with(expected) && printed.stderr.lines().count() == 1, "{}", printed.stderr);
}

#[test]
fn completions() {
    let place = Place::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let printed = place.run(&["completions", shell]);
        assert_eq!((printed.code, printed.stderr.as_str()), (Some(0), ""), "{shell}");
        for word in ALL {
            assert!(printed.stdout.contains(word), "{shell} does not know {word}");
        }
    }
    place.write("script", place.run(&["completions", "bash"]).stdout);
    let complete = "source ./script; COMP_WORDS=(pitstop maint) COMP_CWORD=1; _pitstop pitstop maint; echo $COMPREPLY";
    let output = program("bash").args(["--norc", "-c", complete]).current_dir(place.path()).output().unwrap();
    assert_eq!(Printed::from(output), done("maintenance-mode\n"));
}

/// What prints, and its exit code where stdout cannot be written to.
const PRINTING: [(&[&str], i32); 7] = [
    (&["maintenance-mode"], 1),
    (&["maintenance-mode", "--output", "json"], 1),
    (&["maintenance-mode", "Updating"], 1),
    (&["completions", "zsh"], 1),
    (&["install", "."], 1),
    (&["--help"], 0),
    (&["--version"], 0),
];

#[test]
fn a_stdout_that_nobody_reads_is_no_reason_to_panic() {
    let place = Place::new();
    for (arguments, code) in PRINTING {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let full = File::options().write(true).open("/dev/full").unwrap();
        for (stdout, error) in [
            (Stdio::from(writer), "pitstop: Broken pipe (os error 32)\n"),
            (Stdio::from(full), "pitstop: No space left on device (os error 28)\n"),
        ] {
            let mut command = pitstop_in(place.path(), arguments);
            let printed = Printed::from(command.stdout(stdout).output().unwrap());
            let stderr = if code == 0 { "" } else { error };
            assert_eq!(printed, failed(code, stderr), "{arguments:?}");
        }
    }
    assert_eq!(place.text(), "Updating", "what was to be done is done");
}

#[test]
fn a_closed_stream_is_no_reason_to_fail() {
    let place = Place::new();
    for closed in [">&-", "<&-", "2>&-", ">&- 2>&- <&-"] {
        for (arguments, _) in PRINTING {
            let script = format!("exec \"$@\" {closed}");
            let mut command = pitstop_in(place.path(), arguments);
            behind(&["sh", "-c", &script, "sh"], &mut command);
            let printed = Printed::from(command.output().unwrap());
            assert_eq!((printed.code, printed.stderr.as_str()), (Some(0), ""), "{arguments:?} {closed}");
        }
    }
}

#[test]
fn a_stderr_that_nobody_reads_changes_no_exit_code() {
    let place = Place::new();
    place.write("MAINTENANCE", "");
    for (arguments, code) in [
        (&["run", "--skip-code", "75", "true"][..], 75),
        (&["run", "--file", "missing/MAINTENANCE", "sh", "-c", "exit 7"], 7),
        (&["run", "--file", "missing/MAINTENANCE", "--terminate", "sh", "-c", "exit 7"], 7),
        (&["maintenance-mode", "Updating", "--file", "missing/MAINTENANCE"], 1),
        (&["maintenance-mode", "Updating", "--disable"], 2),
        (&["--no-such-flag"], 2),
    ] {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let status = pitstop_in(place.path(), arguments).stderr(writer).status().unwrap();
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn wait_ends_with_a_signal_even_as_process_1() {
    let place = Place::new();
    place.write("MAINTENANCE", "");
    for (name, code) in [("TERM", 143), ("INT", 130)] {
        let mut wait = waiting(&place, &[]);
        wait.signal(name);
        assert_eq!(wait.status().code(), Some(code), "by its own handler, which process 1 needs");
    }
}

#[test]
fn one_file_that_cannot_be_examined_does_not_hide_another() {
    let place = Place::new();
    std::os::unix::fs::symlink("loop", place.path().join("loop")).unwrap();
    let files = ["--file", "MAINTENANCE", "--file", "loop"];
    let with_files = |arguments: &[&str]| place.run(&[&files[..], arguments].concat());
    let unknown = |printed: Printed| printed.code == Some(1) && printed.stderr.contains("loop cannot be examined");
    assert!(unknown(with_files(&["maintenance-mode"])));
    assert!(unknown(with_files(&["run", "--", "true"])));
    place.write("MAINTENANCE", "Updating");
    assert_eq!(with_files(&["maintenance-mode"]), done("Maintenance mode is enabled: Updating\n"));
    let skipped = with_files(&["run", "--skip-code", "75", "--", "true"]);
    assert_eq!(skipped, failed(75, "Maintenance mode is enabled: Updating; skipping true\n"));
    assert_eq!(with_files(&["wait", "--until-enabled", "--timeout", "0"]), done(""));
}

#[test]
fn a_path_need_not_be_utf8() {
    let place = Place::new();
    let name = std::ffi::OsStr::from_bytes(b"MAIN\xff");
    let mut command = pitstop_in(place.path(), &["maintenance-mode", "Updating", "--output", "json"]);
    let printed: Printed = command.arg("--file").arg(name).output().unwrap().into();
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert!(printed.stdout.contains("\"file\":\"MAIN\u{fffd}\""), "{printed:?}");
}
