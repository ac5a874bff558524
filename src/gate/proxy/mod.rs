//! Forwarding: one request to the application, and its answer.

mod answer;
mod failure;
pub(super) mod headers;
mod http1;
mod http2;
mod outgoing;
pub(super) mod pass;
mod patience;
mod received;
mod upgrade;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::body::Body;
use hyper::ext::ReasonPhrase;
use hyper::header::{CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use tokio::time::timeout;
use tracing::warn;

pub(super) use self::answer::Answer;
pub(super) use self::failure::Failure;
use self::outgoing::Outgoing;
use self::pass::{Outcome, Pass};
use self::patience::Patience;
use self::received::Received;
use super::Forward;
use super::upstream::http1::Pool;
use super::upstream::http1::connection::Connection;
use super::upstream::http2::Multiplexed;
use super::upstream::{InFlight, Protocol, Upstream};
use crate::listener::RequestBody;
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
        let client = request.body().upgrade();
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
            let upgraded = tokio::select! {
                upgraded = timeout(self.patience, connection.upgraded()) => {
                    upgraded.map_err(|_| Failure::Timeout("does not go on after its switch of protocols"))
                }
                () = pass.cut() => Err(Failure::Cut),
            };
            let upgraded = upgraded.inspect_err(|failure| self.report(failure, &mut pass))?;
            if let Some((upstream, early)) = upgraded {
                client.then(move |client| upgrade::pass_on(client, upstream, early, pass));
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

    async fn exchange(
        &self,
        request: Request<Outgoing>,
        in_flight: InFlight,
        pass: &mut Pass,
    ) -> Result<Exchanged, Failure> {
        match &self.multiplexed {
            None => self.exchange_http1(request, in_flight, pass).await,
            Some(multiplexed) => self.exchange_http2(multiplexed, request, in_flight, pass).await,
        }
    }
}

/// The head of an answer, the rest of it with the connection if that is its own, and for how long it is waited for.
type Exchanged = (Response<Received>, Option<Box<Connection<Outgoing>>>, Patience);
