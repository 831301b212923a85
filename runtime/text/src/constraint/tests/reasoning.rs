//! Structures that begin where reasoning ends.

use super::*;
use crate::reasoning::{CLOSE, OPEN};
use crate::{
    ReasoningEvent, ReasoningFormat, ReasoningParser, TokenBytes, Tool, ToolChoice, ToolFormat,
};

const QWEN: ReasoningFormat = ReasoningFormat::Qwen3;
const R1: ReasoningFormat = ReasoningFormat::DeepSeekR1;

const EOS: u32 = 263;

/// Tokens that hold tags, parts of tags, and what comes beside them.
const TAGGED: [&str; 10] =
    ["<think>", "</think>", "<think>\n", "</think>y", "</", "think", ">\n\n", ">{", "\n\n", "\n{"];

/// The byte-level vocabulary with [`TAGGED`]; the tags alone may be special tokens.
fn tagged(is_special: bool) -> Tokenizer {
    let mut json = tiny::byte_level();
    for (id, content) in (265..).zip(TAGGED) {
        let special = is_special && ["<think>", "</think>"].contains(&content);
        let token = json!({"id": id, "content": content, "special": special, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false});
        json["added_tokens"].as_array_mut().unwrap().push(token);
    }
    tiny::tokenizer(&json)
}

fn choice(texts: &[&str]) -> Structure {
    Structure::Choice(texts.iter().map(|text| (*text).to_owned()).collect())
}

/// A constraint on the answer to a prompt, and the id of a token by its text.
fn begin(
    structure: &Structure,
    format: ReasoningFormat,
    prompt: &str,
) -> (Constraint, impl Fn(&str) -> u32 + use<>) {
    let tokenizer = tagged(false);
    let compiler = GrammarCompiler::new(&tokenizer, tokenizer.vocab_size(), &[EOS]).unwrap();
    let constraint = compiler.compile_after_reasoning(structure, format, prompt).unwrap();
    let id = move |text: &str| match text {
        "\n" => tokenizer.token_to_id("Ċ").unwrap(),
        text => tokenizer.token_to_id(text).unwrap(),
    };
    (constraint, id)
}

#[test]
fn reasoning_is_free_and_the_answer_is_not() {
    let (mut constraint, id) = begin(&choice(&["yes", "no"]), R1, "<think>\n");
    // All text but no end, no special token, and none that would reach into the answer.
    let first = allowed(&mut constraint);
    let is_free = |text: &str| first.contains(&id(text));
    assert!(is_free("née ") && is_free("<think>") && is_free("</think>") && is_free("\n\n"));
    assert!(!first.contains(&EOS) && !first.contains(&262) && !is_free("</think>y"));
    assert!(constraint.accept(EOS).is_err());
    for text in ["n", "<", "</", "think", "x", "</think>", "\n"] {
        constraint.accept(id(text)).unwrap();
        assert!(!constraint.is_finished());
    }
    let mut start = [id("y"), id("n"), id("\n"), id("\n\n")];
    start.sort_unstable();
    assert_eq!(allowed(&mut constraint), start);
    for text in ["\n\n", "n", "o"] {
        constraint.accept(id(text)).unwrap();
    }
    assert!(constraint.is_finished());
    assert_eq!(allowed(&mut constraint), [EOS]);
}

#[test]
fn a_tag_may_be_cut_and_must_not_hold_the_answer() {
    let (mut constraint, id) = begin(&Structure::JsonObject, R1, "Assistant:");
    for text in ["</", "think"] {
        constraint.accept(id(text)).unwrap();
    }
    let now = allowed(&mut constraint);
    assert!([">", ">\n\n", "x"].iter().all(|text| now.contains(&id(text))));
    assert!(!now.contains(&id(">{")));
    constraint.accept(id(">\n\n")).unwrap();
    let mut start = [id("{"), id("\n"), id("\n\n")];
    start.sort_unstable();
    assert_eq!(allowed(&mut constraint), start);
}

#[test]
fn the_text_tells_whether_it_is_reasoning() {
    let texts = choice(&["<b>", "<think>", "yes"]);
    let (constraint, id) = begin(&texts, QWEN, "assistant\n");
    // The tag is reasoning, whatever the structure says of it.
    let mut start = [id("<think>"), id("<think>\n"), id("<"), id("y")];
    start.sort_unstable();
    assert_eq!(allowed(&mut constraint.clone()), start);

    let mut direct = constraint.clone();
    direct.accept(id("<")).unwrap();
    let mut next = [id("b"), id("t"), id("think")];
    next.sort_unstable();
    assert_eq!(allowed(&mut direct), next);
    direct.accept(id("b")).unwrap();
    direct.accept(id(">")).unwrap();
    assert!(direct.is_finished());

    for tag in [&["<think>\n"][..], &["<think>"], &["<", "think", ">\n\n"], &["<", "think", ">"]] {
        let mut reasoned = constraint.clone();
        for text in tag.iter().chain(&["née ", "</think>", "<", "think", ">"]) {
            reasoned.accept(id(text)).unwrap();
        }
        assert!(reasoned.is_finished(), "after reasoning, a tag is text");
    }
}

#[test]
fn the_prompt_may_tell_that_there_is_no_reasoning() {
    for format in [QWEN, R1] {
        let (mut constraint, id) = begin(&choice(&["yes"]), format, "<think>\n\n</think>\n\n");
        assert_eq!(allowed(&mut constraint), [id("y")]);
    }
}

#[test]
fn whitespace_before_the_tag_is_the_structures() {
    let (mut constraint, id) = begin(&Structure::Regex(r"\n*a".to_owned()), QWEN, "assistant\n");
    constraint.accept(id("\n")).unwrap();
    assert!(allowed(&mut constraint).contains(&id("<think>")));
    constraint.accept(id("<think>")).unwrap();
    constraint.accept(id("</think>")).unwrap();
    constraint.accept(id("a")).unwrap();
    assert!(constraint.is_finished());
}

#[test]
fn line_breaks_after_reasoning_come_to_an_end_and_are_no_answer() {
    let (mut constraint, id) = begin(&choice(&["\n\nyes", "no"]), R1, "<think>\n");
    constraint.accept(id("</think>")).unwrap();
    for _ in 0..before::MAX_LINE_BREAKS {
        constraint.accept(id("\n")).unwrap();
    }
    assert_eq!(allowed(&mut constraint), [id("n")]);

    let tokenizer = tagged(false);
    let compiler = GrammarCompiler::new(&tokenizer, tokenizer.vocab_size(), &[EOS]).unwrap();
    let structure = choice(&["\n\nyes", "\nno"]);
    assert!(compiler.compile_after_reasoning(&structure, R1, "<think>\n\n</think>\n").is_ok());
    let error = compiler.compile_after_reasoning(&structure, R1, "<think>\n").unwrap_err();
    assert!(error.to_string().contains("begin with line breaks"), "{error}");
}

/// Whether a structure accepts a text, by a walk over its bytes without reasoning.
fn accepts_text(structure: &Structure, text: &str) -> bool {
    let vocabulary = &vocabularies()[0];
    let bytes = TokenBytes::new(&vocabulary.0);
    let id = |byte: u8| (0..256).find(|id| bytes.of(*id) == [byte]).unwrap();
    let mut constraint = compiler(vocabulary).compile(structure).unwrap();
    text.bytes().all(|byte| constraint.accept(id(byte)).is_ok()) && constraint.accept(EOS).is_ok()
}

fn structures() -> Vec<Structure> {
    let tool = Tool {
        name: "f".to_owned(),
        parameters: json!({"type": "object", "maxProperties": 1,
        "additionalProperties": {"type": "null"}}),
        strict: true,
    };
    let (tokenizer, choice_of_tool) = (&vocabularies()[0].0, ToolChoice::Required);
    let call = ToolFormat::Hermes.structure(&[tool], &choice_of_tool, false, tokenizer);
    vec![
        choice(&["<think>", "<b>", "<thin", "\n<t", "</think>", "yes", "\n\nno"]),
        Structure::Regex("[\\s\u{3000}<]{0,2}[a-c<]{1,3}".to_owned()),
        Structure::Regex("(<think>|</think>|\\n){0,3}x?".to_owned()),
        Structure::JsonObject,
        Structure::JsonSchema(json!({"enum": ["a\nb", "é<think>", 12, null]})),
        call.unwrap().unwrap(),
    ]
}

/// Walks at random, more often than not by parts of tags; after some steps to the end.
fn walk_by_tags(mut constraint: Constraint, tokenizer: &Tokenizer, choices: &[u16]) -> Vec<u32> {
    let bytes = TokenBytes::new(tokenizer);
    let size = u32::try_from(tokenizer.vocab_size()).unwrap();
    let is_tag = |id: &u32| {
        let text = bytes.of(*id);
        !text.is_empty() && text.iter().all(|byte| b"</think>\n".contains(byte))
    };
    let tags: Vec<u32> = (0..size).filter(is_tag).collect();
    let id = |text: &[u8]| (0..size).find(|id| bytes.of(*id) == text);
    let closers: Vec<u32> = ["\"", "}", "]", ")", "n", "u", "l", ",", ":", "a"]
        .into_iter()
        .filter_map(|text| id(text.as_bytes()))
        .collect();
    let mut ids = Vec::new();
    for step in 0..4000 {
        let allowed = allowed(&mut constraint);
        let choice = usize::from(choices[step % choices.len()]);
        let tags: Vec<u32> = tags.iter().copied().filter(|id| allowed.contains(id)).collect();
        let closer = match &constraint.before {
            Some(Before { stage: Stage::Reasoning(place), .. }) => id(&[match *place {
                Place::Opening(matched) => OPEN.as_bytes()[matched],
                Place::Closing(matched) => CLOSE.as_bytes()[matched],
                Place::Character(row) => before::CHARACTER[row].0,
                Place::Reasoning | Place::Closed => b'<',
            }]),
            _ => closers.iter().copied().find(|id| allowed.contains(id)),
        };
        let token = match closer {
            _ if step > 40 && allowed.contains(&constraint.eos_ids[0]) => constraint.eos_ids[0],
            Some(closer) if step > 40 => closer,
            _ if choice % 3 > 0 && !tags.is_empty() => tags[choice / 3 % tags.len()],
            _ => allowed[choice % allowed.len()],
        };
        constraint.accept(token).unwrap();
        if constraint.is_finished() && token == constraint.eos_ids[0] {
            return ids;
        }
        ids.push(token);
    }
    panic!("no end: {:?}", tokenizer.decode(&ids, false));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever is picked under the masks, what the parser takes for the answer is as it must be.
    #[test]
    fn the_answer_after_reasoning_is_by_its_structure(
        choices in prop::collection::vec(any::<u16>(), 41),
        vocabulary in 0..3_usize,
        (format, prompt) in prop::sample::select(vec![
            (QWEN, "assistant\n"), (QWEN, "<think>\n\n</think>\n\n"), (QWEN, "<think>\n"),
            (R1, "<think>\n"), (R1, "Assistant:"),
        ]),
    ) {
        let (tokenizer, eos) = match vocabulary {
            2 => (tiny::tokenizer(&tiny::byte_fallback()), 2),
            special => (tagged(special == 1), EOS),
        };
        let compiler = GrammarCompiler::new(&tokenizer, tokenizer.vocab_size(), &[eos]).unwrap();
        for structure in structures() {
            let constraint = compiler.compile_after_reasoning(&structure, format, prompt).unwrap();
            let ids = walk_by_tags(constraint, &tokenizer, &choices);
            // As a server decodes it: tags that are special tokens are not skipped.
            let before = tokenizer.encode("a", false).unwrap();
            let mut stream = tokenizer.stream(false).after(&before).unwrap();
            let mut text: String = ids.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
            text += &stream.finish().unwrap().unwrap_or_default();
            let mut parser = ReasoningParser::new(format, prompt);
            let mut events = parser.push(&text);
            events.extend(parser.finish());
            let answer: String = events
                .iter()
                .filter_map(|event| match event {
                    ReasoningEvent::Text(text) => Some(text.as_str()),
                    ReasoningEvent::Reasoning(_) => None,
                })
                .collect();
            prop_assert!(accepts_text(&structure, &answer), "{:?} of {:?}", answer, text);
        }
    }
}
