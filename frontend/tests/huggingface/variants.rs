//! Folders that say the same thing in other ways, and options that change what is built.

use brolly_frontend::{ImportOptions, Imported};
use ir::{DType, ModelKind, Module, Tensor, Weights};
use serde_json::json;

use crate::support::{Folder, run};

const PROMPT: [i64; 7] = [3, 14, 15, 92, 65, 35, 8];

fn options() -> ImportOptions {
    ImportOptions { max_seq_len: Some(64), ..ImportOptions::default() }
}

fn import(folder: &Folder) -> Imported {
    folder.import(&options()).unwrap_or_else(|e| panic!("{e:#?}"))
}

fn outputs(imported: &Imported) -> Vec<Tensor> {
    run(imported, &[PROMPT.to_vec()])
}

/// How often each function is called, in order of definition.
fn calls(module: &Module) -> Vec<(String, usize)> {
    let entry = module.function(&module.entries[0]).unwrap();
    let called = |name: &str| {
        let callee = |n: &ir::NodeId| match entry.node(*n).attrs.get("callee") {
            Some(ir::Attr::Str(callee)) => &**callee == name,
            _ => false,
        };
        entry.node_ids().iter().filter(|n| callee(n)).count()
    };
    let functions = module.functions.keys().filter(|f| !module.entries.contains(*f));
    functions.map(|f| (f.to_string(), called(f))).collect()
}

#[test]
fn a_layer_is_one_function_called_for_each() {
    let imported = import(&Folder::copy("layers", "llama-mqa-bias"));
    assert_eq!(calls(&imported.module), [("layer".into(), 3)]);
    let info = &imported.info;
    assert_eq!((info.architecture.as_str(), info.kind), ("LlamaForCausalLM", ModelKind::Decoder));
    assert_eq!((info.vocab_size, info.hidden_size, info.max_seq_len), (97, 40, 64));
    let stored: usize =
        Folder::copy("layers-count", "llama-mqa-bias").tensors().iter().map(|(_, t)| t.len()).sum();
    assert_eq!(info.parameters, stored as u64);
    let hi = |name: &str| imported.module.symbols[name].hi;
    assert_eq!([hi("T"), hi("S"), hi("R")], [512, 64, 64]);
}

#[test]
fn windows_tell_kinds_of_layers_apart_unless_nothing_is_longer() {
    let folder = Folder::copy("windows", "qwen2-mixed-window");
    let kinds = |max: u64| {
        let options = ImportOptions { max_seq_len: Some(max), ..options() };
        calls(&folder.import(&options).unwrap().module)
    };
    assert_eq!(kinds(21), [("layer_full".into(), 1), ("layer_window".into(), 2)]);
    assert_eq!(kinds(20), [("layer".into(), 3)]);
}

#[test]
fn layers_that_are_scaled_or_stored_differently_are_kinds_of_their_own() {
    let numbered = |n: usize| (0..n).map(|i| (format!("layer_{i}"), 1)).collect::<Vec<_>>();
    let folder = Folder::copy("scaled", "gpt2-layer-scale");
    assert_eq!(calls(&import(&folder).module), numbered(3));

    let folder = Folder::copy("mixed-dtype", "llama-bf16");
    let before = outputs(&import(&folder));
    let mut tensors = folder.tensors();
    for (name, tensor) in &mut tensors {
        if name.ends_with("layers.1.mlp.up_proj.weight") {
            *tensor = tensor.cast(DType::F32);
        }
    }
    folder.store(&tensors);
    let imported = import(&folder);
    assert_eq!(calls(&imported.module), numbered(2));
    assert_eq!(outputs(&imported), before);
}

#[test]
fn the_longest_sequence_defaults_to_what_the_model_was_made_for() {
    let folder = Folder::copy("max-seq-len", "llama-gqa3");
    let max = |folder: &Folder| folder.import(&ImportOptions::default()).unwrap().info.max_seq_len;
    assert_eq!(max(&folder), 512);
    folder.edit("config.json", |c| c["max_position_embeddings"] = json!(131_072));
    assert_eq!(max(&folder), 4096);
}

#[test]
fn a_config_without_architectures_is_known_by_its_type() {
    let folder = Folder::copy("model-type", "qwen3-gqa");
    let before = outputs(&import(&folder));
    folder.edit("config.json", |c| {
        c.as_object_mut().unwrap().remove("architectures");
    });
    let imported = import(&folder);
    assert_eq!(imported.info.architecture, "Qwen3ForCausalLM");
    assert_eq!(outputs(&imported), before);
}

#[test]
fn prefixes_of_tensor_names_may_be_missing() {
    for (test, name, prefix) in [
        ("no-model-prefix", "llama-gqa3", "model."),
        ("no-transformer-prefix", "gpt2-gelu-new", "transformer."),
        ("no-bert-prefix", "bert-masked-lm", "bert."),
    ] {
        let folder = Folder::copy(test, name);
        let before = outputs(&import(&folder));
        let mut tensors = folder.tensors();
        for (name, _) in &mut tensors {
            *name = name.strip_prefix(prefix).unwrap_or(name).to_owned();
        }
        folder.store(&tensors);
        assert_eq!(outputs(&import(&folder)), before, "{name}");
    }
}

#[test]
fn older_names_of_layer_norms_are_read() {
    let folder = Folder::copy("gamma-beta", "bert-gelu");
    let before = outputs(&import(&folder));
    let mut tensors = folder.tensors();
    for (name, _) in &mut tensors {
        *name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
        *name = name.replace("LayerNorm.bias", "LayerNorm.beta");
    }
    folder.store(&tensors);
    assert_eq!(outputs(&import(&folder)), before);
}

#[test]
fn a_tied_head_may_be_stored_twice_or_under_its_other_name_but_not_differ() {
    let folder = Folder::copy("tied", "llama-f16-published");
    let before = outputs(&import(&folder));
    let tensors = folder.tensors();
    let at = tensors.iter().position(|(n, _)| n == "model.embed_tokens.weight").unwrap();
    let embedding = tensors[at].1.clone();

    let mut twice = tensors.clone();
    twice.push(("lm_head.weight".into(), embedding.clone()));
    folder.store(&twice);
    assert_eq!(outputs(&import(&folder)), before);

    let mut renamed = tensors.clone();
    renamed[at].0 = "lm_head.weight".into();
    folder.store(&renamed);
    assert_eq!(outputs(&import(&folder)), before);

    let negated = Tensor::from_f64s(
        DType::F16,
        embedding.shape(),
        embedding.to_f64s().into_iter().map(|x| -x),
    );
    twice.last_mut().unwrap().1 = negated;
    folder.store(&twice);
    let negative: Vec<f32> = outputs(&import(&folder))[0].to_f32s().iter().map(|x| -x).collect();
    assert_eq!(negative, before[0].to_f32s());
}

/// Matrices rounded to bf16, vectors untouched: what a requested storage type means.
struct Rounded<'a>(&'a dyn Weights);

impl Weights for Rounded<'_> {
    fn load(&self, name: &str) -> Result<Tensor, String> {
        let tensor = self.0.load(name)?;
        let matrix = tensor.rank() >= 2;
        Ok(if matrix { tensor.cast(DType::Bf16).cast(tensor.dtype()) } else { tensor })
    }
}

#[test]
fn a_requested_storage_type_rounds_matrices_and_nothing_else() {
    for (test, name) in [
        ("dtype-llama", "llama-gqa3"),
        ("dtype-gpt2", "gpt2-gelu-new"),
        ("dtype-bert", "bert-gelu"),
    ] {
        let folder = Folder::copy(test, name);
        let plain = import(&folder);
        let exact = outputs(&plain);
        let rounded = Rounded(&*plain.weights);
        let expected = {
            let imported = Imported {
                module: plain.module.clone(),
                weights: Box::new(MapWeights::collect(&plain.module, &rounded)),
                info: plain.info.clone(),
            };
            outputs(&imported)
        };
        let bf16 = ImportOptions { dtype: Some(DType::Bf16), ..options() };
        let got = outputs(&folder.import(&bf16).unwrap());
        assert_eq!(got, expected, "{name}");
        assert_ne!(got, exact, "{name}");
        let f32 = ImportOptions { dtype: Some(DType::F32), ..options() };
        assert_eq!(outputs(&folder.import(&f32).unwrap()), exact, "{name}");
    }
}

/// Every weight of a module, loaded.
struct MapWeights(Vec<(String, Tensor)>);

impl MapWeights {
    fn collect(module: &Module, from: &dyn Weights) -> MapWeights {
        let load = |name: &str| (name.to_owned(), from.load(name).unwrap());
        MapWeights(module.weights.keys().map(|name| load(name)).collect())
    }
}

impl Weights for MapWeights {
    fn load(&self, name: &str) -> Result<Tensor, String> {
        let found = self.0.iter().find(|(n, _)| n == name);
        found.map(|(_, t)| t.clone()).ok_or_else(|| format!("no weight `{name}`"))
    }
}

#[test]
fn encoders_pool_as_sentence_transformers_says() {
    let folder = Folder::copy("pooling", "bert-gelu");
    let step = |kind: &str, path: &str| {
        json!({"idx": 0, "name": "0", "path": path,
            "type": format!("sentence_transformers.models.{kind}")})
    };
    let steps = |kinds: &[(&str, &str)]| {
        let steps: Vec<_> = kinds.iter().map(|(k, p)| step(k, p)).collect();
        folder.write("modules.json", json!(steps).to_string());
    };
    let pooling = |config: serde_json::Value| {
        folder.write("1_Pooling/config.json", config.to_string());
    };
    let normalised = outputs(&import(&folder));
    let states = normalised[1].clone();

    steps(&[("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]);
    pooling(json!({"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}));
    assert_eq!(outputs(&import(&folder)), normalised);

    steps(&[("Transformer", ""), ("Pooling", "1_Pooling")]);
    pooling(json!({"pooling_mode": "cls"}));
    assert_eq!(outputs(&import(&folder))[0], states.slice(0, 0, 1, 1));

    pooling(json!({"pooling_mode_mean_tokens": true}));
    let mean: Vec<f64> = (0..states.shape()[1])
        .map(|c| states.slice(1, c, 1, 1).to_f64s().iter().sum::<f64>() / PROMPT.len() as f64)
        .collect();
    for (got, want) in outputs(&import(&folder))[0].to_f64s().iter().zip(mean) {
        assert!((got - want).abs() < 1e-6);
    }

    folder.write("sentence_bert_config.json", json!({"max_seq_length": 50}).to_string());
    assert_eq!(import(&folder).info.max_seq_len, 50);
    folder.write("sentence_bert_config.json", json!({"max_seq_length": 500}).to_string());
    assert_eq!(import(&folder).info.max_seq_len, 64);

    pooling(json!({"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true}));
    folder.write("sentence_bert_config.json", json!({"max_seq_length": "all"}).to_string());
    let problems = folder.problems(&options());
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(problems[0].contains("asks for pooling by mean and max; supported are mean and cls"));
    assert!(problems[1].contains("`max_seq_length` is \"all\""));

    folder.write("sentence_bert_config.json", "{}");
    pooling(json!({"pooling_mode": "mean", "include_prompt": false}));
    import(&folder);
    folder.write("config_sentence_transformers.json", json!({"prompts": {"a": "b"}}).to_string());
    import(&folder);
    let prompts = json!({"prompts": {"query": "query: "}, "default_prompt_name": "query"});
    folder.write("config_sentence_transformers.json", prompts.to_string());
    assert!(folder.problems(&options())[0].contains("`include_prompt` is false, and texts"));
    pooling(json!({"pooling_mode": "mean"}));
    import(&folder);

    steps(&[("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")]);
    assert!(folder.problems(&options())[0].contains("modules Transformer, Pooling, Dense; supp"));
    steps(&[("Transformer", ""), ("Pooling", "../elsewhere")]);
    assert!(folder.problems(&options())[0].contains("which is not within the model's folder"));
}

#[test]
fn an_encoder_takes_a_longest_sequence_in_one_step() {
    let folder = Folder::copy("encoder-bounds", "bert-gelu");
    let options = ImportOptions { max_batch_tokens: 10, ..options() };
    let imported = folder.import(&options).unwrap();
    assert_eq!(imported.module.symbols["T"].hi, 64);
    assert_eq!(imported.info.kind, ModelKind::Encoder);
    assert!(!imported.module.symbols.contains_key("R"));
}
