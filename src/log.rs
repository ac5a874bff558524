//! Log format and set-up: one line an event, on stderr.

use std::io;

use clap::ValueEnum;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

/// How an event is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object an event.
    Json,
}

/// Sends events that the filter lets through to stderr, from now on and in every thread.
pub fn init(filter: Targets, format: Format) {
    let filter = quiet(filter);
    let lines = fmt::layer().with_writer(|| Lines).with_ansi(false).with_target(false);
    let lines = match format {
        Format::Text => lines.boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    // Set once a process; a test that has set one already keeps it.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
}

/// Lets the HTTP/2 library warn only where it is asked for or somebody debugs: clients could fill the log with its warnings.
fn quiet(filter: Targets) -> Targets {
    let is_debugging = filter.default_level().is_some_and(|level| level > LevelFilter::INFO);
    let is_asked_for = filter.iter().any(|(target, _)| target.starts_with("h2"));
    if is_debugging || is_asked_for { filter } else { filter.with_target("h2", LevelFilter::ERROR) }
}

/// Stderr, one event at a time. Nothing that an event names, such as a path, can begin another line.
struct Lines;

impl io::Write for Lines {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = event.strip_suffix(b"\n").unwrap_or(event);
        if line.iter().any(u8::is_ascii_control) {
            let plain = line.iter().map(|byte| if byte.is_ascii_control() { b' ' } else { *byte });
            io::stderr().write_all(&plain.chain([b'\n']).collect::<Vec<u8>>())?;
        } else {
            io::stderr().write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
