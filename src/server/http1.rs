//! One HTTP/1.1 connection as one loop: wait, read a head, let the service answer, repeat.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use http::StatusCode;
use tracing::debug;

use super::buffer::{self, Input};
use super::connection::{Connection, Exchange, Next, persistence};
use super::head::{Persistence, Response};
use super::service::{Begin, Service};
use super::slots::Slots;
use super::stream::Socket;
use crate::http1::body::{Decoder, Framing, Piece};
use crate::http1::error::HeadError;
use crate::http1::fields;
use crate::http1::request::Request;

/// How an HTTP/2 connection begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What was read.
enum Read<E> {
    /// A part of a head.
    Partial,
    /// A head that the service goes on with.
    Run(E),
    /// A head whose response was assembled. The body has yet to be read.
    Responded(Next, Option<Decoder>),
    /// The connection speaks HTTP/2.
    Http2,
    /// The client sent all that it had to, or nothing in time.
    Close,
}

/// Serves a connection. Returns it if it speaks HTTP/2.
pub(crate) async fn serve<S: Socket, V: Service>(
    mut connection: Box<Connection<S>>,
    service: &V,
) -> Option<Box<Connection<S>>> {
    poll_fn(|cx| {
        connection.slot.register(cx.waker());
        Poll::Ready(())
    })
    .await;
    let mut is_first = true;
    loop {
        let may_wait = is_first || !connection.slot.all().is_draining();
        let read = poll_fn(|cx| poll_head(&mut connection, cx, service, (is_first, may_wait))).await;
        let next = match read {
            Read::Http2 => return Some(connection),
            Read::Close | Read::Partial => return None,
            Read::Responded(next, None) if connection.output.is_empty() => next,
            // Rare, so that each connection need not have room for it.
            Read::Responded(next, body) => match Box::pin(connection.finish(body)).await {
                true => next,
                false => Next::Linger,
            },
            Read::Run(exchange) => Box::pin(service.run(exchange, &mut *connection)).await,
        };
        match next {
            Next::Persist => {}
            Next::Linger => {
                Box::pin(connection.linger()).await;
                return None;
            }
            Next::Close => return None,
            Next::Reset => {
                connection.stream.reset_on_close();
                return None;
            }
        }
        is_first = false;
        connection.slot.wait();
        let limits = connection.limits;
        connection.timer.start(if connection.input.is_empty() { limits.idle_timeout } else { limits.header_timeout });
    }
}

/// Ready with the next head, or the end of the connection.
fn poll_head<S: Socket, V: Service>(
    connection: &mut Connection<S>,
    cx: &mut Context<'_>,
    service: &V,
    (is_first, may_wait): (bool, bool),
) -> Poll<Read<V::Exchange>> {
    let limit = connection.limits.header_size;
    let mut read = match connection.input.is_empty() {
        true => Read::Partial,
        false => {
            let Connection { input, client, slot, .. } = &mut *connection;
            buffer::take_kept(input, |bytes| read_head(bytes, limit, is_first, service, client, slot.all()))
        }
    };
    loop {
        match read {
            Read::Partial => {}
            Read::Responded(..) => {
                connection.slot.work();
                return Poll::Ready(match connection.send(cx) {
                    Ok(()) => read,
                    Err(_) => Read::Close,
                });
            }
            read => {
                connection.slot.work();
                return Poll::Ready(read);
            }
        }
        if !may_wait && !connection.input.is_empty() {
            // What follows the last request of a connection that drains is read no more.
            return Poll::Ready(Read::Responded(Next::Linger, None));
        }
        if connection.input.is_empty() && connection.slot.all().is_draining() || connection.slot.is_evicted() {
            return Poll::Ready(Read::Close);
        }
        let Connection { stream, input, client, slot, .. } = &mut *connection;
        let had = input.len();
        let taken = buffer::poll_read(stream, cx, input, |bytes| {
            read_head(bytes, limit, is_first, service, client, slot.all())
        });
        read = match taken {
            Poll::Ready(Ok(Input::Read(read))) => read,
            Poll::Ready(Ok(Input::End) | Err(_)) => return Poll::Ready(Read::Close),
            Poll::Pending => {
                ready!(connection.timer.poll(cx));
                // A client that has sent nothing is not answered: it would take that for the response to its next request.
                if connection.input.is_empty() || PREFACE.starts_with(&connection.input) {
                    return Poll::Ready(Read::Close);
                }
                connection.input = Vec::new();
                buffer::assemble(|out| {
                    refuse(out, StatusCode::REQUEST_TIMEOUT, "the request's head did not arrive in time");
                });
                let sent = connection.send(cx);
                return Poll::Ready(sent.map_or(Read::Close, |()| Read::Responded(Next::Linger, None)));
            }
        };
        if had == 0 && matches!(read, Read::Partial) && !is_first {
            // The head has begun.
            connection.timer.start(connection.limits.header_timeout);
        }
    }
}

/// Parses a head and lets the service begin. Returns how many bytes are consumed.
fn read_head<V: Service>(
    input: &[u8],
    limit: usize,
    is_first: bool,
    service: &V,
    client: &super::connection::Client,
    slots: &Slots,
) -> (usize, Read<V::Exchange>) {
    if is_first && (input.starts_with(PREFACE) || PREFACE.starts_with(input)) {
        return (0, if input.len() < PREFACE.len() { Read::Partial } else { Read::Http2 });
    }
    let mut storage = fields::storage();
    let request = match Request::parse(input, &mut storage, limit) {
        Ok(Some(request)) => request,
        Ok(None) => return (0, Read::Partial),
        Err(error) => {
            debug!("a request of {} is refused: {error}", client.text());
            buffer::assemble(|out| refuse(out, of_error(error), &error.to_string()));
            return (input.len(), Read::Responded(Next::Linger, None));
        }
    };
    let (raw, body) = input.split_at(request.length);
    // A client that waits for 100 and gets a response instead may send the body or not: nothing says where the next request
    // begins (RFC 9110 §10.1.1).
    let waits = request.expects_continue && body.is_empty();
    let persistence = persistence(slots, request.version, request.persists && !waits);
    let exchange = Exchange { request: &request, raw, body, client, persistence };
    let begun = buffer::assemble(|out| service.begin(&exchange, out));
    match begun {
        Begin::Run(exchange, consumed) => (raw.len() + consumed, Read::Run(exchange)),
        Begin::Respond if persistence == Persistence::Closes => {
            let body = match request.framing {
                Framing::Length(0) => return (raw.len(), Read::Responded(closing(body), None)),
                _ if waits => None,
                framing => Some(Decoder::new(framing)),
            };
            (raw.len(), Read::Responded(Next::Linger, body))
        }
        Begin::Respond => {
            let mut decoder = Decoder::new(request.framing);
            let mut consumed = raw.len();
            while !decoder.has_ended() {
                match decoder.decode(&input[consumed..]) {
                    Ok((length, Piece::More)) => {
                        return (consumed + length, Read::Responded(Next::Persist, Some(decoder)));
                    }
                    Ok((length, _)) => consumed += length,
                    Err(_) => return (input.len(), Read::Responded(Next::Linger, None)),
                }
            }
            (consumed, Read::Responded(Next::Persist, None))
        }
    }
}

/// What becomes of a connection that closes after a request with nothing but this behind it.
fn closing(rest: &[u8]) -> Next {
    if rest.is_empty() { Next::Close } else { Next::Linger }
}

/// The status for a head that breaks a rule.
fn of_error(error: HeadError) -> StatusCode {
    StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_REQUEST)
}

/// Assembles a response to what cannot be understood. The connection closes: nothing says where the next request begins.
pub(super) fn refuse(out: &mut Vec<u8>, status: StatusCode, why: &str) {
    let body = format!("{why}\n");
    let fields = format!("content-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n", body.len());
    let response =
        Response { status, fields: fields.as_bytes(), more: [b"", b""], body: body.as_bytes(), is_head: false };
    response.encode(out, Persistence::Closes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use h2::RecvStream;
    use h2::server::SendResponse;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::sync::Notify;
    use tokio::task::JoinHandle;
    use tokio::time::{Instant, sleep};

    use crate::server::Limits;
    use crate::server::connection::Client;

    const HEADER: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(75);

    /// Answers `/slow` when it is notified, and anything else at once.
    #[derive(Clone, Default)]
    struct Fake(Arc<Notify>);

    fn ok(out: &mut Vec<u8>, persistence: Persistence) {
        let fields = b"content-length: 3\r\n";
        Response { status: StatusCode::OK, fields, more: [b"", b""], body: b"ok\n", is_head: false }
            .encode(out, persistence);
    }

    impl Service for Fake {
        type Exchange = ();

        fn begin(&self, exchange: &Exchange<'_>, out: &mut Vec<u8>) -> Begin<()> {
            if exchange.request.target.path_and_query() == "/slow" {
                return Begin::Run((), 0);
            }
            ok(out, exchange.persistence);
            Begin::Respond
        }

        async fn run<S: Socket>(&self, (): (), connection: &mut Connection<S>) -> Next {
            self.0.notified().await;
            let persistence = connection.persistence(crate::http1::Version::Http11, true);
            poll_fn(|cx| {
                buffer::assemble(|out| ok(out, persistence));
                Poll::Ready(connection.send(cx))
            })
            .await
            .unwrap();
            if persistence == Persistence::Closes { Next::Close } else { Next::Persist }
        }

        async fn stream(&self, _: http::Request<RecvStream>, _: SendResponse<Bytes>, _: Client, _: Limits) {}
    }

    struct Served {
        client: DuplexStream,
        service: Fake,
        slots: Arc<Slots>,
        task: JoinHandle<()>,
        start: Instant,
    }

    async fn served(room: usize) -> Served {
        let limits = Limits { header_timeout: HEADER, idle_timeout: IDLE, ..Limits::ONE };
        let slots = Slots::one();
        let (client, stream) = duplex(room);
        let service = Fake::default();
        let connection = Box::new(Connection::for_test(stream, &slots, limits).await);
        let served = service.clone();
        let task = tokio::spawn(async move {
            assert!(serve(connection, &served).await.is_none(), "it is not HTTP/2");
        });
        Served { client, service, slots, task, start: Instant::now() }
    }

    impl Served {
        async fn send(&mut self, bytes: &str) {
            self.client.write_all(bytes.as_bytes()).await.unwrap();
        }

        /// Reads one response without a body longer than `ok`.
        async fn response(&mut self) -> String {
            let mut text = String::new();
            while !text.ends_with("ok\n") {
                let mut byte = [0];
                assert_eq!(self.client.read(&mut byte).await.unwrap(), 1, "{text}");
                text.push(byte[0].into());
            }
            text
        }

        /// What comes until the connection is closed, and the seconds until then.
        async fn rest(&mut self) -> (String, u64) {
            let mut rest = String::new();
            self.client.read_to_string(&mut rest).await.unwrap();
            (rest, self.start.elapsed().as_secs())
        }
    }

    #[tokio::test]
    async fn a_connection_that_waits_takes_little_memory() {
        let served = served(8192).await;
        let limits = Limits { header_timeout: HEADER, idle_timeout: IDLE, ..Limits::ONE };
        let slots = Slots::one();
        let connection = Box::new(Connection::for_test(duplex(1).1, &slots, limits).await);
        assert!(size_of_val(&*connection) <= 256, "{}", size_of_val(&*connection));
        let future = serve(connection, &served.service);
        assert!(size_of_val(&future) <= 256, "{}", size_of_val(&future));
    }

    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    const SLOW: &str = "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n";

    #[tokio::test(start_paused = true)]
    async fn times_out_at_each_point_of_a_request() {
        let timeout = "HTTP/1.1 408 Request Timeout\r\n";
        // What the client sends after so many seconds each, what it gets after the responses, and when it is closed.
        type Row = (&'static [(u64, &'static str)], usize, &'static str, u64);
        let table: &[Row] = &[
            (&[], 0, "", 10),
            (&[(3, "G")], 0, timeout, 10),
            (&[(0, "GET / HTTP/1.1\r\n"), (9, "Host: a\r\n")], 0, timeout, 10),
            (&[(0, "PRI * HTT")], 0, "", 10),
            (&[(9, GET)], 1, "", 84),
            (&[(0, GET), (70, GET)], 2, "", 145),
            (&[(0, GET), (70, "GET")], 1, timeout, 80),
            (&[(0, "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET")], 1, timeout, 10),
        ];
        for (sent, responses, rest, seconds) in table {
            let mut served = served(8192).await;
            for (after, bytes) in *sent {
                sleep(Duration::from_secs(*after)).await;
                served.send(bytes).await;
            }
            for _ in 0..*responses {
                served.response().await;
            }
            let (got, at) = served.rest().await;
            assert!(got.starts_with(rest) && got.is_empty() == rest.is_empty(), "{sent:?}: {got}");
            assert_eq!(at, *seconds, "{sent:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_pipelined_requests_in_order() {
        let mut served = served(8192).await;
        served.send(&[GET, SLOW, GET].concat()).await;
        served.response().await;
        sleep(Duration::from_secs(600)).await;
        served.service.0.notify_one();
        served.response().await;
        served.response().await;
        assert_eq!(served.rest().await, (String::new(), 675));
    }

    #[tokio::test(start_paused = true)]
    async fn closes_after_a_client_has_closed_its_direction() {
        let mut served = served(8192).await;
        served.send(SLOW).await;
        served.client.shutdown().await.unwrap();
        sleep(Duration::from_secs(5)).await;
        served.service.0.notify_one();
        served.response().await;
        assert_eq!(served.rest().await, (String::new(), 5));
    }

    #[tokio::test(start_paused = true)]
    async fn lingers_after_what_it_cannot_understand() {
        let mut served = served(8192).await;
        served.send("nonsense\r\n\r\n").await;
        let (got, at) = served.rest().await;
        assert!(got.starts_with("HTTP/1.1 400 Bad Request\r\n") && got.contains("connection: close"), "{got}");
        assert_eq!(at, 0, "the direction of the response is closed at once");
        served.task.await.unwrap();
        assert_eq!(served.start.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn discards_a_body_for_thirty_seconds() {
        let mut served = served(8192).await;
        served.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n").await;
        served.response().await;
        for _ in 0..29 {
            sleep(Duration::from_secs(1)).await;
            served.send("x").await;
        }
        assert_eq!(served.rest().await, (String::new(), 30));
    }

    #[tokio::test(start_paused = true)]
    async fn keeps_a_connection_whose_body_was_discarded() {
        for body in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
            let mut served = served(8192).await;
            served.send(&format!("POST / HTTP/1.1\r\nHost: a\r\n{body}{GET}")).await;
            served.response().await;
            served.response().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn does_not_wait_for_a_body_that_waits_for_it() {
        let mut served = served(8192).await;
        served.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
        assert!(served.response().await.contains("connection: close\r\n"));
        assert_eq!(served.rest().await, (String::new(), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_closed() {
        let mut served = served(16).await;
        let requests = GET.repeat(2);
        for byte in requests.as_bytes().chunks(8) {
            // The task takes the bytes before the response fills the pipe.
            if tokio::time::timeout(Duration::from_secs(1), served.client.write_all(byte)).await.is_err() {
                break;
            }
        }
        served.task.await.unwrap();
        let waited = served.start.elapsed();
        assert!(waited >= IDLE && waited < IDLE + Duration::from_secs(45), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_what_waits_and_lets_requests_finish() {
        let mut idle = served(8192).await;
        idle.send(GET).await;
        idle.response().await;
        idle.slots.drain();
        assert_eq!(idle.rest().await, (String::new(), 0));

        let mut busy = served(8192).await;
        busy.send(SLOW).await;
        sleep(Duration::from_secs(1)).await;
        busy.slots.drain();
        sleep(Duration::from_secs(1)).await;
        busy.service.0.notify_one();
        assert!(busy.response().await.contains("connection: close\r\n"));
        assert_eq!(busy.rest().await, (String::new(), 2));

        let mut begun = served(8192).await;
        begun.send("GET / HTTP/1.1\r\n").await;
        sleep(Duration::from_secs(1)).await;
        begun.slots.drain();
        begun.send("Host: a\r\n\r\n").await;
        assert!(begun.response().await.contains("connection: close\r\n"), "its head had begun");
    }

    #[tokio::test(start_paused = true)]
    async fn an_eviction_takes_only_what_waits() {
        for (sent, is_closed) in [("", true), ("GET /", true), (SLOW, false)] {
            let mut served = served(8192).await;
            served.send(sent).await;
            sleep(Duration::from_secs(1)).await;
            let slots = served.slots.clone();
            let next = tokio::time::timeout(Duration::from_secs(5), slots.take()).await;
            assert_eq!(next.is_ok(), is_closed, "{sent}");
            if is_closed {
                assert_eq!(served.rest().await, (String::new(), 1), "{sent}");
            } else {
                served.service.0.notify_one();
                served.response().await;
            }
        }
    }
}
