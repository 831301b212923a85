//! `GET /metrics`: Prometheus' text format, under brolly's names and under those that dashboards
//! for vLLM read.

use std::{fmt::Write, sync::Arc};

use axum::{extract::State, response::Response};

use super::{App, route::respond};
use crate::engine::{Histogram, Stats};

/// The text format's media type.
const MEDIA: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A text of metrics that all have the model's name.
struct Page {
    text: String,
    label: String,
}

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let mut page = Page { text: String::new(), label: label(&app.names()[0]) };
    let stats = app.engine().stats();
    shared(&mut page, &stats);
    page.gauge("brolly_kv_blocks", "Blocks of key/value memory.", stats.blocks as f64);
    page.gauge("brolly_kv_blocks_used", "Blocks that sequences use.", stats.used_blocks as f64);
    let about = "Blocks that nobody uses and that hold a cached prefix.";
    page.gauge("brolly_kv_blocks_cached", about, stats.cached_blocks as f64);
    page.counter("brolly_steps_total", "Steps of the model.", stats.steps as f64);
    let about = "Time that the model has computed for.";
    page.counter("brolly_model_seconds_total", about, stats.model_time.as_secs_f64());
    let bytes = app.engine().memory().total() as f64;
    page.gauge("brolly_memory_reserved_bytes", "Memory that was reserved at the start.", bytes);
    page.gauge("brolly_start_time_seconds", "Start, since 1970.", app.started() as f64);
    page.head("brolly_http_requests_total", "counter", "Answers by route and status.");
    for ((route, status), count) in app.answered() {
        let labels = format!("route=\"{route}\",status=\"{status}\"");
        page.sample("brolly_http_requests_total", &labels, count as f64);
    }
    respond(MEDIA, page.text)
}

/// What has a name of vLLM's, under both.
fn shared(page: &mut Page, stats: &Stats) {
    let blocks = stats.blocks.max(1) as f64;
    // vLLM calls a histogram by a counter's name.
    for (prefix, iteration_tokens) in
        [("brolly_", "iteration_tokens"), ("vllm:", "iteration_tokens_total")]
    {
        let name = |name: &str| format!("{prefix}{name}");
        for (gauge, about, value) in [
            ("num_requests_running", "Sequences that take part in steps.", stats.running as f64),
            ("num_requests_waiting", "Requests that wait for room.", stats.waiting as f64),
            (
                "kv_cache_usage_perc",
                "Share of key/value memory that sequences use; 1 is all.",
                stats.used_blocks as f64 / blocks,
            ),
        ] {
            page.gauge(&name(gauge), about, value);
        }
        for (counter, about, value) in [
            ("prefix_cache_queries_total", "Tokens looked up in the cache.", stats.prefix_queries),
            ("prefix_cache_hits_total", "Tokens found in the cache.", stats.prefix_hits),
            ("prompt_tokens_total", "Tokens of prompts.", stats.prompt_tokens),
            ("generation_tokens_total", "New tokens.", stats.generation_tokens),
            ("num_preemptions_total", "Sequences that gave memory back.", stats.preemptions),
        ] {
            page.counter(&name(counter), about, value as f64);
        }
        let finished = name("request_success_total");
        page.head(&finished, "counter", "Sequences that ended, by reason.");
        for (reason, value) in [
            ("stop", stats.finished_stop),
            ("length", stats.finished_length),
            ("abort", stats.finished_abort),
            ("error", stats.finished_error),
        ] {
            page.sample(&finished, &format!("finished_reason=\"{reason}\""), value as f64);
        }
        for (histogram, about, values) in [
            ("time_to_first_token_seconds", "Arrival to first token.", &stats.time_to_first_token),
            ("inter_token_latency_seconds", "Between two tokens.", &stats.inter_token_latency),
            ("e2e_request_latency_seconds", "Arrival to end.", &stats.e2e_latency),
            ("request_queue_time_seconds", "Arrival to first step.", &stats.queue_time),
            ("request_prefill_time_seconds", "First step to first token.", &stats.prefill_time),
            ("request_decode_time_seconds", "First token to last.", &stats.decode_time),
            ("request_prompt_tokens", "Tokens of a prompt.", &stats.request_prompt_tokens),
            (
                "request_generation_tokens",
                "New tokens of a request.",
                &stats.request_generation_tokens,
            ),
            (iteration_tokens, "Tokens of a step.", &stats.iteration_tokens),
        ] {
            page.histogram(&name(histogram), about, values);
        }
    }
}

impl Page {
    fn head(&mut self, name: &str, kind: &str, about: &str) {
        let _ = writeln!(self.text, "# HELP {name} {about}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let comma = if labels.is_empty() { "" } else { "," };
        let _ = writeln!(self.text, "{name}{{{}{comma}{labels}}} {value}", self.label);
    }

    fn gauge(&mut self, name: &str, about: &str, value: f64) {
        self.head(name, "gauge", about);
        self.sample(name, "", value);
    }

    fn counter(&mut self, name: &str, about: &str, value: f64) {
        self.head(name, "counter", about);
        self.sample(name, "", value);
    }

    fn histogram(&mut self, name: &str, about: &str, values: &Histogram) {
        self.head(name, "histogram", about);
        let bounds = values.bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        let mut sum = 0;
        for (bound, count) in bounds.zip(&values.counts) {
            sum += count;
            self.sample(&format!("{name}_bucket"), &format!("le=\"{bound}\""), sum as f64);
        }
        self.sample(&format!("{name}_sum"), "", values.sum);
        self.sample(&format!("{name}_count"), "", sum as f64);
    }
}

/// The model's name as a label.
fn label(name: &str) -> String {
    let name = name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("model_name=\"{name}\"")
}
