//! Containers without an image: a root directory is run.
//!
//! Needs podman, conmon and runc (Debian: podman, conmon, runc), and root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;

use crate::fixture::{SERVE, Sidecar, program};

/// A container engine with a storage of its own, which goes with it.
pub struct Podman(Arc<TempDir>);

impl Podman {
    /// With the program, and the libraries that it needs if it is not static, in a root directory that has nothing else.
    pub fn new(pitstop: &Path) -> Self {
        // It runs the other two in its turn.
        for name in ["podman", "conmon", "runc"] {
            program(name);
        }
        let podman = Self(Arc::new(tempfile::tempdir().unwrap()));
        let limits = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n";
        fs::write(podman.path().join("containers.conf"), limits).unwrap();
        fs::create_dir(podman.volume()).unwrap();
        fs::set_permissions(podman.volume(), fs::Permissions::from_mode(0o777)).unwrap();
        podman.root(pitstop);
        podman
    }

    fn root(&self, pitstop: &Path) {
        let root = self.path().join("rootfs");
        let copy = |from: &Path, to: &str| {
            let to = root.join(to.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(from, to).unwrap();
        };
        copy(pitstop, "pitstop");
        let libraries = program("ldd").arg(pitstop).output().unwrap();
        for library in
            String::from_utf8(libraries.stdout).unwrap().split_whitespace().filter(|word| word.starts_with('/'))
        {
            copy(Path::new(library), library);
        }
    }

    /// `pitstop serve` in a container called pitstop, with these flags of podman's, and these arguments.
    pub fn serve(&self, flags: &[&str], arguments: &[&str]) -> Sidecar {
        let mut command = self.command(&["run", "--name=pitstop", "--network=host", "--log-driver=none"]);
        command.args(["--read-only", "--user=65532:65532", "--cap-drop=all", "--security-opt=no-new-privileges"]);
        command.arg(format!("--volume={}:/maintenance", self.volume().display())).arg("--workdir=/maintenance");
        command.args(flags).arg("--rootfs").arg(self.path().join("rootfs")).arg("/pitstop");
        command.args(SERVE).args(arguments);
        Sidecar::spawn(self.0.clone(), command)
    }

    /// The process in that container.
    pub fn pid(&self) -> u32 {
        let output = self.command(&["inspect", "--format={{.State.Pid}}", "pitstop"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Which anybody may write.
    pub fn volume(&self) -> PathBuf {
        self.path().join("volume")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", self.path().join("containers.conf"));
        command.args(["--runtime=runc", "--cgroup-manager=cgroupfs", "--storage-driver=vfs"]);
        command.arg("--root").arg(self.path().join("storage")).arg("--runroot").arg(self.path().join("run"));
        command.args(arguments);
        command
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.command(&["rm", "--force", "--time=0", "--all"]).output();
    }
}
