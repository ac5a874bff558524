//! The domain: what maintenance mode is, where it is stored, and who may let work reach the data. It knows no HTTP.
//!
//! A module uses only modules above it in this list: `plain`, [`notice`], [`observation`], [`file`](mod@file), [`lock`],
//! [`state`], `schedule`, `looks`, [`watch`].

pub mod file;
pub mod lock;
mod looks;
pub mod notice;
pub mod observation;
mod plain;
mod schedule;
pub mod state;
pub mod watch;

pub use plain::{one_line, printable};
