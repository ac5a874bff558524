//! `pitstop wait`: until maintenance mode is off, or on.

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::timeout;

use super::{Failure, POLL, look, maintenance_files, runtime};
use crate::cli::{Common, Wait};
use crate::maintenance::file::MaintenanceFile;
use crate::maintenance::state::{Mode, State};
use crate::maintenance::watch::{self as lookout, Role};
use crate::shutdown::Signals;

pub(super) fn wait(common: &Common, wait: &Wait) -> Result<ExitCode, Failure> {
    let files = maintenance_files(&common.file)?;
    let awaited = |state: &State| match state.mode() {
        Mode::On(_) => wait.until_enabled,
        Mode::Off => !wait.until_enabled,
        Mode::Unknown => false,
    };
    if wait.timeout == Some(Duration::ZERO) {
        return Ok(if awaited(&look(&files)?) { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let in_time = runtime()?.block_on(async {
        // As process 1, as in an init container, nothing else would end this.
        let mut signals = Signals::catch()?;
        tokio::select! {
            in_time = watch(&files, awaited, wait.timeout) => in_time.map(Ok),
            caught = signals.next() => Ok(Err(caught)),
        }
    })?;
    match in_time {
        Ok(true) => return Ok(ExitCode::SUCCESS),
        Ok(false) => {}
        Err(caught) => return Ok(caught.exit_code()),
    }
    let state = if wait.until_enabled { "off" } else { "on" };
    Err(Failure::new(format!("maintenance mode is still {state} after {:?}", wait.timeout.unwrap_or_default())))
}

async fn watch(
    files: &[MaintenanceFile],
    awaited: impl Fn(&State) -> bool,
    limit: Option<Duration>,
) -> Result<bool, Failure> {
    let (mut state, _) = lookout::start(files, POLL, Role::Observe)?;
    let wait = state.wait_for(awaited);
    Ok(match limit {
        Some(limit) => timeout(limit, wait).await.is_ok_and(|found| found.is_ok()),
        None => wait.await.is_ok(),
    })
}
