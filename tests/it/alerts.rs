//! `deploy/monitoring`: the alerts, what they silence, how pods are found, and the dashboard.
//!
//! Needs Debian's prometheus and prometheus-alertmanager. That Prometheus knows nothing of Kubernetes, so that the tests
//! put in its place what it would have discovered.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

use crate::fixture::{DEADLINE, Printed, Sidecar, eventually, exchange, program, put};
use crate::prometheus::{Alertmanager, Prometheus};

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/monitoring").join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(shipped(name)).unwrap()
}

/// The text with something put in the place of what must be there.
#[track_caller]
fn with(text: &str, old: &str, new: &str) -> String {
    assert!(text.contains(old), "no {old} in {text}");
    text.replace(old, new)
}

fn run(name: &str, arguments: &[&str], directory: &Path) -> Printed {
    program(name).args(arguments).current_dir(directory).output().unwrap().into()
}

/// The shipped configuration of Prometheus with these in the place of discovered pods.
fn discovering(pods: &Value) -> String {
    with(&text("prometheus.yaml"), "kubernetes_sd_configs: [{role: pod}]", &format!("static_configs: {pods}"))
}

/// The shipped configuration of Alertmanager, in a hurry, and sending to this address.
fn sending_to(webhook: SocketAddr) -> String {
    let config = with(&text("alertmanager.yaml"), "http://alerts.example/", &format!("http://{webhook}/"));
    with(&with(&config, "group_wait: 30s", "group_wait: 100ms"), "group_interval: 5m", "group_interval: 1s")
}

/// What Prometheus would discover of a container's port in namespace web.
fn pod(address: &str, name: &str, controller: &str, more: &[(&str, &str)]) -> Value {
    let (kind, controller) = controller.split_once('/').unwrap_or_default();
    let mut labels = BTreeMap::from([
        ("container_name", "pitstop"),
        ("container_port_name", "pitstop-admin"),
        ("controller_kind", kind),
        ("controller_name", controller),
        ("name", name),
        ("phase", "Running"),
    ]);
    if kind == "ReplicaSet" {
        labels.insert("labelpresent_pod_template_hash", "true");
    }
    labels.extend(more.iter().copied());
    let mut labels: BTreeMap<_, _> =
        labels.into_iter().map(|(name, value)| (format!("__meta_kubernetes_pod_{name}"), value)).collect();
    labels.insert("__meta_kubernetes_namespace".to_owned(), "web");
    json!({"targets": [address], "labels": labels})
}

#[test]
fn the_rules_do_what_they_say() {
    let directory = shipped("");
    let printed = run("promtool", &["check", "rules", "--lint-fatal", "rules.yaml"], &directory);
    assert_eq!((printed.code, &*printed.stderr), (Some(0), ""), "{}", printed.stdout);
    let printed = run("promtool", &["test", "rules", "rules_test.yaml"], &directory);
    assert_eq!(printed.code, Some(0), "{}{}", printed.stdout, printed.stderr);
    // A test of each alert.
    let tests = text("rules_test.yaml");
    let rules = text("rules.yaml");
    let alerts: BTreeSet<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert_eq!(alerts.len(), 5);
    for alert in alerts {
        assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert}");
        assert!(text("README.md").contains(&format!("| `{alert}`")), "{alert}");
    }
}

#[test]
fn the_configurations_are_sound() {
    let directory = tempfile::tempdir().unwrap();
    fs::copy(shipped("rules.yaml"), directory.path().join("rules.yaml")).unwrap();
    fs::write(directory.path().join("prometheus.yaml"), discovering(&json!([]))).unwrap();
    let printed = run("promtool", &["check", "config", "prometheus.yaml"], directory.path());
    assert_eq!((printed.code, &*printed.stderr), (Some(0), ""), "{}", printed.stdout);
    let printed = run("amtool", &["check-config", "alertmanager.yaml"], &shipped(""));
    assert_eq!((printed.code, &*printed.stderr), (Some(0), ""), "{}", printed.stdout);
}

#[test]
fn pods_are_found_with_their_workload() {
    type Row = (&'static str, &'static str, &'static [(&'static str, &'static str)], Option<&'static str>);
    let table: [Row; 13] = [
        ("shop-5d8f9c7b64-x2z4q", "ReplicaSet/shop-5d8f9c7b64", &[], Some("shop")),
        ("shop-5d8f9c7b64-7kq2v", "ReplicaSet/shop-5d8f9c7b64", &[("phase", "Pending")], Some("shop")),
        ("shop-2-5d8f9c7b64-x2z4q", "ReplicaSet/shop-2-5d8f9c7b64", &[], Some("shop-2")),
        ("bare-set-x2z4q", "ReplicaSet/bare-set", &[("labelpresent_pod_template_hash", "")], Some("bare-set")),
        ("db-main-0", "StatefulSet/db-main", &[], Some("db-main")),
        ("native-0", "StatefulSet/native", &[("container_init", "true")], Some("native")),
        ("node-agent-x2z4q", "DaemonSet/node-agent", &[], Some("node-agent")),
        ("import-28391230-x2z4q", "Job/import-28391230", &[], Some("import-28391230")),
        ("by-hand", "", &[], Some("by-hand")),
        // Not the port, and pods that have ended.
        ("by-hand", "", &[("container_port_name", "pitstop")], None),
        ("by-hand", "", &[("container_port_name", "")], None),
        ("import-28391230-x2z4q", "Job/import-28391230", &[("phase", "Succeeded")], None),
        ("import-28391230-x2z4q", "Job/import-28391230", &[("phase", "Failed")], None),
    ];
    // Nothing listens there. The port is the line.
    let address = |line: usize| format!("127.0.0.1:{}", line + 1);
    let rows = || table.iter().enumerate();
    let pods: Vec<_> =
        rows().map(|(line, (name, controller, more, _))| pod(&address(line), name, controller, more)).collect();
    let config = with(&discovering(&json!(pods)), "rule_files: [rules.yaml]", "");
    let prometheus = Prometheus::start(&config);
    eventually("all are seen", || {
        let targets = prometheus.api("targets");
        let count = |state: &str| targets["data"][state].as_array().unwrap().len();
        count("activeTargets") + count("droppedTargets") == table.len()
    });
    let targets = prometheus.api("targets");
    let targets: BTreeMap<_, _> = targets["data"]["activeTargets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|target| (target["discoveredLabels"]["__address__"].as_str().unwrap(), &target["labels"]))
        .collect();
    for (line, (name, _, _, workload)) in rows() {
        let address = address(line);
        let expected = workload.map(|workload| {
            json!({
                "namespace": "web", "pod": name, "workload": workload,
                "container": "pitstop", "job": "pitstop", "instance": address,
            })
        });
        assert_eq!(targets.get(&*address).copied(), expected.as_ref(), "line {line}: {name}");
    }
}

#[test]
fn the_pod_monitor_names_workloads_as_prometheus_does() {
    // The operator itself sets what is left out here.
    let by_operator =
        ["container_port_name]", "kubernetes_namespace]", "target_label: pod}", "target_label: container}"];
    let relabelling = |text: &str, start: &str| -> Vec<String> {
        let lines = text.split_once(start).unwrap().1.lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !by_operator.iter().any(|own| line.contains(own)));
        lines.map(str::to_owned).collect()
    };
    let monitor =
        text("podmonitor.yaml").replace("sourceLabels", "source_labels").replace("targetLabel", "target_label");
    let monitor = relabelling(&monitor, "relabelings:\n");
    assert_eq!(monitor, relabelling(&text("prometheus.yaml"), "relabel_configs:\n      - {source_labels: [__meta"));
}

/// Takes one notification. A connection on which nothing is said has delivered nothing.
fn receive(mut stream: &TcpStream, delivered: &Mutex<Vec<Value>>) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    for line in reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()) {
        if let Some(value) = line.to_lowercase().strip_prefix("content-length: ") {
            length = value.parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    if length == 0 || reader.read_exact(&mut body).is_err() {
        return;
    }
    let notification: Value = serde_json::from_slice(&body).unwrap();
    delivered.lock().unwrap().extend(notification["alerts"].as_array().unwrap().iter().cloned());
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
}

/// Where alerts are delivered to.
struct Webhook {
    address: SocketAddr,
    delivered: Arc<Mutex<Vec<Value>>>,
}

impl Webhook {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let delivered = Arc::new(Mutex::new(Vec::new()));
        let shared = delivered.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let delivered = shared.clone();
                thread::spawn(move || receive(&stream, &delivered));
            }
        });
        Self { address, delivered }
    }

    /// A label of all alerts that have been delivered as firing.
    fn delivered(&self, label: &str) -> BTreeSet<String> {
        let delivered = self.delivered.lock().unwrap();
        let firing = delivered.iter().filter(|alert| alert["status"] == "firing");
        firing.map(|alert| alert["labels"][label].as_str().unwrap_or_default().to_owned()).collect()
    }
}

#[test]
fn what_maintenance_silences() {
    let webhook = Webhook::start();
    let alertmanager = Alertmanager::start(&sending_to(webhook.address));
    let alert = |labels: &[(&str, &str)]| json!({"labels": labels.iter().copied().collect::<BTreeMap<_, _>>()});
    let shop = [("namespace", "web"), ("workload", "shop")];
    let of_shop = |more: &[(&'static str, &'static str)]| alert(&[&shop[..], more].concat());
    // Alertmanager takes them up in this order. The one that silences comes last, so that when it does, none of the
    // others ever will.
    let sources = [
        alert(&[("alertname", "MaintenanceMode"), ("replicas", "all")]),
        alert(&[("alertname", "MaintenanceMode"), ("replicas", "all"), ("namespace", "web")]),
        alert(&[("alertname", "MaintenanceMode"), ("replicas", "all"), ("workload", "shop")]),
        alert(&[("alertname", "MaintenanceMode"), ("replicas", "some"), ("namespace", "web"), ("workload", "cart")]),
        of_shop(&[("alertname", "MaintenanceMode"), ("replicas", "all")]),
    ];
    let targets = [
        (of_shop(&[("alertname", "Down")]), true),
        (of_shop(&[("alertname", "Down"), ("severity", "critical"), ("pod", "shop-0")]), true),
        (of_shop(&[("alertname", "Down"), ("in_maintenance", "send")]), false),
        (of_shop(&[("alertname", "MaintenanceModeLong")]), false),
        (of_shop(&[("alertname", "MaintenanceModeOverdue")]), false),
        (of_shop(&[("alertname", "MaintenanceModeDisagreement")]), false),
        (of_shop(&[("alertname", "MaintenanceFileUnobservable")]), false),
        (alert(&[("alertname", "Down"), ("namespace", "test"), ("workload", "shop")]), false),
        (alert(&[("alertname", "Down"), ("namespace", "web"), ("workload", "cart")]), false),
        (alert(&[("alertname", "Down"), ("namespace", "web"), ("deployment", "shop")]), false),
        (alert(&[("alertname", "Down"), ("namespace", "web")]), false),
        (alert(&[("alertname", "Down"), ("workload", "shop")]), false),
        (alert(&[("alertname", "Down")]), false),
    ];
    let all: Vec<_> = sources.iter().chain(targets.iter().map(|(target, _)| target)).collect();
    let body = json!(all).to_string();
    let head = format!(
        "POST /api/v2/alerts HTTP/1.0\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    assert_eq!(exchange(alertmanager.address(), (head + &body).as_bytes()).status, 200);

    let silenced = |wanted: &Value| {
        let alerts = alertmanager.alerts();
        let found = alerts.iter().find(|alert| alert["labels"] == wanted["labels"]);
        found.unwrap_or_else(|| panic!("no {wanted} in {alerts:?}"))["status"]["state"] == "suppressed"
    };
    eventually("it silences", || silenced(&targets[0].0));
    for source in &sources {
        assert!(!silenced(source), "{source}");
    }
    for (target, expected) in &targets {
        assert_eq!(silenced(target), *expected, "{target}");
    }
    eventually("all but those of the silenced names are delivered", || webhook.delivered("alertname").len() == 5);
    assert!(!webhook.delivered("alertname").contains("MaintenanceMode"));
}

#[test]
fn an_application_in_maintenance_raises_no_alarm() {
    let shop = Sidecar::start();
    let replica = Sidecar::sharing(shop.directory(), |_| {});
    let cart = Sidecar::start();
    let pods = json!([
        pod(&shop.admin.to_string(), "shop-5d8f9c7b64-x2z4q", "ReplicaSet/shop-5d8f9c7b64", &[]),
        pod(&replica.admin.to_string(), "shop-5d8f9c7b64-7kq2v", "ReplicaSet/shop-5d8f9c7b64", &[]),
        pod(&cart.admin.to_string(), "cart-0", "StatefulSet/cart", &[]),
    ]);
    let webhook = Webhook::start();
    let alertmanager = Alertmanager::start(&sending_to(webhook.address));

    let directory = tempfile::tempdir().unwrap();
    // All as shipped, but in a hurry: looking each second, and not two minutes but ten seconds longer than maintenance.
    fs::write(directory.path().join("rules.yaml"), with(&text("rules.yaml"), "ratio[2m]", "ratio[10s]")).unwrap();
    let application = "groups: [{name: application, rules: [{alert: Down, expr: 'up{job=\"application\"} == 0'}]}]";
    fs::write(directory.path().join("application.yaml"), application).unwrap();
    let config = with(&discovering(&pods), "_interval: 15s", "_interval: 1s");
    let config = with(&config, "rule_files: [rules.yaml]", "rule_files: [rules.yaml, application.yaml]");
    let config = with(&config, "alertmanager:9093", &alertmanager.address().to_string())
        + "  - {job_name: application, file_sd_configs: [{files: [application.json], refresh_interval: 1s}]}\n";
    // Targets to which nothing listens: these applications are down. Each alert names its workload in another way.
    let down = |workload: &str, labels: &[(&str, &str)]| -> Vec<Value> {
        let labels = labels.iter().enumerate().map(|(number, (name, value))| {
            json!({"targets": ["127.0.0.1:1"], "labels": {"namespace": "web", *name: value, "id": format!("{workload}-{number}")}})
        });
        labels.collect()
    };
    let shops = down(
        "shop",
        &[
            ("workload", "shop"),
            ("deployment", "shop"),
            ("statefulset", "shop"),
            ("daemonset", "shop"),
            ("job_name", "shop"),
            ("pod", "shop-5d8f9c7b64-x2z4q"),
            ("pod", "shop-x2z4q"),
            ("pod", "shop-0"),
        ],
    );
    let others =
        down("other", &[("workload", "cart"), ("deployment", "cart"), ("pod", "shop-cache"), ("deployment", "")]);
    let ids = |targets: &[Value]| -> BTreeSet<String> {
        targets.iter().map(|target| target["labels"]["id"].as_str().unwrap().to_owned()).collect()
    };
    let prometheus = Prometheus::beside(directory, &config);
    let targets = prometheus.path().join("application.json");
    let silenced = |name: &str| -> BTreeSet<String> {
        let alerts = alertmanager.alerts();
        let silenced = alerts
            .iter()
            .filter(|alert| alert["labels"]["alertname"] == name && alert["status"]["state"] == "suppressed");
        silenced.map(|alert| alert["labels"]["id"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let in_maintenance = || {
        let alerts = alertmanager.alerts();
        alerts.iter().any(|alert| {
            let labels = &alert["labels"];
            labels["alertname"] == "MaintenanceMode" && labels["replicas"] == "all" && labels["workload"] == "shop"
        })
    };

    put(&shop.file(), "Updating");
    eventually("Alertmanager knows of the maintenance", in_maintenance);
    put(&targets, json!(shops).to_string());
    eventually("the shop's alerts are inhibited", || silenced("Down") == ids(&shops));
    // These join the same group of alerts. When they are delivered, so would the shop's have been.
    put(&targets, json!([&shops[..], &others[..]].concat()).to_string());
    eventually("the others' alerts are delivered", || webhook.delivered("id") == ids(&others));
    assert_eq!(silenced("Down"), ids(&shops));

    fs::remove_file(shop.file()).unwrap();
    eventually("the shop's alerts are delivered", || webhook.delivered("id").is_superset(&ids(&shops)));
    assert_eq!(
        webhook.delivered("alertname"),
        BTreeSet::from(["Down".to_owned()]),
        "nobody is told of the maintenance"
    );
}

/// How the dashboard's queries are confined to what is chosen.
const VARIABLES: &str = "namespace=~\"$namespace\",workload=~\"$workload\"";

/// The names of metrics in a query.
fn metrics(query: &str) -> BTreeSet<String> {
    let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c)));
    let words = words.filter(|word| word.starts_with("pitstop") || word.starts_with("process_"));
    words.map(str::to_owned).collect()
}

/// The values under a key, wherever they are.
fn under<'a>(json: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match json {
        Value::Object(members) => {
            found.extend(members.get(key));
            members.values().for_each(|member| under(member, key, found));
        }
        Value::Array(elements) => elements.iter().for_each(|element| under(element, key, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_shows_what_there_is() {
    let dashboard: Value = serde_json::from_str(&text("dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
    let mut sources = Vec::new();
    under(&dashboard, "datasource", &mut sources);
    assert!(sources.len() > panels.len());
    for source in sources {
        let builtin = json!({"type": "grafana", "uid": "-- Grafana --"});
        assert!(*source == json!({"type": "prometheus", "uid": "${datasource}"}) || *source == builtin, "{source}");
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables.iter().map(|variable| variable["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "namespace", "workload"]);
    assert_eq!(variables[0]["type"], "datasource");
    // No two panels share a place.
    let mut places = BTreeSet::new();
    for panel in panels {
        let side = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(side("x") + side("w") <= 24);
        for (x, y) in
            (side("x")..side("x") + side("w")).flat_map(|x| (side("y")..side("y") + side("h")).map(move |y| (x, y)))
        {
            assert!(places.insert((x, y)), "{} overlaps", panel["title"]);
        }
    }

    let mut queries = Vec::new();
    under(&dashboard, "expr", &mut queries);
    let queries: Vec<_> = queries.into_iter().map(|query| query.as_str().unwrap()).collect();
    assert!(queries.len() > panels.len(), "and the annotation");

    // In maintenance, until a known time, one of its files not observable, asked and refusing: it has all there is to
    // show.
    let sidecar = Sidecar::with(|command| _ = command.args(["--file", "MAINTENANCE", "--file", "loop"]));
    eventually("both have been looked at", || sidecar.metric("pitstop_file_last_look_timestamp_seconds") > 0.0);
    std::os::unix::fs::symlink("loop", sidecar.path().join("loop")).unwrap();
    put(&sidecar.file(), "Updating\n\nUntil: 2036-01-01T00:00:00Z\n");
    eventually("it is on", || sidecar.is_on(Some("Updating")));
    sidecar.admin("/readyz");
    let exported = sidecar.admin("/metrics").body;
    let exported: BTreeSet<_> = exported
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .map(str::to_owned)
        .collect();
    let config = with(
        &discovering(&json!([pod(&sidecar.admin.to_string(), "shop-0", "StatefulSet/shop", &[])])),
        "_interval: 15s",
        "_interval: 200ms",
    );
    let directory = tempfile::tempdir().unwrap();
    fs::copy(shipped("rules.yaml"), directory.path().join("rules.yaml")).unwrap();
    let prometheus = Prometheus::beside(directory, &config);
    for query in &queries {
        let query = with(query, VARIABLES, "namespace=~\"web\",workload=~\"shop\"");
        let query = query.replace("$__rate_interval", "1m");
        assert!(!query.contains('$'), "{query}");
        assert!(metrics(&query).is_subset(&exported), "{query}");
        eventually(&query, || {
            sidecar.admin("/readyz");
            sidecar.traffic("/", &[]);
            let answer = prometheus.query(&query);
            assert_eq!(answer["status"], "success", "{query}: {answer}");
            !answer["data"]["result"].as_array().unwrap().is_empty()
        });
    }
    for variable in &variables[1..] {
        let query = variable["query"]["query"].as_str().unwrap();
        assert_eq!(metrics(query), BTreeSet::from(["pitstop_maintenance_mode".to_owned()]));
    }

    // The rules use nothing else, but what they record.
    let rules = prometheus.api("rules");
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap();
    assert_eq!(rules.len(), 7);
    for rule in rules {
        let query = rule["query"].as_str().unwrap().replace("workload:pitstop_maintenance_mode:ratio", "");
        assert!(metrics(&query).is_subset(&exported), "{query}");
    }
    // What the text offers for dashboards of one's own is this dashboard's query for a single workload.
    let annotation = dashboard["annotations"]["list"][1]["expr"].as_str().unwrap();
    let annotation = with(annotation, VARIABLES, "namespace=\"web\",workload=\"shop\"");
    let (readme, quoted) = (text("README.md"), annotation.replace('"', "\\\""));
    assert!(readme.contains(&format!("\n{annotation}\n")) && readme.contains(&quoted), "{annotation}");
}
