//! The admin listener: probes, metrics and the state. Read-only: no request changes anything.

pub mod client;
pub mod health;
pub mod routes;
pub mod service;
