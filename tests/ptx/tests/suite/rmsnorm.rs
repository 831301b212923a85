//! RMS norm and SiLU with shuffles and one barrier, against f64.

use brolly_ptx::{Arch, FaultKind, Gpu, Launch, Module, Param};
use half::bf16;

use crate::common::{Random, fixture, replace};

const WIDTH: usize = 4096;

fn run(text: &str, seed: u64) -> Result<Vec<bf16>, FaultKind> {
    let module = Module::parse(text).unwrap_or_else(|errors| panic!("{errors}"));
    let mut gpu = Gpu::new(Arch::Sm80);
    let (x, weight) = inputs();
    let [given, gain] = [x, weight].map(|values| {
        let address = gpu.alloc(values.len() * 4);
        gpu.write_f32s(address, &values);
        address
    });
    let out = gpu.alloc(2 * WIDTH * 2);
    let launch = Launch {
        grid: [2, 1, 1],
        block: [256, 1, 1],
        params: vec![Param::U64(given), Param::U64(gain), Param::U64(out)],
        seed,
        ..Launch::default()
    };
    gpu.launch(&module, "rmsnorm_silu", &launch).map_err(|fault| fault.kind)?;
    let bytes = gpu.read(out, 2 * WIDTH * 2);
    Ok(bytes.chunks_exact(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]])).collect())
}

fn inputs() -> (Vec<f32>, Vec<f32>) {
    let mut random = Random::new(5);
    let x = (0..2 * WIDTH).map(|_| random.unit() * 3.0).collect();
    (x, (0..WIDTH).map(|_| random.unit()).collect())
}

#[test]
fn it_matches_f64_within_a_rounding_and_whatever_the_seed() {
    let found = run(&fixture("rmsnorm.sm_80.ptx"), 0).unwrap();
    let (x, weight) = inputs();
    for (row, values) in x.chunks_exact(WIDTH).enumerate() {
        let square = |value: &f32| f64::from(*value) * f64::from(*value);
        let mean = values.iter().map(square).sum::<f64>() / WIDTH as f64;
        for (column, value) in values.iter().enumerate() {
            let normed = f64::from(*value) / (mean + 1e-6).sqrt() * f64::from(weight[column]);
            let expected = normed / (1.0 + (-normed).exp());
            let error = (found[row * WIDTH + column].to_f64() - expected).abs();
            assert!(error <= expected.abs() / 200.0 + 1e-6, "{row} {column}: {error}");
        }
    }
    for seed in 1..6 {
        assert_eq!(run(&fixture("rmsnorm.sm_80.ptx"), seed).unwrap(), found);
    }
}

#[test]
fn without_its_barrier_it_faults() {
    let text = replace(&fixture("rmsnorm.sm_80.ptx"), "bar.sync \t0;", "");
    for seed in 0..8 {
        let kind = run(&text, seed).unwrap_err();
        let found = matches!(kind, FaultKind::Race { .. } | FaultKind::Uninitialised { .. });
        assert!(found, "{kind}");
    }
}

#[test]
fn a_barrier_for_too_few_threads_is_caught() {
    let text = replace(&fixture("rmsnorm.sm_80.ptx"), "bar.sync \t0;", "bar.sync \t0, 128;");
    let kind = run(&text, 3).unwrap_err();
    let found = matches!(
        kind,
        FaultKind::Race { .. } | FaultKind::Uninitialised { .. } | FaultKind::Barrier { .. }
    );
    assert!(found, "{kind}");
}
