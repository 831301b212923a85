//! Numbers of e4m3 (Micikevicius et al. 2022, arXiv:2209.05433) by integer arithmetic and f16, on
//! machines that have no such type and those that do: one form, so the same bits everywhere.

use crate::emit::{Cmp, Elem, Emitter, Ty, Val};

/// The largest number.
pub(super) const LARGEST: f32 = 448.0;
/// What [`parts`] are multiplied with.
pub(super) const UNIT: f32 = 256.0;

/// Codes as f32 of the 256th part: what f16 makes of the same exponent, subnormal ones too. The
/// codes of NaN are as 480 would be.
pub(super) fn parts(e: &Emitter, codes: Val) -> Val {
    let wide = e.cast(codes, Elem::I16);
    // Of the sign, which fills the upper byte, one bit stays.
    let bits = e.and(e.shl(wide, 7), e.int(wide.ty(), 0xbfff_u16.cast_signed().into()));
    e.cast(e.bitcast(bits, Ty::of(Elem::F16, codes.lanes())), Elem::F32)
}

/// Codes as f32, those of NaN as 480.
pub(super) fn values(e: &Emitter, codes: Val) -> Val {
    let parts = parts(e, codes);
    e.mul(parts, e.float(parts.ty(), UNIT.into()))
}

/// The codes of f32 of at most [`LARGEST`], or so little more that it is the nearest number: to
/// nearest even.
pub(super) fn codes(e: &Emitter, v: Val) -> Val {
    let bits = |v: Val| e.bitcast(v, v.ty().with_elem(Elem::I32));
    let size = e.abs(v);
    let of_size = bits(size);
    let int = |n: i64| e.int(of_size.ty(), n);
    let odd = e.and(e.shr(of_size, 20), int(1));
    let rounded = e.shr(e.add(of_size, e.add(odd, int(0x7_ffff))), 20);
    let normal = e.sub(rounded, int(120 << 3));
    // The last bit of 2^14 in f32 is that of subnormal numbers, 2^-9.
    let raised = e.add(size, e.float(v.ty(), 16384.0));
    let subnormal = e.sub(bits(raised), int(f32::to_bits(16384.0).into()));
    let is_small = e.cmp(Cmp::Lt, size, e.float(v.ty(), 0.015_625));
    let sign = e.and(e.shr(bits(v), 24), int(0x80));
    e.cast(e.or(e.select(is_small, subnormal, normal), sign), Elem::I8)
}
