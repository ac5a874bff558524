//! The admin listener: what kubelets, load balancers and people are told, byte for byte.
//!
//! Where the contract is silent, the answers are those of Kubernetes's own components
//! (`k8s.io/apiserver/pkg/server/healthz`, and Go's `net/url` and `%q` under it).

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::fixture::{Reply, Sidecar, eventually, exchange, program, request};

const PASSED: &str = "[+]ping ok\n[+]maintenance-file ok\n[+]maintenance ok\n[+]shutdown ok\nreadyz check passed\n";
const NOT_FOUND: &str = "404 page not found\n";

/// What `/readyz` says when this check fails for this reason.
fn failed(check: &str, reason: &str) -> String {
    PASSED.replace("passed", "failed").replace(&format!("[+]{check} ok"), &format!("[-]{check} failed: {reason}"))
}

/// The text with a warning before its last line.
fn warned(text: &str, warning: &str) -> String {
    text.replace("readyz check", &format!("warn: {warning}\nreadyz check"))
}

/// Text that is not sniffed and not kept, and nothing else.
#[track_caller]
fn assert_text(reply: &Reply, status: u16, body: &str, what: &str) {
    assert_eq!((reply.status, reply.body.as_str()), (status, body), "{what}");
    assert_headers(reply, "text/plain; charset=utf-8", body.len(), what);
}

#[track_caller]
fn assert_headers(reply: &Reply, content_type: &str, length: usize, what: &str) {
    assert_eq!(reply.header("content-type"), Some(content_type), "{what}");
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{what}");
    assert_eq!(reply.header("cache-control"), Some("no-store"), "{what}");
    assert_eq!(reply.header("content-length"), Some(length.to_string().as_str()), "{what}");
}

#[test]
fn while_all_is_well() {
    let sidecar = Sidecar::start();
    let excluded = |name: &str| PASSED.replace(&format!("{name} ok"), &format!("{name} excluded: ok"));
    let unknown =
        |names: &str| warned(PASSED, &format!("some health checks cannot be excluded: no matches for {names}"));
    let alive = |name: &str| format!("[+]ping ok\n{name} check passed\n");
    let table = [
        ("/readyz", "ok".to_owned()),
        ("/livez", "ok".to_owned()),
        ("/healthz", "ok".to_owned()),
        ("/readyz?", "ok".to_owned()),
        ("http://pod:9503/readyz", "ok".to_owned()),
        // Verbose by whatever value, and only by that name.
        ("/readyz?verbose", PASSED.to_owned()),
        ("/readyz?verbose=", PASSED.to_owned()),
        ("/readyz?verbose=0", PASSED.to_owned()),
        ("/readyz?verbose=false&verbose=1", PASSED.to_owned()),
        ("/readyz?a=b&%76erbose", PASSED.to_owned()),
        ("/readyz?Verbose", "ok".to_owned()),
        ("/readyz?verbose%20", "ok".to_owned()),
        ("/livez?verbose", alive("livez")),
        ("/healthz?verbose", alive("healthz")),
        // Go drops a pair with a semicolon or with a broken escape, and only that pair.
        ("/readyz?verbose;exclude=ping", "ok".to_owned()),
        ("/readyz?verbose=1;a", "ok".to_owned()),
        ("/readyz?verbose&exclude=zz;a", PASSED.to_owned()),
        ("/readyz?verbose=%zz", "ok".to_owned()),
        ("/readyz?verbose&exclude=%4", PASSED.to_owned()),
        // Excluded.
        ("/readyz?exclude=maintenance", "ok".to_owned()),
        ("/readyz?verbose&exclude=maintenance", excluded("maintenance")),
        ("/readyz?exclude=%6daintenance&verbose", excluded("maintenance")),
        ("/readyz?verbose&exclude=ping&exclude=ping", excluded("ping")),
        ("/readyz?verbose&exclude=ping&exclude=shutdown", excluded("ping").replace("shutdown", "shutdown excluded:")),
        // Not to be excluded: sorted, each once, quoted as Go does.
        ("/readyz?exclude=zz", "ok".to_owned()),
        ("/readyz?verbose&exclude=zz&exclude=aa&exclude=zz", unknown(r#""aa","zz""#)),
        ("/readyz?verbose&exclude=", unknown(r#""""#)),
        ("/readyz?verbose&exclude", unknown(r#""""#)),
        ("/readyz?verbose&exclude=Maintenance", unknown(r#""Maintenance""#)),
        ("/readyz?verbose&exclude=ping,shutdown", unknown(r#""ping,shutdown""#)),
        ("/readyz?verbose&exclude=a+b%2Bc", unknown(r#""a b+c""#)),
        ("/readyz?verbose&exclude=%22%5C", unknown(r#""\"\\""#)),
        ("/readyz?verbose&exclude=x%0A[%2B]ping%20ok%00", unknown(r#""x\n[+]ping ok\x00""#)),
        ("/readyz?verbose&exclude=%C3%A9%E2%80%AE%F3%A0%80%81", unknown("\"é\\u202e\\U000e0001\"")),
        ("/readyz?verbose&exclude=é", unknown("\"é\"")),
        ("/readyz?verbose&exclude=%ff", unknown(r#""\xff""#)),
        ("/livez?verbose&exclude=ping", "[+]ping excluded: ok\nlivez check passed\n".to_owned()),
        // One check by its name takes no notice of a query.
        ("/readyz/ping", "ok".to_owned()),
        ("/readyz/maintenance-file", "ok".to_owned()),
        ("/readyz/maintenance", "ok".to_owned()),
        ("/readyz/maintenance?exclude=maintenance&verbose", "ok".to_owned()),
        ("/readyz/shutdown", "ok".to_owned()),
        ("/readyz/%70ing", "ok".to_owned()),
        ("/livez/ping", "ok".to_owned()),
        ("/healthz/ping", "ok".to_owned()),
    ];
    for (path, body) in &table {
        assert_text(&sidecar.admin(path), 200, body, path);
    }
}

#[test]
fn in_maintenance_only_readiness_fails() {
    let sidecar = Sidecar::in_maintenance("Updating the instance\n");
    let failed = failed("maintenance", "Updating the instance");
    let excluded = PASSED.replace("maintenance ok", "maintenance excluded: ok");
    let table = [
        ("/readyz", 503, failed.clone()),
        ("/readyz?verbose", 503, failed.clone()),
        ("/readyz?exclude=ping", 503, failed.replace("ping ok", "ping excluded: ok")),
        (
            "/readyz?exclude=nonsense",
            503,
            warned(&failed, "some health checks cannot be excluded: no matches for \"nonsense\""),
        ),
        ("/readyz?exclude=maintenance", 200, "ok".to_owned()),
        ("/readyz?exclude=maintenance&verbose", 200, excluded),
        ("/readyz/maintenance", 503, "internal server error: Updating the instance\n".to_owned()),
        ("/readyz/maintenance?exclude=maintenance", 503, "internal server error: Updating the instance\n".to_owned()),
        ("/readyz/ping", 200, "ok".to_owned()),
        ("/livez", 200, "ok".to_owned()),
        ("/livez?verbose", 200, "[+]ping ok\nlivez check passed\n".to_owned()),
        ("/healthz", 200, "ok".to_owned()),
        ("/healthz?verbose", 200, "[+]ping ok\nhealthz check passed\n".to_owned()),
    ];
    for (path, status, body) in &table {
        assert_text(&sidecar.admin(path), *status, body, path);
    }
}

#[test]
fn a_reason_is_shown_on_one_line() {
    let long = "x".repeat(16 * 1024);
    let table = [
        ("", "maintenance mode is enabled"),
        (" \n\n", "maintenance mode is enabled"),
        ("\0\u{1b}\u{9b}\u{202e}", "maintenance mode is enabled"),
        ("Up\n[+]maintenance ok\nreadyz check passed\n", "Up [+]maintenance ok readyz check passed"),
        ("a\r\nb\rc\u{b}d\u{85}e\u{2028}f", "a b c d e f"),
        ("\u{1b}[2Jred\u{202e}der\0", "[2Jredder"),
        ("Größer & <b>", "Größer & <b>"),
        (&format!("{long}y"), &long),
    ];
    for (text, reason) in table {
        let sidecar = Sidecar::in_maintenance(text);
        assert_text(&sidecar.admin("/readyz"), 503, &failed("maintenance", reason), text);
        let one = format!("internal server error: {reason}\n");
        assert_text(&sidecar.admin("/readyz/maintenance"), 503, &one, text);
    }
}

#[test]
fn anything_else_is_not_found() {
    let sidecar = Sidecar::start();
    let paths = "
        / /readyz/ /livez/ /healthz/ //readyz /readyz//ping /readyz/ping/ /readyz/unknown /readyz/Ping /readyz/%ff
        /readyz/%zz /readyz/ping%2F /livez/maintenance /livez/shutdown /healthz/maintenance-file /Readyz /readyz;a
        /maintenance/ /metrics/ /favicon.ico /.. /é";
    for path in paths.split_whitespace() {
        assert_text(&sidecar.admin(path), 404, NOT_FOUND, path);
    }
    for method in ["HEAD", "POST", "OPTIONS", "PURGE"] {
        let body = if method == "HEAD" { "" } else { NOT_FOUND };
        let reply = request(sidecar.admin, method, "/", &[]);
        assert_eq!((reply.status, reply.body.as_str()), (404, body), "{method}");
    }
    let reply = request(sidecar.admin, "OPTIONS", "*", &[]);
    assert_text(&reply, 404, NOT_FOUND, "OPTIONS *");
    // Of OPTIONS only (RFC 9112 §3.2.4).
    assert_eq!(sidecar.admin("*").status, 400);
    let reply = exchange(sidecar.admin, b"CONNECT pod:9503 HTTP/1.1\r\nHost: pod:9503\r\nConnection: close\r\n\r\n");
    assert_eq!(reply.status, 501);
}

#[test]
fn it_is_read_only() {
    let sidecar = Sidecar::start();
    for path in ["/readyz", "/livez", "/healthz", "/readyz/ping", "/maintenance", "/metrics"] {
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE"] {
            let what = format!("{method} {path}");
            let reply = request(sidecar.admin, method, path, &[]);
            assert_eq!(reply.header("allow"), Some("GET,HEAD"), "{what}");
            assert_text(&reply, 405, "405 method not allowed\n", &what);
        }
    }
    assert!(sidecar.is_off());
}

#[test]
fn head_is_get_without_the_body() {
    for sidecar in [Sidecar::start(), Sidecar::in_maintenance("Updating the instance")] {
        for path in ["/readyz", "/readyz?verbose", "/readyz/maintenance", "/livez", "/maintenance", "/nothing"] {
            let (mut get, mut head) = (sidecar.admin(path), request(sidecar.admin, "HEAD", path, &[]));
            for reply in [&mut get, &mut head] {
                reply.headers.retain(|(name, _)| name != "date");
            }
            get.body.clear();
            assert_eq!(head, get, "{path}");
        }
    }
}

#[test]
fn every_version_of_http() {
    let sidecar = Sidecar::start();
    for head in ["HTTP/1.0\r\n", "HTTP/1.0\r\nHost: pod\r\n", "HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n"] {
        let reply = exchange(sidecar.admin, format!("GET /readyz?verbose {head}\r\n").as_bytes());
        assert_text(&reply, 200, PASSED, head);
    }
    let output = program("curl")
        .args(["--silent", "--noproxy", "*", "--http2-prior-knowledge", "--include"])
        .arg(format!("http://{}/readyz?verbose", sidecar.admin))
        .output()
        .unwrap();
    assert!(output.stdout.starts_with(b"HTTP/2 200"), "{output:?}");
    assert_text(&Reply::parse(&output.stdout), 200, PASSED, "HTTP/2");
}

#[test]
fn stopping_fails_readiness_at_once() {
    let sidecar = Sidecar::with(|command| _ = command.args(["--shutdown-delay", "10m"]));
    sidecar.signal("TERM");
    eventually("readiness fails", || sidecar.admin("/readyz").status == 503);
    let body = failed("shutdown", "process is shutting down");
    let table = [
        ("/readyz", 503, body.as_str()),
        ("/readyz/shutdown", 503, "internal server error: process is shutting down\n"),
        ("/readyz/maintenance", 200, "ok"),
        ("/readyz?exclude=shutdown", 200, "ok"),
        ("/livez", 200, "ok"),
        ("/healthz", 200, "ok"),
    ];
    for (path, status, body) in table {
        assert_text(&sidecar.admin(path), status, body, path);
    }
    assert_eq!(sidecar.traffic("/", &[]).status, 503);
}

#[test]
fn a_file_that_cannot_be_examined() {
    let sidecar = Sidecar::start();
    symlink("MAINTENANCE", sidecar.file()).unwrap();
    eventually("there is a warning", || sidecar.admin("/readyz?verbose").body.contains("warn: "));
    let warning = "MAINTENANCE cannot be examined: Too many levels of symbolic links (os error 40)";
    assert_text(&sidecar.admin("/readyz"), 200, "ok", "the last known state stays");
    assert_text(&sidecar.admin("/readyz?verbose"), 200, &warned(PASSED, warning), "with a warning");

    // For one that starts now, there is no last known state.
    let unknowing = Sidecar::sharing(sidecar.directory(), |_| {});
    let closed = warned(&failed("maintenance-file", warning), warning);
    assert_text(&unknowing.admin("/readyz"), 503, &closed, "closed");
    assert_text(&unknowing.admin("/livez"), 200, "ok", "but alive");
    let nothing = json!({"enabled": null, "reason": null, "since": null, "until": null, "file": null});
    assert_eq!(unknowing.state(), nothing);
}

#[test]
fn the_state_as_json() {
    let sidecar = Sidecar::start();
    let reply = sidecar.admin("/maintenance");
    let off = "{\"enabled\":false,\"reason\":null,\"since\":null,\"until\":null,\"file\":null}\n";
    assert_eq!((reply.status, reply.body.as_str()), (200, off));
    assert_headers(&reply, "application/json", off.len(), "off");

    let file = sidecar.file();
    let began = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let on = |reason: Option<&str>, until: Option<&str>| json!({"enabled": true, "reason": reason, "since": "2023-11-14T22:13:20Z", "until": until, "file": "MAINTENANCE"});
    let table = [
        ("", on(None, None)),
        ("Updating the \"instance\"\n2 <b> \u{1b} é\n", on(Some("Updating the \"instance\"\n2 <b> \u{1b} é"), None)),
        ("Up\n\nUntil: 2099-01-02T03:04:05+01:00", on(Some("Up"), Some("2099-01-02T02:04:05Z"))),
        ("Until: 2020-01-01T00:00:00Z", on(None, Some("2020-01-01T00:00:00Z"))),
    ];
    for (text, expected) in table {
        fs::write(&file, text).unwrap();
        File::options().append(true).open(&file).unwrap().set_modified(began).unwrap();
        eventually("the state is taken up", || sidecar.state() == expected);
    }

    fs::remove_file(&file).unwrap();
    eventually("it is off again", || sidecar.admin("/maintenance").body == off);
}
