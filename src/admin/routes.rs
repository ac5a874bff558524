//! `/livez`, `/readyz`, `/healthz`, `/metrics` and `/maintenance`.

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use jiff::Timestamp;
use prometheus::IntGauge;
use serde::Serialize;
use tokio::sync::watch;

use super::health::{self, Answer, Endpoint, Query};
use crate::maintenance::state;
use crate::maintenance::watch::Looks;
use crate::metrics::Metrics;
use crate::shutdown::Stop;

const TEXT: &str = "text/plain; charset=utf-8";

/// What the routes read.
#[derive(Debug)]
pub struct Admin {
    /// The state of maintenance mode.
    pub state: watch::Receiver<state::State>,
    /// What became of the looks at the files.
    pub looks: Arc<Looks>,
    /// How far the process is from its end.
    pub stop: Stop,
    /// What Prometheus is told.
    pub metrics: Metrics,
    /// How many requests the application is at work on, where they are forwarded to one.
    pub in_flight: Option<IntGauge>,
    /// How many wait for maintenance to end, there.
    pub held: Option<IntGauge>,
}

/// The admin listener's service.
pub fn router(admin: Admin) -> Router {
    let mut router = Router::new().route("/maintenance", get(maintenance)).route("/metrics", get(metrics));
    for endpoint in Endpoint::ALL {
        let path = format!("/{}", endpoint.name());
        router = router
            .route(&path, get(async move |admin, query| whole(endpoint, admin, query)))
            .route(&format!("{path}/{{check}}"), get(async move |admin, check| one(endpoint, admin, check)));
    }
    router.fallback(not_found).method_not_allowed_fallback(method_not_allowed).with_state(Arc::new(admin))
}

fn whole(endpoint: Endpoint, State(admin): State<Arc<Admin>>, RawQuery(query): RawQuery) -> Response {
    let query = Query::parse(query.as_deref().unwrap_or_default());
    let state = admin.state.borrow();
    let checks = health::checks(endpoint, &state, admin.stop.phase());
    for check in checks.iter().filter(|check| query.includes(check)) {
        admin.metrics.checked(check.name, endpoint.name(), check.failure.is_none());
    }
    let warnings = health::warnings(endpoint, &state, &admin.looks);
    respond(health::answer(endpoint, &checks, &warnings, &query))
}

/// A name that is not UTF-8 is a path rejection: there is no such check either.
fn one(endpoint: Endpoint, State(admin): State<Arc<Admin>>, name: Result<Path<String>, PathRejection>) -> Response {
    let checks = health::checks(endpoint, &admin.state.borrow(), admin.stop.phase());
    let check = name.ok().and_then(|Path(name)| checks.into_iter().find(|check| check.name == name));
    check.map_or_else(page_not_found, |check| respond(health::answer_one(&check)))
}

async fn maintenance(State(admin): State<Arc<Admin>>) -> Response {
    #[derive(Serialize)]
    struct Maintenance<'a> {
        #[serde(flatten)]
        report: state::Report<'a>,
        #[serde(skip_serializing_if = "Option::is_none")]
        in_flight: Option<i64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        held: Option<i64>,
    }
    let state = admin.state.borrow();
    let [in_flight, held] = [&admin.in_flight, &admin.held].map(|gauge| gauge.as_ref().map(IntGauge::get));
    match serde_json::to_string(&Maintenance { report: state.report(Timestamp::now()), in_flight, held }) {
        Ok(json) => text(StatusCode::OK, "application/json", json + "\n"),
        Err(error) => internal_error(&error),
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    match admin.metrics.render(&admin.state.borrow(), &admin.looks) {
        Ok(metrics) => text(StatusCode::OK, prometheus::TEXT_FORMAT, metrics),
        Err(error) => internal_error(&error),
    }
}

/// The header `Allow` is added by the router.
async fn method_not_allowed() -> Response {
    text(StatusCode::METHOD_NOT_ALLOWED, TEXT, "405 method not allowed\n".to_owned())
}

async fn not_found() -> Response {
    page_not_found()
}

fn page_not_found() -> Response {
    text(StatusCode::NOT_FOUND, TEXT, "404 page not found\n".to_owned())
}

fn respond(Answer { passed, body }: Answer) -> Response {
    text(if passed { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, TEXT, body)
}

fn internal_error(error: &dyn std::error::Error) -> Response {
    tracing::error!("an answer cannot be written: {error}");
    text(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("internal server error: {error}\n"))
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let headers: [(HeaderName, &str); 3] =
        [(CONTENT_TYPE, content_type), (X_CONTENT_TYPE_OPTIONS, "nosniff"), (CACHE_CONTROL, "no-store")];
    (status, headers, body).into_response()
}
