//! Encoders: tokens in, one embedding per sequence out.
//!
//! Entry `embed(tokens i32[T], positions i32[T], cu_seqlens i32[S+1]) -> embeddings f32[S, H],
//! last_hidden_state f32[T, H]` over packed sequences; token types are all zero.

use std::collections::BTreeMap;

use ir::{Attrs, DType, Dim, Module, OpError, TensorType, Value};

use crate::{
    blocks::{Context, Norm, Scope, Slot, size},
    stack::{Stack, cu_seqlens_type},
};

/// How the states of a sequence become one embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pooling {
    pub(crate) mode: PoolingMode,
    /// Whether embeddings are scaled to length one.
    pub(crate) normalize: bool,
}

/// Which states are pooled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum PoolingMode {
    /// The mean of all.
    Mean,
    /// The first, of the `[CLS]` token.
    First,
}

/// An encoder, as read from its config.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Encoder {
    pub(crate) vocab: u64,
    pub(crate) hidden: u64,
    /// Rows of the table of positions.
    pub(crate) max_positions: u64,
    /// Rows of the table of token types, of which the first is used.
    pub(crate) token_types: u64,
    /// The tables: tokens, positions, token types.
    pub(crate) tables: [&'static str; 3],
    /// The norm of the summed embeddings.
    pub(crate) norm: Norm,
    pub(crate) layers: Stack,
    pub(crate) pooling: Pooling,
}

impl Encoder {
    /// Every weight, with its full name.
    pub(crate) fn slots(&self, prefix: &str) -> Vec<Slot> {
        let mut slots = self.own_slots();
        for slot in &mut slots {
            slot.path.insert_str(0, prefix);
        }
        slots.extend(self.layers.slots(prefix));
        slots
    }

    fn own_slots(&self) -> Vec<Slot> {
        let rows = [self.vocab, self.max_positions, self.token_types];
        let tables = self.tables.iter().zip(rows);
        let mut slots: Vec<Slot> =
            tables.map(|(path, rows)| Slot::new(*path, [rows, self.hidden])).collect();
        self.norm.slots(&mut slots);
        slots
    }

    /// Writes the model down in a module whose symbols and weights are declared.
    pub(crate) fn build(
        &self,
        module: &mut Module,
        prefix: &str,
        dtype: Option<DType>,
    ) -> Result<(), OpError> {
        let functions = self.layers.define(module, prefix, dtype)?;
        let mut b = module.builder("embed");
        let per_token = TensorType::new(DType::I32, [Dim::symbol("T")]);
        let tokens = b.param("tokens", per_token.clone())?;
        let positions = b.param("positions", per_token)?;
        let cu_seqlens = b.param("cu_seqlens", cu_seqlens_type())?;

        let mut weights = BTreeMap::new();
        for slot in self.own_slots() {
            let value = b.weight(&format!("{prefix}{}", slot.path))?;
            weights.insert(slot.path, value);
        }
        let mut s = Scope { b: &mut b, weights, dtype };
        let x = self.embed(&mut s, tokens, positions)?;
        let x = self.norm.apply(&mut s, x)?;
        let cx = Context { rope: None, cu_seqlens };
        let x = self.layers.apply(s.b, &functions, prefix, x, cx)?;
        s.b.at("pooling");
        let op = match self.pooling.mode {
            PoolingMode::Mean => "segment_mean",
            PoolingMode::First => "segment_first",
        };
        let mut embeddings = s.b.op1(op, Attrs::none(), &[x, cu_seqlens])?;
        if self.pooling.normalize {
            embeddings = s.b.op1("l2_normalize", Attrs::none(), &[embeddings])?;
        }
        b.output("embeddings", embeddings);
        b.output("last_hidden_state", x);
        let graph = b.finish();
        module.add(graph);
        module.entries.push("embed".into());
        Ok(())
    }

    /// The sum of a token's three embeddings.
    fn embed(
        &self,
        s: &mut Scope<'_, '_>,
        tokens: Value,
        positions: Value,
    ) -> Result<Value, OpError> {
        let [token_table, position_table, type_table] = self.tables;
        let x = s.embed(token_table, tokens)?;
        s.b.at(type_table);
        let types = s.weight(type_table)?;
        let first = s.b.slice(types, 0, 0i64, 1i64)?;
        let first = s.b.reshape(first, vec![size(self.hidden)])?;
        let x = s.b.add(x, first)?;
        let p = s.embed(position_table, positions)?;
        s.b.add(x, p)
    }
}
