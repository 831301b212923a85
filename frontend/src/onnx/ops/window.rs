//! Convolutions and poolings, their padding resolved to numbers.

use ir::{Attrs, Dim, OpError, Value};

use super::super::cx::{Cx, Results};

/// Attributes of the windows that slide over the axes behind batch and channels.
struct Windows {
    kernel: Vec<i64>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    pads: Vec<i64>,
    same: Option<Same>,
}

/// Padding that follows from the sizes; an odd element goes to one end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Same {
    Upper,
    Lower,
}

impl Same {
    fn split(self, total: i64) -> [i64; 2] {
        match self {
            Same::Upper => [total / 2, total - total / 2],
            Same::Lower => [total - total / 2, total / 2],
        }
    }
}

impl Windows {
    fn read(cx: &Cx<'_, '_>, kernel: Vec<i64>) -> Result<Windows, OpError> {
        let n = kernel.len();
        let list = |name: &str, n: usize, default: i64| match cx.attrs.ints(name)? {
            None => Ok(vec![default; n]),
            Some(given) if given.len() == n => Ok(given.to_vec()),
            Some(given) => {
                Err(OpError::attr(name, format_args!("has {} entries, not {n}", given.len())))
            }
        };
        let (same, valid) = match cx.attrs.text("auto_pad")?.unwrap_or("NOTSET") {
            "NOTSET" | "" => (None, false),
            "VALID" => (None, true),
            "SAME_UPPER" => (Some(Same::Upper), false),
            "SAME_LOWER" => (Some(Same::Lower), false),
            other => return Err(OpError::attr("auto_pad", format_args!("is `{other}`"))),
        };
        let pads = list("pads", 2 * n, 0)?;
        Ok(Windows {
            strides: list("strides", n, 1)?,
            dilations: list("dilations", n, 1)?,
            pads: if valid { vec![0; 2 * n] } else { pads },
            kernel,
            same,
        })
    }

    fn extent(&self, axis: usize) -> i64 {
        (self.kernel[axis] - 1).saturating_mul(self.dilations[axis]).saturating_add(1)
    }

    fn pad(&mut self, axis: usize, [begin, end]: [i64; 2]) {
        let n = self.kernel.len();
        (self.pads[axis], self.pads[n + axis]) = (begin, end);
    }

    /// Resolves padding by which there are as many windows as strides begin in the axis.
    fn resolve(&mut self, space: &[Dim]) -> Result<(), OpError> {
        let Some(same) = self.same else { return Ok(()) };
        for (axis, n) in space.iter().enumerate() {
            let (stride, extent) = (self.strides[axis].max(1), self.extent(axis));
            let total = match n.as_const() {
                _ if stride == 1 => extent - 1,
                Some(n) => ((n - 1).div_euclid(stride) * stride + extent - n).max(0),
                None => {
                    let why = format_args!(
                        "needs constant sizes with strides, got {n}: export explicit pads, or fix \
                         the size with a bound"
                    );
                    return Err(OpError::attr("auto_pad", why));
                }
            };
            self.pad(axis, same.split(total));
        }
        Ok(())
    }

    fn attrs(&self) -> Attrs {
        let attrs = Attrs::none().with("strides", self.strides.clone());
        attrs.with("pads", self.pads.clone()).with("dilations", self.dilations.clone())
    }
}

/// The window of a weight, which `kernel_shape` may repeat.
fn weight_kernel(cx: &Cx<'_, '_>, w: Value) -> Result<Vec<i64>, OpError> {
    let shape = cx.shape(w);
    let kernel: Option<Vec<i64>> = shape.iter().skip(2).map(Dim::as_const).collect();
    let kernel = kernel.ok_or_else(|| OpError::new(format!("the weight's shape is {shape:?}")))?;
    match cx.attrs.ints("kernel_shape")? {
        Some(given) if given != kernel => {
            let why = format_args!("is {given:?}, but the weight has {kernel:?}");
            Err(OpError::attr("kernel_shape", why))
        }
        _ => Ok(kernel),
    }
}

/// The axes behind batch and channels, as many as the window has.
fn space(cx: &Cx<'_, '_>, x: Value, axes: usize) -> Result<Vec<Dim>, OpError> {
    let shape = cx.shape(x);
    match shape.get(2..) {
        Some(space) if space.len() == axes => Ok(space.to_vec()),
        _ => Err(OpError::new(format!("a window of {axes} axes slides over {shape:?}"))),
    }
}

fn operands(cx: &Cx<'_, '_>) -> Result<Vec<Value>, OpError> {
    Ok([cx.arg(0)?, cx.arg(1)?].into_iter().chain(cx.opt(2)).collect())
}

pub(super) fn conv(cx: &mut Cx<'_, '_>) -> Results {
    let args = operands(cx)?;
    let mut windows = Windows::read(cx, weight_kernel(cx, args[1])?)?;
    windows.resolve(&space(cx, args[0], windows.kernel.len())?)?;
    let attrs = windows.attrs().with("group", cx.attrs.int_or("group", 1)?);
    Ok(vec![cx.op("conv", attrs, &args)?])
}

pub(super) fn conv_transpose(cx: &mut Cx<'_, '_>) -> Results {
    let args = operands(cx)?;
    let mut windows = Windows::read(cx, weight_kernel(cx, args[1])?)?;
    let n = windows.kernel.len();
    let space = space(cx, args[0], n)?;
    let mut more = cx.attrs.ints("output_padding")?.map_or_else(|| vec![0; n], <[i64]>::to_vec);
    let wanted = cx.attrs.ints("output_shape")?;
    if more.len() != n || wanted.is_some_and(|w| w.len() != n) {
        return Err(OpError::new(format!("output_padding and output_shape have {n} entries")));
    }
    for axis in 0..n {
        // What is to be taken off is what the output would have too much.
        let total = match (wanted, windows.same) {
            (Some(wanted), _) => {
                let full = space[axis].clone() * Dim::from(windows.strides[axis])
                    + Dim::from(windows.extent(axis) - windows.strides[axis] + more[axis]);
                let rest = full - Dim::from(wanted[axis]);
                rest.as_const().ok_or_else(|| {
                    OpError::attr("output_shape", format_args!("needs constant sizes, got {rest}"))
                })?
            }
            (None, Some(_)) => windows.extent(axis) - windows.strides[axis] + more[axis],
            (None, None) => continue,
        };
        // What it has too little is added behind it.
        more[axis] += (-total).max(0);
        let same = windows.same.unwrap_or(Same::Lower);
        windows.pad(axis, same.split(total.max(0)));
    }
    let attrs = windows.attrs().with("group", cx.attrs.int_or("group", 1)?);
    Ok(vec![cx.op("conv_transpose", attrs.with("output_padding", more), &args)?])
}

fn pool(cx: &mut Cx<'_, '_>, op: &str, more: impl FnOnce(Attrs) -> Attrs) -> Results {
    let x = cx.arg(0)?;
    let kernel = cx.attrs.ints("kernel_shape")?;
    let kernel = kernel.ok_or_else(|| OpError::attr("kernel_shape", "is required"))?.to_vec();
    let mut windows = Windows::read(cx, kernel)?;
    windows.resolve(&space(cx, x, windows.kernel.len())?)?;
    let attrs = windows.attrs().with("kernel", windows.kernel.clone());
    let attrs = attrs.with("ceil", cx.attrs.flag("ceil_mode", false)?);
    Ok(vec![cx.op(op, more(attrs), &[x])?])
}

/// The indices, a second result, are not computed, so their order does not matter.
pub(super) fn max_pool(cx: &mut Cx<'_, '_>) -> Results {
    cx.attrs.flag("storage_order", false)?;
    pool(cx, "max_pool", |attrs| attrs)
}

pub(super) fn average_pool(cx: &mut Cx<'_, '_>) -> Results {
    let padded = cx.attrs.flag("count_include_pad", false)?;
    pool(cx, "average_pool", |attrs| attrs.with("include_pad", padded))
}

/// One window as large as the image.
pub(super) fn global(cx: &mut Cx<'_, '_>, op: &str) -> Results {
    let x = cx.arg(0)?;
    let axes: Vec<usize> = (2..cx.rank(x)).collect();
    Ok(vec![cx.reduce(op, x, &axes, true)?])
}
