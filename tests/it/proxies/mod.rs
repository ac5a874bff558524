//! Proxies in front of an application with a sidecar beside it: each runs for real, with the recipe in deploy/proxies as it is
//! but for its addresses.
//!
//! Needs nginx and haproxy (Debian: nginx-light, haproxy), and caddy, traefik and envoy in target/test-venv, where tests/run
//! puts them.

mod caddy;
mod envoy;
mod haproxy;
mod nginx;
mod traefik;

use std::collections::BTreeSet;
use std::fs;
use std::io::BufReader;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::application::{Application, Client};
use crate::fixture::{Printed, Reply, Sidecar, connect, eventually, exchange, get, put, request};
use crate::manifests::root;
use crate::running::Running;

const REASON: &str = "Updating <the> instance";
const FORM: &str = "Content-Type: application/x-www-form-urlencoded\r\n";

/// Where everybody listens.
pub struct Addresses {
    pub proxy: SocketAddr,
    pub application: SocketAddr,
    pub sidecar: Sidecar,
    /// Those of further instances, where a test has some.
    pub others: Vec<Sidecar>,
}

/// A recipe, and what its proxy does that others do not.
pub struct Recipe {
    /// Puts its files into the directory, and says how to run it.
    pub set_up: fn(&Path, &Addresses) -> Command,
    /// How it checks its configuration, where it can.
    pub check: Option<fn(&Path) -> Command>,
    /// How much of a body it waits for before it answers, in bytes.
    pub patience: usize,
    /// The status of a refusal to a gRPC client.
    pub grpc: u16,
    /// What becomes of a POST and of a GET whose connection the application closes: the status, and whether it is the
    /// sidecar's answer.
    pub lost: [(u16, bool); 2],
    /// Whether it asks by GET for what it shows instead of a dead application's answer: the page says nothing of a form then.
    pub asks_by_get: bool,
    /// What is answered when the sidecar is gone. 200 is the application's.
    pub without_sidecar: u16,
}

/// A file of deploy/proxies with its addresses replaced; each must be there.
#[track_caller]
pub fn filled(name: &str, replaced: &[(&str, &str)]) -> String {
    let path = root().join("deploy/proxies").join(name);
    let mut text = fs::read_to_string(&path).unwrap();
    for (address, by) in replaced {
        assert!(text.contains(address), "no {address:?} in {}", path.display());
        text = text.replace(address, by);
    }
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        assert!(!line.contains("app:"), "{line:?} in {} is not replaced", path.display());
    }
    text
}

/// A program of target/test-venv.
#[track_caller]
pub fn venv_program(path: &str) -> PathBuf {
    let path = root().join("target/test-venv").join(path);
    assert!(path.is_file(), "{} is missing: run tests/run", path.display());
    path
}

/// A proxy that runs, and what is behind it.
pub struct Front {
    proxy: Running,
    addresses: Addresses,
    application: Option<Application>,
    _directory: TempDir,
}

/// Answers what it was asked. `/500` is answered with that status, and `/lost` not at all.
pub fn application_at(address: SocketAddr) -> Application {
    Application::at(address, |visitor| {
        while let Some(message) = visitor.request() {
            let method = message.first.split(' ').next().unwrap().to_owned();
            let target = message.target().to_owned();
            if target == "/lost" {
                return;
            }
            let status = target[1..].parse().unwrap_or(200);
            let body = format!("the application: {method} {target} {}", message.text());
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status} Its Own\r\nContent-Type: text/x-application\r\nCache-Control: max-age=7\r\n\
                 Content-Length: {length}\r\n\r\n"
            );
            visitor.write(head + if method == "HEAD" { "" } else { &body });
            if message.header("connection").is_some_and(|value| value == "close") {
                return;
            }
        }
    })
}

impl Front {
    pub fn start(recipe: &Recipe) -> Self {
        Self::beside(recipe, Sidecar::start(), Vec::new())
    }

    pub fn beside(recipe: &Recipe, sidecar: Sidecar, others: Vec<Sidecar>) -> Self {
        let application = application_at("127.0.0.1:0".parse().unwrap());
        let mut addresses = Addresses { proxy: application.address, application: application.address, sidecar, others };
        // None of them can choose a port and say which.
        loop {
            addresses.proxy = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let directory = tempfile::tempdir().unwrap();
            let command = (recipe.set_up)(directory.path(), &addresses);
            if let Some(check) = recipe.check {
                let printed: Printed = check(directory.path()).output().unwrap().into();
                let said = printed.stdout + &printed.stderr;
                assert!(printed.code == Some(0) && !said.to_lowercase().contains("[warn"), "{said}");
            }
            let mut proxy = Running::start(command);
            let mut has_ended = false;
            eventually("the proxy listens", || {
                has_ended = proxy.child.try_wait().unwrap().is_some();
                has_ended || TcpStream::connect(addresses.proxy).is_ok()
            });
            if !has_ended {
                return Self { proxy, addresses, application: Some(application), _directory: directory };
            }
            let printed = proxy.ended();
            let said = printed.stdout + &printed.stderr;
            assert!(said.to_lowercase().contains("in use"), "{said}");
        }
    }

    fn sidecar(&self) -> &Sidecar {
        &self.addresses.sidecar
    }

    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        get(self.addresses.proxy, path, headers)
    }

    /// A form, as a browser sends it.
    fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        post(self.addresses.proxy, path, headers, body)
    }

    /// A client that keeps its connection.
    fn client(&self) -> Client {
        Client(BufReader::new(connect(self.addresses.proxy)))
    }

    /// The requests that the application has seen so far.
    fn asked(&self) -> Vec<String> {
        let asked = self.application.as_ref().unwrap().asked();
        asked.iter().map(|asked| format!("{} {}", asked.message.first, asked.message.text())).collect()
    }

    /// Waits until requests reach the application.
    #[track_caller]
    pub fn opens(&self) {
        eventually("the application answers", || self.get("/", &[]).body == "the application: GET / ");
    }

    /// Waits until the proxy shows the refusal.
    #[track_caller]
    pub fn refuses(&self, text: &str) {
        eventually(&format!("it is refused: {text}"), || {
            let reply = self.get("/", &[]);
            reply.status == 503 && reply.body == format!("{text}\n")
        });
    }

    fn enable(&self) {
        put(&self.sidecar().file(), REASON);
    }

    fn disable(&self) {
        fs::remove_file(self.sidecar().file()).unwrap();
        eventually("the sidecar has seen it", || self.sidecar().is_off());
    }
}

/// The answer is read while it is there: who has more to send than a server takes finds a reset behind it.
fn post(address: SocketAddr, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    let answer = Client(BufReader::new(connect(address))).ask(format!("{head}{headers}\r\n{body}"));
    Reply { status: answer.status(), body: answer.text(), headers: answer.headers }
}

/// What a client has to be told, beside the body.
const TOLD: [&str; 4] = ["content-type", "retry-after", "cache-control", "vary"];

/// The status, those headers and the body; each header is there once.
fn told(reply: &Reply) -> (u16, BTreeSet<String>, &str) {
    let told = reply.headers.iter().filter(|(name, _)| TOLD.contains(&name.as_str()));
    let lines: Vec<_> = told.map(|(name, value)| format!("{name}: {value}")).collect();
    let headers: BTreeSet<_> = lines.iter().cloned().collect();
    assert_eq!(headers.len(), lines.len(), "{lines:?}");
    (reply.status, headers, &reply.body)
}

/// That each kind of client is told by the proxy what the sidecar says, whatever it sends; or what that says to a GET.
#[track_caller]
fn assert_refuses_all(front: &Front, text: &str, as_to_get: bool) {
    let (proxy, sidecar) = (front.addresses.proxy, front.sidecar().traffic);
    let chrome = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8";
    let clients = [
        ("text/html; charset=utf-8", chrome),
        ("application/problem+json", "application/json, text/plain, */*"),
        ("text/plain; charset=utf-8", "*/*"),
    ];
    for (content_type, accept) in clients {
        let headers = [("Accept", accept), ("Accept-Language", "de-DE,de;q=0.9,en;q=0.5")];
        for method in ["GET", "HEAD", "DELETE", "OPTIONS"] {
            let asked = if as_to_get && method != "HEAD" { "GET" } else { method };
            let replies = [(proxy, method), (sidecar, asked)];
            let replies = replies.map(|(address, method)| request(address, method, "/a?b=c", &headers));
            let what = format!("{method} {accept}: {:?}", replies[0]);
            assert_eq!(told(&replies[0]), told(&replies[1]), "{what}");
            assert_eq!((replies[0].status, replies[0].header("content-type")), (503, Some(content_type)), "{what}");
            assert_eq!(replies[0].header("cache-control"), Some("no-store"), "{what}");
            assert_eq!(replies[0].header("retry-after"), Some("60"), "{what}");
            assert_eq!(replies[0].header("vary"), Some("Accept, Accept-Language"), "{what}");
        }
        let headers = [&headers[..], &[("Content-Type", "application/x-www-form-urlencoded")]].concat();
        for body in ["name=value", &"a=b&".repeat(50_000)] {
            let reply = post(proxy, "/a?b=c", &headers, body);
            let said = match as_to_get {
                true => get(sidecar, "/a?b=c", &headers),
                false => post(sidecar, "/a?b=c", &headers, body),
            };
            assert_eq!(told(&reply), told(&said), "POST {} {accept}", body.len());
        }
    }
    assert_eq!(front.get("/", &[]).body, format!("{text}\n"));
    let chunked =
        format!("POST /a HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n{FORM}Transfer-Encoding: chunked\r\n\r\n");
    let reply = exchange(proxy, format!("{chunked}3\r\na=b\r\n0\r\n\r\n").as_bytes());
    assert_eq!((reply.status, reply.body), (503, format!("{text}\n")));
}

/// Goes through all that may happen to an application with a sidecar.
pub fn assert_shows_the_sidecars_refusal(recipe: &Recipe) {
    let mut front = Front::start(recipe);
    front.opens();
    let mut client = front.client();
    assert_eq!(client.get("/").text(), "the application: GET / ");

    // All is well: what the application answers stays as it is, failures included.
    for path in ["/a?b=c", "/500", "/503", "/404", "/401", "/302"] {
        let direct = get(front.addresses.application, path, &[]);
        assert_eq!(told(&front.get(path, &[])), told(&direct), "{path}");
        let direct = post(front.addresses.application, path, &[], "name=value");
        assert_eq!(told(&front.post(path, &[], "name=value")), told(&direct), "POST {path}");
    }
    let asked = front.asked();
    assert_eq!(front.post("/once", &[], "name=value").body, "the application: POST /once name=value");
    assert_eq!(front.asked()[asked.len()..], ["POST /once HTTP/1.1 name=value"]);

    // Maintenance begins, also for who keeps a connection.
    front.enable();
    front.refuses(REASON);
    let asked = front.asked();
    assert_refuses_all(&front, REASON, false);
    let kept = client.get("/");
    assert_eq!((kept.status(), kept.text()), (503, format!("{REASON}\n")));
    if kept.header("connection").is_some_and(|value| value == "close") {
        client = front.client();
    }
    // Who has much to send is told before the end.
    let mut sender = front.client();
    let head = format!("POST / HTTP/1.1\r\nHost: shop\r\n{FORM}Content-Length: 1000000\r\n\r\n");
    assert_eq!(sender.ask(head + &"x".repeat(recipe.patience)).status(), 503);
    let grpc = [("Content-Type", "application/grpc"), ("TE", "trailers")];
    let reply = front.post("/shop.Shop/Buy", &grpc, "\0\0\0\0\0");
    assert_eq!(reply.status, recipe.grpc);
    match recipe.grpc {
        200 => assert_eq!(reply.header("grpc-status"), Some("14")),
        _ => assert_eq!(reply.body, format!("{REASON}\n")),
    }
    assert_eq!(front.asked(), asked, "the application has seen something");

    // It is over.
    front.disable();
    front.opens();
    assert_eq!(client.get("/").text(), "the application: GET / ");
    assert_eq!(front.post("/once", &[], "a=b").body, "the application: POST /once a=b");

    // What the application takes up and does not answer is sent once.
    let is_sidecars = |reply: &Reply| reply.body == "Temporarily unavailable\n";
    for body in ["a=b", ""] {
        let before = front.asked().len();
        let reply = front.post("/lost", &[], body);
        assert_eq!((reply.status, is_sidecars(&reply)), recipe.lost[0], "{reply:?}");
        let lost: Vec<_> = front.asked().split_off(before);
        assert_eq!(lost.iter().filter(|line| line.starts_with("POST /lost")).count(), 1, "{lost:?}");
        front.opens();
    }
    let reply = front.get("/lost", &[]);
    assert_eq!((reply.status, is_sidecars(&reply)), recipe.lost[1], "{reply:?}");
    front.opens();

    // The application ends, and comes back.
    let refused = front.sidecar().metric("pitstop_requests_total{outcome=\"refused\"}");
    front.application = None;
    front.refuses("Temporarily unavailable");
    assert_refuses_all(&front, "Temporarily unavailable", recipe.asks_by_get);
    assert!(front.sidecar().metric("pitstop_requests_total{outcome=\"refused\"}") > refused);
    front.application = Some(application_at(front.addresses.application));
    front.opens();

    // The sidecar ends. Who asks it then knows nothing, and lets nothing pass.
    front.addresses.sidecar.signal("KILL");
    front.addresses.sidecar.ended();
    eventually("the proxy notices", || front.get("/", &[]).status == recipe.without_sidecar);
    let asked = front.asked();
    for reply in [front.get("/", &[]), front.post("/", &[], "a=b")] {
        assert_eq!(reply.status, recipe.without_sidecar, "{reply:?}");
    }
    assert_eq!(front.asked() == asked, recipe.without_sidecar != 200);
    front.proxy.runs();
}

/// That nothing passes while a proxy starts.
pub fn assert_refuses_from_the_start(recipe: &Recipe) {
    let front = Front::beside(recipe, Sidecar::in_maintenance(REASON), Vec::new());
    front.refuses(REASON);
    assert_eq!(front.asked(), [""; 0]);
}

/// What a proxy that passes the refusal on tells of the client's request.
pub const CLIENTS_WISHES: [(&str, &str); 4] = [
    ("x-forwarded-method", "POST"),
    ("accept", "text/html"),
    ("accept-language", "de"),
    ("content-type", "text/plain"),
];

/// That who asks the sidecar says what it needs to know, and no more: not what is secret, and not what is long, since it
/// takes no more than 16 KiB.
pub fn assert_asks_for_little(recipe: &Recipe, told: &[(&str, &str)]) {
    let asked = Application::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let mut sidecar = Sidecar::start();
    sidecar.admin = asked.address;
    let front = Front::beside(recipe, sidecar, Vec::new());
    front.opens();
    let before = asked.asked().len();
    let said = [
        ("Accept", "text/html"),
        ("Accept-Language", "de"),
        ("Content-Type", "text/plain"),
        ("Cookie", "secret"),
        ("Authorization", "secret"),
    ];
    assert_eq!(front.post("/a?b", &said, "a=b").body, "the application: POST /a?b a=b");
    let questions = asked.asked().split_off(before);
    let [question] = &questions[..] else { panic!("{questions:?}") };
    let message = &question.message;
    let asked_for = (&message.first[..4], message.target().split('?').next(), &*message.text());
    assert_eq!(asked_for, ("GET ", Some("/forward-auth"), ""));
    for (name, value) in told {
        assert_eq!(message.header(name).as_deref(), Some(*value), "{name}");
    }
    for name in ["cookie", "authorization", "transfer-encoding"] {
        assert_eq!(message.header(name), None, "{name}");
    }
}
