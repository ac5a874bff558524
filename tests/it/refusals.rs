//! The traffic listener without an application behind it: whoever comes, however, is told the reason.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::fixture::{Reply, Sidecar, connect, eventually, exchange, program, request};

const REASON: &str = "Updating the instance";
const MIB: usize = 1024 * 1024;

/// All that is said of an answer but when it was given.
fn described(reply: &Reply) -> BTreeSet<String> {
    let headers = reply.headers.iter().filter(|(name, _)| name != "date");
    headers.map(|(name, value)| format!("{name}: {value}")).collect()
}

fn refusal(content_type: &str, length: usize) -> BTreeSet<String> {
    let length = format!("content-length: {length}");
    let content_type = format!("content-type: {content_type}");
    let common = ["retry-after: 60", "cache-control: no-store", "vary: Accept, Accept-Language"];
    common.map(str::to_owned).into_iter().chain([length, content_type]).collect()
}

/// The headers that only a page for people has, but for its policy.
fn of_a_page() -> [String; 2] {
    ["content-language: en", "x-content-type-options: nosniff"].map(str::to_owned)
}

/// Reads the next answer on a connection that stays open.
fn next_answer(connection: &mut BufReader<TcpStream>) -> Reply {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert_ne!(connection.read_until(b'\n', &mut head).unwrap(), 0, "closed after {head:?}");
    }
    let mut reply = Reply::parse(&head);
    let mut body = vec![0; reply.header("content-length").unwrap().parse().unwrap()];
    connection.read_exact(&mut body).unwrap();
    reply.body = String::from_utf8(body).unwrap();
    reply
}

/// What a client printed. Proxies are for others than the loopback.
fn printed(mut client: Command, package: &str) -> String {
    for variable in ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
        client.env_remove(variable);
    }
    let output = client.output().unwrap_or_else(|error| {
        panic!("cannot start {}: {error}: install {package}", client.get_program().display());
    });
    assert!(output.status.success(), "{}: is all of {package} there?", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// curl's answer with its head.
fn curl(arguments: &[&str], url: &str) -> Reply {
    let mut client = program("curl");
    client.args(["--silent", "--show-error", "--max-time", "60", "--include"]).args(arguments).arg(url);
    Reply::parse(printed(client, "the Debian package curl").as_bytes())
}

/// What a script in JavaScript prints.
fn node(script: &str, argument: &str) -> String {
    let mut client = program("node");
    client.args(["--eval", script, argument]);
    printed(client, "the Debian package nodejs, 18 or later")
}

/// What a script in Python prints, given arguments and an input.
fn python(script: &str, arguments: &[&str]) -> String {
    let interpreter = std::env::var_os("PITSTOP_TEST_PYTHON")
        .unwrap_or_else(|| OsString::from(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv/bin/python")));
    let mut client = Command::new(interpreter);
    client.args(["-c", script]).args(arguments);
    printed(client, "a virtualenv target/test-venv (or PITSTOP_TEST_PYTHON) with PyPI's grpcio, h2 and html5lib")
}

// Any request.

#[test]
fn any_method_and_any_path() {
    let long = format!("/{}", "a/".repeat(4000));
    let paths =
        "/ /a/b?c=d // /%2e%2e/ /../.. /?%00 /é http://example.org/a https://example.org /readyz /livez /metrics
        /maintenance /.pitstop/ /.pitstop/token /robots.txt";
    let methods = "GET HEAD POST PUT PATCH DELETE OPTIONS TRACE PROPFIND PURGE get BREW";
    let mut requests: Vec<_> = methods
        .split(' ')
        .flat_map(|method| paths.split_whitespace().chain([long.as_str()]).map(move |path| (method, path)))
        .collect();
    requests.push(("OPTIONS", "*"));

    for sidecar in [Sidecar::start(), Sidecar::in_maintenance(REASON)] {
        let body = if sidecar.is_off() { "Temporarily unavailable\n" } else { "Updating the instance\n" };
        let mut expected = refusal("text/plain; charset=utf-8", body.len());
        expected.insert("connection: close".to_owned());
        for (method, path) in &requests {
            let what = format!("{method} {path}");
            let reply = request(sidecar.traffic, method, path, &[]);
            assert_eq!(reply.status, 503, "{what}");
            assert_eq!(described(&reply), expected, "{what}");
            assert_eq!(reply.body, if *method == "HEAD" { "" } else { body }, "{what}");
        }
        assert_eq!(sidecar.metric("pitstop_requests_total{outcome=\"refused\"}"), requests.len() as f64);
        // There are no tunnels, in maintenance or out of it.
        for target in ["example.org:443", "[::1]:22"] {
            assert_eq!(request(sidecar.traffic, "CONNECT", target, &[]).status, 501, "{target}");
        }
    }
}

#[test]
fn what_is_no_request_is_told_so() {
    let sidecar = Sidecar::in_maintenance(REASON);
    let long = "a".repeat(20_000);
    let table = [
        (format!("GET /{long} HTTP/1.1\r\nHost: pod\r\n\r\n"), 431),
        (format!("GET / HTTP/1.1\r\nHost: pod\r\nX-Long: {long}\r\n\r\n"), 431),
        ("GET /\x01 HTTP/1.1\r\nHost: pod\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n".to_owned(), 400),
    ];
    for (text, status) in table {
        let reply = exchange(sidecar.traffic, text.as_bytes());
        assert_eq!((reply.status, reply.header("connection")), (status, Some("close")), "{}", &text[..20]);
    }
}

#[test]
fn an_answer_does_not_wait_for_what_follows_the_request() {
    let sidecar = Sidecar::in_maintenance(REASON);
    // A line break too many, as some clients send after a form; half of the next request.
    for rest in ["\r\n", "GET /"] {
        let mut connection = BufReader::new(connect(sidecar.traffic));
        let request = format!("POST / HTTP/1.1\r\nHost: pod\r\nContent-Length: 3\r\n\r\na=b{rest}");
        connection.get_mut().write_all(request.as_bytes()).unwrap();
        assert_eq!(next_answer(&mut connection).status, 503, "{rest:?}");
    }
}

// Any version of HTTP.

#[test]
fn http_1_0() {
    let sidecar = Sidecar::in_maintenance(REASON);
    let reply = exchange(sidecar.traffic, b"GET / HTTP/1.0\r\n\r\n");
    assert_eq!((reply.status, reply.body.as_str()), (503, "Updating the instance\n"));

    let mut connection = BufReader::new(connect(sidecar.traffic));
    for _ in 0..3 {
        connection.get_mut().write_all(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
        let reply = next_answer(&mut connection);
        assert_eq!((reply.status, reply.header("connection")), (503, Some("keep-alive")));
        assert_eq!(reply.body, "Updating the instance\n");
    }
}

#[test]
fn http_1_1_in_a_pipeline() {
    let sidecar = Sidecar::in_maintenance(REASON);
    let mut connection = BufReader::new(connect(sidecar.traffic));
    // Bytes after the head of an answer to HEAD would be taken for the next answer.
    connection
        .get_mut()
        .write_all(&b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(20))
        .unwrap();
    for _ in 0..20 {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(connection.read_line(&mut head).unwrap(), 0);
        }
        assert_eq!(described(&Reply::parse(head.as_bytes())), refusal("text/plain; charset=utf-8", REASON.len() + 1));
        assert_eq!(next_answer(&mut connection).body, "Updating the instance\n");
    }
}

#[test]
fn http_2_and_head() {
    let sidecar = Sidecar::in_maintenance(REASON);
    let url = format!("http://{}/a?b", sidecar.traffic);
    for version in ["--http1.0", "--http1.1", "--http2-prior-knowledge"] {
        for (accept, content_type) in [
            ("Accept: */*", "text/plain; charset=utf-8"),
            ("Accept: text/html", "text/html; charset=utf-8"),
            ("Accept: application/json", "application/problem+json"),
        ] {
            let get = curl(&[version, "--header", accept], &url);
            assert_eq!(get.status, 503, "{version} {accept}");
            let mut said = described(&get);
            let mut expected = refusal(content_type, get.body.len());
            if version == "--http1.0" {
                expected.insert("connection: close".to_owned());
            }
            if accept.ends_with("html") {
                expected.extend(of_a_page());
                assert!(get.header("content-security-policy").is_some_and(|policy| policy.contains("'none'")));
                said.retain(|header| !header.starts_with("content-security-policy: "));
            }
            assert_eq!(said, expected, "{version} {accept}");
            let head = curl(&[version, "--header", accept, "--head"], &url);
            assert_eq!((described(&head), head.body.as_str()), (described(&get), ""), "{version} {accept}");
        }
    }
}

// Any client.

#[test]
fn each_client_is_answered_in_its_format() {
    let sidecar = Sidecar::in_maintenance(REASON);
    let url = format!("http://{}/", sidecar.traffic);
    let chrome = [
        ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8"),
        ("Accept-Encoding", "gzip, deflate, br, zstd"),
        ("Accept-Language", "de-DE,de;q=0.9"),
        ("Sec-Fetch-Dest", "document"),
        ("Upgrade-Insecure-Requests", "1"),
        ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0"),
    ];
    let fetch = "
        const options = process.argv[2] ? { headers: { Accept: process.argv[2] } } : {};
        fetch(process.argv[1], options).then(reply => console.log(reply.status, reply.headers.get('content-type')));";
    let fetch_as_axios =
        fetch.replace("process.argv[2] ?", "true ?").replace("process.argv[2]", "'application/json, text/plain, */*'");
    let http_client = "
import http.client, sys, urllib.parse
connection = http.client.HTTPConnection(urllib.parse.urlsplit(sys.argv[1]).netloc)
connection.request('POST', '/', 'a=b')
reply = connection.getresponse()
print(reply.status, reply.getheader('content-type'))";
    let urllib = "
import sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(sys.argv[1])
except urllib.error.HTTPError as reply:
    print(reply.code, reply.headers['content-type'])";
    let said = |reply: Reply| format!("{} {}\n", reply.status, reply.header("content-type").unwrap());
    let [html, problem, text] = ["text/html; charset=utf-8", "application/problem+json", "text/plain; charset=utf-8"]
        .map(|format| format!("503 {format}\n"));
    let table = [
        ("a browser", said(sidecar.traffic("/", &chrome)), &html),
        ("curl", said(curl(&[], &url)), &text),
        ("curl --json", said(curl(&["--json", "{}"], &url)), &problem),
        ("curl --compressed", said(curl(&["--compressed"], &url)), &text),
        ("fetch", node(fetch, &url), &text),
        ("fetch as axios does", node(&fetch_as_axios, &url), &problem),
        ("Python's http.client", python(http_client, &[&url]), &text),
        ("Python's urllib", python(urllib, &[&url]), &text),
        (
            "kubectl",
            said(sidecar.traffic("/", &[("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")])),
            &problem,
        ),
        ("an image", said(sidecar.traffic("/a.png", &[("Accept", "image/avif,image/webp,image/*")])), &text),
        ("two headers", said(sidecar.traffic("/", &[("Accept", "image/png"), ("Accept", "text/html;q=0.1")])), &html),
        ("nothing offered is acceptable", said(sidecar.traffic("/", &[("Accept", "*/*;q=0")])), &text),
    ];
    for (client, actual, expected) in &table {
        assert_eq!(&actual, expected, "{client}");
    }
}

#[test]
fn a_grpc_client_sees_the_service_unavailable() {
    let client = "
import grpc, json, os, sys
channel = grpc.insecure_channel(sys.argv[1], options=[('grpc.enable_http_proxy', 0)])
def error(call):
    try:
        for _ in call(): pass
    except grpc.RpcError as error:
        return [error.code().name, error.details()]
arguments = dict(timeout=60)
method = '/example.Service/Method'
big = bytes(100_000)
print(json.dumps([
    error(lambda: [channel.unary_unary(method)(b'x', **arguments)]),
    error(lambda: [channel.unary_unary(method)(big, **arguments)]),
    error(lambda: channel.unary_stream(method)(b'x', **arguments)),
    error(lambda: [channel.stream_unary(method)(iter([big] * 3), **arguments)]),
    error(lambda: channel.stream_stream(method)(iter([b'x'] * 100), **arguments)),
]))
# Not by the interpreter's own end, at which grpcio's threads may hang.
sys.stdout.flush()
os._exit(0)
";
    let table = [
        (REASON.to_owned(), REASON.to_owned()),
        ("Größer & <b> 100 %41\n☃ \u{1f6e0}".to_owned(), "Größer & <b> 100 %41\n☃ \u{1f6e0}".to_owned()),
        ("€".repeat(6000), "€".repeat(341)),
        (String::new(), "Down for maintenance".to_owned()),
    ];
    for (text, details) in table {
        let sidecar = Sidecar::in_maintenance(text);
        let errors: Vec<(String, String)> =
            serde_json::from_str(&python(client, &[&sidecar.traffic.to_string()])).unwrap();
        assert_eq!(errors, vec![("UNAVAILABLE".to_owned(), details); 5]);
    }
}

#[test]
fn grpc_on_the_wire() {
    let sidecar = Sidecar::in_maintenance("50 % é");
    let url = format!("http://{}/example.Service/Method", sidecar.traffic);
    let http2 = "--http2-prior-knowledge";
    let reply = curl(&[http2, "--header", "Content-Type: application/grpc+proto", "--request", "POST"], &url);
    let expected = [
        "content-type: application/grpc",
        "grpc-status: 14",
        "grpc-message: 50 %25 %C3%A9",
        "retry-after: 60",
        "cache-control: no-store",
    ];
    assert_eq!((reply.status, reply.body.as_str()), (200, ""));
    assert_eq!(described(&reply), expected.map(str::to_owned).into());
    // Its clients can only POST; whoever else says so must not take the 200 for a success, least of all for a tunnel.
    let other = curl(&[http2, "--header", "Content-Type: application/grpc"], &url);
    assert_eq!(other.status, 503);
    let connect = request(sidecar.traffic, "CONNECT", "pod:1", &[("Content-Type", "application/grpc")]);
    assert_eq!(connect.status, 501);
}

// Clients that are still sending.

#[test]
fn a_body_of_less_than_a_mebibyte_costs_no_connection() {
    let sidecar = Sidecar::in_maintenance(REASON);
    let mut connection = BufReader::new(connect(sidecar.traffic));
    let chunk = [b'x'; 30_000];
    for kind in ["Content-Length: 900000", "Transfer-Encoding: chunked", "Content-Length: 900000"] {
        let head = format!("POST / HTTP/1.1\r\nHost: pod\r\n{kind}\r\n\r\n");
        let is_chunked = kind.ends_with("chunked");
        connection.get_mut().write_all(head.as_bytes()).unwrap();
        for index in 0..30 {
            if is_chunked {
                connection.get_mut().write_all(b"7530\r\n").unwrap();
            }
            connection.get_mut().write_all(&chunk).unwrap();
            if is_chunked {
                connection.get_mut().write_all(b"\r\n").unwrap();
            }
            // The answer is there while most is still to be sent.
            if index == 0 {
                let reply = next_answer(&mut connection);
                assert_eq!((reply.status, reply.body.as_str()), (503, "Updating the instance\n"), "{kind}");
                assert_eq!(reply.header("connection"), None, "{kind}");
            }
        }
        if is_chunked {
            connection.get_mut().write_all(b"0\r\nX-Trailer: 1\r\n\r\n").unwrap();
        }
    }
    connection.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: pod\r\n\r\n").unwrap();
    assert_eq!(next_answer(&mut connection).status, 503);
}

#[test]
fn a_large_body_is_read_while_it_flows() {
    let sidecar = Sidecar::in_maintenance(REASON);
    let head = format!("POST / HTTP/1.1\r\nHost: pod\r\nContent-Length: {}\r\n\r\n", 64 * MIB);
    let chunk = [b'x'; 64 * 1024];

    // A client that reads as soon as there is something, and one that sends all before it reads. Both keep their connection.
    for reads_first in [true, false] {
        let mut connection = BufReader::new(connect(sidecar.traffic));
        for _ in 0..2 {
            connection.get_mut().write_all(head.as_bytes()).unwrap();
            let mut reply = reads_first.then(|| next_answer(&mut connection));
            for _ in 0..1024 {
                connection.get_mut().write_all(&chunk).unwrap();
            }
            let reply = reply.take().unwrap_or_else(|| next_answer(&mut connection));
            assert_eq!((reply.status, reply.header("connection")), (503, None), "{reads_first}");
            assert_eq!(reply.body, "Updating the instance\n");
        }
    }
    // Python's urllib sends all before it reads.
    let client = "
import sys, urllib.request, urllib.error
try:
    urllib.request.urlopen(urllib.request.Request('http://' + sys.argv[1], bytes(50_000_000)))
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode(), end='')";
    assert_eq!(python(client, &[&sidecar.traffic.to_string()]), "503 Updating the instance\n");
}

#[test]
fn whoever_asks_before_sending_is_refused_before_sending() {
    let sidecar = Sidecar::in_maintenance(REASON);
    let mut connection = connect(sidecar.traffic);
    let head = format!("PUT / HTTP/1.1\r\nHost: pod\r\nExpect: 100-continue\r\nContent-Length: {MIB}\r\n\r\n");
    connection.write_all(head.as_bytes()).unwrap();
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 503 "), "no 100 before it");
    let reply = Reply::parse(&answer);
    assert_eq!((reply.body.as_str(), reply.header("connection")), ("Updating the instance\n", Some("close")));

    // One that loses patience and sends.
    let mut connection = connect(sidecar.traffic);
    connection.write_all(head.as_bytes()).unwrap();
    connection.write_all(&vec![b'x'; MIB]).unwrap();
    assert_eq!(next_answer(&mut BufReader::new(connection)).body, "Updating the instance\n");
}

#[test]
fn uploads_with_curl() {
    let sidecar = Sidecar::in_maintenance(REASON);
    let url = format!("http://{}/", sidecar.traffic);
    let (small, large) = (sidecar.path().join("small"), sidecar.path().join("large"));
    fs::write(&small, vec![b'x'; 900_000]).unwrap();
    fs::write(&large, vec![b'x'; 8 * MIB]).unwrap();
    let [small, large] = [&small, &large].map(|path| path.to_str().unwrap());
    // HTTP/2 with a large body is what `an_http_2_stream_outlives_the_body_of_another` is for: this curl's own fault is
    // that it may lose an answer when the reset of the stream comes close behind.
    let table: [&[&str]; 6] = [
        &["--http1.1", "--upload-file", small],
        &["--http1.1", "--upload-file", large],
        &["--http1.1", "--header", "Expect:", "--upload-file", large],
        &["--http1.1", "--header", "Transfer-Encoding: chunked", "--upload-file", large],
        &["--http1.0", "--header", "Expect:", "--upload-file", small],
        &["--http2-prior-knowledge", "--upload-file", small],
    ];
    for arguments in table {
        for _ in 0..5 {
            let reply = curl(arguments, &url);
            assert_eq!((reply.status, reply.body.as_str()), (503, "Updating the instance\n"), "{arguments:?}");
        }
    }
}

#[test]
fn an_http_2_stream_outlives_the_body_of_another() {
    let client = "
import h2.config, h2.connection, h2.events, json, socket, sys
host, port = sys.argv[1].split(':')
stream = socket.create_connection((host, int(port)), timeout=60)
connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
connection.initiate_connection()
answers = []
for number, length in enumerate([0, 900_000, 64_000_000, 3, 64_000_000, 0]):
    this, answer, over, reset = 2 * number + 1, [length, b'', None], False, False
    head = [(':method', 'POST'), (':scheme', 'http'), (':authority', 'pod'), (':path', '/')]
    connection.send_headers(this, head, end_stream=length == 0)
    left = length
    while not (over and (left == 0 or reset)):
        while left and not reset:
            size = min(left, connection.local_flow_control_window(this), connection.max_outbound_frame_size)
            if size == 0:
                break
            connection.send_data(this, bytes(size), end_stream=size == left)
            left -= size
        stream.sendall(connection.data_to_send())
        if over and left == 0:
            break
        for event in connection.receive_data(stream.recv(65536)):
            if isinstance(event, h2.events.ResponseReceived):
                answer[1] = dict(event.headers)[b':status']
            elif isinstance(event, h2.events.StreamEnded):
                over = True
            elif isinstance(event, h2.events.StreamReset):
                reset, answer[2] = True, int(event.error_code)
            elif isinstance(event, h2.events.ConnectionTerminated):
                sys.exit('the connection is over')
    answer[1] = int(answer[1])
    answers.append(answer)
print(json.dumps(answers))";
    let sidecar = Sidecar::in_maintenance(REASON);
    let answers: Value = serde_json::from_str(&python(client, &[&sidecar.traffic.to_string()])).unwrap();
    // All may finish.
    let expected = json!([
        [0, 503, null],
        [900_000, 503, null],
        [64_000_000, 503, null],
        [3, 503, null],
        [64_000_000, 503, null],
        [0, 503, null],
    ]);
    assert_eq!(answers, expected);
}

// What is said.

/// What a strict parser makes of a page: it fails at the first error. The tags with their attributes, and what the
/// reason and the page as a whole read.
const PARSE: &str = "
import html5lib, json, sys
page = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(open(sys.argv[1], encoding='utf-8').read())
tags = [[element.tag, dict(element.attrib)] for element in page.iter()]
reasons = ['\\n\\n'.join(''.join(paragraph.itertext()) for paragraph in element.iter('p'))
           for element in page.iter('div') if element.get('class') == 'reason']
print(json.dumps([tags, reasons, page.find('.//title').text, page.find('.//style').text]))";

#[test]
fn a_page_for_people() {
    let reason = "<script>alert(1)</script> & \"q\" 'q' <b>Größer</b> &amp; </p></style>-->\n\n  صيانة\u{200f} ☃ ]]>";
    let sidecar = Sidecar::in_maintenance(format!("{reason}\n\nUntil: 2099-01-02T03:04:05Z\n"));
    let page = sidecar.traffic("/", &[("Accept", "text/html")]).body;
    let escaped = "&lt;script&gt;alert(1)&lt;&#x2f;script&gt; &amp; &quot;q&quot; &#x27;q&#x27; &lt;b&gt;Größer&lt;&#x2f;b&gt; \
        &amp;amp; &lt;&#x2f;p&gt;&lt;&#x2f;style&gt;--&gt;</p>\n<p dir=\"auto\">  صيانة\u{200f} ☃ ]]&gt;</p>";
    assert!(page.contains(escaped), "{page}");
    assert!(page.starts_with("<!doctype html>\n<html lang=\"en\" dir=\"ltr\">"), "{page}");

    let file = sidecar.path().join("page");
    fs::write(&file, &page).unwrap();
    let (tags, reasons, title, style): (Vec<(String, Value)>, Vec<String>, String, String) =
        serde_json::from_str(&python(PARSE, &[file.to_str().unwrap()])).unwrap();
    assert_eq!(reasons, [reason]);
    assert_eq!(title, "Down for maintenance");
    assert!(style.contains("color-scheme: light dark") && style.contains("prefers-color-scheme: dark"), "{style}");
    let names: Vec<_> = tags.iter().map(|(name, _)| name.as_str()).collect();
    let head = "html head meta meta meta noscript meta title link style";
    let body = "body main div h1 div p p dl dt dd time dt dd time p p a script";
    assert_eq!(names.join(" "), format!("{head} {body}"));
    // Nothing is fetched, by no tag, attribute or style.
    for outside in ["src=", "href=", "url(", "@import", "http:", "https:"] {
        let here = page.replace("href=\"data:,\"", "").replace("href=\"\"", "");
        assert!(!here.contains(outside), "{outside} in {page}");
    }
    assert!(page.contains("<time datetime=\"2099-01-02T03:04:05Z\">2099-01-02 03:04 UTC</time>"), "{page}");
}

#[test]
fn a_page_without_a_reason() {
    let table = [
        (None, "Temporarily unavailable"),
        (Some(""), "Down for maintenance"),
        (Some("\0\u{1b}"), "Down for maintenance"),
    ];
    for (text, heading) in table {
        let sidecar = text.map_or_else(Sidecar::start, Sidecar::in_maintenance);
        let file = sidecar.path().join("page");
        fs::write(&file, sidecar.traffic("/", &[("Accept", "text/html")]).body).unwrap();
        let (_, reasons, title, _): (Value, Vec<String>, String, String) =
            serde_json::from_str(&python(PARSE, &[file.to_str().unwrap()])).unwrap();
        assert_eq!((reasons, title.as_str()), (vec![], heading), "{text:?}");
        assert_eq!(sidecar.traffic("/", &[]).body, format!("{heading}\n"), "{text:?}");
        let problem: Value =
            serde_json::from_str(&sidecar.traffic("/", &[("Accept", "application/json")]).body).unwrap();
        assert_eq!(problem.get("detail"), None, "{text:?}");
    }
}

#[test]
fn a_reason_in_every_format() {
    let long = "é".repeat(8 * 1024);
    // The reason; as it is shown where control characters and marks that turn the direction would do harm.
    let table = [
        ("Up <b>&amp;</b> \"q\" \\ \u{2028} ☃\n\tline 2", "Up <b>&amp;</b> \"q\" \\ \u{2028} ☃\n\tline 2"),
        ("nul\0 esc\u{1b}[31m c1\u{9b}31m del\u{7f} cr\r\nend", "nul esc[31m c131m del cr\nend"),
        ("\u{202e}gnitadpu\u{202c} \u{2066}x\u{2069} صيانة\u{200f}", "gnitadpu x صيانة\u{200f}"),
        (&long, &long),
    ];
    for (reason, shown) in table {
        let sidecar = Sidecar::in_maintenance(reason);
        assert_eq!(sidecar.traffic("/", &[]).body, format!("{shown}\n"));

        let json = sidecar.traffic("/", &[("Accept", "application/json")]).body;
        let mut problem: Value = serde_json::from_str(&json).unwrap();
        let since: Timestamp = problem["since"].take().as_str().unwrap().parse().unwrap();
        assert!(since <= Timestamp::now());
        let expected = json!({
            "type": "about:blank", "title": "Service Unavailable", "status": 503, "since": null,
            "detail": reason.replace("\r\n", "\n"),
        });
        assert_eq!(problem, expected);

        let file = sidecar.path().join("page");
        fs::write(&file, sidecar.traffic("/", &[("Accept", "text/html")]).body).unwrap();
        let (_, reasons, ..): (Value, Vec<String>, Value, Value) =
            serde_json::from_str(&python(PARSE, &[file.to_str().unwrap()])).unwrap();
        assert_eq!(reasons, [shown]);
    }
}

#[test]
fn when_to_come_back() {
    let retry_after =
        |sidecar: &Sidecar| -> i64 { sidecar.traffic("/", &[]).header("retry-after").unwrap().parse().unwrap() };
    let past = "Up\n\nUntil: 2020-01-01T00:00:00Z";
    for text in [REASON, past, "Up\n\nUntil: soon", ""] {
        assert_eq!(retry_after(&Sidecar::in_maintenance(text)), 60, "{text}");
    }

    let sidecar = Sidecar::with(|command| _ = command.args(["--retry-after", "5m"]));
    assert_eq!(retry_after(&sidecar), 300);
    fs::write(sidecar.file(), past).unwrap();
    eventually("it is in maintenance", || sidecar.is_on(Some("Up")));
    assert_eq!(retry_after(&sidecar), 300);
    assert_eq!(retry_after(&Sidecar::with(|command| _ = command.env("PITSTOP_RETRY_AFTER", "7"))), 7);
    assert_eq!(retry_after(&Sidecar::with(|command| _ = command.args(["--retry-after", "500ms"]))), 1, "never at once");

    let end = Timestamp::now() + SignedDuration::from_hours(1);
    fs::write(sidecar.file(), format!("Up\n\nUntil: {end}")).unwrap();
    eventually("the end is known", || sidecar.state()["until"] == end.to_string());
    // Rounded up, and no longer than when it was asked, nor shorter than when it has been answered.
    let left =
        || (end.as_nanosecond() - Timestamp::now().as_nanosecond() + 999_999_999).div_euclid(1_000_000_000) as i64;
    let (before, answered, after) = (left(), retry_after(&sidecar), left());
    assert!((after..=before).contains(&answered), "{after} <= {answered} <= {before}");
    let problem = sidecar.traffic("/", &[("Accept", "application/json")]).body;
    assert_eq!(serde_json::from_str::<Value>(&problem).unwrap()["until"], end.to_string());
}

#[test]
fn an_end_that_has_passed_is_promised_no_longer() {
    let sidecar = Sidecar::start();
    let end = Timestamp::now() + SignedDuration::from_secs(2);
    fs::write(sidecar.file(), format!("Up\n\nUntil: {end}")).unwrap();
    eventually("the page changes without a change of the file", || {
        let page = sidecar.traffic("/", &[("Accept", "text/html")]).body;
        let promises = page.contains("Expected end");
        assert!(promises || !page.contains("class=\"reason\"") || Timestamp::now() > end, "{page}");
        page.contains("Up") && !promises
    });
    assert_eq!(sidecar.traffic("/", &[]).header("retry-after"), Some("60"));
}

#[test]
fn the_next_request_after_a_switch_sees_it() {
    let sidecar = Sidecar::start();
    let mut connection = BufReader::new(connect(sidecar.traffic));
    let mut said = || {
        connection.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: pod\r\n\r\n").unwrap();
        next_answer(&mut connection).body
    };
    for number in 0..25 {
        let reason = format!("Update {number}");
        assert_eq!(sidecar.run(&["maintenance-mode", &reason, "--wait"]).code, Some(0));
        assert_eq!(said(), format!("{reason}\n"));
        assert_eq!(sidecar.run(&["maintenance-mode", "--disable", "--wait"]).code, Some(0));
        assert_eq!(said(), "Temporarily unavailable\n");
    }
}
