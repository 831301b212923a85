//! Reads `.npy` files of version 1 in C order.

use std::path::Path;

use ir::{DType, Tensor};

/// The tensor in a file.
pub(crate) fn read(path: &Path) -> Tensor {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00", "{}", path.display());
    let end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..end]).unwrap();
    let field = |name: &str| header.split_once(&format!("'{name}': ")).unwrap().1;
    let dtype = match &field("descr")[1..4] {
        "<f4" => DType::F32,
        "<i8" => DType::I64,
        other => panic!("{}: element type {other}", path.display()),
    };
    assert!(field("fortran_order").starts_with("False"));
    let shape = field("shape").split_once('(').unwrap().1.split_once(')').unwrap().0;
    let shape: Vec<usize> = shape
        .split(',')
        .filter(|s| !s.trim().is_empty())
        .map(|s| s.trim().parse().unwrap())
        .collect();
    Tensor::from_bytes(dtype, &shape, bytes[end..].to_vec())
}
