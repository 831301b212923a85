//! Random operands of a specification: what each is follows from its name in the operator's
//! signature, for tokens that belong to sequences, slots, tables and ids must fit each other.

use ir::{
    Attr, Attrs, DType, Dim, E4M3_BLOCK, E4M3_PANEL_BYTES, Env, KernelSpec, OpRef, PANEL,
    QUANT_GROUP, Tensor,
};

use super::{
    case::{Case, noise},
    oracle,
};

/// Sequences, where their number is a symbol.
pub(super) const SEQUENCES: i64 = 4;
/// Blocks of paged memory, a number that two does not divide.
pub(super) const BLOCKS: i64 = 41;

/// Tokens of each sequence before those of the launch.
const PAST: [usize; 4] = [0, 21, 60, 7];

/// Operands of a specification whose symbols have these values.
pub(super) fn random(spec: &KernelSpec, env: &Env) -> Vec<Option<Tensor>> {
    let shape = |i: usize| spec.operands[i].as_ref().unwrap().ty.extents(env).unwrap().to_vec();
    let exact = exact(spec);
    let mut args: Vec<Option<Tensor>> = Vec::new();
    for (i, layout) in spec.operands.iter().enumerate() {
        let Some(layout) = layout else {
            args.push(None);
            continue;
        };
        let (dtype, extents) = (layout.ty.dtype, shape(i));
        let floats = || {
            let exact = if dtype == DType::F64 { dtype } else { exact };
            noise(dtype, exact, &extents, i as u64 + 1)
        };
        let mapped = |f: &dyn Fn(f64) -> f64| {
            Tensor::from_f64s(dtype, &extents, floats().to_f64s().into_iter().map(f))
        };
        let ints = |f: &dyn Fn(usize) -> i64| {
            let count: usize = extents.iter().product();
            Tensor::from_i64s(dtype, &extents, (0..count).map(f))
        };
        let tokens = || shape(0)[0];
        args.push(Some(match (spec.op, name(spec.op, i)) {
            (_, "cu_seqlens") => {
                let starts = starts(tokens(), extents[0] - 1);
                ints(&|s| starts[s] as i64)
            }
            ("paged_attention", "block_tables") => {
                let each = blocks_each(extents[1]);
                ints(&|i| match (i / extents[1], i % extents[1]) {
                    (s, j) if j < each => (2 * (s * each + j) as i64 + 1) % BLOCKS,
                    _ => 0,
                })
            }
            ("paged_attention", "positions") => {
                let [sequences, table] = shape(3)[..] else { unreachable!("inferred") };
                let positions = positions(tokens(), sequences, blocks_each(table) * shape(1)[3]);
                ints(&|t| positions[t] as i64)
            }
            ("kv_write" | "rope_kv_write", "slots") => {
                let slots = (shape(0)[0] * shape(0)[3]) as i64;
                ints(&|t| if t % 5 == 3 { -1 } else { (t as i64 * 7 + 5) % slots })
            }
            ("gather", "indices") => {
                let axis = spec.attrs.int("axis");
                let data = shape(0);
                let axis = ir::normalize_axis(axis, data.len()).unwrap();
                let extent = data[axis] as i64;
                ints(&|i| (i as i64 * 7919 + (i * i) as i64) % (2 * extent) - extent)
            }
            ("embedding_grad", "ids") => {
                let Some(Attr::Dims(rows)) = spec.attrs.get("rows") else {
                    unreachable!("required")
                };
                let rows = rows[0].eval(env).unwrap();
                ints(&|i| (i as i64 * 7919 + (i * i) as i64) % (rows + 2) - 1)
            }
            (_, "targets") => {
                let rows = shape(1)[0];
                ints(&|i| if i % 5 == 3 { -100 } else { (i * 37 % rows) as i64 })
            }
            ("moe_permute", "experts") => {
                let experts = spec.attrs.int("experts");
                ints(&|i| (i as i64 * 7919 + (i * i / 3) as i64) % (experts + 2) - 1)
            }
            ("moe_combine", "slots") => {
                let rows = shape(0)[0] as i64;
                ints(&|i| (i as i64 * 7919) % (rows + 1) - 1)
            }
            (_, "offsets") => {
                let starts = starts(tokens(), extents[0] - 1);
                ints(&|e| starts[e] as i64)
            }
            ("dropout", "seed") => ints(&|_| 12345),
            (_, "k_scales" | "v_scales" | "k_scale" | "v_scale") => mapped(&|x| x.abs() / 100.0),
            ("adamw_step", "v") => mapped(&|x| x * x + 1e-4),
            (_, "correction1" | "correction2") => mapped(&|x| 0.2 + x.abs() / 2.0),
            (_, "lr") => mapped(&|_| 0.01),
            (_, "grad_scale") => mapped(&|_| 0.5),
            (_, "keep") => mapped(&|_| 0.9),
            ("quantized_linear", "w") => quantized_weight(&extents),
            ("quantized_linear", "x") if dtype == DType::U8 => {
                let [lead @ .., bytes] = &extents[..] else { unreachable!("inferred") };
                let row =
                    |blocks: &usize| ir::e4m3_row_bytes(&Dim::from(*blocks)).is(*bytes as i64);
                let k = (1..).find(row).expect("whole blocks") * E4M3_BLOCK;
                let x = noise(DType::F32, exact, &[lead, &[k]].concat(), 1);
                quantized("quantize_rows", Attrs::none().with("format", "e4m3"), &x)
            }
            // What the forward gives replaces it.
            _ if dtype.is_float() => floats(),
            ("paged_attention" | "kv_write" | "rope_kv_write", _) if dtype == DType::I8 => {
                ints(&|i| (i * 7919 + i * i) as i64 % 255 - 127)
            }
            // Loops, copies, sums: any numbers, and both truths.
            ("fused" | "copy" | "cast", _) if dtype == DType::Bool => {
                ints(&|i| (i % 3 == 0).into())
            }
            (
                "fused" | "copy" | "cast" | "reduce_sum" | "reduce_sum_square" | "reduce_mean"
                | "pack",
                _,
            ) => ints(&|i| (i * 7919 + i * i) as i64 % 9),
            (op, name) => panic!("there are no random values for `{name}` of {op}"),
        }));
    }
    for (layout, arg) in spec.operands.iter().zip(&mut args) {
        let (Some(layout), Some(arg)) = (layout, arg) else { continue };
        let shape = arg.shape().to_vec();
        // Of an axis that is broadcast there is one entry in memory.
        for axis in (0..shape.len()).filter(|axis| layout.strides[*axis].is(0)) {
            *arg = arg.slice(axis, 0, 1, 1).broadcast_to(&shape);
        }
    }
    forward(spec, &mut args, env);
    args
}

/// A quantised weight of this shape, e4m3 or in lanes.
fn quantized_weight(extents: &[usize]) -> Tensor {
    let [panels, spans, bytes] = *extents else { unreachable!("inferred") };
    let attrs = Attrs::none();
    let (attrs, span) = if bytes == E4M3_PANEL_BYTES {
        (attrs.with("format", "e4m3").with("bits", 8i64), E4M3_BLOCK)
    } else {
        let bits = ir::quant_lane_bits(&Dim::from(bytes)).expect("in lanes");
        (attrs.with("layout", "lanes").with("bits", bits as i64), QUANT_GROUP)
    };
    let w = noise(DType::F32, DType::F32, &[panels, spans * span, PANEL], 2);
    quantized("quantize_weight", attrs, &w)
}

/// What the interpreter makes of an operand.
pub(super) fn quantized(op: &'static str, attrs: Attrs, x: &Tensor) -> Tensor {
    Case::new(op, attrs, &[Some(x)]).expected().1.remove(0)
}

/// Replaces what gradients take of their forward.
fn forward(spec: &KernelSpec, args: &mut [Option<Tensor>], env: &Env) {
    let (op, operands, results): (_, &[usize], &[(usize, usize)]) = match spec.op {
        "attention_grad" => ("attention_lse", &[0, 1, 2, 6], &[(0, 3), (1, 4)]),
        "linear_cross_entropy_grad" => ("linear_cross_entropy", &[0, 1, 2], &[(1, 3)]),
        _ => return,
    };
    let attrs = if op == "attention_lse" { spec.attrs.clone() } else { ir::Attrs::none() };
    let pick = |i: &usize| spec.operands[*i].clone();
    let forward = KernelSpec {
        op: OpRef::named(op).0.name(),
        attrs,
        operands: operands.iter().map(pick).collect(),
        results: Vec::new(),
        body: None,
        symbols: spec.symbols.clone(),
    };
    let given: Vec<_> = operands.iter().map(|i| args[*i].clone()).collect();
    let got = oracle::results(&forward, &given, env);
    for (result, operand) in results {
        let dtype = args[*operand].as_ref().unwrap().dtype();
        args[*operand] = Some(got[*result].cast(dtype));
    }
}

/// The name of an operand, if its operator gives one.
fn name(op: &str, operand: usize) -> &'static str {
    let Some(op) = OpRef::find(op) else { return "" };
    let operands = op.signature().operands;
    operands.get(operand).or(operands.last()).map_or("", |operand| operand.name)
}

/// The type that numbers are to be exact in: products round to the narrowest of their operands'.
fn exact(spec: &KernelSpec) -> DType {
    let types: Vec<DType> = spec.operands.iter().flatten().map(|l| l.ty.dtype).collect();
    let rounds = spec.op.contains("linear") || spec.op.contains("attention") || spec.op == "matmul";
    let has = |dtype: DType| types.contains(&dtype);
    match () {
        () if !rounds => DType::F32,
        () if has(DType::F16) => DType::F16,
        () if [DType::Bf16, DType::I8, DType::F8E4M3, DType::U8].map(has).contains(&true) => {
            DType::Bf16
        }
        () => DType::F32,
    }
}

/// Where so many sequences of unequal lengths begin, and the end of the last.
fn starts(tokens: usize, sequences: usize) -> Vec<usize> {
    (0..=sequences).map(|s| tokens * s * (s + sequences) / (2 * sequences * sequences)).collect()
}

/// Blocks of a sequence, of so many in a row of the table.
fn blocks_each(table: usize) -> usize {
    table.min(usize::try_from(BLOCKS / SEQUENCES).unwrap())
}

/// The position of every token in its sequence, which has room for so many.
fn positions(tokens: usize, sequences: usize, room: usize) -> Vec<usize> {
    let starts = starts(tokens, sequences);
    let of = |s: usize| {
        let length = starts[s + 1] - starts[s];
        let past = PAST[s % PAST.len()].min(room.checked_sub(length).expect("room"));
        past..past + length
    };
    (0..sequences).flat_map(of).collect()
}
