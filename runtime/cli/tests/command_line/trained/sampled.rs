//! Texts from the weights of a run that is under way.

use super::*;
use crate::brolly;

const PROMPTS: [&str; 2] = ["Once upon a time", "The old king"];

/// A run of the small language model; returns its configuration's file and its folder.
fn tales_run(name: &str, dtype: &str, eval: &str) -> (String, PathBuf) {
    let dir = DIR.join(name);
    let (model, tales) = (data("stories"), tales("tales.jsonl"));
    let shown = dir.to_str().unwrap();
    let text = format!(
        r#"
model = "{model}"
[data]
train = "{tales}"
seq_len = 40
micro_batch = 2
[optimizer]
lr = 3e-3
[train]
steps = 2
dtype = "{dtype}"
[eval]
every = 1
{eval}
[checkpoint]
dir = "{shown}/ckpt"
final_dtype = "{dtype}"
[log]
jsonl = "{shown}/metrics.jsonl"
"#
    );
    (file(&format!("{name}.toml"), text.as_bytes()), dir)
}

/// The samples of a run, step by step.
fn samples(dir: &Path) -> Vec<Value> {
    let text = fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line.get("samples").is_some()).collect()
}

#[test]
fn samples_are_what_the_trained_model_generates() {
    for dtype in ["f32", "bf16"] {
        let eval = format!("prompts = {PROMPTS:?}\nmax_tokens = 14\ntemperature = 0");
        let (config, dir) = tales_run(&format!("train-samples-{dtype}"), dtype, &eval);
        let output = brolly(&["train", &config]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        let samples = samples(&dir);
        let steps: Vec<&Value> = samples.iter().map(|line| &line["step"]).collect();
        assert_eq!(steps, [1, 2]);
        assert_ne!(samples[0]["samples"], samples[1]["samples"], "the weights have moved");
        let folder = dir.join("ckpt/final");
        let folder = folder.to_str().unwrap();
        for (prompt, sample) in PROMPTS.iter().zip(samples[1]["samples"].as_array().unwrap()) {
            let flags = ["--prompt", prompt, "--max-tokens", "14", "--temperature", "0", "--json"];
            let generated = accepted(&[&["generate", folder][..], &flags].concat());
            let generated: Value = serde_json::from_str(&generated).unwrap();
            assert_eq!(sample["prompt"], *prompt);
            assert_eq!(sample["text"], generated["text"], "{dtype}: {prompt}");
            let text = sample["text"].as_str().unwrap().lines().next().unwrap_or_default();
            assert!(said.contains(&format!("{prompt}{}", text.trim_end())), "{said}");
        }
        // What the samples take was planned, and texts do not change what is trained.
        let plan: Value = serde_json::from_str(&accepted(&["plan", &config, "--json"])).unwrap();
        let planned = plan["ranks"][0]["predicted_peak_bytes"].as_u64().unwrap();
        let lines = lines(&dir);
        let peak = lines.iter().map(|line| line["peak_bytes"].as_u64().unwrap()).max().unwrap();
        assert!(peak <= planned, "{peak} of {planned}");
        let (config, plain) = tales_run(&format!("train-no-samples-{dtype}"), dtype, "data = \"\"");
        let text =
            fs::read_to_string(&config).unwrap().replace("[eval]\nevery = 1\ndata = \"\"", "");
        accepted(&["train", &file(&format!("no-samples-{dtype}.toml"), text.as_bytes())]);
        assert_eq!(losses(&dir), losses(&plain), "{dtype}");
        assert!(model(&dir) == model(&plain), "{dtype}");
    }
}

/// Ranks that hold weights in parts generate in step.
#[test]
fn samples_of_weights_in_parts_are_what_the_trained_model_generates() {
    let eval = format!("prompts = {PROMPTS:?}\nmax_tokens = 14\ntemperature = 0");
    for (name, mesh) in [("zero", "data = 2\nzero = 3"), ("tensor", "tensor = 2")] {
        let (config, dir) = tales_run(&format!("train-samples-{name}"), "f32", &eval);
        let text = format!("{}\n[mesh]\n{mesh}\n", fs::read_to_string(&config).unwrap());
        let config = file(&format!("train-samples-{name}.toml"), text.as_bytes());
        accepted(&["train", &config, "--ranks", "2"]);
        let samples = samples(&dir);
        assert_eq!(samples.len(), 2);
        let folder = dir.join("ckpt/final");
        for (prompt, sample) in PROMPTS.iter().zip(samples[1]["samples"].as_array().unwrap()) {
            let flags = ["--prompt", prompt, "--max-tokens", "14", "--temperature", "0", "--json"];
            let folder = folder.to_str().unwrap();
            let generated = accepted(&[&["generate", folder][..], &flags].concat());
            let generated: Value = serde_json::from_str(&generated).unwrap();
            assert_eq!(sample["text"], generated["text"], "{name}: {prompt}");
        }
    }
}

/// What is dropped in training is not in what is sampled.
#[test]
fn samples_have_no_dropout() {
    let eval = format!("prompts = {:?}\nmax_tokens = 14\ntemperature = 0", PROMPTS[0]);
    let (config, dir) = tales_run("train-samples-dropout", "f32", &eval);
    let text = fs::read_to_string(&config).unwrap();
    accepted(&[
        "train",
        &file("samples-dropout.toml", format!("dropout = 0.4\n{text}").as_bytes()),
    ]);
    let folder = dir.join("ckpt/final");
    let flags = ["--prompt", PROMPTS[0], "--max-tokens", "14", "--temperature", "0", "--json"];
    let generate = [&["generate", folder.to_str().unwrap()][..], &flags].concat();
    let generated: Value = serde_json::from_str(&accepted(&generate)).unwrap();
    assert_eq!(samples(&dir)[1]["samples"][0]["text"], generated["text"]);
}

#[test]
fn samples_differ_and_follow_from_the_seed() {
    let eval = format!("prompts = {:?}\nsamples = 3\nmax_tokens = 12", PROMPTS[0]);
    let of = |name: &str| {
        let (config, dir) = tales_run(name, "f32", &eval);
        accepted(&["train", &config]);
        samples(&dir)
    };
    let first = of("train-samples-a");
    let texts = first[0]["samples"].as_array().unwrap();
    assert_eq!(texts.len(), 3);
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
    assert_eq!(of("train-samples-b"), first);

    let long = "and so on ".repeat(40);
    let (config, _) = tales_run("train-samples-c", "f32", &format!("prompts = {long:?}"));
    let said = refused(&["train", &config], 1);
    assert!(said.contains("eval.prompts") && said.contains("data.seq_len"), "{said}");
}
