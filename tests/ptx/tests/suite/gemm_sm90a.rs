//! The Hopper product of bfloat16 matrices: bulk tensor copies, mbarriers, `wgmma`.

use std::time::Instant;

use brolly_ptx::{
    Arch, Elem, Fault, FaultKind, Gpu, Launch, Module, Param, Report, Swizzle, TensorMap,
};
use half::bf16;

use crate::common::{Random, bf16_bytes, dot, fixture, replace};

const SIZE: usize = 4096;
const TILE: usize = 128;

fn run_with(text: &str, seed: u64, swizzle: Swizzle) -> (Result<Report, Fault>, f64) {
    let module = Module::parse(text).unwrap_or_else(|errors| panic!("{errors}"));
    let mut gpu = Gpu::new(Arch::Sm90a);
    let mut random = Random::new(11);
    let [a, b]: [Vec<bf16>; 2] = std::array::from_fn(|_| random.bf16s(TILE * SIZE));
    let maps = [(1, &a), (2, &b)].map(|(tile, values)| {
        let base = gpu.alloc(SIZE * SIZE * 2);
        gpu.write(base + (tile * TILE * SIZE * 2) as u64, &bf16_bytes(values));
        let map = TensorMap {
            base,
            elem: Elem::Bf16,
            dims: vec![SIZE as u64; 2],
            strides: vec![SIZE as u64 * 2],
            box_dims: vec![64, TILE as u32],
            swizzle,
            ..TensorMap::default()
        };
        Param::Bytes(gpu.tensor_map(&map).to_vec())
    });
    let out = gpu.alloc(SIZE * SIZE * 4);
    let [map_a, map_b] = maps;
    let launch = Launch {
        grid: [32, 32, 1],
        block: [128, 1, 1],
        dynamic_shared: 131_072 + 32,
        params: vec![map_a, map_b, Param::U64(out)],
        seed,
        blocks: Some(vec![[2, 1, 0]]),
        ..Launch::default()
    };
    let result = gpu.launch(&module, "gemm_wgmma", &launch);
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

fn run(text: &str, seed: u64) -> (Result<Report, Fault>, f64) {
    run_with(text, seed, Swizzle::B128)
}

/// The fixture with 8 of its 64 steps along `k`.
fn short() -> String {
    let text = replace(&fixture("wgmma.sm_90a.ptx"), "%p4, %r32, 4352", "%p4, %r32, 768");
    replace(&text, "%p2, %r161, 59", "%p2, %r161, 3")
}

fn fails(text: &str) -> FaultKind {
    run(text, 1).0.expect_err("the kernel should fault").kind
}

#[test]
fn it_matches_f64_over_the_whole_depth() {
    let start = Instant::now();
    let (report, worst) = run(&fixture("wgmma.sm_90a.ptx"), 1);
    let report = report.unwrap();
    println!("128x128x4096 in {:?}, largest error {worst:.2e}", start.elapsed());
    assert!(worst < 1e-3, "{worst}");
    assert_eq!(report.executed("wgmma.mma_async.sync.aligned"), 4 * 8 * 64);
    assert_eq!(report.executed("cp.async.bulk.tensor"), 2 * 64);
    assert_eq!(report.global_read_bytes, 2 * 128 * 4096 * 2);
}

#[test]
fn a_wrong_swizzle_or_k_step_gives_wrong_results() {
    let (result, worst) = run_with(&short(), 1, Swizzle::None);
    result.unwrap();
    assert!(worst > 10.0, "{worst}");
    let text =
        replace(&short(), "%rd44, %rd51, 4611686293305361412", "%rd44, %rd51, 4611686293305361410");
    let (result, worst) = run(&text, 1);
    result.unwrap();
    assert!(worst > 10.0, "{worst}");
}

#[test]
fn without_the_wait_for_its_group_accumulators_are_untouchable() {
    let text = replace(
        &short(),
        "wgmma.wait_group.sync.aligned \t0;",
        "wgmma.wait_group.sync.aligned \t1;",
    );
    let kind = fails(&text);
    // The stage is filled again while a group may read it, or the results are read too early.
    let found = matches!(
        kind,
        FaultKind::Race { write: true, other_write: false, .. } | FaultKind::WgmmaInFlight { .. }
    );
    assert!(found, "{kind}");
}

#[test]
fn without_the_fence_registers_are_stale() {
    let kind = fails(&replace(&short(), "wgmma.fence.sync.aligned;", ""));
    assert!(matches!(kind, FaultKind::MissingWgmmaFence { .. }), "{kind}");
}

#[test]
fn without_the_barrier_the_stage_is_filled_too_early() {
    let text = replace(
        &short(),
        "wgmma.wait_group.sync.aligned \t0;\n\tbar.sync \t0;",
        "wgmma.wait_group.sync.aligned \t0;",
    );
    for seed in 0..6 {
        let kind = run(&text, seed).0.unwrap_err().kind;
        // The refill meets a product that was issued, or a product meets the refill.
        let found = matches!(
            kind,
            FaultKind::Race { write: true, other_write: false, .. }
                | FaultKind::InFlight { write: false, .. }
        );
        assert!(found, "seed {seed}: {kind}");
    }
}

#[test]
fn without_the_wait_for_the_copy_its_data_is_in_flight() {
    let text = replace(&short(), "@P1 bra.uni DONE;", "bra.uni DONE;");
    let kind = fails(&text);
    let unknown = |kind: &FaultKind| {
        matches!(
            kind,
            FaultKind::InFlight { write: false, .. }
                | FaultKind::Race { write: false, other_write: true, .. }
        )
    };
    assert!(unknown(&kind), "{kind}");
    let text = replace(&short(), "bra.uni     LAB_WAIT;", "bra.uni DONE;");
    let kind = fails(&text);
    assert!(unknown(&kind), "{kind}");
}

#[test]
fn a_wrong_parity_reads_what_is_in_flight() {
    let text = replace(&short(), "bfe.u32 \t%r13, %r161, 2, 1;", "bfe.u32 \t%r13, %r161, 1, 1;");
    let result = run(&text, 1).0.unwrap_err();
    let found = matches!(result.kind, FaultKind::InFlight { .. } | FaultKind::Deadlock(_));
    assert!(found, "{result}");
}

#[test]
fn a_wrong_count_of_bytes_never_completes() {
    let kind = fails(&replace(&short(), "mov.b32 \t%r7, 32768;", "mov.b32 \t%r7, 16384;"));
    assert!(matches!(kind, FaultKind::Deadlock(_)), "{kind}");
}

#[test]
fn without_its_fence_the_mbarrier_is_unknown_to_copies() {
    let kind = fails(&replace(&short(), "fence.mbarrier_init.release.cluster;", ""));
    assert!(matches!(kind, FaultKind::MissingProxyFence { .. }), "{kind}");
}

#[test]
fn a_warp_that_goes_elsewhere_is_caught() {
    // Warp 3 uses another descriptor of B.
    let text = replace(
        &short(),
        "wgmma.fence.sync.aligned;",
        "setp.gt.u32 %p3, %r1, 95;\n@%p3 add.s64 %rd51, %rd51, 8;\nwgmma.fence.sync.aligned;",
    );
    let kind = fails(&text);
    let found = matches!(kind, FaultKind::Warpgroup(_) | FaultKind::Descriptor { .. });
    assert!(found, "{kind}");
}
