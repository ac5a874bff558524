//! The kustomize components: what they make of the workloads that a user already has.
//!
//! Rendered examples are committed; `PITSTOP_UPDATE_RENDERED=1 cargo test --test it kustomize::` makes them anew.
//!
//! Needs kubectl.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture::{Printed, program};
use crate::manifests::{assert_valid, documents, list, root, versions, violations};

/// What `kubectl kustomize` makes of a directory of the project.
#[track_caller]
fn rendered(directory: &Path) -> String {
    let printed: Printed = program("kubectl").arg("kustomize").arg(directory).output().unwrap().into();
    assert_eq!((printed.code, printed.stderr.as_str()), (Some(0), ""), "{}", directory.display());
    printed.stdout
}

/// A kustomization of a user's, with some workloads.
struct Overlay(TempDir);

impl Overlay {
    /// Of the components named.
    fn new(workloads: &[Value], components: &[&str], more: &str) -> Self {
        // In the project, wherever cargo's target directory is, since kustomize knows only relative paths.
        let target = root().join("target");
        fs::create_dir_all(&target).unwrap();
        let directory = TempDir::new_in(target).unwrap();
        let depth = directory.path().strip_prefix(root()).unwrap().components().count();
        let top = "../".repeat(depth);
        let components: Vec<_> = components.iter().map(|name| format!("{top}deploy/kustomize/{name}")).collect();
        let text: Vec<_> = workloads.iter().map(Value::to_string).collect();
        fs::write(directory.path().join("workloads.yaml"), text.join("\n---\n")).unwrap();
        let text = format!("resources: [workloads.yaml]\ncomponents: [{}]\n{more}", components.join(", "));
        fs::write(directory.path().join("kustomization.yaml"), text).unwrap();
        Self(directory)
    }

    /// What is rendered, valid for these versions of Kubernetes.
    #[track_caller]
    fn objects_for(&self, versions: &[&str]) -> Vec<Value> {
        let text = rendered(self.0.path());
        let file = self.0.path().join("rendered.yaml");
        fs::write(&file, &text).unwrap();
        assert_valid(versions, &[file]);
        documents(&[&text]).remove(0)
    }

    /// What is rendered, valid for all versions.
    #[track_caller]
    fn objects(&self) -> Vec<Value> {
        self.objects_for(&[])
    }

    /// What is rendered with a native sidecar, valid for all versions that know it.
    #[track_caller]
    fn native_objects(&self) -> Vec<Value> {
        let versions = versions();
        let native: Vec<_> = versions.iter().skip_while(|version| *version != "1.29").map(String::as_str).collect();
        assert!(native.len() > 1, "{versions:?}");
        self.objects_for(&native)
    }
}

/// A workload as a user may have it, with the label.
fn workload(kind: &str, pod: &Value) -> Value {
    let labels = json!({"app": "shop"});
    let mut spec =
        json!({"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}});
    if kind == "StatefulSet" {
        spec["serviceName"] = json!("shop");
    }
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "shop", "labels": {"pitstop": "enabled"}}, "spec": spec})
}

fn find<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

fn names(values: &Value) -> Vec<&str> {
    list(values).iter().map(|value| value["name"].as_str().unwrap()).collect()
}

const KINDS: [&str; 3] = ["Deployment", "StatefulSet", "DaemonSet"];

const OWN_MOUNT: &str = r#"{"mountPath": "/maintenance", "name": "maintenance"}"#;

#[test]
fn each_kind_of_workload_gets_the_sidecar() {
    let bare = json!({"containers": [{"name": "app", "image": "shop"}]});
    let full = json!({
        "initContainers": [{"name": "migrate", "image": "shop"}],
        "containers": [
            {"name": "app", "image": "shop", "volumeMounts": [{"name": "data", "mountPath": "/data"}]},
            {"name": "cache", "image": "cache"},
        ],
        "volumes": [{"name": "data", "emptyDir": {}}],
    });
    let own: Value = serde_json::from_str(OWN_MOUNT).unwrap();
    for kind in KINDS {
        for pod in [&bare, &full] {
            let objects = Overlay::new(&[workload(kind, pod)], &["sidecar"], "").objects();
            assert_eq!(objects.len(), 3, "the workload, the switch, the maintenance Service");
            let template = &find(&objects, kind)["spec"]["template"];
            assert_eq!(template["metadata"]["labels"], json!({"app": "shop", "pitstop": "enabled"}));
            let spec = &template["spec"];
            assert_eq!(spec["initContainers"], pod["initContainers"]);
            // The application stays the first; what it had, it has.
            let before = list(&pod["containers"]);
            assert_eq!(names(&spec["containers"]), [names(&pod["containers"]), vec!["pitstop"]].concat());
            let mounts = [list(&before[0]["volumeMounts"]), std::slice::from_ref(&own)].concat();
            assert_eq!(spec["containers"][0]["volumeMounts"], json!(mounts), "{kind}");
            assert_eq!(&list(&spec["containers"])[1..before.len()], &before[1..]);
            let mut volumes = names(&spec["volumes"]);
            volumes.sort_unstable();
            assert_eq!(volumes, [names(&pod["volumes"]), vec!["maintenance", "maintenance-fleet"]].concat());
        }
    }
}

#[test]
fn what_is_not_labelled_is_left_alone() {
    let pod = json!({"containers": [{"name": "app", "image": "shop"}]});
    let mut other = workload("Deployment", &pod);
    other["metadata"] = json!({"name": "other"});
    let objects = Overlay::new(&[workload("StatefulSet", &pod), other.clone()], &["sidecar"], "").objects();
    assert_eq!(find(&objects, "Deployment"), &other);
}

#[test]
fn a_native_sidecar_is_the_same_in_another_place() {
    let pod = json!({"containers": [{"name": "app", "image": "shop"}], "initContainers": [{"name": "migrate", "image": "shop"}]});
    for kind in KINDS {
        let shop = [workload(kind, &pod)];
        let ordinary = Overlay::new(&shop, &["sidecar"], "").objects();
        let ordinary = &find(&ordinary, kind)["spec"]["template"]["spec"];
        let native = Overlay::new(&shop, &["native-sidecar"], "").native_objects();
        let native = &find(&native, kind)["spec"]["template"]["spec"];
        assert_eq!(names(&native["containers"]), ["app"]);
        assert_eq!(names(&native["initContainers"]), ["pitstop", "migrate"], "before what else may touch the data");
        let mut sidecar = native["initContainers"][0].clone();
        assert_eq!(sidecar.as_object_mut().unwrap().remove("restartPolicy"), Some(json!("Always")));
        assert_eq!(sidecar, ordinary["containers"][1]);
        assert_eq!((&native["containers"][0], &native["volumes"]), (&ordinary["containers"][0], &ordinary["volumes"]));
    }
}

/// A Service as a user may have it.
fn service(name: &str, labels: &Value) -> Value {
    let ports = json!([{"name": "http", "port": 80, "targetPort": 3000}, {"name": "metrics", "port": 9100}]);
    let spec = json!({"selector": {"app": "shop"}, "ports": ports});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels}, "spec": spec})
}

/// The one that has this name.
fn named<'a>(objects: &'a [Value], kind: &str, name: &str) -> Option<&'a Value> {
    objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
}

#[test]
fn a_gate_is_the_sidecar_in_front_of_the_application() {
    let pod = json!({
        "initContainers": [{"name": "migrate", "image": "shop"}],
        "containers": [{"name": "app", "image": "shop"}, {"name": "cache", "image": "cache"}],
    });
    for kind in KINDS {
        let (front, back) = (service("shop", &json!({"pitstop": "enabled"})), service("back", &json!({"app": "shop"})));
        let all = [workload(kind, &pod), front.clone(), back.clone()];
        for (sidecar, gate, place) in
            [("sidecar", "gate", "containers"), ("native-sidecar", "native-gate", "initContainers")]
        {
            let objects = |component| {
                let overlay = Overlay::new(&all, &[component], "");
                if place == "containers" { overlay.objects() } else { overlay.native_objects() }
            };
            let (before, after) = (objects(sidecar), objects(gate));
            // The Service that is labelled has another target, by its first port; the other is as it was.
            assert_eq!(named(&before, "Service", "shop"), Some(&front));
            let mut behind = front.clone();
            behind["spec"]["ports"][0]["targetPort"] = json!("pitstop");
            assert_eq!(named(&after, "Service", "shop"), Some(&behind), "{kind}, {gate}");
            assert_eq!(named(&after, "Service", "back"), Some(&back));
            assert!(named(&before, "Service", "maintenance").is_some());
            assert_eq!(named(&after, "Service", "maintenance"), None, "{kind}, {gate}");
            assert_eq!(find(&after, "ConfigMap"), find(&before, "ConfigMap"));

            // The same sidecar, in the same place, but for what makes it a gate.
            let mut expected = find(&before, kind)["spec"]["template"].clone();
            expected["metadata"]["labels"]["pitstop/mode"] = json!("gate");
            expected["metadata"]["annotations"] = json!({"pitstop/upstream": "http://127.0.0.1:8080"});
            let containers = expected["spec"][place].as_array_mut().unwrap();
            let container = containers.iter_mut().find(|container| container["name"] == "pitstop").unwrap();
            container["env"].as_array_mut().unwrap().push(json!({
                "name": "PITSTOP_UPSTREAM",
                "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['pitstop/upstream']"}},
            }));
            container["readinessProbe"]["httpGet"]["path"] = json!("/readyz?exclude=maintenance");
            container["resources"]["limits"]["memory"] = json!("512Mi");
            assert_eq!(find(&after, kind)["spec"]["template"], expected, "{kind}, {gate}");
        }
    }
}

#[test]
fn the_readme_says_where_the_application_listens() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let chapter = &readme[readme.find("### Gate mode").unwrap()..];
    let patch =
        chapter.split("```").map(|block| block.trim_start_matches("yaml")).find(|block| block.contains("patches:"));
    let patch: Vec<_> = patch.unwrap().lines().map(|line| line.strip_prefix("   ").unwrap_or(line)).collect();
    let shop = [workload("Deployment", &json!({"containers": [{"name": "app", "image": "shop"}]}))];
    for gate in ["gate", "native-gate"] {
        let overlay = Overlay::new(&shop, &[gate], &patch.join("\n"));
        let objects = if gate == "gate" { overlay.objects() } else { overlay.native_objects() };
        let annotations = &find(&objects, "Deployment")["spec"]["template"]["metadata"]["annotations"];
        assert_eq!(annotations["pitstop/upstream"], "http://127.0.0.1:3000", "{gate}");
    }
}

#[test]
fn a_network_policy_closes_what_is_behind_a_gate() {
    let shop = workload("Deployment", &json!({"containers": [{"name": "app", "image": "shop"}]}));
    let more = "namePrefix: shop-\nlabels: [{pairs: {app: shop}, includeSelectors: true}]\n";
    let objects = Overlay::new(std::slice::from_ref(&shop), &["gate", "network-policy"], more).objects();
    let policy = find(&objects, "NetworkPolicy");
    assert_eq!(policy["metadata"]["name"], "shop-pitstop-gate");
    let labels = policy["spec"]["podSelector"]["matchLabels"].as_object().unwrap();
    assert_eq!(json!(labels), json!({"pitstop/mode": "gate", "app": "shop"}));
    let pod = &find(&objects, "Deployment")["spec"]["template"];
    assert!(labels.iter().all(|(label, value)| pod["metadata"]["labels"][label] == *value));
    // Nothing but what the gate has.
    assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]));
    let admitted: Vec<_> = list(&policy["spec"]["ingress"]).iter().flat_map(|rule| list(&rule["ports"])).collect();
    let ports = json!([{"port": "pitstop", "protocol": "TCP"}, {"port": "pitstop-admin", "protocol": "TCP"}]);
    assert_eq!(json!(admitted), ports);
    assert_eq!(names(&pod["spec"]["containers"][1]["ports"]), ["pitstop", "pitstop-admin"]);
}

#[test]
fn a_volume_can_be_shared() {
    for kind in KINDS {
        let shop = [workload(kind, &json!({"containers": [{"name": "app", "image": "shop"}]}))];
        for sidecar in ["sidecar", "native-sidecar", "gate", "native-gate"] {
            let overlay = Overlay::new(&shop, &[sidecar, "shared-volume"], "namePrefix: shop-\n");
            let native = sidecar.starts_with("native-");
            let objects = if native { overlay.native_objects() } else { overlay.objects() };
            let spec = &find(&objects, kind)["spec"]["template"]["spec"];
            let claim = json!({"name": "maintenance", "persistentVolumeClaim": {"claimName": "shop-maintenance"}});
            assert!(list(&spec["volumes"]).contains(&claim), "{spec}");
            let mut volumes = names(&spec["volumes"]);
            volumes.sort_unstable();
            assert_eq!(volumes, ["maintenance", "maintenance-fleet"], "{kind}, {sidecar}");
            assert_eq!(find(&objects, "PersistentVolumeClaim")["metadata"]["name"], "shop-maintenance");
        }
    }
}

#[test]
fn two_applications_have_a_switch_and_a_service_each() {
    let pod = json!({"containers": [{"name": "app", "image": "shop"}]});
    for name in ["shop", "cart"] {
        let more = format!("namePrefix: {name}-\nlabels: [{{pairs: {{app: {name}}}, includeSelectors: true}}]\n");
        let objects = Overlay::new(&[workload("Deployment", &pod)], &["sidecar"], &more).objects();
        let service = find(&objects, "Service");
        assert_eq!(service["metadata"]["name"], format!("{name}-maintenance"));
        assert_eq!(service["spec"]["selector"], json!({"pitstop": "enabled", "app": name}));
        assert_eq!(service["spec"]["publishNotReadyAddresses"], true);
        let spec = &find(&objects, "Deployment")["spec"]["template"]["spec"];
        let fleet = json!({"name": "maintenance-fleet", "configMap": {"name": format!("{name}-maintenance"), "optional": true}});
        assert!(list(&spec["volumes"]).contains(&fleet));
        assert_eq!(find(&objects, "ConfigMap")["metadata"]["name"], format!("{name}-maintenance"));
        assert_eq!(find(&objects, "ConfigMap")["data"], Value::Null, "no key: applying it switches nothing");
    }
}

#[test]
fn the_readme_puts_a_name_on_the_page() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let chapter = &readme[readme.find("#### Your name on the page").unwrap()..];
    let patches = chapter.split("```").nth(1).unwrap().trim_start_matches("yaml");
    let shop = [workload("Deployment", &json!({"containers": [{"name": "app", "image": "shop"}]}))];
    for (component, list_of) in
        [("sidecar", "containers"), ("gate", "containers"), ("native-sidecar", "initContainers")]
    {
        let overlay = Overlay::new(&shop, &[component], &patches.replace("containers:", &format!("{list_of}:")));
        fs::write(overlay.0.path().join("logo.svg"), "<svg/>").unwrap();
        let objects = if list_of == "containers" { overlay.objects() } else { overlay.native_objects() };
        let pod = &find(&objects, "Deployment")["spec"]["template"]["spec"];
        let pitstop = list(&pod[list_of]).iter().find(|container| container["name"] == "pitstop").unwrap();
        let variables = list(&pitstop["env"]);
        for (name, value) in [("TITLE", "The Shop"), ("ACCENT", "#0a7"), ("LOGO", "/maintenance-page/logo.svg")] {
            let expected = json!({"name": format!("PITSTOP_{name}"), "value": value});
            assert!(variables.contains(&expected), "{component}: {variables:?}");
        }
        assert_eq!(pitstop["image"], concat!("pitstop:", env!("CARGO_PKG_VERSION")), "{component}: the rest stays");
        let files = list(&pod["volumes"]).iter().find(|volume| volume["name"] == "page").unwrap();
        let name = files["configMap"]["name"].as_str().unwrap();
        let data = objects.iter().find(|object| object["metadata"]["name"] == name).unwrap();
        assert_eq!(data["data"], json!({"logo.svg": "<svg/>"}), "{component}");
    }
}

#[test]
fn the_readme_tells_a_second_application_apart() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let chapter = &readme[readme.find("#### A second application").unwrap()..];
    let patches = chapter.split("```").nth(1).unwrap().trim_start_matches("yaml");
    let pod = json!({"containers": [{"name": "app", "image": "cart"}]});
    let before = workload("Deployment", &pod);
    let objects = Overlay::new(std::slice::from_ref(&before), &["sidecar"], patches).objects();
    let service = find(&objects, "Service");
    assert_eq!(service["metadata"]["name"], "cart-maintenance");
    assert_eq!(service["spec"]["selector"], json!({"pitstop": "enabled", "app": "cart"}));
    assert_eq!(find(&objects, "ConfigMap")["metadata"]["name"], "cart-maintenance");
    let after = find(&objects, "Deployment");
    assert_eq!(
        (&after["metadata"]["name"], &after["spec"]["selector"]),
        (&before["metadata"]["name"], &before["spec"]["selector"])
    );
    let fleet = json!({"name": "maintenance-fleet", "configMap": {"name": "cart-maintenance", "optional": true}});
    assert!(list(&after["spec"]["template"]["spec"]["volumes"]).contains(&fleet));
    // Behind a gate, where there is no such Service.
    let objects = Overlay::new(std::slice::from_ref(&before), &["gate"], patches).objects();
    assert_eq!(find(&objects, "ConfigMap")["metadata"]["name"], "cart-maintenance");
    assert!(objects.iter().all(|object| object["kind"] != "Service"));
}

#[test]
fn the_examples_are_what_is_committed() {
    for (directory, committed) in [
        ("deploy/kustomize/example", "deploy/rendered/shop.yaml"),
        ("deploy/kustomize/gate-example", "deploy/rendered/gate.yaml"),
        ("deploy/cronjob", "deploy/rendered/cronjob.yaml"),
    ] {
        let text = format!("# What `kubectl kustomize {directory}` prints.\n{}", rendered(&root().join(directory)));
        let committed = root().join(committed);
        if std::env::var_os("PITSTOP_UPDATE_RENDERED").is_some() {
            fs::write(&committed, &text).unwrap();
        }
        let before = fs::read_to_string(&committed).unwrap_or_default();
        assert!(before == text, "{} is out of date: see the top of this file", committed.display());
        assert_valid(&[], &[committed]);
        for object in documents(&[&text]).remove(0) {
            for pod in ["/spec/template/spec", "/spec/jobTemplate/spec/template/spec"] {
                if let Some(pod) = object.pointer(pod) {
                    assert_eq!(violations(pod), Vec::<String>::new(), "{directory}");
                }
            }
        }
    }
}

#[test]
fn what_is_applied_as_it_is_is_valid() {
    for directory in ["deploy/rbac", "deploy/monitoring"] {
        let manifests = fs::read_dir(root().join(directory)).unwrap().map(|entry| entry.unwrap().path());
        // Beside them are configurations of other programs.
        let is_manifest = |path: &PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains("\napiVersion: "));
        let manifests: Vec<_> =
            manifests.filter(|path| path.extension().is_some_and(|end| end == "yaml")).filter(is_manifest).collect();
        assert!(!manifests.is_empty(), "{directory}");
        assert_valid(&[], &manifests);
    }
}

#[test]
fn what_names_the_image_names_the_programs_version() {
    let version = env!("CARGO_PKG_VERSION");
    let read = |file: &str| fs::read_to_string(root().join(file)).unwrap();
    for file in ["kustomize/sidecar/container.yaml", "kustomize/native-sidecar/container.yaml", "cronjob/cronjob.yaml"]
    {
        let text = read(&format!("deploy/{file}"));
        let images: Vec<_> = text.lines().filter_map(|line| line.trim().strip_prefix("image: pitstop")).collect();
        assert_eq!(images, [format!(":{version}")], "{file}");
    }
    let text = read("deploy/Dockerfile");
    let versions: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("ARG VERSION=")).collect();
    assert_eq!(versions, [version]);
    // What its comments say to run, too.
    let tags = text.split("pitstop:").skip(1).filter_map(|rest| rest.split_whitespace().next());
    for tag in tags {
        assert_eq!(tag, version);
    }
}
