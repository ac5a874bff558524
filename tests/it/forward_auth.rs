//! `/forward-auth`: what a proxy is told that asks before it lets a request through. Proxies that do are in `proxies`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;

use crate::application::{Application, BodyOf, Client};
use crate::fixture::{Reply, Sidecar, connect, eventually, put, request};

const PATH: &str = "/forward-auth";
const REASON: &str = "Updating the instance";
const REFUSED: &str = "pitstop_requests_total{outcome=\"refused\"}";
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"];

fn ask(sidecar: &Sidecar, method: &str, headers: &[(&str, &str)]) -> Reply {
    request(sidecar.admin, method, PATH, headers)
}

/// A client of the admin listener that keeps its connection.
fn client(sidecar: &Sidecar) -> Client {
    Client(BufReader::new(connect(sidecar.admin)))
}

/// All headers but those about the connection and the time.
fn described(reply: &Reply) -> BTreeSet<String> {
    let headers = reply.headers.iter().filter(|(name, _)| !matches!(name.as_str(), "date" | "connection"));
    headers.map(|(name, value)| format!("{name}: {value}")).collect()
}

#[test]
fn open_while_maintenance_is_off() {
    let sidecar = Sidecar::start();
    let open = ["cache-control: no-store", "content-length: 0"].map(str::to_owned).into();
    for method in METHODS {
        let reply = ask(&sidecar, method, &[("Accept", "text/html"), ("X-Forwarded-Method", "POST")]);
        assert_eq!(
            (reply.status, described(&reply), reply.body.as_str()),
            (200, BTreeSet::clone(&open), ""),
            "{method}"
        );
    }
    assert_eq!(sidecar.metric(REFUSED), 0.0);
    put(&sidecar.file(), REASON);
    eventually("it is closed", || ask(&sidecar, "GET", &[]).status == 503);
    fs::remove_file(sidecar.file()).unwrap();
    eventually("it is open again", || ask(&sidecar, "GET", &[]).status == 200);
}

#[test]
fn the_refusal_is_that_of_the_traffic_listener() {
    let sidecar = Sidecar::in_maintenance(REASON);
    let accepted = ["text/html", "application/json", "*/*"];
    let mut refused = 0.0;
    for (method, accept) in METHODS.iter().flat_map(|method| accepted.map(|accept| (*method, accept))) {
        // A proxy asks by a GET, or by the client's own method.
        for asked in ["GET", method] {
            let headers = [("Accept", accept), ("X-Forwarded-Method", method), ("X-Forwarded-Uri", "/cart?a=b")];
            let [reply, told] = [sidecar.admin, sidecar.traffic].map(|address| match address == sidecar.admin {
                true => ask(&sidecar, asked, &headers),
                false => request(address, method, "/cart?a=b", &headers[..1]),
            });
            let what = format!("{asked} for {method}, {accept}");
            assert_eq!((reply.status, described(&reply)), (503, described(&told)), "{what}");
            assert_eq!(reply.body.is_empty(), asked == "HEAD", "{what}");
            if method != "HEAD" {
                assert_eq!(reply.body, told.body, "{what}");
            }
            refused += 2.0;
        }
    }
    assert_eq!(sidecar.metric(REFUSED), refused);
    // Nothing else is reserved below it.
    assert_eq!(sidecar.admin("/forward-auth/").status, 404);
    assert_eq!(sidecar.admin("/forward-auth?a=b").status, 503);
}

#[test]
fn a_refusal_to_a_grpc_client_is_never_a_200() {
    let sidecar = Sidecar::in_maintenance(REASON);
    for content_type in ["application/grpc", "application/grpc+proto", "application/grpc-web"] {
        for method in ["GET", "POST"] {
            let forwarded: [&[_]; 2] = [&[], &[("X-Forwarded-Method", "POST")]];
            for headers in forwarded {
                let headers = [&[("Content-Type", content_type), ("TE", "trailers")], headers].concat();
                let reply = ask(&sidecar, method, &headers);
                assert_eq!((reply.status, reply.body.as_str()), (503, "Updating the instance\n"), "{headers:?}");
                assert_eq!(reply.header("grpc-status"), None, "{headers:?}");
            }
        }
    }
}

#[test]
fn what_is_not_known_is_closed() {
    let directory = std::sync::Arc::new(tempfile::tempdir().unwrap());
    // What cannot be examined: nobody knows whether the file is there.
    symlink("loop", directory.path().join("loop")).unwrap();
    let sidecar = Sidecar::sharing(directory, |command| _ = command.args(["--file", "loop/MAINTENANCE"]));
    assert_eq!(sidecar.admin("/readyz/maintenance-file").status, 503);
    let reply = ask(&sidecar, "GET", &[]);
    assert_eq!((reply.status, reply.body.as_str()), (503, "Temporarily unavailable\n"));
    fs::remove_file(sidecar.path().join("loop")).unwrap();
    eventually("it is open", || ask(&sidecar, "GET", &[]).status == 200);
}

#[test]
fn bodies_that_come_along_cost_no_connection_and_no_patience() {
    let sidecar = Sidecar::start();
    for status in [200, 503] {
        let mut client = client(&sidecar);
        for _ in 0..3 {
            for framing in ["Content-Length: 900000", "Transfer-Encoding: chunked"] {
                client.send(format!("POST {PATH} HTTP/1.1\r\nHost: pod\r\n{framing}\r\n\r\n"));
                // The answer does not wait for the body.
                assert_eq!(client.answer().status(), status, "{framing}");
                if framing.ends_with("chunked") {
                    client.send([b"dbba0\r\n", &[b'x'; 900_000][..], b"\r\n0\r\n\r\n"].concat());
                } else {
                    client.send([b'x'; 900_000]);
                }
            }
        }
        // A long one, too.
        client.send(format!("POST {PATH} HTTP/1.1\r\nHost: pod\r\nContent-Length: 9000000\r\n\r\n"));
        client.send(vec![b'x'; 9_000_000]);
        let answer = client.answer();
        assert_eq!((answer.status(), answer.header("connection")), (status, None));
        put(&sidecar.file(), REASON);
        eventually("it is in maintenance", || sidecar.is_on(Some(REASON)));
    }
}

#[test]
fn probes_are_answered_beside_bodies_that_never_come() {
    let sidecar = Sidecar::in_maintenance(REASON);
    let slow = |_| {
        let mut client = client(&sidecar);
        client.send(format!("POST {PATH} HTTP/1.1\r\nHost: pod\r\nContent-Length: 1000\r\n\r\nx"));
        assert_eq!(client.answer().status(), 503);
        client
    };
    let clients: Vec<Client> = (0..200).map(slow).collect();
    assert_eq!(sidecar.admin("/livez").status, 200);
    assert_eq!(sidecar.admin("/readyz").status, 503);
    // They are not waited for any longer than at the other listener.
    for mut client in clients {
        client.assert_closed();
    }
}

#[test]
fn who_leaves_early_does_no_harm() {
    let sidecar = Sidecar::in_maintenance(REASON);
    for _ in 0..50 {
        let mut stream: TcpStream = connect(sidecar.admin);
        stream.write_all(format!("POST {PATH} HTTP/1.1\r\nHost: pod\r\nContent-Length: 9\r\n\r\n").as_bytes()).unwrap();
    }
    assert_eq!(ask(&sidecar, "GET", &[]).status, 503);
}

#[test]
fn a_gate_answers_it_too_and_no_policy_is_asked() {
    let application = Application::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let gate = application.gate_with(&["--allow-method=GET", "--allow-path=/", "--hold=1h"]);
    assert_eq!(ask(&gate, "GET", &[]).status, 200);
    put(&gate.file(), REASON);
    eventually("it is in maintenance", || gate.is_on(Some(REASON)));
    assert_eq!(ask(&gate, "GET", &[]).body, "Updating the instance\n");
    assert_eq!((application.asked().len(), gate.metric(REFUSED)), (0, 1.0));
}

#[test]
fn while_it_stops_only_maintenance_counts() {
    let mut sidecar = Sidecar::with(|command| _ = command.args(["--shutdown-delay", "1h"]));
    sidecar.signal("TERM");
    eventually("it is stopping", || sidecar.admin("/readyz/shutdown").status == 503);
    // Where pitstop goes alone, the application goes on; where both go, the proxy is told by others.
    assert_eq!(ask(&sidecar, "GET", &[]).status, 200);
    sidecar.signal("TERM");
    sidecar.ended();
}

#[test]
fn over_one_connection() {
    let sidecar = Sidecar::start();
    let mut client = client(&sidecar);
    let mut ask = |method: &str, of| {
        client.send(format!("{method} {PATH} HTTP/1.1\r\nHost: pod\r\nX-Forwarded-Method: HEAD\r\n\r\n"));
        client.try_answer(of).unwrap().status()
    };
    for (method, of) in [("GET", BodyOf::Answer), ("HEAD", BodyOf::AnswerToHead), ("BREW", BodyOf::Answer)] {
        assert_eq!(ask(method, of), 200);
    }
    put(&sidecar.file(), REASON);
    eventually("it is in maintenance", || sidecar.is_on(Some(REASON)));
    for (method, of) in [("GET", BodyOf::Answer), ("HEAD", BodyOf::AnswerToHead), ("BREW", BodyOf::Answer)] {
        assert_eq!(ask(method, of), 503);
    }
}
