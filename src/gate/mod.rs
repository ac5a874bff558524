//! The traffic listener: a request is refused with the reason, in the format that the client asks for, or, where there is
//! an application behind this and maintenance mode is off, forwarded to it. In maintenance an operator may let some
//! through, or let them wait for its end.
//!
//! Proxies that forward themselves may ask `forward_auth`, on the admin listener, whether they may.
//!
//! The way of one request: `admission` asks the pure `verdict` what becomes of it, as the state and the `policy` say.
//! Refused, it gets a `page` that suits its client, by `negotiation`. Let in, `proxy` makes of it what the application
//! gets, sends it on a connection of `upstream`, and passes the answer on.

pub mod admission;
pub mod cut_off;
pub mod forward_auth;
mod grpc;
mod negotiation;
pub mod page;
pub mod policy;
mod proxy;
mod texts;
pub mod upstream;
mod verdict;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CONNECTION, EXPECT, HeaderValue, REFERRER_POLICY};
use hyper::{Request, Response, StatusCode, Version};
use jiff::Timestamp;
use prometheus::IntCounter;
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;

use self::admission::{Admission, Policies};
use self::grpc::GrpcAnswer;
use self::negotiation::language::Lately;
use self::negotiation::{Asked, Wanted};
use self::page::Pages;
use self::page::design::Design;
use self::policy::bypass::Bypass;
use self::policy::hold::{self, Place};
use self::proxy::pass::Pass;
use self::proxy::{Answer, Failure, Proxy};
use self::upstream::{InFlight, Upstream};
use crate::listener::RequestBody;
use crate::maintenance::state::{Mode, State};
use crate::metrics::Requests;

/// How much of a refused request's body is read and thrown away, in bytes, so that the connection can be kept.
const DISCARD: usize = 1024 * 1024;
/// For how long.
const DISCARD_FOR: Duration = Duration::from_secs(5);

/// How often to ask whether requests are still in flight, when the process is about to end.
const ASK: Duration = Duration::from_millis(20);

/// Refuses requests, or forwards them.
#[derive(Clone)]
pub struct Gate(Arc<Shared>);

struct Shared {
    refused: IntCounter,
    rendered: Mutex<Rendered>,
    forwarding: Option<Forwarding>,
}

/// What it takes to let requests in.
struct Forwarding {
    state: watch::Receiver<State>,
    proxy: Arc<Proxy>,
    requests: Arc<Requests>,
    policies: Option<Policies>,
}

/// Where and how requests are forwarded, and what is counted of it.
#[derive(Clone, Debug)]
pub struct Forward {
    /// The application.
    pub upstream: Upstream,
    /// Each connection to it has one of these. Where none is left, requests wait for one.
    pub places: Arc<Semaphore>,
    /// How long one is kept without a request.
    pub idle_timeout: Duration,
    /// How long it may take to accept a connection, to begin its answer, and between two parts of it.
    pub timeout: Duration,
    /// What is counted of it.
    pub requests: Requests,
    /// What is let through in maintenance, or waits, if anything does.
    pub policies: Option<Policies>,
}

/// The pages, and where to hear that they are out of date.
#[derive(Debug)]
struct Rendered {
    state: watch::Receiver<State>,
    design: watch::Receiver<Arc<Design>>,
    retry_after: Duration,
    /// Whether nobody is refused while maintenance mode is off.
    forwards: bool,
    lately: Lately,
    pages: Pages,
}

impl Gate {
    /// A gate that refuses with the reason in `state`, and tells clients to come back after `retry_after` where the
    /// end is not known, on a page of this design. It counts what it refuses. With `forward`, it lets requests in while
    /// maintenance mode is off.
    #[must_use]
    pub fn new(
        mut state: watch::Receiver<State>,
        mut design: watch::Receiver<Arc<Design>>,
        retry_after: Duration,
        refused: IntCounter,
        forward: Option<Forward>,
    ) -> Self {
        let forwarding = forward.map(|forward| {
            let requests = Arc::new(forward.requests.clone());
            let proxy = Arc::new(Proxy::new(&forward, requests.clone()));
            Forwarding { state: state.clone(), proxy, requests, policies: forward.policies }
        });
        let pages = Pages::new(state.borrow_and_update().mode(), retry_after, design.borrow_and_update().clone());
        let forwards = forwarding.is_some();
        let rendered = Rendered { state, design, retry_after, forwards, lately: Lately::default(), pages };
        Self(Arc::new(Shared { refused, rendered: Mutex::new(rendered), forwarding }))
    }

    /// Waits until the application is at work on none of the requests that were let in, also of those whose clients have left.
    pub async fn finished(&self) {
        let Some(forwarding) = &self.0.forwarding else { return };
        while forwarding.requests.in_flight.get() > 0 {
            sleep(ASK).await;
        }
    }

    /// The refusal of a request that says this of itself.
    fn refuse(&self, asked: &Asked) -> Response<Full<Bytes>> {
        let response = self.with_pages(asked, Pages::refusal);
        self.0.refused.inc();
        response
    }

    /// An answer by the pages as they are now, to a request that says this of itself.
    fn with_pages(
        &self,
        asked: &Asked,
        answer: impl FnOnce(&mut Pages, Wanted) -> Response<Full<Bytes>>,
    ) -> Response<Full<Bytes>> {
        let mut rendered = self.0.rendered.lock().unwrap_or_else(PoisonError::into_inner);
        rendered.refresh();
        let wanted = asked.wanted(&mut rendered.lately);
        answer(&mut rendered.pages, wanted)
    }
}

impl Rendered {
    /// They are made anew if the state or the design has changed, or the end that was expected has passed: not once a
    /// request.
    fn refresh(&mut self) {
        if self.state.has_changed().unwrap_or(false) || self.pages.is_outdated() {
            let state = self.state.borrow_and_update();
            // Who is refused while maintenance ends is still told why.
            if !(self.forwards && matches!(state.mode(), Mode::Off)) {
                self.pages = Pages::new(state.mode(), self.retry_after, self.design.borrow().clone());
            }
        }
        if self.design.has_changed().unwrap_or(false) {
            self.pages.redesign(self.design.borrow_and_update().clone());
        }
    }
}

impl hyper::service::Service<Request<RequestBody>> for Gate {
    type Response = Response<Reply>;
    type Error = Infallible;
    type Future = Replying;

    fn call(&self, request: Request<RequestBody>) -> Self::Future {
        let Some(forwarding) = &self.0.forwarding else { return Replying::now(self.refused(request)) };
        let policies = forwarding.policies.as_ref();
        if let Some(bypass) = policies.and_then(|policies| policies.bypass.as_deref())
            && Bypass::owns(request.uri().path())
        {
            return Replying::now(self.visited(request, bypass));
        }
        match forwarding.admit(&request) {
            Admission::Granted(in_flight, pass) => {
                let proxy = forwarding.proxy.clone();
                Replying::Forwarding(Box::pin(self.clone().forward(request, proxy, in_flight, pass)))
            }
            Admission::Held(until) => match policies.and_then(|policies| policies.places.take()) {
                Some(place) => Replying::Forwarding(Box::pin(self.clone().hold(request, place, until))),
                None => Replying::now(self.refused(request)),
            },
            Admission::Refused => Replying::now(self.refused(request)),
        }
    }
}

impl Gate {
    async fn forward(
        self,
        mut request: Request<RequestBody>,
        proxy: Arc<Proxy>,
        in_flight: InFlight,
        pass: Pass,
    ) -> Response<Reply> {
        if self.policies().is_some_and(|policies| policies.bypass.is_some()) {
            Bypass::strip(request.headers_mut());
        }
        let asked = Asked::by(&request);
        let is_http1 = request.version() < Version::HTTP_2;
        match proxy.forward(request, in_flight, pass).await {
            Ok(answer) => answer.map(|body| match body {
                None => Reply::Own(Full::default()),
                Some(answer) if asked.is_grpc() && !is_http1 => {
                    Reply::Grpc(Box::new(GrpcAnswer::new(answer, asked, self)))
                }
                Some(answer) => Reply::Forwarded(answer),
            }),
            Err(failure) => self.failed(&failure, &asked, is_http1).map(Reply::Own),
        }
    }

    /// Lets a request wait in its place until maintenance is over, and judges it anew then.
    async fn hold(self, request: Request<RequestBody>, place: Place, until: Instant) -> Response<Reply> {
        match self.held(&request, until).await {
            Some((proxy, in_flight, pass)) => {
                drop(place);
                self.forward(request, proxy, in_flight, pass).await
            }
            None => self.refused(request).map(Reply::Own),
        }
    }

    /// What a request that waits is let in with, if it is.
    async fn held(&self, request: &Request<RequestBody>, mut until: Instant) -> Option<(Arc<Proxy>, InFlight, Pass)> {
        let forwarding = self.0.forwarding.as_ref()?;
        let mut state = forwarding.state.clone();
        let mut stop = forwarding.policies.as_ref()?.stop.clone();
        let mut left = pin!(request.body().left());
        while hold::wait(&mut state, until, left.as_mut(), &mut stop).await {
            match forwarding.admit(request) {
                Admission::Granted(in_flight, pass) => return Some((forwarding.proxy.clone(), in_flight, pass)),
                // It has begun again.
                Admission::Held(again) => until = again,
                Admission::Refused => return None,
            }
        }
        None
    }

    fn policies(&self) -> Option<&Policies> {
        self.0.forwarding.as_ref()?.policies.as_ref()
    }

    /// The answer to a request for a path that the application has no say in.
    fn visited(&self, request: Request<RequestBody>, bypass: &Bypass) -> Response<Full<Bytes>> {
        let response = bypass.visit(&request, Timestamp::now()).unwrap_or_else(|| {
            self.0.refused.inc();
            let asked = Asked::by(&request);
            let mut response =
                self.with_pages(&asked, |pages, wanted| pages.failure(StatusCode::NOT_FOUND, false, wanted));
            // The path may be a token that is almost right, or that was right until just now.
            response.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
            response
        });
        Self::answered(response, request)
    }

    /// The answer to a request that the application has not answered.
    fn failed(&self, failure: &Failure, asked: &Asked, is_http1: bool) -> Response<Full<Bytes>> {
        let mut response = self.with_pages(asked, |pages, wanted| match failure {
            Failure::Cut => pages.cut(wanted),
            failure => pages.failure(failure.status(), failure.may_have_arrived(), wanted),
        });
        if is_http1 && matches!(failure, Failure::Ambiguous(_) | Failure::Tunnel) {
            // Whoever is unclear in one request is not trusted to be clear in where the next begins.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn refused(&self, request: Request<RequestBody>) -> Response<Full<Bytes>> {
        Self::answered(self.refuse(&Asked::by(&request)), request)
    }

    /// Answers a request without its body, and sees to what its client still sends.
    fn answered<B>(mut response: Response<Full<Bytes>>, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
    {
        if !request.body().is_end_stream() {
            let is_http1 = request.version() < Version::HTTP_2;
            if is_http1 && request.body().size_hint().lower() > DISCARD as u64 {
                // The connection will not outlive this: the client need not send the rest, nor use it again.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            } else if !is_http1 || !request.headers().contains_key(EXPECT) {
                tokio::spawn(discard(request.into_body()));
            }
            // Else the client waits for `100 Continue`: it sees the answer and sends nothing.
        }
        response
    }
}

/// An answer, of either kind.
#[expect(clippy::large_enum_variant, reason = "most are the application's")]
pub enum Reply {
    /// Made here.
    Own(Full<Bytes>),
    /// The application's.
    Forwarded(Answer),
    /// The application's to a gRPC client.
    Grpc(Box<GrpcAnswer>),
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Forwarded(body) => Pin::new(body).poll_frame(cx),
            Self::Grpc(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Forwarded(body) => body.is_end_stream(),
            Self::Grpc(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Forwarded(body) => body.size_hint(),
            Self::Grpc(body) => body.size_hint(),
        }
    }
}

/// An answer that is being made.
#[expect(clippy::large_enum_variant, reason = "a refusal should not cost an allocation")]
pub enum Replying {
    /// It is there.
    Refused(Ready<Result<Response<Reply>, Infallible>>),
    /// The application is asked, once the request need not wait.
    Forwarding(Pin<Box<dyn Future<Output = Response<Reply>> + Send>>),
}

impl Replying {
    fn now(response: Response<Full<Bytes>>) -> Self {
        Self::Refused(ready(Ok(response.map(Reply::Own))))
    }
}

impl Future for Replying {
    type Output = Result<Response<Reply>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Refused(reply) => Pin::new(reply).poll(cx),
            Self::Forwarding(reply) => reply.as_mut().poll(cx).map(Ok),
        }
    }
}

/// Reads a body to its end so that the next request on its connection can be read. If it is too long, the
/// connection closes instead; over HTTP/2 only its stream is reset, and not before the client has had time to take up
/// the answer: against RFC 9113 §8.1, curl 7.88 loses it if the reset comes with it.
async fn discard(mut body: impl Body<Data = Bytes> + Unpin) {
    let mut left = DISCARD;
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_FOR, read).await;
}
