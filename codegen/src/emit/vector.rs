//! Moving elements between lanes, and reductions in a fixed order.

use super::{Elem, Emitter, Ty, Val, join};

impl Emitter {
    /// A scalar in every one of `lanes` lanes.
    #[must_use]
    pub fn splat(&self, scalar: Val, lanes: u32) -> Val {
        assert!(matches!(scalar.ty(), Ty::Scalar(_)), "splat of {}", scalar.ty());
        if lanes == 1 {
            return scalar;
        }
        let ty = Ty::Vector(scalar.elem(), lanes);
        self.op(ty, format_args!("vector.broadcast {scalar} : {} to {ty}", scalar.ty()))
    }

    /// 0, 1, 2, .. in an integer vector.
    #[must_use]
    pub fn iota(&self, ty: Ty) -> Val {
        assert!(!ty.elem().is_float() && ty.lanes() > 1, "iota of type {ty}");
        let values = join(0..ty.lanes());
        self.op(ty, format_args!("arith.constant dense<[{values}]> : {ty}"))
    }

    /// One lane as a scalar.
    #[must_use]
    pub fn extract(&self, vector: Val, lane: u32) -> Val {
        assert!(lane < vector.lanes(), "lane {lane} of {}", vector.ty());
        if vector.lanes() == 1 {
            return vector;
        }
        let (elem, ty) = (vector.elem(), vector.ty());
        self.op(
            Ty::Scalar(elem),
            format_args!("vector.extract {vector}[{lane}] : {elem} from {ty}"),
        )
    }

    /// `vector` with one lane replaced.
    #[must_use]
    pub fn insert(&self, scalar: Val, vector: Val, lane: u32) -> Val {
        assert!(lane < vector.lanes(), "lane {lane} of {}", vector.ty());
        let (elem, ty) = (vector.elem(), vector.ty());
        assert_eq!(scalar.ty(), Ty::Scalar(elem), "insert into {ty}");
        self.op(ty, format_args!("vector.insert {scalar}, {vector} [{lane}] : {elem} into {ty}"))
    }

    /// Lanes of `a` followed by `b`, picked by `lanes`.
    #[must_use]
    pub fn shuffle(&self, a: Val, b: Val, lanes: &[u32]) -> Val {
        assert_eq!(a.ty(), b.ty(), "operands of a shuffle");
        assert!(lanes.len() > 1, "a shuffle gives a vector");
        assert!(lanes.iter().all(|&lane| lane < 2 * a.lanes()), "lanes {lanes:?} of {}", a.ty());
        let count = u32::try_from(lanes.len()).expect("few lanes");
        let ty = Ty::Vector(a.elem(), count);
        let (picked, from) = (join(lanes), a.ty());
        self.op(ty, format_args!("vector.shuffle {a}, {b} [{picked}] : {from}, {from}"))
    }

    /// Lanes `first .. first + count` as a vector.
    #[must_use]
    pub fn slice(&self, vector: Val, first: u32, count: u32) -> Val {
        if count == vector.lanes() {
            return vector;
        }
        if count == 1 {
            return self.extract(vector, first);
        }
        let lanes: Vec<u32> = (first..first + count).collect();
        self.shuffle(vector, vector, &lanes)
    }

    /// Folds a vector of 2^n lanes by halves: lane i with lane i + lanes/2, and so on.
    #[must_use]
    pub fn fold(&self, vector: Val, combine: impl Fn(Val, Val) -> Val) -> Val {
        assert!(vector.lanes().is_power_of_two(), "reduction of {}", vector.ty());
        let mut vector = vector;
        while vector.lanes() > 1 {
            let half = vector.lanes() / 2;
            vector = combine(self.slice(vector, 0, half), self.slice(vector, half, half));
        }
        vector
    }

    /// Sum of 2^n lanes by halves, one fixed order on every target.
    #[must_use]
    pub fn reduce_add(&self, vector: Val) -> Val {
        self.fold(vector, |a, b| self.add(a, b))
    }

    /// Greatest of 2^n lanes.
    #[must_use]
    pub fn reduce_max(&self, vector: Val) -> Val {
        self.fold(vector, |a, b| self.max(a, b))
    }

    /// Whether any lane is true.
    #[must_use]
    pub fn any(&self, mask: Val) -> Val {
        let ty = mask.ty();
        assert_eq!(mask.elem(), Elem::Bool, "lanes of {ty}");
        if mask.lanes() == 1 {
            return mask;
        }
        self.op(
            Ty::Scalar(Elem::Bool),
            format_args!("vector.reduction <or>, {mask} : {ty} into i1"),
        )
    }

    /// Zero of a type.
    #[must_use]
    pub fn zero(&self, ty: Ty) -> Val {
        if ty.elem().is_float() { self.float(ty, 0.0) } else { self.int(ty, 0) }
    }

    /// Type of `lanes` f32.
    #[must_use]
    pub const fn f32s(lanes: u32) -> Ty {
        Ty::of(Elem::F32, lanes)
    }
}
