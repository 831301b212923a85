//! Ports that lie one behind the other in the arena, so that one copy moves them all.
//!
//! Each begins where the one before it ends at the sizes of a run, so that sizes below their bounds
//! leave no gaps. A group lives as long as any of its ports.

use ir::{Dim, Symbols};

use super::arena::{ALIGN, Request, assign};

/// Larger ports lie by themselves: one copy less is nothing to them.
const MOST_BYTES: u64 = 16 << 20;

/// Where a buffer begins.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    /// In a run.
    pub(super) offset: Dim,
    /// At the latest.
    pub(super) last: u64,
}

/// A buffer: what is asked for at the symbols' upper bounds, and its bytes in a run.
#[derive(Clone, Debug)]
pub(super) struct Sized {
    pub(super) request: Request,
    pub(super) bytes: Dim,
}

/// Places of buffers, of which those of a group lie together, and the size of the arena.
pub(super) fn assign_groups(
    buffers: &[Sized],
    groups: &[Vec<usize>],
    symbols: &Symbols,
) -> (Vec<Spot>, u64) {
    let groups = groups.iter().map(|group| Group::of(group, buffers, symbols));
    let groups: Vec<Group> = groups.filter(|group| group.members.len() > 1).collect();
    let is_member = |b: &usize| groups.iter().any(|g| g.members.iter().any(|(m, _)| m == b));
    let alone: Vec<usize> = (0..buffers.len()).filter(|b| !is_member(b)).collect();
    let requests = alone.iter().map(|b| buffers[*b].request);
    let requests: Vec<Request> = requests.chain(groups.iter().map(|g| g.request)).collect();
    let (offsets, arena_bytes) = assign(&requests);
    let (of_alone, of_groups) = offsets.split_at(alone.len());
    let mut spots = vec![Spot { offset: Dim::from(0), last: 0 }; buffers.len()];
    for (b, at) in alone.iter().zip(of_alone) {
        spots[*b] = Spot { offset: dim(*at), last: *at };
    }
    for (group, at) in groups.iter().zip(of_groups) {
        for (b, Spot { offset, last }) in &group.members {
            spots[*b] = Spot { offset: offset.clone() + dim(*at), last: at + last };
        }
    }
    (spots, arena_bytes)
}

struct Group {
    /// Buffers, and where they begin in it.
    members: Vec<(usize, Spot)>,
    request: Request,
}

impl Group {
    /// Those that are not large, the smallest first.
    fn of(group: &[usize], buffers: &[Sized], symbols: &Symbols) -> Group {
        let bytes = |b: &usize| buffers[*b].request.bytes;
        let mut group: Vec<usize> =
            group.iter().copied().filter(|b| bytes(b) <= MOST_BYTES).collect();
        group.sort_by_key(|b| (bytes(b), *b));
        group.dedup();
        let mut request = Request { bytes: 0, first: u32::MAX, last: 0 };
        let (mut offset, mut members) = (Dim::from(0), Vec::new());
        for b in group {
            let Sized { request: one, bytes } = &buffers[b];
            let last = u64::try_from(offset.bounds(symbols).hi).unwrap_or(u64::MAX);
            request.bytes = request.bytes.max(last.saturating_add(one.bytes));
            request.first = request.first.min(one.first);
            request.last = request.last.max(one.last);
            members.push((b, Spot { offset: offset.clone(), last }));
            let align = i64::try_from(ALIGN).expect("small");
            offset = offset + bytes.ceil_div(align) * Dim::from(align);
        }
        Group { members, request }
    }
}

fn dim(bytes: u64) -> Dim {
    Dim::from(i64::try_from(bytes).expect("bounded"))
}
