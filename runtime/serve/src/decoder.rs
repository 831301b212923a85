//! A compiled language model: entry `step` and its key/value memory.

use std::sync::Arc;

use exec::{Executable, Groups, Memory, Model, States};
use ir::{Bounds, Dim, Port, Program};

use crate::{
    Batch, BlockCopy, Fetched, Heads, Limits, Logits, RowSource, ServeError, StepModel,
    paging::Paging, verdict::Verdict,
};

/// The entry point.
pub(crate) const ENTRY: &str = "step";

/// A loaded `step` with key/value memory for some sequences.
#[derive(Debug)]
pub(crate) struct Decoder {
    exe: Executable,
    /// Symbols whose values do not change.
    bound: Vec<(String, i64)>,
    states: States,
    limits: Limits,
    axes: Axes,
    /// Which of [`INPUTS`] the program reads: a model without positions has no such input.
    reads: [bool; 6],
    /// Rows of a step, kept for its memory.
    rows: Vec<i32>,
    /// Whether the program returns heads of rows, whose logits stay on the device.
    has_heads: bool,
    /// Rows of the last step that were copied from there.
    fetched: Vec<Fetched>,
    verdict: Verdict,
}

/// What a step may read, in the order of [`Decoder::step`].
const INPUTS: [&str; 6] =
    ["tokens", "positions", "cu_seqlens", "logit_rows", "slots", "block_tables"];

/// Outputs that have the most likely tokens of each row: their logits, and which they are.
const HEADS: [&str; 2] = ["head_logits", "head_tokens"];

/// The axes of a step's operands whose extent varies.
#[derive(Debug)]
struct Axes {
    tokens: Axis,
    sequences: Axis,
    rows: Axis,
}

/// A symbol with its bounds, or a constant.
#[derive(Debug)]
struct Axis {
    symbol: Option<String>,
    bounds: Bounds,
}

/// What names of states begin with that hold keys and values.
const MEMORIES: [&str; 4] = ["k_cache", "v_cache", "k_scales", "v_scales"];

fn is_memory(state: &str) -> bool {
    MEMORIES.iter().any(|kind| state.starts_with(kind))
}

/// Ranks that hold parts of a model in training, and compute in step.
#[derive(Clone, Debug, Default)]
pub struct Among {
    /// Whom this rank meets.
    pub groups: Groups,
    /// Values of the symbols that say where it is.
    pub place: Vec<(String, i64)>,
}

/// Where a program's weights are that no artifact holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Weights<'a> {
    /// There are no such weights.
    Own,
    /// Lent by a training run for each use, one of these ranks.
    Lent(&'a Among),
}

impl Decoder {
    /// Loads the entry for sequences of at most `max_seq_len` tokens with memory of so many blocks.
    pub(crate) fn load(
        model: &Arc<Model>,
        max_seq_len: usize,
        blocks: usize,
        verdict: Verdict,
        weights: Weights<'_>,
    ) -> Result<Decoder, ServeError> {
        let manifest = model.artifact().manifest();
        let program = model.artifact().program(ENTRY)?;
        let input = |name: &str| port(&program.inputs, name);
        let axes = Axes {
            tokens: axis(program, input("tokens")?, 0)?,
            sequences: axis(program, input("block_tables")?, 0)?,
            rows: axis(program, input("logit_rows")?, 0)?,
        };
        for name in ["logits", "logsumexp"] {
            port(&program.outputs, name)?;
        }
        let is_trained = program.states.iter().any(|state| !is_memory(&state.name));
        if is_trained && matches!(weights, Weights::Own) {
            return Err(ServeError::Kind {
                architecture: manifest.model.architecture.clone(),
                reason:
                    "is one in training, whose weights are in its checkpoints: give the folder \
                         that `brolly train` has written"
                        .to_owned(),
            });
        }
        let keys = keys(program)?;
        let block_size = constant(keys, 3)?;
        let table_len = constant(input("block_tables")?, 1)?;
        let own = match dim(keys, 0)?.as_symbol() {
            Some(symbol) => vec![(symbol, i64::try_from(blocks).unwrap_or(i64::MAX))],
            None => vec![],
        };
        let place = match weights {
            Weights::Own => &[][..],
            Weights::Lent(among) => &among.place,
        };
        let place = place.iter().map(|(symbol, n)| (symbol.as_str(), *n));
        let bound: Vec<_> =
            place.filter(|(symbol, _)| program.symbols.contains_key(*symbol)).chain(own).collect();
        // Slots are 32-bit numbers.
        let slots = blocks.saturating_mul(block_size);
        if max_seq_len.div_ceil(block_size) > table_len || i32::try_from(slots).is_err() {
            let reason = format!(
                "sequences of {max_seq_len} tokens in {blocks} blocks do not fit into block tables"
            );
            return Err(ServeError::request("max_seq_len", reason));
        }
        let limits = Limits {
            vocab_size: extent(manifest.model.vocab_size),
            max_seq_len,
            max_batch_tokens: axes.tokens.most(),
            max_sequences: axes.sequences.most(),
            max_rows: axes.rows.most(),
            block_size,
            blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
            table_len,
            window: window(program),
        };
        let threads = model.device().pool().threads();
        Memory::predict(manifest, &[ENTRY], threads, &bound)?.check_limit(model.device())?;
        let mut states = States::on(model.device());
        states.add_some(program, &bound, is_memory)?;
        let mut exe = Executable::load(model, ENTRY, &bound)?;
        if let Weights::Lent(among) = weights {
            exe.join(&among.groups)?;
        }
        let has_heads = program.outputs.iter().any(|port| *port.name == *HEADS[0]);
        if has_heads {
            exe.leave_outputs(&["logits"])?;
        }
        let bound = bound.iter().map(|(symbol, n)| ((*symbol).to_owned(), *n)).collect();
        let reads = INPUTS.map(|name| program.inputs.iter().any(|port| *port.name == *name));
        Ok(Decoder {
            exe,
            bound,
            states,
            limits,
            axes,
            reads,
            rows: Vec::new(),
            has_heads,
            fetched: Vec::new(),
            verdict,
        })
    }

    pub(crate) fn executable(&mut self) -> &mut Executable {
        &mut self.exe
    }

    /// Takes over states that are lent: weights.
    pub(crate) fn borrow(&mut self, lent: &mut States) {
        self.states.append(lent);
    }

    /// Gives back what was lent.
    pub(crate) fn give_back(&mut self) -> States {
        self.states.take(|name| !is_memory(name))
    }

    /// Memory: reserved, and in use.
    pub(crate) fn memory(&self) -> Result<(Memory, Memory), ServeError> {
        let model = self.exe.model();
        let bound: Vec<_> = self.bound.iter().map(|(s, n)| (s.as_str(), *n)).collect();
        let threads = model.device().pool().threads();
        let predicted = Memory::predict(model.artifact().manifest(), &[ENTRY], threads, &bound)?;
        Ok((predicted, Memory::measure(&[&self.exe], &self.states)))
    }
}

impl StepModel for Decoder {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn goes_on_alone(&self) -> bool {
        self.exe.model().device().facts().is_some()
    }

    fn step(&mut self, batch: &Batch, beside: &mut dyn FnMut()) -> Result<Logits<'_>, ServeError> {
        let Batch { tokens, positions, cu_seqlens, logit_rows, slots, block_tables } = batch;
        let Decoder { exe, states, axes, rows, fetched, .. } = self;
        rows.clone_from(logit_rows);
        fetched.clear();
        fetched.resize_with(rows.len(), Fetched::new);
        // A program may be compiled for at least one row.
        rows.resize(rows.len().max(axes.rows.least()), 0);
        let sizes = [
            (&axes.tokens, tokens.len()),
            (&axes.sequences, batch.sequences()),
            (&axes.rows, rows.len()),
        ];
        let symbols = sizes
            .iter()
            .filter_map(|(axis, n)| Some((axis.symbol.as_deref()?, i64::try_from(*n).ok()?)));
        let given = [tokens, positions, cu_seqlens, &*rows, slots, block_tables];
        let given = INPUTS.iter().zip(given).zip(self.reads);
        let inputs = given
            .filter(|(_, read)| *read)
            .map(|((name, values), _)| (*name, bytemuck::cast_slice(values)));
        let (mut some_symbols, mut some_inputs) = ([("", 0); 3], [("", &[][..]); 6]);
        let symbols = fill(&mut some_symbols, symbols);
        exe.run_beside(states, symbols, fill(&mut some_inputs, inputs), beside)?;
        if !logit_rows.is_empty() {
            self.verdict.wait()?;
        }
        let vocab_size = self.limits.vocab_size;
        let logsumexp = self.exe.output::<f32>("logsumexp")?;
        if self.has_heads {
            let logits = self.exe.output::<f32>(HEADS[0])?;
            let tokens = self.exe.output::<i64>(HEADS[1])?;
            if logsumexp.len() != self.rows.len() || logits.len() % self.rows.len().max(1) != 0 {
                return Err(unexpected("the outputs are not of the rows' number"));
            }
            let (rows, size) = (logit_rows.len(), logits.len() / self.rows.len().max(1));
            let (logits, tokens) = (&logits[..rows * size], &tokens[..rows * size]);
            let (heads, sums) = (Heads { logits, tokens }, &logsumexp[..rows]);
            return Ok(Logits::of_heads(heads, sums, vocab_size, self, &self.fetched));
        }
        let logits = self.exe.output::<f32>("logits")?;
        if logits.len() != self.rows.len() * vocab_size || logsumexp.len() != self.rows.len() {
            return Err(unexpected("the outputs are not of the vocabulary's size"));
        }
        let rows = logit_rows.len();
        Ok(Logits::new(&logits[..rows * vocab_size], &logsumexp[..rows], vocab_size))
    }

    fn copy_block(&mut self, copy: BlockCopy) -> Result<(), ServeError> {
        let parts = u64::from(self.limits.blocks);
        Ok(self.states.copy_part(is_memory, parts, copy.from, copy.to)?)
    }
}

impl RowSource for Decoder {
    fn fetch(&self, rows: &[usize]) -> Result<Vec<Box<[f32]>>, ServeError> {
        Ok(self.exe.output_rows("logits", rows)?)
    }
}

/// Blocks of key/value memory that hold `sequences` sequences of `max_seq_len` tokens in a
/// program `step`, with a window as much of them as they have at once.
///
/// # Errors
/// [`ServeError::Entry`] if it is no such program.
pub fn blocks_of(
    program: &Program,
    max_seq_len: usize,
    sequences: usize,
) -> Result<usize, ServeError> {
    let paging = Paging::new(constant(keys(program)?, 3)?, window(program));
    let step = axis(program, port(&program.inputs, "tokens")?, 0)?.most();
    Ok(paging.at_once(max_seq_len, step).max(1).saturating_mul(sequences))
}

/// Blocks of key/value memory that `bytes` hold; by default as many as `sequences` of the longest
/// sequences take, but no more than the memory that this process may use has room for.
///
/// # Errors
/// [`ServeError::Request`] if there is no room for one block.
pub(crate) fn blocks_for(
    model: &Model,
    max_seq_len: usize,
    bytes: Option<u64>,
    sequences: Option<usize>,
) -> Result<usize, ServeError> {
    let manifest = model.artifact().manifest();
    let program = model.artifact().program(ENTRY)?;
    let threads = model.device().pool().threads();
    let Some(symbol) = dim(keys(program)?, 0)?.as_symbol() else {
        return constant(keys(program)?, 0);
    };
    let one = Memory::predict(manifest, &[ENTRY], threads, &[(symbol, 1)])?;
    let least = one.total() - one.state_bytes - one.weight_bytes - one.code_bytes;
    let rooms = |bytes: u64| usize::try_from(bytes / one.state_bytes.max(1)).unwrap_or(usize::MAX);
    let most = dim(keys(program)?, 0)?.bounds(&program.symbols).hi;
    let most = usize::try_from(most).unwrap_or(0);
    let blocks = match bytes {
        Some(bytes) => rooms(bytes),
        None => {
            let seats = axis(program, port(&program.inputs, "block_tables")?, 0)?.most();
            let wanted = blocks_of(program, max_seq_len, sequences.unwrap_or(seats))?;
            // The weights are mapped, but they must stay in memory to be fast.
            let taken = least + one.weight_bytes;
            let left = model.device().memory_limit_bytes().map(|limit| limit.saturating_sub(taken));
            wanted.min(left.map_or(usize::MAX, |left| rooms(left / 10 * 9)))
        }
    };
    if blocks == 0 {
        let reason = format!(
            "there is no room for a block of key/value memory, which takes {} bytes",
            one.state_bytes
        );
        return Err(ServeError::request("kv_cache", reason));
    }
    Ok(blocks.min(most))
}

/// The first of the key/value memories, which have all the same shape.
fn keys(program: &Program) -> Result<&Port, ServeError> {
    let keys = program.states.iter().find(|state| state.name.starts_with("k_cache"));
    keys.ok_or_else(|| unexpected("it has no state `k_cache`"))
}

/// Positions that queries see at most, unless they see all.
fn window(program: &Program) -> Option<usize> {
    program.window.map(extent)
}

/// The items, in the space for them.
fn fill<T>(space: &mut [T], items: impl Iterator<Item = T>) -> &[T] {
    let mut count = 0;
    for (slot, item) in space.iter_mut().zip(items) {
        *slot = item;
        count += 1;
    }
    &space[..count]
}

impl Axis {
    fn most(&self) -> usize {
        usize::try_from(self.bounds.hi).unwrap_or(0)
    }

    fn least(&self) -> usize {
        usize::try_from(self.bounds.lo).unwrap_or(0)
    }
}

fn port<'a>(ports: &'a [Port], name: &str) -> Result<&'a Port, ServeError> {
    let found = ports.iter().find(|port| *port.name == *name);
    found.ok_or_else(|| unexpected(format!("it has no `{name}`")))
}

fn dim(port: &Port, axis: usize) -> Result<&Dim, ServeError> {
    let missing = || unexpected(format!("`{}` is {}", port.name, port.ty));
    port.ty.shape.get(axis).ok_or_else(missing)
}

fn axis(program: &Program, port: &Port, axis: usize) -> Result<Axis, ServeError> {
    let dim = dim(port, axis)?;
    let symbol = dim.as_symbol().map(str::to_owned);
    if symbol.is_none() && dim.as_const().is_none() {
        return Err(unexpected(format!("`{}` is {}", port.name, port.ty)));
    }
    Ok(Axis { symbol, bounds: dim.bounds(&program.symbols) })
}

fn constant(port: &Port, axis: usize) -> Result<usize, ServeError> {
    let value = dim(port, axis)?.as_const().and_then(|v| usize::try_from(v).ok());
    let value = value.filter(|v| *v > 0);
    value.ok_or_else(|| unexpected(format!("`{}` is {}", port.name, port.ty)))
}

fn unexpected(reason: impl Into<String>) -> ServeError {
    ServeError::Entry { entry: ENTRY, reason: reason.into() }
}

fn extent(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}
