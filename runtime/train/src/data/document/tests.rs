//! Records as tokens of the little model.

use serde_json::json;

use super::*;
use crate::data::testing::stories;

const BOS: u32 = 0;
const EOS: u32 = 1;

fn line(text: &str) -> Record {
    Record::Line { number: 7, bytes: text.as_bytes().to_vec() }
}

fn encode(record: &Record) -> Encoded {
    Encoder::new(&stories(), Format::Text, "text").unwrap().encode(record)
}

fn ids(text: &str) -> Vec<u32> {
    stories().tokenizer().unwrap().unwrap().encode(text, false).unwrap()
}

/// Ids and whether the last alone ends the document.
fn document(encoded: &Encoded) -> Vec<u32> {
    let Encoded::Tokens(tokens) = encoded else { panic!("{encoded:?}") };
    assert!(tokens.iter().rposition(|t| t.is_last()) == Some(tokens.len() - 1));
    assert!(tokens.iter().filter(|t| t.is_last()).count() == 1);
    tokens.iter().map(|token| token.id()).collect()
}

#[test]
fn texts_stand_between_the_model_s_tokens() {
    let wanted = [&[BOS][..], &ids("Once upon"), &[EOS]].concat();
    assert_eq!(document(&encode(&line(r#"{"id": 3, "text": "Once upon"}"#))), wanted);
    let piece = |text: &str, is_first, is_last| {
        let text = text.to_owned();
        encode(&Record::Piece { number: 1, text, is_first, is_last })
    };
    assert_eq!(document(&piece("Once upon", true, true)), wanted);
    let parts = [piece("Once", true, false), piece(" upon", false, false), piece("", false, true)];
    let parts = parts.iter().flat_map(|part| {
        let Encoded::Tokens(tokens) = part else { panic!("{part:?}") };
        tokens.clone()
    });
    assert_eq!(document(&Encoded::Tokens(parts.collect())), wanted);
    assert_eq!(encode(&line(r#"{"text": ""}"#)), Encoded::Nothing);
}

#[test]
fn an_end_that_the_tokenizer_adds_is_not_doubled() {
    let mut bundle = stories();
    (bundle.add_bos_token, bundle.add_eos_token) = (Some(false), Some(true));
    let encoder = Encoder::new(&bundle, Format::Text, "text").unwrap();
    let wanted = [&ids("A")[..], &[EOS]].concat();
    assert_eq!(document(&encoder.encode(&line(r#"{"text": "A"}"#))), wanted);
}

#[test]
fn lines_that_cannot_be_used_say_why() {
    for (text, why) in [
        ("{\"text\": \"a\"", "is not JSON: EOF while parsing an object at column 12"),
        ("[1]", "is a list, and an object is wanted"),
        ("{\"text\": 3}", "has in `text` a number, and a text is wanted"),
        ("{\"text\": null}", "has in `text` null, and a text is wanted"),
    ] {
        assert_eq!(encode(&line(text)), Encoded::Bad { number: 7, reason: why.to_owned() });
    }
    let bytes = b"{\"text\": \"\xff\"}".to_vec();
    let reason = "is not UTF-8 from byte 10 on".to_owned();
    let bad = encode(&Record::Line { number: 7, bytes });
    assert_eq!(bad, Encoded::Bad { number: 7, reason });
    let fields = vec!["content".to_owned(), "id".to_owned()];
    let lacking = encode(&line(r#"{"content": "a", "id": 1}"#));
    assert_eq!(lacking, Encoded::NoField { number: 7, fields });
}

#[test]
fn conversations_are_learned_where_the_assistant_speaks() {
    let mut bundle = stories();
    let template = "{% for m in messages %}{{ '<s>' + m.role + ':' + m.content + '</s>\\n' }}\
                    {% endfor %}{% if add_generation_prompt %}{{ '<s>assistant:' }}{% endif %}";
    bundle.chat_templates.insert("default".to_owned(), template.to_owned());
    let encoder = Encoder::new(&bundle, Format::Chat, "messages").unwrap();
    let record = json!({"messages": [
        {"role": "user", "content": "Who is there?"},
        {"role": "assistant", "content": "The king."},
        {"role": "user", "content": "And"},
        {"role": "assistant", "content": "é😀"},
    ]});
    let Encoded::Tokens(tokens) = encoder.encode(&line(&record.to_string())) else { panic!() };
    let tokenizer = bundle.tokenizer().unwrap().unwrap();
    let text = |learned: bool| {
        let ids = tokens.iter().filter(|t| t.is_learned() == learned).map(|t| t.id());
        tokenizer.decode(&ids.collect::<Vec<_>>(), false).unwrap()
    };
    assert_eq!(text(true), "The king.</s>é😀</s>");
    let rest = "<s>user:Who is there?</s>\n<s>assistant:\n<s>user:And</s>\n<s>assistant:\n";
    assert_eq!(text(false), rest);
    assert!(tokens.last().unwrap().is_last() && !tokens[0].is_last());
}

#[test]
fn what_the_model_lacks_is_named() {
    let refused = |bundle: &TextBundle, format| {
        let encoder = Encoder::new(bundle, format, "text");
        encoder.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let mut bundle = stories();
    bundle.chat_templates.clear();
    assert!(refused(&bundle, Format::Chat).contains("has no chat template"));
    bundle.special_tokens.by_role.remove("eos_token");
    bundle.generation.eos_token_ids.clear();
    assert!(refused(&bundle, Format::Text).contains("names no end-of-sequence token"));
    bundle.tokenizer_json = None;
    assert!(refused(&bundle, Format::Text).contains("tokenizer.json"));
}
