//! Requests that could be read in two ways: each is refused, or reaches the application as one that cannot.
//!
//! The application takes what it gets strictly: a bare line feed, a folded line, a space in a name, two lengths or a coding
//! other than `chunked` fail the test, and so does a byte too many.

use std::io::Read;
use std::net::Shutdown;

use bytes::Bytes;
use hyper::Request;
use hyper::body::Frame;

use crate::application::{Application, Client, http2, in_frames, whole};
use crate::fixture::{Sidecar, connect};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
/// What is smuggled in. The application must never see it as a request where it is given as a body.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: shop\r\n\r\n";

/// What becomes of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Refused with this status, and the connection is closed.
    Refused(u16),
    /// The first request reaches the application with this target, host and body, and what follows is refused.
    One(&'static str, &'static str, &'static str),
    /// Both requests reach the application, since what follows the first is a request of its own; the first has this body.
    Two(&'static str),
}
use Fate::{One, Refused, Two};

/// Sends this and reads what comes back until the connection closes.
fn all_answers(gate: &Sidecar, bytes: &[u8]) -> String {
    use std::io::Write;
    let mut stream = connect(gate.traffic);
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answers = Vec::new();
    let _ = stream.read_to_end(&mut answers);
    String::from_utf8_lossy(&answers).into_owned()
}

fn statuses(answers: &str) -> Vec<u16> {
    let versions = answers.match_indices("HTTP/1.1 ").map(|(start, name)| &answers[start + name.len()..]);
    // A body may name a version, too.
    versions.filter_map(|rest| rest.get(..3)?.parse().ok()).collect()
}

#[track_caller]
fn assert_fate(payload: &str, expected: Fate) {
    let application = Application::answering(OK);
    let gate = application.gate();
    let answers = all_answers(&gate, payload.as_bytes());
    let asked: Vec<_> = application.asked().into_iter().map(|asked| asked.message).collect();
    let seen: Vec<_> = asked
        .iter()
        .map(|request| (request.target().to_owned(), request.header("host").unwrap(), request.text()))
        .collect();
    let owned = |target: &str, host: &str, body: &str| (target.to_owned(), host.to_owned(), body.to_owned());
    let (statuses, requests) = match expected {
        Refused(status) => (vec![status], vec![]),
        One(target, host, body) => (vec![200], vec![owned(target, host, body)]),
        Two(body) => (vec![200, 200], vec![owned("/", "shop", body), owned("/smuggled", "shop", "")]),
    };
    // What follows a request that is let in may be no request at all.
    let mut actual = self::statuses(&answers);
    if matches!(expected, One(..)) && actual.get(1) == Some(&400) {
        actual.pop();
    }
    assert_eq!(actual, statuses, "{payload:?}: {answers}");
    assert_eq!(seen, requests, "{payload:?}");
    assert!(asked.iter().all(|request| request.is_complete), "{payload:?}");
    if let Refused(_) = expected {
        assert!(answers.to_lowercase().contains("\r\nconnection: close\r\n"), "{payload:?}: {answers}");
    }
}

/// `POST /` with these headers, each with its line end, and what follows.
fn post(headers: &str, rest: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: shop\r\n{headers}\r\n{rest}")
}

#[test]
fn two_lengths() {
    let short = format!("0\r\n\r\n{SMUGGLED}");
    let long = SMUGGLED.len() + 5;
    let table = [
        (post("Content-Length: 3\r\nContent-Length: 5\r\n", "a=bcd"), Refused(400)),
        (post("Content-Length: 5\r\nContent-Length: 3\r\n", "a=bcd"), Refused(400)),
        (post("Content-Length: 3\r\nContent-Length: 3\r\n", "a=b"), Refused(400)),
        (post("Content-Length: 3, 3\r\n", "a=b"), Refused(400)),
        (post("Content-Length: 3, 5\r\n", "a=bcd"), Refused(400)),
        // Recipients disagree about which one counts.
        (post(&format!("Content-Length: {long}\r\nTransfer-Encoding: chunked\r\n"), &short), Refused(400)),
        (post(&format!("Transfer-Encoding: chunked\r\nContent-Length: {long}\r\n"), &short), Refused(400)),
        (post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", &format!("3\r\na=b\r\n{short}")), Refused(400)),
        (post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n", &short), Refused(400)),
        (post("Content-Length: 4\r\nConnection: Content-Length, Transfer-Encoding\r\n", "a=bc"), Refused(400)),
        (post("Content-Length: 0\r\n", SMUGGLED), Two("")),
        (post("", SMUGGLED), Two("")),
        (post("Content-Length: 3\r\n", &format!("a=b{SMUGGLED}")), Two("a=b")),
    ];
    for (payload, fate) in table {
        assert_fate(&payload, fate);
    }
}

#[test]
fn lengths_that_are_no_numbers() {
    for length in [
        "+3",
        "-3",
        "0x3",
        "3a",
        "3 3",
        "",
        " ",
        "3;",
        "\"3\"",
        "1e1",
        "99999999999999999999999",
        "３",
        "\u{b}3",
        "3\u{b}",
    ] {
        assert_fate(&post(&format!("Content-Length: {length}\r\n"), "a=b"), Refused(400));
    }
    assert_fate(&post("Content-Length: 003\r\n", "a=b"), One("/", "shop", "a=b"));
    assert_fate(&post("Content-Length: \t3 \t\r\n", "a=b"), One("/", "shop", "a=b"));
}

#[test]
fn ways_to_say_chunked() {
    let chunks = format!("3\r\na=b\r\n0\r\n\r\n{SMUGGLED}");
    let table = [
        ("Transfer-Encoding: chunked", Two("a=b")),
        ("Transfer-Encoding:chunked", Two("a=b")),
        ("transfer-encoding: CHUNKED", Two("a=b")),
        ("Transfer-Encoding:  chunked ", Two("a=b")),
        ("Transfer-Encoding: \tchunked\t", Two("a=b")),
        ("Transfer-Encoding: chunked, identity", Refused(400)),
        ("Transfer-Encoding: chunked, gzip", Refused(400)),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", Refused(400)),
        ("Transfer-Encoding: chunked;a=b", Refused(400)),
        ("Transfer-Encoding: chunked,", Refused(400)),
        ("Transfer-Encoding: xchunked", Refused(400)),
        ("Transfer-Encoding: chunkedx", Refused(400)),
        ("Transfer-Encoding: chunke", Refused(400)),
        ("Transfer-Encoding: identity", Refused(400)),
        ("Transfer-Encoding: gzip", Refused(400)),
        ("Transfer-Encoding:", Refused(400)),
        ("Transfer-Encoding: \"chunked\"", Refused(400)),
        ("Transfer-Encoding: chunked\u{b}", Refused(400)),
        ("Transfer-Encoding: \u{b}chunked", Refused(400)),
        ("Transfer-Encoding: \u{c}chunked", Refused(400)),
        ("Transfer-Encoding: chun\u{0}ked", Refused(400)),
        ("Transfer-Encoding : chunked", Refused(400)),
        ("Transfer-Encoding\t: chunked", Refused(400)),
        (" Transfer-Encoding: chunked", Refused(400)),
        ("X: y\r\n Transfer-Encoding: chunked", Refused(400)),
        ("X: y\r\n\tTransfer-Encoding: chunked", Refused(400)),
        ("Transfer-Encoding:\r\n chunked", Refused(400)),
        ("Transfer-Encoding: chunked\r\n ", Refused(400)),
        ("X: y\rTransfer-Encoding: chunked", Refused(400)),
        ("Transfer\u{0}-Encoding: chunked", Refused(400)),
        ("Transfer-Encoding\u{0}: chunked", Refused(400)),
    ];
    for (header, fate) in table {
        assert_fate(&post(&format!("{header}\r\n"), &chunks), fate);
    }
    // A coding before the last would have to be undone by the application, and it would never hear of it.
    for header in ["Transfer-Encoding: gzip, chunked", "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked"] {
        assert_fate(&post(&format!("{header}\r\n"), &chunks), Refused(501));
    }
    // Said twice, it may mean chunks of chunks.
    for header in ["Transfer-Encoding: chunked, chunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"] {
        assert_fate(&post(&format!("{header}\r\n"), &chunks), Refused(400));
    }
    assert_fate(&format!("POST / HTTP/1.0\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"), Refused(400));
}

#[test]
fn other_names_for_it_are_other_headers() {
    let rest = SMUGGLED;
    for header in
        ["Transfer_Encoding: chunked", "X-Transfer-Encoding: chunked", "Content_Length: 5", "TransferEncoding: chunked"]
    {
        assert_fate(&post(&format!("{header}\r\n"), rest), Two(""));
    }
}

#[test]
fn chunks() {
    let head = "Transfer-Encoding: chunked\r\n";
    let table = [
        ("3;a=b\r\na=b\r\n0\r\n\r\n", One("/", "shop", "a=b")),
        ("3 ;a=\"b;c\"\r\na=b\r\n0;x\r\n\r\n", One("/", "shop", "a=b")),
        ("003\r\na=b\r\n000\r\n\r\n", One("/", "shop", "a=b")),
        ("A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", One("/", "shop", "01234567890123456789")),
        ("3\r\na=b\r\n0\r\nX-Trailer: 1\r\n\r\n", One("/", "shop", "a=b")),
        (
            "3\r\na=b\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\nHost: evil\r\n\r\n",
            One("/", "shop", "a=b"),
        ),
    ];
    for (body, fate) in table {
        assert_fate(&post(head, body), fate);
    }
    // By then a part may have gone to the application: it must see that this is not all.
    for body in [
        "0x3\r\na=b\r\n0\r\n\r\n",
        "+3\r\na=b\r\n0\r\n\r\n",
        "-3\r\na=b\r\n0\r\n\r\n",
        "g\r\na=b\r\n0\r\n\r\n",
        "\r\na=b\r\n0\r\n\r\n",
        "3\na=b\n0\n\n",
        "3;x\na=b\r\n0\r\n\r\n",
        "3\r\na=bXX0\r\n\r\n",
        "3\r\na=b0\r\n\r\n",
        "4\r\na=b\r\n0\r\n\r\n",
        "2\r\na=b\r\n0\r\n\r\n",
        "3\r\na=b\r\n",
        "10000000000000003\r\na=b\r\n0\r\n\r\n",
        "3\r\r\na=b\r\n0\r\n\r\n",
        "3\u{b}\r\na=b\r\n0\r\n\r\n",
        "3\u{0}\r\na=b\r\n0\r\n\r\n",
        "3\r\na=b\r\n0\r\nbad trailer\r\n\r\n",
        "3\r\na=b\r\n0\r\n folded: 1\r\n\r\n",
    ] {
        let application = Application::answering(OK);
        let gate = application.gate();
        let answers = all_answers(&gate, post(head, &format!("{body}{SMUGGLED}")).as_bytes());
        assert!(matches!(statuses(&answers)[..], [] | [400 | 408]), "{body:?}: {answers}");
        crate::fixture::eventually("it is over", || gate.metric("pitstop_requests_in_flight") == 0.0);
        for asked in application.asked() {
            assert!(!asked.message.is_complete && asked.message.target() == "/", "{body:?}: {asked:?}");
        }
    }
}

#[test]
fn lines_that_end_in_other_ways() {
    let table = [
        // A line feed alone may end a line (RFC 9112 §2.2), but not to all recipients.
        ("GET / HTTP/1.1\nHost: shop\nX-A: 1\n\n".to_owned(), Refused(400)),
        ("POST / HTTP/1.1\r\nHost: shop\r\nX: y\nContent-Length: 3\r\n\r\na=b".to_owned(), Refused(400)),
        (format!("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 3\n\r\na=b{SMUGGLED}"), Refused(400)),
        ("GET / HTTP/1.1\rHost: shop\r\r".to_owned(), Refused(400)),
        ("GET / HTTP/1.1\r\nHost: shop\r\nX: a\rb\r\n\r\n".to_owned(), Refused(400)),
        ("GET / HTTP/1.1\r\nHost: shop\r\nX: a\0b\r\n\r\n".to_owned(), Refused(400)),
        ("GET / HTTP/1.1\r\nHost: shop\r\nX\0: a\r\n\r\n".to_owned(), Refused(400)),
        ("GET / HTTP/1.1\r\nHost: shop\r\nX: a\r\n b\r\n\r\n".to_owned(), Refused(400)),
        ("GET / HTTP/1.1\r\nHost : shop\r\n\r\n".to_owned(), Refused(400)),
        ("GET / HTTP/1.1\r\n Host: shop\r\n\r\n".to_owned(), Refused(400)),
        ("GET / HTTP/1.1\r\n: a\r\nHost: shop\r\n\r\n".to_owned(), Refused(400)),
        ("GET / HTTP/1.1\r\nHost: shop\r\nno colon\r\n\r\n".to_owned(), Refused(400)),
        ("GET / HTTP/1.1\r\nHost: shop\r\nX(a): 1\r\n\r\n".to_owned(), Refused(400)),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: shop\r\n\r\n".to_owned(), One("/", "shop", "")),
    ];
    for (payload, fate) in table {
        assert_fate(&payload, fate);
    }
}

#[test]
fn request_lines() {
    for line in [
        "GET  / HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /\tHTTP/1.1",
        " GET / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET / HTTP/01.1",
        "GET / http/1.1",
        "GET /",
        "GET / HTTP/1.1 HTTP/1.1",
        "G\0T / HTTP/1.1",
        "GET /\0 HTTP/1.1",
        "GET shop HTTP/1.1",
        "GET  HTTP/1.1",
        "GET http:// HTTP/1.1",
        "GET :// HTTP/1.1",
        "GET http:///a HTTP/1.1",
        "GET //[ HTTP/9",
        "G(T / HTTP/1.1",
    ] {
        assert_fate(&format!("{line}\r\nHost: shop\r\n\r\n"), Refused(400));
    }
    for line in ["GET / HTTP/1.2", "GET / HTTP/2.0"] {
        assert_fate(&format!("{line}\r\nHost: shop\r\n\r\n"), Refused(505));
    }
}

#[test]
fn whom_a_request_is_for() {
    let table = [
        ("GET / HTTP/1.1\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: shop\r\nHost: evil\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: shop\r\nHost: shop\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: shop\r\nConnection: Host\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: shop, evil\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: shop evil\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: shop/evil\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: me@shop\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: shop?\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: sh\u{e9}p\r\n\r\n", Refused(400)),
        ("GET / HTTP/1.1\r\nHost: SHOP.example:8080\r\n\r\n", One("/", "SHOP.example:8080", "")),
        ("GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", One("/", "[2001:db8::1]:80", "")),
        // Who names no host says so with an empty one (RFC 9112 §3.2).
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", One("/", "", "")),
        // The target counts, where it names one (RFC 9112 §3.2.2).
        ("GET http://shop/a HTTP/1.1\r\nHost: evil\r\n\r\n", One("/a", "shop", "")),
        ("GET http://shop:81/a HTTP/1.1\r\nHost: shop\r\n\r\n", One("/a", "shop:81", "")),
        ("GET http://shop/a HTTP/1.1\r\nHost: shop\r\nHost: evil\r\n\r\n", Refused(400)),
        ("GET http://shop/a HTTP/1.1\r\n\r\n", Refused(400)),
        ("GET http://me:secret@shop/a HTTP/1.1\r\nHost: shop\r\n\r\n", Refused(400)),
        ("GET http://shop/a HTTP/1.0\r\n\r\n", One("/a", "shop", "")),
    ];
    for (payload, fate) in table {
        assert_fate(payload, fate);
    }
}

#[test]
fn what_follows_a_request_is_none_of_its_body() {
    for garbage in ["garbage\r\n\r\n", "a=b", "\0\0\0\0\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", "\r\n\r\nx\r\n\r\n"] {
        assert_fate(&post("Content-Length: 3\r\n", &format!("a=b{garbage}")), One("/", "shop", "a=b"));
        assert_fate(
            &post("Transfer-Encoding: chunked\r\n", &format!("3\r\na=b\r\n0\r\n\r\n{garbage}")),
            One("/", "shop", "a=b"),
        );
    }
}

#[test]
fn over_http_2() {
    let application = Application::answering(OK);
    let gate = application.gate();
    let body = || in_frames([Frame::data(Bytes::from(SMUGGLED))]);
    http2(&gate, async |mut sender| {
        let builder = || Request::post("http://shop/");
        // What HTTP/2 does not allow is a stream's error, or is never sent as it is.
        for (name, value) in [
            ("transfer-encoding", "chunked"),
            ("connection", "close"),
            ("content-length", "3"),
            ("content-length", "900"),
            ("host", "evil"),
        ] {
            let request = builder().header(name, value).body(body()).unwrap();
            match sender.send_request(request).await {
                Ok(answer) => assert!(matches!(answer.status().as_u16(), 200 | 400), "{name}: {value}: {answer:?}"),
                Err(error) => assert!(!error.is_closed(), "{name}: {value}: {error:?}"),
            }
            sender.ready().await.unwrap();
        }
        let answer = sender.send_request(builder().body(whole("")).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200, "the connection still serves");
    });
    crate::fixture::eventually("it is over", || gate.metric("pitstop_requests_in_flight") == 0.0);
    for asked in application.asked() {
        let message = asked.message;
        assert_eq!((message.target(), message.header("host").unwrap().as_str()), ("/", "shop"), "{message:?}");
        assert!(!message.is_complete || ["", SMUGGLED].contains(&message.text().as_str()), "{message:?}");
    }
    let mut client = Client::of(&gate);
    assert_eq!(client.get("/after").text(), "ok");
    assert_eq!(application.asked().last().unwrap().message.target(), "/after");
}
