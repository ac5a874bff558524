//! fietsboek 0.11.0 behind the gate, used as with a browser; and pserve with an application that is slow.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::application::Client;
use crate::fietsboek::Fietsboek;
use crate::fixture::{Sidecar, connect, eventually};
use crate::permits::{enabled, wait_in};
use crate::server::{self, Server, applications, curl, curled};

/// What somebody uses who has a browser: it keeps cookies, and follows where it is sent.
struct Browser {
    cookies: tempfile::TempDir,
    base: String,
    version: &'static str,
}

impl Browser {
    fn new(gate: &Sidecar, version: &'static str) -> Self {
        Self { cookies: tempfile::tempdir().unwrap(), base: format!("http://{}", gate.traffic), version }
    }

    fn curl(&self, url: &str, arguments: &[&str]) -> String {
        let jar = self.cookies.path().join("jar");
        let mut command = curl();
        command.args([self.version, "--include", "--cookie"]).arg(&jar).arg("--cookie-jar").arg(&jar);
        curled(command.args(["--header", "Accept: text/html", "--header", "Expect:"]).args(arguments).arg(url))
    }

    /// The page at a path.
    #[track_caller]
    fn get(&self, path: &str) -> String {
        let (status, _, page) = parts(&self.curl(&format!("{}{path}", self.base), &[]));
        assert_eq!(status, "200", "{path}: {page}");
        page
    }

    /// What the form on a page carries so that it is known to be of this session.
    #[track_caller]
    fn form(&self, path: &str) -> String {
        let page = self.get(path);
        let (_, rest) = page.split_once("name=\"csrf_token\" value=\"").unwrap_or_else(|| panic!("no token in {page}"));
        format!("csrf_token={}", rest.split_once('"').unwrap().0)
    }

    /// Sends a form. Gives the status, and the page: where the browser is sent elsewhere, the location and the page there.
    /// curl itself cannot go there on the same HTTP/2 connection (7.88, from nginx neither).
    #[track_caller]
    fn send(&self, path: &str, fields: &[&str]) -> (String, String) {
        let (status, location, page) = parts(&self.curl(&format!("{}{path}", self.base), fields));
        let Some(location) = location else { return (status, page) };
        let (there, _, page) = parts(&self.curl(&location, &[]));
        assert_eq!(there, "200", "{location}: {page}");
        (format!("{status} {location}"), page)
    }
}

/// The status, the location and the page of an answer.
fn parts(answer: &str) -> (String, Option<String>, String) {
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    let location = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("location").then(|| value.to_owned())
    });
    (head.split(' ').nth(1).unwrap().to_owned(), location, page.to_owned())
}

/// A track of some size.
fn gpx(points: usize) -> String {
    let mut gpx = "<?xml version=\"1.0\"?>\n<gpx version=\"1.1\" creator=\"test\" \
                   xmlns=\"http://www.topografix.com/GPX/1/1\"><trk><name>Um den See</name><trkseg>\n"
        .to_owned();
    for point in 0..points {
        let (minute, second) = (point / 60 % 60, point % 60);
        gpx.push_str(&format!(
            "<trkpt lat=\"{}\" lon=\"{}\"><ele>{}</ele><time>2026-06-01T10:{minute:02}:{second:02}Z</time></trkpt>\n",
            49.0 + point as f64 / 1e5,
            11.0 + point as f64 / 1e5,
            300 + point % 50
        ));
    }
    gpx + "</trkseg></trk></gpx>\n"
}

/// The gate in front of its website. It shares the file with the sidecar, as in another pod.
fn gate(fietsboek: &Fietsboek, website: &Server) -> Sidecar {
    Sidecar::sharing(fietsboek.sidecar.directory(), |command| {
        command.args(["--upstream", &format!("http://{}", website.address)]);
    })
}

#[test]
fn it_is_used_through_the_gate() {
    let fietsboek = Fietsboek::new();
    let added = ["user", "add", "--email", "rider@example.com", "--name", "Rider", "--password", "of-the-rider"];
    assert_eq!(fietsboek.run("fietsctl", &added).code, Some(0));
    let website = fietsboek.serve();
    let gate = gate(&fietsboek, &website);

    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let browser = Browser::new(&gate, version);
        let front = browser.get("/");
        assert!(front.contains("fietsboek"), "{front}");
        // All that the page needs, the same as from the application itself.
        let files: Vec<_> = front
            .split("\"http://")
            .skip(1)
            .map(|rest| rest.split_once('"').unwrap().0)
            .filter(|url| url.contains("/static/"))
            .collect();
        assert!(!files.is_empty(), "{front}");
        for url in files {
            // Links are made with the client's Host.
            let path = url.strip_prefix(&gate.traffic.to_string()).unwrap_or_else(|| panic!("elsewhere: {url}"));
            let output = |address: std::net::SocketAddr, version: &str| {
                let output = curl().args([version, "--fail"]).arg(format!("http://{address}{path}")).output().unwrap();
                assert!(output.status.success(), "{path}");
                output.stdout
            };
            assert!(output(gate.traffic, version) == output(website.address, "--http1.1"), "{path}");
        }

        // Nobody gets in without a session, nor with a form that is not of it.
        assert_eq!(browser.send("/upload", &[]).0, "403");
        let credentials = ["--data", "email=rider@example.com", "--data", "password=of-the-rider"];
        assert_eq!(browser.send("/login", &credentials).0, "400");
        let form = browser.form("/login");
        let (status, page) = browser.send("/login", &[&credentials[..], &["--data", &form]].concat());
        assert_eq!(status, format!("302 {}/", browser.base));
        assert!(page.contains("/logout"), "{page}");

        // An upload, which curl sends as browsers do.
        let track = gpx(if version == "--http1.1" { 20_000 } else { 10 });
        let file = browser.cookies.path().join("see.gpx");
        fs::write(&file, &track).unwrap();
        let fields = [format!("gpx=@{};type=application/gpx+xml", file.display()), browser.form("/upload")];
        let (status, page) = browser.send("/upload", &["--form", &fields[0], "--form", &fields[1]]);
        let number =
            status.strip_prefix(&format!("302 {}/upload/", browser.base)).unwrap_or_else(|| panic!("{status}"));
        assert!(page.contains("Um den See"), "{page}");
        // It is there, byte for byte.
        assert!(browser.get(&format!("/upload/{number}/preview.gpx")) == track);
    }
    assert_eq!(gate.metric("pitstop_requests_total{outcome=\"failed\"}"), 0.0);
}

#[test]
fn in_maintenance_nothing_reaches_it() {
    let fietsboek = Fietsboek::new();
    let website = fietsboek.serve();
    let gate = gate(&fietsboek, &website);
    let ask = |request: &str| Client::of(&gate).ask(request);
    let get = "GET / HTTP/1.1\r\nHost: shop\r\nAccept: text/html\r\n\r\n";
    let answers = |reason: &str| {
        for request in [
            get,
            "GET /static/fietsboek.js HTTP/1.1\r\nHost: shop\r\nAccept: text/html\r\n\r\n",
            "POST /login HTTP/1.1\r\nHost: shop\r\nAccept: text/html\r\nContent-Length: 3\r\n\r\na=b",
        ] {
            let answer = ask(request);
            // fietsboek's own page has another text, and no Retry-After.
            assert_eq!((answer.status(), answer.header("retry-after").as_deref()), (503, Some("60")), "{request}");
            assert!(answer.text().contains(reason) && !answer.text().contains("fietsboek"), "{}", answer.text());
        }
    };
    assert_eq!(ask(get).status(), 200);
    let forwarded = || gate.metric("pitstop_requests_total{outcome=\"forwarded\"}");

    let before = forwarded();
    assert_eq!(
        fietsboek.pitstop(&["Updating the instance", "--wait"]),
        "Maintenance mode is enabled: Updating the instance\n"
    );
    answers("Updating the instance");
    assert_eq!(fietsboek.fietsctl(&["--disable"]), "");
    eventually("the gate is open", || gate.is_off());
    assert_eq!((forwarded(), ask(get).status()), (before, 200));

    let before = forwarded();
    assert_eq!(fietsboek.fietsctl(&["Größer"]), "");
    eventually("the gate is closed", || gate.is_on(Some("Größer")));
    answers("Größer");
    assert_eq!(fietsboek.pitstop(&["--disable"]), "Maintenance mode is disabled\n");
    eventually("the gate is open", || gate.is_off());
    assert_eq!((forwarded(), ask(get).status()), (before, 200));
}

/// pserve with the application of tests/servers, which writes what it does to a file.
fn pserve(events: &Path) -> Server {
    let mut command = Command::new(server::fietsboek().join("bin/pserve"));
    command.arg(applications().join("echo.ini")).env("PYTHONPATH", applications());
    command.env("PYTHONDONTWRITEBYTECODE", "1").env("EVENTS", events);
    Server::start(command)
}

#[test]
fn wait_returns_after_pserve_has_finished() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("events");
    fs::write(&file, "").unwrap();
    let pserve = pserve(&file);
    let gate = pserve.gate();
    let events = |event: &str| fs::read_to_string(&file).unwrap().matches(event).count();
    let post = "POST /sleep?0.5 HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nhello";
    let mut expected = 0;
    for (name, request, is_reset) in [
        ("closes", post, false),
        ("resets", post, true),
        ("closes in mid-upload", &post[..post.len() - 2], false),
        ("resets in mid-upload", &post[..post.len() - 2], true),
    ] {
        let is_whole = request.len() == post.len();
        // waitress has four threads: all are at work.
        let clients = [(); 4].map(|()| {
            let mut client = connect(gate.traffic);
            client.write_all(request.as_bytes()).unwrap();
            client
        });
        eventually("all are let in", || gate.metric("pitstop_requests_in_flight") == 4.0);
        expected += if is_whole { 4 } else { 0 };
        eventually("the application is at work", || events("began") == expected);
        for client in clients {
            if is_reset {
                socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            }
        }
        assert_eq!(wait_in(gate.path()).ended(), enabled(), "a client {name}");
        // Whatever has begun has ended by now: this looks once.
        assert_eq!((events("began"), events("ended")), (expected, expected), "a client {name}");
        let disabled = gate.run(&["maintenance-mode", "--disable", "--wait"]);
        assert_eq!(disabled.code, Some(0), "{disabled:?}");
    }
    assert_eq!(gate.metric("pitstop_requests_total{outcome=\"cut\"}"), 0.0);
}
