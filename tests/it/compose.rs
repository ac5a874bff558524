//! deploy/compose: its example run as its README says, by podman-compose, in a network of its own and with images built from
//! what is on this machine.
//!
//! Needs podman, conmon, runc, buildah, netavark, aardvark-dns, curl and unshare (Debian: podman, conmon, runc, buildah,
//! netavark, aardvark-dns, curl, util-linux), podman-compose and compose-spec in target/test-venv, where tests/run puts
//! them, and root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::fixture::{Printed, behind, eventually, program};
use crate::manifests::root;
use crate::running::Running;
use crate::server::{curl, test_venv};

fn directory() -> PathBuf {
    root().join("deploy/compose")
}

fn compose(arguments: &[&str]) -> Command {
    let mut command = Command::new(test_venv());
    command.args(["-m", "podman_compose"]).args(arguments);
    command
}

/// A container engine with a storage, a network and processes of its own, and the images of the example in it.
struct Engine {
    /// Has the namespaces. When it ends, so does all that runs in them.
    namespaces: Running,
    place: TempDir,
}

impl Engine {
    fn new() -> Self {
        for name in ["podman", "conmon", "runc", "buildah", "nsenter", "iptables"] {
            program(name);
        }
        let place = tempfile::tempdir().unwrap();
        let mut namespaces = program("unshare");
        namespaces.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]);
        // What engines have in common is below /run: the DNS server, for one.
        namespaces.arg("mount -t tmpfs tmpfs /run && ip link set lo up && echo up && exec sleep 86400");
        let mut namespaces = Running::start(namespaces);
        eventually("the namespaces are there", || {
            namespaces.runs();
            namespaces.stdout() == "up\n"
        });
        let path = place.path().display();
        let settings = format!(
            "[containers]\ndefault_ulimits = [\"nofile=4096:4096\", \"nproc=1024:1024\"]\n\
             [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{path}/networks\"\n\
             [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\ntmp_dir = \"{path}/tmp\"\n"
        );
        fs::write(place.path().join("containers.conf"), settings).unwrap();
        let storage =
            format!("[storage]\ndriver = \"vfs\"\ngraphroot = \"{path}/storage\"\nrunroot = \"{path}/run\"\n");
        fs::write(place.path().join("storage.conf"), storage).unwrap();
        let engine = Self { namespaces, place };
        engine.images();
        engine
    }

    /// The application's are stood in for by one that is made of this machine's packages: it has a shell, and a web server
    /// on the same port.
    fn images(&self) {
        let build = |command: &mut Command| {
            self.set(command);
            let printed: Printed = command.output().unwrap().into();
            assert_eq!(printed.code, Some(0), "{command:?}: {}", printed.stderr);
        };
        build(&mut Command::new(root().join("deploy/build-image")));
        let archive = self.path().join("application.tar");
        let mut application = Command::new(root().join("tests/cluster/application/build"));
        build(application.arg("nginxinc/nginx-unprivileged:1.29").arg(&archive));
        fs::remove_file(archive).unwrap();
        build(program("buildah").args(["tag", "nginxinc/nginx-unprivileged:1.29", "busybox:1.37"]));
    }

    fn path(&self) -> &Path {
        self.place.path()
    }

    /// Lets a command use this engine.
    fn set(&self, command: &mut Command) {
        command.env("CONTAINERS_CONF", self.path().join("containers.conf"));
        command.env("CONTAINERS_STORAGE_CONF", self.path().join("storage.conf"));
        command.env_remove("IMAGE");
    }

    /// Puts one into its namespaces, too.
    fn inside(&self, command: &mut Command) {
        self.set(command);
        let pid = self.namespaces.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        // A directory is lost on the way.
        let chdir = format!("--chdir={}", directory().display());
        let enter = ["nsenter", "--target", children.trim(), "--net", "--mount", "--pid", "--", "env", &chdir];
        behind(&enter, command);
    }

    fn run(&self, command: &mut Command) -> Printed {
        self.inside(command);
        command.output().unwrap().into()
    }

    fn compose(&self, arguments: &[&str]) -> Printed {
        self.run(&mut compose(arguments))
    }

    /// Runs one that succeeds, and gives what it prints.
    #[track_caller]
    fn prints(&self, command: &mut Command) -> String {
        let printed = self.run(command);
        assert_eq!(printed.code, Some(0), "{command:?}: {}{}", printed.stdout, printed.stderr);
        printed.stdout + &printed.stderr
    }

    /// The same for a line of the README.
    #[track_caller]
    fn types(&self, line: &str) -> String {
        let compose = format!("{} -m podman_compose", test_venv().display());
        // There is no terminal; Docker's finds that out by itself.
        let line = line.replace("docker compose", &compose).replace(" exec ", " exec -T ").replace(" run ", " run -T ");
        self.prints(program("sh").args(["-c", &line]))
    }

    fn podman(&self, arguments: &[&str]) -> Printed {
        self.run(program("podman").args(arguments))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Which also removes their control groups.
        self.compose(&["down", "--timeout=0", "--volumes"]);
    }
}

/// The commands in the README, and what each prints.
fn readme() -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(directory().join("README.md")).unwrap();
    let block = text.split("```console\n").nth(1).unwrap().split("```").next().unwrap();
    let mut steps: Vec<(String, Vec<String>)> = Vec::new();
    for line in block.lines() {
        match line.strip_prefix("$ ") {
            Some(command) => steps.push((command.to_owned(), Vec::new())),
            None => steps.last_mut().unwrap().1.push(line.to_owned()),
        }
    }
    steps
}

#[test]
fn the_example_does_what_its_readme_says() {
    let engine = Engine::new();
    let steps = readme();
    assert!(steps.len() >= 8, "{steps:?}");
    let status = || {
        let arguments = ["--output", "/dev/null", "--write-out", "%{http_code}", "http://localhost:8080/"];
        engine.run(curl().args(arguments)).stdout
    };
    for (command, prints) in &steps {
        if command.starts_with("curl") {
            // As soon as it listens, and knows the application's name.
            eventually(command, || engine.run(program("sh").args(["-c", command])).stdout.lines().eq(prints));
            continue;
        }
        let printed = engine.types(command);
        for line in prints {
            assert!(printed.lines().any(|printed| printed.trim_end() == line), "{command}: {printed}");
        }
        let on = prints.iter().any(|line| line.contains("is enabled"));
        if command.contains(" exec ") || on {
            assert_eq!(status(), if on { "503" } else { "200" }, "{command}");
        }
        if prints.iter().any(|line| line.contains("skipping")) {
            assert!(!printed.contains("reporting"), "{printed}");
            // It is healthy all the same.
            let health = engine.podman(&["healthcheck", "run", "shop_pitstop_1"]);
            assert_eq!(health.code, Some(0), "{health:?}");
        }
    }

    // Who waits, waits for the job, which runs as somebody, with nothing to write to but the volume.
    let job = "id -u; touch /forbidden; : >/maintenance/began; while [ -e /maintenance/began ]; do sleep 0.05; done; echo done";
    let mut running = compose(&["--profile=jobs", "run", "--rm", "-T", "report", "sh", "-c", job]);
    engine.inside(&mut running);
    let mut running = Running::start(running);
    let volume =
        engine.prints(program("podman").args(["volume", "inspect", "--format={{.Mountpoint}}", "shop_maintenance"]));
    let began = Path::new(volume.trim_end()).join("began");
    eventually("the job runs", || {
        running.runs();
        began.exists()
    });
    let switch = ["exec", "-T", "pitstop", "pitstop", "maintenance-mode", "Once more"];
    let early = engine.compose(&[&switch[..], &["--wait=1s"]].concat());
    assert!(early.code == Some(1) && early.stderr.contains("still busy after 1s"), "{early:?}");
    fs::remove_file(&began).unwrap();
    let late = engine.compose(&[&switch[..], &["--wait"]].concat());
    assert_eq!((late.code, late.stdout.as_str()), (Some(0), "Maintenance mode is enabled: Once more\n"), "{late:?}");
    let job = running.ended();
    assert_eq!((job.code, job.stdout.as_str()), (Some(0), "65532\ndone\n"), "{job:?}");
    assert!(job.stderr.contains("/forbidden: Read-only file system"), "{job:?}");

    // It ends in its own time, and maintenance outlives it.
    engine.prints(program("podman").args(["stop", "shop_pitstop_1"]));
    let code = engine.prints(program("podman").args(["inspect", "--format={{.State.ExitCode}}", "shop_pitstop_1"]));
    assert_eq!(code, "0\n");
    assert_eq!(engine.compose(&["down"]).code, Some(0));
    assert_eq!(engine.compose(&["up", "--detach"]).code, Some(0));
    eventually("it is in maintenance", || engine.run(curl().arg("http://localhost:8080/")).stdout == "Once more\n");
    assert_eq!(engine.compose(&["down", "--volumes"]).code, Some(0));
    assert_eq!(engine.podman(&["volume", "ls", "--quiet"]).stdout, "");
}

#[test]
fn it_is_valid_and_hardened() {
    let text = fs::read_to_string(directory().join("compose.yaml")).unwrap();
    const VALIDATE: &str = "import compose_spec, sys\ncompose_spec.PyCompose.from_yaml(sys.argv[1])";
    let validate =
        |text: &str| -> Printed { Command::new(test_venv()).args(["-c", VALIDATE, text]).output().unwrap().into() };
    assert_eq!(validate(&text), Printed { code: Some(0), stdout: String::new(), stderr: String::new() });
    // What podman-compose would only overlook.
    assert_ne!(validate(&text.replace("cap_drop", "drop_cap")).code, Some(0));

    let file = crate::manifests::documents(&[&text]).remove(0).remove(0);
    for (name, service) in file["services"].as_object().unwrap() {
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(service["cap_drop"], serde_json::json!(["ALL"]), "{name}");
        assert_eq!(service["security_opt"], serde_json::json!(["no-new-privileges:true"]), "{name}");
        assert_eq!(service["ports"].is_null(), name != "pitstop", "{name}");
    }
    let tags: Vec<_> =
        text.split("pitstop:").skip(1).filter_map(|rest| rest.split(char::is_whitespace).next()).collect();
    let tags: Vec<_> = tags.into_iter().filter(|tag| !tag.is_empty()).collect();
    assert_eq!(tags, [env!("CARGO_PKG_VERSION"); 2]);
}
