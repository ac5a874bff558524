//! An application that is not there, does not answer, answers nonsense, or too late.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper::Request;
use serde_json::{Value, json};

use crate::application::{Application, BodyOf, Client, Message, Visitor, http2, whole};
use crate::fixture::{Sidecar, eventually};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// The gate before an address where an application may be or not.
fn gate_to(upstream: SocketAddr, flags: &[&str]) -> Sidecar {
    Sidecar::with(|command| _ = command.args(["--upstream", &format!("http://{upstream}")]).args(flags))
}

/// An address where nobody listens. It is taken, so that no other test can.
pub struct Nobody {
    pub address: SocketAddr,
    _socket: socket2::Socket,
}

impl Nobody {
    pub fn new() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        Self { address, _socket: socket }
    }
}

/// Shows that a client sees this status in its format, that it is counted under this cause, and that the log names the
/// application.
#[track_caller]
pub fn assert_fails(gate: &Sidecar, upstream: SocketAddr, status: u16, cause: &str, said: &str) {
    let title = match status {
        502 => "Bad Gateway",
        504 => "Gateway Timeout",
        _ => panic!("{status}"),
    };
    let ask = |accept: &str| {
        let answer = Client::of(gate).get(&format!("/ HTTP/1.1\r\nAccept: {accept}\r\nX-Rest:"));
        assert_eq!(answer.status(), status, "{accept}: {answer:?}");
        assert_eq!(answer.header("cache-control").as_deref(), Some("no-store"));
        assert_eq!(answer.header("retry-after"), None);
        (answer.header("content-type").unwrap(), answer.text())
    };
    assert_eq!(ask("*/*"), ("text/plain; charset=utf-8".into(), format!("{title}\n")));
    let (kind, problem) = ask("application/json");
    assert_eq!(kind, "application/problem+json");
    let expected = json!({"type": "about:blank", "title": title, "status": status});
    assert_eq!(serde_json::from_str::<Value>(&problem).unwrap(), expected);
    let (kind, page) = ask("text/html");
    assert_eq!(kind, "text/html; charset=utf-8");
    assert!(page.starts_with("<!doctype html>") && page.contains("<h1>Temporarily unavailable</h1>"), "{page}");

    let mut client = Client::of(gate);
    client.send("HEAD / HTTP/1.1\r\nHost: shop\r\n\r\n");
    assert_eq!(client.try_answer(BodyOf::AnswerToHead).unwrap().status(), status);
    // The connection serves on.
    assert_eq!(client.get("/").status(), status);

    http2(gate, async |mut sender| {
        let request = Request::post("http://shop/example.Service/Method").header("content-type", "application/grpc");
        let answer = sender.send_request(request.body(whole("message")).unwrap()).await.unwrap();
        assert_eq!((answer.status().as_u16(), &answer.headers()["grpc-status"]), (200, &"14".parse().unwrap()));
        assert_eq!(answer.headers()["grpc-message"], title);
    });

    gate.logs(&format!("the application at {upstream} {said}"));
    assert_eq!(gate.metric(&format!("pitstop_upstream_errors_total{{cause=\"{cause}\"}}")), 6.0);
    eventually("each is counted once", || gate.metric("pitstop_requests_total{outcome=\"failed\"}") == 6.0);
    eventually("none is at work", || gate.metric("pitstop_requests_in_flight") == 0.0);
}

#[test]
fn nobody_listens() {
    let nobody = Nobody::new();
    let upstream = nobody.address;
    assert_fails(&gate_to(upstream, &[]), upstream, 502, "connect", "does not accept a connection: Connection refused");
}

#[test]
fn no_such_host() {
    let gate = Sidecar::with(|command| _ = command.args(["--upstream", "http://no-such-host.invalid:80"]));
    assert_eq!(Client::of(&gate).get("/").status(), 502);
    assert_eq!(gate.metric("pitstop_upstream_errors_total{cause=\"connect\"}"), 1.0);
    gate.logs("the application at no-such-host.invalid:80 does not accept");
}

#[test]
fn what_is_not_http() {
    for garbage in [
        "garbage\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "\x15\x03\x01\0\x02\x02\x46",
    ] {
        let application = Application::new(move |visitor| {
            visitor.request();
            visitor.write(garbage);
        });
        let gate = application.gate();
        let said = if garbage.contains("gzip") { "answers in a transfer coding" } else { "does not answer in HTTP" };
        assert_fails(&gate, application.address, 502, "protocol", said);
    }
}

#[test]
fn an_answer_of_no_certain_length() {
    for lengths in
        ["Content-Length: 2\r\nContent-Length: 3", "Content-Length: two", "Content-Length: -1", "Content-Length: 2, 3"]
    {
        let application = Application::answering(format!("HTTP/1.1 200 OK\r\n{lengths}\r\n\r\nok"));
        let gate = application.gate();
        assert_eq!(Client::of(&gate).get("/").status(), 502, "{lengths}");
        assert_eq!(gate.metric("pitstop_upstream_errors_total{cause=\"protocol\"}"), 1.0);
    }
}

#[test]
fn no_answer() {
    for part in ["", "HTTP/1.1 200 O", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"] {
        for reset in [false, true] {
            let application = Application::new(move |visitor| {
                visitor.request();
                visitor.write(part);
                if reset {
                    visitor.reset();
                }
            });
            let said = "has closed the connection instead of an answer";
            assert_fails(&application.gate(), application.address, 502, "closed", said);
        }
    }
}

#[test]
fn an_answer_that_does_not_begin_in_time() {
    for part in ["", "HTTP/1.1 200 OK\r\nContent-"] {
        let application = Application::new(move |visitor| {
            visitor.request();
            visitor.write(part);
            // Until the gate gives up.
            visitor.bytes(1);
        });
        let gate = application.gate_with(&["--upstream-timeout", "300ms"]);
        let start = Instant::now();
        assert_fails(&gate, application.address, 504, "timeout", "does not answer in time");
        assert!(start.elapsed() >= Duration::from_millis(6 * 300));
    }
}

#[test]
fn a_connection_that_is_not_accepted_in_time() {
    // Its queue is full of connections that are never accepted: the system does not answer further ones.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let upstream = socket.local_addr().unwrap().as_socket().unwrap();
    let mut crowd = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&upstream, Duration::from_millis(300)) {
        crowd.push(stream);
    }
    let gate = gate_to(upstream, &["--upstream-timeout", "300ms"]);
    assert_fails(&gate, upstream, 504, "timeout", "does not accept a connection in time");
}

#[test]
fn an_answer_that_does_not_go_on_in_time() {
    let application = Application::new(|visitor| {
        visitor.request();
        visitor.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
        visitor.bytes(1);
    });
    let gate = application.gate_with(&["--upstream-timeout", "300ms"]);
    let answer = Client::of(&gate).get("/");
    assert_eq!((answer.status(), answer.text().as_str(), answer.is_complete), (200, "hello", false));
    eventually("it is counted", || gate.metric("pitstop_requests_total{outcome=\"failed\"}") == 1.0);
    assert_eq!(gate.metric("pitstop_upstream_errors_total{cause=\"timeout\"}"), 1.0);
    let said = format!("the application at {} does not go on with its answer in time", application.address);
    gate.logs(&said);
}

#[test]
fn only_silence_is_too_late() {
    // Each part comes in time, and all of them take far longer than that.
    let pause = || std::thread::sleep(Duration::from_millis(100));
    // It serves one request for each connection, and says so: a POST on one that closes at that moment may not be repeated.
    const HEAD: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let application = Application::new(move |visitor| {
        let mut request = visitor.head().unwrap();
        if request.target() == "/early" {
            visitor.write(HEAD);
        }
        visitor.body(&mut request);
        if request.target() == "/late" {
            visitor.write(HEAD);
        }
        for _ in 0..15 {
            visitor.write("1\r\nx\r\n");
            pause();
        }
        visitor.write("0\r\n\r\n");
    });
    let gate = application.gate_with(&["--upstream-timeout", "500ms"]);
    for target in ["/late", "/early"] {
        let mut client = Client::of(&gate);
        client.send(format!("POST {target} HTTP/1.1\r\nHost: shop\r\nContent-Length: 15\r\n\r\n"));
        for _ in 0..15 {
            client.send("y");
            pause();
        }
        let answer = client.answer();
        assert_eq!((answer.text(), answer.is_complete), ("x".repeat(15), true), "{target}: {}", gate.log());
    }
}

#[test]
fn a_client_that_does_not_go_on_is_told_so() {
    let application = Application::answering(OK);
    let gate = application.gate_with(&["--upstream-timeout", "300ms"]);
    let mut client = Client::of(&gate);
    let answer = client.ask("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 10\r\n\r\nhello");
    assert_eq!(answer.status(), 408);
    eventually("the application has got a part", || application.asked().len() == 1);
    assert!(!application.asked()[0].message.is_complete);
    // It is not the application's fault.
    assert_eq!(gate.metric("pitstop_requests_total{outcome=\"failed\"}"), 1.0);
    assert!(!gate.log().contains("the application at"), "{}", gate.log());
}

// Trying again.

/// An application that serves the first request on a connection, and loses the second.
fn forgetful(lose: impl Fn(&mut Visitor) + Send + Sync + 'static) -> Application {
    Application::new(move |visitor| {
        visitor.request();
        visitor.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        visitor.request();
        lose(visitor);
    })
}

#[test]
fn a_kept_connection_that_was_closed_costs_no_get() {
    for reset in [false, true] {
        for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"] {
            let application = forgetful(move |visitor| {
                if reset {
                    visitor.reset();
                }
            });
            let gate = application.gate();
            let mut client = Client::of(&gate);
            for number in 0..6 {
                client.send(format!("{method} /{number} HTTP/1.1\r\nHost: shop\r\nX-Once: {number}\r\n\r\n"));
                let of = if method == "HEAD" { BodyOf::AnswerToHead } else { BodyOf::Answer };
                assert_eq!(client.try_answer(of).unwrap().status(), 200, "{method} {number}");
            }
            // All but the first were sent twice: on a connection that was used before, and on a new one.
            let asked = application.asked();
            let targets: Vec<_> = asked.iter().map(|asked| asked.message.target().to_owned()).collect();
            let expected = ["/0", "/1", "/1", "/2", "/2", "/3", "/3", "/4", "/4", "/5", "/5"];
            assert_eq!(
                (targets.as_slice(), application.connections()),
                (&expected.map(str::to_owned)[..], 6),
                "{method}"
            );
            for pair in asked[1..].chunks(2) {
                assert_eq!(pair[0].message, pair[1].message, "{method}");
            }
            assert_eq!(gate.metric("pitstop_requests_total{outcome=\"forwarded\"}"), 6.0);
            assert_eq!(gate.metric("pitstop_requests_total{outcome=\"failed\"}"), 0.0);
            assert!(!gate.log().contains("the application at"), "{}", gate.log());
        }
    }
}

#[test]
fn what_may_not_be_repeated_is_not() {
    for request in [
        "POST /once HTTP/1.1\r\nHost: shop\r\nContent-Length: 3\r\n\r\na=b",
        "POST /once HTTP/1.1\r\nHost: shop\r\n\r\n",
        "PATCH /once HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\n\r\n",
        "BREW /once HTTP/1.1\r\nHost: shop\r\n\r\n",
        // It is idempotent, but its body is gone.
        "PUT /once HTTP/1.1\r\nHost: shop\r\nContent-Length: 3\r\n\r\na=b",
        "GET /once HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na=b\r\n0\r\n\r\n",
    ] {
        let application = forgetful(|_| {});
        let gate = application.gate();
        let mut client = Client::of(&gate);
        assert_eq!(client.get("/first").status(), 200);
        assert_eq!(client.ask(request).status(), 502, "{request:?}");
        let targets: Vec<_> = application.asked().iter().map(|asked| asked.message.target().to_owned()).collect();
        assert_eq!(targets, ["/first", "/once"], "{request:?}");
        assert_eq!(gate.metric("pitstop_upstream_errors_total{cause=\"closed\"}"), 1.0);
        // The next one gets a new connection.
        assert_eq!(Client::of(&gate).get("/next").status(), 200);
    }
}

#[test]
fn it_is_tried_again_once() {
    // From the second request on, no connection brings an answer.
    let served = AtomicUsize::new(0);
    let application = Application::new(move |visitor| {
        while visitor.request().is_some() && served.fetch_add(1, Relaxed) == 0 {
            visitor.write(OK);
        }
    });
    let gate = application.gate();
    let mut client = Client::of(&gate);
    assert_eq!(client.get("/").status(), 200);
    assert_eq!(client.get("/").status(), 502);
    assert_eq!((application.asked().len(), application.connections()), (3, 2));
    // On a new connection, a request is sent once: there, the application has not closed before it came.
    assert_eq!(client.get("/").status(), 502);
    assert_eq!((application.asked().len(), application.connections()), (4, 3));
}

#[test]
fn an_answer_that_has_begun_is_not_asked_for_again() {
    for part in ["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"] {
        let application = forgetful(move |visitor| _ = visitor.write(part));
        let gate = application.gate();
        let mut client = Client::of(&gate);
        assert_eq!(client.get("/first").status(), 200);
        client.send("GET /once HTTP/1.1\r\nHost: shop\r\n\r\n");
        // Where it breaks off at once, it may be that nothing of it reaches the client.
        let answer = client.try_answer(BodyOf::Answer);
        assert!(answer.as_ref().is_none_or(|answer| !answer.is_complete), "{answer:?}");
        assert_eq!(application.asked().len(), 2, "{part:?}");
    }
}

#[test]
fn an_application_that_restarts_between_requests_costs_nothing() {
    let mut application = Application::answering(OK);
    let (address, gate) = (application.address, application.gate());
    let mut clients: Vec<_> = (0..8).map(|_| Client::of(&gate)).collect();
    for round in 0..10 {
        // Several connections are kept.
        for client in &mut clients {
            client.send(format!("GET /{round} HTTP/1.1\r\nHost: shop\r\n\r\n"));
        }
        for client in &mut clients {
            assert_eq!(client.answer().status(), 200, "round {round}: {}", gate.log());
        }
        drop(application);
        application = Application::at(address, |visitor| {
            while visitor.request().is_some() {
                visitor.write(OK);
            }
        });
    }
    assert_eq!(gate.metric("pitstop_requests_total{outcome=\"failed\"}"), 0.0);
}

#[test]
fn a_restart_under_load_fails_no_more_than_its_own_time() {
    let application = Application::answering(OK);
    let (address, gate) = (application.address, application.gate());
    let (stop, enough) = channel::<()>();
    let enough = Arc::new(Mutex::new(enough));
    let statuses = Arc::new(Mutex::new(Vec::new()));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (mut client, enough, statuses) = (Client::of(&gate), enough.clone(), statuses.clone());
            std::thread::spawn(move || {
                while matches!(enough.lock().unwrap().try_recv(), Err(std::sync::mpsc::TryRecvError::Empty)) {
                    let status = client.get("/").status();
                    statuses.lock().unwrap().push(status);
                }
            })
        })
        .collect();
    let so_far = || statuses.lock().unwrap().len();
    let served = |since: usize| statuses.lock().unwrap()[since..].iter().filter(|status| **status == 200).count();
    eventually("requests are served", || served(0) > 100);
    drop(application);
    let down = so_far();
    eventually("requests fail", || statuses.lock().unwrap()[down..].contains(&502));
    let _application = Application::at(address, |visitor| {
        while visitor.request().is_some() {
            visitor.write(OK);
        }
    });
    eventually("requests are served again", || served(down) > 0);
    // Those that were under way at that moment, one a client, may still fail.
    let up = so_far() + 4;
    eventually("many more are", || so_far() > up + 100);
    drop(stop);
    for client in clients {
        client.join().unwrap();
    }
    let statuses = statuses.lock().unwrap();
    assert!(statuses[up..].iter().all(|status| *status == 200), "{:?}", &statuses[up..]);
    assert!(statuses.iter().all(|status| matches!(status, 200 | 502)));
}

#[test]
fn an_application_that_does_not_look_whether_anybody_listens_finds_out() {
    let failed = Arc::new(AtomicUsize::new(0));
    let seen = failed.clone();
    let application = Application::new(move |visitor| {
        visitor.request();
        visitor.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while visitor.write("5\r\nhello\r\n") {}
        seen.fetch_add(1, Relaxed);
    });
    let gate = application.gate();
    let mut client = Client::of(&gate);
    client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
    Message::head(&mut client.0).unwrap();
    client.0.read_exact(&mut [0; 5]).unwrap();
    drop(client);
    eventually("it cannot send any more", || failed.load(Relaxed) == 1);
    // It is held to be at work for a while after that.
    assert_eq!(gate.metric("pitstop_requests_in_flight"), 1.0);
    eventually("it is let go", || gate.metric("pitstop_requests_in_flight") == 0.0);
    assert!(!gate.log().contains("the application at"), "no error of its own: {}", gate.log());
}
