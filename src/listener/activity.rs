//! What a connection is doing, and how long it may.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use hyper::body::{Body, Incoming};
use hyper::header::HeaderValue;
use hyper::{Request, Version};
use tokio::sync::{Notify, oneshot};

use super::cut::Cuts;
use super::exchange::{Answering, Progress, RequestBody, Successor};

/// What a connection is doing, as far as its time limits go.
#[derive(Debug)]
pub(super) struct Activity {
    /// Who is at the other end.
    pub(super) client: IpAddr,
    client_as_header: OnceLock<HeaderValue>,
    /// What tells its requests to end.
    pub(super) cuts: Cuts,
    /// How the answer gets on; over HTTP/2, where there are many at the same time, each has such a thing of its own.
    pub(super) progress: Arc<Progress>,
    /// That of the answer which was begun last.
    latest: Mutex<Option<Arc<Progress>>>,
    /// Who goes on with the connection when HTTP on it has ended with an upgrade.
    successor: Mutex<Option<Successor>>,
    /// How much has been taken up: requests whose body is being read, and answers that are being written.
    begun: AtomicUsize,
    /// How much of that is done, or lost.
    ended: AtomicUsize,
    /// How often the client has sent something after that.
    resumed: AtomicUsize,
    /// How often it has taken something.
    written: AtomicUsize,
    /// Whether nothing has come since the last work was done.
    idle: AtomicBool,
    /// Whether something of an answer may not have reached the system yet.
    unflushed: AtomicBool,
    /// Whether the client may have more to send that nobody reads.
    unread: AtomicBool,
    /// Whether it is HTTP/2, where what comes between two requests need not be a header.
    multiplexed: AtomicBool,
    /// Whether it is HTTP/1.0, where the end of the connection may be the end of the answer.
    ends_answers: AtomicBool,
    /// Whether it has to end as no answer ends.
    broken: AtomicBool,
    /// Whether somebody wants to know when the client leaves, and is to be given the means to watch it.
    watched: AtomicBool,
    watcher: Mutex<Option<oneshot::Sender<OwnedFd>>>,
    /// When the connection last began to wait for a request, in the order of all connections.
    waiting_since: AtomicU64,
    /// Whether the connection has to make room for another, and the signal that says so.
    evicted: AtomicBool,
    eviction: Notify,
}

/// The source of [`Activity::waiting_since`]. An order is all that is needed, and reading a clock would cost each request.
static TURNS: AtomicU64 = AtomicU64::new(0);

/// What a connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    /// The rest of a header; of a new connection, all of it.
    Header,
    /// The service.
    Answer,
    /// The client, to take what it was given of an answer.
    Client,
    /// The next request.
    Request,
}

impl Activity {
    /// Of a new connection.
    pub(super) fn new(client: IpAddr, cuts: Cuts) -> Self {
        Self {
            client,
            client_as_header: OnceLock::new(),
            cuts,
            progress: Arc::default(),
            latest: Mutex::new(None),
            successor: Mutex::new(None),
            begun: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            resumed: AtomicUsize::new(0),
            written: AtomicUsize::new(0),
            idle: AtomicBool::new(false),
            unflushed: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            multiplexed: AtomicBool::new(false),
            ends_answers: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            watcher: Mutex::new(None),
            waiting_since: AtomicU64::new(TURNS.fetch_add(1, Relaxed)),
            evicted: AtomicBool::new(false),
            eviction: Notify::new(),
        }
    }

    /// When the connection began to wait for a request, in the order of all connections. `None` while it has one, or has a
    /// response to finish.
    pub(super) fn waiting_since(&self) -> Option<u64> {
        let waits = matches!(self.waiting(), Waiting::Header | Waiting::Request) && !self.is_evicted();
        waits.then(|| self.waiting_since.load(Relaxed))
    }

    /// Closes the connection, to make room for another.
    pub(super) fn evict(&self) {
        self.evicted.store(true, Relaxed);
        self.eviction.notify_one();
    }

    /// Whether the connection has to make room. Its task is woken by [`Activity::eviction`].
    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.load(Relaxed)
    }

    /// Waits until the connection has to make room.
    pub(super) async fn eviction(&self) {
        self.eviction.notified().await;
    }

    /// Its address as the value of a header, which is made once.
    pub(super) fn client_as_header(&self) -> HeaderValue {
        let value = || HeaderValue::try_from(self.client.to_canonical().to_string());
        self.client_as_header.get_or_init(|| value().unwrap_or(HeaderValue::from_static("unknown"))).clone()
    }

    /// Who wants to know when the client leaves, if somebody does.
    pub(super) fn watcher(&self) -> Option<oneshot::Sender<OwnedFd>> {
        if !self.watched.load(Relaxed) {
            return None;
        }
        self.watched.store(false, Relaxed);
        self.watcher.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Asks for the means to watch the client.
    pub(super) async fn watch(&self) -> Option<OwnedFd> {
        let (sender, receiver) = oneshot::channel();
        *self.watcher.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        self.watched.store(true, Relaxed);
        receiver.await.ok()
    }

    /// Whether there may be more than one request at the same time.
    pub(super) fn is_multiplexed(&self) -> bool {
        self.multiplexed.load(Relaxed)
    }

    /// What it waits for now.
    pub(super) fn waiting(&self) -> Waiting {
        match self.idle.load(Relaxed) {
            _ if self.progress.waits_for_client() => Waiting::Client,
            _ if self.is_working() => Waiting::Answer,
            false => Waiting::Header,
            true if self.unflushed.load(Relaxed) => Waiting::Client,
            true => Waiting::Request,
        }
    }

    fn is_working(&self) -> bool {
        self.begun.load(Relaxed) != self.ended.load(Relaxed)
    }

    /// How often what is waited for has changed.
    pub(super) fn changes(&self) -> usize {
        let counts = [&self.begun, &self.ended, &self.resumed, &self.written].map(|count| count.load(Relaxed));
        counts.into_iter().fold(0, usize::wrapping_add)
    }

    /// The client has sent something, or some of what it sent before is still to be read.
    pub(super) fn received(&self) {
        if self.is_working() || self.multiplexed.load(Relaxed) {
            return;
        }
        self.unread.store(true, Relaxed);
        if self.idle.load(Relaxed) {
            self.idle.store(false, Relaxed);
            self.resumed.fetch_add(1, Relaxed);
        }
    }

    /// All that has been answered so far has reached the system.
    pub(super) fn flushed(&self) {
        self.unflushed.store(false, Relaxed);
    }

    /// The client has taken something.
    pub(super) fn wrote(&self) {
        self.written.fetch_add(1, Relaxed);
    }

    /// Takes up a request: the answer to it is work, and so is its body.
    pub(super) fn begin(self: &Arc<Self>, request: Request<Incoming>) -> (Answering, Request<RequestBody>) {
        let multiplexed = request.version() >= Version::HTTP_2;
        let has_body = !request.body().is_end_stream();
        self.multiplexed.store(multiplexed, Relaxed);
        self.ends_answers.store(request.version() == Version::HTTP_10, Relaxed);
        self.unread.store(has_body && !multiplexed, Relaxed);
        let progress = if multiplexed { self.begin_stream() } else { self.progress.clone() };
        progress.begin();
        let reading = has_body.then(|| self.work());
        let request = request.map(|body| RequestBody::new(body, reading, self.clone(), progress.clone()));
        (Answering::new(self.work(), progress), request)
    }

    fn begin_stream(&self) -> Arc<Progress> {
        let progress = Arc::<Progress>::default();
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(progress.clone());
        progress
    }

    /// How the answer gets on that was begun last, over HTTP/2.
    pub(super) fn latest(&self) -> Option<Arc<Progress>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn work(self: &Arc<Self>) -> Work {
        self.begun.fetch_add(1, Relaxed);
        Work(self.clone())
    }

    /// Puts down who goes on with the connection.
    pub(super) fn succeed(&self, successor: Successor) {
        *self.successor.lock().unwrap_or_else(PoisonError::into_inner) = Some(successor);
    }

    /// Who goes on with the connection, if somebody does.
    pub(super) fn successor(&self) -> Option<Successor> {
        self.successor.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Nothing more is expected of the client.
    pub(super) fn give_up(&self) {
        self.unread.store(false, Relaxed);
    }

    /// The connection ends, whatever there was still to be said.
    pub(super) fn abandon(&self) {
        self.give_up();
        if self.is_working() {
            self.broke_off();
        }
    }

    /// A request's body has been read to its end.
    pub(super) fn read(&self) {
        self.unread.store(false, Relaxed);
    }

    /// An answer has broken off.
    pub(super) fn broke_off(&self) {
        self.broken.store(self.ends_answers.load(Relaxed), Relaxed);
    }

    /// The last of an answer has been taken up by hyper, which has yet to write it: only a flush after this tells that it
    /// has, since in the midst of an answer it flushes as well.
    pub(super) fn answered(&self) {
        self.unflushed.store(true, Relaxed);
    }

    /// Whether an answer has broken off in such a way that the client would take it for whole.
    pub(super) fn must_reset(&self) -> bool {
        self.broken.load(Relaxed)
    }

    /// Whether closing the connection now could reset it under the client's hands.
    pub(super) fn must_linger(&self) -> bool {
        self.unread.load(Relaxed)
    }
}

/// A body that is being read, or an answer that is being made.
#[derive(Debug)]
pub(super) struct Work(Arc<Activity>);

impl Work {
    /// That of which connection it is.
    pub(super) fn activity(&self) -> &Activity {
        &self.0
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.0.idle.store(true, Relaxed);
        self.0.waiting_since.store(TURNS.fetch_add(1, Relaxed), Relaxed);
        self.0.ended.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_is_one_also_on_a_socket_for_both() {
        for (address, value) in
            [("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("2001:db8::1", "2001:db8::1")]
        {
            let activity = Activity::new(address.parse().unwrap(), Cuts::default());
            assert_eq!(activity.client_as_header(), value);
        }
    }
}
