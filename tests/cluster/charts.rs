//! The Helm chart: a release is installed, tested, switched, upgraded and removed.
//!
//! Needs Helm, in PATH or in target/tools, where tests/run and tests/kubernetes put it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use crate::fixture::{DEADLINE, Namespace, application_image, eventually, image, parts, printed};

/// The release `shop` of the chart, which is copied, so that nothing is left in the clone.
struct Release<'a> {
    namespace: &'a Namespace,
    charts: TempDir,
}

impl<'a> Release<'a> {
    fn new(namespace: &'a Namespace) -> Self {
        let charts = tempfile::tempdir().unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts");
        printed(
            "cp",
            &Command::new("cp")
                .arg("-r")
                .args([from.join("pitstop"), from.join("pitstop-sidecar")])
                .arg(charts.path())
                .output()
                .unwrap(),
        );
        let _ = fs::remove_dir_all(charts.path().join("pitstop/charts"));
        let application = application_image();
        let (pitstop, image) = (image(), |image: &str| {
            let (repository, tag, digest) = parts(image);
            json!({"repository": repository, "tag": tag, "digest": digest})
        });
        let values = json!({
            "app": {
                "image": image(&application),
                "securityContext": {"runAsUser": 101},
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            },
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            "sidecar": {"image": image(&pitstop), "networkPolicy": {"enabled": true}},
        });
        fs::write(charts.path().join("values.json"), values.to_string()).unwrap();
        Self { namespace, charts }
    }

    /// A Helm command about it, whatever comes of it.
    fn try_helm(&self, arguments: &[&str]) -> Output {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&path).chain([tools]).map(|directory| directory.join("helm"));
        let helm = found.into_iter().find(|helm| helm.is_file());
        let mut command = Command::new(helm.expect("helm is missing: tests/kubernetes installs it"));
        for (name, value) in [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")]
        {
            command.env(name, self.charts.path().join(value));
        }
        command.args(["--namespace", &self.namespace.name]).args(arguments).current_dir(self.charts.path());
        command.output().unwrap()
    }

    /// One that must succeed.
    #[track_caller]
    fn helm(&self, arguments: &[&str]) -> String {
        printed(&format!("helm {arguments:?}"), &self.try_helm(arguments))
    }

    /// Brings it up to these values, and waits so long for its pods; whatever comes of it.
    fn try_upgrade(&self, set: &str, timeout: Duration) -> Output {
        let timeout = format!("--timeout={}s", timeout.as_secs());
        let upgrade = ["upgrade", "--install", "shop", "pitstop", "--dependency-update", "--wait", &timeout];
        self.try_helm(&[&upgrade[..], &["--values=values.json", "--set", set]].concat())
    }

    /// Brings it up to these values.
    #[track_caller]
    fn upgrade(&self, set: &str) -> String {
        printed(&format!("helm upgrade {set}"), &self.try_upgrade(set, DEADLINE))
    }

    /// Asks one of its Services from a pod: the status and the body.
    fn ask(&self, service: &str) -> String {
        let service = self.namespace.get(&["service", service]);
        let address = format!("http://{}/", service["spec"]["clusterIP"].as_str().unwrap());
        let curl = ["exec", "deployment/shop-pitstop", "--container=app", "--", "curl", "-s", "-m", "5"];
        let asked = self.namespace.try_kubectl(&[&curl[..], &["-w", " %{http_code}", &address]].concat());
        String::from_utf8(asked.stdout).unwrap().replace('\n', "")
    }
}

#[test]
fn a_release_from_install_to_uninstall() {
    let namespace = Namespace::new("helm");
    let release = Release::new(&namespace);
    let notes = release.upgrade("replicas=1");
    assert!(notes.contains(&format!("kubectl -n {} exec deploy/shop-pitstop -c pitstop", namespace.name)), "{notes}");
    eventually("the Service lists the pod", || namespace.endpoints("shop-pitstop").len() == 1);
    release.helm(&["test", "shop"]);

    let pod = namespace.endpoints("shop-pitstop").pop_first().unwrap();
    namespace.pitstop(&pod, &["maintenance-mode", "Updating the instance"]);
    eventually("the pod has left", || namespace.endpoints("shop-pitstop").is_empty());
    eventually("requests are refused", || release.ask("shop-pitstop-maintenance") == "Updating the instance 503");
    namespace.pitstop(&pod, &["maintenance-mode", "--disable"]);
    eventually("the pod is back", || namespace.endpoints("shop-pitstop").len() == 1);
    eventually("requests are served", || release.ask("shop-pitstop") == "the shop 200");

    release.upgrade("replicas=2,sidecar.logFormat=json,tests.timeoutSeconds=5");
    eventually("the Service lists the new pods", || {
        let pods = namespace.endpoints("shop-pitstop");
        pods.len() == 2 && !pods.contains(&pod)
    });
    // The fleet's switch, which is no part of the release.
    namespace.kubectl(&["create", "configmap", "shop-pitstop-maintenance", "--from-literal=MAINTENANCE=Moving"]);
    namespace.kubectl(&["delete", "pods", "--selector=app.kubernetes.io/name=pitstop", "--wait=false"]);
    eventually("no pod is ready", || namespace.endpoints("shop-pitstop").is_empty());
    eventually("requests are refused", || release.ask("shop-pitstop-maintenance") == "Moving 503");
    let tested = release.try_helm(&["test", "shop"]);
    assert!(!tested.status.success(), "{tested:?}");
    // An upgrade leaves it alone, and waits for its end.
    let switch = || namespace.get(&["configmap", "shop-pitstop-maintenance"]);
    let (before, values) = (switch(), "replicas=2,sidecar.logFormat=text");
    let upgraded = release.try_upgrade(values, Duration::from_secs(15));
    assert!(!upgraded.status.success(), "{upgraded:?}");
    let said = String::from_utf8_lossy(&upgraded.stderr).into_owned();
    assert!(said.contains("deadline exceeded") || said.contains("timed out"), "{said}");
    assert_eq!(switch(), before);
    assert!(namespace.endpoints("shop-pitstop").is_empty());
    eventually("requests are still refused", || release.ask("shop-pitstop-maintenance") == "Moving 503");
    namespace.kubectl(&["delete", "configmap", "shop-pitstop-maintenance"]);
    namespace.kubectl(&["delete", "pods", "--selector=app.kubernetes.io/name=pitstop", "--wait=false"]);
    release.upgrade(values);
    eventually("new pods are ready", || namespace.endpoints("shop-pitstop").len() == 2);
    release.helm(&["test", "shop"]);

    release.helm(&["uninstall", "shop"]);
    let left = namespace
        .get(&["deployments,services,networkpolicies,configmaps", "--selector=app.kubernetes.io/instance=shop"]);
    assert_eq!(left["items"], json!([]));
}

#[test]
fn a_release_with_a_gate_is_installed_in_maintenance() {
    let namespace = Namespace::new("helm-gate");
    let release = Release::new(&namespace);
    // The fleet's switch, which is no part of the release: it is there before.
    namespace.kubectl(&["create", "configmap", "shop-pitstop-maintenance", "--from-literal=MAINTENANCE=Moving"]);
    let notes = release.upgrade("replicas=2,sidecar.mode=gate");
    assert!(notes.contains("behind the gate"), "{notes}");
    eventually("the Service lists the pods", || namespace.endpoints("shop-pitstop").len() == 2);
    eventually("requests are refused", || release.ask("shop-pitstop") == "Moving 503");
    let services = namespace.get(&["services"]);
    let services: Vec<_> = services["items"].as_array().unwrap().iter().map(|each| &each["metadata"]["name"]).collect();
    assert_eq!(services, ["shop-pitstop"], "no maintenance Service");

    // Nor does an upgrade wait for the end.
    release.upgrade("replicas=2,sidecar.mode=gate,sidecar.logFormat=json");
    eventually("requests are still refused", || release.ask("shop-pitstop") == "Moving 503");
    namespace.kubectl(&["delete", "configmap", "shop-pitstop-maintenance"]);
    namespace.kubectl(&["delete", "pods", "--selector=app.kubernetes.io/name=pitstop", "--wait=false"]);
    eventually("requests are served", || release.ask("shop-pitstop") == "the shop 200");
    release.helm(&["test", "shop"]);
}
