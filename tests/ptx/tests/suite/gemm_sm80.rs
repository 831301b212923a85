//! The Ampere product of bfloat16 matrices: right as it is, and caught when it is broken.

use std::time::Instant;

use brolly_ptx::{Arch, Fault, FaultKind, Gpu, Launch, Module, Param, Report};
use half::bf16;

use crate::common::{Random, bf16_bytes, dot, fixture, replace};

/// Rows and columns of all matrices, as the fixture has them built in.
const SIZE: usize = 4096;
const TILE: usize = 128;

/// The largest error of a tile, or the fault.
fn run(text: &str, seed: u64) -> (Result<Report, Fault>, f64) {
    let module = Module::parse(text).unwrap_or_else(|errors| panic!("{errors}"));
    let mut gpu = Gpu::new(Arch::Sm80);
    let mut random = Random::new(11);
    let [a, b]: [Vec<bf16>; 2] = std::array::from_fn(|_| random.bf16s(TILE * SIZE));
    let [in_a, in_b] = [(1, &a), (2, &b)].map(|(tile, values)| {
        let address = gpu.alloc(SIZE * SIZE * 2);
        gpu.write(address + (tile * TILE * SIZE * 2) as u64, &bf16_bytes(values));
        address
    });
    let out = gpu.alloc(SIZE * SIZE * 4);
    let launch = Launch {
        grid: [32, 32, 1],
        block: [128, 1, 1],
        dynamic_shared: 81920,
        params: vec![Param::U64(in_a), Param::U64(in_b), Param::U64(out)],
        seed,
        blocks: Some(vec![[2, 1, 0]]),
        ..Launch::default()
    };
    let result = gpu.launch(&module, "gemm_bf16", &launch);
    if result.is_err() {
        return (result, f64::NAN);
    }
    let mut worst = 0.0f64;
    for row in 0..TILE {
        let address = out + (((TILE + row) * SIZE + 2 * TILE) * 4) as u64;
        for (column, found) in gpu.read_f32s(address, TILE).into_iter().enumerate() {
            worst = worst.max((f64::from(found) - dot(&a, &b, SIZE, row, column)).abs());
        }
    }
    (result, worst)
}

/// The fixture with 16 of its 128 steps along `k`.
fn short() -> String {
    let text = replace(&fixture("mma.sm_80.ptx"), "%p2, %rd99, 8192", "%p2, %rd99, 1024");
    replace(&text, "%p1, %rd75, 124", "%p1, %rd75, 12")
}

#[test]
fn it_matches_f64_over_the_whole_depth() {
    let start = Instant::now();
    let (report, worst) = run(&fixture("mma.sm_80.ptx"), 1);
    let report = report.unwrap();
    println!("128x128x4096 in {:?}, largest error {worst:.2e}", start.elapsed());
    assert!(worst < 1e-3, "{worst}");
    assert_eq!(report.executed("mma.sync.aligned"), 4 * 64 * 128);
    assert_eq!(report.executed("cp.async"), 4 * 8 * 128);
    // Only of the copies: a pass takes two rows of 64 bytes, which are 80 bytes apart.
    assert_eq!(report.bank_conflicts, 4 * report.executed("cp.async"));
    assert_eq!(report.global_read_bytes, 2 * 128 * 4096 * 2);
    assert_eq!(report.global_write_bytes, 128 * 128 * 4);
}

#[test]
fn a_wait_that_is_too_weak_reads_what_is_in_flight() {
    let text = replace(&short(), "cp.async.wait_group \t2", "cp.async.wait_group \t3");
    let (result, _) = run(&text, 1);
    let kind = result.unwrap_err().kind;
    assert!(matches!(kind, FaultKind::InFlight { write: false, .. }), "{kind}");
}

#[test]
fn without_the_wait_nothing_lands() {
    let text = replace(&short(), "cp.async.wait_group \t2;", "");
    let kind = run(&text, 1).0.unwrap_err().kind;
    assert!(matches!(kind, FaultKind::InFlight { .. }), "{kind}");
}

#[test]
fn without_the_barrier_it_races_whatever_the_seed() {
    let text = replace(&short(), "bar.sync \t0;", "");
    for seed in 0..8 {
        let kind = run(&text, seed).0.unwrap_err().kind;
        let found = matches!(kind, FaultKind::Race { .. } | FaultKind::InFlight { .. });
        assert!(found, "seed {seed}: {kind}");
    }
}

#[test]
fn a_swap_of_fragments_gives_wrong_results() {
    let text =
        replace(&short(), "{%r5, %r6, %r7, %r8},\n\t\t{%r21", "{%r5, %r7, %r6, %r8},\n\t\t{%r21");
    let (result, worst) = run(&text, 1);
    result.unwrap();
    assert!(worst > 1.0, "{worst}");
}

#[test]
fn too_little_shared_memory_is_out_of_bounds() {
    let module = Module::parse(&short()).unwrap();
    let mut gpu = Gpu::new(Arch::Sm80);
    let data = gpu.upload(&vec![0; SIZE * SIZE * 2]);
    let params = vec![Param::U64(data); 3];
    let launch = Launch {
        grid: [32, 32, 1],
        block: [128, 1, 1],
        dynamic_shared: 40960,
        params,
        blocks: Some(vec![[0; 3]]),
        ..Launch::default()
    };
    let fault = gpu.launch(&module, "gemm_bf16", &launch).unwrap_err();
    assert!(matches!(fault.kind, FaultKind::OutOfBounds { space: "shared", .. }), "{fault}");
    assert!(fault.thread.is_some() && fault.line > 20);
}
