//! NumPy's `.npy` files, as NEP 1 and `numpy.lib.format` define them: one array a file.
//!
//! Nothing is converted. Types that NumPy lacks travel as raw bits: bf16 as `u2`, f8 as `u1`, 4-bit
//! integers one value a byte as `i1` and `u1`. Arrays in Fortran order are read as transposed
//! views; big-endian ones, objects and structures are refused, and so are files that end too early
//! or late.

use std::{fs::File, io::Write as _, path::Path, sync::Arc};

use ir::{DType, MappedFile, Tensor, map_file, npy::Header};

/// An array as its file describes it, over the mapped file.
#[derive(Debug)]
pub(crate) struct Array {
    header: Header,
    map: Arc<MappedFile>,
    at: usize,
}

impl Array {
    /// Maps a file and checks all of it but the values.
    ///
    /// # Errors
    /// What is wrong, as the rest of a sentence about the file.
    pub(crate) fn open(path: &Path) -> Result<Array, String> {
        let map = map_file(path).map_err(|e| format!("cannot be read: {e}"))?;
        let (header, at) = parse(map.as_ref())?;
        Ok(Array { header, map: Arc::new(map), at })
    }

    /// Extents, outermost first.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.header.shape
    }

    /// The array as a tensor of the type.
    ///
    /// # Errors
    /// If the file's type is not the one that carries `dtype`, or a value is none of it.
    pub(crate) fn tensor(&self, dtype: DType) -> Result<Tensor, String> {
        let Header { descr, fortran_order, shape } = &self.header;
        if descr.trim_start_matches(['<', '|', '=']) != carrier(dtype) {
            return Err(format!(
                "holds `{descr}`, and {} is wanted; convert it: nothing is cast silently",
                wanted(dtype)
            ));
        }
        let tensor = |shape: &[usize]| {
            Tensor::new(dtype, shape, self.map.clone(), self.at).map_err(|e| e.to_string())
        };
        let tensor = if *fortran_order && shape.len() > 1 {
            let reversed: Vec<usize> = shape.iter().rev().copied().collect();
            let axes: Vec<usize> = (0..shape.len()).rev().collect();
            tensor(&reversed)?.transpose(&axes)
        } else {
            tensor(shape)?
        };
        // Kernels take it for granted that a value is one of its type.
        if matches!(dtype, DType::Bool | DType::I4 | DType::U4)
            && let Some((lo, hi)) = dtype.int_range()
            && let Some(v) = tensor.to_i64s().into_iter().find(|v| !(lo..=hi).contains(v))
        {
            return Err(format!("holds {v}, which is outside of {dtype}'s {lo}..{hi}"));
        }
        Ok(tensor)
    }
}

/// Writes a tensor; `bytes` are its elements in row-major order.
///
/// # Errors
/// What the operating system says, as the rest of a sentence about the file.
pub(crate) fn write(
    path: &Path,
    dtype: DType,
    shape: &[usize],
    bytes: &[u8],
) -> Result<(), String> {
    let order = if dtype.size() == 1 { '|' } else { '<' };
    let header = Header {
        descr: format!("{order}{}", carrier(dtype)),
        fortran_order: false,
        shape: shape.to_vec(),
    };
    let mut file = File::create(path).map_err(|e| format!("cannot be written: {e}"))?;
    file.write_all(&header.preamble())
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| file.flush())
        .map_err(|e| format!("cannot be written: {e}"))
}

/// NumPy's kind and size of the type that carries one of ours.
fn carrier(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "f8",
        DType::F32 => "f4",
        DType::F16 => "f2",
        DType::Bf16 => "u2",
        DType::F8E4M3 | DType::F8E5M2 | DType::U8 | DType::U4 => "u1",
        DType::I64 => "i8",
        DType::I32 => "i4",
        DType::I16 => "i2",
        DType::I8 | DType::I4 => "i1",
        DType::Bool => "b1",
    }
}

fn wanted(dtype: DType) -> String {
    let numpy = match carrier(dtype) {
        "f8" => "float64",
        "f4" => "float32",
        "f2" => "float16",
        "u2" => "uint16",
        "u1" => "uint8",
        "i8" => "int64",
        "i4" => "int32",
        "i2" => "int16",
        "i1" => "int8",
        _ => "bool",
    };
    match dtype {
        DType::Bf16 | DType::F8E4M3 | DType::F8E5M2 => format!("{numpy} with the bits of {dtype}"),
        DType::I4 | DType::U4 => format!("{numpy} with one {dtype} a byte"),
        _ => numpy.to_owned(),
    }
}

/// Checks everything but the values; returns the header and where the values begin.
fn parse(bytes: &[u8]) -> Result<(Header, usize), String> {
    let (mut header, at) = Header::read(bytes)?;
    let descr = header.descr.as_str();
    let kind = descr.trim_start_matches(['<', '|', '=', '>']);
    if descr.starts_with('>') && !kind.ends_with('1') {
        return Err(format!("is big-endian (`{descr}`); save it little-endian"));
    }
    let size = kind.get(1..).and_then(|size| size.parse().ok());
    let size = size.filter(|size| [1usize, 2, 4, 8, 16].contains(size));
    let is_plain = kind.starts_with(['f', 'i', 'u', 'b', 'c']) && descr.len() <= kind.len() + 1;
    let Some(size) = size.filter(|_| is_plain) else {
        let descr: String = descr.chars().take(16).collect();
        return Err(format!("holds `{descr}`; numbers and bools are read"));
    };
    header.check_values(size, bytes.len() - at)?;
    header.descr = descr.trim_start_matches('>').to_owned();
    Ok((header, at))
}

#[cfg(test)]
mod tests;
