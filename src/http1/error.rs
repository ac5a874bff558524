//! The rules that a message can break, each with the section that states it.

/// A head that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// It is longer than the limit. A request is answered with 431 (RFC 6585 §5).
    #[error("the head is larger than the limit")]
    TooLarge,
    /// It has more fields than [`super::fields::LIMIT`]. A request is answered with 431 (RFC 6585 §5).
    #[error("the head has more than {} fields", super::fields::LIMIT)]
    TooManyFields,
    /// The start line is malformed (RFC 9112 §3 and §4).
    #[error("the start line is malformed (RFC 9112 §3, §4)")]
    StartLine,
    /// The version is neither HTTP/1.0 nor HTTP/1.1 (RFC 9112 §2.3).
    #[error("the version is not HTTP/1.0 or HTTP/1.1 (RFC 9112 §2.3)")]
    Version,
    /// A line does not end in CR and LF. A lone LF may be accepted, but not all recipients do (RFC 9112 §2.2).
    #[error("a line does not end in CR LF (RFC 9112 §2.2)")]
    LineEnd,
    /// A field name is not a token, or white space precedes the colon (RFC 9112 §5.1).
    #[error("a field name is malformed (RFC 9112 §5.1)")]
    FieldName,
    /// A field value contains a control character, or continues on a second line (RFC 9110 §5.5, RFC 9112 §5.2).
    #[error("a field value is malformed (RFC 9110 §5.5)")]
    FieldValue,
    /// The target has none of the four forms (RFC 9112 §3.2).
    #[error("the request target is malformed (RFC 9112 §3.2)")]
    Target,
    /// `CONNECT` asks for a tunnel, which is not offered (RFC 9112 §3.2.3).
    #[error("tunnels are not forwarded (RFC 9112 §3.2.3)")]
    Tunnel,
    /// HTTP/1.1 without `Host` (RFC 9112 §3.2).
    #[error("the request has no Host (RFC 9112 §3.2)")]
    NoHost,
    /// More than one `Host` (RFC 9112 §3.2).
    #[error("the request has more than one Host (RFC 9112 §3.2)")]
    Hosts,
    /// `Host` is not a host with an optional port (RFC 9112 §3.2).
    #[error("the Host is malformed (RFC 9112 §3.2)")]
    Host,
    /// `Content-Length` is not a decimal number, or the values differ (RFC 9112 §6.3).
    #[error("the Content-Length is malformed or repeated (RFC 9112 §6.3)")]
    ContentLength,
    /// `Content-Length` beside `Transfer-Encoding` in a request (RFC 9112 §6.1).
    #[error("the request has both Content-Length and Transfer-Encoding (RFC 9112 §6.1)")]
    TwoLengths,
    /// A transfer coding other than a single `chunked` (RFC 9112 §6.1). A request is answered with 501.
    #[error("the transfer coding is not chunked (RFC 9112 §6.1)")]
    Coding,
    /// `Transfer-Encoding` in HTTP/1.0, where recipients may ignore it (RFC 9112 §6.1).
    #[error("HTTP/1.0 has no transfer codings (RFC 9112 §6.1)")]
    OldCoding,
    /// The status is not a number from 100 to 999 (RFC 9112 §4).
    #[error("the status is malformed (RFC 9112 §4)")]
    Status,
}

/// A body that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// A chunk size is not a hexadecimal number below 2⁶⁴ (RFC 9112 §7.1).
    #[error("a chunk size is malformed (RFC 9112 §7.1)")]
    ChunkSize,
    /// A chunk extension contains a control character (RFC 9112 §7.1.1).
    #[error("a chunk extension is malformed (RFC 9112 §7.1.1)")]
    Extension,
    /// The chunk extensions of one body exceed [`super::body::EXTENSIONS`] (RFC 9112 §7.1.1).
    #[error("the chunk extensions are larger than the limit (RFC 9112 §7.1.1)")]
    Extensions,
    /// A chunk is not followed by CR LF (RFC 9112 §7.1).
    #[error("a chunk does not end in CR LF (RFC 9112 §7.1)")]
    ChunkEnd,
    /// The trailer section is malformed, or exceeds [`super::body::TRAILERS`] (RFC 9112 §7.1.2).
    #[error("the trailers are malformed or too large (RFC 9112 §7.1.2)")]
    Trailers,
}

impl From<httparse::Error> for HeadError {
    fn from(error: httparse::Error) -> Self {
        match error {
            httparse::Error::HeaderName => Self::FieldName,
            httparse::Error::HeaderValue => Self::FieldValue,
            httparse::Error::NewLine => Self::LineEnd,
            httparse::Error::TooManyHeaders => Self::TooManyFields,
            httparse::Error::Version => Self::Version,
            httparse::Error::Status => Self::Status,
            httparse::Error::Token => Self::StartLine,
        }
    }
}
