//! A rolling update: no request is lost, and it ends.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::fixture::{DEADLINE, Namespace, SHOP, eventually};

#[test]
fn a_rolling_update_loses_no_request() {
    let namespace = Namespace::new("rollout");
    namespace.shop(3);
    let (client, watch, old) = (namespace.client(), namespace.watch(), namespace.pods());
    namespace.kubectl(&["rollout", "restart", "deployment/shop-web"]);
    namespace.kubectl(&["rollout", "status", "deployment/shop-web", &format!("--timeout={}s", DEADLINE.as_secs())]);
    eventually("the old pods are gone", || old.iter().all(|pod| watch.gone_after(pod).is_some()));
    for pod in &old {
        // The kubelet kills what has not ended after 30 s, which then has another exit code. A pod can be gone before its
        // exit codes are told; and after its containers, a kubelet takes a while to remove it.
        let (took, codes) = (watch.gone_after(pod).unwrap(), watch.exit_codes(pod));
        println!("{pod}: gone after {took:?}, exit codes {codes:?}");
        assert!(took < Duration::from_secs(30 + 60), "{pod} was gone after {took:?}");
        assert!(codes.iter().all(|code| code == "0"), "{pod}: {codes:?}");
    }
    assert_eq!(namespace.restarts(), 0);
    assert_eq!(namespace.endpoints("shop-web").len(), 3);
    let answers: BTreeSet<_> = client.attempts().into_iter().collect();
    assert_eq!(answers, BTreeSet::from([SHOP.to_owned()]));
}
