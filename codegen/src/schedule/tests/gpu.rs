//! Tables of tiles for GPUs are read back, or refused by tile and field.

use ir::{Dim, Target};

use super::super::*;
use crate::{
    kernels::{
        gemm::{Form, Matrix, tile},
        matmul::Activation,
    },
    library::LibraryProduct,
};

const TABLE: &str = r#"[[entry]]
target = "sm_90a"
family = "bf16"
n = 4096
k = 2048
tiles = [
  { rows = 16, kernel = "mma", m = 16, n = 64, k = 64, warps = [1, 2], stages = 8, copiers = 2 },
  { rows = 128, kernel = "wgmma", n = 96, stages = 7 },
  { kernel = "wgmma", n = 256, stages = 4 },
]
"#;

fn product(family: Family, n: i64, gated: bool) -> Gemm {
    let (elem, bits) = match family {
        Family::F32 => (Elem::F32, None),
        Family::F16 => (Elem::F16, None),
        Family::Fp8 => (Elem::I8, None),
        Family::Q8 => (Elem::Bf16, Some(8)),
        Family::Q4 => (Elem::Bf16, Some(4)),
        Family::Bf16 => (Elem::Bf16, None),
    };
    let matrix = |arg, stride| Matrix { arg, elem, stride };
    Gemm {
        rows: Dim::symbol("T"),
        n,
        k: 2048,
        a: matrix(0, 2048),
        w: 1,
        w_elem: elem,
        bits,
        form: Form::Panels,
        gated,
        activation: Activation::None,
        bias: None,
        residual: None,
        y: matrix(2, n),
        map: None,
    }
}

fn families() -> impl Iterator<Item = (Family, Target)> {
    let both = [Target::sm_80(), Target::sm_90a()];
    let all = Family::ALL.into_iter().flat_map(move |f| both.clone().map(|gpu| (f, gpu)));
    all.chain([(Family::Fp8, Target::sm_90a())])
}

/// What follows from sizes is legal, and found where tables have nothing; so is all that a search
/// tries beside it, and there is something to try.
#[test]
fn tiles_that_follow_from_sizes_are_legal_and_have_neighbours() {
    for (family, target) in families() {
        let gpu = target.cuda.unwrap();
        for gated in [false, true] {
            let place = Place { family, gated, gpu };
            for n in [48, 1024, 4096, 14336, 128_256] {
                let product = product(family, n, gated);
                let tiles = tile::defaults(&product, &gpu);
                place.check(&tiles).unwrap_or_else(|e| panic!("{family:?} {n} {gpu:?}: {e}"));
                assert_eq!(Tuning::builtin().tiles(&target, &gpu, &product), tiles);
                for variant in tiles {
                    assert_eq!(variant.tile.fitted(&product, &gpu), Some(variant.tile));
                    let others = place.around(variant.tile, variant.rows.unwrap_or(4096));
                    assert!(others.len() >= 3 || variant.rows == Some(16), "{variant:?}");
                    for other in others {
                        place.check_tile(other).unwrap();
                        let fits = other.fitted(&product, &gpu).is_some();
                        assert!(fits || !matches!(other, Tile::Wgmma(_)), "{other:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn tables_of_tiles_are_found_by_class_and_read_back() {
    let table = Tuning::parse(TABLE).unwrap();
    assert_eq!(Tuning::parse(&table.text()).unwrap(), table);
    let all = families().flat_map(|(family, target)| {
        let gpu = target.cuda.unwrap();
        [false, true].map(|gated| Entry {
            target: target.cpu.clone(),
            family,
            n: 4096,
            k: 2048,
            gated,
            schedule: Schedule::default(),
            tiles: tile::defaults(&product(family, 4096, gated), &gpu),
            library: Vec::new(),
        })
    });
    let all = Tuning { entries: all.collect() };
    assert_eq!(Tuning::parse(&all.text()).unwrap(), all);
    let (hopper, ampere) = (Target::sm_90a(), Target::sm_80());
    let find =
        |target: &Target, product: &Gemm| table.tiles(target, &target.cuda.unwrap(), product);
    let own = &table.entries[0].tiles;
    assert_eq!(find(&hopper, &product(Family::Bf16, 8191, false)), *own);
    for (target, other) in [
        (&hopper, product(Family::Bf16, 8192, false)),
        (&hopper, product(Family::F16, 4096, false)),
        (&hopper, product(Family::Bf16, 4096, true)),
        (&ampere, product(Family::Bf16, 4096, false)),
    ] {
        let defaults = tile::defaults(&other, &target.cuda.unwrap());
        assert!(defaults != *own && find(target, &other) == defaults, "{other:?}");
    }
    // Rows that the copy engine cannot read have the kernels without it; f32 rows fewer stages.
    let odd = Gemm { k: 2047, ..product(Family::Bf16, 4096, false) };
    let odd = Gemm { k: 2049, a: Matrix { stride: 2049, ..odd.a }, ..odd };
    assert_eq!(find(&hopper, &odd), tile::defaults(&odd, &hopper.cuda.unwrap()));
    let wide = Gemm { a: Matrix { arg: 0, elem: Elem::F32, stride: 2048 }, ..odd };
    let long = TABLE.replace(
        "k = 64, warps = [1, 2], stages = 8",
        "k = 128, warps = [1, 2], \
                              stages = 11",
    );
    let wide = Gemm { k: 2048, ..wide };
    let long = Tuning::parse(&long).unwrap();
    let Tile::Mma(tile) = long.tiles(&hopper, &hopper.cuda.unwrap(), &wide)[0].tile else {
        panic!("a ring")
    };
    assert_eq!(tile.stages, 9, "of 24,576 bytes");
}

#[test]
fn what_no_gpu_can_do_is_refused_by_tile_and_field() {
    for (from, to, why) in [
        ("m = 16,", "m = 48,", "entry 1: tile 1: `m` is 48; it must be a power of two"),
        ("warps = [1, 2]", "warps = [1, 8]", "tile 1: `warps` is [1, 8]"),
        ("k = 64,", "k = 48,", "tile 1: `k` is 48; it must be one of 32, 64, 128"),
        ("stages = 8", "stages = 17", "tile 1: `stages` is 17"),
        ("stages = 7", "stages = 9", "tile 2: needs 258192 bytes of shared memory"),
        ("n = 96", "n = 100", "tile 2: `n` is 100; it must be a multiple of 32"),
        ("rows = 128", "rows = 16", "tile 2: `rows` is 16"),
        ("rows = 128, ", "", "tile 2: has no `rows`"),
        ("{ kernel = \"wgmma\", n = 256", "{ rows = 512, kernel = \"wgmma\", n = 256", "the last"),
        ("sm_90a", "sm_80", "tile 2: kernel `wgmma` is for sm_90a"),
        ("bf16", "q4", "tile 1: kernel `mma`: products of q4 have `stream` and `lanes`"),
        ("sm_90a", "x86-64-v3", "`tiles` is for GPUs"),
        ("copiers = 2", "copier = 2", "unknown field `copier`"),
        ("\"mma\"", "\"wmma\"", "unknown variant `wmma`"),
        ("k = 2048\n", "k = 2048\nschedule = { unroll = 2 }\n", "`schedule` is for CPUs"),
    ] {
        assert!(TABLE.contains(from), "{from}");
        let error = Tuning::parse(&TABLE.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(why), "{to}: {error}");
    }
    let large = |warps: [i64; 2], m: i64, n: i64| {
        let place =
            Place { family: Family::Bf16, gated: false, gpu: Target::sm_80().cuda.unwrap() };
        let tile = crate::kernels::gemm::sm80::Tile { m, n, k: 32, warps, stages: 3, copiers: 0 };
        place.check_tile(Tile::Mma(tile))
    };
    assert!(large([2, 2], 128, 128).is_ok());
    assert!(large([2, 2], 256, 128).unwrap_err().contains("no registers"));
    assert!(large([4, 4], 256, 256).unwrap_err().contains("no registers"));
}

#[test]
fn times_of_the_library_are_found_by_class_and_rows() {
    let text = r#"
        [[entry]]
        target = "sm_90a"
        family = "bf16"
        n = 4096
        k = 4096
        library = [
            { rows = 1, generated_ns = 10000, cublaslt_ns = 20000 },
            { rows = 256, generated_ns = 40000, cublaslt_ns = 30000 },
        ]
    "#;
    let table = Tuning::parse(text).unwrap();
    assert_eq!(Tuning::parse(&table.text()).unwrap(), table);
    let product = |n: u64| LibraryProduct { family: Family::Bf16, n, k: 5000 };
    let ratio = |n: u64, rows: i64| table.library_ratio(&Target::sm_90a(), &product(n), rows);
    assert_eq!(ratio(4096, 1), Some(2.0));
    assert_eq!(ratio(8191, 15), Some(2.0), "16 is as near to 256");
    assert_eq!(ratio(4096, 17), Some(0.75));
    assert_eq!(ratio(4096, 100_000), Some(0.75));
    assert_eq!(ratio(8192, 1), None, "another class");
    assert_eq!(table.library_ratio(&Target::sm_80(), &product(4096), 1), None);
    assert!(table.has_library(&Target::sm_90a()) && !table.has_library(&Target::sm_80()));
    // Such an entry says nothing of tiles.
    let hopper = Target::sm_90a();
    let gemm = self::product(Family::Bf16, 4096, false);
    let gpu = hopper.cuda.unwrap();
    assert_eq!(table.tiles(&hopper, &gpu, &gemm), tile::defaults(&gemm, &gpu));
    for (from, to, problem) in [
        ("rows = 256", "rows = 1", "behind 1"),
        ("generated_ns = 10000", "generated_ns = 0", "is 0"),
        ("family = \"bf16\"", "family = \"q8\"", "bf16 and f16"),
        ("target = \"sm_90a\"", "target = \"x86-64-v3\"", "`library` is for GPUs"),
    ] {
        let why = Tuning::parse(&text.replace(from, to)).unwrap_err().to_string();
        assert!(why.contains(problem), "{why}");
    }
}
