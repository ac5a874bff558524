//! The image: what is in it, how it is described, and how large it is. Tests with Kubernetes run it.
//!
//! Needs buildah and tar (Debian: buildah, tar), and hadolint in target/test-venv, where tests/run puts it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::fixture::{Printed, program};
use crate::manifests::root;

/// In bytes. The kernel charges each pod for what it reads of it.
const AT_MOST: u64 = 3_800_000;

/// An image in the user's store, which is taken out of it again on drop. Whoever runs this at the same time has another.
struct Stored(String);

impl Drop for Stored {
    fn drop(&mut self) {
        let _ = Command::new("buildah").args(["rmi", &self.0]).output();
    }
}

/// The program that is in it.
pub fn static_program() -> &'static Path {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
        let printed: Printed = Command::new(root().join("deploy/build-static")).output().unwrap().into();
        assert_eq!(printed.code, Some(0), "{}", printed.stderr);
        root().join(printed.stdout.trim_end())
    });
    &PROGRAM
}

/// A file in an archive.
fn extracted(archive: &Path, file: &str) -> Vec<u8> {
    let output =
        program("tar").arg("--extract").arg("--to-stdout").arg("--file").arg(archive).arg(file).output().unwrap();
    assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn it_is_the_program_and_nothing_else() {
    program("buildah");
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("pitstop.tar");
    let mut build = Command::new(root().join("deploy/build-image"));
    let image = Stored(format!("pitstop:test-{}", std::process::id()));
    let printed: Printed = build.arg(&archive).env("IMAGE", &image.0).output().unwrap().into();
    assert_eq!((printed.code, printed.stdout), (Some(0), format!("{}\n", image.0)), "{}", printed.stderr);
    let size = archive.metadata().unwrap().len();
    assert!(size <= AT_MOST, "{size} bytes");

    let manifest: Value = serde_json::from_slice(&extracted(&archive, "manifest.json")).unwrap();
    let image: Value = serde_json::from_slice(&extracted(&archive, manifest[0]["Config"].as_str().unwrap())).unwrap();
    let config = &image["config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!((&config["Entrypoint"], &config["Cmd"]), (&json!(["/usr/local/bin/pitstop"]), &json!(["serve"])));
    // `kubectl exec POD -c pitstop -- pitstop …` looks there.
    assert_eq!(config["Env"], json!(["PATH=/usr/local/bin", "PITSTOP_FILE=/maintenance/MAINTENANCE"]));
    assert_eq!(config["ExposedPorts"], json!({"8503/tcp": {}, "9503/tcp": {}}));
    let labels = &config["Labels"];
    assert_eq!(labels["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(labels["org.opencontainers.image.licenses"], env!("CARGO_PKG_LICENSE"));
    assert_eq!(labels["org.opencontainers.image.description"], env!("CARGO_PKG_DESCRIPTION"));

    let mut files = Vec::new();
    for layer in manifest[0]["Layers"].as_array().unwrap() {
        let path = directory.path().join("layer.tar");
        std::fs::write(&path, extracted(&archive, layer.as_str().unwrap())).unwrap();
        let listing =
            program("tar").args(["--list", "--verbose", "--numeric-owner", "--file"]).arg(&path).output().unwrap();
        let listing = String::from_utf8(listing.stdout).unwrap();
        // The mode, the owner, and the name.
        files.extend(listing.lines().map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            format!("{} {} {}", words[0], words[1], words[5])
        }));
    }
    files.sort();
    files.dedup();
    files.retain(|file| !file.starts_with("drwxr-xr-x 0/0"));
    assert_eq!(files, ["-rwxr-xr-x 0/0 usr/local/bin/pitstop", "drwxr-xr-x 65532/65532 maintenance/"]);
}

#[test]
fn hadolint_has_nothing_to_say() {
    let silent = Printed { code: Some(0), stdout: String::new(), stderr: String::new() };
    let hadolint = root().join("target/test-venv/bin/hadolint");
    for file in ["deploy/Dockerfile", "tests/cluster/application/Containerfile"] {
        let printed: Printed = Command::new(&hadolint).arg(root().join(file)).output().unwrap().into();
        assert_eq!(printed, silent, "{file}");
    }
}
