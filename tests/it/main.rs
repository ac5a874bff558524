//! End-to-end tests: each runs the real program against the real thing.

#![allow(unreachable_pub, reason = "one crate: what its modules share is public to them")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod alerts;
mod appearance;
mod application;
mod bypass;
mod chart_values;
mod charts;
mod commands;
mod costs;
mod draining;
mod events;
mod fietsboek;
mod fietsboek_gate;
mod file;
mod filesystem;
mod fixture;
mod forward_auth;
mod forwarding;
mod grpc;
mod h2c;
mod holding;
mod http2_application;
mod image;
mod jobs;
mod kernel;
mod kustomize;
mod large_bodies;
mod listeners;
mod logs;
mod maintenance_mode;
mod manifests;
mod metrics;
mod mount;
mod names;
mod permit_model;
mod permits;
mod plugin;
mod podman;
mod policies;
mod probes;
mod prometheus;
mod real_servers;
mod refusals;
mod restarts;
mod running;
mod server;
mod smoke;
mod smuggling;
mod stopping;
mod threads;
mod upgrades;
mod upstream_connections;
mod upstream_errors;
mod watcher;
