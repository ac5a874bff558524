//! Letting requests in: all while maintenance mode is off, and in maintenance those that a policy is about.

use std::sync::Arc;
use std::time::Instant;

use hyper::Request;
use jiff::Timestamp;

use super::Forwarding;
use super::policy::Policy;
use super::policy::bypass::Bypass;
use super::policy::hold::Places;
use super::proxy::pass::Pass;
use super::upstream::InFlight;
use super::verdict::{Moment, Verdict, verdict};
use crate::listener::RequestBody;
use crate::maintenance::state::{Mode, State};
use crate::shutdown::{Phase, Stop};

/// What an operator lets through, or lets wait, and what it takes to do so.
#[derive(Clone, Debug)]
pub struct Policies {
    /// Which requests.
    pub policy: Policy,
    /// Where they wait.
    pub places: Places,
    /// Who has its token is let through.
    pub bypass: Option<Arc<Bypass>>,
    /// When the process is about to end nobody waits any more.
    pub stop: Stop,
}

/// Whether a request is let in.
pub(super) enum Admission {
    /// It is, with this.
    Granted(InFlight, Pass),
    /// It may wait for maintenance to end, until then.
    Held(Instant),
    /// It is not.
    Refused,
}

impl Policies {
    fn verdict(&self, state: &State, request: &Request<RequestBody>) -> Verdict {
        let moment = Moment {
            mode: state.mode(),
            since: state.began().map(|began| began.elapsed()),
            stops: self.stop.phase() > Phase::Running,
        };
        let bypasses = self.bypass.as_ref().is_some_and(|bypass| bypass.admits(request.headers(), Timestamp::now()));
        verdict(moment, request, request.body().client(), bypasses, &self.policy)
    }
}

impl Forwarding {
    /// Judges a request. The permits are those of the very state that lets it in: whoever waits for them knows of it. And
    /// whoever cuts cuts it, too, since the state cannot change meanwhile.
    pub(super) fn admit(&self, request: &Request<RequestBody>) -> Admission {
        let state = self.state.borrow();
        let verdict = match (state.mode(), &self.policies) {
            (Mode::Off, _) => Verdict::Forward,
            (_, None) => Verdict::Refuse,
            (_, Some(policies)) => policies.verdict(&state, request),
        };
        match verdict {
            Verdict::Forward => {
                let in_flight = InFlight::new(state.permits().clone(), self.requests.in_flight.clone());
                Admission::Granted(in_flight, Pass::new(self.requests.clone(), request.body().cut()))
            }
            Verdict::Allow => Admission::Granted(InFlight::nothing(), Pass::allowed(self.requests.clone())),
            Verdict::Hold => match (state.began(), &self.policies) {
                (Some(began), Some(policies)) => Admission::Held(began + policies.policy.hold),
                _ => Admission::Refused,
            },
            Verdict::Refuse => Admission::Refused,
        }
    }
}
