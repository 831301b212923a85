//! Damaged files: whatever the bytes, importing returns; it never panics and never runs away.

use brolly_frontend::{ImportOptions, import};
use onnx_protobuf::{Message, ModelProto};

use crate::{exports, model::Folder};

/// A fixed sequence of numbers: xorshift, Marsaglia 2003.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % n.max(1)
    }
}

/// An export without the exporter's remarks, so that damage hits what matters.
fn export(name: &str) -> ModelProto {
    let path = exports::folder().join(name).join("model.onnx");
    let mut m = ModelProto::parse_from_bytes(&std::fs::read(path).unwrap()).unwrap();
    m.metadata_props.clear();
    let graph = m.graph.as_mut().unwrap();
    graph.value_info.clear();
    graph.metadata_props.clear();
    for node in &mut graph.node {
        node.metadata_props.clear();
        node.doc_string.clear();
    }
    for t in &mut graph.initializer {
        t.doc_string.clear();
        t.metadata_props.clear();
    }
    m
}

fn try_import(folder: &Folder, bytes: &[u8]) -> bool {
    let path = folder.write("model.onnx", bytes);
    import(&path, &ImportOptions::default()).is_ok()
}

#[test]
fn truncated_files_are_refused() {
    let folder = Folder::new();
    let bytes = export("bert-torchscript-eager").write_to_bytes().unwrap();
    assert!(try_import(&folder, &bytes));
    let mut random = Random(1);
    for _ in 0..60 {
        let end = random.below(bytes.len());
        // What is left may happen to be a model without outputs' nodes, but then they are missing.
        assert!(!try_import(&folder, &bytes[..end]), "{end} bytes");
    }
}

#[test]
fn flipped_bits_never_panic() {
    let folder = Folder::new();
    let bytes = export("bert-dynamo-eager").write_to_bytes().unwrap();
    // Nodes come first, inputs and outputs last; weights fill what lies between.
    let weights = export("bert-dynamo-eager")
        .graph
        .initializer
        .iter()
        .map(Message::compute_size)
        .sum::<u64>();
    let nodes = bytes.len() - usize::try_from(weights).unwrap();
    let mut random = Random(2);
    for i in 0..300 {
        let mut damaged = bytes.clone();
        for _ in 0..=random.below(3) {
            let at = if i % 8 == 0 { random.below(bytes.len()) } else { random.below(nodes) };
            damaged[at] ^= 1 << random.below(8);
        }
        try_import(&folder, &damaged);
    }
}

#[test]
fn nonsense_in_valid_files_never_panics() {
    const EXTREME: [i64; 9] = [i64::MIN, i64::MIN + 1, -2, -1, 0, 1, 7, 1 << 40, i64::MAX];
    let folder = Folder::new();
    let mut random = Random(3);
    for name in ["bert-torchscript-sdpa", "llama-dynamo-eager"] {
        let whole = export(name);
        for _ in 0..120 {
            let mut m = whole.clone();
            let graph = m.graph.as_mut().unwrap();
            for _ in 0..=random.below(3) {
                let extreme = EXTREME[random.below(EXTREME.len())];
                let n = graph.node.len();
                let (at, other) = (random.below(n), random.below(n));
                match random.below(6) {
                    0 => graph.node[at].op_type = graph.node[other].op_type.clone(),
                    1 => {
                        let from = graph.node[other].output[0].clone();
                        if let Some(input) = graph.node[at].input.first_mut() {
                            *input = from;
                        }
                    }
                    2 => graph.node[at].attribute.iter_mut().for_each(|a| {
                        a.i = extreme;
                        a.ints.iter_mut().for_each(|v| *v = extreme);
                        if let Some(t) = a.t.as_mut().filter(|t| t.data_type == 7) {
                            t.raw_data.chunks_exact_mut(8).for_each(|c| {
                                c.copy_from_slice(&extreme.to_le_bytes());
                            });
                        }
                    }),
                    3 => {
                        let k = random.below(graph.initializer.len());
                        let t = &mut graph.initializer[k];
                        if t.data_type == 7 {
                            t.raw_data.chunks_exact_mut(8).for_each(|c| {
                                c.copy_from_slice(&extreme.to_le_bytes());
                            });
                        } else {
                            t.dims.reverse();
                        }
                    }
                    4 => graph.node.swap(at, other),
                    _ => drop(graph.node.remove(at)),
                }
            }
            try_import(&folder, &m.write_to_bytes().unwrap());
        }
    }
}
