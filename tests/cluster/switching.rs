//! A pod's own switch, by `kubectl exec` and by plain `touch`.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use crate::fixture::{Namespace, eventually};

const REASON: &str = "Updating the instance";

/// What the application answers, and what the sidecar does: in maintenance, and in the moment after it, when the pod is
/// not in the Service again.
const SHOP: &str = "200 the shop";
const REFUSED: &str = "503 Updating the instance";
const NOT_BACK: &str = "503 Temporarily unavailable";

#[test]
fn the_pod_leaves_and_comes_back() {
    let namespace = Namespace::new("switching");
    namespace.shop(1);
    let pod = &namespace.pods()[0];
    let client = namespace.client();

    let mut times = Vec::new();
    for _ in 0..3 {
        let before = client.attempts().len();
        let status = namespace.pitstop(pod, &["maintenance-mode", REASON]);
        assert_eq!(status, format!("Maintenance mode is enabled: {REASON}\n"));
        let begin = Instant::now();
        eventually("the pod has left", || namespace.endpoints("shop-web").is_empty());
        times.push(begin.elapsed());
        eventually("the client is refused", || client.attempts()[before..].iter().any(|answer| answer == REFUSED));
        let answers: BTreeSet<_> = client.attempts().split_off(before).into_iter().collect();
        assert!(answers.iter().all(|answer| [SHOP, REFUSED].contains(&answer.as_str())), "{answers:?}");

        let before = client.attempts().len();
        assert_eq!(namespace.pitstop(pod, &["maintenance-mode", "--disable"]), "Maintenance mode is disabled\n");
        eventually("the pod is back", || namespace.endpoints("shop-web").len() == 1);
        eventually("the client is served", || client.attempts()[before..].iter().any(|answer| answer == SHOP));
        let answers: BTreeSet<_> = client.attempts().split_off(before).into_iter().collect();
        assert!(answers.iter().all(|answer| [SHOP, REFUSED, NOT_BACK].contains(&answer.as_str())), "{answers:?}");
    }
    times.sort();
    println!("out of the endpoints after {times:?}");
    assert!(times[1] < Duration::from_secs(3), "out of the endpoints after {times:?}");
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
    namespace.kubectl(&["exec", &pods[0], "--container=app", "--", "touch", "/maintenance/MAINTENANCE"]);
    eventually("the pod has left", || !namespace.endpoints("shop-web").contains(&pods[0]));
    assert_eq!(namespace.endpoints("shop-web").len(), 2, "the others go on");
    assert_eq!(namespace.state(&pods[0])["reason"], serde_json::Value::Null);

    for pod in &pods[1..] {
        namespace.kubectl(&[
            "exec",
            pod,
            "--container=app",
            "--",
            "sh",
            "-c",
            "echo 'Alle weg' >/maintenance/MAINTENANCE",
        ]);
    }
    eventually("all have left", || namespace.endpoints("shop-web").is_empty());
    eventually("the client is told why", || client.attempts().iter().any(|answer| answer == "503 Alle weg"));
    for pod in &pods {
        namespace.kubectl(&["exec", pod, "--container=app", "--", "rm", "/maintenance/MAINTENANCE"]);
    }
    eventually("all are back", || namespace.endpoints("shop-web").len() == 3);
    let served = client.attempts().len();
    eventually("the client is served", || client.attempts()[served..].iter().any(|answer| answer == SHOP));
    // One pod was switched without a reason.
    let known = [SHOP, "503 Alle weg", "503 Down for maintenance", NOT_BACK];
    let answers: BTreeSet<_> = client.attempts().into_iter().collect();
    assert!(answers.iter().all(|answer| known.contains(&answer.as_str())), "{answers:?}");
    assert_eq!(namespace.restarts(), 0);
}
