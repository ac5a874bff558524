//! The application: its address, the connections to it, and what a request holds while it is at work.

pub mod connection;
pub mod http2;
pub mod pool;
pub mod resolver;

use std::str::FromStr;
use std::time::Duration;

use http::Uri;
use prometheus::IntGauge;

use self::resolver::Resolver;
use crate::maintenance::state::Permits;

/// How long an application may keep sending after the client has left before the connection is reset, and how long it then has to
/// notice.
pub const UNREAD_TIME: Duration = Duration::from_secs(10);

/// Where requests are forwarded to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    protocol: Protocol,
    host: String,
    port: u16,
}

/// What the application speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1: `http://`.
    Http1,
    /// HTTP/2 in clear text, with prior knowledge (RFC 9113 §3.3): `h2c://`.
    Http2,
}

/// An `--upstream` that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// It is no URL.
    #[error("not a URL such as http://127.0.0.1:3000 or h2c://127.0.0.1:3000")]
    Malformed,
    /// Its scheme is another.
    #[error("the scheme is {0}, known are http and h2c")]
    Scheme(String),
    /// It has more than a scheme, a host and a port.
    #[error("no more than a scheme, a host and a port can be given: paths are forwarded as they come")]
    More,
}

impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(url: &str) -> Result<Self, UpstreamError> {
        let uri: Uri = url.parse().map_err(|_| UpstreamError::Malformed)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(UpstreamError::Malformed);
        };
        let protocol = match scheme {
            "http" => Protocol::Http1,
            "h2c" => Protocol::Http2,
            other => return Err(UpstreamError::Scheme(other.to_owned())),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() || authority.as_str().contains('@') {
            return Err(UpstreamError::More);
        }
        let port = authority.port().map(|port| port.as_str().parse()).transpose();
        let port = port.map_err(|_| UpstreamError::Malformed)?.unwrap_or(80);
        // An IPv6 address is in brackets in a URL, and without them elsewhere.
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { protocol, host, port })
    }
}

impl Upstream {
    /// What it speaks.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Finds its addresses.
    #[must_use]
    pub fn resolver(&self) -> Resolver {
        Resolver::new(self.host.clone(), self.port)
    }
}

impl std::fmt::Display for Upstream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(formatter, "[{}]:{}", self.host, self.port),
            false => write!(formatter, "{}:{}", self.host, self.port),
        }
    }
}

/// Held while the application may be at work on a request.
#[derive(Debug)]
pub struct InFlight(Option<(Permits, IntGauge)>);

impl InFlight {
    /// Holds the permits, and counts as in flight.
    #[must_use]
    pub fn new(permits: Permits, in_flight: IntGauge) -> Self {
        in_flight.inc();
        Self(Some((permits, in_flight)))
    }

    /// Holds nothing: nobody waits for the request.
    #[must_use]
    pub fn nothing() -> Self {
        Self(None)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some((_, in_flight)) = &self.0 {
            in_flight.dec();
        }
    }
}
