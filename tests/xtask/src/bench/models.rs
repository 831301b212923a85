//! Whole models, by `brolly bench`, and the same by the peers, in turns.

use super::Args;
use super::peers::{LlamaCpp, Python, Rates};
use super::report::{Measured, quartiles};
use crate::process::{self, Failure, Result, cache, capture, command, root, shown};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What is run of a language model: streams, tokens of a prompt, new tokens.
const WORK: [[usize; 3]; 2] = [[1, 256, 24], [16, 64, 16]];

/// What is run of an encoder: texts, tokens of each.
const TEXTS: [usize; 2] = [16, 128];

/// A rate in every round, and what it is compared with.
#[derive(Default)]
struct Rounds {
    ours: Vec<f64>,
    of_roofline: Vec<f64>,
    peers: Vec<(String, Vec<f64>)>,
}

impl Rounds {
    fn peer(&mut self, name: &str, rate: f64) {
        let at = self.peers.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            self.peers.push((name.to_owned(), Vec::new()));
            self.peers.len() - 1
        });
        self.peers[at].1.push(rate);
    }

    fn measured(&self, what: &str, case: String, threads: usize, roofline: [f64; 2]) -> Measured {
        let against = |(name, theirs): &(String, Vec<f64>)| {
            (name.clone(), quartiles(self.ours.iter().zip(theirs).map(|(a, b)| a / b)))
        };
        let known = self.of_roofline.len() == self.ours.len();
        Measured {
            what: what.to_owned(),
            case,
            threads,
            unit: "tokens/s".to_owned(),
            speed: quartiles(self.ours.iter().copied()),
            of_roofline: known.then(|| quartiles(self.of_roofline.iter().copied())),
            peers: self.peers.iter().map(against).collect(),
            roofline: Some(roofline),
        }
    }
}

/// Everything that was asked for, or the in-repo model.
pub(super) fn measure(args: &Args, brolly: &Path) -> Result<Vec<Measured>> {
    let mut measured = Vec::new();
    let llama = LlamaCpp::find(args)?;
    let mut models: Vec<(PathBuf, Option<PathBuf>)> = args.model.iter().map(|m| pair(m)).collect();
    if models.is_empty() && args.encoder.is_empty() {
        let artifact = cache()?.join("bench-stories.brolly");
        let model = root().join("tests/data/stories");
        process::run(command(brolly).arg("compile").arg(model).arg("-o").arg(&artifact))?;
        models.push((artifact, None));
    }
    for (artifact, gguf) in &models {
        let peer = match (gguf, &llama) {
            (Some(_), None) => {
                return Err(Failure::Explained(
                    "a GGUF file was named, but there is no llama-bench; give --llama-cpp".into(),
                ));
            }
            (gguf, llama) => gguf.as_deref().zip(llama.as_ref()),
        };
        for work in WORK {
            measured.extend(language_model(args, brolly, artifact, peer, work)?);
        }
    }
    for encoder in &args.encoder {
        measured.push(text_encoder(args, brolly, encoder)?);
    }
    Ok(measured)
}

/// An artifact, and a peer's file of the same model.
pub(super) fn pair(text: &str) -> (PathBuf, Option<PathBuf>) {
    match text.split_once('=') {
        Some((artifact, peer)) => (artifact.into(), Some(peer.into())),
        None => (text.into(), None),
    }
}

/// Rows of prefill and decode.
fn language_model(
    args: &Args,
    brolly: &Path,
    artifact: &Path,
    peer: Option<(&Path, &LlamaCpp)>,
    [streams, prompt, new]: [usize; 3],
) -> Result<[Measured; 2]> {
    let mut rounds: [Rounds; 2] = Default::default();
    let mut roofline = [0.0; 2];
    for round in 1..=args.rounds() {
        let report = bench(args, brolly, artifact, [streams, prompt, new])?;
        let rate = |key: &str| field(&report, artifact, key);
        let ours =
            Rates { prefill: rate("prefill_tokens_per_s")?, decode: rate("decode_tokens_per_s")? };
        for (rounds, (rate, percent)) in rounds.iter_mut().zip([
            (ours.prefill, "prefill_percent_of_peak"),
            (ours.decode, "decode_percent_of_bandwidth"),
        ]) {
            rounds.ours.push(rate);
            rounds.of_roofline.extend(report[percent].as_f64().map(|p| p / 100.0));
        }
        roofline = [rate("peak_flops")?, rate("read_bandwidth")?];
        if let Some((gguf, llama)) = peer {
            let theirs = match streams {
                1 => llama.single(gguf, prompt, new)?,
                _ => llama.batched(gguf, streams, prompt, new)?,
            };
            rounds[0].peer("llama.cpp", theirs.prefill);
            rounds[1].peer("llama.cpp", theirs.decode);
        }
        eprintln!("{}: round {round}: {ours:?}", artifact.display());
    }
    let name = artifact.file_stem().unwrap_or_default().to_string_lossy();
    let of = |rounds: &Rounds, case: String| rounds.measured(&name, case, args.threads(), roofline);
    let [prefill, decode] = &rounds;
    Ok([
        of(prefill, format!("prefill, {streams} x {prompt} tokens")),
        of(decode, format!("decode, {streams} x {new} tokens")),
    ])
}

fn text_encoder(args: &Args, brolly: &Path, encoder: &str) -> Result<Measured> {
    let (artifact, onnx) = pair(encoder);
    let [batch, tokens] = TEXTS;
    let mut python = match (&args.python, &onnx) {
        (Some(python), Some(onnx)) => {
            Some(Python::start(python, onnx, [batch, tokens, args.threads()])?)
        }
        _ => None,
    };
    let mut rounds = Rounds::default();
    let mut roofline = [0.0; 2];
    for _ in 0..args.rounds() {
        let report = bench(args, brolly, &artifact, [batch, tokens, 0])?;
        let rate = |key: &str| field(&report, &artifact, key);
        rounds.ours.push(rate("prefill_tokens_per_s")?);
        rounds.of_roofline.push(rate("prefill_percent_of_peak")? / 100.0);
        roofline = [rate("peak_flops")?, rate("read_bandwidth")?];
        if let Some(python) = &mut python {
            python.round()?.into_iter().for_each(|(name, rate)| rounds.peer(&name, rate));
        }
    }
    let name = artifact.file_stem().unwrap_or_default().to_string_lossy();
    Ok(rounds.measured(&name, format!("{batch} x {tokens} tokens"), args.threads(), roofline))
}

/// What `brolly bench` reports.
fn bench(
    args: &Args,
    brolly: &Path,
    artifact: &Path,
    [streams, prompt, new]: [usize; 3],
) -> Result<Value> {
    let mut bench = command(brolly);
    bench.arg("bench").arg(std::path::absolute(artifact).unwrap_or(artifact.into())).arg("--json");
    let flags = [
        ("--batch", streams),
        ("--prompt-tokens", prompt),
        ("--gen-tokens", new),
        ("--threads", args.threads()),
    ];
    for (flag, value) in flags {
        bench.args([flag, &value.to_string()]);
    }
    let text = capture(&mut bench)?;
    serde_json::from_str(&text).map_err(|error| {
        Failure::Explained(format!("`{}` printed no JSON: {error}", shown(&bench)))
    })
}

fn field(report: &Value, artifact: &Path, key: &str) -> Result<f64> {
    report[key].as_f64().ok_or_else(|| {
        let path = artifact.display();
        Failure::Explained(format!(
            "{path}: `brolly bench` reports no `{key}`; is it the right kind?"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_compared_one_by_one() {
        let mut rounds = Rounds { ours: vec![10.0, 20.0, 40.0], ..Rounds::default() };
        for rate in [10.0, 10.0, 10.0] {
            rounds.peer("llama.cpp", rate);
        }
        let row = rounds.measured("m", "decode".into(), 2, [1.0, 2.0]);
        assert_eq!(row.peers, [("llama.cpp".to_owned(), [1.0, 2.0, 4.0])]);
        assert_eq!(row.of_roofline, None);
        assert_eq!(pair("a=b"), ("a".into(), Some("b".into())));
        assert_eq!(pair("a"), ("a".into(), None));
    }
}
