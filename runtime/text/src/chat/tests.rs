//! Templates in the manner of well-known models; the expected texts are what transformers 5
//! renders.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::*;

fn request(messages: Value) -> ChatRequest {
    let Value::Array(messages) = messages else { panic!("messages are a list") };
    let variables = json!({"bos_token": "<s>", "eos_token": "</s>"});
    ChatRequest {
        messages,
        variables: variables.as_object().cloned().unwrap_or_default(),
        ..ChatRequest::default()
    }
}

fn render(template: &str, request: &ChatRequest) -> Result<String, TextError> {
    ChatTemplate::new("default", template)?.render(request)
}

/// Renders a template that reads `x`.
fn with_x(template: &str, x: Value) -> Result<String, TextError> {
    let mut request = request(json!([]));
    request.variables.insert("x".to_owned(), x);
    render(template, &request)
}

fn conversation() -> Value {
    json!([
        {"role": "system", "content": "Be brief. "},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": " Who are \"you\"? "},
    ])
}

const CHATML: &str = include_str!("tests/chatml.jinja");

#[test]
fn chatml() {
    let mut request = request(conversation());
    let text = "<|im_start|>system\nBe brief. <|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
                <|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\n Who are \"you\"? <|im_end|>\n";
    assert_eq!(render(CHATML, &request).unwrap(), text);
    request.add_generation_prompt = true;
    assert_eq!(render(CHATML, &request).unwrap(), format!("{text}<|im_start|>assistant\n"));
}

/// Llama 3's manner: the system message taken out of the list, the date, tools as indented JSON.
const LLAMA: &str = include_str!("tests/llama.jinja");

#[test]
fn llama_with_tools_and_date() {
    let mut request = request(json!([
        {"role": "system", "content": " Help. "},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "weather",
            "arguments": {"city": "Zürich", "days": 2, "metric": true, "at": null, "x": 1.0}}}]},
        {"role": "tool", "content": {"celsius": -3.5, "sky": "<clear> & 'cold'"}},
    ]));
    request.tools =
        Some(vec![json!({"type": "function", "function": {"name": "weather", "tags": []}})]);
    request.add_generation_prompt = true;
    // Noon, the same day in every time zone but the outermost.
    request.now = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_721_995_200));
    let expected = "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n{\n    \
        \"type\": \"function\",\n    \"function\": {\n        \"name\": \"weather\",\n        \"tags\": []\n    \
        }\n}\n\nHelp.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWeather?<|eot_id|>\
        {\"name\": \"weather\", \"parameters\": {\"city\": \"Zürich\", \"days\": 2, \"metric\": true, \
        \"at\": null, \"x\": 1.0}}{\"celsius\": -3.5, \"sky\": \"<clear> & 'cold'\"}\
        <|start_header_id|>assistant<|end_header_id|>\n\n";
    assert_eq!(render(LLAMA, &request).unwrap(), expected);

    request.messages[2]["tool_calls"] = json!([]);
    let error = render(LLAMA, &request).unwrap_err();
    let TextError::Refused { message } = &error else { panic!("{error}") };
    assert_eq!(message, "This model only supports single tool-calls at once!");
}

/// Mistral's manner: roles must alternate, the last user message is found from the back.
const MISTRAL: &str = include_str!("tests/mistral.jinja");

#[test]
fn mistral_with_alternating_roles() {
    assert_eq!(
        render(MISTRAL, &request(conversation())).unwrap(),
        "<s>[INST] Hi[/INST] Hello!</s>[INST] Be brief. \n\n Who are \"you\"? [/INST]True"
    );
    let twice =
        request(json!([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]));
    let error = render(MISTRAL, &twice).unwrap_err().to_string();
    assert_eq!(
        error,
        "the chat template refuses this conversation: Conversation roles must alternate \
         user/assistant/user/assistant/..."
    );
}

/// Qwen 3's manner: `namespace`, loops from the back, methods of `str`, thinking, a macro.
const QWEN: &str = include_str!("tests/qwen.jinja");

#[test]
fn qwen_with_thinking_and_tool_results() {
    let mut request = request(json!([
        {"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "image"}, {"type": "text", "text": "2?"}]},
        {"role": "assistant", "content": "<think>\nold\n</think>\n\n4"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "<think>\nhm\n\n</think>\n\nlet me see"},
        {"role": "tool", "content": "4"},
        {"role": "tool", "content": "four"},
        {"role": "assistant", "content": "yes", "reasoning": "both agree"},
    ]));
    request.tools = Some(vec![json!({"name": "add", "b": 1, "a": 2})]);
    request.add_generation_prompt = true;
    request.variables.insert("enable_thinking".to_owned(), json!(false));
    let expected = "# Tools\n<tools>\n{\"name\": \"add\", \"b\": 1, \"a\": 2}\n</tools>\n\
        <|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n\
        <|im_start|>user\nsure?<|im_end|>\n\
        <|im_start|>assistant\n<think>\nhm\n</think>\n\nlet me see<|im_end|>\n\
        <|im_start|>user\n<tool_response>\n4\n</tool_response>\n<tool_response>\nfour\n</tool_response><|im_end|>\n\
        <|im_start|>assistant\n<think>\nboth agree\n</think>\n\nyes<|im_end|>\n\
        <|im_start|>assistant\n<think>\n\n</think>\n\n";
    assert_eq!(render(QWEN, &request).unwrap(), expected);
}

#[test]
fn blocks_are_trimmed_as_jinja_trims_them() {
    let template = "  {% if true %}\n  a\n  {% generation %}\n b{% set c = 1 %}\n{% endgeneration %}\n{% endif %}\n{{ 2 }}\n\n";
    assert_eq!(render(template, &request(json!([]))).unwrap(), "  a\n b2\n");
}

#[test]
fn json_is_written_as_python_writes_it() {
    let x =
        json!({"b": [1, -2.5, 1e16, "é\"\\\n\u{1}\u{7f}😀"], "a": {}, "c": [], "d": [true, null]});
    for (filter, expected) in [
        (
            "tojson",
            r#"{"b": [1, -2.5, 1e+16, "é\"\\\n\u0001DEL😀"], "a": {}, "c": [], "d": [true, null]}"#,
        ),
        (
            "tojson(ensure_ascii=true, sort_keys=True)",
            r#"{"a": {}, "b": [1, -2.5, 1e+16, "\u00e9\"\\\n\u0001\u007f\ud83d\ude00"], "c": [], "d": [true, null]}"#,
        ),
        (
            "tojson(separators=(',', ':'))",
            r#"{"b":[1,-2.5,1e+16,"é\"\\\n\u0001DEL😀"],"a":{},"c":[],"d":[true,null]}"#,
        ),
    ] {
        let text = with_x(&format!("{{{{ x | {filter} }}}}"), x.clone()).unwrap();
        assert_eq!(text, expected.replace("DEL", "\u{7f}"), "{filter}");
    }
    let indented = with_x("{{ x | tojson(indent=2) }}", json!({"a": [1, {"b": []}]})).unwrap();
    assert_eq!(indented, "{\n  \"a\": [\n    1,\n    {\n      \"b\": []\n    }\n  ]\n}");
    let error = with_x("{{ y | tojson }}", json!(1)).unwrap_err().to_string();
    assert!(error.contains("undefined cannot be written as JSON"), "{error}");
}

#[test]
fn values_print_as_python_prints_them() {
    let x = json!({"a": [true, null, "b", 1.0]});
    assert_eq!(
        with_x("{{ x }} {{ x.a[0] }} {{ x.y }}", x).unwrap(),
        "{'a': [True, None, 'b', 1.0]} True "
    );
    let items = "{% for k, v in x.items() %}{{ k }}={{ v }};{% endfor %}{{ x.get('z', 'no') }}";
    assert_eq!(with_x(items, json!({"k": 1, "a": 2})).unwrap(), "k=1;a=2;no");
}

#[test]
fn a_message_is_continued() {
    let mut request = request(json!([
        {"role": "user", "content": "Sing"}, {"role": "assistant", "content": "La la "}]));
    request.continue_final_message = true;
    let start = "<|im_start|>user\nSing<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(render(CHATML, &request).unwrap(), format!("{start}La la "));
    let trimming = CHATML.replace("message['content']", "message['content']|trim");
    assert_eq!(render(&trimming, &request).unwrap(), format!("{start}La la"));

    request.add_generation_prompt = true;
    let error = render(CHATML, &request).unwrap_err().to_string();
    assert!(error.contains("ask for one of them"), "{error}");
    request.add_generation_prompt = false;
    let error = render("{{ 'content' }}", &request).unwrap_err().to_string();
    assert!(error.contains("leaves out the message to continue"), "{error}");
    request.messages.clear();
    let error = render(CHATML, &request).unwrap_err().to_string();
    assert!(error.contains("there is no message to continue"), "{error}");
}

#[test]
fn errors_name_the_template_and_the_line() {
    let error = ChatTemplate::new("tool_use", "a\n{% if x %}\n").unwrap_err().to_string();
    assert!(
        error.starts_with("chat template `tool_use`: syntax error") && error.contains("tool_use:2"),
        "{error}"
    );
    let error = render("a\n{{ x.y.z }}", &request(json!([]))).unwrap_err().to_string();
    assert!(error.starts_with("chat template `default`: undefined value"), "{error}");
    assert!(error.contains("default:2"), "{error}");
    let error = render("", &request(json!(["hi"]))).unwrap_err().to_string();
    assert!(error.contains("message 0 is not an object"), "{error}");
    let error = render("{{ strftime_now('%!') }}", &request(json!([]))).unwrap_err().to_string();
    assert!(error.contains("invalid operation"), "{error}");
}

#[test]
fn templates_cannot_compute_without_end() {
    for template in [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 99999999999 }}",
        "{% include 'default' %}",
    ] {
        let error = render(template, &request(json!([]))).unwrap_err();
        assert!(matches!(error, TextError::Template { .. }), "{template}: {error}");
    }
}

#[test]
fn generation_blocks_are_places_in_the_text() {
    let source = "{% for m in messages %}\n[{{ m.role }}]\n{% if m.role == 'assistant' %}\n  \
                  {% generation %}\n{{ m.content }}<end>\n  {% endgeneration %}\n{% else %}\n\
                  {{ m.content }}<end>\n{% endif %}\n{% endfor %}";
    let template = ChatTemplate::new("default", source).unwrap();
    let request = request(json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hé"},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "I"},
    ]));
    let (text, spans) = template.render_generation_spans(&request).unwrap();
    assert_eq!(text, template.render(&request).unwrap());
    let learned: Vec<&str> = spans.into_iter().map(|span| &text[span]).collect();
    assert_eq!(learned, ["Hé<end>\n", "I<end>\n"]);
    let plain = ChatTemplate::new("default", CHATML).unwrap();
    assert!(!plain.has_generation_spans() && plain.render_generation_spans(&request).is_err());
}
