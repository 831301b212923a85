//! Every operator that has a GPU kernel, on the operator table's own samples.

use codegen::{cuda::CudaKernel, lower::lowering};
use ir::OPS;

use super::{
    case::{Case, first_far},
    device::{ptx_of, run_text, targets},
};

/// Products and attention, of which there are several kernels by the number of rows: they have
/// suites of their own.
const ELSEWHERE: &[&str] = &[
    "linear",
    "gated_linear",
    "matmul",
    "quantized_linear",
    "quantized_gated_linear",
    "linear_grad",
    "grouped_linear",
    "grouped_gated_linear",
    "linear_cross_entropy",
    "linear_cross_entropy_dlogits",
    "linear_cross_entropy_grad",
    "attention",
    "attention_lse",
    "attention_grad",
    "paged_attention",
];

#[test]
fn every_operator_agrees_with_the_interpreter_on_its_samples() {
    let mut wrong = Vec::new();
    for op in OPS {
        let Some(family) = lowering(op.name()) else { continue };
        if ELSEWHERE.contains(&op.name()) {
            continue;
        }
        for (number, sample) in op.samples().into_iter().enumerate() {
            let args: Vec<_> = sample.args.iter().map(Option::as_ref).collect();
            let case = Case::new(op.name(), sample.attrs, &args);
            let (spec, want) = case.expected();
            for target in targets() {
                // Only `sm_90a` has the type.
                let is_e4m3 = op.name() == "quantize_rows" && spec.attrs.str("format") == "e4m3";
                if is_e4m3 && target.cpu == "sm_80" {
                    continue;
                }
                let what = format!("{}, sample {number}", op.name());
                let kernels = match family.emit_cuda(&spec, &target) {
                    Ok(kernels) => kernels,
                    Err(e) => {
                        wrong.push(format!("{what}: {e}"));
                        continue;
                    }
                };
                let env = case.env();
                let is_empty = |kernel: &&CudaKernel| {
                    kernel.grid.iter().any(|blocks| blocks.eval(&env).unwrap() == 0)
                };
                // Of no elements there is nothing to launch.
                for kernel in kernels.iter().filter(|kernel| !is_empty(kernel)) {
                    let text = ptx_of(kernel, &target);
                    let run = run_text(&text, &case, &spec, kernel, &target, 1);
                    let got = match run {
                        Ok((got, _)) => got,
                        Err(fault) => {
                            wrong.push(format!("{what} on {}: {fault}", target.cpu));
                            continue;
                        }
                    };
                    let far = got.iter().zip(&want).filter_map(|(g, w)| first_far(g, w, 1e-5));
                    for (i, got, want) in far {
                        let cpu = &target.cpu;
                        wrong.push(format!("{what} on {cpu}: element {i} is {got}, not {want}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
