//! The OpenAPI document against the routes.

use axum::{body::Body, http::Request};
use serde_json::json;

use super::*;

#[tokio::test]
async fn the_document_and_the_routes_agree() {
    let options = ServerOptions { api_keys: vec!["k".into()], ..ServerOptions::default() };
    let server = Server::new(model::engine(model::hashing(), |_| ()), options);
    let get = |path: &str| {
        let request = Request::get(path).header("authorization", "Bearer k");
        request.body(Body::empty()).unwrap()
    };
    let document = server.send(get("/openapi.json")).await.json();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["security"], json!([{"key": []}]));
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 13);
    for (path, methods) in paths {
        let methods = methods.as_object().unwrap();
        assert_eq!(methods.len(), 1, "{path}");
        let (method, operation) = methods.iter().next().unwrap();
        let answer = server.send(get(&path.replace("{id}", "MockForCausalLM"))).await;
        let want = if method == "get" { 200 } else { 405 };
        assert_eq!(answer.status, want, "{path}");
        let content = &operation["responses"]["200"]["content"];
        if let Some(json) = content.get("application/json") {
            assert_eq!(json["schema"], openapi::answer_schema(path));
            assert!(json["schema"]["properties"].is_object(), "{path}");
        }
        if method == "get" && content.get("application/json").is_some() {
            check_answer(path, &answer.json());
        }
        let needs_key = operation["responses"].get("401").is_some();
        assert_eq!(needs_key, path != "/health", "{path}");
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        assert_eq!(schema.is_object(), method == "post", "{path}");
        if method == "post" {
            assert_eq!(schema["additionalProperties"], json!(false));
            assert_eq!(schema["properties"]["model"]["enum"], json!(["MockForCausalLM", null]));
        }
    }
    let chat = &paths["/v1/chat/completions"]["post"]["requestBody"];
    let fields = &chat["content"]["application/json"]["schema"]["properties"];
    // What OpenAI's own document lists.
    for name in [
        "messages",
        "model",
        "modalities",
        "verbosity",
        "reasoning_effort",
        "max_completion_tokens",
        "frequency_penalty",
        "presence_penalty",
        "web_search_options",
        "top_logprobs",
        "response_format",
        "audio",
        "store",
        "stream",
        "stop",
        "logit_bias",
        "logprobs",
        "max_tokens",
        "n",
        "prediction",
        "seed",
        "stream_options",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "function_call",
        "functions",
        "metadata",
        "temperature",
        "top_p",
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "service_tier",
        "prompt_cache_retention",
    ] {
        assert!(fields[name].is_object(), "{name}");
    }
    let completion = &paths["/v1/completions"]["post"]["requestBody"];
    let fields = &completion["content"]["application/json"]["schema"]["properties"];
    for name in [
        "model",
        "prompt",
        "best_of",
        "echo",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_tokens",
        "n",
        "presence_penalty",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "suffix",
        "temperature",
        "top_p",
        "user",
    ] {
        assert!(fields[name].is_object(), "{name}");
    }
}

/// Every `$ref` leads somewhere, and every path parameter is declared.
#[tokio::test]
async fn the_document_is_whole() {
    let server = Server::mock();
    let document = server.get("/openapi.json").await.json();
    fn references(value: &Value, out: &mut Vec<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| match value {
                Value::String(target) if key == "$ref" => out.push(target.clone()),
                value => references(value, out),
            }),
            Value::Array(list) => list.iter().for_each(|value| references(value, out)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(!found.is_empty());
    for target in found {
        let pointer = target.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{target}");
    }
    assert!(document.get("security").is_none());
    let model = &document["paths"]["/v1/models/{id}"]["get"]["parameters"][0];
    assert_eq!((&model["name"], &model["in"]), (&json!("id"), &json!("path")));
    let mut ids: Vec<&str> = document["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|methods| methods.as_object().unwrap().values())
        .map(|operation| operation["operationId"].as_str().unwrap())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 13);
}
