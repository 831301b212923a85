//! The layers of a model: each kind of layer is one function, called once for every layer of it.

use std::collections::BTreeMap;

use ir::{Builder, DType, Dim, Module, OpError, TensorType, Value};

use crate::blocks::{Block, Context, Scope, Slot, size};

/// Layers, whose weights are named `{path}.{number}.{slot}`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stack {
    pub(crate) path: &'static str,
    pub(crate) blocks: Vec<Block>,
    pub(crate) hidden: u64,
    /// Planes that rotary embedding turns, where there is one.
    pub(crate) rope_planes: Option<u64>,
}

/// A kind of layer: what it computes and how its weights are stored.
#[derive(PartialEq)]
struct Kind<'a> {
    block: &'a Block,
    weights: Vec<TensorType>,
}

impl Stack {
    /// The weights of every layer.
    pub(crate) fn slots(&self, prefix: &str) -> Vec<Slot> {
        let layers = self.blocks.iter().enumerate();
        let named = layers.flat_map(|(i, block)| {
            block.slots().into_iter().map(move |s| Slot { path: self.name(prefix, i, &s), ..s })
        });
        named.collect()
    }

    fn name(&self, prefix: &str, layer: usize, slot: &Slot) -> String {
        format!("{prefix}{}.{layer}.{}", self.path, slot.path)
    }

    /// Windows that no sequence up to `max_seq_len` is longer than hide nothing: drops them.
    pub(crate) fn drop_idle_windows(&mut self, max_seq_len: u64) {
        for block in &mut self.blocks {
            block.attention.window = block.attention.window.filter(|w| *w < max_seq_len);
        }
    }

    /// Adds a function for each kind of layer, and returns the one that each layer calls.
    pub(crate) fn define(
        &self,
        module: &mut Module,
        prefix: &str,
        dtype: Option<DType>,
    ) -> Result<Vec<String>, OpError> {
        let mut kinds: Vec<Kind<'_>> = Vec::new();
        let mut calls = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            let mut weights = Vec::new();
            for slot in block.slots() {
                let name = self.name(prefix, i, &slot);
                let ty = module.weights.get(&*name).cloned();
                weights.push(ty.ok_or_else(|| OpError::new(format!("no weight `{name}`")))?);
            }
            let kind = Kind { block, weights };
            calls.push(kinds.iter().position(|k| *k == kind).unwrap_or_else(|| {
                kinds.push(kind);
                kinds.len() - 1
            }));
        }
        let names = kind_names(&kinds);
        for (kind, name) in kinds.iter().zip(&names) {
            let graph = self.function(module, kind, name, dtype)?;
            module.add(graph);
        }
        Ok(calls.into_iter().map(|k| names[k].clone()).collect())
    }

    fn function(
        &self,
        module: &Module,
        kind: &Kind<'_>,
        name: &str,
        dtype: Option<DType>,
    ) -> Result<ir::Graph, OpError> {
        let mut b = module.builder(name);
        let tokens = Dim::symbol("T");
        let x = TensorType::new(DType::F32, [tokens.clone(), size(self.hidden)]);
        let x = b.param("x", x)?;
        let rope = match self.rope_planes {
            Some(planes) => {
                let angles = TensorType::new(DType::F32, [tokens, size(planes)]);
                Some([b.param("cos", angles.clone())?, b.param("sin", angles)?])
            }
            None => None,
        };
        let cu_seqlens = b.param("cu_seqlens", cu_seqlens_type())?;
        let mut weights = BTreeMap::new();
        for (slot, ty) in kind.block.slots().into_iter().zip(&kind.weights) {
            let value = b.param(&slot.path.replace('.', "_"), ty.clone())?;
            weights.insert(slot.path, value);
        }
        let mut scope = Scope { b: &mut b, weights, dtype };
        let y = kind.block.apply(&mut scope, x, Context { rope, cu_seqlens })?;
        b.output("x", y);
        Ok(b.finish())
    }

    /// Calls the layers one after another.
    pub(crate) fn apply(
        &self,
        b: &mut Builder<'_>,
        functions: &[String],
        prefix: &str,
        mut x: Value,
        cx: Context,
    ) -> Result<Value, OpError> {
        for (i, (block, function)) in self.blocks.iter().zip(functions).enumerate() {
            b.at(&format!("{prefix}{}.{i}", self.path));
            let mut args = vec![x];
            args.extend(cx.rope.iter().flatten());
            args.push(cx.cu_seqlens);
            for slot in block.slots() {
                args.push(b.weight(&self.name(prefix, i, &slot))?);
            }
            x = b.call(function, &args)?[0];
        }
        Ok(x)
    }
}

/// The type of `cu_seqlens`: begin of each sequence, and the end of the last.
pub(crate) fn cu_seqlens_type() -> TensorType {
    TensorType::new(DType::I32, [Dim::symbol("S") + Dim::from(1i64)])
}

/// `layer`; where only the windows differ, `layer_full` and `layer_window`; else with a number.
fn kind_names(kinds: &[Kind<'_>]) -> Vec<String> {
    let windowed = |k: &Kind<'_>| k.block.attention.window.is_some();
    match kinds {
        [_] => vec!["layer".into()],
        [a, b] if windowed(a) != windowed(b) => kinds
            .iter()
            .map(|k| if windowed(k) { "layer_window".into() } else { "layer_full".into() })
            .collect(),
        _ => (0..kinds.len()).map(|i| format!("layer_{i}")).collect(),
    }
}
