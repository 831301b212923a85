//! The fundamental types of PTX.

macro_rules! types {
    ($($name:ident $text:literal $bits:literal $class:ident,)*) => {
        /// A type of registers, variables and instructions.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Ty { $($name,)* }

        impl Ty {
            /// The type that is written so, without its dot.
            pub(crate) fn parse(text: &str) -> Option<Ty> {
                match text { $($text => Some(Ty::$name),)* _ => None }
            }

            /// The width in bits; a predicate has one.
            pub(crate) fn bits(self) -> u32 {
                match self { $(Ty::$name => $bits,)* }
            }

            fn class(self) -> Class {
                match self { $(Ty::$name => Class::$class,)* }
            }
        }
    };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Bits,
    Signed,
    Float,
}

types! {
    Pred "pred" 1 Bits,
    B8 "b8" 8 Bits,
    B16 "b16" 16 Bits,
    B32 "b32" 32 Bits,
    B64 "b64" 64 Bits,
    B128 "b128" 128 Bits,
    U8 "u8" 8 Bits,
    U16 "u16" 16 Bits,
    U32 "u32" 32 Bits,
    U64 "u64" 64 Bits,
    U16x2 "u16x2" 32 Bits,
    S8 "s8" 8 Signed,
    S16 "s16" 16 Signed,
    S32 "s32" 32 Signed,
    S64 "s64" 64 Signed,
    S16x2 "s16x2" 32 Bits,
    F16 "f16" 16 Float,
    F16x2 "f16x2" 32 Float,
    Bf16 "bf16" 16 Float,
    Bf16x2 "bf16x2" 32 Float,
    F32 "f32" 32 Float,
    F64 "f64" 64 Float,
    Tf32 "tf32" 32 Float,
    E4m3 "e4m3" 8 Float,
    E5m2 "e5m2" 8 Float,
    E4m3x2 "e4m3x2" 16 Float,
    E5m2x2 "e5m2x2" 16 Float,
}

impl Ty {
    /// The size in memory.
    pub(crate) fn bytes(self) -> usize {
        (self.bits() as usize).div_ceil(8)
    }

    pub(crate) fn is_signed(self) -> bool {
        self.class() == Class::Signed
    }

    pub(crate) fn is_float(self) -> bool {
        self.class() == Class::Float
    }

    /// The type of one half of a packed pair.
    pub(crate) fn half(self) -> Option<Ty> {
        match self {
            Ty::U16x2 => Some(Ty::U16),
            Ty::S16x2 => Some(Ty::S16),
            Ty::F16x2 => Some(Ty::F16),
            Ty::Bf16x2 => Some(Ty::Bf16),
            Ty::E4m3x2 => Some(Ty::E4m3),
            Ty::E5m2x2 => Some(Ty::E5m2),
            _ => None,
        }
    }

    /// The low bits of a value that this type has.
    pub(crate) fn truncate(self, value: u64) -> u64 {
        match self.bits() {
            64.. => value,
            bits => value & ((1 << bits) - 1),
        }
    }

    /// The value as a number: extended by its sign if the type has one.
    pub(crate) fn extend(self, value: u64) -> i128 {
        let value = self.truncate(value);
        if self.is_signed() && value >> (self.bits() - 1) != 0 {
            i128::from(value) - (1i128 << self.bits())
        } else {
            i128::from(value)
        }
    }
}
