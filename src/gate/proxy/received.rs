//! The body of an answer, from either kind of application.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::Failure;
use super::http2::Streamed;

/// The body of an answer, as it comes.
pub(super) enum Received {
    /// On a connection of its own, which whoever reads works on.
    Http1(Incoming),
    /// On a stream of a shared connection.
    Http2(Streamed),
}

impl Received {
    /// It has come to its end.
    pub(super) fn end(&mut self) {
        if let Self::Http2(body) = self {
            body.end();
        }
    }

    /// The next part of it.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match self {
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(Failure::of),
            Self::Http2(body) => body.poll_frame(cx),
        }
    }

    /// Whether it has come to its end.
    pub(super) fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }

    /// How long it is.
    pub(super) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(body) if body.is_end_stream() => SizeHint::with_exact(0),
            Self::Http2(_) => SizeHint::default(),
        }
    }
}
