//! Training runs: what they write, and that ends of every kind lose nothing.

mod dropped;
mod killed;
mod planned;
mod ranks;
mod sampled;
mod stages;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{DIR, accepted, file, refused};

pub(crate) fn data(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data");
    root.join(name).canonicalize().unwrap().to_str().unwrap().to_owned()
}

/// A run of a tiny model over token rows; returns its configuration's file and its folder.
pub(crate) fn run(name: &str, steps: u64, every: u64) -> (String, PathBuf) {
    let dir = DIR.join(name);
    let (model, rows) = (data("families/llama-gqa3"), data("training/documents.npy"));
    let shown = dir.to_str().unwrap();
    let text = format!(
        r#"
model = "{model}"
[data]
train = "{rows}"
seq_len = 33
micro_batch = 4
[optimizer]
lr = 3e-3
schedule = "cosine"
warmup_steps = 3
clip_norm = 1.0
[train]
steps = {steps}
grad_accum = 2
[checkpoint]
dir = "{shown}/ckpt"
every = {every}
[log]
jsonl = "{shown}/metrics.jsonl"
tensorboard = "{shown}/runs"
"#
    );
    (file(&format!("{name}.toml"), text.as_bytes()), dir)
}

/// What was written of each step, the last line of a step counting. Steps must follow each other,
/// but for those that are run again.
fn lines(dir: &Path) -> Vec<Value> {
    let mut lines: Vec<Value> = Vec::new();
    for text in fs::read_to_string(dir.join("metrics.jsonl")).unwrap().lines() {
        let line: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
        if line.get("loss").is_none() {
            continue;
        }
        let step = usize::try_from(line["step"].as_u64().unwrap()).unwrap();
        assert!((1..=lines.len() + 1).contains(&step), "step {step} after {}", lines.len());
        lines.truncate(step - 1);
        lines.push(line);
    }
    lines
}

/// Of each step the loss that was written last, as text.
pub(crate) fn losses(dir: &Path) -> Vec<String> {
    lines(dir).iter().map(|line| line["loss"].to_string()).collect()
}

/// Tales for the small language model.
fn tales(name: &str) -> String {
    let tale = "Once upon a time there was a king who had two sons. The eldest went into the wood.";
    let lines = (0..20).map(|i| format!("{{\"text\": \"{i}. {tale}\"}}\n"));
    file(name, lines.collect::<String>().as_bytes())
}

fn model(dir: &Path) -> Vec<u8> {
    fs::read(dir.join("ckpt/final/model.safetensors")).unwrap()
}

#[test]
fn what_a_configuration_cannot_ask_for_is_told_at_once() {
    let (config, _) = run("train-wrong", 3, 1);
    let text = fs::read_to_string(&config).unwrap();
    let wrong = text.replace("grad_accum", "grad_acum").replace("lr = 3e-3", "lr = -1");
    let said = refused(&["train", &file("wrong.toml", wrong.as_bytes())], 2);
    assert!(said.contains("grad_acum") && said.contains("optimizer.lr"), "{said}");
    let mesh = format!("{text}\n[mesh]\ndata = 2\n");
    let said = refused(&["train", &file("mesh.toml", mesh.as_bytes())], 2);
    assert!(said.contains("mesh"), "{said}");
    let missing = text.replace("documents.npy", "nothing.npy");
    let said = refused(&["train", &file("missing.toml", missing.as_bytes())], 1);
    assert!(said.contains("nothing.npy"), "{said}");
    refused(&["train", "/nowhere/run.toml"], 1);
}

#[test]
fn narrow_types_and_every_rule_train_and_go_on_with_the_same_bits() {
    for (dtype, rule) in [("bf16", "muon"), ("f16", "adafactor")] {
        let of = |name: &str, steps: u64| {
            let (config, dir) = run(&format!("train-{dtype}-{name}"), steps, 3);
            let text = fs::read_to_string(&config).unwrap();
            let text = text.replace("schedule = \"cosine\"", &format!("name = \"{rule}\""));
            let text = text.replace("grad_accum", &format!("dtype = \"{dtype}\"\ngrad_accum"));
            (file(&format!("train-{dtype}-{name}.toml"), text.as_bytes()), text, dir)
        };
        let (config, _, whole) = of("whole", 6);
        accepted(&["train", &config]);
        let (config, text, parted) = of("parted", 3);
        accepted(&["train", &config]);
        let text = text.replace("\nsteps = 3\n", "\nsteps = 6\n");
        let config = file(&format!("train-{dtype}-longer.toml"), text.as_bytes());
        accepted(&["train", &config, "--resume"]);
        let (want, got) = (losses(&whole), losses(&parted));
        assert_eq!(got, want, "{dtype}, {rule}");
        let numbers: Vec<f64> = want.iter().map(|loss| loss.parse().unwrap()).collect();
        assert!(numbers[5] < numbers[0], "{dtype}, {rule}: {numbers:?}");
        assert!(model(&parted) == model(&whole), "{dtype}, {rule}");
        let lines = fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
        assert_eq!(lines.contains("\"loss_scale\":65536.0"), dtype == "f16", "{lines}");
    }
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name() {
    let (config, dir) = run("train-nan", 3, 1);
    let folder = dir.join("model");
    fs::create_dir_all(&folder).unwrap();
    for entry in fs::read_dir(data("families/llama-gqa3")).unwrap().flatten() {
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let (path, bad) = (folder.join("model.safetensors"), "model.layers.1.mlp.up_proj.weight");
    let mut bytes = fs::read(&path).unwrap();
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let end = usize::try_from(header[bad]["data_offsets"][1].as_u64().unwrap()).unwrap();
    // The last byte of a float has its sign and most of its exponent.
    bytes[8 + length + end - 2..][..2].copy_from_slice(&[0xff, 0xff]);
    fs::write(&path, bytes).unwrap();
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace(&data("families/llama-gqa3"), folder.to_str().unwrap());
    let said = refused(&["train", &file("train-nan.toml", text.as_bytes())], 1);
    assert!(said.contains(&format!("`{bad}` has values that are not finite")), "{said}");
    assert!(!dir.join("ckpt/final").exists());
}
