//! `pitstop install`: copies this program.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;

use super::{Failure, print};

pub(super) fn install(directory: &Path) -> Result<ExitCode, Failure> {
    let target = directory.join("pitstop");
    copy(directory, &target)
        .map_err(|error| Failure::new(format!("cannot install to {}: {error}", target.display())))?;
    print(format_args!("installed {}", target.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Renames the copy into place: one that runs is not overwritten, and nobody starts half of it.
fn copy(directory: &Path, target: &Path) -> io::Result<()> {
    let mut program = File::open(std::env::current_exe()?)?;
    let mut copy = tempfile::Builder::new().prefix(".pitstop.").tempfile_in(directory)?;
    io::copy(&mut program, &mut copy)?;
    copy.as_file().set_permissions(Permissions::from_mode(0o755))?;
    copy.persist(target)?;
    Ok(())
}
