//! HAProxy, which checks the sidecar and the application, and has the sidecar as a backup.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Addresses, Front, Recipe, assert_shows_the_sidecars_refusal, filled};
use crate::fixture::{eventually, program};

const HAPROXY: Recipe = Recipe {
    set_up,
    check: Some(check),
    patience: 0,
    grpc: 200,
    lost: [(502, false); 2],
    asks_by_get: false,
    without_sidecar: 503,
};

fn set_up(directory: &Path, addresses: &Addresses) -> Command {
    let (application, traffic) = (addresses.application.to_string(), addresses.sidecar.traffic.to_string());
    let admin = format!("connect port {}", addresses.sidecar.admin.port());
    let bind = format!("bind {}", addresses.proxy);
    let replaced =
        [("app:3000", &*application), ("app:8503", &traffic), ("connect port 9503", &admin), ("bind :80", &bind)];
    fs::write(directory.join("haproxy.cfg"), filled("haproxy/haproxy.cfg", &replaced)).unwrap();
    let mut command = haproxy(directory);
    command.arg("-db");
    command
}

fn haproxy(directory: &Path) -> Command {
    let mut command = program("haproxy");
    command.arg("-f").arg(directory.join("haproxy.cfg"));
    command
}

fn check(directory: &Path) -> Command {
    let mut command = haproxy(directory);
    command.arg("-c");
    command
}

#[test]
fn it_shows_the_sidecars_refusal() {
    assert_shows_the_sidecars_refusal(&HAPROXY);
}

/// After the first check there is no other.
fn checked_once(directory: &Path, addresses: &Addresses) -> Command {
    let command = set_up(directory, addresses);
    let file = directory.join("haproxy.cfg");
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(" inter 1s "));
    fs::write(file, text.replace(" inter 1s ", " inter 1h ")).unwrap();
    command
}

#[test]
fn who_finds_first_that_the_application_is_gone_is_told_so() {
    let mut front = Front::start(&Recipe { set_up: checked_once, ..HAPROXY });
    front.opens();
    let checks = "pitstop_checks_total{name=\"ping\",status=\"success\",type=\"readyz\"}";
    eventually("it has been checked", || front.sidecar().admin("/metrics").body.contains(checks));
    front.application = None;
    let reply = front.post("/", &[], "a=b");
    assert_eq!((reply.status, &*reply.body), (503, "Temporarily unavailable\n"));
    assert_eq!(front.get("/", &[]).body, "Temporarily unavailable\n");
}

#[test]
fn the_check_finds_it_out_too() {
    let mut front = Front::start(&HAPROXY);
    front.opens();
    front.application = None;
    eventually("the server is down", || front.proxy.stderr().contains("Server application/app is DOWN"));
    front.refuses("Temporarily unavailable");
}
