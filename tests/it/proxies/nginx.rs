//! nginx, which asks the sidecar, or looks at the file itself.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{
    Addresses, Front, REASON, Recipe, assert_asks_for_little, assert_refuses_from_the_start,
    assert_shows_the_sidecars_refusal, filled,
};
use crate::fixture::{Sidecar, program};

const ASKS: Recipe = Recipe {
    set_up: asks,
    check: Some(check),
    patience: 0,
    grpc: 200,
    lost: [(502, false), (503, true)],
    asks_by_get: false,
    without_sidecar: 502,
};
const LOOKS: Recipe = Recipe { set_up: looks, without_sidecar: 200, ..ASKS };

fn asks(directory: &Path, addresses: &Addresses) -> Command {
    set_up(directory, addresses, "nginx/pitstop.conf", &[("app:9503", &addresses.sidecar.admin.to_string())])
}

fn looks(directory: &Path, addresses: &Addresses) -> Command {
    let file = addresses.sidecar.file();
    set_up(directory, addresses, "nginx/shared-volume.conf", &[("/maintenance/MAINTENANCE", file.to_str().unwrap())])
}

/// The recipe is a file of the `http` context.
fn set_up(directory: &Path, addresses: &Addresses, recipe: &str, replaced: &[(&str, &str)]) -> Command {
    let (application, traffic) = (addresses.application.to_string(), addresses.sidecar.traffic.to_string());
    let listen = format!("listen {};", addresses.proxy);
    let all = [&[("app:3000", &*application), ("app:8503", &*traffic), ("listen 80;", &*listen)], replaced].concat();
    fs::write(directory.join("pitstop.conf"), filled(recipe, &all)).unwrap();
    let main = "daemon off; master_process off; pid nginx.pid; error_log stderr; events { }
        http {
            access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
            uwsgi_temp_path uwsgi; scgi_temp_path scgi; include pitstop.conf;
        }";
    fs::write(directory.join("nginx.conf"), main).unwrap();
    nginx(directory)
}

fn nginx(directory: &Path) -> Command {
    let mut command = program("nginx");
    command.arg("-p").arg(directory).args(["-e", "stderr", "-c", "nginx.conf"]);
    command
}

fn check(directory: &Path) -> Command {
    let mut command = nginx(directory);
    command.arg("-t");
    command
}

#[test]
fn it_asks() {
    assert_shows_the_sidecars_refusal(&ASKS);
}

#[test]
fn it_looks() {
    assert_shows_the_sidecars_refusal(&LOOKS);
}

#[test]
fn what_it_finds_closes_it_without_a_sidecar() {
    let mut front = Front::start(&LOOKS);
    front.opens();
    front.addresses.sidecar.signal("KILL");
    front.addresses.sidecar.ended();
    front.opens();
    // Whatever it is.
    fs::create_dir(front.addresses.sidecar.file()).unwrap();
    let asked = front.asked();
    assert_eq!((front.get("/", &[]).status, front.post("/", &[], "a=b").status), (502, 502));
    assert_eq!(front.asked(), asked);
}

#[test]
fn it_refuses_from_the_start() {
    assert_refuses_from_the_start(&ASKS);
    assert_refuses_from_the_start(&LOOKS);
}

#[test]
fn it_asks_for_little() {
    assert_asks_for_little(&ASKS, &[]);
}

#[test]
fn who_asks_is_counted_twice() {
    for (recipe, times) in [(&ASKS, 2.0), (&LOOKS, 1.0)] {
        let front = Front::beside(recipe, Sidecar::in_maintenance(REASON), Vec::new());
        let refused = || front.sidecar().metric("pitstop_requests_total{outcome=\"refused\"}");
        front.refuses(REASON);
        let before = refused();
        assert_eq!(front.get("/", &[]).status, 503);
        assert_eq!(refused() - before, times);
    }
}
