//! A connection on which client and application have agreed to go on in another protocol.

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, copy_bidirectional};

use super::pass::{Outcome, Pass};
use crate::gate::upstream::http1::connection::Stream;
use crate::listener::Upgraded;

/// Passes on what either says to the other, until both have ended, or the time to finish is over.
pub(super) async fn pass_on(mut client: Upgraded, upstream: Stream, early: Bytes, mut pass: Pass) {
    let mut upstream = TokioIo::new(upstream);
    let both = async {
        client.write_all(&early).await?;
        copy_bidirectional(&mut client, &mut upstream).await
    };
    let ended = tokio::select! {
        ended = both => Some(ended),
        () = pass.cut() => None,
    };
    match ended {
        // Both have said all that they had to.
        Some(Ok(_)) => upstream.inner().release(),
        // The client has left: the application hears of it, and closes.
        Some(Err(_)) => {}
        None => pass.outcome = Some(Outcome::Cut),
    }
}
