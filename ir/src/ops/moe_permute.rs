//! `moe_permute`: tokens in order of their experts.

use crate::{
    Attrs, Body, DType, Dim, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor, TensorType,
    Vjp,
    op::{AttrKind, one, required},
};

/// The order in which experts take tokens, by a stable counting sort: expert `e` has the rows
/// `offsets[e]..offsets[e + 1]`, of which row `r` is token `tokens[r]`, and the `j`-th expert of
/// token `t` computes row `slots[t, j]`.
///
/// An expert outside `0..E` computes nothing: its slot is -1, and so are the tokens of the rows
/// that remain behind `offsets[E]`.
/// # Shapes
/// `experts: [T, k]` i32 → `tokens: [T·k]`, `slots: [T, k]`, `offsets: [E + 1]`, all i32.
pub(super) struct MoePermute;

static SIGNATURE: Signature =
    Signature { operands: &[one("experts")], attrs: &[required("experts", AttrKind::Int)] };

impl OpDef for MoePermute {
    fn name(&self) -> &'static str {
        "moe_permute"
    }
    fn signature(&self) -> &'static Signature {
        &SIGNATURE
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        let experts = cx.ty(0);
        let ([t, k], DType::I32) = (&*experts.shape, experts.dtype) else {
            return Err(OpError::new(format!("takes experts [T, k] i32, got {experts}")));
        };
        let count = cx.attrs.int("experts");
        if !(0..1 << 20).contains(&count) {
            return Err(OpError::attr("experts", format_args!("is {count}, not a number of them")));
        }
        let rows = t.clone() * k.clone();
        let shapes = [vec![rows], experts.shape.to_vec(), vec![(count + 1).into()]];
        Ok(shapes.map(|s| Fact::of(TensorType::new(DType::I32, s))).to_vec())
    }
    fn body(&self) -> Body {
        Body::Primitive(|cx, args| {
            let experts = args[0].as_ref().expect("operand");
            let k = experts.shape()[1];
            let all = experts.to_i64s();
            let mut tokens = vec![-1; all.len()];
            let mut slots = vec![-1; all.len()];
            let mut offsets = vec![0];
            let mut next = 0;
            for expert in 0..cx.attrs.int("experts") {
                for (i, _) in all.iter().enumerate().filter(|(_, e)| **e == expert) {
                    tokens[next] = (i / k) as i64;
                    slots[i] = next as i64;
                    next += 1;
                }
                offsets.push(next as i64);
            }
            let results = [tokens, slots, offsets].into_iter().enumerate();
            results.map(|(i, v)| Tensor::from_i64s(DType::I32, &cx.shape(i), v)).collect()
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        let make = |shape: [usize; 2], experts: i64| {
            let n = shape[0] * shape[1];
            let picked = (0..n).map(|i| (i * i * 5 + i) as i64 % 7);
            Sample {
                attrs: Attrs::none().with("experts", experts),
                args: vec![Some(Tensor::from_i64s(DType::I32, &shape, picked))],
            }
        };
        vec![make([9, 2], 7), make([5, 3], 4), make([1, 1], 9)]
    }
    fn flops(&self, _: &Attrs, args: &[Option<TensorType>], _: &[TensorType]) -> Dim {
        args[0].as_ref().map_or(Dim::from(0), |e| e.elements() * Dim::from(4))
    }
}
