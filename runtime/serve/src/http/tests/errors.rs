//! Refusals: their status, shape and what they name.

use axum::{body::Body, http::Request};
use serde_json::json;

use super::*;

#[tokio::test]
async fn keys_open_everything_but_health_which_is_open() {
    let options = ServerOptions {
        api_keys: vec!["secret".into(), "other".into()],
        ..ServerOptions::default()
    };
    let server = Server::new(model::engine(model::hashing(), |_| ()), options);
    let with = |path: &str, key: &str| {
        Request::get(path).header("authorization", format!("Bearer {key}")).body(Body::empty())
    };
    assert_eq!(server.get("/health").await.status, 200);
    for path in [
        "/",
        "/version",
        "/stats",
        "/metrics",
        "/openapi.json",
        "/v1/models",
        "/v1/models/x",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/tokenize",
        "/detokenize",
        "/nowhere",
    ] {
        let answer = server.get(path).await;
        assert_eq!((answer.status, &answer.error()["code"]), (401, &json!("invalid_api_key")));
        assert!(answer.headers.contains_key("www-authenticate"));
        assert_eq!(server.send(with(path, "wrong").unwrap()).await.status, 401, "{path}");
        for key in ["secret", "other"] {
            assert_ne!(server.send(with(path, key).unwrap()).await.status, 401, "{path}");
        }
    }
    let options = ServerOptions { api_keys: vec![" ".into()], ..ServerOptions::default() };
    let refused = App::new(model::engine(model::hashing(), |_| ()), options).unwrap_err();
    assert!(refused.to_string().starts_with("--api-key: "), "{refused}");
}

#[tokio::test]
async fn paths_and_methods_are_checked() {
    let server = Server::mock();
    let answer = server.get("/v1/nothing").await;
    assert_eq!((answer.status, &answer.error()["code"]), (404, &json!("not_found")));
    let answer = server.get("/v1/completions").await;
    assert_eq!((answer.status, &answer.error()["code"]), (405, &json!("method_not_allowed")));
    assert_eq!(answer.headers["allow"], "POST");
    let answer = server.post("/health", &json!({})).await;
    assert_eq!((answer.status, answer.headers["allow"].to_str().unwrap()), (405, "GET, HEAD"));
    let request = Request::delete("/v1/models/x").body(Body::empty()).unwrap();
    assert_eq!(server.send(request).await.status, 405);
}

#[tokio::test]
async fn bodies_must_be_small_json() {
    let options = ServerOptions { max_body_bytes: 100, ..ServerOptions::default() };
    let server = Server::new(model::engine(model::hashing(), |_| ()), options);
    let post = |media: Option<&str>, body: &str| {
        let mut request = Request::post("/v1/completions");
        if let Some(media) = media {
            request = request.header("content-type", media);
        }
        request.body(Body::from(body.to_owned())).unwrap()
    };
    let json = Some("application/json");
    let good = r#"{"prompt":"x","max_tokens":1}"#;
    for (media, body, status) in [
        (json, good, 200),
        (Some("Application/JSON; charset=utf-8"), good, 200),
        (None, good, 415),
        (Some("text/plain"), good, 415),
        (Some("application/x-www-form-urlencoded"), good, 415),
        (json, "{", 400),
        (json, "[]", 400),
        (json, "", 400),
        (json, &format!("{{\"prompt\":\"{}\"}}", "x".repeat(100)), 413),
        (json, &"[".repeat(99), 400),
    ] {
        let answer = server.send(post(media, body)).await;
        assert_eq!(answer.status, status, "{media:?} {body}: {}", answer.body);
        if status != 200 {
            answer.error();
        }
    }
    let request = Request::post("/v1/completions")
        .header("content-type", "application/json")
        .header("content-encoding", "gzip");
    assert_eq!(server.send(request.body(Body::from(good)).unwrap()).await.status, 415);
    let request = Request::post("/v1/completions")
        .header("content-type", "application/json")
        .header("content-length", "101");
    assert_eq!(server.send(request.body(Body::empty()).unwrap()).await.status, 413);
}

#[tokio::test]
async fn every_bad_field_is_named() {
    let server = Server::mock();
    let shared = [
        ("temperature", json!(2.1)),
        ("temperature", json!(-0.1)),
        ("temperature", json!("1")),
        ("top_p", json!(0)),
        ("top_p", json!(1.1)),
        ("top_k", json!(-2)),
        ("min_p", json!(1.1)),
        ("presence_penalty", json!(2.5)),
        ("frequency_penalty", json!(-2.5)),
        ("repetition_penalty", json!(0)),
        ("logit_bias", json!({"900": 1})),
        ("logit_bias", json!([])),
        ("seed", json!(1.5)),
        ("n", json!(0)),
        ("n", json!(129)),
        ("stop", json!("")),
        ("stop", json!(5)),
        ("stop_token_ids", json!("x")),
        ("min_tokens", json!(-1)),
        ("ignore_eos", json!(1)),
        ("bad_words", json!("x")),
        ("allowed_token_ids", json!([])),
        ("prompt_logprobs", json!(21)),
        ("skip_special_tokens", json!(0)),
        ("include_stop_str_in_output", json!("yes")),
        ("return_token_ids", json!(1)),
        ("priority", json!(0.5)),
        ("cache_salt", json!("")),
        ("stream", json!("true")),
        ("stream_options", json!({"include_usage": true})),
        ("user", json!(1)),
        ("use_beam_search", json!(true)),
        ("length_penalty", json!(0.5)),
        ("spaces_between_special_tokens", json!(false)),
        ("truncate_prompt_tokens", json!(5)),
        ("best_of", json!(2)),
        ("max_tokens", json!(-1)),
        ("response_format", json!("json")),
        ("guided_regex", json!(1)),
        ("guided_choice", json!([])),
        ("structured_outputs", json!({})),
        ("made_up", json!(1)),
    ];
    let completion = [
        ("prompt", json!(null)),
        ("prompt", json!([])),
        ("suffix", json!("x")),
        ("echo", json!(1)),
        ("logprobs", json!(21)),
        ("logprobs", json!(true)),
        ("messages", json!([])),
    ];
    let chat = [
        ("messages", json!([])),
        ("messages", json!("x")),
        ("max_completion_tokens", json!(-1)),
        ("logprobs", json!(1)),
        ("top_logprobs", json!(1)),
        ("tools", json!({})),
        ("tool_choice", json!("required")),
        ("parallel_tool_calls", json!("no")),
        ("reasoning_effort", json!("high")),
        ("reasoning_effort", json!("huge")),
        ("modalities", json!(["audio"])),
        ("audio", json!({})),
        ("prediction", json!({})),
        ("web_search_options", json!({})),
        ("store", json!(true)),
        ("metadata", json!({"a": "b"})),
        ("verbosity", json!("low")),
        ("service_tier", json!("flex")),
        ("prompt_cache_retention", json!("24h")),
        ("functions", json!([{"name": "f"}])),
        ("function_call", json!("auto")),
        ("chat_template", json!("x")),
        ("chat_template_kwargs", json!([])),
        ("add_generation_prompt", json!(1)),
        ("echo", json!(true)),
        ("prompt", json!("x")),
    ];
    let routes = [
        ("/v1/completions", json!({"prompt": "x"}), &completion[..]),
        ("/v1/chat/completions", json!({"messages": conversation("x")}), &chat[..]),
    ];
    for (path, base, own) in routes {
        for (field, value) in shared.iter().chain(own) {
            let mut body = base.clone();
            body[*field] = value.clone();
            let (status, param, message) = server.refused(path, body.clone()).await;
            assert_eq!(status, 400, "{body}");
            assert!(param == *field || param.starts_with(&format!("{field}[")), "{body}: {param}");
            assert!(message.contains(&format!("`{field}")), "{message}");
        }
        let mut body = base.clone();
        for (field, value) in [("n", json!(0)), ("top_p", json!(7)), ("zzz", json!(1))] {
            body[field] = value;
        }
        let (_, param, message) = server.refused(path, body).await;
        assert_eq!(param, "top_p");
        for field in ["`n`", "`top_p`", "`zzz`"] {
            assert!(message.contains(field), "{message}");
        }
    }
}

#[tokio::test]
async fn null_and_values_that_do_nothing_are_taken() {
    let server = Server::mock();
    let mut body = json!({"prompt": "x", "max_tokens": 1, "suffix": null, "best_of": 1});
    let mut chat = json!({"messages": conversation("x"), "max_tokens": 1, "store": false,
        "modalities": ["text"], "metadata": {}, "service_tier": "auto", "verbosity": "medium",
        "tools": [], "tool_choice": "none", "parallel_tool_calls": true, "functions": [],
        "function_call": "none", "reasoning_effort": "medium", "safety_identifier": "x",
        "prompt_cache_key": "x", "prompt_cache_retention": "in_memory", "echo": false});
    for fields in [&mut body, &mut chat] {
        for row in super::super::params::SHARED.iter().chain(super::super::structured::STRUCTURED) {
            fields[row.name] = Value::Null;
        }
        fields["length_penalty"] = json!(1.0);
        fields["use_beam_search"] = json!(false);
        fields["response_format"] = json!({"type": "text"});
        fields["stop"] = json!([]);
        fields["logit_bias"] = json!({});
    }
    server.ok("/v1/completions", body).await;
    server.ok("/v1/chat/completions", chat).await;
}

#[tokio::test]
async fn unknown_models_are_not_found() {
    let server = Server::mock();
    for (path, mut body) in [
        ("/v1/completions", json!({"prompt": "x"})),
        ("/v1/chat/completions", json!({"messages": conversation("x")})),
        ("/tokenize", json!({"prompt": "x"})),
        ("/detokenize", json!({"tokens": []})),
    ] {
        body["model"] = json!("gpt-4");
        let answer = server.post(path, &body).await;
        assert_eq!((answer.status, &answer.error()["code"]), (404, &json!("model_not_found")));
        assert_eq!(answer.error()["param"], "model");
    }
}

#[tokio::test]
async fn prompts_that_do_not_fit_are_told_the_bound() {
    let server = Server::mock();
    let long = vec![1; 129];
    for (body, told) in [
        (json!({"prompt": long}), "has 129 tokens, and the model takes 128"),
        (json!({"prompt": vec![1; 128], "max_tokens": 1}), "with 1 new ones are more than the 128"),
        (json!({"prompt": "x", "max_tokens": 127}), "has 2 tokens, which with 127 new ones"),
        (json!({"prompt": ["x", "y".repeat(128)]}), "has 129 tokens"),
    ] {
        let answer = server.post("/v1/completions", &body).await;
        let error = answer.error();
        assert_eq!((answer.status, &error["code"]), (400, &json!("context_length_exceeded")));
        assert_eq!(error["param"], "prompt");
        assert!(error["message"].as_str().unwrap().contains(told), "{error}");
    }
    let body = json!({"messages": conversation(&"x".repeat(128))});
    let (status, param, _) = server.refused("/v1/chat/completions", body).await;
    assert_eq!((status, param.as_str()), (400, "messages"));
    let body = json!({"prompt": "", "add_special_tokens": false});
    assert_eq!(server.refused("/v1/completions", body).await.1, "prompt");
    let body = json!({"prompt": "x", "max_tokens": 3, "min_tokens": 4});
    assert_eq!(server.refused("/v1/completions", body).await.1, "min_tokens");
    let body = json!({"prompt": vec![1; 120]});
    let answer = server.ok("/v1/completions", greedy(body)).await;
    assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() <= 8);
}

#[tokio::test]
async fn the_end_is_announced() {
    let server = Server::mock();
    server.app.engine().drain();
    for path in ["/health", "/v1/models", "/"] {
        let answer = server.get(path).await;
        assert_eq!((answer.status, &answer.error()["code"]), (503, &json!("draining")), "{path}");
        assert_eq!(answer.headers["connection"], "close");
    }
    assert_eq!(server.get("/metrics").await.status, 200);
    assert_eq!(server.post("/v1/completions", &json!({"prompt": "x"})).await.status, 503);
}
