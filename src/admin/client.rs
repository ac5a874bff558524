//! Asking the local sidecar: what `pitstop probe` and `--wait` do.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http1::body::{Decoder, Piece};
use crate::http1::error::{BodyError, HeadError};
use crate::http1::fields;
use crate::http1::response::Response;

/// The time for the local sidecar to answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The size of a response's head, in bytes.
const HEAD_SIZE: usize = 16 * 1024;
/// The size of a response, in bytes. The longest holds a reason or the metrics.
const SIZE: usize = 1024 * 1024;

/// The local sidecar did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or not here.
    #[error("no sidecar answers at {address} ({source}): does `pitstop serve` run, with this --admin-listen?")]
    Connect {
        /// Where it was asked.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody listens, but does not answer as a sidecar does.
    #[error("the sidecar at {address} does not answer: {why}")]
    Answer {
        /// Where it was asked.
        address: SocketAddr,
        /// What went wrong.
        why: String,
    },
}

/// Why a response cannot be read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error("the connection was closed before the response was complete")]
    Closed,
    #[error("the response is larger than {} KiB", SIZE / 1024)]
    TooLarge,
    #[error("the status {0} is unknown")]
    Status(u16),
}

/// Asks the sidecar that listens at `listen` on this host for a path. Returns the status and the text.
///
/// # Errors
///
/// See [`ClientError`].
pub async fn get(listen: SocketAddr, path: &str) -> Result<(StatusCode, String), ClientError> {
    let (address, stream) = connect(listen).await?;
    let failed = |why: String| ClientError::Answer { address, why };
    match tokio::time::timeout(TIMEOUT, exchange(stream, address, path)).await {
        Ok(response) => response.map_err(|error| failed(error.to_string())),
        Err(_) => Err(failed(format!("nothing for {TIMEOUT:?}"))),
    }
}

async fn exchange(mut stream: TcpStream, address: SocketAddr, path: &str) -> Result<(StatusCode, String), ReadError> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut received = Vec::new();
    loop {
        let has_ended = stream.read_buf(&mut received).await? == 0;
        if let Some(response) = parse(&received, has_ended)? {
            return Ok(response);
        }
        if has_ended {
            return Err(ReadError::Closed);
        }
        if received.len() > SIZE {
            return Err(ReadError::TooLarge);
        }
    }
}

/// Parses a response. `None` if it is not complete. Called again from the start with each part that arrives, of which there
/// are few.
fn parse(received: &[u8], has_ended: bool) -> Result<Option<(StatusCode, String)>, ReadError> {
    let mut input = received;
    let (status, framing) = loop {
        let mut room = fields::storage();
        let Some(head) = Response::parse(input, &mut room, false, HEAD_SIZE)? else { return Ok(None) };
        input = &input[head.length..];
        if !head.is_interim() {
            break (head.status, head.framing);
        }
    };
    let status = StatusCode::from_u16(status).map_err(|_| ReadError::Status(status))?;
    let (mut decoder, mut body) = (Decoder::new(framing), Vec::new());
    loop {
        let (consumed, piece) = decoder.decode(input)?;
        input = &input[consumed..];
        match piece {
            Piece::Data(data) => body.extend_from_slice(data),
            Piece::More if !(has_ended && decoder.may_end_with_connection()) => return Ok(None),
            Piece::Trailers(_) | Piece::End | Piece::More => {
                return Ok(Some((status, String::from_utf8_lossy(&body).into_owned())));
            }
        }
    }
}

async fn connect(listen: SocketAddr) -> Result<(SocketAddr, TcpStream), ClientError> {
    // Who listens on every address listens on the loopback one; for IPv6 that may have been IPv4 in the end.
    let local = |ip: IpAddr| SocketAddr::new(ip, listen.port());
    let addresses: &[SocketAddr] = match listen.ip() {
        ip if !ip.is_unspecified() => &[listen],
        IpAddr::V4(_) => &[local(Ipv4Addr::LOCALHOST.into())],
        IpAddr::V6(_) => &[local(Ipv4Addr::LOCALHOST.into()), local(Ipv6Addr::LOCALHOST.into())],
    };
    let mut result = Err((listen, io::Error::from(io::ErrorKind::AddrNotAvailable)));
    for &address in addresses {
        result = match tokio::time::timeout(TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok((address, stream)),
            Ok(Err(error)) => Err((address, error)),
            Err(_) => Err((address, io::ErrorKind::TimedOut.into())),
        };
    }
    result.map_err(|(address, source)| ClientError::Connect { address, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_response_however_it_is_framed() {
        for (text, body) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "abc"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "abc"),
            ("HTTP/1.1 200 OK\r\n\r\nabc", "abc"),
            ("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""),
        ] {
            let read = |length: usize, has_ended| parse(&text.as_bytes()[..length], has_ended);
            assert_eq!(read(text.len(), true).unwrap(), Some((StatusCode::OK, body.to_owned())), "{text:?}");
            for length in 0..text.len() {
                assert_eq!(read(length, false).unwrap(), None, "{text:?} {length}");
            }
        }
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", true).unwrap().is_none());
        assert!(parse(b"SSH-2.0-OpenSSH_9.2\r\n", false).is_err());
    }
}
