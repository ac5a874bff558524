//! Server-sent events from a real server to a real client: each is seen before the next is sent.

use crate::fixture::eventually;
use crate::running::Running;
use crate::server::{Server, curl, curled};

#[test]
fn each_event_is_seen_before_the_next_is_sent() {
    let server = Server::uvicorn("events:asgi");
    let gate = server.gate();
    // Through the gate, too, which has the other request under way.
    let send = |event: &str| {
        let answer = curled(curl().args(["--fail", "--data", event]).arg(format!("http://{}/", gate.traffic)));
        assert_eq!(answer, "");
    };
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let mut command = curl();
        command.args(["--no-buffer", version]).arg(format!("http://{}/events", gate.traffic));
        let listener = Running::start(command);
        let mut expected = "data: welcome\n\n".to_owned();
        eventually("the first event is seen", || listener.stdout() == expected);
        for number in 0..50 {
            send(&number.to_string());
            expected.push_str(&format!("data: {number}\n\n"));
            eventually("the event is seen", || listener.stdout() == expected);
        }
        // The gate finds out by what it cannot send that nobody listens any more, and the server hears of it.
        let left = || server.process.stdout().matches("a listener has left").count();
        let before = left();
        drop(listener);
        eventually("the server knows", || {
            send("another");
            left() == before + 1
        });
        eventually("nothing runs", || gate.metric("pitstop_requests_in_flight") == 0.0);
    }
}
