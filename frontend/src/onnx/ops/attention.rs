//! Attention and rotary embeddings of opset 23, written out; passes find them again.

use ir::{DType, Dim, OpError, Value};

use super::super::{
    cx::{self, Cx, Results},
    tensor,
};
use super::slice::cut;

/// Operands `[B, H, S, D]`, or `[B, S, H·D]` with the numbers of heads as attributes.
pub(super) fn attention(cx: &mut Cx<'_, '_>) -> Results {
    let flat = cx.rank(cx.arg(0)?) == 3;
    let [heads, kv_heads] = ["q_num_heads", "kv_num_heads"].map(|name| cx.attrs.int_or(name, 0));
    let [heads, kv_heads] = [heads?, kv_heads?];
    let mut operands = Vec::new();
    for (i, n) in [(0, heads), (1, kv_heads), (2, kv_heads)] {
        let x = cx.arg(i)?;
        operands.push(if flat { split_heads(cx, x, n)? } else { x });
    }
    let [q, mut k, mut v] = operands[..] else { unreachable!("three operands") };
    if [q, k, v].iter().any(|x| cx.rank(*x) != 4) {
        return Err(OpError::new("takes queries, keys and values of three or four axes alike"));
    }
    let past = match (cx.opt(4), cx.opt(5)) {
        (Some(pk), Some(pv)) => {
            let offset = cx.shape(pk).get(2).cloned();
            (k, v) = (cx.concat(&[pk, k], 2)?, cx.concat(&[pv, v], 2)?);
            offset.unwrap_or_default()
        }
        (None, None) => Dim::from(0),
        _ => return Err(OpError::new("has past keys without past values, or the reverse")),
    };
    if cx.opt(6).is_some() {
        return Err(OpError::new("the operand nonpad_kv_seqlen is not supported"));
    }
    for window in ["left_window_size", "right_window_size"] {
        if cx.attrs.int_or(window, -1)? != -1 {
            return Err(OpError::attr(window, "is not supported"));
        }
    }
    cx.attrs.int("qk_matmul_output_mode")?;
    let weights = probabilities(cx, q, k, &past)?;
    let repeated = repeat_heads(cx, v, q)?;
    let y = cx.plain("matmul", &[weights, repeated])?;
    let y = if flat { merge_heads(cx, y)? } else { y };
    Ok(vec![y, k, v])
}

/// `softmax(q · kᵀ · scale, capped, masked)`, zero where a query sees nothing.
fn probabilities(cx: &mut Cx<'_, '_>, q: Value, k: Value, past: &Dim) -> Result<Value, OpError> {
    let dtype = cx.dtype(q);
    let scale = match cx.attrs.float("scale")? {
        Some(scale) => scale,
        None => match cx.shape(q)[3].as_const() {
            #[allow(clippy::cast_precision_loss, reason = "a head size")]
            Some(d @ 1..) => 1.0 / (d as f64).sqrt(),
            _ => return Err(OpError::new("the heads' size must be a constant")),
        },
    };
    let keys = repeat_heads(cx, k, q)?;
    let keys = cx.transpose(keys, &[0, 1, 3, 2])?;
    let scores = cx.plain("matmul", &[q, keys])?;
    let factor = cx.scalar(dtype, scale)?;
    let mut scores = cx.plain("mul", &[scores, factor])?;
    let cap = cx.attrs.float_or("softcap", 0.0)?;
    if cap > 0.0 {
        let cap = cx.scalar(dtype, cap)?;
        scores = cx.plain("div", &[scores, cap])?;
        scores = cx.plain("tanh", &[scores])?;
        scores = cx.plain("mul", &[scores, cap])?;
    }
    let masks = masks(cx, q, k, past)?;
    let masked = !masks.is_empty();
    for mask in masks {
        scores = cx.plain("add", &[scores, mask])?;
    }
    let precision = match cx.attrs.int("softmax_precision")? {
        None | Some(0) => dtype,
        Some(p) => i32::try_from(p)
            .map_err(|e| e.to_string())
            .and_then(tensor::dtype)
            .map_err(|e| OpError::attr("softmax_precision", e))?,
    };
    let scores = cx.cast(scores, precision)?;
    let mut weights = cx.softmax(scores, 3)?;
    if masked {
        let nan = cx.plain("is_nan", &[weights])?;
        let zero = cx.scalar(precision, 0.0)?;
        weights = cx.plain("select", &[nan, zero, weights])?;
    }
    cx.cast(weights, dtype)
}

/// What is added to scores: the mask operand and the causal rule.
fn masks(cx: &mut Cx<'_, '_>, q: Value, k: Value, past: &Dim) -> Result<Vec<Value>, OpError> {
    let mut masks = Vec::new();
    if let Some(mask) = cx.opt(3) {
        masks.push(additive(cx, mask, cx.dtype(q))?);
    }
    if cx.attrs.flag("is_causal", false)? {
        let (rows, columns) = (cx.shape(q)[2].clone(), cx.shape(k)[2].clone());
        let mut row = cx.iota(vec![rows, Dim::from(1)], 0, DType::I64)?;
        if !past.is(0) {
            let past = cx.size(DType::I64, past)?;
            row = cx.plain("add", &[row, past])?;
        }
        let column = cx.iota(vec![columns], 0, DType::I64)?;
        let seen = cx.plain("less_equal", &[column, row])?;
        masks.push(additive(cx, seen, cx.dtype(q))?);
    }
    Ok(masks)
}

/// A boolean mask as zero and -∞.
fn additive(cx: &mut Cx<'_, '_>, mask: Value, dtype: DType) -> Result<Value, OpError> {
    if cx.dtype(mask) != DType::Bool {
        return Ok(mask);
    }
    let (zero, hidden) = (cx.scalar(dtype, 0.0)?, cx.scalar(dtype, f64::NEG_INFINITY)?);
    cx.plain("select", &[mask, zero, hidden])
}

/// `[B, S, H·D]` as `[B, H, S, D]`.
fn split_heads(cx: &mut Cx<'_, '_>, x: Value, heads: i64) -> Result<Value, OpError> {
    let shape = cx.shape(x);
    let ([b, s, width], 1..) = (&shape[..], heads) else {
        return Err(OpError::new(format!("takes {heads} heads of an operand of three axes")));
    };
    let heads = Dim::from(heads);
    let size = width.exact_div(&heads).ok_or_else(|| {
        OpError::new(format!("cannot divide a width of `{width}` into {heads} heads"))
    })?;
    let x = cx.reshape(x, vec![b.clone(), s.clone(), heads, size])?;
    cx.transpose(x, &[0, 2, 1, 3])
}

/// `[B, H, S, D]` as `[B, S, H·D]`.
fn merge_heads(cx: &mut Cx<'_, '_>, x: Value) -> Result<Value, OpError> {
    let x = cx.transpose(x, &[0, 2, 1, 3])?;
    let shape = cx.shape(x);
    let width = cx::product(&shape[2..]);
    cx.reshape(x, vec![shape[0].clone(), shape[1].clone(), width])
}

/// Each key or value head as often as queries share it.
fn repeat_heads(cx: &mut Cx<'_, '_>, x: Value, q: Value) -> Result<Value, OpError> {
    let (shape, heads) = (cx.shape(x), cx.shape(q)[1].clone());
    let [b, own, s, d] = &shape[..] else {
        return Err(OpError::new("takes keys and values of four axes"));
    };
    let times = heads.exact_div(own).ok_or_else(|| {
        OpError::new(format!("cannot share `{own}` key heads among `{heads}` query heads"))
    })?;
    if times.is(1) {
        return Ok(x);
    }
    let one = Dim::from(1);
    let x = cx.reshape(x, vec![b.clone(), own.clone(), one, s.clone(), d.clone()])?;
    let x = cx.broadcast_to(x, vec![b.clone(), own.clone(), times, s.clone(), d.clone()])?;
    cx.reshape(x, vec![b.clone(), heads, s.clone(), d.clone()])
}

/// Rotates pairs of the leading `rotary_embedding_dim` elements of each head by cached angles.
pub(super) fn rotary_embedding(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let interleaved = cx.attrs.flag("interleaved", false)?;
    let heads = cx.attrs.int_or("num_heads", 0)?;
    let flat = cx.rank(x) == 3;
    let x = if flat { split_heads(cx, x, heads)? } else { x };
    let shape = cx.shape(x);
    let Some(size) = shape.get(3).and_then(Dim::as_const) else {
        return Err(OpError::new("takes an operand of three or four axes, heads of constant size"));
    };
    let rotated = match cx.attrs.int_or("rotary_embedding_dim", 0)? {
        0 => size,
        n if (2..=size).contains(&n) => n,
        n => {
            return Err(OpError::attr(
                "rotary_embedding_dim",
                format_args!("{n} is not below {size}"),
            ));
        }
    };
    let [cos, sin] = [1, 2].map(|i| angles(cx, i));
    let (cos, sin) = (cos?, sin?);
    let [turn, keep] = cut(cx, x, 3, &Dim::from(rotated))?;
    let half = Dim::from(rotated / 2);
    let pairs: [Dim; 2] =
        if interleaved { [half.clone(), 2.into()] } else { [2.into(), half.clone()] };
    let axis = if interleaved { 4 } else { 3 };
    let mut split = shape[..3].to_vec();
    split.extend(pairs);
    let paired = cx.reshape(turn, split)?;
    let [first, second] = cut(cx, paired, axis, &Dim::from(1))?;
    let mut plane = shape[..3].to_vec();
    plane.push(half);
    let (first, second) = (cx.reshape(first, plane.clone())?, cx.reshape(second, plane.clone())?);
    let mut rotate = |a, s: &str, b| -> Result<Value, OpError> {
        let (l, r) = match s {
            "sub" => (cx.plain("mul", &[cos, a])?, cx.plain("mul", &[sin, b])?),
            _ => (cx.plain("mul", &[sin, a])?, cx.plain("mul", &[cos, b])?),
        };
        cx.plain(s, &[l, r])
    };
    let (real, imaginary) = (rotate(first, "sub", second)?, rotate(first, "add", second)?);
    plane.insert(if interleaved { 4 } else { 3 }, Dim::from(1));
    let (real, imaginary) = (cx.reshape(real, plane.clone())?, cx.reshape(imaginary, plane)?);
    let joined = cx.concat(&[real, imaginary], if interleaved { 4 } else { 3 })?;
    let mut whole = shape[..3].to_vec();
    whole.push(Dim::from(rotated));
    let joined = cx.reshape(joined, whole)?;
    let y = if rotated == size { joined } else { cx.concat(&[joined, keep], 3)? };
    Ok(vec![if flat { merge_heads(cx, y)? } else { y }])
}

/// Cached cosines or sines as `[B, 1, S, D/2]`, picked by position ids where there are any.
fn angles(cx: &mut Cx<'_, '_>, i: usize) -> Result<Value, OpError> {
    let cache = cx.arg(i)?;
    let rows = match cx.opt(3) {
        Some(positions) => cx.op("gather", ir::Attrs::none(), &[cache, positions])?,
        None => cache,
    };
    let shape = cx.shape(rows);
    let [b, s, half] = &shape[..] else {
        return Err(OpError::new("takes caches of three axes, or of two with position ids"));
    };
    cx.reshape(rows, vec![b.clone(), Dim::from(1), s.clone(), half.clone()])
}
