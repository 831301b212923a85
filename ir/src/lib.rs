//! The intermediate representation of brolly: graphs of typed tensor operators, and the compiled
//! form that the runtime reads.
//!
//! A [`Module`] holds functions ([`Graph`]) in static single assignment form over [`Dim`]ensions
//! that may be symbolic. What an operator is, stands in one place, its [`OpDef`] in the table
//! [`OPS`]: signature, type inference over [`Fact`]s and meaning. The text format, the verifier,
//! the [`Interpreter`] (the oracle of every test), the importers and the e-graph read that table.
//!
//! A compiled function is a [`Program`]: kernels, launches and places in one arena. Programs,
//! weights and code travel in an [`artifact`].
//!
//! Everything is a value: key/value memory and optimiser state come in and go out, collectives and
//! random numbers are pure. Every change of precision is a `cast`.

pub mod artifact;
mod attr;
mod builder;
mod cuda;
mod dim;
mod dtype;
mod graph;
mod interp;
mod mmap;
mod model;
mod module;
pub mod npy;
mod op;
mod ops;
pub mod program;
mod split;
mod target;
pub mod tensor;
mod text;
mod types;
mod verify;
mod vjp;

pub use attr::{Attr, Attrs, Float, TensorAttr};
pub use builder::Builder;
pub use cuda::{
    CudaCode, CudaMatmul, CudaMatrix, CudaModule, CudaParam, CudaVariant, Span, Swizzle, TensorMap,
};
pub use dim::{Bounds, CompiledDim, Dim, DimError, Env, Symbols};
pub use dtype::DType;
pub use graph::{Graph, Node, NodeId, Value};
pub use interp::{EvalError, Interpreter, Precision, Ranks};
pub use mmap::{MappedFile, map_file, map_open_file};
pub use model::{ModelInfo, ModelKind};
pub use module::{Module, Weights};
pub use op::{
    Arity, AttrKind, AttrSpec, Body, EvalCx, EvalRanks, Expand, FunctionType, InferCx, OpDef,
    OpError, OpRef, Operand, Sample, Signature, normalize_axis,
};
pub use ops::{
    E4M3_BLOCK, E4M3_PANEL_BYTES, NORM_GRAD_ROWS, OPS, PANEL, QUANT_BLOCK, QUANT_GROUP, Shard,
    Window, e4m3_row_bytes, quant_bits, quant_lane_bits, quant_lane_bytes, quant_row_bytes,
    quant_row_limit, quant_weight_bytes,
};
pub use program::{
    Collective, CollectiveOp, Fold, Interval, Kernel, KernelSpec, Kernels, Launch, Layout, Part,
    Place, Port, Program, Region, ShardOf, Sharded,
};
pub use split::Split;
pub use target::{CpuFeature, CudaArch, CudaTarget, Target};
pub use tensor::{Bytes, Tensor};
pub use text::{ParseError, parse_module};
pub use types::{Fact, Shape, TensorType};
pub use verify::{VerifyError, verify};
pub use vjp::{Vjp, VjpCx, VjpRule, sum_to};
