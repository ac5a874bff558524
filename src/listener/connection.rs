//! One connection, from its first byte to its last.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Poll, ready};

use bytes::Bytes;
use hyper::body::Body;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulConnection;
use tokio::sync::Semaphore;
use tokio::time::{sleep_until, timeout};
use tracing::debug;

use super::client::Client;
use super::clock::{Clock, Due};
use super::cut::cut;
use super::exchange::{Successor, Tracked};
use super::streams::Streams;
use super::{BoxError, HttpService, Limits};
use crate::shutdown::Stop;

/// How much of the bodies on an HTTP/2 connection is taken before somebody reads them, in bytes: all of it is kept in memory.
const WINDOW: u32 = 256 * 1024;

/// hyper, set up for both protocols.
#[derive(Debug)]
pub(super) struct Engines {
    http1: http1::Builder,
    header_size: u32,
    /// The slots of HTTP/2 requests.
    streams: Arc<Semaphore>,
}

impl Engines {
    pub(super) fn new(limits: Limits) -> Self {
        let mut http1 = http1::Builder::new();
        // No timeout of hyper's, which counts idle time as time to send a header. One write of one piece, since the
        // answers are small. And no `pipeline_flush`: it keeps an answer back while anything unread follows the request,
        // be it a stray line break, half of the next request, or the rest of one that cannot be read. But `half_close`,
        // since who has sent all of a request may close that direction before the answer is written.
        http1.max_buf_size(limits.header_size).header_read_timeout(None).writev(false).half_close(true);
        if let Some(lines) = limits.header_lines {
            http1.max_headers(lines);
        }
        let header_size = u32::try_from(limits.header_size).unwrap_or(u32::MAX);
        Self { http1, header_size, streams: Arc::new(Semaphore::new(limits.streams.min(Semaphore::MAX_PERMITS))) }
    }

    /// That for HTTP/2, with what runs the streams of one connection.
    fn http2(&self, streams: Streams) -> http2::Builder<Streams> {
        let mut http2 = http2::Builder::new(streams);
        http2.max_header_list_size(self.header_size).max_concurrent_streams(128);
        http2.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
        http2
    }
}

/// How a connection has come to rest.
enum Rest {
    /// It is over.
    Closed,
    /// There is no request, so that it can do without its buffers.
    Parked,
}

/// Serves a connection until its last request is answered or a time limit passes.
pub(super) async fn serve<S, B>(mut client: Client, service: S, engines: Arc<Engines>, limits: Limits, mut stop: Stop)
where
    S: HttpService<B> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let activity = client.activity().clone();
    let service = Tracked { service, activity: activity.clone() };
    let begins_http2 = tokio::select! {
        begins = timeout(limits.header_timeout, client.begins_http2()) => begins.ok().flatten(),
        () = stop.draining() => None,
        () = activity.eviction() => None,
    };
    match begins_http2 {
        None => activity.give_up(),
        Some(true) => {
            // In a box, since each connection, of either protocol, would make room for it.
            let streams = Streams::new(activity.clone(), limits.idle_timeout, engines.streams.clone());
            let mut connection = Box::pin(engines.http2(streams).serve_connection(client, service));
            drive(connection.as_mut(), &mut Clock::new(&activity, limits, false), &mut stop).await;
        }
        Some(false) => loop {
            let mut connection = Box::new(engines.http1.serve_connection(client, service.clone()));
            let mut clock = Clock::new(&activity, limits, true);
            let rest = drive(Pin::new(&mut *connection), &mut clock, &mut stop).await;
            let successor = activity.successor();
            if matches!(rest, Rest::Closed) && successor.is_none() {
                return;
            }
            let parts = connection.into_parts();
            client = parts.io;
            if let Some(Successor(go_on)) = successor {
                client.put_back(parts.read_buf);
                activity.give_up();
                return go_on(TokioIo::new(client)).await;
            }
            if client.put_back(parts.read_buf) {
                // The next request has begun to come along with the last.
                activity.received();
                continue;
            }
            let arrived = tokio::select! {
                readable = timeout(limits.idle_timeout, client.readable()) => readable.is_ok_and(|result| result.is_ok()),
                () = stop.draining() => false,
                () = activity.eviction() => false,
            };
            if !arrived {
                return;
            }
            activity.received();
        },
    }
}

/// Lets hyper work on a connection.
async fn drive<C>(mut connection: Pin<&mut C>, clock: &mut Clock<'_>, stop: &mut Stop) -> Rest
where
    C: GracefulConnection<Error: std::fmt::Display>,
{
    let mut timer = pin!(sleep_until(clock.deadline));
    let phase = stop.clone();
    let mut draining = pin!(stop.draining());
    let activity = clock.activity;
    let mut eviction = pin!(activity.eviction());
    let mut cuts = clock.activity.cuts.next();
    let mut next_cut = pin!(cut(cuts.clone()));
    let (mut asked, mut drains, mut cuts_now) = (false, false, false);
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                if let Err(error) = result {
                    debug!("a connection failed: {error}");
                }
                return Poll::Ready(Rest::Closed);
            }
            if std::mem::take(&mut cuts_now) && clock.activity.progress.is_deaf() {
                clock.activity.abandon();
                return Poll::Ready(Rest::Closed);
            }
            // Asked once, they wake this task when there is news; asking each time would cost each request.
            if (!asked || cuts.has_changed().unwrap_or(false)) && next_cut.as_mut().poll(cx).is_ready() {
                cuts.mark_unchanged();
                next_cut.set(cut(cuts.clone()));
                asked = false;
                // Most answers hear of it when hyper asks for more of them.
                cuts_now = true;
                continue;
            }
            if !drains && (!asked || phase.has_changed()) && draining.as_mut().poll(cx).is_ready() {
                drains = true;
                connection.as_mut().graceful_shutdown();
                continue;
            }
            if activity.is_evicted() || (!asked && eviction.as_mut().poll(cx).is_ready()) {
                activity.abandon();
                return Poll::Ready(Rest::Closed);
            }
            asked = true;
            if clock.is_earlier() {
                timer.as_mut().reset(clock.deadline);
            }
            ready!(timer.as_mut().poll(cx));
            match clock.due() {
                Due::Close => {
                    clock.activity.abandon();
                    return Poll::Ready(Rest::Closed);
                }
                Due::Park => return Poll::Ready(if drains { Rest::Closed } else { Rest::Parked }),
                Due::Nothing => timer.as_mut().reset(clock.deadline),
            }
        }
    })
    .await
}
