//! Registering metrics.

use prometheus::Registry;
use prometheus::core::Collector;

/// Registers a metric.
///
/// # Errors
///
/// The registry holds a metric of this name already.
pub(super) fn added<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> prometheus::Result<C> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
