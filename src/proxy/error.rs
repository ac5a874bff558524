//! Why a request gets no response from the application, or not all of it.

use std::io;

use h2::Reason;
use http::StatusCode;

use super::headers::Ambiguous;
use crate::http1::error::{BodyError, HeadError};
use crate::upstream::http2::OpenError;

/// Why a request was not forwarded, or not answered in full. Errors of the application read as what it does.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request could be read in more than one way.
    #[error(transparent)]
    Ambiguous(#[from] Ambiguous),
    /// `CONNECT` over HTTP/2.
    #[error("tunnels are not forwarded")]
    Tunnel,
    /// The client stalls in the middle of its request.
    #[error("the client does not send the rest of its request")]
    ClientTimeout,
    /// The client has left in the middle of its request.
    #[error("the client has left")]
    ClientGone,
    /// The request's body is malformed.
    #[error("the request's body is malformed: {0}")]
    Body(BodyError),
    /// The application does not accept a connection.
    #[error("does not accept a connection: {0}")]
    Connect(io::Error),
    /// The application does not do this in time.
    #[error("{0} in time")]
    Timeout(&'static str),
    /// The application has closed the connection.
    #[error("has closed the connection instead of an answer: {0}")]
    Closed(io::Error),
    /// The application responds with something else than HTTP/1.1.
    #[error("does not answer in HTTP: {0}")]
    Head(HeadError),
    /// The response's body is malformed.
    #[error("does not answer in HTTP: {0}")]
    ResponseBody(BodyError),
    /// The application uses a transfer coding that the gate does not know.
    #[error("answers in a transfer coding other than chunked")]
    Coding,
    /// The application does not begin HTTP/2.
    #[error(transparent)]
    Open(OpenError),
    /// The application has closed the HTTP/2 connection.
    #[error("has closed the connection instead of an answer: {0}")]
    Lost(#[source] h2::Error),
    /// The application has reset the stream.
    #[error("has reset the request: {0}")]
    Reset(#[source] h2::Error),
    /// The application says that it has not processed the request.
    #[error("has refused the request: {0}")]
    Refused(#[source] h2::Error),
    /// The application responds with something else than HTTP/2.
    #[error("does not answer in HTTP/2: {0}")]
    Malformed(#[source] h2::Error),
    /// The application switches to a protocol that the client has not asked for.
    #[error("switches to a protocol that it was not asked for")]
    Unasked,
    /// Maintenance has begun, and the drain timeout has passed.
    #[error("aborted")]
    Aborted,
}

impl Error {
    /// The status of the response.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Tunnel => StatusCode::NOT_IMPLEMENTED,
            Self::Ambiguous(_) | Self::Body(_) => StatusCode::BAD_REQUEST,
            Self::ClientTimeout | Self::ClientGone => StatusCode::REQUEST_TIMEOUT,
            Self::Connect(_)
            | Self::Open(_)
            | Self::Closed(_)
            | Self::Lost(_)
            | Self::Reset(_)
            | Self::Refused(_)
            | Self::Head(_)
            | Self::ResponseBody(_)
            | Self::Malformed(_)
            | Self::Coding
            | Self::Unasked => StatusCode::BAD_GATEWAY,
            Self::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Aborted => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Whether the application may have received the request, or a part of it.
    #[must_use]
    pub fn may_have_arrived(&self) -> bool {
        !matches!(self, Self::Ambiguous(_) | Self::Tunnel | Self::Connect(_) | Self::Open(_) | Self::Refused(_))
    }

    /// The label of `pitstop_upstream_errors_total`, if the error is the application's.
    pub(super) fn cause(&self) -> Option<&'static str> {
        match self {
            Self::Connect(_) => Some("connect"),
            Self::Timeout(_) => Some("timeout"),
            Self::Closed(_) | Self::Lost(_) | Self::Reset(_) | Self::Refused(_) => Some("closed"),
            Self::Open(OpenError::Closed) => Some("closed"),
            Self::Head(_)
            | Self::ResponseBody(_)
            | Self::Coding
            | Self::Unasked
            | Self::Open(_)
            | Self::Malformed(_) => Some("protocol"),
            Self::Ambiguous(_)
            | Self::Tunnel
            | Self::ClientTimeout
            | Self::ClientGone
            | Self::Body(_)
            | Self::Aborted => None,
        }
    }

    /// What the end of an HTTP/2 stream to the application means.
    pub(super) fn of_stream(error: h2::Error) -> Self {
        match () {
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

/// The connection has ended before the message.
pub(super) fn end_of_file() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "end of file")
}

impl From<HeadError> for Error {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::Coding | HeadError::TransferEncoding => Self::Coding,
            error => Self::Head(error),
        }
    }
}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Connect(error) => Self::Connect(error),
            error => Self::Open(error),
        }
    }
}
