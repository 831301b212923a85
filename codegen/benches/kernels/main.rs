//! Every kernel family over a sweep of sizes, against what this machine can do in the same run: f32
//! fused multiply-adds in registers (peak) and reading memory in 1 to 8 streams a thread
//! (bandwidth).
//!
//! `cargo bench -p brolly-codegen --bench kernels [-- FLAGS]` prints one line of JSON a case;
//! `cargo xtask bench` runs this and makes tables of it. Flags:
//!
//! - `--quick`: the first size of every family, three rounds.
//! - `--only TEXT`: families whose name contains the text.
//! - `--native`: code for all that this processor has, not for the baseline.
//! - `--threads N`: besides one thread; 1 for one thread only.
//! - `--openblas FILE`: a library with `cblas_sgemm`, which then multiplies f32 beside us.
//!
//! A case is verified before it is timed: a few rows against the interpreter, then all rows against
//! the few, bit for bit. Runs of the kernel, of both yardsticks and of the peer alternate; what is
//! printed are quartiles over the rounds. A ratio is that of the time which the slower of the two
//! yardsticks would take for the operations and bytes of the case, to the time that it takes.

#![allow(clippy::print_stdout, reason = "a bench prints")]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a bench may stop")]

mod blas;
mod cases;
mod run;
#[path = "../../src/testing.rs"]
mod testing;
mod yardstick;

use std::path::PathBuf;

use brolly_codegen::native_target;
use ir::Target;

use blas::Blas;
use cases::{TABLE, Weight};
use run::Prepared;
use yardstick::{Yardsticks, quartiles};

const ROUNDS: usize = 9;
const QUICK_ROUNDS: usize = 3;

#[derive(Default)]
struct Flags {
    quick: bool,
    native: bool,
    only: String,
    threads: Option<usize>,
    openblas: Option<PathBuf>,
}

impl Flags {
    fn parse() -> Flags {
        let mut flags = Flags::default();
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().unwrap_or_else(|| panic!("{arg} takes a value"));
            match &*arg {
                "--quick" => flags.quick = true,
                "--native" => flags.native = true,
                "--only" => flags.only = value(),
                "--threads" => flags.threads = Some(value().parse().unwrap()),
                "--openblas" => flags.openblas = Some(value().into()),
                // Cargo's own.
                "--bench" => {}
                other => {
                    panic!("unknown flag {other}; those there are head benches/kernels/main.rs")
                }
            }
        }
        flags
    }
}

fn main() {
    let flags = Flags::parse();
    let target = if flags.native { native_target().unwrap() } else { Target::x86_64_v3() };
    let available = std::thread::available_parallelism().map_or(1, |n| n.get());
    let most = flags.threads.unwrap_or(available);
    let threads: Vec<usize> = if most == 1 { vec![1] } else { vec![1, most] };
    let blas = flags.openblas.as_deref().map(|path| Blas::open(path).unwrap());
    let yardsticks = Yardsticks::new(&target);
    let rounds = if flags.quick { QUICK_ROUNDS } else { ROUNDS };
    let mut last = "";
    for row in TABLE.iter().filter(|row| row.family.contains(&flags.only)) {
        let first = std::mem::replace(&mut last, row.family) != row.family;
        if flags.quick && !first {
            continue;
        }
        let prepared = Prepared::new(row, &target);
        for &count in &row.rows[..if flags.quick { 1 } else { row.rows.len() }] {
            let case = prepared.case(count);
            case.verify();
            for &threads in &threads {
                let peer = blas.as_ref().filter(|_| matches!(row.weight(), Some(Weight::F32)));
                let samples: Vec<_> =
                    (0..rounds).map(|_| case.sample(threads, &yardsticks, peer)).collect();
                println!("{}", case.report(threads, &samples));
            }
        }
    }
}

/// Quartiles as JSON.
fn json(values: impl IntoIterator<Item = f64>) -> String {
    let [low, median, high] = quartiles(values.into_iter().collect());
    format!("[{low},{median},{high}]")
}
