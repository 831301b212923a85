//! Integers in the order of a tensor's elements.

use std::ops::Range;

use ir::{DType, KernelSpec};

use crate::emit::{Cmp, Elem, Emitter, Val};

/// How elements become keys: signed integers, the first in order lowest.
pub(super) struct Keys {
    pub(super) elem: Elem,
    /// Bits that tell keys apart.
    pub(super) digits: Range<u32>,
    pub(super) descending: bool,
}

impl Keys {
    pub(super) fn of(spec: &KernelSpec, dtype: DType) -> Keys {
        let descending = match spec.op {
            "topk" => spec.attrs.bool("largest"),
            _ => spec.attrs.bool("descending"),
        };
        let (elem, digits) = match dtype {
            DType::F64 | DType::I64 => (Elem::I64, 0..64),
            // As f32, whose lower half says no more than the sign.
            DType::Bf16 => (Elem::I32, 16..32),
            DType::F32 | DType::F16 | DType::I32 => (Elem::I32, 0..32),
            _ => (Elem::I32, 0..16),
        };
        Keys { elem, digits, descending }
    }

    /// The key of an element in a register, lane by lane.
    pub(super) fn key(&self, e: &Emitter, x: Val) -> Val {
        let key = if x.elem().is_float() { float_key(e, x) } else { e.cast(x, self.elem) };
        if self.descending { e.xor(key, e.int(key.ty(), -1)) } else { key }
    }

    /// The f32 whose key this is; of NaN the one that keys know.
    pub(super) fn value(&self, e: &Emitter, key: Val) -> Val {
        let key = if self.descending { e.xor(key, e.int(key.ty(), -1)) } else { key };
        let flip = e.and(e.shr_signed(key, 31), e.int(key.ty(), i32::MAX.into()));
        e.bitcast(e.xor(key, flip), key.ty().with_elem(Elem::F32))
    }

    /// The eight bits of a key from `shift` on, in unsigned order, as an index.
    pub(super) fn digit(&self, e: &Emitter, key: Val, shift: u32) -> Val {
        let digit = if shift == 0 { key } else { e.shr(key, shift) };
        let digit = e.and(digit, e.int(key.ty(), 0xff));
        let last = shift + 8 == self.digits.end;
        let digit = if last { e.xor(digit, e.int(key.ty(), 0x80)) } else { digit };
        e.extend_unsigned(digit, Elem::I64)
    }

    /// Least and greatest key.
    pub(super) fn range(&self) -> (i64, i64) {
        match self.elem {
            Elem::I64 => (i64::MIN, i64::MAX),
            _ => (i32::MIN.into(), i32::MAX.into()),
        }
    }
}

/// The bits of a float, those below the sign inverted where it is set; NaN is above infinity.
fn float_key(e: &Emitter, x: Val) -> Val {
    // The sum makes a negative zero positive.
    let x = e.add(x, e.zero(x.ty()));
    let elem = x.elem().to_int();
    let bits = e.bitcast(x, x.ty().with_elem(elem));
    let (top, sign, nan) = match elem {
        Elem::I64 => (63, i64::MAX, 0x7ff8 << 48),
        _ => (31, i32::MAX.into(), 0x7fc0_0000),
    };
    let flip = e.and(e.shr_signed(bits, top), e.int(bits.ty(), sign));
    let number = e.cmp(Cmp::Eq, x, x);
    e.select(number, e.xor(bits, flip), e.int(bits.ty(), nan))
}
