//! Tensors that ranks hold in parts: a rank's part of the whole, and the whole of all parts.

use std::borrow::Cow;

use exec::{
    Groups,
    collectives::{CollectiveError, Group, Shards},
};
use ir::{DType, ShardOf};

/// Ranks along an axis, and this one's place among them.
fn along<'g>(groups: &'g Groups, axis: &str) -> (Option<&'g Group>, usize, usize) {
    let group = groups.along(axis);
    (group, group.map_or(1, Group::size), group.map_or(0, Group::index))
}

fn elements(shape: &[u64]) -> usize {
    shape.iter().map(|n| usize::try_from(*n).unwrap_or(usize::MAX)).product()
}

/// Extents of what is left of a tensor for the ranks that hold shards.
fn split_shape(of: &ShardOf) -> Vec<u64> {
    of.split.as_ref().map_or_else(|| of.shape.clone(), |split| split.part(&of.shape))
}

/// This rank's part of a tensor of these bytes; `None` if those are too few or too many.
pub(crate) fn own<'w>(
    of: &ShardOf,
    dtype: DType,
    groups: &Groups,
    whole: &'w [u8],
) -> Option<Cow<'w, [u8]>> {
    let size = dtype.size();
    if whole.len() != elements(&of.shape) * size {
        return None;
    }
    let part: Cow<'w, [u8]> = match &of.split {
        None => whole.into(),
        Some(split) => {
            let (_, _, place) = along(groups, &split.axis);
            let mut part = Vec::with_capacity(elements(&split_shape(of)) * size);
            for run in split.runs(&of.shape, place as u64) {
                part.extend_from_slice(whole.get(run.start * size..run.end * size)?);
            }
            part.into()
        }
    };
    let (_, ranks, place) = along(groups, &of.axis);
    if of.ranks <= 1 {
        return Some(part);
    }
    let range = Shards::even(elements(&split_shape(of)), ranks).range(place);
    let range = range.start * size..range.end * size;
    Some(match part {
        Cow::Borrowed(part) => part.get(range)?.into(),
        Cow::Owned(part) => part.get(range)?.to_vec().into(),
    })
}

/// The whole of what the ranks hold parts of, which all of them have to ask for.
///
/// # Errors
/// [`CollectiveError::Failed`] if the job has failed.
pub(crate) fn whole<'o>(
    of: &ShardOf,
    dtype: DType,
    groups: &Groups,
    own: &'o [u8],
) -> Result<Cow<'o, [u8]>, CollectiveError> {
    let size = dtype.size();
    let shape = split_shape(of);
    let part: Cow<'o, [u8]> = match along(groups, &of.axis) {
        (Some(group), ranks, _) if of.ranks > 1 => {
            let shards = Shards::even(elements(&shape), ranks);
            let mut part = vec![0; shards.elements() * size];
            group.all_gather(dtype, &shards, own, &mut part)?;
            part.into()
        }
        _ => own.into(),
    };
    let Some(split) = &of.split else { return Ok(part) };
    let (Some(group), ranks, _) = along(groups, &split.axis) else { return Ok(part) };
    let mut parts = vec![0; part.len() * ranks];
    group.all_gather(dtype, &Shards::even(parts.len() / size, ranks), &part, &mut parts)?;
    let mut whole = vec![0; parts.len()];
    let mut rest = &*parts;
    for rank in 0..ranks {
        for run in split.runs(&of.shape, rank as u64) {
            let room = whole.get_mut(run.start * size..run.end * size).unwrap_or_default();
            let (own, others) = rest.split_at(room.len().min(rest.len()));
            room.copy_from_slice(own);
            rest = others;
        }
    }
    Ok(whole.into())
}
