//! Conversations, whole and streamed.

use serde_json::json;

use super::*;

const PATH: &str = "/v1/chat/completions";

fn ask(more: Value) -> Value {
    let mut body = greedy(json!({"messages": conversation("hello")}));
    if let Value::Object(more) = more {
        body.as_object_mut().unwrap().extend(more);
    }
    body
}

#[tokio::test]
async fn an_answer_has_openais_shape() {
    let server = Server::saying("Hi, 世界!");
    let answer = server.ok(PATH, ask(json!({}))).await;
    assert_eq!(answer["object"], "chat.completion");
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &answer["choices"][0];
    let message = json!({"role": "assistant", "content": "Hi, 世界!", "refusal": null});
    assert_eq!(choice["message"], message);
    assert_eq!((&choice["finish_reason"], &choice["logprobs"]), (&json!("stop"), &Value::Null));
    // `user:hello>assistant:`, without what the tokenizer adds elsewhere.
    assert_eq!(answer["usage"]["prompt_tokens"], 21);
    assert_eq!(answer["usage"]["completion_tokens"], 12);
}

#[tokio::test]
async fn a_stream_has_role_text_reason_and_end() {
    let server = Server::saying("Hi, 世界!");
    let body = ask(json!({"stream_options": {"include_usage": true}, "n": 2}));
    let chunks = server.chunks(PATH, body).await;
    let delta = |chunk: &Value| chunk["choices"][0]["delta"].clone();
    for (index, chunk) in chunks[..2].iter().enumerate() {
        assert_eq!(delta(chunk), json!({"role": "assistant", "content": ""}));
        assert_eq!(chunk["choices"][0]["index"], index);
    }
    for index in 0..2 {
        let own: Vec<&Value> =
            chunks.iter().filter(|chunk| chunk["choices"][0]["index"] == index).collect();
        let text: String = own[1..]
            .iter()
            .filter_map(|c| Some(delta(c)["content"].as_str()?.to_owned()))
            .collect();
        assert_eq!(text, "Hi, 世界!");
        let last = own.last().unwrap();
        assert_eq!(
            (delta(last), &last["choices"][0]["finish_reason"]),
            (json!({}), &json!("stop"))
        );
        assert!(own[..own.len() - 1].iter().all(|c| c["choices"][0]["finish_reason"].is_null()));
    }
    let usage = chunks.last().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["total_tokens"]), (&json!([]), &json!(45)));
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
}

#[tokio::test]
async fn streams_joined_are_the_whole_text() {
    let server = Server::mock();
    for more in
        [json!({}), json!({"stop": "\u{fffd}", "seed": 3, "temperature": 1}), json!({"n": 2})]
    {
        let mut body = ask(more);
        body["max_tokens"] = json!(60);
        let whole = server.ok(PATH, body.clone()).await;
        let chunks = server.chunks(PATH, body).await;
        for choice in whole["choices"].as_array().unwrap() {
            let own = chunks.iter().filter(|c| c["choices"][0]["index"] == choice["index"]);
            let text: String =
                own.filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
            assert_eq!(choice["message"]["content"].as_str(), Some(text.as_str()));
        }
    }
}

#[tokio::test]
async fn probabilities_have_bytes() {
    let server = Server::saying("é");
    let body = ask(json!({"logprobs": true, "top_logprobs": 2}));
    let answer = server.ok(PATH, body.clone()).await;
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 3);
    assert_eq!((&content[0]["token"], &content[0]["bytes"]), (&json!("\u{fffd}"), &json!([195])));
    assert_eq!(content[0]["logprob"], 0.0);
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(content[0]["top_logprobs"][0]["bytes"], json!([195]));
    let chunks = server.chunks(PATH, body).await;
    let streamed: Vec<Value> = chunks
        .iter()
        .flat_map(|c| {
            c["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default()
        })
        .collect();
    assert_eq!(&streamed, content);
    let plain = server.ok(PATH, ask(json!({"logprobs": true}))).await;
    let first = &plain["choices"][0]["logprobs"]["content"][0];
    assert_eq!(first["top_logprobs"], json!([]));
}

#[tokio::test]
async fn both_names_of_the_bound_are_heard() {
    let server = Server::saying("a long answer");
    for (more, text) in [
        (json!({"max_tokens": 1}), "a"),
        (json!({"max_completion_tokens": 6}), "a long"),
        (json!({"max_completion_tokens": 6, "max_tokens": 6}), "a long"),
    ] {
        let choice = &server.ok(PATH, ask(more)).await["choices"][0];
        assert_eq!(choice["message"]["content"], text);
        assert_eq!(choice["finish_reason"], "length");
    }
    let (_, param, _) =
        server.refused(PATH, ask(json!({"max_completion_tokens": 6, "max_tokens": 7}))).await;
    assert_eq!(param, "max_tokens");
}

#[tokio::test]
async fn templates_see_what_they_are_to_see() {
    let server = Server::saying("x");
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
    let prompt = async |more: Value| {
        let mut body = json!({"messages": conversation("q")});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let tokens = server.ok("/tokenize", body).await["tokens"].clone();
        server.ok("/detokenize", json!({"tokens": tokens})).await["prompt"].clone()
    };
    assert_eq!(prompt(json!({})).await, "user:q>assistant:");
    assert_eq!(prompt(json!({"add_special_tokens": true})).await, "<s>user:q>assistant:");
    assert_eq!(prompt(json!({"add_generation_prompt": false})).await, "user:q>");
    assert_eq!(prompt(json!({"tools": [tool]})).await, "user:q>tools:1>assistant:");
    assert_eq!(prompt(json!({"tools": [tool], "tool_choice": "none"})).await, "user:q>assistant:");
    let kwargs = json!({"chat_template_kwargs": {"enable_thinking": true}});
    assert_eq!(prompt(kwargs).await, "user:q>thinking:True>assistant:");
    let messages = json!([{"role": "user", "content": [{"type": "text", "text": "a"},
        {"type": "text", "text": "b"}]}, {"role": "assistant", "content": "half"}]);
    let more = json!({"messages": messages, "continue_final_message": true});
    assert_eq!(prompt(more).await, "user:a\nb>assistant:half");
    let body = ask(json!({"reasoning_effort": "none", "return_token_ids": true}));
    let answer = server.ok(PATH, body).await;
    let text = server.ok("/detokenize", json!({"tokens": answer["prompt_token_ids"]})).await;
    assert_eq!(text["prompt"], "user:hello>thinking:False>assistant:");
}

#[tokio::test]
async fn a_template_of_the_server_goes_first() {
    let options = ServerOptions {
        chat_template: Some("{{ raise_exception('only poems') }}".into()),
        ..ServerOptions::default()
    };
    let server = Server::new(model::engine(model::hashing(), |_| ()), options);
    let (status, param, message) = server.refused(PATH, ask(json!({}))).await;
    assert_eq!((status, param.as_str()), (400, "messages"));
    assert!(message.contains("only poems"), "{message}");
    let options = ServerOptions { chat_template: Some("{% if".into()), ..Default::default() };
    let error = App::new(model::engine(model::hashing(), |_| ()), options).unwrap_err();
    assert!(error.to_string().contains("--chat-template"), "{error}");
    let engine = model::engine(model::hashing(), |bundle| bundle.chat_templates.clear());
    let server = Server::new(engine, ServerOptions::default());
    let (status, _, message) = server.refused(PATH, ask(json!({}))).await;
    assert!(status == 400 && message.contains("no chat template"), "{message}");
}

#[tokio::test]
async fn fields_that_contradict_each_other_are_refused() {
    let server = Server::saying("x");
    for (more, field) in [
        (
            json!({"add_generation_prompt": true, "continue_final_message": true}),
            "add_generation_prompt",
        ),
        (json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs.messages"),
        (
            json!({"continue_final_message": true, "messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:"}}]}]}),
            "messages[0].content[0].type",
        ),
    ] {
        assert_eq!(server.refused(PATH, ask(more)).await.1, field);
    }
}
