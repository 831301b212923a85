//! `quantized_linear`: product of activations, quantised or not, with a quantised weight.

use super::{
    E4M3_BLOCK, E4M3_PANEL_BYTES, QUANT_BLOCK, QUANT_GROUP, e4m3, e4m3_row_bytes,
    elementwise::spread, linear::activation, pack::PANEL, quant_lane_bits, quant_row_bytes,
    quant_weight_bytes, quantize_rows, quantize_weight,
};
use crate::{
    Attr, Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
    TensorType, Vjp,
    op::{AttrKind, defaulted, one, optional, required},
};

/// `act(x · w + bias) + residual`, or `act(x · gate) · (x · up)` when gated.
///
/// Within a block of 32 the products are summed as integers, exactly; blocks are then added in
/// order, `sum = fma(integers, w_scale · x_scale, sum)` in f32. So a result depends neither on the
/// number of rows nor on the instructions that a machine has.
///
/// Of floating-point activations, which meet weights in lanes, a block's products with the integers
/// are summed as the machine sums, then scaled: `sum = fma(block, w_scale, sum)`.
///
/// In e4m3 a block is 128 products, which are summed as the machine sums, then scaled and added in
/// f32: `sum = fma(block, x_scale · w_scale, sum)`, in the order of k.
/// # Shapes
/// `x: u8 [.., ceil(K / 32), 40 or 68]` from `quantize_rows` for the bits of the weight,
/// `w: u8 [P, ceil(K / 32), 32 + 64 · bits]` from `quantize_weight` with `P = ceil(n / 16)`, twice
/// as many when gated, `bias: [n]`, `residual: [.., n]` → f32 `[.., n]`. Or floats `x: [.., K]`,
/// `w: u8 [P, ceil(K / 64), 64 + 128 · bits]`, and the others and the result of the dtype of `x`.
/// Or, both in e4m3, `x: u8 [.., 128 · ceil(K / 128) + 16 · ceil(K / 512)]`,
/// `w: u8 [P, ceil(K / 128), 2112]`, and the others as with integers.
pub(super) struct QuantizedLinear;

static SIGNATURE: Signature = Signature {
    operands: &[one("x"), one("w"), optional("bias"), optional("residual")],
    attrs: &[
        required("n", AttrKind::Int),
        defaulted("act", AttrKind::Str, || Attr::from("none")),
        defaulted("gated", AttrKind::Bool, || Attr::Bool(false)),
    ],
};

/// Bits of a quantised weight, from the bytes of its blocks.
pub fn quant_bits(bytes: &Dim) -> Option<usize> {
    [4, 8].into_iter().find(|bits| *bytes == Dim::from(quant_weight_bytes(*bits)))
}

impl OpDef for QuantizedLinear {
    fn name(&self) -> &'static str {
        "quantized_linear"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        if activation(cx.attrs.str("act")).is_none() {
            return Err(OpError::attr("act", "is not an activation that an epilogue computes"));
        }
        let (lead, panels, dtype) = operands(cx)?;
        let n = cx.attrs.int("n");
        if n <= 0 {
            return Err(OpError::attr("n", "must be positive"));
        }
        let gated = cx.attrs.bool("gated");
        let need = Dim::from(n).ceil_div(PANEL as i64) * Dim::from(if gated { 2i64 } else { 1 });
        cx.same("panels", panels, &need)?;
        let ty = TensorType::new(dtype, lead.iter().cloned().chain([Dim::from(n)]));
        let optional = |i: usize| cx.args.get(i).copied().flatten();
        if let Some(bias) = optional(2)
            && bias.ty != TensorType::new(dtype, [Dim::from(n)])
        {
            return Err(OpError::new(format!("bias is {}, not {dtype}[{n}]", bias.ty)));
        }
        if let Some(residual) = optional(3)
            && residual.ty.equal(&ty, cx.symbols) != Some(true)
        {
            return Err(OpError::new(format!("residual is {}, not {ty}", residual.ty)));
        }
        if gated && optional(2).is_some() {
            return Err(OpError::new("a gated product takes no bias"));
        }
        Ok(vec![Fact::of(ty)])
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let [x, w] = [0, 1].map(|i| args[i].as_ref().expect("operand"));
            let n = usize::try_from(cx.attrs.int("n")).expect("inferred");
            let gated = cx.attrs.bool("gated");
            let optional = |i: usize| args.get(i).and_then(Option::as_ref).map(Tensor::to_f64s);
            let (bias, residual) = (optional(2), optional(3));
            let act = activation(cx.attrs.str("act")).expect("inferred");
            let halves = if gated { 2 } else { 1 };
            let products = match x.dtype() {
                DType::U8 if is_e4m3(w.shape()) => {
                    e4m3::product(&x.to_bytes(), &w.to_bytes(), w.shape()[1])
                }
                DType::U8 => product(x, w),
                _ => floats(x, w),
            };
            let width = w.shape()[0] * PANEL;
            let rows = products.len() / width.max(1);
            let at = |r: usize, c: usize, half: usize| {
                products[r * width + (c / PANEL * halves + half) * PANEL + c % PANEL]
            };
            let y = (0..rows * n).map(|i| {
                let (r, c) = (i / n, i % n);
                let mut y = act(at(r, c, 0) + bias.as_ref().map_or(0.0, |b| b[c]));
                if gated {
                    y *= at(r, c, 1);
                }
                y + residual.as_ref().map_or(0.0, |r| r[i])
            });
            vec![Tensor::from_f64s(cx.results[0].dtype, &cx.shape(0), y)]
        })
    }
    fn flops(&self, attrs: &Attrs, args: &[Option<TensorType>], results: &[TensorType]) -> Dim {
        let spans = args[1].as_ref().and_then(|w| w.shape.get(1).cloned()).unwrap_or_default();
        let integers = args[0].as_ref().is_none_or(|x| x.dtype == DType::U8);
        let bytes = args[1].as_ref().and_then(|w| w.shape.last()).and_then(Dim::as_const);
        let span = match integers {
            true if bytes == Some(E4M3_PANEL_BYTES as i64) => E4M3_BLOCK,
            true => QUANT_BLOCK,
            false => QUANT_GROUP,
        };
        let halves = if attrs.bool("gated") { 2i64 } else { 1 };
        results[0].elements() * spans * Dim::from(2 * span as i64 * halves)
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Refused(
            "multiplies numbers of 8 or 4 bits, which have no derivative; train the model that was \
             quantised",
        )
    }
    fn samples(&self) -> Vec<Sample> {
        let mut samples = Vec::new();
        for (rows, k, bits) in [(1, 64, 8), (3, 37, 4), (7, 96, 8), (11, 70, 4)] {
            for gated in [false, true] {
                let blocks = usize::div_ceil(k, QUANT_BLOCK);
                let x = spread(DType::F32, &[rows, k], -1.0, 1.5);
                let panels = if gated { 6 } else { 3 };
                let w = spread(DType::F32, &[panels, k, PANEL], -0.5, 0.4);
                let weight_bits = Attrs::none().with("weight_bits", bits as i64);
                let row_bytes = quant_row_bytes(bits);
                let x = run("quantize_rows", &weight_bits, x, &[rows, blocks, row_bytes]);
                let bits_attr = Attrs::none().with("bits", bits as i64).with("layout", "steps");
                let bytes = quant_weight_bytes(bits);
                let w = run("quantize_weight", &bits_attr, w, &[panels, blocks, bytes]);
                let attrs = Attrs::none().with("n", 37i64).with("gated", Attr::Bool(gated));
                let attrs = attrs.with("act", if gated { "silu" } else { "none" });
                let mut args = vec![Some(x), Some(w)];
                if !gated && rows > 1 {
                    args.push(Some(spread(DType::F32, &[37], -1.0, 1.0)));
                    args.push(Some(spread(DType::F32, &[rows, 37], -1.0, 1.0)));
                }
                samples.push(Sample { attrs, args });
            }
        }
        samples.extend([(1, 128, false), (3, 300, true), (2, 77, false)].map(e4m3_sample));
        samples
    }
}

/// Leading axes of the result, panels, and the result's type.
fn operands<'a>(cx: &'a InferCx<'_>) -> Result<(&'a [Dim], &'a Dim, DType), OpError> {
    let (x, w) = (cx.ty(0), cx.ty(1));
    let wrong =
        || OpError::new(format!("takes rows and the quantised weight for them, got {x} and {w}"));
    let [panels, spans, bytes] = &*w.shape else { return Err(wrong()) };
    if w.dtype != DType::U8 {
        return Err(wrong());
    }
    match (x.dtype, &*x.shape) {
        (DType::U8, [lead @ .., row]) if bytes.is(E4M3_PANEL_BYTES as i64) => {
            cx.same("bytes of a row", row, &e4m3_row_bytes(spans))?;
            Ok((lead, panels, DType::F32))
        }
        (DType::U8, [lead @ .., blocks, row]) => {
            let bits = quant_bits(bytes).filter(|bits| *row == Dim::from(quant_row_bytes(*bits)));
            bits.ok_or_else(wrong)?;
            cx.same("blocks", blocks, spans)?;
            Ok((lead, panels, DType::F32))
        }
        (DType::F32 | DType::Bf16 | DType::F16, [lead @ .., k]) => {
            quant_lane_bits(bytes).ok_or_else(wrong)?;
            cx.same("groups", &k.ceil_div(QUANT_GROUP as i64), spans)?;
            Ok((lead, panels, x.dtype))
        }
        _ => Err(wrong()),
    }
}

/// Whether a weight of this shape is e4m3.
fn is_e4m3(shape: &[usize]) -> bool {
    shape.last() == Some(&E4M3_PANEL_BYTES)
}

/// Every column of every panel of a weight in lanes, `[rows, P · 16]`.
fn floats(x: &Tensor, w: &Tensor) -> Vec<f64> {
    let [panels, groups, bytes] = *w.shape() else { unreachable!("inferred") };
    let bits = quant_lane_bits(&Dim::from(bytes)).expect("inferred");
    let k = x.shape().last().copied().unwrap_or(0).max(1);
    let w = quantize_weight::lane_blocks(&w.to_bytes(), bits);
    let mut out = Vec::new();
    for row in x.to_f64s().chunks(k) {
        for panel in 0..panels {
            for c in 0..PANEL {
                let blocks = row.chunks(QUANT_BLOCK).zip(&w[panel * 2 * groups..]);
                let terms = blocks.map(|(x, (scales, w))| {
                    let dot: f64 = x.iter().zip(w).map(|(x, w)| x * f64::from(w[c])).sum();
                    dot * f64::from(scales[c].to_f32())
                });
                out.push(terms.sum::<f64>());
            }
        }
    }
    out
}

/// Every column of every panel, `[rows, P · 16]`.
fn product(x: &Tensor, w: &Tensor) -> Vec<f64> {
    let [panels, blocks, bytes] = *w.shape() else { unreachable!("inferred") };
    let bits = quant_bits(&Dim::from(bytes)).expect("inferred");
    let x: Vec<_> = quantize_rows::blocks(&x.to_bytes(), bits).collect();
    let w = quantize_weight::blocks(&w.to_bytes(), bits);
    let mut out = Vec::new();
    for row in x.chunks(blocks.max(1)) {
        for panel in 0..panels {
            for c in 0..PANEL {
                let terms =
                    row.iter().zip(&w[panel * blocks..]).map(|((x_scale, x), (scales, w))| {
                        let dot: i32 =
                            (0..QUANT_BLOCK).map(|k| i32::from(x[k]) * i32::from(w[k][c])).sum();
                        f64::from(dot) * f64::from(scales[c].to_f32()) * f64::from(*x_scale)
                    });
                out.push(terms.sum::<f64>());
            }
        }
    }
    out
}

/// So many rows and k in e4m3, gated or with bias and residual.
fn e4m3_sample((rows, k, gated): (usize, usize, bool)) -> Sample {
    let (blocks, panels) = (k.div_ceil(E4M3_BLOCK), if gated { 6 } else { 3 });
    let x = spread(DType::F32, &[rows, k], -1.0, 1.5);
    let w = spread(DType::F32, &[panels, k, PANEL], -0.5, 0.4);
    let format = Attrs::none().with("format", "e4m3");
    let bytes = e4m3_row_bytes(&Dim::from(blocks)).as_const().expect("a constant");
    let bytes = usize::try_from(bytes).expect("positive");
    let x = run("quantize_rows", &format, x, &[rows, bytes]);
    let format = format.with("bits", 8i64).with("layout", "steps");
    let w = run("quantize_weight", &format, w, &[panels, blocks, E4M3_PANEL_BYTES]);
    let act = if gated { "silu" } else { "none" };
    let attrs = Attrs::none().with("n", 37i64).with("act", act).with("gated", Attr::Bool(gated));
    let mut args = vec![Some(x), Some(w)];
    if !gated {
        args.push(Some(spread(DType::F32, &[37], -1.0, 1.0)));
        args.push(Some(spread(DType::F32, &[rows, 37], -1.0, 1.0)));
    }
    Sample { attrs, args }
}

/// A value of another operator, for samples.
fn run(op: &str, attrs: &Attrs, x: Tensor, shape: &[usize]) -> Tensor {
    let def = crate::OpRef::named(op);
    let Body::Primitive(body) = def.0.body() else { unreachable!("a primitive") };
    let results = [TensorType::new(DType::U8, shape.iter().copied())];
    let env = crate::Env::new();
    let attrs = match attrs.get("format") {
        Some(_) => attrs,
        None => &attrs.clone().with("format", "integers"),
    };
    let cx = crate::EvalCx { attrs, results: &results, env: &env };
    body(&cx, &[Some(x)]).remove(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Module;

    /// A product of sixteen columns with `weight_bits` in this layout.
    fn layout(bits: i64, layout: &str, k: usize) -> Result<TensorType, OpError> {
        let module = Module::new("m");
        let mut b = module.builder("f");
        let x = b.param("x", TensorType::new(DType::Bf16, [3, k]))?;
        let w = b.param("w", TensorType::new(DType::F32, [1, k, PANEL]))?;
        let attrs = Attrs::none().with("bits", bits).with("layout", layout);
        let w = b.op1("quantize_weight", attrs, &[w])?;
        let y = b.op1("quantized_linear", Attrs::none().with("n", 16i64), &[x, w])?;
        Ok(b.ty(y).clone())
    }

    #[test]
    fn floats_take_weights_in_lanes_alone() {
        for (bits, k) in [(4, 70), (8, 96)] {
            let ty = layout(bits, "lanes", k).unwrap();
            assert_eq!(ty, TensorType::new(DType::Bf16, [3usize, 16]));
            assert!(layout(bits, "steps", k).is_err());
        }
    }

    /// A product of sixteen columns, rows of `k` and weights of `w_k` in these formats.
    fn formats(rows: Attrs, k: usize, weight: Attrs, w_k: usize) -> Result<TensorType, OpError> {
        let module = Module::new("m");
        let mut b = module.builder("f");
        let x = b.param("x", TensorType::new(DType::F32, [Dim::symbol("T"), Dim::from(k)]))?;
        let w = b.param("w", TensorType::new(DType::F32, [1, w_k, PANEL]))?;
        let x = b.op1("quantize_rows", rows, &[x])?;
        let w = b.op1("quantize_weight", weight, &[w])?;
        let y = b.op1("quantized_linear", Attrs::none().with("n", 16i64), &[x, w])?;
        Ok(b.ty(y).clone())
    }

    #[test]
    fn e4m3_meets_e4m3_of_as_many_blocks() {
        let rows = || Attrs::none().with("format", "e4m3");
        let weight = || rows().with("bits", 8i64);
        let ty = formats(rows(), 300, weight(), 290).unwrap();
        assert_eq!(ty, TensorType::new(DType::F32, [Dim::symbol("T"), Dim::from(16)]));
        let integers = || Attrs::none().with("bits", 8i64);
        let wrong = [
            (formats(rows(), 300, weight(), 600), "bytes of a row"),
            (formats(rows(), 300, integers(), 300), "quantised weight"),
            (formats(Attrs::none(), 300, weight(), 300), "bytes of a row"),
            (formats(rows().with("weight_bits", 4i64), 300, weight(), 300), "weight_bits"),
            (formats(rows().with("format", "e5m2"), 300, weight(), 300), "`integers` or `e4m3`"),
            (formats(rows(), 300, weight().with("bits", 4i64), 300), "8 in e4m3"),
            (formats(rows(), 300, weight().with("layout", "lanes"), 300), "not of e4m3"),
        ];
        for (result, why) in wrong {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(why), "{error}, not {why}");
        }
    }

    #[test]
    fn both_layouts_give_the_same_products() {
        for bits in [4, 8] {
            let (k, blocks) = (70, 3);
            let w = spread(DType::F32, &[2, k, PANEL], -0.5, 0.4);
            let quantized = |layout: &str, spans: usize, bytes: usize| {
                let attrs = Attrs::none().with("bits", bits as i64).with("layout", layout);
                run("quantize_weight", &attrs, w.clone(), &[2, spans, bytes])
            };
            let steps = quantized("steps", blocks, quant_weight_bytes(bits));
            let lanes = quantized("lanes", 2, 2 * quant_weight_bytes(bits));
            let x = spread(DType::F32, &[3, k], -1.0, 1.5);
            let rows = x.to_f64s();
            let weights = quantize_weight::blocks(&steps.to_bytes(), bits);
            let want: Vec<f64> = (0..3 * 2 * PANEL)
                .map(|i| {
                    let (row, panel, c) = (i / (2 * PANEL), i / PANEL % 2, i % PANEL);
                    let block = |b: usize| {
                        let (scales, q) = &weights[panel * blocks + b];
                        let ks = b * QUANT_BLOCK..k.min((b + 1) * QUANT_BLOCK);
                        let dot: f64 =
                            ks.map(|j| rows[row * k + j] * f64::from(q[j % QUANT_BLOCK][c])).sum();
                        dot * f64::from(scales[c].to_f32())
                    };
                    (0..blocks).map(block).sum()
                })
                .collect();
            assert_eq!(floats(&x, &lanes), want);
        }
    }
}
