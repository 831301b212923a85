//! Schedules give the same bits, and tables are read or refused.

#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

mod gpu;

use super::*;
use crate::testing::{Loaded, Scratch, pointer};
use crate::{Kernel, image, kernels::matmul::matmul, mlir};
use ir::Target;

/// Results of a product of `m` rows, with its tiles in two calls.
fn run(product: &Matmul, m: usize) -> Vec<u32> {
    let isa = Isa::x86_64_v3();
    let kernel: Kernel = matmul(product, &isa).unwrap();
    let object = mlir::compile(&kernel, &mlir::Cpu::x86_64_v3()).unwrap();
    let image = image::link(&[(&kernel.symbol, &object)]).unwrap();
    let loaded = Loaded::new(&image.bytes, &image.symbols);
    let size = |n: u64| usize::try_from(n).unwrap();
    let value = |i: usize| ((i * 7919 % 1021) as f32 - 510.0) / 512.0;
    let x: Vec<f32> = (0..m * size(product.k)).map(value).collect();
    // Any bits of bf16 below the exponent of infinity, and any integers of quantised weights whose
    // scales are small.
    let w: Vec<u16> =
        (0..size(product.weight_bytes()) / 2).map(|i| 0x3c00 + (i * 31 % 512) as u16).collect();
    let rows = size(product.x_stride) * if product.bits.is_some() { 1 } else { 4 } * m;
    let x_bytes: Vec<u8> = match product.bits {
        Some(_) => (0..rows)
            .map(|i| [0, 0, 0x80, 0x3c, 5, 0, 0, 0].get(i % 40).copied().unwrap_or((i % 100) as u8))
            .collect(),
        None => x.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    let y = vec![0u32; m * size(product.n)];
    let mut scratch = Scratch::new(kernel.scratch_bytes);
    let tiles = i64::try_from(product.tiles()).unwrap();
    for part in [0..tiles / 2, tiles / 2..tiles] {
        let args = [pointer(&x_bytes), pointer(&w), pointer(&y)];
        loaded.call(&product.symbol, &args, &[m as i64], &mut scratch, part);
    }
    y
}

#[test]
fn every_schedule_gives_the_same_bits() {
    let isa = Isa::x86_64_v3();
    for family in [Family::F32, Family::Bf16, Family::Q4] {
        let product = match family {
            Family::Q4 => Matmul::quantized("mm", 40, 320, 4),
            Family::Bf16 => Matmul::new("mm", 40, 325, Elem::Bf16),
            _ => Matmul::new("mm", 40, 325, Elem::F32),
        };
        assert_eq!(Family::of(&product), family);
        let sizes = [1, 5, 47, 50, 101];
        let wanted = sizes.map(|m| run(&product, m));
        let first = Schedule::default();
        let fits = |s: &Schedule| s.check(family, &isa).is_ok();
        let axes = AXES.iter().filter(|axis| axis.applies(family));
        let mut candidates: Vec<Schedule> =
            axes.flat_map(|axis| axis.around(first)).filter(fits).collect();
        if family == Family::Bf16 {
            candidates.push(Schedule {
                tile_rows: Some(3),
                tile_panels: Some(2),
                k_block: Some(64),
                row_block: Some(50),
                unroll: Some(8),
                prefetch_bytes: Some(0),
            });
        }
        assert!(candidates.len() >= 6, "{family:?}");
        for schedule in candidates {
            schedule.check(family, &isa).unwrap();
            let tuned = Matmul { schedule, ..product.clone() };
            for (m, want) in sizes.into_iter().zip(&wanted) {
                assert!(run(&tuned, m) == *want, "{family:?}, {m} rows, {schedule:?}");
            }
        }
    }
}

#[test]
fn what_no_kernel_can_do_is_refused_by_the_field() {
    let isa = Isa::x86_64_v3();
    let refused = |schedule: Schedule, family: Family| schedule.check(family, &isa).unwrap_err();
    let none = Schedule::default();
    for (schedule, field) in [
        (Schedule { tile_rows: Some(0), ..none }, "tile_rows"),
        (Schedule { tile_rows: Some(7), ..none }, "registers"),
        (Schedule { tile_panels: Some(3), ..none }, "tile_panels"),
        (Schedule { k_block: Some(100), ..none }, "k_block"),
        (Schedule { row_block: Some(0), ..none }, "row_block"),
        (Schedule { unroll: Some(3), ..none }, "unroll"),
        (Schedule { prefetch_bytes: Some(1 << 30), ..none }, "prefetch_bytes"),
    ] {
        assert!(refused(schedule, Family::Bf16).contains(field), "{field}");
    }
    let blocked = Schedule { k_block: Some(128), ..none };
    assert!(refused(blocked, Family::Q8).contains("`prefetch_bytes` alone"));
    let product = Matmul { schedule: blocked, ..Matmul::quantized("mm", 16, 32, 8) };
    assert!(matmul(&product, &isa).is_err());
}

#[test]
fn tables_are_found_by_class_and_read_back() {
    let text = "[[entry]]\ntarget = \"x86-64-v3\"\nfamily = \"bf16\"\nn = 2048\nk = 1024\n\
                schedule = { k_block = 192 }\n";
    let table = Tuning::parse(text).unwrap();
    assert_eq!(Tuning::parse(&table.text()).unwrap(), table);
    let (v3, find) = (Target::x86_64_v3(), |n, k, elem| Matmul::new("mm", n, k, elem));
    let wanted = Schedule { k_block: Some(192), ..Schedule::default() };
    for (product, schedule) in [
        (find(2048, 1024, Elem::Bf16), wanted),
        (find(4095, 2047, Elem::Bf16), wanted),
        (find(4096, 1024, Elem::Bf16), Schedule::default()),
        (find(2048, 1024, Elem::F32), Schedule::default()),
    ] {
        assert_eq!(table.find(&v3, &product), schedule);
    }
    let other = Target { cpu: "x86-64-v4".into(), ..v3.clone() };
    assert_eq!(table.find(&other, &find(2048, 1024, Elem::Bf16)), Schedule::default());
    let mut newer = table.clone();
    newer.entries[0].schedule.k_block = Some(256);
    let both = newer.over(&table);
    assert_eq!(both.find(&v3, &find(2048, 1024, Elem::Bf16)).k_block, Some(256));
    for (bad, why) in [
        (text.replace("192", "191"), "entry 1: `k_block` is 191"),
        (text.replace("2048", "2000"), "entry 1: `n` is 2000"),
        (text.replace("k_block", "kblock"), "unknown field `kblock`"),
    ] {
        let error = Tuning::parse(&bad).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    super::table::BUILTIN.iter().for_each(|text| drop(Tuning::parse(text).unwrap()));
}
