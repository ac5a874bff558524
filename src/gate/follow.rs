//! Small files that are read again and again while the gate serves: a Secret's or a ConfigMap's volume is replaced as a
//! whole, which a watch on the file would miss.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;
use tracing::{info, warn};

/// The stack of the thread, in bytes, of which only what is used takes memory. A template is read by a parser that calls
/// itself for each link of a chain such as `a + a + a`, which took up to 260 bytes of stack for each byte of the template.
const STACK: usize = 64 * 1024 * 1024;

/// Calls `look` now and each time that so much time has passed, until it returns `None`: nobody needs to know any more. What it
/// finds wrong is told once, followed by `consequence`; and that it is over is told by `over`. In a thread of its own,
/// since a volume may hang.
///
/// # Errors
///
/// The system gives no thread.
pub(super) fn follow(
    thread: &str,
    every: Duration,
    (consequence, over): (&'static str, &'static str),
    mut look: impl FnMut() -> Option<Result<(), String>> + Send + 'static,
) -> io::Result<()> {
    thread::Builder::new().name(thread.to_owned()).stack_size(STACK).spawn(move || {
        let mut told = None;
        while let Some(found) = look() {
            let trouble = found.err();
            match &trouble {
                Some(trouble) if told.as_ref() != Some(trouble) => warn!("{trouble}: {consequence}"),
                None if told.is_some() => info!("{over}"),
                _ => {}
            }
            told = trouble;
            thread::sleep(every);
        }
    })?;
    Ok(())
}

/// What a file holds, up to so many bytes. It is opened in such a way that a FIFO does not block.
///
/// # Errors
///
/// It cannot be read, or is no regular file.
pub(super) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = Vec::new();
    file.take(limit).read_to_end(&mut text)?;
    Ok(text)
}
