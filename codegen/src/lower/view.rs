//! An operand in memory: how its elements come into registers and go back.

use ir::{DType, Dim, KernelSpec, Layout};

use super::{cx::Cx, e4m3};
use crate::emit::{Cmp, Elem, Emitter, Ty, Val};

/// A tensor in memory.
#[derive(Clone)]
pub(super) struct View {
    /// Address of element zero.
    pub(super) base: Val,
    pub(super) dtype: DType,
    pub(super) shape: Vec<Dim>,
    /// In elements; zero along axes of extent one.
    pub(super) strides: Vec<Dim>,
}

impl View {
    pub(super) fn new(base: Val, layout: &Layout) -> View {
        View {
            base,
            dtype: layout.ty.dtype,
            shape: layout.ty.shape.to_vec(),
            strides: strides(layout),
        }
    }

    /// The same memory taken as bits, for moves that do not look at values.
    pub(super) fn bits(mut self) -> View {
        self.dtype = match self.dtype.size() {
            8 => DType::I64,
            4 => DType::I32,
            2 => DType::I16,
            _ => DType::I8,
        };
        self
    }

    /// The same tensor from `offset` elements on.
    pub(super) fn at(&self, cx: &Cx<'_>, offset: Val) -> View {
        View { base: cx.e.at(self.base, memory_elem(self.dtype), offset), ..self.clone() }
    }

    /// Loads one element as it is in registers.
    pub(super) fn load(&self, cx: &Cx<'_>, offset: Val) -> Val {
        self.load_strip(cx, offset, &Dim::from(1), 1)
    }

    /// Loads `lanes` elements that are `stride` apart. On a GPU, several dense ones are a whole
    /// value at a multiple of its size.
    pub(super) fn load_strip(&self, cx: &Cx<'_>, offset: Val, stride: &Dim, lanes: u32) -> Val {
        let (e, elem) = (&cx.e, memory_elem(self.dtype));
        let raw = if lanes > 1 && stride.is(1) && e.is_device() {
            e.load_whole(Ty::of(elem, lanes), e.at(self.base, elem, offset))
        } else if lanes == 1 || stride.is(1) {
            e.load_at(Ty::of(elem, lanes), self.base, offset)
        } else if stride.is(0) {
            e.splat(e.load_at(Ty::Scalar(elem), self.base, offset), lanes)
        } else {
            let vector = e.zero(Ty::of(elem, lanes));
            (0..lanes).fold(vector, |vector, lane| {
                let offset = cx.offset(offset, e.i64(lane.into()), stride);
                e.insert(e.load_at(Ty::Scalar(elem), self.base, offset), vector, lane)
            })
        };
        widen(e, raw, self.dtype)
    }

    /// Stores one element.
    pub(super) fn store(&self, cx: &Cx<'_>, value: Val, offset: Val) {
        self.store_strip(cx, value, offset, &Dim::from(1));
    }

    /// Stores a strip of elements that are `stride` apart.
    pub(super) fn store_strip(&self, cx: &Cx<'_>, value: Val, offset: Val, stride: &Dim) {
        let e = &cx.e;
        if value.lanes() > 1 && !stride.is(1) && e.is_device() {
            // One by one from the beginning: LLVM packs narrow lanes with such as nobody defined.
            for lane in 0..value.lanes() {
                let raw = narrow(e, e.extract(value, lane), self.dtype);
                e.store_at(raw, self.base, cx.offset(offset, e.i64(lane.into()), stride));
            }
            return;
        }
        let raw = narrow(e, value, self.dtype);
        if raw.lanes() > 1 && stride.is(1) && e.is_device() {
            e.store_whole(raw, e.at(self.base, raw.elem(), offset));
            return;
        }
        if raw.lanes() == 1 || stride.is(1) {
            e.store_at(raw, self.base, offset);
            return;
        }
        for lane in 0..raw.lanes() {
            let offset = cx.offset(offset, e.i64(lane.into()), stride);
            e.store_at(e.extract(raw, lane), self.base, offset);
        }
    }
}

/// Strides of a layout, zero along axes of extent one.
pub(super) fn strides(layout: &Layout) -> Vec<Dim> {
    let axes = layout.ty.shape.iter().zip(&layout.strides);
    axes.map(|(d, s)| if d.is(1) { Dim::from(0) } else { s.clone() }).collect()
}

/// Element of memory. Four- and eight-bit floats and integers that kernels cannot compute with are
/// bytes.
pub(super) fn memory_elem(dtype: DType) -> Elem {
    match dtype {
        DType::F64 => Elem::F64,
        DType::F32 => Elem::F32,
        DType::Bf16 => Elem::Bf16,
        DType::F16 => Elem::F16,
        DType::I64 => Elem::I64,
        DType::I32 => Elem::I32,
        DType::I16 => Elem::I16,
        _ => Elem::I8,
    }
}

/// Element of registers: narrow floats are computed with as f32, narrow integers as i32.
pub(super) fn register_elem(dtype: DType) -> Elem {
    match dtype {
        DType::F64 => Elem::F64,
        DType::F32 | DType::Bf16 | DType::F16 | DType::F8E4M3 => Elem::F32,
        DType::I64 => Elem::I64,
        DType::Bool => Elem::Bool,
        _ => Elem::I32,
    }
}

/// What memory of a type holds, in registers.
pub(super) fn widen(e: &Emitter, raw: Val, dtype: DType) -> Val {
    match dtype {
        DType::Bool => e.cmp(Cmp::Ne, raw, e.zero(raw.ty())),
        DType::U8 => e.extend_unsigned(raw, Elem::I32),
        DType::F8E4M3 => e4m3::values(e, raw),
        _ => e.cast(raw, register_elem(dtype)),
    }
}

fn narrow(e: &Emitter, value: Val, dtype: DType) -> Val {
    assert!(dtype != DType::F8E4M3, "numbers of e4m3 have scales");
    e.cast(value, memory_elem(dtype))
}

/// A register value rounded or wrapped to what `dtype` can hold.
pub(super) fn settle(e: &Emitter, value: Val, dtype: DType) -> Val {
    match dtype {
        DType::Bf16 | DType::F16 | DType::I16 | DType::I8 | DType::U8 => {
            widen(e, narrow(e, value, dtype), dtype)
        }
        _ => value,
    }
}

/// Whether kernels compute with this element type.
pub(super) fn computable(dtype: DType) -> bool {
    !matches!(dtype, DType::F8E4M3 | DType::F8E5M2 | DType::I4 | DType::U4)
}

/// Checks that operands and results are floats that kernels compute with in f32.
pub(super) fn check_f32s(spec: &KernelSpec, operands: &[usize]) -> Result<(), String> {
    check_floats(spec, operands, &spec.results)
}

/// The same, of some results.
pub(super) fn check_floats(
    spec: &KernelSpec,
    operands: &[usize],
    results: &[Layout],
) -> Result<(), String> {
    let given = operands.iter().filter_map(|i| spec.operands.get(*i)?.as_ref());
    for layout in given.chain(results) {
        if !matches!(layout.ty.dtype, DType::F32 | DType::Bf16 | DType::F16) {
            return Err(format!("computes with f32, bf16 and f16, got {}", layout.ty));
        }
    }
    Ok(())
}

/// Checks that operand `i` is there and has this many axes.
pub(super) fn check_rank(spec: &KernelSpec, i: usize, rank: usize) -> Result<(), String> {
    match spec.operands.get(i) {
        Some(Some(layout)) if layout.ty.rank() == rank => Ok(()),
        Some(Some(layout)) => Err(format!("operand {i} is {}, not of rank {rank}", layout.ty)),
        _ => Err(format!("operand {i} is missing")),
    }
}
