//! The log: one line an event, whatever is in it, and no more of them than somebody wants to read.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::fixture::{Printed, SERVE, Sidecar, behind, ended, eventually, exchange, pitstop, signal};

/// A sidecar that logs to a file.
struct Logging {
    child: Child,
    directory: TempDir,
}

impl Logging {
    fn with(change: impl FnOnce(&mut Command)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = pitstop();
        command.args(SERVE).args(["--shutdown-delay", "0"]);
        command.current_dir(directory.path()).stderr(File::create(directory.path().join("log")).unwrap());
        change(&mut command);
        let child = command.spawn().unwrap();
        let sidecar = Self { child, directory };
        // This is the first that the sidecar does after it has begun to catch signals.
        eventually("it holds a permit", || sidecar.directory.path().join(".MAINTENANCE.lock").exists());
        sidecar
    }

    fn lines(&self) -> Vec<String> {
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap();
        log.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(|line| line.trim_end().to_owned()).collect()
    }

    /// Turns maintenance mode on, and waits until the sidecar has taken it up.
    fn enable(&self, reason: &str) {
        let mut command = pitstop();
        command.args(["maintenance-mode", reason, "--wait=60s"]).current_dir(self.directory.path());
        assert_eq!(Printed::from(command.output().unwrap()).code, Some(0));
    }

    fn stop(&mut self) -> Option<i32> {
        signal(self.child.id(), "TERM");
        ended(&mut self.child).code()
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a sidecar's log, each less its time.
fn lines(sidecar: &Sidecar) -> Vec<String> {
    let untimed = |line: &str| {
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "{line}");
        rest.trim_start().to_owned()
    };
    sidecar.log().lines().map(untimed).collect()
}

#[test]
fn a_change_is_logged_with_reason_and_file() {
    let sidecar = Sidecar::start();
    sidecar.run(&["maintenance-mode", "Updating the \"instance\""]);
    eventually("it is on", || lines(&sidecar).len() > 1);
    sidecar.run(&["maintenance-mode", "Nearly done", "--until", "2036-01-01T00:00:00Z"]);
    eventually("it has changed", || lines(&sidecar).len() > 2);
    fs::remove_file(sidecar.file()).unwrap();
    eventually("it is off", || lines(&sidecar).len() > 3);
    let lines = lines(&sidecar);
    let file = "file=MAINTENANCE since=";
    assert!(
        lines[1].starts_with(&format!("INFO maintenance mode enabled reason=\"Updating the \\\"instance\\\"\" {file}"))
    );
    assert!(lines[2].starts_with(&format!("INFO maintenance mode changed reason=\"Nearly done\" {file}")), "{lines:?}");
    assert!(lines[2].ends_with(" until=\"2036-01-01T00:00:00Z\""), "{lines:?}");
    assert_eq!(lines[3..], ["INFO maintenance mode disabled"]);
}

#[test]
fn as_json() {
    for (flags, variable) in [(&["--log-format", "json"][..], None), (&[], Some("json"))] {
        let mut sidecar = Logging::with(|command| {
            command.args(flags).envs(variable.map(|format| ("PITSTOP_LOG_FORMAT", format)));
        });
        sidecar.enable("Updating the \"instance\"");
        assert_eq!(sidecar.stop(), Some(0));
        let events: Vec<serde_json::Value> =
            sidecar.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        for event in &events {
            assert!(event["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{event}");
            assert_eq!(event["level"], "INFO", "{event}");
            assert!(event["message"].is_string(), "{event}");
        }
        assert!(events[0]["message"].as_str().unwrap().ends_with("is serving"), "{events:?}");
        for listener in ["admin", "traffic"] {
            assert!(events[0][listener].as_str().unwrap().starts_with("127.0.0.1:"), "{events:?}");
        }
        let enabled = events.iter().find(|event| event["message"] == "maintenance mode enabled").unwrap();
        assert_eq!(enabled["reason"], "Updating the \"instance\"");
        assert_eq!(enabled["file"], "MAINTENANCE");
        assert!(enabled["since"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{enabled}");
        assert_eq!(events.last().unwrap()["message"], "stopped");
    }
}

#[test]
fn nothing_is_logged_per_request() {
    let sidecar = Sidecar::start();
    for _ in 0..50 {
        assert_eq!((sidecar.admin("/readyz").status, sidecar.traffic("/", &[]).status), (200, 503));
    }
    assert_eq!(exchange(sidecar.traffic, b"nonsense\r\n\r\n").status, 400);
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    assert_eq!(exchange(sidecar.traffic, long.as_bytes()).status, 431);
    fs::write(sidecar.file(), "").unwrap();
    eventually("a change is logged", || lines(&sidecar).len() > 1);
    let lines = lines(&sidecar);
    assert!(lines[0].contains("is serving") && lines[1].contains("maintenance mode enabled"), "{lines:?}");
    assert_eq!(lines.len(), 2);
}

#[test]
fn no_reason_can_forge_a_line() {
    // What is written, and what is logged of it.
    let table = [
        ("a\nINFO stopped", "a INFO stopped"),
        ("b\r\n\tc\u{2028}d\u{85}e", "b c d e"),
        ("\u{1b}[31mred\u{1b}[0m\u{7} and \u{9b}32mgreen", "[31mred[0m and 32mgreen"),
        ("\u{202e}gnitadpu\u{202c} \u{2066}x\u{2069}", "gnitadpu x"),
    ];
    let mut text = Logging::with(|_| {});
    let mut json = Logging::with(|command| _ = command.args(["--log-format", "json"]));
    for sidecar in [&text, &json] {
        for (number, (reason, _)) in table.iter().enumerate() {
            fs::write(sidecar.directory.path().join("draft"), reason).unwrap();
            fs::rename(sidecar.directory.path().join("draft"), sidecar.directory.path().join("MAINTENANCE")).unwrap();
            eventually("it is logged", || sidecar.lines().len() >= number + 2);
        }
    }
    assert_eq!((text.stop(), json.stop()), (Some(0), Some(0)));
    for ((_, logged), (text, json)) in table.iter().zip(text.lines()[1..].iter().zip(&json.lines()[1..])) {
        assert!(text.contains(&format!(" reason=\"{logged}\" file=MAINTENANCE ")), "{text}");
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(json["reason"], *logged);
    }
    // Those, the first and the last two.
    assert_eq!((text.lines().len(), json.lines().len()), (table.len() + 3, table.len() + 3));
}

#[test]
fn no_path_can_either() {
    let name = "MAIN\n2026-01-01  INFO stopped\u{1b}[31m";
    let sidecar = Sidecar::with(|command| _ = command.args(["--file", name]));
    fs::create_dir(sidecar.path().join(name)).unwrap();
    eventually("it is logged", || sidecar.log().contains("maintenance mode enabled"));
    fs::remove_dir(sidecar.path().join(name)).unwrap();
    eventually("it is off", || sidecar.log().contains("maintenance mode disabled"));
    let lines = lines(&sidecar);
    assert!(lines.iter().all(|line| !line.contains('\u{1b}')), "{lines:?}");
    let starts: Vec<_> = lines.iter().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(starts, ["INFO pitstop", "WARN MAIN", "INFO maintenance", "INFO maintenance"], "{lines:?}");
}

#[test]
fn levels() {
    let serving = format!("INFO pitstop {} is serving", env!("CARGO_PKG_VERSION"));
    let all = [&*serving, "INFO maintenance mode enabled", "INFO accepting no more connections", "INFO stopped"];
    let none: &[&str] = &[];
    let table = [
        (None, &all[..]),
        (Some("info"), &all),
        (Some("INFO"), &all),
        (Some("off"), none),
        (Some("error"), none),
        (Some("warn"), none),
        (Some("warn,pitstop=info"), &all),
        (Some("off,pitstop::shutdown=info"), &all[2..3]),
        (Some("info,pitstop::maintenance=off"), &[all[0], all[2], all[3]]),
    ];
    for (level, expected) in table {
        let mut sidecar = Logging::with(|command| _ = level.map(|level| command.env("PITSTOP_LOG", level)));
        sidecar.enable("x");
        assert_eq!(sidecar.stop(), Some(0));
        let lines = sidecar.lines();
        assert_eq!(lines.len(), expected.len(), "{level:?}: {lines:?}");
        // In no order: the thread that watches logs a change when it has published it, and by then others may log.
        for expected in expected {
            assert!(lines.iter().any(|line| line.contains(expected)), "{level:?}: {lines:?}");
        }
    }
    let sidecar = Sidecar::with(|command| _ = command.env("PITSTOP_LOG", "off").args(["--log", "debug"]));
    assert_eq!(exchange(sidecar.traffic, b"nonsense\r\n\r\n").status, 400);
    eventually("a flag comes before the environment", || {
        sidecar.log().contains("DEBUG a request of 127.0.0.1 is refused: ")
    });
}

#[test]
fn a_level_that_is_misspelt_is_named() {
    for level in ["loud", "inf", "", "info,h2", "info=loud"] {
        let output: Printed = pitstop().arg("serve").env("PITSTOP_LOG", level).output().unwrap().into();
        let line = format!(
            "pitstop: invalid value '{level}' for '--log <LEVEL>': {level:?} is not a level: \
             write off, error, warn, info, debug, trace, or a list like info,h2=debug (see --help)\n"
        );
        assert_eq!(output, Printed { code: Some(2), stdout: String::new(), stderr: line });
    }
}

#[test]
fn a_log_that_nobody_reads_stops_nothing() {
    let nobody = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    for stderr in [&nobody as &dyn Fn() -> Stdio, &full] {
        let mut sidecar = Logging::with(|command| _ = command.stderr(stderr()));
        sidecar.enable("Updating");
        assert_eq!(sidecar.stop(), Some(0));
    }
    // None at all.
    let mut sidecar = Logging::with(|command| behind(&["sh", "-c", "exec \"$@\" 2>&-", "sh"], command));
    sidecar.enable("Updating");
    assert_eq!(sidecar.stop(), Some(0));
}
