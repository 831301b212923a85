//! `brolly bench`: verify, then time, against what the machine can do in the same run.

mod machine;
mod measure;
mod work;

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use exec::Memory;
use ir::{ModelInfo, ModelKind, artifact::Artifact};
use serde::Serialize;
use serve::{Session, SessionOptions};

use crate::{
    args::Bench,
    context::Context,
    failure::{Failure, Result},
    keys_values::KeysValues,
    output,
    plan::PINNED,
    session::failure,
    source,
    table::{self, Table},
};
use machine::{Machine, Roofline};
use measure::{OpTime, Round, Workload};
use work::{is_attention, work};

/// Rounds of which the median counts, unless they take too long.
const ROUNDS: usize = 5;
const LONG: Duration = Duration::from_secs(30);

const DEFAULT_PROMPT: u64 = 256;
const DEFAULT_NEW: u64 = 64;

/// What was measured.
#[derive(Debug, Serialize)]
struct Document {
    model: String,
    /// The GPU; none of the CPU.
    device: Option<String>,
    threads: usize,
    batch: usize,
    prompt_tokens: usize,
    gen_tokens: usize,
    rounds: usize,
    load_ms: f64,
    first_token_ms: f64,
    prefill_tokens_per_s: f64,
    /// None where nothing is decoded.
    decode_tokens_per_s: Option<f64>,
    decode_step_ms: Option<f64>,
    predicted_peak_bytes: u64,
    measured_peak_bytes: u64,
    predicted_memory: Memory,
    measured_memory: Memory,
    /// The largest resident size of the process, file mappings included.
    process_peak_bytes: Option<u64>,
    #[serde(flatten)]
    roofline: Roofline,
    prefill_flops: f64,
    prefill_percent_of_peak: f64,
    decode_bytes_per_step: Option<f64>,
    decode_percent_of_bandwidth: Option<f64>,
    prefill_ops: Vec<OpTime>,
    decode_ops: Vec<OpTime>,
}

pub(crate) fn bench(args: &Bench, cx: &Context) -> Result<()> {
    let artifact = source::open(&args.source, cx)?;
    let sizes = Sizes::new(args, &artifact)?;
    let start = Instant::now();
    let options = SessionOptions {
        device: None,
        gpu: cx.gpu(),
        threads: Some(cx.threads()),
        max_seq_len: sizes.session_len,
        sequences: NonZeroUsize::new(sizes.batch),
        trace: cx.trace().cloned(),
    };
    let mut session = Session::of(artifact.clone(), options).map_err(failure)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let document = measure(&mut session, &artifact, &sizes, load_ms)?;
    if args.json { output::json(&document) } else { output::print(&render(&document)) }
}

/// How much is run.
#[derive(Debug)]
struct Sizes {
    batch: usize,
    prompt: usize,
    new: usize,
    is_encoder: bool,
    /// The longest sequence to reserve memory for; an encoder takes what it is compiled for.
    session_len: Option<usize>,
}

impl Sizes {
    fn new(args: &Bench, artifact: &Artifact) -> Result<Sizes> {
        let ModelInfo { kind, max_seq_len: most, hidden_size, architecture, .. } =
            &artifact.manifest().model;
        let is_encoder = match kind {
            ModelKind::Decoder => false,
            ModelKind::Encoder => true,
            ModelKind::Graph => {
                return Err(Failure::input(format!(
                    "{}: {architecture} is a graph, and `bench` times language models and encoders",
                    artifact.path().display()
                )));
            }
        };
        let asked = args.gen_tokens.unwrap_or(0);
        if is_encoder && asked > 0 {
            return Err(Failure::Usage(format!(
                "--gen-tokens {asked}: {architecture} is an encoder, which generates nothing; \
                 time it with --gen-tokens 0"
            )));
        }
        let room = most.saturating_sub(if is_encoder { 0 } else { asked.max(1) }).max(1);
        let half = if args.gen_tokens.is_some() || is_encoder { room } else { room.div_ceil(2) };
        let prompt = args.prompt_tokens.unwrap_or(DEFAULT_PROMPT.min(half));
        let new = match args.gen_tokens {
            _ if is_encoder => 0,
            Some(n) => n,
            None => DEFAULT_NEW.min(most.saturating_sub(prompt)),
        };
        // A prefill ends with a token.
        let total = prompt.saturating_add(if is_encoder { 0 } else { new.max(1) });
        if total > *most {
            return Err(Failure::input(format!(
                "--prompt-tokens {prompt} and {} new ones are more than the {most} tokens that the \
                 model is compiled for",
                total - prompt
            )));
        }
        let size = |n: u64| {
            usize::try_from(n).map_err(|_| Failure::Usage(format!("--batch {n}: is too large")))
        };
        let batch = size(args.batch)?;
        let limit = exec::memory_limit_bytes().unwrap_or(u64::MAX);
        let needed = host_bytes(args.batch, prompt + new, *hidden_size);
        if needed > limit {
            return Err(Failure::input(format!(
                "--batch {batch}: its tokens and results take {needed} bytes, and this process \
                 may use {limit}"
            )));
        }
        Ok(Sizes {
            batch,
            prompt: size(prompt)?,
            new: size(new)?,
            is_encoder,
            session_len: (!is_encoder).then_some(size(total)?),
        })
    }
}

/// Bytes of what is held for all streams besides the model's own memory, about: ids, times and
/// log-probabilities of tokens, and vectors twice.
fn host_bytes(batch: u64, tokens: u64, hidden_size: u64) -> u64 {
    let stream = tokens.saturating_mul(32).saturating_add(hidden_size.saturating_mul(8));
    batch.saturating_mul(stream.saturating_add(256))
}

fn measure(
    session: &mut Session,
    artifact: &Artifact,
    sizes: &Sizes,
    load_ms: f64,
) -> Result<Document> {
    let Sizes { batch, prompt, new, is_encoder, .. } = *sizes;
    artifact.verify_weights(session.threads()).map_err(Failure::input)?;
    let vocab = session.info().vocab_size;
    let workload = Workload::new(batch, prompt, new, vocab);
    workload.verify(session, is_encoder)?;

    let mut first = workload.round(session, is_encoder, true)?;
    let (prefill_ops, decode_ops) =
        (std::mem::take(&mut first.prefill_ops), std::mem::take(&mut first.decode_ops));
    // On a GPU launches are measured one by one, and are otherwise no launches of their own.
    let is_gpu = session.device().facts().is_some();
    if is_gpu {
        first = workload.round(session, is_encoder, false)?;
    }
    let mut rounds = vec![first];
    // What measures the machine takes memory of its own.
    let process_peak_bytes = exec::peak_resident_bytes();
    let mut machine = Machine::new(session.device(), &artifact.manifest().target);
    let mut roofline = machine.measure().map_err(Failure::input)?;
    let start = Instant::now();
    while rounds.len() < ROUNDS && start.elapsed() < LONG {
        rounds.push(workload.round(session, is_encoder, !is_gpu)?);
        roofline = machine.measure().map_err(Failure::input)?;
    }

    let entry = if is_encoder { "embed" } else { "step" };
    let program = artifact.program(entry).map_err(Failure::input)?;
    let most = |symbol: &str| {
        let bounds = program.symbols.get(symbol);
        bounds.and_then(|b| u64::try_from(b.hi).ok()).unwrap_or(u64::MAX)
    };
    let prefill = median(&rounds, |r| r.prefill);
    let tokens = (batch * prompt) as u64;
    // Steps of as many tokens as there may be, and one of what is left.
    let (steps, rest) = (tokens / most("T"), tokens % most("T"));
    let flops = |tokens: u64| work(program, tokens, (batch as u64).min(most("S"))).flops;
    let flops = steps as f64 * flops(most("T")) + if rest > 0 { flops(rest) } else { 0.0 };

    let decode_tokens = rounds[0].decode_tokens;
    let decode = (decode_tokens > 0).then(|| median(&rounds, |r| r.decode));
    let step = decode.map(|seconds| seconds / (decode_tokens as f64 / batch as f64));
    let context = prompt as f64 + new as f64 / 2.0;
    let bytes = decode.map(|_| {
        let streams = batch as u64;
        let kept = KeysValues::of(program).map_or(0, |kept| kept.bytes_per_token);
        work(program, streams, streams).bytes + batch as f64 * context * kept as f64
    });
    let (predicted_memory, measured_memory) = session.memory().map_err(failure)?;
    let first_token = median(&rounds, |r| r.first_token);
    Ok(Document {
        model: session.info().architecture.clone(),
        device: session.device().facts().map(|facts| facts.name.clone()),
        threads: session.threads(),
        batch,
        prompt_tokens: prompt,
        gen_tokens: new,
        rounds: rounds.len(),
        load_ms,
        first_token_ms: first_token * 1e3,
        prefill_tokens_per_s: tokens as f64 / prefill,
        decode_tokens_per_s: decode.map(|seconds| decode_tokens as f64 / seconds),
        decode_step_ms: step.map(|seconds| seconds * 1e3),
        predicted_peak_bytes: predicted_memory.total(),
        measured_peak_bytes: measured_memory.total(),
        predicted_memory,
        measured_memory,
        process_peak_bytes,
        roofline,
        prefill_flops: flops,
        prefill_percent_of_peak: flops / prefill / roofline.peak_flops * 100.0,
        decode_bytes_per_step: bytes,
        decode_percent_of_bandwidth: bytes
            .zip(step)
            .map(|(bytes, step)| bytes / step / roofline.read_bandwidth * 100.0),
        prefill_ops,
        decode_ops,
    })
}

fn median(rounds: &[Round], of: impl Fn(&Round) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn render(d: &Document) -> String {
    let mut out = format!(
        "{}: {}, {} of {} + {} tokens, median of {}\n\n",
        d.model,
        d.device.clone().unwrap_or_else(|| table::plural(d.threads, "thread")),
        table::plural(d.batch, "stream"),
        d.prompt_tokens,
        d.gen_tokens,
        table::plural(d.rounds, "round")
    );
    let mut speed = Table::new(&["", ">", ""]);
    let rate = |v: f64| format!("{v:.1} tokens/s");
    speed.row(["load".into(), table::seconds(d.load_ms / 1e3), String::new()]);
    speed.row(["first token".into(), table::seconds(d.first_token_ms / 1e3), String::new()]);
    speed.row([
        "prefill".into(),
        rate(d.prefill_tokens_per_s),
        format!(
            "{:.1} % of the {} peak, {}",
            d.prefill_percent_of_peak,
            if d.device.is_some() { "stated" } else { "measured" },
            table::count(d.roofline.peak_flops, "FLOP/s")
        ),
    ]);
    if let (Some(tokens), Some(percent)) = (d.decode_tokens_per_s, d.decode_percent_of_bandwidth) {
        let bandwidth = table::count(d.roofline.read_bandwidth, "B/s");
        let kind = if d.device.is_some() { "copy" } else { "read" };
        let of = format!("{percent:.1} % of the measured {kind} bandwidth, {bandwidth}");
        speed.row(["decode".into(), rate(tokens), of]);
    }
    out += &speed.render();
    let mut memory = Table::new(&["memory", ">predicted", ">measured"]);
    let [predicted, measured] = [&d.predicted_memory, &d.measured_memory].map(uses);
    for ((name, predicted), (_, measured)) in predicted.into_iter().zip(measured) {
        if name == PINNED && predicted + measured == 0 {
            continue;
        }
        memory.row([name.into(), table::bytes(predicted), table::bytes(measured)]);
    }
    out += &format!("\n{}", memory.render());
    for (name, ops) in [("prefill", &d.prefill_ops), ("decode", &d.decode_ops)] {
        if !ops.is_empty() {
            out += &format!("\n  the last step of {name}\n{}", op_table(ops));
        }
    }
    out
}

fn uses(m: &Memory) -> [(&'static str, u64); 8] {
    [
        ("weights", m.weight_bytes),
        ("code", m.code_bytes),
        ("arena", m.arena_bytes),
        ("scratch", m.scratch_bytes),
        ("keys and values", m.state_bytes),
        ("overhead, stated", m.host_bytes),
        ("peak", m.total()),
        (PINNED, m.pinned_bytes),
    ]
}

fn op_table(ops: &[OpTime]) -> String {
    let total: f64 = ops.iter().map(|o| o.seconds).sum();
    let mut table = Table::new(&["operator", ">launches", ">time", ">share", ">FLOP/s", ">B/s"]);
    for o in ops {
        // A program knows only the most that attention may read.
        let rate = |work: f64, unit| match is_attention(&o.op) {
            true => "-".to_owned(),
            false => table::count(work / o.seconds.max(1e-9), unit),
        };
        table.row([
            o.op.clone(),
            o.launches.to_string(),
            table::seconds(o.seconds),
            format!("{:.1} %", o.seconds / total.max(1e-12) * 100.0),
            rate(o.flops, "FLOP/s"),
            rate(o.bytes, "B/s"),
        ]);
    }
    table.render()
}
