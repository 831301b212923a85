//! Linking: layouts, relocations and what is refused.

use super::*;
use crate::Kernel;
use crate::emit::{Emitter, Val};
use crate::math;
use crate::mlir::{Cpu, compile};
use crate::testing::{Loaded, Scratch, pointer};

fn object(symbol: &str, function: fn(&Emitter, Val) -> Val) -> Vec<u8> {
    let e = Emitter::new(symbol);
    e.store(function(&e, e.load(Emitter::f32s(8), e.arg(0))), e.arg(1));
    compile_text(symbol, e.finish())
}

fn compile_text(symbol: &str, mlir: String) -> Vec<u8> {
    let kernel =
        Kernel { symbol: symbol.to_owned(), mlir, scratch_bytes: 0, args: vec![], dims: vec![] };
    compile(&kernel, &Cpu::x86_64_v3()).unwrap()
}

#[test]
fn kernels_with_constants_run_side_by_side() {
    let (exp, tanh) = (object("my_exp", math::exp), object("my_tanh", math::tanh));
    let image = link(&[("my_exp", &exp), ("my_tanh", &tanh)]).unwrap();
    assert_eq!(image, link(&[("my_exp", &exp), ("my_tanh", &tanh)]).unwrap());
    assert_eq!(image.symbols.keys().collect::<Vec<_>>(), ["my_exp", "my_tanh"]);
    let loaded = Loaded::new(&image.bytes, &image.symbols);
    let x = [0.0_f32, 0.5, 1.0, -1.0, 2.0, -2.0, 3.0, 4.0];
    let y = [0.0_f32; 8];
    for (symbol, reference) in [("my_exp", f32::exp as fn(f32) -> f32), ("my_tanh", f32::tanh)] {
        loaded.call(symbol, &[pointer(&x), pointer(&y)], &[], &mut Scratch::new(64), 0..1);
        for (x, y) in x.iter().zip(&y) {
            assert!((y - reference(*x)).abs() <= 4e-7 * reference(*x).abs(), "{symbol}({x}) = {y}");
        }
    }
}

#[test]
fn an_import_is_refused_by_name() {
    let text = "module {
      llvm.func @expf(f32) -> f32
      llvm.func @imports(%x: f32) -> f32 {
        %y = llvm.call @expf(%x) : (f32) -> f32
        llvm.return %y : f32
      }
    }";
    let object = compile_text("imports", text.to_owned());
    let errors = link(&[("imports", &object)]).unwrap_err();
    let text = errors[0].to_string();
    assert!(text.contains("`imports`") && text.contains("`expf`"), "{text}");
}

#[test]
fn writable_data_is_refused() {
    let text = "module {
      llvm.mlir.global internal @counter(1 : i32) : i32
      llvm.func @counts() {
        %p = llvm.mlir.addressof @counter : !llvm.ptr
        %x = llvm.load volatile %p : !llvm.ptr -> i32
        llvm.store volatile %x, %p : i32, !llvm.ptr
        llvm.return
      }
    }";
    let errors = link(&[("counts", &compile_text("counts", text.to_owned()))]).unwrap_err();
    assert!(matches!(&errors[0], LinkError::Writable { kernel, .. } if kernel == "counts"));
}

#[test]
fn every_bad_object_is_reported() {
    let twice = object("same", math::exp);
    let errors = link(&[("same", &twice), ("again", &twice)]).unwrap_err();
    assert!(matches!(&errors[0], LinkError::Duplicate { kernel, .. } if kernel == "again"));
    let errors = link(&[("a", b"not ELF"), ("b", &[]), ("same", &twice)]).unwrap_err();
    assert_eq!(errors.len(), 2);
    let cut = &twice[..twice.len() / 2];
    assert!(link(&[("cut", cut)]).is_err());
}
