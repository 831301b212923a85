//! A warp-specialised product: one warp copies, a warpgroup multiplies, full and empty mbarriers
//! between them, and the result leaves by a bulk tensor copy.

use brolly_ptx::{Arch, Elem, FaultKind, Gpu, Launch, Module, Param, Swizzle, TensorMap};
use half::bf16;

use crate::common::{Random, bf16_bytes, dot, replace};

const DEPTH: usize = 512;

/// `C[64, 64] (f32) = A[64, 512] · B[64, 512]ᵀ`, two stages of 64 along `k`.
///
/// Stage `s`: A at `s · 16384`, B 8192 after it; C at 32768; full mbarriers at 49152, empty ones at
/// 49168. Warps 0 to 3 multiply, warp 4 copies.
fn text() -> String {
    let list: Vec<String> = (0..32).map(|index| format!("%f{index}")).collect();
    let accumulators = list.join(", ");
    let mut steps = String::new();
    for step in 0..4 {
        steps += &format!(
            "add.s64 %d6, %d4, {}; add.s64 %d7, %d5, {};\n\
             wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{{accumulators}}}, %d6, %d7, \
             %p4, 1, 1, 0, 0; setp.eq.u32 %p4, 0, 0;\n",
            2 * step,
            2 * step,
        );
    }
    // C by rows of 64 words: 128 bytes of swizzled chunks, twice.
    let mut stores = String::new();
    for index in 0..16 {
        let (column, low) = (index / 2 * 8, index % 2);
        let (half, within) = (column / 32, column % 32);
        stores += &format!(
            "add.u32 %r20, %r16, {}; shl.b32 %r21, %r20, 7; add.u32 %r21, %r21, {};\n\
             add.u32 %r21, %r21, %r17; shr.u32 %r22, %r21, 3; and.b32 %r22, %r22, 112;\n\
             xor.b32 %r21, %r21, %r22; add.u32 %r21, %r21, %r1;\n\
             st.shared.v2.f32 [%r21], {{%f{}, %f{}}};\n",
            8 * low,
            32768 + half * 8192 + within * 4,
            2 * index,
            2 * index + 1,
        );
    }
    format!(
        ".version 8.3\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 sm[];\n\
         .visible .entry k(.param .align 64 .b8 ma[128], .param .align 64 .b8 mb[128],\n\
         .param .align 64 .b8 mc[128]) {{\n\
         .reg .pred %p<8>; .reg .b32 %r<32>; .reg .f32 %f<32>; .reg .b64 %d<16>;\n\
         mov.b64 %d0, ma; cvta.param.u64 %d0, %d0; mov.b64 %d1, mb; cvta.param.u64 %d1, %d1;\n\
         mov.b64 %d2, mc; cvta.param.u64 %d2, %d2; mov.u32 %r1, sm; mov.u32 %r0, %tid.x;\n\
         setp.eq.u32 %p0, %r0, 0; @!%p0 bra READY;\n\
         mov.b32 %r2, 1; mbarrier.init.shared.b64 [sm+49152], %r2;\n\
         mbarrier.init.shared.b64 [sm+49160], %r2; mov.b32 %r2, 4;\n\
         mbarrier.init.shared.b64 [sm+49168], %r2; mbarrier.init.shared.b64 [sm+49176], %r2;\n\
         fence.mbarrier_init.release.cluster;\nREADY: bar.sync 0;\n\
         mov.b32 %r3, 0; setp.ge.u32 %p1, %r0, 128; @!%p1 bra CONSUMER;\n\
         setp.eq.u32 %p2, %r0, 128; @!%p2 bra END; mov.b32 %r4, 16384;\n\
         PRODUCE: and.b32 %r5, %r3, 1; shr.u32 %r6, %r3, 1; and.b32 %r6, %r6, 1;\n\
         xor.b32 %r7, %r6, 1; shl.b32 %r8, %r5, 3; add.u32 %r8, %r8, %r1;\n\
         EMPTY: mbarrier.try_wait.parity.shared.b64 %p3, [%r8+49168], %r7; @!%p3 bra EMPTY;\n\
         mbarrier.arrive.expect_tx.shared.b64 _, [%r8+49152], %r4;\n\
         shl.b32 %r9, %r5, 14; add.u32 %r9, %r9, %r1; add.u32 %r10, %r9, 8192;\n\
         shl.b32 %r11, %r3, 6; mov.b32 %r12, 0;\n\
         cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes\n\
         [%r9], [%d0, {{%r11, %r12}}], [%r8+49152];\n\
         cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes\n\
         [%r10], [%d1, {{%r11, %r12}}], [%r8+49152];\n\
         add.u32 %r3, %r3, 1; setp.lt.u32 %p3, %r3, 8; @%p3 bra PRODUCE; bra END;\n\
         CONSUMER: setp.ne.u32 %p4, 0, 0; and.b32 %r13, %r0, 31; setp.eq.u32 %p5, %r13, 0;\n\
         CONSUME: and.b32 %r5, %r3, 1; shr.u32 %r6, %r3, 1; and.b32 %r6, %r6, 1;\n\
         shl.b32 %r8, %r5, 3; add.u32 %r8, %r8, %r1;\n\
         FULL: mbarrier.try_wait.parity.shared.b64 %p3, [%r8+49152], %r6; @!%p3 bra FULL;\n\
         shl.b32 %r9, %r5, 14; add.u32 %r9, %r9, %r1; shr.u32 %r9, %r9, 4;\n\
         cvt.u64.u32 %d4, %r9; or.b64 %d4, %d4, {}; add.s64 %d5, %d4, 512;\n\
         wgmma.fence.sync.aligned;\n{steps}\
         wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n\
         @%p5 mbarrier.arrive.shared.b64 _, [%r8+49168];\n\
         add.u32 %r3, %r3, 1; setp.lt.u32 %p3, %r3, 8; @%p3 bra CONSUME;\n\
         shr.u32 %r14, %r0, 5; shl.b32 %r14, %r14, 4; shr.u32 %r15, %r13, 2;\n\
         add.u32 %r16, %r14, %r15; and.b32 %r17, %r0, 3; shl.b32 %r17, %r17, 3;\n{stores}\
         fence.proxy.async.shared::cta;\nbar.sync 1, 128;\n@!%p0 bra END;\n\
         mov.b32 %r12, 0; mov.b32 %r11, 32; add.u32 %r9, %r1, 32768; add.u32 %r10, %r1, 40960;\n\
         cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%d2, {{%r12, %r12}}], [%r9];\n\
         cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group\n\
         [%d2, {{%r11, %r12}}], [%r10];\n\
         cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;\nEND: ret;\n}}\n",
        1u64 << 62 | 64 << 32 | 1 << 16,
    )
}

fn run(text: &str, seed: u64) -> Result<f64, FaultKind> {
    let module = Module::parse(text).unwrap_or_else(|errors| panic!("{errors}"));
    let mut gpu = Gpu::new(Arch::Sm90a);
    let mut random = Random::new(3);
    let [a, b]: [Vec<bf16>; 2] = std::array::from_fn(|_| random.bf16s(64 * DEPTH));
    let swizzle = Swizzle::B128;
    let [in_a, in_b] = [&a, &b].map(|values| TensorMap {
        base: gpu.upload(&bf16_bytes(values)),
        elem: Elem::Bf16,
        dims: vec![DEPTH as u64, 64],
        strides: vec![DEPTH as u64 * 2],
        box_dims: vec![64, 64],
        swizzle,
        ..TensorMap::default()
    });
    let out = gpu.alloc(64 * 64 * 4);
    let map = TensorMap {
        base: out,
        elem: Elem::F32,
        dims: vec![64, 64],
        strides: vec![256],
        box_dims: vec![32, 64],
        swizzle,
        ..TensorMap::default()
    };
    let params = [in_a, in_b, map].map(|map| Param::Bytes(gpu.tensor_map(&map).to_vec()));
    let launch = Launch {
        block: [160, 1, 1],
        dynamic_shared: 49152 + 32,
        params: params.to_vec(),
        seed,
        ..Launch::default()
    };
    gpu.launch(&module, "k", &launch).map_err(|fault| fault.kind)?;
    let found = gpu.read_f32s(out, 64 * 64);
    let error =
        |index: usize| (f64::from(found[index]) - dot(&a, &b, DEPTH, index / 64, index % 64)).abs();
    Ok((0..64 * 64).map(error).fold(0.0, f64::max))
}

#[test]
fn it_is_right_whatever_the_seed() {
    for seed in 0..12 {
        let worst = run(&text(), seed).unwrap();
        assert!(worst < 1e-4, "seed {seed}: {worst}");
    }
}

/// The fault of a broken kernel, which has to show with every seed.
fn fails(from: &str, to: &str, is_expected: fn(&FaultKind) -> bool) {
    let text = replace(&text(), from, to);
    for seed in 0..6 {
        match run(&text, seed) {
            Err(kind) => assert!(is_expected(&kind), "seed {seed}: {kind}"),
            Ok(worst) => panic!("seed {seed}: no fault, error {worst}"),
        }
    }
}

fn overwrites_what_is_read(kind: &FaultKind) -> bool {
    matches!(kind, FaultKind::Race { write: true, other_write: false, .. })
}

#[test]
fn a_producer_that_does_not_wait_is_caught() {
    fails("@!%p3 bra EMPTY;", "", |kind| {
        // It may also meet its own copy, of which it does not know that it landed.
        let race = matches!(kind, FaultKind::Race { write: true, .. });
        race || matches!(kind, FaultKind::InFlight { write: true, .. })
    });
}

#[test]
fn a_stage_that_is_released_too_early_is_caught() {
    fails("wgmma.wait_group.sync.aligned 0;\n@%p5", "@%p5", |kind| {
        overwrites_what_is_read(kind) || matches!(kind, FaultKind::WgmmaInFlight { .. })
    });
    fails("wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;", |kind| {
        overwrites_what_is_read(kind) || matches!(kind, FaultKind::WgmmaInFlight { .. })
    });
}

#[test]
fn a_wrong_count_of_arrivals_is_caught() {
    fails("mov.b32 %r2, 4;", "mov.b32 %r2, 3;", |kind| {
        let early = matches!(kind, FaultKind::Mbarrier { .. } | FaultKind::Deadlock(_));
        early || overwrites_what_is_read(kind)
    });
    fails("mov.b32 %r2, 4;", "mov.b32 %r2, 5;", |kind| matches!(kind, FaultKind::Deadlock(_)));
}

#[test]
fn a_consumer_that_does_not_wait_is_caught() {
    fails("@!%p3 bra FULL;", "", |kind| {
        let unknown = matches!(kind, FaultKind::Uninitialised { .. } | FaultKind::Race { .. });
        unknown || matches!(kind, FaultKind::InFlight { .. })
    });
}

#[test]
fn a_result_that_leaves_unfenced_or_unsynchronised_is_caught() {
    fails("fence.proxy.async.shared::cta;", "", |kind| {
        matches!(kind, FaultKind::MissingProxyFence { .. })
    });
    fails("bar.sync 1, 128;", "", |kind| {
        matches!(kind, FaultKind::Race { .. } | FaultKind::Uninitialised { .. })
    });
    fails("cp.async.bulk.wait_group 0;", "", |kind| matches!(kind, FaultKind::ExitInFlight { .. }));
}

#[test]
fn a_barrier_that_expects_the_producer_is_caught() {
    fails("bar.sync 1, 128;", "bar.sync 1, 160;", |kind| matches!(kind, FaultKind::Deadlock(_)));
}

#[test]
fn results_that_are_not_swizzled_are_wrong() {
    let worst = run(&replace(&text(), "xor.b32 %r21, %r21, %r22;", ""), 1).unwrap();
    assert!(worst > 1.0, "{worst}");
}
