//! The head of a language model and its loss, forward and backward at once.
//!
//! Forward and backward by themselves compute logits twice, for there is no tensor of all of them
//! in between. In a training step the loss's cotangent is known before the loss, so rows go in
//! chunks: `linear_cross_entropy_dlogits` gives a chunk's losses and the gradients of its logits,
//! and `linear_grad` those of x and w, which are three products instead of five. Liu et al. 2024,
//! "Liger Kernel", arXiv:2410.10989.
//!
//! Gradients of a chunk's logits are the one thing of that size in memory: a chunk has about so
//! many bytes of them, but at least so many rows that products are worth their name ([`Chunk`]).
//! The gradient of w is the sum over chunks, the first one first.
//!
//! On GPUs with narrow weights the two become a product and `cross_entropy`
//! ([`crate::mix_precision`]), so that the logits of a loss alone are in memory too, and go in the
//! same chunks.

use ir::{Attrs, Builder, CudaTarget, Dim, Graph, Module, NodeId, OpError, Value};

use crate::norm_residuals::follows;

/// How large a chunk is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    /// Bytes of the gradients of its logits, about.
    bytes: i64,
    /// Rows, at least.
    rows: i64,
    /// Whether the logits of a loss without a gradient are in memory too.
    of_losses: bool,
}

impl Chunk {
    /// A CPU's fits in its cache. A GPU's has rows enough for all of its multiprocessors, each of
    /// which has blocks of rows.
    pub(super) fn of(gpu: Option<CudaTarget>) -> Chunk {
        match gpu {
            None => Chunk { bytes: 16 << 20, rows: 256, of_losses: false },
            Some(_) => Chunk { bytes: 4 << 30, rows: 4096, of_losses: true },
        }
    }

    /// Rows of a chunk, for so many words.
    fn size(self, module: &Module, words: &Dim) -> i64 {
        let each = words.bounds(&module.symbols).hi.max(1);
        (self.bytes / 4 / each).max(self.rows)
    }
}

/// The same graph, where it computes the gradient of `linear_cross_entropy` with its logits
/// computed once.
pub(super) fn fuse_head(module: &Module, graph: &Graph, chunk: Chunk) -> Result<Graph, OpError> {
    let Some(pair) = Pair::of(graph) else { return Ok(graph.clone()) };
    let words = &graph.ty(graph.node(pair.backward).input(1)).shape[0];
    in_chunks(module, graph, pair, chunk.size(module, words))
}

/// The same graph, where losses without gradients go in chunks if their logits are in memory.
pub(super) fn chunk_losses(module: &Module, graph: &Graph, chunk: Chunk) -> Result<Graph, OpError> {
    let mut graph = Builder::rewrite(module, graph, |b, id, inputs| {
        let ("linear_cross_entropy", true) = (graph.node(id).op.name(), chunk.of_losses) else {
            return Ok(None);
        };
        let [x, w, targets] = [0, 1, 2].map(|i| inputs[i].expect("operand"));
        let (rows, words) = (b.ty(x).shape[0].clone(), b.ty(w).shape[0].clone());
        let most = rows.bounds(&module.symbols).hi;
        let mut parts = [Vec::new(), Vec::new()];
        for range in chunks(&rows, most, chunk.size(module, &words)) {
            let [x, targets] = [part(b, x, range.as_ref())?, part(b, targets, range.as_ref())?];
            let head = b.op("linear_cross_entropy", Attrs::none(), &[x, w, targets].map(Some))?;
            parts.iter_mut().zip(head).for_each(|(parts, result)| parts.push(result));
        }
        let [losses, lse] = parts;
        Ok(Some(vec![join(b, &losses, &rows)?, join(b, &lse, &rows)?]))
    })?;
    graph.remove_dead();
    Ok(graph)
}

/// Rows of a value.
fn part(b: &mut Builder<'_>, v: Value, range: Option<&[Dim; 2]>) -> Result<Value, OpError> {
    match range {
        Some([first, end]) => b.slice(v, 0, first.clone(), end.clone()),
        None => Ok(v),
    }
}

/// All rows, of chunks.
fn join(b: &mut Builder<'_>, parts: &[Value], rows: &Dim) -> Result<Value, OpError> {
    match parts {
        [one] => Ok(*one),
        // That the chunks are all rows does not follow from the form of their sizes.
        parts => b.concat(parts, 0).and_then(|all| b.slice(all, 0, 0i64, rows.clone())),
    }
}

/// In chunks of `size` rows.
fn in_chunks(module: &Module, graph: &Graph, pair: Pair, size: i64) -> Result<Graph, OpError> {
    let Pair { forward, backward } = pair;
    let [x, w, targets, dloss] = [0, 1, 2, 4].map(|i| graph.node(backward).input(i));
    let loc = graph.node(forward).loc.clone();
    let mut b = Builder::resume(module, graph.clone());
    b.at(&loc);
    let rows = b.ty(x).shape[0].clone();
    let (mut losses, mut dxs, mut dw) = (Vec::new(), Vec::new(), None);
    for range in chunks(&rows, rows.bounds(&module.symbols).hi, size) {
        let mut part = |v: Value| part(&mut b, v, range.as_ref());
        let [x, targets, dloss] = [part(x)?, part(targets)?, part(dloss)?];
        let args = [x, w, targets, dloss].map(Some);
        let head = b.op("linear_cross_entropy_dlogits", Attrs::none(), &args)?;
        let grads = b.op("linear_grad", Attrs::none(), &[head[1], x, w].map(Some))?;
        losses.push(head[0]);
        dxs.push(grads[0]);
        dw = Some(match dw {
            Some(sum) => b.add(sum, grads[1])?,
            None => grads[1],
        });
    }
    let (loss, dx) = (join(&mut b, &losses, &rows)?, join(&mut b, &dxs, &rows)?);
    let dx = b.cast(dx, graph.ty(x).dtype)?;
    let dw = b.cast(dw.expect("there is a chunk"), graph.ty(w).dtype)?;
    let mut graph = b.finish();
    for (node, port, new) in [(forward, 0, loss), (backward, 0, dx), (backward, 1, dw)] {
        graph.replace_uses(Value { node, port }, new);
    }
    graph.remove_dead();
    Ok(graph)
}

/// Chunks of so many of at most `most` rows; `None` is all of them.
fn chunks(rows: &Dim, most: i64, size: i64) -> Vec<Option<[Dim; 2]>> {
    if most <= size {
        return vec![None];
    }
    let chunk = |first: i64| {
        let [from, size] = [first, size].map(Dim::from);
        // Written so that the bounds of its length are no wider than a chunk.
        let length = (rows.clone() - from.clone()).maximum(&Dim::from(0)).minimum(&size);
        let from = if first == 0 { from } else { rows.minimum(&from) };
        Some([from.clone(), from + length])
    };
    (0..).map(|i| i * size).take_while(|first| *first < most).map(chunk).collect()
}

/// A loss and its gradient, which alone reads the logarithms, and whose cotangent does not follow
/// from the loss.
#[derive(Clone, Copy)]
struct Pair {
    forward: NodeId,
    backward: NodeId,
}

impl Pair {
    fn of(graph: &Graph) -> Option<Pair> {
        let named = |name: &str| {
            let mut nodes = graph.topo().into_iter().filter(|id| graph.node(*id).op.name() == name);
            nodes.next().filter(|_| nodes.next().is_none())
        };
        let forward = named("linear_cross_entropy")?;
        let backward = named("linear_cross_entropy_grad")?;
        let lse = Value { node: forward, port: 1 };
        let reads = |id: &NodeId| graph.node(*id).inputs().contains(&Some(lse));
        let readers: Vec<NodeId> = graph.users(forward).into_iter().filter(reads).collect();
        let [own, others] = [forward, backward].map(|id| &graph.node(id).inputs()[..3]);
        let fits = own == others
            && readers == [backward]
            && graph.outputs.iter().all(|(_, v)| *v != lse)
            && !follows(graph, graph.node(backward).input(4), forward);
        fits.then_some(Pair { forward, backward })
    }
}

#[cfg(test)]
mod tests;
