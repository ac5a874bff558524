//! `pitstop serve`: wires the rooms together.

use std::io;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::routing::any;
use prometheus::Registry;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use super::{Failure, maintenance_files, runtime};
use crate::admin::routes::{Admin, router};
use crate::admin::service::AdminService;
use crate::cli::{self, Common, HOLD_LIMIT, Serve};
use crate::gate::Gate;
use crate::gate::admission::{Admitter, Policies};
use crate::gate::drain::abort_after;
use crate::gate::forward_auth::{self, ForwardAuth};
use crate::gate::hold::HoldSlots;
use crate::gate::policy::Policy;
use crate::gate::policy::bypass::Bypass;
use crate::maintenance::one_line;
use crate::maintenance::state::Mode;
use crate::maintenance::watch::{self as lookout, Role};
use crate::memory;
use crate::metrics::{Metrics, Requests};
use crate::page::Renderer;
use crate::page::files::{self, Sources};
use crate::proxy::Proxy;
use crate::proxy::tracker::Aborts;
use crate::server::{Limits, Listener};
use crate::shutdown::{Phase, Signals, Stop};
use crate::upstream::Upstream;

/// The first answer should be the right one. Where looking takes longer than this, the first answer is that it does.
const FIRST_LOOK: Duration = Duration::from_millis(500);
/// Connections to the admin listener, and HTTP/2 requests on them: a kubelet, a Prometheus or two, an operator.
const ADMIN_CONNECTIONS: usize = 256;
/// How many of these may speak HTTP/2.
const ADMIN_HTTP2_CONNECTIONS: usize = 16;
/// File descriptors kept back from clients of the traffic listener, for all else.
const RESERVED_FILES: u64 = 64 + ADMIN_CONNECTIONS as u64;
/// Memory kept back from clients of the traffic listener, in bytes: the program, its page, and the admin listener's connections.
const RESERVED_MEMORY: u64 = 12 * 1024 * 1024;
/// The most that a connection takes beside its head, in bytes: its buffers, and its socket in the kernel.
const CONNECTION_MEMORY: u64 = 12 * 1024;
/// The most that a connection to the application adds to that, in bytes.
const FORWARDING_MEMORY: u64 = 32 * 1024;
/// What a connection that speaks HTTP/2 adds to that, in bytes: 100 streams that have been begun.
const HTTP2_MEMORY: u64 = 80 * 1024;
/// The most that an HTTP/2 request takes, in bytes, where it is refused and where it is forwarded.
const STREAM_MEMORY: (u64, u64) = (4 * 1024, 24 * 1024);

pub(super) fn serve(common: &Common, serve: &Serve) -> Result<ExitCode, Failure> {
    let files = maintenance_files(&common.file)?;
    check(&serve.policies, serve.upstream.as_ref())?;
    let runtime = runtime()?;
    // First, since as process 1 nothing else would end us.
    let signals = runtime.block_on(async { Signals::catch() })?;
    let (limits, too_few) = limits(serve);
    let metrics = Metrics::register(Registry::new())?;
    let admin_limits = Limits {
        connections: ADMIN_CONNECTIONS,
        http2_connections: ADMIN_HTTP2_CONNECTIONS,
        streams: ADMIN_CONNECTIONS,
        ..limits
    };
    let admin = Listener::bind("--admin-listen", common.admin_listen, admin_limits, metrics.limits("admin"))?;
    let traffic = Listener::bind("--listen", serve.listen, limits, metrics.limits("traffic"))?;
    let (state, looks) = lookout::start(&files, serve.poll, Role::Open)?;
    let (phase, stop) = watch::channel(Phase::Running);
    let stop = Stop::new(stop);
    let aborts = Aborts::new(traffic.slots().clone());
    let forwarding = match serve.upstream.clone() {
        None => None,
        Some(upstream) => {
            let requests = metrics.forwarding()?;
            let policies = policies(serve, &requests, &stop)?;
            let admitter =
                Admitter { state: state.clone(), requests: Arc::new(requests), policies, aborts: aborts.clone() };
            // All threads together open as many connections to the application as clients may have.
            Some((upstream, Arc::new(Semaphore::new(limits.connections)), admitter))
        }
    };
    let design = files::reload(sources(serve), serve.poll)?;
    let renderer = |forwards: bool| Renderer::new(state.clone(), design.clone(), serve.retry_after, forwards);
    let gate = || match forwarding.clone() {
        None => Gate::new(renderer(false), metrics.refused()),
        Some((upstream, permits, admitter)) => {
            let timeouts = (limits.idle_timeout, serve.upstream_timeout);
            let proxy = Proxy::new(upstream, permits, timeouts, admitter.requests.clone());
            Gate::forwarding(renderer(true), metrics.refused(), proxy, admitter)
        }
    };
    let forward_auth = ForwardAuth::new(state.clone(), Arc::new(renderer(false)), metrics.refused());
    let gates: Vec<_> = (0..serve.threads.get()).map(|_| gate()).collect();
    let requests = forwarding.map(|(_, _, admitter)| admitter.requests);
    let in_flight = requests.as_ref().map(|requests| requests.in_flight.clone());
    let held = requests.as_ref().map(|requests| requests.held.clone());

    runtime.block_on(async {
        let mut first = state.clone();
        let _ = timeout(FIRST_LOOK, first.wait_for(|state| *state.mode() != Mode::Unknown)).await;
        info!(admin = %admin.address(), traffic = %traffic.address(), "pitstop {} is serving", env!("CARGO_PKG_VERSION"));
        if let Some(scarce) = too_few {
            let connections = limits.connections;
            warn!("only {connections} connections are accepted at once: {scarce} does not allow more");
        }

        if let Some(in_flight) = in_flight.clone() {
            tokio::spawn(abort_after(state.clone(), in_flight, serve.drain_timeout, aborts));
        }
        let mut traffic_served = JoinSet::new();
        for gate in gates {
            traffic_served.spawn(serve_traffic(traffic.try_clone()?, gate, stop.clone())?);
        }
        drop(traffic);
        let forward_auth = any(async move |request: Request| forward_auth.answer(&request).map(Body::from));
        let routes = router(Admin { state, looks, stop: stop.clone(), metrics, in_flight, held })
            .route(forward_auth::PATH, forward_auth);
        let admin_served = admin.serve(AdminService::new(routes), stop);
        let traffic_served = async {
            while let Some(served) = traffic_served.join_next().await {
                served??;
            }
            Ok(())
        };
        let served = async { tokio::try_join!(admin_served, traffic_served) };
        until_stopped(signals, &phase, serve, served).await
    })
}

/// Serves traffic in a thread of its own, so that probes are answered in time whatever happens there.
fn serve_traffic(traffic: Listener, gate: Gate, stop: Stop) -> io::Result<impl Future<Output = io::Result<()>>> {
    let (report, served) = oneshot::channel();
    thread::Builder::new().name("traffic".to_owned()).spawn(move || {
        let served = runtime().and_then(|runtime| {
            runtime.block_on(async {
                traffic.serve(gate.clone(), stop).await?;
                gate.finished().await;
                Ok(())
            })
        });
        let _ = report.send(served);
    })?;
    Ok(async { served.await.map_err(io::Error::other)? })
}

/// The policies that make sense together.
fn check(policies: &cli::Policies, upstream: Option<&Upstream>) -> Result<(), Failure> {
    if let (None, Some(flag)) = (upstream, policies.first()) {
        return Err(Failure::usage(format!("{flag} is about requests to an application: name it with --upstream")));
    }
    if policies.allow_from.is_empty() && !policies.trusted_proxy.is_empty() {
        return Err(Failure::usage("--trusted-proxy says who may name the clients of --allow-from: give that, too"));
    }
    if policies.hold.is_none() && policies.hold_limit.is_some() {
        return Err(Failure::usage("--hold-limit says how many may wait for as long as --hold: give that, too"));
    }
    Ok(())
}

/// What is let through in maintenance, or waits, if anything does.
fn policies(serve: &Serve, requests: &Requests, stop: &Stop) -> Result<Option<Policies>, Failure> {
    let cli::Policies { hold, hold_limit, allow_method, allow_path, allow_from, trusted_proxy, bypass_token_file } =
        serve.policies.clone();
    let bypass = bypass_token_file.map(|file| Bypass::open(file, serve.poll)).transpose()?;
    let hold = hold.unwrap_or_default();
    let policy = Policy { methods: allow_method, paths: allow_path, clients: allow_from, proxies: trusted_proxy, hold };
    let slots = HoldSlots::new(hold_limit.unwrap_or(HOLD_LIMIT), requests.held.clone());
    let any = bypass.is_some() || policy != Policy::default();
    Ok(any.then(|| Policies { policy, slots, bypass, stop: stop.clone() }))
}

/// What the page is made from.
fn sources(serve: &Serve) -> Sources {
    let cli::Appearance { title, logo, accent, page } = serve.appearance.clone();
    let title = title.map(|title| one_line(&title)).filter(|title| !title.is_empty());
    Sources { title, logo, accent, page }
}

/// Goes through the phases of stopping. `served` ends when both listeners have drained; before, only if one fails.
async fn until_stopped<T>(
    mut signals: Signals,
    phase: &watch::Sender<Phase>,
    serve: &Serve,
    served: impl Future<Output = io::Result<T>>,
) -> Result<ExitCode, Failure> {
    let mut served = pin!(served);
    tokio::select! {
        stop = signals.stop(phase, serve.shutdown_delay) => if let Err(again) = stop {
            return Ok(again.exit_code());
        },
        Err(error) = &mut served => return Err(Failure::new(format!("a listener has failed: {error}"))),
    }
    match signals.unless_again(timeout(serve.drain_timeout, served)).await {
        Err(again) => Ok(again.exit_code()),
        Ok(drained) => {
            if drained.is_err() {
                warn!("requests still run after {:?}: they are aborted", serve.drain_timeout);
            }
            info!("stopped");
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The limits on clients, so that neither file descriptors nor memory run out, and the resource that allows fewer connections
/// than asked for.
fn limits(serve: &Serve) -> (Limits, Option<&'static str>) {
    let forwards = serve.upstream.is_some();
    let files = connections_by_files(serve.max_connections, forwards);
    let memory = serve.memory_limit.into_iter().chain(memory::limit()).min();
    let (connections, http2_connections, streams) = match memory {
        Some(limit) => within_memory(limit, serve.max_header_size, forwards),
        None => (usize::MAX, usize::MAX, usize::MAX),
    };
    let scarce = if connections < files {
        Some("the memory limit (--memory-limit, or the container's)")
    } else {
        (files < serve.max_connections).then_some("the limit on open files (ulimit -n)")
    };
    let connections = connections.min(files);
    // Each may need a connection to the application. HTTP/1.1 clients have to find one, too.
    let streams = if forwards && memory.is_some() { streams.min(connections - connections / 8) } else { streams };
    let limits = Limits {
        header_size: serve.max_header_size,
        header_timeout: serve.header_timeout,
        idle_timeout: serve.idle_timeout,
        connections,
        http2_connections,
        streams,
    };
    (limits, scarce)
}

/// The number of connections for which there are file descriptors. Their limit is raised as far as the system allows; if that
/// is not enough, fewer connections are taken, so that the admin listener and the looks never go without.
fn connections_by_files(wanted: usize, forwards: bool) -> usize {
    // Each client may need a connection to the application.
    let each = if forwards { 2 } else { 1 };
    let needed = (wanted as u64).saturating_mul(each) + RESERVED_FILES;
    let mut files = getrlimit(Resource::Nofile);
    if files.current.is_some_and(|current| current < needed) {
        files.current = Some(files.maximum.map_or(needed, |maximum| maximum.min(needed)));
        if let Err(error) = setrlimit(Resource::Nofile, files) {
            warn!("the limit on open files cannot be raised: {error}");
            files = getrlimit(Resource::Nofile);
        }
    }
    let room = files.current.map_or(u64::MAX, |current| (current.saturating_sub(RESERVED_FILES) / each).max(1));
    usize::try_from(room).unwrap_or(usize::MAX).min(wanted)
}

/// The numbers of connections, of those that speak HTTP/2 and of HTTP/2 requests for which there is room within this limit, in
/// bytes.
fn within_memory(limit: u64, header_size: usize, forwards: bool) -> (usize, usize, usize) {
    let quarter = limit.saturating_sub(RESERVED_MEMORY) / 4;
    let connection = header_size as u64 + CONNECTION_MEMORY + if forwards { FORWARDING_MEMORY } else { 0 };
    let stream = if forwards { STREAM_MEMORY.1 } else { STREAM_MEMORY.0 };
    let room = |share: u64, each: u64| usize::try_from(share / each).unwrap_or(usize::MAX);
    (room(2 * quarter, connection).max(16), room(quarter, HTTP2_MEMORY).max(4), room(quarter, stream).max(16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_into_the_memory_limit() {
        const MIB: u64 = 1024 * 1024;
        let table = [
            (32 * MIB, false, (365, 64, 1280)),
            (64 * MIB, false, (950, 166, 3328)),
            (512 * MIB, true, (4266, 1600, 5333)),
            (8 * MIB, false, (16, 4, 16)),
        ];
        for (limit, forwards, expected) in table {
            assert_eq!(within_memory(limit, 16 * 1024, forwards), expected, "{limit} {forwards}");
        }
        // Whatever the clients do, it stays below the limit.
        for limit in (14..1024).map(|mib| mib * MIB) {
            let (connections, http2, streams) = within_memory(limit, 16 * 1024, false);
            let taken = connections as u64 * (16 * 1024 + CONNECTION_MEMORY)
                + http2 as u64 * HTTP2_MEMORY
                + streams as u64 * STREAM_MEMORY.0;
            assert!(taken + RESERVED_MEMORY <= limit, "{limit}");
        }
    }
}
