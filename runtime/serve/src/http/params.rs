//! Fields that both completion routes take: sampling, stopping, streaming, and vLLM's further ones.

mod rows;

use serde_json::Value;
use text::GenerationDefaults;

use super::{
    envelope::Usage,
    fields::{Fields, Problems},
    structured,
};
use crate::{
    SamplingParams,
    engine::{GenerateParams, Request},
};

pub(super) use rows::{MAX_LOGPROBS, SHARED};

/// What [`SHARED`] fields and those of [`structured`] ask for.
#[derive(Debug)]
pub(super) struct Params {
    /// The engine's request, but for the prompt and what the route adds.
    pub(super) request: Request,
    pub(super) stream: bool,
    pub(super) usage: Usage,
    pub(super) return_token_ids: bool,
    pub(super) tokens_as_ids: bool,
    /// Words that need the tokenizer to become tokens.
    pub(super) bad_words: Vec<String>,
    pub(super) structure: Option<structured::Asked>,
    /// New tokens for each prompt.
    pub(super) max_tokens: Vec<usize>,
}

impl Params {
    /// Reads fields that have been checked.
    pub(super) fn read(
        fields: Fields<'_>,
        defaults: &GenerationDefaults,
        problems: &mut Problems,
    ) -> Params {
        let stream = fields.bool("stream").unwrap_or(false);
        let options = fields.object("stream_options");
        if options.is_some() && !stream {
            problems.add("stream_options", "is for streams, and `stream` is not true");
        }
        if stream && fields.get("prompt_logprobs").is_some() {
            problems.add("prompt_logprobs", "comes with whole answers, and `stream` is true");
        }
        let flag = |name| options.and_then(|options| options.bool(name)).unwrap_or(false);
        let usage =
            Usage { at_end: flag("include_usage"), in_chunks: flag("continuous_usage_stats") };
        let count = |name| fields.count(name).unwrap_or(0);
        let mut stop = fields.texts("stop");
        stop.extend(defaults.stop_strings.iter().cloned());
        let params = GenerateParams {
            max_tokens: None,
            min_tokens: count("min_tokens"),
            sampling: sampling(fields, defaults),
            stop,
            include_stop: fields.bool("include_stop_str_in_output").unwrap_or(false),
            stop_token_ids: fields.tokens("stop_token_ids").unwrap_or_default(),
            ignore_eos: fields.bool("ignore_eos").unwrap_or(false),
            skip_special_tokens: fields.bool("skip_special_tokens").unwrap_or(true),
        };
        let priority = fields.integer("priority").and_then(|p| i32::try_from(p).ok());
        let request = Request {
            params,
            n: fields.count("n").unwrap_or(1),
            prompt_logprobs: fields.count("prompt_logprobs"),
            priority: priority.unwrap_or(0),
            cache_salt: fields.text("cache_salt").map(str::to_owned),
            ..Request::default()
        };
        Params {
            request,
            stream,
            usage,
            return_token_ids: fields.bool("return_token_ids").unwrap_or(false),
            tokens_as_ids: fields.bool("return_tokens_as_token_ids").unwrap_or(false),
            bad_words: fields.texts("bad_words"),
            structure: structured::read(fields, problems),
            max_tokens: Vec::new(),
        }
    }
}

fn sampling(fields: Fields<'_>, defaults: &GenerationDefaults) -> SamplingParams {
    let temperature = match defaults.do_sample {
        Some(false) => 0.0,
        _ => defaults.temperature.unwrap_or(1.0),
    };
    let number = |name, default| fields.number(name).unwrap_or(default);
    let top_k = fields.integer("top_k").map(|k| usize::try_from(k).unwrap_or(0));
    let bias = fields.object("logit_bias").into_iter().flat_map(|map| map.0);
    let bias = bias.filter_map(|(id, bias)| Some((id.parse().ok()?, Value::as_f64(bias)?)));
    SamplingParams {
        temperature: number("temperature", temperature),
        top_p: number("top_p", defaults.top_p.filter(|p| *p > 0.0).unwrap_or(1.0)),
        top_k: top_k.or(defaults.top_k).unwrap_or(0),
        min_p: number("min_p", defaults.min_p.unwrap_or(0.0)),
        presence_penalty: number("presence_penalty", 0.0),
        frequency_penalty: number("frequency_penalty", 0.0),
        repetition_penalty: number(
            "repetition_penalty",
            defaults.repetition_penalty.unwrap_or(1.0),
        ),
        logit_bias: bias.collect(),
        bad_words: Vec::new(),
        allowed_token_ids: fields.tokens("allowed_token_ids"),
        seed: fields.integer("seed").map(i64::cast_unsigned),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Value, defaults: &GenerationDefaults) -> Params {
        let mut problems = Problems::new(50);
        problems.check_object(&[SHARED], value.as_object().unwrap(), "");
        let params = Params::read(Fields(value.as_object().unwrap()), defaults, &mut problems);
        problems.into_result().unwrap();
        params
    }

    #[test]
    fn every_field_arrives() {
        let params = read(
            &json!({
                "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1,
                "presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 1.5,
                "logit_bias": {"3": -100, "4": 0.5}, "seed": -1, "n": 3, "stop": ["a", "b"],
                "stop_token_ids": [5], "min_tokens": 2, "ignore_eos": true,
                "allowed_token_ids": [1, 2], "prompt_logprobs": 4, "skip_special_tokens": false,
                "include_stop_str_in_output": true, "priority": -3, "cache_salt": "x",
                "bad_words": ["no"], "return_token_ids": true, "return_tokens_as_token_ids": true,
            }),
            &GenerationDefaults::default(),
        );
        let request = &params.request;
        assert_eq!((request.n, request.priority, request.prompt_logprobs), (3, -3, Some(4)));
        assert_eq!(request.cache_salt.as_deref(), Some("x"));
        let want = GenerateParams {
            max_tokens: None,
            min_tokens: 2,
            stop: vec!["a".into(), "b".into()],
            include_stop: true,
            stop_token_ids: vec![5],
            ignore_eos: true,
            skip_special_tokens: false,
            sampling: SamplingParams {
                temperature: 0.5,
                top_p: 0.9,
                top_k: 7,
                min_p: 0.1,
                presence_penalty: -2.0,
                frequency_penalty: 2.0,
                repetition_penalty: 1.5,
                logit_bias: vec![(3, -100.0), (4, 0.5)],
                bad_words: vec![],
                allowed_token_ids: Some(vec![1, 2]),
                seed: Some(u64::MAX),
            },
        };
        assert_eq!(request.params, want);
        assert_eq!(params.bad_words, ["no"]);
        assert!(params.return_token_ids && params.tokens_as_ids && !params.stream);
    }

    #[test]
    fn defaults_are_the_makers_and_else_openais() {
        let makers = GenerationDefaults {
            temperature: Some(0.6),
            top_k: Some(20),
            top_p: Some(0.95),
            stop_strings: vec!["</s>".into()],
            ..GenerationDefaults::default()
        };
        let sampling = read(&json!({"top_k": -1}), &makers).request.params.sampling;
        assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p), (0.6, 0, 0.95));
        let params = read(&json!({"stop": "x"}), &makers).request.params;
        assert_eq!(params.stop, ["x", "</s>"]);
        let open = read(&json!({"temperature": null}), &GenerationDefaults::default());
        assert_eq!((open.request.params.sampling.temperature, open.request.n), (1.0, 1));
    }

    #[test]
    fn what_belongs_to_streams_needs_one() {
        for (value, field) in [
            (json!({"stream_options": {"include_usage": true}}), "stream_options"),
            (json!({"stream": true, "prompt_logprobs": 1}), "prompt_logprobs"),
        ] {
            let mut problems = Problems::new(50);
            let fields = Fields(value.as_object().unwrap());
            Params::read(fields, &GenerationDefaults::default(), &mut problems);
            assert_eq!(problems.into_result().unwrap_err().param.as_deref(), Some(field));
        }
    }
}
