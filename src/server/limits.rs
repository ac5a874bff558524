//! What a client may use up.

use std::time::Duration;

/// What a client may use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The size of a request's head, in bytes. Larger ones are answered with 431.
    pub header_size: usize,
    /// The time to send it.
    pub header_timeout: Duration,
    /// The time a connection may be kept without a request.
    pub idle_timeout: Duration,
    /// The number of connections. At the limit, the connection that has waited longest for a request makes room for the next
    /// one, which waits only while all of them have requests.
    pub connections: usize,
    /// The number of connections that speak HTTP/2, which need more memory. At the limit, the one of them that has waited longest
    /// for a request makes room; where none waits, the next one is closed.
    pub http2_connections: usize,
    /// The number of HTTP/2 requests at once, on all connections together. Those above it are refused (RFC 9113 §8.7).
    pub streams: usize,
}

#[cfg(any(test, fuzzing))]
impl Limits {
    /// One connection, for tests.
    pub(crate) const ONE: Self = Self {
        header_size: 8192,
        header_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(75),
        connections: 1,
        http2_connections: 1,
        streams: 1,
    };
}
