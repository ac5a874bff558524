//! The Helm charts: what they render, for each version of Kubernetes.
//!
//! The table of values is charts/pitstop/ci. Rendered examples and the library's copy of the alerts are committed;
//! `PITSTOP_UPDATE_RENDERED=1 cargo test --test it chart` makes them anew.
//!
//! Needs Helm, in PATH or in target/tools, where tests/run puts it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture::Printed;
use crate::manifests::{assert_valid, containers, documents, list, root, versions, violations};

/// What has to be set.
pub const IMAGE: [&str; 2] = ["--set", "app.image.repository=shop"];

/// Older versions, of which there are no schemas: the oldest that the charts take, and one with `policy/v1`.
const OLDER: [&str; 2] = ["1.20", "1.21"];

fn helm() -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).chain([root().join("target/tools")]).map(|directory| directory.join("helm"));
    let helm = found.into_iter().find(|helm| helm.is_file());
    let mut command = Command::new(helm.expect("helm is missing: tests/run installs it"));
    // Of its own: no plugins, no repositories, no cluster.
    let home = root().join("target/helm");
    for (name, value) in [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")] {
        command.env(name, home.join(value));
    }
    command.env("KUBECONFIG", home.join("none"));
    command
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => _ = fs::copy(entry.path(), to).unwrap(),
        }
    }
}

/// A copy of the charts, without what earlier commands have left in them.
pub struct Charts(TempDir);

impl Charts {
    /// As they are in a clone.
    pub fn cloned() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for chart in ["pitstop", "pitstop-sidecar"] {
            let copied = directory.path().join(chart);
            copy(&root().join("charts").join(chart), &copied);
            let _ = fs::remove_dir_all(copied.join("charts"));
            let _ = fs::remove_file(copied.join("Chart.lock"));
        }
        Self(directory)
    }

    /// With the library in its place.
    pub fn complete() -> Self {
        let charts = Self::cloned();
        copy(&charts.path("pitstop-sidecar"), &charts.path("pitstop/charts/pitstop-sidecar"));
        charts
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// A Helm command, where the charts are.
    pub fn helm<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Printed {
        helm().args(arguments).current_dir(self.0.path()).output().unwrap().into()
    }

    /// What `helm template shop pitstop` renders.
    #[track_caller]
    fn template(&self, arguments: &[&str]) -> String {
        let printed = self.helm([&["template", "shop", "pitstop"], arguments].concat());
        assert_eq!(printed.code, Some(0), "{arguments:?}: {}", printed.stderr);
        printed.stdout
    }
}

/// The table of values: names, and files beside the charts.
fn cases() -> Vec<(String, String)> {
    let mut names: Vec<_> = fs::read_dir(root().join("charts/pitstop/ci"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
        .into_iter()
        .map(|name| (name.strip_suffix("-values.yaml").unwrap().to_owned(), format!("pitstop/ci/{name}")))
        .collect()
}

/// 1.29 is at least 1.3, and 1.3 is not at least 1.29.
fn at_least(version: &str, least: u32) -> bool {
    version.strip_prefix("1.").unwrap().parse::<u32>().unwrap() >= least
}

/// One rendering of the chart, read.
struct Rendered<'a> {
    case: &'a str,
    version: &'a str,
    objects: &'a [Value],
}

impl Rendered<'_> {
    fn all(&self, kind: &str) -> Vec<&Value> {
        self.objects.iter().filter(|object| object["kind"] == kind).collect()
    }

    #[track_caller]
    fn get(&self, kind: &str, name: &str) -> &Value {
        let found: Vec<_> = self.all(kind).into_iter().filter(|object| object["metadata"]["name"] == name).collect();
        assert_eq!(found.len(), 1, "{self}: {kind} {name}");
        found[0]
    }

    fn name(&self) -> &str {
        self.all("Deployment")[0]["metadata"]["name"].as_str().unwrap()
    }

    fn pod(&self) -> &Value {
        &self.all("Deployment")[0]["spec"]["template"]["spec"]
    }

    fn sidecar(&self) -> &Value {
        let found: Vec<_> = containers(self.pod()).filter(|container| container["name"] == "pitstop").collect();
        assert_eq!(found.len(), 1, "{self}");
        found[0]
    }

    fn app(&self) -> &Value {
        assert_eq!(self.pod()["containers"][0]["name"], "app", "{self}");
        &self.pod()["containers"][0]
    }
}

impl std::fmt::Display for Rendered<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} for Kubernetes {}", self.case, self.version)
    }
}

/// Whether a case is one that this version takes: native sidecars are there from 1.28 on.
fn is_taken((case, _): &(String, String), version: &str) -> bool {
    case != "native-always" || at_least(version, 28)
}

/// All cases, for all versions that take them: the text of each.
fn render_all(charts: &Charts, versions: &[String]) -> Vec<(String, String, String)> {
    let todo: Mutex<Vec<_>> = Mutex::new(
        cases()
            .iter()
            .flat_map(|case| versions.iter().map(|version| (case.clone(), version.clone())))
            .filter(|(case, version)| is_taken(case, version))
            .collect(),
    );
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some(((case, values), version)) = todo.lock().unwrap().pop() else { break };
                    let text = charts.template(&["--kube-version", &version, "--values", &values]);
                    done.lock().unwrap().push((case, version, text));
                }
            });
        }
    });
    done.into_inner().unwrap()
}

#[test]
fn every_rendering_is_valid_and_right() {
    let (charts, known) = (Charts::complete(), versions());
    let all = [&OLDER.map(str::to_owned), &known[..]].concat();
    let rendered = render_all(&charts, &all);
    assert!(rendered.len() > 100, "{}", rendered.len());
    for version in &known {
        let mut files = Vec::new();
        for (case, _, text) in rendered.iter().filter(|(_, rendered, _)| rendered == version) {
            files.push(charts.path(&format!("{case}-{version}.yaml")));
            fs::write(files.last().unwrap(), text).unwrap();
        }
        assert_valid(&[version], &files);
    }
    let read = documents(&rendered.iter().map(|(_, _, text)| text.as_str()).collect::<Vec<_>>());
    for ((case, version, _), objects) in rendered.iter().zip(&read) {
        let rendered = Rendered { case, version, objects };
        the_sidecar_is_right(&rendered);
        the_pod_is_right(&rendered);
        the_services_are_right(&rendered);
        the_other_objects_are_right(&rendered);
    }
}

/// Whether the sidecar is a native one.
fn is_native(case: &str, version: &str) -> bool {
    match case {
        "native-always" => true,
        "native-never" | "custom" => false,
        _ => at_least(version, 29),
    }
}

/// Whether it is in front of the application.
fn is_gate(case: &str) -> bool {
    case.starts_with("gate")
}

fn the_sidecar_is_right(rendered: &Rendered) {
    let (pod, sidecar) = (rendered.pod(), rendered.sidecar());
    if is_native(rendered.case, rendered.version) {
        assert_eq!(&pod["initContainers"][0], sidecar, "{rendered}");
        assert_eq!(sidecar["restartPolicy"], "Always", "{rendered}");
    } else {
        assert_eq!(list(&pod["containers"]).last(), Some(sidecar), "{rendered}");
        assert_eq!(sidecar["restartPolicy"], Value::Null, "{rendered}");
    }
    let port = |name, number| json!({"name": name, "containerPort": number, "protocol": "TCP"});
    assert_eq!(sidecar["ports"], json!([port("pitstop", 8503), port("pitstop-admin", 9503)]), "{rendered}");
    assert_eq!(sidecar["resources"]["limits"]["cpu"], Value::Null, "{rendered}: no limit for the processor");
    let ready = if is_gate(rendered.case) { "/readyz?exclude=maintenance" } else { "/readyz" };
    for (probe, path) in [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", ready)] {
        assert_eq!(sidecar[probe]["httpGet"], json!({"path": path, "port": "pitstop-admin"}), "{rendered}");
    }
    let environment =
        |name: &str| list(&sidecar["env"]).iter().find(|each| each["name"] == name).map(|each| &each["value"]);
    let (upstream, timeout) = match rendered.case {
        "gate" => (Some(json!("http://127.0.0.1:8080")), None),
        "gate-localhost" => (Some(json!("http://[::1]:3000")), Some(json!("2m"))),
        _ => (None, None),
    };
    for (name, value) in [("PITSTOP_UPSTREAM", upstream), ("PITSTOP_UPSTREAM_TIMEOUT", timeout)] {
        assert_eq!(environment(name), value.as_ref(), "{rendered}");
    }
    let (title, logo) = match rendered.case {
        "page" => (Some(json!("The Shop")), Some(json!("/maintenance-page/logo.svg"))),
        _ => (None, None),
    };
    let accent = title.as_ref().map(|_| json!("#0a7"));
    let page = [("TITLE", title), ("ACCENT", accent), ("LOGO", logo.clone()), ("PAGE", None)];
    for (name, value) in page {
        assert_eq!(environment(&format!("PITSTOP_{name}")), value.as_ref(), "{rendered}");
    }
    let mut mounts: Vec<_> =
        list(&sidecar["volumeMounts"]).iter().map(|mount| mount["mountPath"].as_str().unwrap()).collect();
    assert_eq!(mounts.pop_if(|mount| *mount == "/maintenance-page").is_some(), logo.is_some(), "{rendered}");
    let files = mounts.iter().map(|mount| format!("{mount}/MAINTENANCE")).collect::<Vec<_>>().join(":");
    if rendered.case == "shared-switch" {
        assert_eq!((&*files, environment("PITSTOP_FILE")), ("/maintenance/MAINTENANCE", None), "{rendered}");
    } else {
        assert_eq!(files, "/maintenance/MAINTENANCE:/maintenance-fleet/MAINTENANCE", "{rendered}");
        assert_eq!(environment("PITSTOP_FILE"), Some(&json!(files)), "{rendered}");
        assert_eq!(sidecar["volumeMounts"][1]["readOnly"], true, "{rendered}");
    }
    let mut context = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": true, "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
    let user = match rendered.case {
        "openshift" => None,
        "custom" => Some(1000),
        _ => Some(65532),
    };
    if let Some(user) = user {
        context["runAsUser"] = json!(user);
        context["runAsGroup"] = json!(user);
    }
    assert_eq!(sidecar["securityContext"], context, "{rendered}");

    if rendered.case == "custom" {
        let settings = [
            ("PITSTOP_SHUTDOWN_DELAY", "15s"),
            ("PITSTOP_DRAIN_TIMEOUT", "30s"),
            ("PITSTOP_RETRY_AFTER", "2m"),
            ("PITSTOP_POLL", "5s"),
            ("PITSTOP_LOG", "debug"),
            ("PITSTOP_LOG_FORMAT", "json"),
            ("PITSTOP_MAX_CONNECTIONS", "500"),
        ];
        for (name, value) in settings {
            assert_eq!(environment(name), Some(&json!(value)), "{rendered}");
        }
        assert_eq!(sidecar["image"], "mirror.example.org/pitstop:0.1.0-1", "{rendered}");
        assert_eq!(sidecar["imagePullPolicy"], "Always", "{rendered}");
        let resources = json!({"requests": {"cpu": "5m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}});
        assert_eq!(sidecar["resources"], resources, "{rendered}");
        let changed = [
            ("startupProbe", "timeoutSeconds", 3),
            ("livenessProbe", "periodSeconds", 20),
            ("readinessProbe", "periodSeconds", 2),
        ];
        for (probe, key, value) in changed {
            assert_eq!(sidecar[probe][key], value, "{rendered}");
        }
        return;
    }
    assert_eq!(sidecar["image"], format!("pitstop:{}", env!("CARGO_PKG_VERSION")), "{rendered}");
    assert_eq!(sidecar["imagePullPolicy"], "IfNotPresent", "{rendered}");
    let resources = match rendered.case {
        "gate" => json!({"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "512Mi"}}),
        "gate-localhost" => json!({"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "256Mi"}}),
        _ => json!({"requests": {"cpu": "1m", "memory": "8Mi"}, "limits": {"memory": "32Mi"}}),
    };
    assert_eq!(sidecar["resources"], resources, "{rendered}");
    for (probe, period, timeout, failures) in
        [("startupProbe", 1, 1, 30), ("livenessProbe", 10, 5, 3), ("readinessProbe", 1, 5, 1)]
    {
        let numbers = ["periodSeconds", "timeoutSeconds", "failureThreshold"].map(|key| &sidecar[probe][key]);
        assert_eq!(numbers, [period, timeout, failures], "{rendered}: {probe}");
    }
}

fn the_pod_is_right(rendered: &Rendered) {
    let pod = rendered.pod();
    assert_eq!(violations(pod), Vec::<String>::new(), "{rendered}");
    assert_eq!(violations(&rendered.all("Pod")[0]["spec"]), Vec::<String>::new(), "{rendered}: the test");
    assert_eq!(
        (&pod["automountServiceAccountToken"], &pod["enableServiceLinks"]),
        (&json!(false), &json!(false)),
        "{rendered}"
    );
    assert_eq!(rendered.app()["securityContext"]["readOnlyRootFilesystem"], true, "{rendered}");

    // What refers to something finds it, and nothing is there for nothing.
    let names = |values: &Value| list(values).iter().map(|each| each["name"].to_string()).collect::<Vec<_>>();
    let volumes = names(&pod["volumes"]);
    let mounted: BTreeSet<_> = containers(pod).flat_map(|container| names(&container["volumeMounts"])).collect();
    assert_eq!(volumes.iter().cloned().collect::<BTreeSet<_>>(), mounted, "{rendered}");
    let ports: Vec<_> = containers(pod).flat_map(|container| names(&container["ports"])).collect();
    let containers: Vec<_> = containers(pod).map(|container| container["name"].to_string()).collect();
    for names in [volumes, ports, containers] {
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{rendered}: {names:?}");
    }

    let volume = |name| list(&pod["volumes"]).iter().find(|volume| volume["name"] == name);
    let own = match rendered.case {
        "shared-switch" => json!({"persistentVolumeClaim": {"claimName": "shop-pitstop-maintenance"}}),
        "custom" => json!({"persistentVolumeClaim": {"claimName": "web-maintenance"}}),
        "existing-claim" => json!({"persistentVolumeClaim": {"claimName": "shop-data"}}),
        _ => json!({"emptyDir": {}}),
    };
    let (key, value) = own.as_object().unwrap().iter().next().unwrap();
    assert_eq!(&volume("maintenance").unwrap()[key], value, "{rendered}");
    let config_map = match rendered.case {
        "shared-switch" => None,
        "fleet" => Some("maintenance"),
        "custom" => Some("shop-switch"),
        _ => Some("shop-pitstop-maintenance"),
    };
    let fleet = config_map.map(|name| json!({"name": name, "optional": true}));
    assert_eq!(volume("maintenance-fleet").map(|volume| &volume["configMap"]), fleet.as_ref(), "{rendered}");

    let mount =
        |path: &str| list(&rendered.app()["volumeMounts"]).iter().find(|mount| mount["mountPath"] == path).cloned();
    let path = if rendered.case == "custom" { "/srv/maintenance" } else { "/maintenance" };
    assert_eq!(mount(path), Some(json!({"name": "maintenance", "mountPath": path})), "{rendered}");
    assert_eq!(mount("/maintenance-fleet").is_some(), rendered.case == "fleet", "{rendered}");

    let (seconds, grace) = if rendered.case == "custom" { (20, 60) } else { (10, 30) };
    let pre_stop = if at_least(rendered.version, 30) && rendered.case != "custom" {
        json!({"sleep": {"seconds": seconds}})
    } else {
        json!({"exec": {"command": ["sleep", seconds.to_string()]}})
    };
    assert_eq!(rendered.app()["lifecycle"]["preStop"], pre_stop, "{rendered}");
    assert_eq!(pod["terminationGracePeriodSeconds"], grace, "{rendered}");
    let probe = match rendered.case {
        "custom" => json!({"tcpSocket": {"port": "http"}}),
        "gate-localhost" => json!({"exec": {"command": ["curl", "-fsS", "http://[::1]:3000/"]}}),
        _ => json!({"httpGet": {"path": "/", "port": "http"}}),
    };
    assert_eq!(rendered.app()["readinessProbe"], probe, "{rendered}");
    if rendered.case == "custom" {
        assert_eq!(pod["initContainers"][0]["name"], "migrate", "{rendered}");
        let digest =
            "nginxinc/nginx-unprivileged@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        assert_eq!(rendered.app()["image"], digest, "{rendered}");
    }
}

fn the_services_are_right(rendered: &Rendered) {
    let (name, deployment) = (rendered.name(), rendered.all("Deployment")[0]);
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    let selector = &deployment["spec"]["selector"]["matchLabels"];
    for (label, value) in selector.as_object().unwrap() {
        assert_eq!(&labels[label], value, "{rendered}");
    }
    // The test's pod belongs to nothing.
    assert_ne!(
        rendered.all("Pod")[0]["metadata"]["labels"]["app.kubernetes.io/name"],
        selector["app.kubernetes.io/name"]
    );
    let custom = rendered.case == "custom";
    let target = if is_gate(rendered.case) { "pitstop" } else { "http" };
    let mut services = vec![
        (
            name.to_owned(),
            json!([{"name": "http", "port": if custom { 8000 } else { 80 }, "targetPort": target, "protocol": "TCP"}]),
        ),
        (
            format!("{name}-maintenance"),
            json!([{"name": "http", "port": if custom { 8080 } else { 80 }, "targetPort": "pitstop", "protocol": "TCP"}]),
        ),
        (
            format!("{name}-test"),
            json!([{"name": "admin", "port": 9503, "targetPort": "pitstop-admin", "protocol": "TCP"}]),
        ),
    ];
    // The Service itself shows the page then.
    services.retain(|(service, _)| !(is_gate(rendered.case) && service.ends_with("-maintenance")));
    assert_eq!(rendered.all("Service").len(), services.len(), "{rendered}");
    for (service, ports) in services {
        let spec = &rendered.get("Service", &service)["spec"];
        assert_eq!((&spec["selector"], &spec["ports"]), (selector, &ports), "{rendered}: {service}");
        let unready = if service.ends_with("-maintenance") { json!(true) } else { Value::Null };
        assert_eq!(spec["publishNotReadyAddresses"], unready, "{rendered}: {service}");
    }
}

fn the_other_objects_are_right(rendered: &Rendered) {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for object in rendered.objects {
        *kinds.entry(object["kind"].as_str().unwrap()).or_default() += 1;
    }
    let name = rendered.name();
    let (case, version) = (rendered.case, rendered.version);
    let services = if is_gate(case) { 2 } else { 3 };
    let mut expected = BTreeMap::from([("Deployment", 1), ("Service", services), ("Pod", 1)]);
    if ["replicas", "shared-switch", "existing-claim", "custom", "gate-localhost"].contains(&case)
        && at_least(version, 21)
    {
        expected.insert("PodDisruptionBudget", 1);
        let spec = &rendered.get("PodDisruptionBudget", name)["spec"];
        let policy = if at_least(version, 27) { json!("AlwaysAllow") } else { Value::Null };
        assert_eq!(spec["unhealthyPodEvictionPolicy"], policy, "{rendered}");
        let most = if case == "custom" { json!("40%") } else { json!(1) };
        assert_eq!(spec["maxUnavailable"], most, "{rendered}");
    }
    if ["shared-switch", "custom"].contains(&case) {
        expected.insert("PersistentVolumeClaim", 1);
        let spec = &rendered.get("PersistentVolumeClaim", &format!("{name}-maintenance"))["spec"];
        let (modes, size) = if case == "custom" { ("ReadWriteOnce", "5Mi") } else { ("ReadWriteMany", "1Mi") };
        assert_eq!(spec["accessModes"], json!([modes]), "{rendered}");
        assert_eq!(spec["resources"]["requests"]["storage"], size, "{rendered}");
    }
    if ["monitoring", "custom"].contains(&case) {
        expected.extend([("PodMonitor", 1), ("PrometheusRule", 1)]);
        let monitor = rendered.get("PodMonitor", name);
        let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
        assert_eq!(endpoint["port"], "pitstop-admin", "{rendered}");
        assert_eq!(endpoint["interval"], if case == "custom" { "30s" } else { "15s" }, "{rendered}");
        let rule = rendered.get("PrometheusRule", &format!("{name}-maintenance"));
        for object in [monitor, rule] {
            let label = if case == "custom" { Value::Null } else { json!("prometheus") };
            assert_eq!(object["metadata"]["labels"]["release"], label, "{rendered}");
        }
        let rules = list(&rule["spec"]["groups"][0]["rules"]);
        let long = rules.iter().find(|rule| rule["alert"] == "MaintenanceModeLong").unwrap();
        let (expression, description) =
            (long["expr"].as_str().unwrap(), long["annotations"]["description"].as_str().unwrap());
        let (limit, said) = if case == "custom" {
            ("> 2 * 60 * 60\n", "for more than two hours")
        } else {
            ("> 12 * 60 * 60\n", "for more than 12 hours")
        };
        assert!(expression.ends_with(limit) && description.contains(said), "{rendered}: {long}");
    }
    if ["network-policy", "custom", "gate"].contains(&case) {
        expected.insert("NetworkPolicy", 2);
        let ingress = &rendered.get("NetworkPolicy", name)["spec"]["ingress"];
        let admitted =
            if is_gate(case) { json!([{"port": "pitstop"}]) } else { json!([{"port": "http"}, {"port": "pitstop"}]) };
        assert_eq!(ingress[0]["ports"], admitted, "{rendered}");
        assert_eq!(ingress[1]["ports"], json!([{"port": "pitstop-admin"}]), "{rendered}");
        for rule in list(ingress) {
            assert_eq!(list(&rule["from"]).len(), 1, "{rendered}");
        }
        let test = &rendered.get("NetworkPolicy", &format!("{name}-test"))["spec"]["ingress"][0]["from"][0];
        let label = &rendered.all("Pod")[0]["metadata"]["labels"]["app.kubernetes.io/name"];
        assert_eq!(&test["podSelector"]["matchLabels"]["app.kubernetes.io/name"], label, "{rendered}");
    }
    assert_eq!(kinds, expected, "{rendered}");
}

#[test]
fn monitoring_is_as_without_helm() {
    let charts = Charts::complete();
    let enabled = "sidecar.podMonitor.enabled=true,sidecar.prometheusRule.enabled=true";
    let text = charts.template(&[&IMAGE[..], &["--set", enabled]].concat());
    let monitoring = root().join("deploy/monitoring");
    let [rules, monitor] = ["rules.yaml", "podmonitor.yaml"].map(|name| monitoring.join(name));
    let read = documents(&[&text, &fs::read_to_string(rules).unwrap(), &fs::read_to_string(&monitor).unwrap()]);
    let rendered = |kind: &str| &read[0].iter().find(|object| object["kind"] == kind).unwrap()["spec"];
    assert_eq!(rendered("PrometheusRule"), &read[1][0]);
    assert_eq!(rendered("PodMonitor")["podMetricsEndpoints"], read[2][0]["spec"]["podMetricsEndpoints"]);
    // What Prometheus is to fill in came through.
    assert!(rendered("PrometheusRule").to_string().contains("{{ $labels.workload }}"));
    assert_valid(&[], &[monitor]);
}

#[test]
fn lint_has_nothing_to_say() {
    let charts = Charts::complete();
    let values = cases().into_iter().map(|(_, values)| ("pitstop", vec!["--values".to_owned(), values]));
    for (chart, arguments) in values.chain([("pitstop-sidecar", Vec::new())]) {
        let mut command = vec!["lint".to_owned(), "--strict".to_owned(), chart.to_owned()];
        command.extend(arguments);
        let printed = charts.helm(&command);
        assert_eq!(printed.code, Some(0), "{command:?}: {printed:?}");
        assert!(!printed.stdout.contains("[WARNING]") && printed.stderr.is_empty(), "{command:?}: {printed:?}");
    }
}

#[test]
fn the_command_in_the_readme_installs_from_a_clone() {
    let readme = fs::read_to_string(root().join("charts/pitstop/README.md")).unwrap();
    let command = readme.lines().find(|line| line.starts_with("helm install ")).unwrap();
    assert!(command.starts_with("helm install shop charts/pitstop --dependency-update "), "{command}");
    // The same without a cluster.
    let mut arguments: Vec<_> = command.split(' ').skip(1).collect();
    (arguments[0], arguments[2]) = ("template", "pitstop");
    let printed = Charts::cloned().helm(&arguments);
    assert_eq!(printed.code, Some(0), "{}", printed.stderr);
    assert!(printed.stdout.contains("image: \"nginxinc/nginx-unprivileged:latest\""), "{}", printed.stdout);
}

#[test]
fn notes_say_how_to_switch_it() {
    let charts = Charts::complete();
    // Notes are shown by a cluster's installation only, so they are put where templates are rendered.
    let text = fs::read_to_string(charts.path("pitstop/templates/NOTES.txt")).unwrap();
    let object =
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata: {notes: {{ include \"notes\" . | toJson }}}\n";
    let template = format!("{{{{- define \"notes\" }}}}{text}{{{{ end -}}}}\n{object}");
    fs::write(charts.path("pitstop/templates/notes.yaml"), template).unwrap();
    let notes = |values: &str| {
        let shown = ["--namespace", "market", "--values", values, "--show-only", "templates/notes.yaml"];
        documents(&[&charts.template(&shown)])[0][0]["data"]["notes"].as_str().unwrap().to_owned()
    };
    let exec = "kubectl -n market exec deploy/shop-pitstop -c pitstop -- pitstop maintenance-mode";
    let plugin = "kubectl pitstop -n market on deploy/shop-pitstop \"Updating the instance\" --wait";
    let config_map = "kubectl -n market create configmap shop-pitstop-maintenance --from-literal=MAINTENANCE=";
    for (case, said, unsaid) in [
        (
            "minimal",
            &["The pod, ", exec, plugin, config_map, "helm -n market test shop"][..],
            &["All pods, which share"][..],
        ),
        ("replicas", &["One of the 3 pods, ", exec, plugin], &[]),
        ("shared-switch", &["All pods, which share the switch", exec], &["kubectl pitstop", "configmap", "name one"]),
        ("fleet", &["create configmap maintenance "], &[]),
        (
            "gate",
            &["shop-pitstop:80  the application, behind the gate", exec, plugin, "`helm upgrade --wait` does not"],
            &["-maintenance:80", "past the gate", "has no pods"],
        ),
        ("gate-localhost", &["can be reached past the gate, at port 3000"], &["-maintenance:80"]),
        ("custom", &["web:8000", "web-maintenance:8080", "deploy/web", "configmap shop-switch"], &["shop-pitstop"]),
    ] {
        let notes = notes(&format!("pitstop/ci/{case}-values.yaml"));
        for said in said {
            assert!(notes.contains(said), "{case}: no {said} in {notes}");
        }
        for unsaid in unsaid {
            assert!(!notes.contains(unsaid), "{case}: {unsaid} in {notes}");
        }
    }
}

/// The chart that the library's README makes, file by file.
fn charts_of_the_readme() -> Charts {
    let charts = Charts::complete();
    let readme = fs::read_to_string(root().join("charts/pitstop-sidecar/README.md")).unwrap();
    let mut blocks = 0;
    for block in readme.split("```yaml\n").skip(1) {
        let block: Vec<_> = block.lines().take_while(|line| line.trim() != "```").collect();
        let lines: Vec<_> = block.iter().map(|line| line.strip_prefix("   ").unwrap_or(line)).collect();
        let path = charts.path("shop").join(lines[0].strip_prefix("# ").unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, lines.join("\n") + "\n").unwrap();
        blocks += 1;
    }
    assert_eq!(blocks, 4);
    charts
}

#[test]
fn the_library_works_in_a_chart_of_ones_own_as_its_readme_says() {
    let charts = charts_of_the_readme();
    let update = charts.helm(["dependency", "update", "shop"]);
    assert_eq!(update.code, Some(0), "{}", update.stderr);
    for (version, native) in [("1.28", false), ("1.29", true)] {
        let printed = charts.helm(["template", "first", "shop", "--kube-version", version]);
        assert_eq!(printed.code, Some(0), "{}", printed.stderr);
        let file = charts.path("shop.yaml");
        fs::write(&file, &printed.stdout).unwrap();
        assert_valid(&[version], &[file]);
        let objects = &documents(&[&printed.stdout])[0];
        let kinds: BTreeSet<_> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, BTreeSet::from(["Deployment", "PodMonitor", "Service"]));
        let pod = &objects.iter().find(|object| object["kind"] == "Deployment").unwrap()["spec"]["template"]["spec"];
        assert_eq!(violations(pod), Vec::<String>::new());
        let (place, other) = if native { ("initContainers", "containers") } else { ("containers", "initContainers") };
        let sidecar = |place: &str| list(&pod[place]).iter().filter(|container| container["name"] == "pitstop").count();
        assert_eq!((sidecar(place), sidecar(other)), (1, 0), "{version}");
        assert_eq!(pod["containers"][0]["volumeMounts"][0]["name"], "maintenance");
        assert_eq!(pod["volumes"][1]["configMap"]["name"], "shop-maintenance");
    }
    // It does not know where the application listens, so that has to be said.
    let gate = ["template", "first", "shop", "--kube-version", "1.28", "--set", "pitstop.mode=gate"];
    let unsaid = charts.helm(gate);
    assert_eq!((unsaid.code, unsaid.stdout.as_str()), (Some(1), ""));
    assert!(unsaid.stderr.contains("gate.upstream is not set"), "{}", unsaid.stderr);
    let said = charts.helm([&gate[..], &["--set", "pitstop.gate.upstream=http://127.0.0.1:8080"]].concat());
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let objects = &documents(&[&said.stdout])[0];
    let kinds: BTreeSet<_> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, BTreeSet::from(["Deployment", "PodMonitor"]), "no maintenance Service");
    let wrong = charts.helm(["template", "first", "shop", "--set", "pitstop.podMonitor.enable=true"]);
    assert!(wrong.code == Some(1) && wrong.stderr.contains("podMonitor"), "{wrong:?}");
}

#[test]
fn two_workloads_have_a_sidecar_each() {
    let charts = charts_of_the_readme();
    let file = charts.path("shop/Chart.yaml");
    let mut chart = fs::read_to_string(&file).unwrap();
    let dependency = chart.split_once("dependencies:\n").unwrap().1.to_owned();
    chart.push_str(&dependency.replace("alias: pitstop", "alias: worker"));
    fs::write(file, chart).unwrap();
    let deployment = fs::read_to_string(charts.path("shop/templates/deployment.yaml")).unwrap();
    let worker = deployment
        .replace("\"shop\"", "\"worker\"")
        .replace("name: shop\n", "name: worker\n")
        .replace(".pitstop", ".worker");
    fs::write(charts.path("shop/templates/worker.yaml"), worker).unwrap();
    let update = charts.helm(["dependency", "update", "shop"]);
    assert_eq!(update.code, Some(0), "{}", update.stderr);
    let printed = charts.helm(["template", "first", "shop", "--set", "worker.native=never,worker.poll=9s"]);
    assert_eq!(printed.code, Some(0), "{}", printed.stderr);
    let objects = &documents(&[&printed.stdout])[0];
    let polls: Vec<_> = objects
        .iter()
        .filter(|object| object["kind"] == "Deployment")
        .map(|object| (object["metadata"]["name"].as_str().unwrap(), object.to_string().contains("PITSTOP_POLL")))
        .collect();
    assert_eq!(polls, [("shop", false), ("worker", true)]);
}

#[test]
fn the_charts_are_of_the_programs_version() {
    for chart in ["pitstop", "pitstop-sidecar"] {
        let text = fs::read_to_string(root().join(format!("charts/{chart}/Chart.yaml"))).unwrap();
        let chart = &documents(&[&text])[0][0];
        assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
        for dependency in list(&chart["dependencies"]) {
            assert_eq!(dependency["version"], chart["version"]);
        }
    }
}

/// Compares a committed file with what it should be, or puts that there if asked to.
#[track_caller]
pub fn assert_committed(path: &Path, wanted: &str) {
    if std::env::var_os("PITSTOP_UPDATE_RENDERED").is_some() {
        fs::write(path, wanted).unwrap();
    }
    let committed = fs::read_to_string(path).unwrap_or_default();
    let again = "PITSTOP_UPDATE_RENDERED=1 cargo test --test it chart";
    assert!(committed == wanted, "{} is not what it should be; to make it anew: {again}", path.display());
}

#[test]
fn rendered_examples_are_what_the_charts_render() {
    // A chart has no files but its own.
    let rules = fs::read_to_string(root().join("deploy/monitoring/rules.yaml")).unwrap();
    assert_committed(&root().join("charts/pitstop-sidecar/rules.yaml"), &rules);
    let charts = Charts::complete();
    let directory = root().join("charts/rendered");
    let native = cases().into_iter().map(|case| (case, "1.34"));
    let ordinary = cases().into_iter().filter(|(case, _)| case == "minimal").map(|case| (case, "1.28"));
    let mut names = BTreeSet::new();
    for ((case, values), version) in native.chain(ordinary) {
        let text = charts.template(&["--kube-version", version, "--values", &values]);
        let name = if version == "1.28" { format!("{case}-{version}.yaml") } else { format!("{case}.yaml") };
        let command = format!("helm template shop charts/pitstop --kube-version {version} --values charts/{values}");
        assert_committed(&directory.join(&name), &format!("# {command}\n{text}"));
        names.insert(name);
    }
    let there: BTreeSet<_> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(there, names, "what is in charts/rendered, and what should be");
}
