use super::run::{Case, Runner, noise};
use ir::{Attrs, DType, Env, Tensor};
fn cpu() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    #[allow(unsafe_code)]
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}
#[test]
#[ignore]
fn speed() {
    let mut cases: Vec<(String, Case, f64, f64)> = vec![];
    let n = |s: &[usize]| noise(DType::F32, s, 1);
    for (t, hq, hkv, d) in [(512usize, 16, 8, 128), (512, 12, 12, 64)] {
        for mask in ["causal", "full"] {
            let cu = Tensor::from_i64s(DType::I32, &[2], [0, t as i64]);
            let c = Case::new("attention", Attrs::none().with("scale", 0.1).with("mask", mask), &[&n(&[t, hq, d]), &n(&[t, hkv, d]), &n(&[t, hkv, d]), &cu]);
            let f = 4.0 * (t * t * hq * d) as f64 / if mask == "causal" { 2.0 } else { 1.0 };
            cases.push((format!("attention {mask} {t} {hq} {hkv} {d}"), c, f, (t * hkv * d * 8) as f64));
        }
    }
    for (t, pos, hq, hkv, d, dt) in [(1usize, 2047usize, 32, 8, 64, DType::F32), (1, 2047, 32, 8, 64, DType::Bf16), (1, 2047, 12, 12, 64, DType::F32), (512, 0, 16, 8, 128, DType::F32)] {
        let keys = pos + t;
        let nb = keys.div_ceil(32);
        let k = noise(dt, &[nb, hkv, d, 32], 1);
        let v = noise(dt, &[nb, hkv, 32, d], 1);
        let tables = Tensor::from_i64s(DType::I32, &[1, nb], 0..nb as i64);
        let cu = Tensor::from_i64s(DType::I32, &[2], [0, t as i64]);
        let p = Tensor::from_i64s(DType::I32, &[t], pos as i64..(pos + t) as i64);
        let c = Case::new("paged_attention", Attrs::none().with("scale", 0.1), &[&n(&[t, hq, d]), &k, &v, &tables, &cu, &p]);
        let f = 4.0 * (t * hq * d) as f64 * (pos as f64 + t as f64 / 2.0);
        cases.push((format!("paged {t} at {pos} {hq} {hkv} {d} {dt}"), c, f, (2 * keys * hkv * d * dt.size()) as f64));
    }
    for op in ["silu", "gelu", "exp", "tanh"] {
        cases.push((op.into(), Case::new(op, Attrs::none(), &[&n(&[256, 4096])]), 1048576.0, 8388608.0));
    }
    cases.push(("add".into(), Case::new("add", Attrs::none(), &[&n(&[256, 4096]), &n(&[4096])]), 1048576.0, 8388608.0));
    cases.push(("rms".into(), Case::new("rms_norm", Attrs::none().with("eps", 1e-5), &[&n(&[256, 4096]), &n(&[4096])]), 1048576.0, 8388608.0));
    cases.push(("softmax".into(), Case::new("softmax", Attrs::none(), &[&n(&[256, 4096])]), 1048576.0, 8388608.0));
    cases.push(("layer".into(), Case::new("layer_norm", Attrs::none().with("eps", 1e-5), &[&n(&[256, 768]), &n(&[768]), &n(&[768])]), 196608.0, 1572864.0));
    let (c, s) = (n(&[256, 32]), n(&[256, 32]));
    cases.push(("rope".into(), Case::new("rope", Attrs::none(), &[&n(&[256, 32, 64]), &c, &s]), 524288.0, 4194304.0));
    cases.push(("matmul".into(), Case::new("matmul", Attrs::none(), &[&n(&[384, 768]), &n(&[768, 768])]), 2.0 * 384.0 * 768.0 * 768.0, 0.0));
    cases.push(("reduce".into(), Case::new("reduce_sum", Attrs::none().with("axes", vec![0]), &[&n(&[1024, 1024])]), 1048576.0, 4194304.0));
    for (name, case, flops, bytes) in cases {
        let spec = case.spec();
        let t0 = std::time::Instant::now();
        let r = Runner::new(vec![spec]);
        let compile = t0.elapsed().as_secs_f64();
        let secs = r.time(0, &case.args, &Env::new(), cpu);
        println!("{name}: {:.3} ms {:.1} GF/s {:.1} GB/s compile {:.0} ms", secs * 1e3, flops / secs * 1e-9, bytes / secs * 1e-9, compile * 1e3);
    }
}
