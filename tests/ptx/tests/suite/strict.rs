//! Every kind of wrong use is its own fault.

use brolly_ptx::{Arch, Fault, FaultKind, Gpu, Launch, Module, Param};

use crate::common::{fault, kernel, run};

fn sm80(body: &str, threads: u32) -> FaultKind {
    fault(Arch::Sm80, body, threads).kind
}

#[test]
fn memory_faults_name_the_place() {
    let kind = sm80("ld.global.b32 %r0, [%in+1];", 1);
    assert!(matches!(kind, FaultKind::Misaligned { space: "global", align: 4, .. }), "{kind}");
    let kind = sm80("ld.global.b32 %r0, [%in+65536];", 1);
    assert!(matches!(kind, FaultKind::OutOfBounds { space: "global", bytes: 4, .. }), "{kind}");
    let kind = sm80("ld.shared.b32 %r0, [sm];", 1);
    assert!(matches!(kind, FaultKind::Uninitialised { space: "shared", .. }), "{kind}");
    let kind = sm80("ld.shared.b32 %r0, [sm+32768];", 1);
    assert!(matches!(kind, FaultKind::OutOfBounds { space: "shared", .. }), "{kind}");
    let kind = sm80("add.s32 %r0, %r1, 1;", 1);
    assert_eq!(kind, FaultKind::UninitialisedRegister { register: "%r1".to_owned() });
}

#[test]
fn a_fault_says_which_thread_and_line() {
    let body = "setp.eq.u32 %p0, %lane, 37; mov.b32 %r0, 0;\n@%p0 st.shared.b32 [sm+2], %r0;";
    let Fault { thread, line, cta, .. } = fault(Arch::Sm80, body, 64);
    assert_eq!((thread, line, cta), (Some(37), 12, [0; 3]));
}

const STORE: &str = "mov.u32 %r9, sm; shl.b32 %r8, %lane, 2; add.u32 %r9, %r9, %r8;\n\
    st.shared.b32 [%r9], %lane;\n";

#[test]
fn neighbours_race_without_a_barrier_and_not_with_one() {
    let read = "xor.b32 %r7, %r8, 4; mov.u32 %r6, sm; add.u32 %r6, %r6, %r7;\n\
        ld.shared.b32 %r0, [%r6]; st.global.b32 [%out], %r0;";
    for threads in [32, 64] {
        for seed in 0..4 {
            let found = |sync: &str| {
                let body = format!("{STORE}{sync}{read}");
                run(Arch::Sm80, &body, &[0; 1024], 1, threads, seed).result.map_err(|f| f.kind)
            };
            let race = found("").unwrap_err();
            let expected = matches!(
                race,
                FaultKind::Race { line: 14, other_line: 12, write: false, other_write: true, .. }
            );
            let unlucky = matches!(race, FaultKind::Uninitialised { .. });
            assert!(expected || unlucky, "{race}");
            assert!(found("bar.sync 0;").is_ok());
            assert!(found("bar.warp.sync -1;").is_ok());
        }
    }
}

#[test]
fn halves_of_a_word_are_no_race() {
    let body = "mov.u32 %r9, sm; shl.b32 %r8, %lane, 1; add.u32 %r9, %r9, %r8;\n\
        cvt.u16.u32 %h0, %lane; st.shared.b16 [%r9], %h0;";
    assert!(run(Arch::Sm80, body, &[0; 1024], 1, 64, 1).result.is_ok());
    let same = "cvt.u16.u32 %h0, %lane; st.shared.b16 [sm], %h0;";
    assert!(matches!(sm80(same, 64), FaultKind::Race { .. }));
}

#[test]
fn a_write_after_reads_needs_a_barrier() {
    let body = format!(
        "{STORE}bar.sync 0; xor.b32 %r7, %r8, 128; mov.u32 %r6, sm; add.u32 %r6, %r6, %r7;\n\
         ld.shared.b32 %r0, [%r6]; st.shared.b32 [%r9], %r0;"
    );
    let kind = sm80(&body, 64);
    assert!(matches!(kind, FaultKind::Race { write: true, other_write: false, .. }), "{kind}");
}

#[test]
fn barriers_need_their_participants() {
    let kind = sm80("bar.sync 0, 48;", 64);
    assert!(matches!(kind, FaultKind::Barrier { id: 0, .. }), "{kind}");
    let kind = sm80("setp.lt.u32 %p0, %lane, 16; @%p0 bar.sync 0;", 32);
    assert_eq!(kind, FaultKind::Divergent { missing: 0xffff_0000 });
    let kind = sm80("setp.lt.u32 %p0, %lane, 32; @%p0 bar.sync 1, 64;", 64);
    assert!(matches!(kind, FaultKind::Deadlock(_)), "{kind}");
    let disagree = "setp.lt.u32 %p0, %lane, 32; @%p0 bar.sync 1, 64; @!%p0 bar.sync 1, 96;";
    assert!(matches!(sm80(disagree, 96), FaultKind::Barrier { id: 1, .. }));
}

#[test]
fn a_producer_may_arrive_and_go_on() {
    let body = format!(
        "setp.lt.u32 %p0, %lane, 32; @!%p0 bra CONSUMER;\n{STORE}bar.arrive 1, 64; bra END;\n\
         CONSUMER: bar.sync 1, 64; sub.u32 %r0, %lane, 32; shl.b32 %r0, %r0, 2; mov.u32 %r1, sm;\n\
         add.u32 %r1, %r1, %r0; ld.shared.b32 %r2, [%r1]; st.global.b32 [%out], %r2;\nEND:"
    );
    for seed in 0..8 {
        let outcome = run(Arch::Sm80, &body, &[0; 1024], 1, 64, seed);
        outcome.result.unwrap();
        assert_eq!(outcome.words[32..], (0..32).collect::<Vec<u32>>());
    }
}

#[test]
fn a_diverged_warp_cannot_use_matrix_instructions() {
    let body = "mov.b32 %r0, 0; mov.b32 %f0, 0; setp.lt.u32 %p0, %lane, 16; @%p0 bra END;\n\
        mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f0, %f0, %f0, %f0}, {%r0, %r0}, {%r0}, \
        {%f0, %f0, %f0, %f0};\nEND:";
    assert!(matches!(sm80(body, 32), FaultKind::Divergent { .. }));
    let shuffle = "setp.lt.u32 %p0, %lane, 16; @%p0 bra END;\n\
        shfl.sync.idx.b32 %r0, %lane, 0, 31, -1;\nEND:";
    assert!(matches!(sm80(shuffle, 32), FaultKind::Divergent { .. }));
    let half = "setp.lt.u32 %p0, %lane, 16; @%p0 bra END;\n\
        shfl.sync.idx.b32 %r0, %lane, 16, 31, 0xffff0000;\nEND:";
    assert!(run(Arch::Sm80, half, &[0; 512], 1, 32, 1).result.is_ok());
}

#[test]
fn cp_async_destinations_are_untouchable() {
    let copy = "mov.u32 %r9, sm; shl.b32 %r0, %lane, 4; add.u32 %r9, %r9, %r0;\n\
        cp.async.ca.shared.global [%r9], [%in], 16; cp.async.commit_group;\n";
    let kind = sm80(&format!("{copy}st.shared.b32 [%r9], %lane;"), 32);
    assert!(matches!(kind, FaultKind::InFlight { write: true, copy_line: 12, .. }), "{kind}");
    let kind = sm80(&format!("{copy}cp.async.wait_group 1; ld.shared.b32 %r0, [%r9];"), 32);
    assert!(matches!(kind, FaultKind::InFlight { write: false, copy_line: 12, .. }), "{kind}");
    // What one thread waited for is not there for the others.
    let other =
        format!("{copy}cp.async.wait_group 0; xor.b32 %r9, %r9, 16; ld.shared.b32 %r0, [%r9];");
    let kind = sm80(&other, 32);
    assert!(matches!(kind, FaultKind::Race { .. }), "{kind}");
}

#[test]
fn endless_loops_and_traps_end() {
    let text = kernel("sm_80", "LOOP: bra.uni LOOP;", 1);
    let module = Module::parse(&text).unwrap();
    let params = vec![Param::U64(0), Param::U64(0)];
    let launch = Launch { params, max_steps: 10_000, ..Launch::default() };
    let fault = Gpu::new(Arch::Sm80).launch(&module, "k", &launch).unwrap_err();
    assert_eq!(fault.kind, FaultKind::StepLimit(10_000));
    assert_eq!(sm80("trap;", 32), FaultKind::Trap);
    assert!(matches!(sm80("mov.b32 %r1, 0; div.u32 %r0, %r1, %r1;", 1), FaultKind::Operand(_)));
}

#[test]
fn a_launch_that_begins_early_waits_before_it_touches_what_others_write() {
    let outcome = |body: &str, declares: bool| {
        let module = Module::parse(&kernel("sm_90a", body, 1)).unwrap();
        let mut gpu = Gpu::new(Arch::Sm90a);
        let (given, out) = (gpu.upload(&[0; 1024]), gpu.upload(&[0; 128]));
        let launch = Launch {
            params: vec![Param::U64(given), Param::U64(out)],
            early: Some(if declares { vec![given] } else { Vec::new() }),
            ..Launch::default()
        };
        let result = gpu.launch(&module, "k", &launch);
        assert_eq!(gpu.constants().contains(&out), result.is_err(), "out is written at the end");
        assert!(gpu.constants().contains(&given));
        result.map_err(|fault| fault.kind)
    };
    let (load, wait) = ("ld.global.u32 %r0, [%in];", "griddepcontrol.wait;");
    let store = "st.global.u32 [%out], %r0;";
    let good = format!("{load}{wait}{store}");
    assert!(outcome(&good, true).is_ok());
    assert!(outcome(&format!("{wait}{load}{store}"), false).is_ok());
    let copy = "cp.async.ca.shared.global [sm], [%in], 16; cp.async.wait_all;";
    let one = "setp.ne.u32 %p0, %lane, 0; @%p0 bra W;";
    let copied = format!("{one}{copy}W: mov.u32 %r0, 0; {wait}{store}");
    assert!(outcome(&copied, true).is_ok(), "{:?}", outcome(&copied, true));
    let late = format!("{load}{store}{wait}");
    for (body, declares) in [(&good, false), (&copied, false), (&late, true)] {
        let kind = outcome(body, declares).unwrap_err();
        assert!(matches!(kind, FaultKind::BeforeWait { .. }), "{kind}");
    }
    // It has ended, so that a grid behind it may begin, while others still write.
    let kind = outcome(load, true).unwrap_err();
    assert!(matches!(kind, FaultKind::BeforeWait { .. }), "{kind}");
}

#[test]
fn launches_are_checked() {
    let module = Module::parse(&kernel("sm_90a", "", 1)).unwrap();
    let launch = Launch { params: vec![Param::U64(0), Param::U64(0)], ..Launch::default() };
    let kind = |gpu: Arch, name: &str, launch: &Launch| {
        Gpu::new(gpu).launch(&module, name, launch).unwrap_err().kind
    };
    assert!(matches!(kind(Arch::Sm80, "k", &launch), FaultKind::Arch { needs: "sm_90a", .. }));
    assert!(matches!(kind(Arch::Sm90a, "q", &launch), FaultKind::Launch(_)));
    let bad = [
        Launch { params: vec![Param::U64(0)], ..launch.clone() },
        Launch { params: vec![Param::U32(0), Param::U64(0)], ..launch.clone() },
        Launch { block: [1025, 1, 1], ..launch.clone() },
        Launch { dynamic_shared: 300 << 10, ..launch.clone() },
        Launch { blocks: Some(vec![[1, 0, 0]]), ..launch.clone() },
    ];
    for launch in bad {
        assert!(matches!(kind(Arch::Sm90a, "k", &launch), FaultKind::Launch(_)), "{launch:?}");
    }
}
