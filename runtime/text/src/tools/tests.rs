//! Texts of each format, whole and cut anywhere, and the grammars that force them.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{GrammarCompiler, Structure, tiny};

/// Events with neighbours of one kind joined.
fn joined(events: impl IntoIterator<Item = ToolEvent>) -> Vec<ToolEvent> {
    let mut out: Vec<ToolEvent> = Vec::new();
    for event in events {
        match (out.last_mut(), event) {
            (Some(ToolEvent::Text(last)), ToolEvent::Text(text)) => last.push_str(&text),
            (
                Some(ToolEvent::Arguments { index: at, piece: last }),
                ToolEvent::Arguments { index, piece },
            ) if *at == index => last.push_str(&piece),
            (_, event) => out.push(event),
        }
    }
    out
}

fn parse<'a>(format: ToolFormat, pieces: impl IntoIterator<Item = &'a str>) -> Vec<ToolEvent> {
    let mut parser = ToolParser::new(format);
    let mut events: Vec<ToolEvent> =
        pieces.into_iter().flat_map(|piece| parser.push(piece)).collect();
    events.extend(parser.finish());
    joined(events)
}

/// A short spelling: texts as they are, calls as `name(arguments)`.
fn spelled(events: &[ToolEvent]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for event in events {
        match event {
            ToolEvent::Text(text) => out.push(text.clone()),
            ToolEvent::Call { name, .. } => out.push(format!("{name}()")),
            ToolEvent::Arguments { index, piece } => {
                let calls = out.iter_mut().filter(|call| call.ends_with("()"));
                let call = calls.last().unwrap_or_else(|| panic!("arguments of no call {index}"));
                call.insert_str(call.len() - 1, piece);
            }
        }
    }
    out
}

const HERMES: ToolFormat = ToolFormat::Hermes;
const LLAMA: ToolFormat = ToolFormat::Llama3;
const MISTRAL: ToolFormat = ToolFormat::Mistral;

#[test]
fn each_format_is_read() {
    for (format, text, expected) in [
        (HERMES, "Hello <b>.\n", &["Hello <b>.\n"][..]),
        (
            HERMES,
            "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}\\\"\"}}\n</tool_call>\n\
             <tool_call>{\"arguments\":{},\"id\":[1],\"name\":\"g\"}</tool_call> Done",
            &["Let me see.", "f({\"a\": \"}\\\"\"})", "g({})", "Done"],
        ),
        (HERMES, "<tool_call>\n{\"name\": \"f\"}\n</tool_call>", &["f({})"]),
        (
            HERMES,
            "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"x\ny\"}}",
            &["f({\"a\":\"x\\u000ay\"})"],
        ),
        (HERMES, "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":1", &["f({\"a\":1)"]),
        (HERMES, "<tool_call>{\"name\":\"f\",\"arguments\":{}}\n</tool", &["f({})"]),
        (LLAMA, " {\"name\": \"f\", \"parameters\": {\"a\": 1}}", &["f({\"a\": 1})"]),
        (
            LLAMA,
            "<|python_tag|>{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\", \"parameters\": {}}",
            &["f({})", "g({})"],
        ),
        (LLAMA, "So: <|python_tag|>{\"name\":\"f\",\"parameters\":{}}", &["So:", "f({})"]),
        (
            LLAMA,
            "So: {\"name\":\"f\",\"parameters\":{}}",
            &["So: {\"name\":\"f\",\"parameters\":{}}"],
        ),
        (LLAMA, "<|python_tag|>print(1)", &["<|python_tag|>print(1)"]),
        (LLAMA, "{\"name\": \"f\", \"size\": 3", &["{\"name\": \"f\", \"size\": 3"]),
        (
            MISTRAL,
            "Yes. [TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": []}}, {\"name\": \"g\", \"arguments\": {}}]",
            &["Yes.", "f({\"a\": []})", "g({})"],
        ),
        (MISTRAL, "[TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]g{}", &["f({\"a\": 1})", "g({})"]),
        (MISTRAL, "[TOOL_CALLS]f[CALL_ID]a1B2[ARGS]{}", &["f({})"]),
    ] {
        assert_eq!(spelled(&parse(format, [text])), expected, "{text}");
    }
}

#[test]
fn what_is_no_call_is_text() {
    for (format, texts) in [
        (
            HERMES,
            &[
                "<tool_call>",
                "<tool_call>\n",
                "<tool_call>[1]</tool_call>",
                "<tool_call>{\"name\": 3, \"arguments\": {}}</tool_call>",
                "<tool_call>{\"name\": \"f\", \"arguments\": \"{}\"}</tool_call>",
                "<tool_call>{\"name\": \"\", \"arguments\": {}}</tool_call>",
                "<tool_call>{\"arguments\": {}}</tool_call>",
                "<tool_call>{\"name\": \"f\", \"argu",
                "a <tool_cal",
            ][..],
        ),
        (LLAMA, &["{}", "{\"name\": \"Ann\", \"age\": 7}x", "[]", " \n", "<|python"]),
        (MISTRAL, &["[TOOL_CALLS]", "[TOOL_CALLS]f[ARGS]x", "[TOOL_CALLS][]", "[TOOL_CALLS]a b"]),
    ] {
        for text in texts {
            assert_eq!(parse(format, [*text]), [ToolEvent::Text((*text).to_owned())]);
        }
    }
    // A mark after a call that failed.
    let text = "<tool_call><tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>";
    assert_eq!(spelled(&parse(HERMES, [text])), ["<tool_call>", "f({})"]);
    // What follows arguments that break off.
    let text = "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":x}}</tool_call>";
    assert_eq!(spelled(&parse(HERMES, [text])), ["f({\"a\":)", "x}}</tool_call>"]);
}

/// Pieces of calls, whole ones among them.
fn part() -> impl Strategy<Value = String> {
    let call = r#"{"name": "f", "arguments": {"a": [1, "é\n"], "b": {}}}"#;
    prop_oneof![
        Just(call.to_owned()),
        Just(format!("<tool_call>\n{call}\n</tool_call>")),
        Just(format!("[TOOL_CALLS][{call}, {call}]")),
        Just("[TOOL_CALLS]g[ARGS]{\"x\": true}".to_owned()),
        Just(format!("<|python_tag|>{call}")),
        Just("; ".to_owned()),
        prop::sample::select(vec![
            "<tool_call>",
            "</tool_call>",
            "[TOOL_CALLS]",
            "[ARGS]",
            "{",
            "}",
            "\"name\"",
            "\"arguments\"",
            ":",
            ",",
            "\"f\""
        ])
        .prop_map(str::to_owned),
        "[a-zé<>{}\\[\\]\":, \n\\\\]{0,5}",
    ]
}

proptest! {
    #[test]
    fn cuts_make_no_difference_and_nothing_is_lost(
        parts in prop::collection::vec(part(), 0..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let text = parts.concat();
        let chars: Vec<char> = text.chars().collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(chars.len() + 1)).collect();
        cuts.sort_unstable();
        let mut pieces: Vec<String> = Vec::new();
        let mut start = 0;
        for end in cuts.into_iter().chain([chars.len()]) {
            pieces.push(chars[start..end].iter().collect());
            start = end;
        }
        for format in [HERMES, LLAMA, MISTRAL] {
            let whole = parse(format, [text.as_str()]);
            prop_assert_eq!(&parse(format, pieces.iter().map(String::as_str)), &whole);
            // Texts, names and arguments come in the text's order; without a call it is the text.
            let mut rest = text.as_str();
            let mut calls = 0;
            for event in &whole {
                let part = match event {
                    ToolEvent::Text(part) => part,
                    ToolEvent::Call { index, .. } => {
                        prop_assert_eq!(*index, calls);
                        calls += 1;
                        continue;
                    }
                    ToolEvent::Arguments { piece, .. } => piece,
                };
                for c in part.chars().filter(|c| !c.is_whitespace()) {
                    // Line breaks in strings are escaped, and left-out arguments are `{}`.
                    if let Some(at) = rest.find(c) {
                        rest = &rest[at + c.len_utf8()..];
                    } else {
                        prop_assert!(calls > 0 && "\\u000a{}".contains(c), "{:?}", whole);
                    }
                }
            }
            if calls == 0 {
                let expected: &[ToolEvent] = &[ToolEvent::Text(text.clone())];
                prop_assert_eq!(&whole[..], if text.is_empty() { &[] } else { expected });
            }
        }
    }
}

fn tools() -> Vec<Tool> {
    let function = |name: &str, parameters: Value, strict: bool| {
        json!({"type": "function",
            "function": {"name": name, "parameters": parameters, "strict": strict}})
    };
    let city = json!({"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"], "additionalProperties": false});
    let sum = json!({"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"],
        "additionalProperties": false, "$defs": {"n": {"type": "integer", "minimum": 1, "maximum": 20}}});
    Tool::list(&[function("weather", city, true), function("sum", sum, false)]).unwrap()
}

fn special(json: &mut Value, id: usize, token: &str, special: bool) {
    let token = json!({"id": id, "content": token, "special": special, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false});
    json["added_tokens"].as_array_mut().unwrap().push(token);
}

/// Vocabularies: without the marks, with them as text, with them as special tokens.
fn vocabularies() -> Vec<Value> {
    let mut as_text = tiny::byte_level();
    special(&mut as_text, 265, "<tool_call>", false);
    special(&mut as_text, 266, "</tool_call>", false);
    let mut as_special = tiny::byte_level();
    special(&mut as_special, 265, "[TOOL_CALLS]", true);
    special(&mut as_special, 266, "[ARGS]", true);
    special(&mut as_special, 267, "<tool_call>", true);
    special(&mut as_special, 268, "</tool_call>", true);
    vec![tiny::byte_level(), as_text, as_special]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Random walks under the grammar of each format and choice, read back.
    #[test]
    fn forced_calls_are_calls(choices in prop::collection::vec(any::<u16>(), 64)) {
        for json in vocabularies() {
            let tokenizer = tiny::tokenizer(&json);
            let size = tokenizer.vocab_size();
            let compiler = GrammarCompiler::new(&tokenizer, size, &[263]).unwrap();
            for format in [HERMES, LLAMA, MISTRAL] {
                for (choice, parallel) in [
                    (ToolChoice::Required, true),
                    (ToolChoice::Required, false),
                    (ToolChoice::Named("sum".to_owned()), false),
                    (ToolChoice::Auto, false),
                ] {
                    let structure = format.structure(&tools(), &choice, parallel, &tokenizer);
                    let structure = structure.unwrap().unwrap();
                    let constraint = compiler.compile(&structure)
                        .unwrap_or_else(|error| panic!("{error}: {structure:?}"));
                    let ids = crate::constraint::walk(constraint, &tokenizer, &choices);
                    let text = tokenizer.decode(&ids, false).unwrap();
                    let events = parse(format, [text.as_str()]);
                    check(&events, &choice, parallel, &text);
                }
            }
        }
    }
}

/// Fails unless the events are calls of the chosen tools with arguments by their schemas.
fn check(events: &[ToolEvent], choice: &ToolChoice, parallel: bool, text: &str) {
    let mut calls: Vec<(&str, String)> = Vec::new();
    for event in events {
        match event {
            ToolEvent::Text(_) => assert_eq!(*choice, ToolChoice::Auto, "{text}"),
            ToolEvent::Call { name, .. } => calls.push((name, String::new())),
            ToolEvent::Arguments { piece, .. } => calls.last_mut().unwrap().1 += piece,
        }
    }
    assert!(*choice == ToolChoice::Auto || !calls.is_empty(), "{text}");
    assert!(parallel || calls.len() <= 1, "{text}");
    for (name, arguments) in calls {
        let arguments: Value =
            serde_json::from_str(&arguments).unwrap_or_else(|_| panic!("{text}"));
        let fields = arguments.as_object().unwrap();
        match name {
            "weather" => assert!(
                fields.len() == 1 && ["Rome", "Oslo"].iter().any(|city| fields["city"] == *city)
            ),
            "sum" if *choice == ToolChoice::Auto => {}
            "sum" => {
                let n = fields["n"].as_i64().unwrap();
                assert!(fields.len() == 1 && (1..=20).contains(&n), "{text}");
            }
            name => panic!("{name} is no tool"),
        }
        assert!(!matches!(choice, ToolChoice::Named(chosen) if chosen != name), "{text}");
    }
}

#[test]
fn choices_without_a_structure() {
    let tokenizer = tiny::tokenizer(&tiny::byte_level());
    let structure = |tools: &[Tool], choice| HERMES.structure(tools, &choice, true, &tokenizer);
    let [strict, loose] = &tools()[..] else { unreachable!() };
    assert_eq!(structure(&tools(), ToolChoice::None).unwrap(), None);
    assert_eq!(structure(std::slice::from_ref(loose), ToolChoice::Auto).unwrap(), None);
    let auto = structure(std::slice::from_ref(strict), ToolChoice::Auto).unwrap();
    assert!(matches!(auto, Some(Structure::Grammar(_))));
    assert!(structure(&[], ToolChoice::Required).is_err());
    assert!(structure(&tools(), ToolChoice::Named("x".to_owned())).is_err());
}
