//! Why there is no answer of the application's, or no more of it.

use std::io;

use hyper::StatusCode;

use super::headers::Ambiguous;
use crate::gate::upstream::http2::OpenError;

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(in crate::gate) enum Failure {
    /// The request could be read in more than one way.
    #[error(transparent)]
    Ambiguous(#[from] Ambiguous),
    /// `CONNECT`.
    #[error("tunnels are not forwarded")]
    Tunnel,
    /// The client does not go on with its request.
    #[error("the client does not send the rest of its request")]
    ClientTimeout,
    /// The client has left in the middle of its request.
    #[error("the client has left")]
    ClientGone,
    /// It does not accept a connection.
    #[error("does not accept a connection: {0}")]
    Connect(io::Error),
    /// It does not accept one in time, or does not begin to answer.
    #[error("{0} in time")]
    Timeout(&'static str),
    /// It has closed the connection.
    #[error("has closed the connection instead of an answer: {0}")]
    Closed(hyper::Error),
    /// It answers something else than HTTP.
    #[error("does not answer in HTTP: {0}")]
    Protocol(hyper::Error),
    /// It does not begin HTTP/2.
    #[error(transparent)]
    Open(OpenError),
    /// It has closed the HTTP/2 connection.
    #[error("has closed the connection instead of an answer: {0}")]
    Lost(#[source] h2::Error),
    /// It has reset the stream.
    #[error("has reset the request: {0}")]
    Reset(#[source] h2::Error),
    /// It says that it has not taken up the request.
    #[error("has refused the request: {0}")]
    Refused(#[source] h2::Error),
    /// It answers something else than HTTP/2.
    #[error("does not answer in HTTP/2: {0}")]
    Malformed(#[source] h2::Error),
    /// It answers in a transfer coding that nobody has asked for.
    #[error("answers in a transfer coding other than chunked")]
    Coding,
    /// It goes on in a protocol that nobody has asked for.
    #[error("switches to a protocol that it was not asked for")]
    Unasked,
    /// Maintenance has begun, and the time to finish is over.
    #[error("cut")]
    Cut,
}

impl Failure {
    /// What the client is told.
    pub(in crate::gate) fn status(&self) -> StatusCode {
        match self {
            Self::Ambiguous(Ambiguous::Coding) | Self::Tunnel => StatusCode::NOT_IMPLEMENTED,
            Self::Ambiguous(_) => StatusCode::BAD_REQUEST,
            Self::ClientTimeout | Self::ClientGone => StatusCode::REQUEST_TIMEOUT,
            Self::Connect(_)
            | Self::Open(_)
            | Self::Closed(_)
            | Self::Lost(_)
            | Self::Reset(_)
            | Self::Refused(_)
            | Self::Protocol(_)
            | Self::Malformed(_)
            | Self::Coding
            | Self::Unasked => StatusCode::BAD_GATEWAY,
            Self::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Cut => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Whether the application may have received the request, or a part of it.
    pub(in crate::gate) fn may_have_arrived(&self) -> bool {
        !matches!(self, Self::Ambiguous(_) | Self::Tunnel | Self::Connect(_) | Self::Open(_) | Self::Refused(_))
    }

    /// How it is counted, where it is the application's.
    pub(super) fn cause(&self) -> Option<&'static str> {
        match self {
            Self::Connect(_) => Some("connect"),
            Self::Timeout(_) => Some("timeout"),
            Self::Closed(_) | Self::Lost(_) | Self::Reset(_) | Self::Refused(_) => Some("closed"),
            Self::Open(OpenError::Closed) => Some("closed"),
            Self::Protocol(_) | Self::Coding | Self::Unasked | Self::Open(_) | Self::Malformed(_) => Some("protocol"),
            Self::Ambiguous(_) | Self::Tunnel | Self::ClientTimeout | Self::ClientGone | Self::Cut => None,
        }
    }

    pub(super) fn of(error: hyper::Error) -> Self {
        match error.is_parse() {
            true => Self::Protocol(error),
            false => Self::Closed(error),
        }
    }
}
