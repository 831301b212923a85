//! What collectives have in common: the axis of the mesh along which ranks meet, and how the
//! elements of a tensor are split among them.

use crate::{
    Attr, Attrs, DType, Dim, EvalCx, InferCx, OpError, Sample, Tensor,
    op::{AttrKind, AttrSpec, required},
    ops::elementwise::spread,
};

/// Name of the mesh's axis; the ranks that meet differ along it alone.
pub(super) const AXIS: AttrSpec = required("axis", AttrKind::Str);

/// How many ranks meet.
pub(super) const RANKS: AttrSpec = required("ranks", AttrKind::Int);

/// The part of a tensor, in row-major order, that one rank of an axis holds.
///
/// Parts are as even as can be: the first `elements % ranks` have one element more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// First element.
    pub start: Dim,
    /// Number of elements.
    pub len: Dim,
}

impl Shard {
    /// The symbol that a program has for its rank's place along an axis.
    pub fn symbol(axis: &str) -> String {
        format!("{axis}_rank")
    }

    /// The part of so many elements that the rank holds which [`symbol`](Self::symbol) names.
    pub fn of(elements: i64, axis: &str, ranks: i64) -> Shard {
        if ranks <= 1 {
            return Shard { start: Dim::from(0), len: Dim::from(elements) };
        }
        let (least, longer) = (elements / ranks, elements % ranks);
        let rank = Dim::symbol(&Shard::symbol(axis));
        if longer == 0 {
            return Shard { start: rank * Dim::from(least), len: Dim::from(least) };
        }
        let before = rank.minimum(&Dim::from(longer));
        let left = (Dim::from(longer) - rank.clone()).maximum(&Dim::from(0));
        Shard {
            start: rank * Dim::from(least) + before,
            len: Dim::from(least) + left.minimum(&Dim::from(1)),
        }
    }
}

/// The number of ranks.
pub(super) fn ranks(cx: &InferCx<'_>) -> Result<i64, OpError> {
    let ranks = cx.attrs.int("ranks");
    let is_known = ranks == 1 || cx.symbols.contains_key(&*Shard::symbol(cx.attrs.str("axis")));
    match ranks {
        ..=0 => Err(OpError::attr("ranks", format!("is {ranks}: nobody meets"))),
        _ if !is_known => {
            let symbol = Shard::symbol(cx.attrs.str("axis"));
            Err(OpError::attr("axis", format!("has no symbol `{symbol}` in the module")))
        }
        _ => Ok(ranks),
    }
}

/// Elements of a tensor that is split, which must be a constant.
pub(super) fn elements(shape: &[Dim]) -> Result<i64, OpError> {
    let product = shape.iter().try_fold(1i64, |n, d| n.checked_mul(d.as_const()?));
    product.ok_or_else(|| OpError::new(format!("splits tensors of constant size, not {shape:?}")))
}

/// Whether elements can be added up.
pub(super) fn check_sum(dtype: DType) -> Result<(), OpError> {
    match dtype {
        DType::F64 | DType::F32 | DType::Bf16 | DType::F16 | DType::I64 | DType::I32 => Ok(()),
        _ => Err(OpError::new(format!("there is no sum of {dtype} over ranks"))),
    }
}

/// The sum of all ranks' tensors, first rank first: f32 where they are narrower, rounded once.
pub(super) fn sum(dtype: DType, of_ranks: &[&Tensor]) -> Tensor {
    let shape = of_ranks[0].shape();
    if matches!(dtype, DType::I32 | DType::I64) {
        let mut all = of_ranks[0].to_i64s();
        for x in &of_ranks[1..] {
            all.iter_mut().zip(x.to_i64s()).for_each(|(sum, x)| *sum = sum.wrapping_add(x));
        }
        return Tensor::from_i64s(dtype, shape, all);
    }
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let round = |x: f64| match wide {
        DType::F64 => x,
        #[allow(clippy::cast_possible_truncation, reason = "sums are in f32")]
        _ => f64::from(x as f32),
    };
    let mut all = of_ranks[0].to_f64s();
    for x in &of_ranks[1..] {
        all.iter_mut().zip(x.to_f64s()).for_each(|(sum, x)| *sum = round(*sum + x));
    }
    Tensor::from_f64s(dtype, shape, all)
}

/// The elements `start..start + len` in row-major order, as a vector.
pub(super) fn part(x: &Tensor, start: usize, len: usize) -> Tensor {
    let flat = x.reshape(&[x.len()]);
    flat.slice(0, start, len, 1)
}

/// The operand of each rank.
pub(super) fn of_ranks(args: &[Vec<Option<Tensor>>]) -> Vec<&Tensor> {
    args.iter().map(|args| args[0].as_ref().expect("operand")).collect()
}

/// Samples of a world of one rank.
pub(super) fn samples(with: impl Fn(Attrs, &[usize]) -> (Attrs, Vec<usize>)) -> Vec<Sample> {
    let shapes: [(&[usize], DType); 3] =
        [(&[3, 5], DType::F32), (&[4], DType::Bf16), (&[2, 0], DType::F32)];
    let sample = |(shape, dtype): (&[usize], DType)| {
        let attrs = Attrs::none().with("axis", "data").with("ranks", Attr::Int(1));
        let (attrs, shape) = with(attrs, shape);
        Sample { attrs, args: vec![Some(spread(dtype, &shape, -1.0, 1.0))] }
    };
    shapes.map(sample).into()
}

/// First element and number of elements of each rank's part, by the values of this run.
pub(super) fn parts(elements: usize, cx: &EvalCx<'_>) -> Vec<(usize, usize)> {
    let ranks = usize::try_from(cx.attrs.int("ranks")).unwrap_or(1);
    let (least, longer) = (elements / ranks, elements % ranks);
    let start = |rank: usize| rank * least + rank.min(longer);
    (0..ranks).map(|rank| (start(rank), start(rank + 1) - start(rank))).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Interpreter, Module, Precision, Ranks, TensorType};

    #[test]
    fn parts_are_even_and_cover_all() {
        for ranks in 1i64..9 {
            for elements in 0..40 {
                let mut end = 0;
                for rank in 0..ranks {
                    let env = [(Arc::from("data_rank"), rank)].into();
                    let shard = Shard::of(elements, "data", ranks);
                    let (start, len) = (shard.start.eval(&env), shard.len.eval(&env));
                    assert_eq!(start.unwrap(), end);
                    end += len.unwrap();
                }
                assert_eq!(end, elements);
            }
        }
    }

    #[test]
    fn a_length_has_close_bounds() {
        let mut module = Module::new("m");
        module.symbol("data_rank", 0, 3);
        let bounds = |n| Shard::of(n, "data", 4).len.bounds(&module.symbols);
        assert_eq!((bounds(8).lo, bounds(8).hi), (2, 2));
        assert_eq!((bounds(11).lo, bounds(11).hi), (2, 3));
        assert_eq!((bounds(3).lo, bounds(3).hi), (0, 1));
    }

    /// A function of one operand over `ranks` ranks of the axis `data`, evaluated on all of them.
    fn run(
        ranks: usize,
        shape: &[usize],
        build: impl Fn(&mut crate::Builder<'_>, crate::Value) -> Vec<crate::Value>,
    ) -> Vec<Vec<Tensor>> {
        let mut module = Module::new("m");
        module.symbol("data_rank", 0, ranks as i64 - 1);
        let mut b = module.builder("main");
        let x = b.param("x", TensorType::new(DType::F32, shape.iter().copied())).unwrap();
        for (i, v) in build(&mut b, x).into_iter().enumerate() {
            b.output(&i.to_string(), v);
        }
        let graph = b.finish();
        module.add(graph);
        crate::verify(&module).unwrap();
        let x = |rank: usize| spread(DType::F32, shape, 0.1 + rank as f64, 1.7 * rank as f64);
        let inputs: Vec<Vec<Tensor>> = (0..ranks).map(|rank| vec![x(rank)]).collect();
        let none = indexmap::IndexMap::new();
        let mesh = Ranks::new(&[("data", ranks)]);
        let interpreter = Interpreter::new(&module, &none, Precision::F32);
        interpreter.run_ranks("main", &mesh, &inputs, &[]).unwrap()
    }

    #[test]
    fn scattering_a_sum_and_gathering_it_is_the_sum_everywhere() {
        for (ranks, shape) in [(2, &[3, 5][..]), (4, &[7]), (3, &[2]), (4, &[2, 2, 3])] {
            let attrs = || {
                let ranks = Attr::Int(ranks as i64);
                Attrs::none().with("axis", "data").with("ranks", ranks)
            };
            let results = run(ranks, shape, |b, x| {
                let sum = b.op1("all_reduce", attrs(), &[x]).unwrap();
                let part = b.op1("reduce_scatter", attrs(), &[x]).unwrap();
                let dims: Vec<Dim> = shape.iter().map(|n| Dim::from(*n)).collect();
                let whole = b.op1("all_gather", attrs().with("shape", dims), &[part]).unwrap();
                vec![sum, whole]
            });
            let inputs = (0..ranks)
                .map(|rank| spread(DType::F32, shape, 0.1 + rank as f64, 1.7 * rank as f64));
            let inputs: Vec<Tensor> = inputs.collect();
            let want = sum(DType::F32, &inputs.iter().collect::<Vec<_>>());
            for of_rank in results {
                assert_eq!(of_rank[0], want);
                assert_eq!(of_rank[1], want);
            }
        }
    }

    #[test]
    fn a_mesh_without_the_axis_is_named() {
        let mut module = Module::new("m");
        module.symbol("data_rank", 0, 1);
        let mut b = module.builder("main");
        let x = b.param("x", TensorType::new(DType::F32, [2i64])).unwrap();
        let attrs = Attrs::none().with("axis", "data").with("ranks", Attr::Int(2));
        let y = b.op1("all_reduce", attrs, &[x]).unwrap();
        b.output("y", y);
        let graph = b.finish();
        module.add(graph);
        let none = indexmap::IndexMap::new();
        let interpreter = Interpreter::new(&module, &none, Precision::F32);
        let x = Tensor::from_f64s(DType::F32, &[2], [1.0, 2.0]);
        let env = [(Arc::from("data_rank"), 0)].into();
        let error = interpreter.run("main", &[x], &env).unwrap_err().to_string();
        assert!(error.contains("`data`") && error.contains('2'), "{error}");
    }
}
