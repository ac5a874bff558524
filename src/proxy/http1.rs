//! HTTP/1.1 to HTTP/1.1: the fast path.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;
use tracing::warn;

use super::error::Error;
use super::exchange::{Exchange, Failed};
use super::pump::{End, Pump};
use super::tracker::{Outcome, RequestTracker};
use super::{Proxy, upgrade};
use crate::http1::Version;
use crate::http1::body::Decoder;
use crate::server::connection::{self, Next};
use crate::server::stream::Socket;
use crate::upstream::connection::{Connection, Upstream};

/// The connections to the application. Tests have them in memory.
pub(super) trait Origins: Sync {
    /// What the connections are over.
    type Stream: Upstream;

    /// The time for the application to begin its response, and between two parts of it.
    fn timeout(&self) -> Duration;

    /// An idle connection, if there is one.
    fn reuse(&self, cx: &mut Context<'_>) -> Option<Connection<Self::Stream>>;

    /// A new connection.
    fn connect(&self, tracker: &RequestTracker)
    -> impl Future<Output = Result<Connection<Self::Stream>, Error>> + Send;

    /// Keeps a connection for the next request.
    fn keep(&self, connection: Connection<Self::Stream>);

    /// Counts and logs what has become of a request.
    fn report(&self, error: &Error, tracker: &mut RequestTracker);
}

impl Origins for Proxy {
    type Stream = TcpStream;

    fn timeout(&self) -> Duration {
        self.timeout
    }

    fn reuse(&self, cx: &mut Context<'_>) -> Option<Connection<TcpStream>> {
        self.pool.reuse(cx)
    }

    async fn connect(&self, tracker: &RequestTracker) -> Result<Connection<TcpStream>, Error> {
        let connect = async {
            let permit = timeout(self.timeout, self.pool.permit()).await;
            let permit = permit.map_err(|_| Error::Timeout("has none of its connections free"))?;
            match timeout(self.timeout, self.pool.connect(permit)).await {
                Ok(connected) => connected.map_err(Error::Connect),
                Err(_) => Err(Error::Timeout("does not accept a connection")),
            }
        };
        tokio::select! {
            connected = connect => connected,
            () = tracker.aborted() => Err(Error::Aborted),
        }
    }

    fn keep(&self, connection: Connection<TcpStream>) {
        self.pool.keep(connection);
    }

    fn report(&self, error: &Error, tracker: &mut RequestTracker) {
        tracker.count(if matches!(error, Error::Aborted) { Outcome::Aborted } else { Outcome::Failed });
        if let Some(cause) = error.cause() {
            self.requests.errors.with_label_values(&[cause]).inc();
            warn!("the application at {} {error}", self.upstream);
        }
    }
}

impl Proxy {
    /// Forwards a request and its response.
    ///
    /// # Errors
    ///
    /// The response has not begun: the caller answers.
    pub async fn forward<C: Socket>(
        &self,
        exchange: Box<Exchange>,
        client: &mut connection::Connection<C>,
    ) -> Result<Next, Box<Failed>> {
        match self.multiplexed {
            None => forward(self, exchange, client).await,
            Some(_) => Box::pin(self.forward_to_http2(exchange, client)).await,
        }
    }
}

/// Forwards a request and its response over one of these connections. What is rare is boxed: each request in flight costs the size
/// of this future.
pub(super) async fn forward<C: Socket, O: Origins>(
    origins: &O,
    mut exchange: Box<Exchange>,
    client: &mut connection::Connection<C>,
) -> Result<Next, Box<Failed>> {
    if let Some(invalid) = exchange.invalid {
        return Err(exchange.failed(Error::Body(invalid)));
    }
    let mut kept = poll_fn(|cx| Poll::Ready(origins.reuse(cx))).await;
    loop {
        let upstream = match kept.take() {
            Some(upstream) => upstream,
            None => match Box::pin(origins.connect(&exchange.tracker)).await {
                Ok(upstream) => upstream,
                Err(error) => {
                    origins.report(&error, &mut exchange.tracker);
                    return Err(exchange.failed(error));
                }
            },
        };
        let mut pump = Pump::new(client, upstream, &mut exchange, origins.timeout());
        let end = poll_fn(|cx| pump.poll(cx)).await;
        let upstream = pump.upstream.take();
        let (error, has_begun) = match end {
            End::Complete(next, may_keep) => {
                if let Some(upstream) = upstream.filter(|_| may_keep) {
                    origins.keep(upstream);
                }
                return Ok(match next {
                    Next::Persist if exchange.body.has_ended() => Next::Persist,
                    next => Box::pin(complete(client, next, exchange.body)).await,
                });
            }
            End::Upgraded => {
                if let Some(upstream) = upstream {
                    Box::pin(upgrade::tunnel(client, upstream, exchange.tracker)).await;
                }
                return Ok(Next::Close);
            }
            End::Unsent => continue,
            End::Failed(error) => (Some(error), false),
            End::Broken(error) => (error, true),
        };
        // Only where the connection is closed is it certain that the application is not at work any more.
        let has_closed = matches!(error, Some(Error::Closed(_)));
        let in_flight = exchange.tracker.take_in_flight().filter(|_| !has_closed);
        if let Some(upstream) = upstream {
            upstream.abandon(in_flight);
        }
        let Some(error) = error else {
            return Ok(if client.output.is_empty() { Next::Linger } else { Next::Close });
        };
        origins.report(&error, &mut exchange.tracker);
        return if has_begun {
            Ok(Box::pin(break_off(client, &error, exchange.version)).await)
        } else {
            Err(exchange.failed(error))
        };
    }
}

/// Reads the rest of a request whose response is sent, and says what becomes of the connection.
pub(super) async fn complete<C: Socket>(client: &mut connection::Connection<C>, next: Next, body: Decoder) -> Next {
    let is_over = body.has_ended();
    match next {
        Next::Persist if is_over || client.finish(Some(body)).await => Next::Persist,
        Next::Close if is_over && client.input.is_empty() => Next::Close,
        _ => Next::Linger,
    }
}

/// Breaks a response off. What has come before is still sent.
pub(super) async fn break_off<C: Socket>(
    client: &mut connection::Connection<C>,
    error: &Error,
    version: Version,
) -> Next {
    if !matches!(error, Error::Aborted) || client.output.is_empty() {
        client.finish(None).await;
    }
    match version {
        // The end of the connection is the end of the response to this client.
        Version::Http10 => Next::Reset,
        Version::Http11 => Next::Close,
    }
}
