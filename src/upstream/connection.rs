//! One HTTP/1.1 connection to the application.

use std::future::poll_fn;
use std::io;
use std::task::Context;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep, timeout_at};

use super::{InFlight, UNREAD_TIME};
use crate::server::buffer::{self, Input};
use crate::server::stream::Socket;

/// How much an application may send after its client has left, in bytes, before the connection is reset.
const UNREAD: usize = 1024 * 1024;

/// A connection. The task that serves a client owns it while it has a request on it.
#[derive(Debug)]
pub struct Connection<S> {
    /// The socket.
    pub stream: S,
    /// What has arrived and is not consumed yet.
    pub input: Vec<u8>,
    /// Whether it has had a request before. The application may have closed it meanwhile.
    pub is_reused: bool,
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

impl<S: Socket> Connection<S> {
    /// A new connection, which keeps its permit for as long as it is open.
    pub fn new(stream: S, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { stream, input: Vec::new(), is_reused: false, permit }
    }
}

/// A socket to an application, which can be watched after its client has left.
pub trait Upstream: Socket {
    /// Whether the application has neither closed the connection nor sent anything on it. Costs no system call unless it has.
    fn is_quiet(&mut self, cx: &mut Context<'_>) -> bool;

    /// Closes the connection of a request that was given up. The application may still be at work on it: `in_flight` is held until
    /// it closes the connection, too.
    fn abandon(self, in_flight: InFlight, permit: Option<OwnedSemaphorePermit>);
}

impl Upstream for TcpStream {
    fn is_quiet(&mut self, cx: &mut Context<'_>) -> bool {
        if self.poll_read_ready(cx).is_pending() {
            return true;
        }
        let read = self.try_read(&mut [0; 1]);
        matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    fn abandon(self, in_flight: InFlight, permit: Option<OwnedSemaphorePermit>) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(closed(self, in_flight, permit));
        }
    }
}

#[cfg(any(test, fuzzing))]
impl Upstream for tokio::io::DuplexStream {
    fn is_quiet(&mut self, _: &mut Context<'_>) -> bool {
        true
    }

    fn abandon(mut self, in_flight: InFlight, permit: Option<OwnedSemaphorePermit>) {
        tokio::spawn(async move {
            let _permit = permit;
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut self).await;
            let _ = tokio::io::AsyncReadExt::read_to_end(&mut self, &mut Vec::new()).await;
            drop(in_flight);
        });
    }
}

impl<S: Upstream> Connection<S> {
    /// Closes the connection in the middle of a request.
    pub fn abandon(self, in_flight: Option<InFlight>) {
        if let Some(in_flight) = in_flight {
            self.stream.abandon(in_flight, self.permit);
        }
    }
}

/// Waits until the application has closed the connection. It may be at work in silence for as long as it likes; the system finds
/// out if its host has vanished.
///
/// An application that keeps sending may never check whether anybody reads. It is reset after a while. From then on its end cannot
/// be seen here, so that it gets some time for it.
async fn closed(mut stream: TcpStream, _in_flight: InFlight, _permit: Option<OwnedSemaphorePermit>) -> io::Result<()> {
    stream.keep_alive();
    stream.shutdown().await?;
    let mut left = UNREAD;
    let mut limit = None;
    while left > 0 {
        let read =
            poll_fn(|cx| buffer::poll_read(&mut stream, cx, &mut Vec::new(), |input| (input.len(), input.len())));
        let read = match limit {
            None => read.await?,
            Some(limit) => match timeout_at(limit, read).await {
                Ok(read) => read?,
                Err(_) => break,
            },
        };
        let Input::Read(length) = read else { return Ok(()) };
        left = left.saturating_sub(length);
        limit.get_or_insert_with(|| Instant::now() + UNREAD_TIME);
    }
    drop(stream);
    sleep(UNREAD_TIME).await;
    Ok(())
}
