//! HTTP/1.1 to HTTP/1.1: the fast path.

use std::future::poll_fn;
use std::task::Poll;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::error::Error;
use super::exchange::{Exchange, Failed};
use super::pump::{End, Pump};
use super::tracker::RequestTracker;
use super::{Proxy, upgrade};
use crate::http1::Version;
use crate::http1::body::Decoder;
use crate::server::connection::{self, Next};
use crate::server::stream::Socket;
use crate::upstream::connection::Connection;

impl Proxy {
    /// Forwards a request and its response.
    ///
    /// # Errors
    ///
    /// The response has not begun: the caller answers.
    pub async fn forward<C: Socket>(
        &self,
        mut exchange: Exchange,
        client: &mut connection::Connection<C>,
    ) -> Result<Next, Failed> {
        if self.multiplexed.is_some() {
            return self.forward_to_http2(exchange, client).await;
        }
        if let Some(invalid) = exchange.invalid {
            return Err(exchange.failed(Error::Body(invalid)));
        }
        let mut kept = poll_fn(|cx| Poll::Ready(self.pool.reuse(cx))).await;
        loop {
            let upstream = match kept.take() {
                Some(upstream) => upstream,
                None => match self.connect(&exchange.tracker).await {
                    Ok(upstream) => upstream,
                    Err(error) => {
                        self.report(&error, &mut exchange.tracker);
                        return Err(exchange.failed(error));
                    }
                },
            };
            let mut pump = Pump::new(client, upstream, &mut exchange, self.timeout);
            let end = poll_fn(|cx| pump.poll(cx)).await;
            let upstream = pump.upstream.take();
            let (error, has_begun) = match end {
                End::Complete(next, may_keep) => {
                    if let Some(upstream) = upstream.filter(|_| may_keep) {
                        self.pool.keep(upstream);
                    }
                    return Ok(complete(client, next, exchange.body).await);
                }
                End::Upgraded => {
                    if let Some(upstream) = upstream {
                        upgrade::tunnel(client, upstream, exchange.tracker).await;
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
            self.report(&error, &mut exchange.tracker);
            return if has_begun {
                Ok(break_off(client, &error, exchange.version).await)
            } else {
                Err(exchange.failed(error))
            };
        }
    }

    /// A new connection to the application.
    pub(super) async fn connect(&self, tracker: &RequestTracker) -> Result<Connection<TcpStream>, Error> {
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
