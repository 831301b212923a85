//! Arithmetic on scalars and, lane by lane, on vectors.

use super::{Elem, Emitter, Ty, Val};

/// Comparisons: ordered on floats (false if either is NaN, except `Ne`), signed on integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Cmp {
    Eq,
    /// True on floats if either is NaN.
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

impl Emitter {
    fn binary(&self, float: &str, int: &str, a: Val, b: Val) -> Val {
        assert_eq!(a.ty(), b.ty(), "operands of arith.{float}/{int}");
        let op = if a.elem().is_float() { float } else { int };
        assert!(!op.is_empty(), "no such operation on {}", a.ty());
        self.op(a.ty(), format_args!("arith.{op} {a}, {b} : {}", a.ty()))
    }

    fn intrinsic(&self, name: &str, args: &[Val]) -> Val {
        let ty = args[0].ty();
        assert!(args.iter().all(|a| a.ty() == ty), "operands of llvm.intr.{name}: {args:?}");
        let types = super::join(args.iter().map(|_| ty));
        let args = super::join(args);
        self.op(ty, format_args!("llvm.intr.{name}({args}) : ({types}) -> {ty}"))
    }

    /// `a + b`.
    #[must_use]
    pub fn add(&self, a: Val, b: Val) -> Val {
        self.binary("addf", "addi", a, b)
    }

    /// `a - b`.
    #[must_use]
    pub fn sub(&self, a: Val, b: Val) -> Val {
        self.binary("subf", "subi", a, b)
    }

    /// `a * b`.
    #[must_use]
    pub fn mul(&self, a: Val, b: Val) -> Val {
        self.binary("mulf", "muli", a, b)
    }

    /// `a / b`: IEEE on floats, truncating and signed on integers.
    #[must_use]
    pub fn div(&self, a: Val, b: Val) -> Val {
        self.binary("divf", "divsi", a, b)
    }

    /// Remainder of the truncating signed division of integers.
    #[must_use]
    pub fn rem(&self, a: Val, b: Val) -> Val {
        self.binary("", "remsi", a, b)
    }

    /// `a / b` on integers taken as unsigned.
    #[must_use]
    pub fn div_unsigned(&self, a: Val, b: Val) -> Val {
        self.binary("", "divui", a, b)
    }

    /// Remainder on integers taken as unsigned.
    #[must_use]
    pub fn rem_unsigned(&self, a: Val, b: Val) -> Val {
        self.binary("", "remui", a, b)
    }

    /// Bitwise and.
    #[must_use]
    pub fn and(&self, a: Val, b: Val) -> Val {
        self.binary("", "andi", a, b)
    }

    /// Bitwise or.
    #[must_use]
    pub fn or(&self, a: Val, b: Val) -> Val {
        self.binary("", "ori", a, b)
    }

    /// Bitwise exclusive or.
    #[must_use]
    pub fn xor(&self, a: Val, b: Val) -> Val {
        self.binary("", "xori", a, b)
    }

    /// Shift left by a constant.
    #[must_use]
    pub fn shl(&self, a: Val, bits: u32) -> Val {
        self.binary("", "shli", a, self.int(a.ty(), bits.into()))
    }

    /// Shift right by a constant, filling with zeros.
    #[must_use]
    pub fn shr(&self, a: Val, bits: u32) -> Val {
        self.binary("", "shrui", a, self.int(a.ty(), bits.into()))
    }

    /// Shift right by as many bits as `b` says, fewer than there are, filling with zeros.
    #[must_use]
    pub fn shr_by(&self, a: Val, b: Val) -> Val {
        self.binary("", "shrui", a, b)
    }

    /// Shift right by a constant, filling with the sign.
    #[must_use]
    pub fn shr_signed(&self, a: Val, bits: u32) -> Val {
        self.binary("", "shrsi", a, self.int(a.ty(), bits.into()))
    }

    /// `a + constant` on integers.
    #[must_use]
    pub fn add_const(&self, a: Val, constant: i64) -> Val {
        if constant == 0 { a } else { self.add(a, self.int(a.ty(), constant)) }
    }

    /// `a * constant` on integers.
    #[must_use]
    pub fn mul_const(&self, a: Val, constant: i64) -> Val {
        if constant == 1 { a } else { self.mul(a, self.int(a.ty(), constant)) }
    }

    /// `ceil(a / constant)` for an integer `a >= 0`.
    #[must_use]
    pub fn div_ceil_const(&self, a: Val, constant: i64) -> Val {
        self.div_unsigned(self.add_const(a, constant - 1), self.int(a.ty(), constant))
    }

    /// The greater: `a > b ? a : b`, so `b` where either is NaN (one `maxps` on x86).
    #[must_use]
    pub fn max(&self, a: Val, b: Val) -> Val {
        if a.elem().is_float() {
            self.select(self.cmp(Cmp::Gt, a, b), a, b)
        } else {
            self.binary("", "maxsi", a, b)
        }
    }

    /// The smaller: `a < b ? a : b`, so `b` where either is NaN (one `minps` on x86).
    #[must_use]
    pub fn min(&self, a: Val, b: Val) -> Val {
        if a.elem().is_float() {
            self.select(self.cmp(Cmp::Lt, a, b), a, b)
        } else {
            self.binary("", "minsi", a, b)
        }
    }

    /// `a * b + c` with one rounding.
    #[must_use]
    pub fn fma(&self, a: Val, b: Val, c: Val) -> Val {
        self.intrinsic("fma", &[a, b, c])
    }

    /// `-a`; exact on floats.
    #[must_use]
    pub fn neg(&self, a: Val) -> Val {
        if a.elem().is_float() {
            self.op(a.ty(), format_args!("arith.negf {a} : {}", a.ty()))
        } else {
            self.sub(self.int(a.ty(), 0), a)
        }
    }

    /// `|a|` of floats.
    #[must_use]
    pub fn abs(&self, a: Val) -> Val {
        self.intrinsic("fabs", &[a])
    }

    /// `|a|` with the sign of `sign`.
    #[must_use]
    pub fn copysign(&self, a: Val, sign: Val) -> Val {
        self.intrinsic("copysign", &[a, sign])
    }

    /// Number of bits that are set in an integer.
    #[must_use]
    pub fn count_ones(&self, a: Val) -> Val {
        self.intrinsic("ctpop", &[a])
    }

    /// Square root, correctly rounded.
    #[must_use]
    pub fn sqrt(&self, a: Val) -> Val {
        self.intrinsic("sqrt", &[a])
    }

    /// Largest whole number not above `a`.
    #[must_use]
    pub fn floor(&self, a: Val) -> Val {
        self.intrinsic("floor", &[a])
    }

    /// Smallest whole number not below `a`.
    #[must_use]
    pub fn ceil(&self, a: Val) -> Val {
        self.intrinsic("ceil", &[a])
    }

    /// Nearest whole number, ties to even.
    #[must_use]
    pub fn round_even(&self, a: Val) -> Val {
        self.intrinsic("roundeven", &[a])
    }

    /// `a` without its fraction.
    #[must_use]
    pub fn trunc(&self, a: Val) -> Val {
        self.intrinsic("trunc", &[a])
    }

    /// Lane-wise comparison; result of element `Bool`.
    #[must_use]
    pub fn cmp(&self, cmp: Cmp, a: Val, b: Val) -> Val {
        assert_eq!(a.ty(), b.ty(), "operands of a comparison");
        let float = a.elem().is_float();
        let op = if float { "cmpf" } else { "cmpi" };
        let predicate = match (cmp, float) {
            (Cmp::Eq, true) => "oeq",
            (Cmp::Ne, true) => "une",
            (Cmp::Lt, true) => "olt",
            (Cmp::Le, true) => "ole",
            (Cmp::Gt, true) => "ogt",
            (Cmp::Ge, true) => "oge",
            (Cmp::Eq, false) => "eq",
            (Cmp::Ne, false) => "ne",
            (Cmp::Lt, false) => "slt",
            (Cmp::Le, false) => "sle",
            (Cmp::Gt, false) => "sgt",
            (Cmp::Ge, false) => "sge",
        };
        let ty = a.ty().with_elem(Elem::Bool);
        self.op(ty, format_args!("arith.{op} {predicate}, {a}, {b} : {}", a.ty()))
    }

    /// `condition ? a : b`, lane by lane or for whole values under a scalar condition.
    #[must_use]
    pub fn select(&self, condition: Val, a: Val, b: Val) -> Val {
        assert_eq!(a.ty(), b.ty(), "branches of a select");
        assert_eq!(condition.elem(), Elem::Bool, "condition of a select");
        match condition.ty() {
            Ty::Vector(_, lanes) => {
                assert_eq!(lanes, a.lanes(), "lanes of a select");
                let types = format_args!("{}, {}", condition.ty(), a.ty());
                self.op(a.ty(), format_args!("arith.select {condition}, {a}, {b} : {types}"))
            }
            _ => self.op(a.ty(), format_args!("arith.select {condition}, {a}, {b} : {}", a.ty())),
        }
    }

    /// A target's LLVM intrinsic, such as `llvm.x86.avx2.pmadd.wd`.
    #[must_use]
    pub fn call_intrinsic(&self, name: &str, args: &[Val], ty: Ty) -> Val {
        let types = super::join(args.iter().map(|a| a.ty()));
        let args = super::join(args);
        self.op(ty, format_args!("llvm.call_intrinsic \"{name}\"({args}) : ({types}) -> {ty}"))
    }
}
