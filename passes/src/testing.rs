//! What the tests of several modules share: a cost model, weights, and evaluation.

use std::sync::Arc;

use indexmap::IndexMap;
use ir::{
    Attrs, Body, Env, Graph, Interpreter, KernelSpec, Kernels, Module, OpRef, Precision, Tensor,
    TensorType,
};

/// A roofline: each operator takes the longer of its arithmetic and its traffic, and a launch.
pub(crate) struct Roofline;

/// Composite operators that have a kernel.
const COMPOSITES: &[&str] =
    &["rms_norm", "layer_norm", "softmax", "rope", "relu", "sigmoid", "silu", "gelu", "gelu_tanh"];

impl Kernels for Roofline {
    fn supports(&self, _: &KernelSpec) -> Result<(), String> {
        Ok(())
    }

    #[allow(clippy::cast_precision_loss, reason = "an estimate")]
    fn seconds(
        &self,
        op: OpRef,
        attrs: &Attrs,
        args: &[Option<TensorType>],
        results: &[TensorType],
        env: &Env,
    ) -> Option<f64> {
        if matches!(op.body(), Body::Composite(_)) && !COMPOSITES.contains(&op.name()) {
            return None;
        }
        let types = args.iter().flatten().chain(results);
        let bytes: i64 = types.map(|t| t.bytes().eval(env).unwrap_or(0)).sum();
        let flops = op.flops(attrs, args, results).eval(env).unwrap_or(0);
        Some((flops as f64 / 100e9).max(bytes as f64 / 17e9) + 2e-6)
    }
}

/// Values spread over -1..1 that differ by seed.
pub(crate) fn sample(ty: &TensorType, env: &Env, seed: usize) -> Tensor {
    let shape = ty.extents(env).expect("bound");
    let n: usize = shape.iter().product();
    let at = |k: usize| 2.0 * (((k + 131 * seed + 1) as f64) * 0.618_033_988_749_895).fract() - 1.0;
    Tensor::from_f64s(ty.dtype, &shape, (0..n).map(at))
}

/// Outputs of a function, the module's weights sampled by name.
pub(crate) fn eval(module: &Module, function: &str, inputs: &[Tensor], env: &Env) -> Vec<Tensor> {
    let weights = module.weights.iter().enumerate();
    let weights: IndexMap<Arc<str>, Tensor> =
        weights.map(|(i, (n, ty))| (n.clone(), sample(ty, env, 7 + i))).collect();
    let run = Interpreter::new(module, &weights, Precision::F64);
    run.run(function, inputs, env).expect("evaluates")
}

/// Asserts that outputs agree up to a relative error; what is not a number may become one.
pub(crate) fn assert_near(got: &[Tensor], want: &[Tensor], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert_eq!((g.dtype(), g.shape()), (w.dtype(), w.shape()));
        for (g, w) in g.to_f64s().into_iter().zip(w.to_f64s()) {
            let near = (g - w).abs() <= tolerance * w.abs().max(1.0);
            assert!(near || w.is_nan() || g.to_bits() == w.to_bits(), "{g}, expected {w}");
        }
    }
}

/// Names of a function's operators in order, without parameters.
pub(crate) fn ops(graph: &Graph) -> Vec<&'static str> {
    let names = graph.topo().into_iter().map(|n| graph.node(n).op.name());
    names.filter(|n| *n != "param").collect()
}

/// How often an operator occurs.
pub(crate) fn count(graph: &Graph, op: &str) -> usize {
    ops(graph).into_iter().filter(|n| *n == op).count()
}
