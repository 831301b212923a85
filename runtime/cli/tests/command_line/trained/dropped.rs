//! Runs with dropout.

use super::*;

/// A run's configuration, whose rate is the same whatever its length.
fn dropping(name: &str, steps: u64, dropout: &str) -> (String, String, PathBuf) {
    let (config, dir) = run(name, steps, 2);
    let text = fs::read_to_string(config).unwrap().replace("schedule = \"cosine\"\n", "");
    let rows = data("training/documents.npy");
    let text = format!("{dropout}\n{text}\n[eval]\ndata = \"{rows}\"\nevery = 6\n");
    (file(&format!("{name}.toml"), text.as_bytes()), text, dir)
}

#[test]
fn a_run_that_goes_on_drops_as_one_that_did_not_stop() {
    let (config, _, whole) = dropping("dropped-whole", 6, "dropout = 0.2");
    accepted(&["train", &config]);
    let (config, text, parted) = dropping("dropped-parted", 3, "dropout = 0.2");
    accepted(&["train", &config]);
    let text = text.replace("\nsteps = 3\n", "\nsteps = 6\nseed = 0\n");
    let longer = file("dropped-longer.toml", text.as_bytes());
    accepted(&["train", &longer, "--resume"]);
    let want = losses(&whole);
    assert_eq!(losses(&parted), want);
    assert!(model(&whole) == model(&parted));
    let eval = |dir: &Path| lines(dir)[5]["eval_loss"].as_f64().unwrap();
    assert_eq!(eval(&whole).to_bits(), eval(&parted).to_bits());

    let (config, _, plain) = dropping("dropped-none", 6, "dropout = 0.0");
    accepted(&["train", &config]);
    assert_ne!(losses(&plain)[0], want[0]);
    let (seeded, text, other) = dropping("dropped-seeded", 6, "dropout = 0.2");
    fs::write(&seeded, text.replace("\nsteps = 6\n", "\nsteps = 6\nseed = 1\n")).unwrap();
    accepted(&["train", &seeded]);
    assert_ne!(losses(&other)[0], want[0]);
}

#[test]
fn an_artifact_says_what_it_drops() {
    let (config, _, _) = dropping("dropped-compiled", 2, "");
    let artifact = DIR.join("dropped.brolly");
    let artifact = artifact.to_str().unwrap();
    accepted(&["compile", &config, "-o", artifact]);
    // Nothing and a share of zero are one thing.
    let (config, _, _) = dropping("dropped-zero", 2, "dropout = 0.0");
    accepted(&["train", &config, "--artifact", artifact]);
    let (config, _, _) = dropping("dropped-other", 2, "dropout = 0.1");
    let said = refused(&["train", &config, "--artifact", artifact], 1);
    assert!(said.contains("`dropout` is 0.1, and the artifact was compiled for null"), "{said}");
    let plan: Value = serde_json::from_str(&accepted(&["plan", &config, "--json"])).unwrap();
    assert!(plan["ranks"][0]["predicted_peak_bytes"].as_u64().unwrap() > 1 << 20);
}
