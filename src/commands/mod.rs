//! What the program does: one file a subcommand.

mod completions;
mod install;
mod maintenance_mode;
mod probe;
mod run;
mod serve;
mod wait;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::cli::{Cli, Command};
use crate::maintenance::file::{LookError, MaintenanceFile};
use crate::maintenance::one_line;
use crate::maintenance::state::{Mode, State};

/// How often to ask whether what is waited for has come true: a lock that another process holds, the sidecar's state.
const ASK: Duration = Duration::from_millis(20);
/// How often to look at the files, while waiting for them or supervising a job, even if nothing hints at a change.
const POLL: Duration = Duration::from_secs(1);

/// Why a command did not do what it was asked to do: one line, and the exit code.
#[derive(Debug)]
pub struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    fn new(message: impl Display) -> Self {
        Self { message: one_line(&message.to_string()), code: 1 }
    }

    fn usage(message: impl Display) -> Self {
        Self { code: 2, ..Self::new(message) }
    }

    /// What clap says of a command line, less the usage that it repeats.
    #[must_use]
    pub fn wrong_usage(error: &clap::Error) -> Self {
        let text = error.to_string();
        let paragraphs = text.split("\n\n").map(str::trim);
        let says = paragraphs.filter(|text| !text.starts_with("Usage:") && !text.starts_with("For more information"));
        let says: Vec<&str> = says.map(|text| text.strip_prefix("error: ").unwrap_or(text)).collect();
        Self::usage(format!("{} (see --help)", says.join("; ")))
    }

    /// The exit code: 1 failed, 2 wrong usage; of `run` also 126 and 127.
    #[must_use]
    pub fn code(&self) -> ExitCode {
        self.code.into()
    }
}

impl Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}

/// Runs the command.
///
/// # Errors
///
/// See [`Failure`].
pub fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let common = cli.common;
    match cli.command {
        Command::Serve(serve) => serve::serve(&common, &serve),
        Command::MaintenanceMode(arguments) => maintenance_mode::maintenance_mode(&common, arguments),
        Command::Run(run) => run::run(&common, &run),
        Command::Wait(wait) => wait::wait(&common, &wait),
        Command::Probe(probe) => probe::probe(&common, &probe),
        Command::Install(install) => install::install(&install.directory),
        Command::Completions(completions) => completions::completions(completions.shell),
    }
}

/// The files that `--file` names; at least one.
fn maintenance_files(paths: &[PathBuf]) -> Result<Vec<MaintenanceFile>, Failure> {
    paths.iter().map(|path| MaintenanceFile::new(path).map_err(Failure::usage)).collect()
}

/// What the files say now. One that cannot be examined is an error, unless another turns maintenance mode on anyway.
fn look(files: &[MaintenanceFile]) -> Result<State, LookError> {
    let mut state = State::new(files.iter().map(MaintenanceFile::path));
    let mut unseen = None;
    for (index, file) in files.iter().enumerate() {
        match file.look() {
            Ok(seen) => _ = state.see(index, seen, Instant::now()),
            Err(error) => _ = unseen.get_or_insert(error),
        }
    }
    match (state.mode(), unseen) {
        (Mode::Off | Mode::Unknown, Some(error)) => Err(error),
        _ => Ok(state),
    }
}

/// The state in a sentence, as fietsboek says it.
fn sentence(mode: &Mode) -> String {
    match mode {
        Mode::On(maintenance) => match maintenance.reason.as_deref().map(one_line) {
            Some(reason) => format!("Maintenance mode is enabled: {reason}"),
            None => "Maintenance mode is enabled".to_owned(),
        },
        Mode::Off | Mode::Unknown => "Maintenance mode is disabled".to_owned(),
    }
}

fn print(text: impl Display) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

/// The runtime of one thread, which is all that any of this needs.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
