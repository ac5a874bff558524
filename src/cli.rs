//! The command line: commands and flags, nothing else.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use jiff::{SignedDuration, Timestamp};
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::gate::policy::network::{Network, NetworkError};
use crate::gate::policy::{AllowedMethod, AllowedPath};
use crate::log;
use crate::page::brand::Accent;
use crate::upstream::Upstream;

/// Maintenance mode as a sidecar: a file that takes an application out of service, and says why.
#[derive(Debug, Parser)]
#[command(
    name = "pitstop",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  pitstop serve                                       run the sidecar
  pitstop maintenance-mode \"Updating the instance\"    turn maintenance mode on
  pitstop maintenance-mode --disable                  turn it off
  pitstop run -- ./nightly-report                     run a job, unless maintenance mode is on

`pitstop help COMMAND` explains each command. Flags with an environment variable can be set by it, so that
`kubectl exec POD -c pitstop -- pitstop maintenance-mode \"Updating the instance\"` needs none."
)]
pub struct Cli {
    /// What is common to all commands.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What is common to all commands.
#[derive(Args, Debug)]
pub struct Common {
    /// The maintenance file; may be given more than once, or several separated by colons. Maintenance mode is on while
    /// any of them exists; commands that change it write the first
    #[arg(
        long,
        global = true,
        env = "PITSTOP_FILE",
        value_name = "FILE",
        value_delimiter = ':',
        default_value = "MAINTENANCE",
        hide_default_value = false
    )]
    pub file: Vec<PathBuf>,

    /// Where the admin listener listens: probes, metrics, state
    #[arg(long, global = true, env = "PITSTOP_ADMIN_LISTEN", value_name = "ADDRESS", default_value = "[::]:9503")]
    pub admin_listen: SocketAddr,

    /// What is logged: off, error, warn, info, debug, trace, or a list such as `info,h2=debug`
    #[arg(long, global = true, env = "PITSTOP_LOG", value_name = "LEVEL", default_value = "info", value_parser = levels)]
    pub log: Targets,

    /// How it is logged
    #[arg(long, global = true, env = "PITSTOP_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t)]
    pub log_format: log::Format,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the sidecar: watch the file, answer probes, refuse requests, export metrics
    Serve(Box<Serve>),
    /// Show maintenance mode, turn it on, or turn it off
    MaintenanceMode(MaintenanceMode),
    /// Run a job, unless maintenance mode is on
    Run(Run),
    /// Wait until maintenance mode is off, or on
    Wait(Wait),
    /// Ask the local sidecar for its health: exit code 0 or 1
    Probe(Probe),
    /// Copy this program to a directory, for images that need it without having it
    Install(Install),
    /// Print a completion script
    Completions(Completions),
}

/// `pitstop serve`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pitstop serve
  pitstop serve --file /maintenance/MAINTENANCE --listen 127.0.0.1:8503
  PITSTOP_FILE=/pod/MAINTENANCE:/fleet/MAINTENANCE pitstop serve
  pitstop serve --upstream http://127.0.0.1:3000 --hold 5s
  pitstop serve --upstream http://127.0.0.1:3000 --allow-method GET,HEAD,OPTIONS --allow-path /webhooks/
  pitstop serve --upstream http://127.0.0.1:3000 --allow-from 192.0.2.0/24 --trusted-proxy 10.0.0.7
  pitstop serve --upstream http://127.0.0.1:3000 --bypass-token-file /run/secrets/bypass/token

What is let through in maintenance (--allow-…, --bypass-token-file) is the operator's own risk:
`maintenance-mode --wait` does not wait for it. What could be read in two ways is not let through: paths with
percent signs, dot segments, // or ;, and what looks as if somebody else had forwarded it, who is no trusted proxy.
WebSockets are let through by path, address or token, not by method.

SIGTERM: /readyz fails at once, both listeners go on for --shutdown-delay, then requests that run get
--drain-timeout. SIGINT skips the delay. A second signal ends the process at once.")]
pub struct Serve {
    /// Where the traffic listener listens: it refuses every request, or, with --upstream, those in maintenance
    #[arg(long, env = "PITSTOP_LISTEN", value_name = "ADDRESS", default_value = "[::]:8503")]
    pub listen: SocketAddr,

    /// The application, such as http://127.0.0.1:3000, or h2c://127.0.0.1:50051 if it speaks cleartext HTTP/2, as gRPC does:
    /// requests are forwarded to it while maintenance mode is off
    #[arg(long, env = "PITSTOP_UPSTREAM", value_name = "URL")]
    pub upstream: Option<Upstream>,

    /// How long the application may take: to accept a connection, to begin its answer, and between two parts of it
    #[arg(long, env = "PITSTOP_UPSTREAM_TIMEOUT", value_name = "TIME", default_value = "60s", value_parser = some_time)]
    pub upstream_timeout: Duration,

    /// The number of threads that serve traffic
    #[arg(long, env = "PITSTOP_THREADS", value_name = "NUMBER", default_value = "1", value_parser = threads)]
    pub threads: NonZeroUsize,

    /// How often to look at the file even if nothing hints at a change
    #[arg(long, env = "PITSTOP_POLL", value_name = "TIME", default_value = "1s", value_parser = some_time)]
    pub poll: Duration,

    /// What `Retry-After` says where the end of maintenance is not known
    #[arg(long, env = "PITSTOP_RETRY_AFTER", value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub retry_after: Duration,

    /// How long to go on after SIGTERM, so that no more requests are sent here
    #[arg(long, env = "PITSTOP_SHUTDOWN_DELAY", value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub shutdown_delay: Duration,

    /// How long requests may take to finish after that, and when maintenance begins
    #[arg(long, env = "PITSTOP_DRAIN_TIMEOUT", value_name = "TIME", default_value = "20s", value_parser = duration)]
    pub drain_timeout: Duration,

    /// The size of a request's header, in bytes; a larger one is answered with 431. At least 8192
    #[arg(long, env = "PITSTOP_MAX_HEADER_SIZE", value_name = "BYTES", default_value_t = 16384, value_parser = header_size)]
    pub max_header_size: usize,

    /// The time to send a header
    #[arg(long, env = "PITSTOP_HEADER_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = some_time)]
    pub header_timeout: Duration,

    /// How long a connection is kept without a request, and how long a client may take nothing of its answer
    #[arg(long, env = "PITSTOP_IDLE_TIMEOUT", value_name = "TIME", default_value = "75s", value_parser = some_time)]
    pub idle_timeout: Duration,

    /// The number of connections to the traffic listener, and of those to the application. At the limit, the connection that
    /// has waited longest for a request makes room. Fewer where file descriptors or the container's memory allow no more
    #[arg(long, env = "PITSTOP_MAX_CONNECTIONS", value_name = "NUMBER", default_value_t = 10_000, value_parser = number)]
    pub max_connections: usize,

    /// The memory that connections, streams and their buffers may use together with the program, such as 64Mi. It limits their
    /// numbers. The default is the memory limit of the container, if it has one
    #[arg(long, env = "PITSTOP_MEMORY_LIMIT", value_name = "BYTES", value_parser = memory)]
    pub memory_limit: Option<u64>,

    /// What is let through in maintenance, or waits.
    #[command(flatten)]
    pub policies: Policies,

    /// What the page looks like.
    #[command(flatten)]
    pub appearance: Appearance,
}

/// What the page looks like.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "The page")]
pub struct Appearance {
    /// The name of the site, shown above what has happened to it
    #[arg(long, env = "PITSTOP_TITLE", value_name = "TEXT")]
    pub title: Option<String>,

    /// An image to show beside it: SVG, PNG, JPEG, WebP or GIF, of 64 KiB at most. It becomes a part of the page
    #[arg(long, env = "PITSTOP_LOGO", value_name = "FILE")]
    pub logo: Option<PathBuf>,

    /// The colour of the page's border and underlines, such as #0a7
    #[arg(long, env = "PITSTOP_ACCENT", value_name = "COLOUR")]
    pub accent: Option<Accent>,

    /// A template instead of the built-in page
    #[arg(long, env = "PITSTOP_PAGE", value_name = "FILE")]
    pub page: Option<PathBuf>,
}

/// How many requests wait at a time unless `--hold-limit` says otherwise.
pub const HOLD_LIMIT: usize = 1000;

/// The flags by which an operator lets some requests through in maintenance, or lets them wait.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "In maintenance, with --upstream")]
pub struct Policies {
    /// For how long after maintenance has begun requests wait for its end, instead of being refused
    #[arg(long, env = "PITSTOP_HOLD", value_name = "TIME", value_parser = duration)]
    pub hold: Option<Duration>,

    /// How many may wait at a time; the next one is refused [default: 1000]
    #[arg(long, env = "PITSTOP_HOLD_LIMIT", value_name = "NUMBER", value_parser = number)]
    pub hold_limit: Option<usize>,

    /// Let requests with these methods through: GET,HEAD,OPTIONS is read-only maintenance
    #[arg(long, env = "PITSTOP_ALLOW_METHOD", value_name = "METHOD", value_delimiter = ',')]
    pub allow_method: Vec<AllowedMethod>,

    /// Let requests for this path through, or, if it ends in a slash, for all below it: / is everything
    #[arg(long, env = "PITSTOP_ALLOW_PATH", value_name = "PATH", value_delimiter = ',')]
    pub allow_path: Vec<AllowedPath>,

    /// Let requests from this network or address through. Those that somebody else has forwarded: see --trusted-proxy
    #[arg(long, env = "PITSTOP_ALLOW_FROM", value_name = "CIDR", value_delimiter = ',')]
    pub allow_from: Vec<Network>,

    /// The proxies in front of this, whose X-Forwarded-For says who the client is. No client may come from such an address,
    /// not by NAT either: it could name any other
    #[arg(long, env = "PITSTOP_TRUSTED_PROXY", value_name = "CIDR", value_delimiter = ',', value_parser = trusted_proxy)]
    pub trusted_proxy: Vec<Network>,

    /// Let through who gives the token in this file, by the header Pitstop-Bypass or, for 12 hours, after a visit to
    /// /.pitstop/TOKEN
    #[arg(long, env = "PITSTOP_BYPASS_TOKEN_FILE", value_name = "FILE")]
    pub bypass_token_file: Option<PathBuf>,
}

impl Policies {
    /// The first flag that is given.
    #[must_use]
    pub fn first(&self) -> Option<&'static str> {
        let given = [
            ("--hold", self.hold.is_some()),
            ("--hold-limit", self.hold_limit.is_some()),
            ("--allow-method", !self.allow_method.is_empty()),
            ("--allow-path", !self.allow_path.is_empty()),
            ("--allow-from", !self.allow_from.is_empty()),
            ("--trusted-proxy", !self.trusted_proxy.is_empty()),
            ("--bypass-token-file", self.bypass_token_file.is_some()),
        ];
        given.into_iter().find(|(_, is_given)| *is_given).map(|(flag, _)| flag)
    }
}

/// `pitstop maintenance-mode`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pitstop maintenance-mode                              show whether it is on, and why
  pitstop maintenance-mode \"Updating the instance\"      turn it on, or change the reason
  pitstop maintenance-mode \"Updating\" --for 30m         … and say when it should be over
  pitstop maintenance-mode \"Updating\" --wait            … and return when nobody works on the data any more
  pitstop maintenance-mode --disable                    turn it off

--wait speaks for every sidecar and every `pitstop run` that shares the file's directory. It cannot speak for
requests that reach the application past pitstop, nor for those that `serve --allow-…` lets through.

Exit codes: 0 done, 1 failed or not in time, 2 wrong usage.")]
pub struct MaintenanceMode {
    /// Why: turns maintenance mode on. An empty text turns it on without a reason
    #[arg(value_name = "REASON")]
    pub reason: Option<String>,

    /// The reason behind `--`: taken as it is, even where it reads like a command
    #[arg(last = true, hide = true, value_name = "REASON", conflicts_with = "reason")]
    pub verbatim: Option<String>,

    /// Turn maintenance mode off
    #[arg(long)]
    pub disable: bool,

    /// When it should be over, such as 2026-11-22T18:00:00Z. Without a REASON the present one is kept
    #[arg(long, value_name = "TIME", conflicts_with = "disable", value_parser = timestamp)]
    pub until: Option<Timestamp>,

    /// How long it should take from now, such as 30m
    #[arg(long = "for", value_name = "TIME", conflicts_with_all = ["disable", "until"], value_parser = some_time)]
    pub duration: Option<Duration>,

    /// Return when it is true: when on, nobody works on the data any more; when off, the local sidecar is open
    #[arg(long, value_name = "LIMIT", num_args = 0..=1, require_equals = true, default_missing_value = "60s", value_parser = duration)]
    pub wait: Option<Duration>,

    /// How to print the state
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Output,
}

/// How to print the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A sentence.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// `pitstop run`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pitstop run -- ./nightly-report --all
  pitstop run --skip-code 75 -- fietscron -c production.ini
  pitstop run --terminate -- ./long-import

The job takes the place of pitstop, so its exit code, signals and streams are its own. While it runs,
`pitstop maintenance-mode REASON --wait` waits for it. A job that closes the files it has inherited, as sudo does,
is not waited for: use --terminate then, which stays and watches.

Exit codes: the job's own; --skip-code where it was skipped; 127 and 126 where it cannot be found or started; 1
where maintenance mode cannot be read.")]
pub struct Run {
    /// The exit code where the job is skipped
    #[arg(long, value_name = "CODE", default_value_t = 0)]
    pub skip_code: u8,

    /// Stay, and send the job SIGTERM when maintenance begins
    #[arg(long)]
    pub terminate: bool,

    /// The job, and what it is given
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    pub command: Vec<std::ffi::OsString>,
}

/// `pitstop wait`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pitstop wait                                 until maintenance mode is off
  pitstop wait --until-enabled --timeout 5m    until it is on, for at most 5 minutes
  pitstop wait --timeout 0                     only ask: exit code 0 if it is off

Exit codes: 0 it is so, 1 it was not in time, 2 wrong usage.")]
pub struct Wait {
    /// Wait until it is off. This is the default
    #[arg(long, conflicts_with = "until_enabled")]
    pub until_disabled: bool,

    /// Wait until it is on
    #[arg(long)]
    pub until_enabled: bool,

    /// For how long; without it there is no limit. 0 only asks
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub timeout: Option<Duration>,
}

/// `pitstop probe`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  pitstop probe              is it ready?
  pitstop probe livez        is it alive?

Exit codes: 0 yes, 1 no, 2 wrong usage.")]
pub struct Probe {
    /// What to ask
    #[arg(value_enum, default_value_t)]
    pub endpoint: Question,
}

/// What to ask the local sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Question {
    /// May it be sent work?
    #[default]
    Readyz,
    /// Is it alive?
    Livez,
}

/// `pitstop install`
#[derive(Args, Debug)]
#[command(after_help = "\
Example: an init container of this image with the arguments `install /tools` and a volume at /tools gives the next
containers /tools/pitstop.")]
pub struct Install {
    /// The directory; it must be there
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// `pitstop completions`
#[derive(Args, Debug)]
#[command(after_help = "Example: pitstop completions bash > /etc/bash_completion.d/pitstop")]
pub struct Completions {
    /// The shell that is to complete
    #[arg(value_enum)]
    pub shell: Shell,
}

/// A level, or a list of them. Left alone, [`Targets`] takes a level that is misspelt for a target, and shows nothing.
fn levels(text: &str) -> Result<Targets, String> {
    let help =
        || format!("{text:?} is not a level: write off, error, warn, info, debug, trace, or a list like info,h2=debug");
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    let sound = |part: &&str| {
        let level = part.split_once('=').map_or(*part, |(_, level)| level);
        !level.is_empty() && level.parse::<LevelFilter>().is_ok()
    };
    if !parts.iter().all(sound) {
        return Err(help());
    }
    parts.join(",").parse().map_err(|_| help())
}

/// The longest length of time: added to any clock it does not overflow.
const CENTURY: Duration = Duration::from_secs(100 * 366 * 24 * 60 * 60);

/// A length of time such as `1m30s`; a bare number means seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let help = || format!("{text:?} is not a length of time: write it like 90, 90s, 500ms or 1h30m");
    let duration = match text.parse() {
        Ok(seconds) => SignedDuration::from_secs(seconds),
        Err(_) => text.parse().map_err(|_| help())?,
    };
    let duration = Duration::try_from(duration).map_err(|_| help())?;
    if duration > CENTURY {
        return Err("it must be at most 100 years".to_owned());
    }
    Ok(duration)
}

fn some_time(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be more than 0".to_owned()),
        duration => Ok(duration),
    }
}

fn timestamp(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| format!("{text:?} is not a time of RFC 3339: write it like 2026-11-22T18:00:00Z"))
}

/// hyper's buffer cannot be smaller than 8 KiB.
fn header_size(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|size| *size >= 8192).ok_or_else(|| "it must be a number of at least 8192".to_owned())
}

fn threads(text: &str) -> Result<NonZeroUsize, String> {
    text.parse()
        .ok()
        .filter(|number: &NonZeroUsize| number.get() <= 256)
        .ok_or_else(|| "it must be a number from 1 to 256".to_owned())
}

fn trusted_proxy(text: &str) -> Result<Network, String> {
    let network: Network = text.parse().map_err(|error: NetworkError| error.to_string())?;
    match network.is_everywhere() {
        true => Err("anybody could name any address then: give those of the proxies".to_owned()),
        false => Ok(network),
    }
}

/// A number of bytes, with a unit as Kubernetes has it.
fn memory(text: &str) -> Result<u64, String> {
    let units = [("Ki", 10), ("Mi", 20), ("Gi", 30)];
    let (number, shift) = units
        .into_iter()
        .find_map(|(unit, shift)| text.strip_suffix(unit).map(|number| (number, shift)))
        .unwrap_or((text, 0));
    let bytes = number.parse().ok().and_then(|number: u64| number.checked_mul(1 << shift));
    bytes
        .filter(|bytes| *bytes >= 16 << 20)
        .ok_or_else(|| "it must be a number of bytes such as 33554432 or 32Mi, and at least 16Mi".to_owned())
}

fn number(text: &str) -> Result<usize, String> {
    let most = usize::try_from(u32::MAX).unwrap_or(usize::MAX).min(tokio::sync::Semaphore::MAX_PERMITS);
    text.parse()
        .ok()
        .filter(|number| (1..=most).contains(number))
        .ok_or_else(|| format!("it must be a number from 1 to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn memory_is_a_number_of_bytes() {
        for (text, bytes) in [("16777216", 16 << 20), ("32Mi", 32 << 20), ("16384Ki", 16 << 20), ("1Gi", 1 << 30)] {
            assert_eq!(memory(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "Mi", "16777215", "15Mi", "-1Gi", "32 Mi", "32MB", "1.5Gi", "99999999999999999999", "17179869184Gi"]
        {
            assert!(memory(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn lengths_of_time() {
        let table =
            [("0", 0), ("90", 90_000), ("90s", 90_000), ("500ms", 500), ("1h30m", 5_400_000), ("1m 30s", 90_000)];
        for (text, milliseconds) in table {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "-1", "-5s", "soon", "5 parsecs", "9223372036854775807", "99999999999999999999"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn levels_of_the_log() {
        for text in ["off", "error", "warn", "info", "debug", "trace", "INFO", "warn,pitstop=debug", "info, h2=debug"] {
            assert!(levels(text).is_ok(), "{text}");
        }
        for text in ["", ",", "loud", "inf", "info,", "info,hyper", "info=loud", "hyper="] {
            assert!(levels(text).is_err(), "{text}");
        }
    }

    #[test]
    fn no_setting_is_one_that_kubernetes_injects() {
        // For a Service called pitstop: PITSTOP_SERVICE_HOST, PITSTOP_PORT, PITSTOP_PORT_8503_TCP, …
        let command = Cli::command();
        let commands = std::iter::once(&command).chain(command.get_subcommands());
        let variables: Vec<_> =
            commands.flat_map(clap::Command::get_arguments).filter_map(clap::Arg::get_env).collect();
        assert!(variables.len() > 10);
        for variable in variables {
            let variable = variable.to_str().unwrap();
            assert!(variable.starts_with("PITSTOP_"), "{variable}");
            assert!(!variable.starts_with("PITSTOP_PORT") && !variable.starts_with("PITSTOP_SERVICE_"), "{variable}");
        }
    }
}
