//! What convolutions and poolings have in common: windows that slide over the axes behind batch and
//! channels.

use super::elementwise::spread;
use crate::{
    Attr, Attrs, DType, Dim, EvalCx, InferCx, OpError, Tensor, TensorType,
    op::{AttrKind, AttrSpec, defaulted},
    tensor::for_each_index,
};

/// How windows lie along one axis: element `k` of window `o` is element
/// `o · stride - pads[0] + k · dilation` of the operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Elements of a window.
    pub kernel: i64,
    /// Elements between the beginnings of windows.
    pub stride: i64,
    /// Elements between those of a window.
    pub dilation: i64,
    /// Elements that are imagined before and behind the axis.
    pub pads: [i64; 2],
}

/// Most axes that windows slide over.
const AXES: usize = 3;
/// Attributes are below this, so that places are far from overflow.
const LIMIT: i64 = 1 << 24;

pub(super) const STRIDES: AttrSpec = by_axis("strides");
pub(super) const DILATIONS: AttrSpec = by_axis("dilations");
pub(super) const PADS: AttrSpec = by_axis("pads");

/// Whether a last window counts that reaches beyond the padding.
pub(super) const CEIL: AttrSpec = defaulted("ceil", AttrKind::Bool, || Attr::Bool(false));

/// Integers by axis; none stand for the default of each.
pub(super) const fn by_axis(name: &'static str) -> AttrSpec {
    defaulted(name, AttrKind::Ints, || Attr::Ints(Vec::new()))
}

impl Window {
    /// The windows of an operator with the attributes `strides`, `pads` (all beginnings, then all
    /// ends) and perhaps `dilations`.
    ///
    /// # Errors
    /// Where an attribute has not an entry for each axis, or one is out of range.
    pub fn all(attrs: &Attrs, kernel: &[i64]) -> Result<Vec<Window>, OpError> {
        let n = kernel.len();
        if !(1..=AXES).contains(&n) {
            return Err(OpError::new(format!("slides over 1 to {AXES} axes, not {n}")));
        }
        let strides = entries(attrs, "strides", n, 1)?;
        let dilations = entries(attrs, "dilations", n, 1)?;
        let pads = entries(attrs, "pads", 2 * n, 0)?;
        if let Some(k) = kernel.iter().find(|k| !(1..LIMIT).contains(*k)) {
            return Err(OpError::new(format!("a window of {k} elements")));
        }
        let axis = |i: usize| Window {
            kernel: kernel[i],
            stride: strides[i],
            dilation: dilations[i],
            pads: [pads[i], pads[n + i]],
        };
        Ok((0..n).map(axis).collect())
    }

    /// Elements from the first to the last of a window.
    pub fn extent(&self) -> i64 {
        (self.kernel - 1) * self.dilation + 1
    }

    /// Where element `k` of window `o` lies in an axis of `n`, if it does.
    pub(super) fn place(&self, o: usize, k: usize, n: usize) -> Option<usize> {
        let (o, k) = (i64::try_from(o).ok()?, i64::try_from(k).ok()?);
        let at = o * self.stride - self.pads[0] + k * self.dilation;
        usize::try_from(at).ok().filter(|at| *at < n)
    }

    /// Number of windows over an axis of `n`; with `ceil` a last one may reach beyond the padding,
    /// as long as it begins before it.
    pub(super) fn count(&self, n: &Dim, ceil: bool, cx: &InferCx<'_>) -> Result<Dim, OpError> {
        let padded = n.clone() + Dim::from(self.pads[0] + self.pads[1]);
        let rest = padded.clone() - Dim::from(self.extent());
        if n.bounds(cx.symbols).lo < 1 || rest.bounds(cx.symbols).lo < 0 {
            let extent = self.extent();
            let why = format!("an axis of {n} may be shorter than a window ({extent}): bound it");
            return Err(OpError::new(why));
        }
        if !ceil {
            return Ok(rest.floor_div(self.stride) + Dim::from(1));
        }
        let begins = n.clone() + Dim::from(self.pads[0]);
        let all = rest.ceil_div(self.stride) + Dim::from(1);
        Ok(all.minimum(&begins.ceil_div(self.stride)))
    }
}

/// The entries of a list attribute, `default` for each where it is empty or unknown.
pub(super) fn entries(
    attrs: &Attrs,
    name: &str,
    n: usize,
    default: i64,
) -> Result<Vec<i64>, OpError> {
    let given = match attrs.get(name) {
        Some(Attr::Ints(given)) if !given.is_empty() => given,
        _ => return Ok(vec![default; n]),
    };
    if given.len() != n {
        return Err(OpError::attr(name, format_args!("has {} entries, not {n}", given.len())));
    }
    match given.iter().find(|v| !(default..LIMIT).contains(*v)) {
        Some(v) => Err(OpError::attr(name, format_args!("holds {v}"))),
        None => Ok(given.clone()),
    }
}

/// The constant extents of axes.
pub(super) fn constants(what: &str, dims: &[Dim]) -> Result<Vec<i64>, OpError> {
    let constant = |d: &Dim| d.as_const();
    dims.iter()
        .map(constant)
        .collect::<Option<_>>()
        .ok_or_else(|| OpError::new(format!("{what} must be constant, got {dims:?}")))
}

/// The type that a pooling of `x` has.
pub(super) fn infer_pool(cx: &InferCx<'_>) -> Result<TensorType, OpError> {
    let x = cx.ty(0);
    let [batch, channels, space @ ..] = &*x.shape else {
        return Err(OpError::new(format!("takes [N, C, ..], got {x}")));
    };
    let kernel = cx.attrs.ints("kernel");
    if kernel.len() != space.len() {
        let why = format_args!("has {} entries for {} axes", kernel.len(), space.len());
        return Err(OpError::attr("kernel", why));
    }
    if !x.dtype.is_float() {
        return Err(OpError::new(format!("takes floats, got {x}")));
    }
    let windows = Window::all(cx.attrs, kernel)?;
    if let Some(w) = windows.iter().find(|w| w.pads.iter().any(|p| *p >= w.extent())) {
        let why = format_args!("{:?}: a window of {} would lie outside", w.pads, w.extent());
        return Err(OpError::attr("pads", why));
    }
    let mut shape = vec![batch.clone(), channels.clone()];
    for (w, n) in windows.iter().zip(space) {
        shape.push(w.count(n, cx.attrs.bool("ceil"), cx)?);
    }
    Ok(TensorType::new(x.dtype, shape))
}

/// A pooling: of each window's elements that are not padding, in row-major order, and its place
/// behind batch and channel, `value(place, elements)`.
pub(super) fn pool(
    cx: &EvalCx<'_>,
    args: &[Option<Tensor>],
    value: impl Fn(&[usize], &[f64]) -> f64,
) -> Vec<Tensor> {
    let x = args[0].as_ref().expect("operand");
    let windows = Window::all(cx.attrs, cx.attrs.ints("kernel")).expect("inferred");
    let (shape, all) = (x.shape(), x.to_f64s());
    let mut y = Vec::new();
    for_each_index(&cx.shape(0), |at| {
        let mut elements = Vec::new();
        each_place(&windows, &at[2..], &shape[2..], |_, place| {
            elements.push(all[flat(shape, at[..2].iter().chain(place).copied())]);
        });
        y.push(value(&at[2..], &elements));
    });
    vec![Tensor::from_f64s(cx.results[0].dtype, &cx.shape(0), y)]
}

/// An operation for each element of each window.
pub(super) fn pool_flops(attrs: &Attrs, results: &[TensorType]) -> Dim {
    results[0].elements() * Dim::from(attrs.ints("kernel").iter().product::<i64>())
}

/// Calls `f(window, place)` with the index of the window at `at` and the place in `x` for every
/// element of it that is not padding, in row-major order; both without batch and channel.
pub(super) fn each_place(
    windows: &[Window],
    at: &[usize],
    extents: &[usize],
    mut f: impl FnMut(&[usize], &[usize]),
) {
    let kernel: Vec<usize> =
        windows.iter().map(|w| usize::try_from(w.kernel).unwrap_or(0)).collect();
    for_each_index(&kernel, |tap| {
        let axes = windows.iter().zip(at).zip(tap).zip(extents);
        let place: Option<Vec<usize>> = axes.map(|(((w, o), k), n)| w.place(*o, *k, *n)).collect();
        if let Some(place) = place {
            f(tap, &place);
        }
    });
}

/// Number of an element in row-major order.
pub(super) fn flat(shape: &[usize], at: impl IntoIterator<Item = usize>) -> usize {
    shape.iter().zip(at).fold(0, |n, (extent, i)| n * extent + i)
}

/// Numbers for samples.
pub(super) fn sample(dtype: DType, shape: &[usize]) -> Option<Tensor> {
    Some(spread(dtype, shape, -1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Module;

    #[test]
    fn sizes_follow_symbols_and_what_may_be_too_short_is_refused() {
        let mut module = Module::new("m");
        module.symbol("H", 3, 64);
        module.symbol("S", 1, 64);
        let mut b = module.builder("f");
        let mut pool = |size: &str, ceil: bool| {
            let shape = [Dim::from(1), Dim::from(2), Dim::symbol(size)];
            let x = b.param(&format!("{size}{ceil}"), TensorType::new(DType::F32, shape));
            let attrs = Attrs::none().with("kernel", vec![3]).with("strides", vec![2]);
            b.op1("max_pool", attrs.with("ceil", ceil), &[x.unwrap()]).map(|y| b.ty(y).to_string())
        };
        assert_eq!(pool("H", false).unwrap(), "f32[1, 2, floor_div(H + 1, 2) - 1]");
        let why = pool("S", false).unwrap_err().to_string();
        let want = "max_pool: an axis of S may be shorter than a window (3): bound it";
        assert_eq!(why, want);
        for (h, want) in [(3, 1), (4, 2), (5, 2), (6, 3)] {
            let w = Window { kernel: 3, stride: 2, dilation: 1, pads: [0, 0] };
            let none = crate::Symbols::default();
            let callee = |_: &str| None;
            let cx = InferCx { attrs: &Attrs::none(), args: &[], symbols: &none, callee: &callee };
            assert_eq!(w.count(&Dim::from(h), true, &cx), Ok(Dim::from(want)), "{h}");
        }
    }
}
