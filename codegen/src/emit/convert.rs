//! Conversions between element types.

use super::{Cmp, Elem, Emitter, Ty, Val};

impl Emitter {
    fn convert(&self, op: &str, a: Val, elem: Elem) -> Val {
        let ty = a.ty().with_elem(elem);
        self.op(ty, format_args!("arith.{op} {a} : {} to {ty}", a.ty()))
    }

    /// The same bits as another type of the same total width.
    #[must_use]
    pub fn bitcast(&self, a: Val, ty: Ty) -> Val {
        let bits = |ty: Ty| ty.elem().bits() * ty.lanes();
        assert_eq!(bits(a.ty()), bits(ty), "bitcast of {} to {ty}", a.ty());
        let dialect = if a.lanes() == ty.lanes() { "arith" } else { "vector" };
        self.op(ty, format_args!("{dialect}.bitcast {a} : {} to {ty}", a.ty()))
    }

    /// Converts to `elem`; integers are signed, `Bool` is 0 or 1.
    ///
    /// Float to narrower float rounds to nearest even and keeps NaN; float to integer truncates and
    /// is undefined outside the integer's range; integer to narrower integer drops high bits.
    #[must_use]
    pub fn cast(&self, a: Val, elem: Elem) -> Val {
        let from = a.elem();
        if from == elem {
            return a;
        }
        match (from.is_float(), elem.is_float()) {
            (true, true) => self.cast_float(a, elem),
            (true, false) => {
                assert!(elem != Elem::Bool, "compare with zero instead");
                self.convert("fptosi", self.widen_f32(a), elem)
            }
            (false, true) if elem.bits() == 16 => self.cast_float(self.cast(a, Elem::F32), elem),
            (false, true) if from == Elem::Bool => self.convert("uitofp", a, elem),
            (false, true) => self.convert("sitofp", a, elem),
            (false, false) if elem == Elem::Bool => self.cmp(Cmp::Ne, a, self.int(a.ty(), 0)),
            (false, false) if from == Elem::Bool => self.convert("extui", a, elem),
            (false, false) if elem.bits() > from.bits() => self.convert("extsi", a, elem),
            (false, false) => self.convert("trunci", a, elem),
        }
    }

    /// Widens an integer, filling with zeros.
    #[must_use]
    pub fn extend_unsigned(&self, a: Val, elem: Elem) -> Val {
        if a.elem() == elem { a } else { self.convert("extui", a, elem) }
    }

    fn cast_float(&self, a: Val, elem: Elem) -> Val {
        match (a.elem(), elem) {
            (Elem::Bf16, _) => self.cast(self.widen_bf16(a), elem),
            (Elem::F16, Elem::Bf16) => self.narrow_bf16(self.cast(a, Elem::F32)),
            (Elem::F32, Elem::Bf16) if self.is_device() => self.convert("truncf", a, elem),
            (Elem::F32, Elem::Bf16) => self.narrow_bf16(a),
            (Elem::F64, Elem::Bf16 | Elem::F16) => self.cast_float(self.narrow_to_odd(a), elem),
            (from, to) if to.bits() > from.bits() => self.convert("extf", a, to),
            (_, to) => self.convert("truncf", a, to),
        }
    }

    /// An f64 as one of the two f32 around it: itself if it is one, else the one with an odd last
    /// bit.
    ///
    /// To round that to a format with at least two bits less is to round the f64 once (Boldo &
    /// Melquiond 2008, "Emulation of FMA and correctly rounded sums").
    fn narrow_to_odd(&self, a: Val) -> Val {
        let nearest = self.convert("truncf", a, Elem::F32);
        let back = self.convert("extf", nearest, Elem::F64);
        let bits = self.bitcast(nearest, a.ty().with_elem(Elem::I32));
        let int = |value| self.int(bits.ty(), value);
        let larger = self.cmp(Cmp::Gt, self.abs(back), self.abs(a));
        let towards_zero = self.select(larger, self.sub(bits, int(1)), bits);
        // False for NaN, which stays as it is.
        let inexact = self.or(larger, self.cmp(Cmp::Lt, self.abs(back), self.abs(a)));
        let odd = self.select(inexact, self.or(towards_zero, int(1)), bits);
        self.bitcast(odd, nearest.ty())
    }

    /// `a` as f32 where it is bf16 or f16, else unchanged.
    fn widen_f32(&self, a: Val) -> Val {
        if a.elem().bits() == 16 { self.cast_float(a, Elem::F32) } else { a }
    }

    fn widen_bf16(&self, a: Val) -> Val {
        let bits = self.bitcast(a, a.ty().with_elem(Elem::I16));
        let wide = self.shl(self.extend_unsigned(bits, Elem::I32), 16);
        self.bitcast(wide, a.ty().with_elem(Elem::F32))
    }

    fn narrow_bf16(&self, a: Val) -> Val {
        let bits = self.bitcast(a, a.ty().with_elem(Elem::I32));
        let int = |value| self.int(bits.ty(), value);
        let odd = self.and(self.shr(bits, 16), int(1));
        let rounded = self.shr(self.add(bits, self.add(odd, int(0x7fff))), 16);
        let quiet = self.or(self.shr(bits, 16), int(0x40));
        let is_nan = self.cmp(Cmp::Ne, a, a);
        let half = self.cast(self.select(is_nan, quiet, rounded), Elem::I16);
        self.bitcast(half, a.ty().with_elem(Elem::Bf16))
    }
}
