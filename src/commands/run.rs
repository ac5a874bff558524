//! `pitstop run`: a job that does not start during maintenance, and for which `--wait` waits.

use std::io::{self, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus};
use std::thread;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{ASK, Failure, POLL, maintenance_files, runtime, sentence};
use crate::cli::{Common, Run};
use crate::maintenance::file::{LookError, MaintenanceFile};
use crate::maintenance::lock::{self, Entry, LockError, LockFile, Permit};
use crate::maintenance::observation::Observation;
use crate::maintenance::one_line;
use crate::maintenance::state::{Mode, State};
use crate::maintenance::watch::{self as lookout, LOOK_LIMIT, Role};
use crate::shutdown::without_signals;

pub(super) fn run(common: &Common, run: &Run) -> Result<ExitCode, Failure> {
    let files = maintenance_files(&common.file)?;
    let (state, permits) = enter(&files)?;
    if let Mode::On(_) = state.mode() {
        let job = one_line(&run.command[0].to_string_lossy());
        // To stderr: stdout is the job's.
        let _ = writeln!(io::stderr(), "{}; skipping {job}", sentence(state.mode()));
        return Ok(run.skip_code.into());
    }
    for permit in &permits {
        permit.pass_on()?;
    }
    let mut command = Command::new(&run.command[0]);
    command.args(&run.command[1..]);
    if run.terminate {
        return runtime()?.block_on(supervise(command, &files));
    }
    // Returns only if the job cannot take this process's place.
    let error = command.exec();
    Err(cannot_start(&command, &error))
}

/// Takes a permit for each file, as far as there are any to be had, unless maintenance mode is on.
fn enter(files: &[MaintenanceFile]) -> Result<(State, Vec<Permit>), Failure> {
    let mut state = State::new(files.iter().map(MaintenanceFile::path));
    let mut permits = Vec::new();
    let mut unseen = None;
    for (index, file) in files.iter().enumerate() {
        let lock_file = LockFile::of(file);
        match lock::enter(|| Ok::<_, LookError>(file.look()?.switch()), || Ok(share(&lock_file))) {
            Err(error) => _ = unseen.get_or_insert(error),
            Ok(Entry::Closed(switch)) => {
                // One is enough: the others need not be waited for.
                state.see(index, Observation::On(switch), Instant::now());
                return Ok((state, Vec::new()));
            }
            Ok(Entry::Open(permit)) => {
                match permit {
                    Ok(permit) => permits.push(permit),
                    Err(error) => warn!("{error}: `maintenance-mode --wait` will not wait for this job"),
                }
                state.see(index, Observation::Off, Instant::now());
            }
        }
    }
    match unseen {
        Some(error) => Err(error.into()),
        None => Ok((state, permits)),
    }
}

fn share(lock: &LockFile) -> Result<Permit, LockError> {
    let patient_until = Instant::now() + LOOK_LIMIT;
    let mut warned = false;
    loop {
        match lock.share() {
            Err(busy @ LockError::Busy(_)) => {
                if !warned && Instant::now() > patient_until {
                    warn!("{busy}: waiting for it");
                    warned = true;
                }
                // Who waits until maintenance has been taken up holds the exclusive lock for an instant.
                thread::sleep(ASK);
            }
            result => return result,
        }
    }
}

/// Exit codes as env(1), nohup(1) and shells give them.
fn cannot_start(command: &Command, error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    let program = command.get_program().to_string_lossy();
    Failure { code, ..Failure::new(format!("cannot start {program}: {error}")) }
}

/// Runs the job as a child, which holds the permits too, and ends it when maintenance begins.
async fn supervise(command: Command, files: &[MaintenanceFile]) -> Result<ExitCode, Failure> {
    // From before the job runs: what is sent to this process is meant for the job.
    let mut signals = without_signals(forwarded_signals)?;
    let (mut state, _) = lookout::start(files, POLL, Role::Observe)?;
    let mut command = tokio::process::Command::from(command);
    let mut child = command.spawn().map_err(|error| cannot_start(command.as_std(), &error))?;
    let pid = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
    let send = |signal: Signal| {
        // Fails only if the job has ended, which is noticed next.
        let _ = pid.map(|pid| kill_process(pid, signal));
    };
    let mut terminated = false;
    loop {
        tokio::select! {
            status = child.wait() => return Ok(exit_code(status?)),
            Some(signal) = signals.recv() => send(signal),
            Ok(_) = state.wait_for(|state| matches!(state.mode(), Mode::On(_))), if !terminated => {
                info!("maintenance mode is on: the job is sent SIGTERM");
                send(Signal::TERM);
                terminated = true;
            }
        }
    }
}

fn forwarded_signals() -> io::Result<mpsc::Receiver<Signal>> {
    let (sender, receiver) = mpsc::channel(1);
    for forwarded in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2] {
        let mut stream = signal(SignalKind::from_raw(forwarded.as_raw()))?;
        let sender = sender.clone();
        tokio::spawn(async move { while stream.recv().await.is_some() && sender.send(forwarded).await.is_ok() {} });
    }
    Ok(receiver)
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, Into::into)
}
