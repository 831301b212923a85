//! `wgmma` with A in registers, in all widths of elements, and with signs and accumulators.

use brolly_ptx::Arch;
use half::f16;

use crate::common::{Random, run};

struct Case {
    types: &'static str,
    k: usize,
    /// Bits of an element.
    bits: usize,
    encode: fn(i32) -> u32,
    /// The sign of A, if the instruction has one.
    sign: Option<i32>,
    accumulator: fn(i32) -> u32,
}

fn e4m3(x: i32) -> u32 {
    [0, 0x38, 0x40, 0x44, 0x48][x.unsigned_abs() as usize] | u32::from(x < 0) << 7
}

fn single(x: i32) -> u32 {
    (x as f32).to_bits()
}

fn half(x: i32) -> u32 {
    f16::from_f32(x as f32).to_bits().into()
}

const CASES: [Case; 6] = [
    Case {
        types: "f32.bf16.bf16",
        k: 16,
        bits: 16,
        encode: |x| single(x) >> 16,
        sign: Some(-1),
        accumulator: single,
    },
    Case {
        types: "f32.f16.f16",
        k: 16,
        bits: 16,
        encode: half,
        sign: Some(1),
        accumulator: single,
    },
    Case {
        types: "f32.tf32.tf32",
        k: 8,
        bits: 32,
        encode: single,
        sign: Some(1),
        accumulator: single,
    },
    Case {
        types: "f32.e4m3.e4m3",
        k: 32,
        bits: 8,
        encode: e4m3,
        sign: Some(-1),
        accumulator: single,
    },
    Case {
        types: "s32.s8.s8",
        k: 32,
        bits: 8,
        encode: |x| u32::from(x as u8),
        sign: None,
        accumulator: |x| x as u32,
    },
    Case { types: "f16.f16.f16", k: 16, bits: 16, encode: half, sign: Some(1), accumulator: half },
];

/// Where CuTe's `ALayout_64xK` has a value of a thread, as row and column: the modes are
/// `((4,8,4),(e,2,2)) : ((64 e,1,16),(64,8,256 e))`, with `e` elements in 32 bits.
fn place(thread: usize, value: usize, each: usize) -> (usize, usize) {
    let at = thread % 4 * 64 * each
        + thread / 4 % 8
        + thread / 32 * 16
        + value % each * 64
        + value / each % 2 * 8
        + value / each / 2 * 256 * each;
    (at % 64, at / 64)
}

#[test]
fn every_width_multiplies_from_registers() {
    for case in &CASES {
        let (k, each) = (case.k, 32 / case.bits);
        let mut random = Random::new(k as u64);
        let mut draw = |count: usize| -> Vec<i32> {
            (0..count).map(|_| (random.bits() % 9) as i32 - 4).collect()
        };
        let (a, b) = (draw(64 * k), draw(8 * k));
        let mut words = vec![0u32; 128 * 8];
        for thread in 0..128 {
            for value in 0..4 * each {
                let (row, column) = place(thread, value, each);
                let bits = (case.encode)(a[row * k + column]) << (value % each * case.bits);
                words[thread * 8 + value / each] |= bits;
            }
        }
        // B by rows of 32 bytes in two chunks, the second chunks 128 bytes after the first.
        for row in 0..8 {
            for column in 0..k {
                let byte = column * case.bits / 8;
                let offset = byte / 16 * 128 + row * 16 + byte % 16;
                let word = offset / 16 * 8 + 4 + offset % 16 / 4;
                words[word] |= (case.encode)(b[row * k + column]) << (offset % 4 * 8);
            }
        }
        let halves = case.types.starts_with("f16");
        let accumulators = if halves { "{%r20, %r21}" } else { "{%r20, %r21, %r22, %r23}" };
        let five = (case.accumulator)(5);
        let five = if halves { five << 16 | five } else { five };
        let scales = match (case.sign, case.bits) {
            (None, _) => String::new(),
            (Some(sign), 16) => format!(", {sign}, 1, 0"),
            (Some(sign), _) => format!(", {sign}, 1"),
        };
        let body = format!(
            "mul.wide.u32 %d0, %lane, 16; add.s64 %d0, %in, %d0; mov.u32 %r9, sm;\n\
             ld.global.v4.b32 {{%r0, %r1, %r2, %r3}}, [%d0];\n\
             ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%d0+16];\n\
             shl.b32 %r8, %lane, 4; add.u32 %r8, %r8, %r9;\n\
             st.shared.v4.b32 [%r8], {{%r4, %r5, %r6, %r7}};\n\
             fence.proxy.async.shared::cta; bar.sync 0;\n\
             shr.u32 %r9, %r9, 4; cvt.u64.u32 %d1, %r9; or.b64 %d1, %d1, {};\n\
             mov.b32 %r20, {five}; mov.b32 %r21, {five}; mov.b32 %r22, {five};\n\
             mov.b32 %r23, {five}; setp.eq.u32 %p0, 0, 0; wgmma.fence.sync.aligned;\n\
             wgmma.mma_async.sync.aligned.m64n8k{k}.{} {accumulators}, {{%r0, %r1, %r2, %r3}}, \
             %d1, %p0{scales};\n\
             wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;\n\
             st.global.v4.b32 [%out], {{%r20, %r21, %r22, %r23}};",
            128u64 >> 4 << 16 | 256 >> 4 << 32,
            case.types,
        );
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let outcome = run(Arch::Sm90a, &body, &bytes, 4, 128, 2);
        outcome.result.unwrap_or_else(|fault| panic!("{}: {fault}", case.types));
        for thread in 0..128 {
            for value in 0..4 {
                let (row, column) = place(thread, value, 2);
                let products = (0..k).map(|k_at| a[row * k + k_at] * b[column * k + k_at]);
                let expected = 5 + case.sign.unwrap_or(1) * products.sum::<i32>();
                let found = if halves {
                    outcome.words[thread * 4 + value / 2] >> (value % 2 * 16) & 0xffff
                } else {
                    outcome.words[thread * 4 + value]
                };
                assert_eq!(found, (case.accumulator)(expected), "{} {row} {column}", case.types);
            }
        }
    }
}
