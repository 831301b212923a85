//! An artifact with two kernels in machine code, so that tests need no compiler.

mod gpu;

use std::{path::PathBuf, sync::Arc};

use ir::{
    Bounds, CudaModule, DType, Dim, Kernel, Launch, ModelInfo, ModelKind, Place, Port, Program,
    Region, Symbols, Target, Tensor, TensorType,
    artifact::{Artifact, Contents, Digest, WeightSpec, write},
};

use crate::{Device, Model};

pub(crate) use gpu::{StandIn, on_gpu};

/// `add` at 0: `args[2][i] = args[0][i] + args[1][0]` in f32 for each tile `i`.
/// `count` at 42: `args[0][0] += dims[0]` in i64, and writes to scratch memory.
const CODE: [u8; 59] = [
    0x48, 0x8b, 0x07, // mov rax, [rdi]
    0x4c, 0x8b, 0x4f, 0x08, // mov r9, [rdi+8]
    0x4c, 0x8b, 0x57, 0x10, // mov r10, [rdi+16]
    0xf3, 0x41, 0x0f, 0x10, 0x09, // movss xmm1, [r9]
    0x4c, 0x39, 0xc1, // cmp rcx, r8
    0x7d, 0x14, // jge ret
    0xf3, 0x0f, 0x10, 0x04, 0x88, // movss xmm0, [rax+rcx*4]
    0xf3, 0x0f, 0x58, 0xc1, // addss xmm0, xmm1
    0xf3, 0x41, 0x0f, 0x11, 0x04, 0x8a, // movss [r10+rcx*4], xmm0
    0x48, 0xff, 0xc1, // inc rcx
    0xeb, 0xe7, // jmp cmp
    0xc3, // ret
    0x48, 0x8b, 0x07, // mov rax, [rdi]
    0x48, 0x8b, 0x0e, // mov rcx, [rsi]
    0x48, 0x01, 0x08, // add [rax], rcx
    0x48, 0xc7, 0x02, 0x07, 0x00, 0x00, 0x00, // mov qword [rdx], 7
    0xc3, // ret
];

fn place(region: Region, offset: impl Into<Dim>) -> Place {
    Place { region, offset: offset.into() }
}

fn kernel(op: &str, code_offset: u64, dims: Vec<Dim>, tiles: Dim) -> Kernel {
    Kernel {
        op: op.into(),
        symbol: op.into(),
        code_offset,
        dims,
        tiles,
        scratch_bytes: 8,
        flops: Dim::symbol("N"),
        // It claims so much that a few elements are worth several threads.
        bytes: Dim::symbol("N") * Dim::from(100_000),
        cuda: Vec::new(),
    }
}

/// `y[i] = x[i] + 2.5` for `i < N`, `adds` times in a row, and `memory[M - 1] += N + 1`.
///
/// Inputs and outputs are up to 64 elements; the state has `M` elements of type i64.
pub(crate) fn program(name: &str, adds: usize) -> Program {
    let n = || Dim::symbol("N");
    let port = |name: &str, offset: i64| Port {
        name: name.into(),
        ty: TensorType::new(DType::F32, [n()]),
        place: place(Region::Arena, offset),
    };
    let add = |i: usize| Launch {
        kernel: 0,
        args: vec![
            place(Region::Arena, if i == 0 { 0 } else { 256 }),
            place(Region::Weight(0), 4),
            place(Region::Arena, 256),
        ],
        label: format!("add.{i}"),
    };
    let mut launches: Vec<Launch> = (0..adds).map(add).collect();
    let last = (Dim::symbol("M") - Dim::from(1)) * Dim::from(8);
    launches.push(Launch {
        kernel: 1,
        args: vec![place(Region::State(0), last)],
        label: "count".into(),
    });
    Program {
        name: name.into(),
        symbols: Symbols::from_iter([
            ("N".into(), Bounds { lo: 0, hi: 64 }),
            ("M".into(), Bounds { lo: 1, hi: 1000 }),
        ]),
        inputs: vec![port("x", 0)],
        outputs: vec![port("y", 256)],
        states: vec![Port {
            name: "memory".into(),
            ty: TensorType::new(DType::I64, [Dim::symbol("M")]),
            place: place(Region::State(0), 0),
        }],
        kernels: vec![
            kernel("add", 0, vec![], n()),
            kernel("count", 42, vec![n() + Dim::from(1)], Dim::from(1)),
        ],
        launches,
        arena_bytes: 512,
        ..Program::default()
    }
}

/// The model that offers `programs`.
pub(crate) fn model(file: &str, programs: Vec<Program>, threads: usize) -> Arc<Model> {
    let target = Target { features: vec![], ..Target::x86_64_v3() };
    let artifact = artifact(file, target, Vec::new(), programs);
    Model::load(artifact, Device::cpu(threads.try_into().ok()).unwrap()).unwrap()
}

fn artifact(
    file: &str,
    target: Target,
    modules: Vec<CudaModule>,
    programs: Vec<Program>,
) -> Arc<Artifact> {
    let path: PathBuf =
        std::env::temp_dir().join(format!("brolly-exec-{}-{file}.brolly", std::process::id()));
    let mut contents = Contents {
        compiler: "test".into(),
        target,
        model: ModelInfo {
            architecture: "Test".into(),
            kind: ModelKind::Graph,
            vocab_size: 0,
            hidden_size: 0,
            max_seq_len: 0,
            parameters: 2,
        },
        source_digest: Digest::default(),
        code: &CODE,
        modules: Vec::new(),
        folds: Vec::new(),
        random: None,
        text: serde_json::Value::Null,
        report: serde_json::Value::Null,
        programs,
        weights: vec![WeightSpec {
            name: "w".into(),
            dtype: DType::F32,
            shape: vec![2],
            sources: vec![],
        }],
    };
    contents.modules = modules;
    let weight = |_| Ok::<_, String>(Tensor::from_f32s(&[2], &[100.0, 2.5]));
    write(&path, contents, weight).unwrap();
    let artifact = Arc::new(Artifact::open(&path).unwrap());
    std::fs::remove_file(&path).unwrap();
    artifact
}
