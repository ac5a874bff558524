//! An application that speaks HTTP/2 behind the gate (`h2c://`).

mod connections;
mod failures;
mod large;
mod leaving;

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Request, Response};

use crate::application::{BodyOf, Client, http2, in_frames, whole};
use crate::fixture::{Sidecar, eventually};
use crate::http2_application::{Call, Http2Application, send, status};

const MIB: usize = 1024 * 1024;
const IN_FLIGHT: &str = "pitstop_requests_in_flight";

fn outcome(gate: &Sidecar, outcome: &str) -> f64 {
    gate.metric(&format!("pitstop_requests_total{{outcome=\"{outcome}\"}}"))
}

/// How often the application did not answer, for this cause alone.
#[track_caller]
fn errors(gate: &Sidecar, cause: &str) -> f64 {
    let metrics = gate.admin("/metrics").body;
    let mut counted = 0.0;
    for line in metrics.lines().filter(|line| line.starts_with("pitstop_upstream_errors_total")) {
        assert!(line.contains(cause), "{line}");
        counted = line.rsplit(' ').next().unwrap().parse().unwrap();
    }
    counted
}

fn nobody_is_at_work(gate: &Sidecar) {
    eventually("none is at work", || gate.metric(IN_FLIGHT) == 0.0);
}

/// Answers with what it is asked.
async fn echo(mut call: Call) {
    let mut stream = call.begin(status(200)).unwrap();
    while let Some(Ok(data)) = call.data().await {
        send(&mut stream, data, false).await;
    }
    match call.body.trailers().await {
        Ok(Some(trailers)) => _ = stream.send_trailers(trailers),
        _ => _ = stream.send_data(Bytes::new(), true),
    }
}

async fn ok(mut call: Call) {
    call.answer(status(200), "ok").await;
}

fn pattern(length: usize) -> Bytes {
    (0..length).map(|index| (index % 251) as u8).collect::<Vec<_>>().into()
}

/// A body that goes on as long as its sender is there.
pub fn endless() -> (crate::application::Sent, tokio::sync::mpsc::UnboundedSender<Frame<Bytes>>) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    (crate::application::Sent::Channel(receiver), sender)
}

// What is changed, and what is not.

/// The request that an application gets: method, URL, headers sorted by name.
fn seen(application: &Http2Application) -> (String, Vec<(String, String)>) {
    let head = application.asked().pop().unwrap();
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut headers: Vec<_> = head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    headers.sort_by(|(one, _), (other, _)| one.cmp(other));
    (format!("{} {}", head.method, head.uri), headers)
}

fn fields(lines: &[(&str, &str)]) -> Vec<(String, String)> {
    lines.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_request_in_http_1_1_becomes_one_in_http_2() {
    let application = Http2Application::new(ok);
    let gate = application.gate();
    let mut client = Client::of(&gate);
    client.send(
        "POST /a?b HTTP/1.1\r\nHost: shop.example:8080\r\nUser-Agent: me\r\nAccept: a\r\nAccept: b\r\nCookie: c=1; d=\"2\"\r\n\
         X-Empty:\r\nAuthorization: Basic x\r\nVia: 1.1 edge\r\nX-Forwarded-For: 192.0.2.1\r\nConnection: X-Mine\r\n\
         X-Mine: 1\r\nKeep-Alive: 5\r\nProxy-Connection: close\r\nTE: gzip, trailers\r\nExpect: 100-continue\r\n\
         Content-Length: 3\r\n\r\na=b",
    );
    while client.answer().status() == 100 {}
    let expected = fields(&[
        ("accept", "a"),
        ("accept", "b"),
        ("authorization", "Basic x"),
        ("content-length", "3"),
        ("cookie", "c=1; d=\"2\""),
        ("te", "trailers"),
        ("user-agent", "me"),
        ("via", "1.1 edge"),
        ("x-empty", ""),
        ("x-forwarded-for", "192.0.2.1, 127.0.0.1"),
        ("x-forwarded-host", "shop.example:8080"),
        ("x-forwarded-proto", "http"),
    ]);
    assert_eq!(seen(&application), ("POST http://shop.example:8080/a?b".to_owned(), expected));
}

#[test]
fn what_the_application_is_asked_for() {
    let application = Http2Application::new(ok);
    let gate = application.gate();
    let forwarded = |host: &str| {
        fields(&[("x-forwarded-for", "127.0.0.1"), ("x-forwarded-host", host), ("x-forwarded-proto", "http")])
    };
    let upstream = application.address.to_string();
    let table = [
        ("GET / HTTP/1.1\r\nHost: shop", "GET http://shop/", forwarded("shop")),
        ("GET http://other/x HTTP/1.1\r\nHost: shop", "GET http://other/x", forwarded("other")),
        ("OPTIONS * HTTP/1.1\r\nHost: shop", "OPTIONS http://shop*", forwarded("shop")),
        (
            "GET //a/../%2e?x=%zz HTTP/1.1\r\nHost: [::1]:80",
            "GET http://[::1]:80//a/../%2e?x=%zz",
            forwarded("[::1]:80"),
        ),
        ("BREW /pot HTTP/1.1\r\nHost: shop", "BREW http://shop/pot", forwarded("shop")),
        ("GET / HTTP/1.0", &format!("GET http://{upstream}/"), forwarded(&upstream)),
        // An upgrade cannot pass: it is asked for what it would be without.
        (
            "GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: upgrade\r\nUpgrade: websocket",
            "GET http://shop/chat",
            forwarded("shop"),
        ),
    ];
    for (request, expected, headers) in table {
        let answer = Client::of(&gate).ask(format!("{request}\r\n\r\n"));
        assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"), "{request}");
        let headers = match request.contains("1.0") {
            true => fields(&[
                ("x-forwarded-for", "127.0.0.1"),
                ("x-forwarded-host", &upstream),
                ("x-forwarded-proto", "http"),
            ])
            .into_iter()
            .filter(|(name, _)| name != "x-forwarded-host")
            .collect(),
            false => headers,
        };
        assert_eq!(seen(&application), (expected.to_owned(), headers), "{request}");
    }
    // No URL can say this.
    Client::of(&gate).ask("GET / HTTP/1.1\r\nHost:\r\n\r\n");
    let (request, headers) = seen(&application);
    assert!(headers.contains(&("host".to_owned(), String::new())), "{request} {headers:?}");
    let tunnel = Client::of(&gate).ask("CONNECT shop:1 HTTP/1.1\r\nHost: shop:1\r\n\r\n");
    assert_eq!(tunnel.status(), 501);
}

#[test]
fn a_request_in_http_2_stays_one() {
    let application = Http2Application::new(ok);
    let gate = application.gate();
    http2(&gate, async |mut sender| {
        let request = Request::put("http://shop.example/a?b")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("te", "trailers")
            .header("x-text", "\u{e9}")
            .body(whole("hello"))
            .unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status().as_u16(), 200);
    });
    let expected = fields(&[
        ("content-length", "5"),
        ("cookie", "a=1; b=2"),
        ("te", "trailers"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "shop.example"),
        ("x-forwarded-proto", "http"),
        ("x-text", "\u{e9}"),
    ]);
    assert_eq!(seen(&application), ("PUT http://shop.example/a?b".to_owned(), expected));
}

#[test]
fn answers_of_every_kind() {
    let application = Http2Application::new(async |mut call: Call| {
        let path = call.path().to_owned();
        let with =
            |code: u16, name: &str, value: &str| Response::builder().status(code).header(name, value).body(()).unwrap();
        match path.as_str() {
            "/sized" => call.answer(with(200, "content-length", "5"), "hello").await,
            "/unsized" => call.answer(with(418, "x-a", "1"), "hello").await,
            "/empty" => _ = call.respond.send_response(with(200, "x-a", "1"), true),
            "/no-content" => _ = call.respond.send_response(status(204), true),
            "/not-modified" => _ = call.respond.send_response(with(304, "content-length", "5"), true),
            // The end of the stream comes by itself.
            "/end-apart" => {
                let mut stream = call.begin(with(200, "content-length", "5")).unwrap();
                stream.send_data("hello".into(), false).unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
                stream.send_data(Bytes::new(), true).unwrap();
            }
            "/no-content-end-apart" => {
                let mut stream = call.begin(status(204)).unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
                stream.send_data(Bytes::new(), true).unwrap();
            }
            "/hints" => {
                call.respond.send_informational(status(103)).unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
                call.answer(status(200), "hello").await;
            }
            other => panic!("{other}"),
        }
    });
    let gate = application.gate();
    let table = [
        ("/sized", 200, "hello", &[("content-length", "5")][..]),
        ("/unsized", 418, "hello", &[("transfer-encoding", "chunked"), ("x-a", "1")]),
        ("/empty", 200, "", &[("content-length", "0"), ("x-a", "1")]),
        ("/no-content", 204, "", &[]),
        ("/not-modified", 304, "", &[("content-length", "5")]),
        ("/end-apart", 200, "hello", &[("content-length", "5")]),
        ("/no-content-end-apart", 204, "", &[]),
        ("/hints", 200, "hello", &[("transfer-encoding", "chunked")]),
    ];
    let mut client = Client::of(&gate);
    for (path, code, body, headers) in table {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n"));
        if path == "/hints" {
            assert_eq!(client.try_answer(BodyOf::AnswerToHead).unwrap().status(), 103);
        }
        let answer = client.answer();
        assert_eq!((answer.status(), answer.text().as_str(), answer.is_complete), (code, body, true), "{path}");
        assert_eq!(answer.headers_but(&["date"]), fields(headers), "{path}");
        // In full, and neither a reset nor ten seconds later.
        let begun = Instant::now();
        nobody_is_at_work(&gate);
        assert!(begun.elapsed() < Duration::from_secs(5), "{path}");
    }
    for (path, length) in [("/sized", Some("5")), ("/unsized", None), ("/empty", None), ("/end-apart", Some("5"))] {
        client.send(format!("HEAD {path} HTTP/1.1\r\nHost: shop\r\n\r\n"));
        let answer = client.try_answer(BodyOf::AnswerToHead).unwrap();
        assert_eq!(answer.header("content-length").as_deref(), length, "{path}");
    }
    nobody_is_at_work(&gate);
    http2(&gate, async |mut sender| {
        for (path, code, body, _) in table {
            let request = Request::get(format!("http://shop{path}")).body(whole("")).unwrap();
            let (head, answer) = sender.send_request(request).await.unwrap().into_parts();
            let answer = answer.collect().await.unwrap().to_bytes();
            assert_eq!((head.status.as_u16(), &answer[..]), (code, body.as_bytes()), "{path}");
        }
    });
    nobody_is_at_work(&gate);
    assert_eq!(application.connections(), 1);
}

#[test]
fn bodies_and_trailers_both_ways() {
    let application = Http2Application::new(echo);
    let gate = application.gate();
    let body = pattern(3 * MIB);
    // HTTP/1.1 of either kind.
    for kind in ["Content-Length: 3145728", "Transfer-Encoding: chunked"] {
        let mut client = Client::of(&gate);
        let mut sending = client.0.get_ref().try_clone().unwrap();
        let (kind, body) = (kind.to_owned(), body.clone());
        let sent = body.clone();
        let sender = thread::spawn(move || {
            write!(sending, "POST / HTTP/1.1\r\nHost: shop\r\nTE: trailers\r\n{kind}\r\n\r\n").unwrap();
            if kind.contains("chunked") {
                for chunk in sent.chunks(100_000) {
                    write!(sending, "{:x}\r\n", chunk.len()).unwrap();
                    sending.write_all(chunk).unwrap();
                    sending.write_all(b"\r\n").unwrap();
                }
                sending.write_all(b"0\r\n\r\n").unwrap();
            } else {
                sending.write_all(&sent).unwrap();
            }
        });
        let answer = client.answer();
        assert!(answer.is_complete && answer.body == body);
        sender.join().unwrap();
    }
    // An end of its own, and trailers.
    http2(&gate, async |mut sender| {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        let frames = body.chunks(50_000).map(|chunk| Frame::data(Bytes::copy_from_slice(chunk)));
        for trailers in [None, Some(trailers)] {
            let end = trailers.clone().map(Frame::trailers);
            let request = Request::post("http://shop/").body(in_frames(frames.clone().chain(end))).unwrap();
            let answer = sender.send_request(request).await.unwrap().collect().await.unwrap();
            assert_eq!(answer.trailers(), trailers.as_ref());
            assert!(answer.to_bytes() == body);
        }
    });
    nobody_is_at_work(&gate);
    assert_eq!((application.connections(), outcome(&gate, "forwarded")), (1, 4.0));
}

#[test]
fn trailers_to_and_from_http_1_1() {
    let application = Http2Application::new(async |mut call: Call| {
        call.all().await.unwrap();
        let trailers = call.body.trailers().await.unwrap().unwrap();
        let head = Response::builder().header("trailer", "x-sum").body(()).unwrap();
        let mut stream = call.begin(head).unwrap();
        stream.send_data("hello".into(), false).unwrap();
        stream.send_trailers(trailers).unwrap();
    });
    let gate = application.gate();
    let answer = Client::of(&gate).ask(
        "POST / HTTP/1.1\r\nHost: shop\r\nTE: trailers\r\nConnection: te\r\nTransfer-Encoding: chunked\r\n\r\n\
         1\r\na\r\n0\r\nX-Sum: 7\r\nConnection: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    assert_eq!((answer.text().as_str(), answer.trailers.clone()), ("hello", fields(&[("x-sum", "7")])), "{answer:?}");
}

#[test]
fn an_answer_of_trailers_alone_stays_one() {
    let application = Http2Application::new(async |mut call: Call| {
        let head = Response::builder().header("content-type", "application/grpc").header("grpc-status", "5");
        call.respond.send_response(head.body(()).unwrap(), true).unwrap();
    });
    let gate = application.gate();
    http2(&gate, async |mut sender| {
        let request = Request::post("http://shop/a/b").header("content-type", "application/grpc");
        let answer = sender.send_request(request.body(whole("message")).unwrap()).await.unwrap();
        assert!(hyper::body::Body::is_end_stream(answer.body()));
        assert_eq!(answer.headers()["grpc-status"], "5");
        assert!(!answer.headers().contains_key("content-length"));
    });
    nobody_is_at_work(&gate);
}
