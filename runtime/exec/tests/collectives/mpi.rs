//! Ranks that `mpirun` launches, where there is one.

use std::{
    env,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use crate::{
    bitwise,
    processes::{Folder, rank, signal, wait},
    script,
};

const SOON: Duration = Duration::from_secs(120);

/// The built library; `None`, and a line that says so, where it can't be.
fn library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<PathBuf>> = OnceLock::new();
    LIBRARY.get_or_init(build).as_deref()
}

fn build() -> Option<PathBuf> {
    for tool in ["mpirun", "mpicc"] {
        if !Command::new(tool).arg("--version").output().is_ok_and(|out| out.status.success()) {
            eprintln!("skipped: no {tool}");
            return None;
        }
    }
    if let Some(path) = env::var_os("BROLLY_MPI") {
        return Some(path.into());
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("mpi/Cargo.toml");
    let target = manifest.with_file_name("target");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["build", "--quiet", "--locked", "--manifest-path"]).arg(&manifest);
    let output = cargo.arg("--target-dir").arg(&target).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // What bindgen says where it is missing, which MPI's packages do not bring.
    if !output.status.success() && said.contains("Unable to find libclang") {
        eprintln!("skipped: no libclang, which bindings to MPI are made with");
        return None;
    }
    assert!(output.status.success(), "brolly-mpi does not build: {said}");
    Some(target.join("debug/libbrolly_mpi.so"))
}

/// Ranks in this role under `mpirun`.
fn start(ranks: usize, role: &str, folder: &Folder, library: &Path) -> Child {
    let program = rank(role, folder, &[]);
    let mut mpirun = Command::new("mpirun");
    mpirun.args(["--allow-run-as-root", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]);
    mpirun.args(["-n", &ranks.to_string()]).arg(program.get_program()).args(program.get_args());
    let variables = program.get_envs().filter_map(|(name, value)| Some((name, value?)));
    mpirun.envs(variables).env("BROLLY_MPI", library).env("BROLLY_TEST_SILENCE_MS", "3000");
    let errors = File::create(folder.path().join("stderr")).unwrap();
    mpirun.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn().unwrap()
}

#[test]
fn results_are_those_of_threads_bit_for_bit() {
    let Some(library) = library() else { return };
    for ranks in [1, 3, 4] {
        let expected = bitwise::run(ranks, |world| script::run(world, false));
        let folder = Folder::new(&format!("mpi-script-{ranks}"));
        let mut job = start(ranks, "script", &folder, library);
        let code = wait(&mut job, SOON);
        assert_eq!(code, Some(0), "{}", folder.text("stderr"));
        for (rank, expected) in expected.iter().enumerate() {
            assert!(folder.read(&format!("result.{rank}")) == *expected, "rank {rank}");
        }
    }
}

/// What `mpirun` prints when the last of three ranks does mischief.
fn errors_of(role: &str, mischief: impl Fn(&Folder)) -> Option<String> {
    let library = library()?;
    let folder = Folder::new(&format!("mpi-{role}"));
    let mut job = start(3, role, &folder, library);
    mischief(&folder);
    let code = wait(&mut job, Duration::from_secs(30));
    let text = folder.text("stderr");
    // That of `MPI_Abort`; what Open MPI says itself gets lost now and then.
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("all_reduce(sum, 250000 x f32) of group `world`"), "{text}");
    assert!(text.contains("the last collectives of rank"), "{text}");
    Some(text)
}

#[test]
fn a_rank_that_fails_ends_the_job_by_name() {
    let Some(text) = errors_of("fail", |_| ()) else { return };
    assert!(text.contains("rank 2 has failed: its disk is full (at step 3, after #2"), "{text}");
}

#[test]
fn a_rank_that_stops_ends_the_job_by_name() {
    let stop = |folder: &Folder| {
        folder.read("ready.2");
        signal(folder.text("pid.2").parse().unwrap(), "STOP");
    };
    let Some(text) = errors_of("stopped", stop) else { return };
    assert!(text.contains("rank 2 has stopped or is cut off"), "{text}");
}

#[test]
fn a_library_that_is_none_is_refused() {
    if library().is_none() {
        return;
    }
    let folder = Folder::new("mpi-none");
    let mut job = start(2, "script", &folder, Path::new("/no/such/library.so"));
    assert_ne!(wait(&mut job, SOON), Some(0));
    let text = folder.text("stderr");
    assert!(text.contains("error: MPI: cannot use /no/such/library.so: "), "{text}");
    assert!(text.contains("name it in BROLLY_MPI"), "{text}");
}
