//! The table of cases, and the operands of each.

use ir::{Attrs, DType, PANEL, Tensor};

use crate::{run::evaluate, testing::noise};

/// Element of a packed weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    F32,
    Bf16,
    F16,
    /// Blocks of 32 integers of so many bits.
    Q(i64),
}

/// What is computed, but for the number of rows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// A product with a packed weight `[k, n]`.
    Linear { weight: Weight, n: usize, k: usize },
    /// `silu(x · gate) · (x · up)`.
    Gated { weight: Weight, n: usize, k: usize },
    /// A product of two activations, `[rows, k] · [k, n]`.
    Matmul { n: usize, k: usize },
    /// Causal attention of one prompt: query heads, key heads, elements of a head.
    Attention { heads: usize, kv_heads: usize, width: usize },
    /// The same over paged memory, after `before` tokens.
    Paged { heads: usize, kv_heads: usize, width: usize, before: usize },
    /// A norm with a weight.
    Norm { op: &'static str, width: usize },
    /// An operator of rows of one operand.
    Rows { op: &'static str, width: usize },
    /// Rotary embedding.
    Rope { heads: usize, width: usize },
    /// A sum of two operands.
    Add { width: usize },
}

/// A line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) family: &'static str,
    pub(crate) work: Work,
    /// Numbers of rows, or of tokens.
    pub(crate) rows: &'static [usize],
}

const fn linear(weight: Weight, n: usize, k: usize) -> Work {
    Work::Linear { weight, n, k }
}

const fn row(family: &'static str, work: Work, rows: &'static [usize]) -> Row {
    Row { family, work, rows }
}

const LLAMA: Work = Work::Attention { heads: 32, kv_heads: 8, width: 64 };
const MINILM: Work = Work::Attention { heads: 12, kv_heads: 12, width: 32 };

const fn paged(before: usize) -> Work {
    Work::Paged { heads: 32, kv_heads: 8, width: 64, before }
}

/// Everything that is timed. Lines of a family are neighbours; its first size is the quick one.
pub(crate) static TABLE: &[Row] = &[
    row("gemm f32", linear(Weight::F32, 1024, 1024), &[1024]),
    row("gemm f32", linear(Weight::F32, 512, 512), &[512]),
    row("gemm f32", linear(Weight::F32, 2048, 2048), &[256, 2048]),
    row("gemm f32", linear(Weight::F32, 997, 1009), &[1000]),
    row("gemm f32", linear(Weight::F32, 2048, 8192), &[256]),
    row("gemm f32", linear(Weight::F32, 384, 384), &[2048]),
    row("gemm f32", linear(Weight::F32, 1536, 384), &[2048]),
    row("gemm f32", linear(Weight::F32, 384, 1536), &[2048]),
    row("gemm bf16", linear(Weight::Bf16, 2048, 2048), &[256, 64, 2048]),
    row("gemm bf16", linear(Weight::Bf16, 8192, 2048), &[256]),
    row("gemm bf16", linear(Weight::Bf16, 997, 1009), &[1000]),
    row("gemm f16", linear(Weight::F16, 2048, 2048), &[256]),
    row("gemm q8", linear(Weight::Q(8), 2048, 2048), &[256, 64]),
    row("gemm q4", linear(Weight::Q(4), 2048, 2048), &[256, 64]),
    row("gated bf16", Work::Gated { weight: Weight::Bf16, n: 8192, k: 2048 }, &[256, 1]),
    row("batch f32", linear(Weight::F32, 8192, 2048), &[8, 2, 4, 16]),
    row("batch bf16", linear(Weight::Bf16, 8192, 2048), &[8, 2, 3, 4, 6, 12, 16, 32]),
    row("batch q8", linear(Weight::Q(8), 8192, 2048), &[8, 2, 3, 4, 16]),
    row("batch q4", linear(Weight::Q(4), 8192, 2048), &[8, 2, 3, 4, 16]),
    row("gemv f32", linear(Weight::F32, 16384, 2048), &[1]),
    row("gemv bf16", linear(Weight::Bf16, 32768, 2048), &[1]),
    row("gemv bf16", linear(Weight::Bf16, 2048, 8192), &[1]),
    row("gemv f16", linear(Weight::F16, 32768, 2048), &[1]),
    row("gemv q8", linear(Weight::Q(8), 32768, 2048), &[1]),
    row("gemv q8", linear(Weight::Q(8), 2048, 8192), &[1]),
    row("gemv q4", linear(Weight::Q(4), 32768, 2048), &[1]),
    row("gemv q4", linear(Weight::Q(4), 2048, 8192), &[1]),
    row("matmul", Work::Matmul { n: 512, k: 512 }, &[512]),
    row("attention", LLAMA, &[256, 1024]),
    row("attention", MINILM, &[512]),
    row("paged", paged(0), &[256, 1024]),
    row("paged", paged(1023), &[1, 16]),
    row("paged", paged(4095), &[1]),
    row("norm", Work::Norm { op: "rms_norm", width: 2048 }, &[4096]),
    row("norm", Work::Norm { op: "layer_norm", width: 384 }, &[16384]),
    row("softmax", Work::Rows { op: "softmax", width: 2048 }, &[4096]),
    row("rope", Work::Rope { heads: 32, width: 64 }, &[4096]),
    row("loop", Work::Rows { op: "silu", width: 8192 }, &[1024]),
    row("loop", Work::Rows { op: "gelu", width: 8192 }, &[1024]),
    row("loop", Work::Add { width: 8192 }, &[1024]),
    row("quantize", Work::Rows { op: "quantize_rows", width: 2048 }, &[4096]),
];

/// An operand, for any number of rows: of fewer rows, the first.
pub(crate) enum Arg {
    Fixed(Tensor),
    /// f32 `[rows, ..]`, or quantised for a weight of so many bits.
    Rows(Vec<usize>, Option<i64>),
    /// i32 `[0, rows]`.
    Offsets,
    /// i32 `before, before + 1, ..`.
    Positions(usize),
}

impl Arg {
    pub(crate) fn tensor(&self, rows: usize, seed: u64) -> Tensor {
        match self {
            Arg::Fixed(tensor) => tensor.clone(),
            Arg::Rows(inner, weight_bits) => {
                let x = noise(DType::F32, &[&[rows], &inner[..]].concat(), seed);
                match weight_bits {
                    Some(bits) => {
                        let attrs = Attrs::none().with("weight_bits", *bits);
                        evaluate("quantize_rows", &attrs, &[&x])
                    }
                    None => x,
                }
            }
            Arg::Offsets => Tensor::from_i64s(DType::I32, &[2], [0, rows as i64]),
            Arg::Positions(before) => {
                let all = (0..rows).map(|t| (before + t) as i64);
                Tensor::from_i64s(DType::I32, &[rows], all)
            }
        }
    }

    /// Whether the first axis is the number of rows.
    pub(crate) fn has_rows(&self) -> bool {
        matches!(self, Arg::Rows(..) | Arg::Positions(_))
    }
}

const BLOCK_SIZE: usize = 16;

impl Row {
    /// Element of the weight of a product.
    pub(crate) fn weight(&self) -> Option<Weight> {
        match self.work {
            Work::Linear { weight, .. } | Work::Gated { weight, .. } => Some(weight),
            _ => None,
        }
    }

    /// What a person calls it.
    pub(crate) fn name(&self, rows: usize) -> String {
        match self.work {
            Work::Linear { n, k, .. } | Work::Gated { n, k, .. } | Work::Matmul { n, k } => {
                format!("{rows}x{n}x{k}")
            }
            Work::Attention { heads, kv_heads, width } => {
                format!("{rows} tokens, {heads}/{kv_heads} heads of {width}")
            }
            Work::Paged { heads, kv_heads, width, before } => {
                format!("{rows} tokens after {before}, {heads}/{kv_heads} heads of {width}")
            }
            Work::Norm { op, width } | Work::Rows { op, width } => format!("{op} {rows}x{width}"),
            Work::Rope { heads, width } => format!("{rows} tokens, {heads} heads of {width}"),
            Work::Add { width } => format!("add {rows}x{width}"),
        }
    }

    /// Operator, attributes and operands.
    pub(crate) fn operator(&self) -> (&'static str, Attrs, Vec<Arg>) {
        let none = Attrs::none;
        let rows = |inner: &[usize]| Arg::Rows(inner.into(), None);
        let of = |shape: &[usize], seed| Arg::Fixed(noise(DType::F32, shape, seed));
        match self.work {
            Work::Linear { weight, n, k } => {
                let attrs = none().with("n", n as i64);
                let (op, bits) = match weight {
                    Weight::Q(bits) => ("quantized_linear", Some(bits)),
                    _ => ("linear", None),
                };
                (op, attrs, vec![Arg::Rows(vec![k], bits), packed(weight, n, k)])
            }
            Work::Gated { weight, n, k } => {
                let attrs = none().with("n", n as i64).with("act", "silu");
                let columns = n.next_multiple_of(PANEL) * 2;
                ("gated_linear", attrs, vec![rows(&[k]), packed(weight, columns, k)])
            }
            Work::Matmul { n, k } => ("matmul", none(), vec![rows(&[k]), of(&[k, n], 7)]),
            Work::Attention { heads, kv_heads, width } => {
                let attrs = attention(width);
                let kv = rows(&[kv_heads, width]);
                let args = vec![rows(&[heads, width]), kv, rows(&[kv_heads, width]), Arg::Offsets];
                ("attention", attrs, args)
            }
            Work::Paged { heads, kv_heads, width, before } => {
                let most = before + self.rows.iter().max().unwrap();
                let blocks = most.div_ceil(BLOCK_SIZE);
                let table = Tensor::from_i64s(DType::I32, &[1, blocks], 0..blocks as i64);
                let args = vec![
                    rows(&[heads, width]),
                    of(&[blocks, kv_heads, width, BLOCK_SIZE], 8),
                    of(&[blocks, kv_heads, BLOCK_SIZE, width], 9),
                    Arg::Fixed(table),
                    Arg::Offsets,
                    Arg::Positions(before),
                ];
                ("paged_attention", attention(width), args)
            }
            Work::Norm { op, width } => {
                (op, none().with("eps", 1e-5), vec![rows(&[width]), of(&[width], 7)])
            }
            Work::Rows { op, width } => (op, none(), vec![rows(&[width])]),
            Work::Rope { heads, width } => {
                let half = || rows(&[width / 2]);
                ("rope", none(), vec![rows(&[heads, width]), half(), half()])
            }
            Work::Add { width } => ("add", none(), vec![rows(&[width]), rows(&[width])]),
        }
    }
}

fn attention(width: usize) -> Attrs {
    Attrs::none().with("scale", (width as f64).powf(-0.5)).with("mask", "causal")
}

fn packed(weight: Weight, n: usize, k: usize) -> Arg {
    let dtype = match weight {
        Weight::F32 => DType::F32,
        Weight::F16 => DType::F16,
        Weight::Bf16 | Weight::Q(_) => DType::Bf16,
    };
    let w = noise(dtype, &[n.div_ceil(PANEL), k, PANEL], 7);
    Arg::Fixed(match weight {
        Weight::Q(bits) => evaluate("quantize_weight", &Attrs::none().with("bits", bits), &[&w]),
        _ => w,
    })
}
