//! Compiling text: determinism, targets and diagnostics.

use super::*;
use crate::emit::{Barrier, Cmp, Emitter};
use crate::math;

fn kernel(symbol: &str) -> Kernel {
    let e = Emitter::new(symbol);
    e.store(math::exp(&e, e.load(Emitter::f32s(8), e.arg(0))), e.arg(1));
    Kernel {
        symbol: symbol.to_owned(),
        mlir: e.finish(),
        scratch_bytes: 0,
        args: vec!["x", "y"],
        dims: vec![],
    }
}

#[test]
fn objects_do_not_depend_on_threads_or_order() {
    let kernels: Vec<_> = (0..6).map(|i| kernel(&format!("k{i}"))).collect();
    let cpu = Cpu::x86_64_v3();
    let parallel: Vec<_> = each(&kernels, 3, |kernel| compile(kernel, &cpu), &|_, _| {})
        .into_iter()
        .map(|object| object.unwrap())
        .collect();
    let alone: Vec<_> = kernels.iter().map(|kernel| compile(kernel, &cpu).unwrap()).collect();
    assert_eq!(parallel, alone);
}

#[test]
fn the_cpu_decides_the_instructions() {
    let text = assembly(&kernel("k"), &Cpu::x86_64_v3()).unwrap();
    assert!(text.contains("vfmadd") && text.contains("%ymm") && !text.contains("%zmm"), "{text}");
    let plain = assembly(&kernel("k"), &Cpu::named("x86-64-v2")).unwrap();
    assert!(!plain.contains("vfmadd"));
}

#[test]
fn errors_carry_the_words_of_mlir() {
    let mut bad = kernel("bad");
    bad.mlir =
        "module { llvm.func @bad() { %0 = arith.addi %1, %1 : i64 llvm.return } }".to_owned();
    let text = compile(&bad, &Cpu::x86_64_v3()).unwrap_err().to_string();
    assert!(text.contains("`bad`") && text.contains("undeclared"), "{text}");
    // The session is usable afterwards.
    assert!(compile(&kernel("good"), &Cpu::x86_64_v3()).is_ok());
}

#[test]
fn what_lanes_do_together_is_not_copied_into_branches() {
    let e = Emitter::cuda("k", 64);
    let first = e.cmp(Cmp::Eq, e.and(e.thread(), e.i32(31)), e.i32(0));
    let types = [Emitter::f32s(1)];
    let some = || vec![e.load(Emitter::f32s(1), e.arg(0))];
    let value = e.if_else(first, &types, some, || vec![e.f32(1.0)])[0];
    e.barrier(Barrier::Named(1, 64));
    e.if_then(first, || e.store(value, e.arg(1)));
    let text = ptx("k", &e.finish(), "sm_80").unwrap();
    assert_eq!(text.matches("bar.sync").count(), 1, "{text}");
}
