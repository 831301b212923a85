//! Derivatives of convolutions and poolings: what each element of a window, a tap, contributes.

use super::{
    adjoint::{compare, exchange, lay, pad, reach, take},
    conv::product,
    window::{Window, constants},
};
use crate::{Builder, Dim, OpError, Value, VjpCx, tensor::for_each_index};

/// Cotangents of `conv`: by x a transposed convolution, by w a product for each tap.
pub(super) fn conv_rule(cx: &mut VjpCx<'_, '_>) -> Result<Vec<Option<Value>>, OpError> {
    let (x, w, dy) = (cx.arg(0), cx.arg(1), cx.cotangent(0)?);
    let windows = windows(cx)?;
    let dx = cx.when(0, |cx| {
        let space = cx.ty(0).shape[2..].to_vec();
        let made = cx.b.ty(dy).shape[2..].to_vec();
        // Elements at the end of an axis that no window reaches.
        let rest = windows.iter().zip(space.iter().zip(&made)).map(|(w, (n, count))| {
            let padded = n.clone() + Dim::from(w.pads[0] + w.pads[1] - w.extent());
            padded - (count.clone() - Dim::from(1)) * Dim::from(w.stride)
        });
        let rest: Vec<Dim> = rest.collect();
        if let Ok(rest) = constants("", &rest) {
            let attrs = cx.attrs.clone().with("output_padding", rest);
            return cx.b.op1("conv_transpose", attrs, &[dy, w]);
        }
        let attrs = cx.attrs.clone().with("pads", Vec::<i64>::new());
        let mut full = cx.b.op1("conv_transpose", attrs, &[dy, w])?;
        for (i, (w, n)) in windows.iter().zip(space).enumerate() {
            let first = Dim::from(w.pads[0]);
            full = pad(cx.b, full, i + 2, [Dim::from(0), Dim::from(w.stride - 1)], 0.0)?;
            full = take(cx.b, full, i + 2, (first, 1), &n)?;
        }
        Ok(full)
    })?;
    let dw = cx.when(1, |cx| by_weight(cx, &windows, x, dy))?;
    let dbias = cx.when(2, |cx| by_bias(cx.b, dy))?;
    Ok(vec![dx, dw, dbias])
}

/// Cotangents of `conv_transpose`: by x a convolution, by w a product for each tap.
pub(super) fn conv_transpose_rule(cx: &mut VjpCx<'_, '_>) -> Result<Vec<Option<Value>>, OpError> {
    let (x, w, dy) = (cx.arg(0), cx.arg(1), cx.cotangent(0)?);
    let windows = windows(cx)?;
    let dx = cx.when(0, |cx| {
        let mut attrs = cx.attrs.clone();
        attrs.0.retain(|(name, _)| &**name != "output_padding");
        let mut dx = cx.b.op1("conv", attrs, &[dy, w])?;
        for (i, n) in cx.ty(0).shape.iter().enumerate().skip(2) {
            dx = take(cx.b, dx, i, (Dim::from(0), 1), n)?;
        }
        Ok(dx)
    })?;
    let dw = cx.when(1, |cx| by_weight(cx, &windows, dy, x))?;
    let dbias = cx.when(2, |cx| by_bias(cx.b, dy))?;
    Ok(vec![dx, dw, dbias])
}

/// The cotangent of `max_pool`: each window's goes to the first of its largest elements.
pub(super) fn max_pool_rule(cx: &mut VjpCx<'_, '_>) -> Result<Vec<Option<Value>>, OpError> {
    let (x, y, dy) = (cx.arg(0), cx.results[0], cx.cotangent(0)?);
    let windows = Window::all(cx.attrs, cx.attrs.ints("kernel"))?;
    let b = &mut *cx.b;
    let zero = b.scalar(b.ty(dy).dtype, 0.0)?;
    let made = b.ty(dy).shape[2..].to_vec();
    let padded = padded(b, x, &windows, &made, f64::NEG_INFINITY)?;
    let mut found = None;
    let dx = spread_back(b, x, padded, &windows, |b, tap| {
        let element = at_tap(b, padded, &windows, tap, &made)?;
        let mut hit = compare(b, "equal", element, y)?;
        if let Some(found) = found {
            let open = b.unary("not", found)?;
            hit = compare(b, "and", hit, open)?;
        }
        found = Some(match found {
            Some(found) => compare(b, "or", found, hit)?,
            None => hit,
        });
        b.select(hit, dy, zero)
    })?;
    Ok(vec![Some(dx)])
}

/// The cotangent of `average_pool`: each window's in equal shares.
pub(super) fn average_pool_rule(cx: &mut VjpCx<'_, '_>) -> Result<Vec<Option<Value>>, OpError> {
    let (x, dy) = (cx.arg(0), cx.cotangent(0)?);
    let windows = Window::all(cx.attrs, cx.attrs.ints("kernel"))?;
    let (counts_pads, b) = (cx.attrs.bool("include_pad"), &mut *cx.b);
    let made = b.ty(dy).shape[2..].to_vec();
    let mut shape = b.ty(x).shape.to_vec();
    shape[..2].fill(Dim::from(1));
    let mut ones = b.full(b.ty(x).dtype, 1.0, &shape)?;
    let mut bare = windows.clone();
    if counts_pads {
        for (i, w) in bare.iter_mut().enumerate() {
            ones = pad(b, ones, i + 2, w.pads.map(Dim::from), 1.0)?;
            w.pads = [0, 0];
        }
    }
    let ones = padded(b, ones, &bare, &made, 0.0)?;
    let mut count = None;
    each_tap(&windows, |tap| {
        let one = at_tap(b, ones, &windows, tap, &made)?;
        count = Some(match count {
            Some(sum) => b.add(sum, one)?,
            None => one,
        });
        Ok(())
    })?;
    let share = b.div(dy, count.expect("a window has an element"))?;
    let padded = padded(b, x, &windows, &made, 0.0)?;
    let dx = spread_back(b, x, padded, &windows, |_, _| Ok(share))?;
    Ok(vec![Some(dx)])
}

/// The windows of a convolution, from the weight's extents.
fn windows(cx: &VjpCx<'_, '_>) -> Result<Vec<Window>, OpError> {
    Window::all(cx.attrs, &constants("the weight", &cx.ty(1).shape[2..])?)
}

fn each_tap(
    windows: &[Window],
    mut f: impl FnMut(&[usize]) -> Result<(), OpError>,
) -> Result<(), OpError> {
    let kernel: Vec<usize> =
        windows.iter().map(|w| usize::try_from(w.kernel).unwrap_or(0)).collect();
    let mut result = Ok(());
    for_each_index(&kernel, |tap| {
        if result.is_ok() {
            result = f(tap);
        }
    });
    result
}

/// `x` with padding, as far as `made` windows reach.
fn padded(
    b: &mut Builder<'_>,
    x: Value,
    windows: &[Window],
    made: &[Dim],
    value: f64,
) -> Result<Value, OpError> {
    let mut y = x;
    for (i, (w, count)) in windows.iter().zip(made).enumerate() {
        let end = reach(b, count, w.stride) + Dim::from(w.extent() - 1);
        let rest = end - Dim::from(w.pads[0]) - b.ty(x).shape[i + 2].clone();
        let rest = rest.maximum(&Dim::from(0));
        y = pad(b, y, i + 2, [Dim::from(w.pads[0]), rest], value)?;
    }
    Ok(y)
}

/// The element at `tap` of every window over what is padded.
fn at_tap(
    b: &mut Builder<'_>,
    padded: Value,
    windows: &[Window],
    tap: &[usize],
    made: &[Dim],
) -> Result<Value, OpError> {
    let mut y = padded;
    for (i, ((w, k), count)) in windows.iter().zip(tap).zip(made).enumerate() {
        let start = Dim::from(*k) * Dim::from(w.dilation);
        y = take(b, y, i + 2, (start, w.stride), count)?;
    }
    Ok(y)
}

/// The sum over taps of what each contributes to the elements that it reads.
fn spread_back(
    b: &mut Builder<'_>,
    x: Value,
    padded: Value,
    windows: &[Window],
    mut share: impl FnMut(&mut Builder<'_>, &[usize]) -> Result<Value, OpError>,
) -> Result<Value, OpError> {
    let (space, extents) = (b.ty(x).shape[2..].to_vec(), b.ty(padded).shape[2..].to_vec());
    let mut sum = None;
    each_tap(windows, |tap| {
        let mut part = share(b, tap)?;
        for (i, ((w, k), extent)) in windows.iter().zip(tap).zip(&extents).enumerate() {
            let start = Dim::from(*k) * Dim::from(w.dilation);
            part = lay(b, part, i + 2, (start, w.stride), extent)?;
        }
        sum = Some(match sum {
            Some(sum) => b.add(sum, part)?,
            None => part,
        });
        Ok(())
    })?;
    let mut dx = sum.ok_or_else(|| OpError::new("a window has no element"))?;
    for (i, (w, n)) in windows.iter().zip(space).enumerate() {
        dx = take(b, dx, i + 2, (Dim::from(w.pads[0]), 1), &n)?;
    }
    Ok(dx)
}

/// The cotangent of a convolution's weight `[G·b, a, K..]`: for each tap the products of `small:
/// [N, G·b, O..]` with the elements of `large: [N, G·a, ..]` that the tap reads.
fn by_weight(
    cx: &mut VjpCx<'_, '_>,
    windows: &[Window],
    large: Value,
    small: Value,
) -> Result<Value, OpError> {
    let w = cx.ty(1).shape.to_vec();
    let [rows, columns] = constants("channels", &w[..2])?[..] else {
        return Err(OpError::new("the weight has fewer than two axes"));
    };
    let group = cx.attrs.int("group");
    let b = &mut *cx.b;
    let shape = b.ty(small).shape.to_vec();
    let (batch, made) = (shape[0].clone(), shape[2..].to_vec());
    let by_group =
        |channels: i64| vec![batch.clone(), Dim::from(group), Dim::from(channels), product(&made)];
    let small = b.reshape(small, by_group(rows / group))?;
    let padded = padded(b, large, windows, &made, 0.0)?;
    let mut taps = Vec::new();
    each_tap(windows, |tap| {
        let element = at_tap(b, padded, windows, tap, &made)?;
        let element = b.reshape(element, by_group(columns))?;
        let element = exchange(b, element, 2, 1)?;
        let products = b.matmul(small, element)?;
        let sum = b.reduce("reduce_sum", products, &[0], false)?;
        taps.push(b.reshape(sum, vec![Dim::from(rows), Dim::from(columns), Dim::from(1)])?);
        Ok(())
    })?;
    let all = b.concat(&taps, 2)?;
    b.reshape(all, w)
}

/// The cotangent of a bias by channel.
fn by_bias(b: &mut Builder<'_>, dy: Value) -> Result<Value, OpError> {
    let axes: Vec<i64> = (0..b.ty(dy).rank() as i64).filter(|a| *a != 1).collect();
    b.reduce("reduce_sum", dy, &axes, false)
}
