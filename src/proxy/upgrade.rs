//! A connection on which client and application have agreed on another protocol (RFC 9110 §7.8).

use tokio::io::{AsyncWriteExt, copy, split};

use super::tracker::{Outcome, RequestTracker};
use crate::server::connection::Connection;
use crate::server::stream::Socket;
use crate::upstream;
use crate::upstream::connection::Upstream;

/// Passes bytes on in both directions, and each direction's end, until both have ended or the drain timeout has passed.
pub(super) async fn tunnel<C: Socket, U: Upstream>(
    client: &mut Connection<C>,
    mut upstream: upstream::connection::Connection<U>,
    mut tracker: RequestTracker,
) {
    client.stream.keep_alive();
    upstream.stream.keep_alive();
    let (response, early) = (std::mem::take(&mut client.output), std::mem::take(&mut client.input));
    let first = std::mem::take(&mut upstream.input);
    let mut in_flight = tracker.take_in_flight();
    let aborted = tracker.aborted();
    let has_ended = {
        let (mut from_client, mut to_client) = split(&mut client.stream);
        let (mut from_upstream, mut to_upstream) = split(&mut upstream.stream);
        let down = async {
            to_client.write_all(&response).await?;
            to_client.write_all(&first).await?;
            drop((response, first));
            copy(&mut from_upstream, &mut to_client).await?;
            // The application has ended its direction at least: it is not at work any more.
            drop(in_flight.take());
            to_client.shutdown().await
        };
        let up = async {
            to_upstream.write_all(&early).await?;
            drop(early);
            copy(&mut from_client, &mut to_upstream).await?;
            to_upstream.shutdown().await
        };
        tokio::select! {
            // If one of them is gone, the other is closed.
            _ = async { tokio::try_join!(down, up) } => true,
            () = aborted => false,
        }
    };
    if !has_ended {
        tracker.count(Outcome::Aborted);
    }
    upstream.abandon(in_flight);
}
