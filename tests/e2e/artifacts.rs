//! Artifacts: the same model gives the same bytes, and damage is found before anything runs.

use std::{collections::BTreeMap, num::NonZeroUsize};

use driver::{CompileOptions, KernelCache};
use frontend::ImportOptions;
use ir::{CpuFeature, Target};
use serve::{Session, SessionOptions};

use crate::support::{compile_to, data, options, scratch};

#[test]
fn two_compiles_give_the_same_bytes() {
    for case in
        ["families/llama-sharded", "families/bert-gelu", "onnx/bert-torchscript-eager/model.onnx"]
    {
        let model = data(case);
        let bytes = [None, NonZeroUsize::new(1)].map(|threads| {
            let options = CompileOptions { threads, ..options(ImportOptions::default()) };
            let (path, _) = compile_to("same", &model, &options);
            std::fs::read(path).unwrap()
        });
        assert!(bytes[0] == bytes[1], "{case}: artifacts differ");
    }
}

#[test]
fn kept_kernels_give_the_same_bytes_and_damaged_ones_are_compiled_again() {
    let model = data("families/llama-gqa3");
    let folder = scratch().join("kernels");
    let _ = std::fs::remove_dir_all(&folder);
    let bytes = |kernel_cache: Option<KernelCache>| {
        let options = CompileOptions { kernel_cache, ..options(ImportOptions::default()) };
        let (path, _) = compile_to("kept", &model, &options);
        std::fs::read(path).unwrap()
    };
    let files = || {
        let entries = std::fs::read_dir(&folder).unwrap().flatten();
        let read = |e: std::fs::DirEntry| (e.path(), std::fs::read(e.path()).unwrap());
        entries.map(read).collect::<BTreeMap<_, _>>()
    };
    let cache = || Some(KernelCache::at(&folder));
    let without = bytes(None);
    assert!(bytes(cache()) == without, "while it is filled");
    let kept = files();
    assert!(kept.len() > 3);
    assert!(bytes(cache()) == without, "from the cache");
    for (i, (path, content)) in kept.iter().enumerate() {
        let mut content = content.clone();
        match i % 3 {
            0 => content.truncate(content.len() / 2),
            1 => *content.last_mut().unwrap() ^= 1,
            _ => content.clear(),
        }
        std::fs::write(path, content).unwrap();
    }
    assert!(bytes(cache()) == without, "from a damaged cache");
    assert!(files() == kept, "it is whole again");
}

#[test]
fn a_damaged_artifact_is_refused_with_a_reason() {
    let model = data("families/llama-gqa3");
    let (path, _) = compile_to("damage", &model, &options(ImportOptions::default()));
    let good = std::fs::read(&path).unwrap();
    let bad = scratch().join("damaged.brolly");
    let refused = |bytes: &[u8], what: &str| {
        std::fs::write(&bad, bytes).unwrap();
        match Session::open(&bad, SessionOptions::default()) {
            Ok(_) => panic!("{what}: accepted"),
            Err(e) => {
                let text = e.to_string();
                assert!(text.contains("damaged.brolly"), "{what}: {text}");
            }
        }
    };
    for n in [0, 1, 7, 8, 100, good.len() / 2, good.len() - 1] {
        refused(&good[..n], &format!("cut to {n} bytes"));
    }
    // One bit in every part of the file: header, code, text, weights.
    for at in (0..good.len()).step_by(good.len() / 97 + 1).chain([good.len() - 1]) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        refused(&bytes, &format!("a bit of byte {at}"));
    }
}

#[test]
fn code_for_another_cpu_is_refused_by_the_feature_that_is_missing() {
    if std::arch::is_x86_feature_detected!("avx512bf16") {
        println!("skipped: this machine has avx512bf16");
        return;
    }
    let mut target = Target::x86_64_v3();
    target.features.push(CpuFeature::Avx512bf16);
    let compile = CompileOptions { target, ..options(ImportOptions::default()) };
    let (path, _) = compile_to("avx512", &data("families/llama-gqa3"), &compile);
    match Session::open(&path, SessionOptions::default()) {
        Ok(_) => panic!("accepted"),
        Err(e) => assert!(e.to_string().contains("avx512bf16"), "{e}"),
    }
}
