//! Calls of tools, reasoning, and answers that follow a structure.

use serde_json::json;
use text::{ReasoningFormat, ToolFormat};

use super::*;

const PATH: &str = "/v1/chat/completions";

fn saying(text: &str) -> Server {
    server(text, Some(ReasoningFormat::Qwen3))
}

fn server(text: &str, reasoning_format: Option<ReasoningFormat>) -> Server {
    let tool_format = Some(ToolFormat::Hermes);
    let options = ServerOptions { tool_format, reasoning_format, ..ServerOptions::default() };
    Server::new(model::engine(model::Script::new(text), |_| ()), options)
}

fn ask(more: Value) -> Value {
    let parameters = json!({"type": "object", "properties": {"a": {"const": 1}},
        "required": ["a"], "additionalProperties": false});
    let tool = |name: &str| {
        let function = json!({"name": name, "parameters": parameters});
        json!({"type": "function", "function": function})
    };
    let mut body =
        greedy(json!({"messages": conversation("hello"), "tools": [tool("f"), tool("g")]}));
    if let Value::Object(more) = more {
        body.as_object_mut().unwrap().extend(more);
    }
    body
}

/// Role, content, reasoning and calls of a stream's only choice, joined, and why it ended.
fn joined(chunks: &[Value]) -> (Value, Value) {
    let (mut content, mut reasoning) = (String::new(), String::new());
    let mut calls: Vec<Value> = Vec::new();
    let mut finish = Value::Null;
    for choice in chunks.iter().map(|chunk| &chunk["choices"][0]) {
        let delta = &choice["delta"];
        content += delta["content"].as_str().unwrap_or_default();
        reasoning += delta["reasoning_content"].as_str().unwrap_or_default();
        for part in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = usize::try_from(part["index"].as_u64().unwrap()).unwrap();
            if part.get("id").is_some() {
                assert_eq!(index, calls.len());
                assert_eq!(part["type"], "function");
                calls.push(json!({"name": part["function"]["name"], "arguments": ""}));
            }
            let arguments = part["function"]["arguments"].as_str().unwrap();
            let so_far = calls[index]["arguments"].as_str().unwrap().to_owned();
            calls[index]["arguments"] = (so_far + arguments).into();
        }
        if !choice["finish_reason"].is_null() {
            finish = choice["finish_reason"].clone();
        }
    }
    (json!({"content": content, "reasoning": reasoning, "calls": calls}), finish)
}

/// The same of a whole answer.
fn whole(answer: &Value) -> (Value, Value) {
    let choice = &answer["choices"][0];
    let message = &choice["message"];
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    let calls: Vec<&Value> = calls.map(|call| &call["function"]).collect();
    let text = |name: &str| message[name].as_str().unwrap_or_default();
    let parts = json!({"content": text("content"), "reasoning": text("reasoning_content"),
        "calls": calls});
    (parts, choice["finish_reason"].clone())
}

const CALLS: &str = "<think>Hm.</think>Let me see.<tool_call>\n{\"name\": \"f\", \"arguments\": \
                     {\"a\": 1}}\n</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": \
                     {}}\n</tool_call>";

#[tokio::test]
async fn calls_and_reasoning_are_told_apart_from_text() {
    let server = saying(CALLS);
    let f = json!({"name": "f", "arguments": "{\"a\": 1}"});
    let g = json!({"name": "g", "arguments": "{}"});
    for (more, calls) in
        [(json!({}), json!([f, g])), (json!({"parallel_tool_calls": false}), json!([f]))]
    {
        let answer = server.ok(PATH, ask(more.clone())).await;
        let want = json!({"content": "Let me see.", "reasoning": "Hm.", "calls": calls});
        assert_eq!(whole(&answer), (want, json!("tool_calls")));
        let ids: Vec<&Value> = answer["choices"][0]["message"]["tool_calls"]
            .as_array()
            .unwrap()
            .iter()
            .map(|call| &call["id"])
            .collect();
        assert!(ids.iter().all(|id| id.as_str().unwrap().starts_with("call_")));
        assert!(ids.len() < 2 || ids[0] != ids[1]);
        // A token is a byte, and the end is one more.
        let (end, _) = CALLS.match_indices("}}").next().unwrap();
        let generated = if ids.len() == 1 { end + 2 } else { CALLS.len() + 1 };
        assert_eq!(answer["usage"]["completion_tokens"], generated);
        let chunks = server.chunks(PATH, ask(more)).await;
        assert_eq!(joined(&chunks), whole(&answer));
    }
    let more = json!({"parallel_tool_calls": false, "min_tokens": 100});
    let (parts, finish) = whole(&server.ok(PATH, ask(more)).await);
    assert_eq!((&parts["calls"], finish), (&json!([f]), json!("tool_calls")));
    let answer = server.ok(PATH, ask(json!({"tool_choice": "none"}))).await;
    let (parts, finish) = whole(&answer);
    assert_eq!((&parts["calls"], finish), (&json!([]), json!("stop")));
    assert!(parts["content"].as_str().unwrap().contains("<tool_call>"));
}

#[tokio::test]
async fn calls_can_be_required_and_named() {
    let server = server("I would rather talk.", None);
    let named = json!({"type": "function", "function": {"name": "g"}});
    for (choice, name) in [(json!("required"), "f"), (named, "g")] {
        let body = ask(json!({"tool_choice": choice, "parallel_tool_calls": false}));
        let answer = server.ok(PATH, body.clone()).await;
        let (parts, finish) = whole(&answer);
        assert_eq!((&parts["content"], finish), (&json!(""), json!("tool_calls")));
        assert_eq!(parts["calls"][0]["name"], name);
        let arguments = parts["calls"][0]["arguments"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Value>(arguments).unwrap(), json!({"a": 1}));
        assert!(answer["choices"][0]["message"]["content"].is_null());
        assert_eq!(joined(&server.chunks(PATH, body).await), whole(&answer));
    }
    let server = Server::saying("x");
    let (status, param, _) = server.refused(PATH, ask(json!({"tool_choice": "required"}))).await;
    assert_eq!((status, param.as_str()), (400, "tool_choice"));
}

#[tokio::test]
async fn answers_follow_structures() {
    let server = Server::saying("yes and no");
    let schema = json!({"type": "object", "properties": {"ok": {"const": true}},
        "required": ["ok"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let text = async |path: &str, more: Value| {
        let mut body = match path {
            PATH => greedy(json!({"messages": conversation("hello")})),
            _ => greedy(json!({"prompt": "assistant:"})),
        };
        body["max_tokens"] = json!(200);
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let choice = server.ok(path, body).await["choices"][0].clone();
        assert_eq!(choice["finish_reason"], "stop", "{choice}");
        let text = choice.pointer("/message/content").unwrap_or(&choice["text"]);
        text.as_str().unwrap().to_owned()
    };
    for path in [PATH, "/v1/completions"] {
        for more in [
            json!({"response_format": format}),
            json!({"guided_json": schema}),
            json!({"structured_outputs": {"json": schema}}),
        ] {
            let value: Value = serde_json::from_str(&text(path, more).await).unwrap();
            assert_eq!(value, json!({"ok": true}));
        }
        assert_eq!(text(path, json!({"guided_choice": ["no", "yes"]})).await, "yes");
        assert_eq!(text(path, json!({"guided_regex": "[a-c]{2}"})).await.len(), 2);
    }
}

#[tokio::test]
async fn structures_begin_where_reasoning_ends() {
    let thought = "<think>\nPerhaps {\"ok\": false}?\n</think>\n\n";
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let call = "<tool_call>\n{\"name\": \"g\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    let tools = json!({"tools": ask(json!({}))["tools"], "tool_choice": "required",
        "parallel_tool_calls": false});
    let g = json!({"name": "g", "arguments": "{\"a\": 1}"});
    for (said, more, content, calls, finish) in [
        (
            "{\"ok\": true}!",
            json!({"response_format": format}),
            "{\"ok\": true}",
            json!([]),
            "stop",
        ),
        ("no way", json!({"guided_choice": ["no", "yes"]}), "no", json!([]), "stop"),
        (call, tools, "", json!([g]), "tool_calls"),
    ] {
        let server = saying(&format!("{thought}{said}"));
        let body = |more: &Value| {
            let mut body = greedy(json!({"messages": conversation("hello"), "n": 2}));
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        let answer = server.ok(PATH, body(&more)).await;
        let want =
            json!({"content": content, "reasoning": "Perhaps {\"ok\": false}?", "calls": calls});
        assert_eq!(whole(&answer), (want, json!(finish)), "{more}");
        let mut single = body(&more);
        single["n"] = json!(1);
        assert_eq!(joined(&server.chunks(PATH, single).await), whole(&answer));
        // Without reasoning, the structure holds from the first token on.
        for no_thought in [
            json!({"chat_template_kwargs": {"enable_thinking": false}}),
            json!({"reasoning_effort": "none"}),
        ] {
            let mut silent = body(&more);
            silent.as_object_mut().unwrap().extend(no_thought.as_object().unwrap().clone());
            silent["max_tokens"] = json!(60);
            let (parts, _) = whole(&server.ok(PATH, silent).await);
            assert_eq!(parts["reasoning"], "");
            let text = parts["content"].as_str().unwrap();
            let is_answer = ["{", "no", "yes"].iter().any(|begin| text.starts_with(begin));
            assert!(is_answer || !parts["calls"][0].is_null(), "{parts}");
        }
    }
    // A model that does not reason answers at once.
    let server = saying("yes");
    let mut body = greedy(json!({"messages": conversation("hello")}));
    body["guided_choice"] = json!(["no", "yes"]);
    let want = json!({"content": "yes", "reasoning": "", "calls": []});
    assert_eq!(whole(&server.ok(PATH, body).await), (want, json!("stop")));
}

#[tokio::test]
async fn structures_that_cannot_be_followed_are_refused() {
    let server = Server::saying("x");
    for more in [json!({"guided_regex": "("}), json!({"guided_grammar": "start: nothing"})] {
        let mut body = greedy(json!({"messages": conversation("hello")}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, _, message) = server.refused(PATH, body).await;
        assert!(status == 400 && message.contains("structure"), "{message}");
    }
    let format = json!({"type": "json_object"});
    let body = ask(json!({"tool_choice": "required", "response_format": format}));
    assert_eq!(server.refused(PATH, body).await.1, "tool_choice");
}
