//! Convolutions and poolings: shapes that fit no panel, block or strip, any layout, any split.

use std::sync::Arc;

use ir::{Attrs, Bounds, DType, Dim, Env, Layout, Symbols, Tensor};

use super::run::{Case, Runner, assert_close, noise, strided, type_of};

/// Numbers below a limit, as if drawn at random.
pub(super) struct Draw(pub(super) u64);

impl Draw {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % limit
    }

    fn from(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    fn ints(&mut self, n: usize, low: usize, high: usize) -> Vec<i64> {
        (0..n).map(|_| self.from(low, high) as i64).collect()
    }
}

fn size(value: i64) -> usize {
    usize::try_from(value).unwrap()
}

const DTYPES: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

pub(super) fn conv(draw: &mut Draw, transposed: bool) -> Case {
    let axes = draw.from(1, 3);
    let group = [1, 1, 2, 3][draw.below(4)];
    let (inputs, outputs) = (draw.from(1, 9), [1, 2, 7, 13, 101][draw.below(5)]);
    let kernel: Vec<usize> = (0..axes).map(|_| draw.from(1, 4)).collect();
    let strides = draw.ints(axes, 1, 3);
    let dilations = draw.ints(axes, 1, 3);
    let mut pads = draw.ints(2 * axes, 0, 2);
    let space: Vec<usize> = (0..axes)
        .map(|i| (kernel[i] - 1) * size(dilations[i]) + draw.from(1, [90, 13, 6][axes - 1]))
        .collect();
    let channels = inputs * group;
    let x = [vec![draw.from(1, 2), channels], space].concat();
    let lead = if transposed { vec![channels, outputs] } else { vec![outputs * group, inputs] };
    let w = [lead, kernel.clone()].concat();
    if transposed {
        // Something has to be left of each axis.
        for i in 0..axes {
            let size = (x[i + 2] as i64 - 1) * strides[i] + (kernel[i] as i64 - 1) * dilations[i];
            pads[i] = pads[i].min(size / 2);
            pads[axes + i] = pads[axes + i].min(size / 2);
        }
    }
    let dtype = DTYPES[draw.below(3)];
    let mut attrs = Attrs::none().with("strides", strides).with("dilations", dilations);
    attrs = attrs.with("pads", pads).with("group", group as i64);
    if transposed {
        attrs = attrs.with("output_padding", draw.ints(axes, 0, 2));
    }
    let seed = draw.below(1000) as u64;
    let args = [
        Some(noise(dtype, &x, seed)),
        Some(noise(DTYPES[draw.below(3)], &w, seed + 1)),
        (draw.below(2) == 0).then(|| noise(dtype, &[outputs * group], seed + 2)),
    ];
    let op = if transposed { "conv_transpose" } else { "conv" };
    Case { op, attrs, args: args.to_vec() }
}

pub(super) fn pool(draw: &mut Draw) -> Case {
    let axes = draw.from(1, 3);
    let kernel = draw.ints(axes, 1, 4);
    let dilations = draw.ints(axes, 1, 3);
    let extent = |i: usize| (kernel[i] - 1) * dilations[i] + 1;
    let pads = (0..2 * axes).map(|i| draw.below(size(extent(i % axes).min(3))) as i64);
    let pads: Vec<i64> = pads.collect();
    let space = (0..axes).map(|i| size(extent(i)) + draw.from(1, [70, 19, 6][axes - 1]));
    let space: Vec<usize> = space.collect();
    let x = [vec![draw.from(1, 2), draw.from(1, 3)], space].concat();
    let mut attrs = Attrs::none().with("kernel", kernel).with("strides", draw.ints(axes, 1, 3));
    attrs = attrs.with("pads", pads).with("dilations", dilations);
    attrs = attrs.with("ceil", draw.below(2) == 0);
    let op = ["max_pool", "average_pool"][draw.below(2)];
    if op == "average_pool" {
        attrs = attrs.with("include_pad", draw.below(2) == 0);
    }
    let x = noise(DTYPES[draw.below(3)], &x, draw.below(1000) as u64);
    Case { op, attrs, args: vec![Some(x)] }
}

/// Runs all cases whole and in parts: near the interpreter, and the same bits.
fn check(cases: &[Case]) {
    let (specs, wanted): (Vec<_>, Vec<_>) = cases.iter().map(Case::expected).unzip();
    let runner = Runner::new(specs);
    for (i, (case, want)) in cases.iter().zip(&wanted).enumerate() {
        let whole = runner.run(i, &case.args, &Env::new(), 1).remove(0);
        let shape: Vec<_> = case.args.iter().flatten().map(Tensor::shape).collect();
        let what = format!("{} {:?} of {shape:?}", case.op, case.attrs);
        assert_close(&what, &whole, &want[0], 1e-5);
        for parts in [2, 7] {
            let split = runner.run(i, &case.args, &Env::new(), parts).remove(0);
            assert_eq!(split.to_bytes(), whole.to_bytes(), "{what} in {parts} parts");
        }
    }
}

#[test]
fn convolutions_of_any_shape() {
    let mut draw = Draw(1);
    check(&(0..40).map(|_| conv(&mut draw, false)).collect::<Vec<_>>());
}

#[test]
fn transposed_convolutions_of_any_shape() {
    let mut draw = Draw(2);
    check(&(0..40).map(|_| conv(&mut draw, true)).collect::<Vec<_>>());
}

#[test]
fn poolings_of_any_shape() {
    let mut draw = Draw(3);
    check(&(0..40).map(|_| pool(&mut draw)).collect::<Vec<_>>());
}

#[test]
fn blocks_of_channels_and_windows_beyond_one() {
    let case = |op, x: &[usize], w: &[usize], attrs: Attrs| {
        let (x, w) = (noise(DType::F32, x, 1), noise(DType::F32, w, 2));
        Case::new(op, attrs, &[&x, &w])
    };
    let pads = |pads: [i64; 4]| Attrs::none().with("pads", pads.to_vec());
    check(&[
        case("conv", &[1, 67, 9, 11], &[103, 67, 3, 3], pads([1, 1, 1, 1])),
        case("conv", &[1, 300, 5, 29], &[7, 300, 1, 1], Attrs::none()),
        case("conv", &[1, 3, 40, 40], &[9, 3, 20, 20], Attrs::none().with("strides", vec![20, 20])),
        case("conv_transpose", &[1, 301, 3, 5], &[301, 98, 2, 2], {
            Attrs::none().with("strides", vec![2, 2])
        }),
        case("conv", &[2, 11, 7, 50], &[88, 1, 3, 3], pads([1, 1, 1, 1]).with("group", 11i64)),
    ]);
}

#[test]
fn nothing_is_lost_in_other_layouts_and_symbolic_sizes() {
    let mut symbols = Symbols::default();
    for (name, lo, hi) in [("N", 0, 4), ("H", 3, 40), ("W", 3, 60)] {
        symbols.insert(name.into(), Bounds { lo, hi });
    }
    let symbols = Arc::new(symbols);
    let depthwise = Attrs::none().with("group", 5i64).with("pads", vec![1, 0, 1, 2]);
    let plain = Attrs::none().with("strides", vec![2, 1]).with("pads", vec![1, 2, 1, 0]);
    let transposed = Attrs::none().with("strides", vec![2, 3]).with("pads", vec![1, 2, 0, 0]);
    let average = Attrs::none().with("kernel", vec![3, 2]).with("ceil", true);
    let average = average.with("strides", vec![2, 2]);
    let cases = [
        ("conv", vec![5, 1, 3, 3], depthwise, ["H", "W"]),
        ("conv", vec![4, 5, 3, 3], plain, ["floor_div(H - 1, 2) + 1", "W"]),
        ("conv_transpose", vec![5, 4, 3, 3], transposed, ["2*H", "3*W - 2"]),
        (
            "average_pool",
            vec![],
            average,
            [
                "min(floor_div(H - 2, 2) + 1, floor_div(H + 1, 2))",
                "min(floor_div(W - 1, 2) + 1, floor_div(W + 1, 2))",
            ],
        ),
    ];
    let make = |i: usize, n: usize, h: usize, w: usize| {
        let (op, weight, attrs, _) = &cases[i];
        let args = [noise(DType::F32, &[n, 5, h, w], 3), noise(DType::F32, weight, 4)];
        let count = if weight.is_empty() { 1 } else { 2 };
        Case::new(op, attrs.clone(), &args.iter().take(count).collect::<Vec<_>>())
    };
    let mut specs = Vec::new();
    for (i, (.., out)) in cases.iter().enumerate() {
        let (mut spec, _) = make(i, 1, 6, 7).expected();
        let dims = |text: [&str; 3], channels: &Dim| {
            let [n, h, w] = text.map(|d| d.parse::<Dim>().unwrap());
            vec![n, channels.clone(), h, w]
        };
        let mut x = type_of(make(i, 1, 6, 7).args[0].as_ref().unwrap());
        x.shape = dims(["N", "H", "W"], &Dim::from(5)).into();
        // Channels innermost, as images are stored.
        spec.operands[0] = Some(strided(&x, &["5*H*W", "1", "5*W", "5"]));
        let mut y = spec.results[0].ty.clone();
        y.shape = dims(["N", out[0], out[1]], &y.shape[1]).into();
        let channels = y.shape[1].to_string();
        let (h, w) = (&y.shape[2], &y.shape[3]);
        let row = (w.clone() * y.shape[1].clone()).to_string();
        let image = (h.clone() * w.clone() * y.shape[1].clone()).to_string();
        spec.results[0] = strided(&y, &[&image, "1", &row, &channels]);
        spec.symbols = symbols.clone();
        let dense = ir::KernelSpec {
            operands: {
                let mut operands = spec.operands.clone();
                operands[0] = Some(Layout::contiguous(&x));
                operands
            },
            results: vec![Layout::contiguous(&y)],
            ..spec.clone()
        };
        specs.extend([spec, dense]);
    }
    let runner = Runner::new(specs);
    for i in 0..cases.len() {
        for (n, h, w) in [(1, 3, 3), (2, 5, 17), (3, 40, 60), (0, 9, 9)] {
            let case = make(i, n, h, w);
            let want = case.expected().1.remove(0);
            let sizes = [("N", n), ("H", h), ("W", w)];
            let env: Env = sizes.into_iter().map(|(s, v)| (s.into(), v as i64)).collect();
            let results = [0, 1].map(|j| runner.run(2 * i + j, &case.args, &env, 3).remove(0));
            assert_eq!(results[0].to_bytes(), results[1].to_bytes(), "{} {n} {h} {w}", case.op);
            assert_close(case.op, &results[0], &want, 1e-5);
        }
    }
}
