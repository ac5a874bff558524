//! Tests on a real Kubernetes cluster, the one that kubectl points at. `tests/kubernetes` builds and loads the images,
//! and runs them.

#![allow(unreachable_pub, reason = "one crate: what its modules share is public to them")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod charts;
mod fixture;
mod fleet;
mod gate;
mod jobs;
mod plugin;
mod rollout;
mod scraping;
mod switching;
