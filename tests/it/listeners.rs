//! Both listeners: what a client may use up, what becomes of clients that behave badly, and where is listened.
//!
//! Needs curl, strace, prlimit, unshare and nsenter (Debian: curl, strace, util-linux, iproute2), and root.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::application::Application;
use crate::fixture::{Printed, Reply, Sidecar, behind, connect, eventually, exchange, pitstop, program};
use crate::kernel::{Thread, looks};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// `pitstop serve` under a program that becomes it, such as `prlimit`.
fn under(wrapper: &[&str], listen: &str) -> Sidecar {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let mut command = pitstop();
    command.args(["serve", "--listen", listen, "--admin-listen", listen]).current_dir(directory.path());
    behind(wrapper, &mut command);
    Sidecar::spawn(directory, command)
}

fn with(flags: &[&str]) -> Sidecar {
    Sidecar::with(|command| _ = command.args(flags))
}

/// Runs a program that the test cannot do without.
#[track_caller]
fn run(name: &str, arguments: &[&str]) -> Output {
    program(name).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Reads one answer of a connection that stays open; `None` if it is closed instead.
fn answer(stream: &mut TcpStream) -> Option<Reply> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => bytes.push(byte[0]),
            Ok(_) => return None,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("no answer, and not closed: {error}"),
        }
    }
    let mut reply = Reply::parse(&bytes);
    let mut body = vec![0; reply.header("content-length").map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    reply.body = String::from_utf8(body).unwrap();
    Some(reply)
}

/// Asks on a connection that stays open.
fn ask(stream: &mut TcpStream) -> Option<u16> {
    stream.write_all(REQUEST).ok()?;
    answer(stream).map(|reply| reply.status)
}

/// Waits until the other end closes the connection, which says nothing before.
#[track_caller]
fn assert_closes(stream: &mut TcpStream) {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => assert_eq!(String::from_utf8_lossy(&bytes), ""),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

/// What the other end has sent, or `None` if that is nothing. An empty piece is the end of the connection.
fn peek(stream: &TcpStream) -> Option<usize> {
    stream.set_nonblocking(true).unwrap();
    let result = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    match result {
        Ok(length) => Some(length),
        Err(error) => (error.kind() != ErrorKind::WouldBlock).then_some(0),
    }
}

/// Whether the other end has closed the connection by now.
fn is_closed(stream: &TcpStream) -> bool {
    peek(stream) == Some(0)
}

/// Waits for the response to half a head.
fn assert_timeout(stream: &mut TcpStream) {
    let mut bytes = Vec::new();
    // The rest of the head may have been on its way: a reset takes away nothing that was read.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.starts_with("HTTP/1.1 408 Request Timeout\r\n") && text.contains("connection: close\r\n"), "{text}");
}

/// Lets the time to send a header pass, as the sidecar measures it.
fn let_header_timeout_pass(sidecar: &Sidecar) {
    assert_closes(&mut connect(sidecar.traffic));
}

/// Repeats an attempt that shows something only if it takes less than `limit`.
fn within<T>(limit: Duration, mut attempt: impl FnMut() -> T) -> T {
    for _ in 0..10 {
        let start = Instant::now();
        let outcome = attempt();
        if start.elapsed() < limit {
            return outcome;
        }
    }
    panic!("this machine is too slow: ten attempts took more than {limit:?} each");
}

#[test]
fn headers_have_a_size_limit() {
    for (flags, limit) in [(&[][..], 16384), (&["--max-header-size", "32768"][..], 32768)] {
        let sidecar = with(flags);
        for (address, answered) in [(sidecar.traffic, 503), (sidecar.admin, 200)] {
            let head = "GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Long: ";
            for (size, status) in [(limit, answered), (limit + 1, 431), (limit + 100_000, 431)] {
                let padding = "x".repeat(size - head.len() - 4);
                let reply = exchange(address, format!("{head}{padding}\r\n\r\n").as_bytes());
                assert_eq!(reply.status, status, "{size} bytes of at most {limit} to {address}");
            }
        }
        for (size, status) in [(limit - 1000, "503"), (limit + 1000, "431")] {
            let header = format!("X-Long: {}", "x".repeat(size));
            let url = format!("http://{}/", sidecar.traffic);
            let arguments =
                ["--http2-prior-knowledge", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", &header, &url];
            assert_eq!(String::from_utf8(run("curl", &arguments).stdout).unwrap(), status, "{size} bytes by HTTP/2");
        }
    }
}

#[test]
fn a_uri_has_one_too() {
    let request = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", "x".repeat(70_000));
    assert_eq!(exchange(with(&[]).traffic, request.as_bytes()).status, 431);
    assert_eq!(exchange(with(&["--max-header-size", "131072"]).traffic, request.as_bytes()).status, 503);
}

#[test]
fn what_is_not_http_is_a_bad_request() {
    let sidecar = Sidecar::start();
    for garbage in
        [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 is TLS\r\n\r\n"[..], b"nonsense\r\n\r\n", b"\xff\xfe\r\n\r\n"]
    {
        for address in [sidecar.traffic, sidecar.admin] {
            assert_eq!(exchange(address, garbage).status, 400, "{garbage:?}");
        }
    }
}

#[test]
fn clients_that_leave_early_do_no_harm() {
    let sidecar = with(&["--max-connections", "4"]);
    for address in [sidecar.traffic, sidecar.admin] {
        for sent in
            [&b""[..], b"G", b"GET / HTTP/1.1\r\nHos", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"]
        {
            for reset in [false, true] {
                for _ in 0..8 {
                    let mut stream = connect(address);
                    stream.write_all(sent).unwrap();
                    // A socket that is closed with no time to linger is reset.
                    if reset {
                        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                    }
                }
            }
        }
    }
    // More of them than may be connected at once: had one been kept, nobody would be served now.
    assert_eq!(sidecar.traffic("/", &[]).status, 503);
    assert_eq!(sidecar.admin("/livez").status, 200);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let sidecar = Sidecar::start();
    let mut stream = connect(sidecar.admin);
    let paths = ["/livez", "/nothing", "/readyz/ping", "/livez/nothing"];
    for path in paths {
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    }
    let statuses = paths.map(|_| answer(&mut stream).unwrap().status);
    assert_eq!(statuses, [200, 404, 200, 404]);

    let mut stream = connect(sidecar.traffic);
    stream.write_all(&REQUEST.repeat(50)).unwrap();
    for _ in 0..50 {
        assert_eq!(answer(&mut stream).unwrap().status, 503);
    }
    // One that ends within the next request is answered, too.
    stream.write_all(&[REQUEST, b"GET / HT"].concat()).unwrap();
    assert_eq!(answer(&mut stream).unwrap().status, 503);
}

#[test]
fn who_has_said_all_still_gets_the_answer() {
    let sidecar = Sidecar::start();
    let post = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody";
    for (address, request, status) in
        [(sidecar.traffic, REQUEST, 503), (sidecar.traffic, post, 503), (sidecar.admin, REQUEST, 404)]
    {
        for _ in 0..50 {
            let mut stream = connect(address);
            stream.write_all(request).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            assert_eq!(Reply::parse(&bytes).status, status);
        }
    }
}

#[test]
fn a_header_has_to_come_in_time() {
    let sidecar = with(&["--header-timeout", "300ms", "--idle-timeout", "1h"]);
    let patient = with(&["--header-timeout", "1h", "--idle-timeout", "300ms"]);
    let mut waiting = connect(patient.traffic);
    waiting.write_all(&REQUEST[..20]).unwrap();
    for address in [sidecar.traffic, sidecar.admin] {
        for sent in [&b""[..], b"G", b"GET / HTTP/1.1\r\nHost: loc", b"PRI * HTTP/2.0\r\n", Http2::PREFACE] {
            let start = Instant::now();
            let mut stream = connect(address);
            stream.write_all(sent).unwrap();
            match sent {
                b"G" | b"GET / HTTP/1.1\r\nHost: loc" => assert_timeout(&mut stream),
                Http2::PREFACE => {
                    // An HTTP/2 connection is greeted before it is closed.
                    let mut bytes = Vec::new();
                    let _ = stream.read_to_end(&mut bytes);
                    assert!(!bytes.is_empty());
                }
                // A client that has sent nothing would take a response for that to its next request.
                _ => assert_closes(&mut stream),
            }
            assert!(start.elapsed() >= Duration::from_millis(300));
        }
        // Each byte comes soon after the last, but that earns no more time.
        let mut stream = connect(address);
        stream.write_all(&REQUEST[..16]).unwrap();
        eventually("a header that trickles is given up", || {
            // One after the other they would reach the size limit only after the deadline of this test.
            stream.write_all(b"x").is_err() || peek(&stream).is_some()
        });
        assert_timeout(&mut stream);
    }
    waiting.write_all(&REQUEST[20..]).unwrap();
    assert_eq!(answer(&mut waiting).unwrap().status, 503);
}

#[test]
fn so_has_the_second_header_of_a_connection() {
    let sidecar = with(&["--header-timeout", "300ms", "--idle-timeout", "1h"]);
    let mut stream = connect(sidecar.traffic);
    assert_eq!(ask(&mut stream), Some(503));
    stream.write_all(b"GET / HT").unwrap();
    assert_timeout(&mut stream);
}

#[test]
fn an_idle_connection_is_closed_after_its_own_time() {
    let idle = Duration::from_secs(1);
    let sidecar = with(&["--header-timeout", "1h", "--idle-timeout", "1s"]);
    let mut quiet = connect(sidecar.admin);
    assert_eq!(ask(&mut quiet), Some(404));
    assert_closes(&mut quiet);

    // One that goes on asking is kept meanwhile, and long after.
    let kept = (0..10).any(|_| {
        let (mut quiet, mut busy) = (connect(sidecar.traffic), connect(sidecar.traffic));
        assert_eq!(ask(&mut quiet), Some(503));
        let (mut last, mut pause) = (Instant::now(), Duration::ZERO);
        let (mut alive, mut quiet_for) = (true, 0);
        eventually("the quiet one is closed, three times", || {
            alive = alive && ask(&mut busy) == Some(503);
            pause = pause.max(last.elapsed());
            last = Instant::now();
            if is_closed(&quiet) {
                quiet = connect(sidecar.traffic);
                assert_eq!(ask(&mut quiet), Some(503));
                quiet_for += 1;
            }
            quiet_for == 3
        });
        // Did this machine pause for so long that the busy one was idle, too?
        assert!(alive || pause > idle / 2, "a busy connection was closed");
        alive
    });
    assert!(kept, "this machine is too slow");
}

#[test]
fn between_requests_only_the_idle_timeout_counts() {
    let sidecar = with(&["--header-timeout", "300ms", "--idle-timeout", "1h"]);
    let mut stream = connect(sidecar.traffic);
    let mut http2 = Http2::open(sidecar.traffic);
    for _ in 0..3 {
        assert_eq!(ask(&mut stream), Some(503));
        http2.ask();
        // What comes between two requests of HTTP/2 need not be a header.
        http2.ping();
        let_header_timeout_pass(&sidecar);
    }
}

#[test]
fn a_body_may_take_longer_than_a_header() {
    let sidecar = with(&["--header-timeout", "300ms", "--idle-timeout", "350ms"]);
    // For 5 s it is read, less some for the machine.
    within(Duration::from_secs(4), || {
        let mut stream = connect(sidecar.traffic);
        stream.write_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n").unwrap();
        assert_eq!(answer(&mut stream).unwrap().status, 503);
        for _ in 0..3 {
            let_header_timeout_pass(&sidecar);
            let _ = stream.write_all(b"x");
        }
        ask(&mut stream)
    })
    .map_or_else(|| panic!("the connection was closed"), |status| assert_eq!(status, 503));
}

#[test]
fn at_the_limit_the_connection_that_has_waited_longest_for_a_request_is_closed() {
    let sidecar = with(&["--max-connections", "3"]);
    let mut idle = connect(sidecar.traffic);
    assert_eq!(ask(&mut idle), Some(503));
    let mut half = connect(sidecar.traffic);
    half.write_all(b"GET / HTTP/1.1\r\nHost: loc").unwrap();
    let mut silent = connect(sidecar.traffic);
    // The third connection is open once it is answered, and by then waits for a shorter time than the other two.
    assert_eq!(ask(&mut silent), Some(503));
    let evicted = || sidecar.metric("pitstop_connections_evicted_total{listener=\"traffic\"}");
    assert_eq!(evicted(), 0.0);
    assert_eq!(ask(&mut connect(sidecar.traffic)), Some(503));
    assert_closes(&mut idle);
    eventually("it is counted", || evicted() == 1.0);
    // That one is closed by its client, so the next one needs no room. The one after does.
    let mut fourth = connect(sidecar.traffic);
    assert_eq!(ask(&mut fourth), Some(503));
    let mut fifth = connect(sidecar.traffic);
    assert_eq!(ask(&mut fifth), Some(503));
    assert_closes(&mut half);
    assert_eq!((ask(&mut silent), ask(&mut fourth), ask(&mut fifth)), (Some(503), Some(503), Some(503)));
    let said = "all 3 connections are open: closing those that have waited longest for a request";
    assert_eq!(sidecar.log().matches(said).count(), 1, "{}", sidecar.log());
}

#[test]
fn half_heads_keep_nobody_out_of_either_port() {
    let sidecar = with(&["--max-connections", "100"]);
    for (address, limit) in [(sidecar.admin, 256), (sidecar.traffic, 100)] {
        let mut flood = Vec::new();
        for round in 0..10 {
            for _ in 0..limit / 5 {
                let mut stream = connect(address);
                // The early ones are closed meanwhile.
                let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: yyyy");
                flood.push(stream);
            }
            let start = Instant::now();
            assert!(matches!(exchange(address, b"GET /livez HTTP/1.0\r\n\r\n").status, 200 | 503), "{round}");
            // Far below the 10 s after which a half head would have to give way by itself.
            assert!(start.elapsed() < Duration::from_secs(5), "{round}");
        }
        assert!(flood.iter().any(is_closed));
    }
}

#[test]
fn a_connection_with_a_request_is_never_closed_to_make_room() {
    let (let_go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let application = Application::new(move |visitor| {
        while visitor.request().is_some() {
            let _ = wait.lock().unwrap().recv();
            visitor.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let gate = application.gate_with(&["--max-connections", "2"]);
    let mut slow: Vec<_> = (0..2).map(|_| connect(gate.traffic)).collect();
    slow.iter_mut().for_each(|stream| stream.write_all(REQUEST).unwrap());
    eventually("both are at work", || gate.metric("pitstop_requests_in_flight") == 2.0);
    // The third waits until one of them is answered, which is then the one that waits for a request.
    let mut third = connect(gate.traffic);
    third.write_all(REQUEST).unwrap();
    assert_eq!(gate.metric("pitstop_requests_in_flight"), 2.0);
    (0..3).for_each(|_| let_go.send(()).unwrap());
    for stream in slow.iter_mut().chain([&mut third]) {
        assert_eq!(answer(stream).unwrap().body, "ok");
    }
    assert_eq!(gate.metric("pitstop_connections_evicted_total{listener=\"traffic\"}"), 1.0);
}

#[test]
fn few_file_descriptors_mean_few_connections() {
    let mut sidecar = under(&["prlimit", "--nofile=350:350"], "127.0.0.1:0");
    sidecar.logs("only 30 connections are accepted at once: the limit on open files");
    let mut taken: Vec<_> = (0..30).map(|_| connect(sidecar.traffic)).collect();
    for stream in &mut taken {
        assert_eq!(ask(stream), Some(503));
    }
    let mut waiting: Vec<_> = (0..60).map(|_| connect(sidecar.traffic)).collect();
    for stream in &mut waiting {
        stream.write_all(REQUEST).unwrap();
    }
    // Full on that side, it still answers here, sees the file, and does not spin.
    let traffic = Thread::of(&sidecar, "traffic");
    assert_sleeps(&sidecar, &traffic);
    for _ in 0..20 {
        assert_eq!(sidecar.admin("/readyz").status, 200);
    }
    std::fs::write(sidecar.file(), "").unwrap();
    eventually("the file is seen", || sidecar.is_on(None));
    // Those that have been answered make room for the others.
    for mut stream in waiting {
        assert_eq!(answer(&mut stream).unwrap().status, 503);
    }
    drop(taken);
    assert!(sidecar.child.try_wait().unwrap().is_none());
}

#[test]
fn no_file_descriptor_at_all_is_survived() {
    let mut sidecar = Sidecar::start();
    // It says that it serves before the thread has what it needs to begin.
    assert_eq!(sidecar.traffic("/", &[]).status, 503);
    let limit = |files: &str| {
        let pid = sidecar.child.id().to_string();
        assert!(run("prlimit", &["--pid", &pid, &format!("--nofile={files}")]).status.success());
    };
    // The limit is on the highest number, so of those that are open none is lost.
    limit("3:20000");
    let traffic = Thread::of(&sidecar, "traffic");
    let mut waiting: Vec<_> = (0..20).map(|_| connect(sidecar.traffic)).collect();
    for stream in &mut waiting {
        stream.write_all(REQUEST).unwrap();
    }
    eventually("it says so", || sidecar.log().contains("cannot accept connections"));
    assert_sleeps(&sidecar, &traffic);
    limit("1024:20000");
    for stream in &mut waiting {
        assert_eq!(answer(stream).unwrap().status, 503);
    }
    eventually("it is ready", || sidecar.admin("/readyz").body == "ok");
    assert_eq!(sidecar.log().matches("cannot accept connections").count(), 1, "{}", sidecar.log());
    assert!(sidecar.child.try_wait().unwrap().is_none());
}

/// Shows that a thread leaves the processor alone, while three polls of the file pass.
#[track_caller]
fn assert_sleeps(sidecar: &Sidecar, thread: &Thread) {
    let (before, ticks, start) = (looks(sidecar), thread.ticks(), Instant::now());
    eventually("three polls", || looks(sidecar) >= before + 3);
    // A tick is a hundredth of a second.
    let (used, most) = (thread.ticks() - ticks, start.elapsed().as_millis() as u64 / 10 / 10);
    assert!(used <= most, "{used} ticks of {}", most * 10);
}

#[test]
fn probes_are_answered_while_clients_flood_the_other_side() {
    let sidecar = with(&["--max-connections", "200"]);
    let (enough, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let flood: Vec<_> = (0..4)
        .map(|_| {
            let (mut stream, enough, requests) = (connect(sidecar.traffic), enough.clone(), requests.clone());
            let traffic = sidecar.traffic;
            assert_eq!(ask(&mut stream), Some(503));
            thread::spawn(move || {
                while !enough.load(Relaxed) {
                    // Between two rounds it may have to make room for the crowd.
                    let _ = stream.write_all(&REQUEST.repeat(20));
                    for _ in 0..20 {
                        let Some(reply) = answer(&mut stream) else {
                            stream = connect(traffic);
                            break;
                        };
                        assert_eq!(reply.status, 503);
                        requests.fetch_add(1, Relaxed);
                    }
                }
            })
        })
        .collect();
    // All places are taken, and as many again wait for one.
    let crowd: Vec<_> = (0..400).map(|_| connect(sidecar.traffic)).collect();
    for _ in 0..50 {
        let before = requests.load(Relaxed);
        assert_eq!(sidecar.admin("/readyz").body, "ok");
        eventually("the flood goes on", || requests.load(Relaxed) > before);
    }
    enough.store(true, Relaxed);
    for client in flood {
        client.join().unwrap();
    }
    drop(crowd);
}

#[test]
fn probes_are_answered_while_the_other_side_hangs() {
    let sidecar = Sidecar::start();
    let traffic = Thread::of(&sidecar, "traffic");
    // strace stops the thread each time that it is about to wait for an event.
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace");
    let mut strace = program("strace")
        .args(["-p", &traffic.id().to_string(), "-e", "trace=epoll_wait,recvfrom"])
        .args(["-e", "inject=recvfrom:delay_enter=600s", "-o"])
        .arg(&trace)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("strace is attached", || traffic.tracer() == strace.id());
    let mut stuck = connect(sidecar.traffic);
    stuck.write_all(REQUEST).unwrap();
    eventually("the thread hangs", || std::fs::read_to_string(&trace).is_ok_and(|text| text.contains("recvfrom")));
    for _ in 0..20 {
        assert_eq!(sidecar.admin("/readyz").body, "ok");
    }
    assert!(!is_closed(&stuck));
    strace.kill().unwrap();
    strace.wait().unwrap();
    assert_eq!(answer(&mut stuck).unwrap().status, 503);
}

#[test]
fn every_address_of_ipv6_and_ipv4() {
    let sidecar = under(&["env"], "[::]:0");
    for port in [sidecar.traffic.port(), sidecar.admin.port()] {
        for address in [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))] {
            assert_ne!(exchange(address, b"GET / HTTP/1.0\r\n\r\n").status, 0, "{address}");
        }
    }
}

#[test]
fn a_kernel_without_ipv6_gets_ipv4() {
    // Both listeners begin with a socket of IPv6: the first and the third that the process opens.
    let sidecar = under(
        &["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "inject=socket:error=EAFNOSUPPORT:when=1+2"],
        "[::]:0",
    );
    for address in [sidecar.traffic, sidecar.admin] {
        assert_eq!(address.ip(), Ipv4Addr::UNSPECIFIED);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()));
        assert_ne!(exchange(address, b"GET / HTTP/1.0\r\n\r\n").status, 0);
    }
    assert_eq!(sidecar.run(&["probe"]), Printed { code: Some(0), stdout: "ok\n".into(), stderr: String::new() });
}

#[test]
fn a_host_with_ipv6_switched_off_gets_ipv4() {
    let script = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 && ip link set lo up && exec \"$@\"";
    for inside in ["curl", "ip", "sysctl"] {
        program(inside);
    }
    let sidecar = under(&["unshare", "--net", "sh", "-c", script, "sh"], "[::]:0");
    let pid = sidecar.child.id().to_string();
    let url = format!("http://127.0.0.1:{}/", sidecar.traffic.port());
    let curl = run("nsenter", &["-t", &pid, "--net", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", &url]);
    assert_eq!(String::from_utf8(curl.stdout).unwrap(), "503");
    let program = pitstop();
    let program = program.get_program().to_str().unwrap();
    let probe = run("nsenter", &["-t", &pid, "--net", program, "probe", "--admin-listen", &sidecar.admin.to_string()]);
    assert_eq!(Printed::from(probe).code, Some(0));
    // Asked for an address of IPv6, it does not listen elsewhere.
    let serve = ["-t", &pid, "--net", program, "serve", "--admin-listen", "[::1]:0"];
    let line = "pitstop: cannot listen at --admin-listen [::1]:0: Cannot assign requested address (os error 99)\n";
    assert_eq!(
        Printed::from(run("nsenter", &serve)),
        Printed { code: Some(1), stdout: String::new(), stderr: line.into() }
    );
}

#[test]
fn a_port_in_use_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (flag, other) in [("--listen", "--admin-listen"), ("--admin-listen", "--listen")] {
        let arguments = ["serve", flag, &taken, other, "127.0.0.1:0"];
        let output: Printed = pitstop().args(arguments).current_dir(directory.path()).output().unwrap().into();
        let line = format!("pitstop: {flag} {taken} is in use: stop what listens there, or choose another address\n");
        assert_eq!(output, Printed { code: Some(1), stdout: String::new(), stderr: line });
    }
}

#[test]
fn http2_without_tls() {
    let sidecar = Sidecar::start();
    let url = format!("http://{}/", sidecar.traffic);
    let curl = run("curl", &["-s", "--http2-prior-knowledge", "-w", "%{http_code} %{http_version}", &url]);
    assert_eq!(String::from_utf8(curl.stdout).unwrap(), "Temporarily unavailable\n503 2");

    // Many streams at once, on one connection; more than are taken at a time.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(sidecar.traffic).await.unwrap();
        let client = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (sender, connection) = client.await.unwrap();
        tokio::spawn(connection);
        let requests: Vec<_> = (0..500)
            .map(|number| {
                let mut sender = sender.clone();
                tokio::spawn(async move {
                    let uri = format!("http://localhost/{number}");
                    let request = hyper::Request::get(uri).body(Empty::<bytes::Bytes>::new()).unwrap();
                    let (head, body) = sender.send_request(request).await.unwrap().into_parts();
                    (head.status.as_u16(), body.collect().await.unwrap().to_bytes())
                })
            })
            .collect();
        for request in requests {
            let (status, body) = request.await.unwrap();
            assert_eq!((status, &*body), (503, &b"Temporarily unavailable\n"[..]));
        }
    });
    assert_eq!(sidecar.metric("pitstop_requests_total{outcome=\"refused\"}"), 501.0);
}

#[test]
fn an_idle_http2_connection_makes_room_for_another() {
    let sidecar = with(&["--memory-limit", "32Mi"]);
    let mut connections: Vec<_> = (0..64).map(|_| Http2::open(sidecar.traffic)).collect();
    for connection in &mut connections {
        connection.ask();
    }
    Http2::open(sidecar.traffic).ask();
    eventually("the one that has waited longest is closed", || is_closed_after_reading(&mut connections[0].stream));
    connections[1].ask();
    sidecar.logs(
        "as many connections speak HTTP/2 as memory allows: closing those that have waited longest for a request",
    );
}

#[test]
fn clients_cannot_fill_the_log() {
    let sidecar = Sidecar::start();
    let mut connection = Http2::open(sidecar.traffic);
    // Requests that are reset at once (CVE-2023-44487), until the connection is closed for it.
    let frames: Vec<u8> = (0..1000u32)
        .flat_map(|number| {
            let stream = (2 * number + 1).to_be_bytes();
            let request = [&[0, 0, 6, 1, 5][..], &stream, b"\x82\x86\x84\x41\x01a"].concat();
            [request, [&[0, 0, 4, 3, 0][..], &stream, &[0, 0, 0, 8]].concat()].concat()
        })
        .collect();
    let _ = connection.stream.write_all(&frames);
    let _ = connection.stream.read_to_end(&mut Vec::new());
    assert_eq!(ask(&mut connect(sidecar.traffic)), Some(503));
    assert!(!sidecar.log().contains("WARN"), "{}", sidecar.log());
}

/// Whether the other end has closed the connection, after whatever it has sent.
fn is_closed_after_reading(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    stream.read_to_end(&mut Vec::new()).is_ok()
}

#[test]
fn http2_that_comes_byte_by_byte() {
    let sidecar = Sidecar::start();
    let mut stream = connect(sidecar.traffic);
    stream.set_nodelay(true).unwrap();
    for byte in Http2::PREFACE {
        stream.write_all(&[*byte]).unwrap();
    }
    Http2 { stream, next: 1 }.ask();
}

/// As much of an HTTP/2 client as it takes to choose what is sent, and when.
struct Http2 {
    stream: TcpStream,
    next: u32,
}

impl Http2 {
    /// The connection preface, with settings that change nothing (RFC 9113 §3.4).
    const PREFACE: &'static [u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

    fn open(address: SocketAddr) -> Self {
        let mut stream = connect(address);
        stream.write_all(Self::PREFACE).unwrap();
        Self { stream, next: 1 }
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let frame = [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat();
        self.stream.write_all(&frame).unwrap();
    }

    /// Reads frames up to one of this kind with these flags.
    #[track_caller]
    fn wait_for(&mut self, kind: u8, flags: u8) {
        loop {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).expect("the connection was closed");
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            self.stream.read_exact(&mut payload).unwrap();
            assert_ne!(head[3], 7, "the connection is going away");
            if head[3] == kind && head[4] & flags == flags {
                return;
            }
        }
    }

    /// `GET /`, up to the end of the answer's body.
    #[track_caller]
    fn ask(&mut self) {
        let stream = self.next;
        self.next += 2;
        // `:method: GET`, `:scheme: http`, `:path: /`, all of HPACK's static table, and `:authority: a`.
        self.send(1, 5, stream, b"\x82\x86\x84\x41\x01a");
        self.wait_for(0, 1);
    }

    #[track_caller]
    fn ping(&mut self) {
        self.send(6, 0, 0, b"anything");
        self.wait_for(6, 1);
    }
}

/// A control group with a memory limit, of either version (cgroups(7)). Needs root.
struct MemoryLimit(PathBuf);

impl MemoryLimit {
    fn new(bytes: u64) -> Self {
        let version1 = Path::new("/sys/fs/cgroup/memory");
        let (root, file) = match version1.is_dir() {
            true => (version1, "memory.limit_in_bytes"),
            false => (Path::new("/sys/fs/cgroup"), "memory.max"),
        };
        let group = root.join(format!("pitstop-{}", std::process::id()));
        fs::create_dir(&group).unwrap();
        fs::write(group.join(file), bytes.to_string()).unwrap();
        Self(group)
    }

    /// A sidecar in this group.
    fn sidecar(&self) -> Sidecar {
        let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.0.display());
        under(&["sh", "-c", &enter, "sh"], "127.0.0.1:0")
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn no_client_gets_a_sidecar_killed_for_its_memory() {
    // The limit that the charts and kustomize set. Without a bound, these took 60 and 70 MiB.
    let limit = MemoryLimit::new(32 * 1024 * 1024);
    let mut sidecar = limit.sidecar();
    let said = "only 365 connections are accepted at once: the memory limit (--memory-limit, or the container's) does not allow more";
    sidecar.logs(said);
    let half = [&b"GET / HTTP/1.1\r\nHost: a\r\nX: "[..], &[b'y'; 8000]].concat();
    let mut heads: Vec<TcpStream> = Vec::new();
    for round in 0..2600 {
        let mut stream = connect(sidecar.traffic);
        let _ = stream.write_all(&half);
        heads.push(stream);
        if round % 100 == 0 {
            assert_eq!(ask(&mut connect(sidecar.traffic)), Some(503));
            assert_eq!(sidecar.admin("/livez").body, "ok");
            // Those that were closed here need no file descriptor any more.
            heads.retain(|stream| !is_closed(stream));
        }
    }
    drop(heads);
    // HTTP/2 requests whose responses may not be sent: the client's window for them is 0 (RFC 9113 §6.9.2).
    let mut closed_windows: Vec<_> = (0..40).map(|_| Http2::open(sidecar.traffic)).collect();
    for connection in &mut closed_windows {
        connection.send(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
        for stream in (1..200).step_by(2) {
            connection.send(1, 5, stream, b"\x82\x86\x84\x41\x01a");
        }
    }
    // Requests beyond the limit are reset: RST_STREAM.
    for connection in closed_windows.iter_mut().rev().take(20) {
        connection.wait_for(3, 0);
    }
    sidecar.logs("memory allows no more HTTP/2 requests at once: refusing them");
    assert!(sidecar.metric("pitstop_streams_refused_total{listener=\"traffic\"}") >= 20.0);
    assert_eq!(ask(&mut connect(sidecar.traffic)), Some(503));
    assert_eq!(sidecar.admin("/livez").body, "ok");
    assert!(sidecar.child.try_wait().unwrap().is_none(), "{}", sidecar.log());
}
