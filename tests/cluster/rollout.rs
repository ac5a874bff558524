//! A rolling update: no request is lost, and it ends.

use std::collections::BTreeSet;

use crate::fixture::{DEADLINE, Namespace, eventually};

#[test]
fn a_rolling_update_loses_no_request() {
    let namespace = Namespace::new("rollout");
    namespace.shop(3);
    let old = namespace.pods();
    let client = namespace.client();
    namespace.kubectl(&["rollout", "restart", "deployment/shop-web"]);
    namespace.kubectl(&["rollout", "status", "deployment/shop-web", &format!("--timeout={}s", DEADLINE.as_secs())]);
    eventually("the old pods are gone", || {
        let there = namespace.get(&["pods", "--selector=pitstop=enabled"]);
        let names = there["items"].as_array().unwrap().iter().map(|pod| pod["metadata"]["name"].as_str().unwrap());
        names.collect::<Vec<_>>().iter().all(|name| !old.iter().any(|pod| pod == name))
    });
    assert_eq!(namespace.endpoints("shop-web").len(), 3);
    let answers: BTreeSet<_> = client.attempts().into_iter().collect();
    assert_eq!(answers, BTreeSet::from(["200 the shop".to_owned()]));
}
