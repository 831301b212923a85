//! Layouts of views.

use ir::{Dim, Layout, Node, TensorType};

/// The layout of a `transpose`, `slice` or `broadcast_to` of a value, and how many elements its
/// first one lies behind the operand's.
pub(super) fn view_of(node: &Node, x: &Layout) -> (Layout, Dim) {
    let ty = node.results()[0].ty.clone();
    let rank = x.ty.rank();
    let axis = |a: i64| ir::normalize_axis(a, rank).expect("inferred");
    match node.op.name() {
        "transpose" => {
            let perm = node.attrs.ints("perm").iter();
            let strides = perm.map(|p| x.strides[axis(*p)].clone()).collect();
            (Layout { ty, strides }, Dim::from(0))
        }
        "slice" => {
            let a = axis(node.attrs.int("axis"));
            let skip = node.attrs.dims("range")[0].clone() * x.strides[a].clone();
            let mut strides = x.strides.clone();
            strides[a] = strides[a].clone() * Dim::from(node.attrs.int("step"));
            (Layout { ty, strides }, skip)
        }
        _ => {
            let lead = ty.rank() - rank;
            let strides = (0..ty.rank()).map(|i| match i.checked_sub(lead) {
                Some(j) if x.ty.shape[j] == ty.shape[i] => x.strides[j].clone(),
                _ => Dim::from(0),
            });
            (Layout { strides: strides.collect(), ty: ty.clone() }, Dim::from(0))
        }
    }
}

/// The layout of the same memory under another shape, where strides can express it.
///
/// Axes of both shapes are matched in groups of equal product; within a group the old axes must
/// follow each other without gaps.
pub(super) fn reshape_view(x: &Layout, ty: &TensorType) -> Option<Layout> {
    if x.is_contiguous() {
        return Some(Layout::contiguous(ty));
    }
    let old: Vec<(Dim, Dim)> =
        x.ty.shape
            .iter()
            .cloned()
            .zip(x.strides.iter().cloned())
            .filter(|(d, _)| !d.is(1))
            .collect();
    let mut strides = vec![Dim::from(0); ty.rank()];
    let mut next = 0;
    let mut i = 0;
    while i < old.len() {
        // Grow the group on the side with the smaller product until both agree.
        let (mut a, mut end) = (old[i].0.clone(), i + 1);
        let first = next;
        let mut b = Dim::from(1);
        loop {
            if a == b && next > first {
                break;
            }
            let grow_new = next < ty.rank() && a.exact_div(&b).is_some();
            if grow_new {
                b = b * ty.shape[next].clone();
                next += 1;
            } else if end < old.len() {
                // The old axes of a group must be contiguous among themselves.
                if old[end - 1].1 != old[end].1.clone() * old[end].0.clone() {
                    return None;
                }
                a = a * old[end].0.clone();
                end += 1;
            } else {
                return None;
            }
        }
        let mut stride = old[end - 1].1.clone();
        for axis in (first..next).rev() {
            strides[axis] = stride.clone();
            stride = stride * ty.shape[axis].clone();
        }
        i = end;
    }
    // What is left has extent one.
    ty.shape[next..].iter().all(|d| d.is(1)).then(|| Layout { ty: ty.clone(), strides })
}

#[cfg(test)]
mod tests {
    use ir::{DType, Dim, Layout, TensorType};

    use super::reshape_view;

    fn layout(shape: &[&str], strides: &[&str]) -> Layout {
        let dims = |s: &[&str]| -> Vec<Dim> { s.iter().map(|d| d.parse().unwrap()).collect() };
        Layout { ty: TensorType::new(DType::F32, dims(shape)), strides: dims(strides) }
    }

    fn strides(x: &Layout, shape: &[&str]) -> Option<Vec<String>> {
        let shape: Vec<Dim> = shape.iter().map(|d| d.parse().unwrap()).collect();
        let view = reshape_view(x, &TensorType::new(DType::F32, shape))?;
        Some(view.strides.iter().map(Dim::to_string).collect())
    }

    #[test]
    fn columns_of_a_merged_product_split_into_heads() {
        let q = layout(&["T", "96"], &["160", "1"]);
        assert_eq!(strides(&q, &["T", "6", "16"]).unwrap(), ["160", "16", "1"]);
        assert_eq!(strides(&q, &["T", "1", "6", "16"]).unwrap()[2..], ["16", "1"]);
        assert_eq!(strides(&q, &["96*T"]), None);
    }

    #[test]
    fn axes_merge_only_without_gaps() {
        let x = layout(&["B", "S", "8"], &["8*S", "8", "1"]);
        assert_eq!(strides(&x, &["B*S", "8"]).unwrap(), ["8", "1"]);
        let t = layout(&["B", "H", "S", "8"], &["8*H*S", "8", "8*H", "1"]);
        assert_eq!(strides(&t, &["B", "H*S", "8"]), None);
    }
}
