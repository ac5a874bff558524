//! `kubectl pitstop`, as an operator runs it, and the permissions it needs.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fixture::{Namespace, application_image, eventually};

const SHOP: &str = "deploy/shop-web";

/// Who is in the group of the RBAC examples, and nobody else.
const OPERATOR: [&str; 2] = ["--as=operator", "--as-group=maintenance-operators"];

/// What the plugin printed, and its exit code.
#[derive(Debug)]
pub struct Printed {
    code: Option<i32>,
    /// What it printed for people.
    pub stdout: String,
    stderr: String,
}

impl Printed {
    /// The cells of the table's row for this name: state, whether it agrees, since, until, reason.
    #[track_caller]
    fn row(&self, name: &str) -> [String; 5] {
        let lines = || self.stdout.lines();
        let line = lines().find(|line| line.split(' ').next() == Some(name)).unwrap_or_else(|| panic!("{self:?}"));
        let head = lines().next().unwrap();
        assert_eq!(
            head.split_whitespace().collect::<Vec<_>>(),
            ["NAME", "STATE", "AGREES", "SINCE", "UNTIL", "REASON"],
            "{head}"
        );
        let starts = ["STATE", "AGREES", "SINCE", "UNTIL", "REASON"].map(|column| head.find(column).unwrap());
        let cell = |index: usize| {
            let end = starts.get(index + 1).map_or(line.len(), |end| line.len().min(*end));
            line.get(starts[index]..end).unwrap_or_default().trim_end().to_owned()
        };
        [0, 1, 2, 3, 4].map(cell)
    }
}

impl Namespace {
    /// `kubectl pitstop`, found on the PATH as kubectl finds its plugins.
    fn plugin(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        let plugins = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");
        command.env("PATH", format!("{plugins}:{}", std::env::var("PATH").unwrap()));
        command.args(["pitstop", "--namespace", &self.name]).args(arguments);
        command
    }

    fn pit(&self, arguments: &[&str]) -> Printed {
        let output = self.plugin(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Printed { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs the plugin, which must say that it has done it.
    #[track_caller]
    pub fn pit_done(&self, arguments: &[&str]) -> Printed {
        let printed = self.pit(arguments);
        assert_eq!(printed.code, Some(0), "{arguments:?}: {printed:?}");
        printed
    }

    /// The data of the shop's ConfigMap.
    fn switch(&self) -> Value {
        self.get(&["configmap", "shop-maintenance"])["data"].clone()
    }

    /// A Deployment of one pod whose container `pitstop` is a shell script, with the volume that names the ConfigMap.
    #[track_caller]
    fn stand_in(&self, name: &str, script: &str, environment: &str) {
        let labels = json!({"stand-in": name});
        let container = json!({
            "name": "pitstop", "image": application_image(), "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", script], "env": [{"name": "ANSWER", "value": environment}],
            "ports": [{"name": "pitstop-admin", "containerPort": 9000}],
        });
        let volume = json!({"name": "maintenance-fleet", "configMap": {"name": name, "optional": true}});
        let pod = json!({"containers": [container], "volumes": [volume], "terminationGracePeriodSeconds": 0});
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
        });
        self.apply(&deployment.to_string());
    }

    /// Its pods.
    fn stand_ins(&self, name: &str) -> Vec<Value> {
        self.get(&["pods", &format!("--selector=stand-in={name}")])["items"].as_array().unwrap().clone()
    }

    /// The name of its pod, once that runs.
    #[track_caller]
    fn stand_in_runs(&self, name: &str) -> String {
        let running = || {
            let pods = self.stand_ins(name);
            let pod = pods.iter().find(|pod| !pod["status"]["containerStatuses"][0]["state"]["running"].is_null());
            pod.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
        };
        eventually(&format!("{name} runs"), || running().is_some());
        running().unwrap()
    }
}

/// A sidecar that answers with what the environment variable says.
const ANSWERS: &str = "mkdir /tmp/www; printf %s \"$ANSWER\" >/tmp/www/maintenance
printf 'pid /tmp/pid; events {} http { access_log off; client_body_temp_path /tmp/1; proxy_temp_path /tmp/2;
fastcgi_temp_path /tmp/3; uwsgi_temp_path /tmp/4; scgi_temp_path /tmp/5; server { listen 9000; root /tmp/www; } }' >/tmp/conf
exec nginx -e stderr -c /tmp/conf -g 'daemon off;'";

#[test]
fn the_plugin_switches_a_fleet() {
    let namespace = Namespace::new("plugin");
    namespace.shop(3);
    let pods = namespace.pods();
    let all = pods.iter().cloned().collect::<BTreeSet<_>>();
    let list = namespace.plugin(&[]).args(["--help"]).output().unwrap();
    assert!(String::from_utf8(list.stdout).unwrap().contains("kubectl pitstop on WORKLOAD"));

    // The ConfigMap may hold more, or be gone.
    namespace.kubectl(&[
        "patch",
        "configmap",
        "shop-maintenance",
        "--type=merge",
        "--patch={\"data\":{\"other\":\"key\"}}",
    ]);
    let on = || {
        let on = namespace.pit_done(&["on", SHOP, "Updating the instance", "--wait"]);
        assert!(namespace.endpoints("shop-web").is_empty(), "when it returns, it is true");
        assert_eq!(
            on.stdout,
            "deploy/shop-web: maintenance mode is on in ConfigMap shop-maintenance; 3 of 3 pods have taken it up, and no \
             Service lists them as ready\n"
        );
        assert_eq!(namespace.switch(), json!({"MAINTENANCE": "Updating the instance", "other": "key"}));
        assert_eq!(namespace.endpoints("shop-maintenance"), all, "that Service is for pods that are not ready");
    };
    let during = || {
        let status = namespace.pit_done(&["status", SHOP]);
        assert_eq!(status.stdout.lines().count(), 5, "{status:?}");
        assert_eq!(status.row("configmap/shop-maintenance"), ["on", "-", "-", "-", "Updating the instance"]);
        for pod in &pods {
            let [state, agrees, since, until, reason] = status.row(pod);
            assert_eq!([state, agrees, until, reason], ["on", "yes", "-", "Updating the instance"]);
            let told = namespace.state(pod)["since"].as_str().unwrap().to_owned();
            assert_eq!(since[..19], told[..19], "{since}");
        }
    };
    let off = || {
        let off = namespace.pit_done(&["off", SHOP, "--wait"]);
        assert_eq!(namespace.endpoints("shop-web"), all, "when it returns, it is true");
        assert_eq!(
            off.stdout,
            "deploy/shop-web: maintenance mode is off in ConfigMap shop-maintenance; 3 of 3 pods have taken it up, and the \
             ready ones are listed again\n"
        );
    };
    namespace.client().sees_maintenance(&["503 Updating the instance"], on, during, off);
    assert_eq!(namespace.switch(), json!({"other": "key"}), "the ConfigMap stays");
    let status = namespace.pit_done(&["status", "deployment.apps/shop-web"]);
    assert_eq!(status.row(&pods[0]), ["off", "yes", "-", "-", ""]);

    namespace.kubectl(&["delete", "configmap", "shop-maintenance"]);
    namespace.pit_done(&["off", SHOP, "--wait"]);
    assert_eq!(namespace.pit_done(&["status", SHOP]).row("configmap/shop-maintenance"), ["off", "-", "-", "-", ""]);
    namespace.pit_done(&["on", SHOP, "", "--until=2126-11-22T19:00:00+01:00", "--wait"]);
    let state = namespace.state(&pods[0]);
    assert_eq!((&state["reason"], &state["until"]), (&Value::Null, &json!("2126-11-22T18:00:00Z")));
    let status = namespace.pit_done(&["status", SHOP]);
    assert_eq!(status.row(&pods[1])[3..], ["2126-11-22T18:00:00Z", ""]);

    // Bytes that are not UTF-8 come to be in `binaryData`.
    let raw = "--patch={\"data\":{\"MAINTENANCE\":null},\"binaryData\":{\"MAINTENANCE\":\"/w==\"}}";
    namespace.kubectl(&["patch", "configmap", "shop-maintenance", "--type=merge", raw]);
    assert_eq!(namespace.pit(&["status", SHOP]).row("configmap/shop-maintenance")[0], "on");
    namespace.pit_done(&["on", SHOP, "Text again", "--wait"]);
    assert!(pods.iter().all(|pod| namespace.state(pod)["reason"] == "Text again"));

    // The touch, and that it can be left out.
    let touched = || -> Vec<Value> {
        let annotations = |pod: &String| namespace.get(&["pod", pod])["metadata"]["annotations"].clone();
        pods.iter().map(|pod| annotations(pod)["pitstop/refresh"].clone()).collect()
    };
    let before = touched();
    assert!(before.iter().all(|time| time.as_str().unwrap().ends_with('Z')), "{before:?}");
    let on = namespace.pit_done(&["on", SHOP, "Text again", "--no-touch"]);
    assert!(on.stdout.ends_with("; its pods take it up within a minute and a half\n"), "{on:?}");
    namespace.pit_done(&["on", SHOP, "Text again", "--no-touch", "--wait"]);
    assert_eq!(touched(), before);

    // A pod's own switch is not this one's to turn off.
    namespace.kubectl(&["exec", &pods[0], "--container=app", "--", "sh", "-c", "echo Own >/maintenance/MAINTENANCE"]);
    eventually("its own reason shows", || namespace.state(&pods[0])["reason"] == "Own");
    let status = namespace.pit_done(&["status", SHOP]);
    assert_eq!(status.row(&pods[0])[4], "Own", "on is on");
    // The others are off before, however slow the cluster is.
    namespace.pit(&["off", SHOP]);
    eventually("the others are back", || namespace.endpoints("shop-web").len() == 2);
    let off = namespace.pit(&["off", SHOP, "--wait=5"]);
    assert_eq!(off.code, Some(1));
    let own = format!("{SHOP}: pod {} is on by a file of its own, /maintenance/MAINTENANCE\n", pods[0]);
    assert!(off.stderr.ends_with(&own), "{off:?}");
    assert!(off.stderr.contains("not within 5s: 2 of 3 pods have taken it up; maintenance mode stays off"), "{off:?}");
    let status = namespace.pit(&["status", SHOP]);
    assert_eq!((status.code, status.row(&pods[0])[..2].to_vec()), (Some(1), vec!["on".to_owned(), "no".to_owned()]));
    assert!(status.stderr.ends_with(&own), "{status:?}");
    assert_eq!(namespace.restarts(), 0);
}

#[test]
fn a_reason_arrives_as_it_is() {
    let namespace = Namespace::new("reasons");
    namespace.shop(1);
    let pod = &namespace.pods()[0];
    for reason in [
        "a \"quoted\" 'one', \\back\\\\slash\\n \\u0041, $HOME `id` $(id) %s %d && ; | < > * ? [x] {} # ! ~",
        "one\ntwo\r\n\n\n\tfour",
        "\n\nleading",
        "\u{1}\u{2}\u{1b}]0;title\u{7}\u{1b}[31mred\u{8}\u{b}\u{c}\u{1f}\u{7f}.",
        "Grüße, 保守中 😀 \u{9b}2J\u{202e}turned\u{2066}\u{2028}\u{feff}.",
        "--dashed",
        "deploy/shop-web",
        "Until: noon\n\nBy: me\nUntil: soon",
    ] {
        namespace.pit_done(&["on", SHOP, "--wait", "--", reason]);
        assert_eq!(namespace.state(pod)["reason"].as_str(), Some(&*reason.replace("\r\n", "\n")));
        let status = namespace.pit_done(&["status", SHOP]);
        let shown = status.stdout.chars().filter(|c| *c != '\n');
        let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}');
        assert!(shown.clone().all(|c| !c.is_control() && !turns(c)), "{status:?}");
        assert_eq!(status.row(pod)[4], status.row("configmap/shop-maintenance")[4], "{status:?}");
    }
    // As long as it may be; and shown in short.
    let long = "ä".repeat(8192);
    namespace.pit_done(&["on", SHOP, &long, "--wait"]);
    assert_eq!(namespace.state(pod)["reason"].as_str(), Some(long.as_str()));
    let status = namespace.pit_done(&["status", SHOP]);
    assert_eq!(status.row(pod)[4], format!("{}…", "ä".repeat(100)));
}

#[test]
fn a_pod_that_starts_meanwhile_counts_and_one_that_lacks_is_named() {
    let namespace = Namespace::new("meanwhile");
    namespace.shop(1);
    let off = r#"{"enabled":false,"reason":null,"since":null,"until":null,"file":null}"#;
    namespace.stand_in("late", ANSWERS, off);
    let late = namespace.stand_in_runs("late");

    // The shop is on before, so that only the other one lacks, however slow the cluster is.
    namespace.pit_done(&["on", SHOP, "Updating", "--wait"]);
    let begin = Instant::now();
    let printed = namespace.pit(&["on", SHOP, "deploy/late", "Updating", "--wait=6"]);
    assert_eq!((printed.code, printed.stdout.as_str()), (Some(1), ""), "{printed:?}");
    assert!((6..30).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
    let last: Vec<_> = printed.stderr.lines().rev().take(2).collect();
    assert_eq!(last[0], format!("kubectl pitstop: deploy/late: pod {late} is off"));
    assert_eq!(last[1], "kubectl pitstop: not within 6s: 1 of 2 pods have taken it up; maintenance mode stays on");
    assert_eq!(namespace.switch()["MAINTENANCE"], "Updating", "the switch stays");
    namespace.pit_done(&["off", SHOP, "--wait"]);

    let mut waiting = Waiting(
        namespace
            .plugin(&["on", SHOP, "deploy/late", "Updating", "--wait=600"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    eventually("it is on", || namespace.switch()["MAINTENANCE"] == "Updating");
    // A new pod gets what the kubelet knows, and it knows what it has given to this one.
    eventually("the first pod has taken it up", || namespace.state(&namespace.pods()[0])["enabled"] == true);
    namespace.new_pods_stay_out(3, "Updating");
    assert!(waiting.0.try_wait().unwrap().is_none(), "it waits");
    let on = off.replace("false", "true").replace("\"reason\":null", "\"reason\":\"Updating\"");
    let script = format!("printf %s '{on}' >/tmp/www/maintenance");
    namespace.kubectl(&["exec", &late, "--", "sh", "-c", &script]);
    eventually("it returns", || waiting.0.try_wait().unwrap().is_some());
    let mut stdout = String::new();
    std::io::Read::read_to_string(&mut waiting.0.stdout.take().unwrap(), &mut stdout).unwrap();
    assert!(waiting.0.wait().unwrap().success());
    assert!(
        stdout.starts_with("deploy/shop-web: maintenance mode is on in ConfigMap shop-maintenance; 3 of 3 "),
        "{stdout}"
    );
    assert!(namespace.endpoints("shop-web").is_empty());
}

/// A plugin that is ended with the test.
struct Waiting(Child);

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn pods_in_every_state() {
    let namespace = Namespace::new("states");
    let hostile = "{\"enabled\":true,\"reason\":\"\\u001b[2J\\\"a\\\\|b\\n\\nfoo   off   yes\u{9b}31m\u{202e}\",\
                   \"since\":\"2026-11-22T18:00:00.123Z\\u001b[2J\",\"until\":null,\"file\":\"/fleet/MAINTENANCE\"}";
    namespace.stand_in("hostile", ANSWERS, hostile);
    namespace.stand_in("nonsense", ANSWERS, "{\"enabled\":[\"\\\n\n}{]}");
    namespace.stand_in("unseen", ANSWERS, "{\"enabled\":null,\"reason\":null}");
    namespace.stand_in("silent", "sleep 1000 | busybox nc -l -p 9000", "");
    namespace.stand_in("deaf", "exec sleep 1000", "");
    namespace.stand_in("broken", "exit 1", "");
    namespace.stand_in("pending", "exec sleep 1000", "");
    namespace.stand_in("bare", "exec sleep 1000", "");
    let rename = r#"[{"op": "replace", "path": "/spec/template/spec/containers/0/name", "value": "app"}]"#;
    namespace.kubectl(&["patch", "deployment/bare", "--type=json", "--patch", rename]);
    let nowhere = r#"{"spec":{"template":{"spec":{"nodeSelector":{"nowhere":"here"}}}}}"#;
    namespace.kubectl(&["patch", "deployment/pending", "--patch", nowhere]);
    namespace.kubectl(&["rollout", "status", "deployment/bare", "--timeout=120s"]);
    // A stranger with the labels of the hostile one.
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "stranger"},
        "spec": {"template": {"metadata": {"labels": {"stand-in": "hostile"}}, "spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "job", "image": application_image(), "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "1000"]}],
        }}},
    });
    namespace.apply(&job.to_string());
    eventually("the stranger runs", || {
        namespace.get(&["pods", "--selector=job-name=stranger"])["items"][0]["status"]["phase"] == "Running"
    });

    let status = |name: &str, pod: &str| {
        let printed = namespace.pit(&["status", &format!("deploy/{name}")]);
        (printed.row(pod), printed)
    };
    let pod = namespace.stand_in_runs("hostile");
    let (row, printed) = status("hostile", &pod);
    assert_eq!(row, ["on", "no", "-", "-", "[2J\"a\\|b foo off yes31m"]);
    assert_eq!(
        (printed.code, printed.stdout.lines().count()),
        (Some(1), 3),
        "no stranger, no forged line: {printed:?}"
    );

    for (name, why) in [
        ("nonsense", "has not seen its file yet"),
        ("unseen", "has not seen its file yet"),
        ("deaf", "cannot be asked: error trying to reach service:"),
        ("bare", "has no container pitstop"),
    ] {
        let pod = namespace.stand_in_runs(name);
        eventually("one pod is left", || namespace.stand_ins(name).len() == 1);
        let (row, printed) = status(name, &pod);
        assert!(row[4].starts_with(&format!("<{why}")), "{name}: {printed:?}");
        assert_eq!((printed.code, &row[..2]), (Some(1), &["unknown".to_owned(), "no".to_owned()][..]), "{name}");
        assert!(printed.stderr.contains(&format!("deploy/{name}: pod {pod} {why}")), "{name}: {printed:?}");
    }

    let pod = namespace.stand_in_runs("silent");
    let begin = Instant::now();
    let (row, printed) = status("silent", &pod);
    assert!(row[4].starts_with("<cannot be asked"), "{printed:?}");
    assert_eq!(printed.stderr.matches("--no-ask tells by their readiness").count(), 1, "{printed:?}");
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());

    let waits = |name: &str| namespace.stand_ins(name)[0]["status"]["containerStatuses"][0]["state"].clone();
    eventually("it is restarted again and again", || waits("broken")["waiting"]["reason"] == "CrashLoopBackOff");
    let pod = namespace.stand_ins("broken")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    let (row, printed) = status("broken", &pod);
    assert!(row[4].starts_with("<has a container pitstop that does not run"), "{printed:?}");

    // The rollout is stuck: the old pod counts, the new one not yet.
    let pods = namespace.stand_ins("pending");
    assert_eq!(pods.len(), 2);
    let printed = namespace.pit(&["status", "deploy/pending"]);
    for pod in &pods {
        let row = printed.row(pod["metadata"]["name"].as_str().unwrap());
        let new = pod["spec"]["nodeSelector"]["nowhere"] == "here";
        assert_eq!(row[4] == "<has not started>", new, "{printed:?}");
        assert_eq!(row[1], if new { "-" } else { "no" }, "{printed:?}");
    }
    assert!(printed.stderr.contains("0 of 1 pods agree"), "{printed:?}");

    // One that is being deleted: it holds on by a finalizer.
    let pod = namespace.stand_in_runs("unseen");
    namespace.kubectl(&[
        "patch",
        "pod",
        &pod,
        "--type=merge",
        r#"--patch={"metadata":{"finalizers":["pitstop/test"]}}"#,
    ]);
    namespace.kubectl(&["delete", "pod", &pod, "--wait=false"]);
    let (row, _) = status("unseen", &pod);
    namespace.kubectl(&["patch", "pod", &pod, "--type=merge", r#"--patch={"metadata":{"finalizers":null}}"#]);
    assert!(row[1] == "-" && row[4] == "<is being deleted>", "{row:?}");

    // No workload, or none with a switch.
    namespace.kubectl(&["create", "service", "clusterip", "bare", "--tcp=80"]);
    let volumes = r#"[{"op": "remove", "path": "/spec/template/spec/volumes"}]"#;
    namespace.kubectl(&["patch", "deployment/bare", "--type=json", "--patch", volumes]);
    for (workload, why) in [
        ("deploy/bare", "has no volume maintenance-fleet with a ConfigMap"),
        ("svc/bare", "is no workload with pods that a selector finds"),
        ("job/stranger", "has no volume maintenance-fleet with a ConfigMap"),
        ("deploy/none", "cannot be read: deployments.apps \"none\" not found"),
        ("up/date", "cannot be read: the server doesn't have a resource type \"up\". If it belongs to the REASON"),
    ] {
        let printed = namespace.pit(&["on", workload]);
        assert_eq!((printed.code, printed.stdout.as_str()), (Some(1), ""), "{printed:?}");
        assert!(printed.stderr.starts_with(&format!("kubectl pitstop: {workload} {why}")), "{printed:?}");
        assert_eq!(printed.stderr.lines().count(), 1, "{printed:?}");
    }
}

/// The operators' permissions, each named by a rule's resource and a verb.
fn permissions(roles: &Value) -> Vec<(usize, usize, usize, String)> {
    let mut all = Vec::new();
    for (role, manifest) in roles.as_array().unwrap().iter().enumerate() {
        for (rule, permission) in manifest["rules"].as_array().unwrap().iter().enumerate() {
            for (verb, name) in permission["verbs"].as_array().unwrap().iter().enumerate() {
                let resource = permission["resources"][0].as_str().unwrap();
                all.push((role, rule, verb, format!("{} {resource}", name.as_str().unwrap())));
            }
        }
    }
    all
}

impl Namespace {
    /// What somebody may do here.
    fn allowed(&self, who: &[&str]) -> BTreeSet<Vec<String>> {
        let mut arguments = vec!["auth", "can-i", "--list", "--no-headers"];
        arguments.extend(who);
        let list = self.kubectl(&arguments);
        list.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
    }

    /// Applies an example of deploy/rbac, and gives its Roles.
    #[track_caller]
    fn rbac(&self, example: &str) -> Value {
        self.kubectl(&["apply", "--filename", &format!("{}/deploy/rbac/{example}", env!("CARGO_MANIFEST_DIR"))]);
        self.get(&["roles"])["items"].clone()
    }
}

#[test]
fn the_permissions_of_the_switch_are_exactly_sufficient() {
    let namespace = Namespace::new("rbac");
    namespace.shop(2);
    let roles = namespace.rbac("configmap-switch.yaml");
    let as_operator = |arguments: &[&str]| namespace.pit(&[&arguments[..1], &OPERATOR, &arguments[1..]].concat());

    let given = namespace.allowed(&OPERATOR);
    let anybody = namespace.allowed(&["--as=operator"]);
    let only: Vec<_> = given.difference(&anybody).map(|line| line.join(" ")).collect();
    assert_eq!(
        only,
        [
            "configmaps [] [shop-maintenance] [get patch]",
            "deployments.apps [] [shop-web] [get]",
            "endpointslices.discovery.k8s.io [] [] [list]",
            "pods [] [] [list get patch]",
            "pods/proxy [] [] [get]",
            "services [] [] [list]",
        ]
    );

    for arguments in [&["on", SHOP, "Updating", "--wait"][..], &["status", SHOP], &["off", SHOP, "--wait"]] {
        let printed = as_operator(arguments);
        assert_eq!(printed.code, Some(0), "{printed:?}");
        assert!(!printed.stderr.contains("may not"), "{printed:?}");
    }

    // Each left out, it fails, or goes on, where it says so.
    let on = ["on", SHOP, "Updating"];
    let wait = ["on", SHOP, "Updating", "--wait"];
    let status = ["status", SHOP];
    let touches_not = "you may not patch pods, so their kubelets are not hurried";
    let sees_not = "--wait cannot see what becomes of it, so nothing was changed";
    let table: [(&str, &[&str], i32, &str); 10] = [
        ("get configmaps", &on, 1, "shop-maintenance cannot be changed"),
        ("patch configmaps", &on, 1, "shop-maintenance cannot be changed"),
        ("get deployments", &on, 1, "deploy/shop-web cannot be read"),
        ("list pods", &on, 0, "their pods cannot be touched"),
        ("list pods", &status, 1, "the pods of deploy/shop-web cannot be listed"),
        ("get pods", &on, 0, touches_not),
        ("patch pods", &on, 0, touches_not),
        ("get pods/proxy", &status, 0, "you may not get pods/proxy"),
        ("list services", &wait, 1, sees_not),
        ("list endpointslices", &wait, 1, sees_not),
    ];
    let mut tried = BTreeSet::new();
    for (role, rule, verb, name) in permissions(&roles) {
        let mut less = roles[role].clone();
        less["metadata"] = json!({"name": roles[role]["metadata"]["name"]});
        less["rules"][rule]["verbs"].as_array_mut().unwrap().remove(verb);
        if less["rules"][rule]["verbs"] == json!([]) {
            less["rules"].as_array_mut().unwrap().remove(rule);
        }
        namespace.apply(&less.to_string());
        for (_, arguments, code, complaint) in table.iter().filter(|(permission, ..)| *permission == name) {
            // What was allowed may be remembered for a moment.
            let mut printed = as_operator(arguments);
            eventually(&format!("without {name}: {complaint}: {printed:?}"), || {
                printed = as_operator(arguments);
                printed.code == Some(*code) && printed.stderr.matches(complaint).count() == 1
            });
        }
        tried.insert(name);
        namespace.rbac("configmap-switch.yaml");
    }
    assert_eq!(tried, table.iter().map(|(permission, ..)| (*permission).to_owned()).collect(), "each is in the table");
}

#[test]
fn what_may_not_be_done_is_done_without() {
    let namespace = Namespace::new("without");
    namespace.shop(2);
    namespace.rbac("configmap-switch.yaml");
    namespace.kubectl(&["delete", "rolebinding", "maintenance-switch-extras"]);
    let as_operator = |arguments: &[&str]| namespace.pit(&[&arguments[..1], &OPERATOR, &arguments[1..]].concat());
    let pods = namespace.pods();

    // The switch and nothing else.
    let printed = as_operator(&["on", SHOP, "Updating"]);
    assert_eq!((printed.code, printed.stderr.lines().count()), (Some(0), 1), "{printed:?}");
    assert_eq!(
        printed.stdout,
        "deploy/shop-web: maintenance mode is on in ConfigMap shop-maintenance; its pods take it up within a minute and a half\n"
    );
    eventually("they do", || pods.iter().all(|pod| namespace.state(pod)["reason"] == "Updating"));
    let printed = as_operator(&["off", SHOP]);
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert_eq!(namespace.switch(), Value::Null);
    namespace.kubectl(&["delete", "configmap", "shop-maintenance"]);
    let printed = as_operator(&["on", SHOP, "Updating"]);
    assert_eq!(printed.code, Some(1));
    let hint = format!("who may, writes: kubectl create configmap shop-maintenance -n {}\n", namespace.name);
    assert!(
        printed.stderr.contains("is not there and cannot be created") && printed.stderr.ends_with(&hint),
        "{printed:?}"
    );

    // Everything but asking the pods and touching them.
    let some = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "some"},
        "rules": [{"apiGroups": ["", "discovery.k8s.io"], "resources": ["pods", "services", "endpointslices"], "verbs": ["list"]}],
    });
    namespace.apply(&some.to_string());
    namespace.kubectl(&["create", "rolebinding", "some", "--role=some", "--group=maintenance-operators"]);
    namespace.rbac("configmap-switch.yaml");
    namespace.kubectl(&["delete", "rolebinding", "maintenance-switch-extras"]);
    namespace.pit_done(&["off", SHOP, "--wait"]);
    let printed = as_operator(&["on", SHOP, "Updating", "--wait=200"]);
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert!(namespace.endpoints("shop-web").is_empty());
    for note in ["you may not get pods/proxy: what follows is told by the readiness", "you may not patch pods"] {
        assert_eq!(printed.stderr.matches(note).count(), 1, "{printed:?}");
    }
    let printed = as_operator(&["status", SHOP]);
    assert_eq!(printed.code, Some(0), "{printed:?}");
    assert_eq!(printed.row(&pods[0]), ["on", "yes", "-", "-", "?"]);
    namespace.pit_done(&["off", SHOP, "--wait=200", "--no-ask"]);
    assert_eq!(namespace.endpoints("shop-web").len(), 2);
    assert_eq!(as_operator(&["status", SHOP]).row(&pods[0]), ["off", "yes", "-", "-", "?"]);
}

#[test]
fn the_permission_to_exec() {
    let namespace = Namespace::new("exec");
    namespace.shop(1);
    let pod = &namespace.pods()[0];
    namespace.rbac("exec-switch.yaml");
    let given = namespace.allowed(&OPERATOR);
    let only: Vec<_> = given.difference(&namespace.allowed(&["--as=operator"])).map(|line| line.join(" ")).collect();
    assert_eq!(only, ["pods [] [] [get]", "pods/exec [] [] [create get]"]);
    let switch = ["exec", pod, "--container=pitstop", "--", "pitstop", "maintenance-mode", "Updating", "--wait"];
    assert_eq!(namespace.kubectl(&[&OPERATOR[..], &switch].concat()), "Maintenance mode is enabled: Updating\n");
    let denied = namespace.try_kubectl(&[&["--as=operator"][..], &switch].concat());
    assert!(String::from_utf8_lossy(&denied.stderr).contains("(Forbidden)"));
    // The limits that the example speaks of.
    let app =
        namespace.kubectl(&[&OPERATOR[..], &["exec", pod, "--container=app", "--", "sh", "-c", "echo in"]].concat());
    assert_eq!(app, "in\n");
}
