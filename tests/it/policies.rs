//! What an operator lets through in maintenance: by method, by path, by address.

use std::fs;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, OnceLock};

use hyper::Request;
use tempfile::tempdir;

use crate::application::{Application, BodyOf, Client, Message, http2, whole};
use crate::fixture::{Sidecar, eventually, pitstop};
use crate::permits::{enabled, wait_in};
use crate::running::{Place, failed};
use crate::server::Server;
use crate::upstream_errors::Nobody;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn outcome(gate: &Sidecar, outcome: &str) -> f64 {
    gate.metric(&format!("pitstop_requests_total{{outcome=\"{outcome}\"}}"))
}

/// A gate in maintenance.
fn closed(application: &Application, flags: &[&str]) -> Sidecar {
    let gate = application.gate_with(flags);
    fs::write(gate.file(), "Updating").unwrap();
    eventually("it is in maintenance", || gate.is_on(Some("Updating")));
    gate
}

/// The status of the answer to a request with this first line and these header lines.
#[track_caller]
fn status(gate: &Sidecar, first: &str, lines: &str) -> u16 {
    let mut client = Client::of(gate);
    client.send(format!("{first} HTTP/1.1\r\nHost: shop\r\n{lines}\r\n"));
    let of = if first.starts_with("HEAD") { BodyOf::AnswerToHead } else { BodyOf::Answer };
    client.try_answer(of).expect("an answer").status()
}

fn targets(application: &Application) -> Vec<String> {
    application.asked().iter().map(|asked| asked.message.target().to_owned()).collect()
}

#[test]
fn reading_goes_on() {
    let application = Application::new(|visitor| {
        while let Some(request) = visitor.request() {
            visitor.write(if request.first.starts_with("HEAD") { "HTTP/1.1 204 No Content\r\n\r\n" } else { OK });
        }
    });
    let gate = closed(&application, &["--allow-method", "GET,HEAD", "--allow-method", "OPTIONS"]);
    assert_eq!(status(&gate, "GET /a", ""), 200);
    assert_eq!(status(&gate, "HEAD /b", ""), 204);
    assert_eq!(status(&gate, "OPTIONS *", ""), 200);
    assert_eq!(status(&gate, "POST /c", "Content-Length: 0\r\n"), 503);
    assert_eq!(status(&gate, "DELETE /c", ""), 503);
    assert_eq!(status(&gate, "get /c", ""), 503);
    assert_eq!(status(&gate, "GET /c", "X-HTTP-Method-Override: DELETE\r\n"), 503);
    assert_eq!(status(&gate, "GET /c", "X_HTTP_METHOD_OVERRIDE: DELETE\r\n"), 503);
    assert_eq!(status(&gate, "GET /c", "X.HTTP.Method.Override: DELETE\r\n"), 503);
    let websocket =
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n";
    assert_eq!(status(&gate, "GET /c", websocket), 503);
    let mut client = Client::of(&gate);
    for method in ["GET", "OPTIONS"] {
        let request = format!("{method} /c HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!(client.ask(request).status(), 503, "{method}");
    }
    http2(&gate, async |mut sender| {
        for (method, expected) in [("GET", 200), ("PUT", 503)] {
            let request = Request::builder().method(method).uri("http://shop/d").body(whole("")).unwrap();
            assert_eq!(sender.send_request(request).await.unwrap().status(), expected);
        }
    });
    assert_eq!(targets(&application), ["/a", "/b", "*", "/d"]);
    assert_eq!((outcome(&gate, "allowed"), outcome(&gate, "refused"), outcome(&gate, "forwarded")), (4.0, 10.0, 0.0));
    // Off, it is forwarded as ever.
    assert_eq!(gate.run(&["maintenance-mode", "--disable", "--wait"]).code, Some(0));
    assert_eq!(status(&gate, "GET /e", ""), 200);
    eventually("it is counted", || outcome(&gate, "forwarded") == 1.0);
    assert_eq!(outcome(&gate, "allowed"), 4.0);
}

#[test]
fn the_application_sees_no_path_but_those_that_are_allowed() {
    let application = Application::answering(OK);
    let gate = closed(&application, &["--allow-path", "/webhooks/,/healthz"]);
    let allowed = ["/webhooks/", "/webhooks/a/b?x=/../y", "/healthz", "/healthz?full", "http://shop/webhooks/x"];
    for target in allowed {
        assert_eq!(status(&gate, &format!("POST {target}"), "Content-Length: 0\r\n"), 200, "{target}");
    }
    let seen = ["/webhooks/", "/webhooks/a/b?x=/../y", "/healthz", "/healthz?full", "/webhooks/x"];
    assert_eq!(targets(&application), seen);
    for target in [
        "/",
        "/webhooks",
        "/Webhooks/",
        "/webhooks/../admin",
        "/webhooks/%2e%2e/admin",
        "/webhooks/%2E./admin",
        "/webhooks/..%2fadmin",
        "/webhooks%2fx",
        "/webhooks/..%5cadmin",
        "/webhooks/..\\admin",
        "/webhooks//admin",
        "//webhooks/",
        "/webhooks/..;/admin",
        "/webhooks/;/../admin",
        "/webhooks/%00",
        "/webhooks/\0",
        "/webhooks/\t../admin",
        "/webhooks/%252e%252e/admin",
        "/webhooks/%c0%ae%c0%ae/admin",
        "/webhooks/\u{ff0e}\u{ff0e}/admin",
        "/%77ebhooks/",
        "/healthz/",
        "/healthz%20",
        "/healthz;x",
        "http://shop/webhooks/../admin",
        "http://shop//webhooks/",
        "http://webhooks/",
        "http://shop",
        "webhooks/",
        "*",
        "?/webhooks/",
        "#/webhooks/",
    ] {
        let status = status(&gate, &format!("POST {target}"), "Content-Length: 0\r\n");
        assert!(matches!(status, 400 | 503), "{status} for {target}");
    }
    for name in ["X-Original-URL", "X-Rewrite-URL", "X_Original_URL", "X.Original.URL", "SCRIPT_NAME", "PATH_INFO"] {
        assert_eq!(status(&gate, "GET /webhooks/x", &format!("{name}: /admin\r\n")), 503, "{name}");
    }
    assert_eq!(targets(&application), seen);
    // A fragment is no part of a target.
    assert_eq!(status(&gate, "GET /webhooks/x#/../../admin", ""), 400);
    assert_eq!(targets(&application), seen);
}

#[test]
fn a_server_that_takes_a_header_for_a_part_of_the_path_does_not_get_it() {
    let server = Server::gunicorn(&[]);
    let gate = server.gate_with(&["--allow-path", "/webhooks/"]);
    let lines = "SCRIPT_NAME: /webhooks\r\n";
    let ask = |lines: &str| Client::of(&gate).ask(format!("GET /webhooks/admin HTTP/1.1\r\nHost: shop\r\n{lines}\r\n"));
    let path = |answer: Message| serde_json::from_str::<serde_json::Value>(&answer.text()).unwrap()["path"].clone();
    assert_eq!(path(ask(lines)), "/admin", "what it makes of it");
    fs::write(gate.file(), "Updating").unwrap();
    eventually("it is in maintenance", || gate.is_on(Some("Updating")));
    assert_eq!(ask(lines).status(), 503);
    assert_eq!(path(ask("")), "/webhooks/admin");
}

#[test]
fn an_address_is_let_through() {
    let application = Application::answering(OK);
    let gate = closed(&application, &["--allow-from", "192.0.2.1,127.0.0.0/8"]);
    assert_eq!(status(&gate, "POST /", "Content-Length: 0\r\n"), 200);
    for line in [
        "X-Forwarded-For: 127.0.0.1",
        "X.Forwarded.For: 127.0.0.1",
        "Forwarded: for=127.0.0.1",
        "X-Real-IP: 127.0.0.1",
        "Via: 1.1 edge",
    ] {
        assert_eq!(status(&gate, "GET /", &format!("{line}\r\n")), 503, "{line}");
    }
    let gate = closed(&application, &["--allow-from", "192.0.2.1"]);
    assert_eq!(status(&gate, "GET /", ""), 503);
    assert_eq!(status(&gate, "GET /", "X-Forwarded-For: 192.0.2.1\r\n"), 503);

    let gate = closed(&application, &["--allow-from", "192.0.2.0/24", "--trusted-proxy", "127.0.0.1,10.0.0.0/8"]);
    let from = |lines: &str| status(&gate, "GET /", lines);
    assert_eq!(from("X-Forwarded-For: 192.0.2.7\r\n"), 200);
    assert_eq!(from("X-Forwarded-For: 198.51.100.1, 192.0.2.7, 10.1.1.1\r\n"), 200);
    assert_eq!(from("X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: 192.0.2.7\r\n"), 200);
    assert_eq!(from("X-Forwarded-For: 192.0.2.7, 198.51.100.1\r\n"), 503);
    assert_eq!(from("X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-For: 198.51.100.1\r\n"), 503);
    assert_eq!(from("X-Forwarded-For: 192.0.2.7:80\r\n"), 503);
    assert_eq!(from("X-Forwarded-For: 192.0.2.7, unknown\r\n"), 503);
    assert_eq!(from("Connection: X-Forwarded-For\r\nX-Forwarded-For: 198.51.100.1\r\n"), 503);
    assert_eq!(from("Forwarded: for=192.0.2.7\r\n"), 503);
    assert_eq!(from(""), 503);

    // A client that comes from where the proxies are could name itself another of them.
    let gate = closed(&application, &["--allow-from", "10.0.0.0/8", "--trusted-proxy", "127.0.0.1,10.0.0.0/8"]);
    assert_eq!(status(&gate, "GET /", "X-Forwarded-For: 10.1.1.1\r\n"), 503);
    assert_eq!(status(&gate, "GET /", "X-Forwarded-For: 10.9.9.9, 10.1.1.1\r\n"), 503);
}

#[test]
fn an_ipv4_address_is_one_on_a_socket_of_both_families() {
    let application = Application::answering(OK);
    let directory = Arc::new(tempdir().unwrap());
    fs::write(directory.path().join("MAINTENANCE"), "Updating").unwrap();
    let mut command = pitstop();
    command.args(["serve", "--listen", "[::]:0", "--admin-listen", "127.0.0.1:0", "--allow-from", "127.0.0.1"]);
    application.behind(command.current_dir(directory.path()));
    let mut gate = Sidecar::spawn(directory, command);
    gate.traffic = ([127, 0, 0, 1], gate.traffic.port()).into();
    assert_eq!(status(&gate, "GET /", ""), 200);
    gate.traffic = (std::net::Ipv6Addr::LOCALHOST, gate.traffic.port()).into();
    assert_eq!(status(&gate, "GET /", ""), 503);
}

/// An application that answers when it is let go.
fn slow() -> (Application, std::sync::mpsc::Sender<()>) {
    let (let_go, wait) = channel();
    let wait: Mutex<Receiver<()>> = Mutex::new(wait);
    let application = Application::new(move |visitor| {
        while visitor.request().is_some() {
            visitor.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no");
            let _ = wait.lock().unwrap().recv();
            visitor.write("k");
        }
    });
    (application, let_go)
}

#[test]
fn what_is_let_through_holds_up_nothing_and_is_not_cut() {
    let (application, let_go) = slow();
    let gate = application.gate_with(&["--allow-path", "/webhooks/", "--drain-timeout", "300ms"]);
    // One that came before is waited for, and cut: it holds a permit.
    let mut before = Client::of(&gate);
    before.send("GET /webhooks/before HTTP/1.1\r\nHost: shop\r\n\r\n");
    eventually("the application has it", || application.asked().len() == 1);
    fs::write(gate.file(), "Updating").unwrap();
    eventually("it is in maintenance", || gate.is_on(Some("Updating")));
    let mut client = Client::of(&gate);
    client.send("GET /webhooks/x HTTP/1.1\r\nHost: shop\r\n\r\n");
    let mut answer = Message::head(&mut client.0).unwrap();
    assert_eq!(gate.state()["in_flight"], 1, "the other one");
    assert!(!before.answer().is_complete);
    eventually("it is counted", || outcome(&gate, "cut") == 1.0);
    drop(before);
    let mut wait = wait_in(gate.path());
    wait.keeps_asking();
    let_go.send(()).unwrap();
    // It has been let go after that, and the other is under way.
    assert_eq!(wait.ended(), enabled());
    assert_eq!((gate.state()["in_flight"].as_i64(), outcome(&gate, "allowed")), (Some(0), 0.0));
    drop(let_go);
    answer.read_body(&mut client.0, BodyOf::Answer);
    assert_eq!((answer.text().as_str(), answer.is_complete), ("ok", true));
    eventually("it is counted", || outcome(&gate, "allowed") == 1.0);
    assert_eq!((outcome(&gate, "cut"), outcome(&gate, "forwarded")), (1.0, 0.0));
}

#[test]
fn what_is_let_through_to_nobody_is_still_counted_as_such() {
    let nobody = Nobody::new();
    let upstream = format!("http://{}", nobody.address);
    let gate = Sidecar::with(|command| _ = command.args(["--upstream", &upstream, "--allow-path", "/webhooks/"]));
    fs::write(gate.file(), "Updating").unwrap();
    eventually("it is in maintenance", || gate.is_on(Some("Updating")));
    assert_eq!(status(&gate, "GET /webhooks/x", ""), 502);
    assert_eq!((outcome(&gate, "allowed"), outcome(&gate, "failed")), (1.0, 0.0));
    assert_eq!(gate.metric("pitstop_upstream_errors_total{cause=\"connect\"}"), 1.0);
}

#[test]
fn while_maintenance_mode_is_not_known_it_counts_as_on() {
    static APPLICATION: OnceLock<Application> = OnceLock::new();
    let application = APPLICATION.get_or_init(|| Application::answering(OK));
    let directory = Arc::new(tempdir().unwrap());
    std::os::unix::fs::symlink("MAINTENANCE", directory.path().join("MAINTENANCE")).unwrap();
    let gate = Sidecar::sharing(directory, |command| {
        application.behind(command.args(["--allow-method", "GET", "--hold", "1h"]));
    });
    assert_eq!(gate.state()["enabled"], serde_json::Value::Null);
    assert_eq!(status(&gate, "POST /", "Content-Length: 0\r\n"), 503);
    assert_eq!(status(&gate, "GET /", ""), 200);
    assert_eq!(outcome(&gate, "allowed"), 1.0);
}

#[test]
fn flags_that_make_no_sense_are_told_in_a_line() {
    let place = Place::new();
    let serve = |arguments: &[&str]| place.run(&[&["serve"], arguments].concat());
    for (flag, value) in [
        ("--hold", "5s"),
        ("--hold-limit", "5"),
        ("--allow-method", "GET"),
        ("--allow-path", "/a"),
        ("--allow-from", "::1"),
        ("--trusted-proxy", "::1"),
        ("--bypass-token-file", "token"),
    ] {
        let says = format!("pitstop: {flag} is about requests to an application: name it with --upstream\n");
        assert_eq!(serve(&[flag, value]), failed(2, &says));
    }
    let gate = |arguments: &[&str]| serve(&[&["--upstream", "http://127.0.0.1:1"], arguments].concat());
    let says = "pitstop: --trusted-proxy says who may name the clients of --allow-from: give that, too\n";
    assert_eq!(gate(&["--trusted-proxy", "::1"]), failed(2, says));
    let says = "pitstop: --hold-limit says how many may wait for as long as --hold: give that, too\n";
    assert_eq!(gate(&["--hold-limit", "5"]), failed(2, says));
    for (flag, value, says) in [
        ("--hold <TIME>", "soon", "\"soon\" is not a length of time: write it like 90, 90s, 500ms or 1h30m"),
        ("--hold-limit <NUMBER>", "-1", ""),
        ("--hold-limit <NUMBER>", "many", "it must be a number from 1 to 4294967295"),
        ("--hold-limit <NUMBER>", "0", "it must be a number from 1 to 4294967295"),
        ("--allow-method <METHOD>", "get", "not a method: write it in upper case, such as GET"),
        ("--allow-method <METHOD>", "CONNECT", "tunnels are never forwarded"),
        ("--allow-path <PATH>", "webhooks/", "not a path such as /webhooks/: it must begin with a slash"),
        (
            "--allow-path <PATH>",
            "/a%20b",
            "a path that could be read in two ways is never let through: leave out %, ;, \\, //, . and .. segments",
        ),
        ("--allow-from <CIDR>", "office", "not a network such as 10.0.0.0/8 or 2001:db8::/32, nor an address"),
        ("--allow-from <CIDR>", "10.0.0.0/40", "its prefix must be a number from 0 to 32"),
        ("--trusted-proxy <CIDR>", "0.0.0.0/0", "anybody could name any address then: give those of the proxies"),
        ("--trusted-proxy <CIDR>", "::/0", "anybody could name any address then: give those of the proxies"),
        ("--trusted-proxy <CIDR>", "::ffff:0:0/96", "anybody could name any address then: give those of the proxies"),
        (
            "--trusted-proxy <CIDR>",
            "10.1.2.3/8",
            "it has bits beyond its prefix: 10.0.0.0/8 is the network that it is in",
        ),
    ] {
        let printed = gate(&[flag.split(' ').next().unwrap(), value]);
        let expected = format!("pitstop: invalid value '{value}' for '{flag}': {says} (see --help)\n");
        if !says.is_empty() {
            assert_eq!(printed.stderr, expected);
        }
        assert_eq!((printed.code, printed.stderr.lines().count()), (Some(2), 1), "{}", printed.stderr);
    }
}
