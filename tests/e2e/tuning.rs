//! Schedules: found by a search, given in a table, and without effect on results.

use std::{num::NonZeroUsize, time::Duration};

use driver::{
    Candidate, Clock, CompileError, CompileOptions, Family, GpuLibrary, KernelCache, Product, Tile,
    Timed, TuneOptions, Tuned, Tuning, tune, tune_gpu, tuning_device,
};
use frontend::ImportOptions;
use ir::{CudaArch, Target, artifact::Artifact};

use crate::{
    gpu,
    support::{compile_to, data, open, options, scratch},
};

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
    let mut compile = CompileOptions {
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
    let one = [Product { family: Family::Q4, n: 40, k: 96, gated: false }];
    let device = tuning_device(&mut compile).unwrap();
    let mut found = |_: &Product, tuned: &Tuned| tried.push(tuned.candidates);
    let table = tune(&one, &search, &compile, &device, &mut found).unwrap();
    assert!(tried.len() == 1 && tried[0] >= 6, "{tried:?}");
    assert!(table.entries.len() <= 1);
    assert_eq!(Tuning::parse(&table.text()).unwrap(), table);
}

/// A clock by which some tiles take half the time of others.
struct Likes<F>(F, Vec<Tile>);

impl<F: Fn(Tile) -> bool> Clock for Likes<F> {
    fn seconds(
        &mut self,
        candidate: Candidate,
        rows: u64,
        run: &mut dyn FnMut() -> Result<(), String>,
    ) -> Result<f64, String> {
        let seconds = rows as f64 / 1e6;
        // The library is slow with few rows, and fast with many.
        let Candidate::Tile(tile) = candidate else {
            run()?;
            return Ok(if rows < 4 { seconds * 2.0 } else { seconds / 4.0 });
        };
        if !self.1.contains(&tile) {
            self.1.push(tile);
            run()?;
        }
        Ok(if (self.0)(tile) { seconds / 2.0 } else { seconds })
    }
}

fn for_gpu(target: &Target, most_rows: u64) -> CompileOptions {
    let import = ImportOptions { max_batch_tokens: most_rows, ..ImportOptions::default() };
    CompileOptions { target: target.clone(), gpus: vec![target.clone()], ..options(import) }
}

fn on_emulator(
    product: Product,
    (target, most_rows): (&Target, u64),
    likes: impl Fn(Tile) -> bool,
) -> (Tuning, Tuned, usize) {
    let search =
        TuneOptions { model: None, families: Vec::new(), time_limit: Duration::from_secs(600) };
    let arch = target.cuda.unwrap().arch;
    let device = exec::Device::cuda(gpu::emulated(arch), NonZeroUsize::new(1)).unwrap();
    let (mut clock, mut found) = (Likes(likes, Vec::new()), Vec::new());
    let compile = for_gpu(target, most_rows);
    let mut hear = |_: &Product, tuned: &Tuned| found.push(tuned.clone());
    let table = tune_gpu(&[product], &search, &compile, &device, &mut clock, &mut hear).unwrap();
    assert_eq!(Tuning::parse(&table.text()).unwrap(), table);
    (table, found.remove(0), clock.1.len())
}

/// On emulated GPUs, by a clock that likes some tiles: all candidates compute the same bits, and
/// what is faster is found, a neighbour or two away, for the rows that it is faster for.
#[test]
fn the_faster_tile_is_found_on_a_gpu() {
    let q4 = Product { family: Family::Q4, n: 48, k: 192, gated: false };
    let likes = |tile| matches!(tile, Tile::Stream(stream) if stream.ahead_bytes == 256);
    let (table, tuned, run) = on_emulator(q4, (&Target::sm_80(), 8), likes);
    let [entry] = &table.entries[..] else { panic!("{table:?}") };
    assert!(likes(entry.tiles[0].tile) && entry.tiles[0].rows == Some(8), "{entry:?}");
    assert!(!likes(entry.tiles[1].tile), "no more rows than 8 were asked for");
    assert!(tuned.rows == [8, 8] && tuned.ratio == [0.5, 0.5] && tuned.candidates >= 5);
    assert!(run > 5, "candidates are run");
    // Where nothing is faster, the default stays.
    let gated = Product { family: Family::Q8, n: 64, k: 64, gated: true };
    let none = |_| false;
    let (table, tuned, _) = on_emulator(gated, (&Target::sm_90a(), 8), none);
    assert!(table.entries.is_empty() && tuned.ratio == [1.0, 1.0], "{table:?}");
}

/// Where the library is asked for, its times are in the table, beside tiles that stay as they are.
#[test]
fn the_library_is_timed_beside_the_tiles() {
    let bf16 = Product { family: Family::Bf16, n: 64, k: 64, gated: false };
    let search =
        TuneOptions { model: None, families: Vec::new(), time_limit: Duration::from_secs(0) };
    let device = exec::Device::cuda(gpu::emulated(CudaArch::Sm80), NonZeroUsize::new(1)).unwrap();
    let compile =
        CompileOptions { gpu_library: Some(GpuLibrary::CublasLt), ..for_gpu(&Target::sm_80(), 8) };
    let mut clock = Likes(|_| false, Vec::new());
    let found = tune_gpu(&[bf16], &search, &compile, &device, &mut clock, |_, _| {}).unwrap();
    let [entry] = &found.entries[..] else { panic!("{found:?}") };
    assert!(entry.tiles.is_empty() && (entry.n, entry.k) == (64, 64));
    let rows: Vec<u64> = entry.library.iter().map(|timed| timed.rows).collect();
    let ratios: Vec<f64> = entry.library.iter().map(Timed::ratio).collect();
    assert_eq!(rows, [1, 4, 8]);
    assert!((ratios[0] - 2.0).abs() < 0.05 && (ratios[2] - 0.25).abs() < 0.05, "{ratios:?}");
    assert_eq!(Tuning::parse(&found.text()).unwrap(), found);
}

/// A table changes the code of the products that it names, and says so in the artifact.
#[test]
fn tiles_change_code_and_no_result_on_a_gpu() {
    let folder = data("families/llama-rope-llama3");
    let mut entries = String::new();
    for (n, k) in (4..11).flat_map(|n| (4..11).map(move |k| (1 << n, 1 << k))) {
        for gated in [false, true] {
            entries += &format!(
                "[[entry]]\ntarget = \"sm_80\"\nfamily = \"bf16\"\nn = {n}\nk = {k}\n\
                 gated = {gated}\ntiles = [{{ kernel = \"mma\", m = 32, n = 64, k = 32, \
                 warps = [2, 1], stages = 3 }}]\n"
            );
        }
    }
    let run = |tuning: Tuning| {
        let mut options = for_gpu(&Target::sm_80(), 32);
        options.import.max_seq_len = Some(96);
        options.import.dtype = Some(ir::DType::Bf16);
        options.kv_dtype = ir::DType::Bf16;
        options.kernel_cache = Some(KernelCache::at(&scratch().join("tile-kernels")));
        options.tuning = tuning;
        let (path, _) = compile_to("tiles", &folder, &options);
        let (mut session, _) = gpu::open_on_gpu(&path, CudaArch::Sm80, 1);
        let scores = session.score(&[3, 17, 40, 5, 9, 80, 2]).unwrap();
        let bits: Vec<_> = scores.iter().map(|s| s.map(f32::to_bits)).collect();
        let artifact = Artifact::open(&path).unwrap();
        let report: serde_json::Value = artifact.report().unwrap();
        (artifact.manifest().modules.len(), bits, report["tuning"].clone())
    };
    let plain = run(Tuning::default());
    let tuned = run(Tuning::parse(&entries).unwrap());
    assert!(tuned.0 < plain.0, "one tile for all rows: {} and {} modules", tuned.0, plain.0);
    assert!(plain.1 == tuned.1, "and no bit of a result changes");
    assert!(plain.2.is_null() && tuned.2.as_array().is_some_and(|list| list.len() == 98));
}

#[test]
fn without_a_gpu_the_error_says_what_to_do() {
    if exec::Device::gpus().is_ok_and(|count| count > 0) {
        println!("skipped: there is a GPU");
        return;
    }
    let error = tuning_device(&mut for_gpu(&Target::sm_80(), 8)).unwrap_err();
    assert!(matches!(error, CompileError::NoGpu { .. }) && !error.is_bug());
    let text = error.to_string();
    assert!(text.contains("on the GPU that they are for: no NVIDIA driver"), "{text}");
    assert!(text.contains("run `brolly tune` on a machine that has one"), "{text}");
}
