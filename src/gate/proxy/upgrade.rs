//! A connection on which client and application have agreed to go on in another protocol.

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, copy, split};

use super::pass::{Outcome, Pass};
use crate::gate::upstream::http1::connection::Stream;
use crate::listener::Upgraded;

/// Passes on what either says to the other, and that it has ended, until both have, or the time to finish is over.
pub(super) async fn pass_on(client: Upgraded, upstream: Stream, early: Bytes, mut pass: Pass) {
    client.inner().find_out_if_gone();
    let held = upstream.held();
    let (mut from_client, mut to_client) = split(client);
    let (mut from_upstream, mut to_upstream) = split(TokioIo::new(upstream));
    let down = async {
        to_client.write_all(&early).await?;
        copy(&mut from_upstream, &mut to_client).await?;
        // It has ended its direction at least: it is at work no longer.
        held.release();
        to_client.shutdown().await
    };
    let up = async {
        copy(&mut from_client, &mut to_upstream).await?;
        to_upstream.shutdown().await
    };
    tokio::select! {
        // If one of them has left, the other hears of it, and closes.
        _ = async { tokio::try_join!(down, up) } => {}
        () = pass.cut() => pass.outcome = Some(Outcome::Cut),
    }
}
