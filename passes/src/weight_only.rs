//! What weights and constants alone determine: computed once, when the model is compiled.
//!
//! The e-graph, the flags of layers' parameters and the split into prepared weights all ask here:
//! where one of them took for a weight what another does not prepare, a kernel would be asked to
//! pack it at run time.

use std::collections::BTreeSet;

use ir::{Attrs, Fact, Graph, NodeId, OpRef};

/// Whether a node is the same in every run where its operands are: it depends on no symbol, neither
/// by its attributes nor by the type or known contents of a result.
pub(crate) fn is_static<'a>(
    op: OpRef,
    attrs: &Attrs,
    results: impl IntoIterator<Item = &'a Fact>,
) -> bool {
    let symbolic =
        |f: &Fact| f.dims.iter().flatten().chain(&f.ty.shape).any(|d| d.as_const().is_none());
    op.name() != "call" && attrs.is_constant() && !results.into_iter().any(symbolic)
}

/// Nodes that depend on weights, constants and the given parameters alone.
pub(crate) fn weight_only(graph: &Graph, params: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let mut out = BTreeSet::new();
    for id in graph.topo() {
        let node = graph.node(id);
        let own = match node.op.name() {
            "param" => params.contains(&id),
            _ => {
                node.inputs().iter().flatten().all(|v| out.contains(&v.node))
                    && is_static(node.op, &node.attrs, node.results())
            }
        };
        if own {
            out.insert(id);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use ir::{DType, Dim, Module, TensorType, Value};

    use super::*;
    use crate::{
        FoldLimits, canonicalize,
        optimize::{tests::optimized, weight_params},
        prepare,
        testing::{assert_near, count, eval, sample},
    };

    /// `x [S, 8]` times the matrix of `W [100, 8, 16]` that the size of `x` chooses, by a slice or
    /// by a gather, in the entry or in a function that is called.
    fn model(slice: bool, called: bool) -> Module {
        let mut m = Module::new("m");
        m.symbol("S", 1, 64);
        m.weight("w", TensorType::new(DType::F32, [100i64, 8, 16]));
        let [x_ty, w_ty] = [
            TensorType::new(DType::F32, [Dim::symbol("S"), 8.into()]),
            TensorType::new(DType::F32, [8i64, 16]),
        ];
        let mut b = m.builder("layer");
        let (x, w) = (b.param("x", x_ty.clone()).unwrap(), b.param("w", w_ty).unwrap());
        let y = b.matmul(x, w).unwrap();
        b.output("y", y);
        let layer = b.finish();
        if called {
            m.add(layer);
        }
        let mut b = m.builder("main");
        let x = b.param("x", x_ty).unwrap();
        let w = b.weight("w").unwrap();
        let last = Dim::symbol("S") - 1.into();
        let w: Value = if slice {
            let w = b.slice(w, 0, last, Dim::symbol("S")).unwrap();
            b.reshape(w, vec![8.into(), 16.into()]).unwrap()
        } else {
            let at = Attrs::none().with("sizes", vec![last]).with("scalar", true);
            let at = b.op1("size_vector", at, &[]).unwrap();
            b.gather(w, at, 0).unwrap()
        };
        let y = if called { b.call("layer", &[x, w]).unwrap()[0] } else { b.matmul(x, w).unwrap() };
        b.output("y", y);
        let main = b.finish();
        m.add(main);
        m.entries.push("main".into());
        canonicalize(&mut m, FoldLimits::default()).unwrap();
        m
    }

    #[test]
    fn a_matrix_chosen_by_a_size_is_no_weight_to_any_pass() {
        let env: ir::Env = [("S".into(), 3)].into_iter().collect();
        for (slice, called) in [(false, false), (false, true), (true, false), (true, true)] {
            let source = model(slice, called);
            let flags = weight_params(&source);
            assert!(flags.values().all(BTreeSet::is_empty), "{flags:?}");
            let (mut m, _) = optimized(&source, &env);
            for f in m.functions.values() {
                assert_eq!(count(f, "pack"), 0, "slice: {slice}, called: {called}");
            }
            let x = sample(&TensorType::new(DType::F32, [3i64, 8]), &env, 1);
            let [got, want] =
                [&m, &source].map(|m| eval(m, "main", std::slice::from_ref(&x), &env));
            assert_near(&got, &want, 1e-9);
            let recipes = prepare(&mut m, "main", &[]).unwrap();
            assert!(recipes.iter().all(|r| r.graph.ty(r.graph.outputs[0].1).rank() == 3));
        }
    }
}
