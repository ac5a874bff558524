//! How changes are noticed: whoever makes them, and in whatever way.
//!
//! Where the poll is an hour away, only an event can tell.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::file::{never, run, soon};
use crate::fixture::{Sidecar, behind, eventually, program, put, without_privileges};
use crate::kernel::{has_looked_again, watched_inodes};

fn shell(sidecar: &Sidecar, script: &str) {
    let status = Command::new("sh").args(["-ec", script]).current_dir(sidecar.path()).status().unwrap();
    assert!(status.success(), "{script}");
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

/// One that watches a file in a directory, which may not be there, in a directory that is.
fn below(directory: &str, change: impl FnOnce(&mut Command)) -> (Sidecar, PathBuf) {
    let file = format!("{directory}/MAINTENANCE");
    let sidecar = Sidecar::with(|command| {
        command.args(["--file", &file]);
        change(command);
    });
    let directory = sidecar.path().join(directory);
    (sidecar, directory)
}

#[test]
fn ways_of_change() {
    let steps: [(&str, Option<Option<&str>>); 16] = [
        ("touch MAINTENANCE", Some(None)),
        ("rm MAINTENANCE", None),
        ("echo one > MAINTENANCE", Some(Some("one"))),
        ("echo two > MAINTENANCE", Some(Some("two"))),
        (": > MAINTENANCE", Some(None)),
        ("echo three >> MAINTENANCE; echo four >> MAINTENANCE", Some(Some("three\nfour"))),
        ("echo five > tmp; mv tmp MAINTENANCE", Some(Some("five"))),
        ("echo six > MAINTENANCE; rm MAINTENANCE; echo seven > MAINTENANCE", Some(Some("seven"))),
        ("mv MAINTENANCE MAINTENANCE.disabled", None),
        ("mv MAINTENANCE.disabled MAINTENANCE", Some(Some("seven"))),
        ("rm MAINTENANCE; ln -s target MAINTENANCE", None),
        ("echo eight > target", Some(Some("eight"))),
        ("echo nine > other; ln -sfn other MAINTENANCE", Some(Some("nine"))),
        ("rm other", None),
        ("ln -f target MAINTENANCE", Some(Some("eight"))),
        ("rm -f MAINTENANCE target", None),
    ];
    let sidecar = Sidecar::with(never);
    for (script, expected) in steps {
        shell(&sidecar, script);
        eventually(script, || match expected {
            Some(reason) => sidecar.is_on(reason),
            None => sidecar.is_off(),
        });
    }
}

/// A ConfigMap volume, as the kubelet's AtomicWriter changes it.
struct ConfigMap<'a> {
    volume: &'a Path,
    versions: u32,
}

impl ConfigMap<'_> {
    fn update(&mut self, data: &BTreeMap<&str, &str>) {
        let old = fs::read_link(self.volume.join("..data")).ok();
        self.versions += 1;
        let version = format!("..2026_11_22_18_00_00.{}", self.versions);
        fs::create_dir(self.volume.join(&version)).unwrap();
        for (key, text) in data {
            fs::write(self.volume.join(&version).join(key), text).unwrap();
        }
        symlink(&version, self.volume.join("..data_tmp")).unwrap();
        fs::rename(self.volume.join("..data_tmp"), self.volume.join("..data")).unwrap();
        for key in data.keys() {
            let _ = symlink(Path::new("..data").join(key), self.volume.join(key));
        }
        for entry in fs::read_dir(self.volume).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if !name.starts_with('.') && !data.contains_key(&*name) {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        if let Some(old) = old {
            fs::remove_dir_all(self.volume.join(old)).unwrap();
        }
    }
}

#[test]
fn a_config_map() {
    let sidecar = Sidecar::with(never);
    let mut config_map = ConfigMap { volume: sidecar.path(), versions: 0 };
    config_map.update(&BTreeMap::new());
    config_map.update(&[("MAINTENANCE", "Updating\n")].into());
    eventually("a key that appears turns it on", || sidecar.is_on(Some("Updating")));
    for round in 0..20 {
        config_map.update(&[("MAINTENANCE", &*format!("Round {round}")), ("other", "")].into());
    }
    eventually("it changes with the key", || sidecar.is_on(Some("Round 19")));
    assert_eq!(sidecar.metric(r#"pitstop_maintenance_mode_changes_total{to="off"}"#), 0.0, "not for an instant");
    config_map.update(&[("other", "")].into());
    eventually("a key that vanishes turns it off", || sidecar.is_off());
    config_map.update(&[("MAINTENANCE", "Again")].into());
    eventually("it comes again", || sidecar.is_on(Some("Again")));
}

#[test]
fn a_target_in_another_directory() {
    let sidecar = Sidecar::with(soon);
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(elsewhere.path().join("target"), sidecar.file()).unwrap();
    has_looked_again(&sidecar);
    assert!(sidecar.is_off());
    for text in ["one", "two"] {
        put(&elsewhere.path().join("target"), text.as_bytes());
        eventually("the target's text is the reason", || sidecar.is_on(Some(text)));
    }
    drop(elsewhere);
    eventually("it is off without the target", || sidecar.is_off());
}

#[test]
fn four_hundred_quick_changes() {
    let sidecar = Sidecar::with(never);
    for round in 0..400 {
        put(&sidecar.file(), format!("Round {round}").as_bytes());
    }
    eventually("the last one counts", || sidecar.is_on(Some("Round 399")));
    for round in 0..400 {
        put(&sidecar.file(), format!("Round {round}").as_bytes());
        fs::remove_file(sidecar.file()).unwrap();
    }
    eventually("the last one counts", || sidecar.is_off());
}

#[test]
fn a_change_right_after_another_is_seen_at_once() {
    let sidecar = Sidecar::with(never);
    let round = |_| {
        fs::write(sidecar.file(), "").unwrap();
        eventually("it is on", || sidecar.is_on(None));
        let written = Instant::now();
        fs::write(sidecar.file(), "Updating").unwrap();
        eventually("it shows the reason", || sidecar.is_on(Some("Updating")));
        let took = written.elapsed();
        fs::remove_file(sidecar.file()).unwrap();
        eventually("it is off", || sidecar.is_off());
        took
    };
    // The shortest time of many: a busy machine makes some of them long.
    let shortest = (0..40).map(round).min().unwrap();
    assert!(shortest < Duration::from_millis(10), "{shortest:?}");
}

#[test]
fn a_directory_that_comes_late_goes_and_returns() {
    let (sidecar, directory) = below("late", soon);
    assert!(sidecar.is_off());
    for round in 0..3 {
        fs::create_dir(&directory).unwrap();
        eventually("the directory is watched", || watched_inodes(&sidecar) == [inode(&directory)]);
        let reason = format!("Round {round}");
        fs::write(directory.join("MAINTENANCE"), &reason).unwrap();
        eventually("it is on", || sidecar.is_on(Some(&reason)));
        // Until it succeeds: the sidecar may put its lock there meanwhile.
        eventually("the directory is gone", || fs::remove_dir_all(&directory).is_ok());
        eventually("it is off", || sidecar.is_off());
        eventually("nothing is watched", || watched_inodes(&sidecar).is_empty());
    }
    assert_eq!(sidecar.metric("pitstop_file_errors_total"), 0.0);
}

/// One in maintenance, with the file in a directory that is watched.
///
/// It has none of its files open then, as it has the lock when it is off: so the file system is free to give the
/// directory's inode to another one.
fn on_below(directory: &str, change: impl FnOnce(&mut Command)) -> (Sidecar, PathBuf) {
    let (sidecar, directory) = below(directory, change);
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("MAINTENANCE"), "Updating").unwrap();
    eventually("it is on", || sidecar.is_on(Some("Updating")));
    eventually("the directory is watched", || watched_inodes(&sidecar) == [inode(&directory)]);
    (sidecar, directory)
}

/// Puts a new directory in place of an old one, with the old one's inode where the file system gives that again.
fn replace_directory(directory: &Path) {
    let old = inode(directory);
    fs::remove_dir_all(directory).unwrap();
    fs::create_dir(directory).unwrap();
    for other in 0..200 {
        if inode(directory) == old {
            break;
        }
        // Kept, so that its inode is not the next one again.
        fs::rename(directory, directory.with_extension(other.to_string())).unwrap();
        fs::create_dir(directory).unwrap();
    }
}

#[test]
fn a_directory_that_is_replaced_between_two_looks() {
    let (sidecar, directory) = on_below("sub", soon);
    sidecar.signal("STOP");
    replace_directory(&directory);
    sidecar.signal("CONT");
    eventually("it is off without the file", || sidecar.is_off());
    eventually("the new directory is watched", || watched_inodes(&sidecar) == [inode(&directory)]);
}

#[test]
fn a_directory_that_is_renamed_away() {
    let (sidecar, directory) = below("sub", soon);
    let (away, other) = (sidecar.path().join("away"), sidecar.path().join("other"));
    fs::create_dir(&directory).unwrap();
    fs::create_dir(&other).unwrap();
    fs::write(directory.join("MAINTENANCE"), "Mine").unwrap();
    eventually("it is on", || sidecar.is_on(Some("Mine")));

    fs::rename(&directory, &away).unwrap();
    eventually("it is off without the directory", || sidecar.is_off());
    fs::write(away.join("MAINTENANCE"), "No longer mine").unwrap();
    fs::write(other.join("MAINTENANCE"), "The other one").unwrap();
    fs::rename(&other, &directory).unwrap();
    eventually("it is on with another one", || sidecar.is_on(Some("The other one")));
    eventually("which is watched", || watched_inodes(&sidecar) == [inode(&directory)]);

    // A directory with a file, and one without, in turn, in a single step.
    fs::remove_file(away.join("MAINTENANCE")).unwrap();
    for round in 1..=101 {
        renameat_with(CWD, &directory, CWD, &away, RenameFlags::EXCHANGE).unwrap();
        if round % 10 == 1 {
            eventually("the one without counts", || sidecar.is_off());
        }
        if round % 10 == 6 {
            eventually("the one with it counts", || sidecar.is_on(Some("The other one")));
        }
    }
    eventually("the last one is watched", || watched_inodes(&sidecar) == [inode(&directory)]);
    assert!(sidecar.is_off());
}

#[test]
fn a_directory_behind_a_symlink() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let path = directory.path().to_owned();
    for name in ["one", "two"] {
        fs::create_dir(path.join(name)).unwrap();
    }
    symlink("one", path.join("link")).unwrap();
    let sidecar = Sidecar::sharing(directory, |command| {
        soon(command);
        command.args(["--file", "link/MAINTENANCE"]);
    });
    assert_eq!(watched_inodes(&sidecar), [inode(&path.join("one"))]);
    fs::write(path.join("two/MAINTENANCE"), "Two").unwrap();
    symlink("two", path.join("new")).unwrap();
    fs::rename(path.join("new"), path.join("link")).unwrap();
    eventually("it is on", || sidecar.is_on(Some("Two")));
    eventually("the other one is watched", || watched_inodes(&sidecar) == [inode(&path.join("two"))]);
}

#[test]
fn a_directory_on_which_something_is_mounted() {
    let (sidecar, directory) = below("volume", soon);
    fs::create_dir(&directory).unwrap();
    run("mount", &["-t", "tmpfs", "tmpfs"], &directory);
    fs::write(directory.join("MAINTENANCE"), "Mounted").unwrap();
    eventually("the mounted file turns it on", || sidecar.is_on(Some("Mounted")));
    eventually("it is watched", || watched_inodes(&sidecar) == [inode(&directory)]);
    run("umount", &["-l"], &directory);
    eventually("it is off without the mount", || sidecar.is_off());
    eventually("what is below is watched", || watched_inodes(&sidecar) == [inode(&directory)]);
}

#[test]
fn events_that_were_lost() {
    let (sidecar, directory) = on_below("sub", |command| _ = command.args(["--poll", "1s"]));
    let most: usize = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    sidecar.signal("STOP");
    let neighbour = directory.join("neighbour");
    for _ in 0..most {
        // Each is an event of its own: like ones in a row are merged.
        fs::write(&neighbour, "").unwrap();
        fs::remove_file(&neighbour).unwrap();
    }
    // The queue is full, so nothing tells that this is another directory.
    replace_directory(&directory);
    sidecar.signal("CONT");
    eventually("it is off without the file", || sidecar.is_off());
    eventually("the new directory is watched", || watched_inodes(&sidecar) == [inode(&directory)]);
}

#[test]
fn without_inotify_it_polls() {
    for limit in ["max_inotify_instances", "max_inotify_watches"] {
        let script = format!("echo 0 > /proc/sys/user/{limit}; exec \"$@\"");
        let sidecar = Sidecar::with(|command| {
            soon(command);
            behind(&["unshare", "--user", "--map-root-user", "sh", "-ec", &script, "sh"], command);
        });
        assert!(watched_inodes(&sidecar).is_empty());
        for text in ["one", "two"] {
            put(&sidecar.file(), text.as_bytes());
            eventually(&format!("it is on in spite of {limit}"), || sidecar.is_on(Some(text)));
        }
        fs::remove_file(sidecar.file()).unwrap();
        eventually("it is off again", || sidecar.is_off());
        let log = sidecar.log();
        assert_eq!(log.matches("changes are noticed only when the file is polled").count(), 1, "{log}");
        assert_eq!(sidecar.metric("pitstop_file_errors_total"), 0.0);
    }
}

/// Something that can be done to the file `sub/MAINTENANCE`, or to its directory.
#[derive(Clone, Debug)]
enum Step {
    Write(&'static str),
    Append(&'static str),
    Replace(&'static str),
    Remove,
    Symlink(&'static str),
    WriteTarget(&'static str, &'static str),
    RemoveTarget(&'static str),
    MakeDirectoryAtPath,
    MakeFifoAtPath,
    Permissions(u32),
    RemoveParent,
    MakeParent,
    SwapParent,
    Look,
}

impl Step {
    fn any() -> impl Strategy<Value = Self> {
        let text = || prop::sample::select(vec!["", "one", "two\nlines\n", " \n", "thrëe"]);
        let target = || prop::sample::select(vec!["target", "../outside"]);
        prop_oneof![
            3 => text().prop_map(Self::Write),
            1 => text().prop_map(Self::Append),
            3 => text().prop_map(Self::Replace),
            3 => Just(Self::Remove),
            2 => target().prop_map(Self::Symlink),
            2 => (target(), text()).prop_map(|(target, text)| Self::WriteTarget(target, text)),
            1 => target().prop_map(Self::RemoveTarget),
            1 => Just(Self::MakeDirectoryAtPath),
            1 => Just(Self::MakeFifoAtPath),
            1 => prop::sample::select(vec![0, 0o644]).prop_map(Self::Permissions),
            1 => Just(Self::RemoveParent),
            2 => Just(Self::MakeParent),
            2 => Just(Self::SwapParent),
            3 => Just(Self::Look),
        ]
    }

    /// Does it, if it can be done as things are.
    fn take(&self, sidecar: &Sidecar) {
        let (parent, spare) = (sidecar.path().join("sub"), sidecar.path().join("spare"));
        let file = parent.join("MAINTENANCE");
        // Never into a FIFO, where writing waits for a reader.
        let is_file = |path: &Path| !path.exists() || path.is_file();
        let _ = match self {
            Self::Write(text) if is_file(&file) => fs::write(&file, text),
            Self::Append(text) if is_file(&file) => {
                let before = fs::read_to_string(&file).unwrap_or_default();
                fs::write(&file, before + text)
            }
            Self::Write(_) | Self::Append(_) => Ok(()),
            Self::Replace(text) => {
                fs::write(parent.join("tmp"), text).and_then(|()| fs::rename(parent.join("tmp"), file))
            }
            Self::Remove => fs::remove_file(&file).or_else(|_| fs::remove_dir(&file)),
            Self::Symlink(target) => {
                symlink(target, parent.join("tmp")).and_then(|()| fs::rename(parent.join("tmp"), file))
            }
            Self::WriteTarget(target, text) => fs::write(parent.join(target), text),
            Self::RemoveTarget(target) => fs::remove_file(parent.join(target)),
            Self::MakeDirectoryAtPath => fs::create_dir(file),
            Self::MakeFifoAtPath => program("mkfifo").arg("-m600").arg(file).output().map(drop),
            Self::Permissions(mode) => fs::set_permissions(file, fs::Permissions::from_mode(*mode)),
            Self::RemoveParent => fs::remove_dir_all(parent),
            Self::MakeParent => fs::create_dir(parent),
            Self::SwapParent => renameat_with(CWD, parent, CWD, spare, RenameFlags::EXCHANGE).map_err(Into::into),
            Self::Look => {
                has_looked_again(sidecar);
                Ok(())
            }
        };
    }
}

/// What the file system says in the end: whether it is on, and why.
fn expected(file: &Path) -> (bool, Option<String>) {
    let Ok(metadata) = fs::metadata(file) else { return (false, None) };
    let readable = metadata.is_file() && metadata.permissions().mode() & 0o400 != 0;
    let text = if readable { fs::read_to_string(file).unwrap() } else { String::new() };
    let reason = text.trim_end();
    (true, (!reason.trim().is_empty()).then(|| reason.to_owned()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 100, failure_persistence: None, ..Default::default() })]

    #[test]
    fn whatever_happens_the_last_state_is_right(steps in prop::collection::vec(Step::any(), 1..16)) {
        let (sidecar, parent) = below("sub", |command| {
            command.args(["--poll", "20ms"]);
            without_privileges(command);
        });
        for directory in [&parent, &sidecar.path().join("spare")] {
            fs::create_dir(directory).unwrap();
        }
        for step in &steps {
            step.take(&sidecar);
        }
        let (enabled, reason) = expected(&parent.join("MAINTENANCE"));
        let is_right = || {
            let state = sidecar.state();
            state["enabled"] == enabled && state["reason"].as_str() == reason.as_deref()
        };
        eventually("it is right", is_right);
        has_looked_again(&sidecar);
        prop_assert!(is_right(), "and stays so");
        prop_assert_eq!(sidecar.metric("pitstop_maintenance_mode"), f64::from(enabled));
    }
}
