//! End-to-end tests: each runs the real program against the real thing.

mod fixture;
mod smoke;
