//! Folders as models have them, and folders in which everything is wrong.

use std::{fs, path::PathBuf};

use serde_json::json;

use super::*;
use crate::tiny;

/// A folder of files that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let path = std::env::temp_dir().join(format!("brolly-text-{}-{name}", std::process::id()));
        for (file, text) in files {
            let file = path.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn load(&self) -> Result<TextBundle, Vec<TextError>> {
        TextBundle::load(&self.0)
    }

    /// Each problem, without the folder's path.
    fn problems(&self) -> Vec<String> {
        let path = format!("{}/", self.0.display());
        self.load().unwrap_err().iter().map(|error| error.to_string().replace(&path, "")).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_chat_model() {
    let folder = Folder::new("chat", &[
        ("tokenizer.json", &tiny::byte_level().to_string()),
        (
            "tokenizer_config.json",
            &json!({
                "bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "pad_token": null,
                "add_bos_token": false, "add_eos_token": true, "model_max_length": 1e30,
                "additional_special_tokens": ["<a>", {"content": "<b>"}],
                "chat_template": [{"name": "default", "template": "old"},
                    {"name": "tool_use", "template": "tools {{ bos_token }}"}],
            })
            .to_string(),
        ),
        ("special_tokens_map.json", r#"{"eos_token": "other", "unk_token": "<s>"}"#),
        ("chat_template.jinja", "new {{ eos_token }}"),
        ("additional_chat_templates/rag.jinja", "rag"),
        (
            "generation_config.json",
            r#"{"eos_token_id": [263, 5], "pad_token_id": -1, "do_sample": true, "temperature": 0.6,
                "top_k": 20, "top_p": 0.9, "stop_strings": "END", "transformers_version": "5.0"}"#,
        ),
        ("config.json", r#"{"eos_token_id": 1}"#),
    ]);
    let bundle = folder.load().unwrap();

    let tokenizer = bundle.tokenizer().unwrap().unwrap();
    assert_eq!(tokenizer.encode("hell", true).unwrap(), [258, 263]);
    assert_eq!(bundle.special_tokens.get("eos_token"), Some("</s>"));
    assert_eq!(bundle.special_tokens.get("unk_token"), Some("<s>"));
    assert_eq!(bundle.special_tokens.additional, ["<a>", "<b>"]);
    assert_eq!(bundle.model_max_length, None);

    let request = crate::ChatRequest {
        variables: bundle.special_tokens.variables(),
        ..crate::ChatRequest::default()
    };
    let text = |tools| bundle.chat_template(tools).unwrap().unwrap().render(&request).unwrap();
    assert_eq!((text(false).as_str(), text(true).as_str()), ("new </s>", "tools <s>"));
    assert_eq!(bundle.chat_templates["rag"], "rag");

    let generation = &bundle.generation;
    assert_eq!(bundle.eos_ids(Some(&tokenizer)), [263, 5]);
    assert_eq!(
        (generation.temperature, generation.top_k, generation.top_p),
        (Some(0.6), Some(20), Some(0.9))
    );
    assert_eq!(generation.do_sample, Some(true));
    assert_eq!(generation.stop_strings, ["END"]);

    let json = serde_json::to_string(&bundle).unwrap();
    assert_eq!(serde_json::from_str::<TextBundle>(&json).unwrap(), bundle);
    assert_eq!(serde_json::to_string(&folder.load().unwrap()).unwrap(), json);
}

#[test]
fn a_sentence_transformer() {
    let folder = Folder::new(
        "sentence",
        &[
            ("tokenizer.json", &tiny::word_piece().to_string()),
            ("modules.json", "[]"),
            ("sentence_bert_config.json", r#"{"max_seq_length": 256, "do_lower_case": true}"#),
            (
                "config_sentence_transformers.json",
                r#"{"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query"}"#,
            ),
        ],
    );
    let embedding = folder.load().unwrap().embedding.unwrap();
    assert!(embedding.lowercase);
    assert_eq!(embedding.prompts["query"], "query: ");
    assert_eq!(embedding.default_prompt.as_deref(), Some("query"));
}

#[test]
fn an_empty_folder_is_no_problem() {
    let bundle = Folder::new("empty", &[]).load().unwrap();
    assert_eq!(bundle, TextBundle::default());
    assert!(bundle.tokenizer().unwrap().is_none() && bundle.chat_template(true).unwrap().is_none());
}

#[test]
fn token_ids_fall_back_to_the_models_config_then_to_the_tokenizer() {
    let folder = Folder::new(
        "eos",
        &[
            ("config.json", r#"{"eos_token_id": 7, "hidden_size": 64}"#),
            ("tokenizer.json", &tiny::byte_level().to_string()),
            ("special_tokens_map.json", r#"{"eos_token": "</s>"}"#),
        ],
    );
    let mut bundle = folder.load().unwrap();
    assert_eq!(bundle.eos_ids(None), [7]);
    bundle.generation = GenerationDefaults::default();
    assert_eq!(bundle.eos_ids(bundle.tokenizer().unwrap().as_ref()), [263]);
    assert_eq!(bundle.eos_ids(None), [0; 0]);
}

#[test]
fn every_problem_is_reported() {
    let folder = Folder::new(
        "bad",
        &[
            ("tokenizer.json", r#"{"model": {"type": "BPE""#),
            (
                "tokenizer_config.json",
                r#"{"bos_token": 3, "add_bos_token": "yes", "model_max_length": -1, "chat_template": 5}"#,
            ),
            ("special_tokens_map.json", "[]"),
            ("chat_template.jinja", "{% if %}"),
            (
                "generation_config.json",
                r#"{"eos_token_id": [1, -2], "temperature": "hot", "top_p": 2, "top_k": -1}"#,
            ),
            ("sentence_bert_config.json", r#"{"do_lower_case": 0}"#),
            ("config_sentence_transformers.json", r#"{"prompts": {"a": 1}}"#),
        ],
    );
    let problems = folder.problems();
    let expected = [
        "tokenizer_config.json: `bos_token` should be a token, but is 3",
        "tokenizer_config.json: `add_bos_token` should be true or false, but is \"yes\"",
        "tokenizer_config.json: `model_max_length` should be a positive number, but is -1",
        "tokenizer_config.json: `chat_template` should be a template, or",
        "special_tokens_map.json: should hold a JSON object, but holds []",
        "tokenizer.json: is not a tokenizer that can be read: EOF",
        "chat template `default`: syntax error",
        "generation_config.json: `eos_token_id` should be a token id or a list of them, but is [1,-2]",
        "generation_config.json: `temperature` should be a number of at least 0, but is \"hot\"",
        "generation_config.json: `top_k` should be an integer of at least 0, but is -1",
        "generation_config.json: `top_p` should be a number from 0 to 1, but is 2",
        "sentence_bert_config.json: `do_lower_case` should be true or false, but is 0",
        "config_sentence_transformers.json: `prompts` should be an object of texts by name",
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, start) in problems.iter().zip(expected) {
        assert!(problem.starts_with(start), "{problem}\n{start}");
    }
}

#[test]
fn a_token_to_add_must_be_in_the_vocabulary() {
    let folder = Folder::new(
        "frame",
        &[
            ("tokenizer.json", &tiny::words().to_string()),
            ("tokenizer_config.json", r#"{"bos_token": "<s>", "add_bos_token": true}"#),
        ],
    );
    let problems = folder.problems();
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0]
            .starts_with("tokenizer_config.json: `bos_token` is \"<s>\", which is not a token")
    );
}
