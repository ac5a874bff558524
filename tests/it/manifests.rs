//! Kubernetes manifests: reading them, validating them, and the restricted Pod Security Standard. That these find what is
//! wrong is tested here; the manifests themselves are by the tests of whatever renders them.
//!
//! Needs target/test-venv and target/node-tools, which tests/run makes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::fixture::Printed;

/// The project's directory.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a command that reads this.
#[track_caller]
fn fed(command: &mut Command, input: &str) -> Printed {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // One that ends without reading says why.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap().into()
}

/// The YAML documents in each of some texts.
#[track_caller]
pub fn documents(texts: &[&str]) -> Vec<Vec<Value>> {
    const READ: &str = "import json, sys, yaml\n\
                        read = lambda text: [each for each in yaml.load_all(text, yaml.CSafeLoader) if each]\n\
                        print(json.dumps([read(text) for text in json.load(sys.stdin)]))";
    let python = root().join("target/test-venv/bin/python");
    assert!(python.exists(), "target/test-venv is missing: run tests/run");
    let printed = fed(Command::new(python).args(["-c", READ]), &serde_json::to_string(texts).unwrap());
    assert_eq!(printed.code, Some(0), "{}", printed.stderr);
    serde_json::from_str(&printed.stdout).unwrap()
}

/// `tests/validate-manifests`
fn validate(arguments: &[&str], input: &str) -> Printed {
    fed(Command::new(root().join("tests/validate-manifests")).args(arguments), input)
}

/// The versions of Kubernetes that there are schemas of, such as 1.25.
pub fn versions() -> Vec<String> {
    validate(&["--versions"], "").stdout.lines().map(str::to_owned).collect()
}

/// Fails the test unless these files are valid for these versions of Kubernetes; without one, for all.
#[track_caller]
pub fn assert_valid(versions: &[&str], files: &[PathBuf]) {
    let mut arguments: Vec<&str> = versions.iter().flat_map(|version| ["--kubernetes", version]).collect();
    arguments.extend(files.iter().map(|file| file.to_str().unwrap()));
    let printed = validate(&arguments, "");
    assert_eq!(printed, Printed { code: Some(0), stdout: String::new(), stderr: String::new() });
}

/// A list in a manifest; none where there is no such field.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// All containers of a pod, the init containers first.
pub fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    list(&pod["initContainers"]).iter().chain(list(&pod["containers"])).chain(list(&pod["ephemeralContainers"]))
}

/// What the Pod Security Standard *restricted* has against a pod's `spec`, after its published tables, the rules of
/// *baseline* included.
pub fn violations(pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut wrong = |wrong: bool, what: String| {
        if wrong {
            found.push(what);
        }
    };
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        wrong(pod[field] == true, field.to_owned());
    }
    for volume in list(&pod["volumes"]) {
        let restricted = [
            "configMap",
            "csi",
            "downwardAPI",
            "emptyDir",
            "ephemeral",
            "persistentVolumeClaim",
            "projected",
            "secret",
        ];
        let kinds = volume.as_object().unwrap().keys().filter(|key| *key != "name");
        for kind in kinds.filter(|kind| !restricted.contains(&kind.as_str())) {
            wrong(true, format!("volume {}: {kind}", volume["name"]));
        }
    }
    const SYSCTLS: [&str; 10] = [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_syncookies",
    ];
    for sysctl in list(&pod["securityContext"]["sysctls"]) {
        wrong(!SYSCTLS.contains(&sysctl["name"].as_str().unwrap_or_default()), format!("sysctl {}", sysctl["name"]));
    }
    let contexts =
        std::iter::once(("pod".to_owned(), &pod["securityContext"])).chain(containers(pod).map(|container| {
            (container["name"].as_str().unwrap_or_default().to_owned(), &container["securityContext"])
        }));
    for (name, context) in contexts {
        wrong(context["windowsOptions"]["hostProcess"] == true, format!("{name}: hostProcess"));
        wrong(context["runAsUser"] == 0, format!("{name}: runAsUser 0"));
        let selinux = &context["seLinuxOptions"];
        let types = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
        wrong(!types.contains(&selinux["type"].as_str().unwrap_or_default()), format!("{name}: SELinux type"));
        wrong(!selinux["user"].is_null() || !selinux["role"].is_null(), format!("{name}: SELinux user or role"));
        wrong(context["appArmorProfile"]["type"] == "Unconfined", format!("{name}: AppArmor Unconfined"));
        wrong(context["seccompProfile"]["type"] == "Unconfined", format!("{name}: seccomp Unconfined"));
    }
    for container in containers(pod) {
        let (name, context) = (container["name"].as_str().unwrap_or_default(), &container["securityContext"]);
        // What a container does not say, the pod says for it.
        let either =
            |field: &str| if context[field].is_null() { &pod["securityContext"][field] } else { &context[field] };
        wrong(context["privileged"] == true, format!("{name}: privileged"));
        wrong(context["allowPrivilegeEscalation"] != false, format!("{name}: allowPrivilegeEscalation"));
        wrong(either("runAsNonRoot") != true, format!("{name}: runAsNonRoot"));
        let seccomp = either("seccompProfile")["type"].as_str().unwrap_or_default();
        wrong(!["RuntimeDefault", "Localhost"].contains(&seccomp), format!("{name}: seccompProfile"));
        let capabilities = &context["capabilities"];
        wrong(!list(&capabilities["drop"]).contains(&json!("ALL")), format!("{name}: capabilities not dropped"));
        let added = list(&capabilities["add"]).iter().any(|added| added != "NET_BIND_SERVICE");
        wrong(added, format!("{name}: capabilities added"));
        let mount = context["procMount"].as_str().unwrap_or("Default");
        wrong(mount != "Default", format!("{name}: procMount"));
        let ports = list(&container["ports"]).iter().any(|port| port["hostPort"].as_u64().unwrap_or(0) != 0);
        wrong(ports, format!("{name}: hostPort"));
        let hooks =
            ["/livenessProbe", "/readinessProbe", "/startupProbe", "/lifecycle/preStop", "/lifecycle/postStart"];
        for hook in hooks {
            for action in ["httpGet", "tcpSocket"] {
                let host = container.pointer(&format!("{hook}/{action}/host"));
                wrong(host.is_some_and(|host| host != ""), format!("{name}: {hook} of another host"));
            }
        }
    }
    found
}

/// A pod that the restricted standard has nothing against.
fn restricted() -> Value {
    let context = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true,
        "seccompProfile": {"type": "RuntimeDefault"}});
    let container = |name| json!({"name": name, "image": "shop", "securityContext": context});
    json!({
        "initContainers": [container("first")],
        "containers": [container("app")],
        "volumes": [{"name": "own", "emptyDir": {}}],
    })
}

#[test]
fn what_the_restricted_standard_has_something_against() {
    assert_eq!(violations(&restricted()), Vec::<String>::new());
    let table = [
        ("/hostNetwork", json!(true), "hostNetwork"),
        ("/hostPID", json!(true), "hostPID"),
        ("/hostIPC", json!(true), "hostIPC"),
        ("/volumes/0", json!({"name": "own", "hostPath": {"path": "/"}}), "volume \"own\": hostPath"),
        ("/securityContext", json!({"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}), "sysctl \"kernel.msgmax\""),
        ("/securityContext", json!({"runAsUser": 0}), "pod: runAsUser 0"),
        ("/securityContext", json!({"seccompProfile": {"type": "Unconfined"}}), "pod: seccomp Unconfined"),
        ("/containers/0/securityContext/windowsOptions", json!({"hostProcess": true}), "app: hostProcess"),
        ("/containers/0/securityContext/privileged", json!(true), "app: privileged"),
        ("/containers/0/securityContext/allowPrivilegeEscalation", Value::Null, "app: allowPrivilegeEscalation"),
        ("/initContainers/0/securityContext/allowPrivilegeEscalation", json!(true), "first: allowPrivilegeEscalation"),
        ("/containers/0/securityContext/runAsNonRoot", Value::Null, "app: runAsNonRoot"),
        ("/containers/0/securityContext/runAsUser", json!(0), "app: runAsUser 0"),
        ("/containers/0/securityContext/seccompProfile", Value::Null, "app: seccompProfile"),
        ("/initContainers/0/securityContext/capabilities", Value::Null, "first: capabilities not dropped"),
        ("/containers/0/securityContext/capabilities/add", json!(["NET_ADMIN"]), "app: capabilities added"),
        ("/containers/0/securityContext/procMount", json!("Unmasked"), "app: procMount"),
        ("/containers/0/securityContext/seLinuxOptions", json!({"type": "spc_t"}), "app: SELinux type"),
        ("/containers/0/securityContext/seLinuxOptions", json!({"role": "r"}), "app: SELinux user or role"),
        ("/containers/0/securityContext/appArmorProfile", json!({"type": "Unconfined"}), "app: AppArmor Unconfined"),
        ("/containers/0/ports", json!([{"containerPort": 80, "hostPort": 80}]), "app: hostPort"),
        (
            "/containers/0/livenessProbe",
            json!({"httpGet": {"host": "example.org", "port": 80}}),
            "app: /livenessProbe of another host",
        ),
    ];
    for (path, value, violation) in table {
        let mut pod = restricted();
        let (parent, key) = path.rsplit_once('/').unwrap();
        match pod.pointer_mut(parent).unwrap() {
            Value::Array(list) => list[key.parse::<usize>().unwrap()] = value,
            object => object[key] = value,
        }
        assert_eq!(violations(&pod), [violation], "{path}");
    }
    // The pod speaks for its containers.
    let mut pod = restricted();
    for field in ["runAsNonRoot", "seccompProfile"] {
        let value = pod["containers"][0]["securityContext"].as_object_mut().unwrap().remove(field).unwrap();
        pod["initContainers"][0]["securityContext"].as_object_mut().unwrap().remove(field);
        pod["securityContext"][field] = value;
    }
    assert_eq!(violations(&pod), Vec::<String>::new());
}

#[test]
fn there_are_schemas_from_1_25_on() {
    let versions = versions();
    assert_eq!(versions[0], "1.25");
    assert!(versions.contains(&"1.34".to_owned()), "{versions:?}");
}

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: shop}\nspec: {ports: [{port: 80}]}\n";
const POD_MONITOR: &str = "apiVersion: monitoring.coreos.com/v1\nkind: PodMonitor\nmetadata: {name: shop}\n\
                           spec: {selector: {}, podMetricsEndpoints: [{port: pitstop-admin}]}\n";

const HTTP_ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: shop}\n\
                          spec: {rules: [{backendRefs: [{name: shop, port: 80, weight: 1}]}]}\n";
const INGRESS_ROUTE: &str = "apiVersion: traefik.io/v1alpha1\nkind: IngressRoute\nmetadata: {name: shop}\n\
                             spec: {routes: [{match: PathPrefix(`/`), services: [{name: shop, port: 80}]}]}\n";

#[test]
fn valid_manifests_are() {
    for text in [SERVICE, POD_MONITOR, HTTP_ROUTE, INGRESS_ROUTE] {
        let stream = format!("# A comment.\n---\n{text}---\n{text}");
        for arguments in
            [&["-"][..], &["--kubernetes", "1.29", "-"], &["--kubernetes", "v1.25", "--kubernetes", "1.34", "-"]]
        {
            let printed = validate(arguments, &stream);
            assert_eq!(printed, Printed { code: Some(0), stdout: String::new(), stderr: String::new() });
        }
    }
    let items = format!("apiVersion: v1\nkind: List\nitems:\n- {}", SERVICE.trim_end().replace('\n', "\n  "));
    assert_eq!(validate(&["-"], &items).code, Some(0));
    // Text that other readers take for a time or for an operator.
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shop}\ndata: {time: 2026-11-22T18:00:00Z, is: =}\n";
    assert_eq!(validate(&["-"], config), Printed { code: Some(0), stdout: String::new(), stderr: String::new() });
}

#[test]
fn what_is_wrong_with_a_manifest_is_said() {
    let (service, monitor) = ("-: document 1: Service shop: ", "-: document 1: PodMonitor shop: ");
    let table = [
        (SERVICE.replace("ports", "prts"), format!("{service}spec: Additional properties are not allowed ('prts'")),
        (SERVICE.replace("80", "http"), format!("{service}spec.ports[0].port: 'http' is not of type 'integer'")),
        (SERVICE.replace("v1", "v2"), format!("{service}there is no kind Service in v2")),
        (SERVICE.replace("v1", "shop.k8s.io/v1"), format!("{service}there is no kind Service in shop.k8s.io/v1")),
        (SERVICE.replace("{name: shop}", "{name: shop, name: shop}"), "-: the key 'name' is there twice".to_owned()),
        (SERVICE.replace("kind", "knd"), "-: document 1: not a Kubernetes object".to_owned()),
        (SERVICE.replace("spec: {", "spec: {{"), "-: while ".to_owned()),
        (format!("{SERVICE}---\nshop"), "-: document 2: not a Kubernetes object".to_owned()),
        (
            POD_MONITOR.replace("port:", "prt:"),
            format!("{monitor}spec.podMetricsEndpoints[0].prt: there is no such field"),
        ),
        (
            POD_MONITOR.replace("pitstop-admin", "9503"),
            format!("{monitor}spec.podMetricsEndpoints[0].port: must be string"),
        ),
        (
            HTTP_ROUTE.replace("weight", "wight"),
            "-: document 1: HTTPRoute shop: spec.rules[0].backendRefs[0].wight: there is no such field".to_owned(),
        ),
        (
            INGRESS_ROUTE.replace("services", "service"),
            "-: document 1: IngressRoute shop: spec.routes[0].service: there is no such field".to_owned(),
        ),
        (POD_MONITOR.replace("selector", "select"), format!("{monitor}spec: must have required property selector")),
        (
            POD_MONITOR.replace("PodMonitor", "PodMon"),
            "-: document 1: PodMon shop: no schema of monitoring.coreos".to_owned(),
        ),
        (POD_MONITOR.replace("coreos", "example"), format!("{monitor}no schema of monitoring.example.com/v1 is known")),
        ("# Nothing.\n".to_owned(), "-: there is no object in it".to_owned()),
    ];
    for (text, wrong) in table {
        let printed = validate(&["-"], &text);
        assert_eq!((printed.code, printed.stdout.as_str()), (Some(1), ""), "{text}");
        assert!(printed.stderr.starts_with(&wrong), "{} is not {wrong}", printed.stderr);
        assert_eq!(printed.stderr.lines().count(), 1, "{}", printed.stderr);
    }
    let missing = validate(&["/nonexistent.yaml"], "");
    assert!(missing.code == Some(1) && missing.stderr.starts_with("/nonexistent.yaml: "), "{missing:?}");
}

#[test]
fn each_version_is_its_own() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: shop}\nspec:\n  containers: [{name: app, image: shop}]\n  \
               initContainers: [{name: pitstop, image: pitstop, restartPolicy: Always}]\n";
    assert_eq!(validate(&["--kubernetes", "1.28", "-"], pod).code, Some(0));
    let printed = validate(&["-"], pod);
    assert_eq!(printed.code, Some(1));
    assert!(
        printed.stderr.trim_end().ends_with("('restartPolicy' was unexpected) (Kubernetes 1.25 to 1.27)"),
        "{printed:?}"
    );
    for arguments in [&[][..], &["--kubernetes", "1.2", "-"], &["--strict", "-"]] {
        assert_eq!(validate(arguments, pod).code, Some(2), "{arguments:?}");
    }
}
