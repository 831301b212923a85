//! Training runs of adapters, and what they say of dropout.

use std::fs;

use crate::{
    accepted, brolly, file, refused,
    trained::{data, losses, run},
};

const LORA: &str = "\n[lora]\nrank = 4\nalpha = 8\ntargets = [\"q_proj\", \"v_proj\"]\n";

/// A run's configuration, whose rate is the same whatever its length.
fn adapted(name: &str, steps: u64) -> (String, String, std::path::PathBuf) {
    let (config, dir) = run(name, steps, 2);
    let text = fs::read_to_string(config).unwrap().replace("schedule = \"cosine\"\n", "");
    let text = text + LORA;
    (file(&format!("{name}.toml"), text.as_bytes()), text, dir)
}

#[test]
fn adapters_go_on_with_the_same_bits_and_are_written_beside_a_merged_model() {
    let (config, _, whole) = adapted("lora-whole", 6);
    accepted(&["train", &config]);
    let (config, text, parted) = adapted("lora-parted", 3);
    accepted(&["train", &config]);
    let text = text.replace("\nsteps = 3\n", "\nsteps = 6\n");
    let other = file("lora-other.toml", text.replace("rank = 4", "rank = 8").as_bytes());
    let said = refused(&["train", &other, "--resume"], 1);
    assert!(said.contains("is of a run with another"), "{said}");
    accepted(&["train", &file("lora-longer.toml", text.as_bytes()), "--resume"]);
    let want = losses(&whole);
    assert_eq!(losses(&parted), want);
    let numbers: Vec<f64> = want.iter().map(|loss| loss.parse().unwrap()).collect();
    assert!(numbers[5] < numbers[0], "{numbers:?}");
    for name in ["final/adapter_model.safetensors", "merged/model.safetensors"] {
        let [a, b] = [&whole, &parted].map(|dir| fs::read(dir.join("ckpt").join(name)).unwrap());
        assert!(a == b, "{name}");
    }
    assert!(whole.join("ckpt/final/adapter_config.json").is_file());
    let merged = whole.join("ckpt/merged");
    accepted(&["score", merged.to_str().unwrap(), "--tokens", "1,2,3", "--json"]);
}

#[test]
fn targets_that_name_nothing_are_an_error_of_the_configuration() {
    let (_, text, _) = adapted("lora-wrong", 3);
    let wrong = text.replace("q_proj", "qproj").replace("v_proj", "w_proj");
    let said = refused(&["train", &file("lora-wrong.toml", wrong.as_bytes())], 2);
    for name in ["qproj", "w_proj", "gate_proj"] {
        assert!(said.contains(name), "{said}");
    }
}

#[test]
fn dropout_that_a_checkpoint_asks_for_is_told() {
    let (config, _) = run("dropout-told", 3, 1);
    let text = fs::read_to_string(config).unwrap();
    let text = text.replace("llama-gqa3", "gpt2-gelu-new");
    assert!(text.contains(&data("families/gpt2-gelu-new")));
    let said = |text: &str| {
        let config = file("dropout-told.toml", text.as_bytes());
        let out = brolly(&["train", &config, "--dry-run"]).output().unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.success(), "{said}");
        said
    };
    let told = "config.json asks for dropout (attn_pdrop 0.1, embd_pdrop 0.1, resid_pdrop 0.1)";
    assert!(said(&text).contains(told), "{}", said(&text));
    assert!(!said(&format!("dropout = 0.0\n{text}")).contains("dropout"));
}
