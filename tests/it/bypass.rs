//! Who has the token bypasses maintenance: by the header, or by the cookie that a visit sets.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use hyper::Request;
use tempfile::tempdir;

use crate::application::{Application, Client, Message, http2, whole};
use crate::fixture::{Sidecar, eventually};
use crate::running::Place;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const TOKEN: &str = "correct-horse.battery_staple~1";

/// A gate whose token is in a file beside its own.
fn gate(application: &Application, flags: &[&str]) -> Sidecar {
    let directory = Arc::new(tempdir().unwrap());
    fs::write(directory.path().join("token"), format!("{TOKEN}\n")).unwrap();
    Sidecar::sharing(directory, |command| {
        application.behind(command.args(["--bypass-token-file", "token", "--poll", "50ms"]).args(flags));
    })
}

fn close(gate: &Sidecar) {
    fs::write(gate.file(), "Updating").unwrap();
    eventually("it is in maintenance", || gate.is_on(Some("Updating")));
}

#[track_caller]
fn ask(gate: &Sidecar, method: &str, path: &str, lines: &str) -> Message {
    Client::of(gate).ask(format!("{method} {path} HTTP/1.1\r\nHost: shop\r\n{lines}\r\n"))
}

/// The cookie that a visit sets, as a client sends it back.
#[track_caller]
fn cookie(gate: &Sidecar, token: &str) -> String {
    let answer = ask(gate, "GET", &format!("/.pitstop/{token}"), "");
    assert_eq!(answer.status(), 303);
    answer.header("set-cookie").unwrap().split(';').next().unwrap().to_owned()
}

fn outcome(gate: &Sidecar, outcome: &str) -> f64 {
    gate.metric(&format!("pitstop_requests_total{{outcome=\"{outcome}\"}}"))
}

#[test]
fn the_header_lets_in_and_is_not_forwarded() {
    let application = Application::answering(OK);
    let gate = gate(&application, &[]);
    let header = format!("Pitstop-Bypass: {TOKEN}\r\n");
    assert_eq!(ask(&gate, "GET", "/off", &header).status(), 200);
    close(&gate);
    assert_eq!(ask(&gate, "POST", "/on", &format!("{header}Content-Length: 0\r\n")).status(), 200);
    for wrong in
        ["", "Pitstop-Bypass:\r\n", "Pitstop-Bypass: wrong\r\n", "Pitstop-Bypass: correct-horse.battery_staple~\r\n"]
    {
        assert_eq!(ask(&gate, "GET", "/wrong", wrong).status(), 503, "{wrong}");
    }
    http2(&gate, async |mut sender| {
        let request = Request::get("http://shop/http2").header("pitstop-bypass", TOKEN).body(whole("")).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
    });
    let asked = application.asked();
    assert_eq!(asked.iter().map(|asked| asked.message.target()).collect::<Vec<_>>(), ["/off", "/on", "/http2"]);
    for asked in asked {
        assert!(!String::from_utf8_lossy(&asked.message.wire).contains(TOKEN), "{asked:?}");
        assert_eq!(asked.message.header("pitstop-bypass"), None);
    }
    eventually("all are counted", || outcome(&gate, "allowed") == 2.0);
    assert_eq!((outcome(&gate, "forwarded"), outcome(&gate, "refused")), (1.0, 4.0));
}

#[test]
fn a_visit_sets_a_cookie_which_lets_in_and_is_not_forwarded() {
    let application = Application::answering(OK);
    let gate = gate(&application, &[]);
    let visit = format!("/.pitstop/{TOKEN}");
    // Also when off, so that one can prepare for it.
    let answer = ask(&gate, "GET", &visit, "");
    assert_eq!((answer.status(), answer.text().as_str()), (303, ""));
    let set = answer.header("set-cookie").unwrap();
    let (cookie, attributes) = set.split_once("; ").unwrap();
    assert_eq!(attributes, "Max-Age=43200; Path=/; HttpOnly; SameSite=Lax");
    assert!(!cookie.contains(TOKEN));
    for (name, value) in [("location", "/"), ("cache-control", "no-store"), ("referrer-policy", "no-referrer")] {
        assert_eq!(answer.header(name).as_deref(), Some(value));
    }
    let secure = ask(&gate, "GET", &visit, "X-Forwarded-Proto: https\r\n").header("set-cookie").unwrap();
    assert!(secure.ends_with("; Secure"), "{secure}");

    assert_eq!(ask(&gate, "GET", "/off", &format!("Cookie: {cookie}; a=1\r\n")).status(), 200);
    close(&gate);
    assert_eq!(ask(&gate, "GET", &visit, "").status(), 303);
    assert_eq!(ask(&gate, "GET", &format!("{visit}/"), "").status(), 303);
    assert_eq!(
        ask(&gate, "POST", "/on", &format!("Cookie: a=1; {cookie};b=\"2\"\r\nContent-Length: 0\r\n")).status(),
        200
    );
    assert_eq!(ask(&gate, "GET", "/alone", &format!("Cookie: {cookie}\r\n")).status(), 200);
    http2(&gate, async |mut sender| {
        let request = Request::get("http://shop/http2").header("cookie", "a=1").header("cookie", cookie);
        let request = request.header("cookie", "b=2").body(whole("")).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
    });
    let (name, value) = cookie.split_once('=').unwrap();
    let forged = value.replace("v1.1", "v1.2");
    assert_ne!(forged, value);
    for wrong in [format!("{name}={forged}"), format!("{name}={TOKEN}"), format!("x{cookie}"), format!("{name}=")] {
        assert_eq!(ask(&gate, "GET", "/wrong", &format!("Cookie: {wrong}\r\n")).status(), 503, "{wrong}");
    }
    let asked = application.asked();
    let asked: Vec<_> = asked.iter().map(|asked| (asked.message.target(), asked.message.header("cookie"))).collect();
    let some = |cookie: &str| Some(cookie.to_owned());
    let expected =
        [("/off", some("a=1")), ("/on", some("a=1;b=\"2\"")), ("/alone", None), ("/http2", some("a=1; b=2"))];
    assert_eq!(asked, expected);
}

#[test]
fn its_own_paths_never_reach_the_application() {
    let application = Application::answering(OK);
    let gate = gate(&application, &["--allow-path", "/"]);
    for is_on in [false, true] {
        if is_on {
            close(&gate);
        }
        for (method, path) in [
            ("GET", "/.pitstop"),
            ("GET", "/.pitstop/"),
            ("GET", "/.pitstop/wrong"),
            ("GET", &format!("/.pitstop/{TOKEN}//")),
            ("GET", &format!("/.pitstop/{TOKEN}x")),
            ("POST", &format!("/.pitstop/{TOKEN}")),
            ("GET", &format!("http://shop/.pitstop/?{TOKEN}")),
        ] {
            let answer = ask(&gate, method, path, &format!("Pitstop-Bypass: {TOKEN}\r\nContent-Length: 0\r\n"));
            assert_eq!((answer.status(), answer.text().as_str()), (404, "Not Found\n"), "{method} {path}");
            assert_eq!(answer.header("set-cookie"), None);
            // A token that is almost right should not be told, either.
            for (name, value) in [("cache-control", "no-store"), ("referrer-policy", "no-referrer")] {
                assert_eq!(answer.header(name).as_deref(), Some(value), "{method} {path}");
            }
        }
        // What comes after the answer is read.
        let mut client = Client::of(&gate);
        let answer = client.ask("POST /.pitstop/x HTTP/1.1\r\nHost: shop\r\nContent-Length: 10\r\n\r\nhello");
        client.send("world");
        assert_eq!((answer.status(), client.get("/.pitstop/y").status()), (404, 404));
    }
    assert_eq!(application.asked().len(), 0);
    // Without a token they are the application's.
    assert_eq!(ask(&application.gate(), "GET", "/.pitstop/x", "").status(), 200);
    assert_eq!(application.asked()[0].message.target(), "/.pitstop/x");
}

/// A token as the kubelet keeps it in a Secret's volume.
fn secret(volume: &Path, generation: &str, token: &str) {
    let data = volume.join(generation);
    fs::create_dir(&data).unwrap();
    fs::write(data.join("token"), token).unwrap();
    symlink(generation, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
}

#[test]
fn a_new_token_makes_an_end_of_the_old_one_and_of_its_cookies() {
    let application = Application::answering(OK);
    let volume = tempdir().unwrap();
    secret(volume.path(), "..1", TOKEN);
    let file = volume.path().join("token");
    symlink("..data/token", &file).unwrap();
    let gate = Sidecar::with(|command| {
        application.behind(command.arg("--bypass-token-file").arg(&file).args(["--poll", "50ms"]));
    });
    let old = (format!("Pitstop-Bypass: {TOKEN}\r\n"), format!("Cookie: {}\r\n", cookie(&gate, TOKEN)));
    close(&gate);
    let passes = |lines: &str| ask(&gate, "GET", "/", lines).status() == 200;
    assert!(passes(&old.0) && passes(&old.1));
    let other = "another-token-of-27-characters";
    secret(volume.path(), "..2", other);
    eventually("the new token is known", || passes(&format!("Pitstop-Bypass: {other}\r\n")));
    assert!(!passes(&old.0) && !passes(&old.1));
    assert_eq!(ask(&gate, "GET", &format!("/.pitstop/{TOKEN}"), "").status(), 404);
    assert!(passes(&format!("Cookie: {}\r\n", cookie(&gate, other))));
}

#[test]
fn a_file_without_a_token_lets_nobody_in() {
    let application = Application::answering(OK);
    let gate = gate(&application, &[]);
    let file = gate.path().join("token");
    close(&gate);
    let header = format!("Pitstop-Bypass: {TOKEN}\r\n");
    let cookie = format!("Cookie: {}\r\n", cookie(&gate, TOKEN));
    let passes = |lines: &str| ask(&gate, "GET", "/", lines).status() == 200;
    let losses: [(&dyn Fn(), &str); 5] = [
        (&|| fs::write(&file, "").unwrap(), "token is empty: nobody bypasses maintenance"),
        (&|| fs::write(&file, " \n").unwrap(), "token is empty: nobody bypasses maintenance"),
        (&|| fs::write(&file, "short").unwrap(), "token holds a token of 5 characters: let it be random"),
        (&|| fs::remove_file(&file).unwrap(), "token cannot be read: No such file or directory"),
        (
            &|| {
                let _ = fs::remove_file(&file);
                fs::create_dir(&file).unwrap();
            },
            "token cannot be read: it is no regular file",
        ),
    ];
    for (lose, says) in losses {
        assert!(passes(&header) && passes(&cookie));
        lose();
        eventually("nobody gets in", || !passes(&header));
        assert!(!passes(&cookie) && !passes("Pitstop-Bypass:\r\n") && !passes("Pitstop-Bypass: short\r\n"));
        assert_eq!(ask(&gate, "GET", "/.pitstop/", "").status(), 404);
        assert_eq!(ask(&gate, "GET", &format!("/.pitstop/{TOKEN}"), "").status(), 404);
        eventually("it is said", || gate.log().contains(says));
        let _ = fs::remove_dir(&file);
        fs::write(&file, TOKEN).unwrap();
        eventually("the token is known again", || passes(&header));
    }
    eventually("it is said", || gate.log().contains("the bypass token can be read again"));
}

#[test]
fn a_start_without_a_token_is_an_error() {
    let place = Place::new();
    let serve = || place.run(&["serve", "--upstream", "http://127.0.0.1:1", "--bypass-token-file", "token"]);
    let file = place.path().join("token");
    let says = |what: &str| format!("pitstop: --bypass-token-file token {what}\n");
    let length = "let it be random, and of 16 to 1024";
    let expected = says("cannot be read: No such file or directory (os error 2)");
    let printed = serve();
    assert_eq!((printed.code, printed.stderr), (Some(1), expected));
    for (text, what) in [
        (String::new(), "is empty".to_owned()),
        ("\n\n".into(), "is empty".into()),
        ("secret".into(), format!("holds a token of 6 characters: {length}")),
        ("x".repeat(5000), format!("holds a token of 4096 characters: {length}")),
        ("0123456789/abcdef".into(), "holds a token with other characters than letters, digits and - . _ ~".into()),
    ] {
        fs::write(&file, text).unwrap();
        let printed = serve();
        assert_eq!((printed.code, printed.stderr), (Some(1), says(&what)));
    }
    // Nor does one that would block.
    fs::remove_file(&file).unwrap();
    assert!(crate::fixture::program("mkfifo").arg(&file).status().unwrap().success());
    assert_eq!(serve().stderr, says("cannot be read: it is no regular file"));
}

#[test]
fn the_token_is_in_no_log() {
    let application = Application::answering(OK);
    let gate = gate(&application, &["--log", "trace"]);
    close(&gate);
    let cookie = cookie(&gate, TOKEN);
    let header = format!("Pitstop-Bypass: {TOKEN}\r\n");
    assert_eq!(ask(&gate, "GET", "/", &header).status(), 200);
    assert_eq!(ask(&gate, "GET", "/", &format!("Cookie: {cookie}\r\n")).status(), 200);
    assert_eq!(ask(&gate, "POST", &format!("/.pitstop/{TOKEN}"), "").status(), 404);
    http2(&gate, async |mut sender| {
        for (path, status) in [("/".to_owned(), 200), (format!("/.pitstop/{TOKEN}"), 303)] {
            let request =
                Request::get(format!("http://shop{path}")).header("pitstop-bypass", TOKEN).header("cookie", &cookie);
            assert_eq!(sender.send_request(request.body(whole("")).unwrap()).await.unwrap().status(), status);
        }
    });
    fs::write(gate.path().join("token"), format!("{TOKEN}\0")).unwrap();
    eventually("it says that it is wrong", || gate.log().contains("nobody bypasses maintenance"));
    let log = gate.log();
    assert!(log.contains("TRACE") && log.contains("DEBUG"), "it says a lot: {log}");
    let signature = cookie.rsplit('.').next().unwrap();
    for secret in [TOKEN, signature] {
        if let Some(line) = log.lines().find(|line| line.contains(secret)) {
            panic!("{line}");
        }
    }
}
