//! Figures for Prometheus.

use std::time::Duration;

use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::engine::Engine;

pub use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;

/// What the HTTP side counts; the engine counts the rest.
pub struct Metrics {
    requests: Family<[(&'static str, String); 2], Counter>,
    first_token: Histogram,
}

/// Bounds of the times to a first token, in seconds.
const SECONDS: [f64; 13] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

impl Metrics {
    pub fn new() -> Self {
        Self { requests: Family::default(), first_token: Histogram::new(SECONDS) }
    }

    /// A request to this endpoint has been dealt with.
    pub fn count_request(&self, endpoint: &str, status: u16) {
        let labels = [("endpoint", endpoint.to_owned()), ("status", status.to_string())];
        self.requests.get_or_create(&labels).inc();
    }

    /// A first token has come this long after its request.
    pub fn observe_first_token(&self, time: Duration) {
        self.first_token.observe(time.as_secs_f64());
    }

    /// All figures, in Prometheus' text format; those of the engine once there is one.
    pub fn text(&self, engine: Option<&Engine>) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::with_prefix("torchless");
        registry.register("requests", "Requests dealt with", self.requests.clone());
        registry.register(
            "time_to_first_token_seconds",
            "From a request's arrival to the first token of its answer",
            self.first_token.clone(),
        );
        if let Some(engine) = engine {
            register_engine(&mut registry, engine);
        }
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

fn register_engine(registry: &mut Registry, engine: &Engine) {
    let stats = engine.stats();
    for (name, help, value) in [
        ("queued", "Answers that wait for room", stats.queued),
        ("running", "Answers being made", stats.running),
        ("pages", "Pages of 64 positions, for keys and values", stats.pages),
        ("pages_used", "Pages held by answers", stats.pages_used),
        ("pages_cached", "Pages kept for prompts that begin alike, free on demand", stats.pages_cached),
    ] {
        registry.register(name, help, ConstGauge::new(value));
    }
    for (name, help, value) in [
        ("prompt_tokens", "Tokens of prompts that were worked out", stats.prompt_tokens),
        ("cached_tokens", "Tokens of prompts that were found in pages", stats.cached_tokens),
        ("generated_tokens", "Tokens generated", stats.generated_tokens),
        ("preemptions", "Answers put back into the queue for want of pages", stats.preemptions),
        ("steps", "Forward passes", stats.steps),
        ("engine_restarts", "Engines started anew after a panic", engine.restarts()),
    ] {
        registry.register(name, help, ConstCounter::new(value));
    }
}
