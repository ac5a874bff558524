//! What becomes of a request: a pure function of the moment, the request and the policy. It is the only place that decides.

use std::net::IpAddr;
use std::time::Duration;

use super::policy::Policy;
use super::policy::bypass::Bypass;
use crate::maintenance::state::Mode;
use crate::server::head::Head;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is forwarded and holds permits: maintenance mode is off.
    Forward,
    /// It is forwarded in maintenance and holds no permits.
    Allow,
    /// It waits for maintenance to end.
    Hold,
    /// It is refused.
    Refuse,
    /// It is for a path of the gate's own: the visit that sets the bypass cookie.
    Visit,
}

/// When it is judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment<'a> {
    /// Maintenance mode. Before it is known, no request may rely on it being off.
    pub(super) mode: &'a Mode,
    /// How long ago this process saw maintenance begin, if it did.
    pub(super) since: Option<Duration>,
    /// Whether the process is about to end.
    pub(super) stops: bool,
}

/// What an operator lets through.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) policy: &'a Policy,
    /// Whether the client has shown that it may bypass maintenance. It costs a signature to find out.
    pub(super) bypasses: &'a dyn Fn() -> bool,
    /// Whether there is a bypass token.
    pub(super) has_bypass: bool,
}

/// The verdict on a request of this client.
pub(super) fn verdict(moment: Moment<'_>, head: &Head<'_>, client: IpAddr, known: &Known<'_>) -> Verdict {
    let Known { policy, bypasses, has_bypass } = known;
    match moment.mode {
        _ if *has_bypass && Bypass::owns(head.path) => Verdict::Visit,
        Mode::Off => Verdict::Forward,
        _ if bypasses() || policy.allows(head, client) => Verdict::Allow,
        _ if !moment.stops && moment.since.is_some_and(|since| since < policy.hold) => Verdict::Hold,
        Mode::On(_) | Mode::Unknown => Verdict::Refuse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maintenance::state::Maintenance;
    use http::Request;
    use proptest::prelude::*;

    fn on() -> Mode {
        Mode::On(Maintenance { reason: None, since: jiff::Timestamp::UNIX_EPOCH, until: None, file: "M".into() })
    }

    fn request(method: &str, path: &str) -> Request<String> {
        Request::builder().method(method).uri(path).body(String::new()).unwrap()
    }

    const CLIENT: &str = "192.0.2.1";

    fn judged(moment: Moment<'_>, request: &Request<String>, bypasses: bool, policy: &Policy) -> Verdict {
        verdict(
            moment,
            &Head::of(request, false),
            CLIENT.parse().unwrap(),
            &Known { policy, bypasses: &|| bypasses, has_bypass: false },
        )
    }

    #[test]
    fn the_bypass_path_is_the_gates_own() {
        let policy = Policy::default();
        for (path, has_bypass, expected) in [
            ("/.pitstop", true, Verdict::Visit),
            ("/.pitstop/token", true, Verdict::Visit),
            ("/.pitstop/token", false, Verdict::Forward),
            ("/.pitstops", true, Verdict::Forward),
        ] {
            let request = request("GET", path);
            let known = Known { policy: &policy, bypasses: &|| false, has_bypass };
            let moment = Moment { mode: &Mode::Off, since: None, stops: false };
            assert_eq!(
                verdict(moment, &Head::of(&request, false), CLIENT.parse().unwrap(), &known),
                expected,
                "{path}"
            );
        }
    }

    #[test]
    fn the_table() {
        use Verdict::{Allow, Forward, Hold, Refuse};
        let second = Duration::from_secs(1);
        let none = Policy::default();
        let hold = Policy { hold: 5 * second, ..Policy::default() };
        let reads = Policy { methods: vec!["GET".parse().unwrap()], ..hold.clone() };
        let office = Policy { clients: vec![CLIENT.parse().unwrap()], ..Policy::default() };
        let hooks = Policy { paths: vec!["/hooks/".parse().unwrap()], ..Policy::default() };
        let (get, post) = (request("GET", "/"), request("POST", "/"));
        let (off, on, unknown) = (Mode::Off, on(), Mode::Unknown);
        let table = [
            // Off: all are forwarded, whatever else is said.
            (&off, None, false, &get, false, &none, Forward),
            (&off, None, true, &post, true, &reads, Forward),
            (&off, Some(second), false, &post, false, &hold, Forward),
            // On, without a policy.
            (&on, Some(second), false, &get, false, &none, Refuse),
            (&on, Some(Duration::ZERO), false, &get, false, &none, Refuse),
            (&on, None, false, &get, false, &none, Refuse),
            // Held: for so long, and only if it has been seen to begin.
            (&on, Some(Duration::ZERO), false, &get, false, &hold, Hold),
            (&on, Some(second), false, &get, false, &hold, Hold),
            (&on, Some(5 * second - Duration::from_nanos(1)), false, &get, false, &hold, Hold),
            (&on, Some(5 * second), false, &get, false, &hold, Refuse),
            (&on, Some(3600 * second), false, &get, false, &hold, Refuse),
            (&on, None, false, &get, false, &hold, Refuse),
            (&on, Some(second), true, &get, false, &hold, Refuse),
            // Let through: at once, and also while others are held.
            (&on, Some(second), false, &get, false, &reads, Allow),
            (&on, Some(second), false, &post, false, &reads, Hold),
            (&on, Some(9 * second), false, &post, false, &reads, Refuse),
            (&on, Some(second), true, &get, false, &reads, Allow),
            (&on, None, false, &post, false, &office, Allow),
            (&on, None, false, &post, false, &hooks, Refuse),
            (&on, None, false, &post, true, &none, Allow),
            (&on, Some(second), false, &post, true, &hold, Allow),
            // Not known: as in maintenance.
            (&unknown, None, false, &get, false, &none, Refuse),
            (&unknown, None, false, &get, false, &hold, Refuse),
            (&unknown, Some(second), false, &get, false, &hold, Hold),
            (&unknown, None, false, &get, false, &reads, Allow),
        ];
        for (index, (mode, since, stops, request, bypasses, policy, expected)) in table.into_iter().enumerate() {
            let moment = Moment { mode, since, stops };
            assert_eq!(judged(moment, request, bypasses, policy), expected, "row {index}: {moment:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_gets_in_without_a_permit_or_a_policy(
            mode in 0..3, since: Option<u16>, stops: bool, bypasses: bool, hold: u16, reads: bool, is_get: bool,
        ) {
            let mode = [Mode::Off, Mode::Unknown, on()][mode as usize].clone();
            let methods = if reads { vec!["GET".parse().unwrap()] } else { Vec::new() };
            let policy = Policy { methods, hold: Duration::from_millis(hold.into()), ..Policy::default() };
            let moment = Moment { mode: &mode, since: since.map(|since| Duration::from_millis(since.into())), stops };
            let request = request(if is_get { "GET" } else { "POST" }, "/");
            let verdict = judged(moment, &request, bypasses, &policy);
            prop_assert_eq!(verdict == Verdict::Forward, mode == Mode::Off);
            prop_assert_eq!(verdict == Verdict::Allow, mode != Mode::Off && (bypasses || (reads && is_get)));
            if verdict == Verdict::Hold {
                prop_assert!(!stops && since.is_some_and(|since| since < hold));
            }
        }
    }
}
