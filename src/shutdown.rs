//! Signals, and the phases of stopping.

use std::io;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::info;

/// How far the process is from its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It serves.
    #[default]
    Running,
    /// It serves, and says in its readiness that it will not for long.
    Stopping,
    /// It accepts no more connections; requests that run may finish.
    Draining,
}

/// Tells the rest of the process the phase.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<Phase>);

impl Stop {
    /// A process that goes through phases as the sender says.
    #[must_use]
    pub fn new(phase: watch::Receiver<Phase>) -> Self {
        Self(phase)
    }

    /// The phase now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Waits until the process is about to end. Also when the sender is gone.
    pub async fn stopping(&mut self) {
        let _ = self.0.wait_for(|phase| *phase >= Phase::Stopping).await;
    }

    /// Waits until connections have to be given up. Also when the sender is gone.
    pub async fn draining(&mut self) {
        let _ = self.0.wait_for(|phase| *phase >= Phase::Draining).await;
    }
}

/// The signals that end the process: SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

/// Installs handlers while signals are held back: one that arrives when its handler is installed, but does not know yet
/// whom to tell, would be lost.
///
/// # Errors
///
/// Those of the handlers, and of `sigprocmask(2)`.
pub fn without_signals<T>(install: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let installed = install();
    before.thread_set_mask()?;
    installed
}

/// A signal, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caught(pub i32);

impl Signals {
    /// Catches them from now on; needed above all as process 1, which the kernel sends no signal it has no handler for.
    ///
    /// # Errors
    ///
    /// No handler can be installed.
    pub fn catch() -> io::Result<Self> {
        without_signals(|| {
            Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
        })
    }

    /// Waits for one.
    pub async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.terminate.recv() => Caught(SignalKind::terminate().as_raw_value()),
            _ = self.interrupt.recv() => Caught(SignalKind::interrupt().as_raw_value()),
        }
    }

    /// Waits for a signal, goes through the phases, and returns when connections have to be given up. SIGINT skips the delay.
    ///
    /// # Errors
    ///
    /// A second signal arrived.
    pub async fn stop(&mut self, phase: &watch::Sender<Phase>, delay: Duration) -> Result<(), Caught> {
        let first = self.next().await;
        phase.send_replace(Phase::Stopping);
        if first == Caught(SignalKind::terminate().as_raw_value()) && !delay.is_zero() {
            info!("SIGTERM: not ready from now on, serving for another {delay:?}");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                second = self.next() => return Err(second),
            }
        }
        info!("accepting no more connections");
        phase.send_replace(Phase::Draining);
        Ok(())
    }

    /// Waits for work to end, but not past another signal.
    ///
    /// # Errors
    ///
    /// Another signal arrived.
    pub async fn unless_again<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Caught> {
        tokio::select! {
            output = work => Ok(output),
            second = self.next() => Err(second),
        }
    }
}

impl Caught {
    /// What a shell makes of a process that the signal has ended.
    #[must_use]
    pub fn exit_code(self) -> std::process::ExitCode {
        u8::try_from(128 + self.0).map_or(std::process::ExitCode::FAILURE, Into::into)
    }
}
