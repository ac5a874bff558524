//! The gate while maintenance mode is off: an application sees what its client has sent, and the client what it answers.

use std::io::{BufRead, Read};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::Frame;
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Request, Response};

use crate::application::{Application, BodyOf, Client, Message, Visitor, http2, in_frames, whole};
use crate::fixture::{Sidecar, eventually};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const MIB: usize = 1024 * 1024;

fn fields(lines: &[(&str, &str)]) -> Vec<(String, String)> {
    lines.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Sends one request on a connection of its own.
#[track_caller]
fn ask(gate: &Sidecar, request: impl AsRef<[u8]>) -> Message {
    Client::of(gate).ask(request)
}

/// The only request that the application has got.
#[track_caller]
fn only(application: &Application) -> Message {
    let mut asked = application.asked();
    assert_eq!(asked.len(), 1, "{asked:?}");
    asked.remove(0).message
}

// What is changed, and what is not.

#[test]
fn only_what_belongs_to_the_connection_is_changed() {
    let application = Application::answering(
        "HTTP/1.1 200 Fine\r\nServer: shop/1.0\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nSet-Cookie: a=1\r\n\
         Set-Cookie: b=2\r\nX-Empty:\r\nX-High: \u{e9}\r\nConnection: X-Mine, keep-alive\r\nX-Mine: 1\r\n\
         Keep-Alive: timeout=5\r\nProxy-Connection: close\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello",
    );
    let gate = application.gate();
    let answer = ask(
        &gate,
        "POST /a?b HTTP/1.1\r\nHost: shop.example:8080\r\nUser-Agent: me\r\nAccept: a\r\nAccept: b\r\nCookie: c=1; d=\"2\"\r\n\
         X-Empty:\r\nX-Spaces: \t a  b \t\r\nX-High: \u{e9}\r\nAuthorization: Basic x\r\nForwarded: for=192.0.2.1\r\n\
         Via: 1.1 edge\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.2, 192.0.2.3\r\n\
         Connection: X-Mine, close\r\nConnection: x-other\r\nX-Mine: 1\r\nX-Other: 2\r\nKeep-Alive: 5\r\n\
         Proxy-Connection: close\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\nTE: gzip\r\nContent-Length: 3\r\n\r\na=b",
    );
    let asked = only(&application);
    assert_eq!((asked.first.as_str(), asked.text().as_str()), ("POST /a?b HTTP/1.1", "a=b"));
    let expected = fields(&[
        ("accept", "a"),
        ("accept", "b"),
        ("authorization", "Basic x"),
        ("content-length", "3"),
        ("cookie", "c=1; d=\"2\""),
        ("forwarded", "for=192.0.2.1"),
        ("host", "shop.example:8080"),
        ("user-agent", "me"),
        ("via", "1.1 edge"),
        ("x-empty", ""),
        ("x-forwarded-for", "192.0.2.1, 192.0.2.2, 192.0.2.3, 127.0.0.1"),
        ("x-forwarded-host", "shop.example:8080"),
        ("x-forwarded-proto", "http"),
        ("x-high", "\u{e9}"),
        ("x-spaces", "a  b"),
    ]);
    assert_eq!(asked.headers_but(&[]), expected);

    assert_eq!((answer.first.as_str(), answer.text().as_str()), ("HTTP/1.1 200 Fine", "hello"));
    let expected = fields(&[
        ("connection", "close"),
        ("content-length", "5"),
        ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("server", "shop/1.0"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("x-empty", ""),
        ("x-high", "\u{e9}"),
    ]);
    assert_eq!(answer.headers_but(&[]), expected);
}

#[test]
fn what_those_before_have_said_is_kept() {
    let application = Application::answering(OK);
    let gate = application.gate();
    ask(
        &gate,
        "GET / HTTP/1.1\r\nHost: pod\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop\r\nX-Forwarded-Port: 443\r\n\r\n",
    );
    let expected = fields(&[
        ("host", "pod"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "shop"),
        ("x-forwarded-port", "443"),
        ("x-forwarded-proto", "https"),
    ]);
    assert_eq!(only(&application).headers_but(&[]), expected);
}

#[test]
fn any_method_and_any_path_byte_for_byte() {
    let application = Application::answering(OK);
    let gate = application.gate();
    let long = format!("/{}", "a/".repeat(4000));
    let same = [
        "/",
        "//",
        "/a//b/../c;x?y=%zz",
        "/../..",
        "/%2e%2e/%2F%5c",
        "/?",
        "/a?",
        "/??&&=",
        "/a?b?c/d",
        "/%00",
        "/%",
        "/a|b",
        "/a\"b",
        "/{a}[b]^c\\d?`",
        "/a:b@c!$&'()*+,;=-._~",
        "/é",
        "/.",
        "/a/./b",
        "/a?http://other/",
        "/http://other/",
        &long,
    ];
    let changed = [
        ("http://shop/a//b/../c;x?y=%zz", "/a//b/../c;x?y=%zz"),
        ("http://shop", "/"),
        ("http://shop?a=b", "/?a=b"),
        ("https://shop/%2e%2e?", "/%2e%2e?"),
    ];
    let mut client = Client::of(&gate);
    let mut expected = Vec::new();
    for method in
        ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "PURGE", "get", "BREW", "M-SEARCH"]
    {
        for (path, seen) in same.iter().map(|path| (*path, *path)).chain(changed) {
            // The answers have the same length whatever was asked.
            let answer = client.ask(format!("{method} {path} HTTP/1.1\r\nHost: shop\r\n\r\n"));
            assert_eq!(answer.status(), 200, "{method} {path}");
            // RFC 9112 §3.2.4.
            let seen = if (method, path) == ("OPTIONS", "http://shop") { "*" } else { seen };
            expected.push(format!("{method} {seen} HTTP/1.1"));
        }
    }
    assert_eq!(client.ask("OPTIONS * HTTP/1.1\r\nHost: shop\r\n\r\n").status(), 200);
    expected.push("OPTIONS * HTTP/1.1".to_owned());
    // A fragment is no part of a target (RFC 9112 §3.2).
    assert_eq!(ask(&gate, "GET /a?b#c HTTP/1.1\r\nHost: shop\r\n\r\n").status(), 400);
    let asked = application.asked();
    let lines: Vec<_> = asked.iter().map(|asked| asked.message.first.clone()).collect();
    assert_eq!(lines, expected);
    assert!(asked.iter().all(|asked| asked.connection == 0), "one connection does for all");
}

#[test]
fn a_tunnel_is_not_made() {
    let application = Application::answering(OK);
    let gate = application.gate();
    assert_eq!(ask(&gate, "CONNECT shop:443 HTTP/1.1\r\nHost: shop:443\r\n\r\n").status(), 501);
    assert_eq!(application.connections(), 0);
}

#[test]
fn two_hundred_headers_both_ways() {
    let lines: String = (0..200).map(|number| format!("x-{number:03}: value of {number}\r\n")).collect();
    let application = Application::answering(format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 2\r\n\r\nok"));
    let gate = application.gate();
    let answer = ask(&gate, format!("GET / HTTP/1.1\r\nHost: shop\r\n{lines}\r\n"));
    let expected: Vec<_> = (0..200).map(|number| (format!("x-{number:03}"), format!("value of {number}"))).collect();
    let ours = ["host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
    assert_eq!(answer.status(), 200);
    assert_eq!(only(&application).headers_but(&ours), expected);
    assert_eq!(answer.headers_but(&["content-length", "date"]), expected);
}

// Bodies.

/// Bytes that tell where they belong.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index / 7 % 251) as u8).collect()
}

fn chunked(body: &[u8], size: usize, trailers: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in body.chunks(size) {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
    bytes
}

#[test]
fn bodies_of_either_kind_both_ways() {
    for length in [0, 1, 2, 9000, 3 * MIB] {
        let body = pattern(length);
        let sized = [format!("Content-Length: {length}\r\n\r\n").as_bytes(), &body].concat();
        let streamed = [&b"Transfer-Encoding: chunked\r\n\r\n"[..], &chunked(&body, 5000, "")].concat();
        for (sent, kept) in [(&sized, "content-length"), (&streamed, "transfer-encoding")] {
            let application = Application::answering([b"HTTP/1.1 200 OK\r\n", &sent[..]].concat());
            let gate = application.gate();
            for method in ["POST", "GET", "DELETE", "SEARCH"] {
                let mut client = Client::of(&gate);
                client.send([format!("{method} / HTTP/1.1\r\nHost: shop\r\n").as_bytes(), sent].concat());
                for message in [client.answer(), application.asked().pop().unwrap().message] {
                    assert!(message.is_complete && message.body == body, "{method} {length} {kept}");
                    assert_eq!(message.all(kept).len(), 1, "{method} {length} {kept}");
                }
            }
        }
    }
}

#[test]
fn a_request_without_a_body_stays_one() {
    let application = Application::answering(OK);
    let gate = application.gate();
    for method in ["GET", "DELETE", "OPTIONS", "BREW"] {
        ask(&gate, format!("{method} / HTTP/1.1\r\nHost: shop\r\n\r\n"));
        let asked = application.asked().pop().unwrap().message;
        assert_eq!((asked.header("content-length"), asked.header("transfer-encoding")), (None, None), "{method}");
    }
}

#[test]
fn trailers_both_ways() {
    let application = Application::answering(
        [
            &b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n"[..],
            &chunked(b"the answer", 3, "X-Sum: 42\r\n"),
        ]
        .concat(),
    );
    let gate = application.gate();
    let request = |te: &str| {
        let head =
            format!("POST / HTTP/1.1\r\nHost: shop\r\n{te}Trailer: X-Check\r\nTransfer-Encoding: chunked\r\n\r\n");
        [head.as_bytes(), &chunked(b"the request", 4, "X-Check: 7\r\n")].concat()
    };
    let answer = ask(&gate, request("TE: trailers\r\nConnection: TE\r\n"));
    let asked = only(&application);
    assert_eq!((asked.text().as_str(), &asked.trailers), ("the request", &fields(&[("x-check", "7")])));
    assert_eq!((asked.header("te").as_deref(), asked.header("connection").as_deref()), (Some("trailers"), Some("te")));
    assert_eq!((answer.text().as_str(), &answer.trailers), ("the answer", &fields(&[("x-sum", "42")])));
    assert!(answer.is_complete);
    // A recipient that does not want trailers discards them (RFC 9110 §6.5.1), so that they pass in any case.
    let answer = ask(&gate, request(""));
    assert_eq!((answer.text().as_str(), answer.trailers.len(), answer.is_complete), ("the answer", 1, true));
}

#[test]
fn trailers_end_an_answer() {
    let chunked =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n";
    let application = Application::answering(chunked);
    let gate = application.gate();
    let mut client = Client::of(&gate);
    for _ in 0..3 {
        let answer = client.ask("GET / HTTP/1.1\r\nHost: shop\r\nTE: trailers\r\nConnection: te\r\n\r\n");
        assert_eq!((answer.text().as_str(), answer.trailers.len()), ("ok", 1));
    }
    eventually("none is at work", || gate.metric("pitstop_requests_in_flight") == 0.0);
    assert_eq!(application.connections(), 1);
}

#[test]
fn of_two_lengths_of_an_answer_chunks_count() {
    let body = "5\r\nhello\r\n0\r\n\r\n";
    let application = Application::answering(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
    ));
    let gate = application.gate();
    let mut client = Client::of(&gate);
    for _ in 0..2 {
        let answer = client.get("/");
        assert_eq!((answer.text().as_str(), answer.is_complete), ("hello", true));
        assert_eq!(answer.header("content-length"), None);
    }
}

#[test]
fn a_client_cannot_unsay_what_proxies_have_said() {
    let application = Application::answering(OK);
    let gate = application.gate();
    ask(
        &gate,
        "GET / HTTP/1.1\r\nHost: shop\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Real-IP: 192.0.2.1\r\n\
         Forwarded: for=192.0.2.1\r\nVia: 1.1 edge\r\nX-Mine: 1\r\n\
         Connection: X-Forwarded-For, x-forwarded-proto, X-Real-IP, Forwarded, Via, X-Mine\r\n\r\n",
    );
    let asked = only(&application);
    assert_eq!(asked.header("x-forwarded-for").as_deref(), Some("192.0.2.1, 127.0.0.1"));
    for (name, value) in [
        ("x-forwarded-proto", Some("https")),
        ("x-real-ip", Some("192.0.2.1")),
        ("forwarded", Some("for=192.0.2.1")),
        ("via", Some("1.1 edge")),
        ("x-mine", None),
    ] {
        assert_eq!(asked.header(name).as_deref(), value, "{name}");
    }
}

#[test]
fn a_client_that_leaves_its_upload_is_no_failure_of_the_application() {
    let application = Application::new(|visitor| {
        let mut message = visitor.head().unwrap();
        visitor.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        visitor.body(&mut message);
    });
    let gate = application.gate();
    let mut client = Client::of(&gate);
    client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 8\r\n\r\nhalf");
    Message::head(&mut client.0).unwrap();
    eventually("it is at work", || gate.metric("pitstop_requests_in_flight") == 1.0);
    drop(client);
    eventually("it is over", || gate.metric("pitstop_requests_in_flight") == 0.0);
    assert!(!gate.log().contains("the application at"), "{}", gate.log());
    assert!(!gate.admin("/metrics").body.contains("pitstop_upstream_errors_total{"));
}

#[test]
fn answers_without_a_body_say_how_long_it_would_be() {
    let table = [
        ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 1234\r\n\r\n", Some("1234")),
        ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n", None),
        ("GET", "HTTP/1.1 204 No Content\r\nETag: \"a\"\r\n\r\n", None),
        ("DELETE", "HTTP/1.1 204 No Content\r\nETag: \"a\"\r\n\r\n", None),
        ("HEAD", "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 1234\r\n\r\n", Some("1234")),
        ("HEAD", "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Length: 0\r\n\r\n", Some("0")),
        ("HEAD", "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nTransfer-Encoding: chunked\r\n\r\n", None),
        ("HEAD", "HTTP/1.1 200 OK\r\nETag: \"a\"\r\n\r\n", None),
        ("HEAD", "HTTP/1.1 404 Not Found\r\nETag: \"a\"\r\nContent-Length: 9\r\n\r\n", Some("9")),
    ];
    for (method, answer, length) in table {
        let application = Application::answering(answer);
        let gate = application.gate();
        let mut client = Client::of(&gate);
        for _ in 0..3 {
            client.send(format!("{method} / HTTP/1.1\r\nHost: shop\r\n\r\n"));
            let of = if method == "HEAD" { BodyOf::AnswerToHead } else { BodyOf::Answer };
            let seen = client.try_answer(of).unwrap();
            assert!(answer.starts_with(&seen.first), "{answer:?}: {}", seen.first);
            assert_eq!(seen.header("content-length").as_deref(), length, "{answer:?}");
            assert_eq!(seen.header("etag").as_deref(), Some("\"a\""), "{answer:?}");
        }
    }
}

#[test]
fn a_range() {
    let application = Application::answering(
        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-4/10\r\nContent-Length: 3\r\nAccept-Ranges: bytes\r\n\r\ncde",
    );
    let gate = application.gate();
    let answer = ask(&gate, "GET /file HTTP/1.1\r\nHost: shop\r\nRange: bytes=2-4\r\nIf-Range: \"v1\"\r\n\r\n");
    let asked = only(&application);
    assert_eq!((asked.header("range"), asked.header("if-range")), (Some("bytes=2-4".into()), Some("\"v1\"".into())));
    assert_eq!((answer.status(), answer.text().as_str()), (206, "cde"));
    assert_eq!(answer.header("content-range").as_deref(), Some("bytes 2-4/10"));
    assert_eq!(answer.header("accept-ranges").as_deref(), Some("bytes"));
}

#[test]
fn a_client_that_asks_before_sending_is_told_to_go_on() {
    let application = Application::answering(OK);
    let gate = application.gate();
    let mut client = Client::of(&gate);
    for number in 1..=2 {
        client.send("PUT / HTTP/1.1\r\nHost: shop\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(client.answer().first, "HTTP/1.1 100 Continue");
        client.send("hello");
        assert_eq!(client.answer().first, "HTTP/1.1 200 OK");
        let asked = application.asked();
        let asked = &asked.last().unwrap().message;
        assert_eq!((asked.text().as_str(), asked.header("expect"), application.asked().len()), ("hello", None, number));
    }
}

#[test]
fn interim_responses_pass() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nKeep-Alive: 5\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n";
    let application = Application::answering(format!("{interim}{OK}"));
    let gate = application.gate();
    let mut client = Client::of(&gate);
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
        let hints = client.try_answer(BodyOf::AnswerToHead).unwrap();
        assert_eq!((hints.first.as_str(), hints.header("link").as_deref()), ("HTTP/1.1 103 Early Hints", Some("</a>")));
        assert_eq!(hints.header("keep-alive"), None);
        assert_eq!(client.try_answer(BodyOf::AnswerToHead).unwrap().first, "HTTP/1.1 102 Processing");
        assert_eq!(client.answer().first, "HTTP/1.1 200 OK");
    }
    // HTTP/1.0 has none.
    assert_eq!(ask(&gate, "GET / HTTP/1.0\r\n\r\n").first, "HTTP/1.1 200 OK");
}

// Versions.

#[test]
fn a_client_of_http_1_0() {
    let application =
        Application::answering("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
    let gate = application.gate();
    for (request, host) in [
        ("GET /a HTTP/1.0\r\n\r\n", application.address.to_string()),
        ("GET /a HTTP/1.0\r\nHost: shop\r\n\r\n", "shop".to_owned()),
        ("GET /a HTTP/1.0\r\nHost: shop\r\nConnection: keep-alive\r\n\r\n", "shop".to_owned()),
    ] {
        let answer = ask(&gate, request);
        // The end of the connection is the end of the answer.
        assert_eq!((answer.first.as_str(), answer.text().as_str()), ("HTTP/1.1 200 OK", "hello"), "{request}");
        assert_eq!(answer.header("transfer-encoding"), None, "{request}");
        let asked = application.asked().pop().unwrap().message;
        assert_eq!((asked.first.as_str(), asked.header("host")), ("GET /a HTTP/1.1", Some(host)), "{request}");
    }

    let application = Application::answering(OK);
    let gate = application.gate();
    let mut client = Client::of(&gate);
    for _ in 0..3 {
        let answer = client.ask("POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!((answer.header("connection").as_deref(), answer.text().as_str()), (Some("keep-alive"), "ok"));
    }
}

#[test]
fn an_application_of_http_1_0() {
    for (head, framed) in [
        ("HTTP/1.0 200 OK\r\n\r\n", "transfer-encoding"),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", "content-length"),
        ("HTTP/1.1 200 OK\r\n\r\n", "transfer-encoding"),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", "transfer-encoding"),
    ] {
        let application = Application::new(move |visitor| {
            visitor.request();
            visitor.write(head);
            visitor.write("hello");
        });
        let gate = application.gate();
        // The client's connection is kept all the same.
        let mut client = Client::of(&gate);
        for _ in 0..3 {
            let answer = client.get("/");
            assert_eq!((answer.first.as_str(), answer.text().as_str()), ("HTTP/1.1 200 OK", "hello"), "{head:?}");
            assert_eq!((answer.all(framed).len(), answer.header("connection")), (1, None), "{head:?}");
        }
        assert_eq!(application.connections(), 3);
    }
}

#[test]
fn a_client_of_http_2() {
    let application = Application::answering(
        [
            &b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nConnection: X-Mine\r\nX-Mine: 1\r\nTransfer-Encoding: chunked\r\n\r\n"[..],
            &chunked(&pattern(MIB), 5000, "X-Sum: 42\r\n"),
        ]
        .concat(),
    );
    let gate = application.gate();
    let trailers = HeaderMap::from_iter([("x-check".parse().unwrap(), HeaderValue::from_static("7"))]);
    let (head, body) = http2(&gate, async |mut sender| {
        let frames = [Frame::data(pattern(MIB).into()), Frame::trailers(trailers)];
        let request = Request::post("http://shop:81/a//b?c=%zz")
            .header("te", "trailers")
            .header("trailer", "x-check")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("x-kept", "yes");
        let answer = sender.send_request(request.body(in_frames(frames)).unwrap()).await.unwrap();
        let (head, body) = answer.into_parts();
        (head, body.collect().await.unwrap())
    });
    let asked = only(&application);
    assert_eq!(asked.first, "POST /a//b?c=%zz HTTP/1.1");
    assert!(asked.is_complete && asked.body == pattern(MIB));
    assert_eq!(asked.trailers, fields(&[("x-check", "7")]));
    let expected = fields(&[
        ("connection", "te"),
        // One header again, as RFC 9113 §8.2.3 asks.
        ("cookie", "a=1; b=2"),
        ("host", "shop:81"),
        ("te", "trailers"),
        ("trailer", "x-check"),
        ("transfer-encoding", "chunked"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "shop:81"),
        ("x-forwarded-proto", "http"),
        ("x-kept", "yes"),
    ]);
    assert_eq!(asked.headers_but(&[]), expected);
    assert_eq!((head.status.as_u16(), head.headers.get("x-mine")), (200, None));
    assert_eq!(body.trailers().unwrap()["x-sum"], "42");
    assert!(body.to_bytes() == pattern(MIB));
}

#[test]
fn bodies_over_http_2() {
    let application = Application::answering(OK);
    let gate = application.gate();
    http2(&gate, async |mut sender| {
        for method in ["GET", "POST", "SEARCH"] {
            for (body, sent) in [
                (whole(""), ""),
                (whole("hello"), "hello"),
                (in_frames(["he", "llo"].map(|part| Frame::data(part.into()))), "hello"),
            ] {
                let request = Request::builder().method(method).uri("http://shop/").body(body).unwrap();
                let answer: Response<_> = sender.send_request(request).await.unwrap();
                assert_eq!(answer.status(), 200);
                assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
                assert_eq!(application.asked().pop().unwrap().message.text(), sent, "{method}");
            }
        }
    });
}

// Streams.

/// An application whose answer goes on when the test says so, and the way to say it.
fn directed(serve: impl Fn(&mut Visitor, &Receiver<String>) + Send + Sync + 'static) -> (Application, Sender<String>) {
    let (sender, receiver) = channel();
    let receiver = Mutex::new(receiver);
    (Application::new(move |visitor| serve(visitor, &receiver.lock().unwrap())), sender)
}

#[test]
fn events_arrive_as_they_are_sent() {
    let (application, next) = directed(|visitor, events| {
        visitor.request();
        visitor.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        for event in events {
            visitor.write(format!("{:x}\r\n{event}\r\n", event.len()));
        }
        visitor.write("0\r\n\r\n");
    });
    let gate = application.gate();
    let mut client = Client::of(&gate);
    client.send("GET /events HTTP/1.1\r\nHost: shop\r\nAccept: text/event-stream\r\n\r\n");
    // The head comes before there is any event.
    assert_eq!(Message::head(&mut client.0).unwrap().header("content-type").as_deref(), Some("text/event-stream"));
    for number in 0..20 {
        let event = format!("data: {number}\n\n");
        next.send(event.clone()).unwrap();
        let mut size = String::new();
        client.0.read_line(&mut size).unwrap();
        assert_eq!(usize::from_str_radix(size.trim_end(), 16), Ok(event.len()));
        let mut bytes = vec![0; event.len() + 2];
        client.0.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [event.as_bytes(), b"\r\n"].concat());
    }
    drop(next);
    let mut rest = [0; 5];
    client.0.read_exact(&mut rest).unwrap();
    assert_eq!(&rest, b"0\r\n\r\n");
}

#[test]
fn a_request_arrives_as_it_is_sent() {
    let (seen, parts) = channel();
    let seen = Mutex::new(seen);
    let application = Application::new(move |visitor| {
        visitor.head();
        for _ in 0..3 {
            seen.lock().unwrap().send(visitor.bytes(4)).unwrap();
        }
        visitor.write(OK);
    });
    let gate = application.gate();
    let mut client = Client::of(&gate);
    client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 12\r\n\r\n");
    for part in ["some", "then", "more"] {
        client.send(part);
        assert_eq!(parts.recv().unwrap(), part.as_bytes());
    }
    assert_eq!(client.answer().text(), "ok");
}

#[test]
fn an_answer_before_the_request_has_ended() {
    let (application, go_on) = directed(|visitor, proceed| {
        let mut message = visitor.head().unwrap();
        visitor.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        visitor.body(&mut message);
        visitor.write("4\r\nlast\r\n0\r\n\r\n");
        let _ = proceed.recv();
    });
    let gate = application.gate();
    let mut client = Client::of(&gate);
    client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 8\r\n\r\nhalf");
    // The answer begins, and the request goes on after that.
    let mut answer = Message::head(&mut client.0).unwrap();
    client.send("half");
    answer.read_body(&mut client.0, BodyOf::Answer);
    assert_eq!((answer.text().as_str(), only(&application).text().as_str()), ("firstlast", "halfhalf"));
    drop(go_on);

    // All of the answer, and then it closes: what was too much of the request costs the client nothing of it.
    let application = Application::new(|visitor| {
        visitor.head();
        visitor.write("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 5\r\n\r\nlarge");
    });
    let gate = application.gate();
    let mut client = Client::of(&gate);
    client.send(format!("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: {}\r\n\r\n", 64 * MIB));
    let answer = client.answer();
    assert_eq!((answer.status(), answer.text().as_str()), (413, "large"));
}

#[test]
fn what_follows_the_whole_answer_arrives_as_well() {
    for (framing, rest) in [("Content-Length: 8", "half"), ("Transfer-Encoding: chunked", "4\r\nhalf\r\n0\r\n\r\n")] {
        let application = Application::new(|visitor| {
            while let Some(mut message) = visitor.head() {
                visitor.write(OK);
                visitor.body(&mut message);
            }
        });
        let gate = application.gate();
        let mut client = Client::of(&gate);
        client.send(format!("POST / HTTP/1.1\r\nHost: shop\r\n{framing}\r\n\r\n"));
        assert_eq!(client.answer().text(), "ok");
        assert_eq!(gate.metric("pitstop_requests_in_flight"), 1.0, "the application still gets it");
        if framing.starts_with('C') {
            client.send("half");
        } else {
            client.send("4\r\nhalf\r\n");
        }
        client.send(rest);
        eventually("the application has all of it", || application.asked().len() == 1);
        assert_eq!((only(&application).text().as_str(), only(&application).is_complete), ("halfhalf", true));
        eventually("that is all", || gate.metric("pitstop_requests_in_flight") == 0.0);
        // Both connections serve on.
        assert_eq!(client.get("/").text(), "ok");
        assert_eq!(application.connections(), 1);
        assert_eq!(gate.metric("pitstop_requests_total{outcome=\"forwarded\"}"), 2.0);
    }
}

#[test]
fn a_client_that_does_not_send_the_rest_is_not_waited_for_in_vain() {
    let application = Application::new(|visitor| {
        visitor.head();
        visitor.write(OK);
        visitor.bytes(1);
    });
    let gate = application.gate_with(&["--upstream-timeout", "300ms"]);
    let mut client = Client::of(&gate);
    client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 8\r\n\r\n");
    assert_eq!(client.answer().text(), "ok");
    eventually("nothing is at work", || gate.metric("pitstop_requests_in_flight") == 0.0);
}

#[test]
fn an_answer_that_breaks_off_is_not_taken_for_a_whole_one() {
    for (head, part) in
        [("Content-Length: 10\r\n\r\n", "hello"), ("Transfer-Encoding: chunked\r\n\r\n", "5\r\nhello\r\n")]
    {
        for reset in [false, true] {
            let (application, go_on) = directed(move |visitor, proceed| {
                visitor.request();
                visitor.write("HTTP/1.1 200 OK\r\n");
                visitor.write(head);
                visitor.write(part);
                let _ = proceed.recv();
                if reset {
                    visitor.reset();
                }
            });
            let gate = application.gate();
            let begin = |version: &str| {
                let mut client = Client::of(&gate);
                client.send(format!("GET / HTTP/{version}\r\nHost: shop\r\n\r\n"));
                let answer = Message::head(&mut client.0).unwrap();
                (client, answer)
            };
            let (mut client, mut answer) = begin("1.1");
            go_on.send(String::new()).unwrap();
            answer.read_body(&mut client.0, BodyOf::Answer);
            // A reset takes away what the gate has not read yet.
            let is_part = if reset { "hello".starts_with(&answer.text()) } else { answer.text() == "hello" };
            assert!(is_part && !answer.is_complete, "{head:?} {reset}: {answer:?}");

            // HTTP/1.0 has no chunks: without a length the connection must not end as it does after a whole answer.
            let (mut client, mut answer) = begin("1.0");
            go_on.send(String::new()).unwrap();
            answer.read_body(&mut client.0, BodyOf::Answer);
            assert!(!answer.is_complete, "{head:?} {reset}: {answer:?}");

            http2(&gate, async |mut sender| {
                let request = Request::get("http://shop/").body(whole("")).unwrap();
                let answer = sender.send_request(request).await.unwrap();
                go_on.send(String::new()).unwrap();
                answer.into_body().collect().await.unwrap_err();
            });
            drop(go_on);
            eventually("all three are counted", || {
                gate.metric("pitstop_upstream_errors_total{cause=\"closed\"}") == 3.0
            });
            assert_eq!(gate.metric("pitstop_requests_total{outcome=\"failed\"}"), 3.0);
        }
    }
}

#[test]
fn a_client_that_reads_slowly_gets_all_of_it() {
    let body = pattern(8 * MIB);
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    let application = Application::answering([head.as_bytes(), &body].concat());
    let gate = application.gate();
    let mut client = Client::of(&gate);
    client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
    Message::head(&mut client.0).unwrap();
    let mut read = Vec::new();
    // Up to the moment when the gate has all of it, and some is still to be written.
    while gate.metric("pitstop_requests_total{outcome=\"forwarded\"}") == 0.0 {
        client.0.by_ref().take(4096).read_to_end(&mut read).unwrap();
    }
    // Longer than a connection without a request is left as it is.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(100) {
        assert_eq!(Client::of(&gate).ask("HEAD / HTTP/1.0\r\n\r\n").status(), 200);
    }
    let rest = (body.len() - read.len()) as u64;
    client.0.by_ref().take(rest).read_to_end(&mut read).unwrap();
    assert!(read == body);
}

#[test]
fn requests_in_a_pipeline_are_answered_in_order() {
    let application = Application::new(|visitor| {
        while let Some(request) = visitor.request() {
            let path = request.target().to_owned();
            visitor.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()));
        }
    });
    let gate = application.gate();
    let mut client = Client::of(&gate);
    let requests: String = (0..50).map(|number| format!("GET /{number} HTTP/1.1\r\nHost: shop\r\n\r\n")).collect();
    client.send(requests);
    for number in 0..50 {
        assert_eq!(client.answer().text(), format!("/{number}"));
    }
}

#[test]
fn a_client_that_closes_its_half_is_answered() {
    let application = Application::answering(OK);
    let gate = application.gate();
    let mut client = Client::of(&gate);
    client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
    client.0.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.answer().text(), "ok");
    client.assert_closed();
}
