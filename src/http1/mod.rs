//! HTTP/1.1 messages without I/O (RFC 9112): bytes in, messages out. No socket, no clock, no runtime.
//!
//! A head is parsed in place and borrows from the input. `None` means that it is not complete yet: the caller reads
//! more and parses again from the start, so that a message gives the same result however its bytes arrive.
//!
//! - [`request`] and [`response`]: heads, validated, with the framing of the body that follows.
//! - [`body`]: decodes and encodes bodies.
//! - [`fields`]: rules that both kinds of head share.
//! - [`authority`]: the grammar of `Host`, which HTTP/2's `:authority` shares.
//! - [`error`]: one variant for each rule that a message can break.
//!
//! Every message that could be read in more than one way is an error. Proxies in front and applications behind may read
//! it the other way, and what one of them takes for a body is a second request to the other.

pub mod authority;
pub mod body;
pub mod error;
pub mod fields;
pub mod request;
pub mod response;

#[cfg(test)]
mod checker;
#[cfg(test)]
mod generated;
#[cfg(test)]
mod properties;

/// A version of HTTP that has this message syntax.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0: no chunked bodies, no persistent connections unless both sides ask for them.
    Http10,
    /// HTTP/1.1.
    Http11,
}
