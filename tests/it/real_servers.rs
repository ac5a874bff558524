//! Real servers behind the gate, asked with curl: what comes through it is what the server itself says, but for what the
//! design names.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::fixture::{Printed, Sidecar};
use crate::server::{Server, curl};

/// An answer as curl prints it.
#[derive(Debug, PartialEq)]
struct Answer {
    /// With the reason, where there is one: HTTP/2 has none.
    status: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// What belongs to one connection, and what depends on the time. That an answer is chunked is shown by what is tested of its
/// body, and a length goes with `Transfer-Encoding`.
const OWN: [&str; 4] = ["connection", "date", "keep-alive", "transfer-encoding"];

impl Answer {
    #[track_caller]
    fn to(address: SocketAddr, path: &str, arguments: &[&str]) -> Self {
        let mut command = curl();
        command.args(["--include", "--header", "Host: shop.example", "--header", "User-Agent: test"]);
        command.args(arguments).arg(format!("http://{address}{path}"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        let mut rest = output.stdout.as_slice();
        loop {
            let end = rest.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
            let head = std::str::from_utf8(&rest[..end]).unwrap();
            rest = &rest[end + 4..];
            let mut lines = head.split("\r\n");
            let (_version, status) = lines.next().unwrap().split_once(' ').unwrap();
            if status.starts_with("100") {
                continue;
            }
            let mut headers: Vec<_> = lines
                .map(|line| line.split_once(':').unwrap())
                .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
                .collect();
            let dates = headers.iter().filter(|(name, _)| name == "date").count();
            assert_eq!(dates, 1, "{headers:?}");
            headers.retain(|(name, _)| !OWN.contains(&name.as_str()));
            // Their order means something only among those of one name.
            headers.sort_by(|(one, _), (other, _)| one.cmp(other));
            return Self { status: status.trim().to_owned(), headers, body: rest.to_vec() };
        }
    }

    /// What HTTP/2 has of it.
    fn without_reason(mut self) -> Self {
        self.status.truncate(3);
        self
    }

    /// What the application was asked. The gate's own headers and, where the client has chosen it, the framing are taken out.
    fn asked(&self) -> Value {
        let mut asked: Value = serde_json::from_slice(&self.body).unwrap();
        let own = |header: &Value| {
            let name = header[0].as_str().unwrap();
            name.starts_with("x-forwarded-") || OWN.contains(&name) || ["content-length", "expect"].contains(&name)
        };
        asked["headers"].as_array_mut().unwrap().retain(|header| !own(header));
        asked
    }

    fn header(&self, name: &str) -> &str {
        &self.headers.iter().find(|(header, _)| header == name).unwrap_or_else(|| panic!("{name}: {self:?}")).1
    }
}

/// Asks for the same of the server itself, and through the gate, over HTTP/1.1 and HTTP/2. Gives what the server says.
#[track_caller]
fn assert_same(server: &Server, gate: &Sidecar, path: &str, arguments: &[&str]) -> Answer {
    let direct = || Answer::to(server.address, path, arguments);
    let expected = direct();
    assert_eq!(Answer::to(gate.traffic, path, arguments), expected, "{path} {arguments:?}");
    let over_http2 = Answer::to(gate.traffic, path, &[&["--http2-prior-knowledge"], arguments].concat());
    assert_eq!(over_http2.without_reason(), direct().without_reason(), "{path} {arguments:?}, HTTP/2");
    expected
}

/// What any file server is asked for; `file` is 26 letters.
#[track_caller]
fn assert_files_are_the_same(server: &Server, gate: &Sidecar) {
    let whole = assert_same(server, gate, "/file.txt", &[]);
    assert_eq!((whole.status.as_str(), whole.body.as_slice()), ("200 OK", &b"abcdefghijklmnopqrstuvwxyz"[..]));
    let head = assert_same(server, gate, "/file.txt", &["--head"]);
    assert_eq!((&head.headers, head.body.len()), (&whole.headers, 0));
    let modified = format!("If-Modified-Since: {}", whole.header("last-modified"));
    assert_eq!(assert_same(server, gate, "/file.txt", &["--header", &modified]).status, "304 Not Modified");
    assert_eq!(assert_same(server, gate, "/large.bin", &[]).body.len(), 3_000_000);
    assert_eq!(&assert_same(server, gate, "/nothing", &[]).status[..3], "404");
    // To where it should be, and nowhere that only the gate knows.
    let moved = assert_same(server, gate, "/directory", &[]);
    assert_eq!(&moved.status[..3], "301");
    assert_eq!(assert_same(server, gate, "/empty", &[]).body, b"");
    assert_same(server, gate, "/", &[]);
    assert_same(server, gate, "/file.txt?query", &["--request", "OPTIONS"]);
    assert_same(server, gate, "/file.txt", &["--data", "a=b"]);
}

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).unwrap();
    write("file.txt", b"abcdefghijklmnopqrstuvwxyz");
    write("empty", b"");
    write("large.bin", &(0..3_000_000_u32).map(|index| (index / 7 % 251) as u8).collect::<Vec<_>>());
    write("page.html", "<p>ä</p>".repeat(500).as_bytes());
    fs::create_dir(directory.path().join("directory")).unwrap();
    // Not so young that a server takes its time for a weak validator.
    let file = fs::File::open(directory.path().join("file.txt")).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000)).unwrap();
    readable_by_all(directory.path());
    directory
}

fn readable_by_all(directory: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn nginx() {
    let files = directory();
    let server = Server::nginx(files.path(), "gzip on; gzip_proxied any; gzip_types text/plain; autoindex on;");
    let gate = server.gate();
    assert_files_are_the_same(&server, &gate);
    let same = |arguments: &[&str]| assert_same(&server, &gate, "/file.txt", arguments);
    let part = same(&["--range", "2-4"]);
    assert_eq!((part.status.as_str(), part.body.as_slice()), ("206 Partial Content", &b"cde"[..]));
    assert_eq!(part.header("content-range"), "bytes 2-4/26");
    assert_eq!(same(&["--range", "-3"]).body, b"xyz");
    assert_eq!(same(&["--range", "99-"]).status, "416 Requested Range Not Satisfiable");
    let etag = part.header("etag");
    let with = |name: &str| format!("{name}: {etag}");
    let not_modified = same(&["--header", &with("If-None-Match")]);
    assert_eq!((not_modified.status.as_str(), not_modified.header("etag")), ("304 Not Modified", etag));
    assert_eq!(same(&["--header", &with("If-Range"), "--range", "0-0"]).body, b"a");
    assert_eq!(same(&["--header", "If-Range: \"other\"", "--range", "0-0"]).body.len(), 26);
    assert_eq!(same(&["--header", "If-Match: \"other\""]).status, "412 Precondition Failed");
    // Compressed, in chunks, and the same bytes.
    let packed = assert_same(&server, &gate, "/page.html", &["--header", "Accept-Encoding: gzip"]);
    assert!(packed.header("content-encoding") == "gzip" && packed.body.starts_with(&[0x1f, 0x8b]), "{packed:?}");
    assert_eq!(assert_same(&server, &gate, "/page.html", &["--compressed"]).body.len(), 4500);
}

#[test]
fn pythons_file_server() {
    let files = directory();
    let server = Server::files(files.path());
    assert_files_are_the_same(&server, &server.gate());
}

/// What an application server with the application of tests/servers is asked for.
#[track_caller]
fn assert_application_is_the_same(server: &Server) {
    let gate = server.gate();
    let same = |path: &str, arguments: &[&str]| assert_same(server, &gate, path, arguments);
    assert_eq!(&same("/204", &[]).status[..3], "204");
    let cached = same("/cached", &[]);
    let head = same("/cached", &["--head"]);
    assert_eq!((head.status.as_str(), head.header("etag"), head.body.len()), ("200 OK", cached.header("etag"), 0));
    let known = format!("If-None-Match: {}", cached.header("etag"));
    assert_eq!(same("/cached", &["--header", &known]).status, "304 Not Modified");
    assert_eq!(same("/gzip", &[]).header("content-encoding"), "gzip");
    assert_eq!(same("/gzip", &["--compressed"]).body, cached.body);
    assert_eq!(same("/stream", &[]).body, cached.body);
    assert_eq!(same("/stream", &["--head"]).body, b"");
    assert_eq!(same("/redirect", &[]).header("location"), "http://shop.example/cached");
    assert_eq!(same("/fails", &[]).body, b"This has failed\n");
    let cookies = same("/cookies", &["--cookie", "a=1; b=\"2 3\"; c=4"]);
    assert_eq!(cookies.body, b"a=1; b=\"2 3\"; c=4");
    assert_eq!(cookies.headers.iter().filter(|(name, _)| name == "set-cookie").count(), 2);
    let x = |headers: &[(String, String)]| headers.iter().filter(|(name, _)| name.starts_with("x-")).count();
    assert_eq!(x(&same("/headers", &[]).headers), 200);
    let large = format!("X-Large: {}", "l".repeat(12_000));
    let answer = same("/large", &["--header", &large]);
    assert_eq!((answer.body.as_slice(), answer.header("x-large").len()), (&b"12000"[..], 12_000));

    // What the application sees is what it sees without the gate.
    let lines: Vec<_> = (0..200).map(|number| format!("--header=X-{number}: value {number}")).collect();
    let mut many = Vec::new();
    for line in &lines {
        many.extend(line.split_once('=').map(|(flag, value)| [flag, value]).unwrap());
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("body");
    fs::write(&file, (0..2_000_000_u32).map(|index| (index / 3 % 253) as u8).collect::<Vec<_>>()).unwrap();
    let file = file.to_str().unwrap();
    let from_file = format!("@{file}");
    let requests: [(&[&str], &str, u64); 8] = [
        (&[], "GET", 0),
        (&many, "GET", 0),
        (&["--request", "DELETE"], "DELETE", 0),
        (&["--data", "a=b&c=%20"], "POST", 9),
        (&["--request", "PATCH", "--data-binary", &from_file], "PATCH", 2_000_000),
        (&["--header", "Transfer-Encoding: chunked", "--data-binary", &from_file], "POST", 2_000_000),
        (&["--upload-file", file], "PUT", 2_000_000),
        (&["--upload-file", file, "--header", "Expect: 100-continue"], "PUT", 2_000_000),
    ];
    for (arguments, method, length) in requests {
        let asked = |address: SocketAddr, version: &[&str]| {
            Answer::to(address, "/echo?a=%2F&b", &[version, arguments].concat()).asked()
        };
        let direct = asked(server.address, &[]);
        assert_eq!((&direct["method"], &direct["length"]), (&method.into(), &length.into()));
        assert_eq!(asked(gate.traffic, &[]), direct, "{arguments:?}");
        assert_eq!(asked(gate.traffic, &["--http2-prior-knowledge"]), direct, "{arguments:?}, HTTP/2");
    }

    // curl keeps its body until it is told to go on; told by the gate, it need not wait for a second.
    let mut command = curl();
    command.args(["--verbose", "--output", "/dev/null", "--expect100-timeout", "60", "--upload-file", file]);
    command.args(["--header", "Expect: 100-continue"]).arg(format!("http://{}/echo", gate.traffic));
    let printed: Printed = command.output().unwrap().into();
    assert!(printed.stderr.contains("< HTTP/1.1 100 Continue"), "{}", printed.stderr);
    assert!(printed.stderr.contains("< HTTP/1.1 200 OK"), "{}", printed.stderr);
}

#[test]
fn nodejs() {
    assert_application_is_the_same(&Server::node(5000));
}

#[test]
fn uvicorn() {
    assert_application_is_the_same(&Server::uvicorn("echo:asgi"));
}

#[test]
fn gunicorn() {
    let limits = ["--limit-request-fields=300", "--limit-request-field_size=16380"];
    assert_application_is_the_same(&Server::gunicorn(&limits));
}

#[test]
fn waitress() {
    assert_application_is_the_same(&Server::waitress());
}
