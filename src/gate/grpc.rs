//! The application's answer to a gRPC client: where it breaks off, the client is told a status, as far as that is known here.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::body::{Body, Frame, SizeHint};

use super::Gate;
use super::negotiation::Asked;
use super::proxy::{Answer, Failure};

/// An answer to a gRPC client.
pub struct GrpcAnswer {
    answer: Answer,
    asked: Asked,
    gate: Gate,
    is_broken: bool,
}

impl GrpcAnswer {
    pub(super) fn new(answer: Answer, asked: Asked, gate: Gate) -> Self {
        Self { answer, asked, gate, is_broken: false }
    }

    /// The status instead of the rest. `None` where the application has reset the stream: that has a meaning of its own,
    /// which is passed on ("gRPC over HTTP2", Errors).
    fn status(&self, failure: &Failure) -> Option<HeaderMap> {
        if let Failure::Reset(_) = failure {
            return None;
        }
        let page = self.gate.failed(failure, &self.asked, false);
        let mut trailers = page.headers().clone();
        let names = ["grpc-status", "grpc-message"];
        let others: Vec<_> = trailers.keys().filter(|name| !names.contains(&name.as_str())).cloned().collect();
        for name in others {
            trailers.remove(name);
        }
        Some(trailers)
    }
}

impl Body for GrpcAnswer {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.is_broken {
            return Poll::Ready(None);
        }
        let frame = Pin::new(&mut self.answer).poll_frame(cx);
        if let Poll::Ready(Some(Err(error))) = &frame
            && let Some(failure) = error.downcast_ref()
            && let Some(status) = self.status(failure)
        {
            self.is_broken = true;
            return Poll::Ready(Some(Ok(Frame::trailers(status))));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.is_broken || self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}
