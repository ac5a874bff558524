//! Who leaves, and when it is over.

use std::io::Read;
use std::time::{Duration, Instant};

use h2::Reason;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Frame;

use super::{IN_FLIGHT, endless, nobody_is_at_work, outcome, pattern};
use crate::application::{Client, Message, http2};
use crate::fixture::{DEADLINE, Sidecar, eventually, put};
use crate::http2_application::{
    Call, DATA, END_STREAM, HEADERS, Http2Application, RST_STREAM, Raw, gate_to, lines, of_frames, send, status,
};
use crate::permits::{enabled, wait_in};

#[test]
fn an_answer_before_the_request_has_ended() {
    // The application wants no more, and says so, or not.
    for says_so in [false, true] {
        let application = of_frames(move |frames| {
            while let Some(Raw { flags, stream, .. }) = frames.next(HEADERS) {
                let is_whole = flags & END_STREAM != 0;
                if !is_whole {
                    frames.next(DATA);
                }
                frames.ok(stream);
                match is_whole {
                    true => {}
                    false if says_so => frames.reset(stream, 0),
                    // It does not get what it has not wanted.
                    false => assert_eq!(frames.next(RST_STREAM).map(|frame| frame.stream), Some(stream)),
                }
            }
        });
        let gate = gate_to(application.address, &[]);
        let mut client = Client::of(&gate);
        client.send("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 10\r\n\r\nhello");
        let answer = client.answer();
        assert_eq!((answer.status(), answer.text().as_str(), answer.is_complete), (200, "ok", true));
        let begun = Instant::now();
        nobody_is_at_work(&gate);
        assert!(begun.elapsed() < Duration::from_secs(5));
        // Who is still sending may end that, and use the connection again.
        client.send("world");
        assert_eq!(client.get("/").text(), "ok");
        http2(&gate, async |mut sender| {
            let (body, mut more) = endless();
            more.send(Frame::data("hello".into())).unwrap();
            let answer = sender.send_request(Request::post("http://shop/").body(body).unwrap()).await.unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
            let _ = &mut more;
        });
        assert_eq!((outcome(&gate, "forwarded"), outcome(&gate, "failed")), (3.0, 0.0));
    }
}

/// Tells how each of its requests ends.
fn telling() -> (Http2Application, impl FnMut() -> String) {
    let (say, said) = lines();
    let application = Http2Application::new(move |mut call: Call| {
        let say = say.clone();
        async move {
            let path = call.path().to_owned();
            say.send(format!("{path} began")).unwrap();
            if path == "/answers" {
                let mut stream = call.begin(status(200)).unwrap();
                stream.send_data("hello".into(), false).unwrap();
                let reason = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
                let _ = say.send(format!("{path} {}", ended(reason)));
            } else {
                let reason = std::future::poll_fn(|cx| call.respond.poll_reset(cx)).await;
                let _ = say.send(format!("{path} {}", ended(reason)));
            }
        }
    });
    (application, said)
}

fn ended(reason: Result<Reason, h2::Error>) -> String {
    reason.map_or_else(|error| error.to_string(), |reason| format!("{reason:?}"))
}

/// Begins a request whose body does not end, for each of these paths, and leaves when the application is at work on all: in
/// the middle of either an answer or the wait for one.
fn leave(gate: &Sidecar, application: &Http2Application, paths: &[&str], at_once: bool) {
    http2(gate, async |sender| {
        let mut asked = Vec::new();
        for path in paths {
            let mut sender = sender.clone();
            let (body, more) = endless();
            let request = Request::post(format!("http://shop{path}")).body(body).unwrap();
            asked.push(tokio::spawn(async move {
                let mut answer = sender.send_request(request).await.unwrap();
                answer.frame().await.unwrap().unwrap();
                drop(more);
                answer.frame().await
            }));
        }
        while application.asked().len() < paths.len() || gate.metric(IN_FLIGHT) < paths.len() as f64 {
            tokio::task::yield_now().await;
        }
        if at_once {
            // With the connection.
            return;
        }
        for asked in asked {
            asked.abort();
            let _ = asked.await;
        }
        // The streams are reset before the connection is closed.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn when_a_client_leaves_the_application_hears_of_it_and_is_waited_for() {
    for at_once in [false, true] {
        let (application, mut said) = telling();
        let gate = application.gate();
        leave(&gate, &application, &["/answers", "/silent"], at_once);
        let left = Instant::now();
        let mut lines = [(); 4].map(|()| said());
        lines.sort();
        assert_eq!(lines, ["/answers CANCEL", "/answers began", "/silent CANCEL", "/silent began"]);
        assert_eq!(wait_in(gate.path()).ended(), enabled());
        assert!(left.elapsed() >= Duration::from_secs(9), "{:?}", left.elapsed());
        assert_eq!(gate.metric(IN_FLIGHT), 0.0);
    }
}

#[test]
fn it_is_not_waited_for_once_it_has_closed_the_connection() {
    let (application, mut said) = telling();
    let gate = application.gate();
    leave(&gate, &application, &["/answers"], false);
    assert_eq!([said(), said()], ["/answers began", "/answers CANCEL"]);
    let left = Instant::now();
    drop(application);
    nobody_is_at_work(&gate);
    assert!(left.elapsed() < Duration::from_secs(9), "{:?}", left.elapsed());
}

#[test]
fn what_does_not_finish_is_cut() {
    let (application, mut said) = telling();
    let gate = application.gate_with(&["--drain-timeout", "500ms"]);
    let mut begun = Client::of(&gate);
    begun.send("GET /answers HTTP/1.1\r\nHost: shop\r\n\r\n");
    assert_eq!(Message::head(&mut begun.0).unwrap().status(), 200);
    let mut silent = Client::of(&gate);
    silent.send("GET /silent HTTP/1.1\r\nHost: shop\r\n\r\n");
    http2(&gate, async |mut sender| {
        let (body, mut more) = endless();
        more.send(Frame::data("hello".into())).unwrap();
        let request = Request::post("http://shop/answers").body(body).unwrap();
        let mut answer = sender.send_request(request).await.unwrap().into_body();
        assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
        while application.asked().len() < 3 {
            tokio::task::yield_now().await;
        }
        put(&gate.file(), "Updating");
        answer.frame().await.unwrap().unwrap_err();
        let _ = &mut more;
    });
    let answer = silent.answer();
    assert_eq!((answer.status(), answer.text().as_str()), (503, "Updating\n"));
    let mut rest = Vec::new();
    let _ = begun.0.read_to_end(&mut rest);
    assert!(!rest.ends_with(b"0\r\n\r\n"), "{rest:?}");
    let mut lines = [(); 6].map(|()| said());
    lines.sort();
    let expected =
        ["/answers CANCEL", "/answers CANCEL", "/answers began", "/answers began", "/silent CANCEL", "/silent began"];
    assert_eq!(lines, expected);
    eventually("all are counted", || outcome(&gate, "cut") == 3.0);
    assert_eq!((outcome(&gate, "forwarded"), outcome(&gate, "failed")), (0.0, 0.0));
}

#[test]
fn what_never_pauses_is_cut_too() {
    let application = Http2Application::new(async |mut call: Call| {
        let mut stream = call.begin(status(200)).unwrap();
        while send(&mut stream, pattern(100_000), false).await {}
    });
    let gate = application.gate_with(&["--drain-timeout", "300ms"]);
    let mut client = Client::of(&gate);
    client.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n");
    assert_eq!(Message::head(&mut client.0).unwrap().status(), 200);
    put(&gate.file(), "Updating");
    // Reads as fast as it can, until it is cut.
    let deadline = Instant::now() + DEADLINE;
    while matches!(client.0.read(&mut [0; 65536]), Ok(1..)) {
        assert!(Instant::now() < deadline, "it goes on");
    }
    eventually("it is counted", || outcome(&gate, "cut") == 1.0);
}
