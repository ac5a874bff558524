//! An application that closes connections and restarts under load: its clients see no more failures than it is down.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::application::Client;
use crate::fixture::{Sidecar, eventually};
use crate::running::Running;
use crate::server::Server;

const GET: &str = "GET /cached HTTP/1.1\r\nHost: shop\r\n\r\n";
const POST: &str = "POST /echo HTTP/1.1\r\nHost: shop\r\nContent-Length: 3\r\n\r\na=b";

/// How many connections to this address are open on both sides.
fn established(address: SocketAddr) -> usize {
    let mut connections = String::new();
    std::fs::File::open("/proc/net/tcp").unwrap().read_to_string(&mut connections).unwrap();
    let std::net::IpAddr::V4(ip) = address.ip() else { panic!("{address}") };
    let remote = format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port());
    let is_open = |line: &&str| {
        let mut words = line.split_whitespace().skip(2);
        words.next() == Some(&remote) && words.next() == Some("01")
    };
    connections.lines().filter(is_open).count()
}

#[test]
fn a_connection_that_the_application_has_closed_fails_no_request() {
    let server = Server::node(5000);
    let gate = server.gate();
    let at_once = |request: &'static str| {
        thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| assert_eq!(Client::of(&gate).ask(request).status(), 200));
            }
        });
    };
    at_once(GET);
    assert!(established(server.address) > 0, "connections are kept");
    eventually("the application has closed them", || established(server.address) == 0);
    // Also one that must not be sent twice.
    at_once(POST);
    assert_eq!(gate.metric("pitstop_requests_total{outcome=\"failed\"}"), 0.0);
}

#[test]
fn nor_does_one_that_it_closes_meanwhile() {
    let server = Server::node(20);
    let gate = server.gate();
    thread::scope(|scope| {
        for number in 0..8 {
            let gate = &gate;
            scope.spawn(move || {
                let mut client = Client::of(gate);
                for round in 0..60 {
                    assert_eq!(client.ask(GET).status(), 200);
                    // About the time when the application loses its patience.
                    thread::sleep(Duration::from_micros(15_000 + 150 * ((round * 8 + number) % 60)));
                }
            });
        }
    });
    assert_eq!(gate.metric("pitstop_requests_total{outcome=\"failed\"}"), 0.0);
}

/// What a client's request has become, and when.
type Seen = (Instant, Instant, u16);

/// Eight clients that ask all the time, each on one connection, while something else goes on.
fn under_load(gate: &Sidecar, meanwhile: impl FnOnce(&AtomicUsize)) -> Vec<Seen> {
    let (enough, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let (mut client, mut seen) = (Client::of(gate), Vec::new());
                    while !enough.load(SeqCst) {
                        let start = Instant::now();
                        // Whatever the application does, this connection stays.
                        let answer = client.ask(GET);
                        assert!(answer.is_complete);
                        seen.push((start, Instant::now(), answer.status()));
                        served.fetch_add(usize::from(answer.status() == 200), SeqCst);
                    }
                    seen
                })
            })
            .collect();
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| meanwhile(&served)));
        enough.store(true, SeqCst);
        let seen = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        done.unwrap();
        seen
    })
}

fn more_are_served(served: &AtomicUsize) {
    let before = served.load(SeqCst);
    eventually("requests are served", || served.load(SeqCst) >= before + 200);
}

#[test]
fn a_restart_fails_only_who_asks_while_it_is_down() {
    let mut server = Server::node(5000);
    let gate = server.gate();
    let port = server.address.port();
    let mut down = Vec::new();
    let seen = under_load(&gate, |served| {
        for signal in ["KILL", "TERM", "KILL"] {
            more_are_served(served);
            let start = Instant::now();
            server.process.signal(signal);
            let _ = server.process.status();
            server = Server::start(Server::node_at(port, 5000));
            down.push((start, Instant::now()));
        }
        more_are_served(served);
    });
    let failed: Vec<_> = seen.iter().filter(|(_, _, status)| *status != 200).collect();
    assert!(!failed.is_empty(), "it was down");
    for (start, end, status) in failed {
        assert_eq!(*status, 502);
        let explained = down.iter().any(|(from, to)| start <= to && end >= from);
        assert!(explained, "{status} for a request of {start:?} to {end:?}, down: {down:?}");
    }
}

#[test]
fn a_graceful_reload_fails_nobody() {
    let server =
        Server::gunicorn(&["--worker-class=gthread", "--threads=8", "--keep-alive=5", "--graceful-timeout=10"]);
    let gate = server.gate();
    let booted = |process: &Running| process.stderr().matches("Booting worker").count();
    let exited = |process: &Running| process.stderr().matches("Worker exiting").count();
    let seen = under_load(&gate, |served| {
        for round in 1..=3 {
            more_are_served(served);
            server.process.signal("HUP");
            eventually("another worker works", || booted(&server.process) == round + 1);
            eventually("the one before does not", || exited(&server.process) == round);
        }
        more_are_served(served);
    });
    let failed: Vec<_> = seen.iter().filter(|(_, _, status)| *status != 200).collect();
    assert!(failed.is_empty(), "{} of {}: {failed:?}: {}", failed.len(), seen.len(), gate.log());
}
