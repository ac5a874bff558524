//! Asking the local sidecar: what `pitstop probe` and `--wait` do.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// How long the local sidecar may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How much of an answer is read, in bytes. The longest holds a reason.
const LIMIT: usize = 1024 * 1024;

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

/// Asks the sidecar that listens at `listen` on this host for a path; gives the status and the text.
///
/// # Errors
///
/// See [`ClientError`].
pub async fn get(listen: SocketAddr, path: &str) -> Result<(StatusCode, String), ClientError> {
    let (address, stream) = connect(listen).await?;
    let failed = |why: String| ClientError::Answer { address, why };
    let exchange = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::get(path).header(HOST, address.to_string()).body(Empty::<Bytes>::new())?;
        tokio::spawn(connection);
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, LIMIT).collect().await?.to_bytes();
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((head.status, String::from_utf8_lossy(&body).into_owned()))
    };
    match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(answer) => answer.map_err(|error| failed(error.to_string())),
        Err(_) => Err(failed(format!("nothing for {PATIENCE:?}"))),
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
        result = match tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok((address, stream)),
            Ok(Err(error)) => Err((address, error)),
            Err(_) => Err((address, io::ErrorKind::TimedOut.into())),
        };
    }
    result.map_err(|(address, source)| ClientError::Connect { address, source })
}
