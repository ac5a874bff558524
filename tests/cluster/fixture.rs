//! What all tests share: a namespace that is removed on drop, the example's shop in it, clients, and waiting for a
//! condition.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Far longer than anything takes, on the slowest of clusters.
pub const DEADLINE: Duration = Duration::from_secs(240);

/// The image of pitstop, as the nodes know it.
pub fn image() -> String {
    std::env::var("PITSTOP_IMAGE").unwrap_or_else(|_| "pitstop:0.1.0".to_owned())
}

/// The image of the application: nginx, a shell and curl.
pub fn application_image() -> String {
    std::env::var("PITSTOP_TEST_APPLICATION_IMAGE").unwrap_or_else(|_| "pitstop-test-application:1".to_owned())
}

/// Waits until the condition holds, or fails the test naming it.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The standard output of a command that must succeed.
#[track_caller]
pub fn printed(command: &str, output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// A namespace of the test's own.
pub struct Namespace {
    /// Its name.
    pub name: String,
    overlays: TempDir,
}

impl Namespace {
    /// An empty one.
    pub fn new(test: &str) -> Self {
        let name = format!("pitstop-test-{test}-{}", std::process::id());
        // Below the manifests, since kustomize knows only relative paths; in target/, since git should not see it.
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let namespace = Self { name, overlays: TempDir::new_in(target).unwrap() };
        printed(
            "kubectl create",
            &Command::new("kubectl").args(["create", "namespace", &namespace.name]).output().unwrap(),
        );
        // Pods are refused until it is there.
        eventually("the namespace has its service account", || {
            namespace.try_kubectl(&["get", "serviceaccount", "default"]).status.success()
        });
        namespace
    }

    /// `kubectl` in this namespace, to be run by the test.
    pub fn command(&self) -> Command {
        let mut command = Command::new("kubectl");
        command.args(["--namespace", &self.name]);
        command
    }

    /// Runs `kubectl`, whatever comes of it.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    /// Runs `kubectl`, and gives what it printed.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        printed(&format!("kubectl {arguments:?}"), &self.try_kubectl(arguments))
    }

    /// What `kubectl get` knows of something.
    #[track_caller]
    pub fn get(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["get", "--output=json"];
        all.extend(arguments);
        serde_json::from_str(&self.kubectl(&all)).unwrap()
    }

    /// Creates or changes what is written here.
    #[track_caller]
    pub fn apply(&self, manifests: &str) {
        let mut child = self
            .command()
            .args(["apply", "--filename=-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(manifests.as_bytes()).unwrap();
        printed("kubectl apply", &child.wait_with_output().unwrap());
    }

    /// Creates or changes what a kustomization gives, which is written as an overlay of the repository's: paths begin at
    /// its top. Images are replaced by those of the tests.
    #[track_caller]
    pub fn apply_kustomization(&self, kustomization: &str) {
        let overlay = self.overlays.path().join("overlay");
        let _ = fs::remove_dir_all(&overlay);
        fs::create_dir(&overlay).unwrap();
        let top = "../".repeat(overlay.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().components().count());
        let images = [
            ("pitstop", image()),
            ("nginxinc/nginx-unprivileged", application_image()),
            ("busybox", application_image()),
        ]
        .map(|(name, image)| {
            let (new_name, tag) = image.rsplit_once(':').unwrap();
            format!("  - {{name: {name}, newName: {new_name}, newTag: {tag:?}}}\n")
        });
        let text = format!("{}\nimages:\n{}", kustomization.replace("TOP/", &top), images.concat());
        fs::write(overlay.join("kustomization.yaml"), text).unwrap();
        let rendered =
            printed("kubectl kustomize", &Command::new("kubectl").arg("kustomize").arg(&overlay).output().unwrap());
        self.apply(&rendered);
    }

    /// Runs the example's shop with as many replicas, and waits until all are ready.
    #[track_caller]
    pub fn shop(&self, replicas: usize) {
        self.shop_with(replicas, "");
    }

    /// The same with something added to its kustomization.
    #[track_caller]
    pub fn shop_with(&self, replicas: usize, more: &str) {
        self.apply_kustomization(&format!(
            "resources: [TOP/deploy/kustomize/example]\nreplicas: [{{name: shop-web, count: {replicas}}}]\n{more}"
        ));
        self.kubectl(&["rollout", "status", "deployment/shop-web", &format!("--timeout={}s", DEADLINE.as_secs())]);
        eventually("the Service lists all of them", || self.endpoints("shop-web").len() == replicas);
    }

    /// The names of the shop's pods that are not about to go.
    pub fn pods(&self) -> Vec<String> {
        let pods = self.get(&["pods", "--selector=pitstop=enabled"]);
        let stay =
            pods["items"].as_array().unwrap().iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        stay.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }

    /// The pods that a Service sends requests to.
    pub fn endpoints(&self, service: &str) -> BTreeSet<String> {
        let slices = self.get(&["endpointslices", &format!("--selector=kubernetes.io/service-name={service}")]);
        let slices = slices["items"].as_array().unwrap().iter();
        let endpoints = slices.flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
        let ready = endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true);
        ready.map(|endpoint| endpoint["targetRef"]["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Whether a pod is ready.
    pub fn is_ready(&self, pod: &str) -> bool {
        let pod = self.get(&["pod", pod]);
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    }

    /// Whether all containers of a pod run.
    pub fn is_running(&self, pod: &str) -> bool {
        let pod = self.get(&["pod", pod]);
        let containers = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        !containers.is_empty() && containers.iter().all(|container| !container["state"]["running"].is_null())
    }

    /// How often the containers of the shop's pods have been restarted.
    pub fn restarts(&self) -> u64 {
        let pods = self.get(&["pods", "--selector=pitstop=enabled"]);
        let pods = pods["items"].as_array().unwrap().iter();
        let containers =
            pods.flat_map(|pod| pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default());
        containers.map(|container| container["restartCount"].as_u64().unwrap()).sum()
    }

    /// The working set of a container, in bytes, as its kubelet counts it.
    pub fn memory(&self, pod: &str, container: &str) -> u64 {
        let node = self.get(&["pod", pod]);
        let node = node["spec"]["nodeName"].as_str().unwrap();
        let summary = self.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/stats/summary")]);
        let summary: Value = serde_json::from_str(&summary).unwrap();
        let named =
            |list: &Value, is: &dyn Fn(&Value) -> bool| list.as_array().unwrap().iter().find(|each| is(each)).cloned();
        let pod =
            named(&summary["pods"], &|each| each["podRef"]["name"] == pod && each["podRef"]["namespace"] == self.name);
        let container = named(&pod.unwrap()["containers"], &|each| each["name"] == container);
        container.unwrap()["memory"]["workingSetBytes"].as_u64().unwrap()
    }

    /// Runs a command of pitstop in the sidecar, as an operator would.
    #[track_caller]
    pub fn pitstop(&self, pod: &str, arguments: &[&str]) -> String {
        let mut all = vec!["exec", pod, "--container=pitstop", "--", "pitstop"];
        all.extend(arguments);
        self.kubectl(&all)
    }

    /// What the sidecar of a pod says its state is.
    pub fn state(&self, pod: &str) -> Value {
        let path = format!("/api/v1/namespaces/{}/pods/{pod}:9503/proxy/maintenance", self.name);
        serde_json::from_str(&self.kubectl(&["get", "--raw", &path])).unwrap()
    }

    /// Starts a pod that tries the shop's Service again and again, and where it is refused or not answered, the
    /// maintenance Service, as an ingress would: four attempts at a time.
    #[track_caller]
    pub fn client(&self) -> Client<'_> {
        let address = |service: &str| {
            let service = self.get(&["service", service]);
            service["spec"]["clusterIP"].as_str().unwrap().to_owned()
        };
        // `curl` fails where it gets no complete answer. Addresses, since not every test cluster has DNS.
        let script = format!(
            "ask() {{ status=$(curl -s -m 5 -o /tmp/$2 -w '%{{http_code}}' http://$1/) && echo $status $(cat /tmp/$2); }}\n\
             again() {{ while :; do ask {} $1 || ask {} $1 || echo no answer; sleep 0.1; done; }}\n\
             trap 'exit 0' TERM; again 1 & again 2 & again 3 & again 4 & wait",
            address("shop-web"),
            address("shop-maintenance")
        );
        self.run("client", &script);
        let client = Client { namespace: self };
        eventually("the client has an answer", || !client.attempts().is_empty());
        client
    }

    /// Starts a pod with a shell script.
    #[track_caller]
    fn run(&self, name: &str, script: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": name, "image": application_image(), "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", script],
                }],
            },
        });
        self.apply(&pod.to_string());
    }

    /// Follows the pods of the shop from now on.
    pub fn watch(&self) -> Watch {
        let format = "--output=jsonpath={.metadata.name} \
                      ready={.status.conditions[?(@.type==\"Ready\")].status} \
                      exits={.status.containerStatuses[*].state.terminated.exitCode}{\"\\n\"}";
        let mut command = self.command();
        command.args(["get", "pods", "--watch", "--selector=pitstop=enabled", format]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shared = seen.clone();
        thread::spawn(move || lines.map_while(Result::ok).for_each(|line| shared.lock().unwrap().push(line)));
        Watch { child, seen }
    }
}

impl Drop for Namespace {
    #[allow(clippy::print_stderr, reason = "it is for who reads why the test has failed")]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", String::from_utf8_lossy(&self.try_kubectl(&["get", "pods,endpointslices"]).stdout));
        }
        let _ = Command::new("kubectl").args(["delete", "namespace", &self.name, "--wait=false"]).output();
    }
}

/// A pod that asks for the shop all the time.
pub struct Client<'a> {
    namespace: &'a Namespace,
}

impl Client<'_> {
    /// How each attempt ended: the status and the body of the answer.
    pub fn attempts(&self) -> Vec<String> {
        let log = self.namespace.try_kubectl(&["logs", "client"]);
        String::from_utf8_lossy(&log.stdout).lines().map(str::to_owned).collect()
    }
}

/// The pods of the shop, followed from the start of this on.
pub struct Watch {
    child: Child,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Watch {
    /// Whether this pod has been seen at all.
    pub fn knows(&self, pod: &str) -> bool {
        self.has_been(pod, "")
    }

    /// Whether this pod has been ready, if only for a moment.
    pub fn has_been_ready(&self, pod: &str) -> bool {
        self.has_been(pod, "ready=True")
    }

    /// Whether both containers of this pod have ended, and neither by being killed.
    pub fn has_ended_well(&self, pod: &str) -> bool {
        self.has_been(pod, "exits=0 0")
    }

    fn has_been(&self, pod: &str, state: &str) -> bool {
        self.seen.lock().unwrap().iter().any(|line| line.starts_with(&format!("{pod} ")) && line.contains(state))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A volume that all pods of a test share: of the storage class in `PITSTOP_TEST_STORAGE_CLASS`, which must know
/// `ReadWriteMany`, else a directory of one node, on which all of them then run.
pub struct SharedVolume<'a> {
    namespace: &'a Namespace,
    node: Option<String>,
}

impl<'a> SharedVolume<'a> {
    /// Makes the volume, for the claim `maintenance`.
    pub fn new(namespace: &'a Namespace) -> Self {
        if std::env::var_os("PITSTOP_TEST_STORAGE_CLASS").is_some() {
            return Self { namespace, node: None };
        }
        let nodes = namespace.get(&["nodes"]);
        let node = nodes["items"].as_array().unwrap().iter().find(|node| node["spec"]["taints"].is_null()).unwrap();
        let volume = Self { namespace, node: Some(node["metadata"]["name"].as_str().unwrap().to_owned()) };
        // Every container writes as a user of its own.
        volume.on_the_node(&format!("mkdir -m 777 {}", volume.directory()));
        let host = &node["metadata"]["labels"]["kubernetes.io/hostname"];
        let on_the_node =
            json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]});
        namespace.apply(
            &json!({
                "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": namespace.name},
                "spec": {
                    "capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteMany"], "storageClassName": "",
                    "hostPath": {"path": format!("/var/tmp/{}", namespace.name)},
                    "claimRef": {"namespace": namespace.name, "name": "maintenance"},
                    "nodeAffinity": {"required": {"nodeSelectorTerms": [on_the_node]}},
                },
            })
            .to_string(),
        );
        volume
    }

    /// What the claim says of its storage class, as a patch for a kustomization.
    pub fn patch() -> String {
        let class = std::env::var("PITSTOP_TEST_STORAGE_CLASS").unwrap_or_default();
        format!(
            "patches: [{{target: {{kind: PersistentVolumeClaim}}, patch: '[{{\"op\": \"add\", \"path\": \"/spec/storageClassName\", \
             \"value\": \"{class}\"}}]'}}]\n"
        )
    }

    fn directory(&self) -> String {
        format!("/host/{}", self.namespace.name)
    }

    /// Runs a command as root on the node.
    fn on_the_node(&self, command: &str) {
        let node = self.node.as_deref().unwrap();
        self.namespace.apply(
            &json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root"},
                "spec": {
                    "restartPolicy": "Never", "nodeName": node,
                    "containers": [{
                        "name": "root", "image": application_image(), "imagePullPolicy": "IfNotPresent",
                        "command": ["sh", "-c", command], "securityContext": {"runAsUser": 0},
                        "volumeMounts": [{"name": "host", "mountPath": "/host"}],
                    }],
                    "volumes": [{"name": "host", "hostPath": {"path": "/var/tmp"}}],
                },
            })
            .to_string(),
        );
        let ended = || self.namespace.get(&["pod", "root"])["status"]["phase"] == "Succeeded";
        eventually(command, ended);
        self.namespace.kubectl(&["delete", "pod", "root", "--now"]);
    }
}

impl Drop for SharedVolume<'_> {
    fn drop(&mut self) {
        if self.node.is_some() && !thread::panicking() {
            self.on_the_node(&format!("chmod 555 {0} && rm -r {0}", self.directory()));
        }
        let _ = self.namespace.try_kubectl(&["delete", "persistentvolume", &self.namespace.name, "--wait=false"]);
    }
}
