//! `pitstop completions`: prints a completion script.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use super::Failure;
use crate::cli::Cli;

pub(super) fn completions(shell: Shell) -> Result<ExitCode, Failure> {
    // Generated first: clap_complete panics where its output cannot be written.
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "pitstop", &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}
