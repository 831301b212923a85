//! What the function that imports a node sees, and helpers that add plain nodes.

use ir::{Attrs, Builder, DType, Dim, OpError, Tensor, Value, normalize_axis};

use super::{
    attributes::Attributes,
    fold,
    index::{Affine, IndexForms},
    symbols::Sizes,
};

/// Most axes of a tensor.
pub(super) const MAX_RANK: usize = 16;

/// One node: operands, attributes, and the graph to add to.
pub(super) struct Cx<'c, 'm> {
    pub(super) b: &'c mut Builder<'m>,
    pub(super) args: &'c [Option<Value>],
    pub(super) attrs: &'c Attributes<'c>,
    pub(super) opset: i64,
    /// Number of results that the node names.
    pub(super) outputs: usize,
    pub(super) sizes: &'c mut Sizes,
    pub(super) index: &'c mut IndexForms,
}

/// What importing a node gives: its results, of which trailing ones may be missing.
pub(super) type Results = Result<Vec<Value>, OpError>;

impl Cx<'_, '_> {
    /// A required operand.
    pub(super) fn arg(&self, i: usize) -> Result<Value, OpError> {
        self.opt(i).ok_or_else(|| OpError::new(format!("operand {i} is missing")))
    }

    /// An operand that may be absent.
    pub(super) fn opt(&self, i: usize) -> Option<Value> {
        self.args.get(i).copied().flatten()
    }

    pub(super) fn shape(&self, v: Value) -> Vec<Dim> {
        self.b.ty(v).shape.to_vec()
    }

    pub(super) fn rank(&self, v: Value) -> usize {
        self.b.ty(v).rank()
    }

    pub(super) fn dtype(&self, v: Value) -> DType {
        self.b.ty(v).dtype
    }

    /// The known elements of an operand: sizes.
    pub(super) fn elements(&self, i: usize, what: &str) -> Result<Vec<Dim>, OpError> {
        fold::elements(self.b.graph(), self.arg(i)?).ok_or_else(|| {
            OpError::new(format!(
                "{what} (operand {i}) is computed from data; it must follow from constants and \
                 the inputs' shapes"
            ))
        })
    }

    /// The constant integers of an operand.
    pub(super) fn ints(&self, i: usize, what: &str) -> Result<Vec<i64>, OpError> {
        let constant = |d: &Dim| {
            d.as_const().ok_or_else(|| {
                OpError::new(format!("{what} (operand {i}) holds `{d}`; it must be constant"))
            })
        };
        self.elements(i, what)?.iter().map(constant).collect()
    }

    /// The one constant integer of an operand.
    pub(super) fn int(&self, i: usize, what: &str) -> Result<i64, OpError> {
        match self.ints(i, what)?[..] {
            [v] => Ok(v),
            ref all => {
                Err(OpError::new(format!("{what} (operand {i}) must be one integer, not {all:?}")))
            }
        }
    }

    /// Axes given as operand `i` or, in older opsets, as an attribute; counted from the front.
    pub(super) fn axes(&self, i: usize, rank: usize) -> Result<Option<Vec<usize>>, OpError> {
        let given = match (self.attrs.ints("axes")?, self.opt(i)) {
            (Some(axes), _) => axes.to_vec(),
            (None, Some(_)) => self.ints(i, "axes")?,
            (None, None) => return Ok(None),
        };
        let axes = given.iter().map(|a| axis(*a, rank)).collect::<Result<Vec<_>, _>>()?;
        match (0..axes.len()).find(|i| axes[..*i].contains(&axes[*i])) {
            Some(i) => Err(OpError::new(format!("axis {} is named twice in {given:?}", given[i]))),
            None => Ok(Some(axes)),
        }
    }

    /// The `axis` attribute, counted from the front.
    pub(super) fn axis(&self, default: i64, rank: usize) -> Result<usize, OpError> {
        axis(self.attrs.int_or("axis", default)?, rank)
    }

    /// An operator with one result, settled.
    pub(super) fn op(&mut self, op: &str, attrs: Attrs, args: &[Value]) -> Result<Value, OpError> {
        let v = self.b.op1(op, attrs, args)?;
        self.settle(v)
    }

    /// An operator without attributes.
    pub(super) fn plain(&mut self, op: &str, args: &[Value]) -> Result<Value, OpError> {
        self.op(op, Attrs::none(), args)
    }

    pub(super) fn settle(&mut self, v: Value) -> Result<Value, OpError> {
        fold::settle(self.b, self.sizes, self.index, v)
    }

    /// The affine form of an index tensor, if it has one.
    pub(super) fn form(&mut self, v: Value) -> Option<Affine> {
        self.index.of(self.b.graph(), v)
    }

    pub(super) fn cast(&mut self, x: Value, to: DType) -> Result<Value, OpError> {
        self.op("cast", Attrs::none().with("to", to), &[x])
    }

    pub(super) fn scalar(&mut self, dtype: DType, value: f64) -> Result<Value, OpError> {
        self.b.constant(Tensor::from_f64s(dtype, &[], [value]))
    }

    /// An integer scalar of a size.
    pub(super) fn size(&mut self, dtype: DType, size: &Dim) -> Result<Value, OpError> {
        if let Some(v) = size.as_const() {
            return self.b.constant(Tensor::from_i64s(dtype, &[], [v]));
        }
        let attrs = Attrs::none().with("sizes", vec![size.clone()]).with("scalar", true);
        self.b.op1("size_vector", attrs.with("dtype", dtype), &[])
    }

    /// The number of each element along an axis.
    pub(super) fn iota(
        &mut self,
        shape: Vec<Dim>,
        axis: usize,
        dtype: DType,
    ) -> Result<Value, OpError> {
        let axis = i64::try_from(axis).unwrap_or(i64::MAX);
        let attrs = Attrs::none().with("shape", shape).with("axis", axis).with("dtype", dtype);
        self.op("iota", attrs, &[])
    }

    /// An index tensor of an affine form.
    pub(super) fn grid(
        &mut self,
        dtype: DType,
        shape: Vec<Dim>,
        form: &Affine,
    ) -> Result<Value, OpError> {
        let mut sum = None;
        for axis in form.varying() {
            let mut term = self.iota(shape.clone(), axis, dtype)?;
            if !form.strides[axis].is(1) {
                let stride = self.size(dtype, &form.strides[axis])?;
                term = self.plain("mul", &[term, stride])?;
            }
            sum = Some(match sum {
                None => term,
                Some(sum) => self.plain("add", &[sum, term])?,
            });
        }
        let base = self.size(dtype, &form.base)?;
        match sum {
            None => self.broadcast_to(base, shape),
            Some(sum) if form.base.is(0) => Ok(sum),
            Some(sum) => self.plain("add", &[sum, base]),
        }
    }

    /// `x` under another shape; a reshape of a reshape is one.
    pub(super) fn reshape(&mut self, x: Value, shape: Vec<Dim>) -> Result<Value, OpError> {
        check_rank(shape.len())?;
        let node = self.b.graph().node(x.node);
        let x = if node.op.name() == "reshape" { node.input(0) } else { x };
        if self.shape(x) == shape {
            return Ok(x);
        }
        self.op("reshape", Attrs::none().with("shape", shape), &[x])
    }

    pub(super) fn broadcast_to(&mut self, x: Value, shape: Vec<Dim>) -> Result<Value, OpError> {
        check_rank(shape.len())?;
        self.op("broadcast_to", Attrs::none().with("shape", shape), &[x])
    }

    pub(super) fn transpose(&mut self, x: Value, perm: &[usize]) -> Result<Value, OpError> {
        let perm: Vec<i64> = perm.iter().map(|p| i64::try_from(*p).unwrap_or(i64::MAX)).collect();
        self.op("transpose", Attrs::none().with("perm", perm), &[x])
    }

    /// `x[start..end]` along an axis; nothing is added where that is all of it.
    pub(super) fn slice(
        &mut self,
        x: Value,
        axis: usize,
        start: &Dim,
        end: &Dim,
        step: i64,
    ) -> Result<Value, OpError> {
        if start.is(0) && step == 1 && *end == self.b.ty(x).shape[axis] {
            return Ok(x);
        }
        let axis = i64::try_from(axis).unwrap_or(i64::MAX);
        let range = vec![start.clone(), end.clone()];
        let attrs = Attrs::none().with("axis", axis).with("range", range).with("step", step);
        self.op("slice", attrs, &[x])
    }

    pub(super) fn concat(&mut self, xs: &[Value], axis: usize) -> Result<Value, OpError> {
        let axis = i64::try_from(axis).unwrap_or(i64::MAX);
        self.op("concat", Attrs::none().with("axis", axis), xs)
    }

    /// A reduction over axes.
    pub(super) fn reduce(
        &mut self,
        op: &str,
        x: Value,
        axes: &[usize],
        keep: bool,
    ) -> Result<Value, OpError> {
        if axes.is_empty() {
            return Ok(x);
        }
        let axes: Vec<i64> = axes.iter().map(|a| i64::try_from(*a).unwrap_or(i64::MAX)).collect();
        self.op(op, Attrs::none().with("axes", axes).with("keep", keep), &[x])
    }

    /// Softmax along one axis.
    pub(super) fn softmax(&mut self, x: Value, axis: usize) -> Result<Value, OpError> {
        // Rules read the last axis as -1.
        let last = axis + 1 == self.rank(x);
        let axis = if last { -1 } else { i64::try_from(axis).unwrap_or(i64::MAX) };
        self.op("softmax", Attrs::none().with("axis", axis), &[x])
    }

    /// Whether two sizes are equal.
    ///
    /// # Errors
    /// Names both where that cannot be decided.
    pub(super) fn equal(&self, what: &str, a: &Dim, b: &Dim) -> Result<bool, OpError> {
        self.sizes.equal(a, b).ok_or_else(|| {
            OpError::new(format!("{what}: cannot decide whether `{a}` equals `{b}`"))
        })
    }
}

/// The product of sizes.
pub(super) fn product(dims: &[Dim]) -> Dim {
    dims.iter().fold(Dim::from(1), |n, d| n * d.clone())
}

/// An axis counted from the front.
pub(super) fn axis(a: i64, rank: usize) -> Result<usize, OpError> {
    normalize_axis(a, rank)
        .ok_or_else(|| OpError::new(format!("axis {a} is out of range for {rank} axes")))
}

pub(super) fn check_rank(rank: usize) -> Result<(), OpError> {
    if rank <= MAX_RANK {
        Ok(())
    } else {
        Err(OpError::new(format!("a result would have {rank} axes; at most {MAX_RANK} can be")))
    }
}
