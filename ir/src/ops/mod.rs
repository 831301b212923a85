//! The operator table: one file an operator, listed once.

mod adjoint;
mod attention_batched;
mod collective;
mod conv_adjoint;
mod e4m3;
mod elementwise;
mod order;
mod reduction;
#[cfg(test)]
mod tests;
mod update;
mod window;

pub use collective::Shard;
pub use e4m3::{E4M3_BLOCK, E4M3_PANEL_BYTES, e4m3_row_bytes};
pub use norm_grad::NORM_GRAD_ROWS;
pub use pack::PANEL;
pub use quantize_rows::{QUANT_BLOCK, quant_row_bytes, quant_row_limit};
pub use quantize_weight::{QUANT_GROUP, quant_lane_bits, quant_lane_bytes, quant_weight_bytes};
pub use quantized_linear::quant_bits;
pub use window::Window;

macro_rules! ops {
    ($($file:ident: $op:ident,)*) => {
        $(mod $file;)*
        /// Every operator.
        pub static OPS: &[&dyn crate::OpDef] = &[$(&$file::$op,)*];
    };
}

ops! {
    // Structure.
    param: Param,
    weight: Weight,
    constant: Constant,
    call: Call,
    // Element by element.
    neg: Neg,
    abs: Abs,
    sign: Sign,
    exp: Exp,
    log: Log,
    sqrt: Sqrt,
    rsqrt: Rsqrt,
    reciprocal: Reciprocal,
    tanh: Tanh,
    erf: Erf,
    sin: Sin,
    cos: Cos,
    floor: Floor,
    ceil: Ceil,
    round: Round,
    not: Not,
    is_nan: IsNan,
    add: Add,
    sub: Sub,
    mul: Mul,
    div: Div,
    rem: Rem,
    pow: Pow,
    maximum: Maximum,
    minimum: Minimum,
    equal: Equal,
    less: Less,
    less_equal: LessEqual,
    greater: Greater,
    greater_equal: GreaterEqual,
    and: And,
    or: Or,
    xor: Xor,
    bit_and: BitAnd,
    bit_xor: BitXor,
    bit_shift_right: BitShiftRight,
    select: Select,
    cast: Cast,
    // Activations.
    relu: Relu,
    sigmoid: Sigmoid,
    silu: Silu,
    gelu: Gelu,
    gelu_tanh: GeluTanh,
    softplus: Softplus,
    // Shapes and data movement.
    shape_of: ShapeOf,
    size_vector: SizeVector,
    iota: Iota,
    reshape: Reshape,
    transpose: Transpose,
    broadcast_to: BroadcastTo,
    slice: Slice,
    concat: Concat,
    gather: Gather,
    gather_elements: GatherElements,
    gather_nd: GatherNd,
    scatter_nd: ScatterNd,
    // Reductions and contractions.
    reduce_sum: ReduceSum,
    reduce_sum_square: ReduceSumSquare,
    reduce_mean: ReduceMean,
    reduce_max: ReduceMax,
    reduce_min: ReduceMin,
    reduce_prod: ReduceProd,
    cumsum: Cumsum,
    topk: Topk,
    sort: Sort,
    argsort: Argsort,
    matmul: Matmul,
    softmax: Softmax,
    logsumexp: Logsumexp,
    rms_norm: RmsNorm,
    layer_norm: LayerNorm,
    group_norm: GroupNorm,
    l2_normalize: L2Normalize,
    // Random numbers.
    splitmix64: Splitmix64,
    dropout: Dropout,
    // Windows over space.
    conv: Conv,
    conv_transpose: ConvTranspose,
    max_pool: MaxPool,
    average_pool: AveragePool,
    // Sequences.
    rope: Rope,
    score: Score,
    attention: Attention,
    quantize_heads: QuantizeHeads,
    kv_write: KvWrite,
    rope_kv_write: RopeKvWrite,
    paged_attention: PagedAttention,
    segment_mean: SegmentMean,
    segment_first: SegmentFirst,
    // Mixtures of experts.
    moe_route: MoeRoute,
    moe_permute: MoePermute,
    moe_combine: MoeCombine,
    // What kernels compute directly.
    pack: Pack,
    interleave: Interleave,
    linear: Linear,
    cublaslt_linear: CublasltLinear,
    gated_linear: GatedLinear,
    grouped_linear: GroupedLinear,
    grouped_gated_linear: GroupedGatedLinear,
    quantize_rows: QuantizeRows,
    quantize_weight: QuantizeWeight,
    quantized_linear: QuantizedLinear,
    fused: Fused,
    // Gradients.
    norm_grad: NormGrad,
    rms_norm_grad: RmsNormGrad,
    layer_norm_grad: LayerNormGrad,
    embedding_grad: EmbeddingGrad,
    attention_lse: AttentionLse,
    attention_grad: AttentionGrad,
    linear_grad: LinearGrad,
    cross_entropy: CrossEntropy,
    linear_cross_entropy: LinearCrossEntropy,
    linear_cross_entropy_dlogits: LinearCrossEntropyDlogits,
    linear_cross_entropy_grad: LinearCrossEntropyGrad,
    // Between ranks.
    all_reduce: AllReduce,
    vary: Vary,
    reduce_scatter: ReduceScatter,
    all_gather: AllGather,
    // Updates of parameters.
    accumulate: Accumulate,
    adamw_step: AdamwStep,
    lion_step: LionStep,
    sgd_step: SgdStep,
    sgd_momentum_step: SgdMomentumStep,
}
