//! `cargo xtask dist`: the runtime-only binary and what its operation needs, in one archive.
//!
//! For the same binary and the same commit the archive is the same, byte for byte: entries are
//! sorted, owners are zero, and times are the commit's, or `SOURCE_DATE_EPOCH`.

use crate::process::{self, Failure, Result, command, file_failure, probe, root, succeeds};
use crate::table::{kilobytes, table};
use crate::{runtime_only, setup};
use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use tar::{Builder, EntryType, Header};

/// Where files lie in the archive and in the repository.
const FILES: [(&str, &str); 9] = [
    ("CHANGELOG.md", "CHANGELOG.md"),
    ("LICENSE", "LICENSE"),
    ("README.md", "README.md"),
    ("deploy/Dockerfile", "runtime/cli/deploy/Dockerfile"),
    ("deploy/README.md", "runtime/cli/deploy/README.md"),
    ("deploy/TRAINING.md", "runtime/cli/deploy/TRAINING.md"),
    ("deploy/brolly.service", "runtime/cli/deploy/brolly.service"),
    ("deploy/kubernetes.yaml", "runtime/cli/deploy/kubernetes.yaml"),
    ("deploy/mpijob.yaml", "runtime/cli/deploy/mpijob.yaml"),
];

/// Seconds from 1970 to 1980, the oldest time that no tool finds strange.
const YEAR_1980: u64 = 315_532_800;

/// A file of the archive.
struct Entry {
    name: &'static str,
    bytes: Vec<u8>,
    is_executable: bool,
}

/// Builds, packs, and prints what is how large.
pub(crate) fn run() -> Result<()> {
    let llvm = setup::run()?;
    println!("runtime-only binary: {}", runtime_only::check(&llvm)?);
    let built = runtime_only::build(&llvm, &["--no-default-features"])?;
    let folder = root().join("target/dist");
    fs::create_dir_all(&folder).map_err(file_failure(&folder))?;
    let entries = entries(&stripped(&built, &folder.join("brolly"))?)?;

    let stem = format!("brolly-{}-{}", env!("CARGO_PKG_VERSION"), target()?);
    let path = folder.join(format!("{stem}.tar.gz"));
    let archive = archive(&stem, &entries, timestamp()).map_err(file_failure(&path))?;
    fs::write(&path, &archive).map_err(file_failure(&path))?;
    let digest = sha256(&archive);
    let digest_path = folder.join(format!("{stem}.tar.gz.sha256"));
    fs::write(&digest_path, format!("{digest}  {stem}.tar.gz\n"))
        .map_err(file_failure(&digest_path))?;

    println!("\n{}", table(&sizes(&entries, archive.len()), true));
    println!("{}\nsha256 {digest}", path.display());
    Ok(())
}

/// The binary without symbols at `to`, or with them where nothing can take them out.
fn stripped(built: &Path, to: &Path) -> Result<PathBuf> {
    if succeeds(command("strip").arg("--version")) {
        process::run(command("strip").arg("-o").arg(to).arg(built))?;
    } else {
        eprintln!("note: no `strip` on the PATH; the binary keeps its symbols");
        fs::copy(built, to).map_err(file_failure(to))?;
    }
    Ok(to.to_path_buf())
}

/// The binary and [`FILES`], sorted by name.
fn entries(binary: &Path) -> Result<Vec<Entry>> {
    let read = |path: &Path| fs::read(path).map_err(file_failure(path));
    let mut entries = vec![Entry { name: "brolly", bytes: read(binary)?, is_executable: true }];
    for (name, source) in FILES {
        entries.push(Entry { name, bytes: read(&root().join(source))?, is_executable: false });
    }
    entries.sort_by_key(|entry| entry.name);
    Ok(entries)
}

/// `entries` in a folder, as a compressed tar archive.
fn archive(folder: &str, entries: &[Entry], time: u64) -> io::Result<Vec<u8>> {
    // Without a name and a time, which the header of gzip would have room for.
    let gzip = GzBuilder::new().write(Vec::new(), Compression::best());
    let mut tar = Builder::new(gzip);
    for Entry { name, bytes, is_executable } in entries {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(if *is_executable { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(time);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, format!("{folder}/{name}"), bytes.as_slice())?;
    }
    tar.into_inner()?.finish()
}

/// The time that all entries have.
fn timestamp() -> u64 {
    let asked = env::var("SOURCE_DATE_EPOCH").ok();
    let commit = || probe(command("git").args(["log", "-1", "--format=%ct"]));
    asked.or_else(commit).and_then(|time| time.parse().ok()).unwrap_or(YEAR_1980)
}

/// The target that cargo builds for.
fn target() -> Result<String> {
    let told = probe(Command::new("rustc").arg("-vV")).unwrap_or_default();
    let host = told.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .ok_or_else(|| Failure::Explained("`rustc -vV` names no host".to_owned()))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn sizes(entries: &[Entry], archive_bytes: usize) -> Vec<Vec<String>> {
    let row = |name: &str, bytes: usize| vec![name.to_owned(), kilobytes(bytes as f64)];
    let total = entries.iter().map(|entry| entry.bytes.len()).sum();
    let mut rows: Vec<_> = entries.iter().map(|e| row(e.name, e.bytes.len())).collect();
    rows.push(row("unpacked", total));
    rows.push(row("packed", archive_bytes));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;

    #[test]
    fn the_archive_says_nothing_of_machine_or_hour() {
        let entry = |name, is_executable| Entry { name, bytes: vec![7; 3000], is_executable };
        let entries = [entry("brolly", true), entry("deploy/README.md", false)];
        let packed = archive("brolly-1", &entries, YEAR_1980).unwrap();
        assert_eq!(packed, archive("brolly-1", &entries, YEAR_1980).unwrap());
        assert_eq!(packed[4..8], [0; 4], "a time in the header of gzip");
        let mut tar = tar::Archive::new(GzDecoder::new(packed.as_slice()));
        let seen = tar.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            assert_eq!((header.mtime().unwrap(), entry.size()), (YEAR_1980, 3000));
            (entry.path().unwrap().display().to_string(), header.mode().unwrap())
        });
        let expected = [("brolly-1/brolly", 0o755), ("brolly-1/deploy/README.md", 0o644)];
        let expected = expected.map(|(name, mode)| (name.to_owned(), mode));
        assert_eq!(seen.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn everything_that_is_packed_is_there() {
        let names: Vec<_> =
            entries(&env::current_exe().unwrap()).unwrap().iter().map(|e| e.name).collect();
        assert_eq!(names.len(), FILES.len() + 1);
        assert!(names.is_sorted(), "{names:?}");
    }

    #[test]
    fn digests_are_those_of_sha256sum() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(sha256(b""), empty);
    }
}
