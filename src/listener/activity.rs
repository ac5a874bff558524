//! What a connection is doing, and how long it may.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::Service;
use hyper::{Request, Response, Version};
use pin_project_lite::pin_project;
use tokio::time::Instant;

use super::Limits;
use super::client::Upgraded;

/// A connection without a request is parked after this: it gives back its buffers. Far more than passes between two
/// requests of a client in a hurry.
const PARK_AFTER: Duration = Duration::from_millis(10);

/// What a connection is doing, as far as its time limits go.
#[derive(Debug)]
pub(super) struct Activity {
    /// Who is at the other end.
    client: IpAddr,
    /// Who goes on with the connection when HTTP on it has ended with an upgrade.
    successor: Mutex<Option<Successor>>,
    /// How much has been taken up: requests whose body is being read, and answers that are being written.
    begun: AtomicUsize,
    /// How much of that is done, or lost.
    ended: AtomicUsize,
    /// How often the client has sent something after that.
    resumed: AtomicUsize,
    /// Whether nothing has come since the last work was done.
    idle: AtomicBool,
    /// Whether something of an answer may not have reached the system yet.
    unflushed: AtomicBool,
    /// Whether the client may have more to send that nobody reads.
    unread: AtomicBool,
    /// Whether it is HTTP/2, where what comes between two requests need not be a header.
    multiplexed: AtomicBool,
    /// Whether it is HTTP/1.0, where the end of the connection may be the end of the answer.
    ends_answers: AtomicBool,
    /// Whether it has to end as no answer ends.
    broken: AtomicBool,
}

/// What a connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// The rest of a header; of a new connection, all of it.
    Header,
    /// The service.
    Answer,
    /// The client, to take the rest of an answer.
    Flush,
    /// The next request.
    Request,
}

/// What has to be done with a connection whose time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Close it.
    Close,
    /// Park it.
    Park,
    /// Nothing yet.
    Nothing,
}

impl Activity {
    /// Of a new connection.
    pub(super) fn new(client: IpAddr) -> Self {
        Self {
            client,
            successor: Mutex::new(None),
            begun: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            resumed: AtomicUsize::new(0),
            idle: AtomicBool::new(false),
            unflushed: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            multiplexed: AtomicBool::new(false),
            ends_answers: AtomicBool::new(false),
            broken: AtomicBool::new(false),
        }
    }

    fn waiting(&self) -> Waiting {
        match self.idle.load(Relaxed) {
            _ if self.is_working() => Waiting::Answer,
            false => Waiting::Header,
            true if self.unflushed.load(Relaxed) => Waiting::Flush,
            true => Waiting::Request,
        }
    }

    fn is_working(&self) -> bool {
        self.begun.load(Relaxed) != self.ended.load(Relaxed)
    }

    /// How often what is waited for has changed.
    fn changes(&self) -> usize {
        let counts = [&self.begun, &self.ended, &self.resumed].map(|count| count.load(Relaxed));
        counts.into_iter().fold(0, usize::wrapping_add)
    }

    /// The client has sent something, or some of what it sent before is still to be read.
    pub(super) fn received(&self) {
        if self.is_working() || self.multiplexed.load(Relaxed) {
            return;
        }
        self.unread.store(true, Relaxed);
        if self.idle.load(Relaxed) {
            self.idle.store(false, Relaxed);
            self.resumed.fetch_add(1, Relaxed);
        }
    }

    /// All that has been answered so far has reached the system.
    pub(super) fn flushed(&self) {
        self.unflushed.store(false, Relaxed);
    }

    /// Takes up a request: the answer to it is work, and so is its body.
    fn begin(self: &Arc<Self>, request: Request<Incoming>) -> (Answering, Request<RequestBody>) {
        let multiplexed = request.version() >= Version::HTTP_2;
        let has_body = !request.body().is_end_stream();
        self.multiplexed.store(multiplexed, Relaxed);
        self.ends_answers.store(request.version() == Version::HTTP_10, Relaxed);
        self.unread.store(has_body && !multiplexed, Relaxed);
        let answer = Answering(self.work());
        let reading = has_body.then(|| self.work());
        (answer, request.map(|body| RequestBody { body, reading, activity: self.clone() }))
    }

    fn work(self: &Arc<Self>) -> Work {
        self.begun.fetch_add(1, Relaxed);
        Work(self.clone())
    }

    /// Who goes on with the connection, if somebody does.
    pub(super) fn successor(&self) -> Option<Successor> {
        self.successor.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Nothing more is expected of the client.
    pub(super) fn give_up(&self) {
        self.unread.store(false, Relaxed);
    }

    /// Whether an answer has broken off in such a way that the client would take it for whole.
    pub(super) fn must_reset(&self) -> bool {
        self.broken.load(Relaxed)
    }

    /// Whether closing the connection now could reset it under the client's hands.
    pub(super) fn must_linger(&self) -> bool {
        self.unread.load(Relaxed)
    }
}

/// A body that is being read, or an answer that is being made.
#[derive(Debug)]
struct Work(Arc<Activity>);

/// An answer that is being made. When hyper has taken the last of it, it has yet to write that: only a flush after this
/// tells that it has, since in the midst of an answer it flushes as well.
#[derive(Debug)]
struct Answering(Work);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.unflushed.store(true, Relaxed);
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.0.idle.store(true, Relaxed);
        self.0.ended.fetch_add(1, Relaxed);
    }
}

/// When something has to be done with a connection. The deadline is put off only when its time has come, not with each
/// request.
#[derive(Debug)]
pub(super) struct Clock<'a> {
    pub(super) activity: &'a Activity,
    limits: Limits,
    parks: bool,
    /// Since when the connection waits for what it waits for, as of so many changes.
    since: Instant,
    changes: usize,
    /// Whether the deadline is that for parking: nothing is due before that, so that until then the time need not be read.
    soon: bool,
    /// When to ask [`Clock::due`].
    pub(super) deadline: Instant,
}

impl<'a> Clock<'a> {
    /// A clock for a connection that can be parked, or cannot.
    pub(super) fn new(activity: &'a Activity, limits: Limits, parks: bool) -> Self {
        let since = Instant::now();
        let changes = activity.changes();
        Self { activity, limits, parks, since, changes, soon: false, deadline: since + limits.header_timeout }
    }

    /// What is to be done when; `None` while it is the service that is waited for.
    fn next(&mut self) -> Option<(Due, Instant)> {
        let changes = self.activity.changes();
        if changes != self.changes {
            self.changes = changes;
            self.since = Instant::now();
        }
        match self.activity.waiting() {
            Waiting::Answer => None,
            Waiting::Header => Some((Due::Close, self.since + self.limits.header_timeout)),
            Waiting::Request if self.parks => Some((Due::Park, self.since + PARK_AFTER)),
            Waiting::Request | Waiting::Flush => Some((Due::Close, self.since + self.limits.idle_timeout)),
        }
    }

    /// Whether the deadline has moved closer.
    pub(super) fn is_earlier(&mut self) -> bool {
        if self.soon {
            return false;
        }
        match self.next() {
            Some((due, at)) if at < self.deadline => {
                self.soon = due == Due::Park;
                self.deadline = at;
                true
            }
            _ => false,
        }
    }

    /// What to do now that the deadline has come. If nothing, it is put off.
    pub(super) fn due(&mut self) -> Due {
        let now = Instant::now();
        let next = self.next();
        self.soon = matches!(next, Some((Due::Park, _)));
        match next {
            Some((due, at)) if at <= now => return due,
            Some((_, at)) => self.deadline = at,
            None => self.deadline = now + self.limits.idle_timeout,
        }
        Due::Nothing
    }
}

/// A service that tells when it is at work.
#[derive(Clone, Debug)]
pub(super) struct Tracked<S> {
    pub(super) service: S,
    pub(super) activity: Arc<Activity>,
}

impl<S, B> Service<Request<Incoming>> for Tracked<S>
where
    S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible>,
{
    type Response = Response<TrackedBody<B>>;
    type Error = Infallible;
    type Future = TrackedFuture<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (answer, request) = self.activity.begin(request);
        TrackedFuture { future: self.service.call(request), answer: Some(answer) }
    }
}

pin_project! {
    pub(super) struct TrackedFuture<F> {
        #[pin]
        future: F,
        answer: Option<Answering>,
    }
}

impl<F, B> Future for TrackedFuture<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = Result<Response<TrackedBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(response) = ready!(this.future.poll(cx));
        let answer = this.answer.take();
        Poll::Ready(Ok(response.map(|body| TrackedBody { body, answer })))
    }
}

pin_project! {
    /// The body of an answer: until it ends or is lost, its request is being answered.
    pub(super) struct TrackedBody<B> {
        #[pin]
        body: B,
        answer: Option<Answering>,
    }
}

impl<B: Body> Body for TrackedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = this.body.poll_frame(cx);
        if let (Poll::Ready(Some(Err(_))), Some(Answering(Work(activity)))) = (&frame, this.answer) {
            activity.broken.store(activity.ends_answers.load(Relaxed), Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a request. While it is being read, the client may take its time: whoever reads sets a limit to that.
#[derive(Debug)]
pub struct RequestBody {
    body: Incoming,
    reading: Option<Work>,
    activity: Arc<Activity>,
}

impl RequestBody {
    /// Who has sent the request.
    #[must_use]
    pub fn client(&self) -> IpAddr {
        self.activity.client
    }

    /// The connection, for when the answer to this request upgrades it.
    #[must_use]
    pub fn upgrade(&self) -> Upgrade {
        Upgrade(self.activity.clone())
    }
}

/// A connection that an answer of `101 Switching Protocols` may take out of HTTP (RFC 9110 §7.8).
#[derive(Debug)]
pub struct Upgrade(Arc<Activity>);

impl Upgrade {
    /// Hands the connection over, once the answer has been written. What the client has sent already is read first.
    pub fn then<F>(self, successor: impl FnOnce(Upgraded) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let successor = Successor(Box::new(move |connection| Box::pin(successor(connection))));
        *self.0.successor.lock().unwrap_or_else(PoisonError::into_inner) = Some(successor);
    }
}

type Hereafter = Pin<Box<dyn Future<Output = ()> + Send>>;

/// What goes on with a connection.
pub(super) struct Successor(pub(super) Box<dyn FnOnce(Upgraded) -> Hereafter + Send>);

impl std::fmt::Debug for Successor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Successor")
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if (frame.is_none() || self.body.is_end_stream())
            && let Some(reading) = self.reading.take()
        {
            reading.0.unread.store(false, Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
