//! What a specification has to give, by the interpreter, whose numbers are f64 throughout.

use std::sync::Arc;

use indexmap::IndexMap;
use ir::{DType, Env, Interpreter, KernelSpec, Module, Precision, Tensor, TensorType, Value};

/// Results for operands of a specification, without rounding to the types that it stores.
pub(super) fn results(spec: &KernelSpec, args: &[Option<Tensor>], env: &Env) -> Vec<Tensor> {
    if spec.op == "copy" {
        return vec![args[0].clone().unwrap()];
    }
    let mut module = Module::new("oracle");
    module.symbols = (*spec.symbols).clone();
    let weights = IndexMap::<Arc<str>, Tensor>::new();
    let eval = |graph: &ir::Graph, inputs: &[Tensor]| {
        let oracle = Interpreter::new(&module, &weights, Precision::F64);
        oracle.eval(graph, inputs, env).unwrap_or_else(|e| panic!("{}: {e}", spec.op))
    };
    if let Some(body) = &spec.body {
        let params = body.param_values();
        let inputs = params.zip(args.iter().flatten());
        let inputs: Vec<_> = inputs.map(|(v, arg)| arg.cast(body.ty(v).dtype)).collect();
        return eval(body, &inputs);
    }
    // Kernels read and write narrower floats than the operator has, and compute in f32.
    let wide = |dtype: DType| match dtype {
        DType::Bf16 | DType::F16 => DType::F32,
        _ => dtype,
    };
    let mut b = module.builder("kernel");
    let mut inputs = Vec::new();
    let mut values: Vec<Option<Value>> = Vec::new();
    for (i, (layout, arg)) in spec.operands.iter().zip(args).enumerate() {
        values.push(layout.as_ref().zip(arg.as_ref()).map(|(layout, arg)| {
            let dtype = wide(arg.dtype());
            inputs.push(arg.cast(dtype));
            let ty = TensorType { dtype, ..layout.ty.clone() };
            b.param(&i.to_string(), ty).unwrap()
        }));
    }
    let results = b.op(spec.op, spec.attrs.clone(), &values);
    let results = results.unwrap_or_else(|e| panic!("{}: {e}", spec.op));
    for (i, v) in results.into_iter().enumerate() {
        b.output(&i.to_string(), v);
    }
    let graph = b.finish();
    eval(&graph, &inputs)
}
