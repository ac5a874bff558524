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
//! There is one writer, and nobody else keeps a copy. Nothing that a request does touches the disk.
//!
//! The rooms, each of which may use those below it, never one above:
//!
//! - [`commands`]: one file a subcommand; `serve` only wires rooms together. [`cli`] says what may be asked of them.
//! - [`gate`]: the traffic listener.
//! - [`admin`]: the admin listener, and how to ask one.
//! - [`metrics`]: what Prometheus is told.
//! - [`maintenance`]: the domain; knows nothing of HTTP.
//! - [`listener`]: bind, accept, limits, timeouts, bounded drain; both listeners use it.
//! - [`http1`]: HTTP/1.1 messages without I/O.
//! - [`reload`]: small files that are reloaded while pitstop runs.
//! - [`shutdown`], [`log`], [`memory`].

pub mod admin;
pub mod cli;
pub mod commands;
pub mod gate;
pub mod http1;
pub mod listener;
pub mod log;
pub mod maintenance;
pub mod memory;
pub mod metrics;
pub mod reload;
pub mod shutdown;
