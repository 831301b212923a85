//! Loops over the elements of a product, computed where its sums are.

use std::{fmt, sync::Arc};

use super::Matrix;
use crate::emit::{Emitter, Val};

/// A function of elements that are at one place: of the product's first, then of other matrices'.
/// All are f32, one or more neighbours.
pub trait Elementwise: fmt::Debug + Send + Sync {
    /// Emits it; gives an element of each result.
    fn emit(&self, e: &Emitter, elements: &[Val]) -> Vec<Val>;
}

/// What is computed of a product's elements, instead of storing them.
#[derive(Clone, Debug)]
pub struct Map {
    /// Other matrices that are read, `[rows, n]`.
    pub operands: Vec<Matrix>,
    /// Results behind the first, which is the product's `y`; `[rows, n]`.
    pub results: Vec<Matrix>,
    /// What results are.
    pub function: Arc<dyn Elementwise>,
}

impl PartialEq for Map {
    fn eq(&self, other: &Map) -> bool {
        self.operands == other.operands
            && self.results == other.results
            && Arc::ptr_eq(&self.function, &other.function)
    }
}
