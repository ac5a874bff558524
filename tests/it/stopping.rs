//! Stopping: first out of rotation, then out of work, then gone; and in time.
//!
//! Needs podman, runc, strace and unshare (Debian: podman, runc, strace, util-linux), and root.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fixture::{Reply, SERVE, Sidecar, behind, connect, ended, eventually, pitstop, program, signal};
use crate::podman::Podman;

const FIRST_HALF: &[u8] = b"GET / HTTP/1.1\r\nHost: local";
const SECOND_HALF: &[u8] = b"host\r\n\r\n";
const STOPPING: &str = "[+]ping ok\n[+]maintenance-file ok\n[+]maintenance ok\n[-]shutdown failed: process is shutting down\nreadyz check failed\n";

fn with(flags: &[&str]) -> Sidecar {
    Sidecar::with(|command| _ = command.args(flags))
}

/// All that comes until the connection closes.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

fn is_draining(sidecar: &Sidecar) -> bool {
    sidecar.log().contains("accepting no more connections")
}

#[test]
fn readiness_fails_at_once_while_both_listeners_go_on() {
    let mut sidecar = with(&["--shutdown-delay", "1h"]);
    let mut kept = connect(sidecar.traffic);
    sidecar.signal("TERM");
    eventually("it is not ready", || sidecar.admin("/readyz").status == 503);
    assert_eq!(sidecar.admin("/readyz").body, STOPPING);
    assert_eq!(sidecar.admin("/readyz?exclude=shutdown").body, "ok");
    assert_eq!(sidecar.admin("/livez").body, "ok");
    assert_eq!(sidecar.admin("/healthz").body, "ok");
    assert_eq!(sidecar.traffic("/", &[]).status, 503);
    kept.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!(Reply::parse(&rest(&mut kept)).status, 503);
    // It has a whole hour, and the file is watched still.
    fs::write(sidecar.file(), "Updating").unwrap();
    eventually("maintenance begins", || sidecar.is_on(Some("Updating")));
    assert!(sidecar.child.try_wait().unwrap().is_none());
}

#[test]
fn then_the_process_ends() {
    let mut sidecar = with(&["--shutdown-delay", "300ms"]);
    let start = Instant::now();
    sidecar.signal("TERM");
    assert_eq!(sidecar.ended(), Some(0));
    assert!(start.elapsed() >= Duration::from_millis(300));
    let log = sidecar.log();
    let order =
        ["SIGTERM: not ready from now on, serving for another 300ms", "accepting no more connections", "stopped"];
    let places = order.map(|message| log.find(message).unwrap_or_else(|| panic!("no {message:?} in {log}")));
    assert!(places.is_sorted(), "{log}");
}

#[test]
fn sigint_skips_the_delay() {
    let mut sidecar = with(&["--shutdown-delay", "1h"]);
    sidecar.signal("INT");
    assert_eq!(sidecar.ended(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for (first, second, code) in [("TERM", "TERM", 143), ("TERM", "INT", 130)] {
        let mut sidecar = with(&["--shutdown-delay", "1h"]);
        sidecar.signal(first);
        eventually("it waits", || sidecar.log().contains("SIGTERM: not ready"));
        sidecar.signal(second);
        assert_eq!(sidecar.ended(), Some(code), "{first} and {second} while it waits");
    }
    for (first, second, code) in [("INT", "INT", 130), ("INT", "TERM", 143), ("TERM", "TERM", 143)] {
        let mut sidecar = with(&["--shutdown-delay", "0", "--drain-timeout", "1h", "--header-timeout", "1h"]);
        let mut busy = connect(sidecar.traffic);
        busy.write_all(FIRST_HALF).unwrap();
        assert_eq!(sidecar.traffic("/", &[]).status, 503);
        sidecar.signal(first);
        eventually("it drains", || is_draining(&sidecar));
        sidecar.signal(second);
        assert_eq!(sidecar.ended(), Some(code), "{first} and {second} while it drains");
    }
}

#[test]
fn a_request_that_has_begun_is_answered() {
    let mut sidecar = with(&["--drain-timeout", "1h", "--header-timeout", "1h"]);
    let (mut traffic, mut admin) = (connect(sidecar.traffic), connect(sidecar.admin));
    traffic.write_all(FIRST_HALF).unwrap();
    admin.write_all(FIRST_HALF).unwrap();
    // Those who come later are answered, so what came before has been read.
    assert_eq!((sidecar.traffic("/", &[]).status, sidecar.admin("/").status), (503, 404));
    sidecar.signal("INT");
    for address in [sidecar.traffic, sidecar.admin] {
        eventually("nobody else is let in", || TcpStream::connect(address).is_err());
    }
    assert!(sidecar.child.try_wait().unwrap().is_none());
    for (mut stream, status) in [(traffic, 503), (admin, 404)] {
        stream.write_all(SECOND_HALF).unwrap();
        let reply = Reply::parse(&rest(&mut stream));
        assert_eq!((reply.status, reply.header("connection")), (status, Some("close")));
    }
    assert_eq!(sidecar.ended(), Some(0));
    assert!(!sidecar.log().contains("cut"), "{}", sidecar.log());
}

#[test]
fn a_client_that_is_still_sending_may_finish() {
    let mut sidecar = with(&["--drain-timeout", "1h"]);
    let mut stream = connect(sidecar.traffic);
    stream.write_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf").unwrap();
    // The answer comes first.
    let mut first = [0; 12];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 503");
    sidecar.signal("INT");
    eventually("it drains", || is_draining(&sidecar));
    // Had the connection been reset, writing or reading would fail.
    stream.write_all(b" and").unwrap();
    stream.write_all(b" a").unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert!(bytes.ends_with(b"Temporarily unavailable\n"), "{bytes:?}");
    drop(stream);
    assert_eq!(sidecar.ended(), Some(0));
    assert!(!sidecar.log().contains("cut"), "{}", sidecar.log());
}

#[test]
fn who_does_not_finish_in_time_is_cut() {
    let flags = ["--shutdown-delay", "0", "--drain-timeout", "300ms", "--header-timeout", "1h"];
    for signal in ["TERM", "INT"] {
        let mut sidecar = with(&flags);
        let mut clients = [connect(sidecar.traffic), connect(sidecar.admin)];
        for stream in &mut clients {
            stream.write_all(FIRST_HALF).unwrap();
        }
        assert_eq!((sidecar.traffic("/", &[]).status, sidecar.admin("/").status), (503, 404));
        let start = Instant::now();
        sidecar.signal(signal);
        assert_eq!(sidecar.ended(), Some(0));
        assert!(start.elapsed() >= Duration::from_millis(300));
        assert!(sidecar.log().contains("requests still run after 300ms: they are aborted"), "{}", sidecar.log());
        for stream in &mut clients {
            assert_eq!(rest(stream), b"");
        }
    }
}

#[test]
fn idle_connections_delay_nothing() {
    /// What lingers after an answer does so for this long; nobody has to here.
    const LINGER: Duration = Duration::from_secs(5);
    let quick = (0..5).any(|_| {
        let mut sidecar = with(&["--drain-timeout", "1h", "--header-timeout", "1h", "--idle-timeout", "1h"]);
        let mut clients = Vec::new();
        let get = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        for (address, request) in [
            (sidecar.traffic, ""),
            (sidecar.traffic, get),
            (sidecar.traffic, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody"),
            (
                sidecar.traffic,
                "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            ),
            (sidecar.admin, ""),
            (sidecar.admin, get),
        ] {
            let mut stream = connect(address);
            stream.write_all(request.as_bytes()).unwrap();
            if !request.is_empty() {
                stream.read_exact(&mut [0; 12]).unwrap();
            }
            clients.push(stream);
        }
        sidecar.signal("INT");
        let start = Instant::now();
        assert_eq!(sidecar.ended(), Some(0));
        assert!(!sidecar.log().contains("cut"), "{}", sidecar.log());
        start.elapsed() < LINGER
    });
    assert!(quick, "it took more than {LINGER:?}, five times");
}

#[test]
fn a_signal_during_the_start_is_not_lost() {
    for step in 0..60 {
        let directory = tempfile::tempdir().unwrap();
        let mut command = pitstop();
        command.args(SERVE).args(["--shutdown-delay", "0"]).current_dir(directory.path()).stderr(Stdio::null());
        let start = Instant::now();
        let mut child = command.spawn().unwrap();
        // From before the program is loaded to after it serves.
        while start.elapsed() < Duration::from_micros(step * 300) {}
        signal(child.id(), "TERM");
        // Before it could catch the signal, the kernel has ended it: no code then.
        let code = ended(&mut child).code();
        assert!(matches!(code, None | Some(0)), "{code:?}");
    }
}

#[test]
fn nor_is_one_while_its_handler_is_installed() {
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace");
    let traced = |injected: &str| {
        let mut command = program("strace");
        command.args(["-D", "-f", "-qq", "-e", "trace=rt_sigaction", "-e", injected, "-o"]).arg(&trace);
        command.arg(pitstop().get_program()).args(SERVE).args(["--shutdown-delay", "0"]);
        command.current_dir(directory.path()).stderr(Stdio::null()).spawn().unwrap()
    };
    let lines = || fs::read_to_string(&trace).unwrap_or_default();
    let installs = |line: &str| line.contains("rt_sigaction(SIGTERM, {");
    // The first run shows which of the calls it is, in the second that one takes long.
    let mut child = traced("inject=rt_sigaction:delay_exit=1:when=1000");
    eventually("the handler is installed", || lines().lines().any(installs));
    let number = lines().lines().position(installs).unwrap() + 1;
    child.kill().unwrap();
    child.wait().unwrap();
    fs::remove_file(&trace).unwrap();
    let mut child = traced(&format!("inject=rt_sigaction:delay_exit=1s:when={number}"));
    eventually("the handler is installed", || lines().lines().any(installs));
    signal(child.id(), "TERM");
    assert_eq!(ended(&mut child).code(), Some(0));
}

#[test]
fn as_process_1() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let mut command = pitstop();
    command.args(SERVE).args(["--shutdown-delay", "0"]).current_dir(directory.path());
    behind(&["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"], &mut command);
    let mut sidecar = Sidecar::spawn(directory, command);
    let unshare = sidecar.child.id();
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", children.trim())).unwrap();
    assert!(status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")), "{status}");
    signal(children.trim().parse().unwrap(), "TERM");
    assert_eq!(sidecar.ended(), Some(0));
}

#[test]
fn in_a_container() {
    let podman = Podman::new(Path::new(pitstop().get_program()));
    let mut sidecar = podman.serve(&[], &["--shutdown-delay", "0"]);
    assert_eq!(sidecar.admin("/readyz").body, "ok");
    let exec = podman.command(&["exec", "pitstop", "/pitstop", "maintenance-mode", "Updating"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&exec.stdout), "Maintenance mode is enabled: Updating\n");
    eventually("maintenance begins", || sidecar.is_on(Some("Updating")));
    // Podman would kill it after ten minutes, with code 137.
    assert!(podman.command(&["stop", "--time=600", "pitstop"]).output().unwrap().status.success());
    assert_eq!(sidecar.ended(), Some(0));
    assert!(sidecar.log().contains("stopped"), "{}", sidecar.log());
}
