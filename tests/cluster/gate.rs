//! A gate: pitstop in front of the application, which listens on localhost only.

use std::fs;

use crate::fixture::{Client, Namespace, SHOP, SharedVolume, eventually};

const REASON: &str = "Updating the instance";
const REFUSED: &str = "503 Updating the instance";
/// What the example is called.
const GATE: &str = "gate-example";

impl Namespace {
    /// How many of the client's requests have reached the application of each of these pods, which writes them down.
    fn reached(&self, pods: &[String]) -> Vec<usize> {
        let log = |pod| self.kubectl(&["exec", pod, "--container=app", "--", "cat", "/tmp/access.log"]);
        pods.iter().map(|pod| log(pod).lines().count()).collect()
    }

    /// Replaces all pods of the shop, and waits until the old ones have gone.
    fn replaces_all(&self) {
        let (watch, old) = (self.watch(), self.pods());
        self.kubectl(&["rollout", "restart", "deployment/shop-web"]);
        self.rolled_out();
        eventually("the old pods are gone", || old.iter().all(|pod| watch.gone_after(pod).is_some()));
    }

    /// What `curl` says of a port of a pod, asked from the client's: the body, and the exit code.
    fn ask_a_port(&self, pod: &str, port: u16) -> (String, Option<i32>) {
        let address = self.get(&["pod", pod])["status"]["podIP"].as_str().unwrap().to_owned();
        let url = format!("http://{address}:{port}/");
        let asked = self.try_kubectl(&["exec", "client", "--", "curl", "-s", "-m", "30", &url]);
        (String::from_utf8(asked.stdout).unwrap(), asked.status.code())
    }
}

impl Client<'_> {
    /// Expects that from some attempt on each has had one of these answers, until all have the last of them. Gives how many
    /// attempts there are then.
    #[track_caller]
    fn goes_on_to(&self, answers: &[&str], from: usize, when: &str) -> usize {
        let last = answers.last().unwrap();
        let settled = self.settles_on(&[last], self.attempts().len());
        self.assert_only(from..settled, &[answers], when);
        settled
    }
}

#[test]
fn the_service_shows_the_page_and_the_pods_stay_ready() {
    let namespace = Namespace::new("gate");
    namespace.shop_with(GATE, 2, "");
    assert!(!namespace.try_kubectl(&["get", "service", "shop-maintenance"]).status.success(), "there is none");
    let (client, pods) = (namespace.client_of_the_service(), namespace.pods());
    let watch = namespace.watch();
    assert!(namespace.reached(&pods).iter().sum::<usize>() > 0);

    for pod in &pods {
        let status = namespace.pitstop(pod, &["maintenance-mode", REASON, "--wait"]);
        assert_eq!(status, format!("Maintenance mode is enabled: {REASON}\n"));
    }
    // That is what --wait has promised: from now on nothing reaches the application.
    let reached = namespace.reached(&pods);
    let closed = client.goes_on_to(&[SHOP, REFUSED], 0, "on its way into maintenance");
    let still = client.goes_on_to(&[REFUSED], closed, "in maintenance");
    assert_eq!(namespace.reached(&pods), reached);
    assert!(pods.iter().all(|pod| namespace.is_ready(pod)));
    assert_eq!(namespace.endpoints("shop-web"), pods.iter().cloned().collect());

    for pod in &pods {
        namespace.pitstop(pod, &["maintenance-mode", "--disable", "--wait"]);
    }
    client.goes_on_to(&[REFUSED, SHOP], still, "on its way out of maintenance");
    assert_eq!((namespace.pods(), namespace.restarts()), (pods.clone(), 0));
    assert!(pods.iter().all(|pod| !watch.has_been_unready(pod)), "they have stayed ready");
}

#[test]
fn the_plugin_does_not_wait_for_pods_to_leave() {
    let namespace = Namespace::new("gate-plugin");
    namespace.shop_with(GATE, 2, "");
    let on = namespace.pit_done(&["on", "deploy/shop-web", REASON, "--wait"]);
    let said = "deploy/shop-web: maintenance mode is on in ConfigMap shop-maintenance; 2 of 2 pods have taken it up";
    assert_eq!(on.stdout, format!("{said}, and refuse requests\n"));
    assert_eq!(namespace.endpoints("shop-web"), namespace.pods().into_iter().collect());
    assert!(namespace.pods().iter().all(|pod| namespace.state(pod)["reason"] == REASON));
    namespace.pit_done(&["off", "deploy/shop-web", "--wait"]);
    assert!(namespace.pods().iter().all(|pod| namespace.state(pod)["enabled"] == false));
}

#[test]
fn a_rollout_goes_on_in_maintenance() {
    let namespace = Namespace::new("gate-rollout");
    let _volume = SharedVolume::with(GATE, &namespace, 2);
    let (client, old) = (namespace.client_of_the_service(), namespace.pods());
    // In one of them, for all.
    namespace.pitstop(&old[0], &["maintenance-mode", REASON, "--wait"]);
    let reached = namespace.reached(&old);
    let closed = client.goes_on_to(&[SHOP, REFUSED], 0, "on its way into maintenance");
    assert_eq!(namespace.reached(&old), reached);

    namespace.replaces_all();
    let new = namespace.pods();
    assert!(new.iter().all(|pod| !old.contains(pod)));
    let still = client.goes_on_to(&[REFUSED], closed, "in maintenance, while pods come and go");
    assert_eq!(namespace.reached(&new), [0, 0]);
    assert_eq!(namespace.endpoints("shop-web"), new.iter().cloned().collect());

    namespace.pitstop(&new[0], &["maintenance-mode", "--disable", "--wait"]);
    client.goes_on_to(&[REFUSED, SHOP], still, "on its way out of maintenance");
    assert_eq!(namespace.restarts(), 0);
}

#[test]
fn a_rolling_update_loses_no_request_and_nobody_gets_past_it() {
    let namespace = Namespace::new("gate-update");
    namespace.shop_with(GATE, 2, "");
    let client = namespace.client_of_the_service();
    namespace.replaces_all();
    client.goes_on_to(&[SHOP], 0, "while pods come and go");
    assert_eq!(namespace.restarts(), 0);
    let pod = &namespace.pods()[0];
    assert_eq!(namespace.ask_a_port(pod, 8503), ("the shop".to_owned(), Some(0)));
    // The application's port: 7 is curl's code for a connection that could not be made.
    assert_eq!(namespace.ask_a_port(pod, 8080), (String::new(), Some(7)));
}

#[test]
fn an_application_gets_a_gate_step_by_step_and_nobody_is_refused() {
    let namespace = Namespace::new("gate-steps");
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/kustomize/example/shop.yaml");
    let manifests = fs::read_to_string(manifests).unwrap();
    let apply = |component: &str, manifests: &str| {
        let shop = "namePrefix: shop-\nreplicas: [{name: web, count: 2}]\nresources: [own.yaml]\n";
        namespace.apply_overlay(&format!("{shop}components: [TOP/deploy/kustomize/{component}]\n"), manifests);
        namespace.rolled_out();
    };
    apply("sidecar", &manifests);
    eventually("the Service lists them", || namespace.endpoints("shop-web").len() == 2);
    let client = namespace.client_of_the_service();
    apply("gate", &manifests);
    let behind = client.goes_on_to(&[SHOP], 0, "while it gets the gate");

    let service = "kind: Service\nmetadata:\n  name: web\n";
    let labelled = manifests.replace(service, &format!("{service}  labels: {{pitstop: enabled}}\n"));
    apply("gate", &labelled);
    eventually("the Service goes to the gate", || {
        let slices = namespace.get(&["endpointslices", "--selector=kubernetes.io/service-name=shop-web"]);
        slices["items"].as_array().unwrap().iter().all(|slice| slice["ports"][0]["port"] == 8503)
    });
    let through = client.goes_on_to(&[SHOP], behind, "while the Service changes over");
    for pod in namespace.pods() {
        namespace.pitstop(&pod, &["maintenance-mode", REASON]);
    }
    client.goes_on_to(&[SHOP, REFUSED], through, "on its way into maintenance");
}
