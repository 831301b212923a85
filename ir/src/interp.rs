//! The interpreter: evaluates any graph by its operators' definitions, with no cleverness.
//!
//! It is the oracle that generated code is checked against, so it shares none of its
//! implementation.

use std::collections::BTreeMap;

use crate::{
    Body, Builder, DType, Dim, DimError, Env, EvalCx, Graph, Module, OpError, Tensor, TensorType,
    Value, Weights,
};

/// The precision that `f32` values are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Each operator rounds its result to `f32`.
    F32,
    /// `f32` values are kept as `f64`; narrower types still round.
    F64,
}

/// Evaluates functions of a module.
pub struct Interpreter<'a> {
    module: &'a Module,
    weights: &'a dyn Weights,
    precision: Precision,
}

/// Why a graph could not be evaluated.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// No such function.
    #[error("no function `{0}`")]
    NoFunction(String),
    /// An input has another type than the parameter.
    #[error("input `{name}` of `{function}` is {got}, expected {want}")]
    Input {
        /// The function.
        function: String,
        /// The parameter.
        name: String,
        /// Type of what was given.
        got: String,
        /// Type of the parameter.
        want: String,
    },
    /// A size has no value.
    #[error("`{function}`: {source}")]
    Dim {
        /// The function.
        function: String,
        /// Why.
        source: DimError,
    },
    /// A weight could not be loaded.
    #[error("{0}")]
    Weight(String),
    /// The expansion of a composite failed.
    #[error("expansion of {0}")]
    Expand(OpError),
}

impl<'a> Interpreter<'a> {
    /// An interpreter of a module.
    pub fn new(module: &'a Module, weights: &'a dyn Weights, precision: Precision) -> Self {
        Interpreter { module, weights, precision }
    }

    /// Evaluates a function. Symbols take their values from the inputs' extents, and from `env`
    /// where no extent is the bare symbol.
    ///
    /// # Errors
    /// [`EvalError`] where inputs do not fit the parameters or a weight is missing.
    pub fn run(
        &self,
        function: &str,
        inputs: &[Tensor],
        env: &Env,
    ) -> Result<Vec<Tensor>, EvalError> {
        let graph =
            self.module.function(function).ok_or_else(|| EvalError::NoFunction(function.into()))?;
        let mut env = env.clone();
        bind(graph, inputs, &mut env);
        self.eval(graph, inputs, &env)
    }

    /// Evaluates a graph under a full environment.
    ///
    /// # Errors
    /// As [`Interpreter::run`].
    pub fn eval(
        &self,
        graph: &Graph,
        inputs: &[Tensor],
        env: &Env,
    ) -> Result<Vec<Tensor>, EvalError> {
        let dim = |source| EvalError::Dim { function: graph.name.to_string(), source };
        let mut values: BTreeMap<Value, Tensor> = BTreeMap::new();
        if inputs.len() != graph.params().len() {
            return Err(EvalError::Input {
                function: graph.name.to_string(),
                name: "*".into(),
                got: format!("{} inputs", inputs.len()),
                want: format!("{}", graph.params().len()),
            });
        }
        for (param, input) in graph.param_values().zip(inputs) {
            let want = self.concrete(graph.ty(param), env).map_err(dim)?;
            let input = self.widen(input.clone());
            let got = TensorType::new(input.dtype(), input.shape().iter().copied());
            if got != want {
                return Err(EvalError::Input {
                    function: graph.name.to_string(),
                    name: graph.param_name(param.node).into(),
                    got: got.to_string(),
                    want: want.to_string(),
                });
            }
            values.insert(param, input);
        }
        // A value is dropped after its last reader.
        let order = graph.topo();
        let mut readers: BTreeMap<Value, usize> = BTreeMap::new();
        let reads = |id| graph.node(id).inputs().iter().flatten();
        for v in order.iter().flat_map(|n| reads(*n)).chain(graph.outputs.iter().map(|(_, v)| v)) {
            *readers.entry(*v).or_insert(0) += 1;
        }
        for id in &order {
            let node = graph.node(*id);
            if node.op.name() == "param" {
                continue;
            }
            let args: Vec<Option<Tensor>> =
                node.inputs().iter().map(|v| v.map(|v| values[&v].clone())).collect();
            for v in reads(*id) {
                let left = readers.get_mut(v).expect("counted");
                *left -= 1;
                if *left == 0 {
                    values.remove(v);
                }
            }
            let results: Vec<TensorType> = node
                .results()
                .iter()
                .map(|f| self.concrete(&f.ty, env))
                .collect::<Result<_, _>>()
                .map_err(dim)?;
            let out = match (node.op.body(), node.op.name()) {
                (Body::Primitive(eval), _) => {
                    eval(&EvalCx { attrs: &node.attrs, results: &results, env }, &args)
                }
                (Body::Composite(_), _) => {
                    let small = self.expand(graph, *id)?;
                    let args: Vec<Tensor> = args.into_iter().flatten().collect();
                    self.eval(&small, &args, env)?
                }
                (Body::Structural, "weight") => {
                    let name = node.attrs.str("name");
                    vec![self.widen(self.weights.load(name).map_err(EvalError::Weight)?)]
                }
                (Body::Structural, _) => {
                    let args: Vec<Tensor> = args.into_iter().flatten().collect();
                    let name = node.attrs.str("callee");
                    let callee = self.module.function(name);
                    let callee = callee.ok_or_else(|| EvalError::NoFunction(name.into()))?;
                    self.eval(callee, &args, env)?
                }
            };
            for (port, (tensor, ty)) in out.into_iter().zip(&results).enumerate() {
                debug_assert_eq!(
                    TensorType::new(tensor.dtype(), tensor.shape().iter().copied()),
                    *ty,
                    "{} returned another type than it infers",
                    node.op.name()
                );
                let v = Value { node: *id, port };
                if readers.contains_key(&v) {
                    values.insert(v, tensor);
                }
            }
        }
        Ok(graph.outputs.iter().map(|(_, v)| values[v].clone()).collect())
    }

    /// The expansion of one composite node, as a function of its present operands.
    fn expand(&self, graph: &Graph, id: crate::NodeId) -> Result<Graph, EvalError> {
        let node = graph.node(id);
        let Body::Composite(expand) = node.op.body() else { unreachable!("checked by the caller") };
        let mut b = Builder::new(self.module, node.op.name());
        let args = node
            .inputs()
            .iter()
            .enumerate()
            .map(|(i, v)| v.map(|v| b.param(&i.to_string(), graph.ty(v).clone())).transpose())
            .collect::<Result<Vec<_>, _>>();
        let results = args.and_then(|args| expand(&mut b, &node.attrs, &args));
        for (i, v) in results.map_err(EvalError::Expand)?.into_iter().enumerate() {
            b.output(&i.to_string(), v);
        }
        Ok(b.finish())
    }

    fn concrete(&self, ty: &TensorType, env: &Env) -> Result<TensorType, DimError> {
        let dtype = match (self.precision, ty.dtype) {
            (Precision::F64, DType::F32) => DType::F64,
            (_, d) => d,
        };
        Ok(TensorType::new(dtype, ty.extents(env)?))
    }

    fn widen(&self, t: Tensor) -> Tensor {
        match (self.precision, t.dtype()) {
            (Precision::F64, DType::F32) => t.cast(DType::F64),
            _ => t,
        }
    }
}

/// Binds symbols that are extents of parameters to the inputs' extents.
fn bind(graph: &Graph, inputs: &[Tensor], env: &mut Env) {
    for (param, input) in graph.param_values().zip(inputs) {
        for (dim, extent) in graph.ty(param).shape.iter().zip(input.shape()) {
            if let Some(name) = dim.as_symbol() {
                let extent = i64::try_from(*extent).unwrap_or(i64::MAX);
                env.entry(name.into()).or_insert(extent);
            }
            // `S + 1` binds `S` as well: cu_seqlens has one entry more than there are segments.
            if let [name] = dim.symbols().as_slice() {
                let rest = dim.clone() - Dim::symbol(name);
                if let (Some(rest), Ok(extent)) = (rest.as_const(), i64::try_from(*extent)) {
                    env.entry(name.clone()).or_insert(extent - rest);
                }
            }
        }
    }
}
