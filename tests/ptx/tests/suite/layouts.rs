//! Fragment layouts of matrix instructions against CuTe's.
//!
//! The emulator's come from the figures of the PTX ISA; here operands are dealt out by the layouts
//! that CUTLASS states for the same instructions (`mma_traits_sm80.hpp`), as shapes and strides, so
//! that a misreading of either would show.

use brolly_ptx::Arch;
use half::{bf16, f16};

use crate::common::{Random, eval, run};

/// A CuTe layout: thread and value modes as (shape, stride), the fastest first.
struct Layout {
    thread: &'static [(usize, usize)],
    value: &'static [(usize, usize)],
}

impl Layout {
    fn place(&self, thread: usize, value: usize) -> usize {
        walk(self.thread, thread) + walk(self.value, value)
    }

    fn values(&self) -> usize {
        self.value.iter().map(|mode| mode.0).product()
    }
}

fn walk(modes: &[(usize, usize)], mut index: usize) -> usize {
    let mut place = 0;
    for (shape, stride) in modes {
        place += index % shape * stride;
        index /= shape;
    }
    place
}

const C: Layout = Layout { thread: &[(4, 32), (8, 1)], value: &[(2, 16), (2, 8)] };

struct Case {
    name: &'static str,
    types: &'static str,
    k: usize,
    bits: usize,
    a: Layout,
    b: Layout,
    /// A small number in the operands' type, and its bits.
    encode: fn(i32) -> u32,
}

const CASES: [Case; 7] = [
    Case {
        name: "m16n8k8",
        types: "f32.f16.f16.f32",
        k: 8,
        bits: 16,
        a: Layout { thread: &[(4, 32), (8, 1)], value: &[(2, 16), (2, 8)] },
        b: Layout { thread: &[(4, 16), (8, 1)], value: &[(2, 8)] },
        encode: |x| f16::from_f32(x as f32).to_bits().into(),
    },
    Case {
        name: "m16n8k16",
        types: "f32.bf16.bf16.f32",
        k: 16,
        bits: 16,
        a: Layout { thread: &[(4, 32), (8, 1)], value: &[(2, 16), (2, 8), (2, 128)] },
        b: Layout { thread: &[(4, 16), (8, 1)], value: &[(2, 8), (2, 64)] },
        encode: |x| bf16::from_f32(x as f32).to_bits().into(),
    },
    Case {
        name: "m16n8k4",
        types: "f32.tf32.tf32.f32",
        k: 4,
        bits: 32,
        a: Layout { thread: &[(4, 16), (8, 1)], value: &[(2, 8)] },
        b: Layout { thread: &[(4, 8), (8, 1)], value: &[(1, 0)] },
        encode: |x| (x as f32).to_bits(),
    },
    Case {
        name: "m16n8k8",
        types: "f32.tf32.tf32.f32",
        k: 8,
        bits: 32,
        a: Layout { thread: &[(4, 16), (8, 1)], value: &[(2, 8), (2, 64)] },
        b: Layout { thread: &[(4, 8), (8, 1)], value: &[(2, 32)] },
        encode: |x| (x as f32).to_bits(),
    },
    Case {
        name: "m16n8k16",
        types: "s32.s8.s8.s32",
        k: 16,
        bits: 8,
        a: Layout { thread: &[(4, 64), (8, 1)], value: &[(4, 16), (2, 8)] },
        b: Layout { thread: &[(4, 32), (8, 1)], value: &[(4, 8)] },
        encode: |x| u32::from(x as u8),
    },
    Case {
        name: "m16n8k32",
        types: "s32.s8.s8.s32",
        k: 32,
        bits: 8,
        a: Layout { thread: &[(4, 64), (8, 1)], value: &[(4, 16), (2, 8), (2, 256)] },
        b: Layout { thread: &[(4, 32), (8, 1)], value: &[(4, 8), (2, 128)] },
        encode: |x| u32::from(x as u8),
    },
    Case {
        name: "m16n8k32",
        types: "f32.e4m3.e4m3.f32",
        k: 32,
        bits: 8,
        a: Layout { thread: &[(4, 64), (8, 1)], value: &[(4, 16), (2, 8), (2, 256)] },
        b: Layout { thread: &[(4, 32), (8, 1)], value: &[(4, 8), (2, 128)] },
        // Small integers in E4M3, exactly.
        encode: |x| {
            let magnitude = [0, 0x38, 0x40, 0x44, 0x48][x.unsigned_abs() as usize];
            magnitude | u32::from(x < 0) << 7
        },
    },
];

/// The registers of each thread, eight words apart.
fn deal(layout: &Layout, case: &Case, matrix: &[i32]) -> Vec<Vec<u32>> {
    let each = 32 / case.bits;
    let registers = |thread: usize| {
        let element = |value: usize| (case.encode)(matrix[layout.place(thread, value)]);
        let pack = |register: usize| {
            (0..each)
                .fold(0, |word, nth| word | element(register * each + nth) << (nth * case.bits))
        };
        (0..layout.values() / each).map(pack).collect()
    };
    (0..32).map(registers).collect()
}

#[test]
fn mma_fragments_agree_with_cute() {
    for case in &CASES {
        let mut random = Random::new(case.k as u64);
        let mut draw = |count: usize| -> Vec<i32> {
            (0..count).map(|_| (random.bits() % 9) as i32 - 4).collect()
        };
        // Column-major, as CuTe counts: row + 16 k, column + 8 k, row + 16 column.
        let (a, b, c) = (draw(16 * case.k), draw(8 * case.k), draw(128));
        let is_float = case.types.starts_with("f32");
        let (a_regs, b_regs) = (deal(&case.a, case, &a), deal(&case.b, case, &b));
        let c_word = |x: i32| if is_float { (x as f32).to_bits() } else { x as u32 };
        let mut input = Vec::new();
        for thread in 0..32 {
            let mut words: Vec<u32> = Vec::new();
            words.extend(&a_regs[thread]);
            words.extend(&b_regs[thread]);
            words.extend((0..4).map(|value| c_word(c[C.place(thread, value)])));
            words.resize(16, 0);
            input.extend(words);
        }
        let (na, nb) = (a_regs[0].len(), b_regs[0].len());
        let list = |from: usize, count: usize| {
            let names: Vec<String> = (from..from + count).map(|n| format!("%r{n}")).collect();
            names.join(", ")
        };
        let loads: String =
            (0..16).map(|n| format!("ld.global.b32 %r{n}, [%d1+{}];\n", n * 4)).collect();
        let body = format!(
            "mul.wide.u32 %d0, %lane, 48; add.s64 %d1, %in, %d0;\n{loads}\
             mma.sync.aligned.{}.row.col.{} {{%r20, %r21, %r22, %r23}}, {{{}}}, {{{}}}, {{{}}};\n\
             st.global.v4.b32 [%out], {{%r20, %r21, %r22, %r23}};",
            case.name,
            case.types,
            list(0, na),
            list(na, nb),
            list(na + nb, 4),
        );
        let bytes: Vec<u8> = input.iter().flat_map(|word| word.to_le_bytes()).collect();
        let arch = if case.types.contains("e4m3") { Arch::Sm90a } else { Arch::Sm80 };
        let outcome = run(arch, &body, &bytes, 4, 32, 1);
        outcome.result.unwrap_or_else(|fault| panic!("{} {}: {fault}", case.name, case.types));
        for thread in 0..32 {
            for value in 0..4 {
                let place = C.place(thread, value);
                let (row, column) = (place % 16, place / 16);
                let products = (0..case.k).map(|k| a[row + 16 * k] * b[column + 8 * k]);
                let expected = c[place] + products.sum::<i32>();
                let word = outcome.words[thread * 4 + value];
                let found = if is_float { f32::from_bits(word) as i32 } else { word as i32 };
                assert_eq!(found, expected, "{} {}: {row}, {column}", case.name, case.types);
            }
        }
    }
}

#[test]
fn half_accumulators_lie_in_pairs() {
    // All ones: every element is k, in both halves of both registers.
    let body = "mov.b32 %r0, 0x3c003c00; mov.b32 %r1, 0;\n\
        mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r2, %r3}, {%r0, %r0, %r0, %r0}, \
        {%r0, %r0}, {%r1, %r1};\n\
        st.global.v2.b32 [%out], {%r2, %r3};";
    let sixteen = u32::from(f16::from_f32(16.0).to_bits());
    assert_eq!(eval(body, &[0; 128], 2), vec![sixteen << 16 | sixteen; 64]);
}

/// Writes row `r` of four matrices so that element (m, r, c) is `64 m + 8 r + c`, and loads them.
fn ldmatrix(suffix: &str, registers: &str, after: &str) -> String {
    format!(
        "mov.u32 %r9, sm; shl.b32 %r0, %lane, 4; add.u32 %r1, %r0, %r9;\n\
         shl.b32 %r2, %lane, 3; add.u32 %r3, %r2, 1; add.u32 %r4, %r2, 2; add.u32 %r5, %r2, 3;\n\
         shl.b32 %r6, %r3, 16; or.b32 %r10, %r2, %r6;\n\
         shl.b32 %r6, %r5, 16; or.b32 %r11, %r4, %r6;\n\
         add.u32 %r12, %r10, 0x00040004; add.u32 %r13, %r11, 0x00040004;\n\
         st.shared.v4.b32 [%r1], {{%r10, %r11, %r12, %r13}}; bar.warp.sync -1;\n\
         ldmatrix.sync.aligned.m8n8.{suffix}.shared.b16 {{{registers}}}, [%r1];\n{after}"
    )
}

#[test]
fn ldmatrix_gives_each_lane_its_pair() {
    let store = "st.global.v4.b32 [%out], {%r20, %r21, %r22, %r23};";
    for transposed in [false, true] {
        let suffix = if transposed { "x4.trans" } else { "x4" };
        let body = ldmatrix(suffix, "%r20, %r21, %r22, %r23", store);
        let words = eval(&body, &[0; 128], 4);
        for lane in 0..32u32 {
            for matrix in 0..4u32 {
                let (row, column) = (lane / 4, lane % 4 * 2);
                let value = |row: u32, column: u32| 64 * matrix + 8 * row + column;
                let expected = if transposed {
                    value(column + 1, row) << 16 | value(column, row)
                } else {
                    value(row, column + 1) << 16 | value(row, column)
                };
                assert_eq!(words[(lane * 4 + matrix) as usize], expected, "{lane} {matrix}");
            }
        }
    }
}

#[test]
fn stmatrix_undoes_ldmatrix() {
    for suffix in ["x4", "x4.trans"] {
        let after = format!(
            "bar.warp.sync -1; add.u32 %r2, %r1, 1024;\n\
             stmatrix.sync.aligned.m8n8.{suffix}.shared.b16 [%r2], {{%r20, %r21, %r22, %r23}};\n\
             bar.warp.sync -1; ld.shared.v4.b32 {{%r30, %r31, %r32, %r33}}, [%r2];\n\
             st.global.v4.b32 [%out], {{%r30, %r31, %r32, %r33}};"
        );
        let body = ldmatrix(suffix, "%r20, %r21, %r22, %r23", &after);
        let outcome = run(Arch::Sm90a, &body, &[0; 512], 4, 32, 1);
        outcome.result.unwrap();
        let pair = |n: u32| (n + 1) << 16 | n;
        let expected: Vec<u32> = (0..128).map(|word| pair(2 * word)).collect();
        assert_eq!(outcome.words, expected, "{suffix}");
    }
}
