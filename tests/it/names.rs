//! An upstream that is given by name, to the static program in a container that has nothing else: no `nsswitch.conf`, no
//! libraries.
//!
//! Needs podman, runc, prlimit and setpriv (Debian: podman, runc, util-linux), and root.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::application::{Application, Client};
use crate::fixture::{SERVE, Sidecar, behind, eventually, program};
use crate::image::static_program;
use crate::podman::Podman;
use crate::running::user;

/// A name server, at an address of its own.
struct Dns {
    address: IpAddr,
    records: Arc<Records>,
}

#[derive(Default)]
struct Records {
    addresses: Mutex<HashMap<String, Vec<IpAddr>>>,
    is_silent: AtomicBool,
    asked: Mutex<Vec<String>>,
}

impl Dns {
    fn new() -> Self {
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let sockets = (1..=250).map(|last| {
            let address = IpAddr::from([127, 128 | high, low, last]);
            UdpSocket::bind((address, 53)).map(|socket| (address, socket))
        });
        let (address, socket) = sockets.flatten().next().expect("port 53 of an address, which takes root");
        let records = Arc::<Records>::default();
        let shared = records.clone();
        thread::spawn(move || {
            let mut packet = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut packet) {
                if let Some(answer) = shared.answer(&packet[..length]) {
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        Self { address, records }
    }

    fn set(&self, name: &str, addresses: &[IpAddr]) {
        self.records.addresses.lock().unwrap().insert(name.to_owned(), addresses.to_vec());
    }

    fn be_silent(&self, is_silent: bool) {
        self.records.is_silent.store(is_silent, SeqCst);
    }

    fn asked(&self) -> Vec<String> {
        self.records.asked.lock().unwrap().clone()
    }

    /// podman's flag that makes a container ask it.
    fn flag(&self) -> String {
        format!("--dns={}", self.address)
    }
}

impl Records {
    /// The answer to a query (RFC 1035 §4).
    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let (mut labels, mut at) = (Vec::new(), 12);
        loop {
            let length = usize::from(*query.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            labels.push(String::from_utf8(query.get(at..at + length)?.to_vec()).ok()?);
            at += length;
        }
        let (name, kind) = (labels.join("."), *query.get(at + 1)?);
        self.asked.lock().unwrap().push(name.clone());
        if self.is_silent.load(SeqCst) {
            return None;
        }
        let known = self.addresses.lock().unwrap().get(&name).cloned();
        let records: Vec<Vec<u8>> = known.iter().flatten().filter_map(|address| data(*address, kind)).collect();
        // An answer; recursion desired and available; NXDOMAIN where nothing has that name.
        let mut answer = vec![query[0], query[1], 0x81, if known.is_some() { 0x80 } else { 0x83 }];
        answer.extend([0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
        answer.extend(&query[12..at + 4]);
        for data in records {
            // The name of the question; the kind; IN; valid for 0 s.
            answer.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 0, 0, data.len() as u8]);
            answer.extend(data);
        }
        Some(answer)
    }
}

/// What a record of this kind, 1 for A and 28 for AAAA, has of an address.
fn data(address: IpAddr, kind: u8) -> Option<Vec<u8>> {
    match (address, kind) {
        (IpAddr::V4(address), 1) => Some(address.octets().to_vec()),
        (IpAddr::V6(address), 28) => Some(address.octets().to_vec()),
        _ => None,
    }
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

/// An application that says where it is.
fn application_at(address: SocketAddr) -> Application {
    let text = address.ip().to_string();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
    Application::at(address, move |visitor| {
        while visitor.request().is_some() {
            visitor.write(&answer);
        }
    })
}

fn application() -> Application {
    application_at(SocketAddr::from(([127, 0, 0, 1], 0)))
}

/// The gate in a container, with these flags of podman's, and these arguments of its own.
fn gate(podman: &Podman, flags: &[&str], name: &str, port: u16, arguments: &[&str]) -> Sidecar {
    podman.serve(flags, &[&["--upstream", &format!("http://{name}:{port}")], arguments].concat())
}

/// The gate in a container that asks this server.
fn asking(podman: &Podman, dns: &Dns, name: &str, port: u16, arguments: &[&str]) -> Sidecar {
    gate(podman, &[&dns.flag()], name, port, arguments)
}

#[track_caller]
fn ask(gate: &Sidecar) -> (u16, String) {
    let answer = Client::of(gate).get("/");
    (answer.status(), answer.text())
}

#[test]
fn from_the_hosts_file() {
    let (podman, application) = (Podman::new(static_program()), application());
    let gate = gate(&podman, &["--add-host=shop:127.0.0.1"], "shop", application.address.port(), &[]);
    assert_eq!(ask(&gate), (200, "127.0.0.1".to_owned()));
}

#[test]
fn as_pods_are_told_to() {
    let (dns, application) = (Dns::new(), application());
    for name in ["shop.prod.svc.cluster.local", "cart.stage.svc.cluster.local", "example.com"] {
        dns.set(name, &[ip("127.0.0.1")]);
    }
    for (name, found) in [
        ("shop", "shop.prod.svc.cluster.local"),
        ("cart.stage", "cart.stage.svc.cluster.local"),
        ("example.com", "example.com"),
    ] {
        let podman = Podman::new(static_program());
        let search = ["prod.svc.cluster.local", "svc.cluster.local", "cluster.local"]
            .map(|domain| format!("--dns-search={domain}"));
        let flags = [&dns.flag(), &search[0], &search[1], &search[2], "--dns-option=ndots:5"];
        let gate = gate(&podman, &flags, name, application.address.port(), &[]);
        assert_eq!(ask(&gate), (200, "127.0.0.1".to_owned()), "{name}: {:?}", dns.asked());
        assert_eq!(dns.asked().pop().as_deref(), Some(found));
        // A name with fewer than five dots is looked for in these domains first.
        assert!(dns.asked().contains(&format!("{name}.prod.svc.cluster.local")));
    }
}

#[test]
fn of_any_address_that_it_has() {
    let dns = Dns::new();
    for (at, addresses) in [
        ("::1", &["::1"][..]),
        ("127.0.0.1", &["::1", "127.0.0.1"]),
        ("::1", &["127.0.0.1", "::1"]),
        ("127.0.0.1", &["127.0.0.1", "127.0.0.2"]),
        ("127.0.0.2", &["127.0.0.1", "127.0.0.2"]),
    ] {
        let application = application_at(SocketAddr::new(ip(at), 0));
        let addresses: Vec<_> = addresses.iter().map(|address| ip(address)).collect();
        dns.set("shop.test", &addresses);
        let podman = Podman::new(static_program());
        let gate = asking(&podman, &dns, "shop.test", application.address.port(), &[]);
        assert_eq!(ask(&gate), (200, at.to_owned()), "{addresses:?}");
    }
}

#[test]
fn that_does_not_exist_yet() {
    let (podman, dns, application) = (Podman::new(static_program()), Dns::new(), application());
    let gate = asking(&podman, &dns, "shop.test", application.address.port(), &[]);
    assert_eq!(ask(&gate).0, 502);
    let said = format!("the application at shop.test:{} does not accept a connection: ", application.address.port());
    eventually("the log says so", || gate.log().contains(&said) && gate.log().contains("Name or service not known"));
    assert_eq!(gate.metric("pitstop_upstream_errors_total{cause=\"connect\"}"), 1.0);
    // When it does, no restart is needed.
    dns.set("shop.test", &[ip("127.0.0.1")]);
    assert_eq!(ask(&gate), (200, "127.0.0.1".to_owned()));
}

#[test]
fn whose_address_changes() {
    let (podman, dns, one) = (Podman::new(static_program()), Dns::new(), application());
    let port = one.address.port();
    let two = application_at(SocketAddr::from(([127, 0, 0, 2], port)));
    dns.set("shop.test", &[ip("127.0.0.1")]);
    let gate = asking(&podman, &dns, "shop.test", port, &[]);
    assert_eq!(ask(&gate).1, "127.0.0.1");
    dns.set("shop.test", &[ip("127.0.0.2")]);
    // The one before goes away, and closes its connections; the next ones are made to the other.
    drop(one);
    eventually("the other is asked", || ask(&gate) == (200, "127.0.0.2".to_owned()));
    assert_eq!((two.connections(), gate.metric("pitstop_requests_total{outcome=\"failed\"}")), (1, 0.0));
}

#[test]
fn when_nobody_tells_it() {
    let (podman, dns, application) = (Podman::new(static_program()), Dns::new(), application());
    dns.set("shop.test", &[ip("127.0.0.1")]);
    let gate = asking(&podman, &dns, "shop.test", application.address.port(), &["--upstream-timeout", "4s"]);
    assert_eq!(ask(&gate).0, 200);
    dns.be_silent(true);
    let begun = Instant::now();
    let clients: Vec<_> = (0..100)
        .map(|_| {
            let mut client = Client::of(&gate);
            client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 2\r\n\r\nhi");
            client
        })
        .collect();
    // Now and then the connection that is there is free, and takes one.
    let asked = || application.asked().len() - 1;
    eventually("all the others wait", || {
        gate.metric("pitstop_requests_in_flight") + asked() as f64 == 100.0 && asked() > 0
    });
    assert!(begun.elapsed() < Duration::from_secs(4), "a machine that is too slow for this test");
    // Meanwhile all goes on that needs no answer, and they take no thread each.
    assert_eq!((gate.admin("/readyz").body.as_str(), ask(&gate).0), ("ok", 200));
    let threads = std::fs::read_dir(format!("/proc/{}/task", podman.pid())).unwrap().count();
    assert!(threads < 20, "{threads} threads");
    let late = clients.into_iter().map(|mut client| client.answer().status()).filter(|status| *status == 504).count();
    assert_eq!(late, 101 - asked());
    assert!(begun.elapsed() >= Duration::from_secs(4));
    eventually("the log says so", || gate.log().contains("does not accept a connection in time"));
}

#[test]
fn when_the_system_gives_no_thread_to_ask_with() {
    let (directory, application) = (Arc::new(tempfile::tempdir().unwrap()), application());
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    // Who has no other process: it is the user whose threads are counted.
    let user_id = 1_000_000 + std::process::id();
    let mut command = user(directory.path(), user_id, "022", &SERVE);
    command.args(["--upstream", &format!("http://localhost:{}", application.address.port())]);
    let gate = Sidecar::spawn(directory, command);
    let limit = |threads: &str| {
        let mut command = program("prlimit");
        command.args(["--pid", &gate.child.id().to_string(), &format!("--nproc={threads}:")]);
        let user_id = user_id.to_string();
        behind(&["setpriv", "--reuid", &user_id, "--regid", &user_id, "--clear-groups", "--"], &mut command);
        assert!(command.status().unwrap().success());
    };
    limit("1");
    assert_eq!(ask(&gate).0, 502);
    let said = "does not accept a connection: Resource temporarily unavailable";
    eventually("the log says so", || gate.log().contains(said));
    limit("100");
    assert_eq!(ask(&gate), (200, "127.0.0.1".to_owned()));
}
