//! The CronJob of `deploy/cronjob`, on the volume that it shares with the shop.

use serde_json::json;

use crate::fixture::{Namespace, SharedVolume, eventually};

impl Namespace {
    /// The guarded CronJob, changed by a JSON patch. Servers before 1.21 know only its beta version.
    fn cronjob(&self, patch: &str) {
        let beta = self.try_kubectl(&["get", "--raw", "/apis/batch/v1"]).stdout;
        let beta = !String::from_utf8_lossy(&beta).contains("\"cronjobs\"");
        let version = r#"{"op": "replace", "path": "/apiVersion", "value": "batch/v1beta1"}"#;
        let patch = if beta { format!("{version}, {patch}") } else { patch.to_owned() };
        self.apply_kustomization(&format!(
            "resources: [TOP/deploy/cronjob]\npatches: [{{target: {{kind: CronJob}}, patch: '[{patch}]'}}]\n"
        ));
    }

    /// What the jobs that have ended have printed, but for those that have been removed: only the last few are kept.
    fn reports(&self) -> Vec<String> {
        let pods = self.get(&["pods", "--selector=job-name"]);
        let pods = pods["items"].as_array().unwrap().iter().filter(|pod| pod["status"]["phase"] == "Succeeded");
        let names = pods.map(|pod| pod["metadata"]["name"].as_str().unwrap());
        let logs = names.map(|name| self.try_kubectl(&["logs", name, "--container=report"]));
        logs.filter(|log| log.status.success()).map(|log| String::from_utf8(log.stdout).unwrap()).collect()
    }
}

#[test]
fn a_scheduled_job_does_not_start_in_maintenance() {
    let namespace = Namespace::new("cronjob");
    let _volume = SharedVolume::with_shop(&namespace, 1);
    let pod = &namespace.pods()[0];
    namespace.pitstop(pod, &["maintenance-mode", "Updating", "--wait"]);

    namespace.cronjob(r#"{"op": "replace", "path": "/spec/schedule", "value": "* * * * *"}"#);
    let mut reports = Vec::new();
    eventually("it was skipped", || {
        reports = namespace.reports();
        !reports.is_empty()
    });
    assert!(reports.iter().all(|report| !report.contains("reporting") && report.contains("Updating")), "{reports:?}");

    namespace.pitstop(pod, &["maintenance-mode", "--disable"]);
    eventually("it has run", || namespace.reports().iter().any(|report| report == "reporting\n"));
}

#[test]
fn maintenance_waits_for_a_job_that_runs() {
    let namespace = Namespace::new("job");
    let _volume = SharedVolume::with_shop(&namespace, 1);
    let pod = &namespace.pods()[0];
    let arguments = "/spec/jobTemplate/spec/template/spec/containers/0/args";
    let script =
        "touch /maintenance/begun; until [ -e /maintenance/finish ]; do sleep 0.1; done; touch /maintenance/finished";
    namespace.cronjob(&format!(r#"{{"op": "replace", "path": "{arguments}", "value": ["sh", "-c", "{script}"]}}"#));
    // As `kubectl create job --from=cronjob/report` does, which does not know the beta version.
    let template = &namespace.get(&["cronjob", "report"])["spec"]["jobTemplate"]["spec"];
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "report"}, "spec": template});
    namespace.apply(&job.to_string());
    let app = |command: &str| {
        namespace.try_kubectl(&["exec", pod, "--container=app", "--", "sh", "-c", command]).status.success()
    };
    eventually("the job runs", || app("[ -e /maintenance/begun ]"));

    let mut wait = namespace.command();
    wait.args(["exec", pod, "--container=pitstop", "--", "pitstop", "maintenance-mode", "Updating", "--wait=200s"]);
    let mut wait = wait.spawn().unwrap();
    eventually("the sidecar has taken it up", || namespace.state(pod)["enabled"] == true);
    eventually("the pod has left", || namespace.endpoints("shop-web").is_empty());
    assert!(wait.try_wait().unwrap().is_none(), "it has not waited for the job");
    assert!(app("touch /maintenance/finish"));
    assert!(wait.wait().unwrap().success());
    assert!(app("[ -e /maintenance/finished ]"), "it has returned before the job had ended");
}
