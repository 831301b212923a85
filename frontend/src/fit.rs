//! Refuses graphs with tensors that no memory can hold.

use ir::{Module, TensorType};

/// The largest tensor: what one process can address on the machines that are compiled for.
const MAX_TENSOR_BYTES: i64 = 1 << 47;

/// Names every function, node and type whose bytes under the symbols' bounds fit nowhere.
pub(crate) fn oversized(module: &Module) -> Vec<String> {
    let mut out = Vec::new();
    let too_large = |ty: &TensorType| {
        let bytes = ty.bytes().bounds(&module.symbols).hi;
        (bytes > MAX_TENSOR_BYTES).then(|| {
            let limit = MAX_TENSOR_BYTES;
            format!("{ty} takes up to {bytes} bytes, more than the {limit} that fit anywhere")
        })
    };
    for graph in module.functions.values() {
        for id in graph.topo() {
            let node = graph.node(id);
            let at = if node.loc.is_empty() { node.op.name() } else { &*node.loc };
            let results = node.results().iter().filter_map(|f| too_large(&f.ty));
            out.extend(results.map(|why| format!("function `{}`, `{at}`: {why}", graph.name)));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use ir::DType;

    use super::*;

    #[test]
    fn sizes_are_judged_at_their_bounds() {
        let oversized_up_to = |hi: i64| {
            let mut module = Module::new("m");
            module.symbol("N", 1, hi);
            let mut b = module.builder("f");
            let n = ir::Dim::symbol("N");
            let x = b.param("x", TensorType::new(DType::F32, [n.clone(), n])).unwrap();
            b.at("the input");
            let y = b.neg(x).unwrap();
            b.output("y", y);
            let graph = b.finish();
            module.add(graph);
            oversized(&module)
        };
        assert!(oversized_up_to(1 << 22).is_empty());
        let found = oversized_up_to(1 << 40);
        assert_eq!(found.len(), 2);
        assert!(
            found[1].starts_with("function `f`, `the input`: f32[N, N] takes up to"),
            "{found:?}"
        );
    }
}
