//! ONNX files: exports of torch.onnx against the outputs of the models that they were made from,
//! files that are wrong, and single operators.

#![allow(clippy::unwrap_used, reason = "a test that cannot read its data fails there")]

mod damage;
mod exports;
mod files;
mod model;
mod npy;
mod operators;
mod standard;
mod windows;
