//! The rules that a message can break, each with the section that states it.

/// A head that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// It is longer than the limit (RFC 6585 §5).
    #[error("the head is larger than the limit")]
    TooLarge,
    /// It has more fields than [`super::fields::LIMIT`] (RFC 6585 §5).
    #[error("the head has too many fields")]
    TooManyFields,
    /// The start line is malformed, with the version in it (RFC 9112 §2.3, §3 and §4).
    #[error("the start line is malformed (RFC 9112 §3, §4)")]
    StartLine,
    /// The version is neither HTTP/1.0 nor HTTP/1.1 (RFC 9112 §2.3).
    #[error("the version is not HTTP/1.0 or HTTP/1.1 (RFC 9112 §2.3)")]
    Version,
    /// A line does not end in CR and LF. A lone LF may be accepted, but not all recipients do (RFC 9112 §2.2).
    #[error("a line does not end in CR LF (RFC 9112 §2.2)")]
    LineEnd,
    /// A line has no field name that is a token and ends at the colon. A line that continues the one before has none either
    /// (RFC 9112 §5.1 and §5.2).
    #[error("a field name is malformed, or a field continues on a second line (RFC 9112 §5.1, §5.2)")]
    FieldName,
    /// A field value contains a control character (RFC 9110 §5.5).
    #[error("a field value contains a control character (RFC 9110 §5.5)")]
    FieldValue,
    /// The target has none of the forms that the method allows (RFC 9112 §3.2).
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
    /// `Host`, or the authority of the target, is not a host with an optional port (RFC 9110 §7.2, RFC 9112 §3.2).
    #[error("the Host or the target's authority is malformed (RFC 9110 §7.2, RFC 9112 §3.2)")]
    Host,
    /// `Connection` lists a field that is meant for the application as well. A proxy would remove `Host` or what frames the
    /// body (RFC 9110 §7.6.1).
    #[error("Connection lists Host, Content-Length or Transfer-Encoding (RFC 9110 §7.6.1)")]
    Connection,
    /// `Content-Length` is not a decimal number below 2⁶⁴, or is repeated (RFC 9110 §8.6, RFC 9112 §6.3).
    #[error("the Content-Length is malformed or repeated (RFC 9110 §8.6, RFC 9112 §6.3)")]
    ContentLength,
    /// `Content-Length` beside `Transfer-Encoding` (RFC 9112 §6.1 and §6.3).
    #[error("the head has both Content-Length and Transfer-Encoding (RFC 9112 §6.1, §6.3)")]
    TwoLengths,
    /// A transfer coding other than `chunked`, which would have to be undone here (RFC 9112 §6.1).
    #[error("the transfer coding is not chunked (RFC 9112 §6.1)")]
    Coding,
    /// `Transfer-Encoding` does not end in `chunked`, so that nothing says where the body ends, or has it twice, or has an empty element
    /// (RFC 9112 §6.1 and §6.3).
    #[error("the Transfer-Encoding is not a single chunked (RFC 9112 §6.1, §6.3)")]
    TransferEncoding,
    /// `Transfer-Encoding` in an HTTP/1.0 request, where recipients may ignore it (RFC 9112 §6.1).
    #[error("HTTP/1.0 has no transfer codings (RFC 9112 §6.1)")]
    OldCoding,
    /// The status is not a number from 100 to 999, or the reason phrase contains a control character (RFC 9112 §4).
    #[error("the status or its reason phrase is malformed (RFC 9112 §4)")]
    Status,
}

impl HeadError {
    /// The status that answers a request with this error. The connection is closed after it.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            // RFC 6585 §5.
            Self::TooLarge | Self::TooManyFields => 431,
            // RFC 9110 §9.1 and RFC 9112 §6.1.
            Self::Tunnel | Self::Coding => 501,
            // RFC 9110 §15.6.6.
            Self::Version => 505,
            Self::StartLine
            | Self::LineEnd
            | Self::FieldName
            | Self::FieldValue
            | Self::Target
            | Self::NoHost
            | Self::Hosts
            | Self::Host
            | Self::Connection
            | Self::ContentLength
            | Self::TwoLengths
            | Self::TransferEncoding
            | Self::OldCoding
            | Self::Status => 400,
        }
    }
}

/// A body that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// A chunk size is not a hexadecimal number of up to 16 digits, with an extension or CR LF behind (RFC 9112 §7.1).
    #[error("a chunk size is malformed (RFC 9112 §7.1)")]
    ChunkSize,
    /// A chunk extension is not a name with an optional value, each a token or the value a quoted string (RFC 9112 §7.1.1).
    #[error("a chunk extension is malformed (RFC 9112 §7.1.1)")]
    Extension,
    /// The chunk extensions of one body exceed [`super::body::EXTENSIONS`] (RFC 9112 §7.1.1).
    #[error("the chunk extensions are larger than the limit (RFC 9112 §7.1.1)")]
    Extensions,
    /// A chunk is not followed by CR LF (RFC 9112 §7.1).
    #[error("a chunk does not end in CR LF (RFC 9112 §7.1)")]
    ChunkEnd,
    /// A line of the trailer section is not a field (RFC 9112 §7.1.2).
    #[error("the trailers are malformed (RFC 9112 §7.1.2)")]
    Trailers,
    /// The trailer section exceeds [`super::body::TRAILERS`] or [`super::body::TRAILER_FIELDS`] (RFC 6585 §5).
    #[error("the trailers are larger than the limit")]
    TrailersTooLarge,
}

impl BodyError {
    /// The status that answers a request with this error, if its response has not begun. The connection is closed after it.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            // RFC 6585 §5.
            Self::TrailersTooLarge => 431,
            Self::ChunkSize | Self::Extension | Self::Extensions | Self::ChunkEnd | Self::Trailers => 400,
        }
    }
}

/// Tells a version that is not spoken here from one that is malformed, given the version in the start line.
pub(super) fn version(text: &[u8]) -> HeadError {
    match text {
        b"HTTP/1.0" | b"HTTP/1.1" => HeadError::StartLine,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            HeadError::Version
        }
        _ => HeadError::StartLine,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_each_error_with_its_status() {
        let table = [
            (HeadError::TooLarge, 431),
            (HeadError::TooManyFields, 431),
            (HeadError::Tunnel, 501),
            (HeadError::Coding, 501),
            (HeadError::Version, 505),
            (HeadError::StartLine, 400),
            (HeadError::Host, 400),
            (HeadError::TransferEncoding, 400),
        ];
        for (error, status) in table {
            assert_eq!(error.status(), status, "{error}");
        }
        assert_eq!(BodyError::TrailersTooLarge.status(), 431);
        assert_eq!(BodyError::ChunkSize.status(), 400);
    }

    #[test]
    fn tells_an_unknown_version_from_a_malformed_one() {
        for text in ["HTTP/2.0", "HTTP/1.2", "HTTP/0.9", "HTTP/9.9"] {
            assert_eq!(version(text.as_bytes()), HeadError::Version, "{text}");
        }
        for text in ["", "HTTP/1.1", "HTTP/1.0", "HTTP/2", "HTTP/1.x", "HTTP/x.1", "http/2.0", "HTTP/1.10", "HTTP 1.1"]
        {
            assert_eq!(version(text.as_bytes()), HeadError::StartLine, "{text}");
        }
    }
}
