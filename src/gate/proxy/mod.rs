//! Forwarding: one request to the application, and its answer.

pub(super) mod headers;
mod http2;
pub(super) mod pass;
mod patience;
mod received;

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::ext::ReasonPhrase;
use hyper::header::{CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::time::{Instant, timeout};
use tracing::warn;

use self::headers::Ambiguous;
use self::pass::{Outcome, Pass};
use self::patience::Patience;
use self::received::Received;
use super::Forward;
use super::upstream::http1::Pool;
use super::upstream::http1::connection::{Connection, Stream};
use super::upstream::http2::{Multiplexed, OpenError};
use super::upstream::{InFlight, Protocol, Upstream};
use crate::listener::{RequestBody, Upgraded};
use crate::metrics::Requests;

/// Forwards requests to the application.
pub(super) struct Proxy {
    upstream: Upstream,
    pool: Pool<Outgoing>,
    /// Instead of the pool, where the application speaks HTTP/2.
    multiplexed: Option<Multiplexed>,
    host: HeaderValue,
    /// For the application to accept a connection, to begin its answer, and between two parts of it.
    patience: Duration,
    requests: Arc<Requests>,
}

/// Why there is no answer of the application's.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The request could be read in more than one way.
    #[error(transparent)]
    Ambiguous(#[from] Ambiguous),
    /// `CONNECT`.
    #[error("tunnels are not forwarded")]
    Tunnel,
    /// The client does not go on with its request.
    #[error("the client does not send the rest of its request")]
    ClientTimeout,
    /// The client has left in the middle of its request.
    #[error("the client has left")]
    ClientGone,
    /// It does not accept a connection.
    #[error("does not accept a connection: {0}")]
    Connect(io::Error),
    /// It does not accept one in time, or does not begin to answer.
    #[error("{0} in time")]
    Timeout(&'static str),
    /// It has closed the connection.
    #[error("has closed the connection instead of an answer: {0}")]
    Closed(hyper::Error),
    /// It answers something else than HTTP.
    #[error("does not answer in HTTP: {0}")]
    Protocol(hyper::Error),
    /// It does not begin HTTP/2.
    #[error(transparent)]
    Open(OpenError),
    /// It has closed the HTTP/2 connection.
    #[error("has closed the connection instead of an answer: {0}")]
    Lost(#[source] h2::Error),
    /// It has reset the stream.
    #[error("has reset the request: {0}")]
    Reset(#[source] h2::Error),
    /// It says that it has not taken up the request.
    #[error("has refused the request: {0}")]
    Refused(#[source] h2::Error),
    /// It answers something else than HTTP/2.
    #[error("does not answer in HTTP/2: {0}")]
    Malformed(#[source] h2::Error),
    /// It answers in a transfer coding that nobody has asked for.
    #[error("answers in a transfer coding other than chunked")]
    Coding,
    /// It goes on in a protocol that nobody has asked for.
    #[error("switches to a protocol that it was not asked for")]
    Unasked,
    /// Maintenance has begun, and the time to finish is over.
    #[error("cut")]
    Cut,
}

impl Failure {
    /// What the client is told.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Ambiguous(Ambiguous::Coding) | Self::Tunnel => StatusCode::NOT_IMPLEMENTED,
            Self::Ambiguous(_) => StatusCode::BAD_REQUEST,
            Self::ClientTimeout | Self::ClientGone => StatusCode::REQUEST_TIMEOUT,
            Self::Connect(_) | Self::Closed(_) | Self::Protocol(_) | Self::Coding | Self::Unasked => {
                StatusCode::BAD_GATEWAY
            }
            Self::Open(_) | Self::Lost(_) | Self::Reset(_) | Self::Refused(_) | Self::Malformed(_) => {
                StatusCode::BAD_GATEWAY
            }
            Self::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Cut => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// How it is counted, where it is the application's.
    fn cause(&self) -> Option<&'static str> {
        match self {
            Self::Connect(_) => Some("connect"),
            Self::Timeout(_) => Some("timeout"),
            Self::Closed(_) | Self::Lost(_) | Self::Reset(_) | Self::Refused(_) => Some("closed"),
            Self::Open(OpenError::Closed) => Some("closed"),
            Self::Protocol(_) | Self::Coding | Self::Unasked | Self::Open(_) | Self::Malformed(_) => Some("protocol"),
            Self::Ambiguous(_) | Self::Tunnel | Self::ClientTimeout | Self::ClientGone | Self::Cut => None,
        }
    }

    fn of(error: hyper::Error) -> Self {
        match error.is_parse() {
            true => Self::Protocol(error),
            false => Self::Closed(error),
        }
    }
}

impl Proxy {
    pub(super) fn new(forward: &Forward, requests: Arc<Requests>) -> Self {
        let upstream = forward.upstream.clone();
        let host = HeaderValue::try_from(upstream.to_string()).unwrap_or(HeaderValue::from_static("localhost"));
        let multiplexed = (upstream.protocol() == Protocol::Http2)
            .then(|| Multiplexed::new(upstream.resolver(), forward.idle_timeout));
        let pool = Pool::new(upstream.resolver(), forward.places.clone(), forward.idle_timeout);
        Self { upstream, pool, multiplexed, host, patience: forward.timeout, requests }
    }

    /// Forwards a request, and returns when its answer begins.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub(super) async fn forward(
        self: Arc<Self>,
        request: Request<RequestBody>,
        in_flight: InFlight,
        mut pass: Pass,
    ) -> Result<Response<Option<Answer>>, Failure> {
        let upgrade = request.body().upgrade();
        let (response, mut connection, mut patience) = match self.ask(request, in_flight, &mut pass).await {
            Ok(exchanged) => exchanged,
            Err(failure) => {
                self.report(&failure, &mut pass);
                return Err(failure);
            }
        };
        let (mut head, body) = response.into_parts();
        headers::of_answer(&mut head.headers, head.status);
        // What hyper knows of one connection does not concern the other; its version does not, either.
        let reason = head.extensions.remove::<ReasonPhrase>();
        head.extensions.clear();
        if let Some(reason) = reason {
            head.extensions.insert(reason);
        }
        head.version = Version::HTTP_11;
        if head.status == StatusCode::SWITCHING_PROTOCOLS
            && let Some(connection) = connection.take()
        {
            if let Some((upstream, early)) = connection.upgraded().await {
                upgrade.then(move |client| pass_on(client, upstream, early, pass));
            }
            return Ok(Response::from_parts(head, None));
        }
        patience.begin_anew();
        let mut answer = Answer { body, connection, patience, pass, proxy: self, failure: None };
        if answer.body.is_end_stream() {
            poll_fn(|cx| {
                answer.end(cx);
                Poll::Ready(())
            })
            .await;
        }
        Ok(Response::from_parts(head, Some(answer)))
    }

    fn report(&self, failure: &Failure, pass: &mut Pass) {
        pass.outcome = Some(if matches!(failure, Failure::Cut) { Outcome::Cut } else { Outcome::Failed });
        if let Some(cause) = failure.cause() {
            self.requests.errors.with_label_values(&[cause]).inc();
            warn!("the application at {} {failure}", self.upstream);
        }
    }

    /// Asks the application, and sees whether its answer can be passed on.
    async fn ask(
        &self,
        request: Request<RequestBody>,
        in_flight: InFlight,
        pass: &mut Pass,
    ) -> Result<Exchanged, Failure> {
        let request = self.prepare(request)?;
        let protocols = request.headers().get(UPGRADE).cloned();
        let exchanged = self.exchange(request, in_flight, pass).await?;
        let answer = &exchanged.0;
        if headers::has_other_coding(answer.headers()) {
            return Err(Failure::Coding);
        }
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS && !headers::is_asked_for(protocols.as_ref(), answer) {
            return Err(Failure::Unasked);
        }
        Ok(exchanged)
    }

    /// Sends a request: where the application has closed a kept connection meanwhile, once more on a new one.
    async fn exchange(
        &self,
        request: Request<Outgoing>,
        in_flight: InFlight,
        pass: &mut Pass,
    ) -> Result<Exchanged, Failure> {
        if let Some(multiplexed) = &self.multiplexed {
            let (response, patience) = self.exchange_multiplexed(multiplexed, request, in_flight, pass).await?;
            return Ok((response.map(Received::Http2), None, patience));
        }
        let Some(kept) = self.pool.reuse() else {
            return self.send(self.open(pass).await?, request, in_flight, pass).await.map_err(|lost| lost.failure);
        };
        let copy = copy_of(&request);
        let lost = match self.send(kept, request, in_flight, pass).await {
            Ok(exchanged) => return Ok(exchanged),
            Err(lost) => *lost,
        };
        match (lost.in_flight, lost.unsent.or(copy)) {
            (Some(in_flight), Some(request)) => {
                self.send(self.open(pass).await?, request, in_flight, pass).await.map_err(|lost| lost.failure)
            }
            _ => Err(lost.failure),
        }
    }

    /// Makes of a client's request the application's.
    fn prepare(&self, request: Request<RequestBody>) -> Result<Request<Outgoing>, Failure> {
        let (mut head, body) = request.into_parts();
        if head.method == Method::CONNECT {
            return Err(Failure::Tunnel);
        }
        let host = headers::of_request(&mut head.headers, &head.uri, head.version, &body.client_as_header())?;
        if host.is_none() {
            head.headers.insert(HOST, self.host.clone());
        }
        if head.uri.authority().is_some() {
            // The application is asked for a path, whatever the client has asked for (RFC 9112 §3.2.1).
            let path = head.uri.path_and_query().cloned();
            head.uri = path.map_or(Uri::from_static("/"), Uri::from);
        }
        if !body.is_end_stream() && !head.headers.contains_key(CONTENT_LENGTH) {
            // hyper would leave out such a body of GET.
            head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        head.version = Version::HTTP_11;
        head.extensions.clear();
        Ok(Request::from_parts(head, Outgoing::new(body)))
    }

    async fn open(&self, pass: &mut Pass) -> Result<Box<Connection<Outgoing>>, Failure> {
        let open = async {
            let place = timeout(self.patience, self.pool.place()).await.ok().flatten();
            let place = place.ok_or(Failure::Timeout("has none of its connections free"))?;
            match timeout(self.patience, self.pool.open(place)).await {
                Ok(opened) => opened.map_err(Failure::Connect),
                Err(_) => Err(Failure::Timeout("does not accept a connection")),
            }
        };
        tokio::select! {
            opened = open => opened,
            () = pass.cut() => Err(Failure::Cut),
        }
    }

    /// Sends a request on a connection, and waits for the head of its answer.
    async fn send(
        &self,
        mut connection: Box<Connection<Outgoing>>,
        request: Request<Outgoing>,
        in_flight: InFlight,
        pass: &mut Pass,
    ) -> Result<Exchanged, Box<Lost>> {
        connection.begin(in_flight);
        let progress = request.body().progress.clone();
        // A connection with a timer has served before: it took no time to open it.
        let since = connection.timer.as_ref().map_or_else(Instant::now, |_| pass.begun);
        let mut patience = Patience::new(self.patience, since, progress.clone(), connection.timer.take());
        let (mut unsent, mut held) = (None, None);
        let mut answer = pin!(connection.sender.try_send_request(request));
        let answered = poll_fn(|cx| {
            connection.poll(cx);
            let mut polled = answer.as_mut().poll(cx);
            if polled.is_pending() && connection.has_ended() {
                held = connection.give_up();
                polled = answer.as_mut().poll(cx);
            }
            if let Poll::Ready(answered) = polled {
                return Poll::Ready(answered.map_err(|mut error| {
                    unsent = error.take_message();
                    match progress.as_deref() {
                        Some(progress) if progress.broken.load(Relaxed) => Failure::ClientGone,
                        _ => Failure::of(error.into_error()),
                    }
                }));
            }
            if pass.is_cut() {
                return Poll::Ready(Err(Failure::Cut));
            }
            patience.poll(cx, "does not answer").map(Err)
        })
        .await;
        match answered {
            Ok(response) => Ok((response.map(Received::Http1), Some(connection), patience)),
            Err(failure) => {
                // It is at work no longer. In all other cases the connection keeps what it holds until that is so.
                let in_flight = match failure {
                    Failure::Closed(_) => held.or_else(|| connection.release()),
                    _ => None,
                };
                Err(Box::new(Lost { failure, unsent, in_flight }))
            }
        }
    }
}

/// Passes on what either says to the other, until both have ended, or the time to finish is over.
async fn pass_on(mut client: Upgraded, upstream: Stream, early: Bytes, mut pass: Pass) {
    let mut upstream = TokioIo::new(upstream);
    let both = async {
        client.write_all(&early).await?;
        copy_bidirectional(&mut client, &mut upstream).await
    };
    let ended = tokio::select! {
        ended = both => Some(ended),
        () = pass.cut() => None,
    };
    match ended {
        // Both have said all that they had to.
        Some(Ok(_)) => upstream.inner().release(),
        // The client has left: the application hears of it, and closes.
        Some(Err(_)) => {}
        None => pass.outcome = Some(Outcome::Cut),
    }
}

/// The head of an answer, the rest of it with the connection if that is its own, and for how long it is waited for.
type Exchanged = (Response<Received>, Option<Box<Connection<Outgoing>>>, Patience);

/// A request that was not answered. With a hold, it may be sent again.
struct Lost {
    failure: Failure,
    unsent: Option<Request<Outgoing>>,
    in_flight: Option<InFlight>,
}

/// A copy of a request that may be sent twice: it has no body, and is idempotent (RFC 9110 §9.2.2).
fn copy_of(request: &Request<Outgoing>) -> Option<Request<Outgoing>> {
    if !request.method().is_idempotent() || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(Outgoing::empty());
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    Some(copy)
}

/// The body of a request on its way to the application.
pub(super) struct Outgoing {
    body: Option<RequestBody>,
    progress: Option<Arc<Progress>>,
}

/// How a body gets on.
#[derive(Debug, Default)]
struct Progress {
    /// Something has come since somebody asked.
    moved: AtomicBool,
    /// It is the client that is waited for.
    waiting: AtomicBool,
    /// The client has left.
    broken: AtomicBool,
}

impl Outgoing {
    fn empty() -> Self {
        Self { body: None, progress: None }
    }

    fn new(body: RequestBody) -> Self {
        match body.is_end_stream() {
            true => Self::empty(),
            false => Self { body: Some(body), progress: Some(Arc::default()) },
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(cx);
        if let Some(progress) = &self.progress {
            progress.waiting.store(frame.is_pending(), Relaxed);
            match &frame {
                Poll::Pending => {}
                Poll::Ready(Some(Err(_))) => progress.broken.store(true, Relaxed),
                Poll::Ready(_) => progress.moved.store(true, Relaxed),
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

/// The body of an answer on its way to the client.
pub struct Answer {
    body: Received,
    connection: Option<Box<Connection<Outgoing>>>,
    patience: Patience,
    pass: Pass,
    proxy: Arc<Proxy>,
    /// What is to be told next.
    failure: Option<Failure>,
}

impl Answer {
    /// The application has answered in full.
    fn end(&mut self, cx: &mut Context<'_>) {
        self.body.end();
        self.pass.outcome = Some(Outcome::Forwarded);
        let Some(mut connection) = self.connection.take() else { return };
        if connection.is_ready(cx) {
            drop(connection.release());
            connection.timer = self.patience.timer.take();
            self.proxy.pool.keep(connection);
        } else if connection.has_ended() {
            drop(connection.release());
        } else {
            let patience = Patience::new(self.proxy.patience, Instant::now(), self.patience.request.take(), None);
            tokio::spawn(finish(connection, patience, self.pass.cut(), self.proxy.clone()));
        }
    }

    /// Breaks the answer off; not at once, since hyper would not send then what it was given before.
    fn fail(&mut self, failure: Failure, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.proxy.report(&failure, &mut self.pass);
        self.connection = None;
        self.failure = Some(failure);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Passes on the rest of a request which the application has answered already: it may well want it.
async fn finish(
    mut connection: Box<Connection<Outgoing>>,
    mut patience: Patience,
    cut: impl Future<Output = ()>,
    proxy: Arc<Proxy>,
) {
    let mut cut = pin!(cut);
    let passed_on = poll_fn(|cx| {
        if connection.is_ready(cx) || connection.has_ended() {
            return Poll::Ready(true);
        }
        let ends = cut.as_mut().poll(cx).is_ready() || patience.poll(cx, "").is_ready();
        if ends { Poll::Ready(false) } else { Poll::Pending }
    })
    .await;
    if passed_on {
        drop(connection.release());
    }
    if !connection.has_ended() && passed_on {
        proxy.pool.keep(connection);
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let answer = self.get_mut();
        if let Some(failure) = answer.failure.take() {
            return Poll::Ready(Some(Err(failure.into())));
        }
        if answer.pass.outcome.is_none() && answer.pass.is_cut() {
            return answer.fail(Failure::Cut, cx);
        }
        let mut frame = answer.body.poll_frame(cx);
        if let (true, Some(connection)) = (frame.is_pending(), &mut answer.connection) {
            // Nobody else works on the connection.
            connection.poll(cx);
            frame = answer.body.poll_frame(cx);
        }
        match frame {
            Poll::Ready(Some(Ok(frame))) => {
                answer.patience.begin_anew();
                if answer.body.is_end_stream() {
                    answer.end(cx);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(failure))) => answer.fail(failure, cx),
            Poll::Ready(None) => {
                answer.end(cx);
                Poll::Ready(None)
            }
            Poll::Pending => match answer.patience.poll(cx, "does not go on with its answer") {
                Poll::Ready(failure) => answer.fail(failure, cx),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
