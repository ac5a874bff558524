//! `pitstop maintenance-mode`: what it prints, its exit code, and what it leaves on disk.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

use crate::fixture::{Printed, behind, eventually};
use crate::running::{Place, Running, done, failed, mounted, pitstop_in, user};

#[test]
fn the_status_in_one_line() {
    let on = "Maintenance mode is enabled\n";
    let table: [(&[u8], &str); 10] = [
        (b"", on),
        (b" \n\t\n", on),
        (b"Updating\n", "Maintenance mode is enabled: Updating\n"),
        (b"Updating\n\nUntil: 2026-11-22T18:00:00Z\n", "Maintenance mode is enabled: Updating\n"),
        (b"Until: 2026-11-22T18:00:00Z\n", on),
        (b"Updating\nthe\r\n\tinstance\n", "Maintenance mode is enabled: Updating the instance\n"),
        (b"caf\xe9", "Maintenance mode is enabled: caf\u{fffd}\n"),
        (b"\x1b]0;title\x07\x1b[2Jred\x00\x7f", "Maintenance mode is enabled: ]0;title[2Jred\n"),
        ("\u{202e}gnitadpU\u{2066}\u{9b}31m\u{2028}now".as_bytes(), "Maintenance mode is enabled: gnitadpU31m now\n"),
        ("\u{202e}\u{7}".as_bytes(), on),
    ];
    let place = Place::new();
    assert_eq!(place.maintenance_mode(&[]), done("Maintenance mode is disabled\n"));
    for (text, status) in table {
        place.write("MAINTENANCE", text);
        assert_eq!(place.maintenance_mode(&[]), done(status), "{:?}", String::from_utf8_lossy(text));
    }
    assert_eq!(place.names(), ["MAINTENANCE"], "asking leaves nothing behind");
}

#[test]
fn a_reason_turns_it_on() {
    let place = Place::new();
    for (reason, status, text) in [
        ("Updating the instance", "Maintenance mode is enabled: Updating the instance\n", "Updating the instance"),
        ("New\nreason\u{202e}\n\n", "Maintenance mode is enabled: New reason\n", "New\nreason\u{202e}"),
        ("", "Maintenance mode is enabled\n", ""),
        ("  ", "Maintenance mode is enabled\n", ""),
        ("Back at 18:00", "Maintenance mode is enabled: Back at 18:00\n", "Back at 18:00"),
    ] {
        assert_eq!(place.maintenance_mode(&[reason]), done(status), "{reason:?}");
        assert_eq!(place.text(), text, "{reason:?}");
    }
    assert_eq!(place.maintenance_mode(&["--", "--dashed"]), done("Maintenance mode is enabled: --dashed\n"));
}

#[test]
fn a_new_reason_keeps_the_time_since_when_it_is_on() {
    let place = Place::new();
    place.maintenance_mode(&["First"]);
    let since = UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    File::open(place.path().join("MAINTENANCE")).unwrap().set_modified(since).unwrap();
    for change in [&["Second"][..], &["--for", "1h"], &[""]] {
        assert_eq!(place.maintenance_mode(change).code, Some(0));
        assert_eq!(fs::metadata(place.path().join("MAINTENANCE")).unwrap().modified().unwrap(), since, "{change:?}");
    }
    let json: serde_json::Value = serde_json::from_str(&place.maintenance_mode(&["--output", "json"]).stdout).unwrap();
    assert_eq!(json["since"], "2001-09-09T01:46:40.123456789Z");

    let before = SystemTime::now() - Duration::from_secs(1);
    place.maintenance_mode(&["--disable"]);
    place.maintenance_mode(&["Again"]);
    assert!(fs::metadata(place.path().join("MAINTENANCE")).unwrap().modified().unwrap() > before);
}

#[test]
fn the_expected_end() {
    let place = Place::new();
    let off = "pitstop: there is no MAINTENANCE: say why it should be, as in \
               `maintenance-mode \"Updating\" --for 30m`\n";
    assert_eq!(place.maintenance_mode(&["--for", "30m"]), failed(1, off));
    assert_eq!(place.names(), [""; 0]);

    for (arguments, text) in [
        (&["Updating", "--until", "2999-11-22T19:00:00+01:00"][..], "Updating\n\nUntil: 2999-11-22T18:00:00Z"),
        (&["--until", "2999-01-01T00:00:00Z"], "Updating\n\nUntil: 2999-01-01T00:00:00Z"),
        (&["Changed"], "Changed"),
        (&["--until", "2999-01-01T00:00:00Z"], "Changed\n\nUntil: 2999-01-01T00:00:00Z"),
        (&["", "--until", "2999-01-01T00:00:00Z"], "Until: 2999-01-01T00:00:00Z"),
        (&["By\n\nTicket: 7", "--until", "2999-01-01T00:00:00Z"], "By\n\nTicket: 7\nUntil: 2999-01-01T00:00:00Z"),
        (&[""], ""),
    ] {
        assert_eq!(place.maintenance_mode(arguments).code, Some(0), "{arguments:?}");
        assert_eq!(place.text(), text, "{arguments:?}");
    }

    let now = || Timestamp::now().as_second();
    for arguments in [&["Updating", "--for", "1h30m"][..], &["--for", "5400"]] {
        let earliest = now() + 5400;
        assert_eq!(place.maintenance_mode(arguments), done("Maintenance mode is enabled: Updating\n"));
        let text = place.text();
        let until: Timestamp = text.strip_prefix("Updating\n\nUntil: ").unwrap().parse().unwrap();
        assert!((earliest..=now() + 5400).contains(&until.as_second()), "{text}");
    }
}

#[test]
fn a_text_that_cannot_be_read_is_not_replaced_unless_a_new_one_is_given() {
    let place = Place::new();
    fs::set_permissions(place.path(), PermissionsExt::from_mode(0o777)).unwrap();
    place.write("MAINTENANCE", "Secret");
    fs::set_permissions(place.path().join("MAINTENANCE"), PermissionsExt::from_mode(0o600)).unwrap();
    let nobody = |arguments: &[&str]| Running::start(user(place.path(), 65534, "022", arguments)).ended();
    assert_eq!(nobody(&["maintenance-mode"]), done("Maintenance mode is enabled\n"));
    let stderr = "pitstop: MAINTENANCE cannot be read: permission denied: say anew why maintenance mode is on\n";
    assert_eq!(nobody(&["maintenance-mode", "--for", "30m"]), failed(1, stderr));
    assert_eq!(place.text(), "Secret");
    assert_eq!(nobody(&["maintenance-mode", "Public"]), done("Maintenance mode is enabled: Public\n"));
}

#[test]
fn disable() {
    let place = Place::new();
    let off = || done("Maintenance mode is disabled\n");
    assert_eq!(place.maintenance_mode(&["--disable"]), off(), "off already is not an error");
    place.maintenance_mode(&["Updating"]);
    assert_eq!(place.maintenance_mode(&["--disable"]), off());
    assert_eq!(place.names(), [""; 0]);
    assert_eq!(place.maintenance_mode(&["--disable", "--file", "missing/MAINTENANCE"]), off());

    std::os::unix::fs::symlink("nowhere", place.path().join("MAINTENANCE")).unwrap();
    assert_eq!(place.maintenance_mode(&["--disable"]), off());
    assert_eq!(place.names(), [""; 0], "a dangling symlink goes, too");
}

#[test]
fn another_file_may_keep_it_on() {
    let place = Place::new();
    place.write("fleet", "Fleet");
    let files = ["--file", "MAINTENANCE", "--file", "fleet"];
    let command = |arguments: &[&str]| place.maintenance_mode(&[&files, arguments].concat());
    assert_eq!(command(&[]), done("Maintenance mode is enabled: Fleet\n"));
    assert_eq!(command(&["Pod"]), done("Maintenance mode is enabled: Pod\n"));
    assert_eq!(place.text(), "Pod");
    let still_on = Printed {
        code: Some(1),
        stdout: "Maintenance mode is enabled: Fleet\n".to_owned(),
        stderr: "pitstop: fleet keeps maintenance mode on: remove it too\n".to_owned(),
    };
    assert_eq!(command(&["--disable"]), still_on);
    assert_eq!(place.names(), ["fleet"]);
    assert_eq!(command(&["--disable"]), still_on);
}

#[test]
fn json() {
    let place = Place::new();
    let off = r#"{"enabled":false,"reason":null,"since":null,"until":null,"file":null}"#;
    assert_eq!(place.maintenance_mode(&["--output", "json"]), done(&format!("{off}\n")));
    assert_eq!(place.maintenance_mode(&["--output=json", "--disable"]), done(&format!("{off}\n")));

    let printed = place.maintenance_mode(&["a \"b\"\nc\u{1b}", "--until", "2999-01-01T00:00:00Z", "--output", "json"]);
    let since: Timestamp =
        fs::metadata(place.path().join("MAINTENANCE")).unwrap().modified().unwrap().try_into().unwrap();
    let on = format!(
        r#"{{"enabled":true,"reason":"a \"b\"\nc\u001b","since":"{since}","until":"2999-01-01T00:00:00Z","file":"MAINTENANCE"}}"#
    );
    assert_eq!(printed, done(&format!("{on}\n")));
}

#[test]
fn a_time_in_the_future_is_now() {
    let place = Place::new();
    place.write("MAINTENANCE", "");
    let file = File::open(place.path().join("MAINTENANCE")).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(86400)).unwrap();
    let json: serde_json::Value = serde_json::from_str(&place.maintenance_mode(&["--output", "json"]).stdout).unwrap();
    let since: Timestamp = json["since"].as_str().unwrap().parse().unwrap();
    assert!(since <= Timestamp::now());
}

#[test]
fn everybody_may_read_the_file() {
    for umask in ["000", "077", "777"] {
        let place = Place::new();
        let script = format!("umask {umask}; exec \"$@\"");
        let mut command = pitstop_in(place.path(), &["maintenance-mode", "Updating"]);
        behind(&["sh", "-c", &script, "sh"], &mut command);
        assert_eq!(Printed::from(command.output().unwrap()).code, Some(0));
        let mode = fs::metadata(place.path().join("MAINTENANCE")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o644, "umask {umask}");
    }
}

#[test]
fn a_reader_sees_one_text_or_the_other() {
    let place = Place::new();
    let texts = ["a".repeat(12_000), "b".repeat(9_000)];
    let (stop, reads) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = [false; 2];
            while !stop.load(Ordering::Relaxed) {
                match fs::read_to_string(place.path().join("MAINTENANCE")) {
                    Ok(text) => {
                        let which = texts.iter().position(|whole| *whole == text);
                        seen[which.unwrap_or_else(|| panic!("{} bytes of text", text.len()))] = true;
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
                }
                reads.store(seen == [true; 2], Ordering::Relaxed);
            }
        });
        let mut switches = 0;
        eventually("a hundred switches, and both texts are read", || {
            for arguments in [&[texts[0].as_str()][..], &[&texts[1]], &["--disable"]] {
                assert_eq!(place.maintenance_mode(arguments).code, Some(0));
                switches += 1;
            }
            reader.is_finished() || (switches > 100 && reads.load(Ordering::Relaxed))
        });
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(place.names(), [""; 0], "no temporary file is left");
}

#[test]
fn a_change_that_cannot_be_made_is_one_line() {
    let place = Place::new();
    place.write("plain", "");
    fs::create_dir_all(place.path().join("full/MAINTENANCE/in it")).unwrap();
    let missing = "pitstop: there is no directory missing: create it, or name another file with --file\n";
    let not_one = "pitstop: there is no directory plain: create it, or name another file with --file\n";
    let directory = "pitstop: full/MAINTENANCE is a directory: remove it, then try again\n";
    let no_name = "pitstop: full/ does not name a file: give a path such as /maintenance/MAINTENANCE\n";
    for (file, reason, code, stderr) in [
        ("missing/MAINTENANCE", "Updating", 1, missing),
        ("plain/MAINTENANCE", "Updating", 1, not_one),
        ("full/MAINTENANCE", "Updating", 1, directory),
        ("full/MAINTENANCE", "--disable", 1, directory),
        ("full/", "Updating", 2, no_name),
    ] {
        assert_eq!(place.maintenance_mode(&["--file", file, reason]), failed(code, stderr));
    }
    assert_eq!(fs::read_dir(place.path().join("full")).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn no_permission_is_one_line() {
    let place = Place::new();
    fs::create_dir(place.path().join("m")).unwrap();
    place.write("m/MAINTENANCE", "Root's");
    fs::set_permissions(place.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let nobody = |arguments: &[&str]| {
        let arguments = [&["maintenance-mode", "--file", "m/MAINTENANCE"], arguments].concat();
        Running::start(user(place.path(), 65534, "022", &arguments)).ended()
    };
    let denied = "pitstop: no permission to change m/MAINTENANCE: run as a user who may write to its directory\n";
    assert_eq!(nobody(&[]), done("Maintenance mode is enabled: Root's\n"));
    assert_eq!(nobody(&["Updating"]), failed(1, denied));
    assert_eq!(nobody(&["--disable"]), failed(1, denied));

    fs::set_permissions(place.path().join("m"), PermissionsExt::from_mode(0o700)).unwrap();
    let closed = "pitstop: m/MAINTENANCE cannot be examined: Permission denied (os error 13)\n";
    assert_eq!(nobody(&[]), failed(1, closed));
    assert_eq!(nobody(&["Updating"]), failed(1, denied));
    assert_eq!(nobody(&["--disable"]), failed(1, denied));
}

#[test]
fn a_full_disk_is_one_line() {
    let place = Place::new();
    fs::create_dir(place.path().join("m")).unwrap();
    // Whatever is left over there fails the last command, whose exit code and output are looked at here.
    let full = "mount -t tmpfs -o size=4k none m; echo Before > m/MAINTENANCE; \
                \"$@\" && exit 99 || code=$?; echo $code; ls -A m; cat m/MAINTENANCE; set -- true";
    let printed = mounted(place.path(), full, &["--file", "m/MAINTENANCE", "maintenance-mode", "Updating"]);
    let stderr = "pitstop: no space left in m: free some, then try again\n";
    let stdout = "1\nMAINTENANCE\nBefore\n".to_owned();
    assert_eq!(printed, Printed { code: Some(0), stdout, stderr: stderr.to_owned() });
}

#[test]
fn a_full_disk_turns_it_on_without_the_reason() {
    let place = Place::new();
    fs::create_dir(place.path().join("m")).unwrap();
    let full = "mount -t tmpfs -o size=4k none m; echo x > m/full; \"$@\" || exit; ls -A m; stat -c %a:%s m/MAINTENANCE; set -- true";
    let printed = mounted(place.path(), full, &["--file", "m/MAINTENANCE", "maintenance-mode", "Cleaning up"]);
    let stdout = "Maintenance mode is enabled\nMAINTENANCE\nfull\n644:0\n";
    assert_eq!((printed.code, printed.stdout.as_str()), (Some(0), stdout), "{}", printed.stderr);
    assert!(
        printed.stderr.ends_with(" WARN m is full: maintenance mode is on, but without the reason\n"),
        "{}",
        printed.stderr
    );
}

#[test]
fn what_reads_like_a_command_is_no_reason() {
    let place = Place::new();
    for (reason, command) in [
        ("off", "pitstop maintenance-mode --disable"),
        (" Disable ", "pitstop maintenance-mode --disable"),
        ("stop", "pitstop maintenance-mode --disable"),
        ("false", "pitstop maintenance-mode --disable"),
        ("ON", "pitstop maintenance-mode \"Updating the instance\""),
        ("true", "pitstop maintenance-mode \"Updating the instance\""),
        ("status", "pitstop maintenance-mode"),
        ("help", "pitstop maintenance-mode --help"),
    ] {
        let printed = place.maintenance_mode(&[reason]);
        assert_eq!((printed.code, printed.stdout.as_str()), (Some(2), ""), "{reason}");
        assert!(
            printed.stderr.contains(&format!("run `{command}`"))
                || printed.stderr.contains(&format!("why: `{command}`")),
            "{}",
            printed.stderr
        );
        assert_eq!(place.names(), Vec::<String>::new(), "{reason}");
    }
    assert_eq!(place.maintenance_mode(&["--", "off"]), done("Maintenance mode is enabled: off\n"));
    assert_eq!(place.maintenance_mode(&["The off switch"]), done("Maintenance mode is enabled: The off switch\n"));
    assert_eq!(place.maintenance_mode(&["--disable", "--", "off"]).code, Some(2));
}

#[test]
fn a_name_that_is_not_utf8_will_do() {
    let place = Place::new();
    let name = std::ffi::OsStr::from_bytes(b"MAINT\xff");
    let mut command = pitstop_in(place.path(), &["maintenance-mode", "Updating"]);
    assert_eq!(command.env("PITSTOP_FILE", name).output().unwrap().status.code(), Some(0));
    assert_eq!(fs::read_to_string(place.path().join(name)).unwrap(), "Updating");
}
