//! An application behind the gate: it does on each connection what the test says, and keeps the bytes that it gets.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::fixture::{Sidecar, connect};

/// One that listens until it is dropped. Then it is gone, with all its connections.
pub struct Application {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    ended: AtomicBool,
    connections: Mutex<Vec<Option<TcpStream>>>,
    asked: Mutex<Vec<Asked>>,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The number of the connection that it came on, from 0.
    pub connection: usize,
    pub message: Message,
}

impl Application {
    /// Serves each connection in this way, in a thread of its own, and closes it after that.
    pub fn new(serve: impl Fn(&mut Visitor) + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), serve)
    }

    /// Answers each request with these bytes.
    pub fn answering(answer: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self::new(move |visitor| {
            while visitor.request().is_some() {
                visitor.write(answer.as_ref());
            }
        })
    }

    /// One at an address where another was before.
    pub fn at(address: SocketAddr, serve: impl Fn(&mut Visitor) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let (serve, seen) = (Arc::new(serve), shared.clone());
        let accepting = thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let stream = stream.unwrap();
                if seen.ended.load(Relaxed) {
                    return;
                }
                stream.set_nodelay(true).unwrap();
                seen.connections.lock().unwrap().push(Some(stream.try_clone().unwrap()));
                let mut visitor =
                    Visitor { reader: BufReader::new(stream), number, shared: seen.clone(), is_reset: false };
                let serve = serve.clone();
                thread::spawn(move || {
                    serve(&mut visitor);
                    if !visitor.is_reset {
                        let _ = visitor.reader.get_ref().shutdown(Shutdown::Both);
                    }
                });
            }
        });
        Self { address, shared, accepting: Some(accepting) }
    }

    /// All requests so far, in the order in which they were complete.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// How many connections were made to it so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.lock().unwrap().len()
    }

    /// `pitstop serve` in front of it.
    pub fn gate(&self) -> Sidecar {
        self.gate_with(&[])
    }

    /// The same with further flags.
    pub fn gate_with(&self, flags: &[&str]) -> Sidecar {
        Sidecar::with(|command| self.behind(command.args(flags)))
    }

    /// Makes `pitstop serve` forward to it.
    pub fn behind(&self, command: &mut Command) {
        command.args(["--upstream", &format!("http://{}", self.address)]);
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.shared.ended.store(true, Relaxed);
        // Whoever accepts connections is told by one.
        let _ = TcpStream::connect(self.address);
        self.accepting.take().map(JoinHandle::join);
        for stream in self.shared.connections.lock().unwrap().iter().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// An answer that is a page.
pub fn html(status: &str, page: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{page}", page.len())
}

/// A connection that was made to the application.
pub struct Visitor {
    reader: BufReader<TcpStream>,
    /// From 0.
    pub number: usize,
    shared: Arc<Shared>,
    is_reset: bool,
}

impl Visitor {
    /// The next request; `None` if the connection is closed.
    pub fn request(&mut self) -> Option<Message> {
        let message = self.unrecorded()?;
        self.record(&message);
        Some(message)
    }

    /// The same, for an application that gets more of them than should be kept.
    pub fn unrecorded(&mut self) -> Option<Message> {
        let mut message = self.head()?;
        message.read_body(&mut self.reader, BodyOf::Request);
        Some(message)
    }

    /// The head of the next request, which [`Message::read_body`] completes.
    pub fn head(&mut self) -> Option<Message> {
        Message::head(&mut self.reader)
    }

    /// What comes of the body of this request.
    pub fn body(&mut self, message: &mut Message) {
        message.read_body(&mut self.reader, BodyOf::Request);
        self.record(message);
    }

    fn record(&self, message: &Message) {
        let asked = Asked { connection: self.number, message: message.clone() };
        self.shared.asked.lock().unwrap().push(asked);
    }

    /// Exactly so many bytes, or fewer if the connection is closed before.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let _ = Read::by_ref(&mut self.reader).take(length as u64).read_to_end(&mut bytes);
        bytes
    }

    /// Whoever is at the other end may have left.
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.reader.get_mut().write_all(bytes.as_ref()).is_ok()
    }

    /// Says that there is no more to come.
    pub fn close_half(&mut self) {
        self.reader.get_ref().shutdown(Shutdown::Write).unwrap();
    }

    /// Makes of the end of the connection a reset.
    pub fn reset(&mut self) {
        socket2::SockRef::from(self.reader.get_ref()).set_linger(Some(Duration::ZERO)).unwrap();
        self.shared.connections.lock().unwrap()[self.number] = None;
        self.is_reset = true;
    }
}

/// A request or an answer, as it was on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// All of it.
    pub wire: Vec<u8>,
    /// The request line or the status line.
    pub first: String,
    /// The names in lower case.
    pub headers: Vec<(String, String)>,
    /// Without its framing.
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// Whether it came to its end.
    pub is_complete: bool,
}

/// What a body belongs to: that decides how long it is (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyOf {
    Request,
    Answer,
    AnswerToHead,
}

impl Message {
    /// Reads a head. It is taken strictly: each line ends in CR LF, no line is folded, no name ends in a space.
    pub fn head(reader: &mut impl BufRead) -> Option<Self> {
        let mut message = Self::default();
        message.first = message.line(reader).filter(|line| !line.is_empty())?;
        message.headers = message.fields(reader)?;
        Some(message)
    }

    /// A line without its end; `None` if there is no more.
    fn line(&mut self, reader: &mut impl BufRead) -> Option<String> {
        let mut line = Vec::new();
        match reader.read_until(b'\n', &mut line) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("no line after {:?}: {error}", String::from_utf8_lossy(&self.wire)),
        }
        self.wire.extend_from_slice(&line);
        let line = line.strip_suffix(b"\n")?;
        let line = line.strip_suffix(b"\r").unwrap_or_else(|| panic!("a bare line feed after {line:?}"));
        Some(String::from_utf8_lossy(line).into_owned())
    }

    fn fields(&mut self, reader: &mut impl BufRead) -> Option<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line(reader)?;
            if line.is_empty() {
                return Some(fields);
            }
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no colon in {line:?}"));
            assert!(!name.is_empty() && !name.contains(char::is_whitespace), "a name in {line:?}");
            fields.push((name.to_lowercase(), value.trim_matches([' ', '\t']).to_owned()));
        }
    }

    /// Reads a body, as far as it comes. That it is of one length only is a part of what is tested.
    pub fn read_body(&mut self, reader: &mut impl BufRead, of: BodyOf) {
        let (lengths, codings) = (self.all("content-length"), self.all("transfer-encoding"));
        let status: u16 = match of {
            BodyOf::Request => 0,
            _ => self.first.split(' ').nth(1).unwrap().parse().unwrap(),
        };
        match (lengths.as_slice(), codings.as_slice()) {
            _ if of == BodyOf::AnswerToHead || matches!(status, 100..200 | 204 | 304) => self.is_complete = true,
            ([], []) if of == BodyOf::Request => self.is_complete = true,
            ([], []) => {
                self.is_complete = reader.read_to_end(&mut self.body).is_ok();
                self.wire.extend_from_slice(&self.body);
            }
            ([length], []) => {
                let length = length.parse().unwrap();
                let _ = reader.take(length).read_to_end(&mut self.body);
                self.wire.extend_from_slice(&self.body);
                self.is_complete = self.body.len() as u64 == length;
            }
            ([], [coding]) if coding == "chunked" => self.is_complete = self.chunks(reader).is_some(),
            both => panic!("of what length? {both:?}"),
        }
    }

    fn chunks(&mut self, reader: &mut impl BufRead) -> Option<()> {
        loop {
            let size = self.line(reader)?;
            let size = usize::from_str_radix(&size, 16).unwrap_or_else(|error| panic!("{size:?}: {error}"));
            if size == 0 {
                self.trailers = self.fields(reader)?;
                return Some(());
            }
            let start = self.body.len();
            let _ = reader.take(size as u64).read_to_end(&mut self.body);
            self.wire.extend_from_slice(&self.body[start..]);
            if self.body.len() != start + size {
                return None;
            }
            assert_eq!(self.line(reader)?, "", "a chunk ends where it says");
        }
    }

    /// All values of a header.
    pub fn all(&self, name: &str) -> Vec<String> {
        self.headers.iter().filter(|(header, _)| header == name).map(|(_, value)| value.clone()).collect()
    }

    /// The value of a header that is there once.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<String> {
        let mut values = self.all(name);
        assert!(values.len() < 2, "{name}: {values:?}");
        values.pop()
    }

    /// The target of a request.
    pub fn target(&self) -> &str {
        self.first.split(' ').nth(1).unwrap()
    }

    /// The status of an answer.
    pub fn status(&self) -> u16 {
        self.target().parse().unwrap()
    }

    /// The headers without some, sorted: their order means something only among those of one name.
    pub fn headers_but(&self, names: &[&str]) -> Vec<(String, String)> {
        let mut headers = self.headers.clone();
        headers.retain(|(name, _)| !names.contains(&name.as_str()));
        headers.sort_by(|(one, _), (other, _)| one.cmp(other));
        headers
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A client that keeps its connection.
pub struct Client(pub BufReader<TcpStream>);

impl Client {
    pub fn of(gate: &Sidecar) -> Self {
        let stream = connect(gate.traffic);
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    /// The next answer; `None` if the connection is closed instead.
    pub fn try_answer(&mut self, of: BodyOf) -> Option<Message> {
        let mut answer = Message::head(&mut self.0)?;
        answer.read_body(&mut self.0, of);
        Some(answer)
    }

    /// The next answer.
    #[track_caller]
    pub fn answer(&mut self) -> Message {
        self.try_answer(BodyOf::Answer).expect("an answer")
    }

    /// Sends this and reads the answer.
    #[track_caller]
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Message {
        self.send(request);
        self.answer()
    }

    /// `GET` for a path.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Message {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n"))
    }

    /// Whether the connection is closed, and nothing comes before that.
    #[track_caller]
    pub fn assert_closed(&mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => assert_eq!(String::from_utf8_lossy(&rest), ""),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
}

/// An HTTP/2 client, and what it does.
pub fn http2<T>(gate: &Sidecar, work: impl AsyncFnOnce(SendRequest<Sent>) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(gate.traffic).await.unwrap();
        let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        work(sender).await
    })
}

/// The body of such a client's request: the length of one that is whole is known before, and that of frames is not.
pub enum Sent {
    Whole(Full<Bytes>),
    Frames(VecDeque<Frame<Bytes>>),
    Channel(UnboundedReceiver<Frame<Bytes>>),
}

pub fn whole(body: &'static str) -> Sent {
    Sent::Whole(body.into())
}

pub fn in_frames(frames: impl IntoIterator<Item = Frame<Bytes>>) -> Sent {
    Sent::Frames(frames.into_iter().collect())
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(cx),
            Self::Frames(frames) => Poll::Ready(frames.pop_front().map(Ok)),
            Self::Channel(frames) => frames.poll_recv(cx).map(|frame| frame.map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(body) if body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Frames(_) | Self::Channel(_) => SizeHint::default(),
        }
    }
}
