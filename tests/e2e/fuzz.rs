//! Parsers of untrusted bytes under random damage: each must answer, with whatever answer.
//!
//! A few thousand rounds in every test run; `cargo xtask fuzz` sets `BROLLY_FUZZ_SECONDS` and goes
//! on. Mutations start from good files: random bytes alone never get past a magic number.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use frontend::{Description, ImportOptions, safetensors};
use ir::{Bytes, artifact};

use crate::support::{compile_to, data, options};

/// A small deterministic generator (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).unwrap()
    }
}

/// Values that parsers trip over.
const NASTY: [&[u8]; 12] = [
    b"",
    b"0",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"null",
    b"[",
    b"{",
    b"\"",
    b"\xff\xfe",
    b"9223372036854775807",
    b"\0\0\0\0\0\0\0\x80",
];

/// One to eight edits: bit flips, cuts, copies, nasty values.
fn mutate(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(8) {
        let at = random.below(bytes.len() + 1);
        match random.below(5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 => bytes.truncate(at),
            2 => {
                let end = (at + random.below(40)).min(bytes.len());
                bytes.drain(at..end);
            }
            3 => {
                let from = random.below(bytes.len());
                let end = (from + random.below(60)).min(bytes.len());
                let piece = bytes[from..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let end = (at + random.below(6)).min(bytes.len());
                bytes.splice(at..end, NASTY[random.below(NASTY.len())].iter().copied());
            }
        }
    }
    bytes
}

/// Runs a target on mutations of seeds, for a number of rounds or for as long as is asked for.
fn fuzz(seeds: &[Vec<u8>], rounds: u64, target: impl Fn(&[u8])) {
    let seconds = std::env::var("BROLLY_FUZZ_SECONDS").ok().and_then(|s| s.parse::<u64>().ok());
    let start = Instant::now();
    // At length, each run starts elsewhere.
    let mut random = Random(seconds.map_or(1, |_| u64::from(std::process::id())));
    let mut round = 0;
    loop {
        let enough = match seconds {
            Some(s) => start.elapsed() >= Duration::from_secs(s),
            None => round >= rounds,
        };
        if enough {
            println!("{round} rounds in {:.1} s", start.elapsed().as_secs_f64());
            return;
        }
        let seed = &seeds[random.below(seeds.len())];
        let bytes = mutate(seed, &mut random);
        let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| target(&bytes)));
        if answer.is_err() {
            let file = std::env::temp_dir().join(format!("brolly-fuzz-{}", std::process::id()));
            std::fs::write(&file, &bytes).unwrap();
            panic!("round {round} panicked; the input is in {}", file.display());
        }
        round += 1;
    }
}

fn families() -> Vec<std::path::PathBuf> {
    let mut cases: Vec<_> =
        std::fs::read_dir(data("families")).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    cases
}

#[test]
fn fuzz_safetensors() {
    let seeds: Vec<Vec<u8>> = families()
        .iter()
        .filter_map(|c| std::fs::read(c.join("model.safetensors")).ok())
        .take(4)
        // The header is what is parsed; a short tail keeps offsets meaningful.
        .map(|b| b[..b.len().min(20_000)].to_vec())
        .collect();
    fuzz(&seeds, 3000, |bytes| {
        let bytes: Arc<dyn Bytes> = Arc::new(bytes.to_vec());
        let _ = safetensors::parse(Path::new("fuzz.safetensors"), &bytes);
    });
}

#[test]
fn fuzz_config() {
    let seeds: Vec<Vec<u8>> =
        families().iter().map(|c| std::fs::read(c.join("config.json")).unwrap()).collect();
    fuzz(&seeds, 5000, |bytes| {
        let _ = Description::parse(Path::new("config.json"), bytes, &ImportOptions::default());
    });
}

#[test]
fn fuzz_ir_text() {
    let import = frontend::import(&data("families/llama-gqa3"), &ImportOptions::default());
    let module = import.map_err(|e| e.len()).unwrap().module;
    let seeds = [module.to_string().into_bytes()];
    fuzz(&seeds, 1500, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(module) = ir::parse_module(&text) {
            let _ = ir::verify(&module);
        }
    });
}

#[test]
fn fuzz_artifact() {
    let model = data("families/llama-gqa3");
    let (path, _) = compile_to("fuzz", &model, &options(ImportOptions::default()));
    let seeds = [std::fs::read(path).unwrap()];
    fuzz(&seeds, 300, |bytes| {
        let _ = artifact::parse(Path::new("fuzz.brolly"), bytes);
    });
}
