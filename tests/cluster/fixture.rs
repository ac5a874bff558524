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

/// What the application answers, and what the sidecar does in the moment after maintenance, when its pod is not in the
/// Service again.
pub const SHOP: &str = "200 the shop";
const NOT_BACK: &str = "503 Temporarily unavailable";

/// For how long nothing may be amiss after pods have come or gone, until that is over: kernels' tables, which `kube-proxy`
/// changes, lag behind the Services.
const CALM: Duration = Duration::from_secs(10);

/// How many attempts the client makes at a time.
const LOOPS: usize = 4;
/// What it says of a try that was not answered. Of the maintenance Service, it tries again.
const MISSED: &str = "missed";

/// The image of pitstop, as the nodes know it.
pub fn image() -> String {
    std::env::var("PITSTOP_IMAGE").unwrap_or_else(|_| "pitstop:0.1.0".to_owned())
}

/// The image of the application: nginx, a shell and curl.
pub fn application_image() -> String {
    std::env::var("PITSTOP_TEST_APPLICATION_IMAGE").unwrap_or_else(|_| "pitstop-test-application:1".to_owned())
}

/// An image's name, its tag and its digest, of which one is empty: a digest wins.
pub fn parts(image: &str) -> (&str, &str, &str) {
    if let Some((tagged, digest)) = image.split_once('@') {
        return (parts(tagged).0, "", digest);
    }
    // What is before a slash is a host's port.
    let tagged = image.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'));
    let (name, tag) = tagged.unwrap_or((image, "latest"));
    (name, tag, "")
}

#[test]
fn an_image_has_a_tag_or_a_digest() {
    for (image, expected) in [
        ("pitstop", ("pitstop", "latest", "")),
        ("pitstop:0.1.0", ("pitstop", "0.1.0", "")),
        ("host:5000/name", ("host:5000/name", "latest", "")),
        ("host:5000/name:1", ("host:5000/name", "1", "")),
        ("host:5000/name@sha256:0a", ("host:5000/name", "", "sha256:0a")),
        ("host:5000/name:1@sha256:0a", ("host:5000/name", "", "sha256:0a")),
    ] {
        assert_eq!(parts(image), expected, "{image}");
    }
}

/// Waits until the condition holds, or fails the test naming it.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        // Most conditions start a `kubectl`, and many tests wait at the same time.
        thread::sleep(Duration::from_millis(200));
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
        // Beside the manifests, wherever cargo's target directory is, since kustomize knows only relative paths; in target/,
        // since git should not see it.
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
        fs::create_dir_all(&target).unwrap();
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
        self.apply_overlay(kustomization, "");
    }

    /// The same with manifests of its own, in the file `own.yaml`.
    #[track_caller]
    pub fn apply_overlay(&self, kustomization: &str, own: &str) {
        let overlay = self.overlays.path().join("overlay");
        let _ = fs::remove_dir_all(&overlay);
        fs::create_dir(&overlay).unwrap();
        fs::write(overlay.join("own.yaml"), own).unwrap();
        let top = "../".repeat(overlay.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().components().count());
        let images = [
            ("pitstop", image()),
            ("nginxinc/nginx-unprivileged", application_image()),
            ("busybox", application_image()),
        ]
        .map(|(name, image)| {
            let (new_name, tag, digest) = parts(&image);
            let which = if digest.is_empty() { format!("newTag: {tag:?}") } else { format!("digest: {digest:?}") };
            format!("  - {{name: {name}, newName: {new_name:?}, {which}}}\n")
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
        self.shop_with("example", replicas, "");
    }

    /// The same of another example, and with something added to its kustomization.
    #[track_caller]
    pub fn shop_with(&self, example: &str, replicas: usize, more: &str) {
        self.apply_kustomization(&format!(
            "resources: [TOP/deploy/kustomize/{example}]\nreplicas: [{{name: shop-web, count: {replicas}}}]\n{more}"
        ));
        self.rolled_out();
        eventually("the Service lists all of them", || self.endpoints("shop-web").len() == replicas);
    }

    /// Waits until all of the shop's pods are new ones, and ready.
    #[track_caller]
    pub fn rolled_out(&self) {
        self.kubectl(&["rollout", "status", "deployment/shop-web", &format!("--timeout={}s", DEADLINE.as_secs())]);
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

    /// What the sidecar of a pod says its state is, as soon as it says anything.
    #[track_caller]
    pub fn state(&self, pod: &str) -> Value {
        let path = format!("/api/v1/namespaces/{}/pods/{pod}:9503/proxy/maintenance", self.name);
        let mut state = None;
        eventually(&format!("{pod} says its state"), || {
            let asked = self.try_kubectl(&["get", "--raw", &path]);
            state = asked.status.success().then(|| serde_json::from_slice(&asked.stdout).unwrap());
            state.is_some()
        });
        state.unwrap()
    }

    /// In maintenance, deletes a pod and brings the shop to as many replicas. The new pods are refused by the sidecar alone,
    /// and none has been ready, if only for a moment.
    #[track_caller]
    pub fn new_pods_stay_out(&self, replicas: usize, reason: &str) {
        let (watch, before) = (self.watch(), self.pods());
        self.kubectl(&["scale", "deployment/shop-web", &format!("--replicas={replicas}")]);
        self.kubectl(&["delete", "pod", &before[0]]);
        let mut new = Vec::new();
        eventually("the new pods run", || {
            new = self.pods();
            new.retain(|pod| !before.contains(pod));
            new.len() == replicas + 1 - before.len() && new.iter().all(|pod| self.is_running(pod))
        });
        for pod in &new {
            eventually("the application is ready, and the sidecar is not", || self.is_kept_out(pod));
            assert_eq!(self.state(pod)["reason"], reason, "{pod}");
            assert!(watch.knows(pod) && !watch.has_been_ready(pod), "{pod} has been ready in maintenance");
        }
        eventually("the maintenance Service has just them", || {
            self.endpoints("shop-maintenance") == self.pods().into_iter().collect()
        });
        assert!(self.endpoints("shop-web").is_empty());
    }

    /// Whether the kubelet has found a pod's application ready, and been refused by its sidecar.
    fn is_kept_out(&self, pod: &str) -> bool {
        let status = self.get(&["pod", pod]);
        let statuses = status["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let is = |name: &str, ready: bool| statuses.iter().any(|each| each["name"] == name && each["ready"] == ready);
        let events = self.get(&["events", &format!("--field-selector=involvedObject.name={pod},reason=Unhealthy")]);
        let mut events = events["items"].as_array().unwrap().iter().filter_map(|event| event["message"].as_str());
        let refused = events.any(|said| said.starts_with("Readiness probe failed") && said.contains("statuscode: 503"));
        refused && is("app", true) && is("pitstop", false)
    }

    /// Starts a pod that tries the shop's Service again and again, and where it is refused or not answered, the
    /// maintenance Service, as an ingress would: some attempts at a time.
    #[track_caller]
    pub fn client(&self) -> Client<'_> {
        // An ingress knows the pods and goes to the next, a Service takes any: hence several tries.
        let (web, maintenance) = (self.address("shop-web"), self.address("shop-maintenance"));
        self.client_that(&format!(
            "ask $1 {web} && return; tries=0; while [ $tries != 20 ]; do ask $1 {maintenance} && return; echo $1 {MISSED}; \
             sleep 0.1; tries=$((tries + 1)); done; echo $1 no answer"
        ))
    }

    /// Starts a pod that tries the shop's Service again and again, and nothing else: some attempts at a time.
    #[track_caller]
    pub fn client_of_the_service(&self) -> Client<'_> {
        self.client_that(&format!("ask $1 {} || echo $1 {MISSED}", self.address("shop-web")))
    }

    /// The address of a Service, since not every test cluster has DNS.
    fn address(&self, service: &str) -> String {
        self.get(&["service", service])["spec"]["clusterIP"].as_str().unwrap().to_owned()
    }

    /// Starts a pod that makes such attempts.
    #[track_caller]
    fn client_that(&self, attempt: &str) -> Client<'_> {
        // `curl` fails where it gets no complete answer.
        let script = format!(
            "ask() {{ status=$(curl -s --connect-timeout 5 -m 30 -o /tmp/$1 -w '%{{http_code}}' http://$2/) && echo $1 $status $(cat /tmp/$1); }}\n\
             attempt() {{ {attempt}; }}\n\
             again() {{ while :; do attempt $1; sleep 0.1; done; }}\n\
             trap 'exit 0' TERM; for loop in {loops}; do again $loop & done; wait",
            loops = (1..=LOOPS).map(|each| each.to_string()).collect::<Vec<_>>().join(" ")
        );
        self.run("client", &script);
        let client = Client { namespace: self };
        client.settles_on(&[SHOP], 0);
        client
    }

    /// Starts a pod with a shell script.
    #[track_caller]
    fn run(&self, name: &str, script: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "restartPolicy": "Never",
                "containers": [{
                    "name": name, "image": application_image(), "imagePullPolicy": "IfNotPresent",
                    "command": ["sh", "-c", script],
                }],
            },
        });
        self.apply(&pod.to_string());
    }

    /// Follows the pods of the shop from now on.
    #[track_caller]
    pub fn watch(&self) -> Watch {
        let format = "--output=jsonpath={.type} {.object.metadata.name} \
                      ready={.object.status.conditions[?(@.type==\"Ready\")].status} \
                      deleted={.object.metadata.deletionTimestamp} \
                      exits={.object.status.containerStatuses[*].state.terminated.exitCode}{\"\\n\"}";
        let mut command = self.command();
        command.args(["get", "pods", "--watch", "--output-watch-events", "--selector=pitstop=enabled", format]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let shared = seen.clone();
        thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| shared.lock().unwrap().push((Instant::now(), line)));
        });
        let watch = Watch { child, seen };
        let pods = self.pods();
        eventually("it follows them", || pods.iter().all(|pod| watch.knows(pod)));
        watch
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
    /// How each attempt ended: the loop that made it, and the status and the body of the answer.
    #[track_caller]
    fn log(&self) -> Vec<(String, String)> {
        let mut log = String::new();
        eventually("the client's log can be read", || {
            let read = self.namespace.try_kubectl(&["logs", "client"]);
            log = String::from_utf8(read.stdout).unwrap();
            read.status.success()
        });
        let lines = log.lines().filter_map(|line| line.split_once(' '));
        lines.map(|(each, answer)| (each.to_owned(), answer.to_owned())).collect()
    }

    /// How each attempt ended: the status and the body of the answer.
    #[track_caller]
    pub fn attempts(&self) -> Vec<String> {
        self.log().into_iter().map(|(_, answer)| answer).collect()
    }

    /// Waits until each loop has had one of these answers since one of them has had another, counted after some attempts of
    /// all. Gives how many attempts there are then: what follows has begun with this the state of things, in whichever loop.
    ///
    /// While a Service is empty, that takes a second for each attempt: kernels limit how often they say that nothing is
    /// there.
    #[track_caller]
    pub fn settles_on(&self, answers: &[&str], from: usize) -> usize {
        self.settles_for(Duration::ZERO, answers, from)
    }

    /// The same, and none has had another answer for so long.
    #[track_caller]
    fn settles_for(&self, calm: Duration, answers: &[&str], from: usize) -> usize {
        let (mut count, mut last, mut since) = (0, None, Instant::now());
        eventually(&format!("the client has {answers:?}"), || {
            let log = self.log();
            count = log.len();
            let other = log[from..].iter().rposition(|(_, answer)| !answers.contains(&answer.as_str()));
            if other != last {
                (last, since) = (other, Instant::now());
            }
            let right = &log[from + other.map_or(0, |other| other + 1)..];
            let loops: BTreeSet<_> = right.iter().map(|(each, _)| each).collect();
            loops.len() == LOOPS && since.elapsed() >= calm
        });
        count
    }

    /// Fails the test if one of some attempts ended in anything else.
    #[track_caller]
    pub fn assert_only(&self, attempts: std::ops::Range<usize>, answers: &[&[&str]], when: &str) {
        let seen: BTreeSet<_> = self.attempts()[attempts].iter().cloned().collect();
        let known = answers.concat();
        assert!(seen.iter().all(|answer| known.contains(&answer.as_str())), "{when}: {seen:?}");
    }

    /// Takes all of the shop into maintenance and out of it again: the pods leave the Service and come back, none is
    /// restarted, and each of the client's attempts ends in the application's answer or in one of these refusals. Gives
    /// how long it took until the Service was empty, from before `on`.
    #[track_caller]
    pub fn sees_maintenance(
        &self,
        refusals: &[&str],
        on: impl FnOnce(),
        during: impl FnOnce(),
        off: impl FnOnce(),
    ) -> Duration {
        let (namespace, open) = (self.namespace, self.settles_on(&[SHOP], self.attempts().len()));
        let begin = Instant::now();
        on();
        eventually("all have left", || namespace.endpoints("shop-web").is_empty());
        let took = begin.elapsed();
        let refused = self.settles_on(refusals, open);
        // One after the other, so some still serve: but who is refused is told why.
        self.assert_only(open..refused, &[&[SHOP], refusals], "on its way into maintenance");

        let before = namespace.pods();
        during();
        // A pod that starts or ends is in the maintenance Service, and does not answer; and in the kernel's tables it stays
        // longer than in the Service.
        let changed = self.attempts().len();
        let (calm, missed) = if namespace.pods() == before { (Duration::ZERO, &[][..]) } else { (CALM, &[MISSED][..]) };
        let closed = self.settles_for(calm, refusals, changed);
        self.assert_only(refused..closed, &[refusals, &[MISSED]], "in maintenance");
        let still = self.settles_on(refusals, closed);
        self.assert_only(closed..still, &[refusals], "in maintenance");
        assert!(namespace.endpoints("shop-web").is_empty());

        off();
        let all = namespace.pods().len();
        eventually("all are back", || namespace.endpoints("shop-web").len() == all);
        let back = self.settles_on(&[SHOP], still);
        // Where pods have gone, one that was in the tables for even longer than that may be asked once more.
        self.assert_only(still..back, &[&[SHOP, NOT_BACK], refusals, missed], "on its way out of maintenance");
        assert_eq!(namespace.restarts(), 0);
        took
    }
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        let _ = self.namespace.try_kubectl(&["delete", "pod", "client", "--wait=false"]);
    }
}

/// The pods of the shop, followed from the start of this on.
pub struct Watch {
    child: Child,
    seen: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Watch {
    /// Whether this pod has been seen at all.
    pub fn knows(&self, pod: &str) -> bool {
        !self.lines(pod).is_empty()
    }

    /// Whether this pod has been ready, if only for a moment.
    pub fn has_been_ready(&self, pod: &str) -> bool {
        self.lines(pod).iter().any(|(_, line)| line.contains(" ready=True "))
    }

    /// Whether this pod has been other than ready, if only for a moment.
    pub fn has_been_unready(&self, pod: &str) -> bool {
        self.lines(pod).iter().any(|(_, line)| !line.contains(" ready=True "))
    }

    /// How long after its deletion began this pod was gone.
    pub fn gone_after(&self, pod: &str) -> Option<Duration> {
        let lines = self.lines(pod);
        let gone = lines.iter().find(|(_, line)| line.starts_with("DELETED "))?.0;
        let deleted = lines.iter().find(|(_, line)| !line.contains(" deleted= "))?.0;
        Some(gone - deleted)
    }

    /// The exit codes of this pod's containers that have been seen. A pod can be gone before they are.
    pub fn exit_codes(&self, pod: &str) -> BTreeSet<String> {
        let lines = self.lines(pod);
        let codes = lines.iter().filter_map(|(_, line)| line.split_once(" exits="));
        codes.flat_map(|(_, codes)| codes.split_whitespace().map(str::to_owned)).collect()
    }

    /// What has been seen of this pod, and when.
    fn lines(&self, pod: &str) -> Vec<(Instant, String)> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|(_, line)| line.split(' ').nth(1) == Some(pod)).cloned().collect()
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
    /// Makes the volume, and runs the example's shop on it with as many replicas.
    pub fn with_shop(namespace: &'a Namespace, replicas: usize) -> Self {
        Self::with("example", namespace, replicas)
    }

    /// The same with another example.
    pub fn with(example: &str, namespace: &'a Namespace, replicas: usize) -> Self {
        let volume = Self::new(namespace);
        namespace.shop_with(example, replicas, &Self::kustomization());
        volume
    }

    /// Makes the volume, for the claim `maintenance`.
    fn new(namespace: &'a Namespace) -> Self {
        if std::env::var_os("PITSTOP_TEST_STORAGE_CLASS").is_some() {
            return Self { namespace, node: None };
        }
        let nodes = namespace.get(&["nodes"]);
        let node = nodes["items"].as_array().unwrap().iter().find(|node| node["spec"]["taints"].is_null()).unwrap();
        let volume = Self { namespace, node: Some(node["metadata"]["name"].as_str().unwrap().to_owned()) };
        // Root's, as volumes are, but for the group that the pods have by `fsGroup`. On a volume of another kind the
        // kubelet would do that.
        let directory = volume.directory();
        volume.on_the_node(&format!("mkdir {directory} && busybox chown :65532 {directory} && chmod 2770 {directory}"));
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

    /// What a kustomization of the shop needs for it: the component, the claim's storage class, and the group that makes the
    /// volume the sidecar's to write, whose user is not the application's.
    fn kustomization() -> String {
        let class = std::env::var("PITSTOP_TEST_STORAGE_CLASS").unwrap_or_default();
        let class = json!([{"op": "add", "path": "/spec/storageClassName", "value": class}]);
        let group = json!([{"op": "add", "path": "/spec/template/spec/securityContext", "value": {"fsGroup": 65532}}]);
        format!(
            "components: [TOP/deploy/kustomize/shared-volume]\n\
             patches: [{{target: {{kind: PersistentVolumeClaim}}, patch: '{class}'}}, {{target: {{kind: Deployment}}, patch: '{group}'}}]\n"
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
