//! `/metrics`: what Prometheus is told, and that Prometheus understands it.
//!
//! Needs prometheus and promtool (Debian: prometheus).

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::fixture::{Printed, Sidecar, eventually, exchange, program, request};
use crate::prometheus::Prometheus;

const REFUSED: &str = "pitstop_requests_total{outcome=\"refused\"}";
const START: &str = "pitstop_maintenance_mode_start_timestamp_seconds";
const EXPECTED_END: &str = "pitstop_maintenance_mode_expected_end_timestamp_seconds";
const LAST_LOOK: &str = "pitstop_file_last_look_timestamp_seconds";

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// What `promtool check metrics` has to say.
fn promtool(metrics: &str) -> Printed {
    let mut command = program("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}

#[test]
fn promtool_has_nothing_to_say() {
    let sidecar = Sidecar::start();
    let silent = Printed { code: Some(0), stdout: String::new(), stderr: String::new() };
    assert_eq!(promtool(&sidecar.admin("/metrics").body), silent);
    for path in ["/readyz", "/livez", "/healthz"] {
        assert_eq!(sidecar.admin(path).status, 200);
    }
    assert_eq!(promtool(&sidecar.admin("/metrics").body), silent, "after probes");
    fs::write(sidecar.file(), "Wir \"aktualisieren\" \\ \n{x=\"y\"} 1\n\nUntil: 2036-01-01T00:00:00Z\n").unwrap();
    eventually("maintenance begins", || sidecar.metric("pitstop_maintenance_mode") == 1.0);
    assert_eq!((sidecar.admin("/readyz").status, sidecar.traffic("/", &[]).status), (503, 503));
    assert_eq!(promtool(&sidecar.admin("/metrics").body), silent, "in maintenance");
    fs::remove_file(sidecar.file()).unwrap();
    eventually("it is over", || sidecar.metric("pitstop_maintenance_mode") == 0.0);
    assert_eq!(promtool(&sidecar.admin("/metrics").body), silent, "after it");
    // It would have if there were anything.
    assert_ne!(promtool("# TYPE a_total gauge\na_total 1\n"), silent);
}

#[test]
fn every_metric_and_its_type() {
    let sidecar = Sidecar::start();
    sidecar.admin("/readyz");
    let reply = sidecar.admin("/metrics");
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4"));
    let types: Vec<_> = reply.body.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    assert_eq!(
        types,
        [
            "pitstop_build_info gauge",
            "pitstop_check gauge",
            "pitstop_checks_total counter",
            "pitstop_connections_evicted_total counter",
            "pitstop_file_errors_total counter",
            "pitstop_file_last_look_timestamp_seconds gauge",
            "pitstop_maintenance_mode gauge",
            "pitstop_maintenance_mode_changes_total counter",
            "pitstop_maintenance_mode_expected_end_timestamp_seconds gauge",
            "pitstop_maintenance_mode_start_timestamp_seconds gauge",
            "pitstop_requests_total counter",
            "pitstop_streams_refused_total counter",
            "process_cpu_seconds_total counter",
            "process_max_fds gauge",
            "process_open_fds gauge",
            "process_resident_memory_bytes gauge",
            "process_start_time_seconds gauge",
            "process_threads gauge",
            "process_virtual_memory_bytes gauge",
        ]
    );
}

#[test]
fn what_is_running() {
    let sidecar = Sidecar::start();
    let metrics = sidecar.admin("/metrics").body;
    let build = metrics.lines().find(|line| line.starts_with("pitstop_build_info")).unwrap();
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    assert!(build.contains(&version) && build.contains("revision=\"") && build.ends_with("} 1"), "{build}");

    // The connection that asks is one of them, and one that has just been closed may be another.
    eventually("as many files are open as the kernel lists", || {
        let files = fs::read_dir(format!("/proc/{}/fd", sidecar.child.id())).unwrap().count();
        (sidecar.metric("process_open_fds") - files as f64).abs() <= 3.0
    });
    let age = now() - sidecar.metric("process_start_time_seconds");
    assert!((-1.0..120.0).contains(&age), "{age}");
    assert!(sidecar.metric("process_resident_memory_bytes") > 1e6);
    assert!(sidecar.metric("process_max_fds") > 300.0);
}

#[test]
fn when_it_began_and_when_it_should_end() {
    let sidecar = Sidecar::start();
    assert_eq!((sidecar.metric(START), sidecar.metric(EXPECTED_END)), (0.0, 0.0));
    let enable = |text: &str, modified: f64| {
        // Complete when it appears, its time included.
        let draft = sidecar.path().join("draft");
        fs::write(&draft, text).unwrap();
        let time = UNIX_EPOCH + Duration::from_secs_f64(modified);
        fs::File::options().write(true).open(&draft).unwrap().set_modified(time).unwrap();
        fs::rename(&draft, sidecar.file()).unwrap();
    };
    // 2033-05-18T03:33:20Z is two thousand million.
    enable("Updating\n\nUntil: 2033-05-18T03:33:20Z\n", 1_600_000_000.5);
    eventually("it is on", || sidecar.metric("pitstop_maintenance_mode") == 1.0);
    assert_eq!((sidecar.metric(START), sidecar.metric(EXPECTED_END)), (1_600_000_000.5, 2e9));
    enable("Updating", 1_600_000_001.0);
    eventually("the end is not known any more", || sidecar.metric(EXPECTED_END) == 0.0);
    assert_eq!(sidecar.metric(START), 1_600_000_001.0);
    enable("A clock is wrong", 4e9);
    eventually("the reason is new", || sidecar.is_on(Some("A clock is wrong")));
    let start = sidecar.metric(START);
    assert!((now() - 60.0..=now()).contains(&start), "at most now: {start}");
    fs::remove_file(sidecar.file()).unwrap();
    eventually("it is off", || sidecar.is_off());
    assert_eq!((sidecar.metric(START), sidecar.metric(EXPECTED_END)), (0.0, 0.0));
}

#[test]
fn changes_are_counted() {
    let sidecar = Sidecar::start();
    let changes =
        || ["on", "off"].map(|to| sidecar.metric(&format!("pitstop_maintenance_mode_changes_total{{to=\"{to}\"}}")));
    assert_eq!(changes(), [0.0, 0.0]);
    for round in 1..=3 {
        fs::write(sidecar.file(), "").unwrap();
        eventually("it is on", || sidecar.is_on(None));
        assert_eq!(changes(), [f64::from(round), f64::from(round - 1)]);
        fs::write(sidecar.file(), "Why").unwrap();
        eventually("a reason is no change", || sidecar.is_on(Some("Why")));
        fs::remove_file(sidecar.file()).unwrap();
        eventually("it is off", || sidecar.is_off());
        assert_eq!(changes(), [f64::from(round); 2]);
    }
}

#[test]
fn whether_the_file_can_be_observed() {
    let sidecar = Sidecar::with(|command| _ = command.args(["--poll", "20ms"]));
    let errors = || sidecar.metric("pitstop_file_errors_total");
    let look = sidecar.metric(LAST_LOOK);
    assert!((now() - 60.0..=now()).contains(&look), "{look}");
    eventually("it looks again", || sidecar.metric(LAST_LOOK) > look);
    assert_eq!(errors(), 0.0);
    // A link to itself cannot be examined.
    std::os::unix::fs::symlink("MAINTENANCE", sidecar.file()).unwrap();
    eventually("a look fails", || errors() > 0.0);
    let (look, seen) = (sidecar.metric(LAST_LOOK), errors());
    eventually("and so do the next", || errors() > seen + 3.0);
    assert_eq!(sidecar.metric(LAST_LOOK), look);
    fs::remove_file(sidecar.file()).unwrap();
    eventually("it looks again", || sidecar.metric(LAST_LOOK) > look);
    // A directory cannot be read, and is there.
    let seen = errors();
    fs::create_dir(sidecar.file()).unwrap();
    eventually("a look fails", || errors() > seen && sidecar.is_on(None));
}

#[test]
fn refused_requests_are_counted_exactly() {
    let sidecar = Sidecar::start();
    assert_eq!(sidecar.metric(REFUSED), 0.0);
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PURGE"] {
        assert_eq!(request(sidecar.traffic, method, "/a?b", &[]).status, 503);
    }
    assert_eq!(sidecar.metric(REFUSED), 7.0);
    let pipelined =
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(4) + "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    exchange(sidecar.traffic, pipelined.as_bytes());
    assert_eq!(sidecar.metric(REFUSED), 12.0);
    fs::write(sidecar.file(), "").unwrap();
    eventually("it is on", || sidecar.is_on(None));
    assert_eq!(request(sidecar.traffic, "POST", "/", &[("content-type", "application/grpc")]).status, 200);
    assert_eq!(sidecar.metric(REFUSED), 13.0);
    // What is no request is not counted, and neither is what the other listener is asked.
    assert_eq!(exchange(sidecar.traffic, b"nonsense\r\n\r\n").status, 400);
    sidecar.admin("/readyz");
    assert_eq!(sidecar.metric(REFUSED), 13.0);
}

#[test]
fn checks_are_counted() {
    let sidecar = Sidecar::start();
    let checks = || -> BTreeMap<String, f64> {
        let metrics = sidecar.admin("/metrics").body;
        let lines = metrics.lines().filter(|line| line.starts_with("pitstop_check"));
        let sample = |line: &str| line.rsplit_once(' ').map(|(name, value)| (name.to_owned(), value.parse().unwrap()));
        lines.map(|line| sample(line).unwrap()).collect()
    };
    let expected = |results: &[(&str, &str, f64)], counts: &[(&str, &str, &str, f64)]| -> BTreeMap<String, f64> {
        let results = results
            .iter()
            .map(|(name, kind, value)| (format!("pitstop_check{{name=\"{name}\",type=\"{kind}\"}}"), *value));
        let counts = counts.iter().map(|(name, kind, status, value)| {
            (format!("pitstop_checks_total{{name=\"{name}\",status=\"{status}\",type=\"{kind}\"}}"), *value)
        });
        results.chain(counts).collect()
    };
    assert_eq!(checks(), expected(&[], &[]), "before anybody asks");

    for path in
        ["/readyz", "/readyz?verbose", "/readyz?exclude=shutdown", "/livez", "/livez", "/healthz", "/readyz/ping"]
    {
        assert_eq!(sidecar.admin(path).status, 200);
    }
    fs::write(sidecar.file(), "").unwrap();
    eventually("it is on", || sidecar.is_on(None));
    for path in ["/readyz", "/livez"] {
        sidecar.admin(path);
    }
    let results = [
        ("ping", "readyz", 1.0),
        ("maintenance-file", "readyz", 1.0),
        ("maintenance", "readyz", 0.0),
        ("shutdown", "readyz", 1.0),
        ("ping", "livez", 1.0),
        ("ping", "healthz", 1.0),
    ];
    let counts = [
        ("ping", "readyz", "success", 4.0),
        ("maintenance-file", "readyz", "success", 4.0),
        ("maintenance", "readyz", "success", 3.0),
        ("maintenance", "readyz", "error", 1.0),
        // It was excluded once.
        ("shutdown", "readyz", "success", 3.0),
        ("ping", "livez", "success", 3.0),
        ("ping", "healthz", "success", 1.0),
    ];
    assert_eq!(checks(), expected(&results, &counts));
}

#[test]
fn the_reason_is_in_no_label() {
    let sidecar = Sidecar::start();
    fs::write(sidecar.file(), "Xylophones\n\nUntil: 2036-01-01T00:00:00Z\n").unwrap();
    eventually("it is on", || sidecar.is_on(Some("Xylophones")));
    sidecar.admin("/readyz");
    sidecar.traffic("/Xylophones", &[("Accept", "Xylophones/json")]);
    assert!(!sidecar.admin("/metrics").body.contains("Xylophones"));
}

#[test]
fn prometheus_follows_maintenance_mode() {
    let sidecar = Sidecar::start();
    let prometheus = Prometheus::start(&format!(
        "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\n\
         scrape_configs: [{{job_name: pitstop, static_configs: [{{targets: ['{}']}}]}}]\n",
        sidecar.admin
    ));
    let mode = || prometheus.value("pitstop_maintenance_mode");
    eventually("it is off", || mode().as_deref() == Some("0"));
    fs::write(sidecar.file(), "Updating").unwrap();
    eventually("it is on", || mode().as_deref() == Some("1"));
    let start = prometheus.value("time() - pitstop_maintenance_mode_start_timestamp_seconds").unwrap();
    assert!((-1.0..60.0).contains(&start.parse::<f64>().unwrap()), "on for {start} s");
    fs::remove_file(sidecar.file()).unwrap();
    eventually("it is off again", || mode().as_deref() == Some("0"));
    eventually("both changes are counted", || {
        prometheus.value("sum(pitstop_maintenance_mode_changes_total)").as_deref() == Some("2")
    });
    assert_eq!(prometheus.value("up").as_deref(), Some("1"));
    assert_eq!(prometheus.value("count(process_start_time_seconds)").as_deref(), Some("1"));
}
