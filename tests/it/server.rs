//! Real servers as applications behind the gate: each is a process of its own, at a port that is free.
//!
//! Needs curl, nginx, node and python3 (Debian: curl, nginx-light, nodejs, python3), gunicorn and uvicorn in target/test-venv,
//! and waitress with fietsboek, where tests/run puts them.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::fixture::{Printed, Sidecar, eventually, program};
use crate::manifests::root;
use crate::running::Running;

/// A server that ends with the test.
pub struct Server {
    pub process: Running,
    pub address: SocketAddr,
    _directory: Option<TempDir>,
}

impl Server {
    /// Starts one that says where it listens, as a URL.
    #[track_caller]
    pub fn start(command: Command) -> Self {
        let mut process = Running::start(command);
        let mut address = None;
        eventually("the server listens", || {
            process.runs();
            let said = process.stderr() + &process.stdout();
            address = said.split("http://").skip(1).find_map(|rest| {
                let (address, _) = rest.split_once(['/', ' ', '\n', ')'])?;
                address.parse().ok()
            });
            address.is_some()
        });
        Self { process, address: address.unwrap(), _directory: None }
    }

    /// A program of Python's, with this application.
    fn python(python: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(python);
        command
            .args(arguments)
            .current_dir(applications())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PYTHONUNBUFFERED", "1");
        Self::start(command)
    }

    /// gunicorn, with these flags.
    pub fn gunicorn(flags: &[&str]) -> Self {
        let arguments = ["-m", "gunicorn", "--bind=127.0.0.1:0", "echo:wsgi"];
        Self::python(&test_venv(), &[&arguments[..], flags].concat())
    }

    /// uvicorn, with this application.
    pub fn uvicorn(application: &str) -> Self {
        Self::python(&test_venv(), &["-m", "uvicorn", "--port=0", application])
    }

    /// waitress.
    pub fn waitress() -> Self {
        Self::python(&fietsboek().join("bin/python"), &["-m", "waitress", "--listen=127.0.0.1:0", "echo:wsgi"])
    }

    /// Node.js, which closes connections that were idle for so many milliseconds: its own default is 5000.
    pub fn node(keep_alive: u32) -> Self {
        Self::start(Self::node_at(0, keep_alive))
    }

    /// The same, to be started at a port.
    pub fn node_at(port: u16, keep_alive: u32) -> Command {
        let mut command = program("node");
        command.arg(applications().join("echo.js")).env("NODE_KEEP_ALIVE", keep_alive.to_string());
        command.env("NODE_PORT", port.to_string());
        command
    }

    /// The file server that comes with Python.
    pub fn files(directory: &Path) -> Self {
        let mut command = program("python3");
        command
            .args(["-u", "-m", "http.server", "--protocol=HTTP/1.1", "--bind=127.0.0.1", "0"])
            .current_dir(directory);
        Self::start(command)
    }

    /// nginx, which serves the files of this directory, and the rest of its settings.
    pub fn nginx(files: &Path, settings: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // It cannot choose a port, and says nothing.
        loop {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let configuration = format!(
                "daemon off; master_process off; pid nginx.pid; error_log stderr; events {{ }}
                http {{
                    access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
                    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
                    server {{ listen {address}; root {}; {settings} }}
                }}",
                files.display()
            );
            fs::write(directory.path().join("nginx.conf"), configuration).unwrap();
            let mut command = program("nginx");
            command.arg("-p").arg(directory.path()).args(["-e", "stderr", "-c", "nginx.conf"]);
            let mut process = Running::start(command);
            let mut taken = false;
            eventually("nginx listens", || {
                taken = process.child.try_wait().unwrap().is_some();
                taken || TcpStream::connect(address).is_ok()
            });
            let said = process.stderr();
            match taken {
                false => return Self { process, address, _directory: Some(directory) },
                true => assert!(said.contains("in use"), "{said}"),
            }
        }
    }

    /// `pitstop serve` in front of it.
    pub fn gate(&self) -> Sidecar {
        self.gate_with(&[])
    }

    /// The same with further flags.
    pub fn gate_with(&self, flags: &[&str]) -> Sidecar {
        let upstream = format!("http://{}", self.address);
        Sidecar::with(|command| _ = command.args(["--upstream", &upstream]).args(flags))
    }
}

/// Where the applications are.
pub fn applications() -> PathBuf {
    root().join("tests/servers")
}

/// The Python that has what tests need.
pub fn test_venv() -> PathBuf {
    root().join("target/test-venv/bin/python")
}

/// Where fietsboek is installed.
pub fn fietsboek() -> PathBuf {
    let directory =
        std::env::var_os("PITSTOP_TEST_FIETSBOEK").map_or_else(|| root().join("target/fietsboek"), PathBuf::from);
    assert!(
        directory.join("bin/fietsctl").exists(),
        "fietsboek is needed: python3 -m venv target/fietsboek && \
         target/fietsboek/bin/pip install -c tests/fietsboek-constraints.txt fietsboek==0.11.0"
    );
    directory
}

/// curl, which hangs nowhere for ever.
pub fn curl() -> Command {
    let mut command = program("curl");
    command.args(["--silent", "--show-error", "--max-time", "120", "--noproxy", "*"]);
    command
}

/// Runs it; what it prints is text.
#[track_caller]
pub fn curled(command: &mut Command) -> String {
    let printed: Printed = command.output().unwrap().into();
    assert_eq!(printed.code, Some(0), "{command:?}: {}", printed.stderr);
    printed.stdout
}
