//! Experts, segments and memories of eight bits.

use ir::{Attrs, DType, Dim, Layout, Tensor};

use super::{
    case::{Case, noise},
    families::{check, check_spec},
};

fn floats(shape: &[usize], seed: u64) -> Tensor {
    noise(DType::F32, DType::F32, shape, seed)
}

#[test]
fn tokens_go_to_experts_and_back() {
    for (tokens, each, experts) in [(1, 1, 1), (7, 2, 5), (150, 3, 9)] {
        let picks = (0..tokens * each).map(|i| (i * 7919 + i * i / 3) as i64 % (experts + 2) - 1);
        let picks = Tensor::from_i64s(DType::I32, &[tokens, each], picks);
        let attrs = Attrs::none().with("experts", experts);
        let case = Case::new("moe_permute", attrs, &[Some(&picks)]);
        check("moe_permute", &case, 0.0);
        check("moe_permute", &case.clone().transposed(&[0]), 0.0);
        let case = case.with_rows(&[0]);
        let (mut spec, want) = case.expected();
        spec.results[0].ty.shape[0] = Dim::symbol("T") * Dim::from(each);
        spec.results[2] = Layout::contiguous(&ir::TensorType::new(DType::I32, [experts + 1]));
        check_spec("moe_permute of any tokens", &case, &spec, &want, 0.0);
        let slots = &want[1];
        for (width, dtype) in [(64, DType::F32), (35, DType::Bf16)] {
            let from = noise(dtype, dtype, &[tokens * each, width], 1);
            let weights = noise(dtype, dtype, &[tokens, each], 2);
            let args = [Some(&from), Some(slots), Some(&weights)];
            check("moe_combine", &Case::new("moe_combine", Attrs::none(), &args), 1e-5);
        }
    }
}

#[test]
fn segments() {
    let offsets = Tensor::from_i64s(DType::I32, &[5], [0, 3, 3, 40, 41]);
    for op in ["segment_mean", "segment_first"] {
        for dtype in [DType::F32, DType::F16] {
            let x = noise(dtype, dtype, &[41, 67], 1);
            // The interpreter takes the first row of an empty segment from outside of it.
            let ends =
                if op == "segment_mean" { vec![0, 3, 3, 40, 41] } else { vec![0, 3, 5, 40, 41] };
            let offsets = Tensor::from_i64s(DType::I32, offsets.shape(), ends);
            check(op, &Case::new(op, Attrs::none(), &[Some(&x), Some(&offsets)]), 1e-5);
        }
    }
}

#[test]
fn heads_of_eight_bits() {
    for (size, format, dtype) in [
        (64, "integers", DType::I8),
        (37, "integers", DType::I8),
        (64, "e4m3", DType::F8E4M3),
        (37, "e4m3", DType::F8E4M3),
    ] {
        let attrs = Attrs::none().with("format", format);
        let mut values = floats(&[5, 3, size], 1).to_f64s();
        // Zeros, what is too small for a scale, and beside a large one subnormal codes.
        values[..size].fill(0.0);
        values[size..2 * size].iter_mut().for_each(|v| *v *= 1e-38);
        values[2 * size + 7] = 3000.0;
        let x = Tensor::from_f64s(DType::F32, &[5, 3, size], values);
        let case = Case::new("quantize_heads", attrs.clone(), &[Some(&x)]);
        let (spec, want) = case.expected();
        check_spec("quantize_heads", &case, &spec, &want, 1e-6);
        check("quantize_heads", &case.with_rows(&[0]), 1e-6);
        let of = |seed| {
            let x = floats(&[5, 3, size], seed);
            let case = Case::new("quantize_heads", attrs.clone(), &[Some(&x)]);
            let results = case.expected().1;
            // The interpreter keeps f32 as f64.
            [results[0].clone(), results[1].cast(DType::F32)]
        };
        let (k, v) = (of(2), of(3));
        let memory = |shape: &[usize]| {
            let count: usize = shape.iter().product();
            Tensor::from_f64s(dtype, shape, (0..count).map(|i| (i % 100) as f64 - 50.0))
        };
        let (keys, values) = (memory(&[4, 3, size, 16]), memory(&[4, 3, 16, size]));
        let (key_scales, value_scales) = (floats(&[4, 3, 16], 4), floats(&[4, 3, 16], 5));
        let slots = Tensor::from_i64s(DType::I32, &[5], [17, 3, -1, 63, 0]);
        let args = [&keys, &values, &k[0], &v[0], &slots, &key_scales, &value_scales, &k[1], &v[1]];
        check(
            &format!("kv_write of {dtype}"),
            &Case::new("kv_write", Attrs::none(), &args.map(Some)),
            0.0,
        );
    }
}
