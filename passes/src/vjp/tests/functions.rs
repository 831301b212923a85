//! Functions that call functions, what is kept between their forms, and what is refused.

use ir::{Env, Module, Tensor, parse_module};

use super::{Recompute, Weights, Wrt, bits, compare, differentiate, names, run};
use crate::{PassError, testing::sample};

/// `outer` calls `inner` twice, and reads a weight that `inner` reads as well; `main` calls both.
const NESTED: &str = r#"module "m"
symbol T in 1..8
weight "w" : f32[4, 4]
weight "s" : f32[4]
entry main

fn inner(%x: f32[T, 4], %u: f32[4, 4], %n: i32[T]) {
  %0 = matmul(%x, %u) : f32[T, 4]
  %1 = tanh(%0) : f32[T, 4]
  %2 = weight() {name = "s"} : f32[4]
  %3 = mul(%1, %2) : f32[T, 4]
  %4 = exp(%3) : f32[T, 4]
  return y = %3, z = %4, n = %n, x = %x
}

fn outer(%x: f32[T, 4], %w: f32[4, 4], %n: i32[T]) {
  %0, %1, %2, %3 = call(%x, %w, %n) {callee = "inner"} : f32[T, 4], f32[T, 4], i32[T], f32[T, 4]
  %4 = transpose(%w) {perm = [1, 0]} : f32[4, 4]
  %5, %6, %7, %8 = call(%1, %4, %2) {callee = "inner"} : f32[T, 4], f32[T, 4], i32[T], f32[T, 4]
  %9 = weight() {name = "s"} : f32[4]
  %10 = mul(%5, %9) : f32[T, 4]
  %11 = add(%10, %3) : f32[T, 4]
  return y = %11
}

fn main(%x: f32[T, 4], %n: i32[T]) {
  %0 = weight() {name = "w"} : f32[4, 4]
  %1 = call(%x, %0, %n) {callee = "outer"} : f32[T, 4]
  %2, %3, %4, %5 = call(%1, %0, %n) {callee = "inner"} : f32[T, 4], f32[T, 4], i32[T], f32[T, 4]
  %6 = reduce_sum(%2) {axes = [0, 1]} : f32[]
  return loss = %6, y = %1
}
"#;

fn inputs(m: &Module, env: &Env) -> (Weights, Vec<Tensor>) {
    let weights = m.weights.iter().enumerate();
    let weights = weights.map(|(i, (n, ty))| (n.clone(), super::wide(&sample(ty, env, i + 3))));
    let main = &m.functions["main"];
    let params = main.param_values().enumerate();
    (weights.collect(), params.map(|(i, p)| super::wide(&sample(main.ty(p), env, 9 * i))).collect())
}

#[test]
fn calls_within_calls() {
    let m = parse_module(NESTED).unwrap();
    let env = Env::from([("T".into(), 3)]);
    let (weights, inputs) = inputs(&m, &env);
    let wrt = Wrt { weights: names(&["w", "s"]), params: names(&["x"]) };
    let with = differentiate(&m, "main", &wrt, "loss", Recompute::None).unwrap();
    let out = run(&with, "main.grad", &weights, &inputs, &env);
    let loss = |w: &Weights, x: &[Tensor]| run(&m, "main", w, x, &env)[0].to_f64s()[0];
    let outputs: Vec<&str> =
        with.functions["main.grad"].outputs.iter().map(|(n, _)| &**n).collect();
    assert_eq!(outputs, ["loss", "y", "grad.s", "grad.w", "grad.x"]);
    for (i, name) in [(2, "s"), (3, "w")] {
        let mut moved = |t: &Tensor| {
            let mut weights = weights.clone();
            weights.insert(name.into(), t.clone());
            loss(&weights, &inputs)
        };
        compare(&out[i], &weights[name], &mut moved).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let mut moved = |t: &Tensor| loss(&weights, &[t.clone(), inputs[1].clone()]);
    compare(&out[4], &inputs[0], &mut moved).unwrap_or_else(|e| panic!("x: {e}"));
    let again = differentiate(&m, "main", &wrt, "loss", Recompute::Full).unwrap();
    assert_eq!(bits(&out), bits(&run(&again, "main.grad", &weights, &inputs, &env)));
    // The text of what was made reads back.
    assert_eq!(parse_module(&with.to_string()).unwrap().to_string(), with.to_string());
}

/// Of a layer's values: the input of `tanh`'s product, which is an argument, and its result; no
/// views, and nothing that weights alone determine.
#[test]
fn what_is_kept() {
    let text = r#"module "m"
weight "w" : bf16[3, 2]
entry main

fn layer(%x: f32[2], %w: bf16[3, 2]) {
  %0 = transpose(%w) {perm = [1, 0]} : bf16[2, 3]
  %1 = cast(%0) {to = f32} : f32[2, 3]
  %2 = reshape(%x) {shape = <1, 2>} : f32[1, 2]
  %3 = matmul(%2, %1) : f32[1, 3]
  %4 = reshape(%3) {shape = <3>} : f32[3]
  %5 = tanh(%4) : f32[3]
  %6 = mul(%5, %5) : f32[3]
  return y = %6
}

fn main(%x: f32[2]) {
  %0 = weight() {name = "w"} : bf16[3, 2]
  %1 = call(%x, %0) {callee = "layer"} : f32[3]
  %2 = reduce_sum(%1) {axes = [0]} : f32[]
  return loss = %2
}
"#;
    let m = parse_module(text).unwrap();
    let wrt = Wrt { weights: names(&["w"]), params: names(&["x"]) };
    let kept = |how| {
        let with = differentiate(&m, "main", &wrt, "loss", how).unwrap();
        let back = &with.functions["layer.backward"];
        let types: Vec<String> = back.param_values().map(|p| back.ty(p).to_string()).collect();
        (types, with.functions.contains_key("layer.forward"))
    };
    let given = ["f32[2]".to_string(), "bf16[3, 2]".into()];
    let of = |more: &[&str]| {
        given.iter().cloned().chain(more.iter().map(|s| (*s).to_string())).collect::<Vec<_>>()
    };
    assert_eq!(kept(Recompute::None), (of(&["f32[3]", "f32[3]"]), true));
    assert_eq!(kept(Recompute::Full), (of(&["f32[3]"]), false));
}

fn refusals(text: &str, wrt: &Wrt, loss: &str) -> Vec<String> {
    let m = parse_module(text).unwrap();
    let errors = differentiate(&m, "main", wrt, loss, Recompute::None).unwrap_err();
    errors.iter().map(PassError::to_string).collect()
}

const REFUSED: &str = r#"module "m"
weight "w" : f32[4]
entry main

fn layer(%x: f32[4]) {
  %0, %1 = quantize_heads(%x) : i8[4], f32[] @ "layer.quantize"
  %2 = mul(%x, %1) : f32[4]
  return y = %2
}

fn main(%x: f32[4], %i: i32[4]) {
  %0 = weight() {name = "w"} : f32[4]
  %1 = call(%0) {callee = "layer"} : f32[4]
  %2, %3 = quantize_heads(%1) : i8[4], f32[]
  %4 = floor(%3) : f32[]
  return loss = %3, floor = %4, many = %1, x = %x
}
"#;

#[test]
fn refusals_name_operator_node_function_and_reason() {
    let wrt = Wrt { weights: names(&["w"]), ..Wrt::default() };
    let reason = "rounds keys and values to eight bits, which has no derivative";
    assert_eq!(
        refusals(REFUSED, &wrt, "loss"),
        [
            format!("function `layer`: `quantize_heads` (node `layer.quantize`) {reason}"),
            format!("function `main`: `quantize_heads` {reason}"),
        ]
    );
}

#[test]
fn a_derivative_of_zero_hides_what_has_none() {
    let m = parse_module(REFUSED).unwrap();
    let wrt = Wrt { weights: names(&["w"]), ..Wrt::default() };
    let with = differentiate(&m, "main", &wrt, "floor", Recompute::None).unwrap();
    let main = &with.functions["main.grad"];
    assert_eq!(crate::testing::count(main, "call"), 1, "the forward alone");
    let grad = main.outputs.last().unwrap().1;
    assert_eq!(main.node(grad.node).op.name(), "broadcast_to");
}

#[test]
fn names_that_there_are_not_are_all_told() {
    let wrt = Wrt { weights: names(&["v"]), params: names(&["i", "q"]) };
    assert_eq!(
        refusals(REFUSED, &wrt, "many"),
        [
            "function `main`: the module has no weight `v`",
            "function `main`: parameter `i` is i32[4], which has no gradient",
            "function `main`: has no parameter `q`",
            "function `main`: the loss `many` is f32[4], not one float",
        ]
    );
    let none = refusals(REFUSED, &Wrt::default(), "none");
    assert_eq!(none, ["function `main`: has no output `none`"]);
}

/// What the loss does not depend on has a gradient of zeros.
#[test]
fn gradients_of_what_is_not_read_are_zero() {
    let text = r#"module "m"
weight "w" : bf16[2]
entry main

fn main(%x: f32[], %y: f32[3]) {
  %0 = mul(%x, %x) : f32[]
  return loss = %0
}
"#;
    let m = parse_module(text).unwrap();
    let wrt = Wrt { weights: names(&["w"]), params: names(&["x", "y"]) };
    let with = differentiate(&m, "main", &wrt, "loss", Recompute::None).unwrap();
    let env = Env::new();
    let (weights, inputs) = inputs(&m, &env);
    let out = run(&with, "main.grad", &weights, &inputs, &env);
    let x = inputs[0].to_f64s()[0];
    assert_eq!(out[1].to_f64s(), [0.0, 0.0]);
    assert_eq!(out[1].dtype(), ir::DType::Bf16);
    assert_eq!((out[2].to_f64s(), out[3].to_f64s()), (vec![2.0 * x], vec![0.0; 3]));
}
