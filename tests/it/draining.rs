//! When maintenance begins with requests under way: those that run may finish, and `maintenance-mode --wait` returns when
//! the application has finished with all of them, and gets no further one.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::Request;
use tempfile::TempDir;

use crate::application::{Application, BodyOf, Client, Message, http2, whole};
use crate::fixture::{DEADLINE, Printed, Sidecar, eventually};
use crate::permits::{enabled, start, wait_in};
use crate::running::done;
use crate::server;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// An application that answers when it is told so: by the sender, which is to be dropped.
struct Slow {
    application: Application,
    let_go: std::sync::mpsc::Sender<()>,
}

impl Slow {
    /// `before` is written when a request has come, and `after` when the application is let go.
    fn new(before: &'static str, after: &'static str) -> Self {
        let (let_go, wait) = channel();
        let wait: Mutex<Receiver<()>> = Mutex::new(wait);
        let application = Application::new(move |visitor| {
            while visitor.request().is_some() {
                visitor.write(before);
                let _ = wait.lock().unwrap().recv();
                visitor.write(after);
            }
        });
        Self { application, let_go }
    }
}

fn outcome(gate: &Sidecar, outcome: &str) -> f64 {
    gate.metric(&format!("pitstop_requests_total{{outcome=\"{outcome}\"}}"))
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n")
}

#[test]
fn wait_returns_when_the_running_request_is_answered() {
    for (before, after) in [
        ("", OK),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", "k"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n", "1\r\nk\r\n0\r\n\r\n"),
    ] {
        let slow = Slow::new(before, after);
        let gate = slow.application.gate();
        let mut client = Client::of(&gate);
        client.send(get("/"));
        eventually("the application has it", || slow.application.asked().len() == 1);
        let mut wait = wait_in(gate.path());
        eventually("the gate is closed", || gate.is_on(Some("Updating")));
        wait.keeps_asking();
        // Others are refused meanwhile.
        let refused = Client::of(&gate).get("/late");
        assert_eq!((refused.status(), refused.text().as_str()), (503, "Updating\n"));
        assert_eq!(gate.metric("pitstop_requests_in_flight"), 1.0);
        drop(slow.let_go);
        let answer = client.answer();
        assert_eq!((answer.status(), answer.text().as_str(), answer.is_complete), (200, "ok", true), "{before:?}");
        assert_eq!(wait.ended(), enabled());
        assert_eq!(slow.application.asked().len(), 1);
        // The connection outlives the switch.
        assert_eq!(client.get("/after").status(), 503);
        assert_eq!(gate.run(&["maintenance-mode", "--disable", "--wait"]).code, Some(0));
        client.send(get("/again"));
        assert_eq!(client.answer().status(), 200);
        assert_eq!((outcome(&gate, "forwarded"), outcome(&gate, "refused"), outcome(&gate, "cut")), (2.0, 2.0, 0.0));
    }
}

#[test]
fn an_upload_that_runs_finishes() {
    let application = Application::answering(OK);
    let gate = application.gate();
    let mut client = Client::of(&gate);
    client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 10\r\n\r\nhello");
    eventually("it has been let in", || gate.metric("pitstop_requests_in_flight") == 1.0);
    let mut wait = wait_in(gate.path());
    eventually("the gate is closed", || gate.is_on(Some("Updating")));
    wait.keeps_asking();
    client.send("world");
    assert_eq!(client.answer().text(), "ok");
    assert_eq!(wait.ended(), enabled());
    assert_eq!(application.asked()[0].message.text(), "helloworld");
}

#[test]
fn what_does_not_finish_is_cut() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let sized = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello";
    for begun in ["", chunked, sized] {
        let slow = Slow::new(begun, "");
        let gate = slow.application.gate_with(&["--drain-timeout", "500ms"]);
        let mut clients = [Client::of(&gate), Client::of(&gate)];
        clients[0].send("GET / HTTP/1.1\r\nHost: shop\r\nAccept: application/json\r\n\r\n");
        clients[1].send("POST / HTTP/1.0\r\nHost: shop\r\nContent-Length: 2\r\n\r\nhi");
        eventually("the application has both", || slow.application.asked().len() == 2);
        let start = Instant::now();
        let mut wait = wait_in(gate.path());
        let [one, other] = &mut clients;
        if begun.is_empty() {
            let answer = one.answer();
            assert_eq!((answer.status(), answer.is_complete), (503, true));
            let problem: serde_json::Value = serde_json::from_str(&answer.text()).unwrap();
            assert_eq!((&problem["status"], &problem["detail"]), (&503.into(), &"Updating".into()));
            assert_eq!(answer.header("retry-after").as_deref(), Some("60"));
            let answer = other.answer();
            assert_eq!((answer.status(), answer.text().as_str(), answer.is_complete), (503, "Updating\n", true));
        } else {
            for client in [one, other] {
                let answer = client.answer();
                assert!(answer.status() == 200 && !answer.is_complete, "{answer:?}");
            }
        }
        assert!(start.elapsed() >= Duration::from_millis(500));
        eventually("both are counted", || outcome(&gate, "cut") == 2.0);
        let said = "2 requests still run after 500ms of maintenance: they are aborted";
        gate.logs(said);
        assert_eq!(gate.log().matches(said).count(), 1, "{}", gate.log());
        // The clients have left. The application has not finished.
        assert_eq!(gate.metric("pitstop_requests_in_flight"), 2.0);
        wait.keeps_asking();
        drop(slow.let_go);
        assert_eq!(wait.ended(), enabled());
        assert_eq!((outcome(&gate, "forwarded"), outcome(&gate, "failed")), (0.0, 0.0));
    }
}

#[test]
fn what_never_pauses_is_cut_too() {
    let application = Application::new(|visitor| {
        visitor.request();
        visitor.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let chunk = format!("{:x}\r\n{}\r\n", 100_000, "x".repeat(100_000));
        while visitor.write(&chunk) {}
    });
    let gate = application.gate_with(&["--drain-timeout", "300ms"]);
    let mut client = Client::of(&gate);
    client.send(get("/"));
    assert_eq!(Message::head(&mut client.0).unwrap().status(), 200);
    fs::write(gate.file(), "Updating").unwrap();
    // Reads as fast as it can, until it is cut.
    let deadline = Instant::now() + DEADLINE;
    while matches!(client.0.read(&mut [0; 65536]), Ok(1..)) {
        assert!(Instant::now() < deadline, "it goes on");
    }
    eventually("it is counted", || outcome(&gate, "cut") == 1.0);
}

/// An application that answers with more than fits into all that is between it and a client.
fn endless() -> Application {
    Application::new(|visitor| {
        while visitor.request().is_some() {
            visitor.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            let chunk = format!("{:x}\r\n{}\r\n", 100_000, "x".repeat(100_000));
            while visitor.write(&chunk) {}
        }
    })
}

#[test]
fn a_client_that_does_not_read_is_cut_too() {
    for request in [get("/"), "GET / HTTP/1.0\r\nHost: shop\r\n\r\n".to_owned()] {
        let application = endless();
        let gate = application.gate_with(&["--drain-timeout", "300ms"]);
        let mut client = Client::of(&gate);
        client.send(request);
        assert_eq!(Message::head(&mut client.0).unwrap().status(), 200);
        assert_eq!(gate.run(&["maintenance-mode", "Updating", "--wait"]).code, Some(0), "{}", gate.log());
        eventually("it is counted", || outcome(&gate, "cut") == 1.0);
        // What has come already can be read, and it is seen not to be whole.
        let mut rest = Message { headers: vec![("transfer-encoding".into(), "chunked".into())], ..Message::default() };
        rest.first = "HTTP/1.1 200 OK".into();
        rest.read_body(&mut client.0, BodyOf::Answer);
        assert!(!rest.is_complete);
    }
}

#[test]
fn so_is_a_stream_that_is_not_read() {
    let application = Application::new(|visitor| {
        while let Some(request) = visitor.request() {
            if request.target() == "/" {
                visitor.write(OK);
                continue;
            }
            visitor.write("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
            while visitor.write([b'x'; 100_000]) {}
        }
    });
    let gate = application.gate_with(&["--drain-timeout", "300ms"]);
    http2(&gate, async |mut sender| {
        let ask = |path: &str| Request::get(format!("http://shop{path}")).body(whole("")).unwrap();
        let unread = sender.send_request(ask("/endless")).await.unwrap();
        assert_eq!(unread.status(), 200);
        let file = gate.file();
        let wait = tokio::task::spawn_blocking({
            let mut wait = wait_in(gate.path());
            move || wait.ended()
        });
        assert_eq!(wait.await.unwrap(), enabled());
        assert_eq!(outcome(&gate, "cut"), 1.0);
        assert!(unread.into_body().collect().await.is_err());
        // The connection serves on, also after the end.
        assert_eq!(sender.send_request(ask("/")).await.unwrap().status(), 503);
        fs::remove_file(file).unwrap();
        eventually("it is open", || gate.is_off());
        assert_eq!(sender.send_request(ask("/")).await.unwrap().status(), 200);
    });
}

#[test]
fn who_does_not_read_for_long_is_left() {
    let application = endless();
    let gate = application.gate_with(&["--idle-timeout", "1s"]);
    let mut client = Client::of(&gate);
    client.send(get("/"));
    assert_eq!(Message::head(&mut client.0).unwrap().status(), 200);
    eventually("the application is let go", || gate.metric("pitstop_requests_in_flight") == 0.0);
    http2(&gate, async |mut sender| {
        let request = Request::get("http://shop/").body(whole("")).unwrap();
        let unread = sender.send_request(request).await.unwrap();
        assert_eq!(unread.status(), 200);
        assert_eq!(gate.metric("pitstop_requests_in_flight"), 1.0);
        while gate.metric("pitstop_requests_in_flight") != 0.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(unread.into_body().collect().await.is_err());
    });
    assert_eq!((outcome(&gate, "cut"), outcome(&gate, "forwarded")), (0.0, 2.0));
}

#[test]
fn over_http_2_streams_finish_or_are_cut_one_by_one() {
    let (let_go, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let application = Application::new(move |visitor| {
        while let Some(request) = visitor.request() {
            match request.target() {
                "/slow" => _ = wait.lock().unwrap().recv(),
                "/begun" => {
                    visitor.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
                    visitor.bytes(1);
                    return;
                }
                _ => {}
            }
            visitor.write(OK);
        }
    });
    let gate = application.gate_with(&["--drain-timeout", "500ms"]);
    http2(&gate, async |sender| {
        let ask = |path: &str| {
            let mut sender = sender.clone();
            let request = Request::get(format!("http://shop{path}")).body(whole("")).unwrap();
            tokio::spawn(async move {
                let (head, body) = sender.send_request(request).await.unwrap().into_parts();
                (head.status.as_u16(), body.collect().await.map(http_body_util::Collected::to_bytes))
            })
        };
        let (slow, begun) = (ask("/slow"), ask("/begun"));
        let text =
            |answer: (u16, hyper::Result<bytes::Bytes>)| (answer.0, answer.1.map_or("cut".into(), |bytes| bytes));
        assert_eq!(text(ask("/").await.unwrap()), (200, "ok".into()));
        while application.asked().len() < 3 {
            tokio::task::yield_now().await;
        }
        fs::write(gate.file(), "Updating").unwrap();
        assert_eq!(text(slow.await.unwrap()), (503, "Updating\n".into()));
        assert_eq!(text(begun.await.unwrap()), (200, "cut".into()));
        // The connection serves on.
        assert_eq!(text(ask("/").await.unwrap()), (503, "Updating\n".into()));
    });
    drop(let_go);
    assert_eq!((outcome(&gate, "cut"), outcome(&gate, "forwarded"), outcome(&gate, "refused")), (2.0, 1.0, 1.0));
}

#[test]
fn maintenance_that_ends_in_time_cuts_nobody() {
    let slow = Slow::new("", OK);
    let gate = slow.application.gate_with(&["--drain-timeout", "1s"]);
    let mut client = Client::of(&gate);
    client.send(get("/"));
    eventually("the application has it", || slow.application.asked().len() == 1);
    for _ in 0..5 {
        // Five times a part of the time, which begins anew each time.
        fs::write(gate.file(), "Updating").unwrap();
        eventually("it is closed", || gate.is_on(Some("Updating")));
        thread::sleep(Duration::from_millis(300));
        fs::remove_file(gate.file()).unwrap();
        eventually("it is open", || gate.is_off());
    }
    drop(slow.let_go);
    assert_eq!(client.answer().text(), "ok");
    assert_eq!(outcome(&gate, "cut"), 0.0);
}

#[test]
fn on_sigterm_requests_that_run_finish() {
    let slow = Slow::new("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", "k");
    let mut gate = slow.application.gate_with(&["--shutdown-delay", "0"]);
    let mut client = Client::of(&gate);
    client.send(get("/"));
    let mut answer = Message::head(&mut client.0).unwrap();
    gate.signal("TERM");
    eventually("it drains", || gate.log().contains("accepting no more connections"));
    drop(slow.let_go);
    answer.read_body(&mut client.0, BodyOf::Answer);
    assert_eq!((answer.text().as_str(), answer.is_complete), ("ok", true));
    client.assert_closed();
    assert_eq!(gate.ended(), Some(0));
}

#[test]
fn on_sigterm_work_that_nobody_waits_for_finishes_as_well() {
    let slow = Slow::new("", OK);
    let mut gate = slow.application.gate_with(&["--shutdown-delay", "0"]);
    // A client of HTTP/2, since that it leaves is seen at once.
    http2(&gate, async |mut sender| {
        tokio::spawn(sender.send_request(Request::get("http://shop/").body(whole("")).unwrap()));
        while slow.application.asked().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    gate.signal("TERM");
    eventually("it drains", || gate.log().contains("accepting no more connections"));
    let mut wait = wait_in(gate.path());
    wait.keeps_asking();
    drop(slow.let_go);
    assert_eq!(wait.ended(), enabled());
    assert_eq!(gate.ended(), Some(0));
}

#[test]
fn a_request_that_has_waited_over_a_cut_hears_of_the_next() {
    let slow = Slow::new("", OK);
    // No other timer wakes its connection.
    let flags = ["--hold", "1h", "--drain-timeout", "300ms", "--header-timeout", "1h", "--idle-timeout", "1h"];
    let gate = slow.application.gate_with(&flags);
    let switch = |on: bool| match on {
        true => {
            fs::write(gate.file(), "Updating").unwrap();
            eventually("it is closed", || gate.is_on(Some("Updating")));
        }
        false => fs::remove_file(gate.file()).unwrap(),
    };
    // One that is cut tells when that is.
    let mut first = Client::of(&gate);
    first.send(get("/"));
    eventually("the application has it", || slow.application.asked().len() == 1);
    switch(true);
    let mut held = Client::of(&gate);
    held.send(get("/"));
    eventually("it is held", || gate.state()["held"] == 1);
    assert_eq!(first.answer().status(), 503);
    switch(false);
    eventually("the application has the other", || slow.application.asked().len() == 2);
    switch(true);
    assert_eq!(held.answer().status(), 503);
    assert_eq!(outcome(&gate, "cut"), 2.0);
    drop(slow.let_go);
}

#[test]
fn nor_does_a_cut_that_is_past_end_an_answer() {
    const LENGTH: usize = 5_000_000;
    let application = Application::new(|visitor| {
        while let Some(request) = visitor.request() {
            if request.target() == "/cut" {
                visitor.bytes(1);
                return;
            }
            visitor.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
            visitor.write(vec![b'x'; LENGTH]);
        }
    });
    let gate = application.gate_with(&["--hold", "1h", "--drain-timeout", "300ms"]);
    let mut first = Client::of(&gate);
    first.send(get("/cut"));
    eventually("the application has it", || application.asked().len() == 1);
    fs::write(gate.file(), "Updating").unwrap();
    eventually("it is closed", || gate.is_on(Some("Updating")));
    http2(&gate, async |mut sender| {
        let request = Request::get("http://shop/").body(whole("")).unwrap();
        let held = tokio::spawn(sender.send_request(request));
        while gate.state()["held"] != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // By then it was cut, had it not been held.
        tokio::task::spawn_blocking(move || assert_eq!(first.answer().status(), 503)).await.unwrap();
        fs::remove_file(gate.file()).unwrap();
        let answer = held.await.unwrap().unwrap();
        // It is more than the client takes unasked.
        eventually("the application has it", || application.asked().len() == 2);
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), LENGTH);
    });
}

// A real application server.

/// waitress, which is what pserve serves with, with an application that takes its time.
struct Waitress {
    child: Child,
    directory: TempDir,
    gate: Sidecar,
}

/// `/slow` writes `began`, waits until there is a file `go`, and writes `ended`; a body is read before that.
const SLOW: &str = "
import os, sys, time, waitress
directory = sys.argv[1]
def there(name):
    return os.path.join(directory, name)
def application(environ, start_response):
    read = 0
    while part := environ['wsgi.input'].read(65536):
        read += len(part)
    if environ['PATH_INFO'] == '/slow':
        open(there('began'), 'w').write(str(read))
        while not os.path.exists(there('go')):
            time.sleep(0.005)
        open(there('ended'), 'w').close()
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [b'read ', str(read).encode()]
server = waitress.create_server(application, host='127.0.0.1', port=0)
open(there('port.tmp'), 'w').write(str(server.effective_port))
os.rename(there('port.tmp'), there('port'))
server.run()
";

impl Waitress {
    fn new() -> Self {
        let python = server::fietsboek().join("bin/python");
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(python);
        command.args(["-c", SLOW]).arg(directory.path()).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().unwrap();
        let port = directory.path().join("port");
        eventually("waitress listens", || port.exists());
        let upstream = format!("http://127.0.0.1:{}", fs::read_to_string(port).unwrap());
        let gate = Sidecar::with(|command| _ = command.args(["--upstream", &upstream]));
        Self { child, directory, gate }
    }

    fn has(&self, name: &str) -> bool {
        self.directory.path().join(name).exists()
    }

    fn let_go(&self) {
        fs::write(self.directory.path().join("go"), "").unwrap();
    }
}

impl Drop for Waitress {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_client_that_aborts_does_not_end_the_work_that_it_began() {
    let post = "POST /slow HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nhello";
    for is_reset in [false, true] {
        let waitress = Waitress::new();
        let gate = &waitress.gate;
        assert_eq!(Client::of(gate).get("/").text(), "read 0");
        let mut client = Client::of(gate);
        client.send(post);
        eventually("the application is at work", || waitress.has("began"));
        if is_reset {
            socket2::SockRef::from(client.0.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(client);
        let mut wait = wait_in(gate.path());
        eventually("the gate is closed", || gate.is_on(Some("Updating")));
        wait.keeps_asking();
        assert_eq!(gate.metric("pitstop_requests_in_flight"), 1.0);
        assert!(!waitress.has("ended"));
        waitress.let_go();
        assert_eq!(wait.ended(), enabled());
        assert!(waitress.has("ended"), "reset: {is_reset}");
        assert_eq!(gate.metric("pitstop_requests_in_flight"), 0.0);
    }
}

#[test]
fn nor_does_one_that_is_cut() {
    let waitress = Waitress::new();
    let directory = waitress.gate.directory();
    let upstream = format!("http://127.0.0.1:{}", fs::read_to_string(waitress.directory.path().join("port")).unwrap());
    let gate =
        Sidecar::sharing(directory, |command| _ = command.args(["--upstream", &upstream, "--drain-timeout", "300ms"]));
    let mut client = Client::of(&gate);
    client.send("POST /slow HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nhello");
    eventually("the application is at work", || waitress.has("began"));
    let mut wait = wait_in(gate.path());
    let answer = client.answer();
    assert_eq!((answer.status(), answer.text().as_str()), (503, "Updating\n"));
    wait.keeps_asking();
    waitress.let_go();
    assert_eq!(wait.ended(), enabled());
    assert!(waitress.has("ended"));
}

#[test]
fn a_client_that_aborts_its_upload_is_over_when_the_application_has_closed() {
    let waitress = Waitress::new();
    let gate = &waitress.gate;
    for framing in ["Content-Length: 100000", "Transfer-Encoding: chunked"] {
        let mut client = Client::of(gate);
        client.send(format!("POST /slow HTTP/1.1\r\nHost: shop\r\n{framing}\r\n\r\n5\r\nhello\r\n"));
        eventually("it has been let in", || gate.metric("pitstop_requests_in_flight") == 1.0);
        drop(client);
        eventually("it is over", || gate.metric("pitstop_requests_in_flight") == 0.0);
    }
    // waitress calls the application when it has all of a request: it never did.
    assert!(!waitress.has("began"));
    assert_eq!(wait_in(gate.path()).ended(), enabled());
}

#[test]
fn past_its_limit_wait_says_that_the_gate_is_busy() {
    let slow = Slow::new("", OK);
    let gate = slow.application.gate();
    let mut client = Client::of(&gate);
    client.send(get("/"));
    eventually("the application has it", || slow.application.asked().len() == 1);
    let printed = start(gate.path(), &["maintenance-mode", "Updating", "--wait=300ms"]).ended();
    assert_eq!((printed.code, printed.stderr.contains("serve")), (Some(1), true), "{printed:?}");
    drop(slow.let_go);
    assert_eq!(client.answer().text(), "ok");
}

// The promise.

#[test]
fn once_wait_has_returned_nothing_reaches_the_application() {
    let closed = Arc::new(AtomicBool::new(false));
    let (reached, intruders) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let application = {
        let (closed, reached, intruders) = (closed.clone(), reached.clone(), intruders.clone());
        Application::new(move |visitor| {
            // Nothing is recorded: there are many.
            while visitor.unrecorded().is_some() {
                reached.fetch_add(1, SeqCst);
                intruders.fetch_add(usize::from(closed.load(SeqCst)), SeqCst);
                visitor.write(OK);
                // Until it has answered, it is at work.
                intruders.fetch_add(usize::from(closed.load(SeqCst)), SeqCst);
            }
        })
    };
    let one = application.gate();
    let other = Sidecar::sharing(one.directory(), |command| application.behind(command.args(["--threads", "2"])));
    let (enough, answers) = (&AtomicBool::new(false), &<[AtomicUsize; 2]>::default());
    let count = &|status: u16, text: &str| match (status, text) {
        (200, "ok") => _ = answers[0].fetch_add(1, SeqCst),
        (503, "Updating\n") => _ = answers[1].fetch_add(1, SeqCst),
        other => panic!("neither the application's answer nor the reason: {other:?}"),
    };
    thread::scope(|scope| {
        for gate in [&one, &other] {
            // One request after the other; ten at a time; and a connection each.
            for pipelined in [1, 10] {
                scope.spawn(move || {
                    let mut client = Client::of(gate);
                    while !enough.load(SeqCst) {
                        client.send(get("/").repeat(pipelined));
                        for _ in 0..pipelined {
                            let answer = client.answer();
                            assert!(answer.is_complete);
                            count(answer.status(), &answer.text());
                        }
                    }
                });
            }
            scope.spawn(move || {
                while !enough.load(SeqCst) {
                    let answer = Client::of(gate).ask("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 3\r\n\r\na=b");
                    assert!(answer.is_complete);
                    count(answer.status(), &answer.text());
                }
            });
            // And four streams at a time.
            scope.spawn(move || {
                http2(gate, async |sender| {
                    while !enough.load(SeqCst) {
                        let streams = [(); 4].map(|()| {
                            let mut sender = sender.clone();
                            tokio::spawn(async move {
                                let request = Request::get("http://shop/").body(whole("")).unwrap();
                                let (head, body) = sender.send_request(request).await.unwrap().into_parts();
                                (head.status.as_u16(), body.collect().await.unwrap().to_bytes())
                            })
                        });
                        for stream in streams {
                            let (status, body) = stream.await.unwrap();
                            count(status, std::str::from_utf8(&body).unwrap());
                        }
                    }
                });
            });
        }
        // Whatever fails here, the clients have to end.
        let _end = OnDrop(|| enough.store(true, SeqCst));
        let switch = |arguments: &[&str]| -> Printed { one.run(&[&["maintenance-mode"], arguments].concat()) };
        for number in 0..SWITCHES {
            let served = reached.load(SeqCst);
            eventually("requests reach the application", || reached.load(SeqCst) > served);
            assert_eq!(switch(&["Updating", "--wait"]), enabled());
            closed.store(true, SeqCst);
            let (reached_before, refused) = (reached.load(SeqCst), answers[1].load(SeqCst));
            eventually("clients are refused", || answers[1].load(SeqCst) >= refused + 50);
            assert_eq!(intruders.load(SeqCst), 0, "switch {number}");
            assert_eq!(reached.load(SeqCst), reached_before, "switch {number}");
            closed.store(false, SeqCst);
            assert_eq!(switch(&["--disable", "--wait"]), done("Maintenance mode is disabled\n"));
        }
    });
    assert_eq!(intruders.load(SeqCst), 0);
    // What the gates have counted is what the clients and the application have seen.
    let sum = |name: &str| outcome(&one, name) + outcome(&other, name);
    let [forwarded, refused] = [0, 1].map(|index| answers[index].load(SeqCst) as f64);
    assert_eq!(reached.load(SeqCst) as f64, forwarded);
    eventually("all are counted", || sum("forwarded") == forwarded);
    assert_eq!((sum("refused"), sum("failed"), sum("cut")), (refused, 0.0, 0.0));
}

const SWITCHES: usize = 200;

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
