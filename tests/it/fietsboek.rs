//! pitstop beside a real fietsboek 0.11.0, whose maintenance mode it speaks: one file, and either program may switch it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use tempfile::TempDir;

use crate::fixture::{Printed, Reply, Sidecar, eventually, get, pitstop, program};
use crate::server::{self, Server};

/// An instance with its database, and with the sidecar that shares its `data_dir`.
pub struct Fietsboek {
    programs: PathBuf,
    directory: TempDir,
    pub sidecar: Sidecar,
}

/// A process that ends with the test.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Fietsboek {
    pub fn new() -> Self {
        let programs = server::fietsboek().join("bin");
        let (directory, data) = (tempfile::tempdir().unwrap(), Arc::new(tempfile::tempdir().unwrap()));
        let settings = SETTINGS
            .replace("{instance}", directory.path().to_str().unwrap())
            .replace("{data}", data.path().to_str().unwrap());
        fs::write(directory.path().join("fietsboek.ini"), settings).unwrap();
        let file = data.path().join("MAINTENANCE");
        let sidecar = Sidecar::sharing(data, |command| _ = command.arg("--file").arg(file));
        let fietsboek = Self { programs, directory, sidecar };
        let update = fietsboek.run("fietsupdate", &["update", "-f"]);
        assert_eq!(update.code, Some(0), "{}", update.stderr);
        fietsboek
    }

    /// One of its programs; all of them read the same settings.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.current_dir(self.directory.path());
        command
    }

    pub fn run(&self, name: &str, arguments: &[&str]) -> Printed {
        self.program(name).args(arguments).args(["-c", "fietsboek.ini"]).output().unwrap().into()
    }

    /// `fietsctl maintenance-mode`, which has to succeed; what it says.
    pub fn fietsctl(&self, arguments: &[&str]) -> String {
        let printed = self.run("fietsctl", &[&["maintenance-mode"], arguments].concat());
        assert_eq!(printed.code, Some(0), "{}", printed.stderr);
        printed.stdout
    }

    /// `pitstop maintenance-mode`, the same way.
    pub fn pitstop(&self, arguments: &[&str]) -> String {
        let printed = self.sidecar.run(&[&["maintenance-mode"], arguments].concat());
        assert_eq!(printed.code, Some(0), "{}", printed.stderr);
        printed.stdout
    }

    /// A job under `pitstop run`, with these flags of that.
    fn job(&self, flags: &[&str], name: &str) -> Printed {
        let mut command = pitstop();
        command.arg("--file").arg(self.sidecar.file()).arg("run").args(flags).arg("--");
        command.arg(self.programs.join(name)).args(["-c", "fietsboek.ini"]).current_dir(self.directory.path());
        command.output().unwrap().into()
    }

    /// The website.
    pub fn serve(&self) -> Server {
        let mut command = self.program("pserve");
        command.arg("fietsboek.ini");
        Server::start(command)
    }

    /// A Redis of its own, at a socket in its directory.
    fn redis(&self) -> (Service, PathBuf) {
        let socket = self.directory.path().join("redis.sock");
        let mut command = program("redis-server");
        command.args(["--port", "0", "--save", "", "--unixsocket"]).arg(&socket);
        command.current_dir(self.directory.path()).stdout(Stdio::null());
        let service = Service(command.spawn().unwrap());
        eventually("redis is there", || UnixStream::connect(&socket).is_ok());
        (service, socket)
    }

    #[track_caller]
    fn assert_closed(&self, website: SocketAddr, reason: &str) {
        let failed = format!("[-]maintenance failed: {reason}\n");
        assert!(self.sidecar.admin("/readyz").body.contains(&failed), "{}", self.sidecar.admin("/readyz").body);
        assert_eq!(self.sidecar.traffic("/", &[]).body, format!("{reason}\n"));
        let said = |accept: &str| {
            let Reply { status, body, .. } = get(website, "/", &[("Accept", accept)]);
            assert_eq!(status, 503, "{body}");
            body
        };
        let (text, page) = (said("text/plain"), said("text/html"));
        assert!(text.contains(&format!("in maintenance mode: {reason}\n")), "{text}");
        assert!(page.contains(&format!("in maintenance mode: {}\n", escaped(reason))), "{page}");
    }

    #[track_caller]
    fn assert_open(&self, website: SocketAddr) {
        assert_eq!(self.sidecar.admin("/readyz").body, "ok");
        assert_eq!(get(website, "/", &[]).status, 200);
    }
}

/// As fietsboek writes text into its page.
fn escaped(text: &str) -> String {
    let escape = |c: char| match c {
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '&' => "&amp;".to_owned(),
        '"' => "&quot;".to_owned(),
        c if c.is_ascii() => c.to_string(),
        c => format!("&#{};", u32::from(c)),
    };
    text.chars().map(escape).collect()
}

/// What redis answers to a command, on one line.
fn ask(socket: &Path, command: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap().to_owned()
}

const SETTINGS: &str = "\
[app:main]
use = egg:fietsboek
session_key = of-a-test
sqlalchemy.url = sqlite:///{instance}/fietsboek.sqlite
redis.url = unix://{instance}/redis.sock
fietsboek.data_dir = {data}
email.from = noreply@localhost
email.smtp_url = debug://localhost:1025
pyramid.default_locale_name = en
available_locales = en de
retry.attempts = 3

[alembic]
script_location = fietsboek:alembic

[server:main]
use = egg:waitress#main
listen = 127.0.0.1:0

[loggers]
keys = root, fietsboek

[logger_root]
level = INFO
handlers = stderr

[logger_fietsboek]
level = INFO
handlers =
qualname = fietsboek

[handlers]
keys = stderr

[handler_stderr]
class = StreamHandler
args = (sys.stderr,)
formatter = plain

[formatters]
keys = plain

[formatter_plain]
format = %(name)s: %(message)s
";

#[test]
fn either_program_switches_it_for_both() {
    let fietsboek = Fietsboek::new();
    let server = fietsboek.serve();
    let (website, sidecar) = (server.address, &fietsboek.sidecar);
    fietsboek.assert_open(website);

    for reason in ["Updating the instance", "Größer & \"schöner\" <b>fett</b> ☃"] {
        let enabled = format!("Maintenance mode is enabled: {reason}\n");
        assert_eq!(fietsboek.fietsctl(&[reason]), "");
        eventually("the sidecar has seen it", || sidecar.is_on(Some(reason)));
        fietsboek.assert_closed(website, reason);
        assert_eq!(fietsboek.pitstop(&[]), enabled);

        assert_eq!(fietsboek.pitstop(&["--disable", "--wait"]), "Maintenance mode is disabled\n");
        fietsboek.assert_open(website);
        assert_eq!(fietsboek.fietsctl(&[]), "Maintenance mode is disabled\n");

        assert_eq!(fietsboek.pitstop(&[reason, "--wait"]), enabled);
        fietsboek.assert_closed(website, reason);
        assert_eq!(fietsboek.fietsctl(&[]), enabled);

        assert_eq!(fietsboek.fietsctl(&["--disable"]), "");
        eventually("the sidecar has seen it", || sidecar.is_off());
        fietsboek.assert_open(website);
        assert_eq!(fietsboek.pitstop(&[]), "Maintenance mode is disabled\n");
    }
}

#[test]
fn touch_and_rm_switch_it_for_both() {
    let fietsboek = Fietsboek::new();
    let server = fietsboek.serve();
    let (website, sidecar) = (server.address, &fietsboek.sidecar);

    File::create(sidecar.file()).unwrap();
    eventually("the sidecar has seen it", || sidecar.is_on(None));
    assert_eq!(sidecar.traffic("/", &[]).body, "Down for maintenance\n");
    let reply = get(website, "/static/nothing", &[]);
    assert_eq!((reply.status, reply.body.trim_end().ends_with("in maintenance mode:")), (503, true), "{}", reply.body);
    assert_eq!(fietsboek.pitstop(&[]), "Maintenance mode is enabled\n");
    assert_eq!(fietsboek.fietsctl(&[]), "Maintenance mode is enabled: \n");

    fs::remove_file(sidecar.file()).unwrap();
    eventually("the sidecar has seen it", || sidecar.is_off());
    fietsboek.assert_open(website);

    // What pitstop writes without a reason reads the same to fietsboek.
    assert_eq!(fietsboek.pitstop(&[""]), "Maintenance mode is enabled\n");
    assert_eq!(fietsboek.fietsctl(&[]), "Maintenance mode is enabled: \n");
}

#[test]
fn its_scheduled_job_is_guarded() {
    let fietsboek = Fietsboek::new();
    let (_service, redis) = fietsboek.redis();
    // The last thing that fietscron does.
    let has_run = || ask(&redis, "DEL last-cronjob") == ":1";

    let ran = fietsboek.job(&[], "fietscron");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{}", ran.stderr);
    assert!(ran.stderr.contains("Building track preview images"), "{}", ran.stderr);
    assert!(has_run());

    fietsboek.pitstop(&["Größer <b>"]);
    // It would say that it skips its tasks, had it been started.
    let program = fietsboek.programs.join("fietscron");
    let skipped = format!("Maintenance mode is enabled: Größer <b>; skipping {}\n", program.display());
    for (flags, code) in [(&[][..], 0), (&["--skip-code", "75"], 75), (&["--terminate"], 0)] {
        let expected = Printed { code: Some(code), stdout: String::new(), stderr: skipped.clone() };
        assert_eq!(fietsboek.job(flags, "fietscron"), expected);
    }
    let own = fietsboek.run("fietscron", &[]);
    assert_eq!((own.code, own.stdout.as_str()), (Some(0), ""));
    assert!(own.stderr.contains("Skipping cronjob tasks due to maintenance mode"), "{}", own.stderr);
    assert!(!has_run());

    assert_eq!(fietsboek.fietsctl(&["--disable"]), "");
    assert_eq!(fietsboek.job(&["--terminate"], "fietscron").code, Some(0));
    assert!(has_run());
}
