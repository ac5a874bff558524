//! What the server serves.

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;

use super::connection::{Client, Connection, Exchange, Next};
use super::limits::Limits;
use super::stream::Socket;

/// What a service does with a request.
#[derive(Debug)]
pub enum Begin<E> {
    /// It has assembled the whole response.
    Respond,
    /// It goes on, and has consumed so many bytes of what followed the head.
    Run(E, usize),
}

/// Answers requests.
pub trait Service: Clone + Send + Sync + 'static {
    /// An HTTP/1.1 request whose response is not assembled at once.
    type Exchange: Send + 'static;

    /// Decides on an HTTP/1.1 request, whose head is borrowed from the thread's buffer. Either assembles the whole response in
    /// `out`, or returns what it goes on with.
    fn begin(&self, exchange: &Exchange<'_>, out: &mut Vec<u8>) -> Begin<Self::Exchange>;

    /// Goes on with an HTTP/1.1 request. On return the response has been sent, and the request's body has been read unless the
    /// connection does not persist.
    fn run<S: Socket>(
        &self,
        exchange: Self::Exchange,
        connection: &mut Connection<S>,
    ) -> impl Future<Output = Next> + Send;

    /// Answers an HTTP/2 request.
    fn stream(
        &self,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        client: Client,
        limits: Limits,
    ) -> impl Future<Output = ()> + Send;
}
