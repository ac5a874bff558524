//! How requests are told to end that have had their time.

use std::future::pending;
use std::sync::Arc;

use tokio::sync::watch;

use super::exchange::Progress;

/// Tells requests to end: all that run at that moment, and can be cut.
#[derive(Clone, Debug, Default)]
pub struct Cuts(watch::Sender<()>);

impl Cuts {
    /// Cuts. A client that takes what it is given gets a whole answer, or sees that it has broken off. One that does not
    /// loses its connection, or its stream.
    pub fn cut(&self) {
        self.0.send_replace(());
    }

    /// Tells of the next one.
    pub(crate) fn next(&self) -> watch::Receiver<()> {
        self.0.subscribe()
    }
}

/// Waits for the next one.
pub(super) async fn cut(mut cuts: watch::Receiver<()>) {
    if cuts.changed().await.is_err() {
        // There is none.
        pending::<()>().await;
    }
}

/// By this a request hears that it has to end. Until it is dropped, the connection sees to that where the service cannot.
#[derive(Debug)]
pub struct Cut {
    cuts: watch::Receiver<()>,
    progress: Arc<Progress>,
}

impl Cut {
    pub(super) fn new(cuts: watch::Receiver<()>, progress: Arc<Progress>) -> Self {
        progress.let_be_cut(true);
        Self { cuts, progress }
    }

    /// Whether it has to. The connection's task is woken when it does.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.cuts.has_changed().unwrap_or(false)
    }

    /// Waits until it has to, for work that goes on without the connection.
    pub fn due(&self) -> impl Future<Output = ()> + Send + use<> {
        cut(self.cuts.clone())
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        self.progress.let_be_cut(false);
    }
}
