//! A mount on which looking fails or hangs: serving goes on, and what was known stays.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::file::soon;
use crate::filesystem::{Operation, Silence, Volume};
use crate::fixture::{Sidecar, eventually};

/// A sidecar that watches the file on the volume.
fn on(volume: &Volume) -> Sidecar {
    Sidecar::with(|command| watch(command, volume))
}

/// The same in maintenance.
fn updating() -> (Volume, Sidecar) {
    let volume = Volume::mount();
    volume.set(Some("Updating"));
    let sidecar = on(&volume);
    assert!(sidecar.is_on(Some("Updating")));
    (volume, sidecar)
}

/// Waits until a look hangs at one of these.
fn hang(volume: &Volume, operations: &[Operation]) -> Silence {
    let silence = volume.silence(operations);
    eventually("a look hangs", || volume.is_waited_for());
    silence
}

fn watch(command: &mut Command, volume: &Volume) {
    soon(command);
    command.arg("--file").arg(volume.file());
}

fn errors(sidecar: &Sidecar) -> f64 {
    sidecar.metric("pitstop_file_errors_total")
}

fn warns(sidecar: &Sidecar, of: &str) -> bool {
    let body = sidecar.admin("/readyz?verbose").body;
    body.lines().any(|line| line.starts_with("warn: ") && line.contains(of))
}

/// Asks all there is to ask again and again until the look counts as failed. Each must be answered.
fn serves_until_the_look_has_failed(sidecar: &Sidecar, ready: bool) {
    let began = Instant::now();
    let before = errors(sidecar);
    eventually("the look counts as failed", || {
        assert_eq!(sidecar.admin("/livez").body, "ok");
        assert_eq!(sidecar.admin("/readyz").status, if ready { 200 } else { 503 });
        assert_eq!(sidecar.traffic("/", &[]).status, 503);
        errors(sidecar) > before
    });
    assert!(began.elapsed() > Duration::from_secs(4), "a slow look is no failed one");
    assert_eq!(errors(sidecar), before + 1.0);
}

#[test]
fn an_error_keeps_the_state() {
    let (volume, sidecar) = updating();
    for operation in Operation::ALL {
        for errno in [Errno::IO, Errno::STALE] {
            let what = format!("{operation:?}: {errno}");
            let before = errors(&sidecar);
            volume.fail(Some((operation, errno.raw_os_error())));
            eventually(&format!("it is counted: {what}"), || errors(&sidecar) >= before + 3.0);
            assert!(sidecar.is_on(Some("Updating")), "{what}");
            assert!(warns(&sidecar, "MAINTENANCE cannot be examined: "), "{what}");
            volume.fail(None);
            eventually(&format!("the warning goes: {what}"), || !warns(&sidecar, ""));
            assert!(sidecar.is_on(Some("Updating")), "{what}");
        }
    }
    volume.set(None);
    eventually("it is off", || sidecar.is_off());
    for operation in [Operation::OpenDirectory, Operation::Examine] {
        let before = errors(&sidecar);
        volume.fail(Some((operation, Errno::IO.raw_os_error())));
        eventually(&format!("it is counted: {operation:?}"), || errors(&sidecar) >= before + 3.0);
        assert!(sidecar.is_off(), "{operation:?}");
        assert_eq!(sidecar.admin("/readyz").body, "ok", "{operation:?}");
        volume.fail(None);
        eventually(&format!("the warning goes: {operation:?}"), || !warns(&sidecar, ""));
    }
    assert_eq!(sidecar.metric(r#"pitstop_maintenance_mode_changes_total{to="off"}"#), 1.0);
}

#[test]
fn a_hang_while_on() {
    let (volume, sidecar) = updating();
    let silence = hang(&volume, &Operation::ALL);
    volume.set(None);
    serves_until_the_look_has_failed(&sidecar, false);
    assert!(sidecar.is_on(Some("Updating")), "as far as it can know");
    assert!(warns(&sidecar, "has not ended for 5 s") || warns(&sidecar, "has not ended for 6 s"));

    drop(silence);
    eventually("it is off", || sidecar.is_off());
    assert!(!warns(&sidecar, ""));
    assert_eq!(sidecar.admin("/readyz").body, "ok");
    assert_eq!(errors(&sidecar), 1.0);
}

#[test]
fn a_hang_while_off() {
    let volume = Volume::mount();
    let sidecar = on(&volume);
    assert!(sidecar.is_off());
    let silence = hang(&volume, &Operation::ALL);
    volume.set(Some("Updating"));
    serves_until_the_look_has_failed(&sidecar, true);
    assert!(sidecar.is_off(), "as far as it can know");
    assert!(warns(&sidecar, "has not ended for"));

    drop(silence);
    eventually("it is on", || sidecar.is_on(Some("Updating")));
    assert!(!warns(&sidecar, ""));
}

#[test]
fn a_hang_from_the_start() {
    let volume = Volume::mount();
    let silence = volume.silence(&Operation::ALL);
    let sidecar = on(&volume);
    // Moved, to be dropped before the sidecar if this fails.
    let silence: Silence = silence;
    assert!(sidecar.state()["enabled"].is_null());
    let body = sidecar.admin("/readyz").body;
    let failed = format!("[-]maintenance-file failed: {} has not been looked at yet\n", volume.file().display());
    assert!(body.contains(&failed), "{body}");
    serves_until_the_look_has_failed(&sidecar, false);

    drop(silence);
    eventually("it is ready", || sidecar.admin("/readyz").body == "ok");
    assert!(sidecar.is_off());
}

#[test]
fn a_hang_at_one_file_does_not_delay_the_other() {
    // Where the lock is asked for, too: the permit is checked with every look.
    for operations in [&Operation::ALL[..], &[Operation::Lock]] {
        let volume = Volume::mount();
        let sidecar = Sidecar::with(|command| {
            watch(command, &volume);
            command.args(["--file", "MAINTENANCE"]);
        });
        assert!(sidecar.is_off());
        let silence = hang(&volume, operations);
        for round in 0..20 {
            let reason = format!("Round {round}");
            std::fs::write(sidecar.file(), &reason).unwrap();
            eventually("the other file turns it on", || sidecar.is_on(Some(&reason)));
            std::fs::remove_file(sidecar.file()).unwrap();
            eventually("the other file turns it off", || sidecar.is_off());
        }
        assert_eq!(sidecar.admin("/livez").body, "ok");
        drop(silence);
        volume.set(Some("The volume"));
        eventually("it looks there again", || sidecar.is_on(Some("The volume")));
    }
}

#[test]
fn a_hang_that_ends_with_an_abort() {
    let (volume, sidecar) = updating();
    let silence = hang(&volume, &Operation::ALL);
    volume.abort();
    eventually("looking fails instead", || errors(&sidecar) >= 3.0);
    assert!(sidecar.is_on(Some("Updating")));
    assert!(warns(&sidecar, "cannot be examined: "));
    drop(silence);

    volume.unmount();
    eventually("the empty directory beneath is seen", || sidecar.is_off());
    std::fs::write(volume.file(), "Beneath").unwrap();
    eventually("and watched", || sidecar.is_on(Some("Beneath")));
    assert!(!warns(&sidecar, ""));
}
