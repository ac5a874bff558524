//! The README's first minute.

use crate::fixture::{Sidecar, eventually};

#[test]
fn touch_and_rm() {
    let sidecar = Sidecar::start();
    assert_eq!(sidecar.admin("/readyz").body, "ok");
    assert_eq!(sidecar.traffic("/", &[]).body, "Temporarily unavailable\n");
    assert_eq!(sidecar.metric("pitstop_maintenance_mode"), 0.0);

    std::fs::write(sidecar.file(), "").unwrap();
    eventually("it is in maintenance", || sidecar.admin("/readyz").status == 503);
    assert_eq!(sidecar.traffic("/", &[]).body, "Down for maintenance\n");
    assert_eq!(sidecar.metric("pitstop_maintenance_mode"), 1.0);

    std::fs::remove_file(sidecar.file()).unwrap();
    eventually("it is ready again", || sidecar.admin("/readyz").status == 200);
}
