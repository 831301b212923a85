//! A language model with its loss: the forward pass that training differentiates.

use std::collections::BTreeMap;

use ir::{Attr, Attrs, Builder, DType, Dim, Graph, Module, NodeId, OpError, TensorType, Value};

use crate::PassError;

/// Name of the function, and of the output to differentiate.
pub(super) const LOSS: &str = "loss";

/// Name of the output that is reported.
pub(super) const TOTAL: &str = "total";

/// What names of outputs begin with that are not finite where something behind them is not.
pub(super) const PROBE: &str = "probe.";

/// The function `loss`: `source`, which gives `logits [R, V]` for `logit_rows i32[R]`, with
/// `targets i32[R]` and `scale f32[]` as further parameters. Its outputs are `total f32[]`, the sum
/// of the rows' cross-entropies, and `loss f32[]`, that times `scale`. A target that is no token,
/// such as -100, has a loss of zero. Further outputs `probe.N.PLACE f32[]` sum what comes out of
/// the embeddings, of each layer and into the head, in this order.
///
/// Where a product with a matrix of the vocabulary gives the logits, the two become one operator,
/// which never has all logits in memory.
pub(super) fn with_loss(module: &Module, source: &Graph) -> Result<Graph, PassError> {
    let wrap = |e: OpError| PassError::new(&source.name, e);
    let missing = |what: &str| PassError::new(&source.name, format!("has no {what}"));
    let mut b = Builder::new(module, LOSS);
    let mut map: BTreeMap<Value, Value> = BTreeMap::new();
    for p in source.param_values() {
        let v = b.param(source.param_name(p.node), source.ty(p).clone()).map_err(wrap)?;
        map.insert(p, v);
    }
    let rows = b.graph().param("logit_rows").ok_or_else(|| missing("parameter `logit_rows`"))?;
    let rows = b.ty(rows).clone();
    let targets = b.param("targets", TensorType::new(DType::I32, rows.shape)).map_err(wrap)?;
    let scale = b.param("scale", TensorType::new(DType::F32, Vec::<Dim>::new())).map_err(wrap)?;
    let logits = source.outputs.iter().find(|(name, _)| &**name == "logits");
    let logits = logits.ok_or_else(|| missing("output `logits`"))?.1;
    let head = Head::of(source, logits);
    for id in source.topo() {
        let node = source.node(id);
        let is_replaced = head.is_some() && id == logits.node;
        if node.op.name() == "param" || is_replaced {
            continue;
        }
        b.at(&node.loc);
        let inputs: Vec<_> = node.inputs().iter().map(|v| v.map(|v| map[&v])).collect();
        let results = match weight_name(source, id) {
            Some(name) => vec![b.weight(name).map_err(wrap)?],
            None => b.op(node.op.name(), node.attrs.clone(), &inputs).map_err(wrap)?,
        };
        for (port, v) in results.into_iter().enumerate() {
            map.insert(Value { node: id, port }, v);
        }
    }
    for (i, v) in places(source, head.as_ref()).into_iter().enumerate() {
        b.at(&source.node(v.node).loc);
        let sum = total_of(&mut b, map[&v]).map_err(wrap)?;
        b.output(&format!("{PROBE}{i}.{}", source.node(v.node).loc), sum);
    }
    b.at("loss");
    let loss = match head {
        Some(Head { x, w, lie }) => {
            let w = lie.of(&mut b, map[&w]).map_err(wrap)?;
            let args = [map[&x], w, targets].map(Some);
            b.op("linear_cross_entropy", Attrs::none(), &args).map_err(wrap)?[0]
        }
        None => cross_entropy(&mut b, map[&logits], targets).map_err(wrap)?,
    };
    let total = b.reduce("reduce_sum", loss, &[0], false).map_err(wrap)?;
    b.output(TOTAL, total);
    let loss = b.mul(total, scale).map_err(wrap)?;
    b.output(LOSS, loss);
    Ok(b.finish())
}

/// Values of the forward pass that are looked at: of rows of tables, of layers, and what the head
/// reads.
fn places(source: &Graph, head: Option<&Head>) -> Vec<Value> {
    let mut places = Vec::new();
    for id in source.topo() {
        let node = source.node(id);
        let v = Value { node: id, port: 0 };
        let is_place = matches!(node.op.name(), "call" | "gather")
            && source.ty(v).dtype.is_float()
            && !node.loc.is_empty();
        if is_place || head.is_some_and(|head| head.x == v) {
            places.push(v);
        }
    }
    places
}

/// The sum of all elements, in f32.
fn total_of(b: &mut Builder<'_>, x: Value) -> Result<Value, OpError> {
    let mut sum = b.cast(x, DType::F32)?;
    while b.ty(sum).rank() > 0 {
        sum = b.reduce("reduce_sum", sum, &[-1], false)?;
    }
    Ok(sum)
}

/// A product that gives logits.
struct Head {
    /// `[R, K]`.
    x: Value,
    w: Value,
    lie: Lie,
}

/// How a matrix of the vocabulary lies.
enum Lie {
    /// `[N, K]`.
    Rows,
    /// `[K, N]`.
    Columns,
    /// `[ceil(N / 16), K, 16]`.
    Packed(i64),
}

impl Head {
    fn of(graph: &Graph, logits: Value) -> Option<Head> {
        let node = graph.node(logits.node);
        if !graph.users(logits.node).is_empty() {
            return None;
        }
        let is_plain = |attrs: &Attrs| attrs.str("act") == "none";
        let input = |i: usize| node.inputs().get(i).copied().flatten();
        let (x, w) = (input(0)?, input(1)?);
        if graph.ty(x).rank() != 2 {
            return None;
        }
        let (w, lie) = match node.op.name() {
            "matmul" if graph.ty(w).rank() == 2 => (w, Lie::Columns),
            "linear" if is_plain(&node.attrs) && input(2).is_none() && input(3).is_none() => {
                let packed = graph.node(w.node);
                match packed.op.name() {
                    "pack" => (packed.input(0), Lie::Columns),
                    _ => (w, Lie::Packed(node.attrs.int("n"))),
                }
            }
            _ => return None,
        };
        let of = graph.node(w.node);
        let turned = of.op.name() == "transpose" && of.attrs.ints("perm") == [1, 0];
        Some(match lie {
            Lie::Columns if turned => Head { x, w: of.input(0), lie: Lie::Rows },
            lie => Head { x, w, lie },
        })
    }
}

impl Lie {
    /// The matrix as `[N, K]`.
    fn of(&self, b: &mut Builder<'_>, w: Value) -> Result<Value, OpError> {
        match self {
            Lie::Rows => Ok(w),
            Lie::Columns => b.transpose(w, &[1, 0]),
            Lie::Packed(n) => {
                let w = b.transpose(w, &[0, 2, 1])?;
                let [panels, lanes, k] = &*b.ty(w).shape.clone() else {
                    return Err(OpError::new("is no packed matrix"));
                };
                let shape = vec![panels.clone() * lanes.clone(), k.clone()];
                let w = b.reshape(w, shape)?;
                b.slice(w, 0, 0i64, *n)
            }
        }
    }
}

/// `logsumexp(logits) - logits[target]` of each row.
fn cross_entropy(b: &mut Builder<'_>, logits: Value, targets: Value) -> Result<Value, OpError> {
    let logits = b.cast(logits, DType::F32)?;
    let [rows, vocabulary] = &*b.ty(logits).shape.clone() else {
        return Err(OpError::new("`logits` is no matrix"));
    };
    let total = b.unary("logsumexp", logits)?;
    let zero = b.scalar(DType::I32, 0.0)?;
    let bound = Attrs::none()
        .with("sizes", vec![vocabulary.clone()])
        .with("scalar", true)
        .with("dtype", DType::I32);
    let bound = b.op1("size_vector", bound, &[])?;
    let is_low = b.op1("less", Attrs::none(), &[targets, zero])?;
    let is_below = b.op1("less", Attrs::none(), &[targets, bound])?;
    let kept = b.op1("select", Attrs::none(), &[is_low, zero, targets])?;
    let kept = b.op1("select", Attrs::none(), &[is_below, kept, zero])?;
    let column = b.reshape(kept, vec![rows.clone(), 1.into()])?;
    let picked = b.op1("gather_elements", Attrs::none().with("axis", 1i64), &[logits, column])?;
    let picked = b.reshape(picked, vec![rows.clone()])?;
    let loss = b.sub(total, picked)?;
    let nothing = b.scalar(DType::F32, 0.0)?;
    let loss = b.op1("select", Attrs::none(), &[is_below, loss, nothing])?;
    b.op1("select", Attrs::none(), &[is_low, nothing, loss])
}

/// Whether a node is a weight of that name.
pub(super) fn weight_name(graph: &Graph, id: NodeId) -> Option<&str> {
    let node = graph.node(id);
    match node.attrs.get("name") {
        Some(Attr::Str(name)) if node.op.name() == "weight" => Some(name),
        _ => None,
    }
}
