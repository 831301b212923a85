//! Emission context of one kernel: the emitter, its run-time sizes and its operands.

use std::cell::RefCell;

use ir::{Dim, KernelSpec, Layout, OpRef, TensorType};

use super::{Emitted, LowerError, view::View};
use crate::{
    cuda::{CudaKernel, CudaParam, TensorMap},
    emit::{Elem, Emitter, Param, Val},
};

/// Elements that a tile should have at least, so that sharing it out is worth while.
pub(super) const TILE_ELEMENTS: i64 = 8192;

/// Lanes of the vectors that kernels compute with; the compiler splits them for the target.
pub(super) const LANES: u32 = 16;

/// Emission state of one kernel.
pub(super) struct Cx<'s> {
    pub(super) e: Emitter,
    pub(super) spec: &'s KernelSpec,
    dims: RefCell<Vec<(Dim, Val)>>,
}

/// Name of the function while its text is made; the text's hash then replaces it.
pub(super) const UNNAMED: &str = "kernel_without_name";

impl<'s> Cx<'s> {
    pub(super) fn new(spec: &'s KernelSpec) -> Self {
        Cx { e: Emitter::new(UNNAMED), spec, dims: RefCell::default() }
    }

    /// Of a kernel for a GPU, for blocks of so many threads.
    pub(super) fn cuda(spec: &'s KernelSpec, threads: u32) -> Self {
        Cx { e: Emitter::cuda(UNNAMED, threads), spec, dims: RefCell::default() }
    }

    /// The same kernel with so few registers that a multiprocessor holds so many blocks.
    pub(super) fn with_blocks(self, blocks: u32) -> Self {
        Cx { e: self.e.with_blocks(blocks), ..self }
    }

    /// The finished kernel for a GPU; `align` says by operand which addresses must be a multiple of
    /// 16 bytes.
    pub(super) fn finish_cuda(
        self,
        grid: [Dim; 3],
        shared_bytes: u32,
        maps: &[TensorMap],
        align: impl Fn(u32) -> bool,
    ) -> CudaKernel {
        let dims = self.dims.into_inner();
        let threads = self.e.threads();
        let param = |param: Param| match param {
            Param::Pointer(arg) => {
                CudaParam::Pointer { arg, align: if align(arg) { 16 } else { 1 } }
            }
            Param::Map(index) => CudaParam::Map(maps[index as usize].clone()),
            Param::Size(index) => CudaParam::Size(dims[index as usize].0.clone()),
        };
        let params = self.e.params().into_iter().map(param).collect();
        let text = self.e.finish();
        let named = named(self.spec.op, &text, UNNAMED, Vec::new(), Dim::from(1), 0);
        CudaKernel {
            symbol: named.symbol,
            mlir: named.mlir,
            params,
            grid,
            block: threads,
            cluster: 1,
            shared_bytes,
            limit: None,
            early: Vec::new(),
        }
    }

    /// The finished kernel.
    pub(super) fn finish(self, tiles: Dim, scratch_bytes: u64) -> Emitted {
        let dims = self.dims.into_inner().into_iter().map(|(dim, _)| dim).collect();
        named(self.spec.op, &self.e.finish(), UNNAMED, dims, tiles, scratch_bytes)
    }

    /// A size as a value: a constant, or read at the kernel's entry.
    pub(super) fn size(&self, dim: &Dim) -> Val {
        if let Some(value) = dim.as_const() {
            return self.e.i64(value);
        }
        if let Some((_, value)) = self.dims.borrow().iter().find(|(d, _)| d == dim) {
            return *value;
        }
        let index = u32::try_from(self.dims.borrow().len()).expect("few sizes");
        let value = self.e.at_entry(|| self.e.dim(index));
        self.dims.borrow_mut().push((dim.clone(), value));
        value
    }

    /// `a · dim`.
    pub(super) fn scale(&self, a: Val, dim: &Dim) -> Val {
        match dim.as_const() {
            Some(0) => self.e.i64(0),
            Some(1) => a,
            _ => self.e.mul(a, self.size(dim)),
        }
    }

    /// `a + b · dim`.
    pub(super) fn offset(&self, a: Val, b: Val, dim: &Dim) -> Val {
        if dim.is(0) { a } else { self.e.add(a, self.scale(b, dim)) }
    }

    /// Operand `i`, which must be there.
    pub(super) fn operand(&self, i: usize) -> View {
        self.optional(i).expect("`supports` checked the operands")
    }

    /// Operand `i`, if present.
    pub(super) fn optional(&self, i: usize) -> Option<View> {
        let layout = self.spec.operands.get(i)?.as_ref()?;
        Some(self.view(i, layout))
    }

    /// Result `i`.
    pub(super) fn result(&self, i: usize) -> View {
        self.view(self.spec.operands.len() + i, &self.spec.results[i])
    }

    fn view(&self, index: usize, layout: &Layout) -> View {
        let index = u32::try_from(index).expect("few operands");
        View::new(self.e.at_entry(|| self.e.arg(index)), layout)
    }

    /// Scratch memory from a byte on.
    pub(super) fn scratch(&self, byte: u64) -> Val {
        let byte = i64::try_from(byte).expect("scratch is small");
        self.e.at_entry(|| self.e.at_const(self.e.scratch(), Elem::I8, byte))
    }

    /// `for row in` this call's share of `0..rows`, with tiles of about [`TILE_ELEMENTS`] elements,
    /// `each` a row. Returns the number of tiles. On a GPU a thread has one row, which is what
    /// [`Cx::finish_flat`] makes of the number.
    pub(super) fn share_rows(&self, rows: &Dim, each: &Dim, body: impl FnOnce(Val)) -> Dim {
        if self.e.is_device() {
            let _ = self.each_thread(rows, body);
            return rows.clone();
        }
        let each = each.as_const().unwrap_or(TILE_ELEMENTS).max(1);
        let per_tile = (TILE_ELEMENTS / each).max(1);
        let (first, end) = self.share(rows, per_tile);
        self.e.for_each(first, end, 1, body);
        rows.ceil_div(per_tile)
    }

    /// This call's part of `0..count`, tiles of `per_tile`.
    pub(super) fn share(&self, count: &Dim, per_tile: i64) -> (Val, Val) {
        let e = &self.e;
        let begin = e.mul_const(e.tile_begin(), per_tile);
        let end = e.min(e.mul_const(e.tile_end(), per_tile), self.size(count));
        (begin, e.max(begin, end))
    }

    /// `for i in 0..count`, sixteen at a time and the rest one by one: `body(i, lanes)`.
    ///
    /// On a GPU all go one by one: lanes are threads there.
    pub(super) fn strips(&self, first: Val, end: Val, body: impl Fn(Val, u32)) {
        let e = &self.e;
        if e.is_device() {
            e.for_each(first, end, 1, |i| body(i, 1));
            return;
        }
        let whole = self.strip_end(first, end);
        e.for_each(first, whole, LANES.into(), |i| body(i, LANES));
        e.for_each(whole, end, 1, |i| body(i, 1));
    }

    /// Where the last whole strip of sixteen ends.
    pub(super) fn strip_end(&self, first: Val, end: Val) -> Val {
        let e = &self.e;
        let count = e.sub(end, first);
        let whole = e.sub(count, e.rem_unsigned(count, e.i64(LANES.into())));
        e.add(first, whole)
    }
}

/// Hashes the text under a placeholder name, and names the function by it.
pub(super) fn named(
    op: &str,
    text: &str,
    placeholder: &str,
    dims: Vec<Dim>,
    tiles: Dim,
    scratch_bytes: u64,
) -> Emitted {
    let hash = blake3::hash(text.as_bytes()).to_hex();
    let symbol = format!("k_{op}_{}", &hash[..16]);
    let mlir = text.replacen(&format!("@{placeholder}("), &format!("@{symbol}("), 1);
    Emitted { symbol, mlir, dims, tiles, scratch_bytes }
}

/// An error about the specification.
pub(super) fn refuse(spec: &KernelSpec, reason: impl Into<String>) -> LowerError {
    LowerError { op: spec.op.to_owned(), reason: reason.into() }
}

/// Bytes of a layout without those that broadcasting repeats.
pub(super) fn stored_bytes(layout: &Layout) -> Dim {
    let axes = layout.ty.shape.iter().zip(&layout.strides).filter(|(_, s)| !s.is(0));
    let elements = axes.fold(Dim::from(1), |n, (d, _)| n * d.clone());
    elements * Dim::from(layout.ty.dtype.size())
}

/// Types of the operands.
pub(super) fn operand_types(spec: &KernelSpec) -> Vec<Option<TensorType>> {
    spec.operands.iter().map(|o| o.as_ref().map(|l| l.ty.clone())).collect()
}

/// What the operator table says of the work.
pub(super) fn table_flops(spec: &KernelSpec) -> Dim {
    let results: Vec<TensorType> = spec.results.iter().map(|l| l.ty.clone()).collect();
    match OpRef::find(spec.op) {
        Some(op) => op.flops(&spec.attrs, &operand_types(spec), &results),
        None => Dim::from(0),
    }
}
