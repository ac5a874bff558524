//! A request on a connection of its own, and the head of its answer.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;

use hyper::Request;
use tokio::time::{Instant, timeout};

use super::failure::Failure;
use super::outgoing::{Outgoing, copy_of};
use super::pass::Pass;
use super::patience::Patience;
use super::received::Received;
use super::{Exchanged, Proxy};
use crate::gate::upstream::InFlight;
use crate::gate::upstream::http1::connection::Connection;

/// A request that was not answered. With a hold, it may be sent again.
struct Lost {
    failure: Failure,
    unsent: Option<Request<Outgoing>>,
    in_flight: Option<InFlight>,
}

impl Proxy {
    /// Sends a request: where the application has closed a kept connection meanwhile, once more on a new one.
    pub(super) async fn exchange_http1(
        &self,
        request: Request<Outgoing>,
        in_flight: InFlight,
        pass: &mut Pass,
    ) -> Result<Exchanged, Failure> {
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
