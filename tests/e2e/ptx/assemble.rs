//! What NVIDIA's assembler makes of the kernels: no spills, no warnings, tensor core instructions,
//! and in the pipelined products a group in flight from step to step.

pub(super) mod fp8;
mod tiles;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    slice,
};

use codegen::{cuda::CudaKernel, lower::lowering};
use ir::{Attr, Attrs, DType, Dim, KernelSpec, Layout, OpRef, Symbols, Target, TensorType};

use super::device::{ptx_of, targets};

/// Where `cargo xtask ptxas` puts the programs.
pub(crate) fn programs() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/ptxas");
    if folder.join("ptxas").is_file() {
        return Some(folder);
    }
    println!("skipped: there is no ptxas; `cargo xtask ptxas` fetches it");
    None
}

/// The disassembly of a PTX text, and what the assembler said; or its errors.
fn assemble(folder: &Path, name: &str, ptx: &str, arch: &str) -> Result<(String, String), String> {
    let base = crate::support::scratch().join(format!("{name}-{arch}"));
    let (text, cubin) = (base.with_extension("ptx"), base.with_extension("cubin"));
    std::fs::write(&text, ptx).unwrap();
    let mut ptxas = Command::new(folder.join("ptxas"));
    ptxas.args(["-v", "-O3", &format!("-arch={arch}"), "-o"]).arg(&cubin).arg(&text);
    let output = ptxas.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(said);
    }
    let output = Command::new(folder.join("nvdisasm")).arg("-c").arg(&cubin).output().unwrap();
    Ok((String::from_utf8(output.stdout).unwrap(), said))
}

pub(super) fn layout(dtype: DType, shape: &[&str]) -> Layout {
    Layout::contiguous(&TensorType::new(dtype, shape.iter().map(|d| d.parse::<Dim>().unwrap())))
}

pub(super) fn spec(op: &str, attrs: Attrs, operands: &[Layout], results: &[Layout]) -> KernelSpec {
    KernelSpec {
        op: OpRef::named(op).0.name(),
        attrs,
        operands: operands.iter().cloned().map(Some).collect(),
        results: results.to_vec(),
        body: None,
        symbols: std::sync::Arc::new(Symbols::default()),
    }
}

/// Specifications as a model of eight thousand million parameters has them.
pub(super) fn products() -> Vec<(&'static str, KernelSpec)> {
    use DType::{Bf16, F16, F32};
    let act = |n: i64, act: &str| Attrs::none().with("n", n).with("act", act);
    let panels = |dtype, count: &str| layout(dtype, &[count, "4096", "16"]);
    let x = |dtype| layout(dtype, &["T", "4096"]);
    let square = |strides: [i64; 2]| Layout {
        strides: strides.map(Dim::from).into(),
        ..layout(Bf16, &["8192", "8192"])
    };
    let wide = layout(Bf16, &["T", "8192"]);
    vec![
        (
            "linear-bf16",
            spec("linear", act(4096, "none"), &[x(Bf16), panels(Bf16, "256")], &[x(Bf16)]),
        ),
        (
            "linear-f32",
            spec(
                "linear",
                act(4096, "gelu"),
                &[x(F32), panels(Bf16, "256"), layout(F32, &["4096"]), x(F32)],
                &[x(F32)],
            ),
        ),
        (
            "gated-f16",
            spec(
                "gated_linear",
                act(14336, "silu"),
                &[x(F16), panels(F16, "1792")],
                &[layout(F16, &["T", "14336"])],
            ),
        ),
        (
            "matmul-columns",
            spec(
                "matmul",
                Attrs::none(),
                &[wide.clone(), square([1, 8192])],
                slice::from_ref(&wide),
            ),
        ),
        (
            "matmul-rows",
            spec(
                "matmul",
                Attrs::none(),
                &[wide.clone(), square([8192, 1])],
                slice::from_ref(&wide),
            ),
        ),
    ]
}

/// Products with weights of 8 and 4 bits, of the same model.
pub(super) fn quantized() -> Vec<(&'static str, KernelSpec)> {
    use DType::{Bf16, F16, F32};
    let product = |x: DType, bits: usize, n: i64, gated: bool, fused: bool| {
        let bytes = ir::quant_lane_bytes(bits).to_string();
        let panels = (n / if gated { 8 } else { 16 }).to_string();
        let y = layout(x, &["T", &n.to_string()]);
        let mut operands =
            vec![layout(x, &["T", "4096"]), layout(DType::U8, &[&panels, "64", &bytes])];
        if fused {
            operands.extend([layout(x, &[&n.to_string()]), y.clone()]);
        }
        let act = if gated || fused { "silu" } else { "none" };
        let attrs = Attrs::none().with("n", n).with("act", act).with("gated", Attr::Bool(gated));
        spec("quantized_linear", attrs, &operands, &[y])
    };
    vec![
        ("q4-bf16", product(Bf16, 4, 4096, false, false)),
        ("q4-f32", product(F32, 4, 4096, false, true)),
        ("q8-f16", product(F16, 8, 14336, false, true)),
        ("q8-f32", product(F32, 8, 4096, false, false)),
        ("q4-gated-f16", product(F16, 4, 14336, true, false)),
        ("q8-gated-bf16", product(Bf16, 8, 14336, true, false)),
        ("q8-gated-f32", product(F32, 8, 14336, true, false)),
    ]
}

fn others() -> Vec<(&'static str, KernelSpec)> {
    use DType::{Bf16, F32, I32};
    let x = |dtype| layout(dtype, &["T", "4096"]);
    let none = Attrs::none;
    let heads = layout(F32, &["T", "32", "128"]);
    let (k, v) = (layout(Bf16, &["N", "8", "128", "16"]), layout(Bf16, &["N", "8", "16", "128"]));
    let (new, slots) = (layout(Bf16, &["T", "8", "128"]), layout(I32, &["T"]));
    let angles = layout(F32, &["T", "64"]);
    vec![
        (
            "rms-norm",
            spec(
                "rms_norm",
                none().with("eps", 1e-5),
                &[x(F32), layout(F32, &["4096"])],
                &[x(F32)],
            ),
        ),
        ("softmax", spec("softmax", none().with("axis", -1i64), &[x(Bf16)], &[x(Bf16)])),
        (
            "reduce",
            spec(
                "reduce_sum",
                none().with("axes", Attr::Ints(vec![-1])).with("keep", Attr::Bool(false)),
                &[x(F32)],
                &[layout(F32, &["T"])],
            ),
        ),
        (
            "rope",
            spec(
                "rope",
                none().with("style", "half"),
                &[heads.clone(), angles.clone(), angles],
                &[heads],
            ),
        ),
        (
            "gather",
            spec(
                "gather",
                none().with("axis", 0i64),
                &[layout(Bf16, &["32000", "4096"]), slots.clone()],
                &[x(Bf16)],
            ),
        ),
        (
            "kv-write",
            spec(
                "kv_write",
                none(),
                &[k.clone(), v.clone(), new.clone(), new, slots.clone()],
                &[k.clone(), v.clone()],
            ),
        ),
        ("rope-kv-write-i8", rope_kv_write_codes(DType::I8, [&k, &v], &slots)),
        ("rope-kv-write-fp8", rope_kv_write_codes(DType::F8E4M3, [&k, &v], &slots)),
        ("rope-kv-write", rope_kv_write([k, v], slots)),
        ("silu", spec("silu", none(), &[x(F32)], &[x(F32)])),
        ("attention-f32-64", attention_f32("attention_lse", "64")),
        ("attention-f32-128", attention_f32("attention_lse", "128")),
        ("attention-f32-256", attention_f32("attention_lse", "256")),
        ("attention-grad-64", attention_f32("attention_grad", "64")),
        ("attention-grad-128", attention_f32("attention_grad", "128")),
        ("attention-grad-256", attention_f32("attention_grad", "256")),
        ("attention-grad-bf16-64", attention_grad_of("64", Bf16)),
        ("attention-grad-bf16-128", attention_grad_of("128", Bf16)),
        ("weight-gradient-768x3072", weight_gradient("768", "3072")),
        ("weight-gradient-768x2304", weight_gradient("768", "2304")),
        ("weight-gradient-768x768", weight_gradient("768", "768")),
        ("attention-64", attention("64")),
        ("attention-128", attention("128")),
        ("attention-256", attention("256")),
        ("paged-attention-64", paged("64")),
        ("paged-attention-128", paged("128")),
        ("paged-attention-256", paged("256")),
        ("paged-attention-i8-64", paged_codes("64", DType::I8)),
        ("paged-attention-i8-128", paged_codes("128", DType::I8)),
        ("paged-attention-fp8-64", paged_codes("64", DType::F8E4M3)),
        ("paged-attention-fp8-128", paged_codes("128", DType::F8E4M3)),
    ]
}

/// Queries, keys and values of one product, and memories of keys and values.
fn rope_kv_write(memories: [Layout; 2], slots: Layout) -> KernelSpec {
    use DType::F32;
    let part = |heads: &str| {
        let mut part = layout(F32, &["T", heads, "128"]);
        part.strides[0] = Dim::from(6144);
        part
    };
    let angles = layout(F32, &["T", "64"]);
    let [k, v] = memories.clone();
    let operands = [k, v, part("32"), part("8"), part("8"), slots, angles.clone(), angles];
    let [k, v] = memories;
    let attrs = Attrs::none().with("style", "half");
    spec("rope_kv_write", attrs, &operands, &[k, v, layout(F32, &["T", "32", "128"])])
}

/// The same, with memories of eight bits.
fn rope_kv_write_codes(dtype: DType, memories: [&Layout; 2], slots: &Layout) -> KernelSpec {
    let mut memories = memories.map(Clone::clone);
    let scales = layout(DType::F32, &["N", "8", "16"]);
    memories.iter_mut().for_each(|memory| memory.ty.dtype = dtype);
    let mut spec = rope_kv_write(memories, slots.clone());
    spec.operands.extend([Some(scales.clone()), Some(scales.clone())]);
    spec.results.extend([scales.clone(), scales]);
    spec
}

/// Keys and values in eight bits, with scales.
fn paged_codes(size: &str, dtype: DType) -> KernelSpec {
    let mut spec = paged(size);
    for operand in &mut spec.operands[1..3] {
        operand.as_mut().expect("keys and values").ty.dtype = dtype;
    }
    let scales = layout(DType::F32, &["N", "8", "16"]);
    spec.operands.extend([Some(scales.clone()), Some(scales)]);
    spec
}

/// With logarithms of sums, or the gradient, as training has it.
fn attention_f32(op: &str, size: &str) -> KernelSpec {
    use DType::F32;
    let heads = layout(F32, &["T", "12", size]);
    let (offsets, logs) = (layout(DType::I32, &["S + 1"]), layout(F32, &["T", "12"]));
    let all = |count: usize| vec![heads.clone(); count];
    if op == "attention_lse" {
        let operands = [all(3), vec![offsets]].concat();
        return spec(op, scaled(), &operands, &[heads.clone(), logs]);
    }
    let operands = [all(4), vec![logs, heads.clone(), offsets]].concat();
    spec(op, scaled(), &operands, &all(3))
}

/// The gradient of attention, of factors of a type.
fn attention_grad_of(size: &str, dtype: DType) -> KernelSpec {
    let mut spec = attention_f32("attention_grad", size);
    for i in [0, 1, 2, 3, 5] {
        spec.operands[i].as_mut().expect("a factor").ty.dtype = dtype;
    }
    for result in &mut spec.results {
        result.ty.dtype = dtype;
    }
    spec
}

/// `xᵀ · dy` over tokens.
fn weight_gradient(k: &str, n: &str) -> KernelSpec {
    let mut x = layout(DType::Bf16, &["T", k]);
    x.ty.shape.swap(0, 1);
    x.strides.swap(0, 1);
    let dy = layout(DType::Bf16, &["T", n]);
    spec("matmul", Attrs::none(), &[x, dy], &[layout(DType::Bf16, &[k, n])])
}

fn scaled() -> Attrs {
    Attrs::none()
        .with("scale", 0.1)
        .with("mask", "causal")
        .with("window", 0i64)
        .with("softcap", 0.0)
}

/// Packed, 32 heads over 8 of this size.
pub(super) fn attention(size: &str) -> KernelSpec {
    let (q, kv) = (["T", "32", size], layout(DType::Bf16, &["T", "8", size]));
    let q = layout(DType::Bf16, &q);
    let offsets = layout(DType::I32, &["S + 1"]);
    spec("attention", scaled(), &[q.clone(), kv.clone(), kv, offsets], &[q])
}

pub(super) fn paged(size: &str) -> KernelSpec {
    let q = layout(DType::F32, &["T", "32", size]);
    let k = layout(DType::Bf16, &["N", "8", size, "16"]);
    let v = layout(DType::Bf16, &["N", "8", "16", size]);
    let ints = |shape: &[&str]| layout(DType::I32, shape);
    let operands = [q.clone(), k, v, ints(&["S", "M"]), ints(&["S + 1"]), ints(&["T"])];
    spec("paged_attention", scaled(), &operands, &[q])
}

pub(super) fn kernels(spec: &KernelSpec, target: &Target) -> Vec<CudaKernel> {
    lowering(spec.op).unwrap().emit_cuda(spec, target).unwrap_or_else(|e| panic!("{e}"))
}

/// Asserts that there is nothing to complain about, and returns the disassembly.
pub(super) fn clean(folder: &Path, name: &str, kernel: &CudaKernel, target: &Target) -> String {
    let ptx = ptx_of(kernel, target);
    let (sass, said) = assemble(folder, name, &ptx, &target.cpu).unwrap_or_else(|e| panic!("{e}"));
    assert!(said.contains("0 bytes spill stores, 0 bytes spill loads"), "{name}: {said}");
    assert!(said.contains("0 bytes stack frame"), "{name}: {said}");
    // C75xx: products that the assembler serialised, registers that it could not move.
    assert!(!said.contains("warning") && !said.contains("(C75"), "{name}: {said}");
    let registers = said.split("Used ").nth(1).and_then(|s| s.split(' ').next()).unwrap_or("?");
    let count = |what: &str| sass.lines().filter(|line| line.contains(what)).count();
    println!(
        "{name} {}: {registers} registers, {} bytes of shared memory, HMMA {}, HGMMA {}, LDSM {}, \
         LDGSTS {}, UTMALDG {}",
        target.cpu,
        kernel.shared_bytes,
        count("HMMA"),
        count("HGMMA"),
        count("LDSM"),
        count("LDGSTS"),
        count("UTMALDG")
    );
    sass
}

#[test]
fn every_kernel_is_assembled_without_spills() {
    let Some(folder) = programs() else { return };
    for target in targets() {
        for (name, spec) in others() {
            for (i, kernel) in kernels(&spec, &target).iter().enumerate() {
                let _ = clean(&folder, &format!("{name}-{i}"), kernel, &target);
            }
        }
    }
}

#[test]
fn products_use_tensor_cores() {
    let Some(folder) = programs() else { return };
    for target in targets() {
        for (name, spec) in products() {
            for (i, kernel) in kernels(&spec, &target).iter().enumerate() {
                let sass = clean(&folder, &format!("{name}-{i}"), kernel, &target);
                // Few rows take `mma.sync`.
                let wgmma = target.cpu == "sm_90a" && i > 1;
                assert!(sass.contains(if wgmma { "HGMMA" } else { "HMMA" }), "{name}-{i}");
                if wgmma {
                    assert!(stays_in_flight(&sass), "{name}-{i}: no group stays in flight");
                    assert!(sass.contains("UTMALDG"), "{name}-{i}: no bulk tensor copies");
                }
                assert_eq!(sass.contains("USETMAXREG"), wgmma, "{name}-{i}");
            }
        }
    }
}

#[test]
fn tiles_are_assembled_without_spills() {
    let Some(folder) = programs() else { return };
    for target in targets() {
        for (name, instruction, spec) in tiles::all() {
            for (i, kernel) in kernels(&spec, &target).iter().enumerate() {
                let sass = clean(&folder, &format!("{name}-{i}"), kernel, &target);
                assert!(sass.contains(instruction), "{name}-{i}: no {instruction}");
            }
        }
    }
}

#[test]
fn quantized_products_use_tensor_cores_and_wide_copies() {
    let Some(folder) = programs() else { return };
    for target in targets() {
        for (name, spec) in quantized() {
            let kernels = kernels(&spec, &target);
            let most = usize::from(target.cpu == "sm_80") + 4;
            assert_eq!(kernels.len(), most, "{name}: eight rows, sixteen, 64, any, in less memory");
            for (i, kernel) in kernels.iter().enumerate() {
                let sass = clean(&folder, &format!("{name}-{i}"), kernel, &target);
                let has = |what: &str| sass.lines().any(|line| line.contains(what));
                assert!(has("HMMA.16816.F32"), "{name}-{i}");
                assert!(has("LDGSTS.E.BYPASS.128"), "{name}-{i}: weights in sixteen bytes");
                assert!(i > 1 || has("LDG.E.128"), "{name}-{i}: rows in sixteen bytes");
            }
        }
    }
}

/// Whether the loop over k waits only until one group is left in flight: between a label and a
/// branch back to it there are products and such a wait, and no wait for all.
fn stays_in_flight(sass: &str) -> bool {
    let lines: Vec<&str> = sass.lines().collect();
    let label = |line: &str| line.strip_suffix(':').map(str::trim).map(str::to_owned);
    lines.iter().enumerate().any(|(start, line)| {
        let Some(label) = label(line) else { return false };
        let back = format!("BRA `({label})");
        let ends = lines.iter().enumerate().skip(start).filter(|(_, l)| l.contains(&back));
        ends.into_iter().any(|(end, _)| {
            let body = &lines[start..end];
            let has = |what: &str| body.iter().any(|line| line.contains(what));
            has("HGMMA") && has("WARPGROUP.DEPBAR.LE gsb0, 0x1") && !has("DEPBAR.LE gsb0, 0x0")
        })
    })
}

#[test]
fn stalls_and_complaints_are_seen() {
    let Some(folder) = programs() else { return };
    let target = Target::sm_90a();
    let (_, spec) = &products()[0];
    let kernel = kernels(spec, &target).pop().unwrap();
    let ptx = ptx_of(&kernel, &target);
    // All groups done at every step: nothing stays in flight.
    let waits = ptx.replace("wait_group.sync.aligned 1;", "wait_group.sync.aligned 0;");
    let (sass, _) = assemble(&folder, "waits", &waits, "sm_90a").unwrap();
    assert!(!stays_in_flight(&sass));
    // Fewer registers than the sums take: the assembler says that it does not move them.
    let cramped = ptx.replace("inc.sync.aligned.u32 184", "inc.sync.aligned.u32 144");
    let (_, said) = assemble(&folder, "cramped", &cramped, "sm_90a").unwrap();
    assert!(said.contains("(C75"), "{said}");
    assert!(
        assemble(&folder, "wrong", &ptx.replace("m64n256k16", "m64n257k16"), "sm_90a").is_err()
    );
}
