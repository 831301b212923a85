//! What is known before a run: its memory, and its step as an artifact.

use super::*;

#[test]
fn a_plan_is_what_a_run_takes() {
    let (config, dir) = run("plan", 3, 3);
    let plan: Value = serde_json::from_str(&accepted(&["plan", &config, "--json"])).unwrap();
    assert!(!dir.exists(), "nothing is run");
    let rank = &plan["ranks"][0];
    let planned = rank["predicted_peak_bytes"].as_u64().unwrap();
    assert_eq!(plan["predicted_peak_bytes"], planned);
    let categories = rank["categories"].as_array().unwrap();
    let bytes = |name: &str| {
        let category = categories.iter().find(|category| category["name"] == name);
        category.map_or(0, |category| category["bytes"].as_u64().unwrap())
    };
    let all: u64 = categories.iter().map(|category| category["bytes"].as_u64().unwrap()).sum();
    assert_eq!(all, planned);
    assert_eq!(bytes("gradients"), bytes("parameters"));
    assert_eq!(bytes("optimizer"), 2 * bytes("parameters"), "AdamW has two moments");
    let entries: Vec<&Value> =
        rank["entries"].as_array().unwrap().iter().map(|entry| &entry["name"]).collect();
    assert_eq!(entries, ["accumulate", "norm", "update"]);
    accepted(&["train", &config]);
    let peak = lines(&dir).iter().map(|line| line["peak_bytes"].as_u64().unwrap()).max().unwrap();
    assert!(peak <= planned && peak > planned / 2, "{peak} of {planned}");

    // What does not fit is told with names, before anything is allocated for good.
    let said = refused_after(&["plan", &config, "--memory", "1MiB"]);
    assert!(said.contains("the cap is 1.00 MiB") && said.contains("in accumulate` "), "{said}");
    let text = fs::read_to_string(&config).unwrap();
    let capped = file("capped.toml", format!("{text}[memory]\ndevice = \"1MiB\"\n").as_bytes());
    let said = refused(&["train", &capped, "--dry-run", "--resume"], 1);
    assert!(said.contains("may have 1048576") && said.contains("the largest tensors"), "{said}");
    let said = refused_after(&["plan", &capped]);
    assert!(said.contains("the cap is 1.00 MiB") && said.contains("in accumulate` "), "{said}");
    accepted(&["plan", &capped, "--memory", "1GiB"]);
    let said = refused(&["plan", &config, "--dtype", "bf16"], 2);
    assert!(said.contains("--dtype"), "{said}");

    // Of a model that serves: weights, keys and values.
    let plan = accepted(&["plan", &data("families/llama-gqa3")]);
    assert!(plan.contains("weights") && plan.contains("keys and values"), "{plan}");
    assert!(plan.contains("step") && !plan.contains("optimizer"), "{plan}");
}

#[test]
fn the_repositorys_configurations_hold() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = fs::read_to_string(data("stories/demo.toml")).unwrap();
    let dir = DIR.join("demo");
    let text = text.replace("steps = 200", "steps = 3").replace("warmup_steps = 20", "");
    let text = text.replace(".cache/demo", dir.to_str().unwrap());
    let config = file("demo.toml", text.as_bytes());
    let planned = crate::brolly(&["plan", "tests/data/stories/train.toml"])
        .current_dir(&root)
        .output()
        .unwrap();
    assert!(planned.status.success(), "{}", String::from_utf8_lossy(&planned.stderr));
    let output = crate::brolly(&["train", &config]).current_dir(&root).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("step 3 writes\n  Once upon a time"), "{said}");
    let losses: Vec<f64> = losses(&dir).iter().map(|loss| loss.parse().unwrap()).collect();
    assert!(losses.len() == 3 && losses[2] < losses[0], "{losses:?}");
}

/// What a command says that prints a plan and fails.
fn refused_after(args: &[&str]) -> String {
    let output = crate::brolly(args).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    said
}

#[test]
fn an_artifact_trains_with_the_bits_of_its_configuration() {
    let (config, whole) = run("train-compiled", 4, 2);
    accepted(&["train", &config]);
    let artifact = DIR.join("step.brolly");
    let artifact = artifact.to_str().unwrap();
    let told = accepted(&["compile", &config, "-o", artifact]);
    assert!(told.contains("accumulate") && told.contains("training's state"), "{told}");
    accepted(&["inspect", artifact, "--json"]);

    // How long a run is, how fast it learns and where it writes may differ.
    let (other, again) = run("train-from-artifact", 4, 1);
    accepted(&["train", &other, "--artifact", artifact]);
    assert_eq!(losses(&again), losses(&whole));
    assert!(model(&again) == model(&whole));

    let text = fs::read_to_string(&config).unwrap();
    let wrong = text
        .replace("seq_len = 33", "seq_len = 32")
        .replace("grad_accum", "dtype = \"bf16\"\ngrad_accum");
    let wrong = file("other-step.toml", wrong.as_bytes());
    let said = refused(&["train", &wrong, "--resume", "--artifact", artifact], 1);
    assert!(said.contains("`data.seq_len` is 32, and the artifact was compiled for 33"), "{said}");
    assert!(said.contains("`train.dtype` is \"bf16\""), "{said}");
    let said = refused(&["compile", &config, "-o", artifact, "--dtype", "bf16"], 2);
    assert!(said.contains("--dtype"), "{said}");

    // Neither serves the other's purpose.
    refused(&["generate", artifact, "--tokens", "1,2"], 1);
    let serves = DIR.join("serves.brolly");
    let serves = serves.to_str().unwrap();
    accepted(&["compile", &data("families/llama-gqa3"), "-o", serves]);
    let said = refused(&["train", &config, "--artifact", serves, "--resume"], 1);
    assert!(said.contains("holds no training step"), "{said}");
}
