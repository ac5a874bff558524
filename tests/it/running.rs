//! The program in a directory: run to its end, or while the test goes on; as another user, or with other mounts.

use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use tempfile::{TempDir, tempdir};

use crate::fixture::{Printed, behind, ended, eventually, pitstop, pitstop_at, signal};
use crate::kernel::wake_ups;

/// A command that runs. Killed on drop.
pub struct Running {
    pub child: Child,
    pub stdin: Option<ChildStdin>,
    stdout: Stream,
    stderr: Stream,
}

/// What has come over a pipe so far.
struct Stream {
    text: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Stream {
    fn read(mut pipe: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let shared = text.clone();
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                shared.lock().unwrap().extend_from_slice(&buffer[..length]);
            }
        });
        Self { text, reader: Some(reader) }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned()
    }

    fn all(&mut self) -> String {
        self.reader.take().map(JoinHandle::join);
        self.so_far()
    }
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        Self { child, stdin, stdout: Stream::read(stdout.unwrap()), stderr: Stream::read(stderr.unwrap()) }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn stdout(&self) -> String {
        self.stdout.so_far()
    }

    pub fn stderr(&self) -> String {
        self.stderr.so_far()
    }

    /// Sends it a signal, given by its name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    #[track_caller]
    pub fn runs(&mut self) {
        let status = self.child.try_wait().unwrap();
        assert!(status.is_none(), "it has ended ({status:?}): {}{}", self.stdout(), self.stderr());
    }

    /// Shows that it waits: it goes to sleep another twenty times, and does not end.
    #[track_caller]
    pub fn keeps_asking(&mut self) {
        let before = wake_ups(self.pid());
        eventually("it asks again and again", || {
            self.runs();
            wake_ups(self.pid()) >= before + 20
        });
    }

    /// Waits for it to end.
    #[track_caller]
    pub fn status(&mut self) -> ExitStatus {
        ended(&mut self.child)
    }

    /// Waits for it to end, and gives all that it has printed.
    #[track_caller]
    pub fn ended(&mut self) -> Printed {
        self.stdin = None;
        let status = self.status();
        assert_eq!(status.signal(), None, "{}", self.stderr());
        Printed { code: status.code(), stdout: self.stdout.all(), stderr: self.stderr.all() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory, and the program in it.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn run(&self, arguments: &[&str]) -> Printed {
        run_in(self.path(), arguments)
    }

    pub fn maintenance_mode(&self, arguments: &[&str]) -> Printed {
        self.run(&[&["maintenance-mode"], arguments].concat())
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path().join(name), text).unwrap();
    }

    pub fn text(&self) -> String {
        fs::read_to_string(self.path().join("MAINTENANCE")).unwrap()
    }

    /// All that is in the directory.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

pub fn done(stdout: &str) -> Printed {
    Printed { code: Some(0), stdout: stdout.to_owned(), stderr: String::new() }
}

pub fn failed(code: i32, stderr: &str) -> Printed {
    Printed { code: Some(code), stdout: String::new(), stderr: stderr.to_owned() }
}

/// The program in a directory, with these arguments.
pub fn pitstop_in(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = pitstop();
    command.args(arguments).current_dir(directory);
    command
}

/// Runs it to its end.
pub fn run_in(directory: &Path, arguments: &[&str]) -> Printed {
    pitstop_in(directory, arguments).output().unwrap().into()
}

/// The same after a shell script has changed the mounts that it sees; nobody else sees that. Needs root.
pub fn mounted(directory: &Path, mounts: &str, arguments: &[&str]) -> Printed {
    let script = format!("set -e; {mounts}; exec \"$@\"");
    let mut command = pitstop_in(directory, arguments);
    behind(&["unshare", "--mount", "sh", "-c", &script, "sh"], &mut command);
    command.output().unwrap().into()
}

/// The same as another user, and with an umask. Needs root. The program is copied to where that user may read it.
pub fn user(directory: &Path, uid: u32, umask: &str, arguments: &[&str]) -> Command {
    let copy = directory.join("pitstop");
    if !copy.exists() {
        let installed = run_in(directory, &["install", "."]);
        assert_eq!(installed.code, Some(0), "{}", installed.stderr);
    }
    let uid = uid.to_string();
    let script = format!("umask {umask}; exec \"$@\"");
    let mut command = pitstop_at(copy);
    command.args(arguments).current_dir(directory);
    behind(&["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups", "--"], &mut command);
    behind(&["sh", "-c", &script, "sh"], &mut command);
    command
}
