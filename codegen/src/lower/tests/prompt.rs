//! Sequences for attention: packed, and in paged memory.

use std::sync::Arc;

use ir::{Attrs, DType, Dim, Env, KernelSpec, Layout, Tensor, TensorType};

use super::run::{Case, noise};

/// Heads, their sizes, and slots of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) key: usize,
    pub(super) value: usize,
    pub(super) block: usize,
}

/// Types that memory may have.
pub(super) const MEMORIES: [DType; 5] =
    [DType::F32, DType::Bf16, DType::F16, DType::I8, DType::F8E4M3];

/// Attributes of `quantize_heads` for memories of this type; `None` of those without scales.
pub(super) fn format(dtype: DType) -> Option<Attrs> {
    let format = match dtype {
        DType::I8 => "integers",
        DType::F8E4M3 => "e4m3",
        _ => return None,
    };
    Some(Attrs::none().with("format", format))
}

/// Memories, their scales, and the blocks of each sequence.
pub(super) struct Cache {
    pub(super) k: Tensor,
    pub(super) v: Tensor,
    pub(super) scales: Vec<Tensor>,
    pub(super) tables: Vec<Vec<i64>>,
}

/// Sequences of queries, keys and values.
pub(super) struct Prompt {
    pub(super) heads: Heads,
    pub(super) lengths: Vec<usize>,
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
}

impl Prompt {
    pub(super) fn new(heads: Heads, lengths: &[usize], seed: u64) -> Prompt {
        let tokens = lengths.iter().sum();
        let Heads { heads: count, kv_heads, key, value, .. } = heads;
        Prompt {
            heads,
            lengths: lengths.to_vec(),
            q: noise(DType::F32, &[tokens, count, key], seed),
            k: noise(DType::F32, &[tokens, kv_heads, key], seed + 1),
            v: noise(DType::F32, &[tokens, kv_heads, value], seed + 2),
        }
    }

    pub(super) fn offsets(lengths: impl Iterator<Item = usize>) -> Tensor {
        let mut sum = 0;
        let ends = lengths.map(|n| {
            sum += n as i64;
            sum
        });
        let all: Vec<i64> = [0].into_iter().chain(ends).collect();
        Tensor::from_i64s(DType::I32, &[all.len()], all)
    }

    pub(super) fn packed(&self, attrs: &Attrs) -> Case {
        let offsets = Prompt::offsets(self.lengths.iter().copied());
        Case::new("attention", attrs.clone(), &[&self.q, &self.k, &self.v, &offsets])
    }

    /// The first token of sequence `s`.
    pub(super) fn start(&self, s: usize) -> usize {
        self.lengths[..s].iter().sum()
    }

    /// Keys and values of all sequences in blocks that are in no order; other slots hold `other`.
    pub(super) fn paged(&self, dtype: DType, other: f64) -> Cache {
        let blocks: usize = self.lengths.iter().map(|n| n.div_ceil(self.heads.block)).sum();
        assert!(!blocks.is_multiple_of(7), "the blocks are permuted");
        let mut next = 0;
        let tables = self.lengths.iter().map(|length| {
            let table = next..next + length.div_ceil(self.heads.block);
            next = table.end;
            table.map(|b| (b * 7 % blocks) as i64).collect()
        });
        let tables: Vec<Vec<i64>> = tables.collect();
        let slots: Vec<usize> = self.slots(&tables).collect();
        let Heads { kv_heads, block, key, value, .. } = self.heads;
        // Rows [T, kv_heads, width] by slot: [NB, kv_heads, block, width].
        let place = |rows: &Tensor, dtype: DType, width: usize| {
            let shape = [blocks, kv_heads, block, width];
            let mut all = vec![other; shape.iter().product()];
            for (row, values) in rows.to_f64s().chunks(width).enumerate() {
                let (slot, head) = (slots[row / kv_heads], row % kv_heads);
                let at = (slot / block * kv_heads + head) * block + slot % block;
                all[at * width..][..width].copy_from_slice(values);
            }
            Tensor::from_f64s(dtype, &shape, all)
        };
        let memory = |rows: &Tensor, width: usize| {
            let Some(attrs) = format(dtype) else { return (place(rows, dtype, width), None) };
            let quantized = Case::new("quantize_heads", attrs, &[rows]).expected().1;
            let scales = place(&quantized[1], DType::F32, 1).reshape(&[blocks, kv_heads, block]);
            (place(&quantized[0], dtype, width), Some(scales))
        };
        let ((k, k_scales), (v, v_scales)) = (memory(&self.k, key), memory(&self.v, value));
        let scales = [k_scales, v_scales].into_iter().flatten().collect();
        Cache { k: k.transpose(&[0, 1, 3, 2]), v, scales, tables }
    }

    /// Where each token's keys and values are.
    pub(super) fn slots(&self, tables: &[Vec<i64>]) -> impl Iterator<Item = usize> {
        let of = |(table, length): (&Vec<i64>, &usize)| {
            let slot = |i: usize| {
                usize::try_from(table[i / self.heads.block]).unwrap() * self.heads.block
                    + i % self.heads.block
            };
            (0..*length).map(slot).collect::<Vec<_>>()
        };
        tables.iter().zip(&self.lengths).flat_map(of)
    }

    /// Paged attention of some tokens of some sequences: (sequence, first, end).
    pub(super) fn call(
        &self,
        attrs: &Attrs,
        cache: &Cache,
        parts: &[(usize, usize, usize)],
    ) -> Case {
        let width = cache.tables.iter().map(Vec::len).max().unwrap();
        // Entries beyond a sequence's blocks are never read.
        let tables = parts.iter().flat_map(|(s, _, _)| {
            let table = cache.tables[*s].iter().copied();
            table.chain(std::iter::repeat(i64::from(i32::MAX))).take(width).collect::<Vec<_>>()
        });
        let tables = Tensor::from_i64s(DType::I32, &[parts.len(), width], tables);
        let offsets = Prompt::offsets(parts.iter().map(|(_, a, b)| b - a));
        let positions: Vec<i64> =
            parts.iter().flat_map(|(_, a, b)| (*a as i64)..(*b as i64)).collect();
        let q: Vec<f64> = parts
            .iter()
            .flat_map(|(s, a, b)| self.q.slice(0, self.start(*s) + a, b - a, 1).to_f64s())
            .collect();
        let tokens = positions.len();
        let q = Tensor::from_f64s(DType::F32, &[tokens, self.heads.heads, self.heads.key], q);
        let positions = Tensor::from_i64s(DType::I32, &[tokens], positions);
        let args = [&q, &cache.k, &cache.v, &tables, &offsets, &positions].into_iter();
        let args: Vec<&Tensor> = args.chain(&cache.scales).collect();
        Case::new("paged_attention", attrs.clone(), &args)
    }

    /// Rows of a result on all tokens that belong to parts.
    pub(super) fn rows(&self, all: &Tensor, parts: &[(usize, usize, usize)]) -> Vec<u8> {
        let rows = |(s, a, b): &(usize, usize, usize)| {
            all.slice(0, self.start(*s) + a, b - a, 1).to_bytes()
        };
        parts.iter().flat_map(rows).collect()
    }
}

/// The same specification for any number of tokens, sequences and blocks.
pub(super) fn symbolic(mut spec: KernelSpec) -> KernelSpec {
    let paged = spec.op == "paged_attention";
    let dim = |name: &str| name.parse::<Dim>().unwrap();
    let names: &[&[(usize, &str)]] = if paged {
        &[
            &[(0, "T")],
            &[(0, "NB")],
            &[(0, "NB")],
            &[(0, "S"), (1, "MB")],
            &[(0, "S + 1")],
            &[(0, "T")],
            &[(0, "NB")],
            &[(0, "NB")],
        ]
    } else {
        &[&[(0, "T")], &[(0, "T")], &[(0, "T")], &[(0, "S + 1")]]
    };
    for (operand, names) in spec.operands.iter_mut().zip(names) {
        let mut ty: TensorType = operand.as_ref().unwrap().ty.clone();
        for (axis, name) in *names {
            ty.shape[*axis] = dim(name);
        }
        *operand = Some(Layout::contiguous(&ty));
    }
    let mut ty = spec.results[0].ty.clone();
    ty.shape[0] = dim("T");
    spec.results[0] = Layout::contiguous(&ty);
    spec
}

pub(super) fn env(case: &Case) -> Env {
    let shape = |i: usize| case.args[i].as_ref().unwrap().shape().to_vec();
    let mut env = Env::from([(Arc::from("T"), shape(0)[0] as i64)]);
    if case.op == "paged_attention" {
        env.insert("NB".into(), shape(1)[0] as i64);
        env.insert("S".into(), shape(3)[0] as i64);
        env.insert("MB".into(), shape(3)[1] as i64);
    } else {
        env.insert("S".into(), shape(3)[0] as i64 - 1);
    }
    env
}
