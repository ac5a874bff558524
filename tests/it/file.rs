//! What may stand at the file's path, and what the sidecar makes of it.

use std::fs::{self, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use jiff::Timestamp;
use rustix::fs::OFlags;

use crate::fixture::{Sidecar, eventually, program, put, without_privileges};
use crate::kernel::{has_looked_again, peak_memory};

/// How much of a text is shown.
const LIMIT: usize = 16 * 1024;

/// Something that is done at a path.
type Act = fn(&Path);

/// A poll that comes soon, for what no event tells.
pub fn soon(command: &mut Command) {
    command.args(["--poll", "50ms"]);
}

/// A poll that never comes: what is noticed then is noticed by an event.
pub fn never(command: &mut Command) {
    command.args(["--poll", "1h"]);
}

/// Runs a program on a path.
#[track_caller]
pub fn run(name: &str, arguments: &[&str], path: &Path) {
    let status = program(name).args(arguments).arg(path).status();
    assert!(status.is_ok_and(|status| status.success()), "{name} {arguments:?} {}", path.display());
}

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn verbose(sidecar: &Sidecar) -> String {
    sidecar.admin("/readyz?verbose").body
}

fn errors(sidecar: &Sidecar) -> f64 {
    sidecar.metric("pitstop_file_errors_total")
}

#[test]
fn nothing_there() {
    for path in ["MAINTENANCE", "no/such/directory/MAINTENANCE"] {
        let sidecar = Sidecar::with(|command| _ = command.args(["--file", path]));
        assert!(sidecar.is_off(), "{path}");
        assert_eq!(sidecar.admin("/readyz").body, "ok", "{path}");
        assert_eq!(errors(&sidecar), 0.0, "{path}");
        assert!(sidecar.metric("pitstop_file_last_look_timestamp_seconds") > 0.0, "{path}");
    }
}

#[test]
fn the_text_is_the_reason() {
    let (two, four) = ("é".repeat(LIMIT), "😀".repeat(LIMIT));
    let table: &[(&[u8], Option<&str>)] = &[
        (b"", None),
        (b" \n\t\r\n", None),
        (b"Updating the instance\n", Some("Updating the instance")),
        (b"  two\nlines \n\n", Some("  two\nlines")),
        (b"a\xff\xfeb", Some("a\u{fffd}\u{fffd}b")),
        (&[b'x'; LIMIT], Some(&"x".repeat(LIMIT))),
        (&[b'x'; LIMIT + 1], Some(&"x".repeat(LIMIT))),
        (&[b'x'; 1024 * 1024], Some(&"x".repeat(LIMIT))),
        (two.as_bytes(), Some(&two[..LIMIT])),
        // The limit falls within a character, which is left out.
        (&[b"x", two.as_bytes()].concat(), Some(&format!("x{}", &two[..LIMIT - 2]))),
        (&[b"xyz", four.as_bytes()].concat(), Some(&format!("xyz{}", &four[..LIMIT - 4]))),
    ];
    let sidecar = Sidecar::with(never);
    for (text, reason) in table {
        let text_start = String::from_utf8_lossy(&text[..text.len().min(40)]);
        put(&sidecar.file(), text);
        eventually(&format!("it is on because of {text_start:?}"), || sidecar.is_on(*reason));
        let answer = sidecar.traffic("/", &[]);
        assert_eq!(answer.status, 503);
        assert!(answer.body.contains(reason.unwrap_or("Down for maintenance").trim()), "{text_start:?}");
        assert_eq!(sidecar.admin("/readyz").status, 503, "{text_start:?}");
        fs::remove_file(sidecar.file()).unwrap();
        eventually("it is off again", || sidecar.is_off());
    }
    assert_eq!(errors(&sidecar), 0.0);
}

#[test]
fn no_more_is_read_than_is_shown() {
    let sidecar = Sidecar::with(never);
    let before = peak_memory(&sidecar);
    let huge = sidecar.path().join("huge");
    fs::write(&huge, "Importing").unwrap();
    OpenOptions::new().write(true).open(&huge).unwrap().set_len(1 << 34).unwrap();
    fs::rename(&huge, sidecar.file()).unwrap();
    eventually("it is on", || sidecar.state()["enabled"] == true);
    assert!(sidecar.state()["reason"].as_str().unwrap().starts_with("Importing"));
    assert!(sidecar.admin("/readyz").body.contains("failed: Importing\n"), "without what cannot be printed");
    let grown = peak_memory(&sidecar) - before;
    assert!(grown < 16 * 1024, "{grown} KiB");
}

#[test]
fn what_is_no_regular_file_is_on_without_a_reason() {
    let table: [(&str, Act, Act); 4] = [
        ("a directory", |path| fs::create_dir(path).unwrap(), |path| fs::remove_dir(path).unwrap()),
        ("a FIFO", |path| run("mkfifo", &[], path), |path| fs::remove_file(path).unwrap()),
        ("a socket", |path| drop(UnixListener::bind(path).unwrap()), |path| fs::remove_file(path).unwrap()),
        (
            "a device",
            |path| assert!(program("mknod").arg(path).args(["c", "1", "3"]).status().unwrap().success()),
            |path| fs::remove_file(path).unwrap(),
        ),
    ];
    let sidecar = Sidecar::with(soon);
    for (kind, make, remove) in table {
        let before = errors(&sidecar);
        make(&sidecar.file());
        eventually(&format!("{kind} turns it on"), || sidecar.is_on(None));
        assert_eq!(
            sidecar.admin("/readyz/maintenance").body,
            "internal server error: maintenance mode is enabled\n",
            "{kind}"
        );
        let since = sidecar.state()["since"].clone();
        // As writing to a FIFO does, or to a file in a directory.
        run("touch", &["-d", "2020-01-01T00:00:00Z"], &sidecar.file());
        eventually("its time is taken up", || sidecar.state()["since"] != since);
        eventually("looking goes on, and counts", || errors(&sidecar) >= before + 5.0);
        assert_eq!(sidecar.admin("/livez").status, 200, "{kind}");
        assert_eq!(sidecar.log().matches(&format!("is {kind}, not a regular file")).count(), 1, "{}", sidecar.log());
        remove(&sidecar.file());
        eventually(&format!("{kind} that is gone turns it off"), || sidecar.is_off());
    }
}

#[test]
fn a_fifo_is_never_opened() {
    let sidecar = Sidecar::with(soon);
    run("mkfifo", &[], &sidecar.file());
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
    eventually("many looks have been made", || {
        // Where nobody has opened it for reading, opening it for writing fails with ENXIO.
        let opened = OpenOptions::new().write(true).custom_flags(nonblocking).open(sidecar.file());
        assert_eq!(opened.unwrap_err().raw_os_error(), Some(rustix::io::Errno::NXIO.raw_os_error()));
        errors(&sidecar) >= 20.0
    });
}

#[test]
fn an_unreadable_file_is_on_without_a_reason() {
    let sidecar = Sidecar::with(|command| {
        soon(command);
        without_privileges(command);
    });
    let log = "cannot be read: permission denied; maintenance mode is on all the same";
    for times in [1, 2] {
        let before = errors(&sidecar);
        put(&sidecar.file(), b"Updating");
        allow(&sidecar.file(), 0);
        eventually("it is on without a reason", || sidecar.is_on(None));
        eventually("it is counted", || errors(&sidecar) >= before + 5.0);
        assert_eq!(sidecar.log().matches(log).count(), times, "{}", sidecar.log());
        allow(&sidecar.file(), 0o644);
        eventually("it has a reason", || sidecar.is_on(Some("Updating")));
        let readable = errors(&sidecar);
        has_looked_again(&sidecar);
        assert_eq!(errors(&sidecar), readable);
    }
}

#[test]
fn a_directory_that_cannot_be_listed_can_be_looked_into() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    allow(directory.path(), 0o111);
    let sidecar = Sidecar::sharing(directory, |command| {
        soon(command);
        without_privileges(command);
    });
    assert!(sidecar.is_off());
    eventually("it says that it polls", || sidecar.log().contains("noticed only when the file is polled"));
    put(&sidecar.file(), b"Updating");
    eventually("it is on", || sidecar.is_on(Some("Updating")));
    allow(sidecar.path(), 0o755);
    eventually("it no longer polls only", || sidecar.log().contains("changes are noticed at once again"));
}

/// What makes it impossible to tell whether the file `a/b/MAINTENANCE` is there, and what undoes it.
const OBSTACLES: [(&str, Act, Act); 3] = [
    ("Permission denied", |root| allow(&root.join("a/b"), 0), |root| allow(&root.join("a/b"), 0o755)),
    ("Permission denied", |root| allow(&root.join("a"), 0), |root| allow(&root.join("a"), 0o755)),
    (
        "symbolic link",
        |root| {
            let (file, kept) = (root.join("a/b/MAINTENANCE"), root.join("kept"));
            let _ = fs::hard_link(&file, kept);
            symlink("MAINTENANCE", root.join("a/b/loop")).unwrap();
            fs::rename(root.join("a/b/loop"), file).unwrap();
        },
        |root| {
            let (file, kept) = (root.join("a/b/MAINTENANCE"), root.join("kept"));
            match fs::rename(kept, &file) {
                Err(error) if error.kind() == ErrorKind::NotFound => fs::remove_file(file).unwrap(),
                result => result.unwrap(),
            }
        },
    ),
];

fn behind_directories(text: Option<&[u8]>, prepare: impl FnOnce(&Path)) -> Sidecar {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    fs::create_dir_all(directory.path().join("a/b")).unwrap();
    if let Some(text) = text {
        put(&directory.path().join("a/b/MAINTENANCE"), text);
    }
    prepare(directory.path());
    Sidecar::sharing(directory, |command| {
        soon(command);
        command.args(["--file", "a/b/MAINTENANCE"]);
        without_privileges(command);
    })
}

#[test]
fn what_cannot_be_examined_keeps_its_state() {
    for (why, obstruct, clear) in OBSTACLES {
        for text in [None, Some("Updating")] {
            let what = format!("{why}, {text:?}");
            let sidecar = behind_directories(text.map(str::as_bytes), |_| {});
            let is_as_before = || if text.is_some() { sidecar.is_on(text) } else { sidecar.is_off() };
            assert!(is_as_before(), "{what}");

            obstruct(sidecar.path());
            eventually(&format!("it is counted: {what}"), || errors(&sidecar) >= 3.0);
            assert!(is_as_before(), "{what}");
            let body = verbose(&sidecar);
            let warning = body.lines().find(|line| line.starts_with("warn: a/b/MAINTENANCE cannot be examined: "));
            assert!(warning.is_some_and(|line| line.contains(why)), "{what}: {body}");
            assert!(body.contains("[+]maintenance-file ok\n"), "{what}: {body}");
            assert_eq!(sidecar.admin("/readyz").status, if text.is_some() { 503 } else { 200 }, "{what}");
            assert_eq!(sidecar.log().matches("cannot be examined").count(), 1, "{what}: {}", sidecar.log());

            clear(sidecar.path());
            eventually(&format!("the warning goes: {what}"), || !verbose(&sidecar).contains("warn:"));
            assert!(is_as_before(), "{what}");
            eventually(&format!("it is logged: {what}"), || sidecar.log().contains("can be examined again"));
            let after = errors(&sidecar);
            put(&sidecar.path().join("a/b/MAINTENANCE"), b"Another reason");
            eventually(&format!("it notices again: {what}"), || sidecar.is_on(Some("Another reason")));
            assert_eq!(errors(&sidecar), after, "{what}");
        }
    }
}

#[test]
fn what_was_never_examined_is_closed() {
    for (why, obstruct, clear) in OBSTACLES {
        let sidecar = behind_directories(None, obstruct);
        assert_eq!(sidecar.traffic("/", &[]).status, 503, "{why}");
        assert_eq!(sidecar.admin("/livez").status, 200, "{why}");
        assert!(sidecar.state()["enabled"].is_null(), "{why}");
        let answer = sidecar.admin("/readyz");
        assert_eq!(answer.status, 503, "{why}");
        let failed = "[-]maintenance-file failed: a/b/MAINTENANCE cannot be examined: ";
        let line = answer.body.lines().find(|line| line.starts_with(failed));
        assert!(line.is_some_and(|line| line.contains(why)), "{why}: {}", answer.body);
        assert!(answer.body.contains("[+]maintenance ok\n"), "{why}: {}", answer.body);
        assert_eq!(sidecar.metric("pitstop_file_last_look_timestamp_seconds"), 0.0, "{why}");

        clear(sidecar.path());
        eventually(&format!("it is ready: {why}"), || sidecar.admin("/readyz").body == "ok");
        assert!(sidecar.is_off(), "{why}");
    }
}

#[test]
fn a_dangling_symlink_is_off_until_its_target_appears() {
    for target in ["target", "elsewhere/target", "file/target"] {
        let sidecar = Sidecar::with(soon);
        fs::create_dir(sidecar.path().join("elsewhere")).unwrap();
        fs::write(sidecar.path().join("file"), "no directory").unwrap();
        symlink(target, sidecar.file()).unwrap();
        has_looked_again(&sidecar);
        assert!(sidecar.is_off(), "{target}");
        if target == "file/target" {
            continue;
        }
        fs::write(sidecar.path().join(target), "Updating").unwrap();
        eventually(&format!("{target} turns it on"), || sidecar.is_on(Some("Updating")));
        fs::write(sidecar.path().join(target), "Still updating").unwrap();
        eventually(&format!("{target} changes the reason"), || sidecar.is_on(Some("Still updating")));
        fs::remove_file(sidecar.path().join(target)).unwrap();
        eventually(&format!("{target} that is gone turns it off"), || sidecar.is_off());
        assert_eq!(errors(&sidecar), 0.0);
    }
}

#[test]
fn the_expected_end_is_a_trailer() {
    let sidecar = Sidecar::with(never);
    let end = "pitstop_maintenance_mode_expected_end_timestamp_seconds";
    put(&sidecar.file(), b"Updating\n\nUntil: 2100-01-01T00:00:00Z\n");
    eventually("the reason is without it", || sidecar.is_on(Some("Updating")));
    assert_eq!(sidecar.state()["until"], "2100-01-01T00:00:00Z");
    assert_eq!(sidecar.metric(end), 4_102_444_800.0);

    put(&sidecar.file(), b"Updating\n\nUntil: next week\n");
    eventually("what cannot be read stays in the text", || sidecar.is_on(Some("Updating\n\nUntil: next week")));
    assert!(sidecar.state()["until"].is_null());
    assert_eq!(sidecar.metric(end), 0.0);
}

#[test]
fn since_is_the_modification_time_and_survives_a_restart() {
    let start = "pitstop_maintenance_mode_start_timestamp_seconds";
    let sidecar = Sidecar::with(never);
    assert_eq!(sidecar.metric(start), 0.0);
    let temporary = sidecar.path().join("tmp");
    fs::write(&temporary, "Updating").unwrap();
    run("touch", &["-d", "2020-02-03T04:05:06Z"], &temporary);
    fs::rename(&temporary, sidecar.file()).unwrap();
    eventually("it is on", || sidecar.is_on(Some("Updating")));
    let directory = sidecar.directory();
    drop(sidecar);

    let sidecar = Sidecar::sharing(directory, never);
    assert_eq!(sidecar.state()["since"], "2020-02-03T04:05:06Z");
    assert_eq!(sidecar.metric(start), 1_580_702_706.0);
    assert_eq!(sidecar.metric(r#"pitstop_maintenance_mode_changes_total{to="on"}"#), 0.0, "it was on before");
}

#[test]
fn since_is_at_most_now() {
    let sidecar = Sidecar::with(never);
    fs::write(sidecar.file(), "").unwrap();
    run("touch", &["-d", "2100-01-01T00:00:00Z"], &sidecar.file());
    eventually("it is on", || sidecar.is_on(None));
    eventually("its time is taken up", || {
        // It moves with the clock from now on.
        let since = || sidecar.state()["since"].as_str().unwrap().parse::<Timestamp>().unwrap();
        let first = since();
        assert!(first <= Timestamp::now());
        since() > first
    });
    let start = sidecar.metric("pitstop_maintenance_mode_start_timestamp_seconds");
    assert!(start > 1_700_000_000.0 && start <= Timestamp::now().as_duration().as_secs_f64(), "{start}");
}

#[test]
fn of_several_files_the_first_reason_the_earliest_start_and_the_latest_end() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let (pod, fleet) = (directory.path().join("MAINTENANCE"), directory.path().join("fleet/MAINTENANCE"));
    fs::create_dir(directory.path().join("fleet")).unwrap();
    let sidecar = Sidecar::sharing(directory, |command| {
        never(command);
        command.env("PITSTOP_FILE", "MAINTENANCE:fleet/MAINTENANCE");
    });
    let place = |path: &Path, text: &str, time: &str| {
        let temporary = path.with_extension("tmp");
        fs::write(&temporary, text).unwrap();
        run("touch", &["-d", time], &temporary);
        fs::rename(temporary, path).unwrap();
    };
    place(&fleet, "The fleet\n\nUntil: 2100-01-01T00:00:00Z", "2020-01-02T00:00:00Z");
    eventually("the second file alone turns it on", || sidecar.is_on(Some("The fleet")));
    assert_eq!(sidecar.state()["file"], "fleet/MAINTENANCE");

    place(&pod, "", "2020-01-03T00:00:00Z");
    eventually("the first one is taken up", || sidecar.state()["file"] == "MAINTENANCE");
    assert!(sidecar.is_on(Some("The fleet")), "it has no reason of its own");
    assert_eq!(sidecar.state()["since"], "2020-01-02T00:00:00Z");

    place(&pod, "The pod\n\nUntil: 2099-01-01T00:00:00Z", "2020-01-01T00:00:00Z");
    eventually("its reason comes first", || sidecar.is_on(Some("The pod")));
    assert_eq!(sidecar.state()["since"], "2020-01-01T00:00:00Z");
    assert_eq!(sidecar.state()["until"], "2100-01-01T00:00:00Z");

    fs::remove_file(&pod).unwrap();
    eventually("the second keeps it on", || sidecar.is_on(Some("The fleet")));
    fs::remove_file(&fleet).unwrap();
    eventually("it is off with the last", || sidecar.is_off());
    assert_eq!(sidecar.metric(r#"pitstop_maintenance_mode_changes_total{to="on"}"#), 1.0);
    assert_eq!(sidecar.metric(r#"pitstop_maintenance_mode_changes_total{to="off"}"#), 1.0);
}
