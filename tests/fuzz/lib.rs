//! The properties of `src/http1`, for libFuzzer. It compiles that module alone, since sanitizers slow a build down.
#![forbid(unsafe_code)]

#[path = "../../src/http1/mod.rs"]
pub mod http1;

#[path = "../../src/http1/checker.rs"]
mod checker;
#[path = "../../src/http1/properties.rs"]
mod properties;

// What the modules above find in their parent.
use http1::{Version, body, error, fields, request, response};

/// Checks a request head.
pub fn request_head(input: &[u8]) {
    properties::request_head(input);
}

/// Checks a response head.
pub fn response_head(input: &[u8]) {
    properties::response_head(input);
}

/// Checks a chunked body.
pub fn chunked_body(input: &[u8]) {
    properties::chunked_body(input);
}
