//! End-to-end tests: each runs the real program against the real thing.

#![allow(unreachable_pub, reason = "one crate: what its modules share is public to them")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod commands;
mod fietsboek;
mod fixture;
mod jobs;
mod lockless;
mod maintenance_mode;
mod permit_model;
mod permits;
mod probes;
mod refusals;
mod running;
mod smoke;
