//! An application that is not there, answers nonsense, or too late.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use h2::server::Builder;
use http_body_util::BodyExt;
use hyper::Request;

use super::{errors, nobody_is_at_work, ok, outcome};
use crate::application::{Application, Client, http2, whole};
use crate::fixture::eventually;
use crate::http2_application::{Call, DATA, END_STREAM, Frames, Http2Application, gate_to, of_frames, status};
use crate::upstream_errors::assert_fails;

/// What an application does on a stream.
type Break = fn(&mut Frames, u32);

#[test]
fn an_application_that_speaks_http_1_1() {
    // As most servers answer what they do not understand; one that begins with something else; and one that closes.
    for (answer, cause, said) in [
        ("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "protocol", "answers in HTTP/1: give it as http://"),
        ("<!doctype html><title>Error</title>", "protocol", "does not begin with HTTP/2: "),
        ("", "closed", "closes a new connection before it has said anything: does it speak HTTP/2"),
    ] {
        let application = Application::new(move |visitor| {
            visitor.bytes(24);
            visitor.write(answer);
        });
        assert_fails(&gate_to(application.address, &[]), application.address, 502, cause, said);
    }
    // A real one.
    let application = Application::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let gate = gate_to(application.address, &[]);
    assert_eq!(Client::of(&gate).get("/").status(), 502);
    eventually("it is logged", || gate.log().contains("answers in HTTP/1: give it as http:// instead of h2c://"));
}

#[test]
fn nobody_listens() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_fails(&gate_to(upstream, &[]), upstream, 502, "connect", "does not accept a connection: Connection refused");
}

#[test]
fn an_answer_that_is_none() {
    // A frame that may not be there, and an answer without a status.
    let table: [(&str, Break); 2] = [
        ("DATA first", |frames, stream| _ = frames.write(DATA, END_STREAM, stream, b"ok")),
        // "x: y", written out (RFC 7541 §6.2.2).
        ("no status", |frames, stream| _ = frames.write(1, 5, stream, b"\0\x01x\x01y")),
    ];
    for (what, answer) in table {
        let application = of_frames(move |frames| {
            while let Some(stream) = frames.request() {
                answer(frames, stream);
            }
        });
        let gate = gate_to(application.address, &[]);
        assert_eq!(Client::of(&gate).get("/").status(), 502, "{what}");
        assert_eq!(errors(&gate, "protocol"), 1.0, "{what}");
        eventually("it is logged", || gate.log().contains("does not answer in HTTP/2"));
    }
}

#[test]
fn an_application_that_is_silent() {
    for begins in [false, true] {
        let application = Application::new(move |visitor| {
            visitor.bytes(24);
            if begins {
                let mut frames = Frames(visitor);
                frames.write(4, 0, 0, b"");
            }
            // Until the gate has had enough.
            while !visitor.bytes(1).is_empty() {}
        });
        let gate = gate_to(application.address, &["--upstream-timeout", "300ms"]);
        let answer = Client::of(&gate).get("/");
        assert_eq!((answer.status(), errors(&gate, "timeout")), (504, 1.0));
        let said = if begins { "does not answer in time" } else { "does not accept a connection in time" };
        eventually("it is logged", || gate.log().contains(said));
        // The next one does not go where nobody was heard.
        assert_eq!(Client::of(&gate).get("/").status(), 504);
        assert_eq!(application.connections(), 2);
    }
}

#[test]
fn an_answer_that_does_not_go_on() {
    let application = Http2Application::new(async |mut call: Call| {
        let mut stream = call.begin(status(200)).unwrap();
        stream.send_data("hello".into(), false).unwrap();
        std::future::poll_fn(|cx| stream.poll_reset(cx)).await.unwrap();
    });
    let gate = application.gate_with(&["--upstream-timeout", "300ms"]);
    let answer = Client::of(&gate).get("/");
    assert_eq!((answer.text().as_str(), answer.is_complete), ("hello", false));
    assert_eq!(errors(&gate, "timeout"), 1.0);
    // It was only one of its requests.
    assert_eq!(Client::of(&gate).get("/").text(), "hello");
    assert_eq!(application.connections(), 1);
}

#[test]
fn an_answer_that_breaks_off_is_not_taken_for_a_whole_one() {
    let table: [(&str, Break, &str); 4] = [
        ("closed", |_, _| {}, "INTERNAL_ERROR"),
        ("CANCEL", |frames, stream| frames.reset(stream, 8), "CANCEL"),
        ("ENHANCE_YOUR_CALM", |frames, stream| frames.reset(stream, 11), "ENHANCE_YOUR_CALM"),
        ("NO_ERROR", |frames, stream| frames.reset(stream, 0), "NO_ERROR"),
    ];
    for (what, breaks, reason) in table {
        let application = of_frames(move |frames| {
            while let Some(stream) = frames.request() {
                frames.begin(stream);
                frames.write(DATA, 0, stream, b"hello");
                breaks(frames, stream);
                if what == "closed" {
                    return;
                }
            }
        });
        let gate = gate_to(application.address, &[]);
        let answer = Client::of(&gate).get("/");
        assert_eq!((answer.status(), answer.text().as_str(), answer.is_complete), (200, "hello", false), "{what}");
        http2(&gate, async |mut sender| {
            let request = Request::get("http://shop/").body(whole("")).unwrap();
            let mut body = sender.send_request(request).await.unwrap().into_body();
            let failed = loop {
                match body.frame().await {
                    Some(Ok(_)) => {}
                    other => break other,
                }
            };
            // hyper takes these two for the end.
            if let Some(error) = failed {
                assert!(format!("{:?}", error.unwrap_err()).contains(reason), "{what}");
            } else {
                assert!(["CANCEL", "NO_ERROR"].contains(&reason), "{what}");
            }
        });
        eventually("both are counted", || outcome(&gate, "failed") == 2.0);
        assert_eq!(errors(&gate, "closed"), 2.0, "{what}");
        nobody_is_at_work(&gate);
    }
}

#[test]
fn while_the_application_restarts() {
    let mut application = Some(Http2Application::new(ok));
    let address = application.as_ref().unwrap().address;
    let gate = gate_to(address, &[]);
    let ended = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (mut client, ended) = (Client::of(&gate), ended.clone());
            thread::spawn(move || {
                let mut answers = BTreeMap::<u16, usize>::new();
                while !ended.load(SeqCst) {
                    *answers.entry(client.get("/").status()).or_default() += 1;
                }
                answers
            })
        })
        .collect();
    for _ in 0..3 {
        let running = application.take().unwrap();
        eventually("requests run", || running.asked().len() > 100);
        let failed = outcome(&gate, "failed");
        drop(running);
        eventually("it is missed", || outcome(&gate, "failed") > failed);
        application = Some(Http2Application::with(Builder::new(), address, ok));
    }
    let running = application.unwrap();
    eventually("requests run again", || running.asked().len() > 100);
    ended.store(true, SeqCst);
    let mut answers = BTreeMap::<u16, usize>::new();
    for client in clients {
        for (status, times) in client.join().unwrap() {
            *answers.entry(status).or_default() += times;
        }
    }
    assert!(answers.keys().eq(&[200, 502]), "{answers:?}");
    nobody_is_at_work(&gate);
}
