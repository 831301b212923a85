//! Index spaces: the axes that a loop nest walks, and where that leads in each operand.

use ir::Dim;

use super::cx::Cx;
use crate::emit::Val;

/// Axes, outermost first, and the strides of every operand along them.
#[derive(Clone, Debug)]
pub(super) struct Space {
    pub(super) extents: Vec<Dim>,
    /// By operand, then by axis.
    pub(super) strides: Vec<Vec<Dim>>,
}

impl Space {
    /// The space of these extents, without axes of extent one.
    pub(super) fn new(extents: &[Dim], strides: &[Vec<Dim>]) -> Space {
        let kept: Vec<usize> = (0..extents.len()).filter(|i| !extents[*i].is(1)).collect();
        Space {
            extents: kept.iter().map(|i| extents[*i].clone()).collect(),
            strides: strides.iter().map(|s| kept.iter().map(|i| s[*i].clone()).collect()).collect(),
        }
    }

    /// Merges neighbouring axes that every operand walks as one.
    #[must_use]
    pub(super) fn merged(self) -> Space {
        let mut out = Space { extents: Vec::new(), strides: vec![Vec::new(); self.strides.len()] };
        for (axis, extent) in self.extents.iter().enumerate() {
            let step = |s: &Vec<Dim>| s[axis].clone() * extent.clone();
            let joins =
                out.strides.iter().zip(&self.strides).all(|(done, from)| match done.last() {
                    Some(outer) => *outer == step(from),
                    None => !out.extents.is_empty(),
                });
            if joins && !out.extents.is_empty() {
                let last = out.extents.len() - 1;
                out.extents[last] = out.extents[last].clone() * extent.clone();
                for (done, from) in out.strides.iter_mut().zip(&self.strides) {
                    done[last] = from[axis].clone();
                }
            } else {
                out.extents.push(extent.clone());
                for (done, from) in out.strides.iter_mut().zip(&self.strides) {
                    done.push(from[axis].clone());
                }
            }
        }
        out
    }

    /// Takes the innermost axis off: its extent and the strides along it; extent one where there is
    /// no axis.
    pub(super) fn split_inner(mut self) -> (Space, Dim, Vec<Dim>) {
        match self.extents.pop() {
            Some(extent) => {
                let inner = self.strides.iter_mut().map(|s| s.pop().unwrap_or_default()).collect();
                (self, extent, inner)
            }
            None => {
                let inner = vec![Dim::from(1); self.strides.len()];
                (self, Dim::from(1), inner)
            }
        }
    }

    /// Number of points.
    pub(super) fn points(&self) -> Dim {
        self.extents.iter().fold(Dim::from(1), |n, d| n * d.clone())
    }

    /// Offsets of every operand at a point, counted in row-major order.
    pub(super) fn offsets(&self, cx: &Cx<'_>, point: Val) -> Vec<Val> {
        let e = &cx.e;
        let mut offsets = vec![e.i64(0); self.strides.len()];
        let mut rest = point;
        for axis in (0..self.extents.len()).rev() {
            let mut index = rest;
            if axis > 0 {
                let extent = cx.size(&self.extents[axis]);
                index = e.rem_unsigned(rest, extent);
                rest = e.div_unsigned(rest, extent);
            }
            for (offset, strides) in offsets.iter_mut().zip(&self.strides) {
                *offset = cx.offset(*offset, index, &strides[axis]);
            }
        }
        offsets
    }
}

/// Strides of a tensor along the axes of a larger shape that it is broadcast to, as NumPy does.
pub(super) fn broadcast_strides(shape: &[Dim], strides: &[Dim], to: usize) -> Vec<Dim> {
    let lead = to - shape.len();
    (0..to)
        .map(|axis| match axis.checked_sub(lead) {
            Some(own) if !shape[own].is(1) => strides[own].clone(),
            _ => Dim::from(0),
        })
        .collect()
}

/// Whether the axes can be walked as one, and with which stride.
pub(super) fn flatten(extents: &[Dim], strides: &[Dim]) -> Option<(Dim, Dim)> {
    let space = Space::new(extents, &[strides.to_vec()]).merged();
    match space.extents.as_slice() {
        [] => Some((Dim::from(1), Dim::from(0))),
        [rows] => Some((rows.clone(), space.strides[0][0].clone())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(text: &[&str]) -> Vec<Dim> {
        text.iter().map(|d| d.parse().unwrap()).collect()
    }

    #[test]
    fn axes_merge_where_every_operand_walks_them_as_one() {
        let extents = dims(&["T", "4", "1", "8"]);
        let dense = dims(&["32", "8", "8", "1"]);
        let merged = Space::new(&extents, std::slice::from_ref(&dense)).merged();
        assert_eq!(merged.extents, dims(&["32*T"]));
        let row = dims(&["0", "8", "0", "1"]);
        let merged = Space::new(&extents, &[dense, row]).merged();
        assert_eq!(
            (merged.extents, merged.strides[0].clone()),
            (dims(&["T", "32"]), dims(&["32", "1"]))
        );
        assert_eq!(merged.strides[1], dims(&["0", "1"]));
        assert_eq!(flatten(&dims(&["T", "B"]), &dims(&["B*7", "7"])).unwrap().1, dims(&["7"])[0]);
        assert_eq!(flatten(&dims(&["T", "B"]), &dims(&["B*7", "6"])), None);
    }
}
