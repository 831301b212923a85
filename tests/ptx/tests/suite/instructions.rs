//! Instruction families, on a warp, against values from the PTX ISA and from Rust.

use brolly_ptx::{Arch, FaultKind};
use half::{bf16, f16};

use crate::common::{Random, eval, fault, run};

/// The result in lane 0 of one instruction on two or three words.
fn word(instruction: &str, a: u32, b: u32, c: u32) -> u32 {
    let body = format!(
        "mov.b32 %r1, {a}; mov.b32 %r2, {b}; mov.b32 %r3, {c};\n{instruction}\n\
         st.global.b32 [%out], %r0;"
    );
    eval(&body, &[0; 128], 1)[0]
}

#[test]
fn integers() {
    let cases: [(&str, u32, u32, u32, u32); 22] = [
        ("add.s32 %r0, %r1, %r2;", u32::MAX, 2, 0, 1),
        ("add.sat.s32 %r0, %r1, %r2;", 0x7fff_ffff, 2, 0, 0x7fff_ffff),
        ("sub.s32 %r0, %r1, %r2;", 1, 2, 0, u32::MAX),
        ("mul.lo.s32 %r0, %r1, %r2;", 0x10001, 0x10001, 0, 0x0002_0001),
        ("mul.hi.u32 %r0, %r1, %r2;", u32::MAX, u32::MAX, 0, 0xffff_fffe),
        ("mul.hi.s32 %r0, %r1, %r2;", u32::MAX, 5, 0, u32::MAX),
        ("mad.lo.s32 %r0, %r1, %r2, %r3;", 3, 4, 5, 17),
        ("div.s32 %r0, %r1, %r2;", (-7i32) as u32, 2, 0, (-3i32) as u32),
        ("rem.s32 %r0, %r1, %r2;", (-7i32) as u32, 2, 0, (-1i32) as u32),
        ("min.s32 %r0, %r1, %r2;", u32::MAX, 1, 0, u32::MAX),
        ("min.u32 %r0, %r1, %r2;", u32::MAX, 1, 0, 1),
        ("shr.s32 %r0, %r1, %r2;", 0x8000_0000, 40, 0, u32::MAX),
        ("shr.u32 %r0, %r1, %r2;", 0x8000_0000, 31, 0, 1),
        ("shl.b32 %r0, %r1, %r2;", 1, 32, 0, 0),
        ("shf.l.wrap.b32 %r0, %r1, %r2, %r3;", 0x8000_0000, 1, 1, 3),
        ("shf.r.clamp.b32 %r0, %r1, %r2, %r3;", 0x8000_0000, 1, 40, 1),
        ("bfi.b32 %r0, %r1, %r2, 8, 8;", 0xab, 0xffff_ffff, 0, 0xffff_abff),
        ("bfind.s32 %r0, %r1;", 0xffff_fffe, 0, 0, 0),
        ("clz.b32 %r0, %r1;", 0x0080_0000, 0, 0, 8),
        ("popc.b32 %r0, %r1;", 0xf0f0, 0, 0, 8),
        ("brev.b32 %r0, %r1;", 1, 0, 0, 0x8000_0000),
        ("dp4a.s32.s32 %r0, %r1, %r2, %r3;", 0xff01_02fe, 0x0102_0304, 10, 9),
    ];
    for (instruction, a, b, c, expected) in cases {
        assert_eq!(word(instruction, a, b, c), expected, "{instruction}");
    }
}

#[test]
fn pairs_of_integers_are_computed_apart() {
    let body = "mov.b32 %r1, 0x7fffffff; mov.b32 %r2, 0x00010001; mov.b32 %r3, 0xffff0003;\n\
        mov.b32 %r4, 0x00020001; add.s16x2 %r5, %r1, %r2; min.s16x2 %r6, %r3, %r4;\n\
        max.u16x2 %r7, %r3, %r4; mov.b32 %r8, 0;\n\
        st.global.v4.b32 [%out], {%r5, %r6, %r7, %r8};";
    let outcome = run(Arch::Sm90a, body, &[0; 512], 4, 32, 1);
    outcome.result.unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(outcome.words[..3], [0x8000_0000, 0xffff_0001, 0xffff_0003]);
    let missing = fault(Arch::Sm80, body, 32);
    assert!(matches!(missing.kind, FaultKind::Arch { .. }), "{missing}");
}

#[test]
fn the_upper_half_of_an_unsigned_product() {
    let body = "mov.b64 %d0, -1; mul.hi.u64 %d1, %d0, %d0; mul.hi.s64 %d2, %d0, %d0;\n\
        mad.hi.u64 %d3, %d0, %d0, 3; cvt.u32.u64 %r0, %d1; cvt.u32.u64 %r1, %d2;\n\
        cvt.u32.u64 %r2, %d3; mov.b32 %r3, 0; st.global.v4.b32 [%out], {%r0, %r1, %r2, %r3};";
    assert_eq!(eval(body, &[0; 128], 4)[..3], [0xffff_fffe, 0, 1]);
}

#[test]
fn wide_results_and_packing() {
    let body = "mov.b32 %r1, -3; mov.b32 %r2, 5; mul.wide.s32 %d0, %r1, %r2;\n\
        mov.b64 {%r3, %r4}, %d0; mov.b64 %d1, {%r4, %r3}; shr.u64 %d2, %d1, 32;\n\
        cvt.u32.u64 %r5, %d2;\n\
        mov.b32 {%h0, %h1}, 0x12345678; mov.b32 %r6, {%h1, %h0};\n\
        st.global.v4.b32 [%out], {%r3, %r4, %r5, %r6};";
    let words = eval(body, &[0; 128], 4);
    assert_eq!(words[..4], [(-15i32) as u32, u32::MAX, (-15i32) as u32, 0x5678_1234]);
}

#[test]
fn predicates_guard_and_combine() {
    let body = "setp.lt.u32 %p0, %lane, 4; setp.eq.and.u32 %p1|%p2, %lane, 2, %p0;\n\
        mov.b32 %r0, 10; @%p0 add.s32 %r0, %r0, 1; @!%p1 add.s32 %r0, %r0, 100;\n\
        selp.b32 %r1, 1, 0, %p2; st.global.v2.b32 [%out], {%r0, %r1};";
    let words = eval(body, &[0; 128], 2);
    let lane = |lane: usize| (words[lane * 2], words[lane * 2 + 1]);
    assert_eq!((lane(1), lane(2), lane(5)), ((111, 1), (11, 0), (110, 0)));
}

#[test]
fn comparisons_of_floats_know_nan() {
    let nan = f32::NAN.to_bits();
    let one = 1f32.to_bits();
    for (relation, expected) in
        [("eq", 0), ("ne", 0), ("neu", 1), ("lt", 0), ("geu", 1), ("nan", 1), ("num", 0)]
    {
        let instruction = format!("setp.{relation}.f32 %p0, %r1, %r2; selp.b32 %r0, 1, 0, %p0;");
        assert_eq!(word(&instruction, nan, one, 0), expected, "{relation}");
    }
}

#[test]
fn pairs_of_halves_round_each_half_once() {
    let mut random = Random::new(3);
    for _ in 0..40 {
        let values: [f16; 6] = std::array::from_fn(|_| f16::from_f32(random.unit() * 8.0));
        let pair = |low: f16, high: f16| u32::from(high.to_bits()) << 16 | u32::from(low.to_bits());
        let [a, b, c] = [0, 2, 4].map(|at| pair(values[at], values[at + 1]));
        let fused = |at: usize| {
            let [a, b, c] = [at, at + 2, at + 4].map(|at| values[at].to_f64());
            f16::from_f64(a * b + c)
        };
        let found = word("fma.rn.f16x2 %r0, %r1, %r2, %r3;", a, b, c);
        assert_eq!(found, pair(fused(0), fused(1)));
        let smaller = pair(values[0].min(values[2]), values[1].min(values[3]));
        assert_eq!(word("min.f16x2 %r0, %r1, %r2;", a, b, c), smaller);
    }
    let one = u32::from(bf16::ONE.to_bits());
    let two = u32::from(bf16::from_f32(2.0).to_bits());
    let packed = one << 16 | two;
    assert_eq!(word("fma.rn.bf16x2 %r0, %r1, %r2, %r3;", packed, packed, 0), one << 16 | 0x4080);
    assert_eq!(word("neg.bf16x2 %r0, %r1;", packed, 0, 0), packed | 0x8000_8000);
}

#[test]
fn conversions_to_pairs_put_the_first_operand_high() {
    let (a, b) = (1f32.to_bits(), 2f32.to_bits());
    assert_eq!(word("cvt.rn.bf16x2.f32 %r0, %r1, %r2;", a, b, 0), 0x3f80_4000);
    assert_eq!(word("cvt.rn.f16x2.f32 %r0, %r1, %r2;", a, b, 0), 0x3c00_4000);
    let on_hopper = |instruction: &str, a: u32, b: u32| {
        let body = format!(
            "mov.b32 %r1, {a}; mov.b32 %r2, {b};\n{instruction}\nst.global.b32 [%out], %r0;"
        );
        run(Arch::Sm90a, &body, &[0; 512], 1, 32, 1).words[0]
    };
    let fp8 = "cvt.rn.satfinite.e4m3x2.f32 %h0, %r1, %r2; cvt.u32.u16 %r0, %h0;";
    assert_eq!(on_hopper(fp8, a, b), 0x3840);
    let back = "cvt.u16.u32 %h0, %r1; cvt.rn.f16x2.e4m3x2 %r0, %h0;";
    assert_eq!(on_hopper(back, 0x3840, 0), 0x3c00_4000);
    assert_eq!(word("cvt.rn.relu.bf16x2.f32 %r0, %r1, %r2;", (-1f32).to_bits(), b, 0), 0x4000);
}

#[test]
fn approximate_functions_are_close() {
    type Row = (&'static str, fn(f64) -> f64, f32);
    let rows: [Row; 8] = [
        ("ex2.approx.ftz.f32", f64::exp2, -3.7),
        ("lg2.approx.f32", f64::log2, 5.3),
        ("rcp.approx.ftz.f32", |x| 1.0 / x, 0.3),
        ("rsqrt.approx.ftz.f32", |x| 1.0 / x.sqrt(), 7.1),
        ("sqrt.rn.f32", f64::sqrt, 2.0),
        ("tanh.approx.f32", f64::tanh, 0.4),
        ("sin.approx.f32", f64::sin, 1.1),
        ("cos.approx.f32", f64::cos, 1.1),
    ];
    for (name, exact, x) in rows {
        let found = f32::from_bits(word(&format!("{name} %r0, %r1;"), x.to_bits(), 0, 0));
        let expected = exact(x.into());
        assert!((f64::from(found) - expected).abs() < expected.abs() * 1e-6, "{name}: {found}");
    }
}

#[test]
fn shuffles_votes_and_matches() {
    let body = "shfl.sync.bfly.b32 %r0, %lane, 1, 31, -1; shfl.sync.up.b32 %r1|%p0, %lane, 4, 0, -1;\n\
        setp.lt.u32 %p1, %lane, 8; vote.sync.ballot.b32 %r2, %p1, -1; and.b32 %r4, %lane, 3;\n\
        match.any.sync.b32 %r3, %r4, -1; st.global.v4.b32 [%out], {%r0, %r1, %r2, %r3};";
    let words = eval(body, &[0; 128], 4);
    for lane in 0..32u32 {
        let up = if lane < 4 { lane } else { lane - 4 };
        let expected = [lane ^ 1, up, 0xff, 0x1111_1111 << (lane & 3)];
        assert_eq!(words[lane as usize * 4..][..4], expected);
    }
}

#[test]
fn redux_and_atomics() {
    let body = "redux.sync.add.s32 %r0, %lane, -1; redux.sync.max.u32 %r1, %lane, -1;\n\
        mov.u32 %r9, sm; setp.eq.u32 %p0, %lane, 0; mov.b32 %r8, 0;\n\
        @%p0 st.shared.b32 [%r9], %r8; bar.sync 0;\n\
        atom.shared.add.u32 %r2, [%r9], 2; bar.sync 0; ld.shared.b32 %r3, [%r9];\n\
        st.global.v4.b32 [%out], {%r0, %r1, %r2, %r3};";
    let words = eval(body, &[0; 128], 4);
    assert!(words.chunks_exact(4).all(|lane| (lane[0], lane[1], lane[3]) == (496, 31, 64)));
    let mut before: Vec<u32> = words.chunks_exact(4).map(|lane| lane[2]).collect();
    before.sort_unstable();
    assert_eq!(before, (0..32).map(|n| n * 2).collect::<Vec<u32>>());
}

#[test]
fn loops_that_differ_between_lanes_meet_again() {
    // Each lane counts to its number, then all shuffle.
    let body = "mov.b32 %r0, 0;\nLOOP: setp.ge.u32 %p0, %r0, %lane; @%p0 bra DONE;\n\
        add.u32 %r0, %r0, 1; bra LOOP;\nDONE: shfl.sync.idx.b32 %r1, %r0, 31, 31, -1;\n\
        st.global.v2.b32 [%out], {%r0, %r1};";
    let words = eval(body, &[0; 128], 2);
    for lane in 0..32 {
        assert_eq!(words[lane as usize * 2..][..2], [lane, 31]);
    }
}

#[test]
fn a_lane_that_spins_does_not_starve_its_warp() {
    // Lane 0 waits for what lane 1 does further down.
    let body = "mov.u32 %r9, sm; mov.b32 %r8, 0; setp.eq.u32 %p0, %lane, 0;\n\
        @%p0 st.shared.b32 [%r9], %r8; bar.sync 0; @!%p0 bra OTHER;\n\
        SPIN: ld.volatile.shared.b32 %r1, [%r9]; setp.eq.u32 %p1, %r1, 0; @%p1 bra SPIN; bra END;\n\
        OTHER: mov.b32 %r2, 1; st.volatile.shared.b32 [%r9], %r2; mov.b32 %r1, 1;\n\
        END: st.global.b32 [%out], %r1;";
    assert_eq!(eval(body, &[0; 128], 1), [1; 32]);
}

#[test]
fn cp_async_fills_with_zeros() {
    let body = "mov.u32 %r9, sm; shl.b32 %r0, %lane, 4; add.u32 %r9, %r9, %r0;\n\
        cp.async.ca.shared.global [%r9], [%in], 16, 8; cp.async.commit_group;\n\
        cp.async.wait_group 0; ld.shared.v4.b32 {%r0, %r1, %r2, %r3}, [%r9];\n\
        st.global.v4.b32 [%out], {%r0, %r1, %r2, %r3};";
    let input: Vec<u32> = (0..128).collect();
    let words = eval(body, &input, 4);
    for lane in 0..32u32 {
        assert_eq!(words[lane as usize * 4..][..4], [lane * 4, lane * 4 + 1, 0, 0]);
    }
}

#[test]
fn lanes_with_different_member_masks_act_apart() {
    let body = "setp.lt.u32 %p0, %lane, 16; selp.b32 %r1, 0x0000ffff, 0xffff0000, %p0;\n\
        and.b32 %r2, %lane, 16; shfl.sync.idx.b32 %r0, %lane, %r2, 31, %r1; bar.warp.sync %r1;\n\
        setp.eq.u32 %p1, 0, 0; vote.sync.ballot.b32 %r3, %p1, %r1; st.global.v2.b32 [%out], {%r0, %r3};";
    let words = eval(body, &[0; 128], 2);
    for lane in 0..32 {
        let expected = if lane < 16 { [0, 0xffff] } else { [16, 0xffff_0000] };
        assert_eq!(words[lane * 2..][..2], expected);
    }
}

#[test]
fn instructions_of_later_devices_are_refused() {
    for body in [
        "cvt.rn.satfinite.e4m3x2.f32 %h0, %f0, %f1;",
        "add.rn.bf16x2 %r0, %r1, %r2;",
        "cvt.f32.bf16 %f0, %h0;",
        "mbarrier.try_wait.parity.shared.b64 %p0, [sm], 0;",
        "fence.proxy.async;",
        "wgmma.fence.sync.aligned;",
    ] {
        let kind = fault(Arch::Sm80, body, 32).kind;
        assert!(matches!(kind, FaultKind::Arch { .. }), "{body}: {kind}");
    }
}
