//! A cache in front of the gate, Varnish with its own rules: it never keeps a refusal, and has no part in how long
//! maintenance lasts.
//!
//! Needs varnishd (Debian: varnish).

use std::net::{SocketAddr, TcpListener};

use tempfile::TempDir;

use crate::fixture::{Reply, Sidecar, eventually, get, program, put, request};
use crate::running::Running;
use crate::server::Server;

/// Varnish, with no more settings than where its backend is.
struct Varnish {
    process: Running,
    address: SocketAddr,
    _directory: TempDir,
}

impl Varnish {
    fn before(sidecar: &Sidecar) -> Self {
        loop {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let directory = tempfile::tempdir().unwrap();
            let mut command = program("varnishd");
            // As whoever runs this: its own users could not read the directory.
            command.args(["-F", "-j", "none", "-s", "default,8m", "-p", "vcc_allow_inline_c=off", "-T", "none"]);
            command.arg("-n").arg(directory.path().join("work"));
            command.args(["-a", &address.to_string(), "-b", &sidecar.traffic.to_string()]);
            let mut process = Running::start(command);
            let mut taken = false;
            eventually("Varnish listens", || {
                taken = process.child.try_wait().unwrap().is_some();
                taken || std::net::TcpStream::connect(address).is_ok()
            });
            match taken {
                false => return Self { process, address, _directory: directory },
                true => assert!(process.stderr().contains("in use"), "{}", process.stderr()),
            }
        }
    }

    fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Reply {
        self.process.runs();
        get(self.address, path, headers)
    }
}

/// Whether it was answered without asking the backend.
fn from_cache(reply: &Reply) -> bool {
    // The request that it answers, and the one by which it was fetched.
    reply.header("x-varnish").unwrap().contains(' ')
}

#[test]
fn a_cache_keeps_no_refusal() {
    let server = Server::node(5000);
    let gate = server.gate();
    let mut cache = Varnish::before(&gate);
    let refused = || gate.metric("pitstop_requests_total{outcome=\"refused\"}");

    // It is a cache.
    eventually("a page is cached", || from_cache(&cache.get("/cached", &[])));

    put(&gate.file(), "Updating <it>");
    eventually("it is in maintenance", || gate.is_on(Some("Updating <it>")));
    // What was cached before is shown for as long as the application has allowed: nobody asks the gate.
    let page = cache.get("/cached", &[]);
    assert_eq!((page.status, from_cache(&page), refused()), (200, true, 0.0));
    // Whatever else is asked for is refused, and the gate is asked each time.
    let html = [("Accept", "text/html")];
    for number in 0..5 {
        for (headers, part) in [(&[][..], "Updating <it>\n"), (&html[..], "Updating &lt;it&gt;")] {
            let reply = cache.get("/page", headers);
            assert!(reply.status == 503 && reply.body.contains(part), "{reply:?}");
            assert!(!from_cache(&reply), "{reply:?}");
            let header = |name: &str| reply.header(name).map(str::to_owned);
            assert_eq!((header("cache-control"), header("retry-after")), (Some("no-store".into()), Some("60".into())));
        }
        assert_eq!(request(cache.address, "POST", "/page", &[("Content-Length", "0")]).status, 503);
        assert_eq!(refused(), f64::from(3 * (number + 1)));
    }
    // So a new reason is seen at once.
    put(&gate.file(), "Nearly done");
    eventually("it is taken up", || gate.is_on(Some("Nearly done")));
    assert_eq!(cache.get("/page", &[]).body, "Nearly done\n");

    // When it is over, the first request gets the application's page, and it is kept again.
    std::fs::remove_file(gate.file()).unwrap();
    eventually("it is over", || gate.is_off());
    let page = cache.get("/page", &[]);
    assert_eq!((page.status, from_cache(&page)), (200, false));
    eventually("it is cached again", || from_cache(&cache.get("/page", &[])));
}
