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
    let client = namespace.client();
    namespace.switch_fleet(&format!("{REASON:?}"), true);
    eventually("all have left", || namespace.endpoints("shop-web").is_empty());
    eventually("the client is told why", || client.attempts().last().unwrap() == &format!("503 {REASON}"));

    let watch = namespace.watch();
    let before = namespace.pods();
    namespace.kubectl(&["delete", "pod", &before[0]]);
    namespace.kubectl(&["scale", "deployment/shop-web", "--replicas=4"]);
    let mut new = Vec::new();
    eventually("two new pods run", || {
        new = namespace.pods();
        new.retain(|pod| !before.contains(pod));
        new.len() == 2 && new.iter().all(|pod| namespace.is_running(pod) && namespace.state(pod)["reason"] == REASON)
    });
    assert!(namespace.endpoints("shop-web").is_empty());

    let still = client.attempts().len();
    eventually("the client goes on", || client.attempts().len() >= still + 5);
    assert!(client.attempts()[still..].iter().all(|answer| *answer == format!("503 {REASON}")));
    for pod in &new {
        assert!(watch.knows(pod) && !watch.has_been_ready(pod), "{pod} has been ready in maintenance");
    }
    namespace.switch_fleet("null", false);
    eventually("all are back", || namespace.endpoints("shop-web").len() == 4);
    assert_eq!(namespace.restarts(), 0);
}

#[test]
fn a_shared_volume_switches_all_and_keeps_new_pods_out() {
    let namespace = Namespace::new("volume");
    let _volume = SharedVolume::new(&namespace);
    namespace.shop_with(3, &format!("components: [TOP/deploy/kustomize/shared-volume]\n{}", SharedVolume::patch()));
    let pods = namespace.pods();
    let status = namespace.pitstop(&pods[0], &["maintenance-mode", REASON, "--wait"]);
    assert_eq!(status, format!("Maintenance mode is enabled: {REASON}\n"));
    // That is what --wait has promised: no condition to wait for.
    for pod in &pods {
        assert_eq!(namespace.state(pod)["reason"], REASON, "{pod}");
    }
    eventually("all have left", || namespace.endpoints("shop-web").is_empty());

    let watch = namespace.watch();
    namespace.kubectl(&["delete", "pod", &pods[0]]);
    let mut new = String::new();
    eventually("its successor runs", || {
        new = namespace.pods().into_iter().find(|pod| !pods.contains(pod)).unwrap_or_default();
        !new.is_empty() && namespace.is_running(&new) && namespace.state(&new)["reason"] == REASON
    });
    assert!(watch.knows(&new) && !watch.has_been_ready(&new));
    assert!(namespace.endpoints("shop-web").is_empty());
    namespace.pitstop(&new, &["maintenance-mode", "--disable"]);
    eventually("all are back", || namespace.endpoints("shop-web").len() == 3);
}
