//! Loads, stores and prefetches through bare pointers. Alignment is the element's size.

use super::{Cmp, Elem, Emitter, Ty, Val};

impl Emitter {
    /// `pointer + index` elements of `elem`.
    #[must_use]
    pub fn at(&self, pointer: Val, elem: Elem, index: Val) -> Val {
        assert_eq!(pointer.ty(), Ty::Ptr, "base of an address");
        assert_eq!(index.ty(), Ty::Scalar(Elem::I64), "index of an address");
        assert!(elem != Elem::Bool, "no memory of i1");
        let types = format_args!("(!llvm.ptr, i64) -> !llvm.ptr, {elem}");
        self.op(Ty::Ptr, format_args!("llvm.getelementptr {pointer}[{index}] : {types}"))
    }

    /// `pointer + index` elements of `elem`, for a constant index.
    #[must_use]
    pub fn at_const(&self, pointer: Val, elem: Elem, index: i64) -> Val {
        if index == 0 { pointer } else { self.at(pointer, elem, self.i64(index)) }
    }

    /// Loads a value of type `ty`.
    #[must_use]
    pub fn load(&self, ty: Ty, pointer: Val) -> Val {
        let align = if ty == Ty::Ptr { 8 } else { ty.elem().bytes() };
        let attributes = format_args!("{{alignment = {align} : i64}}");
        self.op(ty, format_args!("llvm.load {pointer} {attributes} : !llvm.ptr -> {ty}"))
    }

    /// Stores `value`.
    pub fn store(&self, value: Val, pointer: Val) {
        let (ty, align) = (value.ty(), value.elem().bytes());
        let attributes = format_args!("{{alignment = {align} : i64}}");
        self.line(format_args!("llvm.store {value}, {pointer} {attributes} : {ty}, !llvm.ptr"));
    }

    /// Loads `ty` at `pointer + index` elements.
    #[must_use]
    pub fn load_at(&self, ty: Ty, pointer: Val, index: Val) -> Val {
        self.load(ty, self.at(pointer, ty.elem(), index))
    }

    /// Stores `value` at `pointer + index` elements.
    pub fn store_at(&self, value: Val, pointer: Val, index: Val) {
        self.store(value, self.at(pointer, value.elem(), index));
    }

    /// As [`Self::load`] from an address that is a multiple of the whole value's size, or of
    /// sixteen bytes where that is less: what a GPU reads at once.
    #[must_use]
    pub fn load_whole(&self, ty: Ty, pointer: Val) -> Val {
        let align = (ty.elem().bytes() * u64::from(ty.lanes())).min(16);
        let attributes = format_args!("{{alignment = {align} : i64}}");
        self.op(ty, format_args!("llvm.load {pointer} {attributes} : !llvm.ptr -> {ty}"))
    }

    /// As [`Self::store`] to an address as [`Self::load_whole`] reads.
    pub fn store_whole(&self, value: Val, pointer: Val) {
        let ty = value.ty();
        let align = (ty.elem().bytes() * u64::from(ty.lanes())).min(16);
        let attributes = format_args!("{{alignment = {align} : i64}}");
        self.line(format_args!("llvm.store {value}, {pointer} {attributes} : {ty}, !llvm.ptr"));
    }

    /// Lanes below `count` (i64) are true.
    #[must_use]
    pub fn mask_below(&self, count: Val, lanes: u32) -> Val {
        let ty = Ty::Vector(Elem::I32, lanes);
        let lane = self.iota(ty);
        let count = self.splat(self.cast(count, Elem::I32), lanes);
        self.cmp(Cmp::Lt, lane, count)
    }

    /// Loads the lanes of a vector that `mask` names; the others are `other` and not touched.
    #[must_use]
    pub fn load_masked(&self, pointer: Val, mask: Val, other: Val) -> Val {
        let (ty, align) = (other.ty(), other.elem().bytes());
        assert_eq!(mask.ty(), ty.with_elem(Elem::Bool), "mask of a load");
        let attributes = format_args!("{{alignment = {align} : i32}}");
        self.op(
            ty,
            format_args!(
                "llvm.intr.masked.load {pointer}, {mask}, {other} {attributes} : (!llvm.ptr, {}, {ty}) -> {ty}",
                mask.ty()
            ),
        )
    }

    /// Stores the lanes of a vector that `mask` names.
    pub fn store_masked(&self, value: Val, pointer: Val, mask: Val) {
        let (ty, align) = (value.ty(), value.elem().bytes());
        assert_eq!(mask.ty(), ty.with_elem(Elem::Bool), "mask of a store");
        let attributes = format_args!("{{alignment = {align} : i32}}");
        self.line(format_args!(
            "llvm.intr.masked.store {value}, {pointer}, {mask} {attributes} : {ty}, {} into !llvm.ptr",
            mask.ty()
        ));
    }

    /// Asks for the cache line at `pointer`, to be read very soon; never faults.
    pub fn prefetch(&self, pointer: Val) {
        self.prefetch_at(pointer, 3);
    }

    /// As [`Self::prefetch`], but into the second-level cache only, for data of somewhat later.
    pub fn prefetch_l2(&self, pointer: Val) {
        self.prefetch_at(pointer, 2);
    }

    fn prefetch_at(&self, pointer: Val, locality: u32) {
        let hint = format_args!("<{{rw = 0 : i32, hint = {locality} : i32, cache = 1 : i32}}>");
        self.line(format_args!("\"llvm.intr.prefetch\"({pointer}) {hint} : (!llvm.ptr) -> ()"));
    }
}
