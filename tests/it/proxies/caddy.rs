//! Caddy, which asks the sidecar.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{
    Addresses, CLIENTS_WISHES, Recipe, assert_asks_for_little, assert_refuses_from_the_start,
    assert_shows_the_sidecars_refusal, filled, venv_program,
};
use crate::fixture::Printed;
use crate::manifests::root;

const CADDY: Recipe = Recipe {
    set_up,
    check: Some(check),
    patience: 300_000,
    grpc: 503,
    lost: [(502, false), (503, true)],
    asks_by_get: false,
    without_sidecar: 502,
};

fn set_up(directory: &Path, addresses: &Addresses) -> Command {
    let (application, sidecar) = (addresses.application.to_string(), &addresses.sidecar);
    let (traffic, admin) = (sidecar.traffic.to_string(), sidecar.admin.to_string());
    let site = format!("\nhttp://:{} {{\n\tbind 127.0.0.1\n", addresses.proxy.port());
    let replaced = [("app:3000", &*application), ("app:8503", &traffic), ("app:9503", &admin), ("\n:80 {\n", &site)];
    fs::write(directory.join("Caddyfile"), filled("caddy/Caddyfile", &replaced)).unwrap();
    caddy(directory, "run")
}

fn caddy(directory: &Path, verb: &str) -> Command {
    let mut command = Command::new(venv_program("bin/caddy"));
    command.args([verb, "--config"]).arg(directory.join("Caddyfile"));
    // What it keeps, and where it is administered.
    command.env("HOME", directory).env("XDG_DATA_HOME", directory).env("XDG_CONFIG_HOME", directory);
    command.env("CADDY_ADMIN", format!("unix/{}", directory.join("admin.sock").display()));
    command
}

fn check(directory: &Path) -> Command {
    caddy(directory, "validate")
}

#[test]
fn it_shows_the_sidecars_refusal() {
    assert_shows_the_sidecars_refusal(&CADDY);
}

#[test]
fn the_recipe_is_formatted() {
    let recipe = root().join("deploy/proxies/caddy/Caddyfile");
    let printed: Printed = Command::new(venv_program("bin/caddy")).arg("fmt").arg(&recipe).output().unwrap().into();
    assert_eq!(printed.stdout, fs::read_to_string(recipe).unwrap());
}

#[test]
fn it_refuses_from_the_start() {
    assert_refuses_from_the_start(&CADDY);
}

#[test]
fn it_asks_for_little() {
    assert_asks_for_little(&CADDY, &CLIENTS_WISHES);
}
