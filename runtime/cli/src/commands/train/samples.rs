//! Texts from the weights as they are, through the serving form of the graph that is trained.

use std::{num::NonZeroUsize, ops::ControlFlow, sync::Arc};

use exec::Model;
use ir::artifact::Manifest;
use serve::{Among, GenerateParams, SamplingParams, Session, SessionOptions, blocks_of};
use text::TextBundle;
use train::{EvalConfig, Rank, SampleLine, TrainConfig, Trainer};

use super::failure;
use crate::{
    context::Context,
    failure::{Failure, Result},
    session,
};

/// The serving form's entry.
const ENTRY: &str = "step";

/// A session over the weights of a run, and what it goes on with.
pub(super) struct Samples {
    session: Session,
    prompts: Vec<(String, Vec<u32>)>,
    /// Texts for each prompt.
    each: usize,
    params: GenerateParams,
    seed: u64,
}

/// Prompts as tokens, and the longest sequence that comes of one.
struct Prompts {
    tokens: Vec<Vec<u32>>,
    longest: usize,
}

impl Prompts {
    fn new(eval: &EvalConfig, seq_len: usize, bundle: &TextBundle) -> Result<Prompts> {
        let no_tokenizer = || Failure::input("eval.prompts: the model has no tokenizer");
        let tokenizer = bundle.tokenizer().map_err(Failure::input)?.ok_or_else(no_tokenizer)?;
        let encode = |prompt: &String| tokenizer.encode(prompt, true).map_err(Failure::input);
        let tokens = eval.prompts.iter().map(encode).collect::<Result<Vec<_>>>()?;
        let longest = tokens.iter().map(Vec::len).max().unwrap_or(0);
        if longest >= seq_len {
            return Err(Failure::input(format!(
                "eval.prompts: one has {longest} tokens, and rows have {seq_len}: take a shorter \
                 one, or a larger data.seq_len"
            )));
        }
        Ok(Prompts { tokens, longest: longest.saturating_add(eval.max_tokens).min(seq_len) })
    }
}

/// The symbol for blocks of key/value memory, and how many a run's samples take; `None` for an
/// artifact that samples nothing.
pub(super) fn blocks(
    config: &TrainConfig,
    bundle: &TextBundle,
    manifest: &Manifest,
) -> Result<Option<(String, i64)>> {
    let eval = config.eval.as_ref().filter(|eval| eval.sequences() > 0);
    let (Some(eval), Some(program)) = (eval, manifest.program(ENTRY)) else { return Ok(None) };
    let keys = program.states.iter().find(|state| state.name.starts_with("k_cache"));
    let symbol = keys.and_then(|keys| keys.ty.shape.first()?.as_symbol());
    let Some(symbol) = symbol else { return Ok(None) };
    let longest = Prompts::new(eval, config.data.seq_len, bundle)?.longest;
    let blocks = blocks_of(program, longest, eval.sequences()).map_err(session::failure)?;
    Ok(Some((symbol.to_owned(), i64::try_from(blocks).unwrap_or(i64::MAX))))
}

/// Whether all ranks generate, in step: each has parts of the weights alone.
pub(super) fn are_shared(config: &TrainConfig) -> bool {
    let mesh = &config.mesh;
    mesh.tensor > 1 || mesh.zero == 3 && mesh.data > 1
}

impl Samples {
    /// `None` where no prompts are given.
    pub(super) fn open(
        config: &TrainConfig,
        bundle: &TextBundle,
        model: &Arc<Model>,
        rank: &Rank,
        cx: &Context,
    ) -> Result<Option<Samples>> {
        let Some(eval) = config.eval.as_ref().filter(|eval| eval.sequences() > 0) else {
            return Ok(None);
        };
        let Prompts { tokens, longest } = Prompts::new(eval, config.data.seq_len, bundle)?;
        let options = SessionOptions {
            max_seq_len: Some(longest),
            sequences: NonZeroUsize::new(eval.sequences()),
            trace: cx.trace().cloned(),
            ..SessionOptions::default()
        };
        let among = Among { groups: rank.groups().clone(), place: rank.symbols() };
        let session = Session::of_training(model, bundle.clone(), &options, &among);
        let session = session.map_err(session::failure)?;
        let sampling =
            SamplingParams { temperature: eval.temperature, ..SamplingParams::default() };
        Ok(Some(Samples {
            session,
            prompts: eval.prompts.iter().cloned().zip(tokens).collect(),
            each: eval.samples,
            params: GenerateParams {
                max_tokens: Some(eval.max_tokens),
                sampling,
                ..GenerateParams::default()
            },
            seed: config.train.seed,
        }))
    }

    /// Generates after each prompt from the weights as they are. The texts follow from those, the
    /// seed and the step.
    pub(super) fn generate(&mut self, trainer: &mut Trainer) -> Result<Vec<SampleLine>> {
        let first = trainer.done().wrapping_mul((self.prompts.len() * self.each) as u64);
        let longest = self.session.limits().map_or(0, |limits| limits.max_seq_len);
        let params = |number: u64, prompt: &[u32]| {
            let mut params = self.params.clone();
            params.sampling.seed = Some(self.seed.wrapping_add(first).wrapping_add(number));
            let room = longest.saturating_sub(prompt.len());
            params.max_tokens = params.max_tokens.map(|n| n.min(room));
            params
        };
        let prompts = self.prompts.iter().flat_map(|p| std::iter::repeat_n(p, self.each));
        let asked = (0..).zip(prompts).map(|(n, (text, tokens))| (text, tokens, params(n, tokens)));
        let asked: Vec<(&String, &Vec<u32>, GenerateParams)> = asked.collect();
        let requests: Vec<(&[u32], &GenerateParams)> =
            asked.iter().map(|(_, tokens, params)| (&***tokens, params)).collect();
        let session = &mut self.session;
        let generated = trainer.lend(|weights| {
            session.lend(weights, |session| {
                session.generate_batch(&requests, |_| ControlFlow::Continue(()))
            })
        });
        let generated = generated.map_err(failure)?.map_err(session::failure)?;
        let texts = generated.into_iter().map(|generation| generation.text.unwrap_or_default());
        let lines = asked.iter().zip(texts);
        Ok(lines.map(|((p, ..), text)| SampleLine { prompt: (*p).clone(), text }).collect())
    }

    /// Bytes that its own memory has touched: arena, scratch, keys and values.
    pub(super) fn resident_bytes(&self) -> u64 {
        let measured = self.session.memory().map(|(_, measured)| measured);
        measured.map_or(0, |m| m.arena_bytes + m.scratch_bytes + m.state_bytes)
    }
}

/// Texts for people.
pub(super) fn shown(step: u64, samples: &[SampleLine]) -> String {
    let line = |SampleLine { prompt, text }: &SampleLine| {
        let text = format!("{prompt}{text}");
        format!("  {}\n", text.trim_end().replace('\n', "\n    "))
    };
    let lines: String = samples.iter().map(line).collect();
    format!("step {step} writes\n{lines}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_several_lines_stay_apart() {
        let sample =
            |prompt: &str, text: &str| SampleLine { prompt: prompt.into(), text: text.into() };
        let samples = [sample("Once", " upon\na time\n"), sample("A", "!")];
        assert_eq!(shown(3, &samples), "step 3 writes\n  Once upon\n    a time\n  A!\n");
    }
}
