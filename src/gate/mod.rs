//! The traffic listener's service: refuses a request with the reason, in the format that the client asks for, or, where there is
//! an application behind the gate and maintenance mode is off, forwards it. In maintenance an operator may let some requests
//! through, or hold them until it ends.
//!
//! - `verdict`: the decision, a pure function of the state, the request and the [`policy`].
//! - [`admission`]: turns the verdict into what the request needs.
//! - [`hold`]: requests that wait for maintenance to end.
//! - [`drain`]: aborts what still runs when the drain timeout has passed.
//! - [`forward_auth`]: the same decision for proxies that forward requests themselves.

pub mod admission;
pub mod drain;
pub mod forward_auth;
pub mod hold;
pub mod policy;
mod verdict;

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{HeaderMap, REFERRER_POLICY};
use http::{HeaderValue, Request, Response, StatusCode};
use jiff::Timestamp;
use prometheus::IntCounter;
use tokio::time::sleep;

use self::admission::{Admission, Admitter};
use self::hold::HoldSlot;
use self::policy::bypass::Bypass;
use crate::http1::body::Decoder;
use crate::http1::{fields, request};
use crate::page::negotiation::Asked;
use crate::page::{Cause, Rendered, Renderer};
use crate::proxy::Proxy;
use crate::proxy::error::Error;
use crate::proxy::exchange::{Exchange as Forwarded, Failed};
use crate::proxy::headers::Filter;
use crate::proxy::stream::{Responder, StreamFailed};
use crate::proxy::tracker::RequestTracker;
use crate::server::connection::{Client, Connection, Exchange as Received, Next};
use crate::server::head::{Head, Persistence, Response as OwnResponse, encode_map};
use crate::server::stream::Socket;
use crate::server::{Begin, Limits, Service, buffer, http2};

/// How often to check whether requests are still in flight, when the process is about to end.
const CHECK: Duration = Duration::from_millis(20);

/// Refuses requests, or forwards them.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    refused: IntCounter,
    renderer: Renderer,
    forwarding: Option<Forwarding>,
}

/// What it takes to forward requests.
#[derive(Debug)]
struct Forwarding {
    admitter: Admitter,
    proxy: Proxy,
    /// Leaves out what is meant for the gate.
    filter: Option<Filter>,
}

/// An HTTP/1.1 request whose response is not assembled at once.
#[derive(Debug)]
pub enum Exchange {
    /// It is let in.
    Forward(Box<Forwarded>),
    /// It waits for maintenance to end.
    Hold(Held),
}

/// An HTTP/1.1 request that waits.
#[derive(Debug)]
pub struct Held {
    /// Its head, to be judged anew.
    raw: Vec<u8>,
    slot: HoldSlot,
    until: Instant,
}

impl Gate {
    /// A gate that refuses with the pages of this renderer, and counts what it refuses.
    #[must_use]
    pub fn new(renderer: Renderer, refused: IntCounter) -> Self {
        Self(Arc::new(Shared { refused, renderer, forwarding: None }))
    }

    /// A gate that forwards requests while maintenance mode is off.
    #[must_use]
    pub fn forwarding(renderer: Renderer, refused: IntCounter, proxy: Proxy, admitter: Admitter) -> Self {
        let has_bypass = admitter.policies.as_ref().is_some_and(|policies| policies.bypass.is_some());
        let filter = has_bypass.then_some(Bypass::filter as Filter);
        let forwarding = Forwarding { admitter, proxy, filter };
        Self(Arc::new(Shared { refused, renderer, forwarding: Some(forwarding) }))
    }

    /// Waits until the application is at work on none of the requests that were let in, including those whose clients have left.
    pub async fn finished(&self) {
        let Some(forwarding) = &self.0.forwarding else { return };
        while forwarding.admitter.requests.in_flight.get() > 0 {
            sleep(CHECK).await;
        }
    }

    fn refusal(&self, head: &Head<'_>) -> Rendered {
        self.0.refused.inc();
        self.0.renderer.render(Cause::Refused, &Asked::by(head))
    }

    /// The response to a request for a path that the application has no say in: a redirect and its fields, or a page.
    fn visit(&self, head: &Head<'_>, bypass: Option<&Bypass>) -> Result<HeaderMap, Rendered> {
        bypass.and_then(|bypass| bypass.visit(head, Timestamp::now())).ok_or_else(|| {
            self.0.refused.inc();
            let cause = Cause::Failed { status: StatusCode::NOT_FOUND, received: false };
            self.0.renderer.render(cause, &Asked::by(head))
        })
    }

    /// The response to a request that the application has not answered.
    fn failure(&self, error: &Error, asked: &Asked<'_>) -> Rendered {
        let cause = match error {
            Error::Aborted => Cause::Aborted,
            error => Cause::Failed { status: error.status(), received: error.may_have_arrived() },
        };
        self.0.renderer.render(cause, asked)
    }
}

/// A page for a wrong token or an outdated path may be on its way to another site.
const NO_REFERRER: &[u8] = b"referrer-policy: no-referrer\r\n";

impl Service for Gate {
    type Exchange = Exchange;

    fn begin(&self, received: &Received<'_>, out: &mut Vec<u8>) -> Begin<Exchange> {
        let head = Head::of_http1(received.request);
        let Some(forwarding) = &self.0.forwarding else {
            self.refusal(&head).encode(out, b"", received.persistence);
            return Begin::Respond;
        };
        match forwarding.admitter.admit(&head, received.client.address) {
            Admission::Granted(tracker) => {
                let (exchange, consumed) = Forwarded::new(&forwarding.proxy, received, tracker, forwarding.filter, out);
                return Begin::Run(Exchange::Forward(Box::new(exchange)), consumed);
            }
            Admission::Held(until) => {
                let slots = forwarding.admitter.policies.as_ref().map(|policies| &policies.slots);
                if let Some(slot) = slots.and_then(hold::HoldSlots::take) {
                    let held = Held { raw: received.raw.to_vec(), slot, until };
                    return Begin::Run(Exchange::Hold(held), 0);
                }
                self.refusal(&head).encode(out, b"", received.persistence);
            }
            Admission::Refused => self.refusal(&head).encode(out, b"", received.persistence),
            Admission::Visit => match self.visit(&head, forwarding.bypass()) {
                Ok(headers) => redirect(&headers, out, received.persistence),
                Err(page) => page.encode(out, NO_REFERRER, received.persistence),
            },
        }
        Begin::Respond
    }

    async fn run<S: Socket>(&self, exchange: Exchange, connection: &mut Connection<S>) -> Next {
        match exchange {
            Exchange::Forward(exchange) => self.forward(exchange, connection).await,
            Exchange::Hold(held) => Box::pin(self.hold(held, connection)).await,
        }
    }

    async fn stream(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
        client: Client,
        limits: Limits,
    ) {
        let head = Head::of(&request, !request.body().is_end_stream());
        let idle_timeout = limits.idle_timeout;
        let response = match &self.0.forwarding {
            None => self.refusal(&head).into_response(),
            Some(forwarding) => match self.admit_stream(forwarding, &head, &client, &mut respond).await {
                Ok(tracker) => {
                    let asked = Asked::by(&head).into_owned();
                    let options = (forwarding.filter, idle_timeout);
                    let forwarded =
                        Box::pin(forwarding.proxy.forward_stream(request, respond, &client, tracker, options)).await;
                    if let Err(failed) = forwarded {
                        Box::pin(self.fail_stream(*failed, &asked, idle_timeout)).await;
                    }
                    return;
                }
                Err(response) => response,
            },
        };
        http2::respond(respond, response, idle_timeout).await;
        http2::discard(request.into_body()).await;
    }
}

impl Forwarding {
    fn bypass(&self) -> Option<&Bypass> {
        self.admitter.policies.as_ref()?.bypass.as_deref()
    }
}

impl Gate {
    async fn forward<S: Socket>(&self, exchange: Box<Forwarded>, connection: &mut Connection<S>) -> Next {
        let Some(forwarding) = &self.0.forwarding else { return Next::Close };
        match forwarding.proxy.forward(exchange, connection).await {
            Ok(next) => next,
            Err(failed) => Box::pin(self.fail(*failed, connection)).await,
        }
    }

    /// Answers a request that the application has not answered.
    async fn fail<S: Socket>(&self, failed: Failed, connection: &mut Connection<S>) -> Next {
        let Failed { error, head, body, version, persists } = failed;
        let persistence = connection.persistence(version, persists && body.is_some());
        let page = parse_again(&head, |request| self.failure(&error, &Asked::by(&Head::of_http1(request))));
        drop(head);
        match page {
            Some(page) => respond(connection, &page, body, persistence).await,
            None => Next::Linger,
        }
    }

    /// Lets a request wait until maintenance is over, and judges it anew then.
    async fn hold<S: Socket>(&self, held: Held, connection: &mut Connection<S>) -> Next {
        let Held { raw, slot, mut until } = held;
        let Some(forwarding) = &self.0.forwarding else { return Next::Close };
        let Some(policies) = &forwarding.admitter.policies else { return Next::Close };
        let (mut state, mut stop) = (forwarding.admitter.state.clone(), policies.stop.clone());
        let client = connection.client.clone();
        let mut granted = None;
        while hold::wait(&mut state, until, connection.left(), &mut stop).await {
            match judge(&forwarding.admitter, &raw, &client) {
                Some(Admission::Granted(tracker)) => {
                    granted = Some(tracker);
                    break;
                }
                // It has begun again.
                Some(Admission::Held(again)) => until = again,
                _ => break,
            }
        }
        drop(slot);
        match granted {
            Some(tracker) => match self.released(forwarding, &raw, tracker, connection) {
                Some(exchange) => self.forward(Box::new(exchange), connection).await,
                None => Next::Linger,
            },
            None => self.refuse_held(&raw, connection).await,
        }
    }

    /// A request that is let in after it was held.
    fn released<S>(
        &self,
        forwarding: &Forwarding,
        raw: &[u8],
        tracker: RequestTracker,
        connection: &mut Connection<S>,
    ) -> Option<Forwarded> {
        let Connection { input, client, .. } = connection;
        parse_again(raw, |request| {
            buffer::take_kept(input, |body| {
                let persistence = Persistence::Persists;
                let received = Received { request, raw, body, client, persistence };
                buffer::assemble(|out| {
                    let (exchange, consumed) =
                        Forwarded::new(&forwarding.proxy, &received, tracker, forwarding.filter, out);
                    (consumed, exchange)
                })
            })
        })
    }

    async fn refuse_held<S: Socket>(&self, raw: &[u8], connection: &mut Connection<S>) -> Next {
        let refusal = parse_again(raw, |request| {
            let waits_for_continue = request.expects_continue && connection.input.is_empty();
            let body = (!waits_for_continue).then(|| Decoder::new(request.framing));
            let persistence = connection.persistence(request.version, request.persists && body.is_some());
            (self.refusal(&Head::of_http1(request)), body, persistence)
        });
        match refusal {
            Some((page, body, persistence)) => respond(connection, &page, body, persistence).await,
            None => Next::Linger,
        }
    }

    /// Lets an HTTP/2 request in, or says how it is answered.
    async fn admit_stream(
        &self,
        forwarding: &Forwarding,
        head: &Head<'_>,
        client: &Client,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<RequestTracker, Response<Bytes>> {
        match forwarding.admitter.admit(head, client.address) {
            Admission::Granted(tracker) => Ok(tracker),
            Admission::Held(until) => Box::pin(self.hold_stream(forwarding, head, client, respond, until)).await,
            Admission::Refused => Err(self.refusal(head).into_response()),
            Admission::Visit => Err(match self.visit(head, forwarding.bypass()) {
                Ok(headers) => {
                    let mut response = Response::default();
                    *response.status_mut() = StatusCode::SEE_OTHER;
                    *response.headers_mut() = headers;
                    response
                }
                Err(page) => {
                    let mut response = page.into_response();
                    response.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
                    response
                }
            }),
        }
    }

    /// Lets an HTTP/2 request wait until maintenance is over, and judges it anew then.
    async fn hold_stream(
        &self,
        forwarding: &Forwarding,
        head: &Head<'_>,
        client: &Client,
        respond: &mut SendResponse<Bytes>,
        mut until: Instant,
    ) -> Result<RequestTracker, Response<Bytes>> {
        let admitter = &forwarding.admitter;
        let refuse = || self.refusal(head).into_response();
        let policies = admitter.policies.as_ref().ok_or_else(refuse)?;
        let _slot = policies.slots.take().ok_or_else(refuse)?;
        let (mut state, mut stop) = (admitter.state.clone(), policies.stop.clone());
        loop {
            let left = async { _ = poll_fn(|cx| respond.poll_reset(cx)).await };
            if !hold::wait(&mut state, until, left, &mut stop).await {
                return Err(refuse());
            }
            match admitter.admit(head, client.address) {
                Admission::Granted(tracker) => return Ok(tracker),
                // It has begun again.
                Admission::Held(again) => until = again,
                _ => return Err(refuse()),
            }
        }
    }

    /// Answers an HTTP/2 request that the application has not answered in full.
    async fn fail_stream(&self, failed: StreamFailed, asked: &Asked<'_>, idle_timeout: Duration) {
        let StreamFailed { error, responder, body } = failed;
        match responder {
            Responder::Unsent(respond) => {
                http2::respond(respond, self.failure(&error, asked).into_response(), idle_timeout).await;
                http2::discard(body).await;
            }
            Responder::Started(mut stream) => {
                // A reset discards what the connection's task has not written yet.
                tokio::task::yield_now().await;
                match &error {
                    // The application has reset the stream, which has a meaning of its own ("gRPC over HTTP2", Errors).
                    Error::Reset(reset) => stream.send_reset(reset.reason().unwrap_or(Reason::INTERNAL_ERROR)),
                    error if asked.is_grpc() => {
                        if stream.send_trailers(self.failure(error, asked).into_trailers()).is_err() {
                            stream.send_reset(Reason::INTERNAL_ERROR);
                        }
                    }
                    _ => stream.send_reset(Reason::INTERNAL_ERROR),
                }
            }
        }
    }
}

/// Answers with a page while the rest of the request is discarded.
async fn respond<S: Socket>(
    connection: &mut Connection<S>,
    page: &Rendered,
    body: Option<Decoder>,
    persistence: Persistence,
) -> Next {
    let is_known = body.is_some();
    let is_read = connection.respond(|out| page.encode(out, b"", persistence), body).await;
    if is_known && is_read && persistence != Persistence::Closes { Next::Persist } else { Next::Linger }
}

/// Judges a request whose head was kept.
fn judge(admitter: &Admitter, raw: &[u8], client: &Client) -> Option<Admission> {
    parse_again(raw, |request| admitter.admit(&Head::of_http1(request), client.address))
}

/// Parses a head that was kept. The fields take several kilobytes, which no future may hold while it waits.
fn parse_again<T>(raw: &[u8], then: impl FnOnce(&request::Request<'_, '_>) -> T) -> Option<T> {
    let mut storage = fields::storage();
    request::Request::parse_again(raw, &mut storage).map(|request| then(&request))
}

/// Assembles a redirect with these fields.
fn redirect(headers: &HeaderMap, out: &mut Vec<u8>, persistence: Persistence) {
    let mut fields = Vec::new();
    encode_map(&mut fields, headers);
    let status = StatusCode::SEE_OTHER;
    OwnResponse { status, fields: &fields, more: [b"", b""], body: b"", is_head: false }.encode(out, persistence);
}
