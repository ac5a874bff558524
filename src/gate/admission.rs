//! Turns a verdict into what the request needs: a tracker, or a time to wait.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::watch;

use super::hold::HoldSlots;
use super::policy::Policy;
use super::policy::bypass::Bypass;
use super::verdict::{Known, Moment, Verdict, verdict};
use crate::maintenance::state::{Mode, State};
use crate::metrics::Requests;
use crate::proxy::tracker::{Aborts, RequestTracker};
use crate::server::head::Head;
use crate::shutdown::{Phase, Stop};
use crate::upstream::InFlight;

/// What an operator lets through or holds, and what that takes.
#[derive(Clone, Debug)]
pub struct Policies {
    /// Which requests.
    pub policy: Policy,
    /// For requests that wait.
    pub slots: HoldSlots,
    /// Requests with its token are let through.
    pub bypass: Option<Arc<Bypass>>,
    /// No request waits when the process is about to end.
    pub stop: Stop,
}

/// Whether a request is let in.
#[derive(Debug)]
pub(super) enum Admission {
    /// It is, with this.
    Granted(RequestTracker),
    /// It may wait for maintenance to end, until then.
    Held(Instant),
    /// It is not.
    Refused,
    /// It is for a path of the gate's own.
    Visit,
}

/// Lets requests in.
#[derive(Clone, Debug)]
pub struct Admitter {
    /// Maintenance mode.
    pub state: watch::Receiver<State>,
    /// The metrics of forwarded requests.
    pub requests: Arc<Requests>,
    /// What is let through in maintenance, or held.
    pub policies: Option<Policies>,
    /// Aborts requests after the drain timeout.
    pub aborts: Aborts,
}

impl Admitter {
    /// Judges a request. The permits are those of the very state that lets it in, so that whoever waits for them knows of it. An
    /// abort includes it, too, since the state cannot change meanwhile.
    pub(super) fn admit(&self, head: &Head<'_>, client: IpAddr) -> Admission {
        let state = self.state.borrow();
        let verdict = match &self.policies {
            None => verdict(moment(&state, None), head, client, &NO_POLICY),
            Some(policies) => policies.verdict(&state, head, client),
        };
        match verdict {
            Verdict::Forward => {
                let in_flight = InFlight::new(state.permits().clone(), self.requests.in_flight.clone());
                Admission::Granted(RequestTracker::new(self.requests.clone(), in_flight, &self.aborts))
            }
            Verdict::Allow => Admission::Granted(RequestTracker::allowed(self.requests.clone())),
            Verdict::Hold => match (state.began(), &self.policies) {
                (Some(began), Some(policies)) => Admission::Held(began + policies.policy.hold),
                _ => Admission::Refused,
            },
            Verdict::Refuse => Admission::Refused,
            Verdict::Visit => Admission::Visit,
        }
    }
}

/// Where no policy is configured.
pub(super) const NO_POLICY: Known<'_> = Known { policy: &Policy::NONE, bypasses: &|| false, has_bypass: false };

/// The moment for a verdict.
pub(super) fn moment<'a>(state: &'a State, stop: Option<&Stop>) -> Moment<'a> {
    Moment {
        mode: state.mode(),
        since: match state.mode() {
            Mode::Off => None,
            _ => state.began().map(|began| began.elapsed()),
        },
        stops: stop.is_some_and(|stop| stop.phase() > Phase::Running),
    }
}

impl Policies {
    fn verdict(&self, state: &State, head: &Head<'_>, client: IpAddr) -> Verdict {
        let bypasses = || self.bypass.as_ref().is_some_and(|bypass| bypass.admits(head.fields, Timestamp::now()));
        let known = Known { policy: &self.policy, bypasses: &bypasses, has_bypass: self.bypass.is_some() };
        verdict(moment(state, Some(&self.stop)), head, client, &known)
    }
}
