//! An application that speaks HTTP/2 behind the gate: one that answers as the test says, and one that sends the very frames.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{RecvStream, SendStream};
use hyper::http::request::Parts;
use hyper::{Request, Response};
use tokio::sync::{mpsc, oneshot, watch};

use crate::application::{Application, Visitor};
use crate::fixture::Sidecar;

/// `pitstop serve` in front of an application that speaks HTTP/2 at this address.
pub fn gate_to(upstream: SocketAddr, flags: &[&str]) -> Sidecar {
    Sidecar::with(|command| behind(upstream, command.args(flags)))
}

/// Makes `pitstop serve` forward to it.
pub fn behind(upstream: SocketAddr, command: &mut Command) {
    command.args(["--upstream", &format!("h2c://{upstream}")]);
}

/// An application that listens until it is dropped. Then it is gone, with all its connections.
pub struct Http2Application {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    /// Tells all connections to take no more requests.
    closing: watch::Sender<bool>,
    serving: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    connections: AtomicUsize,
    asked: Mutex<Vec<Parts>>,
}

/// A request, and how to answer it.
pub struct Call {
    /// The number of its connection, from 0.
    pub connection: usize,
    pub head: Parts,
    pub body: RecvStream,
    pub respond: SendResponse<Bytes>,
}

impl Call {
    pub fn path(&self) -> &str {
        self.head.uri.path()
    }

    /// The next piece of the body.
    pub async fn data(&mut self) -> Option<Result<Bytes, h2::Error>> {
        let data = self.body.data().await;
        if let Some(Ok(data)) = &data {
            self.body.flow_control().release_capacity(data.len()).unwrap();
        }
        data
    }

    /// The rest of it.
    pub async fn all(&mut self) -> Result<Vec<u8>, h2::Error> {
        let mut all = Vec::new();
        while let Some(data) = self.data().await {
            all.extend_from_slice(&data?);
        }
        Ok(all)
    }

    /// Begins an answer. Whoever has asked may have left.
    pub fn begin(&mut self, response: Response<()>) -> Option<SendStream<Bytes>> {
        self.respond.send_response(response, false).ok()
    }

    /// Answers with this.
    pub async fn answer(&mut self, response: Response<()>, body: impl Into<Bytes>) {
        if let Some(mut stream) = self.begin(response) {
            send(&mut stream, body.into(), true).await;
        }
    }
}

/// Sends all of this, as fast as it is taken. Returns whether it was.
pub async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes, is_end: bool) -> bool {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        if stream.capacity() == 0 && !matches!(std::future::poll_fn(|cx| stream.poll_capacity(cx)).await, Some(Ok(_))) {
            return false;
        }
        let part = data.split_to(stream.capacity().min(data.len()));
        if stream.send_data(part, false).is_err() {
            return false;
        }
    }
    !is_end || stream.send_data(data, true).is_ok()
}

impl Http2Application {
    /// Answers each request in this way.
    pub fn new<F>(answer: impl Fn(Call) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::with(Builder::new(), "127.0.0.1:0".parse().unwrap(), answer)
    }

    /// One with these settings at this address.
    pub fn with<F>(settings: Builder, address: SocketAddr, answer: impl Fn(Call) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let (stop, mut stopped) = oneshot::channel();
        let (closing, closes) = watch::channel(false);
        let (answer, seen) = (Arc::new(answer), shared.clone());
        let serving = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let stream = tokio::select! {
                        accepted = listener.accept() => accepted.unwrap().0,
                        _ = &mut stopped => return,
                    };
                    stream.set_nodelay(true).unwrap();
                    let number = seen.connections.fetch_add(1, Relaxed);
                    let served = serve(stream, number, settings.clone(), seen.clone(), answer.clone(), closes.clone());
                    tokio::spawn(served);
                }
            });
        });
        Self { address, shared, stop: Some(stop), closing, serving: Some(serving) }
    }

    /// The heads of all requests so far.
    pub fn asked(&self) -> Vec<Parts> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// How many connections were made to it so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Relaxed)
    }

    /// `pitstop serve` in front of it.
    pub fn gate(&self) -> Sidecar {
        self.gate_with(&[])
    }

    /// The same with further flags.
    pub fn gate_with(&self, flags: &[&str]) -> Sidecar {
        gate_to(self.address, flags)
    }

    /// Ends all present connections when their last request is answered (`GOAWAY`).
    pub fn close_gracefully(&self) {
        self.closing.send_replace(true);
    }
}

impl Drop for Http2Application {
    fn drop(&mut self) {
        self.stop.take();
        self.serving.take().map(JoinHandle::join);
    }
}

async fn serve<F>(
    stream: tokio::net::TcpStream,
    number: usize,
    settings: Builder,
    shared: Arc<Shared>,
    answer: Arc<impl Fn(Call) -> F + Send + Sync + 'static>,
    mut closes: watch::Receiver<bool>,
) where
    F: Future<Output = ()> + Send + 'static,
{
    closes.mark_unchanged();
    let Ok(mut connection) = settings.handshake::<_, Bytes>(stream).await else { return };
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            Ok(()) = closes.changed() => {
                connection.graceful_shutdown();
                continue;
            }
        };
        let Some(Ok((request, respond))) = accepted else { return };
        let (head, body) = Request::into_parts(request);
        shared.asked.lock().unwrap().push(head.clone());
        tokio::spawn(answer(Call { connection: number, head, body, respond }));
    }
}

/// An answer with this status.
pub fn status(status: u16) -> Response<()> {
    Response::builder().status(status).body(()).unwrap()
}

/// Tells what happens in an application: each line once.
pub fn lines() -> (mpsc::UnboundedSender<String>, impl FnMut() -> String) {
    let (say, mut said) = mpsc::unbounded_channel();
    (say, move || {
        let mut line = None;
        crate::fixture::eventually("the application says something", || {
            line = said.try_recv().ok();
            line.is_some()
        });
        line.unwrap_or_default()
    })
}

/// An HTTP/2 frame (RFC 9113 §4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const GOAWAY: u8 = 7;
pub const END_STREAM: u8 = 1;
/// Of SETTINGS.
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// An application that does with the frames of each connection what the test says. SETTINGS have been exchanged already.
pub fn of_frames(serve: impl Fn(&mut Frames) + Send + Sync + 'static) -> Application {
    Application::new(move |visitor| {
        if visitor.bytes(24) != b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" {
            return;
        }
        let mut frames = Frames(visitor);
        frames.write(SETTINGS, 0, 0, b"");
        frames.write(SETTINGS, ACK, 0, b"");
        serve(&mut frames);
    })
}

/// A connection as its frames.
pub struct Frames<'a>(pub &'a mut Visitor);

impl Frames<'_> {
    pub fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.write(frame)
    }

    /// The next frame; `None` if the connection is closed.
    pub fn read(&mut self) -> Option<Raw> {
        let head = self.0.bytes(9);
        let [a, b, c, kind, flags, stream @ ..] = head.as_slice() else { return None };
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let stream = u32::from_be_bytes(stream.try_into().unwrap());
        Some(Raw { kind: *kind, flags: *flags, stream, payload: self.0.bytes(length) })
    }

    /// Reads until a frame of this kind comes.
    pub fn next(&mut self, kind: u8) -> Option<Raw> {
        loop {
            let frame = self.read()?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// The stream of the next request.
    pub fn request(&mut self) -> Option<u32> {
        self.next(HEADERS).map(|frame| frame.stream)
    }

    /// Begins an answer with status 200: the eighth entry of HPACK's static table (RFC 7541, Appendix A).
    pub fn begin(&mut self, stream: u32) {
        self.write(HEADERS, END_HEADERS, stream, &[0x88]);
    }

    /// Answers with 200 and "ok".
    pub fn ok(&mut self, stream: u32) {
        self.begin(stream);
        self.write(DATA, END_STREAM, stream, b"ok");
    }

    /// Resets a stream for this reason (RFC 9113 §7).
    pub fn reset(&mut self, stream: u32, reason: u32) {
        self.write(RST_STREAM, 0, stream, &reason.to_be_bytes());
    }

    /// Takes no more requests than up to this stream.
    pub fn go_away(&mut self, last: u32, reason: u32) {
        self.write(GOAWAY, 0, 0, &[last.to_be_bytes(), reason.to_be_bytes()].concat());
    }
}
