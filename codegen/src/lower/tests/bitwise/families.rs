//! Random cases of every operator that has a kernel, and which of their axes are rows.

use std::sync::Arc;

use ir::{Attr, Attrs, DType, Dim, Module, NORM_GRAD_ROWS, OpRef, QUANT_BLOCK, Tensor};

use super::super::{run::type_of, windows};
use super::{Case, Draw, MOST, Subject, attention, routing, subject::Along};

const ROWS: Option<usize> = Some(0);

/// Cases of an operator: several of the families that have variants, one of the others.
pub(super) fn cases(op: &'static str, draw: &mut Draw) -> Vec<Subject> {
    let mut several = |n: usize, one: fn(&'static str, &mut Draw) -> Subject| {
        (0..n).map(|_| one(op, draw)).collect()
    };
    match op {
        "fused" => several(2, fused),
        "copy" | "iota" => several(1, plain_loop),
        "linear" | "gated_linear" | "quantized_linear" => several(3, product),
        "grouped_linear" | "grouped_gated_linear" => several(2, routing::grouped),
        "moe_permute" | "moe_combine" => several(1, routing::moved),
        "matmul" => several(3, matmul),
        "rms_norm" | "layer_norm" | "softmax" | "l2_normalize" | "logsumexp" => several(1, rowwise),
        "reduce_sum" | "reduce_sum_square" | "reduce_mean" | "reduce_max" | "reduce_min"
        | "reduce_prod" | "cumsum" => several(1, reduction),
        "topk" | "sort" | "argsort" => several(1, order),
        "conv" | "conv_transpose" | "max_pool" | "average_pool" => several(2, window),
        "group_norm" => several(1, group_norm),
        "gather" | "gather_elements" | "gather_nd" | "scatter_nd" => several(1, gather),
        "rope" => several(2, rope),
        "quantize_rows" | "quantize_heads" => several(1, quantize),
        "segment_mean" | "segment_first" => several(1, attention::segment),
        "attention" | "attention_lse" | "attention_grad" => several(2, attention::packed),
        "paged_attention" | "kv_write" => several(1, attention::memory),
        "rope_kv_write" => several(2, attention::rotated),
        "norm_grad" | "embedding_grad" => several(1, gradient),
        "linear_cross_entropy" | "linear_cross_entropy_dlogits" | "linear_cross_entropy_grad" => {
            several(1, cross_entropy)
        }
        "cross_entropy" => several(1, losses),
        "linear_grad" => several(2, linear_grad),
        "accumulate" | "adamw_step" | "lion_step" | "sgd_step" | "sgd_momentum_step" => {
            several(1, update)
        }
        "pack" => several(1, pack),
        "size_vector" | "shape_of" => several(1, sizes),
        _ if OpRef::named(op).is_elementwise() => several(1, elementwise),
        _ => panic!("say how rows of `{op}` depend on each other: it has a kernel"),
    }
}

/// Numbers of rows around those at which products change their way.
pub(super) fn rows(draw: &mut Draw) -> usize {
    draw.within(1..=MOST)
}

pub(super) fn none() -> Attrs {
    Attrs::none()
}

fn case(op: &'static str, attrs: Attrs, args: Vec<Option<Tensor>>) -> Case {
    Case { op, attrs, args }
}

/// One elementwise operator, on values like those of its samples, of operands that may broadcast.
fn elementwise(op: &'static str, draw: &mut Draw) -> Subject {
    let sample = draw.pick(&(0..OpRef::named(op).samples().len()).collect::<Vec<_>>());
    let sample = OpRef::named(op).samples().swap_remove(sample);
    let float = draw.float();
    let (rows, width) = (rows(draw), draw.within(1..=150));
    let mut axes = Vec::new();
    let mut args = Vec::new();
    for (i, like) in sample.args.iter().enumerate() {
        let like = like.as_ref().expect("elementwise operands are required");
        let (shape, axis) = match draw.within(0..=if i == 0 { 0 } else { 5 }) {
            1 => (vec![width], None),
            2 => (vec![1, width], None),
            3 => (vec![rows, 1], ROWS),
            4 => (vec![], None),
            _ => (vec![rows, width], ROWS),
        };
        let values = like.to_f64s();
        let mut value = || values[draw.within(0..=values.len() - 1)];
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| value()).collect();
        let dtype = if like.dtype() == DType::F32 { float } else { like.dtype() };
        args.push(Some(Tensor::from_f64s(dtype, &shape, values)));
        axes.push(axis);
    }
    // The first operand may be the one that is spread.
    if args.len() == 2
        && draw.coin()
        && args[0].as_ref().map(Tensor::dtype) == args[1].as_ref().map(Tensor::dtype)
    {
        args.swap(0, 1);
        axes.swap(0, 1);
    }
    Subject::rows(case(op, sample.attrs, args), &axes, &[ROWS])
}

/// A function of several elementwise operators, of two results.
fn fused(op: &'static str, draw: &mut Draw) -> Subject {
    let mut module = Module::new("fuzz");
    module.symbol("T", 0, 5000);
    let width = draw.within(1..=200);
    let t = rows(draw);
    let args = [
        draw.noise(DType::F32, &[t, width]),
        draw.noise(DType::F32, &[width]),
        draw.noise(DType::Bf16, &[t, 1]),
    ];
    let mut b = module.builder("body");
    let mut param = |i: usize, rows: bool| {
        let mut ty = type_of(&args[i]);
        if rows {
            ty.shape[0] = Dim::symbol("T");
        }
        b.param(&i.to_string(), ty).unwrap()
    };
    let (x, w, s) = (param(0, true), param(1, false), param(2, true));
    let s = b.cast(s, DType::F32).unwrap();
    let mut values = vec![x, w, s];
    let mut last = b.op1("add", none(), &[x, s]).unwrap();
    for _ in 0..draw.within(2..=7) {
        let other = draw.pick(&values);
        last = if draw.coin() {
            let op = draw.pick(&["silu", "tanh", "exp", "gelu", "sin", "neg", "sigmoid", "erf"]);
            b.unary(op, last).unwrap()
        } else {
            let op = draw.pick(&["add", "mul", "sub", "maximum", "div"]);
            b.op1(op, none(), &[last, other]).unwrap()
        };
        values.push(last);
    }
    let half = b.cast(last, draw.float()).unwrap();
    b.output("0", last);
    b.output("1", half);
    let body = Arc::new(b.finish());
    let args = args.map(Some).to_vec();
    let subject = Subject::rows(case(op, none(), args), &[ROWS, None, ROWS], &[ROWS, ROWS]);
    Subject { body: Some(body), ..subject }
}

/// `copy`, and coordinates that rows share.
fn plain_loop(op: &'static str, draw: &mut Draw) -> Subject {
    let (t, width) = (rows(draw), draw.within(1..=300));
    if op == "copy" {
        let module = Module::new("fuzz");
        let dtype = draw.pick(&[DType::F32, DType::Bf16, DType::I8, DType::I64, DType::Bool]);
        let x = draw.noise(dtype, &[t, width]);
        let mut b = module.builder("copy");
        let value = b.param("x", type_of(&x)).unwrap();
        b.output("y", value);
        let subject = Subject::rows(case(op, none(), vec![Some(x)]), &[ROWS], &[ROWS]);
        return Subject { body: Some(Arc::new(b.finish())), ..subject };
    }
    let shape = vec![Dim::from(MOST), Dim::from(width)];
    let attrs = none().with("shape", shape).with("axis", 1i64);
    let dtype = draw.pick(&[DType::F32, DType::I64, DType::I32]);
    Subject::rows(case(op, attrs.with("dtype", dtype), vec![]), &[], &[ROWS])
}

/// Activations that products end in.
pub(super) const ACTIVATIONS: [&str; 7] =
    ["none", "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid"];

/// `[panels, K, 16]` of numbers whose sums over k stay about one.
pub(super) fn weight(draw: &mut Draw, dtype: DType, shape: &[usize]) -> Tensor {
    let values = draw.noise(DType::F64, shape).to_f64s();
    Tensor::from_f64s(dtype, shape, values.into_iter().map(|v| v / 16.0))
}

/// Products with packed weights of every type.
pub(super) fn product(op: &'static str, draw: &mut Draw) -> Subject {
    let (t, n) = (rows(draw), draw.within(1..=150));
    let k = draw.pick(&[1, 16, 37, 64, 129, 300, 601, 1200, 1537]);
    let quantized = op == "quantized_linear";
    let gated = op == "gated_linear" || (quantized && draw.coin());
    let panels = n.div_ceil(16) * (1 + usize::from(gated));
    let x = draw.noise(DType::F32, &[t, k]);
    let float = draw.float();
    let w = weight(draw, float, &[panels, k, 16]);
    let mut attrs = none().with("n", n as i64).with("act", draw.pick(&ACTIVATIONS));
    let (x, w) = if quantized {
        let bits: i64 = draw.pick(&[4, 8]);
        attrs = attrs.with("gated", Attr::Bool(gated));
        (
            quantized_of("quantize_rows", none().with("weight_bits", bits), &x),
            quantized_of("quantize_weight", none().with("bits", bits), &w),
        )
    } else {
        (x, w)
    };
    let mut args = vec![Some(x), Some(w)];
    if !gated {
        args.push(draw.coin().then(|| draw.noise(DType::F32, &[n])));
        args.push(draw.coin().then(|| draw.noise(DType::F32, &[t, n])));
    }
    let axes = [ROWS, None, None, ROWS];
    Subject::rows(case(op, attrs, args), &axes, &[ROWS])
}

/// What the interpreter makes of an operand.
fn quantized_of(op: &'static str, attrs: Attrs, x: &Tensor) -> Tensor {
    Case::new(op, attrs, &[x]).expected().1.remove(0)
}

/// Rows of one matrix, or matrices of a batch.
fn matmul(op: &'static str, draw: &mut Draw) -> Subject {
    let (t, k, n) = (rows(draw), draw.within(1..=400), draw.within(1..=90));
    let [a, b] = [draw.float(), draw.float()];
    let b = if draw.coin() { a } else { b };
    let dtype = if a == b { a } else { DType::F32 };
    let (a, b, axes) = if draw.coin() {
        (draw.noise(dtype, &[t, k]), draw.noise(dtype, &[k, n]), [ROWS, None])
    } else {
        let m = draw.within(1..=20);
        let b = if draw.coin() { (vec![t, k, n], ROWS) } else { (vec![k, n], None) };
        (draw.noise(dtype, &[t, m, k]), draw.noise(dtype, &b.0), [ROWS, b.1])
    };
    Subject::rows(Case::new(op, none(), &[&a, &b]), &axes, &[ROWS])
}

/// Norms and softmax over the last axis.
fn rowwise(op: &'static str, draw: &mut Draw) -> Subject {
    let (t, width, dtype) = (rows(draw), draw.within(1..=300), draw.float());
    let shape = if draw.coin() { vec![t, width] } else { vec![t, 3, width] };
    let mut args = vec![Some(draw.noise(dtype, &shape))];
    let eps = if matches!(op, "softmax" | "logsumexp") { none() } else { none().with("eps", 1e-5) };
    if matches!(op, "rms_norm" | "layer_norm") {
        args.push(Some(draw.noise(dtype, &[width])));
    }
    if op == "layer_norm" {
        args.push(draw.coin().then(|| draw.noise(dtype, &[width])));
    }
    Subject::rows(case(op, eps, args), &[ROWS, None, None], &[ROWS])
}

/// Sums along an axis before or behind that of the rows.
fn reduction(op: &'static str, draw: &mut Draw) -> Subject {
    let (t, width, dtype) = (rows(draw), draw.within(1..=300), draw.float());
    let behind = draw.coin();
    let axis = i64::from(behind);
    let attrs = match op {
        "cumsum" => none().with("axis", axis),
        _ => none().with("axes", vec![axis]).with("keep", op == "reduce_max"),
    };
    let shape = if behind { [t, width] } else { [width, t] };
    let result = usize::from(!behind && matches!(op, "cumsum" | "reduce_max"));
    let x = draw.noise(dtype, &shape);
    Subject::rows(Case::new(op, attrs, &[&x]), &[Some(usize::from(!behind))], &[Some(result)])
}

/// Orders along either axis, of many equal elements.
fn order(op: &'static str, draw: &mut Draw) -> Subject {
    let (t, n) = (rows(draw), draw.within(2..=400));
    let behind = draw.coin();
    let shape = if behind { [t, n] } else { [n, t] };
    let dtype = draw.pick(&[DType::F32, DType::Bf16, DType::I32, DType::U8]);
    let x = draw.ints(dtype, &shape, 0..40);
    let attrs = none().with("axis", i64::from(behind));
    let attrs = match op {
        "topk" => {
            let k = vec![Dim::from(draw.within(1..=n))];
            attrs.with("k", k).with("largest", draw.coin())
        }
        _ => attrs.with("descending", draw.coin()),
    };
    let axis = Some(usize::from(!behind));
    Subject::rows(Case::new(op, attrs, &[&x]), &[axis], &[axis, axis])
}

/// Images of a batch.
fn window(op: &'static str, draw: &mut Draw) -> Subject {
    let mut case = loop {
        let mut own = windows::Draw(draw.next());
        let case = match op {
            "conv" | "conv_transpose" => windows::conv(&mut own, op == "conv_transpose"),
            _ => windows::pool(&mut own),
        };
        if case.op == op {
            break case;
        }
    };
    let x = case.args[0].take().expect("an image");
    let images = [&[draw.within(1..=7)], &x.shape()[1..]].concat();
    case.args[0] = Some(draw.noise(x.dtype(), &images));
    Subject::rows(case, &[ROWS, None, None], &[ROWS])
}

fn group_norm(op: &'static str, draw: &mut Draw) -> Subject {
    let (groups, each) = (draw.within(1..=4), draw.within(1..=5));
    let (channels, dtype) = (groups * each, draw.float());
    let shape = [draw.within(1..=9), channels, draw.within(1..=9), draw.within(1..=40)];
    let args = [&shape[..], &[channels], &[channels]].map(|s| Some(draw.noise(dtype, s)));
    let attrs = none().with("groups", groups as i64).with("eps", 1e-5);
    Subject::rows(case(op, attrs, args.to_vec()), &[ROWS, None, None], &[ROWS])
}

/// Rows of indices; of `scatter_nd` nothing, as one result takes all updates.
fn gather(op: &'static str, draw: &mut Draw) -> Subject {
    let (t, n, width) = (rows(draw), draw.within(1..=50), draw.within(1..=90));
    let dtype = draw.pick(&[DType::F32, DType::Bf16, DType::I64, DType::I8]);
    let at = draw.pick(&[DType::I32, DType::I64]);
    let entries = n as i64;
    // Some are out of range.
    let range = -entries - 1..entries + 1;
    match op {
        "gather" => {
            let data = draw.noise(dtype, &[n, width]);
            let at = draw.ints(at, &[t, 2], range);
            Subject::rows(Case::new(op, none(), &[&data, &at]), &[None, ROWS], &[ROWS])
        }
        "gather_elements" => {
            let data = draw.noise(dtype, &[t, n]);
            let at = draw.ints(at, &[t, width], range);
            let attrs = none().with("axis", 1i64);
            Subject::rows(Case::new(op, attrs, &[&data, &at]), &[ROWS, ROWS], &[ROWS])
        }
        "gather_nd" => {
            let data = draw.noise(dtype, &[t, n, width]);
            let at = draw.ints(at, &[t, 3, 1], range);
            let attrs = none().with("batch_dims", 1i64);
            Subject::rows(Case::new(op, attrs, &[&data, &at]), &[ROWS, ROWS], &[ROWS])
        }
        _ => {
            let data = draw.noise(dtype, &[n, width]);
            let at = draw.ints(at, &[t, 1], range);
            let updates = draw.noise(dtype, &[t, width]);
            let case = Case::new(op, none(), &[&data, &at, &updates]);
            Subject::whole(case, "of updates of one place, the last one counts")
        }
    }
}

fn rope(op: &'static str, draw: &mut Draw) -> Subject {
    let (t, half, dtype) = (rows(draw), draw.within(1..=40), draw.float());
    let size = 2 * half + draw.within(0..=9);
    let attrs = none().with("style", draw.pick(&["half", "interleaved"]));
    let heads = draw.within(1..=4);
    let x = draw.noise(dtype, &[t, heads, size]);
    let [cos, sin] = [0, 1].map(|_| draw.noise(dtype, &[t, half]));
    Subject::rows(Case::new(op, attrs, &[&x, &cos, &sin]), &[ROWS, ROWS, ROWS], &[ROWS])
}

fn quantize(op: &'static str, draw: &mut Draw) -> Subject {
    let (t, width) = (rows(draw), draw.within(1..=5 * QUANT_BLOCK));
    let x = draw.noise(DType::F32, &[t, 2, width]);
    let attrs = match op {
        "quantize_rows" => none().with("weight_bits", draw.pick(&[4i64, 8])),
        _ => none().with("format", draw.pick(&["integers", "e4m3"])),
    };
    Subject::rows(Case::new(op, attrs, &[&x]), &[ROWS], &[ROWS, ROWS])
}

/// Gradients: of x by row; those of weights are sums over all rows, so that they depend on the
/// batch by nature, but not on threads.
fn gradient(op: &'static str, draw: &mut Draw) -> Subject {
    let (t, width, dtype) = (3 * rows(draw), draw.within(1..=150), draw.float());
    if op == "embedding_grad" {
        let entries = draw.size(1..=90);
        let dy = draw.noise(dtype, &[t, width]);
        let ids = draw.ints(DType::I32, &[t], -entries - 2..entries + 2);
        let case = Case::new(op, none().with("rows", entries), &[&dy, &ids]);
        return Subject::whole(case, "sums over all tokens");
    }
    let centred = draw.coin();
    let attrs = none().with("eps", 1e-5).with("centred", centred);
    let x = draw.noise(dtype, &[t, width]);
    let w = draw.noise(dtype, &[width]);
    let dy = draw.noise(dtype, &[t, width]);
    let mut subject =
        Subject::rows(Case::new(op, attrs, &[&x, &w, &dy]), &[ROWS, None, ROWS], &[ROWS]);
    let sums = [Along::Every(NORM_GRAD_ROWS), Along::Every(NORM_GRAD_ROWS)];
    subject.results.extend(sums.into_iter().take(1 + usize::from(centred)));
    subject
}

/// The head and its loss by token, and the gradient of x; that of the head's weight is a sum over
/// tokens, see [`gradient`].
fn cross_entropy(op: &'static str, draw: &mut Draw) -> Subject {
    let (t, k, n) = (3 * rows(draw), draw.within(1..=300), draw.within(1..=200));
    let dtype = draw.float();
    let (x, w) = (draw.noise(dtype, &[t, k]), weight(draw, dtype, &[n, k]));
    let targets = draw.ints(DType::I32, &[t], -2..n as i64 + 2);
    let [lse, dloss] = [0, 1].map(|_| draw.noise(DType::F32, &[t]));
    let axes = [ROWS, None, ROWS, ROWS, ROWS];
    if op == "linear_cross_entropy" {
        let case = Case::new(op, none(), &[&x, &w, &targets]);
        return Subject::rows(case, &axes, &[ROWS, ROWS]);
    }
    if op == "linear_cross_entropy_dlogits" {
        let case = Case::new(op, none(), &[&x, &w, &targets, &dloss]);
        return Subject::rows(case, &axes[..4], &[ROWS, ROWS]);
    }
    let case = Case::new(op, none(), &[&x, &w, &targets, &lse, &dloss]);
    Subject::rows(case, &axes, &[ROWS, None])
}

/// Losses of logits by token, and the gradients of those.
fn losses(op: &'static str, draw: &mut Draw) -> Subject {
    let (t, n) = (3 * rows(draw), draw.within(1..=200));
    let logits = draw.noise(DType::F32, &[t, n]);
    let targets = draw.ints(DType::I32, &[t], -2..n as i64 + 2);
    let dloss = draw.noise(DType::F32, &[t]);
    if draw.coin() {
        return Subject::rows(Case::new(op, none(), &[&logits, &targets]), &[ROWS; 2], &[ROWS]);
    }
    let case = Case::new(op, none(), &[&logits, &targets, &dloss]);
    Subject::rows(case, &[ROWS; 3], &[ROWS; 2])
}

/// Both gradients of a product: that of its weight is a sum over tokens, see [`gradient`].
fn linear_grad(op: &'static str, draw: &mut Draw) -> Subject {
    let (t, k, n) = (3 * rows(draw), draw.within(1..=300), draw.within(1..=200));
    let dtype = draw.float();
    let dy = draw.noise(DType::F32, &[t, n]);
    let (x, w) = (draw.noise(dtype, &[t, k]), weight(draw, dtype, &[n, k]));
    Subject::rows(Case::new(op, none(), &[&dy, &x, &w]), &[ROWS, ROWS, None], &[ROWS, None])
}

/// Steps of optimisers, element by element.
fn update(op: &'static str, draw: &mut Draw) -> Subject {
    let sample = OpRef::named(op).samples().swap_remove(0);
    let shape = [rows(draw), draw.within(1..=300)];
    let dtype = draw.float();
    let mut axes = Vec::new();
    let mut args = Vec::new();
    for (i, like) in sample.args.iter().flatten().enumerate() {
        if like.rank() == 0 {
            args.push(Some(like.clone()));
            axes.push(None);
            continue;
        }
        let dtype = if i == 1 { dtype } else { like.dtype() };
        // Second moments are not negative.
        let values = draw.noise(DType::F64, &shape).to_f64s();
        let values = values.into_iter().map(|v| if i == 3 { v * v } else { v });
        args.push(Some(Tensor::from_f64s(dtype, &shape, values)));
        axes.push(ROWS);
    }
    let results = OpRef::named(op).in_place().len();
    Subject::rows(case(op, sample.attrs, args), &axes, &vec![ROWS; results])
}

/// A matrix as it lies or turned.
fn pack(op: &'static str, draw: &mut Draw) -> Subject {
    let shape = [draw.within(1..=70), draw.within(1..=70)];
    let dtype = draw.float();
    let w = draw.noise(dtype, &shape);
    let w = if draw.coin() { w.transpose(&[1, 0]) } else { w };
    Subject::whole(case(op, none(), vec![Some(w)]), "its rows are not those of the matrix")
}

/// Nothing but sizes.
fn sizes(op: &'static str, _: &mut Draw) -> Subject {
    let sample = OpRef::named(op).samples().swap_remove(0);
    Subject::whole(case(op, sample.attrs, sample.args), "its result is the sizes themselves")
}
