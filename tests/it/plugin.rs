//! `deploy/kubectl-pitstop` without a cluster: its command line, and what it gives to kubectl, which a script stands in for.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture::{DEADLINE, Printed, ended, eventually, program};

const PLUGIN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/kubectl-pitstop");

/// Writes down what it is called with, knows the workloads `…/shop` and `…/db`, and may read no more than those and their
/// ConfigMap.
const KUBECTL: &str = r#"#!/bin/sh
{ printf '%s\036' "$@"; printf '\035'; } >>"$PLACE/calls"
name=maintenance
for argument; do
  case $argument in
    */shop) printf 'default|shop|uid-1|maintenance|app=shop,' && exit ;;
    */db) printf 'default|db|uid-2|other|app=db,' && exit ;;
    */plain) printf 'default|plain|uid-3||app=plain,' && exit ;;
    */service) printf 'default|service|uid-4|' && exit ;;
    *=text) cat "$PLACE/text" && exit ;;
    configmap) [ "$read" != get ] || { cat "$PLACE/text"; exit; } ;;
    get | patch) read=$argument ;;
    pods) [ ! -e "$PLACE/hang" ] || { echo $$ >>"$PLACE/hung"; exec sleep 1000; } ;;
    */pods/*/proxy/maintenance) echo "$argument" >>"$PLACE/asked"; cat "$PLACE/answer"; exit ;;
    'go-template={{range .items}}name='*)
      # The one pod, as the real kubectl prints it, which needs no cluster for that.
      [ ! -e "$PLACE/pod" ] || PATH=${PATH#*:} exec kubectl annotate --local -f "$PLACE/pod" a=b \
        -o "go-template={{with .}}${argument#*items\}\}}"
      ;;
  esac
done
[ "$read" != patch ] || exit 0
printf 'Error from server (Forbidden): it is \033[31mforbidden\033[0m\nand more\n' >&2
exit 1
"#;

/// A directory with the stand-in for kubectl, and one for what is temporary.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.path().join("kubectl"), KUBECTL).unwrap();
        fs::set_permissions(place.path().join("kubectl"), PermissionsExt::from_mode(0o755)).unwrap();
        fs::create_dir(place.path().join("tmp")).unwrap();
        place.holds("");
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// What the ConfigMap's key holds, as the plugin asks for it.
    fn holds(&self, text: &str) {
        fs::write(self.path().join("text"), text).unwrap();
    }

    fn command(&self, shell: &[&str], arguments: &[&str]) -> Command {
        let mut command = program(shell[0]);
        let path = format!("{}:{}", self.path().display(), std::env::var("PATH").unwrap());
        command.args(&shell[1..]).arg(PLUGIN).args(arguments).env("PATH", path).env("PLACE", self.path());
        command.env("TMPDIR", self.path().join("tmp"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Printed {
        let printed = self.command(&["sh"], arguments).output().unwrap().into();
        assert_eq!(fs::read_dir(self.path().join("tmp")).unwrap().count(), 0, "it leaves nothing behind");
        printed
    }

    /// What kubectl has been called with since the last time.
    fn calls(&self) -> Vec<Vec<String>> {
        let calls = fs::read_to_string(self.path().join("calls")).unwrap_or_default();
        let _ = fs::remove_file(self.path().join("calls"));
        let split = |text: &str, end| text.split_terminator(end).map(str::to_owned).collect::<Vec<_>>();
        split(&calls, '\u{1d}').iter().map(|call| split(call, '\u{1e}')).collect()
    }

    /// The ConfigMaps that have been patched, and with what.
    fn patches(&self) -> Vec<(String, Value)> {
        let patches = self.calls().into_iter().filter(|call| call.iter().any(|argument| argument == "patch"));
        let patch = |call: Vec<String>| {
            let after = |name: &str| call[call.iter().position(|argument| argument == name).unwrap() + 1].clone();
            (after("configmap"), serde_json::from_str(&after("-p")).unwrap())
        };
        patches.map(patch).collect()
    }

    /// The one text that the key has been given.
    #[track_caller]
    fn text(&self) -> String {
        let patches = self.patches();
        assert_eq!(patches.len(), 1);
        patches[0].1["data"]["MAINTENANCE"].as_str().unwrap().to_owned()
    }
}

#[test]
fn shellcheck_finds_nothing() {
    for script in ["deploy/kubectl-pitstop", "benches/fleet", "tests/systemd-boot"] {
        let output = program("shellcheck").arg(script).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn the_usage() {
    let place = Place::new();
    let help = place.run(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
    for same in [&["-h"][..], &["help"], &["on", "--help"], &["status", "deploy/shop", "-n", "x", "-h"]] {
        assert_eq!(place.run(same), help, "{same:?}");
    }
    assert_eq!(place.run(&[]), Printed { code: Some(2), stdout: String::new(), stderr: help.stdout.clone() });
    assert!(help.stdout.lines().all(|line| line.chars().count() <= 120), "{}", help.stdout);

    // Whatever the script tells from other flags, the text speaks of.
    let script = fs::read_to_string(PLUGIN).unwrap();
    let flags: Vec<_> = script.lines().filter(|line| line.trim_start().starts_with("--")).collect();
    let named = flags.iter().flat_map(|line| line.split(|c: char| !(c == '-' || c.is_ascii_lowercase())));
    let named: Vec<_> = named.filter(|word| word.starts_with("--") && word.len() > 2).collect();
    assert!(named.len() > 10, "{named:?}");
    for flag in named {
        assert!(help.stdout.contains(flag), "{flag}");
    }
    assert_eq!(place.calls(), Vec::<Vec<String>>::new());
}

#[test]
fn wrong_usage() {
    let place = Place::new();
    for (arguments, complaint) in [
        (&["toggle", "deploy/shop"][..], "'toggle' is no command"),
        (&["-n", "x"], "no command"),
        (&["on"], "no workload"),
        (&["on", "shop"], "'shop' is no workload"),
        (&["on", "Deployment/shop"], "'Deployment/shop' is no workload"),
        (&["on", "--", "why"], "no workload before --"),
        (&["on", "deploy/shop", "one", "two"], "'two' is too much"),
        (&["on", "deploy/shop", "why", "deploy/db"], "'deploy/db' is too much"),
        (&["on", "deploy/shop", "--", "one", "two"], "'two' is too much"),
        (&["on", "deploy/shop", "why", "--", "two"], "'two' is too much"),
        (&["off", "deploy/shop", "why"], "'why' is too much"),
        (&["status", "deploy/shop", "why"], "'why' is too much"),
        (&["on", "deploy/shop", "off"], "'off' is no reason: to turn it off, run kubectl pitstop off WORKLOAD"),
        (&["on", "deploy/shop", "Enable"], "'Enable' is no reason: say why"),
        (&["on", "deploy/shop", "status"], "'status' is no reason: to see the state, run kubectl pitstop status"),
        (&["status"], "no workload"),
        (&["status", "deploy/shop", "--wait"], "--wait changes nothing"),
        (&["status", "deploy/shop", "--no-touch"], "--no-touch changes nothing"),
        (&["off", "deploy/shop", "--for", "5m"], "no expected end"),
        (&["on", "deploy/shop", "--for", "5m", "--until", "2026-11-22T18:00:00Z"], "exclude each other"),
        (&["on", "deploy/shop", "--for", "soon"], "'soon' is not a length of time"),
        (&["on", "deploy/shop", "--for", "0"], "more than 0"),
        (&["on", "deploy/shop", "--for", "-5"], "'-5' is not a length of time"),
        (&["on", "deploy/shop", "--for=5m\n6m"], "is not a length of time"),
        (&["on", "deploy/shop", "--for=99999999999999999999"], "is not a length of time"),
        (&["on", "deploy/shop", "--wait=1 hour"], "'1 hour' is not a length of time"),
        (&["on", "deploy/shop", "--until", "tomorrow"], "'tomorrow' is not a time of RFC 3339"),
        (&["on", "deploy/shop", "--until", "2026-02-29T18:00:00Z"], "is not a time of RFC 3339"),
        (&["on", "deploy/shop", "--until", "2026-11-22T24:00:00Z"], "is not a time of RFC 3339"),
        (&["on", "deploy/shop", "--until", "1969-11-22T18:00:00Z"], "is not a time of RFC 3339"),
        (&["on", "deploy/shop", "--until", "2026-11-22T18:00:00"], "is not a time of RFC 3339"),
        (&["on", "deploy/shop", "--until"], "--until needs a value"),
        (&["on", "deploy/shop", "--dashed"], "--dashed is no flag"),
        (&["on", "deploy/shop", "--dashed=1"], "--dashed is no flag"),
        (&["on", "deploy/shop", "-x"], "-x is no flag"),
        (&["on", "deploy/shop", "--no-touch=1"], "--no-touch takes no value"),
        (&["on", "deploy/shop", "\x1b[2J", "x\ny"], "'x y' is too much"),
    ] {
        let printed = place.run(arguments);
        assert_eq!((printed.code, printed.stdout.as_str()), (Some(2), ""), "{arguments:?}: {}", printed.stderr);
        assert!(printed.stderr.contains(complaint), "{arguments:?}: {}", printed.stderr);
        assert!(printed.stderr.starts_with("kubectl pitstop: "), "{}", printed.stderr);
        assert_eq!(printed.stderr.matches('\n').count(), 1, "{}", printed.stderr);
        assert_eq!(place.calls(), Vec::<Vec<String>>::new(), "{arguments:?}");
    }
    let long = "x".repeat(16385);
    let printed = place.run(&["on", "deploy/shop", &long]);
    assert_eq!(printed.code, Some(2));
    assert!(printed.stderr.contains("16385 bytes"), "{}", printed.stderr);
    assert_eq!(place.patches(), []);
}

#[test]
fn what_is_kubectls_goes_to_kubectl() {
    let flags =
        ["--namespace=n", "--context=c d", "--cluster=e", "--user=u", "--kubeconfig=/k'$x", "--as=a", "--as-group=g"];
    let place = Place::new();
    for arguments in [
        &[
            "-n",
            "n",
            "--context",
            "c d",
            "--cluster",
            "e",
            "--user",
            "u",
            "--kubeconfig",
            "/k'$x",
            "--as",
            "a",
            "--as-group",
            "g",
            "on",
            "deploy/shop",
            "why",
        ][..],
        &[
            "on",
            "-nn",
            "--context=c d",
            "deploy/shop",
            "--cluster=e",
            "why",
            "--user=u",
            "--kubeconfig=/k'$x",
            "--as=a",
            "--as-group=g",
        ],
        &[
            "on",
            "deploy/shop",
            "--namespace=n",
            "why",
            "--context",
            "c d",
            "--cluster",
            "e",
            "--user=u",
            "--kubeconfig",
            "/k'$x",
            "--as",
            "a",
            "--as-group",
            "g",
        ],
    ] {
        let printed = place.run(arguments);
        assert_eq!(printed.code, Some(0), "{}", printed.stderr);
        let calls = place.calls();
        assert_eq!(calls.len(), 3, "the workload, the patch, the pods: {calls:?}");
        for call in calls {
            assert!(flags.iter().all(|flag| call.iter().any(|argument| argument == flag)), "{call:?}");
            assert!(call.iter().any(|argument| argument.starts_with("--request-timeout=")), "{call:?}");
        }
    }
    place.run(&["on", "deploy/shop"]);
    for call in place.calls() {
        assert!(
            flags[1..].iter().all(|flag| call.iter().all(|argument| !argument.starts_with(&flag[..5]))),
            "{call:?}"
        );
    }
}

#[test]
fn several_workloads() {
    let place = Place::new();
    let printed = place.run(&["on", "deploy/shop", "sts/db", "deployment.apps/shop", "w/o power? ja"]);
    assert_eq!(
        printed.stdout,
        "deploy/shop: maintenance mode is on in ConfigMap maintenance; its pods take it up within a minute and a half\n\
         sts/db: maintenance mode is on in ConfigMap other; its pods take it up within a minute and a half\n\
         deployment.apps/shop: maintenance mode is on in ConfigMap maintenance; its pods take it up within a minute and a half\n"
    );
    let on = json!({"data": {"MAINTENANCE": "w/o power? ja"}, "binaryData": {"MAINTENANCE": null}});
    assert_eq!(place.patches(), [("maintenance".to_owned(), on.clone()), ("other".to_owned(), on)], "each once");

    place.run(&["off", "deploy/shop", "sts/db"]);
    let off = json!({"data": {"MAINTENANCE": null}, "binaryData": {"MAINTENANCE": null}});
    assert_eq!(place.patches(), [("maintenance".to_owned(), off.clone()), ("other".to_owned(), off)]);

    for (workload, complaint) in [
        ("deploy/plain", "has no volume maintenance-fleet with a ConfigMap, which is the switch: add the sidecar"),
        ("svc/service", "is no workload with pods that a selector finds"),
        ("deploy/forbidden", "cannot be read: it is [31mforbidden[0m"),
    ] {
        let printed = place.run(&["on", "deploy/shop", workload, "why"]);
        assert_eq!((printed.code, printed.stdout.as_str()), (Some(1), ""));
        assert!(printed.stderr.starts_with(&format!("kubectl pitstop: {workload} {complaint}")), "{}", printed.stderr);
        assert_eq!(printed.stderr.matches('\n').count(), 1, "{}", printed.stderr);
        assert_eq!(place.patches(), [], "nothing is changed before all are known");
    }
}

#[test]
fn a_reason_stays_as_it_is() {
    let place = Place::new();
    for reason in [
        "",
        "Updating the instance",
        "a \"quoted\" 'one', \\back\\\\slash\\n \\u0041, $HOME `id` $(id) %s %d && ; | < > * ? [x] {} # ! ~",
        "one\ntwo\r\n\n\n\tfour\n",
        "\n\nleading, trailing\n\n",
        "\x01\x02\x1b[31m\x07\x08\x0b\x0c\x1f\x7f",
        "Grüße, 保守中 😀 \u{9b}\u{202e}\u{2028}\u{feff}",
        "--dashed",
        "deploy/shop",
        "-n",
    ] {
        for shell in [&["sh"][..], &["bash", "--posix"]] {
            let command = place.command(shell, &["on", "deploy/shop", "--no-touch", "--", reason]).output().unwrap();
            assert!(command.status.success(), "{}", String::from_utf8_lossy(&command.stderr));
            assert_eq!(place.text(), reason, "{shell:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_reason_stays_as_it_is(reason in "[^\\x00]{0,60}") {
        let place = Place::new();
        prop_assert_eq!(place.run(&["on", "deploy/shop", "--no-touch", "--", &reason]).code, Some(0));
        prop_assert_eq!(place.text(), reason);
    }

    #[test]
    fn any_expected_end_is_the_same_moment(second in 0i64..253_402_207_200, zone in -1439i32..1440) {
        let place = Place::new();
        let end = Timestamp::from_second(second).unwrap();
        let offset = jiff::tz::Offset::from_seconds(zone * 60).unwrap();
        let local = offset.to_datetime(end);
        prop_assume!((1970..=9999).contains(&local.year()));
        let text = format!("{local}{}{:02}:{:02}", if zone < 0 { '-' } else { '+' }, zone.abs() / 60, zone.abs() % 60);
        prop_assert_eq!(place.run(&["on", "deploy/shop", "--no-touch", "", "--until", &text]).code, Some(0), "{}", text);
        prop_assert_eq!(place.text(), format!("Until: {end}"));
    }
}

#[test]
fn the_expected_end() {
    let place = Place::new();
    let until = ["--until", "2026-11-22T19:00:00.75+01:00", "--no-touch"];
    for (holds, reason, text) in [
        ("", Some("Updating"), "Updating\n\nUntil: 2026-11-22T18:00:00Z"),
        ("", Some(""), "Until: 2026-11-22T18:00:00Z"),
        ("", None, "Until: 2026-11-22T18:00:00Z"),
        ("on:", None, "Until: 2026-11-22T18:00:00Z"),
        ("on:Present\n", None, "Present\n\nUntil: 2026-11-22T18:00:00Z"),
        ("on:Present\n\nUntil: 2020-01-01T00:00:00Z\n", None, "Present\n\nUntil: 2026-11-22T18:00:00Z"),
        ("on:Present\n\nuntil:\t2020-01-01T00:00:00Z\nBy: me", None, "Present\n\nBy: me\nUntil: 2026-11-22T18:00:00Z"),
        ("on:Present", Some("New\n\nBy: me"), "New\n\nBy: me\nUntil: 2026-11-22T18:00:00Z"),
    ] {
        place.holds(holds);
        let mut arguments = vec!["on", "deploy/shop"];
        arguments.extend(until);
        arguments.extend(reason);
        let printed = place.run(&arguments);
        assert_eq!(printed.code, Some(0), "{}", printed.stderr);
        assert_eq!(place.text(), text, "{holds:?} {reason:?}");
    }

    // Without either, a switch that is on stays as it is, and one that is off is turned on.
    place.holds("on:Present");
    assert_eq!(place.run(&["on", "deploy/shop", "--no-touch"]).code, Some(0));
    assert_eq!(place.patches(), []);
    place.holds("");
    assert_eq!(place.run(&["on", "deploy/shop", "--no-touch"]).code, Some(0));
    assert_eq!(place.text(), "");

    for (length, seconds) in [("90", 90), ("90s", 90), ("1h30m", 5400), ("2d", 172_800)] {
        let before = Timestamp::now().as_second();
        place.run(&["on", "deploy/shop", "--no-touch", "", "--for", length]);
        let until: Timestamp = place.text().strip_prefix("Until: ").unwrap().parse().unwrap();
        let now = Timestamp::now().as_second();
        assert!((before + seconds..=now + seconds).contains(&until.as_second()), "{length}: {until}");
    }
}

#[test]
fn what_it_cannot_see_it_does_not_begin() {
    let place = Place::new();
    for command in ["on", "off"] {
        let printed = place.run(&[command, "deploy/shop", "--wait"]);
        assert_eq!(printed.code, Some(1));
        assert_eq!(
            printed.stderr,
            "kubectl pitstop: --wait cannot see what becomes of it, so nothing was changed: it is [31mforbidden[0m\n"
        );
        assert_eq!(place.patches(), []);
    }
    let printed = place.run(&["on", "deploy/shop", "why"]);
    assert_eq!(printed.code, Some(0), "the touch is a favour");
    assert_eq!(
        printed.stderr,
        "kubectl pitstop: their pods cannot be touched: it is [31mforbidden[0m; the kubelets take up to a minute and a half\n"
    );
}

#[test]
fn a_native_sidecar_is_asked_at_its_admin_port() {
    let place = Place::new();
    program("kubectl");
    let sidecar = json!({
        "name": "pitstop", "restartPolicy": "Always",
        "ports": [{"containerPort": 8080}, {"name": "pitstop", "containerPort": 8503}, {"name": "pitstop-admin", "containerPort": 9000}],
        "volumeMounts": [{"name": "maintenance-fleet", "mountPath": "/fleet"}],
    });
    let running =
        |name: &str| json!({"name": name, "ready": true, "started": true, "restartCount": 0, "state": {"running": {}}});
    let pod = |init: Value, statuses: Value| {
        let owner = json!({"kind": "ReplicaSet", "name": "shop-5d4f", "uid": "uid-9", "controller": true});
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "shop-5d4f-abcde", "namespace": "default", "uid": "uid-8", "ownerReferences": [owner]},
            "spec": {"initContainers": [init, {"name": "migrate"}], "containers": [{"name": "app"}]},
            "status": {"phase": "Running", "initContainerStatuses": statuses, "containerStatuses": [running("app")]},
        })
    };
    let write = |pod: &Value| fs::write(place.path().join("pod"), pod.to_string()).unwrap();
    write(&pod(sidecar.clone(), json!([running("pitstop")])));
    fs::write(place.path().join("answer"), "{\"enabled\":true,\"reason\":\"Why\",\"file\":\"/fleet/MAINTENANCE\"}")
        .unwrap();
    place.holds("on:Why");
    let printed = place.run(&["status", "deploy/shop"]);
    assert_eq!(printed.code, Some(0), "{}", printed.stderr);
    assert!(
        printed.stdout.lines().last().unwrap().starts_with("shop-5d4f-abcde         on      yes "),
        "{}",
        printed.stdout
    );
    let asked = fs::read_to_string(place.path().join("asked")).unwrap();
    assert_eq!(asked, "/api/v1/namespaces/default/pods/shop-5d4f-abcde:9000/proxy/maintenance\n");

    // With a gate, its readiness tells nothing of maintenance.
    let unasked = |sidecar: &Value| {
        write(&pod(sidecar.clone(), json!([running("pitstop")])));
        let printed = place.run(&["status", "deploy/shop", "--no-ask"]);
        assert_eq!(printed.code, Some(1));
        printed.stdout.lines().last().unwrap().split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    let mut gate = sidecar.clone();
    gate["readinessProbe"] = json!({"httpGet": {"path": "/readyz", "port": "pitstop-admin"}});
    assert_eq!(unasked(&gate), "off no - - ?");
    gate["readinessProbe"] = json!({"httpGet": {"path": "/readyz?exclude=maintenance", "port": "pitstop-admin"}});
    assert_eq!(unasked(&gate), "unknown no - - <stays ready in maintenance, so that its readiness does not tell>");

    // An init container of that name, which installs the program and ends, is no sidecar.
    let mut install = sidecar;
    install.as_object_mut().unwrap().remove("restartPolicy");
    write(&pod(
        install,
        json!([{"name": "pitstop", "restartCount": 0, "state": {"terminated": {"reason": "Completed"}}}]),
    ));
    let printed = place.run(&["status", "deploy/shop"]);
    assert_eq!(printed.code, Some(1));
    assert!(printed.stdout.ends_with(" <has no container pitstop>\n"), "{}", printed.stdout);
}

#[test]
fn a_signal_ends_it_and_its_children() {
    for (name, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        let place = Place::new();
        fs::write(place.path().join("hang"), "").unwrap();
        let mut command = place.command(&["sh"], &["on", "deploy/shop", "why"]);
        // A group of its own, as a terminal gives it, which sends all of it the signal.
        let mut child = command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let hung = || fs::read_to_string(place.path().join("hung")).unwrap_or_default();
        eventually("kubectl hangs", || hung().ends_with('\n'));
        let group = format!("-{}", child.id());
        assert!(program("kill").args(["-s", name, "--", &group]).status().unwrap().success(), "{DEADLINE:?}");
        assert_eq!(ended(&mut child).code(), Some(code), "{name}");
        assert_eq!(fs::read_dir(place.path().join("tmp")).unwrap().count(), 0, "{name}");
        eventually("kubectl has ended", || !Path::new("/proc").join(hung().trim()).exists());
    }
}
