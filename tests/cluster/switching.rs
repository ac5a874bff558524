//! A pod's own switch, by `kubectl exec` and by plain `touch`.

use std::thread;
use std::time::{Duration, Instant};

use crate::fixture::{Namespace, eventually};

const REASON: &str = "Updating the instance";

/// `tests/kubernetes` runs this first, with no other test beside it.
#[test]
fn the_pod_leaves_in_time_and_comes_back() {
    let namespace = Namespace::new("switching");
    namespace.shop(1);
    let pod = &namespace.pods()[0];
    let client = namespace.client();
    let round = || {
        let on = || {
            let status = namespace.pitstop(pod, &["maintenance-mode", REASON]);
            assert_eq!(status, format!("Maintenance mode is enabled: {REASON}\n"));
        };
        let off = || {
            let status = namespace.pitstop(pod, &["maintenance-mode", "--disable"]);
            assert_eq!(status, "Maintenance mode is disabled\n");
        };
        client.sees_maintenance(&[&format!("503 {REASON}")], on, || (), off)
    };
    let times = [round(), round(), round()];
    println!("out of the endpoints after {times:?}, from before kubectl exec");
    // The best of them, since what else the machine does can only add to it: `kubectl` starts several times for that, and
    // the control plane, the kubelet and this share its processors. Were a probe's period longer or its threshold
    // higher, no round would be in time.
    let best = times.iter().min().unwrap();
    assert!(*best < Duration::from_secs(3), "out of the endpoints after {times:?}");
}

#[test]
fn two_minutes_of_maintenance_restart_nothing() {
    let namespace = Namespace::new("restarts");
    namespace.shop(1);
    let pod = &namespace.pods()[0];
    namespace.pitstop(pod, &["maintenance-mode", REASON]);
    eventually("the pod has left", || namespace.endpoints("shop-web").is_empty());
    let end = Instant::now() + Duration::from_secs(120);
    while Instant::now() < end {
        assert_eq!((namespace.restarts(), namespace.is_ready(pod)), (0, false));
        thread::sleep(Duration::from_secs(1));
    }
    // What is requested for it suffices: it has been probed every second for all that time.
    let memory = namespace.memory(pod, "pitstop");
    println!("{memory} bytes of memory");
    assert!(memory < 8 * 1024 * 1024, "{memory} bytes of memory");
    namespace.pitstop(pod, &["maintenance-mode", "--disable"]);
    eventually("the pod is back", || namespace.endpoints("shop-web").len() == 1);
    assert_eq!((namespace.pods(), namespace.restarts()), (vec![pod.clone()], 0));
}

#[test]
fn the_application_switches_its_own_pod_only() {
    let namespace = Namespace::new("touch");
    namespace.shop(3);
    let client = namespace.client();
    let pods = namespace.pods();
    let app = |pod: &str, command: &str| {
        namespace.kubectl(&["exec", pod, "--container=app", "--", "sh", "-c", command]);
    };
    let on = || {
        app(&pods[0], "touch /maintenance/MAINTENANCE");
        eventually("the pod has left", || !namespace.endpoints("shop-web").contains(&pods[0]));
        assert_eq!(namespace.endpoints("shop-web").len(), 2, "the others go on");
        assert_eq!(namespace.state(&pods[0])["reason"], serde_json::Value::Null);
        for pod in &pods[1..] {
            app(pod, "echo 'Alle weg' >/maintenance/MAINTENANCE");
        }
    };
    let during = || {
        // One pod has been switched without a reason.
        let reasons = ["503 Alle weg", "503 Down for maintenance"];
        eventually("both are told", || {
            reasons.iter().all(|reason| client.attempts().iter().any(|each| each == reason))
        });
    };
    let off = || pods.iter().for_each(|pod| app(pod, "rm /maintenance/MAINTENANCE"));
    client.sees_maintenance(&["503 Alle weg", "503 Down for maintenance"], on, during, off);
}
