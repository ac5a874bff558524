//! The domain: what maintenance mode is, where it is written and who has to give way. Nothing here knows HTTP.

pub mod file;
pub mod notice;
pub mod permit;
mod schedule;
pub mod state;
pub mod watch;

mod plain;

pub use plain::{one_line, printable};
