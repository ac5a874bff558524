//! The same bytes through pitstop, nginx and HAProxy. Where a peer's outcome differs from pitstop's, the table says why.
//!
//! Needs nginx and haproxy (Debian: nginx-light, haproxy), with their defaults but for what a proxy in front of an
//! application sets: persistent connections to it, and the client's `Host`.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tempfile::TempDir;

use crate::application::{Application, BodyOf, Message, Visitor};
use crate::fixture::{DEADLINE, Sidecar, connect, eventually, program};
use crate::running::Running;

/// What each client sends last. Whether it is answered shows where the proxy found the end of what precedes it.
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n";
/// The response to it.
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proxy {
    Pitstop,
    Nginx,
    Haproxy,
}
use Proxy::{Haproxy, Nginx, Pitstop};

/// One that runs until it is dropped.
enum Front {
    Pitstop(Sidecar),
    /// A peer, which listens at a socket in the directory: no other process can take that address.
    Peer {
        _process: Running,
        directory: TempDir,
    },
}

impl Front {
    fn start(proxy: Proxy, application: &Application) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let command = match proxy {
            Pitstop => return Self::Pitstop(application.gate()),
            Nginx => {
                let configuration = format!(
                    "daemon off; master_process off; pid nginx.pid; error_log stderr; events {{ }}
                    http {{
                        access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
                        uwsgi_temp_path uwsgi; scgi_temp_path scgi;
                        upstream application {{ server {}; keepalive 8; }}
                        server {{
                            listen unix:{};
                            location / {{
                                proxy_pass http://application; proxy_http_version 1.1;
                                proxy_set_header Connection \"\"; proxy_set_header Host $host;
                            }}
                        }}
                    }}",
                    application.address,
                    socket(&directory).display()
                );
                fs::write(directory.path().join("nginx.conf"), configuration).unwrap();
                let mut command = program("nginx");
                command.arg("-p").arg(directory.path()).args(["-e", "stderr", "-c", "nginx.conf"]);
                command
            }
            Haproxy => {
                let configuration = format!(
                    "defaults\n mode http\n timeout connect 30s\n timeout client 30s\n timeout server 30s\n\
                     listen front\n bind unix@{}\n server application {}\n",
                    socket(&directory).display(),
                    application.address
                );
                let path = directory.path().join("haproxy.cfg");
                fs::write(&path, configuration).unwrap();
                let mut command = program("haproxy");
                command.args(["-db", "-q", "-f"]).arg(path);
                command
            }
        };
        let mut process = Running::start(command);
        eventually("the proxy listens", || {
            process.runs();
            UnixStream::connect(socket(&directory)).is_ok()
        });
        Self::Peer { _process: process, directory }
    }

    /// Sends this and reads until the proxy closes the connection.
    fn exchange(&self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Pitstop(gate) => exchange(connect(gate.traffic), bytes),
            Self::Peer { directory, .. } => {
                let stream = UnixStream::connect(socket(directory)).unwrap();
                stream.set_read_timeout(Some(DEADLINE)).unwrap();
                exchange(stream, bytes)
            }
        }
    }
}

fn socket(directory: &TempDir) -> PathBuf {
    directory.path().join("socket")
}

fn exchange(mut stream: impl Read + Write, bytes: &[u8]) -> Vec<u8> {
    // The proxy may have refused it before it has read all of it.
    let _ = stream.write_all(bytes);
    let mut received = Vec::new();
    match stream.read_to_end(&mut received) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => received.extend_from_slice(format!("({error})").as_bytes()),
    }
    received
}

/// Sends this to an application behind the proxy, which answers each request as `respond` says. Returns what the client has
/// received, and what the application has.
fn run(
    proxy: Proxy,
    bytes: &str,
    respond: impl Fn(&Message, &mut Visitor) -> bool + Send + Sync + 'static,
) -> (Vec<u8>, Vec<(usize, Message)>) {
    struct Ended(Arc<AtomicUsize>);
    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.fetch_add(1, SeqCst);
        }
    }
    let ended = Arc::new(AtomicUsize::new(0));
    let counter = ended.clone();
    let application = Application::new(move |visitor| {
        let _ended = Ended(counter.clone());
        while let Some(request) = visitor.request() {
            if !respond(&request, visitor) {
                return;
            }
        }
    });
    let front = Front::start(proxy, &application);
    let received = front.exchange(bytes.as_bytes());
    drop(front);
    // The connections that the proxy has made were queued before this one, and each is closed now.
    let mut last = connect(application.address);
    last.write_all(NEXT.replace("shop", "last").as_bytes()).unwrap();
    let _ = last.read_to_end(&mut Vec::new());
    eventually("the application has read everything", || ended.load(SeqCst) == application.connections());
    let asked = application.asked().into_iter().map(|asked| (asked.connection, asked.message));
    (received, asked.filter(|(_, request)| request.all("host") != ["last"]).collect())
}

/// Answers `/next`, and anything else in the same way.
fn ok(request: &Message, visitor: &mut Visitor) -> bool {
    visitor.write(OK);
    request.all("connection") != ["close"]
}

/// What the tables compare of a request: the method, the target, `Host`, the fields named `X`, the body and trailers.
fn described(request: &Message) -> String {
    let method = request.first.split(' ').next().unwrap();
    let host = request.all("host").join("+");
    // Its own address is used where the client names none.
    let host = if host.starts_with("127.0.0.1:") { "application" } else { &host };
    let mut text = format!("{method} {} {host}", request.target());
    for value in request.all("x") {
        text += &format!(" X:{value}");
    }
    if !request.body.is_empty() {
        text += &format!(" {}", request.text());
    }
    for (name, value) in &request.trailers {
        text += &format!(" {name}:{value}");
    }
    if !request.is_complete {
        text += "…";
    }
    text
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// The proxy refuses it with this status, and closes the connection.
    Refused(u16),
    /// The application gets this, and then the next request.
    Served(&'static str),
    /// The application gets this, and the proxy closes the connection after the response.
    Last(&'static str),
    /// The statuses that the client gets, and the requests that the application gets.
    Other(&'static [u16], &'static [&'static str]),
}
use Fate::{Last, Other, Refused, Served};

impl Fate {
    fn spelled_out(self) -> (Vec<u16>, Vec<String>) {
        let (statuses, requests): (&[u16], &[&str]) = match self {
            Refused(status) => (&[status], &[]),
            Served(request) => (&[200, 200], &[request, "GET /next shop"]),
            Last(request) => (&[200], &[request]),
            Other(statuses, requests) => (statuses, requests),
        };
        (statuses.to_vec(), requests.iter().map(|request| (*request).to_owned()).collect())
    }
}

/// The statuses that the client gets.
fn statuses(received: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(received);
    let versions = text.match_indices("HTTP/1.").map(|(start, name)| &text[start + name.len()..]);
    versions.filter_map(|rest| rest.get(2..5)?.parse().ok()).collect()
}

/// The outcomes that differ from pitstop's, each with the reason for the difference.
type Differences<T> = &'static [(Proxy, T, &'static str)];

/// Compares the outcomes of all proxies with the table.
#[derive(Default)]
struct Comparison(Vec<String>);

impl Comparison {
    fn add<T: Copy, O: PartialEq + std::fmt::Debug>(
        &mut self,
        bytes: &str,
        (pitstop, differences): (T, Differences<T>),
        spell_out: impl Fn(T) -> O,
        run: impl Fn(Proxy) -> O,
    ) {
        let bytes = bytes.get(..200).unwrap_or(bytes);
        for proxy in [Pitstop, Nginx, Haproxy] {
            let difference = differences.iter().find(|(peer, ..)| *peer == proxy);
            let expected = spell_out(difference.map_or(pitstop, |(_, outcome, _)| *outcome));
            if difference.is_some() && expected == spell_out(pitstop) {
                self.0.push(format!("{bytes:?}: the entry for {proxy:?} is no difference"));
            }
            let outcome = run(proxy);
            if outcome != expected {
                self.0.push(format!("{bytes:?} through {proxy:?}:\n  expected {expected:?}\n  but got  {outcome:?}"));
            }
        }
    }

    #[track_caller]
    fn assert_as_expected(self) {
        assert!(self.0.is_empty(), "{}", self.0.join("\n"));
    }
}

/// A request line with `Host`.
macro_rules! line {
    ($line:literal) => {
        concat!($line, "\r\nHost: shop\r\n\r\n")
    };
}

/// `GET /` with further field lines, each with its end.
macro_rules! get {
    ($fields:literal) => {
        concat!("GET / HTTP/1.1\r\nHost: shop\r\n", $fields, "\r\n")
    };
}

/// `GET /` with this `Host`.
macro_rules! host {
    ($host:literal) => {
        concat!("GET / HTTP/1.1\r\nHost:", $host, "\r\n\r\n")
    };
}

/// `POST /` with further field lines, each with its end, and a body.
macro_rules! post {
    ($fields:literal, $body:literal) => {
        concat!("POST / HTTP/1.1\r\nHost: shop\r\n", $fields, "\r\n", $body)
    };
}

/// `POST /` with this transfer coding, and chunks.
macro_rules! coded {
    ($coding:literal) => {
        concat!("POST / HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: ", $coding, "\r\n\r\n3\r\na=b\r\n0\r\n\r\n")
    };
}

/// `POST /` with these chunks.
macro_rules! chunked {
    ($body:literal) => {
        post!("Transfer-Encoding: chunked\r\n", $body)
    };
}

const PLAIN: Fate = Served("GET / shop");
const FORM: Fate = Served("POST / shop a=b");

const REQUESTS: &[(&str, Fate, Differences<Fate>)] = &[
    // Line ends.
    (line!("GET / HTTP/1.1"), PLAIN, &[]),
    ("GET / HTTP/1.1\nHost: shop\n\n", Refused(400), &[(Nginx, PLAIN, LINE_FEED), (Haproxy, PLAIN, LINE_FEED)]),
    (
        get!("X: y\nX: z\r\n"),
        Refused(400),
        &[(Nginx, Served("GET / shop X:y X:z"), LINE_FEED), (Haproxy, Served("GET / shop X:y X:z"), LINE_FEED)],
    ),
    (get!("X: a\rb\r\n"), Refused(400), &[]),
    ("\r\n\r\nGET / HTTP/1.1\r\nHost: shop\r\n\r\n", PLAIN, &[]),
    // The request line.
    (line!(" GET / HTTP/1.1"), Refused(400), &[]),
    (line!("GET  / HTTP/1.1"), Refused(400), &[(Nginx, PLAIN, WORDS), (Haproxy, PLAIN, WORDS)]),
    (line!("GET\t/ HTTP/1.1"), Refused(400), &[(Haproxy, PLAIN, WORDS)]),
    (line!("GET / HTTP/1.1 "), Refused(400), &[(Nginx, PLAIN, WORDS)]),
    (line!("GET /a b HTTP/1.1"), Refused(400), &[]),
    (line!("BREW-IT / HTTP/1.1"), Served("BREW-IT / shop"), &[]),
    (line!("G(T / HTTP/1.1"), Refused(400), &[]),
    (
        line!("get / HTTP/1.1"),
        Served("get / shop"),
        &[(Nginx, Refused(400), "knows no method in lower case; any token is a method (RFC 9110 §9.1)")],
    ),
    (
        line!("TRACE / HTTP/1.1"),
        Served("TRACE / shop"),
        &[(
            Nginx,
            Refused(405),
            "never forwards TRACE; whether to answer it is up to the application (RFC 9110 §9.3.8)",
        )],
    ),
    (
        "CONNECT shop:80 HTTP/1.1\r\nHost: shop:80\r\n\r\n",
        Refused(501),
        &[
            (
                Nginx,
                Refused(400),
                "knows no such target; 501 is for methods that are not implemented (RFC 9110 §15.6.2)",
            ),
            (
                Haproxy,
                Other(&[200, 200], &["CONNECT shop:80 shop", "GET /next shop"]),
                "opens a tunnel, in which it checks nothing any more (RFC 9110 §9.3.6)",
            ),
        ],
    ),
    // Versions.
    (line!("GET / HTTP/1.2"), Refused(505), &[(Nginx, PLAIN, MINOR), (Haproxy, PLAIN, MINOR)]),
    (
        line!("GET / HTTP/2.0"),
        Refused(505),
        &[(Haproxy, PLAIN, "does not look at the major version; its framing would be another (RFC 9110 §2.5)")],
    ),
    (
        line!("GET / HTTP/1.10"),
        Refused(400),
        &[(Nginx, PLAIN, "accepts more than one digit; a version has one (RFC 9112 §2.3)")],
    ),
    (line!("GET / http/1.1"), Refused(400), &[]),
    (
        "GET /\r\n",
        Refused(400),
        &[(Nginx, Other(&[], &["GET / "]), "still speaks HTTP/0.9, which has no status line (RFC 9112 §2.3)")],
    ),
    // HTTP/1.0.
    (line!("GET / HTTP/1.0"), Last("GET / shop"), &[]),
    ("GET / HTTP/1.0\r\nHost: shop\r\nConnection: keep-alive\r\n\r\n", PLAIN, &[]),
    (
        "GET / HTTP/1.0\r\n\r\n",
        Last("GET / application"),
        &[(Nginx, Last("GET / "), NO_HOST), (Haproxy, Last("GET / "), NO_HOST)],
    ),
    (
        "POST / HTTP/1.0\r\nHost: shop\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na=b\r\n0\r\n\r\n",
        Refused(400),
        &[(Haproxy, Last("POST / shop a=b"), "reads it and closes, as RFC 9112 §6.1 allows; recipients disagree")],
    ),
    // Targets.
    (line!("GET /a/../b//c?d=%00 HTTP/1.1"), Served("GET /a/../b//c?d=%00 shop"), &[]),
    (
        line!("GET /é HTTP/1.1"),
        Served("GET /é shop"),
        &[(Haproxy, Refused(400), "refuses what a URI cannot contain (RFC 3986 §2); applications have such links")],
    ),
    (line!("GET /\0 HTTP/1.1"), Refused(400), &[]),
    (
        line!("GET /a#b HTTP/1.1"),
        Refused(400),
        &[(Nginx, Served("GET /a#b shop"), "passes a fragment on, which no form of a target has (RFC 9112 §3.2)")],
    ),
    (line!("GET a HTTP/1.1"), Refused(400), &[]),
    (
        line!("OPTIONS * HTTP/1.1"),
        Served("OPTIONS * shop"),
        &[(Nginx, Refused(400), "does not know the asterisk form (RFC 9112 §3.2.4)")],
    ),
    (
        line!("GET * HTTP/1.1"),
        Refused(400),
        &[(Haproxy, Served("GET * shop"), "accepts for any method what is for OPTIONS only (RFC 9112 §3.2.4)")],
    ),
    (
        line!("GET http://shop/a HTTP/1.1"),
        Served("GET /a shop"),
        &[(Haproxy, Served("GET http://shop/a shop"), "keeps the absolute form (RFC 9112 §3.2.2)")],
    ),
    (
        "GET http://shop/a HTTP/1.1\r\nHost: other\r\n\r\n",
        Served("GET /a shop"),
        &[(Haproxy, Refused(400), "refuses two hosts; the target's replaces the other (RFC 9112 §3.2.2)")],
    ),
    (
        line!("GET http://shop?a HTTP/1.1"),
        Served("GET /?a shop"),
        &[(Haproxy, Refused(400), "takes the query for a part of the host; a path may be empty (RFC 9110 §4.2.3)")],
    ),
    (
        "GET http://shop/a HTTP/1.1\r\n\r\n",
        Refused(400),
        &[(Haproxy, Served("GET http://shop/a "), "does not ask for Host (RFC 9112 §3.2)")],
    ),
    (
        line!("GET http://me@shop/a HTTP/1.1"),
        Refused(400),
        &[(Haproxy, Served("GET http://me@shop/a shop"), "passes on what may disguise a host (RFC 9110 §4.2.4)")],
    ),
    (
        line!("GET ftp://shop/a HTTP/1.1"),
        Refused(400),
        &[
            (Nginx, Served("GET /a shop"), "ignores the scheme; the resource is another one (RFC 9110 §4.2)"),
            (Haproxy, Served("GET ftp://shop/a shop"), "leaves the scheme to the application (RFC 9110 §4.2)"),
        ],
    ),
    // Hosts.
    ("GET / HTTP/1.1\r\n\r\n", Refused(400), &[(Haproxy, Served("GET / "), "does not ask for Host (RFC 9112 §3.2)")]),
    (
        host!(""),
        Served("GET / "),
        &[(Nginx, Refused(400), "refuses the empty Host of a request without an authority (RFC 9112 §3.2)")],
    ),
    (host!(" shop\r\nHost: other"), Refused(400), &[]),
    (
        host!(" shop\r\nHost: shop"),
        Refused(400),
        &[(Haproxy, PLAIN, "drops equal ones; more than one is to be refused (RFC 9112 §3.2)")],
    ),
    (host!(" shop, other"), Refused(400), &[(Haproxy, Served("GET / shop, other"), ANY_HOST)]),
    (host!(" shop/other"), Refused(400), &[(Haproxy, Served("GET / shop/other"), ANY_HOST)]),
    (
        host!(" me@shop"),
        Refused(400),
        &[(Nginx, Served("GET / me@shop"), ANY_HOST), (Haproxy, Served("GET / me@shop"), ANY_HOST)],
    ),
    (
        host!(" Shop:81"),
        Served("GET / Shop:81"),
        &[(Nginx, Served("GET / shop"), "$host is in lower case and has no port (RFC 9110 §7.2 keeps both)")],
    ),
    (
        host!(" shop:x"),
        Refused(400),
        &[(Nginx, Served("GET / shop"), "drops any port (RFC 9110 §7.2)"), (Haproxy, Served("GET / shop:x"), ANY_HOST)],
    ),
    (
        host!("\tshop\t"),
        PLAIN,
        &[(Nginx, Refused(400), "does not take a tab for white space around a value (RFC 9112 §5)")],
    ),
    // Fields.
    (get!("X: a\r\nX: b\r\nX:\r\n"), Served("GET / shop X:a X:b X:"), &[]),
    (get!("X: é\r\n"), Served("GET / shop X:é"), &[]),
    (
        get!("X: a\r\n b\r\n"),
        Refused(400),
        &[(
            Haproxy,
            Served("GET / shop X:a   b"),
            "unfolds the line; to refuse it is the other choice (RFC 9112 §5.2)",
        )],
    ),
    (get!("X : a\r\n"), Refused(400), &[]),
    (get!(": a\r\n"), Refused(400), &[]),
    (
        get!("X\r\n"),
        Refused(400),
        &[(Nginx, Served("GET / shop X:"), "takes a line without a colon for an empty field (RFC 9112 §5)")],
    ),
    (
        get!("X(: a\r\n"),
        Refused(400),
        &[(Nginx, PLAIN, "drops a field whose name is no token (RFC 9110 §5.1); recipients disagree")],
    ),
    (
        get!("X: a\0b\r\n"),
        Refused(400),
        &[(Haproxy, Served("GET / shop X:a\0b"), "passes on NUL, which is to be refused or replaced (RFC 9110 §5.5)")],
    ),
    (
        get!("X: a\u{1}b\r\n"),
        Refused(400),
        &[(Nginx, Served("GET / shop X:a\u{1}b"), CONTROL), (Haproxy, Served("GET / shop X:a\u{1}b"), CONTROL)],
    ),
    // Connection and Expect.
    (get!("Connection: close\r\n"), Last("GET / shop"), &[]),
    (get!("Connection: keep-alive, close\r\n"), Last("GET / shop"), &[]),
    (get!("Connection: upgrade\r\nUpgrade: x\r\n"), PLAIN, &[]),
    (get!("Connection: host\r\n"), Refused(400), &[(Nginx, PLAIN, OPTIONS), (Haproxy, PLAIN, OPTIONS)]),
    (
        post!("Content-Length: 3\r\nConnection: content-length\r\n", "a=b"),
        Refused(400),
        &[(Nginx, FORM, OPTIONS), (Haproxy, FORM, OPTIONS)],
    ),
    (
        get!("X: a\r\nConnection: X\r\n"),
        PLAIN,
        &[(Nginx, Served("GET / shop X:a"), OPTIONS), (Haproxy, Served("GET / shop X:a"), OPTIONS)],
    ),
    (
        post!("Content-Length: 3\r\nExpect: 100-continue\r\n", "a=b"),
        FORM,
        &[(
            Nginx,
            Other(&[100, 200, 200], &["POST / shop a=b", "GET /next shop"]),
            "sends 100 though the body is there already; it may be left out (RFC 9110 §10.1.1)",
        )],
    ),
    // Lengths.
    (post!("Content-Length: 3\r\n", "a=b"), FORM, &[]),
    (post!("Content-Length: 003\r\n", "a=b"), FORM, &[]),
    (get!("Content-Length: 0\r\n"), PLAIN, &[]),
    (post!("Content-Length: +3\r\n", "a=b"), Refused(400), &[]),
    (post!("Content-Length: -3\r\n", "a=b"), Refused(400), &[]),
    (post!("Content-Length:\r\n", ""), Refused(400), &[]),
    (post!("Content-Length: 99999999999999999999\r\n", "a=b"), Refused(400), &[]),
    (post!("Content-Length: 3\r\nContent-Length: 3\r\n", "a=b"), Refused(400), &[(Haproxy, FORM, EQUAL)]),
    (post!("Content-Length: 3, 3\r\n", "a=b"), Refused(400), &[(Haproxy, FORM, EQUAL)]),
    (post!("Content-Length: 3\r\nContent-Length: 4\r\n", "a=b"), Refused(400), &[]),
    (
        post!("Content-Length: 9\r\nTransfer-Encoding: chunked\r\n", "3\r\na=b\r\n0\r\n\r\n"),
        Refused(400),
        &[(
            Haproxy,
            Last("POST / shop a=b"),
            "goes by the chunks and closes, as RFC 9112 §6.3 allows; it may be an attack",
        )],
    ),
    // Transfer codings.
    (coded!("chunked"), FORM, &[]),
    (coded!("chunked, chunked"), Refused(400), &[(Nginx, Refused(501), UNKNOWN)]),
    (coded!("chunked\r\nTransfer-Encoding: chunked"), Refused(400), &[]),
    (
        coded!("gzip, chunked"),
        Refused(501),
        &[(Haproxy, Refused(422), "says that it is unprocessable; 501 is for codings (RFC 9112 §6.1)")],
    ),
    (coded!("identity"), Refused(400), &[(Nginx, Refused(501), UNKNOWN)]),
    (coded!("\u{b}chunked"), Refused(400), &[(Nginx, Refused(501), UNKNOWN)]),
    // Chunks.
    (chunked!("3;a=\"b;c\"\r\na=b\r\n0;x\r\n\r\n"), FORM, &[]),
    (chunked!("3 \r\na=b\r\n0\r\n\r\n"), FORM, &[]),
    (chunked!("3;;=\r\na=b\r\n0\r\n\r\n"), Refused(400), &[(Nginx, FORM, EXTENSION), (Haproxy, FORM, EXTENSION)]),
    (chunked!("3;a\n\r\na=b\r\n0\r\n\r\n"), Refused(400), &[]),
    (chunked!("3\na=b\n0\n\n"), Refused(400), &[(Nginx, FORM, CHUNK_END), (Haproxy, FORM, CHUNK_END)]),
    (chunked!("0x3\r\na=b\r\n0\r\n\r\n"), Refused(400), &[]),
    (chunked!("3\r\na=bcd\r\n0\r\n\r\n"), Refused(400), &[]),
    (chunked!("10000000000000003\r\na=b\r\n0\r\n\r\n"), Refused(400), &[]),
    (chunked!("00000000000000003\r\na=b\r\n0\r\n\r\n"), Refused(400), &[(Nginx, FORM, ZEROS), (Haproxy, FORM, ZEROS)]),
    (
        chunked!("3\r\na=b\r\n0\r\nX: y\r\n\r\n"),
        Served("POST / shop a=b x:y"),
        &[(Nginx, FORM, "drops trailers, as an intermediary may (RFC 9110 §6.5.1)")],
    ),
    (
        chunked!("3\r\na=b\r\n0\r\nContent-Length: 5\r\n\r\n"),
        FORM,
        &[(
            Haproxy,
            Served("POST / shop a=b content-length:5"),
            "passes on a trailer that frames a message (RFC 9110 §6.5.1)",
        )],
    ),
    (
        chunked!("3\r\na=b\r\n0\r\nx\r\n\r\n"),
        Refused(400),
        &[(Nginx, FORM, "skips the trailers unread (RFC 9112 §7.1.2)")],
    ),
    // What follows.
    (
        "GET /1 HTTP/1.1\r\nHost: shop\r\n\r\nGET /2 HTTP/1.1\r\nHost: shop\r\n\r\n",
        Other(&[200, 200, 200], &["GET /1 shop", "GET /2 shop", "GET /next shop"]),
        &[],
    ),
    (post!("Content-Length: 3\r\n", "a=b\r\n"), FORM, &[]),
    (post!("Content-Length: 3\r\n", "a=bx\r\n\r\n"), Other(&[200, 400], &["POST / shop a=b"]), &[]),
];

const LINE_FEED: &str = "accepts a lone LF (RFC 9112 §2.2 allows it); recipients disagree";
const WORDS: &str = "splits the line at any white space (RFC 9112 §3 allows it); recipients disagree";
const MINOR: &str = "takes a higher minor version for 1.1, as RFC 9110 §2.5 recommends; no such version exists";
const NO_HOST: &str = "sends HTTP/1.1 without Host, which the application has to refuse (RFC 9112 §3.2)";
const ANY_HOST: &str = "passes on what is no host with an optional port (RFC 9110 §7.2, RFC 9112 §3.2)";
const CONTROL: &str = "passes on a control character, which is invalid, but may be kept (RFC 9110 §5.5)";
const OPTIONS: &str = "does not look at the field's options, which are to be removed (RFC 9110 §7.6.1)";
const EQUAL: &str = "takes equal lengths for one, which is the other choice (RFC 9110 §8.6)";
const UNKNOWN: &str =
    "takes it for an unknown coding (RFC 9112 §6.1); without a chunked at its end it is a 400 (RFC 9112 §6.3)";
const EXTENSION: &str = "skips extensions unread; they have a grammar (RFC 9112 §7.1.1)";
const CHUNK_END: &str = "accepts a lone LF in chunks, where RFC 9112 §7.1 has CR LF only";
const ZEROS: &str = "accepts any number of zeros before a size; a limit keeps the arithmetic safe (RFC 9112 §7.1)";

#[test]
fn requests() {
    let mut comparison = Comparison::default();
    let many = |count, field: &str| format!("GET / HTTP/1.1\r\nHost: shop\r\n{}\r\n", field.repeat(count));
    let field = |length| format!("Large: {}\r\n", "x".repeat(length));
    const LIMIT: &str = "has another limit (RFC 9112 §3, RFC 6585 §5)";
    let large: &[(String, Fate, Differences<Fate>)] = &[
        (many(1, &field(14_000)), PLAIN, &[(Nginx, Refused(400), LIMIT)]),
        (many(2, &field(7000)), PLAIN, &[]),
        (many(3, &field(7000)), Refused(431), &[(Nginx, PLAIN, LIMIT), (Haproxy, Refused(400), LIMIT)]),
        (many(9, &field(7000)), Refused(431), &[(Nginx, Refused(400), LIMIT), (Haproxy, Refused(400), LIMIT)]),
        (many(150, "Small: x\r\n"), PLAIN, &[(Haproxy, Refused(400), LIMIT)]),
    ];
    let large = large.iter().map(|(bytes, fate, differences)| (bytes.as_str(), *fate, *differences));
    for (bytes, fate, differences) in REQUESTS.iter().copied().chain(large) {
        let outcome = |proxy| {
            let (received, requests) = run(proxy, &[bytes, NEXT].concat(), ok);
            let requests: Vec<_> = requests.iter().map(|(_, request)| described(request)).collect();
            (statuses(&received), requests)
        };
        comparison.add(bytes, (fate, differences), Fate::spelled_out, outcome);
    }
    comparison.assert_as_expected();
}

/// What becomes of a response. It is given as the client gets it: interim responses come before a bar.
#[derive(Clone, Copy, Debug)]
enum Delivery {
    /// The next request is sent over the same connection.
    Kept(&'static str),
    /// The next request is sent over another connection.
    Replaced(&'static str),
    /// The proxy closes the client's connection.
    Ends(&'static str),
    /// All that the client gets, and the connection of each request.
    Odd(&'static str, &'static [usize]),
}
use Delivery::{Ends, Kept, Odd, Replaced};

impl Delivery {
    fn spelled_out(self) -> (String, Vec<usize>) {
        let next = |response: &str| format!("{response} | 200 next");
        match self {
            Kept(response) => (next(response), vec![0, 0]),
            Replaced(response) => (next(response), vec![0, 1]),
            Ends(response) => (response.to_owned(), vec![0]),
            Odd(responses, connections) => (responses.to_owned(), connections.to_vec()),
        }
    }
}

/// What the table compares of responses: the status, the fields named `X`, the body and trailers of a success.
fn responses(mut received: &[u8]) -> String {
    let mut texts = Vec::new();
    while received.starts_with(b"HTTP/1.") {
        let mut response = Message::head(&mut received).expect("a head");
        response.read_body(&mut received, BodyOf::Answer);
        let status = response.status();
        let mut text = format!("{status:03}");
        for value in response.all("x") {
            text += &format!(" X:{value}");
        }
        if status < 400 && !response.body.is_empty() {
            text += &format!(" {}", response.text());
        }
        for (name, value) in &response.trailers {
            text += &format!(" {name}:{value}");
        }
        if !response.is_complete {
            text.push('…');
        }
        texts.push(text);
    }
    if !received.is_empty() {
        texts.push("garbage".to_owned());
    }
    texts.join(" | ")
}

/// A response to `GET` with these chunks.
macro_rules! chunks {
    ($chunks:literal) => {
        concat!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", $chunks)
    };
}

/// A response with this status line and further fields, each with its end, and a body of five bytes.
macro_rules! hello {
    ($head:literal) => {
        concat!($head, "Content-Length: 5\r\n\r\nhello")
    };
}

const HELLO: Delivery = Kept("200 hello");
const BAD: Delivery = Replaced("502");

/// Each with whether the application closes the connection after it.
const RESPONSES: &[(&str, bool, Delivery, Differences<Delivery>)] = &[
    (hello!("HTTP/1.1 200 OK\r\n"), false, HELLO, &[]),
    (hello!("HTTP/1.1 200 \r\n"), false, HELLO, &[]),
    (hello!("HTTP/1.1 200\r\n"), false, HELLO, &[]),
    (hello!("HTTP/1.1 200 OK\r\nConnection: close\r\n"), true, Replaced("200 hello"), &[]),
    // Line ends and fields.
    (
        "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
        false,
        BAD,
        &[(Nginx, HELLO, LINE_FEED), (Haproxy, HELLO, LINE_FEED)],
    ),
    (
        hello!("HTTP/1.1 200 OK\r\nX: a\r\n b\r\n"),
        false,
        BAD,
        &[(Haproxy, Kept("200 X:a   b hello"), "unfolds the line; to answer 502 is the other choice (RFC 9112 §5.2)")],
    ),
    (hello!("HTTP/1.1 200 OK\r\nX : a\r\n"), false, BAD, &[]),
    (
        hello!("HTTP/1.1 200 OK\r\nX: a\0b\r\n"),
        false,
        BAD,
        &[(Haproxy, Kept("200 X:a\0b hello"), "passes on NUL, which is to be refused or replaced (RFC 9110 §5.5)")],
    ),
    (hello!("HTTP/1.1 200 OK\r\nX: a\rb\r\n"), false, BAD, &[]),
    // Versions and statuses.
    (hello!("HTTP/1.0 200 OK\r\n"), true, Replaced("200 hello"), &[]),
    (hello!("HTTP/1.2 200 OK\r\n"), false, BAD, &[(Nginx, HELLO, MINOR), (Haproxy, HELLO, MINOR)]),
    (hello!("HTTP/2.0 200 OK\r\n"), false, BAD, &[(Nginx, HELLO, ANY_MAJOR), (Haproxy, HELLO, ANY_MAJOR)]),
    (hello!("HTTP/1.1 999 X\r\n"), false, Kept("999"), &[]),
    ("hello\r\n\r\n", true, BAD, &[(Nginx, Odd("garbage", &[0, 1]), "takes it for HTTP/0.9 (RFC 9112 §2.3)")]),
    ("", true, BAD, &[]),
    ("HTTP/1.1 200 OK\r\nConte", true, BAD, &[]),
    // Interim responses.
    (
        hello!("HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\nConnection: close\r\n"),
        true,
        Replaced("103 X:y | 200 hello"),
        &[],
    ),
    (
        hello!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nConnection: close\r\n"),
        true,
        Replaced("200 hello"),
        &[(Nginx, Replaced("100 | 200 hello"), UNEXPECTED), (Haproxy, Replaced("100 | 200 hello"), UNEXPECTED)],
    ),
    (
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        true,
        BAD,
        &[(Nginx, Replaced("101"), "passes on a switch that the client has not asked for (RFC 9110 §7.8)")],
    ),
    // Responses without a body.
    ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", false, Kept("204"), &[]),
    ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", false, Kept("204"), &[]),
    (hello!("HTTP/1.1 204 No Content\r\n"), false, Replaced("204"), &[]),
    ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false, Kept("304"), &[]),
    // Lengths and codings.
    (hello!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"), false, BAD, &[(Nginx, HELLO, EQUAL), (Haproxy, HELLO, EQUAL)]),
    (
        hello!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n"),
        false,
        BAD,
        &[(Nginx, HELLO, "goes by the last length; recipients disagree, so that it is a 502 (RFC 9112 §6.3)")],
    ),
    (
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        false,
        Replaced("200 hello"),
        &[(Nginx, HELLO, "uses a connection again that may be out of step (RFC 9112 §6.3)")],
    ),
    (
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        false,
        BAD,
        &[(Nginx, HELLO, CODINGS)],
    ),
    ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello", true, BAD, &[(Nginx, Replaced("200 hello"), CODINGS)]),
    (
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        true,
        Replaced("200 hello"),
        &[(Haproxy, Ends("200 hello"), "closes the client's connection, too (RFC 9112 §6.1 asks for the other only)")],
    ),
    // Chunks.
    (chunks!("5;a=b\r\nhello\r\n0\r\n\r\n"), false, HELLO, &[]),
    (
        chunks!("5\r\nhello\r\n0\r\nX: y\r\n\r\n"),
        false,
        Kept("200 hello x:y"),
        &[(Nginx, HELLO, "drops trailers, as an intermediary may (RFC 9110 §6.5.1)")],
    ),
    (chunks!("5\nhello\n0\n\n"), false, Ends("200…"), &[(Nginx, HELLO, CHUNK_END), (Haproxy, HELLO, CHUNK_END)]),
    (
        chunks!("0x5\r\nhello\r\n0\r\n\r\n"),
        false,
        Ends("200…"),
        &[
            (Nginx, Ends(""), "has not sent the head yet, and closes"),
            (Haproxy, BAD, "has not sent the head yet; what breaks off is incomplete to the client, too (RFC 9112 §8)"),
        ],
    ),
    // The end.
    (
        "HTTP/1.1 200 OK\r\n\r\nhello",
        true,
        Replaced("200 hello"),
        &[(
            Haproxy,
            Ends("200 hello"),
            "closes the client's connection, too, where chunks could end it (RFC 9112 §6.3)",
        )],
    ),
    ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", true, Ends("200 hello…"), &[]),
    (chunks!("5\r\nhello\r\n"), true, Ends("200 hello…"), &[]),
    ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello more", false, Replaced("200 hello"), &[]),
    (
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        false,
        Replaced("200 hello"),
        &[],
    ),
    (
        chunks!("5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"),
        false,
        Replaced("200 hello"),
        &[],
    ),
];

const ANY_MAJOR: &str = "does not look at the major version; its framing would be another (RFC 9110 §2.5)";
const UNEXPECTED: &str = "passes on a 100 that the client does not wait for (RFC 9110 §15.2.1)";
const CODINGS: &str = "takes any coding for none or for chunked, and drops the name (RFC 9112 §6.1)";

#[test]
fn responses_to_get() {
    let mut comparison = Comparison::default();
    for (bytes, closes, delivery, differences) in RESPONSES {
        let outcome = |proxy| {
            let (received, requests) =
                run(proxy, &[line!("GET / HTTP/1.1"), NEXT].concat(), move |request, visitor| {
                    if request.target() == "/next" {
                        return ok(request, visitor);
                    }
                    visitor.write(bytes) && !closes
                });
            (responses(&received), requests.iter().map(|(connection, _)| *connection).collect())
        };
        comparison.add(bytes, (*delivery, differences), Delivery::spelled_out, outcome);
    }
    comparison.assert_as_expected();
}
