//! One HTTP/2 connection: a task for the connection, and one for each stream.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::header::DATE;
use http::{Request, Response};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tracing::debug;

use super::connection::{Client, Connection, DISCARD};
use super::head::insert_date;
use super::limits::Limits;
use super::service::Service;
use super::slots::Occupied;
use super::stream::{Rewound, Socket};
use super::timer::Timer;

/// How much of the bodies on a connection is received before somebody reads them, in bytes: all of it is kept in memory.
const WINDOW: u32 = 256 * 1024;
/// The number of requests at once on a connection. Clients count on at least 100 before they know (RFC 9113 §6.5.2).
const STREAMS: u32 = 100;
/// How much of a response is kept until the client has room for it, in bytes.
const SEND_BUFFER: usize = 64 * 1024;

/// Serves a connection whose preface has been read.
pub(super) async fn serve<S: Socket, V: Service>(connection: Box<Connection<S>>, service: V) {
    let Connection { stream, input, timer, client, slot, limits, .. } = *connection;
    let Some(_permit) = slot.all().take_http2(&slot).await else { return };
    let header_size = u32::try_from(limits.header_size).unwrap_or(u32::MAX);
    let mut builder = Builder::new();
    builder
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(header_size)
        .max_send_buffer_size(SEND_BUFFER);
    let handshake = builder.handshake::<_, Bytes>(Rewound::new(input, stream));
    let Ok(Ok(mut http)) = timeout(limits.header_timeout, handshake).await else { return };
    let open = Arc::new(Open { streams: AtomicUsize::new(0), slot });
    let mut waiting = Waiting { timer, limits, has_streams: false };
    open.slot.wait();
    let mut is_draining = false;
    loop {
        let accepted = poll_fn(|cx| {
            if open.slot.all().is_draining() && !std::mem::replace(&mut is_draining, true) {
                http.graceful_shutdown();
            }
            if let Poll::Ready(accepted) = http.poll_accept(cx) {
                return Poll::Ready(accepted);
            }
            ready!(waiting.poll(&open, cx));
            Poll::Ready(None)
        })
        .await;
        match accepted {
            None => return,
            Some(Err(error)) => {
                debug!("an HTTP/2 connection of {} has failed: {error}", client.text());
                return;
            }
            Some(Ok((request, respond))) => begin(request, respond, (&service, &client, limits), &open),
        }
    }
}

/// Begins a stream, or refuses it where there is no memory for another.
fn begin<V: Service>(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    (service, client, limits): (&V, &Client, Limits),
    open: &Arc<Open>,
) {
    let Some(permit) = open.slot.all().take_stream() else {
        respond.send_reset(Reason::REFUSED_STREAM);
        return;
    };
    if open.streams.fetch_add(1, Relaxed) == 0 {
        open.slot.work();
    }
    let guard = Guard { open: open.clone(), _permit: permit };
    let (service, client) = (service.clone(), client.clone());
    tokio::spawn(async move {
        service.stream(request, respond, client, limits).await;
        drop(guard);
    });
}

/// Sends a response. A client that reads nothing of it for `idle_timeout` loses its stream.
pub async fn respond(mut respond: SendResponse<Bytes>, response: Response<Bytes>, idle_timeout: Duration) {
    let (mut head, mut body) = response.into_parts();
    if !head.headers.contains_key(DATE) {
        insert_date(&mut head.headers);
    }
    let Ok(mut stream) = respond.send_response(Response::from_parts(head, ()), body.is_empty()) else { return };
    while !body.is_empty() {
        stream.reserve_capacity(body.len());
        let capacity = match stream.capacity() {
            0 => timeout(idle_timeout, poll_fn(|cx| stream.poll_capacity(cx))).await,
            capacity => Ok(Some(Ok(capacity))),
        };
        match capacity {
            Ok(Some(Ok(capacity))) => {
                let part = body.split_to(capacity.min(body.len()));
                if stream.send_data(part, body.is_empty()).is_err() {
                    return;
                }
            }
            Ok(_) => return,
            Err(_) => {
                stream.send_reset(Reason::CANCEL);
                return;
            }
        }
    }
}

/// Reads and throws away the rest of a request's body, so that a client that sends all before it reads gets its response. A reset
/// would make some clients lose it, against RFC 9113 §8.1 (curl 7.88).
pub async fn discard(mut body: RecvStream) {
    let read = async {
        while let Some(Ok(data)) = body.data().await {
            if body.flow_control().release_capacity(data.len()).is_err() {
                break;
            }
        }
    };
    let _ = timeout(DISCARD, read).await;
}

/// The streams of a connection.
struct Open {
    streams: AtomicUsize,
    slot: Occupied,
}

/// One stream. When the last one has ended, the connection waits for a request.
struct Guard {
    open: Arc<Open>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.open.streams.fetch_sub(1, Relaxed) == 1 {
            self.open.slot.wait();
            self.open.slot.wake();
        }
    }
}

/// How long a connection may be without a request.
struct Waiting {
    timer: Timer,
    limits: Limits,
    has_streams: bool,
}

impl Waiting {
    /// Ready when the connection has been without a request for too long, or makes room for another.
    fn poll(&mut self, open: &Open, cx: &mut Context<'_>) -> Poll<()> {
        if open.streams.load(Relaxed) > 0 {
            self.has_streams = true;
            return Poll::Pending;
        }
        if std::mem::take(&mut self.has_streams) {
            self.timer.start(self.limits.idle_timeout);
        }
        if open.slot.is_evicted() { Poll::Ready(()) } else { self.timer.poll(cx) }
    }
}
