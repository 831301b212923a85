//! Trials and timings as cases for a real device, in the folder that `BROLLY_GPU_CASES` names.
//!
//! Code for `sm_90a` is assembled. For `sm_80` short texts stay PTX, which the driver assembles;
//! long ones are assembled for `sm_90`, which runs them too and has no cubins of its elders.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use codegen::cuda::{CudaKernel, CudaParam, Swizzle};
use cuda::{Launch, Param};
use gpu_check::{Case, Check, Folder, Operand, Output, Source};
use ir::{Dim, Env, KernelSpec, Target};

use super::{
    assemble::programs,
    device::{Same, Trial, bytes, size},
};

/// Bytes of PTX that the driver may be left to assemble.
const SHORT: usize = 24 << 10;

/// The folder, if cases are asked for.
pub(crate) fn folder() -> Option<Folder> {
    env::var_os("BROLLY_GPU_CASES").map(|folder| Folder::new(Path::new(&folder)))
}

/// Writes a trial's kernel, operands and expected results.
pub(crate) fn trial(trial: &Trial<'_>, kernel: &CudaKernel, ptx: &str) {
    let Some(folder) = folder() else { return };
    let Trial { case, spec, target, .. } = trial;
    let env = case.env();
    let file = |bytes: Vec<u8>| folder.write_data(&bytes).unwrap();
    let operands = spec.operands.iter().zip(&case.args).map(|(layout, arg)| {
        let (layout, arg) = (layout.as_ref()?, arg.as_ref()?);
        let source = Source::File(file(bytes(layout, arg, &env)));
        Some(Operand { dtype: arg.dtype(), shape: arg.shape().to_vec(), source })
    });
    let operands: Vec<Option<Operand>> = operands.collect();
    let expected = spec.results.iter().zip(trial.want);
    // The interpreter keeps f32 as f64.
    let files = expected
        .map(|(layout, want)| file(bytes(layout, &want.cast(layout.ty.dtype), &env)))
        .collect();
    let row = size(&spec.results[0], &env) / trial.want[0].shape().first().copied().unwrap_or(1);
    let same = trial.same.iter().map(|same| {
        let (name, offset, bytes) = match same {
            Same::Variants => {
                (format!("variants for {operands:?}"), 0, size(&spec.results[0], &env))
            }
            Same::Rows(name, first, count) => ((*name).to_owned(), first * row, count * row),
        };
        gpu_check::Same { name: format!("{name} on {}", target.cpu), offset, bytes }
    });
    let same = same.collect();
    folder
        .write_case(&Case {
            name: format!("{} {} {}", trial.what, target.cpu, kernel.symbol),
            family: trial.family.to_owned(),
            target: target.cpu.clone(),
            module: module(&folder, ptx, target),
            launch: launch(kernel, &env),
            results: outputs(spec, &env),
            operands,
            check: Check::Whole { files, tolerance: trial.tolerance },
            same,
            timing: None,
        })
        .unwrap();
}

/// Results as a specification has them.
pub(crate) fn outputs(spec: &KernelSpec, env: &Env) -> Vec<Output> {
    let in_place = KernelSpec::in_place(spec.op);
    let output = |(i, layout): (usize, &ir::Layout)| Output {
        dtype: layout.ty.dtype,
        shape: layout.ty.extents(env).unwrap().to_vec(),
        in_place: in_place.iter().find(|(r, _)| *r == i).map(|(_, o)| u32::try_from(*o).unwrap()),
    };
    spec.results.iter().enumerate().map(output).collect()
}

/// A launch of a kernel for these sizes.
pub(crate) fn launch(kernel: &CudaKernel, env: &Env) -> Launch {
    let value = |dim: &Dim| dim.eval(env).unwrap();
    let unsigned = |dim: &Dim| u64::try_from(value(dim)).unwrap();
    let param = |param: &CudaParam| match param {
        CudaParam::Pointer { arg, align } => Param::Pointer { arg: *arg, align: *align },
        CudaParam::Size(dim) => Param::Size(value(dim)),
        CudaParam::Map(map) => Param::Map(cuda::TensorMap {
            arg: map.arg,
            dtype: map.dtype,
            extents: map.extents.iter().map(unsigned).collect(),
            strides: map.strides.iter().map(unsigned).collect(),
            boxes: map.boxes.clone(),
            swizzle: match map.swizzle {
                Swizzle::Bytes32 => cuda::Swizzle::Bytes32,
                Swizzle::Bytes64 => cuda::Swizzle::Bytes64,
                Swizzle::Bytes128 => cuda::Swizzle::Bytes128,
            },
        }),
    };
    Launch {
        symbol: kernel.symbol.clone(),
        params: kernel.params.iter().map(param).collect(),
        grid: kernel.grid.each_ref().map(|dim| u32::try_from(value(dim)).unwrap()),
        block: kernel.block,
        cluster: kernel.cluster,
        shared_bytes: kernel.shared_bytes,
        dependent: false,
    }
}

/// Writes the code for a kernel's PTX and returns the file's name.
pub(crate) fn module(folder: &Folder, ptx: &str, target: &Target) -> String {
    let programs = programs();
    let is_short = target.cpu == "sm_80" && ptx.len() <= SHORT;
    let (Some(programs), false) = (programs, is_short) else {
        return folder.write_kernel(ptx, "ptx", || Ok(ptx.as_bytes().to_vec())).unwrap();
    };
    let arch = if target.cpu == "sm_80" { "sm_90" } else { &target.cpu };
    folder.write_kernel(ptx, "cubin", || assemble(&programs, ptx, arch)).unwrap()
}

fn assemble(programs: &Path, ptx: &str, arch: &str) -> io::Result<Vec<u8>> {
    let thread = format!("{:?}", std::thread::current().id());
    let base: PathBuf = crate::support::scratch().join(format!("record-{thread}"));
    let (text, cubin) = (base.with_extension("ptx"), base.with_extension("cubin"));
    fs::write(&text, ptx)?;
    let mut ptxas = Command::new(programs.join("ptxas"));
    ptxas.args(["-O3", &format!("-arch={arch}"), "-o"]).arg(&cubin).arg(&text);
    let output = ptxas.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    fs::read(&cubin)
}
