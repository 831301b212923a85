//! Completions, whole and streamed.

use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::engine::EngineOptions;

const PATH: &str = "/v1/completions";

/// The texts of a stream's choices, joined, and their reasons to end.
fn joined(chunks: &[Value]) -> BTreeMap<u64, (String, String)> {
    let mut choices = BTreeMap::new();
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        let (text, finish): &mut (String, String) =
            choices.entry(choice["index"].as_u64().unwrap()).or_default();
        assert!(finish.is_empty(), "nothing comes after the end");
        text.push_str(choice["text"].as_str().unwrap());
        finish.push_str(choice["finish_reason"].as_str().unwrap_or_default());
    }
    choices
}

#[tokio::test]
async fn a_completion_has_openais_shape() {
    let server = Server::mock();
    let answer = server.ok(PATH, greedy(json!({"prompt": "abc"}))).await;
    let keys: Vec<&String> = answer.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["id", "object", "created", "model", "choices", "usage"]);
    assert_eq!(answer["object"], "text_completion");
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    let choice = &answer["choices"][0];
    assert_eq!((&choice["index"], &choice["logprobs"]), (&json!(0), &Value::Null));
    let usage = json!({"prompt_tokens": 4, "completion_tokens": 16, "total_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 0}});
    assert_eq!((&choice["finish_reason"], &answer["usage"]), (&json!("length"), &usage));
}

#[tokio::test]
async fn streams_joined_are_the_whole_text() {
    let server = Server::mock();
    for more in [
        json!({}),
        json!({"n": 3, "temperature": 1.5, "seed": 5}),
        json!({"prompt": ["ab", "c", "é"], "n": 2, "temperature": 1, "seed": 1}),
        json!({"echo": true}),
        json!({"echo": true, "logprobs": 2}),
        json!({"stop": ["\u{fffd}"]}),
        json!({"prompt": [[1, 2], [3]], "echo": true}),
        json!({"max_tokens": 0, "echo": true}),
        json!({"skip_special_tokens": false, "logprobs": 0}),
    ] {
        let mut body = json!({"prompt": "prompt", "temperature": 0, "max_tokens": 40});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let whole = server.ok(PATH, body.clone()).await;
        let chunks = server.chunks(PATH, body.clone()).await;
        let streamed = joined(&chunks);
        for choice in whole["choices"].as_array().unwrap() {
            let (text, finish) = &streamed[&choice["index"].as_u64().unwrap()];
            assert_eq!(choice["text"].as_str().unwrap(), text, "{body}");
            assert_eq!(choice["finish_reason"].as_str().unwrap(), finish);
            for part in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                let told = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
                let told = told.filter(|c| c["index"] == choice["index"]);
                let told: Vec<&Value> = told
                    .flat_map(|c| c["logprobs"][part].as_array().into_iter().flatten())
                    .collect();
                let want = choice["logprobs"][part].as_array();
                assert_eq!(told, want.into_iter().flatten().collect::<Vec<_>>(), "{body}");
            }
        }
        assert_eq!(streamed.len(), whole["choices"].as_array().unwrap().len());
        for chunk in &chunks {
            assert_eq!(chunk["object"], "text_completion");
            assert_eq!(chunk["id"], chunks[0]["id"]);
            assert!(chunk.get("usage").is_none());
        }
    }
}

#[tokio::test]
async fn usage_comes_last_where_it_is_asked_for() {
    let server = Server::mock();
    let body = greedy(json!({"prompt": ["ab", "c"], "n": 2, "ignore_eos": true,
        "stream_options": {"include_usage": true}}));
    let chunks = server.chunks(PATH, body.clone()).await;
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    let usage = json!({"prompt_tokens": 5, "completion_tokens": 64, "total_tokens": 69,
        "prompt_tokens_details": {"cached_tokens": 0}});
    assert_eq!(last["usage"], usage);
    assert!(
        others.iter().all(|chunk| chunk["usage"] == Value::Null && chunk.get("usage").is_some())
    );
    let mut body = body;
    body.as_object_mut().unwrap().remove("stream_options");
    assert_eq!(server.ok(PATH, body.clone()).await["usage"], usage);
    body["stream_options"] = json!({"continuous_usage_stats": true});
    let chunks = server.chunks(PATH, body).await;
    assert_eq!(chunks.last().unwrap()["usage"], usage);
    assert_ne!(chunks.last().unwrap()["choices"], json!([]));
}

#[tokio::test]
async fn cached_tokens_are_told() {
    let options = EngineOptions { prefix_cache: true, ..EngineOptions::default() };
    let engine = model::engine_with(model::hashing(), |_| (), &options);
    let server = Server::new(engine, ServerOptions::default());
    let body = greedy(json!({"prompt": "a prompt that is long enough", "max_tokens": 1}));
    let cached = |answer: Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    let first = server.ok(PATH, body.clone()).await;
    assert_eq!(cached(first.clone()), Some(0));
    let second = server.ok(PATH, body.clone()).await;
    assert_eq!(second["choices"], first["choices"]);
    assert!(cached(second) >= Some(24));
    let mut salted = body.clone();
    salted["cache_salt"] = json!("mine");
    assert_eq!(cached(server.ok(PATH, salted).await), Some(0));
    let mut streamed = body;
    streamed["stream_options"] = json!({"include_usage": true});
    let chunks = server.chunks(PATH, streamed).await;
    assert!(cached(chunks.last().unwrap().clone()) >= Some(24));
}

#[tokio::test]
async fn prompts_and_answers_are_numbered() {
    let server = Server::mock();
    let alone = |prompt: Value| greedy(json!({"prompt": prompt, "max_tokens": 5}));
    let together = server.ok(PATH, {
        let mut body = alone(json!([[97, 98], [99]]));
        body["n"] = json!(2);
        body
    });
    let together = together.await;
    let texts: Vec<&Value> =
        together["choices"].as_array().unwrap().iter().map(|choice| &choice["text"]).collect();
    let first = server.ok(PATH, alone(json!([97, 98]))).await["choices"][0]["text"].clone();
    let second = server.ok(PATH, alone(json!("c"))).await["choices"][0]["text"].clone();
    assert_ne!(first, second);
    let body = json!({"prompt": "c", "add_special_tokens": false, "max_tokens": 5});
    let third = server.ok(PATH, greedy(body)).await["choices"][0]["text"].clone();
    assert_eq!(texts, [&first, &first, &third, &third]);
}

#[tokio::test]
async fn a_prompt_is_scored_as_lm_eval_asks() {
    let server = Server::mock();
    let ids = [10, 20, 30, 40, 50];
    for (max_tokens, told) in [(0, 5), (1, 6)] {
        let body = greedy(json!({"prompt": ids, "max_tokens": max_tokens, "echo": true,
            "logprobs": 1, "seed": 1234}));
        let answer = server.ok(PATH, body).await;
        let choice = &answer["choices"][0];
        let logprobs = &choice["logprobs"];
        let part = |name: &str| logprobs[name].as_array().unwrap().clone();
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(part(name).len(), told, "{name}");
        }
        assert_eq!(part("tokens")[..3], [json!("\n"), json!("\u{14}"), json!("\u{1e}")]);
        assert_eq!(part("text_offset")[..5], [json!(0), json!(1), json!(2), json!(3), json!(4)]);
        assert_eq!(
            (&part("token_logprobs")[0], &part("top_logprobs")[0]),
            (&Value::Null, &Value::Null)
        );
        for index in 1..5 {
            let logprob = part("token_logprobs")[index].as_f64().unwrap();
            let top = part("top_logprobs")[index].as_object().unwrap().clone();
            assert!(logprob < 0.0 && (1..=2).contains(&top.len()));
            let name = part("tokens")[index].as_str().unwrap().to_owned();
            assert_eq!(top[&name].as_f64(), Some(logprob));
            assert!(top.values().all(|other| other.as_f64().unwrap() >= logprob));
        }
        assert!(choice["text"].as_str().unwrap().starts_with("\n\u{14}\u{1e}(2"));
        assert_eq!(answer["usage"]["completion_tokens"], max_tokens);
        assert_eq!(choice["finish_reason"], "length");
    }
}

#[tokio::test]
async fn new_tokens_have_their_probabilities() {
    let server = Server::mock();
    let body = greedy(json!({"prompt": "x", "logprobs": 3, "max_tokens": 4}));
    let answer = server.ok(PATH, body).await;
    let logprobs = &answer["choices"][0]["logprobs"];
    for index in 0..4 {
        let top = logprobs["top_logprobs"][index].as_object().unwrap();
        let greatest = top.values().map(|v| v.as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert_eq!((top.len(), logprobs["token_logprobs"][index].as_f64()), (3, Some(greatest)));
        let name = logprobs["tokens"][index].as_str().unwrap();
        assert_eq!(top[name].as_f64(), Some(greatest));
    }
    let body = greedy(json!({"prompt": "x", "logprobs": 0, "max_tokens": 1,
        "return_tokens_as_token_ids": true, "return_token_ids": true}));
    let choice = &server.ok(PATH, body).await["choices"][0];
    let id = choice["token_ids"][0].as_u64().unwrap();
    assert_eq!(choice["logprobs"]["tokens"], json!([format!("token_id:{id}")]));
    assert_eq!(choice["prompt_token_ids"], json!([256, 120]));
}

#[tokio::test]
async fn parts_of_characters_are_told_as_bytes() {
    let server = Server::saying("é");
    let body = greedy(json!({"prompt": "assistant:", "logprobs": 0}));
    let choice = &server.ok(PATH, body).await["choices"][0];
    assert_eq!(
        (choice["text"].as_str(), choice["finish_reason"].as_str()),
        (Some("é"), Some("stop"))
    );
    let tokens = json!(["bytes:\\xc3", "bytes:\\xa9", "</s>"]);
    assert_eq!(choice["logprobs"]["tokens"], tokens);
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 0, 1]));
}

#[tokio::test]
async fn prompt_logprobs_are_vllms() {
    let server = Server::mock();
    let body = greedy(json!({"prompt": [1, 2, 3], "prompt_logprobs": 1, "max_tokens": 1}));
    let choice = &server.ok(PATH, body).await["choices"][0];
    let told = choice["prompt_logprobs"].as_array().unwrap();
    assert_eq!((told.len(), &told[0]), (3, &Value::Null));
    let entry = &told[1]["2"];
    assert!(entry["logprob"].as_f64().unwrap() < 0.0 && entry["rank"].as_u64().unwrap() >= 1);
    assert_eq!(entry["decoded_token"], "\u{2}");
    assert!(told[1].as_object().unwrap().values().any(|entry| entry["rank"] == 1));
    assert!(choice["logprobs"].is_null());
}

#[tokio::test]
async fn answers_end_where_they_are_told_to() {
    let server = Server::saying("one two three");
    let end = async |more: Value| {
        let mut body = greedy(json!({"prompt": "assistant:", "max_tokens": 50}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let choice = server.ok(PATH, body).await["choices"][0].clone();
        (
            choice["text"].as_str().unwrap().to_owned(),
            choice["finish_reason"].clone(),
            choice["stop_reason"].clone(),
        )
    };
    let ended = |text: &str, finish: &str, stop: Value| (text.to_owned(), json!(finish), stop);
    assert_eq!(end(json!({})).await, ended("one two three", "stop", Value::Null));
    assert_eq!(end(json!({"max_tokens": 3})).await, ended("one", "length", Value::Null));
    assert_eq!(end(json!({"stop": " two"})).await, ended("one", "stop", json!(" two")));
    assert_eq!(end(json!({"stop": ["x", "th"]})).await, ended("one two ", "stop", json!("th")));
    let stopped = end(json!({"stop_token_ids": [32]})).await;
    assert_eq!((&stopped.1, &stopped.2), (&json!("stop"), &json!(32)));
    let more = json!({"ignore_eos": true, "max_tokens": 15});
    assert_eq!(end(more).await.1, json!("length"));
}

#[tokio::test]
async fn prompts_longer_than_memory_are_taken_where_a_window_slides() {
    let of = |window| {
        Server::of(Mock::new(|limits| {
            limits.vocab_size = model::VOCAB_SIZE;
            (limits.max_seq_len, limits.table_len) = (128, 32);
            (limits.blocks, limits.window) = (8, window);
        }))
    };
    let body = greedy(json!({"prompt": vec![1; 100], "max_tokens": 10}));
    let answer = of(Some(16)).ok("/v1/completions", body.clone()).await;
    assert_eq!(answer["usage"]["total_tokens"], 110);
    let (status, param, _) = of(None).refused("/v1/completions", body).await;
    assert_eq!((status, param.as_str()), (400, "prompt"));
}
