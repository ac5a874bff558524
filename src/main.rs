//! The program: parse, log, run, exit code.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use pitstop::cli::Cli;
use pitstop::commands::{self, Failure};
use pitstop::log;

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => {
            log::init(cli.common.log.clone(), cli.common.log_format);
            commands::run(cli).unwrap_or_else(|failure| report(&failure))
        }
        // To clap, help and the version are errors too.
        Err(help) if !help.use_stderr() || help.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = help.print();
            u8::try_from(help.exit_code()).map_or(ExitCode::FAILURE, Into::into)
        }
        Err(error) => report(&Failure::wrong_usage(&error)),
    }
}

fn report(failure: &Failure) -> ExitCode {
    // Where stderr is closed there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "pitstop: {failure}");
    failure.code()
}
