//! What all tests share: a directory, a sidecar that is killed on drop, a client, and waiting for a condition.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Far longer than anything takes, on the slowest of machines.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// `pitstop serve` at ports that are free.
pub const SERVE: [&str; 5] = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];

/// The program under test, with no environment variable of its own set.
pub fn pitstop() -> Command {
    pitstop_at(env!("CARGO_BIN_EXE_pitstop"))
}

/// A copy of it.
pub fn pitstop_at(path: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(path);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PITSTOP_")) {
        command.env_remove(name);
    }
    command
}

/// Another program, which a test cannot do without.
#[track_caller]
pub fn program(name: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let package = match name {
        "amtool" => "prometheus-alertmanager",
        "env" | "mkfifo" | "mknod" => "coreutils",
        "ip" => "iproute2",
        "kill" | "sysctl" => "procps",
        "ldd" => "libc-bin",
        "node" => "nodejs",
        "nsenter" | "prlimit" | "setpriv" | "unshare" => "util-linux",
        "promtool" => "prometheus",
        "sh" => "dash",
        "systemctl" | "systemd-analyze" | "systemd-sysusers" => "systemd",
        "umount" => "mount",
        "varnishd" => "varnish",
        same => same,
    };
    let found = std::env::split_paths(&path).any(|directory| directory.join(name).is_file());
    assert!(found, "{name} is missing: apt-get install {package}");
    Command::new(name)
}

/// Runs a command behind another one, which ends in running what it is given, as `setpriv` does.
#[track_caller]
pub fn behind(wrapper: &[&str], command: &mut Command) {
    let mut wrapped = program(wrapper[0]);
    wrapped.args(&wrapper[1..]).arg(command.get_program()).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        wrapped.current_dir(directory);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    *command = wrapped;
}

/// Takes from a command that is run by root what lets root pass by permissions.
pub fn without_privileges(command: &mut Command) {
    behind(&["setpriv", "--bounding-set", "-dac_override,-dac_read_search"], command);
}

/// Sends a process a signal, given by its name, such as `TERM`.
#[track_caller]
pub fn signal(process: u32, name: &str) {
    let status = program("kill").args(["-s", name, &process.to_string()]).status().unwrap();
    assert!(status.success());
}

/// Waits for a process to end. One that does not is killed.
#[track_caller]
pub fn ended(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("not within {DEADLINE:?}: the process ends");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Puts a file in place in one step, so that nobody reads a part of it.
pub fn put(path: &Path, text: impl AsRef<[u8]>) {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, text).unwrap();
    std::fs::rename(temporary, path).unwrap();
}

/// Waits until the condition holds, or fails the test naming it.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// What a command printed, and its exit code.
#[derive(Debug, PartialEq, Eq)]
pub struct Printed {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Printed {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// A running `pitstop serve`.
pub struct Sidecar {
    pub child: Child,
    pub admin: SocketAddr,
    pub traffic: SocketAddr,
    log: Arc<Mutex<String>>,
    directory: Arc<TempDir>,
}

impl Sidecar {
    /// One with a directory of its own, `MAINTENANCE` in it, and ports that are free.
    pub fn start() -> Self {
        Self::with(|_| {})
    }

    /// The same with further flags or environment variables.
    pub fn with(change: impl FnOnce(&mut Command)) -> Self {
        Self::sharing(Arc::new(tempfile::tempdir().unwrap()), change)
    }

    /// One that shares a directory.
    pub fn sharing(directory: Arc<TempDir>, change: impl FnOnce(&mut Command)) -> Self {
        let mut command = pitstop();
        command.args(SERVE).current_dir(directory.path());
        change(&mut command);
        Self::spawn(directory, command)
    }

    /// One that has seen this text in its file.
    pub fn in_maintenance(text: impl AsRef<[u8]>) -> Self {
        let sidecar = Self::start();
        put(&sidecar.file(), text);
        eventually("it is in maintenance", || sidecar.state()["enabled"] == true);
        sidecar
    }

    /// The command, which must end in running `pitstop serve`, and log as text.
    pub fn spawn(directory: Arc<TempDir>, mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let shared = log.clone();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut log = shared.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut sidecar = Self { child, admin: unknown, traffic: unknown, log, directory };
        eventually("the sidecar serves", || {
            let log = sidecar.log();
            assert!(sidecar.child.try_wait().unwrap().is_none(), "it has ended: {log}");
            log.contains("is serving")
        });
        let log = sidecar.log();
        let address = |name: &str| {
            let start = log.find(name).unwrap() + name.len();
            log[start..].split_whitespace().next().unwrap().trim_matches(['"', ',']).parse().unwrap()
        };
        (sidecar.admin, sidecar.traffic) = (address("admin="), address("traffic="));
        sidecar
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until it has logged this. What is written first is not always read first.
    #[track_caller]
    pub fn logs(&self, said: &str) {
        eventually(&format!("it says {said:?}"), || self.log().contains(said));
    }

    /// The directory that the file is in.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// That directory, to share it.
    pub fn directory(&self) -> Arc<TempDir> {
        self.directory.clone()
    }

    /// The maintenance file.
    pub fn file(&self) -> PathBuf {
        self.path().join("MAINTENANCE")
    }

    /// Asks the admin listener.
    pub fn admin(&self, path: &str) -> Reply {
        get(self.admin, path, &[])
    }

    /// Asks the traffic listener.
    pub fn traffic(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        get(self.traffic, path, headers)
    }

    /// What `/maintenance` says.
    pub fn state(&self) -> serde_json::Value {
        serde_json::from_str(&self.admin("/maintenance").body).unwrap()
    }

    /// Whether it is in maintenance, with this reason.
    pub fn is_on(&self, reason: Option<&str>) -> bool {
        let state = self.state();
        state["enabled"] == true && state["reason"].as_str() == reason
    }

    /// Whether it is open.
    pub fn is_off(&self) -> bool {
        self.state()["enabled"] == false
    }

    /// The value of a metric, given as `/metrics` writes its name and labels.
    pub fn metric(&self, name: &str) -> f64 {
        let metrics = self.admin("/metrics").body;
        let line = metrics.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("no {name} in {metrics}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Runs a command of the program on the same file, asking this sidecar where it asks one.
    pub fn run(&self, arguments: &[&str]) -> Printed {
        let mut command = pitstop();
        command.args(arguments).args(["--admin-listen", &self.admin.to_string()]).current_dir(self.path());
        command.output().unwrap().into()
    }

    /// Sends it a signal, given by its name, such as `TERM`.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Waits for it to end, and gives its exit code.
    #[track_caller]
    pub fn ended(&mut self) -> Option<i32> {
        ended(&mut self.child).code()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer to a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    /// The value of a header; its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    /// Takes apart what came over a connection that is closed now.
    pub fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer in {text:?}"));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        Self { status, headers: lines.map(|line| header(line).unwrap()).collect(), body: body.to_owned() }
    }
}

/// A connection on which nothing waits for ever.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Sends a request as it is, and reads until the connection closes.
pub fn exchange(address: SocketAddr, request: &[u8]) -> Reply {
    let mut stream = connect(address);
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    Reply::parse(&answer)
}

/// `GET`, on a connection of its own.
pub fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Reply {
    request(address, "GET", path, headers)
}

/// A request without a body, on a connection of its own.
pub fn request(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    exchange(address, text.as_bytes())
}
