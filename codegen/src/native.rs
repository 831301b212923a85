//! The machine that this runs on, as a target.

use ir::{CpuFeature, Target};

use crate::mlir::Cpu;

/// Every extension that a target may name.
const FEATURES: &[CpuFeature] = &[
    CpuFeature::Avx2,
    CpuFeature::Fma,
    CpuFeature::F16c,
    CpuFeature::Bmi2,
    CpuFeature::Avx512f,
    CpuFeature::Avx512bw,
    CpuFeature::Avx512dq,
    CpuFeature::Avx512vl,
    CpuFeature::Avx512vnni,
    CpuFeature::Avx512bf16,
];

/// The level of the x86-64 architecture that this machine reaches, with the extensions beyond it
/// that kernels may use: what is named is all that the code needs.
///
/// # Errors
/// Names what the baseline needs and this machine lacks.
pub fn native_target() -> Result<Target, String> {
    let host = Cpu::native().features;
    let has = |f: CpuFeature| host.split(',').any(|h| h.strip_prefix('+') == Some(f.name()));
    let baseline = Target::x86_64_v3();
    let missing: Vec<&str> =
        baseline.features.iter().filter(|f| !has(**f)).map(|f| f.name()).collect();
    if !missing.is_empty() {
        return Err(format!("this machine lacks {}, which kernels need", missing.join(", ")));
    }
    let wide =
        [CpuFeature::Avx512f, CpuFeature::Avx512bw, CpuFeature::Avx512dq, CpuFeature::Avx512vl];
    let l2_bytes = l2_bytes().unwrap_or(baseline.l2_bytes);
    if !wide.iter().all(|f| has(*f)) {
        return Ok(Target { l2_bytes, ..baseline });
    }
    Ok(Target {
        cpu: "x86-64-v4".into(),
        features: FEATURES.iter().copied().filter(|f| has(*f)).collect(),
        vector_width: 16,
        l2_bytes,
        peak_flops: 1.5 * baseline.peak_flops,
        ..baseline
    })
}

/// Size of the second-level cache, as Linux tells it: `512K`.
fn l2_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index2/size").ok()?;
    let kib: u64 = text.trim().strip_suffix('K')?.parse().ok()?;
    Some(kib << 10)
}
