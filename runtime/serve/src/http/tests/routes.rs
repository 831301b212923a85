//! Routes other than those that generate.

use axum::{body::Body, http::Request};
use serde_json::json;

use super::*;
use crate::engine::EngineOptions;

#[tokio::test]
async fn models_have_their_names() {
    let names = vec!["org/a".to_owned(), "b".to_owned()];
    let options = ServerOptions { served_model_names: names, ..ServerOptions::default() };
    let server = Server::new(model::engine(model::hashing(), |_| ()), options);
    let list = server.get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], "org/a");
    assert_eq!(list["data"][1]["id"], "b");
    assert_eq!(list["data"][0]["object"], "model");
    assert_eq!(list["data"][0]["max_model_len"], 128);
    assert_eq!(server.get("/v1/models/org/a").await.json()["id"], "org/a");
    let missing = server.get("/v1/models/c").await;
    assert_eq!((missing.status, &missing.error()["code"]), (404, &json!("model_not_found")));
    let body = json!({"model": "b", "prompt": "x", "max_tokens": 1});
    assert_eq!(server.ok("/v1/completions", body).await["model"], "b");
    let body = json!({"prompt": "x", "max_tokens": 1});
    assert_eq!(server.ok("/v1/completions", body).await["model"], "org/a");
}

#[tokio::test]
async fn state_is_told() {
    let server = Server::mock();
    assert_eq!(server.get("/health").await.json(), json!({"status": "ok"}));
    assert_eq!(server.get("/version").await.json()["version"], env!("CARGO_PKG_VERSION"));
    let page = server.get("/").await;
    assert!(page.headers["content-type"].to_str().unwrap().starts_with("text/html"));
    server.ok("/v1/completions", greedy(json!({"prompt": "abc", "max_tokens": 3}))).await;
    let stats = server.get("/stats").await.json();
    assert_eq!(stats["model"]["kind"], "decoder");
    assert_eq!(stats["stats"]["prompt_tokens"], 4);
    assert_eq!(stats["stats"]["generation_tokens"], 3);
    let blocks = stats["block_uses"].as_str().unwrap();
    assert_eq!(json!(blocks.len()), stats["stats"]["blocks"]);
    let head = server.send(Request::head("/health").body(Body::empty()).unwrap()).await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[tokio::test]
async fn metrics_are_what_prometheus_reads() {
    let server = Server::mock();
    server.ok("/v1/completions", greedy(json!({"prompt": "abc", "max_tokens": 3}))).await;
    server.get("/nowhere").await;
    let answer = server.get("/metrics").await;
    assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let mut declared = Vec::new();
    for line in answer.body.lines() {
        if let Some(head) = line.strip_prefix("# TYPE ") {
            let name = head.split(' ').next().unwrap();
            assert!(!declared.contains(&name), "{name} is declared twice");
            declared.push(name);
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (name, rest) = line.split_once('{').unwrap();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
        let family = family.filter(|family| declared.contains(family)).unwrap_or(name);
        assert_eq!(declared.last(), Some(&family), "samples follow their declaration: {line}");
        assert!(rest.starts_with("model_name=\"MockForCausalLM\""), "{line}");
        rest.split("} ").nth(1).unwrap().parse::<f64>().unwrap();
    }
    let label = "{model_name=\"MockForCausalLM\"";
    for sample in [
        format!("vllm:prompt_tokens_total{label}}} 4"),
        format!("brolly_generation_tokens_total{label}}} 3"),
        format!("vllm:request_success_total{label},finished_reason=\"length\"}} 1"),
        format!("vllm:e2e_request_latency_seconds_bucket{label},le=\"+Inf\"}} 1"),
        format!("vllm:e2e_request_latency_seconds_count{label}}} 1"),
        format!("brolly_http_requests_total{label},route=\"/v1/completions\",status=\"200\"}} 1"),
        format!("brolly_http_requests_total{label},route=\"other\",status=\"404\"}} 1"),
    ] {
        assert!(answer.body.lines().any(|line| line == sample), "{sample}\n{}", answer.body);
    }
    for name in [
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:time_to_first_token_seconds",
        "vllm:inter_token_latency_seconds",
        "vllm:request_queue_time_seconds",
        "vllm:request_prefill_time_seconds",
        "vllm:request_decode_time_seconds",
        "vllm:request_prompt_tokens",
        "vllm:request_generation_tokens",
        "vllm:num_preemptions_total",
        "vllm:iteration_tokens_total",
    ] {
        assert!(declared.contains(&name), "{name}");
    }
}

#[tokio::test]
async fn text_becomes_tokens_and_back() {
    let server = Server::mock();
    let answer = server.ok("/tokenize", json!({"prompt": "hé"})).await;
    assert_eq!(answer["tokens"], json!([256, 104, 195, 169]));
    assert_eq!((&answer["count"], &answer["max_model_len"]), (&json!(4), &json!(128)));
    assert!(answer["token_strs"].is_null());
    let body = json!({"prompt": "h", "add_special_tokens": false, "return_token_strs": true});
    assert_eq!(server.ok("/tokenize", body).await["token_strs"], json!(["h"]));
    let body = json!({"messages": conversation("x"), "add_generation_prompt": false});
    let answer = server.ok("/tokenize", body).await;
    let text = server.ok("/detokenize", json!({"tokens": answer["tokens"]})).await;
    assert_eq!(text, json!({"prompt": "user:x>"}));
    for (body, field) in [
        (json!({}), "prompt"),
        (json!({"prompt": "x", "messages": conversation("x")}), "prompt"),
        (json!({"prompt": 1}), "prompt"),
        (json!({"messages": []}), "messages"),
    ] {
        assert_eq!(server.refused("/tokenize", body).await.1, field);
    }
    let (status, field, _) = server.refused("/detokenize", json!({"tokens": [258]})).await;
    assert_eq!((status, field.as_str()), (400, "tokens[0]"));
}

#[tokio::test]
async fn long_texts_are_read_aside() {
    let server = Server::mock();
    let text = "x".repeat(100_000);
    assert_eq!(server.ok("/tokenize", json!({"prompt": text})).await["count"], 100_001);
    let (status, _, message) = server.refused("/v1/completions", json!({"prompt": text})).await;
    assert_eq!(status, 400);
    assert!(message.contains("has 100001 tokens, and the model takes 128"), "{message}");
}

#[tokio::test]
async fn a_language_model_embeds_nothing() {
    let server = Server::mock();
    let answer = server.post("/v1/embeddings", &json!({"input": "x"})).await;
    assert_eq!((answer.status, &answer.error()["code"]), (400, &json!("model_not_supported")));
}

#[tokio::test]
async fn a_model_without_text_takes_tokens() {
    let engine = model::engine(model::hashing(), |bundle| bundle.tokenizer_json = None);
    let server = Server::new(engine, ServerOptions::default());
    let body = greedy(json!({"prompt": [1, 2], "max_tokens": 2, "return_token_ids": true,
        "logprobs": 1, "echo": true}));
    let choice = &server.ok("/v1/completions", body).await["choices"][0];
    assert_eq!((choice["text"].as_str(), &choice["prompt_token_ids"]), (Some(""), &json!([1, 2])));
    assert_eq!(choice["token_ids"].as_array().unwrap().len(), 2);
    assert_eq!(choice["logprobs"]["tokens"][1], "token_id:2");
    for (path, body) in [
        ("/v1/completions", json!({"prompt": "x"})),
        ("/v1/chat/completions", json!({"messages": conversation("x")})),
        ("/tokenize", json!({"prompt": "x"})),
        ("/detokenize", json!({"tokens": [1]})),
    ] {
        let (status, _, message) = server.refused(path, body).await;
        assert!(status == 400 && message.contains("tokenizer.json"), "{path}: {message}");
    }
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let slow = model::Slow(model::hashing(), std::time::Duration::from_millis(30));
    let options = EngineOptions { max_queue: 0, ..EngineOptions::default() };
    let server = Server::new(model::engine_with(slow, |_| (), &options), ServerOptions::default());
    let answer = server.post("/v1/completions", &json!({"prompt": "x"})).await;
    assert_eq!((answer.status, &answer.error()["code"]), (429, &json!("queue_full")));
    assert!(answer.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
}

#[tokio::test]
async fn a_list_of_prompts_is_one_request_to_the_queue() {
    let options = EngineOptions { max_queue: 1, ..EngineOptions::default() };
    let engine = model::engine_with(model::hashing(), |_| (), &options);
    let server = Server::new(engine, ServerOptions::default());
    let body = greedy(json!({"prompt": vec!["a"; 9], "max_tokens": 3}));
    let answer = server.ok("/v1/completions", body).await;
    assert_eq!(answer["choices"].as_array().unwrap().len(), 9);
}
