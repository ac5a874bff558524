//! What Prometheus is told.

mod process;
mod registration;

use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use self::process::Process;
use self::registration::added;
use crate::maintenance::state::{Mode, State};
use crate::maintenance::watch::Looks;

/// The revision of the source, set by `PITSTOP_REVISION` at build time.
const REVISION: &str = match option_env!("PITSTOP_REVISION") {
    Some(revision) => revision,
    None => "unknown",
};

/// All metrics. What follows from the state is set when somebody asks, from the state of that moment.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    mode: IntGauge,
    start: Gauge,
    expected_end: Gauge,
    changes: IntCounterVec,
    file_errors: IntCounter,
    last_look: Gauge,
    requests: IntCounterVec,
    evictions: IntCounterVec,
    refused_streams: IntCounterVec,
    check: IntGaugeVec,
    checks: IntCounterVec,
    process: Process,
}

/// What is counted at the limits of a listener.
#[derive(Clone, Debug)]
pub struct LimitCounters {
    /// The connections that made room for others.
    pub evictions: IntCounter,
    /// The streams that were refused.
    pub refused_streams: IntCounter,
}

/// What is counted of requests that are forwarded.
#[derive(Clone, Debug)]
pub struct Requests {
    /// Those that the application has answered.
    pub forwarded: IntCounter,
    /// Those that it has not.
    pub failed: IntCounter,
    /// Those that were cut, since maintenance has begun.
    pub cut: IntCounter,
    /// Those that a policy let through in maintenance.
    pub allowed: IntCounter,
    /// How long they took, in seconds.
    pub duration: Histogram,
    /// How many the application is at work on.
    pub in_flight: IntGauge,
    /// How many wait for maintenance to end.
    pub held: IntGauge,
    /// Those that it did not answer, by cause.
    pub errors: IntCounterVec,
}

impl Metrics {
    /// Creates all metrics and registers them.
    ///
    /// # Errors
    ///
    /// The registry holds metrics of these names already.
    pub fn register(registry: Registry) -> prometheus::Result<Self> {
        let build_info = Opts::new("pitstop_build_info", "Which pitstop this is; always 1.")
            .const_label("version", env!("CARGO_PKG_VERSION"))
            .const_label("revision", REVISION);
        added(&registry, IntGauge::with_opts(build_info)?)?.set(1);
        let requests = IntCounterVec::new(
            Opts::new(
                "pitstop_requests_total",
                "Requests to the traffic listener, by what became of them; refusals include those of /forward-auth.",
            ),
            &["outcome"],
        )?;
        let evictions = IntCounterVec::new(
            Opts::new(
                "pitstop_connections_evicted_total",
                "Connections closed at the connection limit, since they had waited longest for a request.",
            ),
            &["listener"],
        )?;
        let refused_streams = IntCounterVec::new(
            Opts::new("pitstop_streams_refused_total", "HTTP/2 requests refused at the limit that memory sets."),
            &["listener"],
        )?;
        let changes = IntCounterVec::new(
            Opts::new(
                "pitstop_maintenance_mode_changes_total",
                "How often maintenance mode has been turned on and off.",
            ),
            &["to"],
        )?;
        let check = IntGaugeVec::new(
            Opts::new("pitstop_check", "The last result of each health check: 1 passed, 0 failed."),
            &["name", "type"],
        )?;
        let checks = IntCounterVec::new(
            Opts::new("pitstop_checks_total", "Runs of each health check, by result."),
            &["name", "type", "status"],
        )?;
        let gauge = |name, help| Gauge::new(name, help).and_then(|gauge| added(&registry, gauge));
        Ok(Self {
            mode: added(&registry, IntGauge::new("pitstop_maintenance_mode", "Maintenance mode: 1 on, 0 off.")?)?,
            start: gauge(
                "pitstop_maintenance_mode_start_timestamp_seconds",
                "Since when maintenance mode has been on, in seconds since the epoch; 0 when it is off.",
            )?,
            expected_end: gauge(
                "pitstop_maintenance_mode_expected_end_timestamp_seconds",
                "When maintenance is expected to end, in seconds since the epoch; 0 when unknown.",
            )?,
            changes: added(&registry, changes)?,
            file_errors: added(
                &registry,
                IntCounter::new(
                    "pitstop_file_errors_total",
                    "Looks at a maintenance file that failed or did not end.",
                )?,
            )?,
            last_look: gauge(
                "pitstop_file_last_look_timestamp_seconds",
                "When a maintenance file was last looked at with success, in seconds since the epoch.",
            )?,
            requests: added(&registry, requests)?,
            evictions: added(&registry, evictions)?,
            refused_streams: added(&registry, refused_streams)?,
            check: added(&registry, check)?,
            checks: added(&registry, checks)?,
            process: Process::register(&registry)?,
            registry,
        })
    }

    /// Counts the requests that were refused.
    #[must_use]
    pub fn refused(&self) -> IntCounter {
        self.requests.with_label_values(&["refused"])
    }

    /// Counts what happens at the limits of this listener, `traffic` or `admin`.
    #[must_use]
    pub fn limits(&self, listener: &str) -> LimitCounters {
        LimitCounters {
            evictions: self.evictions.with_label_values(&[listener]),
            refused_streams: self.refused_streams.with_label_values(&[listener]),
        }
    }

    /// What is counted of requests that are forwarded; registers what there is only of those.
    ///
    /// # Errors
    ///
    /// It has been registered before.
    pub fn forwarding(&self) -> prometheus::Result<Requests> {
        let errors =
            Opts::new("pitstop_upstream_errors_total", "Requests that the application did not answer, by cause.");
        let duration = HistogramOpts::new(
            "pitstop_request_duration_seconds",
            "How long requests that were let in took, from their head to the end of the answer.",
        );
        let in_flight = Opts::new(
            "pitstop_requests_in_flight",
            "Requests that the application is at work on, also those whose client has left.",
        );
        let held = Opts::new("pitstop_requests_held", "Requests that wait for maintenance to end.");
        let outcome = |outcome| self.requests.with_label_values(&[outcome]);
        Ok(Requests {
            forwarded: outcome("forwarded"),
            failed: outcome("failed"),
            cut: outcome("cut"),
            allowed: outcome("allowed"),
            duration: added(&self.registry, Histogram::with_opts(duration)?)?,
            in_flight: added(&self.registry, IntGauge::with_opts(in_flight)?)?,
            held: added(&self.registry, IntGauge::with_opts(held)?)?,
            errors: added(&self.registry, IntCounterVec::new(errors, &["cause"])?)?,
        })
    }

    /// Records the result of a health check. `kind` is the endpoint that ran it.
    pub fn checked(&self, name: &str, kind: &str, passed: bool) {
        self.check.with_label_values(&[name, kind]).set(passed.into());
        let status = if passed { "success" } else { "error" };
        self.checks.with_label_values(&[name, kind, status]).inc();
    }

    /// The Prometheus text format, version 0.0.4.
    ///
    /// # Errors
    ///
    /// A metric cannot be encoded.
    pub fn render(&self, state: &State, looks: &Looks) -> prometheus::Result<String> {
        let report = state.report(jiff::Timestamp::now());
        let seconds = |time: Option<jiff::Timestamp>| time.map_or(0.0, |time| time.as_duration().as_secs_f64());
        self.mode.set(matches!(state.mode(), Mode::On(_)).into());
        self.start.set(seconds(report.since));
        self.expected_end.set(seconds(report.until));
        self.last_look.set(seconds(looks.last()));
        let changes = state.changes();
        raise(&self.changes.with_label_values(&["on"]), changes.on);
        raise(&self.changes.with_label_values(&["off"]), changes.off);
        raise(&self.file_errors, looks.failed());
        self.process.update();
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// Brings a counter up to a count that is kept elsewhere.
fn raise(counter: &IntCounter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}
