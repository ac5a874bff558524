//! `pitstop probe`: asks the local sidecar.

use std::process::ExitCode;

use super::{Failure, print, runtime};
use crate::admin::client;
use crate::cli::{Common, Probe, Question};

pub(super) fn probe(common: &Common, probe: &Probe) -> Result<ExitCode, Failure> {
    let path = match probe.endpoint {
        Question::Readyz => "/readyz",
        Question::Livez => "/livez",
    };
    let (status, answer) = runtime()?.block_on(client::get(common.admin_listen, path))?;
    print(answer.trim_end())?;
    Ok(if status.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
