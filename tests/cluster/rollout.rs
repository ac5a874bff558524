//! A rolling update: no request is lost, and it ends.

use std::collections::BTreeSet;

use crate::fixture::{DEADLINE, Namespace, eventually};

#[test]
fn a_rolling_update_loses_no_request() {
    let namespace = Namespace::new("rollout");
    namespace.shop(3);
    let (client, watch, old) = (namespace.client(), namespace.watch(), namespace.pods());
    namespace.kubectl(&["rollout", "restart", "deployment/shop-web"]);
    namespace.kubectl(&["rollout", "status", "deployment/shop-web", &format!("--timeout={}s", DEADLINE.as_secs())]);
    // In time: the kubelet kills what has not ended after 30 s, which then has another exit code.
    eventually("the old pods have ended", || old.iter().all(|pod| watch.has_ended_well(pod)));
    assert_eq!(namespace.endpoints("shop-web").len(), 3);
    let answers: BTreeSet<_> = client.attempts().into_iter().collect();
    assert_eq!(answers, BTreeSet::from(["200 the shop".to_owned()]));
}
