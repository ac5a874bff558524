//! Large bodies, and who reads them slowly.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::Request;
use hyper::body::Frame;
use tokio::sync::Semaphore;

use super::{MIB, nobody_is_at_work, ok, pattern};
use crate::application::{BodyOf, Client, Message, http2, in_frames};
use crate::fixture::{DEADLINE, Sidecar, eventually};
use crate::http2_application::{Call, Http2Application, send, status};

/// The resident memory of a gate, in MiB.
fn resident(gate: &Sidecar) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", gate.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

#[test]
fn clients_that_read_slowly_cost_no_memory_and_hold_up_nobody() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let application = Http2Application::new(move |mut call: Call| {
        let counted = counted.clone();
        async move {
            if call.path() == "/" {
                return ok(call).await;
            }
            let mut stream = call.begin(status(200)).unwrap();
            let piece = pattern(MIB / 4);
            for _ in 0..80 {
                if !send(&mut stream, piece.clone(), false).await {
                    return;
                }
                counted.fetch_add(piece.len(), SeqCst);
            }
            let _ = stream.send_data(Bytes::new(), true);
        }
    });
    let gate = application.gate();
    assert_eq!(Client::of(&gate).get("/").text(), "ok");
    let before = resident(&gate);
    let mut clients: Vec<_> = (0..20).map(|_| Client::of(&gate)).collect();
    for client in &mut clients {
        client.send("GET /large HTTP/1.1\r\nHost: shop\r\n\r\n");
        assert_eq!(Message::head(&mut client.0).unwrap().status(), 200);
    }
    // Until the application cannot send any more.
    let mut last = usize::MAX;
    eventually("nothing moves", || {
        let now = sent.load(SeqCst);
        thread::sleep(Duration::from_millis(300));
        std::mem::replace(&mut last, now) == now
    });
    assert!(last < 20 * 20 * MIB, "the system has taken all of it: {last}");
    let grown = resident(&gate).saturating_sub(before);
    assert!(grown < 20, "{grown} MiB more for 20 answers of 20 MiB");
    // Others share the connection.
    assert_eq!(Client::of(&gate).get("/").text(), "ok");
    assert_eq!(application.connections(), 1);
    let reading: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            thread::spawn(move || {
                let mut answer = Message::default();
                answer.headers.push(("transfer-encoding".to_owned(), "chunked".to_owned()));
                answer.read_body(&mut client.0, BodyOf::Request);
                let same = answer.body.chunks(MIB / 4).all(|piece| piece == pattern(MIB / 4));
                (answer.is_complete, answer.body.len(), same)
            })
        })
        .collect();
    for client in reading {
        assert_eq!(client.join().unwrap(), (true, 20 * MIB, true));
    }
    nobody_is_at_work(&gate);
}

#[test]
fn an_application_that_reads_slowly_costs_no_memory() {
    let let_go = Arc::new(Semaphore::new(0));
    let wait = let_go.clone();
    let application = Http2Application::new(move |mut call: Call| {
        let wait = wait.clone();
        async move {
            wait.acquire().await.unwrap().forget();
            let length = call.all().await.unwrap().len();
            call.answer(status(200), length.to_string()).await;
        }
    });
    let gate = application.gate();
    let before = resident(&gate);
    let sent = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..10)
        .map(|_| {
            let (mut client, sent) = (Client::of(&gate), sent.clone());
            thread::spawn(move || {
                client.send(format!("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: {}\r\n\r\n", 20 * MIB));
                for _ in 0..80 {
                    client.send(pattern(MIB / 4));
                    sent.fetch_add(MIB / 4, SeqCst);
                }
                client.answer().text()
            })
        })
        .collect();
    let mut last = usize::MAX;
    eventually("nothing moves", || {
        let now = sent.load(SeqCst);
        thread::sleep(Duration::from_millis(300));
        now > 0 && std::mem::replace(&mut last, now) == now
    });
    assert!(last < 10 * 20 * MIB, "the system has taken all of it: {last}");
    let grown = resident(&gate).saturating_sub(before);
    assert!(grown < 20, "{grown} MiB more for 10 requests of 20 MiB");
    let_go.add_permits(10);
    for client in clients {
        assert_eq!(client.join().unwrap(), (20 * MIB).to_string());
    }
}

#[test]
fn a_client_that_does_not_read_may_still_send() {
    let got = Arc::new(AtomicUsize::new(0));
    let counted = got.clone();
    let application = Http2Application::new(move |mut call: Call| {
        let counted = counted.clone();
        async move {
            let mut stream = call.begin(status(200)).unwrap();
            // More than anybody on the way keeps.
            tokio::spawn(async move { send(&mut stream, pattern(64 * MIB), true).await });
            while let Some(Ok(data)) = call.data().await {
                counted.fetch_add(data.len(), SeqCst);
            }
        }
    });
    let gate = application.gate();
    http2(&gate, async |mut sender| {
        let frames = (0..80).map(|_| Frame::data(pattern(MIB / 4)));
        let request = Request::post("http://shop/").body(in_frames(frames)).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let deadline = Instant::now() + DEADLINE;
        while got.load(SeqCst) < 20 * MIB {
            assert!(Instant::now() < deadline, "only {} bytes arrive", got.load(SeqCst));
            tokio::task::yield_now().await;
        }
        drop(answer);
    });
}
