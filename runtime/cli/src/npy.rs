//! NumPy's `.npy` files, as NEP 1 and `numpy.lib.format` define them: one array a file.
//!
//! Nothing is converted. Types that NumPy lacks travel as raw bits: bf16 as `u2`, f8 as `u1`, 4-bit
//! integers one value a byte as `i1` and `u1`. Arrays in Fortran order are read as transposed
//! views; big-endian ones, objects and structures are refused, and so are files that end too early
//! or late.

mod header;

use std::{fs::File, io::Write as _, path::Path, sync::Arc};

use ir::{DType, MappedFile, Tensor, map_file};

use header::Header;

/// Bytes before the header's text: magic, version and length.
const MAGIC: &[u8] = b"\x93NUMPY";

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
    file.write_all(&preamble(&header))
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
    let rest =
        bytes.strip_prefix(MAGIC).ok_or("is not a .npy file: it does not begin with \\x93NUMPY")?;
    let early = || "ends within its header".to_owned();
    let (version, rest) = rest.split_first_chunk::<2>().ok_or_else(early)?;
    let (length, rest) = match version {
        [1, 0] => {
            let (n, rest) = rest.split_first_chunk::<2>().ok_or_else(early)?;
            (usize::from(u16::from_le_bytes(*n)), rest)
        }
        [2 | 3, 0] => {
            let (n, rest) = rest.split_first_chunk::<4>().ok_or_else(early)?;
            (usize::try_from(u32::from_le_bytes(*n)).unwrap_or(usize::MAX), rest)
        }
        [major, minor] => {
            return Err(format!("has format version {major}.{minor}; 1.0, 2.0 and 3.0 are read"));
        }
    };
    let text = rest.get(..length).ok_or_else(early)?;
    let text = std::str::from_utf8(text).map_err(|_| "has a header that is not text".to_owned())?;
    let header = Header::parse(text)?;
    let values = rest.len() - length;
    let wanted = header.bytes().ok_or("has a shape whose size overflows")?;
    if values != wanted {
        return Err(format!(
            "has {values} bytes of values, and its shape {:?} of `{}` needs {wanted}",
            header.shape, header.descr
        ));
    }
    Ok((header, bytes.len() - values))
}

/// Everything before the values, padded to a multiple of 64 bytes.
fn preamble(header: &Header) -> Vec<u8> {
    let mut text = header.to_string();
    let short = MAGIC.len() + 2 + 2;
    let is_short = short + text.len() + 64 <= usize::from(u16::MAX);
    let prefix = if is_short { short } else { short + 2 };
    let padding = (prefix + text.len() + 1).next_multiple_of(64) - (prefix + text.len() + 1);
    text.push_str(&" ".repeat(padding));
    text.push('\n');
    let mut out = MAGIC.to_vec();
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes();
    if is_short {
        out.extend([1, 0]);
        out.extend(&length[..2]);
    } else {
        out.extend([2, 0]);
        out.extend(length);
    }
    out.extend(text.as_bytes());
    out
}

#[cfg(test)]
mod tests;
