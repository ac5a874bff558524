//! Switches that several pods share: a ConfigMap, and a volume.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::fixture::{Namespace, SharedVolume, eventually};

const REASON: &str = "Wir aktualisieren";

impl Namespace {
    /// Changes the ConfigMap's key, `null` takes it away, and waits until the sidecar of each pod has taken it up. The
    /// kubelet looks again when a pod's annotation changes, which may be before it has heard of the ConfigMap's change.
    fn switch_fleet(&self, value: &str, on: bool) {
        self.kubectl(&[
            "patch",
            "configmap",
            "shop-maintenance",
            "--type=merge",
            &format!("--patch={{\"data\":{{\"MAINTENANCE\":{value}}}}}"),
        ]);
        eventually("all have taken it up", || {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
            self.kubectl(&[
                "annotate",
                "pods",
                "--selector=pitstop=enabled",
                "--overwrite",
                &format!("pitstop/refresh={now}"),
            ]);
            self.pods().iter().all(|pod| self.state(pod)["enabled"] == on)
        });
    }
}

#[test]
fn a_configmap_switches_all_and_keeps_new_pods_out() {
    let namespace = Namespace::new("configmap");
    namespace.shop(3);
    let on = || namespace.switch_fleet(&format!("{REASON:?}"), true);
    let off = || namespace.switch_fleet("null", false);
    let during = || namespace.new_pods_stay_out(4, REASON);
    namespace.client().sees_maintenance(&[&format!("503 {REASON}")], on, during, off);
    assert_eq!(namespace.endpoints("shop-web").len(), 4);
}

#[test]
fn a_shared_volume_switches_all_and_keeps_new_pods_out() {
    let namespace = Namespace::new("volume");
    let _volume = SharedVolume::with_shop(&namespace, 3);
    let pods = namespace.pods();
    let on = || {
        let status = namespace.pitstop(&pods[0], &["maintenance-mode", REASON, "--wait"]);
        assert_eq!(status, format!("Maintenance mode is enabled: {REASON}\n"));
        // That is what --wait has promised: no condition to wait for.
        for pod in &pods {
            assert_eq!(namespace.state(pod)["reason"], REASON, "{pod}");
        }
    };
    let during = || namespace.new_pods_stay_out(4, REASON);
    let off = || {
        // By one that has come meanwhile.
        let new = namespace.pods().into_iter().find(|pod| !pods.contains(pod)).unwrap();
        namespace.pitstop(&new, &["maintenance-mode", "--disable"]);
    };
    namespace.client().sees_maintenance(&[&format!("503 {REASON}")], on, during, off);
    assert_eq!(namespace.endpoints("shop-web").len(), 4);
}
