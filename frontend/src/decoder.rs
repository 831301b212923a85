//! Language models: tokens in, logits of the next token out.
//!
//! Entry `forward(tokens i32[T], positions i32[T], cu_seqlens i32[S+1], logit_rows i32[R]) ->
//! logits f32[R, V]` over packed sequences; logits are computed for the rows that are asked for.

use std::collections::BTreeMap;

use ir::{DType, Dim, Module, OpError, Tensor, TensorType};

use crate::{
    blocks::{Context, Layout, Linear, Norm, Scope, Slot, size},
    rope::{Frequencies, Rope},
    stack::{Stack, cu_seqlens_type},
};

/// How a model knows the order of its tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Positions {
    /// Queries and keys are rotated.
    Rope(Rope),
    /// A table of embeddings, one for each position.
    Learned(&'static str),
}

/// A decoder, as read from its config.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Decoder {
    pub(crate) vocab: u64,
    pub(crate) hidden: u64,
    /// Positions that the model was made for.
    pub(crate) max_positions: u64,
    /// The table of token embeddings.
    pub(crate) embedding: &'static str,
    pub(crate) positions: Positions,
    pub(crate) layers: Stack,
    pub(crate) norm: Norm,
    /// Whether logits are taken with the token embeddings.
    pub(crate) tied: bool,
}

/// The matrix from hidden states to logits, which no prefix applies to.
pub(crate) const HEAD: &str = "lm_head";

impl Decoder {
    /// Every weight, with its full name.
    pub(crate) fn slots(&self, prefix: &str) -> Vec<Slot> {
        let mut slots = self.own_slots();
        for slot in &mut slots {
            slot.path.insert_str(0, prefix);
        }
        slots.extend(self.layers.slots(prefix));
        if !self.tied {
            self.head().slots(&mut slots);
        }
        slots
    }

    /// The weights that lie beside the layers.
    fn own_slots(&self) -> Vec<Slot> {
        let mut slots = vec![Slot::new(self.embedding, [self.vocab, self.hidden])];
        if let Positions::Learned(path) = self.positions {
            slots.push(Slot::new(path, [self.max_positions, self.hidden]));
        }
        self.norm.slots(&mut slots);
        slots
    }

    fn head(&self) -> Linear {
        let (inputs, outputs) = (self.hidden, self.vocab);
        Linear { path: HEAD, inputs, outputs, bias: false, layout: Layout::OutIn }
    }

    /// Writes the model down in a module whose symbols and weights are declared.
    pub(crate) fn build(
        &self,
        module: &mut Module,
        prefix: &str,
        dtype: Option<DType>,
        max_seq_len: u64,
    ) -> Result<(), OpError> {
        let functions = self.layers.define(module, prefix, dtype)?;
        let mut b = module.builder("forward");
        let int = |d: Dim| TensorType::new(DType::I32, [d]);
        let tokens = b.param("tokens", int(Dim::symbol("T")))?;
        let positions = b.param("positions", int(Dim::symbol("T")))?;
        let cu_seqlens = b.param("cu_seqlens", cu_seqlens_type())?;
        let logit_rows = b.param("logit_rows", int(Dim::symbol("R")))?;

        let mut weights = BTreeMap::new();
        for slot in self.own_slots() {
            let value = b.weight(&format!("{prefix}{}", slot.path))?;
            weights.insert(slot.path, value);
        }
        if !self.tied {
            let path = format!("{HEAD}.weight");
            weights.insert(path.clone(), b.weight(&path)?);
        }
        let mut s = Scope { b: &mut b, weights, dtype };
        let mut x = s.embed(self.embedding, tokens)?;
        let rope = match &self.positions {
            Positions::Rope(rope) => {
                Some(angles(&mut s, positions, &rope.frequencies(max_seq_len))?)
            }
            Positions::Learned(path) => {
                let p = s.embed(path, positions)?;
                x = s.b.add(x, p)?;
                None
            }
        };
        x = self.layers.apply(s.b, &functions, prefix, x, Context { rope, cu_seqlens })?;
        x = s.b.gather(x, logit_rows, 0)?;
        x = self.norm.apply(&mut s, x)?;
        let logits = if self.tied {
            s.b.at(HEAD);
            let w = s.weight(self.embedding)?;
            let w = s.b.transpose(w, &[1, 0])?;
            s.b.matmul(x, w)?
        } else {
            self.head().apply(&mut s, x)?
        };
        b.output("logits", logits);
        let graph = b.finish();
        module.add(graph);
        module.entries.push("forward".into());
        Ok(())
    }
}

/// Cosines and sines of the angles at each position, `[T, D/2]`, scaled.
fn angles(
    s: &mut Scope<'_, '_>,
    positions: ir::Value,
    frequencies: &Frequencies,
) -> Result<[ir::Value; 2], OpError> {
    s.b.at("rotary_emb");
    let inv_freq = &frequencies.inv_freq;
    let inv_freq = s.b.constant(Tensor::from_f32s(&[1, inv_freq.len()], inv_freq))?;
    let positions = s.b.cast(positions, DType::F32)?;
    let positions = s.b.reshape(positions, vec![Dim::symbol("T"), size(1)])?;
    let angles = s.b.mul(positions, inv_freq)?;
    let mut tables = [s.b.cos(angles)?, s.b.sin(angles)?];
    if frequencies.attention_factor != 1.0 {
        let factor = s.b.scalar(DType::F32, frequencies.attention_factor)?;
        for table in &mut tables {
            *table = s.b.mul(*table, factor)?;
        }
    }
    Ok(tables)
}
