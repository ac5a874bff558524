//! Traefik, which asks the sidecar.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{
    Addresses, CLIENTS_WISHES, Recipe, assert_asks_for_little, assert_refuses_from_the_start,
    assert_shows_the_sidecars_refusal, filled, venv_program,
};

/// It has no check of its own: what it does not understand in its file, it leaves out all of it, and no test passes.
const TRAEFIK: Recipe = Recipe {
    set_up,
    check: None,
    patience: 0,
    grpc: 503,
    lost: [(503, true); 2],
    asks_by_get: true,
    without_sidecar: 500,
};

fn set_up(directory: &Path, addresses: &Addresses) -> Command {
    let (application, sidecar) = (addresses.application.to_string(), &addresses.sidecar);
    let (traffic, admin) = (sidecar.traffic.to_string(), sidecar.admin.to_string());
    let replaced = [("app:3000", &*application), ("app:8503", &traffic), ("app:9503", &admin)];
    let file = directory.join("pitstop.yaml");
    fs::write(&file, filled("traefik/pitstop.yaml", &replaced)).unwrap();
    let mut command = Command::new(venv_program("bin/traefik"));
    command.arg(format!("--providers.file.filename={}", file.display()));
    command.arg(format!("--entrypoints.web.address={}", addresses.proxy));
    command.args(["--global.checknewversion=false", "--global.sendanonymoususage=false"]).current_dir(directory);
    command
}

#[test]
fn it_shows_the_sidecars_refusal() {
    assert_shows_the_sidecars_refusal(&TRAEFIK);
}

#[test]
fn it_refuses_from_the_start() {
    assert_refuses_from_the_start(&TRAEFIK);
}

#[test]
fn it_asks_for_little() {
    assert_asks_for_little(&TRAEFIK, &CLIENTS_WISHES);
}
