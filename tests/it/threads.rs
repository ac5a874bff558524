//! More than one thread that serves traffic.

use std::io::Write;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use crate::application::{Application, Client};
use crate::fixture::{Sidecar, connect, eventually};
use crate::kernel::Thread;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &str = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";

fn serving(sidecar: &Sidecar) -> usize {
    Thread::all_of(sidecar, "traffic").count()
}

#[test]
fn there_is_one_unless_more_are_asked_for() {
    let sidecar = Sidecar::start();
    eventually("it serves", || serving(&sidecar) == 1);
    let sidecar = Sidecar::with(|command| _ = command.args(["--threads", "3"]));
    eventually("all serve", || serving(&sidecar) == 3);
    // Each connection is served by one of them, whichever that is.
    let mut clients: Vec<_> = (0..60).map(|_| Client::of(&sidecar)).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").status(), 503);
    }
    assert_eq!(sidecar.metric("pitstop_requests_total{outcome=\"refused\"}"), 60.0);
}

#[test]
fn one_that_hangs_does_not_keep_the_others() {
    let (let_go, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let application = Application::new(move |visitor| {
        while let Some(request) = visitor.request() {
            if request.target() == "/slow" {
                let _ = wait.lock().unwrap().recv();
            }
            visitor.write(OK);
        }
    });
    let gate = application.gate_with(&["--threads", "3", "--drain-timeout", "500ms"]);
    let mut slow: Vec<_> = (0..6).map(|_| Client::of(&gate)).collect();
    for client in &mut slow {
        client.send("GET /slow HTTP/1.1\r\nHost: shop\r\n\r\n");
    }
    eventually("all are at work", || gate.metric("pitstop_requests_in_flight") == 6.0);
    for _ in 0..30 {
        assert_eq!(Client::of(&gate).get("/").text(), "ok");
    }
    // All of them close, and all of them cut.
    std::fs::write(gate.file(), "Updating").unwrap();
    for client in &mut slow {
        assert_eq!(client.answer().text(), "Updating\n");
    }
    for _ in 0..30 {
        assert_eq!(Client::of(&gate).get("/").text(), "Updating\n");
    }
    assert_eq!(gate.metric("pitstop_requests_total{outcome=\"cut\"}"), 6.0);
    let said = "6 requests still run after 500ms of maintenance";
    gate.logs(said);
    assert_eq!(gate.log().matches(said).count(), 1, "{}", gate.log());
    drop(let_go);
    eventually("none is at work", || gate.metric("pitstop_requests_in_flight") == 0.0);
}

#[test]
fn they_share_the_limit_on_connections_and_stop_together() {
    let mut sidecar = Sidecar::with(|command| {
        _ = command.args(["--threads", "3", "--max-connections", "4", "--shutdown-delay", "0"]);
    });
    let mut taken: Vec<_> = (0..4).map(|_| Client::of(&sidecar)).collect();
    for client in &mut taken {
        assert_eq!(client.get("/").status(), 503);
    }
    // Whichever threads serve them, the one that has waited longest for a request makes room.
    let mut fifth = connect(sidecar.traffic);
    fifth.write_all(GET.as_bytes()).unwrap();
    let mut fifth = Client(std::io::BufReader::new(fifth));
    assert_eq!(fifth.answer().status(), 503);
    taken.remove(0).assert_closed();
    for client in &mut taken {
        assert_eq!(client.get("/").status(), 503);
    }
    assert_eq!(sidecar.metric("pitstop_connections_evicted_total{listener=\"traffic\"}"), 1.0);
    assert_eq!(sidecar.metric("pitstop_requests_total{outcome=\"refused\"}"), 8.0);
    sidecar.signal("TERM");
    for client in taken.iter_mut().chain([&mut fifth]) {
        client.assert_closed();
    }
    assert_eq!(sidecar.ended(), Some(0));
}

#[test]
fn their_number_has_to_be_one() {
    for number in ["0", "257", "many"] {
        let output = crate::fixture::pitstop().args(["serve", "--threads", number]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2));
        assert!(said.contains("it must be a number from 1 to 256") && said.lines().count() == 1, "{said}");
    }
}
