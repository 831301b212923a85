//! Runs of several ranks: threads, and processes as launchers start them.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use super::*;
use crate::brolly;

/// A run on a mesh, as [`run`] makes one.
pub(super) fn run_on(name: &str, steps: u64, every: u64, mesh: &str) -> (String, PathBuf) {
    let (config, dir) = run(name, steps, every);
    let text = fs::read_to_string(&config).unwrap().replace("micro_batch = 4", "micro_batch = 2");
    (file(&format!("{name}.toml"), format!("{text}\n[mesh]\n{mesh}\n").as_bytes()), dir)
}

/// The processes of a job, with the variables of `torchrun`.
pub(super) fn launch(ranks: usize, args: &[&str]) -> Vec<Child> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = |rank: usize| {
        let mut command = brolly(args);
        command.env("RANK", rank.to_string()).env("WORLD_SIZE", ranks.to_string());
        command.env("LOCAL_RANK", rank.to_string()).env("LOCAL_WORLD_SIZE", ranks.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    (0..ranks).map(start).collect()
}

/// The same under `mpirun`, where the library that speaks MPI is named.
pub(super) fn mpirun(ranks: usize, args: &[&str]) -> Option<Command> {
    std::env::var_os("BROLLY_MPI").filter(|path| !path.is_empty())?;
    let program = brolly(args);
    let mut mpirun = Command::new("mpirun");
    mpirun.args(["--allow-run-as-root", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]);
    mpirun.args(["-n", &ranks.to_string()]);
    mpirun.arg(program.get_program()).args(program.get_args());
    mpirun.env("BROLLY_CACHE", DIR.join("cache"));
    Some(mpirun)
}

/// Exit codes, and what was said.
pub(super) fn ends(children: Vec<Child>) -> Vec<(Option<i32>, String)> {
    let end = |child: Child| {
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    children.into_iter().map(end).collect()
}

/// Sends a signal by what every shell has built in.
pub(super) fn signal(process: &str, signal: &str) {
    let kill = format!("kill -{signal} {process}");
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

/// Waits until a run has written so many lines.
pub(super) fn await_lines(dir: &Path, lines: usize) {
    let begun = Instant::now();
    let written = || fs::read_to_string(dir.join("metrics.jsonl")).unwrap_or_default();
    while written().lines().count() < lines {
        assert!(begun.elapsed() < Duration::from_secs(120), "no step in two minutes");
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn threads_and_processes_train_the_same_model_at_every_stage() {
    let mut all = Vec::new();
    for stage in 0..=3 {
        let mesh = format!("data = 2\nzero = {stage}");
        let (config, dir) = run_on(&format!("ranks-{stage}"), 4, 4, &mesh);
        let said = brolly(&["train", &config, "--ranks", "2"]).output().unwrap();
        let said = String::from_utf8(said.stderr).unwrap();
        assert!(said.contains(&format!("2 ranks (data 2), ZeRO stage {stage}")), "{said}");
        all.push((losses(&dir), model(&dir)));
    }
    let (config, dir) = run_on("ranks-processes", 4, 4, "data = 2\nzero = 3");
    for (code, said) in ends(launch(2, &["train", &config])) {
        assert_eq!(code, Some(0), "{said}");
    }
    all.push((losses(&dir), model(&dir)));
    let (config, dir) = run_on("ranks-mpi", 4, 4, "data = 2\nzero = 1");
    if let Some(mut mpirun) = mpirun(2, &["train", &config]) {
        let output = mpirun.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        all.push((losses(&dir), model(&dir)));
    }
    assert_eq!(all[0].0.len(), 4);
    for (number, other) in all.iter().enumerate().skip(1) {
        assert_eq!(other.0, all[0].0, "run {number}");
        assert!(other.1 == all[0].1, "run {number}: another model");
    }
}

/// A run of a model whose heads two ranks share.
fn run_shared(name: &str, mesh: &str) -> (String, PathBuf) {
    let (config, dir) = run_on(name, 4, 4, mesh);
    let text = fs::read_to_string(&config).unwrap().replace("llama-gqa3", "gpt2-gelu-new");
    (file(&format!("{name}.toml"), text.as_bytes()), dir)
}

#[test]
fn threads_and_processes_share_products_and_the_model_is_whole() {
    let mut all = Vec::new();
    for (name, mesh, ranks) in [
        ("shared-1", "data = 2", "2"),
        ("shared-2", "data = 2\ntensor = 2", "4"),
        ("shared-zero", "data = 2\ntensor = 2\nzero = 2", "4"),
    ] {
        let (config, dir) = run_shared(name, mesh);
        let said = brolly(&["train", &config, "--ranks", ranks]).output().unwrap();
        let said = String::from_utf8(said.stderr).unwrap();
        assert!(!mesh.contains("tensor") || said.contains("data 2 x tensor 2"), "{said}");
        all.push((losses(&dir), model(&dir)));
    }
    let (config, dir) = run_shared("shared-processes", "data = 2\ntensor = 2\nzero = 1");
    for (code, said) in ends(launch(4, &["train", &config])) {
        assert_eq!(code, Some(0), "{said}");
    }
    all.push((losses(&dir), model(&dir)));
    let (config, dir) = run_shared("shared-mpi", "data = 2\ntensor = 2\nzero = 3");
    if let Some(mut mpirun) = mpirun(4, &["train", &config]) {
        let output = mpirun.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        all.push((losses(&dir), model(&dir)));
    }
    let number = |text: &String| text.parse::<f64>().unwrap();
    for (want, got) in all[0].0.iter().zip(&all[1].0) {
        let (want, got) = (number(want), number(got));
        // AdamW's first steps divide gradients by little more than their rounding.
        assert!((want - got).abs() < 1e-5 * want, "{got}, not {want}");
    }
    assert_eq!(all[0].1.len(), all[1].1.len(), "the model is whole");
    for other in &all[2..] {
        assert!(*other == all[1], "another model");
    }
}

#[test]
fn a_rank_that_is_killed_ends_the_others_with_its_name() {
    let (config, dir) = run_on("ranks-killed", 100_000, 50_000, "data = 2\nzero = 2");
    let mut children = launch(2, &["train", &config]);
    await_lines(&dir, 3);
    let begun = Instant::now();
    children[1].kill().unwrap();
    let ends = ends(children.drain(..1).collect());
    children[0].wait().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(30));
    let (code, said) = &ends[0];
    assert!(*code == Some(1) && said.contains("rank 1 is gone"), "{code:?}: {said}");
}

/// `mpirun` ends the others a second after it has noticed: the name comes first.
#[test]
fn a_rank_that_is_killed_under_mpi_is_named_before_the_launcher_ends_the_job() {
    let (config, dir) = run_on("ranks-mpi-killed", 100_000, 50_000, "data = 3\nzero = 2");
    let Some(mut mpirun) = mpirun(3, &["train", &config]) else { return };
    let job = mpirun.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    await_lines(&dir, 3);
    let begun = Instant::now();
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", job.id())).unwrap();
    let last = children.split_whitespace().last().unwrap();
    signal(last, "KILL");
    let (code, said) = ends(vec![job]).remove(0);
    assert!(code != Some(0) && begun.elapsed() < Duration::from_secs(30), "{code:?}: {said}");
    let named = format!("is gone: its process {last} has ended (at step ");
    assert!(said.contains(&named) && !said.contains("(at step 0"), "{code:?}: {said}");
}

#[test]
fn one_rank_that_is_asked_to_end_ends_all_with_a_checkpoint() {
    let (config, dir) = run_on("ranks-asked", 100_000, 50_000, "data = 2\nzero = 3");
    let children = launch(2, &["train", &config]);
    await_lines(&dir, 3);
    signal(&children[1].id().to_string(), "USR1");
    for (code, said) in ends(children) {
        assert_eq!(code, Some(0), "{said}");
    }
    let saved = fs::read_dir(dir.join("ckpt")).unwrap().flatten().count();
    assert_eq!(saved, 1);
    // One rank goes on with it.
    let text = fs::read_to_string(&config).unwrap().replace("data = 2", "data = 1");
    let steps = losses(&dir).len() + 1;
    let text = text.replace("steps = 100000", &format!("steps = {steps}"));
    accepted(&["train", &file("ranks-asked-1.toml", text.as_bytes()), "--resume"]);
    assert_eq!(losses(&dir).len(), steps);
}

#[test]
fn what_a_mesh_cannot_be_is_told_before_anything_is_compiled() {
    let (config, _) = run_on("ranks-wrong", 2, 2, "data = 2");
    let said = refused(&["train", &config], 2);
    assert!(said.contains("the mesh has 2 ranks") && said.contains("--ranks"), "{said}");
    let said = refused(&["train", &config, "--ranks", "3"], 2);
    assert!(said.contains("and 3 take part"), "{said}");
    let (config, _) = run_on("ranks-whole", 2, 2, "data = 2\nzero = 1");
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace("schedule = \"cosine\"", "name = \"muon\"");
    let said = refused(&["train", &file("muon.toml", text.as_bytes()), "--ranks", "2"], 2);
    assert!(said.contains("mesh.zero") && said.contains("muon"), "{said}");
    let (config, _) = run_on("ranks-odd", 2, 2, "tensor = 2");
    let said = refused(&["train", &config, "--ranks", "2"], 1);
    assert!(said.contains("`tensor = 2` does not divide") && said.contains("83"), "{said}");
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace("schedule = \"cosine\"", "name = \"muon\"");
    let said = refused(&["train", &file("muon-2.toml", text.as_bytes()), "--ranks", "2"], 2);
    assert!(said.contains("mesh.tensor") && said.contains("muon"), "{said}");
    let mut mixed = brolly(&["train", &config, "--ranks", "2"]);
    mixed.env("RANK", "0").env("WORLD_SIZE", "2").env("MASTER_ADDR", "x").env("MASTER_PORT", "1");
    let output = mixed.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("a launcher has started 2 processes"), "{said}");
}
