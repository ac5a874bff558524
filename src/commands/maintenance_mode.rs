//! `pitstop maintenance-mode`: shows the state, or changes the first file.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::signal::unix::SignalKind;
use tokio::time::sleep;
use tracing::warn;

use super::{ASK, Failure, look, maintenance_files, print, runtime, sentence};
use crate::admin::client;
use crate::cli::{Common, MaintenanceMode, Output};
use crate::maintenance::file::{LookError, MaintenanceFile, WriteError};
use crate::maintenance::lock::{self, LockError, LockFile};
use crate::maintenance::notice::{LIMIT, Notice};
use crate::maintenance::observation::{Observation, Switch};
use crate::maintenance::one_line;
use crate::maintenance::state::Mode;
use crate::shutdown::{Caught, Signals};

const STAYS_ON: &str = "maintenance mode stays on; `pitstop maintenance-mode --disable` turns it off";
const TURNED_OFF: &str = "somebody has turned maintenance mode off meanwhile";

pub(super) fn maintenance_mode(common: &Common, mut arguments: MaintenanceMode) -> Result<ExitCode, Failure> {
    if arguments.disable && (arguments.reason.is_some() || arguments.verbatim.is_some()) {
        return Err(Failure::usage("Cannot enable and disable maintenance mode at the same time"));
    }
    if let Some(reason) = &arguments.reason {
        refuse_command(reason)?;
    }
    arguments.reason = arguments.reason.or(arguments.verbatim.take());
    let files = maintenance_files(&common.file)?;
    let first = &files[0];
    let until = expected_end(&arguments)?;
    let enables = arguments.reason.is_some() || until.is_some();
    if arguments.disable {
        first.disable()?;
    } else if enables {
        enable(first, arguments.reason, until)?;
    }
    let state = look(&files)?;
    match arguments.output {
        Output::Text => print(sentence(state.mode()))?,
        Output::Json => print(serde_json::to_string(&state.report(Timestamp::now()))?)?,
    }
    if let Mode::On(maintenance) = state.mode()
        && arguments.disable
    {
        let file = maintenance.file.display();
        return Err(Failure::new(format!("{file} keeps maintenance mode on: remove it too")));
    }
    if let Some(limit) = arguments.wait {
        match state.mode() {
            // A job holds a permit for each file, so that of any file that is there speaks for it.
            Mode::On(on) => {
                let file = files.iter().find(|file| file.path() == on.file).unwrap_or(first);
                let wait = wait_until_settled(file, limit, common.admin_listen);
                runtime()?.block_on(unless_interrupted(wait, STAYS_ON))?;
            }
            // Not what was asked for, so not to be waited for.
            Mode::Off | Mode::Unknown if enables => return Err(Failure::new(TURNED_OFF)),
            Mode::Off | Mode::Unknown => {
                let wait = wait_until_open(common.admin_listen, limit);
                runtime()?.block_on(unless_interrupted(wait, "maintenance mode is off"))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses a reason that somebody meant as a command: it would turn maintenance mode on.
fn refuse_command(reason: &str) -> Result<(), Failure> {
    let meant = match reason.trim().to_ascii_lowercase().as_str() {
        "off" | "disable" | "disabled" | "stop" | "end" | "false" | "no" | "0" => {
            "to turn maintenance mode off, run `pitstop maintenance-mode --disable`"
        }
        "on" | "enable" | "enabled" | "start" | "true" | "yes" | "1" => {
            "to turn maintenance mode on, say why: `pitstop maintenance-mode \"Updating the instance\"`"
        }
        "status" | "state" | "show" | "get" => "to see the state, run `pitstop maintenance-mode`",
        "help" => "for help, run `pitstop maintenance-mode --help`",
        _ => return Ok(()),
    };
    Err(Failure::usage(format!("{reason:?} is no reason: {meant}. As a reason, write it behind `--`")))
}

fn expected_end(arguments: &MaintenanceMode) -> Result<Option<Timestamp>, Failure> {
    let now = Timestamp::now();
    let until = match (arguments.until, arguments.duration) {
        (Some(until), _) if until <= now => return Err(Failure::usage(format!("--until {until} is in the past"))),
        (Some(until), _) => Some(until),
        (None, Some(duration)) => {
            let end = now.checked_add(duration).ok().and_then(|end| Timestamp::from_second(end.as_second()).ok());
            Some(end.ok_or_else(|| Failure::usage("--for is too long"))?)
        }
        (None, None) => None,
    };
    Ok(until)
}

/// Writes the file. Without a reason the present one is kept.
fn enable(file: &MaintenanceFile, reason: Option<String>, until: Option<Timestamp>) -> Result<(), Failure> {
    let mut notice = match reason {
        Some(reason) if reason.len() > LIMIT => Notice { reason: Some(reason), until: None },
        Some(reason) => Notice::parse(reason.as_bytes()),
        None => match file.look()? {
            Observation::On(Switch { unreadable: Some(why), .. }) => {
                return Err(Failure::new(format!("{why}: say anew why maintenance mode is on")));
            }
            Observation::On(switch) => switch.notice,
            Observation::Off => {
                let file = file.path().display();
                return Err(Failure::new(format!(
                    "there is no {file}: say why it should be, as in `maintenance-mode \"Updating\" --for 30m`"
                )));
            }
        },
    };
    notice.until = until.or(notice.until);
    let length = notice.to_text().len();
    if length > LIMIT {
        return Err(Failure::usage(format!(
            "the reason is too long: {length} bytes with the trailer, of at most {LIMIT}"
        )));
    }
    match file.enable(&notice) {
        // Maintenance is often wanted because of just that.
        Err(WriteError::Full(directory)) if notice.reason.is_some() && file.enable_without_reason().is_ok() => {
            warn!("{} is full: maintenance mode is on, but without the reason", directory.display());
            Ok(())
        }
        enabled => Ok(enabled?),
    }
}

/// Waits until nobody lets work reach the data any more.
async fn wait_until_settled(file: &MaintenanceFile, limit: Duration, admin: SocketAddr) -> Result<(), Failure> {
    #[derive(Debug, thiserror::Error)]
    #[error(transparent)]
    enum Unsettled {
        Lock(#[from] LockError),
        Look(#[from] LookError),
    }
    let lock_file = LockFile::of(file);
    let deadline = Instant::now() + limit;
    let mut reason = None;
    loop {
        let settled = lock::settle(|| Ok(lock_file.exclude()?), || Ok::<_, Unsettled>(file.look()?.switch()));
        match settled {
            Ok(true) => return Ok(()),
            Ok(false) => return Err(Failure::new(TURNED_OFF)),
            Err(Unsettled::Lock(LockError::Busy(_))) if Instant::now() < deadline => {
                // A look that fails says nothing, and may succeed the next time.
                match file.look() {
                    Ok(Observation::Off) => return Err(Failure::new(TURNED_OFF)),
                    Ok(Observation::On(switch)) => tell_change(&mut reason, switch.notice.reason.unwrap_or_default()),
                    Err(_) => {}
                }
                sleep(ASK).await;
            }
            Err(Unsettled::Lock(LockError::Busy(_))) => {
                let mut busy = lock_file.holders();
                busy.extend(requests_in_flight(admin).await);
                if busy.is_empty() {
                    busy.push("a process that is not seen from here (of another container or host)".to_owned());
                }
                let busy = busy.join(", ");
                return Err(Failure::new(format!("still busy after {limit:?}: {busy}; maintenance mode stays on")));
            }
            Err(Unsettled::Lock(unavailable)) => {
                return Err(Failure::new(format!("cannot tell whether all work has ended: {unavailable}")));
            }
            Err(error) => return Err(Failure::new(error)),
        }
    }
}

/// Tells of a reason that somebody else has changed meanwhile.
fn tell_change(known: &mut Option<String>, reason: String) {
    if known.as_ref().is_some_and(|known| *known != reason) {
        warn!("somebody has changed the reason meanwhile: {}", one_line(&reason));
    }
    *known = Some(reason);
}

/// Waits as the future does, until somebody ends that with Ctrl-C or SIGTERM.
async fn unless_interrupted(wait: impl Future<Output = Result<(), Failure>>, mode: &str) -> Result<(), Failure> {
    let ended = Signals::catch()?.unless_again(wait).await;
    ended.unwrap_or_else(|caught| {
        let is_interrupt = caught == Caught(SignalKind::interrupt().as_raw_value());
        let how = if is_interrupt { "interrupted" } else { "terminated" };
        Err(Failure::new(format!("{how}: {mode}")))
    })
}

/// What the local gate, if there is one, has let in and is not done.
async fn requests_in_flight(admin: SocketAddr) -> Option<String> {
    let (_, answer) = client::get(admin, "/maintenance").await.ok()?;
    let state: serde_json::Value = serde_json::from_str(&answer).ok()?;
    match state["in_flight"].as_u64()? {
        0 => None,
        1 => Some("1 request that the application is at work on".to_owned()),
        several => Some(format!("{several} requests that the application is at work on")),
    }
}

/// Waits until the local sidecar has seen that maintenance mode is off.
async fn wait_until_open(admin: SocketAddr, limit: Duration) -> Result<(), Failure> {
    let open = async {
        loop {
            let (_, answer) = client::get(admin, "/maintenance").await?;
            let enabled = serde_json::from_str::<serde_json::Value>(&answer).map(|state| state["enabled"].clone());
            if enabled.is_ok_and(|enabled| enabled == false) {
                return Ok(());
            }
            sleep(ASK).await;
        }
    };
    tokio::time::timeout(limit, open).await.unwrap_or_else(|_| {
        Err(Failure::new(format!("the sidecar is still closed after {limit:?}: see /readyz?verbose at {admin}")))
    })
}
