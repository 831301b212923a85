//! Tokenizers of a few tokens for tests, one for each kind of decoder, as their `tokenizer.json`.

use serde_json::{Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use crate::Tokenizer;

/// Builds a tokenizer from JSON.
pub(crate) fn tokenizer(json: &Value) -> Tokenizer {
    Tokenizer::from_bytes("tokenizer.json", json.to_string().as_bytes()).unwrap()
}

/// GPT-2's kind: all 256 bytes, a few merges (among them three bytes of an emoji), an added token
/// in plain text and two special ones.
pub(crate) fn byte_level() -> Value {
    let mut alphabet: Vec<String> =
        ByteLevel::alphabet().into_iter().map(|c| c.to_string()).collect();
    alphabet.sort();
    let merges = [["h", "e"], ["l", "l"], ["he", "ll"], ["Ġ", "w"], ["ð", "Ł"], ["ðŁ", "ĺ"]];
    let tokens = alphabet.into_iter().chain(merges.map(|pair| pair.concat()));
    let vocab: serde_json::Map<String, Value> =
        tokens.enumerate().map(|(id, token)| (token, id.into())).collect();
    let size = vocab.len();
    json!({
        "version": "1.0",
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "!"},
        "added_tokens": [
            added(size, "<s>", true), added(size + 1, "</s>", true), added(size + 2, "née ", false)],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [special("<s>"), {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [size], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges}
    })
}

/// Llama 2's kind: SentencePiece BPE with byte fallback, its decoder a sequence that strips a
/// space.
pub(crate) fn byte_fallback() -> Value {
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let rest = ["▁", "a", "b", "▁a", "▁▁", "é", "�", "ab"].map(str::to_owned);
    let tokens = ["<unk>", "<s>", "</s>"].map(str::to_owned).into_iter().chain(bytes).chain(rest);
    let vocab: serde_json::Map<String, Value> =
        tokens.enumerate().map(|(id, token)| (token, id.into())).collect();
    json!({
        "added_tokens": [added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": vocab, "merges": [["▁", "a"], ["a", "b"], ["▁", "▁"]]}
    })
}

/// BERT's kind.
pub(crate) fn word_piece() -> Value {
    let tokens =
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "a", "##é", ".", "'", "s"];
    let vocab: serde_json::Map<String, Value> =
        (0..).zip(tokens).map(|(id, token): (u32, _)| (token.to_owned(), id.into())).collect();
    json!({
        "added_tokens": [added(0, "[PAD]", true), added(1, "[UNK]", true), added(2, "[CLS]", true),
            added(3, "[SEP]", true)],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": false, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [special("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]")],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab}
    })
}

/// T5's kind: Unigram, spaces written as `▁`.
pub(crate) fn metaspace() -> Value {
    let vocab =
        json!([["<unk>", 0.0], ["▁", -2.0], ["▁a", -1.0], ["b", -1.5], ["▁▁", -3.0], ["é", -4.0]]);
    json!({
        "added_tokens": [added(0, "<unk>", true)],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always",
            "split": true},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": false}
    })
}

/// The original BPE's kind: the end of a word is part of its last token.
pub(crate) fn word_end() -> Value {
    json!({
        "decoder": {"type": "BPEDecoder", "suffix": "</w>"},
        "model": {"type": "BPE", "end_of_word_suffix": "</w>", "merges": [],
            "vocab": {"a": 0, "b</w>": 1, "é": 2, "</w>": 3}}
    })
}

/// No decoder at all: tokens joined by spaces.
pub(crate) fn words() -> Value {
    json!({
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "a": 1, "é": 2}}
    })
}

/// Raw bytes behind another step, which no incremental UTF-8 decoder sees.
pub(crate) fn replaced_bytes() -> Value {
    let mut json = byte_level();
    json["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "née"}, "content": "geb."}, json["decoder"].take()]});
    json
}

/// All of the above.
pub(crate) fn all() -> Vec<Value> {
    let each = [byte_level, byte_fallback, word_piece, metaspace, word_end, words, replaced_bytes];
    each.iter().map(|make| make()).collect()
}

fn added(id: usize, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false})
}

fn special(token: &str) -> Value {
    json!({"SpecialToken": {"id": token, "type_id": 0}})
}
