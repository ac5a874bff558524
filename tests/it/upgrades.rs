//! WebSockets through the gate: a real server and a real client, PyPI's websockets in target/test-venv.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::application::{Application, Client, Message};
use crate::fixture::{DEADLINE, Printed, Sidecar, eventually};

/// Sends back what it is sent. Prints its port, and how each connection has ended.
const SERVER: &str = r#"
import asyncio, websockets

async def echo(connection):
    try:
        async for message in connection:
            await connection.send(message)
    except websockets.ConnectionClosedError:
        pass
    print("closed", connection.close_code, connection.close_reason, flush=True)

async def main():
    async with websockets.serve(echo, "127.0.0.1", 0, max_size=2 ** 21) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()

asyncio.run(main())
"#;

/// Says something, and whatever else is to happen.
fn client(script: &str) -> String {
    let lines: String = script.lines().map(|line| format!("        {line}\n")).collect();
    format!(
        "import asyncio, os, sys, websockets\n\
         async def main():\n\
         \x20   async with websockets.connect(sys.argv[1], max_size=2 ** 21) as connection:\n{lines}\
         asyncio.run(main())\n"
    )
}

fn python(script: &str) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv/bin/python"));
    command.args(["-c", script]);
    command
}

/// A server behind a gate.
struct Gate {
    sidecar: Sidecar,
    server: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Gate {
    fn with(flags: &[&str]) -> Self {
        let mut server = python(SERVER).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut said = BufReader::new(server.stdout.take().unwrap());
        let mut port = String::new();
        said.read_line(&mut port).unwrap();
        let upstream = format!("http://127.0.0.1:{}", port.trim());
        let sidecar = Sidecar::with(|command| _ = command.args(["--upstream", &upstream]).args(flags));
        Self { sidecar, server, said }
    }

    fn client(&self, script: &str) -> Command {
        let mut command = python(&client(script));
        command.arg(format!("ws://{}/chat", self.sidecar.traffic));
        command
    }

    /// The next line that the server prints.
    fn said(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn messages_pings_and_close_codes_pass() {
    let mut gate = Gate::with(&[]);
    let script = "large = 'x' * 2 ** 20\n\
                  await connection.send(large)\n\
                  assert await connection.recv() == large\n\
                  await connection.send(b'binary')\n\
                  assert await connection.recv() == b'binary'\n\
                  await (await connection.ping())\n\
                  await connection.close(4001, 'enough')\n\
                  print(connection.close_code)";
    let printed: Printed = gate.client(script).output().unwrap().into();
    assert_eq!((printed.code, printed.stdout.as_str()), (Some(0), "4001\n"), "{}", printed.stderr);
    assert_eq!(gate.said(), "closed 4001 enough");
    eventually("it is over", || gate.sidecar.metric("pitstop_requests_in_flight") == 0.0);
    assert_eq!(gate.sidecar.metric("pitstop_requests_total{outcome=\"forwarded\"}"), 1.0);
}

#[test]
fn an_open_connection_is_busy_until_it_is_cut() {
    let mut gate = Gate::with(&["--drain-timeout", "5s"]);
    let script = "await connection.send('here')\n\
                  print(await connection.recv(), flush=True)\n\
                  try: await connection.recv()\n\
                  except websockets.ConnectionClosedError: print('cut')";
    let mut client = gate.client(script).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(client.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!((line.as_str(), gate.sidecar.metric("pitstop_requests_in_flight")), ("here\n", 1.0));

    let busy = gate.sidecar.run(&["maintenance-mode", "Updating", "--wait=0"]);
    assert!(busy.stderr.contains("1 request that the application is at work on"), "{}", busy.stderr);
    let wait = gate.sidecar.run(&["maintenance-mode", "Updating", &format!("--wait={}s", DEADLINE.as_secs())]);
    assert_eq!(wait.code, Some(0), "{wait:?}");
    // It was cut (1006: without a closing frame, RFC 6455 §7.4.1), and the application has let go of it.
    assert_eq!(gate.said(), "closed 1006");
    assert_eq!(gate.sidecar.metric("pitstop_requests_in_flight"), 0.0);
    line.clear();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "cut\n");
    assert!(client.wait().unwrap().success());
    assert_eq!(gate.sidecar.metric("pitstop_requests_total{outcome=\"cut\"}"), 1.0);
}

#[test]
fn none_is_opened_in_maintenance() {
    let gate = Gate::with(&[]);
    fs::write(gate.sidecar.file(), "Updating").unwrap();
    eventually("it is in maintenance", || gate.sidecar.is_on(Some("Updating")));
    let printed: Printed = gate.client("pass").output().unwrap().into();
    assert!(printed.stderr.contains("HTTP 503"), "{}", printed.stderr);
}

#[test]
fn a_switch_that_nobody_has_asked_for_is_none() {
    for (asked, answered) in [
        ("", "websocket"),
        ("Connection: upgrade\r\nUpgrade: websocket\r\n", "other"),
        ("Upgrade: websocket\r\n", "websocket"),
    ] {
        let application = Application::new(move |visitor| {
            visitor.request();
            visitor.write(format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: {answered}\r\n\r\n"
            ));
            visitor.bytes(1);
        });
        let gate = application.gate();
        let mut client = Client::of(&gate);
        let answer = client.ask(format!("GET / HTTP/1.1\r\nHost: shop\r\n{asked}\r\n"));
        assert_eq!(answer.status(), 502, "{asked:?}, {answered}");
        gate.logs("switches to a protocol that it was not asked for");
        assert_eq!(gate.metric("pitstop_upstream_errors_total{cause=\"protocol\"}"), 1.0);
    }
}

const SWITCH: &str = "GET /socket HTTP/1.1\r\nHost: shop\r\nConnection: upgrade\r\nUpgrade: own\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: own\r\n\r\n";

/// A client after a switch of protocols.
fn switched(gate: &Sidecar) -> Client {
    let mut client = Client::of(gate);
    client.send(SWITCH);
    assert_eq!(Message::head(&mut client.0).unwrap().status(), 101);
    client
}

#[test]
fn either_direction_ends_by_itself() {
    let application = Application::new(|visitor| {
        visitor.request();
        visitor.write(SWITCHED);
        // Until the client has ended its direction.
        assert_eq!(visitor.bytes(100), b"hello");
        visitor.write("bye");
    });
    let gate = application.gate();
    let mut client = switched(&gate);
    client.send("hello");
    client.0.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = String::new();
    client.0.read_to_string(&mut said).unwrap();
    assert_eq!(said, "bye");
    eventually("it is over", || gate.metric("pitstop_requests_in_flight") == 0.0);
}

#[test]
fn who_leaves_is_heard_of() {
    let application = Application::new(|visitor| {
        visitor.request();
        visitor.write(SWITCHED);
        // It says nothing of its own.
        visitor.bytes(1);
    });
    let gate = application.gate();
    let client = switched(&gate);
    eventually("it is at work", || gate.metric("pitstop_requests_in_flight") == 1.0);
    drop(client);
    eventually("the application has heard of it", || gate.metric("pitstop_requests_in_flight") == 0.0);

    // And the other way round: an application that has ended is not waited for, whatever its client does.
    let application = Application::new(|visitor| {
        visitor.request();
        visitor.write(SWITCHED);
        visitor.close_half();
        visitor.bytes(1);
    });
    let gate = application.gate();
    let mut client = switched(&gate);
    eventually("it is over", || gate.metric("pitstop_requests_in_flight") == 0.0);
    let mut said = String::new();
    client.0.read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
}

#[test]
fn a_request_that_is_not_complete_keeps_nobody_waiting() {
    for flags in [["--drain-timeout", "300ms"], ["--upstream-timeout", "300ms"]] {
        let application = Application::new(|visitor| {
            visitor.head();
            visitor.write(SWITCHED);
            visitor.bytes(1);
        });
        let gate = application.gate_with(&flags);
        let mut client = Client::of(&gate);
        client.send(SWITCH.replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\n"));
        eventually("it is at work", || gate.metric("pitstop_requests_in_flight") == 1.0);
        let status = if flags[0] == "--drain-timeout" {
            fs::write(gate.file(), "Updating").unwrap();
            503
        } else {
            // It is the client that the switch waits for.
            408
        };
        assert_eq!(client.answer().status(), status);
        eventually("it is over", || gate.metric("pitstop_requests_in_flight") == 0.0);
    }
}

#[test]
fn http_2_is_not_switched_to() {
    let application = Application::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let gate = application.gate();
    for protocols in ["h2c", "own, h2c", "H2C", "own,h2"] {
        let answer = Client::of(&gate).ask(format!(
            "GET / HTTP/1.1\r\nHost: shop\r\nConnection: upgrade\r\nUpgrade: {protocols}\r\nHTTP2-Settings: AA\r\n\r\n"
        ));
        assert_eq!(answer.status(), 200);
    }
    for asked in application.asked() {
        let message = asked.message;
        assert_eq!((message.header("upgrade"), message.header("http2-settings")), (None, None));
    }
}
