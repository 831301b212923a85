//! Round trips, and every kind of damage at every section.

use std::{fs, path::PathBuf, sync::Arc};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    Bounds, CudaArch, CudaCode, CudaMatmul, CudaMatrix, CudaModule, CudaParam, CudaVariant, DType,
    Dim, Interval, Kernel, Launch, ModelInfo, ModelKind, Place, Port, Program, Region, Span,
    Symbols, Target, Tensor, TensorType,
};

fn place(region: Region, offset: impl Into<Dim>) -> Place {
    Place { region, offset: offset.into() }
}

fn program() -> Program {
    let t = || Dim::symbol("T");
    let port = |name: &str, region, offset: i64| Port {
        name: name.into(),
        ty: TensorType::new(DType::F32, [t(), Dim::from(3)]),
        place: place(region, offset),
    };
    Program {
        name: "main".into(),
        symbols: Symbols::from_iter([("T".into(), Bounds { lo: 1, hi: 10 })]),
        inputs: vec![port("x", Region::Arena, 0)],
        outputs: vec![port("y", Region::Arena, 128)],
        states: vec![port("memory", Region::State(0), 0)],
        kernels: vec![Kernel {
            op: "add".into(),
            symbol: "add_0".into(),
            code_offset: 16,
            dims: vec![t() * Dim::from(3)],
            tiles: t().ceil_div(4),
            scratch_bytes: 64,
            flops: t(),
            bytes: t() * Dim::from(24),
            cuda: Vec::new(),
        }],
        launches: vec![Launch {
            kernel: 0,
            args: vec![
                place(Region::Arena, 0),
                place(Region::Weight(1), 4),
                place(Region::State(0), t()),
                place(Region::Null, 0),
                place(Region::Arena, 128),
            ],
            label: "x + w".into(),
        }],
        arena_bytes: 256,
        intervals: vec![Interval { name: "x".into(), offset: 0, bytes: 120, first: 0, last: 1 }],
        window: Some(64),
        ..Program::default()
    }
}

fn weights() -> Vec<Tensor> {
    vec![
        Tensor::from_i64s(DType::I8, &[5000], (0..5000).map(|i| i % 100)),
        Tensor::from_f32s(&[2, 3], &[1.0, -2.0, 3.0, 0.5, 0.25, 0.125]),
        Tensor::from_i64s(DType::I4, &[2049, 2], (0..4098).map(|i| i % 8)),
    ]
}

fn contents(weights: &[Tensor]) -> Contents<'static> {
    let spec = |(i, t): (usize, &Tensor)| WeightSpec {
        name: format!("layer.{i}/\"w\""),
        dtype: t.dtype(),
        shape: t.shape().iter().map(|d| *d as u64).collect(),
        sources: vec![format!("model.w{i}")],
    };
    Contents {
        compiler: "brolly test".into(),
        target: Target { features: vec![], ..Target::x86_64_v3() },
        model: ModelInfo {
            architecture: "Test".into(),
            kind: ModelKind::Graph,
            vocab_size: 0,
            hidden_size: 0,
            max_seq_len: 0,
            parameters: 6,
        },
        source_digest: Digest::of(b"source"),
        code: &[0xc3; 100],
        modules: Vec::new(),
        folds: Vec::new(),
        random: None,
        text: json!({"tokenizer": "é\u{1F600}\n"}),
        report: json!([1, 2.5]),
        programs: vec![program()],
        weights: weights.iter().enumerate().map(spec).collect(),
    }
}

fn make(name: &str) -> (PathBuf, Manifest) {
    let folder = std::env::temp_dir().join(format!("brolly-artifact-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    let weights = weights();
    let manifest =
        write(&path, contents(&weights), |i| Ok::<_, String>(weights[i].clone())).unwrap();
    (path, manifest)
}

#[test]
fn what_is_written_is_read() {
    let (path, manifest) = make("round-trip.brolly");
    let artifact = Artifact::open(&path).unwrap();
    assert_eq!(artifact.manifest(), &manifest);
    assert!(artifact.is_verified());
    for (i, weight) in weights().iter().enumerate() {
        assert_eq!(&artifact.weight_tensor(i), weight);
        assert_eq!(artifact.weight(i).as_ptr() as usize % 64, 0);
    }
    assert_eq!(artifact.weight(0).as_ptr() as usize % 4096, 0);
    assert_eq!(artifact.text::<Value>().unwrap(), json!({"tokenizer": "é\u{1F600}\n"}));
    assert_eq!(artifact.report::<(i32, f64)>().unwrap(), (1, 2.5));
    assert_eq!(artifact.code_range().start % PAGE, 0);
    assert_eq!(artifact.program("main").unwrap(), &program());
    let error = artifact.program("embed").unwrap_err().to_string();
    assert!(error.ends_with("has no entry point `embed`; it has `main`"), "{error}");
}

#[test]
fn the_file_is_the_same_twice_and_safetensors_by_its_rules() {
    let (first, _) = make("twice-1.brolly");
    let (second, _) = make("twice-2.brolly");
    let bytes = fs::read(first).unwrap();
    assert_eq!(bytes, fs::read(second).unwrap());

    let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let value: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let mut end = 0;
    for (name, tensor) in value.as_object().unwrap().iter().filter(|(k, _)| *k != "__metadata__") {
        let number = |v: &Value| v.as_u64().unwrap();
        let [start, stop] = [0, 1].map(|i| number(&tensor["data_offsets"][i]));
        let size = match tensor["dtype"].as_str().unwrap() {
            "F32" => 4,
            "U8" | "I8" => 1,
            other => panic!("{other}"),
        };
        let elements: u64 = tensor["shape"].as_array().unwrap().iter().map(number).product();
        assert_eq!((start, stop - start), (end, elements * size), "{name}");
        end = stop;
    }
    assert_eq!(8 + header + usize::try_from(end).unwrap(), bytes.len());
}

#[test]
fn a_failed_write_leaves_what_was_there() {
    let (path, _) = make("kept.brolly");
    let before = fs::read(&path).unwrap();
    let tensors = weights();
    let fails = |i: usize| if i < 2 { Ok(tensors[i].clone()) } else { Err("disk on fire") };
    let error = write(&path, contents(&tensors), fails).unwrap_err().to_string();
    assert!(error.ends_with("weight `layer.2/\"w\"`: disk on fire"), "{error}");
    let error = write(&path, contents(&tensors), |_| Ok::<_, String>(tensors[0].clone()));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("is i8[5000], not f32[2, 3]"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
    let left: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().flatten().collect();
    assert!(left.iter().all(|f| !f.file_name().to_string_lossy().contains("kept.brolly.")));
}

#[test]
fn threads_write_the_same_file_and_stop_at_the_first_failure() {
    let (path, manifest) = make("serial.brolly");
    let tensors = weights();
    let threaded = path.with_file_name("threaded.brolly");
    let on = |n: usize, produce: &(dyn Fn(usize) -> Result<Tensor, String> + Sync)| {
        write_on(n.try_into().unwrap(), &threaded, contents(&tensors), produce)
    };
    for n in [1, 2, 7] {
        assert_eq!(on(n, &|i| Ok(tensors[i].clone())).unwrap(), manifest);
        assert_eq!(fs::read(&threaded).unwrap(), fs::read(&path).unwrap());
    }
    let error = on(2, &|_| Err("disk on fire".into())).unwrap_err().to_string();
    assert!(error.ends_with(": disk on fire"), "{error}");
    let panics = || on(2, &|i| if i == 1 { panic!("a bug") } else { Ok(tensors[i].clone()) });
    let payload = std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).unwrap_err();
    assert_eq!(payload.downcast_ref(), Some(&"a bug"));
    assert_eq!(fs::read(&threaded).unwrap(), fs::read(&path).unwrap());
}

#[test]
fn names_with_underscores_are_reserved_only_where_the_file_uses_them() {
    let path = make("names.brolly").0;
    let tensors = weights();
    let named = |name: &str| {
        let mut contents = contents(&tensors);
        contents.weights[1].name = name.into();
        write(&path, contents, |i| Ok::<_, String>(tensors[i].clone()))
    };
    named("__norm.weight").unwrap();
    assert_eq!(Artifact::open(&path).unwrap().weight_tensor(1), tensors[1]);
    for name in ["__metadata__", "__code.cpu", "__text", "__report", "__pad.7", "layer.0/\"w\""] {
        let error = named(name).unwrap_err().to_string();
        assert!(error.contains("the name is reserved or occurs twice"), "{error}");
    }
}

#[test]
fn two_writers_of_one_file_do_not_meet() {
    let path = make("shared.brolly").0;
    let tensors = weights();
    let plain = |i: usize| Ok::<_, String>(tensors[i].clone());
    let outer = write(&path, contents(&tensors), |i| {
        write(&path, contents(&tensors), plain).map(|_| tensors[i].clone())
    });
    assert_eq!(&outer.unwrap(), Artifact::open(&path).unwrap().manifest());
}

#[test]
fn every_truncation_and_extension_is_refused() {
    let (path, _) = make("short.brolly");
    let bytes = fs::read(&path).unwrap();
    for length in (0..bytes.len()).step_by(61).chain([bytes.len() - 1, 7, 8, 9, 4095, 4096]) {
        assert!(parse(&path, &bytes[..length]).is_err(), "{length}");
    }
    let longer = [&bytes[..], b"x"].concat();
    let error = parse(&path, &longer).unwrap_err().to_string();
    assert!(error.contains("bytes instead of"), "{error}");
}

#[test]
fn every_flipped_bit_is_refused() {
    let (path, manifest) = make("flipped.brolly");
    let bytes = fs::read(&path).unwrap();
    let data = bytes.len() - usize::try_from(layout::offsets(&manifest).unwrap().1).unwrap();
    let altered = path.with_file_name("altered.brolly");
    let places =
        (0..data).step_by(7).chain((data..bytes.len()).step_by(37)).chain(data..data + 300);
    for (n, place) in places.enumerate() {
        let mut copy = bytes.clone();
        copy[place] ^= 1 << (n % 8);
        let weights_only = parse(&path, &copy).is_ok();
        assert!(!weights_only || place > data + 300, "{place}");
        if weights_only {
            fs::write(&altered, &copy).unwrap();
            let error = Artifact::open(&altered).unwrap_err().to_string();
            assert!(error.contains("weight `layer."), "{place}: {error}");
        }
    }
}

#[test]
fn errors_say_what_and_what_to_do() {
    let (path, manifest) = make("errors.brolly");
    let error = |bytes: &[u8]| parse(&path, bytes).unwrap_err().to_string();
    let rewritten = |change: &dyn Fn(&mut Manifest)| {
        let mut other = manifest.clone();
        change(&mut other);
        error(&layout::header(&other))
    };
    assert!(error(b"# Title").contains("is not a compiled model"));
    let newer = rewritten(&|m| m.format = FORMAT + 1);
    assert!(newer.contains("a newer brolly made it: update this one"), "{newer}");
    let older = rewritten(&|m| m.format = 0);
    assert!(older.contains("has format 0, and this runtime reads formats 1 to 7"), "{older}");
    let plain = [&[2, 0, 0, 0, 0, 0, 0, 0][..], b"{}"].concat();
    assert!(error(&plain).contains("a safetensors file without a manifest"));

    let strange = path.with_file_name("strange.brolly");
    let tensors = weights();
    let target = Target { triple: "riscv64gc-unknown-linux-gnu".into(), ..Target::x86_64_v3() };
    let contents = Contents { target, ..contents(&tensors) };
    write(&strange, contents, |i| Ok::<_, String>(tensors[i].clone())).unwrap();
    let error = Artifact::open(&strange).unwrap_err().to_string();
    assert!(error.contains("this machine lacks the architecture"), "{error}");
    assert!(Artifact::open_foreign(&strange).is_ok());
}

#[test]
fn the_first_format_is_still_read() {
    let (path, mut manifest) = make("first.brolly");
    let bytes = fs::read(&path).unwrap();
    let data = layout::header(&manifest).len();
    manifest.format = 1;
    manifest.programs[0].window = None;
    let header = layout::header(&manifest);
    let text = serde_json::to_string(&manifest).unwrap();
    assert!(!text.contains("window"), "its programs have no such field");
    let read = parse(&path, &[&header, &bytes[data..]].concat()).unwrap();
    assert_eq!(read, manifest);
}

type Change = fn(&mut Manifest);

/// An artifact of one kernel for GPUs.
fn for_gpus() -> (PathBuf, Manifest) {
    let path = make("gpus.brolly").0.with_file_name("gpus.brolly");
    let tensors = weights();
    let t = || Dim::symbol("T");
    let variant = CudaVariant {
        symbol: "add_0".into(),
        module: 0,
        params: vec![CudaParam::Pointer { arg: 4, align: 16 }, CudaParam::Size(t())],
        early: vec![0],
        grid: [t().ceil_div(4), Dim::from(1), Dim::from(1)],
        block: 128,
        cluster: 1,
        shared_bytes: 64,
        limit: None,
    };
    let mut contents = Contents { target: Target::sm_80(), ..contents(&tensors) };
    let (ptx, cubin) = (Span { offset: 0, bytes: 60 }, Span { offset: 64, bytes: 36 });
    contents.modules = vec![CudaModule { arch: CudaArch::Sm80, ptx, cubin: Some(cubin) }];
    contents.programs[0].kernels[0].cuda =
        vec![CudaCode { arch: CudaArch::Sm80, variants: vec![variant], library: None }];
    let manifest = write(&path, contents, |i| Ok::<_, String>(tensors[i].clone())).unwrap();
    (path, manifest)
}

#[test]
fn code_for_gpus_is_checked_against_the_program() {
    let (path, manifest) = for_gpus();
    let artifact = Artifact::open(&path).unwrap();
    assert_eq!(*artifact.manifest(), manifest);
    assert_eq!(artifact.code(manifest.modules[0].ptx).len(), 60);
    let variant = |m: &mut Manifest| m.programs[0].kernels[0].cuda[0].variants[0].clone();
    let changes: [(&str, Change); 11] = [
        ("module 0 lies outside", |m| m.modules[0].ptx.bytes = u64::MAX),
        ("module 0 lies outside", |m| m.modules[0].cubin.as_mut().unwrap().offset = 65),
        ("another kind than the target", |m| m.target = Target::x86_64_v3()),
        ("another kind than the target", |m| m.programs[0].kernels[0].cuda.clear()),
        ("no variant for sm_80", |m| m.programs[0].kernels[0].cuda[0].variants.clear()),
        ("its module is not there", |m| m.modules[0].arch = CudaArch::Sm90a),
        ("block", |m| m.programs[0].kernels[0].cuda[0].variants[0].block = 0),
        ("grid", |m| m.programs[0].kernels[0].cuda[0].variants[0].grid[0] = Dim::from(-1)),
        ("an early operand that launches lack", |m| {
            m.programs[0].kernels[0].cuda[0].variants[0].early = vec![1, 5];
        }),
        ("an argument that launches lack", |m| {
            let variant = &mut m.programs[0].kernels[0].cuda[0].variants[0];
            variant.params[0] = CudaParam::Pointer { arg: 5, align: 1 };
        }),
        ("no variant for sm_80", |m| {
            m.programs[0].kernels[0].cuda[0].variants[0].limit = Some((Dim::symbol("T"), 4));
        }),
    ];
    contradict(&path, &manifest, &changes);
    let mut limited = manifest;
    let few = CudaVariant { limit: Some((Dim::symbol("T"), 4)), ..variant(&mut limited) };
    limited.programs[0].kernels[0].cuda[0].variants.insert(0, few);
    assert_eq!(check::manifest(&limited), Vec::<String>::new());
}

#[test]
fn products_by_a_library_are_checked_against_the_program() {
    let (path, mut manifest) = for_gpus();
    let rows = |arg: u32| CudaMatrix { arg, stride: Dim::from(8) };
    let matmul = CudaMatmul {
        m: Dim::symbol("T"),
        n: Dim::from(8),
        k: Dim::from(8),
        factors: DType::Bf16,
        results: DType::F32,
        transposed: true,
        x: rows(0),
        w: rows(1),
        bias: Some(2),
        residual: Some(rows(3)),
        y: rows(3),
        workspace: 4,
        workspace_bytes: 64,
    };
    let code = &mut manifest.programs[0].kernels[0].cuda[0];
    let variant = code.variants.pop().unwrap();
    code.library = Some(matmul);
    assert_eq!(check::manifest(&manifest), Vec::<String>::new());
    let text = serde_json::to_string(&manifest).unwrap();
    assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), manifest);
    type Change = fn(&mut CudaMatmul);
    let matmul = |m: &mut Manifest, change: Change| {
        change(m.programs[0].kernels[0].cuda[0].library.as_mut().unwrap());
    };
    let changes: [(&str, Change); 5] = [
        ("an argument that launches lack", |p| p.workspace = 5),
        ("an argument that launches lack", |p| p.bias = Some(7)),
        ("f32 in f32", |p| p.factors = DType::F32),
        ("sizes", |p| p.x.stride = Dim::from(-1)),
        ("sizes", |p| p.m = Dim::symbol("unknown")),
    ];
    for (problem, change) in changes {
        let mut other = manifest.clone();
        matmul(&mut other, change);
        let found = check::manifest(&other);
        assert!(found.iter().any(|p| p.contains(problem)), "{problem}: {found:?}");
    }
    manifest.programs[0].kernels[0].cuda[0].variants.push(variant);
    let found = check::manifest(&manifest);
    assert!(found.iter().any(|p| p.contains("no variant for sm_80")), "{found:?}");
    drop(path);
}

#[test]
fn weights_that_follow_from_a_seed_are_in_no_file() {
    let path = make("random.brolly").0.with_file_name("random.brolly");
    let tensors = weights();
    let contents = Contents { random: Some(7), ..contents(&tensors) };
    let never = |_| -> Result<Tensor, String> { Err("is not asked for".into()) };
    let manifest = write(&path, contents, never).unwrap();
    let bytes = fs::metadata(&path).unwrap().len();
    let header = layout::header(&manifest).len() as u64;
    assert_eq!(bytes, header + manifest.report.offset + manifest.report.bytes);
    let [a, b] = [0, 1].map(|_| Artifact::open(&path).unwrap());
    assert!(a.is_verified() || a.verify_weights(1).is_ok());
    for (i, tensor) in tensors.iter().enumerate() {
        assert_eq!(a.weight(i), b.weight(i));
        assert_eq!(a.weight(i).len(), tensor.to_bytes().len());
        assert_eq!(a.weight_tensor(i).to_bytes(), a.weight(i));
    }
    assert!(
        Artifact::open_foreign(&path).unwrap().weight(0).is_empty(),
        "not made to be looked at"
    );
}

#[test]
fn contradictions_are_found_even_with_right_digests() {
    let (path, manifest) = make("contradictions.brolly");
    let changes: [(&str, Change); 21] = [
        ("launch 0 is of kernel 7", |m| m.programs[0].launches[0].kernel = 7),
        ("args[1]", |m| m.programs[0].launches[0].args[1].region = Region::Weight(3)),
        ("args[2]", |m| m.programs[0].launches[0].args[2].region = Region::State(1)),
        ("args[0]", |m| m.programs[0].launches[0].args[0].offset = Dim::from(257)),
        ("args[0]", |m| m.programs[0].launches[0].args[0].offset = Dim::from(-1)),
        ("outside of the code", |m| m.programs[0].kernels[0].code_offset = 100),
        ("a symbol without bounds", |m| m.programs[0].kernels[0].dims[0] = Dim::symbol("Q")),
        ("dims[0] leaves", |m| m.programs[0].kernels[0].dims[0] = Dim::from(i64::MIN)),
        ("tiles", |m| m.programs[0].kernels[0].tiles = Dim::from(3) - Dim::symbol("T")),
        ("scratch_bytes", |m| m.programs[0].kernels[0].scratch_bytes = u64::MAX),
        ("arena_bytes", |m| m.programs[0].arena_bytes = u64::MAX),
        ("window", |m| m.programs[0].window = Some(0)),
        ("`y`", |m| m.programs[0].outputs[0].place.offset = Dim::from(137)),
        ("`memory`", |m| m.programs[0].states[0].place.region = Region::Arena),
        ("`x` occurs twice", |m| {
            let port = m.programs[0].inputs[0].clone();
            m.programs[0].inputs.push(port);
        }),
        ("intervals[0]", |m| m.programs[0].intervals[0].bytes = u64::MAX),
        ("entry `main` occurs twice", |m| m.programs.push(m.programs[0].clone())),
        ("bounds 3..2", |m| {
            m.programs[0].symbols.insert("T".into(), Bounds { lo: 3, hi: 2 });
        }),
        ("is not of 24 bytes", |m| m.weights[1].shape = vec![u64::MAX, u64::MAX]),
        ("reserved", |m| m.weights[1].name = "__code.cpu".into()),
        ("where their sizes put them", |m| m.code.bytes = u64::MAX - 3),
    ];
    contradict(&path, &manifest, &changes);
}

/// Asserts that each change of a manifest is found.
fn contradict(path: &std::path::Path, manifest: &Manifest, changes: &[(&str, Change)]) {
    for (wanted, change) in changes {
        let mut other = manifest.clone();
        change(&mut other);
        // The header's writer assumes offsets that add up; its text of the manifest is what
        // matters.
        let text = serde_json::to_string(&other).unwrap();
        let header = json!({"__metadata__": {
            "brolly.digest": Digest::of(text.as_bytes()), "brolly.manifest": text,
        }})
        .to_string();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        let error = parse(path, &bytes).unwrap_err().to_string();
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
}

#[test]
fn large_weights_are_verified_on_demand() {
    let path = make("large.brolly").0.with_file_name("large.brolly");
    let large = Tensor::from_bytes(DType::U8, &[1 << 20], vec![7; 1 << 20]);
    let tensors: Vec<Tensor> = (0..257).map(|_| large.clone()).collect();
    write(&path, contents(&tensors), |i| Ok::<_, String>(tensors[i].clone())).unwrap();
    let artifact = Artifact::open(&path).unwrap();
    assert!(!artifact.is_verified());
    artifact.verify_weights(3).unwrap();
    assert!(artifact.is_verified());

    let mut bytes = fs::read(&path).unwrap();
    let place = bytes.len() - (100 << 20);
    bytes[place] ^= 0x10;
    fs::write(&path, bytes).unwrap();
    let error = Artifact::open(&path).unwrap().verify_weights(2).unwrap_err().to_string();
    assert!(error.contains("weight `layer.157/\"w\"` differs from its digest"), "{error}");
    fs::remove_file(path).unwrap();
}

#[test]
fn digests_read_as_written() {
    let digest = Digest::of(b"abc");
    assert_eq!(digest.to_string().parse(), Ok(digest));
    for text in ["", "00", &"é".repeat(32), &digest.to_string().to_uppercase()] {
        assert!(text.parse::<Digest>().is_err(), "{text}");
    }
}

/// A header around any manifest text, with the right digest.
fn wrapped(manifest: &str) -> Vec<u8> {
    let digest = Digest::of(manifest.as_bytes());
    let metadata = json!({"brolly.digest": digest, "brolly.manifest": manifest});
    let header = json!({"__metadata__": metadata}).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
}

proptest! {
    #[test]
    fn any_bytes_are_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(parse("x".as_ref(), &bytes).is_err());
    }

    #[test]
    fn any_header_is_an_error(text in "\\PC{0,80}", length in 0..100u64) {
        let bytes = [&length.to_le_bytes()[..], text.as_bytes()].concat();
        prop_assert!(parse("x".as_ref(), &bytes).is_err());
    }

    /// One value of a whole manifest replaced, with the right digest: refused or harmless.
    #[test]
    fn any_altered_manifest_is_handled(place in any::<prop::sample::Index>(), with in 0..9usize) {
        let mut manifest = serde_json::to_value(sample()).unwrap();
        let mut paths = Vec::new();
        places(&manifest, "", &mut paths);
        let values = [json!(null), json!(-1), json!(u64::MAX), json!(1e300), json!(""), json!([]),
            json!({}), json!("T*T*T*T*T*T*T*T*T"), json!("max(T, -9223372036854775808)*T")];
        if let Some(value) = manifest.pointer_mut(place.get::<String>(&paths)) {
            *value = values[with].clone();
        }
        prop_assert!(parse("x".as_ref(), &wrapped(&manifest.to_string())).is_err());
    }
}

fn sample() -> Arc<Manifest> {
    static SAMPLE: std::sync::OnceLock<Arc<Manifest>> = std::sync::OnceLock::new();
    SAMPLE.get_or_init(|| Arc::new(make("sample.brolly").1)).clone()
}

/// All places in a JSON value, as paths.
fn places(value: &Value, path: &str, out: &mut Vec<String>) {
    out.push(path.to_owned());
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| places(value, &format!("{path}/{key}"), out));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, v)| places(v, &format!("{path}/{i}"), out));
        }
        _ => {}
    }
}
