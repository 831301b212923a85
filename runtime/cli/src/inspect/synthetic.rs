//! A manifest as a compiler would write it, for tests.

use ir::{
    DType, Dim, Interval, Kernel, Launch, ModelInfo, ModelKind, Place, Port, Program, Region as At,
    Symbols, Target, TensorType,
    artifact::{FORMAT, Manifest, PackedWeight},
};

use super::{Region, Report};

const KERNELS: [(&str, &str, i64); 4] = [
    ("gather", "256*T", 0),
    ("rms_norm", "512*T", 3),
    ("linear", "1024*T + 65536", 128),
    ("paged_attention", "4096*T", 64),
];

/// A decoder of so many layers.
pub(super) fn decoder(layers: usize) -> (Manifest, Report) {
    let manifest = Manifest {
        format: FORMAT,
        compiler: "brolly 0.0.0".into(),
        target: Target::x86_64_v3(),
        model: ModelInfo {
            architecture: "LlamaForCausalLM".into(),
            kind: ModelKind::Decoder,
            vocab_size: 100,
            hidden_size: 64,
            max_seq_len: 128,
            parameters: 12_345,
        },
        source_digest: Default::default(),
        code: Default::default(),
        modules: Vec::new(),
        folds: Vec::new(),
        random: None,
        text: Default::default(),
        report: Default::default(),
        programs: vec![program(layers)],
        weights: vec![PackedWeight {
            name: "embed".into(),
            dtype: DType::Bf16,
            shape: vec![100, 64],
            offset: 0,
            bytes: 12_800,
            digest: Default::default(),
            sources: vec!["model.embed_tokens.weight".into()],
        }],
    };
    let region = |kind: &str, loc: &str, fused: bool| Region {
        kind: kind.into(),
        function: "layer".into(),
        loc: loc.into(),
        count: layers as u64,
        fused,
        why_not: (!fused).then(|| "the gate is no known activation".into()),
    };
    let fusions = vec![
        region("attention", "self_attn", true),
        region("norm", "input_layernorm", true),
        region("mlp", "mlp", false),
    ];
    (manifest, Report { fusions, tuning: Vec::new() })
}

fn program(layers: usize) -> Program {
    let arena = |offset: u64| Place {
        region: At::Arena,
        offset: Dim::from(i64::try_from(offset).unwrap()),
    };
    let port = |name: &str, dtype, shape: &[Dim], place: Place| Port {
        name: name.into(),
        ty: TensorType::new(dtype, shape.iter().cloned()),
        place,
    };
    let (t, s, nb) = (Dim::symbol("T"), Dim::symbol("S"), Dim::symbol("NB"));
    let bounds = |hi| ir::Bounds { lo: 1, hi };
    let kernel = |(op, bytes, flops): &(&str, &str, i64)| Kernel {
        op: (*op).into(),
        symbol: format!("{op}_0"),
        code_offset: 0,
        dims: vec![t.clone()],
        tiles: t.clone(),
        scratch_bytes: 1024,
        flops: t.clone() * Dim::from(*flops * 1000),
        bytes: bytes.parse().unwrap(),
        cuda: Vec::new(),
    };
    let mut out = Program {
        name: "step".into(),
        symbols: Symbols::from_iter([
            ("T".into(), bounds(64)),
            ("S".into(), bounds(4)),
            ("NB".into(), bounds(1 << 24)),
        ]),
        inputs: vec![
            port("tokens", DType::I32, std::slice::from_ref(&t), arena(0)),
            port("block_tables", DType::I32, &[s, Dim::from(8)], arena(256)),
        ],
        states: vec![port(
            "k_cache.0",
            DType::F32,
            &[nb, 2.into(), 16.into(), 16.into()],
            Place { region: At::State(0), offset: Dim::from(0) },
        )],
        kernels: KERNELS.iter().map(kernel).collect(),
        ..Program::default()
    };
    let mut add = |kernel: u32, label: String, offset: u64, lasts: u32| {
        let first = u32::try_from(out.launches.len()).unwrap();
        let name = label.rsplit_once(' ').unwrap().0.to_owned();
        out.launches.push(Launch { kernel, args: Vec::new(), label });
        let last = first + lasts;
        out.intervals.push(Interval { name, offset, bytes: 16 << 10, first, last });
    };
    add(0, "embed_tokens gather".into(), 16 << 10, 3);
    for layer in 0..layers {
        add(1, format!("layer.{layer}/input_layernorm rms_norm"), 32 << 10, 1);
        add(2, format!("layer.{layer}/qkv linear"), 48 << 10, 1);
        add(3, format!("layer.{layer}/self_attn paged_attention"), 32 << 10, 1);
        add(2, format!("layer.{layer}/o_proj linear"), 16 << 10, 4);
    }
    add(2, "lm_head linear".into(), 48 << 10, 0);
    let input = Interval { name: "tokens".into(), offset: 0, bytes: 16 << 10, first: 0, last: 5 };
    out.intervals.insert(0, input);
    out.arena_bytes = 64 << 10;
    out
}
