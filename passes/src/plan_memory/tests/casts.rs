//! Casts that kernels do as they load and store.

use ir::{Attrs, DType, Env, KernelSpec, Kernels, OpRef, TensorType, parse_module};

use super::super::{Plan, plan_memory};

/// Takes every operator; converts all but what `refuses` names.
struct Converting(&'static [&'static str]);

impl Kernels for Converting {
    fn supports(&self, _: &KernelSpec) -> Result<(), String> {
        Ok(())
    }

    fn converts(&self, spec: &KernelSpec) -> bool {
        !self.0.contains(&spec.op)
    }

    fn seconds(
        &self,
        _: OpRef,
        _: &Attrs,
        _: &[Option<TensorType>],
        _: &[TensorType],
        _: &Env,
    ) -> Option<f64> {
        Some(1.0)
    }
}

/// A norm that is rounded for two products, one of which adds it as it was before rounding: not
/// read by casts alone.
const TEXT: &str = r#"
module "m"
symbol T in 1..64
fn layer.cast(%x: f32[T, 16]) {
  %0 = cast(%x) {to = bf16} : bf16[T, 16]
  return y = %0
}
fn main(%x: f32[T, 16], %g: f32[16], %w: bf16[1, 16, 16]) {
  %0 = rms_norm(%x, %g) {eps = 1e-5} : f32[T, 16]
  %1 = cast(%0) {to = bf16} : bf16[T, 16]
  %2 = reshape(%1) {shape = <1, T, 16>} : bf16[1, T, 16]
  %3 = cast(%2) {to = f32} : f32[1, T, 16]
  %4 = linear(%3, %w, _, _) {n = 16} : f32[1, T, 16]
  %5 = reshape(%4) {shape = <T, 16>} : f32[T, 16]
  %6 = linear(%5, %w, _, _) {n = 16} : f32[T, 16]
  %7 = fused(%6) {callee = "layer.cast"} : bf16[T, 16]
  return y = %7, z = %5
}
"#;

fn launches(refuses: &'static [&'static str]) -> (Plan, Vec<String>) {
    let mut module = parse_module(TEXT).unwrap();
    module.entries = vec!["main".into()];
    let plan = plan_memory(&module, "main", &[], &Converting(refuses)).unwrap();
    let types = |launch: &ir::Launch| {
        let spec = &plan.specs[launch.kernel as usize];
        let x = spec.operands[0].as_ref().unwrap().ty.dtype;
        format!("{} {x} {}", spec.op, spec.results[0].ty.dtype)
    };
    let found = plan.program.launches.iter().map(types).collect();
    (plan, found)
}

#[test]
fn kernels_that_convert_take_casts_over() {
    let (plan, found) = launches(&[]);
    assert_eq!(found, ["rms_norm f32 bf16", "linear bf16 f32", "linear f32 bf16"]);
    let y = &plan.program.outputs[0];
    assert_eq!((&*y.name, y.ty.dtype), ("y", DType::Bf16));
}

#[test]
fn a_product_is_not_of_narrower_operands_than_the_graph_has() {
    let text = r#"
module "m"
symbol T in 1..64
fn main(%x: f32[T, 16], %b: bf16[16, 16]) {
  %0 = cast(%b) {to = f32} : f32[16, 16]
  %1 = matmul(%x, %0) : f32[T, 16]
  %2 = cast(%b) {to = f32} : f32[16, 16]
  %3 = matmul(%2, %2) : f32[16, 16]
  return y = %1, z = %3
}
"#;
    let mut module = parse_module(text).unwrap();
    module.entries = vec!["main".into()];
    let plan = plan_memory(&module, "main", &[], &Converting(&[])).unwrap();
    let types = |spec: &KernelSpec| {
        let operands = spec.operands.iter().flatten().map(|layout| layout.ty.dtype);
        (spec.op, operands.collect::<Vec<_>>())
    };
    let found: Vec<_> = plan.specs.iter().map(types).collect();
    let (wide, narrow) = (DType::F32, DType::Bf16);
    assert!(found.contains(&("matmul", vec![wide, wide])), "{found:?}");
    assert!(found.contains(&("matmul", vec![narrow, narrow])), "{found:?}");
    assert_eq!(found.len(), 3, "{found:?}");
}

#[test]
fn what_does_not_convert_gets_casts() {
    let (_, found) = launches(&["linear"]);
    let want = ["rms_norm f32 bf16", "cast bf16 f32", "linear f32 f32", "linear f32 f32"];
    assert_eq!(found[..4], want);
    assert_eq!(found[4..], ["fused f32 bf16"]);
    let (_, found) = launches(&["linear", "rms_norm", "cast", "fused"]);
    assert_eq!(found.len(), 6);
    assert_eq!(found[..3], ["rms_norm f32 f32", "cast f32 bf16", "cast bf16 f32"]);
}

#[test]
fn results_are_narrow_each_by_itself_and_rows_of_odd_matrices_begin_even() {
    let text = r#"
module "m"
symbol T in 1..64
fn main(%x: f32[T, 5], %w: bf16[13, 5], %t: i32[T], %d: f32[T]) {
  %0, %1 = linear_cross_entropy_dlogits(%x, %w, %t, %d) : f32[T], f32[T, 13]
  %2 = cast(%1) {to = bf16} : bf16[T, 13]
  %3 = transpose(%2) {perm = [1, 0]} : bf16[13, T]
  %4 = cast(%3) {to = f32} : f32[13, T]
  %5 = matmul(%4, %x) : f32[13, 5]
  return loss = %0, dw = %5
}
"#;
    let plan = |refuses: &'static [&'static str]| {
        let mut module = parse_module(text).unwrap();
        module.entries = vec!["main".into()];
        plan_memory(&module, "main", &[], &Converting(refuses)).unwrap()
    };
    let narrow = plan(&[]);
    let types: Vec<DType> = narrow.specs[0].results.iter().map(|l| l.ty.dtype).collect();
    assert_eq!(types, [DType::F32, DType::Bf16]);
    // What does not convert is cast by a launch, which may choose where rows begin.
    let wide = plan(&["linear_cross_entropy_dlogits"]);
    assert_eq!(wide.specs[1].op, "cast");
    let strides = |layout: &ir::Layout| layout.strides.iter().map(ToString::to_string).collect();
    let of_cast: Vec<String> = strides(&wide.specs[1].results[0]);
    assert_eq!(of_cast, ["16", "1"]);
    // The product has a wide factor, so the other is widened first: of even rows.
    let read: Vec<String> = strides(wide.specs[2].operands[0].as_ref().unwrap());
    assert_eq!(read, ["1", "16"]);
}

#[test]
fn rows_of_logits_begin_even_and_stay_wide() {
    let text = r#"
module "m"
symbol T in 1..64
fn main(%x: f32[T, 5], %w: f32[5, 13], %t: i32[T], %d: f32[T]) {
  %0 = matmul(%x, %w) : f32[T, 13]
  %1, %2 = cross_entropy(%0, %t, %d) : f32[T], f32[T, 13]
  %3 = cast(%2) {to = bf16} : bf16[T, 13]
  %4 = cast(%3) {to = f32} : f32[T, 13]
  %5 = reduce_sum(%4) {axes = [0]} : f32[13]
  %6 = matmul(%x, %w) : f32[T, 13]
  return loss = %1, sum = %5, y = %6
}
"#;
    let mut module = parse_module(text).unwrap();
    module.entries = vec!["main".into()];
    let plan = plan_memory(&module, "main", &[], &Converting(&[])).unwrap();
    let of = |spec: &KernelSpec, port: usize| {
        let layout = &spec.results[port];
        (layout.ty.dtype, layout.strides[0].to_string())
    };
    assert_eq!(of(&plan.specs[0], 0), (DType::F32, "16".to_owned()));
    assert_eq!(of(&plan.specs[1], 1), (DType::Bf16, "16".to_owned()));
    let products = plan.specs.iter().filter(|spec| spec.op == "matmul");
    assert_eq!(products.map(|spec| of(spec, 0).1).collect::<Vec<_>>(), ["16", "13"]);
}

#[test]
fn parts_are_computed_where_they_belong() {
    let text = |width: i64| {
        let (both, all) = (2 * width, 3 * width);
        format!(
            r#"
module "m"
symbol T in 1..64
fn main(%x: f32[T, 2, {width}], %y: f32[T, {width}]) {{
  %0 = exp(%x) : f32[T, 2, {width}]
  %1 = reshape(%0) {{shape = <T, {both}>}} : f32[T, {both}]
  %2 = neg(%y) : f32[T, {width}]
  %3 = concat(%2, %1) {{axis = 1}} : f32[T, {all}]
  return z = %3
}}
"#
        )
    };
    let plan = |width: i64, refuses: &'static [&'static str]| {
        let mut module = parse_module(&text(width)).unwrap();
        module.entries = vec!["main".into()];
        plan_memory(&module, "main", &[], &Converting(refuses)).unwrap()
    };
    let ops = |plan: &Plan| plan.specs.iter().map(|spec| spec.op).collect::<Vec<_>>();
    let there = plan(4, &[]);
    assert_eq!(there.program.launches.len(), 2, "{:?}", ops(&there));
    let exp = there.specs.iter().find(|spec| spec.op == "exp").unwrap();
    let strides: Vec<String> = exp.results[0].strides.iter().map(ToString::to_string).collect();
    assert_eq!(strides, ["12", "4", "1"]);
    // A part begins between sixteen bytes, and a kernel may write dense rows only.
    assert_eq!(plan(3, &[]).program.launches.len(), 3);
    assert_eq!(plan(4, &["exp"]).program.launches.len(), 3);
}
