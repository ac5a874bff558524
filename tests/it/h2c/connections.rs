//! Connections: how many there are, what goes on which, and what is sent once more.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

use h2::server::Builder;
use tokio::sync::Semaphore;

use super::{errors, nobody_is_at_work, ok, outcome};
use crate::application::{Client, Message};
use crate::fixture::{Sidecar, eventually};
use crate::http2_application::{Call, Frames, Http2Application, gate_to, of_frames, status};

/// Asks for `/` so many times at once, each on a connection of its own.
fn ask_at_once(gate: &Sidecar, times: usize) -> Vec<Message> {
    let traffic = gate.traffic;
    let ask = move || {
        let mut client = Client(std::io::BufReader::new(crate::fixture::connect(traffic)));
        client.get("/")
    };
    let clients: Vec<_> = (0..times).map(|_| thread::spawn(ask)).collect();
    clients.into_iter().map(|client| client.join().unwrap()).collect()
}

#[test]
fn requests_share_a_connection() {
    let together = Arc::new(tokio::sync::Barrier::new(20));
    let application = Http2Application::new(move |call| {
        let together = together.clone();
        async move {
            together.wait().await;
            ok(call).await;
        }
    });
    let gate = application.gate();
    for answer in ask_at_once(&gate, 20) {
        assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"));
    }
    assert_eq!(application.connections(), 1);
}

#[test]
fn no_more_run_on_a_connection_than_the_application_allows() {
    for allowed in [1, 3] {
        let running = Arc::new(Mutex::new(BTreeMap::<usize, u32>::new()));
        let all = Arc::new(tokio::sync::Barrier::new(10));
        let most = Arc::new(Mutex::new(0));
        let (counted, seen) = (running.clone(), most.clone());
        let answer = move |call: Call| {
            let (running, all, most) = (counted.clone(), all.clone(), seen.clone());
            async move {
                let now = {
                    let mut running = running.lock().unwrap();
                    *running.entry(call.connection).or_default() += 1;
                    running[&call.connection]
                };
                {
                    let mut most = most.lock().unwrap();
                    *most = now.max(*most);
                }
                all.wait().await;
                *running.lock().unwrap().get_mut(&call.connection).unwrap() -= 1;
                ok(call).await;
            }
        };
        let mut settings = Builder::new();
        settings.max_concurrent_streams(allowed);
        let application = Http2Application::with(settings, "127.0.0.1:0".parse().unwrap(), answer);
        let gate = application.gate();
        for answer in ask_at_once(&gate, 10) {
            assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"));
        }
        assert_eq!(*most.lock().unwrap(), allowed);
        assert_eq!(application.connections(), 10_usize.div_ceil(allowed as usize));
        // They are used again.
        for answer in ask_at_once(&gate, 10) {
            assert_eq!(answer.status(), 200);
        }
        assert_eq!(application.connections(), 10_usize.div_ceil(allowed as usize));
    }
}

#[test]
fn after_goaway_requests_take_another_connection() {
    let let_go = Arc::new(Semaphore::new(0));
    let wait = let_go.clone();
    let application = Http2Application::new(move |mut call: Call| {
        let wait = wait.clone();
        async move {
            if call.path() == "/slow" {
                wait.acquire().await.unwrap().forget();
            }
            call.answer(status(200), call.connection.to_string()).await;
        }
    });
    let gate = application.gate();
    let mut slow = Client::of(&gate);
    slow.send("GET /slow HTTP/1.1\r\nHost: shop\r\n\r\n");
    eventually("the application has it", || application.asked().len() == 1);
    assert_eq!(Client::of(&gate).get("/").text(), "0");
    application.close_gracefully();
    eventually("others take a new one", || Client::of(&gate).get("/").text() == "1");
    // What runs on the old one finishes there.
    let_go.add_permits(1);
    let answer = slow.answer();
    assert_eq!((answer.text().as_str(), answer.is_complete), ("0", true));
    assert_eq!((outcome(&gate, "failed"), application.connections()), (0.0, 2));
}

/// Requests of three kinds, of which the application does something with the first it gets: it says whether it goes on with
/// the connection. How each is answered, and how often the application gets it. With `used` the connection was used before.
fn tried(used: bool, first: impl Fn(&mut Frames, u32) -> bool + Send + Sync + 'static) -> Vec<(u16, usize)> {
    let first = Arc::new(first);
    [
        "GET / HTTP/1.1\r\nHost: shop\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: shop\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: shop\r\nContent-Length: 2\r\n\r\nhi",
    ]
    .into_iter()
    .map(|request| {
        let asked = Arc::new(AtomicUsize::new(0));
        let (first, counted) = (first.clone(), asked.clone());
        let application = of_frames(move |frames| {
            while let Some(stream) = frames.request() {
                if used && stream == 1 && frames.0.number == 0 || counted.fetch_add(1, SeqCst) > 0 {
                    frames.ok(stream);
                } else if !first(frames, stream) {
                    return;
                }
            }
        });
        let gate = gate_to(application.address, &[]);
        if used {
            assert_eq!(Client::of(&gate).get("/").text(), "ok");
        }
        let answer = Client::of(&gate).ask(request);
        let failed = if answer.status() == 200 { 0.0 } else { 1.0 };
        assert_eq!((errors(&gate, "closed"), outcome(&gate, "failed")), (failed, failed), "{request}");
        nobody_is_at_work(&gate);
        (answer.status(), asked.load(SeqCst))
    })
    .collect()
}

#[test]
fn what_was_not_taken_up_is_sent_once_more() {
    // Whatever the method is, but not what may have lost some of its body.
    let expected = [(200, 2), (200, 2), (502, 1)];
    for used in [true, false] {
        let refused = tried(used, |frames, stream| {
            frames.reset(stream, 7);
            true
        });
        assert_eq!(refused, expected, "REFUSED_STREAM");
        let beyond = tried(used, |frames, stream| {
            frames.go_away(stream.saturating_sub(2), 0);
            true
        });
        assert_eq!(beyond, expected, "GOAWAY");
    }
}

#[test]
fn what_may_have_been_taken_up_is_sent_once_more_only_if_it_is_idempotent() {
    let once = [(502, 1); 3];
    let closed = |frames: &mut Frames, _| {
        frames.0.reset();
        false
    };
    assert_eq!(tried(true, closed), [(200, 2), (502, 1), (502, 1)]);
    // Nor where the connection was open until it came.
    assert_eq!(tried(false, closed), once);
    let failed = tried(true, |frames, stream| {
        frames.reset(stream, 2);
        true
    });
    assert_eq!(failed, once, "INTERNAL_ERROR");
}

#[test]
fn what_is_refused_twice_is_refused() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let application = of_frames(move |frames| {
        while let Some(stream) = frames.request() {
            counted.fetch_add(1, SeqCst);
            frames.reset(stream, 7);
        }
    });
    let gate = gate_to(application.address, &[]);
    assert_eq!(Client::of(&gate).get("/").status(), 502);
    assert_eq!((asked.load(SeqCst), errors(&gate, "closed")), (2, 1.0));
    let said = format!("the application at {} has refused the request", application.address);
    eventually("it is logged", || gate.log().contains(&said));
}
