//! A module: functions, symbols and weights of one model.

use std::sync::Arc;

use indexmap::IndexMap;

use crate::{Bounds, Builder, Graph, Symbols, Tensor, TensorType};

/// A model: functions over shared symbols and named weights.
///
/// A function that several nodes `call` stands for a repeated layer: it is optimised and compiled
/// once. Weights are values of the entry functions (`weight` nodes), passed to layers as operands.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// The model's name.
    pub name: String,
    /// Symbols and their bounds.
    pub symbols: Symbols,
    /// Logical weights by name.
    pub weights: IndexMap<Arc<str>, TensorType>,
    /// Functions by name, callees before callers.
    pub functions: IndexMap<Arc<str>, Graph>,
    /// Names of the functions that an artifact offers.
    pub entries: Vec<Arc<str>>,
}

impl Module {
    /// An empty module.
    pub fn new(name: &str) -> Module {
        Module { name: name.into(), ..Module::default() }
    }

    /// Declares a symbol.
    pub fn symbol(&mut self, name: &str, lo: i64, hi: i64) {
        self.symbols.insert(name.into(), Bounds { lo, hi });
    }

    /// Declares a weight.
    pub fn weight(&mut self, name: &str, ty: TensorType) {
        self.weights.insert(name.into(), ty);
    }

    /// Starts a function. Add it with [`Module::add`] when it is finished.
    pub fn builder(&self, name: &str) -> Builder<'_> {
        Builder::new(self, name)
    }

    /// Adds or replaces a function.
    pub fn add(&mut self, graph: Graph) {
        self.functions.insert(graph.name.clone(), graph);
    }

    /// The function of that name.
    pub fn function(&self, name: &str) -> Option<&Graph> {
        self.functions.get(name)
    }
}

/// Where a module's weights come from.
pub trait Weights: Sync {
    /// The weight of that name.
    ///
    /// # Errors
    /// A sentence that names the weight and says why it cannot be had.
    fn load(&self, name: &str) -> Result<Tensor, String>;
}

impl Weights for IndexMap<Arc<str>, Tensor> {
    fn load(&self, name: &str) -> Result<Tensor, String> {
        self.get(name).cloned().ok_or_else(|| format!("no weight `{name}`"))
    }
}
