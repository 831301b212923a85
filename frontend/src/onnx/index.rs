//! Index tensors that are affine in their coordinates: `base + Σ stride[axis] · coordinate[axis]`.
//!
//! Exporters write index arithmetic for what is a view: `mask[batch, key]` as a gather over
//! grids of batch and key numbers. Knowing what the grids hold, the importer turns such gathers
//! back into slices, reshapes and transposes. Nothing is guessed: a value that is not affine by
//! construction is unknown.

use std::collections::HashMap;

use ir::{Dim, Graph, Tensor, Value, normalize_axis, tensor::for_each_index};

/// The contents of an integer tensor. Axes of extent one have stride zero.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Affine {
    pub(super) base: Dim,
    pub(super) strides: Vec<Dim>,
}

impl Affine {
    /// The same value everywhere.
    fn splat(base: Dim, rank: usize) -> Affine {
        Affine { base, strides: vec![Dim::from(0); rank] }
    }

    /// Whether the value is the same everywhere.
    pub(super) fn is_splat(&self) -> bool {
        self.strides.iter().all(|s| s.is(0))
    }

    /// The axes along which the value varies.
    pub(super) fn varying(&self) -> Vec<usize> {
        (0..self.strides.len()).filter(|a| !self.strides[*a].is(0)).collect()
    }

    /// The form of a concrete tensor, if it has one.
    pub(super) fn of_tensor(t: &Tensor) -> Option<Affine> {
        let v = t.to_i64s();
        let base = *v.first()?;
        let mut step = 1;
        let mut strides = vec![0i64; t.rank()];
        for axis in (0..t.rank()).rev() {
            if t.shape()[axis] > 1 {
                strides[axis] = v.get(step)?.checked_sub(base)?;
            }
            step *= t.shape()[axis];
        }
        let mut at = 0;
        let mut fits = true;
        for_each_index(t.shape(), |index| {
            let terms = index.iter().zip(&strides);
            let want = terms.fold(base, |n, (i, s)| {
                n.wrapping_add(s.wrapping_mul(i64::try_from(*i).unwrap_or(i64::MAX)))
            });
            fits &= v[at] == want;
            at += 1;
        });
        fits.then(|| Affine {
            base: Dim::from(base),
            strides: strides.into_iter().map(Dim::from).collect(),
        })
    }

    /// With axes added in front until there are `rank`.
    fn broadcast(&self, rank: usize) -> Affine {
        let lead = rank.saturating_sub(self.strides.len());
        let mut strides = vec![Dim::from(0); lead];
        strides.extend(self.strides.iter().cloned());
        Affine { base: self.base.clone(), strides }
    }

    /// The difference of two, both broadcast to `rank` axes.
    pub(super) fn minus(&self, o: &Affine, rank: usize) -> Affine {
        self.broadcast(rank).zip(&o.broadcast(rank), |a, b| a.clone() - b.clone())
    }

    fn map(&self, f: impl Fn(&Dim) -> Dim) -> Affine {
        Affine { base: f(&self.base), strides: self.strides.iter().map(f).collect() }
    }

    fn zip(&self, o: &Affine, f: impl Fn(&Dim, &Dim) -> Dim) -> Affine {
        let rank = self.strides.len().max(o.strides.len());
        let (a, b) = (self.broadcast(rank), o.broadcast(rank));
        Affine {
            base: f(&a.base, &b.base),
            strides: a.strides.iter().zip(&b.strides).map(|(x, y)| f(x, y)).collect(),
        }
    }
}

/// Affine forms of a graph's values, computed when asked for and remembered.
#[derive(Default)]
pub(super) struct IndexForms(HashMap<Value, Option<Affine>>);

/// How far back through operators a form is sought at once.
const MAX_DEPTH: usize = 64;

impl IndexForms {
    /// The form of a value, if it has one.
    pub(super) fn of(&mut self, graph: &Graph, v: Value) -> Option<Affine> {
        self.find(graph, v, MAX_DEPTH)
    }

    fn find(&mut self, graph: &Graph, v: Value, depth: usize) -> Option<Affine> {
        if let Some(known) = self.0.get(&v) {
            return known.clone();
        }
        let ty = graph.ty(v);
        if depth == 0 || !ty.dtype.is_int() {
            return None;
        }
        let form = self.derive(graph, v, depth - 1).map(|mut a| {
            for (s, d) in a.strides.iter_mut().zip(&ty.shape) {
                if d.is(1) {
                    *s = Dim::from(0);
                }
            }
            a
        });
        self.0.insert(v, form.clone());
        form
    }

    fn derive(&mut self, graph: &Graph, v: Value, depth: usize) -> Option<Affine> {
        let node = graph.node(v.node);
        let ty = graph.ty(v);
        let shape = &ty.shape;
        let mut arg = |i: usize| self.find(graph, node.input(i), depth);
        match node.op.name() {
            "constant" => Affine::of_tensor(node.attrs.tensor("value")),
            "size_vector" => match node.attrs.dims("sizes") {
                [size] => Some(Affine::splat(size.clone(), shape.len())),
                _ => None,
            },
            "iota" => {
                let axis = normalize_axis(node.attrs.int("axis"), shape.len())?;
                let mut a = Affine::splat(Dim::from(0), shape.len());
                a.strides[axis] = Dim::from(1);
                Some(a)
            }
            "cast" if ty.dtype.size() >= 4 => arg(0),
            "neg" => Some(arg(0)?.map(|d| -d.clone())),
            "add" => Some(arg(0)?.zip(&arg(1)?, |a, b| a.clone() + b.clone())),
            "sub" => Some(arg(0)?.zip(&arg(1)?, |a, b| a.clone() - b.clone())),
            "mul" => match (arg(0)?, arg(1)?) {
                (a, k) if k.is_splat() => {
                    Some(a.broadcast(shape.len()).map(|d| d.clone() * k.base.clone()))
                }
                (k, a) if k.is_splat() => {
                    Some(a.broadcast(shape.len()).map(|d| d.clone() * k.base.clone()))
                }
                _ => None,
            },
            "broadcast_to" => Some(arg(0)?.broadcast(shape.len())),
            "transpose" => {
                let a = arg(0)?;
                let perm = node.attrs.ints("perm").iter();
                let axes = perm.map(|p| normalize_axis(*p, shape.len()));
                let strides = axes.map(|p| Some(a.strides[p?].clone())).collect::<Option<_>>()?;
                Some(Affine { base: a.base, strides })
            }
            "slice" => {
                let mut a = arg(0)?;
                let axis = normalize_axis(node.attrs.int("axis"), shape.len())?;
                let stride = a.strides[axis].clone();
                a.base = a.base + stride.clone() * node.attrs.dims("range")[0].clone();
                a.strides[axis] = stride * Dim::from(node.attrs.int("step"));
                Some(a)
            }
            "reshape" => {
                let a = arg(0)?;
                let from = &graph.ty(node.input(0)).shape;
                let kept = |s: &[Dim]| (0..s.len()).filter(|i| !s[*i].is(1)).collect::<Vec<_>>();
                let (old, new) = (kept(from), kept(shape));
                let same = old.iter().map(|i| &from[*i]).eq(new.iter().map(|i| &shape[*i]));
                let mut out = Affine::splat(a.base.clone(), shape.len());
                if !same && !a.is_splat() {
                    return None;
                }
                if same {
                    for (i, j) in old.iter().zip(&new) {
                        out.strides[*j] = a.strides[*i].clone();
                    }
                }
                Some(out)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::{Attrs, DType, Module};

    #[test]
    fn grids_of_numbers_have_their_form_through_shape_operators() {
        let mut module = Module::new("m");
        module.symbol("B", 1, 8);
        module.symbol("S", 1, 8);
        let (batch, seq) = (Dim::symbol("B"), Dim::symbol("S"));
        let mut b = module.builder("f");
        let mut iota =
            |n: &Dim| b.op1("iota", Attrs::none().with("shape", vec![n.clone()]), &[]).unwrap();
        let (rows, columns) = (iota(&batch), iota(&seq));
        let rows = b.reshape(rows, vec![batch.clone(), 1.into(), 1.into()]).unwrap();
        let size = Attrs::none().with("sizes", vec![seq.clone()]).with("scalar", true);
        let size = b.op1("size_vector", size, &[]).unwrap();
        let scaled = b.mul(rows, size).unwrap();
        let flat = b.add(scaled, columns).unwrap();
        let form = IndexForms::default().of(b.graph(), flat).unwrap();
        assert_eq!(form.base, Dim::from(0));
        assert_eq!(form.strides, [seq, Dim::from(0), Dim::from(1)]);
        let cast = b.cast(flat, DType::F32).unwrap();
        assert_eq!(IndexForms::default().of(b.graph(), cast), None);
    }

    #[test]
    fn stored_position_ids_have_a_form() {
        let ids = Tensor::from_i64s(DType::I64, &[2, 3], [5, 7, 9, 4, 6, 8]);
        let form = Affine::of_tensor(&ids).unwrap();
        assert_eq!((form.base, form.strides), (Dim::from(5), vec![Dim::from(-1), Dim::from(2)]));
        let bent = Tensor::from_i64s(DType::I64, &[3], [0, 1, 3]);
        assert_eq!(Affine::of_tensor(&bent), None);
    }
}
