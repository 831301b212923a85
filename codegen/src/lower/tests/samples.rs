//! The samples of every operator that has a kernel.

use ir::{Env, OPS};

use super::run::{Case, Runner, assert_close};
use crate::lower::{LOWERINGS, lowering};

#[test]
fn every_operator_agrees_with_the_interpreter_on_its_samples() {
    let mut cases = Vec::new();
    for op in OPS.iter().filter(|op| lowering(op.name()).is_some()) {
        for sample in op.samples() {
            cases.push(Case { op: op.name(), attrs: sample.attrs, args: sample.args });
        }
    }
    // What CPUs refuse.
    let is_e4m3 = |case: &Case| match &case.args[..] {
        [_, Some(w), ..] if case.op == "quantized_linear" => {
            w.shape().last() == Some(&ir::E4M3_PANEL_BYTES)
        }
        _ => case.op == "quantize_rows" && case.spec().attrs.str("format") == "e4m3",
    };
    let refused = |case: &Case| lowering(case.op).unwrap().supports(&case.expected().0).is_err();
    assert!(cases.iter().filter(|case| is_e4m3(case)).all(refused));
    cases.retain(|case| !is_e4m3(case));
    let (specs, wanted): (Vec<_>, Vec<_>) = cases.iter().map(Case::expected).unzip();
    let runner = Runner::new(specs);
    for (i, (case, want)) in cases.iter().zip(&wanted).enumerate() {
        for parts in [1, 3] {
            let got = runner.run(i, &case.args, &Env::new(), parts);
            for (got, want) in got.iter().zip(want) {
                let what = format!("{} {:?} {:?} in {parts}", case.op, case.attrs, case.args);
                assert_close(&what, got, want, 2e-6);
            }
        }
    }
}

#[test]
fn every_operator_of_a_family_is_in_the_table_once() {
    let mut seen = Vec::new();
    for op in LOWERINGS.iter().flat_map(|family| family.ops()) {
        assert!(!seen.contains(op), "{op} is in two families");
        seen.push(op);
        let known = OPS.iter().any(|o| o.name() == *op);
        assert!(known || *op == "copy", "{op} is not in the operator table");
    }
}
