//! The interpreter: evaluates any graph by its operators' definitions, with no cleverness.
//!
//! It is the oracle that generated code is checked against, so it shares none of its
//! implementation.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    Body, Builder, DType, Dim, DimError, Env, EvalCx, Graph, Module, OpError, Shard, Tensor,
    TensorType, Value, Weights,
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

/// Ranks as points of a grid of named axes, numbered with the last axis running fastest.
#[derive(Clone, Debug)]
pub struct Ranks(Vec<(Arc<str>, usize)>);

impl Ranks {
    /// Axes and their sizes; no axes are one rank.
    pub fn new(axes: &[(&str, usize)]) -> Ranks {
        Ranks(axes.iter().map(|(name, size)| (Arc::from(*name), *size)).collect())
    }

    fn count(&self) -> usize {
        self.0.iter().map(|(_, size)| size).product()
    }

    /// From one rank to the next along the axis of that number.
    fn stride(&self, axis: usize) -> usize {
        self.0[axis + 1..].iter().map(|(_, size)| size).product()
    }

    /// The symbols for a rank's place along each axis.
    fn symbols(&self, rank: usize) -> impl Iterator<Item = (Arc<str>, i64)> + '_ {
        self.0.iter().enumerate().map(move |(axis, (name, size))| {
            let place = rank / self.stride(axis) % size;
            (Shard::symbol(name).into(), i64::try_from(place).unwrap_or(i64::MAX))
        })
    }

    /// The ranks that meet along an axis, in order; each alone where there is no such axis.
    fn groups(&self, axis: &str) -> Vec<Vec<usize>> {
        let number = self.0.iter().position(|(name, _)| **name == *axis);
        let (size, stride) = number.map_or((1, 1), |n| (self.0[n].1, self.stride(n)));
        let firsts = (0..self.count()).filter(|rank| rank / stride % size == 0);
        firsts.map(|first| (0..size).map(|i| first + i * stride).collect()).collect()
    }
}

/// What one rank evaluates with.
struct Rank {
    inputs: Vec<Tensor>,
    env: Env,
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
    /// Other ranks are missing, or too many.
    #[error("{op} is of {wanted} ranks along `{axis}`, of which there are {got}")]
    Ranks {
        /// The collective.
        op: String,
        /// The axis of the mesh.
        axis: String,
        /// Ranks that it is of.
        wanted: i64,
        /// Ranks along the axis.
        got: usize,
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
        let alone = [Rank { inputs: inputs.to_vec(), env: env.clone() }];
        Ok(self.eval_ranks(graph, &Ranks::new(&[]), &alone)?.swap_remove(0))
    }

    /// Evaluates a function on all ranks of a mesh, each with its inputs; `env` as in
    /// [`run`](Self::run). The symbols for a rank's place along each axis are bound.
    ///
    /// # Errors
    /// As [`Interpreter::run`], for any of them.
    pub fn run_ranks(
        &self,
        function: &str,
        ranks: &Ranks,
        inputs: &[Vec<Tensor>],
        env: &[(&str, i64)],
    ) -> Result<Vec<Vec<Tensor>>, EvalError> {
        let graph =
            self.module.function(function).ok_or_else(|| EvalError::NoFunction(function.into()))?;
        let of_rank = |(rank, inputs): (usize, &Vec<Tensor>)| {
            let given = env.iter().map(|(name, value)| (Arc::from(*name), *value));
            let mut env: Env = given.chain(ranks.symbols(rank)).collect();
            bind(graph, inputs, &mut env);
            Rank { inputs: inputs.clone(), env }
        };
        let of_ranks: Vec<Rank> = inputs.iter().enumerate().map(of_rank).collect();
        self.eval_ranks(graph, ranks, &of_ranks)
    }

    /// Evaluates a graph on all ranks, node by node.
    fn eval_ranks(
        &self,
        graph: &Graph,
        ranks: &Ranks,
        of_ranks: &[Rank],
    ) -> Result<Vec<Vec<Tensor>>, EvalError> {
        let dim = |source| EvalError::Dim { function: graph.name.to_string(), source };
        let mut values = Vec::with_capacity(of_ranks.len());
        for rank in of_ranks {
            values.push(self.take_inputs(graph, rank)?);
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
            let operands = |values: &BTreeMap<Value, Tensor>| -> Vec<Option<Tensor>> {
                node.inputs().iter().map(|v| v.map(|v| values[&v].clone())).collect()
            };
            let args: Vec<Vec<Option<Tensor>>> = values.iter().map(operands).collect();
            for v in reads(*id) {
                let left = readers.get_mut(v).expect("counted");
                *left -= 1;
                if *left == 0 {
                    values.iter_mut().for_each(|values| _ = values.remove(v));
                }
            }
            let types = |rank: &Rank| -> Result<Vec<TensorType>, EvalError> {
                let facts = node.results().iter();
                facts
                    .map(|f| self.concrete(&f.ty, &rank.env))
                    .collect::<Result<_, _>>()
                    .map_err(dim)
            };
            let types = of_ranks.iter().map(types).collect::<Result<Vec<_>, _>>()?;
            let outs = self.eval_node(graph, *id, ranks, of_ranks, &types, args)?;
            for (values, (out, types)) in values.iter_mut().zip(outs.into_iter().zip(&types)) {
                for (port, (tensor, ty)) in out.into_iter().zip(types).enumerate() {
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
        }
        let outputs = |values: &BTreeMap<Value, Tensor>| {
            graph.outputs.iter().map(|(_, v)| values[v].clone()).collect()
        };
        Ok(values.iter().map(outputs).collect())
    }

    /// The results of one node on all ranks.
    fn eval_node(
        &self,
        graph: &Graph,
        id: crate::NodeId,
        ranks: &Ranks,
        of_ranks: &[Rank],
        types: &[Vec<TensorType>],
        args: Vec<Vec<Option<Tensor>>>,
    ) -> Result<Vec<Vec<Tensor>>, EvalError> {
        let node = graph.node(id);
        let cx = |rank: usize| EvalCx {
            attrs: &node.attrs,
            results: &types[rank],
            env: &of_ranks[rank].env,
        };
        // Functions are evaluated on all ranks, for they may hold collectives.
        let inner = |graph: &Graph, args: Vec<Vec<Option<Tensor>>>| {
            let of_rank = |(args, rank): (Vec<Option<Tensor>>, &Rank)| Rank {
                inputs: args.into_iter().flatten().collect(),
                env: rank.env.clone(),
            };
            let of_ranks: Vec<Rank> = args.into_iter().zip(of_ranks).map(of_rank).collect();
            self.eval_ranks(graph, ranks, &of_ranks)
        };
        match (node.op.body(), node.op.name()) {
            (Body::Primitive(eval), _) => {
                Ok(args.iter().enumerate().map(|(rank, args)| eval(&cx(rank), args)).collect())
            }
            (Body::Collective(eval), op) => {
                let (axis, wanted) = (node.attrs.str("axis"), node.attrs.int("ranks"));
                let mut out: Vec<Vec<Tensor>> = vec![Vec::new(); of_ranks.len()];
                for members in ranks.groups(axis) {
                    if i64::try_from(members.len()) != Ok(wanted) {
                        let (op, got) = (op.into(), members.len());
                        return Err(EvalError::Ranks { op, axis: axis.into(), wanted, got });
                    }
                    let args: Vec<_> = members.iter().map(|rank| args[*rank].clone()).collect();
                    let results = eval(&cx(members[0]), &args);
                    members.iter().zip(results).for_each(|(rank, results)| out[*rank] = results);
                }
                Ok(out)
            }
            (Body::Composite(_), _) => inner(&self.expand(graph, id)?, args),
            (Body::Structural, "weight") => {
                let name = node.attrs.str("name");
                let weight = self.widen(self.weights.load(name).map_err(EvalError::Weight)?);
                Ok(vec![vec![weight]; of_ranks.len()])
            }
            (Body::Structural, _) => {
                let name = node.attrs.str("callee");
                let callee = self.module.function(name);
                inner(callee.ok_or_else(|| EvalError::NoFunction(name.into()))?, args)
            }
        }
    }

    /// The inputs as values of the parameters.
    fn take_inputs(
        &self,
        graph: &Graph,
        rank: &Rank,
    ) -> Result<BTreeMap<Value, Tensor>, EvalError> {
        let dim = |source| EvalError::Dim { function: graph.name.to_string(), source };
        let Rank { inputs, env } = rank;
        if inputs.len() != graph.params().len() {
            return Err(EvalError::Input {
                function: graph.name.to_string(),
                name: "*".into(),
                got: format!("{} inputs", inputs.len()),
                want: format!("{}", graph.params().len()),
            });
        }
        let mut values = BTreeMap::new();
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
        Ok(values)
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
