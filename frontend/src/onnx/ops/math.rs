//! Elementwise operators whose ONNX form is not ours, and products.

use ir::{DType, Dim, OpError, Value};

use super::super::{
    cx::{Cx, Results},
    tensor,
};

pub(super) fn cast(cx: &mut Cx<'_, '_>) -> Results {
    let to = cx.attrs.int("to")?.ok_or_else(|| OpError::attr("to", "is required"))?;
    let to = i32::try_from(to).map_err(|e| e.to_string()).and_then(tensor::dtype);
    let to = to.map_err(|e| OpError::attr("to", e))?;
    rounding(cx)?;
    let x = cx.arg(0)?;
    Ok(vec![cx.cast(x, to)?])
}

pub(super) fn cast_like(cx: &mut Cx<'_, '_>) -> Results {
    rounding(cx)?;
    let (x, to) = (cx.arg(0)?, cx.dtype(cx.arg(1)?));
    Ok(vec![cx.cast(x, to)?])
}

/// Casts round to nearest even, and to 8-bit floats they saturate; no other way is offered.
fn rounding(cx: &Cx<'_, '_>) -> Result<(), OpError> {
    if !cx.attrs.flag("saturate", true)? {
        return Err(OpError::attr("saturate", "0 is not supported"));
    }
    match cx.attrs.text("round_mode")? {
        None | Some("up" | "nearest") => Ok(()),
        Some(mode) => Err(OpError::attr("round_mode", format_args!("`{mode}` is not supported"))),
    }
}

/// A variadic operator by a binary one.
pub(super) fn fold(cx: &mut Cx<'_, '_>, op: &str) -> Results {
    let mut v = cx.arg(0)?;
    for i in 1..cx.args.len() {
        let next = cx.arg(i)?;
        v = cx.plain(op, &[v, next])?;
    }
    Ok(vec![v])
}

pub(super) fn mean(cx: &mut Cx<'_, '_>) -> Results {
    let sum = fold(cx, "add")?[0];
    #[allow(clippy::cast_precision_loss, reason = "a count of operands")]
    let n = cx.scalar(cx.dtype(sum), cx.args.len() as f64)?;
    Ok(vec![cx.plain("div", &[sum, n])?])
}

/// The exponent may have a type of its own; the result has the base's.
pub(super) fn pow(cx: &mut Cx<'_, '_>) -> Results {
    let (x, y) = (cx.arg(0)?, cx.arg(1)?);
    let (base, exponent) = (cx.dtype(x), cx.dtype(y));
    if base.is_float() || !exponent.is_float() {
        let y = cx.cast(y, base)?;
        return Ok(vec![cx.plain("pow", &[x, y])?]);
    }
    let x = cx.cast(x, exponent)?;
    let v = cx.plain("pow", &[x, y])?;
    Ok(vec![cx.cast(v, base)?])
}

/// Bits of unsigned integers, of which there are none wider than eight bits; to the left they are
/// multiplied by a power of two.
pub(super) fn bit_shift(cx: &mut Cx<'_, '_>) -> Results {
    let (a, b) = (cx.arg(0)?, cx.arg(1)?);
    let dtype = cx.dtype(a);
    if dtype != DType::U8 {
        return Err(OpError::new(format!("shifts u8 alone, got {dtype}")));
    }
    match cx.attrs.text("direction")? {
        Some("RIGHT") => Ok(vec![cx.plain("bit_shift_right", &[a, b])?]),
        Some("LEFT") => {
            let two = cx.scalar(dtype, 2.0)?;
            let factor = cx.plain("pow", &[two, b])?;
            Ok(vec![cx.plain("mul", &[a, factor])?])
        }
        Some(other) => {
            Err(OpError::attr("direction", format_args!("is `{other}`, not LEFT or RIGHT")))
        }
        None => Err(OpError::attr("direction", "is required")),
    }
}

/// The remainder has the divisor's sign, or with `fmod` the dividend's.
pub(super) fn modulo(cx: &mut Cx<'_, '_>) -> Results {
    let (a, b) = (cx.arg(0)?, cx.arg(1)?);
    let fmod = cx.attrs.flag("fmod", false)?;
    if cx.dtype(a).is_float() != fmod && cx.dtype(a).is_float() {
        return Err(OpError::attr("fmod", "must be 1 for floats"));
    }
    if fmod && !cx.dtype(a).is_float() {
        let quotient = cx.plain("div", &[a, b])?;
        let whole = cx.plain("mul", &[quotient, b])?;
        return Ok(vec![cx.plain("sub", &[a, whole])?]);
    }
    Ok(vec![cx.plain("rem", &[a, b])?])
}

/// Limits as attributes before opset 11, as operands since.
pub(super) fn clip(cx: &mut Cx<'_, '_>) -> Results {
    let mut v = cx.arg(0)?;
    let dtype = cx.dtype(v);
    for (i, (name, op)) in [("min", "maximum"), ("max", "minimum")].into_iter().enumerate() {
        let limit: Option<Value> = if cx.opset < 11 {
            cx.attrs.float(name)?.map(|limit| cx.scalar(dtype, limit)).transpose()?
        } else {
            cx.opt(i + 1)
        };
        if let Some(limit) = limit {
            v = cx.plain(op, &[v, limit])?;
        }
    }
    Ok(vec![v])
}

pub(super) fn gelu(cx: &mut Cx<'_, '_>) -> Results {
    let op = match cx.attrs.text("approximate")?.unwrap_or("none") {
        "none" => "gelu",
        "tanh" => "gelu_tanh",
        other => {
            return Err(OpError::attr("approximate", format_args!("`{other}` is not known")));
        }
    };
    let x = cx.arg(0)?;
    Ok(vec![cx.plain(op, &[x])?])
}

/// `x · sigmoid(alpha · x)`.
pub(super) fn swish(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let alpha = cx.attrs.float_or("alpha", 1.0)?;
    if alpha.to_bits() == 1f64.to_bits() {
        return Ok(vec![cx.plain("silu", &[x])?]);
    }
    let alpha = cx.scalar(cx.dtype(x), alpha)?;
    let scaled = cx.plain("mul", &[x, alpha])?;
    let gate = cx.plain("sigmoid", &[scaled])?;
    Ok(vec![cx.plain("mul", &[x, gate])?])
}

pub(super) fn is_inf(cx: &mut Cx<'_, '_>) -> Results {
    let x = cx.arg(0)?;
    let signs = (cx.attrs.flag("detect_negative", true)?, cx.attrs.flag("detect_positive", true)?);
    let (x, infinity) = match signs {
        (true, true) => (cx.plain("abs", &[x])?, f64::INFINITY),
        (false, true) => (x, f64::INFINITY),
        (true, false) => (x, f64::NEG_INFINITY),
        (false, false) => {
            let never = cx.scalar(DType::Bool, 0.0)?;
            let shape = cx.shape(x);
            return Ok(vec![cx.broadcast_to(never, shape)?]);
        }
    };
    let infinity = cx.scalar(cx.dtype(x), infinity)?;
    Ok(vec![cx.plain("equal", &[x, infinity])?])
}

/// As NumPy's: a vector is a row on the left and a column on the right.
pub(super) fn matmul(cx: &mut Cx<'_, '_>) -> Results {
    let (mut a, mut b) = (cx.arg(0)?, cx.arg(1)?);
    let [left, right] = [a, b].map(|v| cx.rank(v) == 1);
    if left {
        let k = cx.shape(a)[0].clone();
        a = cx.reshape(a, vec![Dim::from(1), k])?;
    }
    if right {
        let k = cx.shape(b)[0].clone();
        b = cx.reshape(b, vec![k, Dim::from(1)])?;
    }
    let mut y = cx.plain("matmul", &[a, b])?;
    if left || right {
        let mut shape = cx.shape(y);
        let columns = shape.pop().filter(|_| !right);
        if left {
            shape.pop();
        }
        shape.extend(columns);
        y = cx.reshape(y, shape)?;
    }
    Ok(vec![y])
}

/// `alpha · A · B + beta · C`, A and B transposed on demand.
pub(super) fn gemm(cx: &mut Cx<'_, '_>) -> Results {
    let (mut a, mut b) = (cx.arg(0)?, cx.arg(1)?);
    let [alpha, beta] = ["alpha", "beta"].map(|name| cx.attrs.float_or(name, 1.0));
    let [flip_a, flip_b] = ["transA", "transB"].map(|name| cx.attrs.flag(name, false));
    if cx.rank(a) != 2 || cx.rank(b) != 2 {
        return Err(OpError::new("takes two matrices"));
    }
    if flip_a? {
        a = cx.transpose(a, &[1, 0])?;
    }
    if flip_b? {
        b = cx.transpose(b, &[1, 0])?;
    }
    let y = cx.plain("matmul", &[a, b])?;
    let y = scaled(cx, y, alpha?)?;
    let beta = beta?;
    Ok(vec![match cx.opt(2) {
        None => y,
        Some(c) => {
            let c = scaled(cx, c, beta)?;
            cx.plain("add", &[y, c])?
        }
    }])
}

fn scaled(cx: &mut Cx<'_, '_>, x: Value, by: f64) -> Result<Value, OpError> {
    if by.to_bits() == 1f64.to_bits() {
        return Ok(x);
    }
    let by = cx.scalar(cx.dtype(x), by)?;
    cx.plain("mul", &[x, by])
}
