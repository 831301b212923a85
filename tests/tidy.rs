//! The rules of the repository, as tests: who may import whom, what lies where, how files look.
//!
//! Each rule reports all its offenders at once, as `file:line` and reason. What rustfmt, clippy and
//! rustc check already is left to them.

use serde_json::Value;
use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "tidy/source.rs"]
mod source;

use source::{LITERAL, Source};

/// A package of the workspace, where it lies, and which others it may import.
///
/// Imports go strictly downward: the crates of floor 1 (frontend, passes, codegen, exec, text) meet
/// only through `ir::Graph` and `ir::Program`, so that passes are tested without a device and the
/// runtime links no LLVM.
struct Floor(&'static str, &'static str, &'static [&'static str]);

const FLOORS: [Floor; 15] = [
    Floor("brolly-ir", "ir", &[]),
    Floor("brolly-frontend", "frontend", &["brolly-ir"]),
    Floor("brolly-passes", "passes", &["brolly-ir"]),
    Floor("brolly-codegen", "codegen", &["brolly-ir"]),
    Floor("brolly-exec", "runtime/exec", &["brolly-cuda", "brolly-ir"]),
    Floor("brolly-cuda", "runtime/exec/cuda", &["brolly-ir"]),
    Floor("brolly-text", "runtime/text", &[]),
    Floor("brolly-serve", "runtime/serve", &["brolly-exec", "brolly-ir", "brolly-text"]),
    Floor("brolly-train", "runtime/train", &["brolly-exec", "brolly-ir", "brolly-text"]),
    Floor(
        "brolly-driver",
        "runtime/driver",
        &["brolly-codegen", "brolly-exec", "brolly-frontend", "brolly-ir", "brolly-passes"],
    ),
    Floor(
        "brolly",
        "runtime/cli",
        &[
            "brolly-driver",
            "brolly-exec",
            "brolly-ir",
            "brolly-serve",
            "brolly-text",
            "brolly-train",
        ],
    ),
    Floor(
        "brolly-tests",
        "tests",
        &[
            "brolly",
            "brolly-codegen",
            "brolly-cuda",
            "brolly-driver",
            "brolly-exec",
            "brolly-frontend",
            "brolly-gpu-check",
            "brolly-ir",
            "brolly-passes",
            "brolly-ptx",
            "brolly-serve",
            "brolly-text",
            "brolly-train",
        ],
    ),
    Floor("brolly-gpu-check", "tests/gpu", &["brolly-cuda", "brolly-ir", "brolly-serve"]),
    Floor("brolly-ptx", "tests/ptx", &[]),
    Floor("xtask", "tests/xtask", &[]),
];

/// What must build, with these flags, where no LLVM is installed.
const WITHOUT_LLVM: [(&str, &[&str]); 12] = [
    ("brolly-ir", &[]),
    ("brolly-frontend", &[]),
    ("brolly-passes", &[]),
    ("brolly-exec", &[]),
    ("brolly-cuda", &[]),
    ("brolly-gpu-check", &[]),
    ("brolly-text", &[]),
    ("brolly-serve", &[]),
    ("brolly-train", &[]),
    ("brolly-ptx", &[]),
    ("xtask", &[]),
    ("brolly", &["--no-default-features"]),
];

/// The only folders at the top.
const TOP_LEVEL: [&str; 8] =
    [".cargo", ".ci", "codegen", "frontend", "ir", "passes", "runtime", "tests"];

/// The only files that may hold `unsafe`, and why each has to.
const UNSAFE: [(&str, &str); 20] = [
    ("codegen/benches/kernels/blas.rs", "calls OpenBLAS"),
    ("codegen/src/mlir.rs", "the C interface of MLIR"),
    ("codegen/src/mlir/llvm.rs", "the C interface of LLVM"),
    ("codegen/src/testing.rs", "calls the kernels under test"),
    ("ir/src/mmap.rs", "maps files"),
    ("ir/src/ops/quantize_weight.rs", "calls loops for detected CPU features"),
    ("runtime/cli/src/commands/bench/machine.rs", "calls loops for detected CPU features"),
    ("runtime/exec/cuda/src/cublaslt/libcublaslt.rs", "the C interface of cuBLASLt"),
    ("runtime/exec/cuda/src/driver/libcuda.rs", "the C interface of CUDA's driver"),
    ("runtime/exec/cuda/src/library.rs", "opens shared libraries"),
    ("runtime/exec/cuda/src/nccl/libnccl.rs", "the C interface of NCCL"),
    ("runtime/exec/mpi/src/lib.rs", "the C interface of MPI, and one of its own"),
    ("runtime/exec/src/code.rs", "makes functions of mapped code"),
    ("runtime/exec/src/collectives/loan.rs", "lends bytes to other ranks' threads"),
    ("runtime/exec/src/collectives/mpi/abi.rs", "types of functions of the MPI part"),
    ("runtime/exec/src/collectives/mpi/library.rs", "calls the MPI part, opened at run time"),
    ("runtime/exec/src/executable/cpu.rs", "holds addresses of memory that it lends to kernels"),
    ("runtime/exec/src/launch.rs", "calls kernels"),
    ("runtime/exec/src/meeting.rs", "lends memory to collectives"),
    ("runtime/exec/src/pool.rs", "lends a closure to threads"),
];

const MAX_LINE: usize = 100;

#[test]
fn imports_go_strictly_downward() {
    let metadata = cargo(&["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let metadata: Value = serde_json::from_str(&metadata).expect("cargo metadata prints JSON");
    let packages = metadata["packages"].as_array().expect("metadata lists packages");
    let names: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let mut offenders = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(Floor(_, folder, allowed)) = FLOORS.iter().find(|floor| floor.0 == name) else {
            offenders.push(format!("{name}: is in no row of the table of floors"));
            continue;
        };
        let manifest = root().join(folder).join("Cargo.toml");
        if package["manifest_path"].as_str().map(Path::new) != Some(&manifest) {
            offenders.push(format!("{name}: lies elsewhere than in {folder}"));
        }
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let import = dependency["name"].as_str().unwrap_or_default();
            if names.contains(import) && !allowed.contains(&import) {
                offenders.push(format!("{name}: may not import {import}"));
            }
        }
    }
    let missing = FLOORS.iter().filter(|floor| !names.contains(floor.0));
    offenders.extend(missing.map(|floor| format!("{}: is no package of the workspace", floor.0)));
    report("imports go strictly downward, never sideways", &offenders);
}

#[test]
fn only_the_compiler_links_llvm() {
    let is_llvm = |name: &&str| {
        ["llvm", "mlir", "melior", "tblgen", "brolly-codegen"]
            .iter()
            .any(|part| name.contains(part))
    };
    let mut offenders = Vec::new();
    for (package, flags) in WITHOUT_LLVM {
        let tree = ["tree", "--offline", "--prefix=none", "--edges=normal,build", "--package"];
        let tree = cargo(&[&tree[..], &[package], flags].concat());
        let imports: BTreeSet<&str> =
            tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert!(imports.contains(package), "cargo tree does not list {package} itself:\n{tree}");
        let found: Vec<&str> = imports.into_iter().filter(is_llvm).collect();
        if !found.is_empty() {
            offenders.push(format!("{package} {}: {}", flags.join(" "), found.join(", ")));
        }
    }
    report("only codegen, and what compiles models, links LLVM", &offenders);
}

#[test]
fn manifests_inherit_from_the_workspace() {
    let mut offenders = Vec::new();
    for Floor(_, folder, _) in FLOORS {
        let path = format!("{folder}/Cargo.toml");
        let text = fs::read_to_string(root().join(&path)).expect("every floor has a manifest");
        let manifest: toml::Table = text.parse().expect("cargo has read the manifest already");
        let inherits = |table: &toml::Value, key: &str| {
            let inherited = table.get(key).and_then(|value| value.get("workspace"));
            inherited.and_then(toml::Value::as_bool) == Some(true)
        };
        for key in ["version", "edition", "rust-version", "license"] {
            if !inherits(&manifest["package"], key) {
                offenders.push(format!("{path}: `{key}.workspace = true` is missing"));
            }
        }
        if !inherits(&toml::Value::Table(manifest.clone()), "lints") {
            offenders.push(format!("{path}: `[lints] workspace = true` is missing"));
        }
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(section) else { continue };
            for name in table.as_table().into_iter().flat_map(toml::Table::keys) {
                if !inherits(table, name) {
                    offenders.push(format!("{path}: the version of `{name}` belongs in the root"));
                }
            }
        }
    }
    report("versions, edition, licence and lints come from the root manifest", &offenders);
}

#[test]
fn only_the_known_folders_are_at_the_top() {
    let is_known = |folder: &str| TOP_LEVEL.contains(&folder);
    let tops: BTreeSet<String> = files()
        .iter()
        .filter(|path| path.components().count() > 1)
        .filter_map(|path| path.iter().next()?.to_str().map(str::to_owned))
        .collect();
    let offenders: Vec<String> = tops.into_iter().filter(|top| !is_known(top)).collect();
    report("no other folder at the top", &offenders);
}

#[test]
fn every_file_says_what_it_is() {
    let bare = sources().into_iter().filter(|source| !source.text.starts_with("//!"));
    let offenders: Vec<String> = bare.map(|source| source.path).collect();
    report("a source file begins with a `//!` header", &offenders);
}

#[test]
fn lines_fit() {
    let is_wide = |line: &str| line.chars().count() > MAX_LINE;
    // rustfmt breaks whatever else is too long.
    let is_text = |code: &str| code.contains(LITERAL);
    let mut offenders = Vec::new();
    for source in sources() {
        let lines = source.text.lines().zip(source.code.lines()).enumerate();
        let wide = lines.filter(|(_, (line, code))| is_wide(line) && !is_text(code));
        offenders.extend(wide.map(|(index, (line, _))| {
            format!("{}:{}: {} characters", source.path, index + 1, line.chars().count())
        }));
    }
    report("no line without quoted text is longer than 100 characters", &offenders);
}

#[test]
fn the_graph_library_stays_behind_the_graph() {
    let mut offenders = search(|source| source.code.as_str(), |line| line.contains("petgraph"));
    offenders.retain(|place| !place.starts_with("ir/src/graph.rs:"));
    report("petgraph is named in ir/src/graph.rs alone", &offenders);
}

#[test]
fn nothing_is_left_undone() {
    let undone = |line: &str| {
        ["todo!(", "unimplemented!(", "#[ignore"].iter().any(|mark| line.contains(mark))
    };
    let noted = |line: &str| {
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")]
            .iter()
            .any(|mark| line.contains(mark))
    };
    let mut offenders = search(|source| source.code.as_str(), undone);
    offenders.extend(search(|source| source.text.as_str(), noted));
    report("no placeholders, no ignored tests, no notes to do something later", &offenders);
}

#[test]
fn unsafe_stays_in_its_modules() {
    let is_word = |word: &str| word == "unsafe" || word == "unsafe_code";
    let is_unsafe =
        |line: &str| line.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(is_word);
    let places = search(|source| source.code.as_str(), is_unsafe);
    let file_of = |place: &str| place.split(':').next().unwrap_or_default().to_owned();
    let listed = |path: &str| UNSAFE.iter().any(|(file, _)| *file == path);
    let used: BTreeSet<String> = places.iter().map(|place| file_of(place)).collect();
    let mut offenders: Vec<String> =
        places.into_iter().filter(|place| !listed(&file_of(place))).collect();
    let stale = UNSAFE.iter().filter(|(file, _)| !used.contains(*file));
    offenders.extend(stale.map(|(file, _)| format!("{file}: is listed and holds no unsafe code")));
    report("unsafe code stays in the modules that are listed for it", &offenders);
}

/// Fails with all offenders if there are any.
#[track_caller]
fn report(rule: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{rule}; offenders:\n  {}\n", offenders.join("\n  "));
}

/// `path:line: text` of every line that `matches` in the view of the source that is asked for.
fn search(view: fn(&Source) -> &str, matches: impl Fn(&str) -> bool) -> Vec<String> {
    let mut places = Vec::new();
    for source in sources() {
        for (index, (line, text)) in view(&source).lines().zip(source.text.lines()).enumerate() {
            if matches(line) {
                places.push(format!("{}:{}: {}", source.path, index + 1, text.trim()));
            }
        }
    }
    places
}

/// All Rust sources of the repository.
fn sources() -> Vec<Source> {
    let rust = files().into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs"));
    let read = |path: PathBuf| {
        let text = fs::read_to_string(root().join(&path)).expect("sources are UTF-8");
        Source::new(path.to_string_lossy().into_owned(), text)
    };
    rust.map(read).collect()
}

/// Every file of the repository, relative to its root, that git does not ignore.
///
/// Without git, every file outside of the folders that builds and downloads go to.
fn files() -> Vec<PathBuf> {
    let mut git = Command::new("git");
    git.current_dir(root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    match git.output() {
        Ok(output) if output.status.success() => {
            let listed = String::from_utf8(output.stdout).expect("paths are UTF-8");
            let paths = listed.split_terminator('\0').map(PathBuf::from);
            paths.filter(|path| root().join(path).is_file()).collect()
        }
        _ => {
            let mut found = Vec::new();
            walk(&root(), &mut found);
            found
        }
    }
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the repository can be read") {
        let path = entry.expect("the repository can be read").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_file() {
            found.push(path.strip_prefix(root()).expect("walk starts at the root").to_path_buf());
        } else if path.is_dir() && ![".git", ".cache", "target", "__pycache__"].contains(&name) {
            walk(&path, found);
        }
    }
}

/// Standard output of a cargo command.
fn cargo(args: &[&str]) -> String {
    let program = env::var_os("CARGO").unwrap_or("cargo".into());
    let output = Command::new(program).current_dir(root()).args(args).output().expect("cargo runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {}: {errors}", args.join(" "));
    String::from_utf8(output.stdout).expect("cargo prints UTF-8")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").to_path_buf()
}
