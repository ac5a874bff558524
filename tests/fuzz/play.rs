//! A whole connection in memory, for `tests/fuzz`: a client, the server's loop, the exchange with the application, and the
//! application. The clock is paused, so that timeouts take no time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a property that does not hold is a panic")]

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};
use std::task::Context;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use prometheus::Registry;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, WriteHalf, duplex, split};
use tokio::time::sleep;

use http::StatusCode;
use tokio::time::timeout;

use super::error::Error;
use super::exchange::Exchange;
use super::http1::{Origins, forward};
use super::tracker::{Aborts, RequestTracker};
use crate::http1::body::{Decoder, Framing};
use crate::metrics::{Metrics, Requests};
use crate::server::connection::{self, Client, Next};
use crate::server::head::{Persistence, Response};
use crate::server::slots::Slots;
use crate::server::stream::Socket;
use crate::server::{Begin, Limits, Service};
use crate::upstream::InFlight;
use crate::upstream::connection::Connection;

#[path = "../../src/http1/checker.rs"]
#[allow(dead_code, reason = "responses are not checked")]
mod checker;

const TIMEOUT: Duration = Duration::from_secs(60);
/// Longer than all timeouts after each other.
const END: Duration = Duration::from_secs(3600);

/// Registered once, since that takes longer than an exchange.
static REQUESTS: LazyLock<Arc<Requests>> =
    LazyLock::new(|| Arc::new(Metrics::register(Registry::new()).unwrap().forwarding().unwrap()));

/// Plays an input. It is split at each 0xff, and the first byte of a part says what it is: `c` or `a` for bytes of the client or
/// the application, `C` or `A` for the end of its direction, `t` for the time that the second byte says in seconds, `x` for an
/// abort. The input's first byte chooses how much the pipes hold.
///
/// # Panics
///
/// If a property does not hold: the connection ends; the application gets a sequence of strictly valid requests, and each but the
/// first after a response; bytes that are none follow a request only where the application has switched protocols; and no
/// request stays in flight.
pub fn connection(input: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(play(input));
}

async fn play(input: &[u8]) {
    let (room, input) = input.split_first().unwrap_or((&0, &[]));
    let room = [65536, 16, 64, 1024][usize::from(room % 4)];
    let limits = Limits { header_size: 512, header_timeout: TIMEOUT, idle_timeout: TIMEOUT, ..Limits::ONE };
    let slots = Slots::one();
    let application = Application(Arc::new(Shared {
        room,
        aborts: Aborts::new(slots.clone()),
        idle: Mutex::default(),
        ends: Mutex::default(),
        connections: AtomicUsize::new(0),
    }));
    let (client, stream) = duplex(room);
    let served = {
        let connection = Box::new(connection::Connection::for_test(stream, &slots, limits).await);
        let application = application.clone();
        tokio::spawn(async move { drop(crate::server::serve_http1(connection, &application).await) })
    };
    let (mut from_server, mut to_server) = split(client);
    let reader = tokio::spawn(async move { _ = from_server.read_to_end(&mut Vec::new()).await });
    for part in input.split(|byte| *byte == 0xff) {
        match part {
            [b'c', bytes @ ..] => write(&mut to_server, bytes).await,
            [b'C', ..] => _ = to_server.shutdown().await,
            [b't', seconds, ..] => sleep(Duration::from_secs((*seconds).into())).await,
            [b'x', ..] => application.0.aborts.abort(),
            [side @ (b'a' | b'A'), bytes @ ..] => {
                let Some(mut end) = application.0.ends.lock().unwrap().pop() else { continue };
                end.check();
                if *side == b'a' {
                    end.responses += 1;
                    end.has_switched |= bytes.windows(4).any(|bytes| bytes == b" 101");
                    end.sent.extend_from_slice(bytes);
                    write(&mut end.writer, bytes).await;
                } else {
                    _ = end.writer.shutdown().await;
                }
                application.0.ends.lock().unwrap().insert(end.number, end);
            }
            _ => {}
        }
        // All tasks run until they wait.
        sleep(Duration::from_millis(1)).await;
    }
    sleep(TIMEOUT).await;
    drop(to_server);
    reader.abort();
    // Another protocol ends only with both sides.
    let tunnel = application.0.ends.lock().unwrap().pop_if(|end| end.has_switched);
    if let Some(mut end) = tunnel {
        _ = end.writer.shutdown().await;
        application.0.ends.lock().unwrap().push(end);
    }
    timeout(END, served).await.expect("the connection ends").expect("it does not panic");
    application.0.idle.lock().unwrap().clear();
    let ends = std::mem::take(&mut *application.0.ends.lock().unwrap());
    for mut end in ends {
        _ = end.writer.shutdown().await;
        sleep(Duration::from_millis(1)).await;
        end.check();
        end.reader.abort();
    }
    sleep(TIMEOUT).await;
    assert_eq!(REQUESTS.in_flight.get(), 0, "nothing is in flight");
}

/// Writes as much as the peer takes in a second.
async fn write(writer: &mut WriteHalf<DuplexStream>, bytes: &[u8]) {
    _ = timeout(Duration::from_secs(1), writer.write_all(bytes)).await;
}

/// The application's end of a connection.
struct Peer {
    number: usize,
    writer: WriteHalf<DuplexStream>,
    reader: tokio::task::JoinHandle<()>,
    received: Arc<Mutex<Vec<u8>>>,
    sent: Vec<u8>,
    /// At most so many responses were sent.
    responses: usize,
    has_switched: bool,
}

impl Peer {
    /// Checks all that the application has received so far.
    fn check(&self) {
        let received = self.received.lock().unwrap();
        let shown = || (received.escape_ascii().to_string(), self.sent.escape_ascii().to_string());
        let (mut rest, mut requests) = (&received[..], 0);
        while !rest.is_empty() {
            requests += 1;
            assert!(requests <= 1 + self.responses, "a request before a response: {:?}", shown());
            let Some(length) = rest.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return };
            let (head, body) = rest.split_at(length + 4);
            let reading = checker::request(head).unwrap_or_else(|| panic!("not a request: {:?}", shown()));
            let length = match reading.body {
                checker::Body::Length(length) if length > body.len() as u64 => return,
                checker::Body::Length(length) => usize::try_from(length).unwrap(),
                checker::Body::UntilClose => panic!("a request until the end: {:?}", shown()),
                checker::Body::Chunked => match checker::chunked(body) {
                    Some((.., length)) => length,
                    None => {
                        let mut left = body;
                        let mut decoder = Decoder::new(Framing::Chunked);
                        while !left.is_empty() {
                            let decoded = decoder.decode(left);
                            let (consumed, _) = decoded.unwrap_or_else(|error| panic!("{error}: {:?}", shown()));
                            assert!(!decoder.has_ended(), "chunks that are read in two ways: {:?}", shown());
                            if consumed == 0 {
                                break;
                            }
                            left = &left[consumed..];
                        }
                        return;
                    }
                },
            };
            rest = &body[length..];
            let is_upgrade = reading.fields.iter().any(|(name, _)| name.eq_ignore_ascii_case(b"upgrade"));
            if is_upgrade && self.has_switched {
                return;
            }
        }
    }
}

/// A service that forwards to the application, over connections in memory.
#[derive(Clone)]
struct Application(Arc<Shared>);

struct Shared {
    room: usize,
    aborts: Aborts,
    idle: Mutex<Vec<Connection<DuplexStream>>>,
    /// Those that are open, in order.
    ends: Mutex<Vec<Peer>>,
    connections: AtomicUsize,
}

impl Application {
    /// A new connection.
    fn open(&self) -> Connection<DuplexStream> {
        let (end, stream) = duplex(self.0.room);
        let (mut reader, writer) = split(end);
        let received = Arc::new(Mutex::new(Vec::new()));
        let shared = received.clone();
        let reader = tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer).await {
                shared.lock().unwrap().extend_from_slice(&buffer[..length]);
            }
        });
        let number = self.0.connections.fetch_add(1, Relaxed);
        self.0.ends.lock().unwrap().push(Peer {
            number,
            writer,
            reader,
            received,
            sent: Vec::new(),
            responses: 0,
            has_switched: false,
        });
        Connection::new(stream, None)
    }
}

impl Origins for Application {
    type Stream = DuplexStream;

    fn timeout(&self) -> Duration {
        TIMEOUT
    }

    fn reuse(&self, cx: &mut Context<'_>) -> Option<Connection<DuplexStream>> {
        while let Some(mut connection) = { self.0.idle.lock().unwrap().pop() } {
            if Pin::new(&mut connection.stream).poll_read(cx, &mut ReadBuf::new(&mut [0])).is_pending() {
                return Some(connection);
            }
        }
        None
    }

    async fn connect(&self, _: &RequestTracker) -> Result<Connection<DuplexStream>, Error> {
        Ok(self.open())
    }

    fn keep(&self, mut connection: Connection<DuplexStream>) {
        connection.is_reused = true;
        self.0.idle.lock().unwrap().push(connection);
    }

    fn report(&self, _: &Error, _: &mut RequestTracker) {}
}

impl Service for Application {
    type Exchange = Exchange;

    fn begin(&self, exchange: &connection::Exchange<'_>, out: &mut Vec<u8>) -> Begin<Exchange> {
        let in_flight = InFlight::new(Arc::from([]), REQUESTS.in_flight.clone());
        let tracker = RequestTracker::new(REQUESTS.clone(), in_flight, &self.0.aborts);
        let (exchange, consumed) = Exchange::prepare((b"app", true), exchange, tracker, None, out);
        Begin::Run(exchange, consumed)
    }

    async fn run<S: Socket>(&self, exchange: Exchange, client: &mut connection::Connection<S>) -> Next {
        let failed = match forward(self, Box::new(exchange), client).await {
            Ok(next) => return next,
            Err(failed) => failed,
        };
        let persistence = client.persistence(failed.version, failed.persists && failed.body.is_some());
        let (fields, status) = (&b"content-length: 0\r\n"[..], StatusCode::BAD_GATEWAY);
        let response = Response { status, fields, more: [b"", b""], body: b"", is_head: false };
        match client.respond(|out| response.encode(out, persistence), failed.body).await {
            true if persistence != Persistence::Closes => Next::Persist,
            _ => Next::Linger,
        }
    }

    async fn stream(&self, _: http::Request<RecvStream>, _: SendResponse<Bytes>, _: Client, _: Limits) {}
}
