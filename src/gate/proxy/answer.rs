//! An answer on its way to the client.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::Proxy;
use super::failure::Failure;
use super::outgoing::Outgoing;
use super::pass::{Outcome, Pass};
use super::patience::Patience;
use super::received::Received;
use crate::gate::upstream::http1::connection::Connection;

/// The body of an answer on its way to the client.
pub struct Answer {
    pub(super) body: Received,
    pub(super) connection: Option<Box<Connection<Outgoing>>>,
    pub(super) patience: Patience,
    pub(super) pass: Pass,
    pub(super) proxy: Arc<Proxy>,
    /// What is to be told next.
    pub(super) failure: Option<Failure>,
}

impl Answer {
    /// The application has answered in full.
    pub(super) fn end(&mut self, cx: &mut Context<'_>) {
        self.body.end();
        self.pass.outcome = Some(Outcome::Forwarded);
        let Some(mut connection) = self.connection.take() else { return };
        connection.timer = self.patience.timer.take();
        if let Some(mut busy) = self.proxy.pool.take_back(connection, cx) {
            let (request, timer) = (self.patience.request.take(), busy.timer.take());
            let patience = Patience::new(self.proxy.patience, Instant::now(), request, timer);
            tokio::spawn(finish(busy, patience, self.pass.cut(), self.proxy.clone()));
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
    connection: Box<Connection<Outgoing>>,
    mut patience: Patience,
    cut: impl Future<Output = ()>,
    proxy: Arc<Proxy>,
) {
    let mut cut = pin!(cut);
    let mut busy = Some(connection);
    poll_fn(|cx| {
        busy = busy.take().and_then(|connection| proxy.pool.take_back(connection, cx));
        let ends = busy.is_none() || cut.as_mut().poll(cx).is_ready() || patience.poll(cx, "").is_ready();
        if ends { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
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
                // Nothing follows trailers, and nobody asks whether something does.
                if frame.is_trailers() || answer.body.is_end_stream() {
                    answer.end(cx);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) if answer.patience.is_client_gone() => answer.fail(Failure::ClientGone, cx),
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
