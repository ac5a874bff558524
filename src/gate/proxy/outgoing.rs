//! A request's body on its way to the application.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::Request;
use hyper::body::{Body, Frame, SizeHint};

use crate::listener::RequestBody;

/// The body of a request on its way to the application.
pub(in crate::gate) struct Outgoing {
    pub(super) body: Option<RequestBody>,
    pub(super) progress: Option<Arc<Progress>>,
}

/// How a body gets on.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Something has come since somebody asked.
    pub(super) moved: AtomicBool,
    /// It is the client that is waited for.
    pub(super) waiting: AtomicBool,
    /// The client has left.
    pub(super) broken: AtomicBool,
}

impl Outgoing {
    pub(super) fn empty() -> Self {
        Self { body: None, progress: None }
    }

    pub(super) fn new(body: RequestBody) -> Self {
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

/// A copy of a request that may be sent twice: it has no body, and is idempotent (RFC 9110 §9.2.2).
pub(super) fn copy_of(request: &Request<Outgoing>) -> Option<Request<Outgoing>> {
    if !request.method().is_idempotent() || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(Outgoing::empty());
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    Some(copy)
}
