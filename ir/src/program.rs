//! The compiled form of an entry function: kernels, launches, and a place for every value.
//!
//! [`KernelSpec`] is what a kernel has to compute and how its operands lie in memory; the code
//! generator turns each distinct one into machine code once. [`Program`] is what the runtime
//! executes: launches in order, over one arena of fixed size, the weights, and the states that
//! outlive a run.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Attrs, CudaCode, DType, Dim, Graph, Split, Symbols, TensorType};

/// How a tensor lies in memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Layout {
    /// Element type and shape.
    pub ty: TensorType,
    /// Distance between neighbours along each axis, in elements; zero where broadcast.
    pub strides: Vec<Dim>,
}

impl Layout {
    /// Row-major order without gaps.
    pub fn contiguous(ty: &TensorType) -> Layout {
        let mut strides = vec![Dim::from(1); ty.rank()];
        for i in (1..ty.rank()).rev() {
            strides[i - 1] = strides[i].clone() * ty.shape[i].clone();
        }
        Layout { ty: ty.clone(), strides }
    }

    /// Whether elements follow each other in row-major order (the stride of an axis of extent one
    /// does not matter).
    pub fn is_contiguous(&self) -> bool {
        let want = Layout::contiguous(&self.ty);
        let axes = self.ty.shape.iter().zip(self.strides.iter().zip(&want.strides));
        axes.into_iter().all(|(d, (s, w))| d.is(1) || s == w)
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ty)?;
        if !self.is_contiguous() {
            write!(f, " strides {:?}", self.strides)?;
        }
        Ok(())
    }
}

/// A computation that one kernel performs.
#[derive(Clone, Debug)]
pub struct KernelSpec {
    /// The operator's name in the table.
    pub op: &'static str,
    /// Its attributes, without names that differ from use to use.
    pub attrs: Attrs,
    /// Layouts of the operands; `None` for an absent optional one.
    pub operands: Vec<Option<Layout>>,
    /// Layouts of the results.
    pub results: Vec<Layout>,
    /// The function of a `fused` kernel.
    pub body: Option<Arc<Graph>>,
    /// Bounds of the symbols.
    pub symbols: Arc<Symbols>,
}

impl KernelSpec {
    /// Pairs of (result, operand) that an operator updates in place, see
    /// [`OpDef::in_place`](crate::OpDef::in_place); none for what is no operator.
    pub fn in_place(op: &str) -> &'static [(usize, usize)] {
        crate::OpRef::find(op).map_or(&[], |op| op.0.in_place())
    }
}

/// Memory that a place is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Region {
    /// The program's arena.
    Arena,
    /// A packed weight of the artifact, by number.
    Weight(u32),
    /// A state of the program, by number.
    State(u32),
    /// Nowhere: an absent operand.
    Null,
}

/// Where a tensor begins.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// In which memory.
    pub region: Region,
    /// At which byte.
    pub offset: Dim,
}

/// A named input, output or state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Port {
    /// Its name.
    pub name: Arc<str>,
    /// Element type and shape.
    pub ty: TensorType,
    /// Where its elements lie, in row-major order.
    pub place: Place,
}

/// A state that has no memory of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its name.
    pub state: Arc<str>,
    /// Name of the state that it lies in, which this program need not use.
    pub of: Arc<str>,
    /// At which byte of that.
    pub offset: Dim,
}

/// A state that is a rank's [`Shard`](crate::Shard) of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sharded {
    /// Its name.
    pub state: Arc<str>,
    /// Of what.
    #[serde(flatten)]
    pub of: ShardOf,
}

/// A tensor that ranks hold in parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardOf {
    /// Extents of the tensor.
    pub shape: Vec<u64>,
    /// How it is cut along one of its axes, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
    /// The axis of the mesh along which ranks hold shards of that.
    pub axis: Arc<str>,
    /// Ranks along it.
    pub ranks: u32,
}

/// A kernel: machine code of the image or, in a program for GPUs, [`Kernel::cuda`].
///
/// Code of the image has the C signature `fn(args: *const *mut u8, dims: *const i64, scratch: *mut
/// u8, tile_begin: i64, tile_end: i64)`: `args` are the operands, then the results; `dims` the
/// values of [`Kernel::dims`]; `scratch` is [`Kernel::scratch_bytes`] of memory of the calling
/// thread, aligned to 64 bytes. Any split of `0..tiles` into ranges gives the same result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// The operator that it computes.
    pub op: String,
    /// Symbol of the code.
    pub symbol: String,
    /// Offset of the code in the image.
    pub code_offset: u64,
    /// Sizes that it reads.
    pub dims: Vec<Dim>,
    /// Number of tiles that threads may share.
    pub tiles: Dim,
    /// Scratch memory of each thread.
    pub scratch_bytes: u64,
    /// Floating point operations of a launch.
    pub flops: Dim,
    /// Bytes that a launch must read and write.
    pub bytes: Dim,
    /// Its code for each architecture of a GPU; none in a program for CPUs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cuda: Vec<CudaCode>,
}

/// One launch of a kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Launch {
    /// Number of the kernel in [`Program::kernels`].
    pub kernel: u32,
    /// Operands, then results, then the workspace of what needs one.
    pub args: Vec<Place>,
    /// What it computes, for people: `layer.3/mlp.down`.
    pub label: String,
}

/// What the ranks along an axis of the mesh do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CollectiveOp {
    /// The sum of all tensors, on all ranks.
    AllReduce,
    /// Each rank's [`Shard`](crate::Shard) of that sum.
    ReduceScatter,
    /// The tensor of all ranks' shards, on all ranks.
    AllGather,
}

impl CollectiveOp {
    /// That of an operator of the table, if it is one.
    pub fn find(op: &str) -> Option<CollectiveOp> {
        match op {
            "all_reduce" => Some(CollectiveOp::AllReduce),
            "reduce_scatter" => Some(CollectiveOp::ReduceScatter),
            "all_gather" => Some(CollectiveOp::AllGather),
            _ => None,
        }
    }

    /// The operator's name.
    pub fn name(self) -> &'static str {
        match self {
            CollectiveOp::AllReduce => "all_reduce",
            CollectiveOp::ReduceScatter => "reduce_scatter",
            CollectiveOp::AllGather => "all_gather",
        }
    }
}

/// A collective between launches, or beside some.
///
/// Ranks run one program, so they come to their collectives in one order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Collective {
    /// What is done.
    pub op: CollectiveOp,
    /// The axis of the mesh.
    pub axis: Arc<str>,
    /// Ranks along it.
    pub ranks: u32,
    /// Type of the elements.
    pub dtype: DType,
    /// Elements of the whole tensor.
    pub elements: Dim,
    /// Where the operand begins.
    pub input: Place,
    /// Where the result begins: of a gather, perhaps around the operand.
    pub output: Place,
    /// Number of the launch before which it may begin, [`Program::launches`]`.len()` at the end.
    pub start: u32,
    /// Number of the launch before which it has ended. Launches between the two leave alone what it
    /// reads and writes.
    pub end: u32,
    /// What it is about, for people.
    pub label: String,
}

impl Collective {
    /// Whether ranks on GPUs show each other whole operands and each of them adds all, instead of
    /// adding a shard each and showing that: fewer messages, and of two ranks as many bytes.
    pub fn is_shown_whole(&self, elements: u64) -> bool {
        const SHORT: u64 = 64 << 10;
        let is_short = elements * self.dtype.size() as u64 <= SHORT;
        self.op == CollectiveOp::AllReduce && (self.ranks == 2 || is_short)
    }

    /// Bytes of what ranks on GPUs send each other at a time for a sum over so many elements: as
    /// many of each rank, and of the sum, are in memory at once. None of what is no sum.
    pub fn part_bytes(&self, elements: u64) -> u64 {
        if self.op == CollectiveOp::AllGather || self.ranks <= 1 {
            return 0;
        }
        let whole = self.is_shown_whole(elements);
        let most = if whole { elements } else { elements.div_ceil(self.ranks.into()) };
        let bytes = most.saturating_mul(self.dtype.size() as u64);
        let room = STAGING_BYTES / (u64::from(self.ranks) + 1) / STAGING_ALIGN * STAGING_ALIGN;
        bytes.min(room.max(STAGING_ALIGN)).next_multiple_of(STAGING_ALIGN)
    }

    /// Bytes that a GPU needs beside the operands for that.
    pub fn staging_bytes(&self, elements: u64) -> u64 {
        self.part_bytes(elements) * (u64::from(self.ranks) + 1)
    }
}

/// Most bytes of what other ranks send to a GPU before it is added.
const STAGING_BYTES: u64 = 64 << 20;
/// Each rank's part begins at a multiple of so many bytes.
const STAGING_ALIGN: u64 = 256;

/// The sum of what some ranks have, in their order, for collectives on GPUs.
///
/// Narrow floats are added in f32 and rounded once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fold {
    /// Type of the elements.
    pub dtype: DType,
    /// How many ranks.
    pub ranks: u32,
    /// The one symbol, [`Fold::SYMBOL`].
    pub symbols: Symbols,
    /// Takes an operand of each rank and gives the sum, all of [`Fold::STEP`] elements times the
    /// symbol's value, without gaps.
    pub kernel: Kernel,
}

impl Fold {
    /// What its sizes depend on.
    pub const SYMBOL: &str = "n";
    /// Elements are a multiple of this.
    pub const STEP: u64 = 16;

    /// As a program of one launch, whose operands are nowhere.
    pub fn program(&self) -> Program {
        let nowhere = Place { region: Region::Null, offset: Dim::from(0) };
        let args = vec![nowhere; self.ranks as usize + 1];
        let label = format!("sum of {} of {} ranks", self.dtype, self.ranks);
        Program {
            name: label.clone(),
            symbols: self.symbols.clone(),
            kernels: vec![self.kernel.clone()],
            launches: vec![Launch { kernel: 0, args, label }],
            ..Program::default()
        }
    }
}

/// A value's time and place in the arena.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The value, for people.
    pub name: String,
    /// First byte.
    pub offset: u64,
    /// Bytes at the symbols' bounds.
    pub bytes: u64,
    /// Launch that writes it (0 for an input).
    pub first: u32,
    /// Last launch that reads it.
    pub last: u32,
}

/// An entry function, compiled.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// Name of the entry.
    pub name: String,
    /// Symbols and the bounds that sizes were fixed for.
    pub symbols: Symbols,
    /// Inputs, which the caller writes to the arena.
    pub inputs: Vec<Port>,
    /// Outputs, which the caller reads from the arena.
    pub outputs: Vec<Port>,
    /// Memory that outlives a run (key/value memory), which the caller supplies.
    pub states: Vec<Port>,
    /// Which of them lie in others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
    /// Which of them are parts of a tensor that several ranks hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<Sharded>,
    /// Distinct kernels.
    pub kernels: Vec<Kernel>,
    /// Launches in order.
    pub launches: Vec<Launch>,
    /// Collectives in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub collectives: Vec<Collective>,
    /// Bytes of the arena: the exact peak at the bounds.
    pub arena_bytes: u64,
    /// What lies where and when in the arena.
    pub intervals: Vec<Interval>,
    /// Positions of a sequence that any attention over paged memory sees at most, the query's own
    /// among them: what a state holds of those before is not read again. `None` where one sees all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u64>,
}

impl Program {
    /// The largest scratch memory that a thread needs.
    pub fn scratch_bytes(&self) -> u64 {
        self.kernels.iter().map(|k| k.scratch_bytes).max().unwrap_or(0)
    }

    /// Bytes that its collectives need on a GPU beside the arena, at the symbols' upper bounds.
    pub fn staging_bytes(&self) -> u64 {
        let bytes = |collective: &Collective| {
            let most = collective.elements.bounds(&self.symbols).hi;
            collective.staging_bytes(u64::try_from(most).unwrap_or(0))
        };
        self.collectives.iter().map(bytes).max().unwrap_or(0)
    }

    /// The stage of a training step in stages that it is of, which its name ends with:
    /// `backward.1`. `None` of what all stages have.
    pub fn stage(&self) -> Option<usize> {
        self.name.rsplit_once('.')?.1.parse().ok()
    }

    /// Whether a state of it is made by the forward of a stage, or handed to it, for its backward:
    /// there is one for each micro-batch in flight.
    pub fn is_in_flight(state: &str) -> bool {
        ["hidden.", "kept."].iter().any(|kind| state.starts_with(kind))
    }

    /// How often memory is taken for a state of a stage that keeps things of so many micro-batches:
    /// for those, and for a message that waits.
    pub fn copies(state: &str, micro_batches: u64) -> u64 {
        let kept = if Program::is_in_flight(state) { micro_batches } else { 1 };
        let is_message = ["hidden.", "cotangent."].iter().any(|kind| state.starts_with(kind));
        kept + u64::from(is_message)
    }
}

/// What a compiler knows of kernels, for passes that choose between forms.
pub trait Kernels: Sync {
    /// Whether a kernel can be generated.
    ///
    /// # Errors
    /// A sentence that says what is not supported, such as the stride of an operand.
    fn supports(&self, spec: &KernelSpec) -> Result<(), String>;

    /// Whether there is a kernel for a specification in which operands or results are of a narrower
    /// float type than the operator has them: it converts as it loads and stores.
    fn converts(&self, _spec: &KernelSpec) -> bool {
        false
    }

    /// Whether products may be computed by a library that gives no promise of bits.
    fn asks_library(&self) -> bool {
        false
    }

    /// Bytes of memory that a launch needs beside its operands and results, as one more argument
    /// behind them; none where it is zero.
    fn workspace_bytes(&self, _spec: &KernelSpec) -> u64 {
        0
    }

    /// Whether they run on a device with memory of its own: what goes in and out is copied.
    fn run_apart(&self) -> bool {
        false
    }

    /// Seconds that an application of the operator takes, its symbols at `env`; `None` where no
    /// kernel computes this operator.
    fn seconds(
        &self,
        op: crate::OpRef,
        attrs: &Attrs,
        args: &[Option<TensorType>],
        results: &[TensorType],
        env: &crate::Env,
    ) -> Option<f64>;
}
