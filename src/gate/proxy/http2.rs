//! A request on a stream of a shared HTTP/2 connection, and its answer.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use hyper::body::{Body, Frame};
use hyper::header::CONTENT_LENGTH;
use hyper::{Method, Request, Response, StatusCode, Version};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::outgoing::{Outgoing, Progress};
use super::pass::Pass;
use super::patience::Patience;
use super::received::Received;
use super::{Exchanged, Failure, Proxy, headers};
use crate::gate::discard;
use crate::gate::upstream::http2::{Multiplexed, OpenError, Place, Running};
use crate::gate::upstream::{InFlight, UNHEARD_FOR};

/// A request that was not answered.
struct Lost {
    failure: Failure,
    /// It may be sent again with this.
    in_flight: Option<InFlight>,
}

impl Proxy {
    /// Sends a request: where the application has not taken it up, or has closed the connection meanwhile, once more.
    pub(super) async fn exchange_http2(
        &self,
        multiplexed: &Multiplexed,
        request: Request<Outgoing>,
        in_flight: InFlight,
        pass: &mut Pass,
    ) -> Result<Exchanged, Failure> {
        let (mut head, body) = request.into_parts();
        head.uri = headers::for_http2(&mut head.headers, head.uri);
        if head.uri.authority().is_some() {
            head.version = Version::HTTP_2;
        }
        let request = Request::from_parts(head, ());
        // Of a body some may be lost.
        let copy = body.is_end_stream().then(|| request.clone());
        let place = self.place(multiplexed, pass).await?;
        let lost = match self.stream(multiplexed, place, request, body, in_flight, pass).await {
            Ok(exchanged) => return Ok(exchanged),
            Err(lost) => lost,
        };
        match (lost.in_flight, copy) {
            (Some(in_flight), Some(request)) => {
                let place = self.place(multiplexed, pass).await?;
                let again = self.stream(multiplexed, place, request, Outgoing::empty(), in_flight, pass).await;
                again.map_err(|lost| lost.failure)
            }
            _ => Err(lost.failure),
        }
    }

    async fn place(&self, multiplexed: &Multiplexed, pass: &mut Pass) -> Result<Place, Failure> {
        tokio::select! {
            place = timeout(self.patience, multiplexed.place()) => match place {
                Ok(place) => Ok(place?),
                Err(_) => Err(Failure::Timeout("does not accept a connection")),
            },
            () = pass.cut() => Err(Failure::Cut),
        }
    }

    /// Sends a request, and waits for the head of its answer.
    async fn stream(
        &self,
        multiplexed: &Multiplexed,
        place: Place,
        request: Request<()>,
        body: Outgoing,
        in_flight: InFlight,
        pass: &mut Pass,
    ) -> Result<Exchanged, Lost> {
        let (is_idempotent, is_first, heard) = (request.method().is_idempotent(), place.is_first, place.heard());
        let is_head = *request.method() == Method::HEAD;
        let progress = body.progress.clone();
        let (answer, sending) = match place.send(request, body.is_end_stream()) {
            Ok(sent) => sent,
            Err(error) => return Err(Lost { failure: Failure::of_stream(error, None), in_flight: Some(in_flight) }),
        };
        let running = Running::new(place, in_flight);
        let mut upload =
            (!body.is_end_stream()).then(|| Upload { stream: sending, body, chunk: Bytes::new(), open: true });
        let mut patience = Patience::new(self.patience, Instant::now(), progress.clone(), None);
        let mut answer = pin!(answer);
        let answered = poll_fn(|cx| {
            if let Some(sending) = &mut upload
                && Pin::new(sending).poll(cx).is_ready()
            {
                upload = None;
            }
            if let Poll::Ready(answered) = answer.as_mut().poll(cx) {
                return Poll::Ready(answered.map_err(|error| Failure::of_stream(error, progress.as_deref())));
            }
            if pass.is_cut() {
                return Poll::Ready(Err(Failure::Cut));
            }
            patience.poll(cx, "does not answer").map(Err)
        })
        .await;
        let failure = match answered {
            Ok(response) => {
                // From here on either direction goes on by itself: a client that does not read its answer may still send.
                let sending = upload.map(|upload| Sending(tokio::spawn(upload)));
                let left = length(is_head, &response);
                let stream = |stream| Stream { stream, left, _sending: sending, progress, running };
                let response = response.map(|received| Received::Http2(Streamed(Some(stream(received)))));
                return Ok((response, None, patience));
            }
            Err(failure) => failure,
        };
        match &failure {
            Failure::Timeout(_) if running.place.heard() == heard => {
                // Perhaps nobody is there any more.
                multiplexed.retire(&running.place);
                Err(Lost { failure, in_flight: None })
            }
            Failure::Refused(_) => Err(Lost { failure, in_flight: running.end() }),
            Failure::Reset(_) => {
                running.end();
                Err(Lost { failure, in_flight: None })
            }
            Failure::Lost(_) => {
                let in_flight = running.end().filter(|_| is_idempotent && !is_first);
                Err(Lost { failure, in_flight })
            }
            _ => Err(Lost { failure, in_flight: None }),
        }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Connect(error) => Self::Connect(error),
            error => Self::Open(error),
        }
    }
}

impl Failure {
    /// What it means that a stream has ended with this.
    fn of_stream(error: h2::Error, progress: Option<&Progress>) -> Self {
        match () {
            () if progress.is_some_and(|progress| progress.broken.load(Relaxed)) => Self::ClientGone,
            // Not processed (RFC 9113 §6.8, §8.7).
            () if error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM)) => {
                Self::Refused(error)
            }
            () if error.is_remote() => Self::Reset(error),
            () if error.is_io() => Self::Lost(error),
            () => Self::Malformed(error),
        }
    }
}

/// The body of a request on its way to the application.
struct Upload {
    stream: SendStream<Bytes>,
    body: Outgoing,
    /// What the application has no room for yet.
    chunk: Bytes,
    /// Whether there is more to send.
    open: bool,
}

impl Future for Upload {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let upload = self.get_mut();
        let sent = ready!(upload.poll_sent(cx));
        // What has failed is told by the answer.
        upload.open &= sent.is_err();
        Poll::Ready(())
    }
}

impl Upload {
    /// Ready when there is no more to send, or the application wants no more.
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            if !self.chunk.is_empty() {
                self.stream.reserve_capacity(self.chunk.len());
                if self.stream.capacity() == 0 && ready!(self.stream.poll_capacity(cx)).transpose()?.is_none() {
                    return Poll::Ready(Ok(()));
                }
                let part = self.chunk.split_to(self.stream.capacity().min(self.chunk.len()));
                let is_last = self.chunk.is_empty() && self.body.is_end_stream();
                self.stream.send_data(part, is_last)?;
                if is_last {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(None) => return Poll::Ready(self.stream.send_data(Bytes::new(), true)),
                // The client has left.
                Poll::Ready(Some(Err(_))) => {
                    self.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(Ok(()));
                }
                Poll::Pending => return self.stream.poll_reset(cx).map(|_| Ok(())),
            };
            match frame.into_data() {
                Ok(chunk) => self.chunk = chunk,
                Err(frame) => {
                    if let Ok(mut trailers) = frame.into_trailers() {
                        headers::of_trailers(&mut trailers);
                        return Poll::Ready(self.stream.send_trailers(trailers));
                    }
                }
            }
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.open {
            self.stream.send_reset(Reason::CANCEL);
        }
        // The client may still be sending what the application has not wanted.
        if let Some(body) = self.body.body.take_if(|body| !body.is_end_stream())
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(discard(body));
        }
    }
}

/// An upload that goes on while the answer comes, and ends with it.
struct Sending(JoinHandle<()>);

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The body of an answer, as it comes.
pub(super) struct Streamed(Option<Stream>);

/// When it is dropped before its end, the stream is reset with `CANCEL`.
struct Stream {
    stream: RecvStream,
    /// How much of it is still to come, where that was said, in bytes.
    left: Option<u64>,
    _sending: Option<Sending>,
    progress: Option<Arc<Progress>>,
    running: Running,
}

impl Stream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, h2::Error>> {
        Poll::Ready(match ready!(self.stream.poll_data(cx)).transpose()? {
            Some(data) => {
                self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                // What is handed on has room again: how fast the client reads is how fast the application may send.
                self.stream.flow_control().release_capacity(data.len())?;
                Ok(Some(Frame::data(data)))
            }
            None => ready!(self.stream.poll_trailers(cx)).map(|trailers| trailers.map(Frame::trailers)),
        })
    }

    /// Waits for the end of an answer that is all there, so that the application is not told that nobody wanted it.
    async fn finish(mut self) {
        let end = poll_fn(|cx| {
            loop {
                if ready!(self.poll_frame(cx))?.is_none() {
                    return Poll::Ready(Ok::<(), h2::Error>(()));
                }
            }
        });
        if let Ok(Ok(())) = timeout(UNHEARD_FOR, end).await {
            self.running.end();
        }
    }
}

/// How much there is of an answer with this head, in bytes, where it says so.
fn length(is_head: bool, response: &Response<RecvStream>) -> Option<u64> {
    if is_head || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
        return Some(0);
    }
    response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl Streamed {
    /// The application has answered in full. Should it not have wanted all of the request, it does not get the rest.
    pub(super) fn end(&mut self) {
        if let Some(stream) = self.0.take() {
            stream.running.end();
        }
    }

    /// The next part of it.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let Some(answer) = &mut self.0 else { return Poll::Ready(None) };
        match ready!(answer.poll_frame(cx)) {
            Ok(frame) => {
                if frame.as_ref().is_none_or(Frame::is_trailers) {
                    self.end();
                }
                Poll::Ready(frame.map(Ok))
            }
            Err(error) => {
                let failure = Failure::of_stream(error, answer.progress.as_deref());
                match failure {
                    Failure::Refused(_) | Failure::Reset(_) | Failure::Lost(_) => self.end(),
                    _ => self.0 = None,
                }
                Poll::Ready(Some(Err(failure)))
            }
        }
    }

    /// Whether it has come to its end.
    pub(super) fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|answer| answer.stream.is_end_stream())
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        // To HTTP/1.1 all that was announced is the whole answer, with the end of the stream yet to come.
        if let Some(answer) = self.0.take_if(|answer| answer.left == Some(0))
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(answer.finish());
        }
    }
}
