//! Schedules: found by a search, given in a table, and without effect on results.

use std::time::Duration;

use driver::{CompileOptions, Family, KernelCache, Product, TuneOptions, Tuning, tune};
use frontend::ImportOptions;

use crate::support::{compile_to, data, open, options, scratch};

/// A schedule for every class of shapes up to 4096.
fn everywhere(family: &str, schedule: &str) -> Tuning {
    let mut text = String::new();
    for (n, k) in (4..12).flat_map(|n| (4..12).map(move |k| (1 << n, 1 << k))) {
        text += &format!(
            "[[entry]]\ntarget = \"x86-64-v3\"\nfamily = \"{family}\"\nn = {n}\nk = {k}\n\
             schedule = {{ {schedule} }}\n"
        );
    }
    Tuning::parse(&text).unwrap()
}

#[test]
fn schedules_change_code_and_no_result() {
    let model = data("stories");
    let tokens: Vec<u32> = (0..150).map(|i| 2 + i * 37 % 2000).collect();
    let run = |tuning: Tuning| {
        let options = CompileOptions { tuning, ..options(ImportOptions::default()) };
        let (path, _) = compile_to("tuned", &model, &options);
        let code = std::fs::read(&path).unwrap();
        let scores = open(&path, 2).score(&tokens).unwrap();
        let bits: Vec<_> = scores.iter().map(|s| s.map(f32::to_bits)).collect();
        (code, bits)
    };
    let plain = run(Tuning::default());
    let odd = "tile_rows = 5, k_block = 48, row_block = 60, unroll = 2, prefetch_bytes = 512";
    let tuned = run(everywhere("bf16", odd));
    assert!(plain.0 != tuned.0, "the table is read");
    assert!(plain.1 == tuned.1, "and changes no bit");
}

#[test]
fn a_search_tries_candidates_and_gives_a_table_that_reads_back() {
    let compile = CompileOptions {
        kernel_cache: Some(KernelCache::at(&scratch().join("tuned-kernels"))),
        ..options(ImportOptions::default())
    };
    let search = TuneOptions {
        model: Some(data("families/llama-gqa3")),
        families: vec![Family::F32],
        time_limit: Duration::from_secs(600),
    };
    let products = driver::products(&search, &compile).unwrap();
    assert!(!products.is_empty() && products.iter().all(|p| p.family == Family::F32));
    let mut tried = Vec::new();
    let one = [Product { family: Family::Q4, n: 40, k: 96 }];
    let table = tune(&one, &search, &compile, |_, tuned| tried.push(tuned.candidates)).unwrap();
    assert!(tried.len() == 1 && tried[0] >= 6, "{tried:?}");
    assert!(table.entries.len() <= 1);
    assert_eq!(Tuning::parse(&table.text()).unwrap(), table);
}
