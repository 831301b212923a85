//! Folders and options that must be refused, with every problem named at once.

use std::{os::unix::fs::symlink, path::Path};

use brolly_frontend::{Description, ImportOptions, architectures, import};
use ir::{DType, Tensor};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::Folder;

fn options() -> ImportOptions {
    ImportOptions::default()
}

/// Asserts that each fragment is in a problem of its own, and that there are no others.
#[track_caller]
fn assert_problems(problems: &[String], fragments: &[&str]) {
    for fragment in fragments {
        assert!(problems.iter().any(|p| p.contains(fragment)), "{fragment}\nin {problems:#?}");
    }
    assert_eq!(problems.len(), fragments.len(), "{problems:#?}");
}

#[test]
fn an_unsupported_architecture_is_named_with_those_that_are_supported() {
    let folder = Folder::copy("architecture", "llama-gqa3");
    folder.edit("config.json", |c| c["architectures"] = json!(["MambaForCausalLM"]));
    let problems = folder.problems(&options());
    assert_problems(&problems, &["field `architectures` has `MambaForCausalLM`, which is not"]);
    for name in architectures() {
        assert!(problems[0].contains(name), "{name}");
    }
    folder.edit("config.json", |c| {
        c.as_object_mut().unwrap().remove("architectures");
        c["model_type"] = json!("mamba");
    });
    assert_problems(&folder.problems(&options()), &["field `model_type` is `mamba`, which is not"]);
}

#[test]
fn problems_of_an_encoders_files_are_reported_together() {
    let folder = Folder::copy("encoder-files", "bert-gelu");
    folder.edit("config.json", |c| c["num_attention_heads"] = json!(0));
    folder.write("modules.json", "{}");
    let fragments = ["`num_attention_heads` is 0", "is no list of modules"];
    assert_problems(&folder.problems(&options()), &fragments);
}

#[test]
fn absurd_values_are_reported_all_at_once() {
    let folder = Folder::copy("absurd", "llama-gqa3");
    folder.edit("config.json", |c| {
        c["num_attention_heads"] = json!(0);
        c["num_hidden_layers"] = json!(1_000_000_000_000u64);
        c["hidden_size"] = json!(-54);
        c["vocab_size"] = json!("many");
        c["intermediate_size"] = json!(83.5);
        c["hidden_act"] = json!("swoosh");
        c["rms_norm_eps"] = json!(-1e-6);
        c["tie_word_embeddings"] = json!(1);
        c["rope_parameters"]["rope_type"] = json!("mrope");
        c["head_dim"] = json!(13);
        c["attention_bias"] = json!("no");
        c["quantization_config"] = json!({"quant_method": "gptq"});
    });
    let fields = [
        "`num_attention_heads` is 0, expected an integer from 1 to",
        "`num_hidden_layers` is 1000000000000, expected an integer from 1 to",
        "`hidden_size` is -54, expected",
        "`vocab_size` is \"many\", expected",
        "`intermediate_size` is 83.5, expected",
        "`hidden_act` is \"swoosh\", expected one of silu",
        "`rms_norm_eps` is -1e-6, expected",
        "`tie_word_embeddings` is 1, expected true or false",
        "`rope_parameters.rope_type` is \"mrope\", expected one of default",
        "`head_dim` is 13, but rotary embedding takes pairs",
        "`attention_bias` is \"no\", expected true or false",
        "`quantization_config` is set, but quantised checkpoints are not supported",
    ];
    assert_problems(&folder.problems(&options()), &fields);
}

#[test]
fn heads_must_divide() {
    let folder = Folder::copy("divide", "llama-gqa3");
    folder.edit("config.json", |c| c["num_key_value_heads"] = json!(4));
    let why = "`num_key_value_heads` is 4, which does not divide the 6 query heads";
    assert_problems(&folder.problems(&options()), &[why]);
    folder.edit("config.json", |c| {
        c["num_key_value_heads"] = json!(null);
        c["head_dim"] = json!(null);
        c["num_attention_heads"] = json!(7);
    });
    let why = "`num_attention_heads` is 7, which does not divide the hidden size 54";
    assert_problems(&folder.problems(&options()), &[why]);
}

#[test]
fn families_refuse_what_they_do_not_compute() {
    let of = |test: &str, name: &str, field: &str, value: Value| {
        let folder = Folder::copy(test, name);
        folder.edit("config.json", |c| c[field] = value);
        folder.problems(&options())
    };
    let windows = json!(["full_attention", "sliding_attention"]);
    let found = of("refuse-mistral", "mistral-window7", "layer_types", windows);
    assert_problems(&found, &["`layer_types` tells layers apart"]);
    let found = of("refuse-qwen", "qwen2-tied", "layer_types", json!(["full_attention"]));
    assert_problems(&found, &["`layer_types` is [\"full_attention\"], expected a list of 2 of"]);
    let sliding = json!(["sliding_attention", "sliding_attention"]);
    let found = of("refuse-qwen-window", "qwen2-tied", "layer_types", sliding);
    assert_problems(&found, &["`layer_types` has sliding_attention, but no sliding window"]);
    let found = of("refuse-gpt2", "gpt2-gelu-new", "add_cross_attention", json!(true));
    assert_problems(&found, &["`add_cross_attention` is true: cross attention"]);
    let relative = json!("relative_key");
    let found = of("refuse-bert", "bert-gelu", "position_embedding_type", relative);
    assert_problems(&found, &["`position_embedding_type` is \"relative_key\": other kinds"]);
}

#[test]
fn missing_misshapen_ill_typed_and_unexpected_tensors_are_reported_together() {
    let folder = Folder::copy("tensors", "llama-gqa3");
    let mut tensors = folder.tensors();
    let mut take = |name: &str| {
        let at = tensors.iter().position(|(n, _)| n == name).unwrap();
        tensors.remove(at)
    };
    let (_, norm) = take("model.norm.weight");
    let (up, _) = take("model.layers.1.mlp.up_proj.weight");
    let (gate, _) = take("model.layers.0.mlp.gate_proj.weight");
    take("lm_head.weight");
    tensors.push((up, norm.clone()));
    tensors.push((gate, Tensor::from_i64s(DType::I64, &[83, 54], 0..83 * 54)));
    tensors.push(("model.layers.2.mlp.up_proj.weight".into(), norm));
    folder.store(&tensors);
    let expected = [
        "model.safetensors: tensor `model.norm.weight` is missing, expected with shape [54]",
        "tensor `lm_head.weight` is missing, expected with shape [179, 54]",
        "tensor `model.layers.1.mlp.up_proj.weight` has shape [54], expected [83, 54] for \
         LlamaForCausalLM with 2 layers",
        "tensor `model.layers.0.mlp.gate_proj.weight` has element type i64, expected floating",
        "tensor `model.layers.2.mlp.up_proj.weight` is not part of LlamaForCausalLM with 2 layers",
    ];
    assert_problems(&folder.problems(&options()), &expected);
}

#[test]
fn many_missing_tensors_are_counted() {
    let folder = Folder::copy("many-missing", "llama-gqa3");
    folder.edit("config.json", |c| c["num_hidden_layers"] = json!(1000));
    let problems = folder.problems(&options());
    assert_eq!(problems.len(), 101);
    assert_eq!(problems[100], "model.safetensors: has 8882 more missing tensors");
}

#[test]
fn config_and_checkpoint_are_judged_in_one_report() {
    let folder = Folder::copy("both", "llama-gqa3");
    folder.edit("config.json", |c| c["num_attention_heads"] = json!(0));
    folder.write("model.safetensors", [9u8; 40]);
    let options = ImportOptions { max_batch_tokens: 0, dtype: Some(DType::I8), ..options() };
    let expected = [
        "config.json: field `num_attention_heads` is 0",
        "model.safetensors: says that its header has 651061555542690057 bytes",
        "option `max_batch_tokens` is 0, expected an integer from 1 to",
        "option `dtype` is i8, expected f32, bf16 or f16",
    ];
    assert_problems(&folder.problems(&options), &expected);
}

#[test]
fn what_is_no_model_folder_says_what_is_missing() {
    let folder = Folder::copy("empty", "llama-gqa3");
    std::fs::remove_file(folder.0.join("config.json")).unwrap();
    std::fs::remove_file(folder.0.join("model.safetensors")).unwrap();
    let expected = [
        "config.json: cannot be read: No such file",
        "holds neither model.safetensors nor model.safetensors.index.json",
    ];
    assert_problems(&folder.problems(&options()), &expected);
    let of = |path: &Path| import(path, &options()).map(|_| ()).unwrap_err()[0].to_string();
    assert!(of(&folder.0.join("nowhere")).contains("cannot be read: No such file"));
    assert!(of(&folder.0.join("expect.json")).contains("is neither a model folder"));
}

#[test]
fn shards_must_agree_with_their_index() {
    let index = "model.safetensors.index.json";
    let folder = Folder::copy("index", "llama-sharded");
    let shard = |i: usize| format!("model-{i:05}-of-00004.safetensors");
    folder.edit(index, |v| {
        let map = v["weight_map"].as_object_mut().unwrap();
        map.remove("model.norm.weight");
        map.insert("model.ghost.weight".into(), json!(shard(1)));
        map.insert("model.number.weight".into(), json!(7));
        map.insert("model.gone.weight".into(), json!("gone.safetensors"));
    });
    let expected = [
        "tensor `model.norm.weight` is in the file, but model.safetensors.index.json does not",
        "tensor `model.ghost.weight` is listed by model.safetensors.index.json, but is not in",
        "tensor `model.number.weight` is not in a named file",
        "field `weight_map` names the file `gone.safetensors`, which cannot be read",
    ];
    assert_problems(&folder.problems(&options()), &expected);
    folder.write(index, "{\"weight_map\": [1]}");
    assert_problems(&folder.problems(&options()), &["field `weight_map` is missing or no object"]);
}

#[test]
fn weight_maps_stay_within_the_folder() {
    let folder = Folder::copy("leaving/inner", "llama-sharded");
    let first = "model-00001-of-00004.safetensors";
    let outside = folder.0.parent().unwrap().join("outside.safetensors");
    std::fs::rename(folder.0.join(first), &outside).unwrap();
    symlink(&outside, folder.0.join("link.safetensors")).unwrap();
    let absolute = outside.to_str().unwrap().to_owned();
    for (name, why) in [
        ("../outside.safetensors", "which is not within the model's folder"),
        (&absolute, "which is not within the model's folder"),
        ("link.safetensors", "a link to"),
        ("", "which is not within the model's folder"),
    ] {
        let index = "model.safetensors.index.json";
        folder.edit(index, |v| {
            for file in v["weight_map"].as_object_mut().unwrap().values_mut() {
                if [first, "../outside.safetensors", &absolute, "link.safetensors"]
                    .contains(&file.as_str().unwrap())
                {
                    *file = json!(name);
                }
            }
        });
        assert_problems(&folder.problems(&options()), &[why]);
    }
}

#[test]
fn bounds_that_do_not_suit_the_model_are_refused() {
    let folder = Folder::copy("bounds", "gpt2-published");
    let mut long = ImportOptions { max_seq_len: Some(105), ..options() };
    let why = "option `max_seq_len` is 105, but the model has 104 positions";
    assert_problems(&folder.problems(&long), &[why]);
    long.max_seq_len = Some(1 << 40);
    long.bounds.insert("batch".into(), ir::Bounds { lo: 1, hi: 2 });
    let expected = [
        "`max_seq_len` is 1099511627776, expected an integer from 1 to 2147483647",
        "`max_seq_len` is 1099511627776, but the model has 104 positions",
        "`bounds` has `batch`, which is no size of this model",
    ];
    assert_problems(&folder.problems(&long), &expected);
}

#[test]
fn tensors_that_fit_nowhere_are_refused_before_anything_is_allocated() {
    let folder = Folder::copy("oversized", "llama-gqa3");
    let most = i32::MAX.unsigned_abs().into();
    let options =
        ImportOptions { max_batch_tokens: most, logit_rows: most, max_seq_len: None, ..options() };
    // 2³¹ tokens of a tiny model still fit into an address space; of a wide one they do not.
    assert!(folder.import(&options).is_ok());
    let config = folder.0.join("config.json");
    folder.edit("config.json", |c| c["intermediate_size"] = json!(1 << 22));
    let text = std::fs::read(&config).unwrap();
    let described = Description::parse(&config, &text, &options).unwrap();
    let errors = described.module(DType::Bf16, &options).unwrap_err();
    assert!(errors[0].to_string().contains("bytes, more than the"), "{errors:?}");
}

/// Values that configs do not expect, and some that they do.
fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..9).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "silu",
            "yarn",
            "dynamic",
            "longrope",
            "LlamaForCausalLM",
            "full_attention",
            "sliding_attention",
        ])
        .prop_map(Value::from),
        prop::collection::vec(-1f64..4.0, 0..9).prop_map(Value::from),
        Just(json!(["BertModel"])),
        Just(json!(["sliding_attention", "full_attention"])),
        Just(json!({"rope_type": "longrope", "short_factor": [1], "long_factor": [2]})),
        Just(json!({"rope_type": "yarn", "factor": 3.0})),
        Just(json!({"a": {"b": []}})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Whatever is accepted builds, and what builds verifies.
    #[test]
    fn a_changed_config_is_refused_or_describes_a_sound_module(
        seed in 0..6usize,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any_value()), 1..4),
    ) {
        let seeds = ["llama-rope-llama3", "mistral-window7", "qwen2-mixed-window", "qwen3-gqa",
            "gpt2-layer-scale", "bert-gelu"];
        let file = crate::support::fixture(seeds[seed]).join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let fields = config.as_object_mut().unwrap();
        for extra in ["rope_scaling", "rope_theta", "layer_types", "sliding_window", "head_dim"] {
            fields.entry(extra).or_insert(Value::Null);
        }
        for (field, value) in edits {
            let at = field.index(fields.len());
            *fields.values_mut().nth(at).unwrap() = value;
        }
        // Layers cost time, not insight.
        for layers in ["num_hidden_layers", "n_layer"] {
            if fields.get(layers).and_then(Value::as_u64).is_some_and(|n| n > 8) {
                fields.insert(layers.into(), json!(8));
            }
        }
        let text = config.to_string();
        if let Ok(described) = Description::parse(&file, text.as_bytes(), &options())
            && let Ok((module, _)) = described.module(DType::Bf16, &options())
        {
            prop_assert_eq!(ir::verify(&module), Ok(()));
        }
    }

    #[test]
    fn a_damaged_config_never_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..9),
        keep in any::<prop::sample::Index>(),
    ) {
        let file = crate::support::fixture("llama-rope-llama3").join("config.json");
        let mut text = std::fs::read(&file).unwrap();
        for (at, byte) in edits {
            let n = text.len();
            text[at.index(n)] = byte;
        }
        if keep.index(3) == 0 {
            text.truncate(keep.index(text.len()));
        }
        let _ = Description::parse(&file, &text, &options());
    }
}
