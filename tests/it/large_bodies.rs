//! Bodies of 1 GiB through the static program, which stays small: both ways, of a known length or not, over both versions of
//! HTTP, and whether the other side is fast or makes it wait.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, LazyLock};
use std::thread;

use crate::fixture::{DEADLINE, SERVE, Sidecar, connect, eventually, pitstop_at};
use crate::image::static_program;
use crate::kernel::peak_memory;
use crate::server::curl;

const SIZE: u64 = 1 << 30;
const PART: usize = 256 * 1024;
/// In KiB.
const AT_MOST: u64 = 20 * 1024;

/// Bytes that tell where they belong: repeated, at a length that no buffer has.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..1_000_003).map(|_| next()).collect()
});

/// What comes at this position, at most so much.
fn piece(position: u64, most: u64) -> &'static [u8] {
    let start = (position % PATTERN.len() as u64) as usize;
    let length = (PATTERN.len() - start).min(PART).min(most as usize);
    &PATTERN[start..start + length]
}

/// How much has gone out, so that it can be seen to stop.
type Sent = Arc<AtomicU64>;

/// Writes the whole body.
fn write_all(mut stream: impl Write, chunked: bool, sent: &Sent) -> std::io::Result<()> {
    let mut position = 0;
    while position < SIZE {
        let piece = piece(position, SIZE - position);
        if chunked {
            write!(stream, "{:x}\r\n", piece.len())?;
        }
        stream.write_all(piece)?;
        if chunked {
            stream.write_all(b"\r\n")?;
        }
        position += piece.len() as u64;
        sent.store(position, SeqCst);
    }
    if chunked { stream.write_all(b"0\r\n\r\n") } else { Ok(()) }
}

/// Reads the whole body, and looks at each byte. Now and then it waits until nobody can send any more.
fn read_all(stream: &mut impl Read, sent: &Sent) {
    let (mut position, mut buffer) = (0, vec![0; PART]);
    let mut pauses = [1, SIZE / 3, SIZE / 2].into_iter().peekable();
    while position < SIZE {
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "it ends at {position}");
        let mut read = &buffer[..length];
        while !read.is_empty() {
            let expected = piece(position, SIZE - position);
            let length = expected.len().min(read.len());
            assert!(length > 0 && read[..length] == expected[..length], "at {position}");
            position += length as u64;
            read = &read[length..];
        }
        if pauses.next_if(|pause| position >= *pause).is_some() {
            is_held_up(sent);
        }
    }
    assert_eq!(stream.read(&mut buffer).unwrap(), 0);
}

/// Waits until the sender stands still: then everything in between is full.
fn is_held_up(sent: &Sent) {
    let (mut before, mut still) = (u64::MAX, 0);
    eventually("the sender is held up", || {
        let now = sent.load(SeqCst);
        still = if now == before { still + 1 } else { 0 };
        before = now;
        still == 50
    });
}

/// A body in chunks.
struct Chunks<R> {
    stream: R,
    left: u64,
    ended: bool,
}

impl<R: BufRead> Read for Chunks<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 && !self.ended {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            self.left = u64::from_str_radix(line.trim_end(), 16).map_err(std::io::Error::other)?;
            self.ended = self.left == 0;
        }
        let most = self.left.min(buffer.len() as u64) as usize;
        let read = self.stream.read(&mut buffer[..most])?;
        self.left -= read as u64;
        if read > 0 && self.left == 0 {
            let mut end = [0; 2];
            self.stream.read_exact(&mut end)?;
            assert_eq!(&end, b"\r\n");
        }
        Ok(read)
    }
}

/// Reads a body in the framing that a head has announced.
fn read_body(head: &str, mut stream: impl BufRead, sent: &Sent) {
    match head.contains("transfer-encoding: chunked") {
        true => read_all(&mut Chunks { stream, left: 0, ended: false }, sent),
        false => {
            assert!(head.contains(&format!("content-length: {SIZE}\r\n")), "{head}");
            read_all(&mut stream.by_ref().take(SIZE), sent);
        }
    }
}

fn read_head(stream: &mut impl BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut head).unwrap() > 0, "{head}");
    }
    head.to_lowercase()
}

/// The application: what is sent to it, it reads; whoever asks is sent a body.
fn application(sent: &Sent) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, sent) = (listener.local_addr().unwrap(), sent.clone());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, sent) = (stream.unwrap(), sent.clone());
            thread::spawn(move || serve(stream, &sent));
        }
    });
    address
}

fn serve(mut stream: TcpStream, sent: &Sent) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut reader = BufReader::with_capacity(PART, stream.try_clone().unwrap());
    let head = read_head(&mut reader);
    if head.starts_with("put ") {
        read_body(&head, &mut reader, sent);
        stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").unwrap();
    } else {
        let chunked = head.starts_with("get /chunked ");
        let framing = if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {SIZE}") };
        write!(stream, "HTTP/1.1 200 OK\r\n{framing}\r\n\r\n").unwrap();
        write_all(stream, chunked, sent).unwrap();
    }
}

fn gate(application: SocketAddr) -> Sidecar {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let mut command = pitstop_at(static_program());
    command.args(SERVE).args(["--upstream", &format!("http://{application}")]).current_dir(directory.path());
    Sidecar::spawn(directory, command)
}

#[test]
fn over_http_1() {
    let sent = Sent::default();
    let gate = gate(application(&sent));
    for chunked in [false, true] {
        let mut client = connect(gate.traffic);
        client.set_nodelay(true).unwrap();
        let framing = if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {SIZE}") };
        write!(client, "PUT / HTTP/1.1\r\nHost: shop\r\n{framing}\r\n\r\n").unwrap();
        write_all(&client, chunked, &sent).unwrap();
        let mut reader = BufReader::with_capacity(PART, client.try_clone().unwrap());
        assert!(read_head(&mut reader).starts_with("http/1.1 204 "));

        let path = if chunked { "/chunked" } else { "/" };
        write!(client, "GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").unwrap();
        let head = read_head(&mut reader);
        assert_eq!(head.contains("chunked"), chunked);
        read_body(&head, reader, &sent);
        let peak = peak_memory(&gate);
        assert!(peak < AT_MOST, "{peak} KiB");
    }
}

#[test]
fn over_http_2() {
    let sent = Sent::default();
    let gate = gate(application(&sent));
    let curl = |arguments: &[&str], path: &str| {
        let mut command = curl();
        command.args(["--http2-prior-knowledge", "--fail", "--no-buffer"]).args(arguments);
        command.arg(format!("http://{}{path}", gate.traffic)).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().unwrap()
    };
    let mut upload = curl(&["--upload-file", "-"], "/");
    write_all(upload.stdin.take().unwrap(), false, &sent).unwrap();
    assert!(upload.wait().unwrap().success());

    let mut download = curl(&[], "/chunked");
    read_all(&mut download.stdout.take().unwrap(), &sent);
    assert!(download.wait().unwrap().success());
    let peak = peak_memory(&gate);
    assert!(peak < AT_MOST, "{peak} KiB");
}
