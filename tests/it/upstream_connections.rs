//! Connections to the application: which are kept, for how long, and how many there are.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::application::{Application, Client, http2, whole};
use crate::fixture::{DEADLINE, Sidecar, behind, eventually};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn a_connection_is_used_again() {
    let application = Application::answering(OK);
    let gate = application.gate();
    // Clients that come one after the other; what one leaves unused, the next may use.
    for number in 0..5 {
        let mut client = Client::of(&gate);
        assert_eq!(client.get(&format!("/{number}")).text(), "ok");
        let answer = client.ask(format!("POST /{number} HTTP/1.1\r\nHost: shop\r\nContent-Length: 3\r\n\r\na=b"));
        assert_eq!(answer.text(), "ok");
    }
    assert_eq!((application.connections(), application.asked().len()), (1, 10));
    eventually("all are counted", || gate.metric("pitstop_requests_total{outcome=\"forwarded\"}") == 10.0);
    assert_eq!(gate.metric("pitstop_requests_in_flight"), 0.0);
}

#[test]
fn what_follows_an_answer_is_no_answer_to_the_next_request() {
    for surplus in ["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", "evil", "\r\n", "HTTP/1.1 408 Timeout\r\n\r\n"]
    {
        let application = Application::new(move |visitor| {
            while let Some(request) = visitor.request() {
                let path = request.target().to_owned();
                visitor.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}{surplus}", path.len()));
            }
        });
        let gate = application.gate();
        let mut client = Client::of(&gate);
        for number in 0..5 {
            let path = format!("/{number}");
            assert_eq!(client.get(&path).text(), path, "{surplus:?}");
        }
    }
}

/// An application that tells when the gate closes a connection; it may close its own direction before.
fn watching(closes: bool) -> (Application, Receiver<()>) {
    let (sender, closed) = channel();
    let sender = Mutex::new(sender);
    let application = Application::new(move |visitor| {
        visitor.request();
        visitor.write(OK);
        if closes {
            visitor.close_half();
        }
        assert_eq!(visitor.bytes(1), b"");
        sender.lock().unwrap().send(()).unwrap();
    });
    (application, closed)
}

#[test]
fn one_that_the_application_has_closed_is_not_kept() {
    let (application, closed) = watching(true);
    let gate = application.gate();
    assert_eq!(Client::of(&gate).get("/").text(), "ok");
    closed.recv_timeout(DEADLINE).unwrap();
}

#[test]
fn one_that_nobody_needs_is_not_kept_for_ever() {
    let (application, closed) = watching(false);
    let gate = application.gate_with(&["--idle-timeout", "1s"]);
    let start = Instant::now();
    assert_eq!(Client::of(&gate).get("/").text(), "ok");
    closed.recv_timeout(DEADLINE).unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[test]
fn few_file_descriptors_mean_few_connections_and_others_wait() {
    let (let_go, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let application = Application::new(move |visitor| {
        while visitor.request().is_some() {
            let _ = wait.lock().unwrap().recv();
            visitor.write(OK);
        }
    });
    let gate = Sidecar::with(|command| {
        application.behind(command.args(["--upstream-timeout", "2s"]));
        behind(&["prlimit", "--nofile=326:326"], command);
    });
    gate.logs("only 3 connections are accepted at once");
    // One client with many requests at the same time is not limited by that.
    http2(&gate, async |sender| {
        let ask = || {
            let mut sender = sender.clone();
            let request = hyper::Request::get("http://shop/").body(whole("")).unwrap();
            tokio::spawn(async move { sender.send_request(request).await.unwrap().status().as_u16() })
        };
        let asked: Vec<_> = (0..5).map(|_| ask()).collect();
        while application.asked().len() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(gate.metric("pitstop_requests_in_flight"), 5.0);
        assert_eq!(application.connections(), 3);
        for _ in 0..5 {
            let_go.send(()).unwrap();
        }
        for answer in asked {
            assert_eq!(answer.await.unwrap(), 200);
        }
        assert_eq!(application.asked().len(), 5);

        // But not for ever.
        let asked: Vec<_> = (0..4).map(|_| ask()).collect();
        let mut statuses = Vec::new();
        for answer in asked {
            statuses.push(answer.await.unwrap());
        }
        assert_eq!(statuses, [504; 4]);
    });
    let counts = |said: &str, count: usize| {
        eventually(&format!("{count} times {said:?}"), || gate.log().matches(said).count() == count);
    };
    counts("has none of its connections free in time", 1);
    counts("does not answer in time", 3);
    // Meanwhile it answers here, and those that the application does not let go of still count.
    assert_eq!(gate.admin("/readyz").status, 200);
    assert_eq!(gate.metric("pitstop_requests_in_flight"), 3.0);
}
