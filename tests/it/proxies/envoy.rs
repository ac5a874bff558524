//! Envoy, which checks the sidecar, and has it as a lower priority.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{
    Addresses, Front, REASON, Recipe, assert_refuses_from_the_start, assert_shows_the_sidecars_refusal, filled,
    venv_program,
};
use crate::fixture::{Sidecar, eventually};

const ENVOY: Recipe = Recipe {
    set_up,
    check: Some(check),
    patience: 0,
    grpc: 200,
    lost: [(503, false); 2],
    asks_by_get: false,
    without_sidecar: 503,
};

fn set_up(directory: &Path, addresses: &Addresses) -> Command {
    let at = |port: u16| format!("address: 127.0.0.1, port_value: {port}");
    let (application, sidecar) = (at(addresses.application.port()), &addresses.sidecar);
    let (traffic, listen) = (at(sidecar.traffic.port()), at(addresses.proxy.port()));
    let admin = format!("{{port_value: {}}}", sidecar.admin.port());
    let replaced = [
        ("address: app, port_value: 3000", &*application),
        ("address: app, port_value: 8503", &traffic),
        ("{port_value: 9503}", &admin),
        ("address: \"::\", ipv4_compat: true, port_value: 80", &listen),
    ];
    fs::write(directory.join("envoy.yaml"), filled("envoy/envoy.yaml", &replaced)).unwrap();
    let mut command = envoy(directory);
    command.args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warn"]);
    command
}

/// The program itself: what is in `bin` is Python's.
fn envoy(directory: &Path) -> Command {
    let mut command = Command::new(venv_program("bin/python"));
    command.args(["-m", "envoy._main", "-c"]).arg(directory.join("envoy.yaml"));
    command
}

fn check(directory: &Path) -> Command {
    let mut command = envoy(directory);
    command.args(["--mode", "validate"]);
    command
}

#[test]
fn it_shows_the_sidecars_refusal() {
    assert_shows_the_sidecars_refusal(&ENVOY);
}

#[test]
fn it_refuses_from_the_start() {
    assert_refuses_from_the_start(&ENVOY);
}

/// An endpoint for each further instance; the application is one and the same.
fn with_others(directory: &Path, addresses: &Addresses) -> Command {
    let command = set_up(directory, addresses);
    let file = directory.join("envoy.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let (_, rest) = text.split_once("            lb_endpoints:\n").unwrap();
    let (one, _) = rest.split_once("          - priority: 1").unwrap();
    let admin = |sidecar: &Sidecar| format!("health_check_config: {{port_value: {}}}", sidecar.admin.port());
    let other = |sidecar| one.replace(&admin(&addresses.sidecar), &admin(sidecar));
    let others: String = addresses.others.iter().map(other).collect();
    fs::write(file, text.replace(one, &(one.to_owned() + &others))).unwrap();
    command
}

#[test]
fn one_instance_that_is_ready_gets_all_requests() {
    let others = [(); 4].map(|()| Sidecar::in_maintenance("Updating")).into();
    let front = Front::beside(&Recipe { set_up: with_others, ..ENVOY }, Sidecar::start(), others);
    front.opens();
    for _ in 0..100 {
        assert_eq!(front.get("/", &[]).body, "the application: GET / ");
    }
    front.enable();
    front.refuses(REASON);
}

/// Nothing but the application.
fn without_the_sidecars_endpoint(directory: &Path, addresses: &Addresses) -> Command {
    let command = set_up(directory, addresses);
    let file = directory.join("envoy.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let (before, _) = text.split_once("          - priority: 1").unwrap();
    fs::write(file, before).unwrap();
    command
}

#[test]
fn it_never_panics() {
    let recipe = Recipe { set_up: without_the_sidecars_endpoint, ..ENVOY };
    let front = Front::start(&recipe);
    front.opens();
    front.enable();
    eventually("it is closed", || front.get("/", &[]).status == 503);
    let asked = front.asked();
    for _ in 0..20 {
        assert_eq!(front.get("/", &[]).status, 503);
    }
    assert_eq!(front.asked(), asked);
}
