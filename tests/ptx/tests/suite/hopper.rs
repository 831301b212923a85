//! Bulk copies, mbarriers, clusters and `wgmma` in small kernels.

use brolly_ptx::{Arch, Elem, FaultKind, Gpu, Launch, Module, Param, Report, Swizzle, TensorMap};
use half::bf16;

use crate::common::{Random, bf16_bytes, fault, run};

fn sm90(body: &str, threads: u32) -> FaultKind {
    fault(Arch::Sm90a, body, threads).kind
}

/// An mbarrier for one arrival at `sm+16384`, by thread 0.
const INIT: &str = "setp.eq.u32 %p0, %lane, 0; mov.b32 %r0, 1;\n\
    @%p0 mbarrier.init.shared.b64 [sm+16384], %r0;\n\
    fence.mbarrier_init.release.cluster; bar.sync 0; mov.u32 %r1, sm; mov.b32 %r2, 512;\n";
const LOAD: &str = "@%p0 mbarrier.arrive.expect_tx.shared.b64 _, [sm+16384], %r2;\n\
    @%p0 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%in], 512, \
    [sm+16384];\n";
const WAIT: &str = "W: mbarrier.try_wait.parity.shared.b64 %p1, [sm+16384], 0; @!%p1 bra W;\n";

#[test]
fn a_bulk_copy_lands_for_all_who_wait() {
    let body = format!(
        "{INIT}{LOAD}{WAIT}shl.b32 %r3, %lane, 2; add.u32 %r3, %r3, %r1; ld.shared.b32 %r4, [%r3];\n\
         st.global.b32 [%out], %r4;"
    );
    let input: Vec<u8> = (0..4096u32).flat_map(|word| word.to_le_bytes()).collect();
    for seed in 0..10 {
        let outcome = run(Arch::Sm90a, &body, &input, 1, 128, seed);
        outcome.result.unwrap();
        assert_eq!(outcome.words, (0..128).collect::<Vec<u32>>());
    }
}

#[test]
fn copies_of_threads_arrive_when_they_have_landed() {
    let body = |wait: &str| {
        format!(
            "{}shl.b32 %r3, %lane, 4; add.u32 %r3, %r3, %r1;\n\
             cp.async.ca.shared.global [%r3], [%in], 16;\n\
             cp.async.mbarrier.arrive.noinc.shared.b64 [sm+16384];\n{wait}\
             shl.b32 %r4, %lane, 2; add.u32 %r4, %r4, %r1; ld.shared.b32 %r5, [%r4];\n\
             st.global.b32 [%out], %r5;",
            INIT.replace("mov.b32 %r0, 1;", "mov.b32 %r0, 64;")
        )
    };
    let input: Vec<u8> = (0..4096u32).flat_map(|word| word.to_le_bytes()).collect();
    for seed in 0..6 {
        let outcome = run(Arch::Sm90a, &body(WAIT), &input, 1, 64, seed);
        outcome.result.unwrap();
        assert_eq!(outcome.words, (0..64).collect::<Vec<u32>>());
        let kind = run(Arch::Sm90a, &body(""), &input, 1, 64, seed).result.unwrap_err().kind;
        let found = matches!(kind, FaultKind::InFlight { .. } | FaultKind::Uninitialised { .. });
        assert!(found, "{kind}");
    }
}

#[test]
fn only_who_waits_may_read() {
    let read = "ld.shared.b32 %r4, [sm];";
    let kind = sm90(&format!("{INIT}{LOAD}{read}{WAIT}"), 64);
    assert!(matches!(kind, FaultKind::InFlight { write: false, .. }), "{kind}");
    let one =
        format!("{INIT}{LOAD}setp.lt.u32 %p2, %lane, 32; @!%p2 bra READ;\n{WAIT}READ: {read}");
    for seed in 0..10 {
        let kind = run(Arch::Sm90a, &one, &[0; 4096], 1, 64, seed).result.unwrap_err().kind;
        let found = matches!(
            kind,
            FaultKind::InFlight { .. } | FaultKind::Race { .. } | FaultKind::Uninitialised { .. }
        );
        assert!(found, "{kind}");
    }
}

#[test]
fn mbarriers_are_checked() {
    let kind = sm90("mbarrier.arrive.shared.b64 %d0, [sm];", 1);
    assert!(matches!(kind, FaultKind::Mbarrier { reason: "there is no mbarrier", .. }), "{kind}");
    let kind = sm90(&format!("{INIT}ld.shared.b32 %r4, [sm+16384];"), 32);
    assert!(matches!(kind, FaultKind::Mbarrier { .. }), "{kind}");
    let twice = format!("{INIT}@%p0 mbarrier.init.shared.b64 [sm+16384], %r0;");
    assert!(matches!(sm90(&twice, 32), FaultKind::Mbarrier { .. }));
    let kind = sm90(&format!("{INIT}mbarrier.arrive.shared.b64 %d0, [sm+16384], 2;"), 1);
    assert!(matches!(kind, FaultKind::Mbarrier { .. }), "{kind}");
    let many = "mov.b32 %r5, 1048575;\n\
        mbarrier.expect_tx.relaxed.cta.shared.b64 [sm+16384], %r5;\n\
        mbarrier.expect_tx.relaxed.cta.shared.b64 [sm+16384], %r5;";
    assert!(matches!(sm90(&format!("{INIT}{many}"), 1), FaultKind::MbarrierTx { .. }));
    let kind = sm90(&format!("{INIT}{WAIT}"), 32);
    assert!(matches!(kind, FaultKind::Deadlock(_)), "{kind}");
    let unsynced = INIT.replace("bar.sync 0;", "");
    let kind = sm90(&format!("{unsynced}@!%p0 mbarrier.arrive.shared.b64 %d0, [sm+16384];"), 32);
    assert!(matches!(kind, FaultKind::Race { .. }), "{kind}");
}

#[test]
fn an_arrival_orders_what_came_before_it() {
    // Every lane reads; one arrives for all, with or without a warp barrier; another warp writes.
    let body = |sync: &str| {
        format!(
            "{INIT}shl.b32 %r3, %lane, 2; add.u32 %r3, %r3, %r1; setp.lt.u32 %p2, %lane, 32;\n\
             @%p2 st.shared.b32 [%r3], %lane; bar.sync 0; @!%p2 bra WRITER;\n\
             ld.shared.b32 %r4, [%r3]; {sync} @%p0 mbarrier.arrive.shared.b64 %d0, [sm+16384];\n\
             bra END;\nWRITER: {WAIT} st.shared.b32 [%r3+-128], %lane;\nEND:"
        )
    };
    for seed in 0..6 {
        let result = |sync: &str| run(Arch::Sm90a, &body(sync), &[0; 4096], 1, 64, seed).result;
        result("bar.warp.sync -1;").unwrap();
        let kind = result("").unwrap_err().kind;
        assert!(matches!(kind, FaultKind::Race { write: true, other_write: false, .. }), "{kind}");
    }
}

#[test]
fn generic_writes_need_a_fence_before_the_asynchronous_proxy() {
    let store = |fence: &str, wait: &str| {
        format!(
            "mov.u32 %r1, sm; shl.b32 %r3, %lane, 2; add.u32 %r3, %r3, %r1;\n\
             st.shared.b32 [%r3], %lane; {fence} bar.sync 0; setp.eq.u32 %p0, %lane, 0;\n\
             @!%p0 bra END; cp.async.bulk.global.shared::cta.bulk_group [%out], [%r1], 128;\n\
             cp.async.bulk.commit_group; {wait}\nEND:"
        )
    };
    let fence = "fence.proxy.async.shared::cta;";
    let wait = "cp.async.bulk.wait_group 0;";
    let outcome = run(Arch::Sm90a, &store(fence, wait), &[0; 512], 1, 32, 1);
    outcome.result.unwrap();
    assert_eq!(outcome.words, (0..32).collect::<Vec<u32>>());
    let kind = sm90(&store("", wait), 32);
    assert!(matches!(kind, FaultKind::MissingProxyFence { write_line: 12, .. }), "{kind}");
    let kind = sm90(&store(fence, ""), 32);
    assert!(matches!(kind, FaultKind::ExitInFlight { .. }), "{kind}");
    let again = "st.shared.b32 [%r1], %lane; cp.async.bulk.wait_group.read 0;";
    let kind = sm90(&store(fence, again), 32);
    assert!(matches!(kind, FaultKind::Race { write: true, other_write: false, .. }), "{kind}");
    let after = "cp.async.bulk.wait_group.read 0; st.shared.b32 [%r1], %lane;";
    assert!(run(Arch::Sm90a, &store(fence, after), &[0; 512], 1, 32, 1).result.is_ok());
}

#[test]
fn misaligned_copies_are_faults() {
    let kind = sm90(&format!("{INIT}{}", LOAD.replace("[%r1], [%in]", "[%r1+8], [%in]")), 1);
    assert!(matches!(kind, FaultKind::Misaligned { align: 16, .. }), "{kind}");
    let kind = sm90(&format!("{INIT}{}", LOAD.replace(", 512,", ", 500,")), 1);
    assert!(matches!(kind, FaultKind::Operand(_)), "{kind}");
}

/// Copies a box at (`x`, `y`) of a 2d tensor of words into shared memory and back to another
/// tensor.
fn tensor_round_trip(swizzle: Swizzle, corner: [i32; 2]) -> Vec<u32> {
    let text = format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n\
         .visible .entry k(.param .align 64 .b8 from[128], .param .align 64 .b8 to[128]) {{\n\
         .reg .pred %p<2>; .reg .b32 %r<8>; .reg .b64 %d<4>; .shared .align 1024 .b8 sm[4096];\n\
         mov.b64 %d0, from; cvta.param.u64 %d0, %d0; mov.b64 %d1, to; cvta.param.u64 %d1, %d1;\n\
         mov.b32 %r0, 1; mbarrier.init.shared.b64 [sm+2048], %r0;\n\
         fence.mbarrier_init.release.cluster; mov.b32 %r1, {}; mov.u32 %r2, sm;\n\
         mbarrier.arrive.expect_tx.shared.b64 _, [sm+2048], %r1;\n\
         mov.b32 %r3, {}; mov.b32 %r4, {};\n\
         cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes\n\
         [%r2], [%d0, {{%r3, %r4}}], [sm+2048];\n\
         W: mbarrier.try_wait.parity.shared.b64 %p0, [sm+2048], 0; @!%p0 bra W;\n\
         mov.b32 %r5, 0;\n\
         cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%d1, {{%r5, %r5}}], [%r2];\n\
         cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; ret; }}",
        swizzle.span().max(32) * 8,
        corner[0],
        corner[1],
    );
    let module = Module::parse(&text).unwrap_or_else(|errors| panic!("{errors}"));
    let mut gpu = Gpu::new(Arch::Sm90a);
    let width = swizzle.span().max(32) / 4;
    let input: Vec<u8> = (0..40 * 20u32).flat_map(|word| (word + 1).to_le_bytes()).collect();
    let from = gpu.upload(&input);
    let to = gpu.alloc((width * 8 * 4) as usize);
    let map = |base: u64, dims: [u64; 2]| TensorMap {
        base,
        elem: Elem::U32,
        dims: dims.to_vec(),
        strides: vec![dims[0] * 4],
        box_dims: vec![width, 8],
        swizzle,
        ..TensorMap::default()
    };
    let maps = [map(from, [40, 20]), map(to, [width.into(), 8])];
    let params = maps.map(|map| Param::Bytes(gpu.tensor_map(&map).to_vec())).to_vec();
    gpu.launch(&module, "k", &Launch { block: [1, 1, 1], params, ..Launch::default() }).unwrap();
    let bytes = gpu.read(to, (width * 8 * 4) as usize);
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

#[test]
fn tensor_copies_cut_boxes_and_fill_with_zeros() {
    for swizzle in [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128] {
        for corner in [[0, 0], [4, 3], [35, 15], [-3, -2]] {
            let words = tensor_round_trip(swizzle, corner);
            let width = words.len() / 8;
            for (index, found) in words.into_iter().enumerate() {
                let x = corner[0] + (index % width) as i32;
                let y = corner[1] + (index / width) as i32;
                let inside = (0..40).contains(&x) && (0..20).contains(&y);
                let expected = if inside { y * 40 + x + 1 } else { 0 };
                assert_eq!(found, expected as u32, "{swizzle:?} {corner:?} {index}");
            }
        }
    }
}

#[test]
fn a_tensor_copy_needs_an_aligned_destination() {
    let text = "\n.visible .entry k(.param .align 64 .b8 map[128]) {\n\
        .reg .b32 %r<4>; .reg .b64 %d<2>; .shared .align 1024 .b8 sm[4096];\n\
        mov.b64 %d0, map; cvta.param.u64 %d0, %d0; mov.b32 %r0, 1; mov.u32 %r2, sm;\n\
        mbarrier.init.shared.b64 [sm+2048], %r0; fence.mbarrier_init.release.cluster;\n\
        cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes\n\
        [%r2+64], [%d0, {%r0}], [sm+2048]; ret; }";
    let text = format!(".version 8.0\n.target sm_90a\n.address_size 64{text}");
    let module = Module::parse(&text).unwrap();
    let mut gpu = Gpu::new(Arch::Sm90a);
    let base = gpu.upload(&[0; 1024]);
    let (dims, box_dims) = (vec![1024], vec![64]);
    let map = gpu.tensor_map(&TensorMap { base, dims, box_dims, ..TensorMap::default() });
    let params = vec![Param::Bytes(map.to_vec())];
    let launch = Launch { block: [1, 1, 1], params, ..Launch::default() };
    let kind = gpu.launch(&module, "k", &launch).unwrap_err().kind;
    assert!(matches!(kind, FaultKind::Misaligned { space: "shared", align: 128, .. }), "{kind}");
    let broken = Launch { params: vec![Param::Bytes(vec![0; 128])], ..launch };
    let kind = gpu.launch(&module, "k", &broken).unwrap_err().kind;
    assert!(matches!(kind, FaultKind::TensorMap(_)), "{kind}");
}

/// Launches a cluster of two blocks of 32 threads.
fn cluster(body: &str, seed: u64) -> (Result<Report, FaultKind>, Vec<u32>) {
    let text = crate::common::kernel("sm_90a", body, 1);
    let module = Module::parse(&text).unwrap_or_else(|errors| panic!("{errors}"));
    let mut gpu = Gpu::new(Arch::Sm90a);
    let input: Vec<u8> = (0..1024u32).flat_map(|word| word.to_le_bytes()).collect();
    let (given, out) = (gpu.upload(&input), gpu.upload(&[0; 256]));
    let launch = Launch {
        grid: [2, 1, 1],
        cluster: [2, 1, 1],
        params: vec![Param::U64(given), Param::U64(out)],
        seed,
        ..Launch::default()
    };
    let result = gpu.launch(&module, "k", &launch).map_err(|fault| fault.kind);
    let bytes = gpu.read(out, 256);
    let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    (result, bytes.chunks_exact(4).map(word).collect())
}

const RANK: &str = "mov.u32 %r20, %cluster_ctarank; mul.wide.u32 %d9, %r20, 128;\n\
    add.s64 %out, %out, %d9; setp.eq.u32 %p0, %lane, 0; setp.eq.u32 %p3, %r20, 0;\n";
const CLUSTER_SYNC: &str =
    "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;\n";

#[test]
fn blocks_of_a_cluster_read_each_other() {
    let body = |sync: &str| {
        format!(
            "{RANK}mov.u32 %r1, sm; shl.b32 %r2, %lane, 2; add.u32 %r2, %r2, %r1;\n\
             mul.lo.u32 %r3, %r20, 100; add.u32 %r3, %r3, %lane; st.shared.b32 [%r2], %r3;\n{sync}\
             xor.b32 %r4, %r20, 1; mapa.shared::cluster.u32 %r5, %r2, %r4;\n\
             ld.shared::cluster.b32 %r6, [%r5]; st.global.b32 [%out], %r6;\n{CLUSTER_SYNC}"
        )
    };
    for seed in 0..6 {
        let (result, words) = cluster(&body(CLUSTER_SYNC), seed);
        result.unwrap();
        assert_eq!(words, (100..132).chain(0..32).collect::<Vec<u32>>());
        let kind = cluster(&body("bar.sync 0;"), seed).0.unwrap_err();
        let found = matches!(kind, FaultKind::Race { .. } | FaultKind::Uninitialised { .. });
        assert!(found, "{kind}");
    }
}

#[test]
fn a_multicast_lands_in_every_block() {
    let body = format!(
        "{RANK}mov.b32 %r0, 1; mov.u32 %r1, sm; mov.b32 %r2, 128; mov.b16 %h0, 3;\n\
         @%p0 mbarrier.init.shared.b64 [sm+16384], %r0; fence.mbarrier_init.release.cluster;\n\
         {CLUSTER_SYNC}\
         @%p0 mbarrier.arrive.expect_tx.shared.b64 _, [sm+16384], %r2;\n\
         and.pred %p4, %p0, %p3;\n\
         @%p4 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster \
         [%r1], [%in], 128, [sm+16384], %h0;\n\
         {WAIT}shl.b32 %r3, %lane, 2; add.u32 %r3, %r3, %r1; ld.shared.b32 %r4, [%r3];\n\
         st.global.b32 [%out], %r4;\n{CLUSTER_SYNC}"
    );
    for seed in 0..6 {
        let (result, words) = cluster(&body, seed);
        result.unwrap();
        assert_eq!(words, (0..32).chain(0..32).collect::<Vec<u32>>());
    }
}

/// `wgmma.m64n16k16` of bfloat16, operands written by the threads in the given layout.
///
/// `place(row, k)` is the offset in bytes, before the swizzle, of an element of an operand.
fn wgmma(descriptor: u64, transposed: bool, place: fn(usize, usize) -> usize) {
    let mut random = Random::new(descriptor);
    let (a, b) = (random.bf16s(64 * 16), random.bf16s(64 * 16));
    let swizzle =
        [Swizzle::None, Swizzle::B128, Swizzle::B64, Swizzle::B32][(descriptor >> 62) as usize];
    let mut image = vec![bf16::ZERO; 16384];
    for (base, matrix) in [(0, &a), (16384, &b)] {
        for row in 0..64 {
            for k in 0..16 {
                let byte = swizzle.apply((base + place(row, k)) as u32) as usize;
                image[byte / 2] = matrix[row * 16 + k];
            }
        }
    }
    let accumulators: Vec<String> = (0..8).map(|index| format!("%f{index}")).collect();
    let accumulators = accumulators.join(", ");
    let flag = u8::from(transposed);
    // 128 threads copy 32 KiB, 16 bytes at a time.
    let body = format!(
        "mov.u32 %r1, sm; shl.b32 %r2, %lane, 4; add.u32 %r2, %r2, %r1; mov.b32 %r3, 0;\n\
         mov.b64 %d1, %in;\n\
         COPY: ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%d1];\n\
         st.shared.v4.b32 [%r2], {{%r4, %r5, %r6, %r7}};\n\
         add.s64 %d1, %d1, 2048; add.u32 %r2, %r2, 2048; add.u32 %r3, %r3, 1;\n\
         setp.lt.u32 %p1, %r3, 16; @%p1 bra COPY;\n\
         fence.proxy.async.shared::cta; bar.sync 0;\n\
         shr.u32 %r8, %r1, 4; cvt.u64.u32 %d2, %r8; or.b64 %d3, %d2, {descriptor};\n\
         add.s64 %d4, %d3, 1024; setp.ne.b32 %p2, 0, 0; wgmma.fence.sync.aligned;\n\
         wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {{{accumulators}}}, %d3, %d4, %p2, \
         1, 1, {flag}, {flag};\n\
         wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;\n\
         st.global.v4.f32 [%out], {{%f0, %f1, %f2, %f3}};\n\
         st.global.v4.f32 [%out+16], {{%f4, %f5, %f6, %f7}};"
    );
    let outcome = run(Arch::Sm90a, &body, &bf16_bytes(&image), 8, 128, 1);
    outcome.result.unwrap_or_else(|fault| panic!("{descriptor:#x}: {fault}"));
    for thread in 0..128usize {
        for value in 0..8usize {
            // CuTe's CLayout_64x16: ((4,8,4),(2,2,2)) : ((128,1,16),(64,8,512)), column-major.
            let at = thread % 4 * 128
                + thread / 4 % 8
                + thread / 32 * 16
                + value % 2 * 64
                + value / 2 % 2 * 8
                + value / 4 * 512;
            let (row, column) = (at % 64, at / 64);
            let found = f64::from(f32::from_bits(outcome.words[thread * 8 + value]));
            let expected = crate::common::dot(&a, &b, 16, row, column);
            assert!((found - expected).abs() < 1e-5, "{descriptor:#x} {row} {column}: {found}");
        }
    }
}

fn descriptor(mode: u64, leading: u64, stride: u64) -> u64 {
    mode << 62 | (stride >> 4) << 32 | (leading >> 4) << 16
}

#[test]
fn wgmma_reads_every_canonical_layout() {
    // K-major: plain, and the three swizzles, with rows of 16 elements where the span allows.
    wgmma(descriptor(0, 128, 256), false, |r, k| {
        r % 8 * 16 + r / 8 * 256 + k / 8 * 128 + k % 8 * 2
    });
    wgmma(descriptor(3, 0, 256), false, |r, k| r % 8 * 32 + r / 8 * 256 + k * 2);
    wgmma(descriptor(2, 0, 512), false, |r, k| r % 8 * 64 + r / 8 * 512 + k * 2);
    wgmma(descriptor(1, 0, 1024), false, |r, k| r % 8 * 128 + r / 8 * 1024 + k * 2);
    // Row-major along M and N.
    wgmma(descriptor(0, 1024, 128), true, |r, k| {
        r % 8 * 2 + r / 8 * 128 + k % 8 * 16 + k / 8 * 1024
    });
    wgmma(descriptor(3, 512, 256), true, |r, k| {
        r % 16 * 2 + r / 16 * 512 + k % 8 * 32 + k / 8 * 256
    });
    wgmma(descriptor(2, 1024, 512), true, |r, k| {
        r % 32 * 2 + r / 32 * 1024 + k % 8 * 64 + k / 8 * 512
    });
    wgmma(descriptor(1, 4096, 1024), true, |r, k| r * 2 + k % 8 * 128 + k / 8 * 1024);
}

#[test]
fn setmaxnreg_is_checked() {
    assert!(
        run(Arch::Sm90a, "setmaxnreg.dec.sync.aligned.u32 40;", &[0; 2048], 1, 128, 1)
            .result
            .is_ok()
    );
    assert!(matches!(sm90("setmaxnreg.dec.sync.aligned.u32 41;", 128), FaultKind::Operand(_)));
    assert!(matches!(sm90("setmaxnreg.inc.sync.aligned.u32 240;", 64), FaultKind::Warpgroup(_)));
}
