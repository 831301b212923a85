//! Brings functions into a normal form: what is known becomes a constant, equal nodes become one,
//! nodes without effect disappear.
//!
//! Every node is inferred anew. A value whose contents inference knows becomes a `constant` or,
//! where sizes are symbolic, a `size_vector`; operators over constants are evaluated by the
//! interpreter, within a budget of bytes and operations. Axes are counted from the front. What
//! remains needs no further simplification of shapes; everything else is the e-graph's work.

use std::{collections::BTreeMap, sync::Arc};

use indexmap::IndexMap;
use ir::{
    Attrs, Body, Builder, DType, Env, Fact, Graph, Interpreter, Module, OpError, OpRef, Precision,
    Tensor, TensorType, Value,
};

use crate::{PassError, egraph::count_axes_from_front};

/// Limits of constant folding.
#[derive(Clone, Copy, Debug)]
pub struct FoldLimits {
    /// Bytes of one folded value that is larger than what it is computed from.
    pub growth_bytes: i64,
    /// Bytes of all folded values of a function.
    pub total_bytes: i64,
    /// Floating point operations of one evaluation.
    pub flops: i64,
}

impl Default for FoldLimits {
    fn default() -> FoldLimits {
        FoldLimits { growth_bytes: 4 << 10, total_bytes: 16 << 20, flops: 10_000_000 }
    }
}

/// Brings every function into normal form. Parameters stay, used or not.
///
/// # Errors
/// Where a node does not type; names the function and the source node.
pub fn canonicalize(module: &mut Module, limits: FoldLimits) -> Result<(), PassError> {
    let names: Vec<Arc<str>> = module.functions.keys().cloned().collect();
    for name in names {
        let graph = rebuild(module, &module.functions[&name], limits)
            .map_err(|e| PassError::new(&name, e))?;
        module.add(graph);
    }
    Ok(())
}

type Key = (OpRef, Attrs, Vec<Option<Value>>);

struct Canonical<'m> {
    b: Builder<'m>,
    seen: BTreeMap<Key, Vec<Value>>,
    limits: FoldLimits,
    bytes_left: i64,
}

fn rebuild(module: &Module, graph: &Graph, limits: FoldLimits) -> Result<Graph, OpError> {
    let b = Builder::new(module, &graph.name);
    let mut c = Canonical { b, seen: BTreeMap::new(), limits, bytes_left: limits.total_bytes };
    let mut map: BTreeMap<Value, Value> = BTreeMap::new();
    for p in graph.param_values() {
        c.b.at(&graph.node(p.node).loc);
        map.insert(p, c.b.param(graph.param_name(p.node), graph.ty(p).clone())?);
    }
    for id in graph.topo() {
        let node = graph.node(id);
        if node.op.name() == "param" {
            continue;
        }
        c.b.at(&node.loc);
        let inputs: Vec<_> = node.inputs().iter().map(|v| v.map(|v| map[&v])).collect();
        for (port, v) in c.add(node.op, &node.attrs, inputs)?.into_iter().enumerate() {
            map.insert(Value { node: id, port }, v);
        }
    }
    for (name, v) in &graph.outputs {
        c.b.output(name, map[v]);
    }
    let mut graph = c.b.finish();
    graph.remove_dead();
    Ok(graph)
}

impl Canonical<'_> {
    fn add(
        &mut self,
        op: OpRef,
        attrs: &Attrs,
        mut inputs: Vec<Option<Value>>,
    ) -> Result<Vec<Value>, OpError> {
        inputs.resize(inputs.len().max(op.signature().operands.len()), None);
        if variadic(op) && inputs.last() == Some(&None) {
            inputs.pop();
        }
        let mut attrs = attrs.clone();
        if let Some(rank) = inputs.first().copied().flatten().map(|v| self.b.ty(v).rank()) {
            for (name, attr) in &mut attrs.0 {
                if let Some(front) = count_axes_from_front(name, attr, rank) {
                    *attr = front;
                }
            }
        }
        let key = (op, attrs, inputs);
        // What is gathered twice is so that it need not be kept from one use to the next.
        if matches!(op.body(), Body::Collective(_)) {
            return self.b.op(op.name(), key.1, &key.2);
        }
        if let Some(values) = self.seen.get(&key) {
            return Ok(values.clone());
        }
        let values = self.make(&key)?;
        self.seen.insert(key, values.clone());
        Ok(values)
    }

    fn make(&mut self, (op, attrs, inputs): &Key) -> Result<Vec<Value>, OpError> {
        if op.name() == "weight" {
            return Ok(vec![self.b.weight(attrs.str("name"))?]);
        }
        let facts = match self.b.infer(*op, attrs, inputs) {
            Ok((_, facts)) => facts,
            // Add for the message that names the source node.
            Err(_) => return self.b.op(op.name(), attrs.clone(), inputs),
        };
        if !matches!(op.name(), "constant" | "size_vector") {
            if let Some(v) = self.known(&facts)? {
                return Ok(vec![v]);
            }
            if let Some(value) = self.fold(*op, attrs, inputs, &facts) {
                let attrs = Attrs::none().with("value", value);
                return self.add(OpRef::named("constant"), &attrs, Vec::new());
            }
            if let Some(v) = self.identity(*op, attrs, inputs, &facts)? {
                return Ok(vec![v]);
            }
        }
        self.b.op(op.name(), attrs.clone(), inputs)
    }

    /// A value whose contents inference knows.
    fn known(&mut self, facts: &[Fact]) -> Result<Option<Value>, OpError> {
        let [fact] = facts else { return Ok(None) };
        let (op, attrs) = match (&fact.constant, &fact.dims) {
            (Some(t), _) => ("constant", Attrs::none().with("value", t.clone())),
            (None, Some(dims)) if fact.ty.dtype.is_int() => {
                let attrs = Attrs::none().with("sizes", dims.clone());
                let attrs = attrs.with("scalar", fact.ty.rank() == 0);
                ("size_vector", attrs.with("dtype", fact.ty.dtype))
            }
            _ => return Ok(None),
        };
        let op = OpRef::named(op);
        let attrs = op.signature().check_attrs(&attrs)?;
        Ok(self.add(op, &attrs, Vec::new())?.first().copied())
    }

    /// The value of an operator over constants, if it is within the limits.
    fn fold(
        &mut self,
        op: OpRef,
        attrs: &Attrs,
        inputs: &[Option<Value>],
        facts: &[Fact],
    ) -> Option<Tensor> {
        let [fact] = facts else { return None };
        // A broadcast is a view; what it repeats is smaller.
        let view = op.name() == "broadcast_to";
        if view || matches!(op.body(), Body::Structural) || inputs.iter().all(Option::is_none) {
            return None;
        }
        // What depends on sizes has a value in a run, not before.
        if !attrs.is_constant() {
            return None;
        }
        let args: Vec<Option<Tensor>> = inputs
            .iter()
            .map(|v| v.map(|v| self.b.fact(v).constant.clone().ok_or(())).transpose().ok())
            .collect::<Option<_>>()?;
        let types: Vec<Option<TensorType>> =
            inputs.iter().map(|v| v.map(|v| self.b.ty(v).clone())).collect();
        let own: i64 = types.iter().flatten().filter_map(|t| t.bytes().as_const()).sum();
        let bytes = fact.ty.bytes().as_const()?;
        let flops = op.flops(attrs, &types, std::slice::from_ref(&fact.ty)).as_const()?;
        let grows = bytes > own && bytes > self.limits.growth_bytes;
        if grows || bytes > self.bytes_left || flops > self.limits.flops {
            return None;
        }
        let module = Module::new("fold");
        let mut b = Builder::new(&module, "fold");
        let mut params = Vec::new();
        for (i, ty) in types.into_iter().enumerate() {
            params.push(ty.map(|ty| b.param(&i.to_string(), ty)).transpose().ok()?);
        }
        let results = b.op(op.name(), attrs.clone(), &params).ok()?;
        b.output("y", results[0]);
        let weights: IndexMap<Arc<str>, Tensor> = IndexMap::new();
        let args: Vec<Tensor> = args.into_iter().flatten().collect();
        let interpreter = Interpreter::new(&module, &weights, Precision::F32);
        let value = interpreter.eval(&b.finish(), &args, &Env::new()).ok()?.pop()?;
        self.bytes_left -= bytes;
        Some(value)
    }

    /// The operand, or the simpler operator, that a node without effect equals.
    fn identity(
        &mut self,
        op: OpRef,
        attrs: &Attrs,
        inputs: &[Option<Value>],
        facts: &[Fact],
    ) -> Result<Option<Value>, OpError> {
        let (Some(Some(x)), [fact]) = (inputs.first().copied(), facts) else { return Ok(None) };
        let same = *self.b.ty(x) == fact.ty;
        let inner = self.b.graph().node(x.node);
        let inner = (inner.op, inner.attrs.clone(), inner.inputs().first().copied().flatten());
        match (op.name(), &inner) {
            ("reshape" | "broadcast_to" | "cast", _) if same => Ok(Some(x)),
            ("concat", _) if inputs.len() == 1 => Ok(Some(x)),
            ("slice", _) if same && attrs.int("step") == 1 => Ok(Some(x)),
            ("transpose", _) if attrs.ints("perm").iter().zip(0..).all(|(p, i)| *p == i) => {
                Ok(Some(x))
            }
            ("reshape" | "broadcast_to", (below, _, Some(v))) if *below == op => {
                Ok(self.add(op, attrs, vec![Some(*v)])?.first().copied())
            }
            ("transpose", (below, under, Some(v))) if *below == op => {
                let perm = attrs.ints("perm").iter().filter_map(|p| usize::try_from(*p).ok());
                let perm: Vec<i64> = perm.map(|p| under.ints("perm")[p]).collect();
                let attrs = Attrs::none().with("perm", perm);
                Ok(self.add(op, &attrs, vec![Some(*v)])?.first().copied())
            }
            ("cast", (below, _, Some(v)))
                if *below == op
                    && *self.b.ty(*v) == fact.ty
                    && widens(self.b.ty(*v), self.b.ty(x)) =>
            {
                Ok(Some(*v))
            }
            ("select", _) => match (self.uniform(x), inputs) {
                (Some(cond), [_, Some(a), Some(b)]) => {
                    self.broadcast(if cond { *a } else { *b }, fact).map(Some)
                }
                _ => self.unbroadcast(op, attrs, inputs, fact),
            },
            ("and" | "or", _) => match self.logic(op, inputs, fact)? {
                Some(v) => Ok(Some(v)),
                None => self.unbroadcast(op, attrs, inputs, fact),
            },
            _ => self.unbroadcast(op, attrs, inputs, fact),
        }
    }

    /// `and` with true, `or` with false.
    fn logic(
        &mut self,
        op: OpRef,
        inputs: &[Option<Value>],
        fact: &Fact,
    ) -> Result<Option<Value>, OpError> {
        let neutral = Some(op.name() == "and");
        let [Some(a), Some(b)] = *inputs else { return Ok(None) };
        match [(a, b), (b, a)].into_iter().find(|(_, c)| self.uniform(*c) == neutral) {
            Some((x, _)) => self.broadcast(x, fact).map(Some),
            None => Ok(None),
        }
    }

    /// The one value of a constant condition.
    fn uniform(&self, v: Value) -> Option<bool> {
        let values = self.b.fact(v).constant.as_ref()?.to_i64s();
        let first = *values.first()?;
        values.iter().all(|v| *v == first).then_some(first != 0)
    }

    fn broadcast(&mut self, x: Value, to: &Fact) -> Result<Value, OpError> {
        let attrs = Attrs::none().with("shape", to.ty.shape.to_vec());
        Ok(self.add(OpRef::named("broadcast_to"), &attrs, vec![Some(x)])?[0])
    }

    /// An elementwise operator over operands before they were broadcast, itself broadcast where
    /// that makes a difference.
    fn unbroadcast(
        &mut self,
        op: OpRef,
        attrs: &Attrs,
        inputs: &[Option<Value>],
        fact: &Fact,
    ) -> Result<Option<Value>, OpError> {
        if !op.is_elementwise() {
            return Ok(None);
        }
        let narrow = |v: &Option<Value>| {
            let node = self.b.graph().node((*v)?.node);
            if node.op.name() == "broadcast_to" { node.inputs()[0] } else { *v }
        };
        let without: Vec<_> = inputs.iter().map(narrow).collect();
        if without == inputs || self.b.infer(op, attrs, &without).is_err() {
            return Ok(None);
        }
        let small = self.add(op, attrs, without)?[0];
        self.broadcast(small, fact).map(Some)
    }
}

fn variadic(op: OpRef) -> bool {
    op.signature().operands.last().is_some_and(|o| o.arity == ir::Arity::Variadic)
}

/// Whether every value of the first type is one of the second.
fn widens(from: &TensorType, to: &TensorType) -> bool {
    use DType::{Bf16, Bool, F16, F32, F64, I8, I16, I32, I64};
    match from.dtype {
        Bf16 | F16 => matches!(to.dtype, F32 | F64),
        F32 => to.dtype == F64,
        Bool => matches!(to.dtype, I8 | I16 | I32 | I64 | F32 | F64),
        I32 => matches!(to.dtype, I64 | F64),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use ir::{Attr, Dim};

    use super::*;

    fn run(build: impl FnOnce(&mut Builder<'_>)) -> Graph {
        let mut module = Module::new("m");
        module.symbol("T", 1, 64);
        let mut b = module.builder("f");
        build(&mut b);
        let graph = b.finish();
        module.add(graph);
        canonicalize(&mut module, FoldLimits::default()).unwrap();
        ir::verify(&module).unwrap();
        module.functions["f"].clone()
    }

    fn ops(g: &Graph) -> Vec<&'static str> {
        g.topo().into_iter().map(|n| g.node(n).op.name()).filter(|n| *n != "param").collect()
    }

    #[test]
    fn shape_arithmetic_and_constants_fold() {
        let g = run(|b| {
            let x =
                b.param("x", TensorType::new(DType::F32, [Dim::symbol("T"), 6.into()])).unwrap();
            let shape = b.op1("shape_of", Attrs::none().with("end", 1i64), &[x]).unwrap();
            let two = b.constant(Tensor::from_i64s(DType::I64, &[1], [2])).unwrap();
            let doubled = b.mul(shape, two).unwrap();
            b.output("sizes", doubled);
            let half = b.scalar(DType::F32, 0.5).unwrap();
            let quarter = b.mul(half, half).unwrap();
            let y = b.mul(x, quarter).unwrap();
            b.output("y", y);
        });
        assert_eq!(ops(&g), ["size_vector", "constant", "mul"]);
        let sizes = g.node(g.outputs[0].1.node);
        assert_eq!(sizes.attrs.get("sizes"), Some(&Attr::from(vec![Dim::symbol("T") * 2.into()])));
        let mul = g.node(g.outputs[1].1.node);
        assert_eq!(g.fact(mul.input(1)).constant.as_ref().unwrap().to_f64s(), [0.25]);
    }

    #[test]
    fn nodes_without_effect_and_repetitions_go() {
        let g = run(|b| {
            let x = b.param("x", TensorType::new(DType::F32, [2i64, 3])).unwrap();
            let t = b.transpose(x, &[1, 0]).unwrap();
            let t = b.transpose(t, &[-1, 0]).unwrap();
            let r = b.reshape(t, vec![6.into()]).unwrap();
            let r = b.reshape(r, vec![2.into(), 3.into()]).unwrap();
            let s = b.slice(r, 1, 0i64, 3i64).unwrap();
            let [p, q] = [0, 1].map(|_| b.exp(s).unwrap());
            let y = b.add(p, q).unwrap();
            b.output("y", y);
        });
        assert_eq!(ops(&g), ["exp", "add"]);
        let add = g.node(g.outputs[0].1.node);
        assert_eq!(add.input(0), add.input(1));
    }

    #[test]
    fn broadcasts_move_behind_arithmetic() {
        let g = run(|b| {
            let m = b.param("m", TensorType::new(DType::Bool, [2i64, 1, 5])).unwrap();
            let shape: Vec<Dim> = vec![2.into(), 4.into(), 5.into()];
            let all = b.constant(Tensor::from_i64s(DType::Bool, &[], [1])).unwrap();
            let wide = Attrs::none().with("shape", shape);
            let all = b.op1("broadcast_to", wide, &[all]).unwrap();
            let m = b.op1("and", Attrs::none(), &[all, m]).unwrap();
            let (zero, low) =
                (b.scalar(DType::F32, 0.0).unwrap(), b.scalar(DType::F32, -1e38).unwrap());
            let bias = b.select(m, zero, low).unwrap();
            b.output("y", bias);
        });
        assert_eq!(ops(&g), ["constant", "constant", "select", "broadcast_to"]);
    }

    #[test]
    fn operands_are_not_broadcast_twice() {
        let g = run(|b| {
            let x = b.param("x", TensorType::new(DType::F32, [2i64, 3])).unwrap();
            let w = b.param("w", TensorType::new(DType::F32, [3i64])).unwrap();
            let shape: Vec<Dim> = vec![2.into(), 3.into()];
            let w = b.op1("broadcast_to", Attrs::none().with("shape", shape), &[w]).unwrap();
            let y = b.mul(w, x).unwrap();
            b.output("y", y);
        });
        assert_eq!(ops(&g), ["mul"]);
    }

    #[test]
    fn folding_keeps_to_its_budget() {
        let g = run(|b| {
            let one = b.scalar(DType::F32, 1.0).unwrap();
            let shape: Vec<Dim> = vec![1024.into(), 1024.into()];
            let big = b.op1("broadcast_to", Attrs::none().with("shape", shape), &[one]).unwrap();
            b.output("y", big);
        });
        assert_eq!(ops(&g), ["constant", "broadcast_to"]);
    }

    #[test]
    fn a_constant_is_not_evaluated_at_a_symbolic_place() {
        let g = run(|b| {
            let c = b.constant(Tensor::from_i64s(DType::I64, &[80], 0..80)).unwrap();
            let start = Dim::symbol("T");
            let y = b.slice(c, 0, start.clone(), start + 4.into()).unwrap();
            b.output("y", y);
        });
        assert_eq!(ops(&g), ["constant", "slice"]);
    }
}
