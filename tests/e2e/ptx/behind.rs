//! Loops behind products: the same bits as the product and the loop one after the other.

use std::sync::Arc;

use ir::{Attrs, DType, Dim, KernelSpec, Layout, Module, Target, Tensor, TensorType, parse_module};

use super::{
    assemble::{clean, kernels, layout, programs, spec},
    case::{Case, noise},
    device::{Same, Trial, ptx_of, targets},
    oracle,
};

const K: usize = 72;

/// A loop, and products with it behind them: of a matrix, and of packed panels.
fn module(n: usize) -> Module {
    let text = format!(
        r#"
module "m"
symbol T in 1..1000
fn each(%d: f32[T, {n}], %x: f32[T, {n}]) {{
  %0 = gelu_tanh(%x) : f32[T, {n}]
  %1 = mul(%d, %0) : f32[T, {n}]
  return result = %1
}}
fn matrix(%a: f32[T, {K}], %w: f32[{K}, {n}], %x: f32[T, {n}]) {{
  %0 = matmul(%a, %w) : f32[T, {n}]
  %1 = cast(%0) {{to = bf16}} : bf16[T, {n}]
  %2 = cast(%1) {{to = f32}} : f32[T, {n}]
  %3 = gelu_tanh(%x) : f32[T, {n}]
  %4 = mul(%2, %3) : f32[T, {n}]
  return result = %4
}}
fn panels(%a: f32[T, {K}], %w: bf16[{panels}, {K}, 16], %b: f32[{n}], %x: f32[T, {n}]) {{
  %0 = linear(%a, %w, %b, _) {{n = {n}}} : f32[T, {n}]
  %1 = cast(%0) {{to = bf16}} : bf16[T, {n}]
  %2 = cast(%1) {{to = f32}} : f32[T, {n}]
  %3 = gelu_tanh(%x) : f32[T, {n}]
  %4 = mul(%2, %3) : f32[T, {n}]
  return result = %4, product = %0
}}
"#,
        panels = n.div_ceil(16)
    );
    parse_module(&text).unwrap()
}

fn layout_of(of: &Tensor, rows: bool) -> Layout {
    let mut ty = TensorType::new(of.dtype(), of.shape().iter().copied());
    if rows {
        ty.shape[0] = Dim::symbol("T");
    }
    Layout::contiguous(&ty)
}

/// Runs all variants of a kernel; asserts that they agree, and returns results in bf16.
fn run(what: &str, spec: &KernelSpec, case: &Case, target: &Target) -> Vec<Tensor> {
    let want = if spec.body.is_some() {
        oracle::results(spec, &case.args, &case.env())
    } else {
        case.expected().1
    };
    let trial = Trial {
        what,
        family: "products",
        case,
        spec,
        target,
        want: &want,
        tolerance: 1e-2,
        same: &[Same::Variants],
    };
    let kernels = case.kernels(spec, target);
    let results: Vec<Vec<Tensor>> = (0..)
        .zip(&kernels)
        .map(|(seed, kernel)| {
            let (got, report) = trial.run(kernel, seed);
            // Rows that are not copied in sixteen bytes.
            let is_odd = what.contains("x 37");
            assert!(is_odd || report.bank_conflicts == 0, "{what}");
            got
        })
        .collect();
    let bits = |all: &[Tensor]| all.iter().map(Tensor::to_bytes).collect::<Vec<_>>();
    assert!(results.iter().all(|other| bits(other) == bits(&results[0])), "{what}");
    results[0].clone()
}

#[test]
fn loops_behind_products() {
    let half = DType::Bf16;
    for (rows, n) in [(131, 288), (67, 56), (5, 96), (9, 37)] {
        let module = module(n);
        let noise = |shape: &[usize], seed: u64| noise(half, half, shape, seed);
        let (a, x) = (noise(&[rows, K], 1), noise(&[rows, n], 4));
        let bias = noise(&[n], 3);
        let y = layout_of(&x, true);
        let fused = |callee: &str, args: &[&Tensor], is_row: &[usize], results: usize| {
            let args: Vec<_> = args.iter().map(|arg| Some(*arg)).collect();
            let attrs = Attrs::none().with("callee", callee);
            let case = Case::new("fused", attrs.clone(), &args).with_rows(is_row);
            let operand = |(i, arg): (usize, &Option<&Tensor>)| {
                arg.map(|arg| layout_of(arg, is_row.contains(&i)))
            };
            let spec = KernelSpec {
                op: "fused",
                attrs,
                operands: args.iter().enumerate().map(operand).collect(),
                results: vec![y.clone(); results],
                body: Some(Arc::new(module.functions[callee].clone())),
                symbols: Arc::new(module.symbols.clone()),
            };
            (case, spec)
        };
        for (callee, w) in
            [("matrix", noise(&[K, n], 2)), ("panels", noise(&[n.div_ceil(16), K, 16], 2))]
        {
            let is_packed = callee == "panels";
            let mut operands = vec![&a, &w];
            operands.extend(is_packed.then_some(&bias));
            let (op, attrs) = match is_packed {
                true => ("linear", Attrs::none().with("n", n as i64).with("act", "none")),
                false => ("matmul", Attrs::none()),
            };
            let args: Vec<_> = operands.iter().map(|arg| Some(*arg)).collect();
            let product = Case::new(op, attrs, &args).with_rows(&[0]);
            let (mut of_product, _) = product.expected();
            of_product.results[0].ty.dtype = half;
            operands.push(&x);
            let last = operands.len() - 1;
            let (both, of_both) = fused(callee, &operands, &[0, last], 1 + usize::from(is_packed));
            for target in targets() {
                let what = &format!("{callee}, {rows} x {n} on {}", target.cpu);
                let alone = run(what, &of_product, &product, &target).remove(0);
                let (behind, of_behind) = fused("each", &[&alone, &x], &[0, 1], 1);
                let want = run(what, &of_behind, &behind, &target).remove(0);
                let got = run(what, &of_both, &both, &target);
                assert_eq!(got[0].to_bytes(), want.to_bytes(), "{what}");
                if is_packed {
                    assert_eq!(got[1].to_bytes(), alone.to_bytes(), "{what}");
                }
                let kernel = both.kernels(&of_both, &target).pop().unwrap();
                let wide = ptx_of(&kernel, &target).contains("st.global.v4");
                assert_eq!(wide, n % 32 == 0, "{what}");
            }
        }
    }
}

/// The derivative of GELU behind the product of a transposed weight, and GELU behind a packed one
/// with the product kept, as GPT-2's layers have them.
const LAYER: &str = r#"
module "m"
symbol T in 1..16384
fn backward(%dy: f32[T, 768], %w: f32[768, 3072], %x: f32[T, 3072]) {
  %0 = matmul(%dy, %w) : f32[T, 3072]
  %1 = cast(%0) {to = bf16} : bf16[T, 3072]
  %2 = cast(%1) {to = f32} : f32[T, 3072]
  %3 = constant() {value = dense<f32[] 0000003f>} : f32[]
  %4 = constant() {value = dense<f32[] 0000803f>} : f32[]
  %5 = constant() {value = dense<f32[] 1327373d>} : f32[]
  %6 = constant() {value = dense<f32[] 2a424c3f>} : f32[]
  %7 = constant() {value = dense<f32[] 4f5d093e>} : f32[]
  %8 = mul(%x, %x) : f32[T, 3072]
  %9 = mul(%8, %5) : f32[T, 3072]
  %10 = add(%9, %4) : f32[T, 3072]
  %11 = mul(%x, %10) : f32[T, 3072]
  %12 = mul(%11, %6) : f32[T, 3072]
  %13 = tanh(%12) : f32[T, 3072]
  %14 = add(%4, %13) : f32[T, 3072]
  %15 = mul(%8, %7) : f32[T, 3072]
  %16 = add(%15, %4) : f32[T, 3072]
  %17 = mul(%16, %6) : f32[T, 3072]
  %18 = mul(%13, %13) : f32[T, 3072]
  %19 = sub(%4, %18) : f32[T, 3072]
  %20 = mul(%17, %19) : f32[T, 3072]
  %21 = mul(%x, %20) : f32[T, 3072]
  %22 = add(%14, %21) : f32[T, 3072]
  %23 = mul(%3, %22) : f32[T, 3072]
  %24 = mul(%2, %23) : f32[T, 3072]
  return result = %24
}
fn forward(%x: f32[T, 768], %w: bf16[192, 768, 16], %b: f32[3072]) {
  %0 = linear(%x, %w, %b, _) {n = 3072} : f32[T, 3072]
  %1 = cast(%0) {to = bf16} : bf16[T, 3072]
  %2 = cast(%1) {to = f32} : f32[T, 3072]
  %3 = gelu_tanh(%2) : f32[T, 3072]
  return result = %3, product = %0
}
"#;

#[test]
fn loops_behind_products_spill_nothing() {
    let Some(folder) = programs() else { return };
    let module = parse_module(LAYER).unwrap();
    let rows = |n: &str| layout(DType::Bf16, &["T", n]);
    let mut turned = layout(DType::Bf16, &["768", "3072"]);
    turned.strides = [1, 768].map(Dim::from).into();
    let bias = layout(DType::F32, &["3072"]);
    for (callee, operands, results) in [
        ("backward", vec![rows("768"), turned, rows("3072")], 1),
        ("forward", vec![rows("768"), layout(DType::Bf16, &["192", "768", "16"]), bias], 2),
    ] {
        let attrs = Attrs::none().with("callee", callee);
        let mut spec = spec("fused", attrs, &operands, &vec![rows("3072"); results]);
        spec.body = Some(Arc::new(module.functions[callee].clone()));
        spec.symbols = Arc::new(module.symbols.clone());
        for target in targets() {
            for kernel in &kernels(&spec, &target) {
                let _ = clean(&folder, &format!("{callee}-behind"), kernel, &target);
            }
        }
    }
}
