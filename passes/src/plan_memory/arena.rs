//! Static offsets for buffers by their lifetimes.
//!
//! Greedy by size (Pisarchyk & Lee 2020, arXiv:2001.03288): the largest buffer first, each at the
//! lowest offset at which it meets no buffer that lives at the same time.

/// A buffer to place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) bytes: u64,
    /// First launch at which it must exist.
    pub(super) first: u32,
    /// Last launch at which it must exist.
    pub(super) last: u32,
}

/// Alignment of every buffer: a cache line, and the widest vector.
pub(super) const ALIGN: u64 = 64;

/// Offsets of the requests, and the size of the arena that holds them.
pub(super) fn assign(requests: &[Request]) -> (Vec<u64>, u64) {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(requests[*i].bytes), *i));
    let mut offsets = vec![0; requests.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut peak = 0;
    for i in order {
        let r = requests[i];
        let mut at = 0;
        // `placed` is sorted by offset: walk the gaps upwards.
        for j in &placed {
            let (o, q) = (offsets[*j], requests[*j]);
            if q.first <= r.last && r.first <= q.last {
                if at + r.bytes <= o {
                    break;
                }
                at = at.max((o + q.bytes).next_multiple_of(ALIGN));
            }
        }
        offsets[i] = at;
        peak = peak.max(at + r.bytes);
        let position = placed.partition_point(|j| offsets[*j] <= at);
        placed.insert(position, i);
    }
    (offsets, peak.next_multiple_of(ALIGN))
}

#[cfg(test)]
mod tests {
    use super::{Request, assign};

    #[test]
    fn buffers_that_live_together_never_overlap() {
        // A linear congruential generator gives lifetimes and sizes.
        let mut x = 1u64;
        let mut next = |n: u64| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) % n
        };
        let requests: Vec<Request> = (0..200)
            .map(|_| {
                let first = u32::try_from(next(100)).unwrap();
                let last = first + u32::try_from(next(8)).unwrap();
                Request { bytes: next(5000), first, last }
            })
            .collect();
        let (offsets, peak) = assign(&requests);
        let floor = (0..110)
            .map(|t| {
                let live = requests.iter().filter(|r| r.first <= t && t <= r.last);
                live.map(|r| r.bytes).sum::<u64>()
            })
            .max()
            .unwrap();
        assert!(peak >= floor && peak < 2 * floor, "{peak} for a floor of {floor}");
        for (i, a) in requests.iter().enumerate() {
            assert!(offsets[i] + a.bytes <= peak);
            for (j, b) in requests.iter().enumerate().skip(i + 1) {
                let together = a.first <= b.last && b.first <= a.last;
                let apart =
                    offsets[i] + a.bytes <= offsets[j] || offsets[j] + b.bytes <= offsets[i];
                assert!(!together || apart || a.bytes == 0 || b.bytes == 0, "{i} and {j}");
            }
        }
    }
}
