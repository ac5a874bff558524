//! deploy/systemd: its units installed and switched as their README says, by a systemd that is process 1 of a container with
//! what is on this machine (`tests/systemd-boot`).
//!
//! Needs systemd, dbus, curl, iproute2 and util-linux (Debian packages), and root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use tempfile::TempDir;

use crate::fixture::{DEADLINE, Printed, eventually, program};
use crate::manifests::root;
use crate::running::Running;

/// The container. It ends with the test.
struct Machine {
    process: Running,
    /// Of cgroup2; all of its processes are in it.
    group: PathBuf,
    _directory: TempDir,
}

impl Machine {
    fn boot() -> Self {
        for name in ["systemctl", "systemd-analyze", "systemd-sysusers", "unshare", "nsenter", "ip"] {
            program(name);
        }
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let top = mounts.find(|mount| mount[2] == "cgroup2").expect("cgroup2 is mounted")[1].to_owned();
        let group = Path::new(&top).join(format!("pitstop-test-{}", std::process::id()));
        fs::create_dir(&group).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(root().join("tests/systemd-boot"));
        command.arg(directory.path()).arg(&group).arg(root());
        let mut machine = Self { process: Running::start(command), group, _directory: directory };
        eventually("it has booted", || {
            machine.process.runs();
            machine.init().is_some() && machine.try_run("systemctl is-system-running").stdout == "running\n"
        });
        machine
    }

    /// Its process 1, once there is one that is systemd.
    fn init(&self) -> Option<u32> {
        let pid = self.process.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let child: u32 = children.split_whitespace().next()?.parse().ok()?;
        let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
        (name == "systemd\n").then_some(child)
    }

    /// Runs a line of shell in it.
    fn try_run(&self, line: &str) -> Printed {
        let init = self.init().unwrap().to_string();
        let mut command = program("nsenter");
        command.args(["--target", &init, "--mount", "--pid", "--net", "--uts", "--ipc", "--"]);
        command.args(["env", "--ignore-environment", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-c"]);
        command.arg(format!("cd '{}' || exit; {line}", root().display())).output().unwrap().into()
    }

    /// The same of one that succeeds; gives what it prints.
    #[track_caller]
    fn run(&self, line: &str) -> String {
        let printed = self.try_run(line);
        assert_eq!(printed.code, Some(0), "{line}: {}{}", printed.stdout, printed.stderr);
        printed.stdout
    }

    /// Puts a script into `/usr/local/bin`.
    fn writes(&self, name: &str, script: &str) {
        self.run(&format!("cd /usr/local/bin && printf '#!/bin/sh\\n%s\\n' '{script}' >{name} && chmod 755 {name}"));
    }

    /// What a visitor sees.
    fn page(&self) -> String {
        self.try_run("curl --silent --max-time 30 http://localhost:8503/").stdout
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::write(self.group.join("cgroup.kill"), "1");
        let _ = self.process.child.wait();
        let deadline = Instant::now() + DEADLINE;
        while remove(&self.group).is_err() && Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// Removes a group and those in it. Its files are not removed, but go with it.
fn remove(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)? {
        let path = entry?.path();
        if path.is_dir() {
            remove(&path)?;
        }
    }
    fs::remove_dir(group)
}

fn readme(language: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("deploy/systemd/README.md")).unwrap();
    let block = text.split(&format!("```{language}\n")).nth(1).unwrap().split("```").next().unwrap();
    block.lines().map(|line| line.replace("sudo ", "")).collect()
}

#[test]
fn the_units_do_what_their_readme_says() {
    let machine = Machine::boot();
    // What the README's reader has.
    machine.run("mkdir -p /srv/shop && echo 'the shop' >/srv/shop/index.html");
    machine.writes("report", "id --user --name; exec report-inside");
    machine.writes("report-inside", "echo reporting");

    // Another build of it, which is there already.
    let install = readme("sh").join(" && ").replace("$(deploy/build-static)", env!("CARGO_BIN_EXE_pitstop"));
    machine.run(&format!("set -e; {install}"));
    let units = "pitstop.service shop.service report.service report.timer";
    let verified = machine.try_run(&format!("systemd-analyze verify {units}"));
    assert_eq!(verified, Printed { code: Some(0), stdout: String::new(), stderr: String::new() });
    eventually("the shop is there", || machine.page() == "the shop\n");
    assert_eq!(machine.run("systemctl is-active shop.service pitstop.service report.timer"), "active\n".repeat(3));

    let lines = readme("console");
    let mut lines = lines.iter().peekable();
    let mut steps = 0;
    while let Some(command) = lines.next() {
        let command = command.strip_prefix("$ ").unwrap();
        let mut prints = String::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with("$ ")) {
            prints = prints + line + "\n";
        }
        // The journal is written by somebody else.
        match command.starts_with("journalctl") {
            true => eventually(command, || machine.run(command) == prints),
            false => assert_eq!(machine.run(command), prints, "{command}"),
        }
        steps += 1;
    }
    assert_eq!(steps, 5);
    assert_eq!(machine.page(), "the shop\n");

    // The job runs as a user of its own.
    machine.run("systemctl start report.service");
    let journal = "journalctl --quiet --output=cat --unit=report.service --identifier=report --identifier=pitstop";
    eventually("it has reported", || {
        machine.run(journal).ends_with("skipping /usr/local/bin/report\nreport\nreporting\n")
    });

    // Who waits, waits for it.
    machine.writes("report-inside", "echo began; until [ -e /run/report-may-end ]; do sleep 0.05; done");
    machine.run("systemctl start --no-block report.service");
    eventually("the job runs", || machine.run(journal).ends_with("\nbegan\n"));
    let switch = "pitstop --file /var/lib/pitstop/MAINTENANCE maintenance-mode 'Once more'";
    let early = machine.try_run(&format!("{switch} --wait=1s"));
    assert!(early.code == Some(1) && early.stderr.contains("still busy after 1s"), "{early:?}");
    machine.run(&format!("touch /run/report-may-end && {switch} --wait"));

    // Maintenance outlives it all, and it ends in its own time.
    machine.run("systemctl stop pitstop.service");
    assert_eq!(machine.run("systemctl show --value --property=Result pitstop.service"), "success\n");
    machine.run("systemctl start pitstop.service");
    eventually("it is in maintenance", || machine.page() == "Once more\n");
    machine.run("pitstop --file /var/lib/pitstop/MAINTENANCE maintenance-mode --disable --wait");
    assert_eq!(machine.page(), "the shop\n");

    // At port 80, with what the README says to add.
    let text = fs::read_to_string(root().join("deploy/systemd/README.md")).unwrap();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let added =
        text.split("`systemctl edit pitstop` and add ").nth(1).unwrap().split("all below `[Service]`").next().unwrap();
    let settings: Vec<_> = added.split('`').skip(1).step_by(2).collect();
    assert_eq!(settings.len(), 4, "{added}");
    let directory = "/etc/systemd/system/pitstop.service.d";
    machine.run(&format!(
        "mkdir {directory} && printf '%s\\n' '[Service]' '{}' >{directory}/80.conf",
        settings.join("' '")
    ));
    machine.run("systemctl daemon-reload && systemctl restart pitstop.service");
    eventually("it is at port 80", || machine.try_run("curl --silent http://localhost/").stdout == "the shop\n");

    // Nothing that it needs has been taken away from it.
    let journal = machine.run("journalctl --quiet --output=cat --unit=pitstop.service --identifier=pitstop");
    let complaints: Vec<_> = journal
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        .filter(|line| !line.contains("open files"))
        // The shop may listen later than it has started.
        .filter(|line| !line.contains("does not accept a connection"))
        .collect();
    assert_eq!(complaints, Vec::<&str>::new());
    let metrics = machine.run("curl --silent --max-time 30 http://127.0.0.1:9503/metrics");
    assert!(metrics.contains("\nprocess_start_time_seconds 1"), "{metrics}");
    assert_eq!(machine.run("stat --format='%U %a' /var/lib/pitstop"), "pitstop 755\n");
}

#[test]
fn what_the_gate_may_do_is_little() {
    let unit = root().join("deploy/systemd/pitstop.service");
    let mut analyze = program("systemd-analyze");
    // In tenths: 0 is nothing, 100 all.
    let printed: Printed =
        analyze.args(["security", "--offline=true", "--threshold=15"]).arg(unit).output().unwrap().into();
    assert_eq!(printed.code, Some(0), "{}", printed.stdout);
}
