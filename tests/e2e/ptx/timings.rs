//! Sizes that models have, for `sm_90a`: each has its kernel here, and is a case to be timed where
//! cases for a real device are asked for.

use std::sync::Arc;

use codegen::lower::lowering;
use gpu_check::{Case, Check, Operand, Source, Timing};
use ir::{Attrs, DType, Env, KernelSpec, Layout, Target};

use super::{
    assemble::{layout, spec},
    device::ptx_of,
    record::{folder, launch, module, outputs},
};

/// A computation that is timed.
struct Timed {
    /// What a peer calls it.
    peer: String,
    spec: KernelSpec,
    env: Env,
    sources: Vec<Values>,
    check: Check,
}

/// An operand's values.
enum Values {
    /// Such as weights.
    Noise,
    /// A quantised weight of so many bits.
    Lanes(usize),
    /// Blocks or rows of so many values in e4m3.
    E4m3(usize),
    /// Such as positions.
    Ints(Vec<i32>),
}

fn env(sizes: &[(&str, usize)]) -> Env {
    sizes.iter().map(|(name, size)| (Arc::from(*name), *size as i64)).collect()
}

fn rows(op: &str, attrs: &Attrs, panels: Option<u32>, tolerance: f64) -> Check {
    Check::Rows { op: op.to_owned(), attrs: attrs.clone().into(), rows: vec![0], panels, tolerance }
}

/// A product with a packed weight in bf16.
fn linear(count: usize, k: usize, n: usize, x: DType) -> Timed {
    linear_by(count, k, n, [x, DType::Bf16])
}

/// A product of these types.
fn linear_by(count: usize, k: usize, n: usize, [x, w]: [DType; 2]) -> Timed {
    let attrs = Attrs::none().with("n", n as i64).with("act", "none");
    let [rows_of_k, rows_of_n] = [k, n].map(|width| layout(x, &["T", &width.to_string()]));
    let name = if w == DType::Bf16 { x.to_string() } else { format!("{x} by {w}") };
    let w = layout(w, &[&n.div_ceil(16).to_string(), &k.to_string(), "16"]);
    Timed {
        peer: format!("linear {name} {count}x{n}x{k}"),
        check: rows("linear", &attrs, Some(1), 1e-3),
        spec: spec("linear", attrs, &[rows_of_k, w], &[rows_of_n]),
        env: env(&[("T", count)]),
        sources: vec![Values::Noise, Values::Noise],
    }
}

fn quantized(count: usize, k: usize, n: usize, bits: usize) -> Timed {
    let attrs = Attrs::none().with("n", n as i64).with("act", "none").with("gated", false);
    let [rows_of_k, rows_of_n] =
        [k, n].map(|width| layout(DType::Bf16, &["T", &width.to_string()]));
    let bytes = ir::quant_lane_bytes(bits);
    let shape = [n.div_ceil(16), k.div_ceil(ir::QUANT_GROUP), bytes].map(|n| n.to_string());
    let w = layout(DType::U8, &shape.each_ref().map(String::as_str));
    Timed {
        peer: format!("linear q{bits} {count}x{n}x{k}"),
        check: rows("quantized_linear", &attrs, Some(1), 1e-3),
        spec: spec("quantized_linear", attrs, &[rows_of_k, w], &[rows_of_n]),
        env: env(&[("T", count)]),
        sources: vec![Values::Noise, Values::Lanes(bits)],
    }
}

/// A product of e4m3.
fn fp8(count: usize, k: usize, n: usize) -> Timed {
    let attrs = Attrs::none().with("n", n as i64).with("act", "none").with("gated", false);
    let blocks = k.div_ceil(ir::E4M3_BLOCK);
    let row = ir::e4m3_row_bytes(&ir::Dim::from(blocks)).to_string();
    let x = layout(DType::U8, &["T", &row]);
    let shape = [n.div_ceil(16), blocks, ir::E4M3_PANEL_BYTES].map(|n| n.to_string());
    let w = layout(DType::U8, &shape.each_ref().map(String::as_str));
    Timed {
        peer: format!("linear fp8 {count}x{n}x{k}"),
        // Tensor cores keep some fourteen bits of the sum of a block.
        check: rows("quantized_linear", &attrs, Some(1), 2e-2),
        spec: spec(
            "quantized_linear",
            attrs,
            &[x, w],
            &[layout(DType::Bf16, &["T", &n.to_string()])],
        ),
        env: env(&[("T", count)]),
        sources: vec![Values::E4m3(blocks * ir::E4M3_BLOCK), Values::E4m3(16 * ir::E4M3_BLOCK)],
    }
}

/// Query heads, key/value heads, and their size.
const HEADS: [&str; 3] = ["32", "8", "128"];
/// Factor of scores: large enough that few keys have most of the weight, as in models.
const SCALE: f64 = 2.0;

fn causal() -> Attrs {
    let attrs = Attrs::none().with("scale", SCALE).with("mask", "causal");
    attrs.with("window", 0i64).with("softcap", 0.0)
}

const ATTENTION: Check = Check::Attention { scale: SCALE, tolerance: 0.03 };

fn prefill(tokens: usize) -> Timed {
    let [heads, kv_heads, size] = HEADS;
    let q = layout(DType::Bf16, &["T", heads, size]);
    let kv = layout(DType::Bf16, &["T", kv_heads, size]);
    let operands = [q.clone(), kv.clone(), kv, layout(DType::I32, &["S + 1"])];
    Timed {
        peer: format!("attention causal {tokens}"),
        spec: spec("attention", causal(), &operands, &[q]),
        env: env(&[("T", tokens), ("S", 1)]),
        sources: vec![
            Values::Noise,
            Values::Noise,
            Values::Noise,
            Values::Ints(vec![0, i32::try_from(tokens).unwrap()]),
        ],
        check: ATTENTION,
    }
}

/// A token of each of these sequences, which have so many keys in blocks in no order.
fn decode(sequences: usize, context: usize) -> Timed {
    let [heads, kv_heads, size] = HEADS;
    let int = |n: usize| i32::try_from(n).unwrap();
    let table = context / 16;
    let blocks = sequences * table;
    let q = layout(DType::Bf16, &["T", heads, size]);
    let k = layout(DType::Bf16, &["N", kv_heads, size, "16"]);
    let v = layout(DType::Bf16, &["N", kv_heads, "16", size]);
    let ints = |shape: &[&str]| layout(DType::I32, shape);
    let operands = [q.clone(), k, v, ints(&["S", "M"]), ints(&["S + 1"]), ints(&["T"])];
    Timed {
        peer: format!("attention decode {sequences}x{context}"),
        spec: spec("paged_attention", causal(), &operands, &[q]),
        env: env(&[("T", sequences), ("N", blocks), ("S", sequences), ("M", table)]),
        sources: vec![
            Values::Noise,
            Values::Noise,
            Values::Noise,
            // An odd factor of a power of two: a permutation.
            Values::Ints((0..blocks).map(|i| int((i * 37 + 11) % blocks)).collect()),
            Values::Ints((0..=sequences).map(int).collect()),
            Values::Ints(vec![int(context - 1); sequences]),
        ],
        check: ATTENTION,
    }
}

/// An operator on rows, the first operand's and those of the others that are as wide and no row.
fn rowwise(op: &str, attrs: Attrs, dtype: DType, operands: &[&[&str]], count: usize) -> Timed {
    let of = |shape: &&[&str]| layout(dtype, shape);
    let operands: Vec<Layout> = operands.iter().map(of).collect();
    let symbolic = (0..).zip(&operands).filter(|(_, o)| o.ty.shape[0].as_const().is_none());
    let rows = symbolic.map(|(i, _)| i).collect();
    let width = operands[0].ty.shape[1].clone();
    Timed {
        peer: format!("{op} {dtype} {count}x{width}"),
        check: Check::Rows {
            op: op.to_owned(),
            attrs: attrs.clone().into(),
            rows,
            panels: None,
            // The interpreter rounds narrow types at every step of the definition.
            tolerance: if dtype == DType::Bf16 { 2e-2 } else { 1e-3 },
        },
        sources: operands.iter().map(|_| Values::Noise).collect(),
        env: env(&[("T", count)]),
        spec: spec(op, attrs, &operands, &[operands[0].clone()]),
    }
}

fn all() -> Vec<Timed> {
    let (bf16, f32) = (DType::Bf16, DType::F32);
    let mut all = vec![linear(4096, 4096, 4096, bf16), linear(8192, 8192, 8192, bf16)];
    for count in [1, 8, 64, 512, 4096] {
        all.push(linear(count, 4096, 14336, bf16));
        all.push(linear(count, 4096, 14336, f32));
        if count < 4096 {
            all.push(linear(count, 4096, 4096, bf16));
        }
    }
    all.extend([1, 4, 16, 256, 4096].map(|count| linear_by(count, 4096, 4096, [f32; 2])));
    for bits in [8, 4] {
        all.extend([1, 64].map(|count| quantized(count, 4096, 14336, bits)));
    }
    for count in [1, 64, 512, 4096] {
        all.push(fp8(count, 4096, 14336));
    }
    all.extend([1, 64].map(|count| fp8(count, 4096, 4096)));
    all.extend([4096, 8192, 16384].map(prefill));
    all.extend([1, 8, 64].map(|sequences| decode(sequences, 4096)));
    let (x, w): (&[&str], &[&str]) = (&["T", "4096"], &["4096"]);
    let row = ir::e4m3_row_bytes(&ir::Dim::from(32)).to_string();
    let format = Attrs::none().with("weight_bits", 8i64).with("format", "e4m3");
    let mut rows_of_e4m3 = rowwise("quantize_rows", format, f32, &[x], 8192);
    rows_of_e4m3.spec.results[0] = layout(DType::U8, &["T", &row]);
    all.push(rows_of_e4m3);
    let eps = Attrs::none().with("eps", 1e-5);
    all.push(rowwise("rms_norm", eps, bf16, &[x, w], 8192));
    all.push(rowwise("softmax", Attrs::none().with("axis", -1i64), f32, &[x], 8192));
    all.push(rowwise("silu", Attrs::none(), bf16, &[x], 16384));
    all.push(rowwise("add", Attrs::none(), bf16, &[x, x], 16384));
    all
}

/// Work of a launch: operations, and bytes that must be moved.
fn work(timed: &Timed) -> [f64; 2] {
    let family = lowering(timed.spec.op).unwrap();
    let value = |dim: ir::Dim| dim.eval(&timed.env).unwrap() as f64;
    let bytes = value(family.bytes(&timed.spec));
    let size = |name: &str| timed.env[name] as f64;
    // Causal scores and values of 32 heads: every second one of a prompt's.
    let flops = match timed.spec.op {
        "attention" => 4.0 * size("T") * size("T") / 2.0 * 32.0 * 128.0,
        "paged_attention" => 4.0 * size("N") * 16.0 * 32.0 * 128.0,
        _ => value(family.flops(&timed.spec)),
    };
    [flops, bytes]
}

#[test]
fn model_sizes_have_kernels() {
    let target = Target::sm_90a();
    let folder = folder();
    for timed in all() {
        let kernels = lowering(timed.spec.op).unwrap().emit_cuda(&timed.spec, &target).unwrap();
        let limit = |limit: &(ir::Dim, i64)| limit.0.eval(&timed.env).unwrap() <= limit.1;
        let kernel = kernels.iter().find(|kernel| kernel.limit.as_ref().is_none_or(limit));
        let kernel = kernel.unwrap_or_else(|| panic!("{}: none for so many rows", timed.peer));
        let [flops, bytes] = work(&timed);
        assert!(bytes > 0.0, "{}", timed.peer);
        let Some(folder) = &folder else { continue };
        let operand = |(seed, (layout, values)): (u64, (&Option<Layout>, &Values))| {
            let ty = &layout.as_ref()?.ty;
            let source = match values {
                Values::Noise => Source::Noise(seed),
                Values::Lanes(bits) => Source::Lanes { bits: *bits, seed },
                Values::E4m3(values) => Source::E4m3 { values: *values, seed },
                Values::Ints(ints) => {
                    let bytes: Vec<u8> = ints.iter().flat_map(|i| i.to_le_bytes()).collect();
                    Source::File(folder.write_data(&bytes).unwrap())
                }
            };
            let shape = ty.extents(&timed.env).unwrap().to_vec();
            Some(Operand { dtype: ty.dtype, shape, source })
        };
        folder
            .write_case(&Case {
                name: format!("{} {}", timed.peer, kernel.symbol),
                family: "timings".to_owned(),
                target: target.cpu.clone(),
                module: module(folder, &ptx_of(kernel, &target), &target),
                launch: launch(kernel, &timed.env),
                operands: (1..)
                    .zip(timed.spec.operands.iter().zip(&timed.sources))
                    .map(operand)
                    .collect(),
                results: outputs(&timed.spec, &timed.env),
                check: timed.check,
                same: Vec::new(),
                timing: Some(Timing { flops, bytes, peer: timed.peer }),
            })
            .unwrap();
    }
}
