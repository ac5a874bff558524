//! Prometheus, configured as in `deploy/monitoring`, finds the pods through the API server, and sees them go into
//! maintenance and out of it.
//!
//! Needs prometheus and promtool, and VictoriaMetrics (Debian: prometheus, victoria-metrics): Debian's Prometheus has no
//! discovery for Kubernetes, VictoriaMetrics has it, and reads the same configuration. Both run beside the tests.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture::{Namespace, eventually, printed};

/// A process that is killed on drop, and the address that it listens on.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    /// Starts it, and waits for a line with the mark, after which the address stands.
    fn start(command: &mut Command, mark: &str) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Nobody may be stopped by a log that nobody reads, and some log to the one, some to the other.
        let output: Box<dyn Read + Send> = Box::new(child.stdout.take().unwrap());
        let error: Box<dyn Read + Send> = Box::new(child.stderr.take().unwrap());
        let (lines, seen) = std::sync::mpsc::channel();
        for log in [output, error] {
            let lines = lines.clone();
            thread::spawn(move || {
                BufReader::new(log).lines().map_while(Result::ok).for_each(|line| _ = lines.send(line));
            });
        }
        drop(lines);
        let mut before = String::new();
        let line = seen.iter().inspect(|line| before.push_str(line)).find(|line| line.contains(mark));
        let line = line.unwrap_or_else(|| panic!("it does not start: {before}"));
        let address = line.rsplit_once(mark).unwrap().1.split([' ', '/']).next().unwrap();
        Self { child, address: address.to_owned() }
    }

    /// The value of a metric of each pod.
    fn by_pod(&self, query: &str) -> BTreeMap<String, String> {
        let mut command = Command::new("promtool");
        command.args(["query", "instant", "--format=json", &format!("http://{}", self.address), query]);
        let samples: Value = serde_json::from_str(&printed("promtool", &command.output().unwrap())).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let samples = samples.as_array().unwrap().iter();
        samples.map(|sample| (text(&sample["metric"]["pod"]), text(&sample["value"][1]))).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The API server, on this machine.
fn proxy() -> Server {
    Server::start(Command::new("kubectl").args(["proxy", "--port=0"]), "Starting to serve on ")
}

/// The scrape configuration that is shipped, with another discovery. Pods' addresses may not be reachable from here, the
/// API server is: it passes scrapes on.
fn configuration(discovery: &str, proxy: &Server) -> String {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/monitoring/prometheus.yaml");
    let shipped = fs::read_to_string(shipped).unwrap();
    let scrapes = &shipped[shipped.find("\nscrape_configs:").unwrap()..];
    let for_all = "kubernetes_sd_configs: [{role: pod}]";
    assert!(scrapes.contains(for_all));
    format!(
        "global: {{scrape_interval: 1s}}\n{}\n\
         \x20     - {{source_labels: [__meta_kubernetes_namespace, pod, __meta_kubernetes_pod_container_port_number], \
         regex: '(.+);(.+);(.+)', replacement: '/api/v1/namespaces/$1/pods/$2:$3/proxy/metrics', target_label: __metrics_path__}}\n\
         \x20     - {{replacement: '{}', target_label: __address__}}\n",
        scrapes.replace(for_all, discovery).trim_end(),
        proxy.address
    )
}

/// The pods of the shop as Prometheus's discovery describes them: a target for each port of a container.
fn discovered(namespace: &Namespace) -> Value {
    let pods = namespace.get(&["pods", "--selector=pitstop=enabled"]);
    let targets = pods["items"].as_array().unwrap().iter().flat_map(|pod| {
        let containers = pod["spec"]["containers"].as_array().unwrap().iter();
        containers.flat_map(move |container| {
            let ports = container["ports"].as_array().unwrap().iter();
            ports.map(move |port| {
                json!({"targets": [pod["status"]["podIP"]], "labels": {
                    "__meta_kubernetes_namespace": pod["metadata"]["namespace"],
                    "__meta_kubernetes_pod_name": pod["metadata"]["name"],
                    "__meta_kubernetes_pod_phase": pod["status"]["phase"],
                    "__meta_kubernetes_pod_controller_kind": pod["metadata"]["ownerReferences"][0]["kind"],
                    "__meta_kubernetes_pod_controller_name": pod["metadata"]["ownerReferences"][0]["name"],
                    "__meta_kubernetes_pod_labelpresent_pod_template_hash":
                        pod["metadata"]["labels"]["pod-template-hash"].is_string().to_string(),
                    "__meta_kubernetes_pod_container_name": container["name"],
                    "__meta_kubernetes_pod_container_port_name": port["name"],
                    "__meta_kubernetes_pod_container_port_number": port["containerPort"].to_string(),
                }})
            })
        })
    });
    targets.collect()
}

/// Switches two pods, one after the other, and expects to see just that.
fn follows_each_pod(namespace: &Namespace, server: &Server) {
    let pods = namespace.pods();
    let is = |first: &str, second: &str| {
        let expected = pods.iter().cloned().zip([first.to_owned(), second.to_owned()]).collect();
        server.by_pod("pitstop_maintenance_mode{workload=\"shop-web\"}") == expected
    };
    eventually("both are open", || is("0", "0"));
    namespace.pitstop(&pods[0], &["maintenance-mode", "Updating"]);
    eventually("the first is in maintenance", || is("1", "0"));
    namespace.pitstop(&pods[1], &["maintenance-mode", "Updating"]);
    eventually("both are", || is("1", "1"));
    for pod in &pods {
        namespace.pitstop(pod, &["maintenance-mode", "--disable"]);
    }
    eventually("both are open again", || is("0", "0"));
}

#[test]
fn prometheus_follows_each_pod() {
    let namespace = Namespace::new("prometheus");
    namespace.shop(2);
    let (proxy, directory) = (proxy(), TempDir::new().unwrap());
    let (targets, file) = (directory.path().join("targets.json"), directory.path().join("prometheus.yaml"));
    fs::write(&targets, discovered(&namespace).to_string()).unwrap();
    fs::write(&file, configuration(&format!("file_sd_configs: [{{files: ['{}']}}]", targets.display()), &proxy))
        .unwrap();
    let mut command = Command::new("prometheus");
    command.arg("--config.file").arg(&file).arg("--storage.tsdb.path").arg(directory.path().join("data"));
    let prometheus = Server::start(command.arg("--web.listen-address=127.0.0.1:0"), "Listening on\" address=");
    follows_each_pod(&namespace, &prometheus);
}

#[test]
fn the_shipped_discovery_finds_each_pod() {
    let namespace = Namespace::new("discovery");
    namespace.shop(2);
    let (proxy, directory) = (proxy(), TempDir::new().unwrap());
    let file = directory.path().join("prometheus.yaml");
    let here = format!("api_server: 'http://{}', namespaces: {{names: [{}]}}", proxy.address, namespace.name);
    fs::write(&file, configuration(&format!("kubernetes_sd_configs: [{{role: pod, {here}}}]"), &proxy)).unwrap();
    // It cannot say which port it has chosen.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = Command::new("victoria-metrics");
    command.arg(format!("-promscrape.config={}", file.display()));
    command.arg(format!("-storageDataPath={}", directory.path().join("data").display()));
    // What it has just scraped is not held back for those that come late.
    command.args(["-search.latencyOffset=0s", "-search.disableCache", &format!("-httpListenAddr=127.0.0.1:{port}")]);
    let metrics = Server::start(&mut command, "starting http server at http://");
    follows_each_pod(&namespace, &metrics);
}
