//! `brolly generate`: continues a text or answers a message.

use std::{
    io::{IsTerminal as _, stderr},
    ops::ControlFlow,
};

use serde_json::json;
use serve::{Finish, GenerateParams, Generation, SamplingParams, Session};
use text::{ChatRequest, GenerationDefaults};

use crate::{
    args::{ChatOrPrompt, Generate, Sampling},
    context::Context,
    failure::Result,
    output,
    session::{self, failure},
    table,
};

/// New tokens at most, where nobody says.
const DEFAULT_MAX_TOKENS: usize = 256;

pub(crate) fn generate(args: &Generate, cx: &Context) -> Result<()> {
    let mut session = session::open(&args.source, cx)?;
    let prompt = encode(&session, &args.prompt)?;
    let params = params(&session, &args.sampling, prompt.len());
    let has_text = session.tokenizer().map_err(failure)?.is_some();

    let mut closed = Ok(());
    let mut ends_with_newline = true;
    let generation = session.generate(&prompt, &params, |event| {
        if args.json {
            return ControlFlow::Continue(());
        }
        let text = if has_text { event.text.to_owned() } else { format!("{} ", event.token) };
        if !text.is_empty() {
            ends_with_newline = text.ends_with('\n');
            closed = output::print(&text);
        }
        if closed.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    let generation = generation.map_err(failure)?;
    closed?;
    if args.json {
        let Generation { tokens, logprobs, text, finish, .. } = generation;
        return output::json(&json!({
            "tokens": tokens,
            "text": text,
            "logprobs": output::exact(&logprobs),
            "finish_reason": reason(finish),
        }));
    }
    if !ends_with_newline {
        output::print("\n")?;
    }
    if stderr().is_terminal() {
        output::tell(&format!("{}\n", speed(prompt.len(), &generation)));
    }
    Ok(())
}

fn encode(session: &Session, prompt: &ChatOrPrompt) -> Result<Vec<u32>> {
    let ChatOrPrompt { prompt, tokens, chat, system } = prompt;
    match (prompt, tokens) {
        (Some(text), _) => session::encode(session, text),
        (_, Some(tokens)) => Ok(tokens.0.clone()),
        _ => {
            let message = |(role, text): (&str, &String)| json!({ "role": role, "content": text });
            let roles = ["user", "assistant"].into_iter().cycle();
            let system = system.iter().map(|text| ("system", text));
            let conversation = ChatRequest {
                messages: system.chain(roles.zip(chat)).map(message).collect(),
                add_generation_prompt: true,
                ..ChatRequest::default()
            };
            session.encode_chat(conversation).map_err(failure)
        }
    }
}

fn params(session: &Session, flags: &Sampling, prompt: usize) -> GenerateParams {
    let defaults = &session.bundle().generation;
    let longest = session.limits().map_or(0, |limits| limits.max_seq_len);
    let max_tokens = match flags.max_tokens {
        Some(n) => usize::try_from(n).unwrap_or(usize::MAX),
        None => {
            let wanted = defaults.max_new_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
            wanted.min(longest.saturating_sub(prompt))
        }
    };
    let stop = if flags.stop.is_empty() { &defaults.stop_strings } else { &flags.stop };
    GenerateParams {
        max_tokens: Some(max_tokens),
        sampling: sampling(defaults, flags),
        stop: stop.clone(),
        ignore_eos: flags.ignore_eos,
        ..GenerateParams::default()
    }
}

/// The model's recommendation, flag by flag. To ask for a nucleus is to ask for sampling.
fn sampling(defaults: &GenerationDefaults, flags: &Sampling) -> SamplingParams {
    let mut params = SamplingParams::recommended(defaults);
    let filters = flags.top_k.is_some() || flags.top_p.is_some() || flags.min_p.is_some();
    if filters && params.temperature == 0.0 {
        params.temperature = 1.0;
    }
    params.temperature = flags.temperature.unwrap_or(params.temperature);
    params.repetition_penalty = flags.repetition_penalty.unwrap_or(params.repetition_penalty);
    params.top_k = flags.top_k.map_or(params.top_k, |k| k as usize);
    params.top_p = flags.top_p.unwrap_or(params.top_p);
    params.min_p = flags.min_p.unwrap_or(params.min_p);
    params.seed = flags.seed;
    params
}

/// The reason in the words of OpenAI's interface.
fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::EndOfSequence(_) | Finish::StopToken(_) | Finish::Stop(_) => "stop",
        Finish::Length => "length",
        Finish::Cancelled => "cancelled",
    }
}

fn speed(prompt: usize, generation: &Generation) -> String {
    let first = generation.first_token.as_secs_f64();
    let rest = generation.last_token.as_secs_f64() - first;
    let tokens = generation.tokens.len();
    let mut out = format!("{prompt} + {tokens} tokens, the first after {}", table::seconds(first));
    if tokens > 1 && rest > 0.0 {
        out += &format!(", then {:.1} tokens/s", (tokens - 1) as f64 / rest);
    }
    out
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn chosen(defaults: &GenerationDefaults, flags: &str) -> SamplingParams {
        let line = format!("brolly generate m --prompt x {flags}");
        let Command::Generate(args) = Cli::try_parse_from(line.split_whitespace()).unwrap().command
        else {
            panic!("generate")
        };
        sampling(defaults, &args.sampling)
    }

    #[test]
    fn flags_go_before_the_models_defaults() {
        let none = GenerationDefaults::default();
        assert_eq!(chosen(&none, ""), SamplingParams::default());
        assert_eq!(chosen(&none, "--top-p 0.5").temperature, 1.0);
        assert_eq!(chosen(&none, "--top-p 0.5 --temperature 0").temperature, 0.0);
        let makers = GenerationDefaults {
            do_sample: Some(true),
            temperature: Some(0.7),
            top_p: Some(0.9),
            repetition_penalty: Some(1.1),
            ..none
        };
        assert_eq!(chosen(&makers, "").repetition_penalty, 1.1);
        assert_eq!(chosen(&makers, "--repetition-penalty 1").repetition_penalty, 1.0);
        let params = chosen(&makers, "--top-k 5 --seed 3");
        assert_eq!((params.temperature, params.top_p, params.top_k), (0.7, 0.9, 5));
        assert_eq!((params.seed, chosen(&makers, "--temperature 0").temperature), (Some(3), 0.0));
    }
}
