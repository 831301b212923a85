//! Launches of [`crate::kernels::gemm::tiled`]: products of matrices, or batches of them, with
//! sizes and strides that may be known only at run time.

use ir::{DType, Dim, KernelSpec, Layout, Target};

use crate::{
    cuda::CudaKernel,
    emit::{Cmp, Elem, Val},
    kernels::gemm::tiled::{Engine, Output, Place, Source, Stride, Task, mma, simt},
    lower::{
        LowerError,
        cx::{Cx, refuse},
        space::{Space, broadcast_strides},
        view::{View, memory_elem},
    },
};

/// `y = a · b` over the last two axes; axes before those broadcast.
pub(in crate::lower) struct Product {
    pub(in crate::lower) a: View,
    pub(in crate::lower) b: View,
    pub(in crate::lower) y: View,
}

/// How numbers are multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::lower) enum Kind {
    /// As f32.
    F32,
    /// As bf16 or f16, on tensor cores.
    Half(Elem),
}

impl Kind {
    /// As a type of that size: whatever it is, sums are f32.
    pub(in crate::lower) fn of(dtype: DType) -> Kind {
        match dtype {
            DType::Bf16 => Kind::Half(Elem::Bf16),
            DType::F16 => Kind::Half(Elem::F16),
            _ => Kind::F32,
        }
    }

    /// Engines for few rows, for more, and for many.
    pub(in crate::lower) fn engines(self) -> [Box<dyn Engine>; 3] {
        match self {
            Kind::F32 => [
                Box::new(simt::Tile::SMALL),
                Box::new(simt::Tile::MEDIUM),
                Box::new(simt::Tile::LARGE),
            ],
            Kind::Half(elem) => [
                Box::new(mma::Tile::small(elem)),
                Box::new(mma::Tile::medium(elem)),
                Box::new(mma::Tile::large(elem)),
            ],
        }
    }
}

/// Rows of tiles that are walked together, so that both sides stay in the second-level cache.
const GROUP: i64 = 8;

/// The kernels of the products that `build` makes of the operands, in one launch: those that come
/// first are begun first.
pub(in crate::lower) fn kernels(
    spec: &KernelSpec,
    target: &Target,
    kind: Kind,
    build: &dyn Fn(&Cx<'_>) -> Vec<Product>,
) -> Result<Vec<CudaKernel>, LowerError> {
    let gpu = target.cuda.ok_or_else(|| refuse(spec, format!("{target} is no GPU")))?;
    let processors = i64::from(gpu.multiprocessors);
    let [small, medium, large] = kind.engines();
    let make = |engine: &dyn Engine, limit| kernel(spec, engine, limit, build);
    let products = build(&Cx::cuda(spec, 32));
    let most = |dim: &Dim| dim.bounds(&spec.symbols).hi.max(1);
    let tiles = |product: &Product, rows: i64| {
        let [batch, _, columns] = sizes(product).map(|dim| most(&dim));
        let down = (rows - 1) / large.tile()[0] + 1;
        let across = (columns - 1) / large.tile()[1] + 1;
        batch.saturating_mul(down).saturating_mul(across)
    };
    let fewest = |product: &Product| tiles(product, most(&sizes(product)[1]));
    let [product] = &products[..] else {
        // The one with the fewest tiles has the longest sums.
        let few = products.iter().any(|product| fewest(product) < processors / 2);
        return Ok(vec![make(if few { &*medium } else { &*large }, None)]);
    };
    let rows = &sizes(product)[1];
    if let Some(count) = rows.as_const() {
        let few = fewest(product) < processors;
        let engine = if few { &medium } else { &large };
        return Ok(vec![make(if count <= small.tile()[0] { &*small } else { &**engine }, None)]);
    }
    let some = (processors / tiles(product, 1)).max(1) * large.tile()[0];
    Ok(vec![
        make(&*small, Some((rows.clone(), small.tile()[0]))),
        make(&*medium, Some((rows.clone(), some))),
        make(&*large, None),
    ])
}

/// Matrices of the batch, rows and columns of a result.
fn sizes(product: &Product) -> [Dim; 3] {
    let [lead @ .., rows, columns] = &product.y.shape[..] else { unreachable!("matrices") };
    let batch = lead.iter().fold(Dim::from(1), |n, d| n * d.clone());
    [batch, rows.clone(), columns.clone()]
}

fn kernel(
    spec: &KernelSpec,
    engine: &dyn Engine,
    limit: Option<(Dim, i64)>,
    build: &dyn Fn(&Cx<'_>) -> Vec<Product>,
) -> CudaKernel {
    let cx = Cx::cuda(spec, engine.threads()).with_blocks(engine.resident());
    let products = build(&cx);
    let block = cx.e.block('x');
    let tiles = emit(&cx, engine, &products, block);
    // Units of more than an element begin at a multiple of their size.
    let aligned = |layout: &Layout, count: i64| {
        let (view, rank) = (View::new(block, layout), layout.ty.rank());
        (rank - 2..rank).any(|axis| whole(&view, axis, count))
    };
    let operands = spec.operands.iter().map(|o| o.as_ref().is_some_and(|o| aligned(o, 8)));
    let all = operands.chain(spec.results.iter().map(|y| aligned(y, 2)));
    let all: Vec<bool> = all.collect();
    let grid = [tiles, 1.into(), 1.into()];
    let mut kernel = cx.finish_cuda(grid, engine.shared_bytes(), &[], |arg| all[arg as usize]);
    kernel.limit = limit;
    kernel
}

/// Computes tile `index` of the products; returns how many there are.
fn emit(cx: &Cx<'_>, engine: &dyn Engine, products: &[Product], index: Val) -> Dim {
    let [first, rest @ ..] = products else { return Dim::from(0) };
    let e = &cx.e;
    let [m, n] = engine.tile();
    let [batch, rows, columns] = sizes(first);
    let own = batch * rows.ceil_div(m) * columns.ceil_div(n);
    if rest.is_empty() {
        tile(cx, engine, first, index);
        return own;
    }
    let count = e.cast(cx.size(&own), Elem::I32);
    let mut others = Dim::from(0);
    e.either(
        e.cmp(Cmp::Lt, index, count),
        || tile(cx, engine, first, index),
        || others = emit(cx, engine, rest, e.sub(index, count)),
    );
    own + others
}

/// Computes tile `index` of a product.
fn tile(cx: &Cx<'_>, engine: &dyn Engine, product: &Product, index: Val) {
    let e = &cx.e;
    let Product { a, b, y } = product;
    let [m, n] = engine.tile();
    let lead = y.shape.len() - 2;
    let spread = |v: &View| {
        let own = v.shape.len() - 2;
        broadcast_strides(&v.shape[..own], &v.strides[..own], lead)
    };
    let batch = Space::new(&y.shape[..lead], &[spread(a), spread(b), spread(y)]).merged();
    let [_, rows, columns] = sizes(product);
    let [down, across] =
        [rows.ceil_div(m), columns.ceil_div(n)].map(|count| e.cast(cx.size(&count), Elem::I32));
    let each = e.mul(down, across);
    let (matrix, within) = (e.div_unsigned(index, each), e.rem_unsigned(index, each));
    let group = e.mul_const(across, GROUP);
    let top = e.mul_const(e.div_unsigned(within, group), GROUP);
    let height = e.min(e.i32(GROUP), e.sub(down, top));
    let within = e.rem_unsigned(within, group);
    let row = e.add(top, e.rem_unsigned(within, height));
    let column = e.div_unsigned(within, height);
    let offsets = batch.offsets(cx, e.cast(matrix, Elem::I64));
    let int = |dim: &Dim| e.cast(cx.size(dim), Elem::I32);
    let axis = a.shape.len();
    let task = Task {
        a: source(cx, &a.at(cx, offsets[0]), axis - 2, axis - 1),
        b: source(cx, &b.at(cx, offsets[1]), b.shape.len() - 1, b.shape.len() - 2),
        k: int(&a.shape[axis - 1]),
        first: [e.mul_const(row, m), e.mul_const(column, n)],
    };
    let sums = engine.sums(e, &task);
    let output = output(cx, &y.at(cx, offsets[2]));
    engine.each(e, task.first, &sums, false, &mut |run| output.store(e, run));
}

/// A matrix of a view as an operand.
pub(in crate::lower) fn source(cx: &Cx<'_>, view: &View, lines: usize, k: usize) -> Source {
    let strides = [&view.strides[lines], &view.strides[k]].map(|dim| stride(cx, dim));
    let dense = if strides[1] == Stride::Const(1) { k } else { lines };
    Source {
        base: view.base,
        elem: memory_elem(view.dtype),
        place: Place::Strides(strides),
        lines: cx.e.cast(cx.size(&view.shape[lines]), Elem::I32),
        whole: whole(view, dense, 8),
    }
}

/// A matrix of a view, its last two axes, as a result.
pub(in crate::lower) fn output(cx: &Cx<'_>, view: &View) -> Output {
    let rank = view.shape.len();
    let strides = [rank - 2, rank - 1].map(|axis| stride(cx, &view.strides[axis]));
    let limits = [rank - 2, rank - 1].map(|axis| {
        let size = cx.size(&view.shape[axis]);
        cx.e.cast(size, Elem::I32)
    });
    let lanes = [4, 2].into_iter().find(|lanes| whole(view, rank - 1, *lanes)).unwrap_or(1);
    let lanes = u32::try_from(lanes).expect("few lanes");
    Output::plain(view.base, memory_elem(view.dtype), strides, limits, lanes)
}

/// Whether an axis is dense, and so many neighbours along it begin at a multiple of their size and
/// are all inside or all outside.
fn whole(view: &View, dense: usize, count: i64) -> bool {
    let even = |dim: &Dim| dim.is(0) || dim.exact_div(&Dim::from(count)).is_some();
    let others = view.strides.iter().enumerate().filter(|(axis, _)| *axis != dense);
    view.strides[dense].is(1) && even(&view.shape[dense]) && others.into_iter().all(|s| even(s.1))
}

fn stride(cx: &Cx<'_>, dim: &Dim) -> Stride {
    match dim.as_const() {
        Some(stride) => Stride::Const(stride),
        None => Stride::Value(cx.size(dim)),
    }
}
