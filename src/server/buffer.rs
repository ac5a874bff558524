//! The thread's buffers. A connection owns no buffer while it waits: it reads into a buffer that all connections of the thread
//! share, and keeps only the bytes that it cannot use yet. Output is assembled in a second shared buffer.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The size of one read, in bytes. A read that leaves room lets tokio skip the next read, which would only find that nothing
/// is there.
const READ: usize = 64 * 1024;
/// An output buffer that has grown beyond this is freed, in bytes.
const OUTPUT: usize = 64 * 1024;

thread_local! {
    static INPUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static OUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What one read of a connection found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input<T> {
    /// What the caller made of the bytes.
    Read(T),
    /// The peer has closed its direction.
    End,
}

/// Reads once and passes all bytes to `take`: those that were `kept` and those that have arrived. `take` returns the number of
/// bytes that it has consumed. The others are kept.
pub fn poll_read<S: AsyncRead + Unpin, T>(
    stream: &mut S,
    cx: &mut Context<'_>,
    kept: &mut Vec<u8>,
    take: impl FnOnce(&[u8]) -> (usize, T),
) -> Poll<io::Result<Input<T>>> {
    INPUT.with_borrow_mut(|buffer| {
        let before = kept.len();
        if buffer.len() < before + READ {
            buffer.resize(before + READ, 0);
        }
        let mut room = ReadBuf::new(&mut buffer[before..]);
        ready!(Pin::new(stream).poll_read(cx, &mut room))?;
        let read = room.filled().len();
        if read == 0 {
            return Poll::Ready(Ok(Input::End));
        }
        buffer[..before].copy_from_slice(kept);
        let all = &buffer[..before + read];
        let (consumed, taken) = take(all);
        keep(kept, &all[consumed..]);
        if before > READ {
            // The rest of a large head. It is rare, and nobody else needs the room.
            buffer.truncate(READ);
            buffer.shrink_to_fit();
        }
        Poll::Ready(Ok(Input::Read(taken)))
    })
}

/// Passes the bytes that were kept to `take`, and reads only if it consumes none of them.
pub fn poll_next<S: AsyncRead + Unpin, T>(
    stream: &mut S,
    cx: &mut Context<'_>,
    kept: &mut Vec<u8>,
    mut take: impl FnMut(&[u8]) -> (usize, T),
) -> Poll<io::Result<Input<T>>> {
    let before = kept.len();
    if before > 0 {
        let taken = take_kept(kept, &mut take);
        if kept.len() < before {
            return Poll::Ready(Ok(Input::Read(taken)));
        }
    }
    poll_read(stream, cx, kept, take)
}

/// Passes the bytes that were kept to `take`, and keeps those that it has not consumed.
pub fn take_kept<T>(kept: &mut Vec<u8>, take: impl FnOnce(&[u8]) -> (usize, T)) -> T {
    let bytes = std::mem::take(kept);
    let (consumed, taken) = take(&bytes);
    *kept = bytes;
    if consumed == kept.len() {
        *kept = Vec::new();
    } else {
        kept.drain(..consumed);
    }
    taken
}

/// Replaces what is kept. An empty rest takes no memory.
fn keep(kept: &mut Vec<u8>, rest: &[u8]) {
    if rest.is_empty() {
        if kept.capacity() > 0 {
            *kept = Vec::new();
        }
        return;
    }
    kept.clear();
    kept.reserve_exact(rest.len());
    kept.extend_from_slice(rest);
}

/// Lets `fill` assemble output in the thread's buffer, which is empty at first. [`send`] has to follow before the task yields.
pub fn assemble<T>(fill: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    OUT.with_borrow_mut(|out| {
        out.clear();
        fill(out)
    })
}

/// Sends what was assembled, after what is `pending`, which keeps what the peer does not take yet.
///
/// # Errors
///
/// The peer is gone.
pub fn send<S: AsyncWrite + Unpin>(stream: &mut S, cx: &mut Context<'_>, pending: &mut Vec<u8>) -> io::Result<()> {
    OUT.with_borrow_mut(|out| {
        if out.is_empty() {
            return Ok(());
        }
        if !pending.is_empty() {
            pending.extend_from_slice(out);
            out.clear();
            return Ok(());
        }
        let written = match Pin::new(stream).poll_write(cx, out) {
            Poll::Ready(written) => written,
            Poll::Pending => Ok(0),
        };
        if let Ok(written) = written {
            keep(pending, &out[written..]);
        }
        out.clear();
        out.shrink_to(OUTPUT);
        written.map(|_| ())
    })
}

/// Writes what is pending. Ready when nothing is left.
pub fn poll_flush<S: AsyncWrite + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
    pending: &mut Vec<u8>,
) -> Poll<io::Result<()>> {
    while !pending.is_empty() {
        let written = ready!(Pin::new(&mut *stream).poll_write(cx, pending))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        if written == pending.len() {
            *pending = Vec::new();
        } else {
            pending.drain(..written);
        }
    }
    Poll::Ready(Ok(()))
}
