//! The program: parse, log, run, exit code.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use pitstop::cli::Cli;
use pitstop::{commands, log};

fn main() -> ExitCode {
    let cli = Cli::parse();
    log::init(cli.common.log.clone(), cli.common.log_format);
    commands::run(cli).unwrap_or_else(|failure| {
        // Where stderr is closed there is nobody left to tell.
        let _ = writeln!(std::io::stderr(), "pitstop: {failure}");
        failure.code()
    })
}
