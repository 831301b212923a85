//! Whole models: what they compute on a device must be near what the CPU computes, and the same
//! bits however it is asked for.

use std::{fs, ops::ControlFlow, path::Path, sync::Arc};

use ir::{ModelKind, Tensor, artifact::Artifact};
use serde::{Deserialize, Serialize};
use serve::{GenerateParams, SamplingParams, ServeError, Session, SessionOptions};

/// What a model must compute, which the CPU has computed: the file `models/NAME.json` beside
/// `models/NAME.brolly`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// Prompts of a language model, inputs of an encoder.
    pub prompts: Vec<Vec<u32>>,
    /// Of a language model, the log-probability of each token given those before it.
    #[serde(default)]
    pub logprobs: Vec<Vec<Option<f32>>>,
    /// Of an encoder, the vector of each input.
    #[serde(default)]
    pub embeddings: Vec<Vec<f32>>,
    /// How far numbers may be off, at most and in the mean.
    pub tolerance: [f32; 2],
    /// Whether products are computed by cuBLASLt, so that bits may differ with what is computed at
    /// once.
    #[serde(default)]
    pub by_library: bool,
}

/// What an error says where a machine has no cuBLASLt.
const NO_LIBRARY: &str = "cuBLASLt cannot be opened";
/// New tokens of each prompt.
const NEW: usize = 6;

/// Computes what is expected, by a session on the CPU.
///
/// # Errors
/// What the session says; that it runs a graph.
pub fn expect(
    session: &mut Session,
    prompts: Vec<Vec<u32>>,
    tolerance: [f32; 2],
) -> Result<Expected, ServeError> {
    let mut expected = Expected { prompts, tolerance, ..Expected::default() };
    for prompt in &expected.prompts {
        match session.info().kind {
            ModelKind::Encoder => expected.embeddings.extend(session.embed(&[prompt])?),
            _ => expected.logprobs.push(session.score(prompt)?),
        }
    }
    Ok(expected)
}

/// Compares a session with what is expected.
///
/// # Errors
/// The first difference, or what the session says.
pub fn check(session: &mut Session, expected: &Expected) -> Result<(), String> {
    let said = |e: ServeError| e.to_string();
    let prompts: Vec<&[u32]> = expected.prompts.iter().map(Vec::as_slice).collect();
    if session.info().kind == ModelKind::Encoder {
        let together = session.embed(&prompts).map_err(said)?;
        for ((prompt, got), want) in prompts.iter().zip(&together).zip(&expected.embeddings) {
            near("an embedding", got, want, expected.tolerance)?;
            let alone = session.embed(&[prompt]).map_err(said)?;
            expected.same("an embedding alone and among others", &alone[0], got)?;
        }
        return Ok(());
    }
    // Greedily, and drawn.
    let params = [0.0, 0.9].map(|temperature| GenerateParams {
        max_tokens: Some(NEW),
        ignore_eos: true,
        sampling: SamplingParams { temperature, seed: Some(1), ..SamplingParams::default() },
        ..GenerateParams::default()
    });
    let flat = |scores: &[Option<f32>]| scores.iter().flatten().copied().collect::<Vec<f32>>();
    let starts: Vec<&[u32]> = prompts.iter().map(|p| &p[..p.len().min(20)]).collect();
    let requests: Vec<_> = starts.iter().copied().zip(params.iter().cycle()).collect();
    let together =
        session.generate_batch(&requests, |_| ControlFlow::Continue(())).map_err(said)?;
    for (i, prompt) in prompts.iter().enumerate() {
        let scores = session.score(prompt).map_err(said)?;
        let want = &expected.logprobs[i];
        if scores.len() != want.len() {
            return Err(format!("{} scores of {} tokens", scores.len(), want.len()));
        }
        near("scores", &flat(&scores), &flat(want), expected.tolerance)?;
        let part = prompt.len().div_ceil(2);
        let prefix = session.score(&prompt[..part]).map_err(said)?;
        expected.same("the score of a prefix", &flat(&prefix), &flat(&scores[..part]))?;
        let whole = [starts[i], &together[i].tokens].concat();
        let scores = session.score(&whole).map_err(said)?;
        let new = flat(&scores[starts[i].len()..]);
        expected.same("`score` and a batch of `generate`", &together[i].logprobs, &new)?;
    }
    Ok(())
}

impl Expected {
    /// Whether numbers that are computed in two ways are alike: bit by bit, unless a library has
    /// a part in it.
    fn same(&self, what: &str, got: &[f32], want: &[f32]) -> Result<(), String> {
        match self.by_library {
            true => near(what, got, want, self.tolerance),
            false => same(what, got, want),
        }
    }
}

/// Opens every model of a folder, checks it, and says a line of it. Whether all are right; one for
/// cuBLASLt is left out where there is none.
///
/// # Errors
/// Files that cannot be read.
pub fn run(
    folder: &Path,
    only: &str,
    mut say: impl FnMut(String),
) -> Result<bool, Box<dyn std::error::Error>> {
    let mut files: Vec<_> = fs::read_dir(folder.join("models"))?
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    let mut right = true;
    for file in files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if !name.contains(only) {
            continue;
        }
        let expected: Expected = serde_json::from_slice(&fs::read(&file)?)?;
        let outcome = Artifact::open(&file.with_extension("brolly"))
            .map_err(|e| e.to_string())
            .and_then(|artifact| {
                let options = SessionOptions { sequences: seats(&expected), ..Default::default() };
                Session::of(Arc::new(artifact), options).map_err(|e| e.to_string())
            })
            .and_then(|mut session| check(&mut session, &expected));
        let is_left_out = |why: &String| expected.by_library && why.contains(NO_LIBRARY);
        right &= outcome.as_ref().err().is_none_or(is_left_out);
        match outcome {
            Ok(()) => say(format!("{name}: right")),
            Err(why) if is_left_out(&why) => {
                say(format!("{name}: skipped: {why}"));
            }
            Err(why) => say(format!("{name}: WRONG: {why}")),
        }
    }
    Ok(right)
}

/// Sequences that are there at once.
fn seats(expected: &Expected) -> Option<std::num::NonZeroUsize> {
    std::num::NonZeroUsize::new(expected.prompts.len())
}

/// Writes an artifact whose weights follow from a seed as one that holds them.
///
/// # Errors
/// What cannot be read or written.
pub fn store(from: &Path, to: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let artifact = Artifact::open(from)?;
    let manifest = artifact.manifest();
    let span = ir::Span { offset: 0, bytes: manifest.code.bytes };
    let contents = ir::artifact::Contents {
        compiler: manifest.compiler.clone(),
        target: manifest.target.clone(),
        model: manifest.model.clone(),
        source_digest: manifest.source_digest,
        code: artifact.code(span),
        modules: manifest.modules.clone(),
        folds: manifest.folds.clone(),
        text: artifact.text()?,
        report: artifact.report()?,
        programs: manifest.programs.clone(),
        weights: manifest
            .weights
            .iter()
            .map(|weight| ir::artifact::WeightSpec {
                name: weight.name.clone(),
                dtype: weight.dtype,
                shape: weight.shape.clone(),
                sources: weight.sources.clone(),
            })
            .collect(),
        random: None,
    };
    let threads = std::thread::available_parallelism()?;
    let weight = |i| Ok::<Tensor, std::convert::Infallible>(artifact.weight_tensor(i));
    ir::artifact::write_on(threads, to, contents, weight)?;
    Ok(())
}

fn near(what: &str, got: &[f32], want: &[f32], [most, mean]: [f32; 2]) -> Result<(), String> {
    if got.len() != want.len() {
        return Err(format!("{what}: {} numbers instead of {}", got.len(), want.len()));
    }
    let off: Vec<f32> = got.iter().zip(want).map(|(got, want)| (got - want).abs()).collect();
    // What is no number must count as far.
    let worst = off.iter().fold(0.0, |worst, off| if *off <= worst { worst } else { *off });
    let average = off.iter().sum::<f32>() / off.len().max(1) as f32;
    if worst <= most && average <= mean {
        return Ok(());
    }
    Err(format!("{what}: off by {worst} at most and {average} in the mean, not {most} and {mean}"))
}

fn same(what: &str, got: &[f32], want: &[f32]) -> Result<(), String> {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
    if bits(got) == bits(want) {
        return Ok(());
    }
    Err(format!("{what}: bits differ: {got:?}, {want:?}"))
}
