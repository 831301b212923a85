//! Chunks of rows against forward and backward apart.

use std::{collections::BTreeSet, sync::Arc};

use indexmap::IndexMap;
use ir::{DType, Env, Interpreter, Precision, Tensor, TensorType};

use super::*;
use crate::{
    testing::sample,
    vjp::{Recompute, Wrt, differentiate},
};

const MOST: i64 = 23;

/// Losses of up to [`MOST`] rows, weighted by `scale`, or each by itself.
fn module(by_loss: bool) -> Module {
    let mut m = Module::new("m");
    m.symbol("R", 1, MOST);
    m.weights.insert("head".into(), TensorType::new(DType::F32, [9i64, 4]));
    let build = |b: &mut Builder<'_>| -> Result<(), OpError> {
        let rows = Dim::symbol("R");
        let x = b.param("x", TensorType::new(DType::F32, [rows.clone(), 4.into()]))?;
        let targets = b.param("targets", TensorType::new(DType::I32, [rows]))?;
        let scale = b.param("scale", TensorType::new(DType::F32, Vec::<Dim>::new()))?;
        let w = b.weight("head")?;
        let args = [x, w, targets].map(Some);
        let mut loss = b.op("linear_cross_entropy", Attrs::none(), &args)?[0];
        if by_loss {
            loss = b.mul(loss, loss)?;
        }
        let total = b.reduce("reduce_sum", loss, &[0], false)?;
        b.output("total", total);
        let loss = b.mul(total, scale)?;
        b.output("loss", loss);
        Ok(())
    };
    let mut b = m.builder("loss");
    build(&mut b).unwrap();
    let graph = b.finish();
    m.add(graph);
    m.entries.push("loss".into());
    let weights = BTreeSet::from(["head".into()]);
    let wrt = Wrt { weights, params: BTreeSet::from(["x".into()]) };
    differentiate(&m, "loss", &wrt, "loss", Recompute::None).unwrap()
}

fn count(graph: &Graph, op: &str) -> usize {
    graph.topo().into_iter().filter(|id| graph.node(*id).op.name() == op).count()
}

#[test]
fn chunks_of_rows_give_the_same_losses_and_gradients() {
    let m = module(false);
    let source = &m.functions["loss.grad"];
    let pair = Pair::of(source).expect("a loss and its gradient");
    let head = sample(&m.weights["head"], &Env::new(), 3);
    let weights: IndexMap<Arc<str>, Tensor> = [("head".into(), head)].into();
    for size in [5, 22, 23] {
        let graph = in_chunks(&m, source, pair, size).unwrap();
        for op in ["linear_cross_entropy", "linear_cross_entropy_grad"] {
            assert_eq!(count(&graph, op), 0, "{op}");
        }
        let chunks = graph.topo().into_iter().filter(|id| {
            let node = graph.node(*id);
            node.op.name() == "linear_cross_entropy_dlogits" && {
                let rows = node.results()[1].ty.shape[0].bounds(&m.symbols);
                assert!(rows.hi <= size, "{rows:?} of {size}");
                true
            }
        });
        let [most, size] = [MOST, size].map(|n| usize::try_from(n).unwrap());
        assert_eq!(chunks.count(), most.div_ceil(size));
        let mut chunked = m.clone();
        chunked.functions.insert("loss.grad".into(), graph);
        assert!(ir::verify(&chunked).is_ok());
        for rows in [1, 4, 5, 6, 22, 23] {
            let env: Env = [("R".into(), rows)].into();
            let x = sample(&TensorType::new(DType::F32, [rows, 4]), &env, 1);
            let targets = (0..rows).map(|row| row * 7 % 11 - 1);
            let targets = Tensor::from_i64s(DType::I32, &x.shape()[..1], targets);
            let args = [x, targets, Tensor::from_f64s(DType::F32, &[], [0.25])];
            let run = |m: &Module| {
                let interpreter = Interpreter::new(m, &weights, Precision::F64);
                interpreter.run("loss.grad", &args, &env).unwrap()
            };
            for (got, want) in run(&chunked).iter().zip(run(&m)) {
                assert_eq!(got.shape(), want.shape());
                for (got, want) in got.to_f64s().into_iter().zip(want.to_f64s()) {
                    assert!((got - want).abs() <= 1e-5 * (1.0 + want.abs()), "{got} {want}");
                }
            }
        }
    }
}

#[test]
fn a_cotangent_that_follows_from_the_loss_comes_too_late() {
    let m = module(true);
    let source = &m.functions["loss.grad"];
    assert!(Pair::of(source).is_none());
    let same = fuse_head(&m, source, Chunk::of(None)).unwrap();
    assert_eq!(count(&same, "linear_cross_entropy_grad"), 1);
}
