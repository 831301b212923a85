//! The irregular operators: one short function each, listed once.
//!
//! An operator whose ONNX form differs from ours by names alone needs none; its file in the
//! operator table says so. Entries hold from opset `since` up to, not including, `until`.

mod attention;
mod gather;
mod generate;
mod math;
mod norm;
mod reduce;
mod shape;
mod slice;
mod window;

use ir::OpError;

use super::cx::{Cx, Results};

/// Imports one node.
pub(super) type Handler = fn(&mut Cx<'_, '_>) -> Results;

/// An irregular operator of the default domain.
pub(super) struct Entry {
    pub(super) op_type: &'static str,
    pub(super) since: i64,
    pub(super) until: i64,
    pub(super) import: Handler,
}

const fn from(since: i64, op_type: &'static str, import: Handler) -> Entry {
    Entry { op_type, since, until: i64::MAX, import }
}

/// Every irregular operator.
pub(super) static HANDLERS: &[Entry] = &[
    // Shapes.
    from(1, "Identity", shape::identity),
    from(1, "Dropout", shape::dropout),
    from(1, "Reshape", shape::reshape),
    from(1, "Flatten", shape::flatten),
    from(1, "Squeeze", shape::squeeze),
    from(1, "Unsqueeze", shape::unsqueeze),
    from(1, "Transpose", shape::transpose),
    from(8, "Expand", shape::expand),
    from(1, "Tile", shape::tile),
    from(1, "Size", shape::size),
    // Parts.
    from(1, "Slice", slice::slice),
    from(1, "Split", slice::split),
    from(1, "Gather", gather::gather),
    from(11, "GatherElements", gather::gather_elements),
    from(11, "GatherND", gather::gather_nd),
    from(11, "ScatterND", gather::scatter_nd),
    // New tensors.
    from(9, "ConstantOfShape", generate::constant_of_shape),
    from(11, "Range", generate::range),
    from(14, "Trilu", generate::trilu),
    from(9, "OneHot", generate::one_hot),
    from(9, "NonZero", generate::non_zero),
    // Element by element.
    from(1, "Cast", math::cast),
    from(15, "CastLike", math::cast_like),
    from(1, "Max", |cx| math::fold(cx, "maximum")),
    from(1, "Min", |cx| math::fold(cx, "minimum")),
    from(1, "Sum", |cx| math::fold(cx, "add")),
    from(1, "Mean", math::mean),
    from(1, "Pow", math::pow),
    from(10, "Mod", math::modulo),
    from(11, "BitShift", math::bit_shift),
    from(1, "Clip", math::clip),
    from(20, "Gelu", math::gelu),
    from(24, "Swish", math::swish),
    from(10, "IsInf", math::is_inf),
    from(1, "MatMul", math::matmul),
    from(1, "Gemm", math::gemm),
    // Reductions.
    from(1, "ReduceSum", |cx| reduce::reduce(cx, "reduce_sum")),
    from(1, "ReduceMean", |cx| reduce::reduce(cx, "reduce_mean")),
    from(1, "ReduceMax", |cx| reduce::reduce(cx, "reduce_max")),
    from(1, "ReduceMin", |cx| reduce::reduce(cx, "reduce_min")),
    from(1, "ReduceProd", |cx| reduce::reduce(cx, "reduce_prod")),
    from(1, "ReduceSumSquare", |cx| reduce::reduce(cx, "reduce_sum_square")),
    from(1, "ReduceL1", reduce::l1),
    from(1, "ReduceL2", reduce::l2),
    from(11, "CumSum", reduce::cumsum),
    from(1, "Softmax", reduce::softmax),
    from(1, "LogSoftmax", reduce::log_softmax),
    from(1, "TopK", reduce::topk),
    // Windows over space.
    from(1, "Conv", window::conv),
    from(1, "ConvTranspose", window::conv_transpose),
    from(1, "MaxPool", window::max_pool),
    from(1, "AveragePool", window::average_pool),
    from(1, "GlobalMaxPool", |cx| window::global(cx, "reduce_max")),
    from(1, "GlobalAveragePool", |cx| window::global(cx, "reduce_mean")),
    // Norms and attention.
    from(17, "LayerNormalization", norm::layer_norm),
    from(23, "RMSNormalization", norm::rms_norm),
    from(7, "BatchNormalization", norm::batch_norm),
    from(6, "InstanceNormalization", norm::instance_norm),
    from(18, "GroupNormalization", norm::group_norm),
    from(23, "Attention", attention::attention),
    from(23, "RotaryEmbedding", attention::rotary_embedding),
    // Control flow.
    from(1, "If", subgraph),
    from(1, "Loop", subgraph),
    from(1, "Scan", subgraph),
];

fn subgraph(_: &mut Cx<'_, '_>) -> Results {
    Err(OpError::new(
        "holds a subgraph, which is not imported: export the model for a fixed control flow \
         (traced with example inputs, without data-dependent branches or loops)",
    ))
}
