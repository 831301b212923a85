//! Runs whose layers are shared among ranks.

use super::{ranks::*, *};
use crate::brolly;

#[test]
fn stages_are_threads_or_processes_with_the_bits_of_one_rank() {
    let unclipped = |(config, dir): (String, PathBuf)| {
        let text = fs::read_to_string(&config).unwrap().replace("clip_norm = 1.0\n", "");
        let eval = "[eval]\nevery = 2\ndata = ";
        let rows = text.lines().find(|line| line.starts_with("train = ")).unwrap();
        let text = format!("{text}{eval}{}\n", rows.trim_start_matches("train = "));
        fs::write(&config, text).unwrap();
        (config, dir)
    };
    let (config, dir) = unclipped(run_on("stages-1", 4, 4, "data = 1"));
    accepted(&["train", &config]);
    let want = (told(&dir), model(&dir));
    let (config, dir) = unclipped(run_on("stages-2", 4, 4, "pipeline = 2"));
    let said = brolly(&["train", &config, "--ranks", "2"]).output().unwrap();
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("2 ranks (pipeline 2), ZeRO stage 0"), "{said}");
    let mut all = vec![(told(&dir), model(&dir))];
    let (config, dir) = unclipped(run_on("stages-processes", 4, 4, "pipeline = 2"));
    for (code, said) in ends(launch(2, &["train", &config])) {
        assert_eq!(code, Some(0), "{said}");
    }
    all.push((told(&dir), model(&dir)));
    let (config, dir) = unclipped(run_on("stages-mpi", 4, 4, "pipeline = 2"));
    if let Some(mut mpirun) = mpirun(2, &["train", &config]) {
        let output = mpirun.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        all.push((told(&dir), model(&dir)));
    }
    assert!(want.0.len() == 4 && want.0[1].1 != "null", "{:?}", want.0);
    for (number, other) in all.iter().enumerate() {
        assert_eq!(other.0, want.0, "run {number}");
        assert!(other.1 == want.1, "run {number}: another model");
    }
}

/// Losses of steps and of evaluations.
fn told(dir: &Path) -> Vec<(String, String)> {
    let told = |line: &Value| (line["loss"].to_string(), line["eval_loss"].to_string());
    lines(dir).iter().map(told).collect()
}

#[test]
fn a_stage_that_is_asked_to_end_ends_all_with_a_checkpoint_for_any_mesh() {
    let (config, dir) = run_on("stages-asked", 100_000, 50_000, "pipeline = 2\ndata = 2\nzero = 1");
    let children = launch(4, &["train", &config]);
    await_lines(&dir, 3);
    signal(&children[3].id().to_string(), "USR1");
    for (code, said) in ends(children) {
        assert_eq!(code, Some(0), "{said}");
    }
    let text = fs::read_to_string(&config).unwrap().replace("pipeline = 2\ndata = 2", "data = 1");
    let steps = losses(&dir).len() + 1;
    let text = text.replace("steps = 100000", &format!("steps = {steps}"));
    accepted(&["train", &file("stages-asked-1.toml", text.as_bytes()), "--resume"]);
    assert_eq!(losses(&dir).len(), steps);
}

#[test]
fn a_stage_that_is_killed_ends_the_others_with_its_name() {
    let (config, dir) = run_on("stages-killed", 100_000, 50_000, "pipeline = 2");
    let mut children = launch(2, &["train", &config]);
    await_lines(&dir, 3);
    let begun = std::time::Instant::now();
    children[1].kill().unwrap();
    let ends = ends(children.drain(..1).collect());
    children[0].wait().unwrap();
    assert!(begun.elapsed() < std::time::Duration::from_secs(30));
    let (code, said) = &ends[0];
    assert!(*code == Some(1) && said.contains("rank 1 is gone"), "{code:?}: {said}");
}

#[test]
fn adapters_are_trained_in_stages_and_merged_into_the_whole_model() {
    let run = |mesh: &str, ranks: &str| {
        let lora = "\n[lora]\nrank = 4\nalpha = 8\ntargets = [\"q_proj\", \"v_proj\"]";
        let (config, dir) =
            run_on(&format!("stages-lora-{ranks}"), 4, 4, &(mesh.to_owned() + lora));
        let text = fs::read_to_string(&config).unwrap().replace("clip_norm = 1.0\n", "");
        fs::write(&config, text).unwrap();
        accepted(&["train", &config, "--ranks", ranks]);
        let read = |name: &str| fs::read(dir.join("ckpt").join(name)).unwrap();
        let files = ["final/adapter_model.safetensors", "merged/model.safetensors"].map(read);
        (losses(&dir), files)
    };
    let (want, got) = (run("data = 1", "1"), run("pipeline = 2", "2"));
    assert_eq!(got.0, want.0);
    assert!(got.1 == want.1, "other adapters");
}

#[test]
fn what_stages_cannot_be_is_told() {
    let (config, _) = run_on("stages-wrong", 2, 2, "pipeline = 2\ndata = 2");
    let said = refused(&["train", &config, "--ranks", "2"], 2);
    assert!(said.contains("the mesh has 4 ranks") && said.contains("pipeline 2"), "{said}");
    let (config, _) = run_on("stages-many", 2, 2, "pipeline = 3");
    let said = refused(&["train", &config, "--ranks", "3"], 1);
    assert!(said.contains("has 2 layers, which 3 stages cannot share"), "{said}");
}

#[test]
fn a_plan_is_of_each_stage() {
    let (config, _) = run_on("stages-plan", 2, 2, "pipeline = 2");
    let output = accepted(&["plan", &config, "--json"]);
    let plan: Value = serde_json::from_str(&output).unwrap();
    let ranks = plan["ranks"].as_array().unwrap();
    assert_eq!(ranks.len(), 2);
    let entries = |rank: &Value| -> Vec<String> {
        let entries = rank["entries"].as_array().unwrap().iter();
        entries.map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
    };
    let first = ["forward.0", "backward.0", "norm.0", "update.0"];
    assert_eq!(entries(&ranks[0]), first);
    assert_eq!(entries(&ranks[1]), ["accumulate.1", "norm.1", "update.1"]);
    let bytes = |rank: &Value, kind: &str| {
        let categories = rank["categories"].as_array().unwrap();
        let found = categories.iter().find(|category| category["name"] == kind);
        found.map_or(0, |category| category["bytes"].as_u64().unwrap())
    };
    let (whole, _) = run_on("stages-plan-1", 2, 2, "data = 1");
    let whole: Value = serde_json::from_str(&accepted(&["plan", &whole, "--json"])).unwrap();
    for kind in ["parameters", "gradients", "optimizer"] {
        let parts = ranks.iter().map(|rank| bytes(rank, kind)).sum::<u64>();
        assert_eq!(parts, bytes(&whole["ranks"][0], kind), "{kind}");
    }
    // Two micro-batches in flight in the first stage, one in the second.
    let kept = |name: &str| ranks.iter().map(|r| bytes(r, name)).collect::<Vec<_>>();
    let kept = kept("kept of micro-batches");
    assert!(kept[0] > kept[1] && kept[1] > 0, "{kept:?}");
    let text = fs::read_to_string(&config).unwrap().replace("grad_accum = 2", "grad_accum = 1");
    let one = accepted(&["plan", &file("stages-plan-2.toml", text.as_bytes()), "--json"]);
    let one: Value = serde_json::from_str(&one).unwrap();
    let less = bytes(&one["ranks"][0], "kept of micro-batches");
    assert!(less < kept[0] && 2 * less >= kept[0], "{less} and {kept:?}");
}
