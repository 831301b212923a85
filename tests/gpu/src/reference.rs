//! Some rows of large results, by definition.
//!
//! Operators on rows, products among them, are evaluated by the interpreter on a few rows and a few
//! panels of a weight; attention by sums in f64. Operands come from their counter, not from memory.

use std::sync::Arc;

use indexmap::IndexMap;
use ir::{Attrs, Env, Interpreter, Module, OpRef, Precision, Tensor, TensorType};

use crate::{Case, CaseError, Check, Folder, Operand, Output, Source, noise};

/// Columns of a panel of a packed weight.
const PANEL: usize = 16;
/// How many rows, and panels, are looked at.
const SAMPLE: usize = 6;

/// Some elements of a row of the first result.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// First of them, counted through the result.
    pub first: usize,
    /// What they must be.
    pub want: Vec<f64>,
}

/// Why a case's results cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] CaseError),
    /// The case asks for what cannot be told.
    #[error("its check cannot be made: {0}")]
    Check(String),
}

/// Parts of the first result, and how far off they may be, relative to their root mean square.
///
/// # Errors
/// [`ReferenceError`].
pub fn parts(folder: &Folder, case: &Case) -> Result<(Vec<Part>, f64), ReferenceError> {
    let result = case.results.first().ok_or_else(|| bad("no result"))?;
    match &case.check {
        Check::Whole { .. } => Err(bad("it is against files")),
        Check::Rows { op, attrs, rows, panels, tolerance } => {
            let sample = Rows { folder, case, result, rows, panels: *panels };
            Ok((sample.parts(op, attrs)?, *tolerance))
        }
        Check::Attention { scale, tolerance } => {
            Ok((attention(folder, case, result, *scale)?, *tolerance))
        }
    }
}

fn bad(reason: impl Into<String>) -> ReferenceError {
    ReferenceError::Check(reason.into())
}

/// Some of `count` numbers, the first and the last among them.
fn some(count: usize) -> Vec<usize> {
    let between = (1..SAMPLE - 1).map(|i| count * (2 * i + 1) / (2 * SAMPLE - 1));
    let mut all: Vec<usize> = [0, count.saturating_sub(1)].into_iter().chain(between).collect();
    all.sort_unstable();
    all.dedup();
    all
}

struct Rows<'a> {
    folder: &'a Folder,
    case: &'a Case,
    result: &'a Output,
    rows: &'a [u32],
    panels: Option<u32>,
}

impl Rows<'_> {
    fn parts(&self, op: &str, attrs: &Attrs) -> Result<Vec<Part>, ReferenceError> {
        let [count, width] = self.result.shape[..] else {
            return Err(bad(format!("a result of shape {:?}", self.result.shape)));
        };
        let rows = some(count);
        let panels = match self.panels {
            None => Vec::new(),
            Some(_) => some(width / PANEL),
        };
        let operand = |(arg, operand): (u32, &Option<Operand>)| {
            let Some(operand) = operand else { return Ok(None) };
            let all: Vec<usize> = (0..operand.shape.first().copied().unwrap_or(1)).collect();
            let taken = if self.rows.contains(&arg) {
                &rows
            } else if self.panels == Some(arg) {
                &panels
            } else {
                &all
            };
            self.slices(operand, taken).map(Some)
        };
        let args = (0..).zip(&self.case.operands).map(operand).collect::<Result<Vec<_>, _>>()?;
        let attrs = match self.panels {
            None => attrs.clone(),
            Some(_) => attrs.clone().with("n", (PANEL * panels.len()) as i64),
        };
        let values = evaluate(op, &attrs, &args)?;
        let each = values.len() / rows.len();
        let mut parts = Vec::new();
        for (row, values) in rows.iter().zip(values.chunks(each)) {
            if panels.is_empty() {
                parts.push(Part { first: row * width, want: values.to_vec() });
            }
            for (panel, want) in panels.iter().zip(values.chunks(PANEL)) {
                parts.push(Part { first: row * width + panel * PANEL, want: want.to_vec() });
            }
        }
        Ok(parts)
    }

    /// Some of an operand along its first axis.
    fn slices(&self, operand: &Operand, taken: &[usize]) -> Result<Tensor, ReferenceError> {
        let mut shape = operand.shape.clone();
        let each: usize = shape.iter().skip(1).product();
        let bytes = each * operand.dtype.size();
        let mut out = vec![0; taken.len() * bytes];
        let whole = match &operand.source {
            Source::File(name) => Some(self.folder.data(name)?),
            _ => None,
        };
        for (index, out) in taken.iter().zip(out.chunks_mut(bytes)) {
            match &whole {
                Some(whole) => out.copy_from_slice(&whole[index * bytes..][..bytes]),
                None => noise::fill(operand, index * each, out),
            }
        }
        if let Some(first) = shape.first_mut() {
            *first = taken.len();
        }
        Ok(Tensor::from_bytes(operand.dtype, &shape, out))
    }
}

/// The first result of an operator.
fn evaluate(op: &str, attrs: &Attrs, args: &[Option<Tensor>]) -> Result<Vec<f64>, ReferenceError> {
    let name = OpRef::find(op).ok_or_else(|| bad(format!("no operator `{op}`")))?.0.name();
    let failed = |error: &dyn std::fmt::Display| bad(error.to_string());
    let module = Module::new("check");
    let mut b = module.builder("f");
    let (mut inputs, mut values) = (Vec::new(), Vec::new());
    for (i, arg) in args.iter().enumerate() {
        let Some(arg) = arg else {
            values.push(None);
            continue;
        };
        let ty = TensorType::new(arg.dtype(), arg.shape().iter().copied());
        values.push(Some(b.param(&i.to_string(), ty).map_err(|e| failed(&e))?));
        inputs.push(arg.clone());
    }
    let results = b.op(name, attrs.clone(), &values).map_err(|e| failed(&e))?;
    b.output("0", results[0]);
    let graph = b.finish();
    let weights = IndexMap::<Arc<str>, Tensor>::new();
    let oracle = Interpreter::new(&module, &weights, Precision::F64);
    let values = oracle.eval(&graph, &inputs, &Env::new()).map_err(|e| failed(&e))?;
    Ok(values[0].to_f64s())
}

/// Causal attention: `softmax(scale · q · kᵀ) · v` over the keys up to a token's own.
fn attention(
    folder: &Folder,
    case: &Case,
    result: &Output,
    scale: f64,
) -> Result<Vec<Part>, ReferenceError> {
    let [tokens, heads, size] = result.shape[..] else {
        return Err(bad(format!("a result of shape {:?}", result.shape)));
    };
    let operand = |i: usize| case.operands.get(i).and_then(Option::as_ref);
    let noise_of = |i: usize| match operand(i) {
        Some(Operand { source: Source::Noise(seed), shape, .. }) => Ok((*seed, shape)),
        other => Err(bad(format!("operand {i} is {other:?}"))),
    };
    let ints = |i: usize| match operand(i) {
        Some(Operand { source: Source::File(name), .. }) => {
            let bytes = folder.data(name)?;
            let int = |b: &[u8]| i32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            let ints = bytes.chunks_exact(4).map(int);
            Ok(ints.map(|i| usize::try_from(i).unwrap_or(0)).collect::<Vec<usize>>())
        }
        other => Err(bad(format!("operand {i} is {other:?}"))),
    };
    let ((q, _), (k, k_shape), (v, _)) = (noise_of(0)?, noise_of(1)?, noise_of(2)?);
    let kv_heads = k_shape[1];
    let paged = case.operands.len() == 6;
    let offsets = ints(if paged { 4 } else { 3 })?;
    let (tables, positions) = if paged { (ints(3)?, ints(5)?) } else { (Vec::new(), Vec::new()) };
    let table = tables.len() / (offsets.len() - 1);
    let read = |seed, at: usize| noise::value(seed, at as u64).to_f64();
    let row = |token: usize, head: usize| {
        let sequence = offsets.iter().rposition(|start| *start <= token).unwrap_or(0);
        let keys = if paged { positions[token] } else { token - offsets[sequence] } + 1;
        let kv_head = head / (heads / kv_heads);
        // Elements of keys and values, of which a key has one for each `d`.
        let places = |key: usize, d: usize| {
            if paged {
                let block = (tables[sequence * table + key / 16] * kv_heads + kv_head) * size * 16;
                (block + d * 16 + key % 16, block + key % 16 * size + d)
            } else {
                let at = ((offsets[sequence] + key) * kv_heads + kv_head) * size + d;
                (at, at)
            }
        };
        let query: Vec<f64> =
            (0..size).map(|d| scale * read(q, (token * heads + head) * size + d)).collect();
        let score = |key: usize| -> f64 {
            query.iter().enumerate().map(|(d, q)| q * read(k, places(key, d).0)).sum()
        };
        let scores: Vec<f64> = (0..keys).map(score).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
        let total: f64 = weights.iter().sum();
        let value = |d: usize| {
            let values = weights.iter().enumerate().map(|(key, w)| w * read(v, places(key, d).1));
            values.sum::<f64>() / total
        };
        Part { first: (token * heads + head) * size, want: (0..size).map(value).collect() }
    };
    let tokens = some(tokens);
    Ok((0..).zip(tokens).map(|(i, token)| row(token, (i * 5 + 3) % heads)).collect())
}
