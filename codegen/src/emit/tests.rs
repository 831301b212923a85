//! What the emitter prints, golden texts and assembled code.

#![allow(clippy::cast_possible_truncation, reason = "sizes and samples are small")]

use super::*;
use crate::mlir::{Cpu, compile};
use crate::testing::{Loaded, Scratch, pointer};
use crate::{Kernel, image};

/// Compiles the module and runs its one tile on the arguments.
fn run(e: Emitter, args: &[*mut u8], dims: &[i64]) {
    let symbol = e.symbol.clone();
    let kernel = Kernel {
        symbol: symbol.clone(),
        mlir: e.finish(),
        scratch_bytes: 0,
        args: vec![],
        dims: vec![],
    };
    let object = compile(&kernel, &Cpu::x86_64_v3()).unwrap();
    let image = image::link(&[(&symbol, &object)]).unwrap();
    Loaded::new(&image.bytes, &image.symbols).call(
        &symbol,
        args,
        dims,
        &mut Scratch::new(64),
        0..1,
    );
}

#[test]
fn text_is_stable_and_readable() {
    let e = Emitter::new("axpy");
    let (x, y, n) = (e.arg(0), e.arg(1), e.dim(0));
    let ty = Emitter::f32s(8);
    e.for_each(e.i64(0), n, 8, |i| {
        let sum = e.fma(e.load_at(ty, x, i), e.float(ty, 0.1), e.load_at(ty, y, i));
        e.store_at(sum, y, i);
    });
    let expected = r#"module {
  llvm.func @axpy(%0: !llvm.ptr {llvm.noalias}, %1: !llvm.ptr {llvm.noalias}, %2: !llvm.ptr {llvm.noalias}, %3: i64, %4: i64) attributes {passthrough = ["no-builtins", "nounwind"]} {
    %5 = arith.constant 0 : i64
    %8 = arith.constant 1 : i64
    %13 = arith.constant 8 : i64
    %17 = arith.constant dense<1.0000000149011612e-1> : vector<8xf32>
    %6 = llvm.getelementptr %0[%5] : (!llvm.ptr, i64) -> !llvm.ptr, i64
    %7 = llvm.load %6 {alignment = 8 : i64} : !llvm.ptr -> !llvm.ptr
    %9 = llvm.getelementptr %0[%8] : (!llvm.ptr, i64) -> !llvm.ptr, i64
    %10 = llvm.load %9 {alignment = 8 : i64} : !llvm.ptr -> !llvm.ptr
    %11 = llvm.getelementptr %1[%5] : (!llvm.ptr, i64) -> !llvm.ptr, i64
    %12 = llvm.load %11 {alignment = 8 : i64} : !llvm.ptr -> i64
    scf.for %14 = %5 to %12 step %13 : i64 {
      %15 = llvm.getelementptr %7[%14] : (!llvm.ptr, i64) -> !llvm.ptr, f32
      %16 = llvm.load %15 {alignment = 4 : i64} : !llvm.ptr -> vector<8xf32>
      %18 = llvm.getelementptr %10[%14] : (!llvm.ptr, i64) -> !llvm.ptr, f32
      %19 = llvm.load %18 {alignment = 4 : i64} : !llvm.ptr -> vector<8xf32>
      %20 = llvm.intr.fma(%16, %17, %19) : (vector<8xf32>, vector<8xf32>, vector<8xf32>) -> vector<8xf32>
      %21 = llvm.getelementptr %10[%14] : (!llvm.ptr, i64) -> !llvm.ptr, f32
      llvm.store %20, %21 {alignment = 4 : i64} : vector<8xf32>, !llvm.ptr
    }
    llvm.return
  }
}
"#;
    assert_eq!(e.finish(), expected);
}

#[test]
fn loops_carry_values_and_branches_give_them() {
    // Sums i over 0..n step 3, counts the even ones, and picks one of two results.
    let e = Emitter::new("loops");
    let (out, n) = (e.arg(0), e.dim(0));
    let int = Ty::Scalar(Elem::I64);
    let sums = e.for_loop(e.i64(0), n, 3, &[e.i64(0), e.i64(0)], |i, carried| {
        let even = e.cmp(Cmp::Eq, e.and(i, e.i64(1)), e.i64(0));
        let count = e.add(carried[1], e.cast(even, Elem::I64));
        vec![e.add(carried[0], i), count]
    });
    let big = e.cmp(Cmp::Gt, sums[0], e.i64(40));
    let picked = e.if_else(big, &[int], || vec![sums[0]], || vec![e.neg(sums[1])]);
    e.either(big, || e.store(sums[1], e.at_const(out, Elem::I64, 1)), || {});
    e.store(picked[0], out);
    let result = [0_i64, -7];
    run(e, &[pointer(&result)], &[20]);
    assert_eq!(result, [3 + 6 + 9 + 12 + 15 + 18, 4]);
}

#[test]
fn bf16_rounds_to_nearest_even_and_keeps_nan() {
    let e = Emitter::new("narrow");
    let ty = Emitter::f32s(8);
    e.store(e.cast(e.load(ty, e.arg(0)), Elem::Bf16), e.arg(1));
    let input = [
        1.0_f32,
        f32::from_bits(0x3f80_8000),
        f32::from_bits(0x3f81_8000),
        f32::from_bits(0x7f80_0001),
        f32::INFINITY,
        f32::MAX,
        -0.0,
        f32::from_bits(0x0000_8001),
    ];
    let output = [0_u16; 8];
    run(e, &[pointer(&input), pointer(&output)], &[]);
    let expected = [0x3f80, 0x3f80, 0x3f82, 0x7fc0, 0x7f80, 0x7f80, 0x8000, 0x0001];
    assert_eq!(output, expected);
}

#[test]
fn f16_round_trips_every_finite_bit_pattern() {
    let e = Emitter::new("halves");
    let (input, output, n) = (e.arg(0), e.arg(1), e.dim(0));
    e.for_each(e.i64(0), n, 8, |i| {
        let wide = e.cast(e.load_at(Ty::Vector(Elem::F16, 8), input, i), Elem::F32);
        e.store_at(e.cast(wide, Elem::F16), output, i);
    });
    let all: Vec<u16> = (0..=u16::MAX).filter(|bits| bits & 0x7c00 != 0x7c00).collect();
    let back = vec![0_u16; all.len()];
    run(e, &[pointer(&all), pointer(&back)], &[i64::try_from(all.len()).unwrap()]);
    assert_eq!(all, back);
}

#[test]
fn reductions_shuffles_and_masks() {
    let e = Emitter::new("lanes");
    let (x, out) = (e.arg(0), e.arg(1));
    let ty = Emitter::f32s(8);
    let mask = e.mask_below(e.dim(0), 8);
    let v = e.load_masked(x, mask, e.float(ty, 0.5));
    let results = [
        e.reduce_add(v),
        e.reduce_max(v),
        e.fold(v, |a, b| e.min(a, b)),
        e.fold(v, |a, b| e.mul(a, b)),
        e.extract(e.shuffle(v, e.float(ty, 9.0), &[3, 8]), 0),
        e.extract(e.insert(e.f32(-2.0), v, 6), 6),
    ];
    for (value, i) in results.into_iter().zip(0..) {
        e.store_at(value, out, e.i64(i));
    }
    e.store_masked(v, e.at_const(out, Elem::F32, 8), mask);
    let input = [1.0_f32, 2.0, 4.0, 8.0, 16.0];
    let output = [7.0_f32; 16];
    run(e, &[pointer(&input), pointer(&output)], &[5]);
    assert_eq!(output[..6], [32.5, 16.0, 0.5, 128.0, 8.0, -2.0]);
    assert_eq!(output[8..], [1.0, 2.0, 4.0, 8.0, 16.0, 7.0, 7.0, 7.0]);
}

#[test]
#[should_panic(expected = "operands of arith.addf/addi")]
fn a_type_error_names_both_types() {
    let e = Emitter::new("wrong");
    let _ = e.add(e.f32(1.0), e.i64(1));
}
