//! `splitmix64`: random integers by their numbers.

use super::elementwise::{BINARY, patterns};
use crate::{
    Attrs, Body, Builder, DType, Fact, InferCx, OpDef, OpError, Sample, Signature, Tensor,
    TensorType, Value, Vjp,
};

/// Integer number `n`, from 0 on, of the generator SplitMix64 that begins at `seed`, of 64 random
/// bits: a function of both, so that any of them is had without those before it.
///
/// Steele, Lea & Flood 2014, "Fast Splittable Pseudorandom Number Generators", with the constants
/// of Stafford's variant 13 of the finaliser.
/// # Shapes
/// `seed` and `n` i64, broadcast.
pub(super) struct Splitmix64;

/// What the state grows by: 2⁶⁴ over the golden ratio, odd.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// Places that the state is moved right by, and factors.
const MIX: [(u64, u64); 2] = [(30, 0xbf58_476d_1ce4_e5b9), (27, 0x94d0_49bb_1331_11eb)];

impl OpDef for Splitmix64 {
    fn name(&self) -> &'static str {
        "splitmix64"
    }
    fn signature(&self) -> &'static Signature {
        &BINARY
    }
    fn infer(&self, cx: &InferCx<'_>) -> Result<Vec<Fact>, OpError> {
        for i in [0, 1] {
            let dtype = cx.ty(i).dtype;
            if dtype != DType::I64 {
                return Err(OpError::new(format!("takes i64, got {dtype}")));
            }
        }
        let shape = cx.broadcast(&cx.ty(0).shape, &cx.ty(1).shape)?;
        Ok(vec![Fact::of(TensorType::new(DType::I64, shape))])
    }
    fn body(&self) -> Body {
        Body::Composite(|b, _, args| {
            let [seed, n] = [0, 1].map(|i| args[i].expect("operand"));
            let one = integer(b, 1)?;
            let gamma = integer(b, GAMMA)?;
            let n = b.add(n, one)?;
            let n = b.mul(n, gamma)?;
            let mut z = b.add(n, seed)?;
            for (places, factor) in MIX {
                z = fold(b, z, places)?;
                let factor = integer(b, factor)?;
                z = b.mul(z, factor)?;
            }
            Ok(vec![fold(b, z, 31)?])
        })
    }
    fn vjp(&self, _: &Attrs, _: &[Option<TensorType>]) -> Vjp {
        Vjp::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        let sample = |seed: &[usize], n: &[usize]| Sample {
            attrs: Attrs::none(),
            args: vec![Some(patterns(DType::I64, seed, 0)), Some(patterns(DType::I64, n, 1))],
        };
        vec![sample(&[], &[3, 37]), sample(&[2, 1, 5], &[3, 1]), sample(&[4], &[])]
    }
}

/// `z ^ (z >> places)`.
fn fold(b: &mut Builder<'_>, z: Value, places: u64) -> Result<Value, OpError> {
    let places = integer(b, places)?;
    let moved = b.op1("bit_shift_right", Attrs::none(), &[z, places])?;
    b.op1("bit_xor", Attrs::none(), &[z, moved])
}

/// A constant of these bits.
fn integer(b: &mut Builder<'_>, bits: u64) -> Result<Value, OpError> {
    b.constant(Tensor::from_i64s(DType::I64, &[], [bits.cast_signed()]))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use indexmap::IndexMap;

    use super::*;
    use crate::{Env, Interpreter, Module, Precision};

    /// The first numbers of the reference implementation, `splitmix64.c` of Vigna 2015.
    #[test]
    fn numbers_are_those_of_the_reference() {
        let mut m = Module::new("m");
        let mut b = m.builder("main");
        let n = b.op1("iota", Attrs::none().with("shape", vec![crate::Dim::from(5i64)]), &[]);
        let n = n.unwrap();
        let seed = b.param("seed", TensorType::new(DType::I64, Vec::<i64>::new())).unwrap();
        let z = b.op1("splitmix64", Attrs::none(), &[seed, n]).unwrap();
        b.output("z", z);
        let main = b.finish();
        m.add(main);
        let none = IndexMap::<Arc<str>, Tensor>::new();
        let of = |seed: i64| -> Vec<u64> {
            let seed = Tensor::from_i64s(DType::I64, &[], [seed]);
            let run = Interpreter::new(&m, &none, Precision::F32);
            let out = run.run("main", &[seed], &Env::new()).unwrap();
            out[0].to_i64s().into_iter().map(i64::cast_unsigned).collect()
        };
        let reference = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(of(1_234_567), reference);
        assert_eq!(of(0)[0], 0xe220_a839_7b1d_cdaf);
    }
}
