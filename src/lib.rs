//! pitstop is a maintenance-mode sidecar. It watches a `MAINTENANCE` file: there = maintenance, its text = the
//! reason, gone = over.
//!
//! The way of one fact:
//!
//! ```text
//!   MAINTENANCE changes        kubectl exec … maintenance-mode, touch, rm, a ConfigMap's swap
//!         │
//!         ▼
//!   maintenance::watch         hears a hint (notify) or its poll is due
//!         │                    maintenance::file looks, maintenance::notice reads the text
//!         │                    a permit (maintenance::lock) is taken before the look
//!         ▼
//!   maintenance::state         differs? then one tokio watch channel says so
//!         │
//!         ├──▶ gate            503 and the reason, in the client's format; off: the application's answer  :8503
//!         └──▶ admin           /readyz, /livez, /healthz, /maintenance, /metrics  :9503
//! ```
//!
//! There is one writer. Nobody keeps a copy, and no request touches the disk.
//!
//! A module may use those below it in this list, never one above. A test holds that order.
//!
//! - [`commands`]: one file per subcommand; `serve` wires modules together. [`cli`] defines the command line.
//! - [`admin`]: probes, metrics and the state: an axum router.
//! - [`gate`]: decides what happens to a request on the traffic listener.
//! - [`page`]: the refusal in the client's format and language.
//! - [`proxy`]: forwards one request.
//! - [`upstream`]: connections to the application.
//! - [`server`]: accepts connections, serves them, drains them. Both listeners use it.
//! - [`http1`]: HTTP/1.1 messages without I/O.
//! - [`metrics`]: what Prometheus scrapes.
//! - [`maintenance`]: the domain. It knows no HTTP.
//! - [`reload`]: small files that are read again while pitstop runs.
//! - [`shutdown`], [`log`], [`memory`].
//!
//! A forwarded HTTP/1.1 request passes these files, in this order:
//!
//! 1. `server/http1.rs` waits for a head, which `server/buffer.rs` reads into the thread's buffer and `http1/request.rs` parses
//!    by the rules of `http1/fields.rs` and `http1/authority.rs`.
//! 2. `gate/mod.rs` asks `gate/admission.rs` for a tracker, which asks `gate/verdict.rs` for the decision.
//! 3. `proxy/exchange.rs` turns the request into the application's by the rules of `proxy/headers.rs`. `proxy/http1.rs` takes a
//!    connection from `upstream/pool.rs`, and `proxy/pump.rs` passes the bodies of `http1/body.rs` and the head of
//!    `http1/response.rs` between `upstream/connection.rs` and `server/connection.rs`.
//! 4. `proxy/tracker.rs` counts it.

pub mod admin;
pub mod cli;
pub mod commands;
pub mod gate;
pub mod http1;
pub mod log;
pub mod maintenance;
pub mod memory;
pub mod metrics;
pub mod page;
pub mod proxy;
pub mod reload;
pub mod server;
pub mod shutdown;
pub mod upstream;
