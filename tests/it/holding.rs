//! Requests that wait for maintenance to end: a quick restart fails nobody, and no longer one makes anybody wait for long.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::{Body, Frame};
use hyper::client::conn::http2 as client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::tempdir;

use crate::application::{Application, Client, http2, whole};
use crate::fixture::{Sidecar, eventually};
use crate::permits::{enabled, wait_in};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &str = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";

fn outcome(gate: &Sidecar, outcome: &str) -> f64 {
    gate.metric(&format!("pitstop_requests_total{{outcome=\"{outcome}\"}}"))
}

fn close(gate: &Sidecar) {
    fs::write(gate.file(), "Updating").unwrap();
    eventually("it is in maintenance", || gate.is_on(Some("Updating")));
}

fn open(gate: &Sidecar) {
    fs::remove_file(gate.file()).unwrap();
}

#[track_caller]
fn holds(gate: &Sidecar, number: u64) {
    eventually(&format!("{number} are held"), || gate.state()["held"] == number);
    assert_eq!(gate.metric("pitstop_requests_held"), number as f64);
}

/// Ends maintenance and begins it anew. Returns a client that waits then.
#[track_caller]
fn held_anew(gate: &Sidecar) -> Client {
    open(gate);
    eventually("it is over", || gate.is_off());
    close(gate);
    let mut client = Client::of(gate);
    client.send(GET);
    holds(gate, 1);
    client
}

#[test]
fn who_comes_in_time_is_answered_when_it_is_over() {
    let application = Application::answering(OK);
    let gate = application.gate_with(&["--hold", "1h"]);
    holds(&gate, 0);
    close(&gate);
    let mut clients = [Client::of(&gate), Client::of(&gate)];
    clients[0].send("POST /1 HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nhello");
    clients[1].send(GET);
    holds(&gate, 2);
    http2(&gate, async |mut sender| {
        let answer = sender.send_request(Request::get("http://shop/2").body(whole("")).unwrap());
        let (answer, ()) = tokio::join!(answer, async {
            while gate.state()["held"] != 3 {
                tokio::task::yield_now().await;
            }
            // They hold no permit.
            assert_eq!(wait_in(gate.path()).ended(), enabled());
            assert_eq!((gate.state()["in_flight"].as_i64(), application.asked().len()), (Some(0), 0));
            open(&gate);
        });
        assert_eq!(answer.unwrap().status(), 200);
    });
    for mut client in clients {
        assert_eq!(client.answer().text(), "ok");
        assert_eq!(client.ask(GET).status(), 200, "and its connection goes on");
    }
    holds(&gate, 0);
    eventually("all are counted", || outcome(&gate, "forwarded") == 5.0);
    assert_eq!((outcome(&gate, "refused"), outcome(&gate, "allowed"), application.asked().len()), (0.0, 0.0, 5));
    let first = application.asked().into_iter().find(|asked| asked.message.target() == "/1").unwrap();
    assert_eq!(first.message.text(), "hello");
}

#[test]
fn only_the_first_moments_are_waited_out() {
    let application = Application::answering(OK);
    let gate = application.gate_with(&["--hold", "3s"]);
    let began = Instant::now();
    fs::write(gate.file(), "Updating").unwrap();
    eventually("it is in maintenance", || gate.is_on(Some("Updating")));
    let refused = Client::of(&gate).ask(GET);
    assert_eq!((refused.status(), refused.text().as_str()), (503, "Updating\n"));
    assert_eq!(refused.header("retry-after").as_deref(), Some("60"));
    assert!(began.elapsed() >= Duration::from_secs(3));
    // Nobody waits any more, not even for as long again.
    let began = Instant::now();
    assert_eq!(Client::of(&gate).ask(GET).status(), 503);
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    // Until it begins anew.
    let mut client = held_anew(&gate);
    open(&gate);
    assert_eq!(client.answer().status(), 200);
    assert_eq!((outcome(&gate, "refused"), application.asked().len()), (2.0, 1));
}

#[test]
fn neither_another_reason_nor_another_file_begins_it_anew() {
    let application = Application::answering(OK);
    let gate = Sidecar::with(|command| {
        application.behind(command.args(["--hold", "2s", "--file", "MAINTENANCE:OTHER", "--poll", "50ms"]));
    });
    let (over, file, other) = (AtomicBool::new(false), gate.file(), gate.path().join("OTHER"));
    fs::write(gate.file(), "Updating").unwrap();
    eventually("it is in maintenance", || gate.is_on(Some("Updating")));
    thread::scope(|scope| {
        let mut client = Client::of(&gate);
        client.send(GET);
        let over = &over;
        scope.spawn(move || {
            assert_eq!(client.answer().status(), 503);
            // The next ones would wait as long again, each, and all of them longer than this waits for them.
            for _ in 0..20 {
                assert_eq!(client.ask(GET).status(), 503);
            }
            over.store(true, Relaxed);
        });
        let mut number = 0;
        eventually("it has been refused", || {
            number += 1;
            let reason = format!("Updating {number}");
            fs::write(if number % 2 == 0 { &file } else { &other }, &reason).unwrap();
            thread::sleep(Duration::from_millis(50));
            over.load(Relaxed)
        });
        assert!(number > 10, "{number}");
    });
}

#[test]
fn who_is_held_when_it_begins_again_is_judged_anew() {
    let application = Application::answering(OK);
    let gate = application.gate_with(&["--hold", "1h"]);
    close(&gate);
    let mut client = Client::of(&gate);
    client.send(GET);
    holds(&gate, 1);
    for _ in 0..20 {
        // Over for an instant, that it may or may not notice.
        open(&gate);
        close(&gate);
    }
    open(&gate);
    assert_eq!(client.answer().status(), 200);
    assert_eq!(application.asked().len(), 1);
    holds(&gate, 0);
}

#[test]
fn so_many_may_wait_and_the_next_one_is_refused_at_once() {
    let application = Application::answering(OK);
    let gate = application.gate_with(&["--hold", "1h", "--hold-limit", "2"]);
    close(&gate);
    let mut clients = [Client::of(&gate), Client::of(&gate)];
    for (number, client) in (1..).zip(&mut clients) {
        client.send(GET);
        holds(&gate, number);
    }
    let mut third = Client::of(&gate);
    assert_eq!((third.ask(GET).text().as_str(), third.ask(GET).status()), ("Updating\n", 503));
    open(&gate);
    for mut client in clients {
        assert_eq!(client.answer().status(), 200);
    }
    assert_eq!((outcome(&gate, "refused"), application.asked().len()), (2.0, 2));
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    let application = Application::answering(OK);
    let gate = application.gate_with(&["--hold", "1h", "--hold-limit", "1"]);
    close(&gate);
    // When the thread that serves clients has all that it needs.
    assert_eq!(Client::of(&gate).ask("none\r\n\r\n").status(), 400);
    let files = || gate.metric("process_open_fds");
    let before = files();
    let linger = |client: &Client| socket2::SockRef::from(client.0.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
    let post = "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 10\r\n\r\nhello";
    let pipelined = [GET, GET].concat();
    for (request, is_reset) in [(GET, false), (GET, true), (post, false), (post, true), (&pipelined, false)] {
        let mut client = Client::of(&gate);
        client.send(request);
        holds(&gate, 1);
        if is_reset {
            linger(&client);
        }
        drop(client);
        holds(&gate, 0);
    }
    // Who has only closed its direction cannot be told from who has left. It is answered at least.
    let mut client = Client::of(&gate);
    client.send(GET);
    holds(&gate, 1);
    client.0.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.answer().text(), "Updating\n");
    client.assert_closed();
    holds(&gate, 0);
    // A request that its client gives up, and a connection that it closes.
    for closes in [false, true] {
        http2(&gate, async |mut sender| {
            let request = || Request::get("http://shop/2").body(whole("")).unwrap();
            let answer = tokio::spawn(sender.send_request(request()));
            while gate.state()["held"] != 1 {
                tokio::task::yield_now().await;
            }
            if !closes {
                answer.abort();
                while gate.state()["held"] != 0 {
                    tokio::task::yield_now().await;
                }
            }
        });
        holds(&gate, 0);
    }
    assert_eq!(application.asked().len(), 0);
    // Nothing is left of them.
    eventually("all files are closed", || files() <= before);
    let mut last = Client::of(&gate);
    last.send(GET);
    holds(&gate, 1);
    open(&gate);
    assert_eq!(last.answer().status(), 200);
}

#[test]
fn on_sigterm_nobody_waits_any_more() {
    let application = Application::answering(OK);
    let mut gate = application.gate_with(&["--hold", "1h", "--shutdown-delay", "1h"]);
    close(&gate);
    let mut client = Client::of(&gate);
    client.send(GET);
    holds(&gate, 1);
    gate.signal("TERM");
    assert_eq!(client.answer().text(), "Updating\n");
    assert_eq!(client.ask(GET).status(), 503, "nor does it begin to");
    holds(&gate, 0);
    open(&gate);
    eventually("it is over", || gate.is_off());
    assert_eq!(client.ask(GET).status(), 200, "it serves for as long as it was told to");
    gate.signal("TERM");
    gate.ended();
}

#[test]
fn maintenance_that_was_on_before_is_not_waited_for() {
    let application = Application::answering(OK);
    let directory = Arc::new(tempdir().unwrap());
    fs::write(directory.path().join("MAINTENANCE"), "Updating").unwrap();
    let gate = Sidecar::sharing(directory, |command| application.behind(command.args(["--hold", "1h"])));
    assert_eq!(Client::of(&gate).ask(GET).text(), "Updating\n");
    held_anew(&gate);
}

#[test]
fn a_body_is_not_asked_for_while_its_request_waits() {
    let application = Application::answering(OK);
    let gate = application.gate_with(&["--hold", "1h"]);
    close(&gate);
    let mut client = Client::of(&gate);
    client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    holds(&gate, 1);
    client.0.get_ref().set_nonblocking(true).unwrap();
    let nothing = client.0.get_ref().peek(&mut [0]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    client.0.get_ref().set_nonblocking(false).unwrap();
    open(&gate);
    let mut first = crate::application::Message::head(&mut client.0).unwrap();
    assert_eq!(first.status(), 100);
    client.send("hello");
    first = client.answer();
    assert_eq!(first.status(), 200);
    assert_eq!(application.asked()[0].message.text(), "hello");
}

const KIB: usize = 1024;

/// A body that counts how much of itself has been taken.
struct Counted(VecDeque<Bytes>, Arc<AtomicUsize>);

impl Body for Counted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = self.0.pop_front();
        self.1.fetch_add(part.as_ref().map_or(0, Bytes::len), Relaxed);
        Poll::Ready(part.map(|part| Ok(Frame::data(part))))
    }
}

#[test]
fn nor_is_it_read_over_http_2() {
    let application = Application::answering(OK);
    let gate = application.gate_with(&["--hold", "1h"]);
    close(&gate);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(gate.traffic).await.unwrap();
        let (mut sender, connection) = client::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let taken = Arc::new(AtomicUsize::new(0));
        let body = Counted(vec![Bytes::from(vec![b'x'; 16 * KIB]); 1024].into(), taken.clone());
        let answer = tokio::spawn(sender.send_request(Request::post("http://shop/").body(body).unwrap()));
        // As much as a stream may send unasked, and then no more, however often one looks.
        let full = || taken.load(Relaxed) >= 256 * KIB;
        for looks in 0..20 {
            while gate.state()["held"] != 1 || !full() {
                tokio::task::yield_now().await;
            }
            tokio::task::yield_now().await;
            assert!(taken.load(Relaxed) < 1024 * KIB, "{looks}");
        }
        open(&gate);
        let answer = answer.await.unwrap().unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
    });
    assert_eq!(application.asked()[0].message.body.len(), 16 * 1024 * KIB);
}

/// Asks again and again, and returns how often, and the longest time that one answer took.
fn hammer(gate: &Sidecar, post: bool, stop: &AtomicBool) -> (usize, Duration) {
    let mut client = Client::of(gate);
    let (mut number, mut longest) = (0, Duration::ZERO);
    while !stop.load(Relaxed) {
        let began = Instant::now();
        let answer = match post {
            true => client.ask("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 5\r\n\r\nhello"),
            false => client.ask(GET),
        };
        assert_eq!((answer.status(), answer.text().as_str(), answer.is_complete), (200, "ok", true));
        number += 1;
        longest = longest.max(began.elapsed());
    }
    (number, longest)
}

#[test]
fn a_quick_restart_under_load_fails_nobody() {
    let application = Application::answering(OK);
    let address = application.address;
    let gate = application.gate_with(&["--hold", "5s"]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (gate, stop) = (&gate, &stop);
        let mut clients: Vec<_> =
            (0..8).map(|number| scope.spawn(move || hammer(gate, number % 2 == 0, stop))).collect();
        clients.push(scope.spawn(move || {
            http2(gate, async |sender| {
                let streams = (0..8).map(|_| {
                    let mut sender = sender.clone();
                    async move {
                        let (mut number, mut longest) = (0, Duration::ZERO);
                        while !stop.load(Relaxed) {
                            let began = Instant::now();
                            let request = Request::post("http://shop/").body(whole("hello")).unwrap();
                            let (head, body) = sender.send_request(request).await.unwrap().into_parts();
                            assert_eq!(
                                (head.status.as_u16(), body.collect().await.unwrap().to_bytes()),
                                (200, "ok".into())
                            );
                            number += 1;
                            longest = longest.max(began.elapsed());
                        }
                        (number, longest)
                    }
                });
                let mut total = (0, Duration::MAX);
                for stream in futures(streams).await {
                    total = (total.0 + stream.0, total.1.min(stream.1));
                }
                total
            })
        }));
        let answered = || outcome(gate, "forwarded");
        eventually("they hammer", || answered() > 500.0);
        assert_eq!(gate.run(&["maintenance-mode", "Restarting", "--wait"]).code, Some(0));
        drop(application);
        holds(gate, 16);
        let before = answered();
        thread::sleep(Duration::from_secs(2));
        let application = Application::at(address, |visitor| while visitor.request().is_some() && visitor.write(OK) {});
        assert_eq!(answered(), before, "nobody is let in");
        assert_eq!(gate.run(&["maintenance-mode", "--disable", "--wait"]).code, Some(0));
        eventually("they hammer on", || answered() > before + 500.0);
        stop.store(true, Relaxed);
        for client in clients {
            let (number, longest) = client.join().unwrap();
            assert!(number > 1 && longest >= Duration::from_secs(2), "each has waited: {longest:?} of {number}");
        }
        assert!(application.asked().len() > 500);
    });
    for failed in ["refused", "failed", "cut", "allowed"] {
        assert_eq!(outcome(&gate, failed), 0.0, "{failed}");
    }
}

/// Runs them side by side, and waits for all.
async fn futures<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|cx| {
        for (future, output) in &mut futures {
            if output.is_none()
                && let Poll::Ready(ready) = future.as_mut().poll(cx)
            {
                *output = Some(ready);
            }
        }
        if futures.iter().all(|(_, output)| output.is_some()) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    futures.into_iter().filter_map(|(_, output)| output).collect()
}
