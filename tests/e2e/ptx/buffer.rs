//! Tensors in any layout in the emulator's memory, and which of their elements a kernel wrote.

use ::ptx::Gpu;
use ir::{DType, Env, Layout, Tensor};

use super::case::first_far;

/// Memory of a tensor in a layout, with no byte to spare.
#[derive(Clone)]
pub(super) struct Buffer {
    pub(super) dtype: DType,
    /// Of element zero.
    pub(super) address: u64,
    base: u64,
    bytes: usize,
    /// From the address to each element, in row-major order.
    offsets: Vec<i64>,
    /// What it was filled with.
    pub(super) values: Vec<u8>,
}

impl Buffer {
    pub(super) fn new(gpu: &mut Gpu, layout: &Layout, env: &Env) -> Buffer {
        let shape = layout.ty.extents(env).unwrap();
        let strides: Vec<i64> = layout.strides.iter().map(|s| s.eval(env).unwrap()).collect();
        let size = layout.ty.dtype.size();
        let mut offsets = Vec::new();
        ir::tensor::for_each_index(&shape, |index| {
            let at: i64 = index.iter().zip(&strides).map(|(i, s)| *i as i64 * s).sum();
            offsets.push(at * size as i64);
        });
        let end = offsets.iter().max().map_or(0, |last| last + size as i64);
        // Element zero stays aligned as addresses are.
        let before = -offsets.iter().min().copied().unwrap_or(0).min(0);
        let before = before.cast_unsigned().next_multiple_of(256);
        let bytes = usize::try_from(end).unwrap() + usize::try_from(before).unwrap();
        let base = gpu.alloc(bytes);
        let (dtype, address) = (layout.ty.dtype, base + before);
        Buffer { dtype, address, base, bytes, offsets, values: Vec::new() }
    }

    pub(super) fn fill(&mut self, gpu: &mut Gpu, tensor: &Tensor) {
        self.values = tensor.to_bytes();
        let values = self.values.chunks_exact(self.dtype.size());
        for (at, value) in self.offsets.iter().zip(values) {
            gpu.write(self.address.wrapping_add_signed(*at), value);
        }
    }

    /// Its elements, where they were written; that nothing between them was.
    pub(super) fn read(&self, gpu: &mut Gpu) -> Result<Vec<Option<Vec<u8>>>, String> {
        let mut bytes = gpu.written(self.base, self.bytes).map_err(|e| e.to_string())?;
        let zero = (self.address - self.base).cast_signed();
        let mut elements = Vec::new();
        for at in &self.offsets {
            let at = usize::try_from(zero + at).unwrap();
            elements.push(bytes[at..at + self.dtype.size()].iter().copied().collect());
        }
        for at in &self.offsets {
            let at = usize::try_from(zero + at).unwrap();
            bytes[at..at + self.dtype.size()].fill(None);
        }
        match bytes.iter().position(Option::is_some) {
            Some(at) => Err(format!("wrote byte {at}, which no element has")),
            None => Ok(elements),
        }
    }

    /// The first element that is too far off; all must be there where `all` blocks ran.
    pub(super) fn compare(
        &self,
        got: &[Option<Vec<u8>>],
        old: Option<&[u8]>,
        want: &Tensor,
        all: bool,
        tolerance: f64,
    ) -> Option<(usize, f64, f64)> {
        let size = self.dtype.size();
        let wanted = want.to_f64s();
        let is_old = |i: usize, bytes: &[u8]| {
            !all && old.is_some_and(|old| old[i * size..][..size] == *bytes)
        };
        let mut places = Vec::new();
        for (i, bytes) in got.iter().enumerate() {
            match bytes {
                Some(bytes) if is_old(i, bytes) => {}
                Some(bytes) => places.push((i, bytes)),
                None if all => return Some((i, f64::NAN, wanted[i])),
                None => {}
            }
        }
        let count = places.len();
        let bytes = places.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        let got = Tensor::from_bytes(self.dtype, &[count], bytes);
        let wanted = places.iter().map(|(i, _)| wanted[*i]);
        let dtype = if self.dtype.is_float() { DType::F64 } else { self.dtype };
        let want = Tensor::from_f64s(dtype, &[count], wanted);
        let (at, got, want) = first_far(&got, &want, tolerance)?;
        Some((places[at].0, got, want))
    }
}
