//! The values of the Helm charts: wrong ones are refused, and there is none without a word on it.
//!
//! The lists of values in the charts' READMEs are committed; `PITSTOP_UPDATE_RENDERED=1 cargo test --test it chart` makes
//! them anew.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::charts::{Charts, IMAGE, assert_committed};
use crate::manifests::{documents, root};

#[test]
fn wrong_values_are_named() {
    let charts = Charts::complete();
    let table = [
        ("replica=3", "replica"),
        ("replicas=-1", "replicas"),
        ("app.prot=80", "prot"),
        ("app.preStop.second=3", "second"),
        ("app.port=http", "app.port"),
        ("app.port=99999", "app.port"),
        ("app.port=8503", "app.port"),
        ("app.image.pullPolicy=Sometimes", "app.image.pullPolicy"),
        ("app.image.repository=", "app.image.repository"),
        ("app.image.digest=sha256:1", "app.image.digest"),
        ("app.preStop.seconds=5", "app.preStop.seconds"),
        ("app.preStop.seconds=30", "app.preStop.seconds"),
        ("app.preStop.type=nap", "app.preStop.type"),
        ("app.env.TZ=UTC", "app.env"),
        ("service.port=0", "service.port"),
        ("service.type=Public", "service.type"),
        ("terminationGracePeriodSeconds=25", "terminationGracePeriodSeconds"),
        ("app.preStop.seconds=27", "terminationGracePeriodSeconds"),
        ("sharedSwitch.accessModes={ReadMany}", "sharedSwitch.accessModes.0"),
        ("sharedSwitch.create=true,sidecar.switch.claim=data", "sidecar.switch.claim"),
        ("podDisruptionBudget.maxUnavailable=most", "podDisruptionBudget.maxUnavailable"),
        ("tests.enabled=perhaps", "tests.enabled"),
        ("fullnameOverride=The Shop", "fullnameOverride"),
        ("sidecar.imag.tag=1", "imag"),
        ("sidecar.image.tags=1", "tags"),
        ("sidecar.image.pullPolicy=never", "image.pullPolicy"),
        ("sidecar.native=sometimes", "native"),
        ("sidecar.mode=gateway", "mode"),
        ("sidecar.mode=gate,sidecar.gate.upstream=127.0.0.1:8080", "gate.upstream"),
        ("sidecar.mode=gate,sidecar.gate.upstream=http://127.0.0.1:8080/shop", "gate.upstream"),
        ("sidecar.mode=gate,sidecar.gate.upstreams=http://127.0.0.1:8080", "upstreams"),
        ("sidecar.mode=gate,sidecar.gate.upstreamTimeout=never", "gate.upstreamTimeout"),
        ("sidecar.gate.upstream=http://127.0.0.1:8080", "has no meaning unless mode is gate"),
        ("sidecar.probes.readiness.period=1", "period"),
        ("sidecar.probes.readiness.periodSeconds=0", "probes.readiness.periodSeconds"),
        ("sidecar.shutdownDelaySeconds=5s", "shutdownDelaySeconds"),
        ("sidecar.shutdownDelaySeconds=12", "terminationGracePeriodSeconds"),
        ("sidecar.poll=soon", "poll"),
        ("sidecar.logFormat=xml", "logFormat"),
        ("sidecar.switch.mountPath=maintenance", "switch.mountPath"),
        ("sidecar.fleet.configMap=No_Name", "fleet.configMap"),
        ("sidecar.page.accent=red", "page.accent"),
        ("sidecar.page.page=x", "page"),
        ("sidecar.page.logo=logo.svg", "page.configMap is not set"),
        ("sidecar.page.configMap=page", "page.logo or page.template"),
        ("sidecar.page.configMap=page,sidecar.page.template=../x", "page.template"),
        ("sidecar.resources.limit.memory=1Gi", "limit"),
        ("sidecar.service.port=65536", "service.port"),
        ("sidecar.prometheusRule.longAfterHours=0", "prometheusRule.longAfterHours"),
        ("sidecar.networkPolicy.from.cidr=10", "networkPolicy.from"),
    ];
    let refused = |version: &str, set: &str, named: &str| {
        let template = ["template", "shop", "pitstop", "--kube-version", version];
        let printed = charts.helm([&template[..], &IMAGE, &["--set", set]].concat());
        assert_eq!((printed.code, printed.stdout.as_str()), (Some(1), ""), "{set}");
        // Helm 3 writes app.port, Helm 4 /app/port.
        let said = printed.stderr.replace('/', ".");
        let is_word = |around: Option<char>| around.is_some_and(char::is_alphanumeric);
        let mut found = said.match_indices(named).map(|(at, _)| (&said[..at], &said[at + named.len()..]));
        let whole = found.any(|(before, after)| !is_word(before.chars().last()) && !is_word(after.chars().next()));
        assert!(whole, "{set}: {named} is not in {said}");
    };
    for (set, named) in table {
        refused("1.34", set, named);
    }
    // What a version does not have.
    refused("1.27", "sidecar.native=always", "native: always takes Kubernetes 1.28");
    refused("1.28", "app.preStop.type=sleep", "app.preStop.type: sleep takes Kubernetes 1.29");
    refused("1.19", "replicas=1", ">=1.20");
}

/// What a schema is about, but what Kubernetes or Helm knows better. Fails where something else may be unknown.
fn closed(schema: &Value, path: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    if let Some(items) = schema.get("items") {
        found.extend(closed(items, path));
    }
    if schema["type"] != "object" {
        return found;
    }
    let description = schema["description"].as_str().unwrap_or_default();
    let said = ["Kubernetes: ", "Helm's own: ", "The values of the chart pitstop-sidecar"];
    match &schema["additionalProperties"] {
        Value::Bool(false) => {}
        // A map, of labels for instance.
        Value::Object(_) => return BTreeSet::new(),
        _ => assert!(said.iter().any(|said| description.starts_with(said)), "{path} is open"),
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        found.extend(closed(property, &path));
        found.insert(path);
    }
    found
}

/// The paths of all values that are not part of something which is passed through.
fn paths(value: &Value, path: &str, schema: &BTreeSet<String>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let inside = schema.iter().any(|other| other.starts_with(&format!("{path}.")));
        if inside {
            found.extend(paths(value, &path, schema));
        }
        found.insert(path);
    }
    found
}

#[test]
fn schemas_are_closed_and_about_the_values_that_there_are() {
    for chart in ["pitstop", "pitstop-sidecar"] {
        let read = |file: &str| fs::read_to_string(root().join(format!("charts/{chart}/{file}"))).unwrap();
        let mut schema = closed(&serde_json::from_str(&read("values.schema.json")).unwrap(), "");
        assert!(schema.remove(".global"));
        assert_eq!(paths(&documents(&[&read("values.yaml")])[0][0], "", &schema), schema, "{chart}");
    }
}

/// The list of values in a chart's README: each that has a comment above it, which must be every one.
fn table_of_values(chart: &str) -> String {
    let text = fs::read_to_string(root().join(format!("charts/{chart}/values.yaml"))).unwrap();
    let values = &documents(&[&text])[0][0];
    let mut table = "| value | default | |\n| --- | --- | --- |\n".to_owned();
    let (mut path, mut comment): (Vec<(usize, &str)>, Vec<&str>) = (Vec::new(), Vec::new());
    // The indentation of the value that the last comment is about.
    let mut documented = None;
    for line in text.lines() {
        let content = line.trim_start();
        let indentation = line.len() - content.len();
        if let Some(text) = content.strip_prefix("# ") {
            comment.push(text);
            continue;
        }
        let Some((key, rest)) = content.split_once(':').filter(|_| !content.starts_with('-')) else { continue };
        path.retain(|(outer, _)| *outer < indentation);
        path.push((indentation, key));
        if documented.is_some_and(|documented| indentation > documented) {
            assert!(comment.is_empty(), "{chart}: {key} has a comment, and so has what it is in");
            continue;
        }
        documented = None;
        if comment.is_empty() {
            assert!(rest.is_empty(), "{chart}: {key} has no comment");
            continue;
        }
        documented = Some(indentation);
        let names: Vec<_> = path.iter().map(|(_, key)| *key).collect();
        let value = names.iter().fold(values, |value, name| &value[name]);
        let text = comment.join(" ");
        assert!(!text.contains('|') && !value.is_null(), "{chart}: {names:?}");
        table.push_str(&format!("| `{}` | `{value}` | {text} |\n", names.join(".")));
        comment.clear();
    }
    table
}

#[test]
fn readmes_list_all_values() {
    for chart in ["pitstop", "pitstop-sidecar"] {
        let path = root().join(format!("charts/{chart}/README.md"));
        let readme = fs::read_to_string(&path).unwrap();
        let (before, rest) = readme.split_once("<!-- values -->\n").unwrap();
        let (_, after) = rest.split_once("<!-- /values -->").unwrap();
        let table = table_of_values(chart);
        assert_committed(&path, &format!("{before}<!-- values -->\n{table}<!-- /values -->{after}"));
    }
}
