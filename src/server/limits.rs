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
    /// The number of HTTP/2 requests at once, on all connections together. Those above it are refused (RFC 9113 §8.7).
    pub streams: usize,
}
