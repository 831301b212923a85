//! Builds graphs with inferred types.

use std::sync::Arc;

use crate::{
    Attr, Attrs, DType, Dim, Fact, Graph, InferCx, Module, NodeId, OpError, OpRef, Tensor,
    TensorType, Value,
};

/// Adds nodes to a function, inferring the type of each.
///
/// ```
/// # use brolly_ir::{DType, Module, TensorType};
/// let module = Module::new("example");
/// let mut b = module.builder("main");
/// let x = b.param("x", TensorType::new(DType::F32, [2i64, 3]))?;
/// let y = b.add(x, x)?;
/// b.output("y", y);
/// let graph = b.finish();
/// assert_eq!(graph.ty(y).to_string(), "f32[2, 3]");
/// # Ok::<(), brolly_ir::OpError>(())
/// ```
pub struct Builder<'m> {
    module: &'m Module,
    graph: Graph,
    loc: Arc<str>,
}

/// Results of a node that is written in another way; `None` of one that is copied.
type Written = Result<Option<Vec<Value>>, OpError>;

impl<'m> Builder<'m> {
    /// Starts an empty function.
    pub fn new(module: &'m Module, name: &str) -> Builder<'m> {
        Builder { module, graph: Graph::new(name), loc: "".into() }
    }

    /// Goes on with an existing function.
    pub fn resume(module: &'m Module, graph: Graph) -> Builder<'m> {
        Builder { module, graph, loc: "".into() }
    }

    /// The module that symbols, weights and callees are looked up in.
    pub fn module(&self) -> &'m Module {
        self.module
    }

    /// The graph so far.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The graph so far, to change.
    pub fn graph_mut(&mut self) -> &mut Graph {
        &mut self.graph
    }

    /// The finished function.
    pub fn finish(self) -> Graph {
        self.graph
    }

    /// Names the source node that the nodes added from here on come from.
    pub fn at(&mut self, loc: &str) {
        if &*self.loc != loc {
            self.loc = loc.into();
        }
    }

    /// The type of a value.
    pub fn ty(&self, v: Value) -> &TensorType {
        self.graph.ty(v)
    }

    /// What is known of a value.
    pub fn fact(&self, v: Value) -> &Fact {
        self.graph.fact(v)
    }

    /// Adds a node of any operator and returns its results.
    ///
    /// # Errors
    /// [`OpError`], prefixed with operator and source node.
    #[allow(clippy::needless_pass_by_value, reason = "attributes are built where they are passed")]
    pub fn op(
        &mut self,
        op: &str,
        attrs: Attrs,
        inputs: &[Option<Value>],
    ) -> Result<Vec<Value>, OpError> {
        let op = OpRef::find(op).ok_or_else(|| OpError::new(format!("unknown operator `{op}`")))?;
        let loc = self.loc.clone();
        let (attrs, results) = self.infer(op, &attrs, inputs).map_err(|e| {
            if loc.is_empty() {
                e.within(op.name())
            } else {
                e.within(format_args!("{} (node `{loc}`)", op.name()))
            }
        })?;
        let n = results.len();
        let node = self.graph.add(op, attrs, inputs, results, loc);
        Ok((0..n).map(|port| Value { node, port }).collect())
    }

    /// Infers what [`Builder::op`] would add, adding nothing.
    ///
    /// # Errors
    /// [`OpError`] where attributes or operands do not fit.
    pub fn infer(
        &self,
        op: OpRef,
        attrs: &Attrs,
        inputs: &[Option<Value>],
    ) -> Result<(Attrs, Vec<Fact>), OpError> {
        let attrs = op.signature().check_attrs(attrs)?;
        let present: Vec<bool> = inputs.iter().map(Option::is_some).collect();
        op.signature().check_operands(&present)?;
        let args: Vec<_> = inputs.iter().map(|v| v.map(|v| self.graph.fact(v))).collect();
        let callee = |name: &str| self.module.function(name).map(Graph::signature);
        let cx =
            InferCx { attrs: &attrs, args: &args, symbols: &self.module.symbols, callee: &callee };
        let facts = op.infer(&cx)?;
        facts.iter().try_for_each(|f| f.ty.check_extents(&self.module.symbols))?;
        Ok((attrs, facts))
    }

    /// Adds a node with one result and only required operands.
    ///
    /// # Errors
    /// As [`Builder::op`].
    pub fn op1(&mut self, op: &str, attrs: Attrs, inputs: &[Value]) -> Result<Value, OpError> {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        Ok(self.op(op, attrs, &inputs)?[0])
    }

    /// Adds a parameter.
    ///
    /// # Errors
    /// Where the name is taken or an extent is negative.
    pub fn param(&mut self, name: &str, ty: TensorType) -> Result<Value, OpError> {
        if self.graph.param(name).is_some() {
            return Err(OpError::new(format!("parameter `{name}` is declared twice")));
        }
        ty.check_extents(&self.module.symbols).map_err(|e| e.within(format!("`{name}`")))?;
        let attrs = Attrs::none().with("name", name);
        let node =
            self.graph.add(OpRef::named("param"), attrs, &[], vec![ty.into()], self.loc.clone());
        Ok(Value { node, port: 0 })
    }

    /// Reads a weight of the module.
    ///
    /// # Errors
    /// Where the module has none of that name, or an extent is negative.
    pub fn weight(&mut self, name: &str) -> Result<Value, OpError> {
        let ty = self.module.weights.get(name).cloned();
        let ty = ty.ok_or_else(|| OpError::new(format!("the module has no weight `{name}`")))?;
        ty.check_extents(&self.module.symbols).map_err(|e| e.within(format!("`{name}`")))?;
        let attrs = Attrs::none().with("name", name);
        let node =
            self.graph.add(OpRef::named("weight"), attrs, &[], vec![ty.into()], self.loc.clone());
        Ok(Value { node, port: 0 })
    }

    /// Calls a function of the module.
    ///
    /// # Errors
    /// Where it does not exist or the operands do not fit its parameters.
    pub fn call(&mut self, callee: &str, inputs: &[Value]) -> Result<Vec<Value>, OpError> {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        self.op("call", Attrs::none().with("callee", callee), &inputs)
    }

    /// Declares an output.
    pub fn output(&mut self, name: &str, value: Value) {
        self.graph.outputs.push((name.into(), value));
    }

    /// A constant tensor.
    ///
    /// # Errors
    /// None in practice.
    pub fn constant(&mut self, value: Tensor) -> Result<Value, OpError> {
        self.op1("constant", Attrs::none().with("value", value), &[])
    }

    /// A scalar constant.
    ///
    /// # Errors
    /// None in practice.
    pub fn scalar(&mut self, dtype: DType, value: f64) -> Result<Value, OpError> {
        self.constant(Tensor::from_f64s(dtype, &[], [value]))
    }

    /// A tensor of one value throughout.
    ///
    /// # Errors
    /// None in practice.
    pub fn full(&mut self, dtype: DType, value: f64, shape: &[Dim]) -> Result<Value, OpError> {
        let scalar = self.scalar(dtype, value)?;
        if shape.is_empty() {
            return Ok(scalar);
        }
        self.op1("broadcast_to", Attrs::none().with("shape", shape.to_vec()), &[scalar])
    }

    /// A function written anew under its name, with the same parameters and outputs; `write` as in
    /// [`inline_with`](Self::inline_with).
    ///
    /// # Errors
    /// As there.
    pub fn rewrite(
        module: &'m Module,
        graph: &Graph,
        write: impl FnMut(&mut Self, NodeId, &[Option<Value>]) -> Written,
    ) -> Result<Graph, OpError> {
        let mut b = Builder::new(module, &graph.name);
        let mut params = Vec::with_capacity(graph.params().len());
        for p in graph.param_values() {
            b.at(&graph.node(p.node).loc);
            params.push(b.param(graph.param_name(p.node), graph.ty(p).clone())?);
        }
        let outputs = b.inline_with(graph, &params, write)?;
        for ((name, _), v) in graph.outputs.iter().zip(outputs) {
            b.output(name, v);
        }
        Ok(b.finish())
    }

    /// Copies a graph's body in, its parameters bound to `args`, and returns its outputs.
    ///
    /// # Errors
    /// Where a node's types no longer fit.
    pub fn inline(&mut self, graph: &Graph, args: &[Value]) -> Result<Vec<Value>, OpError> {
        self.inline_with(graph, args, |_, _, _| Ok(None))
    }

    /// As [`inline`](Self::inline); `write` may write a node of the graph, with its operands here,
    /// and gives its results then.
    ///
    /// # Errors
    /// As [`inline`](Self::inline), and what `write` reports.
    pub fn inline_with(
        &mut self,
        graph: &Graph,
        args: &[Value],
        mut write: impl FnMut(&mut Self, NodeId, &[Option<Value>]) -> Written,
    ) -> Result<Vec<Value>, OpError> {
        let mut map: std::collections::BTreeMap<(NodeId, usize), Value> =
            graph.param_values().zip(args).map(|(p, a)| ((p.node, p.port), *a)).collect();
        for id in graph.topo() {
            let node = graph.node(id);
            if node.op.name() == "param" {
                continue;
            }
            let inputs: Vec<_> =
                node.inputs().iter().map(|v| v.map(|v| map[&(v.node, v.port)])).collect();
            self.at(&node.loc);
            let results = match write(self, id, &inputs)? {
                Some(results) => results,
                None if node.op.name() == "weight" => {
                    vec![self.weight(node.attrs.str("name"))?]
                }
                None => self.op(node.op.name(), node.attrs.clone(), &inputs)?,
            };
            for (port, v) in results.into_iter().enumerate() {
                map.insert((id, port), v);
            }
        }
        Ok(graph.outputs.iter().map(|(_, v)| map[&(v.node, v.port)]).collect())
    }
}

macro_rules! helpers {
    ($($(#[$doc:meta])* $name:ident($($arg:ident),+);)*) => {
        /// Operators without attributes.
        ///
        /// Each fails as [`Builder::op`] does.
        #[allow(clippy::missing_errors_doc, reason = "stated once above")]
        impl Builder<'_> {$(
            $(#[$doc])*
            pub fn $name(&mut self, $($arg: Value),+) -> Result<Value, OpError> {
                self.op1(stringify!($name), Attrs::none(), &[$($arg),+])
            }
        )*}
    };
}
helpers! {
    /// `a + b`, broadcast.
    add(a, b);
    /// `a - b`, broadcast.
    sub(a, b);
    /// `a · b` element by element, broadcast.
    mul(a, b);
    /// `a / b`, broadcast.
    div(a, b);
    /// Matrix product over the last two axes, leading axes broadcast.
    matmul(a, b);
    /// `-x`.
    neg(x);
    /// `exp(x)`.
    exp(x);
    /// `tanh(x)`.
    tanh(x);
    /// `cos(x)`.
    cos(x);
    /// `sin(x)`.
    sin(x);
    /// `cond ? a : b`, broadcast.
    select(cond, a, b);
}

/// Operators with attributes; each fails as [`Builder::op`] does.
#[allow(clippy::missing_errors_doc, reason = "stated once above")]
impl Builder<'_> {
    /// `x` as another element type.
    pub fn cast(&mut self, x: Value, to: DType) -> Result<Value, OpError> {
        if self.ty(x).dtype == to {
            return Ok(x);
        }
        self.op1("cast", Attrs::none().with("to", to), &[x])
    }

    /// `x` under another shape of as many elements.
    pub fn reshape(&mut self, x: Value, shape: Vec<Dim>) -> Result<Value, OpError> {
        self.op1("reshape", Attrs::none().with("shape", shape), &[x])
    }

    /// Axis `i` of the result is axis `perm[i]` of `x`.
    pub fn transpose(&mut self, x: Value, perm: &[i64]) -> Result<Value, OpError> {
        self.op1("transpose", Attrs::none().with("perm", perm.to_vec()), &[x])
    }

    /// `x[.., start..end, ..]` along one axis.
    pub fn slice(
        &mut self,
        x: Value,
        axis: i64,
        start: impl Into<Dim>,
        end: impl Into<Dim>,
    ) -> Result<Value, OpError> {
        let range = vec![start.into(), end.into()];
        self.op1("slice", Attrs::none().with("axis", axis).with("range", range), &[x])
    }

    /// Joins along an axis.
    pub fn concat(&mut self, xs: &[Value], axis: i64) -> Result<Value, OpError> {
        self.op1("concat", Attrs::none().with("axis", axis), xs)
    }

    /// Rows of `data` along `axis` picked by `indices`.
    pub fn gather(&mut self, data: Value, indices: Value, axis: i64) -> Result<Value, OpError> {
        self.op1("gather", Attrs::none().with("axis", axis), &[data, indices])
    }

    /// A named attribute-free unary operator, such as an activation.
    pub fn unary(&mut self, op: &str, x: Value) -> Result<Value, OpError> {
        self.op1(op, Attrs::none(), &[x])
    }

    /// A reduction (`reduce_sum`, `reduce_max`, ..) over axes.
    pub fn reduce(
        &mut self,
        op: &str,
        x: Value,
        axes: &[i64],
        keep: bool,
    ) -> Result<Value, OpError> {
        let attrs = Attrs::none().with("axes", axes.to_vec()).with("keep", Attr::Bool(keep));
        self.op1(op, attrs, &[x])
    }
}
