//! A Prometheus and an Alertmanager of a test's own.
//!
//! Needs Debian's prometheus and prometheus-alertmanager.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use tempfile::TempDir;

use crate::fixture::{Reply, eventually, exchange, program};

/// A Prometheus.
pub struct Prometheus {
    server: Server,
    directory: TempDir,
}

impl Prometheus {
    /// One with this configuration.
    pub fn start(config: &str) -> Self {
        Self::beside(tempfile::tempdir().unwrap(), config)
    }

    /// One whose configuration names other files of this directory.
    pub fn beside(directory: TempDir, config: &str) -> Self {
        let file = directory.path().join("prometheus.yml");
        fs::write(&file, config).unwrap();
        let mut command = program("prometheus");
        command.arg("--config.file").arg(file).arg("--storage.tsdb.path").arg(directory.path().join("data"));
        command.arg("--web.listen-address=127.0.0.1:0");
        Self { server: Server::start(command), directory }
    }

    /// The directory that its configuration is in.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// What its API says at a path below `/api/v1/`.
    pub fn api(&self, path: &str) -> serde_json::Value {
        self.server.json(&format!("/api/v1/{path}"))
    }

    /// What a query results in now.
    pub fn query(&self, query: &str) -> serde_json::Value {
        let encoded = percent_encoding::utf8_percent_encode(query, percent_encoding::NON_ALPHANUMERIC);
        self.api(&format!("query?query={encoded}"))
    }

    /// The value of the first sample of that.
    pub fn value(&self, query: &str) -> Option<String> {
        self.query(query)["data"]["result"][0]["value"][1].as_str().map(str::to_owned)
    }
}

/// An Alertmanager.
pub struct Alertmanager {
    server: Server,
    _directory: TempDir,
}

impl Alertmanager {
    /// One with this configuration, and alone.
    pub fn start(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("alertmanager.yml");
        fs::write(&file, config).unwrap();
        let mut command = program("prometheus-alertmanager");
        command.arg("--config.file").arg(file).arg("--storage.path").arg(directory.path().join("data"));
        command.args(["--web.listen-address=127.0.0.1:0", "--cluster.listen-address="]);
        Self { server: Server::start(command), _directory: directory }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// All alerts that it knows.
    pub fn alerts(&self) -> Vec<serde_json::Value> {
        self.server.json("/api/v2/alerts").as_array().unwrap().clone()
    }
}

/// A server that says in its log where it listens, as those of the Prometheus family do. It ends with the test.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut log = Vec::new();
        let line = lines.find(|line| {
            log.push(line.clone());
            line.contains("Listening on")
        });
        let line = line.unwrap_or_else(|| panic!("{command:?} does not start: {log:#?}"));
        // Nobody may be stopped by a log that nobody reads.
        thread::spawn(move || lines.for_each(drop));
        let address = line.rsplit_once("address=").unwrap().1.parse().unwrap();
        let server = Self { child, address };
        eventually("it is ready", || server.get("/-/ready").status == 200);
        server
    }

    /// By HTTP/1.0, so that no answer comes in chunks.
    fn get(&self, path: &str) -> Reply {
        exchange(self.address, format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.address).as_bytes())
    }

    fn json(&self, path: &str) -> serde_json::Value {
        let reply = self.get(path);
        serde_json::from_str(&reply.body).unwrap_or_else(|error| panic!("{path}: {error}: {}", reply.body))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
