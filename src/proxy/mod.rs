//! Forwarding: one request to the application, and its response.
//!
//! - [`http1`]: from HTTP/1.1 to HTTP/1.1, the fast path: an [`exchange`], whose bytes a `pump` passes on.
//! - [`stream`]: every other combination, over frames.
//! - [`headers`]: what changes of a message.
//! - [`tracker`]: what a request holds, and when it has to end.

pub mod error;
pub mod exchange;
#[cfg(fuzzing)]
#[path = "../../tests/fuzz/play.rs"]
pub mod fuzzing;
pub mod headers;
pub mod http1;
mod pump;
pub mod stream;
pub mod tracker;
mod upgrade;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::metrics::Requests;
use crate::upstream::http2::Multiplexed;
use crate::upstream::pool::Pool;
use crate::upstream::{Protocol, Upstream};

/// The size of a response's head, in bytes.
const HEAD_SIZE: usize = 256 * 1024;

/// Forwards requests to the application.
#[derive(Debug)]
pub struct Proxy {
    upstream: Upstream,
    pool: Pool,
    /// Instead of the pool, where the application speaks HTTP/2.
    multiplexed: Option<Multiplexed>,
    host: String,
    /// For the application to accept a connection, to begin its response, and between two parts of it.
    timeout: Duration,
    requests: Arc<Requests>,
}

impl Proxy {
    /// A proxy for this application. Each connection to it holds one of the permits, and is kept for `idle_timeout` without a
    /// request. `timeout` is for the application to accept a connection, to begin its response, and between two parts of it.
    #[must_use]
    pub fn new(
        upstream: Upstream,
        permits: Arc<Semaphore>,
        (idle_timeout, timeout): (Duration, Duration),
        requests: Arc<Requests>,
    ) -> Self {
        let multiplexed =
            (upstream.protocol() == Protocol::Http2).then(|| Multiplexed::new(upstream.resolver(), idle_timeout));
        let pool = Pool::new(upstream.resolver(), permits, idle_timeout);
        Self { host: upstream.to_string(), upstream, pool, multiplexed, timeout, requests }
    }
}
