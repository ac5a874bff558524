//! One request and its answer, as a connection follows them.

use std::convert::Infallible;
use std::future::pending;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::HeaderValue;
use hyper::service::Service;
use hyper::{Request, Response};
use pin_project_lite::pin_project;

use super::activity::{Activity, Work};
use super::client::{Upgraded, left};
use super::cut::Cut;

/// How an answer gets on.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Whether hyper was given a part of it, and has not asked for the next: the client has yet to take that.
    offered: AtomicBool,
    /// How many parts hyper was given.
    parts: AtomicUsize,
    /// Whether a cut ends it.
    can_be_cut: AtomicBool,
}

impl Progress {
    /// Of a new answer.
    pub(super) fn begin(&self) {
        self.offered.store(false, Relaxed);
        self.can_be_cut.store(false, Relaxed);
    }

    /// Whether it is the client that keeps it from going on.
    pub(super) fn waits_for_client(&self) -> bool {
        self.offered.load(Relaxed)
    }

    /// How many parts hyper was given so far.
    pub(super) fn parts(&self) -> usize {
        self.parts.load(Relaxed)
    }

    /// Whether a cut ends it from now on.
    pub(super) fn let_be_cut(&self, can_be: bool) {
        self.can_be_cut.store(can_be, Relaxed);
    }

    /// Whether a cut ends it, and the service cannot hear of that: hyper asks for no more of the answer.
    pub(super) fn is_deaf(&self) -> bool {
        self.offered.load(Relaxed) && self.can_be_cut.load(Relaxed)
    }
}

/// An answer that is being made.
#[derive(Debug)]
pub(super) struct Answering {
    work: Work,
    progress: Arc<Progress>,
}

impl Answering {
    pub(super) fn new(work: Work, progress: Arc<Progress>) -> Self {
        Self { work, progress }
    }

    /// What hyper has got when it asked for more.
    fn gave<D, E>(&self, frame: &Poll<Option<Result<Frame<D>, E>>>) {
        match frame {
            Poll::Pending => self.progress.offered.store(false, Relaxed),
            Poll::Ready(Some(Ok(_))) => {
                self.progress.offered.store(true, Relaxed);
                self.progress.parts.fetch_add(1, Relaxed);
            }
            Poll::Ready(Some(Err(_))) => self.work.activity().broke_off(),
            Poll::Ready(None) => {}
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.progress.offered.store(false, Relaxed);
        self.work.activity().answered();
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
        if let Some(answer) = this.answer {
            answer.gave(&frame);
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
    progress: Arc<Progress>,
}

impl RequestBody {
    pub(super) fn new(body: Incoming, reading: Option<Work>, activity: Arc<Activity>, progress: Arc<Progress>) -> Self {
        Self { body, reading, activity, progress }
    }

    /// Lets the answer to this request be cut, and tells when it has to end.
    #[must_use]
    pub fn cut(&self) -> Cut {
        Cut::new(self.activity.cuts.next(), self.progress.clone())
    }

    /// Who has sent the request.
    #[must_use]
    pub fn client(&self) -> IpAddr {
        self.activity.client
    }

    /// The same as the value of a header. An IPv4-mapped address is an IPv4 address.
    #[must_use]
    pub fn client_as_header(&self) -> HeaderValue {
        self.activity.client_as_header()
    }

    /// Waits until the client has left. Over HTTP/1 it may only have closed its direction, which looks the same: it can
    /// still be answered. Over HTTP/2 this waits for ever, since hyper gives up a request whose client has left.
    ///
    /// Costs a file descriptor while it waits. It does not notice a client that leaves with so much unread that the
    /// system does not take the end of it.
    pub fn left(&self) -> impl Future<Output = ()> + Send + 'static {
        let activity = self.activity.clone();
        async move {
            if activity.is_multiplexed() {
                return pending().await;
            }
            let watched = match activity.watch().await {
                Some(descriptor) => left(descriptor).await.is_ok(),
                None => false,
            };
            if !watched {
                pending::<()>().await;
            }
        }
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
        self.0.succeed(successor);
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
            reading.activity().read();
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
