//! What graphs of images and of all sorts are made of: convolutions, poolings, group norms, orders,
//! scatters, running sums, and loops over every type of number.

use std::sync::Arc;

use ir::{Attr, Attrs, Bounds, DType, Dim, Layout, Symbols, Tensor};

use super::{
    case::{Case, noise},
    families::{check, check_spec},
};

fn random(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    noise(dtype, dtype, shape, seed)
}

fn ints(values: &[i64]) -> Attr {
    Attr::Ints(values.to_vec())
}

/// Strides, pads, dilations and groups.
fn windows(strides: &[i64], pads: &[i64], dilations: &[i64], group: i64) -> Attrs {
    let attrs = Attrs::none().with("strides", ints(strides)).with("pads", ints(pads));
    attrs.with("dilations", ints(dilations)).with("group", group)
}

#[test]
fn convolutions() {
    let cases: [(&[usize], &[usize], Attrs, DType); 8] = [
        // Two blocks of channels and of positions.
        (&[1, 5, 11, 13], &[67, 5, 3, 3], windows(&[1, 1], &[1, 1, 1, 1], &[1, 1], 1), DType::F32),
        (&[3, 19, 5, 9], &[7, 19, 1, 1], windows(&[1, 1], &[0; 4], &[1, 1], 1), DType::F32),
        (&[2, 3, 20, 20], &[9, 3, 5, 4], windows(&[3, 2], &[1, 0, 2, 1], &[1, 2], 1), DType::Bf16),
        (&[2, 6, 9], &[8, 3, 4], windows(&[2], &[2, 1], &[2], 2), DType::F16),
        (&[1, 2, 4, 5, 6], &[3, 2, 2, 3, 2], windows(&[1, 2, 1], &[0; 6], &[1; 3], 1), DType::F32),
        // Windows that slide.
        (&[2, 5, 7, 19], &[10, 1, 3, 3], windows(&[1, 1], &[1, 0, 1, 2], &[1, 1], 5), DType::F32),
        (&[1, 3, 40], &[3, 1, 5], windows(&[2], &[2, 2], &[1], 3), DType::Bf16),
        (&[1, 1, 6, 6], &[17, 1, 2, 2], windows(&[1, 1], &[0; 4], &[1, 1], 1), DType::F32),
    ];
    for (x, w, attrs, dtype) in cases {
        let bias = random(dtype, &[w[0]], 3);
        let (x, w) = (random(dtype, x, 1), random(dtype, w, 2));
        let what = format!("conv {:?} {:?}", x.shape(), w.shape());
        let case = Case::new("conv", attrs.clone(), &[Some(&x), Some(&w), Some(&bias)]);
        check(&what, &case, 1e-5);
        check(&what, &Case::new("conv", attrs, &[Some(&x), Some(&w)]).transposed(&[0]), 1e-5);
    }
}

#[test]
fn transposed_convolutions() {
    type Shapes<'a> = (&'a [usize], &'a [usize], Attrs, &'a [i64]);
    let cases: [Shapes<'_>; 5] = [
        (&[1, 5, 6, 7], &[5, 4, 3, 3], windows(&[2, 3], &[1, 2, 0, 0], &[1, 1], 1), &[0, 0]),
        (&[2, 19, 3, 5], &[19, 70, 2, 2], windows(&[2, 2], &[0; 4], &[1, 1], 1), &[0, 0]),
        (&[1, 6, 9], &[6, 5, 4], windows(&[3], &[1, 2], &[2], 2), &[1]),
        (&[1, 2, 9], &[2, 1, 3], windows(&[2], &[0, 0], &[2], 1), &[0]),
        (&[1, 2, 3, 3, 2], &[2, 3, 2, 2, 2], windows(&[1, 2, 2], &[0; 6], &[1; 3], 1), &[0, 1, 0]),
    ];
    for (x, w, attrs, padding) in cases {
        let attrs = attrs.with("output_padding", ints(padding));
        let (x, w) = (random(DType::F32, x, 1), random(DType::F32, w, 2));
        let what = format!("conv_transpose {:?} {:?}", x.shape(), w.shape());
        check(&what, &Case::new("conv_transpose", attrs, &[Some(&x), Some(&w)]), 1e-5);
    }
}

#[test]
fn poolings() {
    for (x, kernel, strides, pads, dilations) in [
        (&[2, 3, 19, 33][..], &[3, 2][..], &[2, 1][..], &[1, 0, 1, 1][..], &[1, 1][..]),
        (&[1, 2, 70], &[4], &[3], &[2, 1], &[2]),
        (&[1, 1, 5, 6, 7], &[2, 2, 3], &[1, 2, 2], &[0, 1, 1, 1, 0, 0], &[1, 1, 1]),
    ] {
        for ceil in [false, true] {
            let attrs = Attrs::none().with("kernel", ints(kernel)).with("strides", ints(strides));
            let attrs = attrs.with("pads", ints(pads)).with("dilations", ints(dilations));
            let attrs = attrs.with("ceil", ceil);
            for dtype in [DType::F32, DType::Bf16] {
                let x = random(dtype, x, 1);
                check("max_pool", &Case::new("max_pool", attrs.clone(), &[Some(&x)]), 0.0);
                let attrs = attrs.clone().with("include_pad", ceil);
                let case = Case::new("average_pool", attrs, &[Some(&x)]);
                check("average_pool", &case.transposed(&[0]), 1e-5);
            }
        }
    }
}

/// Images of symbolic sizes, stored with their channels innermost.
#[test]
fn symbolic_images() {
    let mut symbols = Symbols::default();
    symbols.insert("T".into(), Bounds { lo: 1, hi: 64 });
    let x = random(DType::F32, &[6, 5, 7, 9], 1);
    let w = random(DType::F32, &[4, 5, 3, 3], 2);
    let depthwise = random(DType::F32, &[5, 1, 3, 3], 3);
    let same = |group| windows(&[1, 1], &[1, 1, 1, 1], &[1, 1], group);
    let kernel = Attrs::none().with("kernel", ints(&[3, 3])).with("pads", ints(&[1, 1, 1, 1]));
    for case in [
        Case::new("conv", same(1), &[Some(&x), Some(&w)]),
        Case::new("conv", same(5), &[Some(&x), Some(&depthwise)]),
        Case::new("max_pool", kernel, &[Some(&x)]),
    ] {
        let case = case.with_rows(&[0]);
        let (mut spec, want) = case.expected();
        spec.symbols = Arc::new(symbols.clone());
        let strides: Layout = Layout {
            strides: [315, 1, 45, 5].map(Dim::from).into(),
            ..spec.operands[0].clone().unwrap()
        };
        spec.operands[0] = Some(strides);
        check_spec(case.op, &case, &spec, &want, 1e-5);
    }
}

#[test]
fn group_norms() {
    for (shape, groups, dtype) in [
        (&[2, 6, 5, 7][..], 3, DType::F32),
        (&[1, 8, 16, 16], 2, DType::Bf16),
        (&[3, 4, 33], 4, DType::F32),
        (&[2, 12], 3, DType::F16),
    ] {
        let x = random(dtype, shape, 1);
        let [w, b] = [2, 3].map(|seed| random(dtype, &[shape[1]], seed));
        let attrs = Attrs::none().with("groups", groups as i64).with("eps", 1e-5);
        let case = Case::new("group_norm", attrs, &[Some(&x), Some(&w), Some(&b)]);
        let tolerance = if dtype == DType::F32 { 1e-5 } else { 2e-2 };
        check("group_norm", &case.clone().with_rows(&[0]), tolerance);
        check("group_norm", &case.transposed(&[0]), tolerance);
    }
}

fn topk(x: &Tensor, axis: i64, k: i64, largest: bool) -> Case {
    let attrs = Attrs::none().with("k", vec![Dim::from(k)]).with("axis", axis);
    Case::new("topk", attrs.with("largest", largest), &[Some(x)])
}

/// Numbers in `0..levels` as if drawn at random: many are equal.
fn levels(dtype: DType, shape: &[usize], levels: f64) -> Tensor {
    let values = random(DType::F64, shape, 11).to_f64s();
    Tensor::from_f64s(dtype, shape, values.into_iter().map(|v| (v * levels).floor()))
}

#[test]
fn the_best_of_rows() {
    for (n, k) in [(8, 2), (33, 33), (257, 1)] {
        for x in [random(DType::F32, &[2, n], n as u64), levels(DType::F32, &[2, n], 3.0)] {
            check("topk", &topk(&x, -1, k, true), 0.0);
        }
        let x = Tensor::from_f64s(DType::F32, &[n, 1], vec![f64::NAN; n]);
        check("topk of NaN", &topk(&x, 0, k, false), 0.0);
    }
    check("topk of a long row", &topk(&levels(DType::F32, &[2100], 3.0), 0, 9, true), 0.0);
    check("topk of long rows", &topk(&random(DType::F32, &[2, 9000], 3), 1, 256, true), 0.0);
    // More are equal than there is room for.
    check("topk of equal numbers", &topk(&levels(DType::F32, &[4000], 2.0), 0, 130, true), 0.0);
    let odd = random(DType::F64, &[2500, 2], 5).to_f64s().into_iter().enumerate();
    let odd = odd.map(|(i, x)| if i % 97 == 5 { f64::NAN } else { x });
    let odd = Tensor::from_f64s(DType::F32, &[2500, 2], odd);
    check("topk of columns with NaN", &topk(&odd, 0, 40, true), 0.0);
    let x = random(DType::Bf16, &[1, 3000], 7);
    check("the least of a long row", &topk(&x, 1, 500, false), 0.0);
}

#[test]
fn orders_of_every_type() {
    for dtype in [DType::I64, DType::I32, DType::I16, DType::I8, DType::U8, DType::Bool] {
        let (lo, hi) = dtype.int_range().unwrap_or((0, 1));
        let ends = [lo, hi, 0, 1, hi - 1, hi, lo, (lo + 1).min(hi)];
        let of = |shape: &[usize]| {
            let count: usize = shape.iter().product();
            Tensor::from_i64s(dtype, shape, (0..count).map(|i| ends[i * 5 % 8]))
        };
        let largest = dtype != DType::I32;
        check("topk of integers", &topk(&of(&[210]), 0, 9, largest), 0.0);
        for up in [true, false] {
            let attrs = Attrs::none().with("descending", up).with("axis", 0i64);
            check("sort of integers", &Case::new("sort", attrs, &[Some(&of(&[70, 3]))]), 0.0);
        }
    }
    for dtype in [DType::F64, DType::F32, DType::Bf16, DType::F16] {
        let odd = [f64::INFINITY, -0.0, 0.0, f64::NAN, -1e-7, 1e-7, f64::NEG_INFINITY, -3.5];
        let of = |n: usize| Tensor::from_f64s(dtype, &[n], (0..n).map(|i| odd[i * 5 % 8]));
        let largest = dtype != DType::Bf16;
        check("topk of odd numbers", &topk(&of(220), 0, 60, largest), 0.0);
        for up in [true, false] {
            let attrs = Attrs::none().with("descending", up);
            check("argsort", &Case::new("argsort", attrs, &[Some(&of(101))]), 0.0);
        }
    }
}

#[test]
fn scatters() {
    for dtype in [DType::F32, DType::I8, DType::I64, DType::Bf16] {
        let large = |shape: &[usize], seed| {
            let values = random(DType::F32, shape, seed).to_f64s();
            Tensor::from_f64s(dtype, shape, values.into_iter().map(|v| (v * 100.0).round()))
        };
        let data = large(&[9, 5, 70], 1);
        for (tuples, length, updates) in
            [(30, 1, &[30, 5, 70][..]), (40, 2, &[40, 70]), (50, 3, &[50])]
        {
            let extents = [9, 5, 70];
            let indices = (0..tuples * length).map(|i| {
                let extent = extents[i % length];
                (i * 7919 + i * i) as i64 % (2 * extent + 1) - extent
            });
            let indices = Tensor::from_i64s(DType::I64, &[tuples, length], indices);
            let updates = large(updates, 2);
            let args = [Some(&data), Some(&indices), Some(&updates)];
            let case = Case::new("scatter_nd", Attrs::none(), &args);
            check("scatter_nd", &case, 0.0);
            check("scatter_nd", &case.transposed(&[0, 1]), 0.0);
        }
    }
}

#[test]
fn running_sums_and_sizes() {
    for dtype in [DType::F32, DType::I64, DType::I32, DType::F64, DType::I8] {
        let x = random(DType::F32, &[5, 67, 3], 1);
        let x = Tensor::from_f64s(dtype, x.shape(), x.to_f64s().into_iter().map(|v| v * 3.0));
        for axis in [0i64, 1, 2] {
            let case = Case::new("cumsum", Attrs::none().with("axis", axis), &[Some(&x)]);
            check("cumsum", &case, 1e-5);
            check("cumsum", &case.transposed(&[0]), 1e-5);
        }
        let attrs = Attrs::none().with("axes", ints(&[1])).with("keep", Attr::Bool(true));
        for op in ["reduce_sum", "reduce_max", "reduce_min"] {
            check(op, &Case::new(op, attrs.clone(), &[Some(&x)]), 1e-5);
        }
    }
    let x = random(DType::F32, &[3, 4], 1);
    let case = Case::new("shape_of", Attrs::none(), &[Some(&x)]);
    let (spec, want) = case.expected();
    check_spec("shape_of", &case, &spec, &want, 0.0);
    let mut symbolic = spec;
    let ty = ir::TensorType::new(DType::F32, [Dim::symbol("T"), Dim::from(4)]);
    symbolic.operands[0] = Some(Layout::contiguous(&ty));
    check_spec("shape_of any", &case.with_rows(&[0]), &symbolic, &want, 0.0);
}

#[test]
fn loops_over_every_type() {
    use DType::{Bf16, Bool, F16, F32, F64, I8, I16, I32, I64, U8};
    let of = |dtype, seed| {
        let x = random(F32, &[6, 36], seed).to_f64s().into_iter().map(|v| (v * 50.0).round());
        Tensor::from_f64s(dtype, &[6, 36], x)
    };
    let all = [Bf16, Bool, F16, F32, F64, I8, I16, I32, I64, U8];
    for from in all {
        let x = random(F32, &[6, 36], 1).to_f64s().into_iter().map(|v| (v.abs() * 50.0).round());
        let x = Tensor::from_f64s(from, &[6, 36], x);
        for to in all {
            let attrs = Attrs::none().with("to", Attr::DType(to));
            let case = Case::new("cast", attrs, &[Some(&x)]);
            check(&format!("cast {from} to {to}"), &case.with_rows(&[0]), 1e-6);
        }
        let axis = || Attrs::none().with("axis", 1i64);
        let beyond = if from == Bool { 3 } else { 40 };
        let ids = Tensor::from_i64s(I64, &[4], [35, 0, -1, beyond]);
        check("gather", &Case::new("gather", axis(), &[Some(&x), Some(&ids)]), 0.0);
    }
    for dtype in [F64, I64, I32, I16, I8, U8, Bf16] {
        let (x, y) = (of(dtype, 1), of(dtype, 2));
        for op in ["add", "sub", "mul", "maximum", "less", "equal"] {
            let both = [Some(&x), Some(&y)];
            check(op, &Case::new(op, Attrs::none(), &both).transposed(&[1]), 1e-6);
            check(op, &Case::new(op, Attrs::none(), &both).with_rows(&[0, 1]), 1e-6);
        }
    }
}
