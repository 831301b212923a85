//! Poolings over windows.

use ir::{Dim, KernelSpec, Target, Window};

use super::{
    Emitted, Lower, LowerError,
    cx::{Cx, refuse},
    elementwise::maximum,
    flat,
    view::check_f32s,
    window::{Fold, Slide},
};
use crate::{
    cuda::CudaKernel,
    emit::{Elem, Val},
};

/// The family.
pub(super) struct Pool;

impl Lower for Pool {
    fn ops(&self) -> &'static [&'static str] {
        &["max_pool", "average_pool"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        check_f32s(spec, &[0])?;
        windows(spec).map(|_| ())
    }

    fn emit(&self, spec: &KernelSpec, _: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::new(spec);
        let tiles = pool(&cx).map_err(|reason| refuse(spec, reason))?;
        Ok(cx.finish(tiles, 0))
    }

    fn emit_cuda(&self, spec: &KernelSpec, _: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let cx = Cx::cuda(spec, flat::THREADS);
        let points = pool(&cx).map_err(|reason| refuse(spec, reason))?;
        Ok(vec![cx.finish_flat(&points)])
    }
}

/// Emits the kernel; returns the number of tiles, or of threads.
fn pool(cx: &Cx<'_>) -> Result<Dim, String> {
    let (e, spec) = (&cx.e, cx.spec);
    let windows = windows(spec)?;
    let (x, y) = (cx.operand(0), cx.result(0));
    let slide = Slide { cx, windows: &windows, x, y, multiplier: 1 };
    Ok(slide.rows(|row| {
        if spec.op == "max_pool" {
            row.fold(&Fold {
                start: f64::NEG_INFINITY,
                step: |most, _, x| maximum(e, most, x),
                finish: |most, _: &[Val], _| most,
            });
        } else {
            row.fold(&Fold {
                start: 0.0,
                step: |sum, _, x| e.add(sum, x),
                finish: |sum: Val, at: &[Val], border| {
                    let count = e.cast(elements(&slide, at, border), Elem::F32);
                    e.div(sum, e.splat(count, sum.lanes()))
                },
            });
        }
    }))
}

/// The elements that a mean is over.
fn elements(slide: &Slide<'_>, at: &[Val], border: Option<Val>) -> Val {
    let e = &slide.cx.e;
    let count = |axis: usize, o: Val| {
        if slide.cx.spec.attrs.bool("include_pad") {
            return slide.padded(axis, o);
        }
        let (first, end) = slide.inside(axis, o);
        e.sub(end, first)
    };
    let inner = match border {
        Some(column) => count(at.len(), column),
        None => e.i64(slide.windows[at.len()].kernel),
    };
    at.iter().enumerate().fold(inner, |n, (axis, o)| e.mul(n, count(axis, *o)))
}

fn windows(spec: &KernelSpec) -> Result<Vec<Window>, String> {
    Window::all(&spec.attrs, spec.attrs.ints("kernel")).map_err(|e| e.to_string())
}
