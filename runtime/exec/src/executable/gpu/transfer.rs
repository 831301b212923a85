//! What a run moves between the host and the arena: inputs one way, outputs the other.
//!
//! Ports lie in pinned memory as they lie in the arena, where the planner puts those that are not
//! large one behind the other (`passes::plan_memory`): neighbours are one copy. Copies are work of
//! the stream like launches, and may be part of a graph, for pinned memory stays where it is.

use std::ops::Range;

use cuda::{CudaError, Device, Pinned, Stream};
use ir::{Port, Program, Region};

/// Bytes of pinned memory for one way, at most; the rest of a run's ports go piece by piece.
const MOST_BYTES: u64 = 16 << 20;
/// Alignment of buffers in the arena: between neighbours is less than that.
const ALIGN: usize = 64;

/// One way of the ports of a program.
#[derive(Debug)]
pub(super) struct Transfer {
    pinned: Pinned,
    pieces: Vec<Piece>,
    /// Where in pinned memory each port begins, of those that have room there.
    places: Vec<Option<usize>>,
}

/// What one copy moves.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    pinned: usize,
    arena: Range<usize>,
}

/// Bytes of pinned memory that a program takes on the host.
pub(crate) fn pinned_bytes(program: &Program) -> u64 {
    bytes_of(program, &program.inputs) + bytes_of(program, &program.outputs)
}

/// Bytes of the ports in the arena at the symbols' upper bounds, as far as there is room.
fn bytes_of(program: &Program, ports: &[Port]) -> u64 {
    let bytes = |port: &Port| {
        let most = port.ty.bytes().bounds(&program.symbols).hi;
        u64::try_from(most).unwrap_or(0).saturating_add(ALIGN as u64 - 1) / ALIGN as u64
            * ALIGN as u64
    };
    let here = ports.iter().filter(|port| port.place.region == Region::Arena);
    here.map(bytes).fold(0, u64::saturating_add).min(MOST_BYTES)
}

impl Transfer {
    pub(super) fn new(
        device: &Device,
        program: &Program,
        ports: &[Port],
    ) -> Result<Transfer, CudaError> {
        let bytes = usize::try_from(bytes_of(program, ports)).unwrap_or(0);
        Ok(Transfer { pinned: device.pin(bytes)?, pieces: Vec::new(), places: Vec::new() })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.pinned.bytes() as u64
    }

    /// Finds places for a run's ports, by where they lie in the arena.
    pub(super) fn lay_out(&mut self, ports: &[Option<Range<usize>>]) {
        lay_out(self.pinned.bytes(), ports, &mut self.pieces, &mut self.places);
    }

    /// Where a port of the run begins in pinned memory, if it is there.
    pub(super) fn place(&self, port: usize) -> Option<usize> {
        self.places.get(port).copied().flatten()
    }

    pub(super) fn write(&mut self, place: usize, bytes: &[u8]) -> Result<(), CudaError> {
        self.pinned.write(place, bytes)
    }

    pub(super) fn read(&self, place: usize, bytes: &mut [u8]) -> Result<(), CudaError> {
        self.pinned.read(place, bytes)
    }

    /// Copies what was written to the arena.
    pub(super) fn upload(&self, stream: &Stream, arena: &cuda::Memory) -> Result<(), CudaError> {
        self.pieces.iter().try_for_each(|Piece { pinned, arena: at }| {
            stream.upload(&arena.at(at.start as u64), (&self.pinned, *pinned), at.len())
        })
    }

    /// Copies what is to be read from the arena.
    pub(super) fn download(&self, stream: &Stream, arena: &cuda::Memory) -> Result<(), CudaError> {
        self.pieces.iter().try_for_each(|Piece { pinned, arena: at }| {
            stream.download((&self.pinned, *pinned), &arena.at(at.start as u64), at.len())
        })
    }
}

fn lay_out(
    room: usize,
    ports: &[Option<Range<usize>>],
    pieces: &mut Vec<Piece>,
    places: &mut Vec<Option<usize>>,
) {
    pieces.clear();
    places.clear();
    places.resize(ports.len(), None);
    let mut order: Vec<usize> = (0..ports.len()).collect();
    order.sort_by_key(|port| ports[*port].as_ref().map(|range| range.start));
    for port in order {
        let Some(range) = &ports[port] else { continue };
        if range.is_empty() {
            places[port] = Some(0);
            continue;
        }
        let mut end = 0;
        if let Some(last) = pieces.last_mut() {
            end = last.pinned + last.arena.len();
            let is_next = (last.arena.start..last.arena.end + ALIGN).contains(&range.start);
            let place = last.pinned + (range.start - last.arena.start.min(range.start));
            if is_next && place + range.len() <= room {
                last.arena.end = last.arena.end.max(range.end);
                places[port] = Some(place);
                continue;
            }
        }
        let place = end.next_multiple_of(ALIGN);
        if place + range.len() <= room {
            pieces.push(Piece { pinned: place, arena: range.clone() });
            places[port] = Some(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laid_out(room: usize, ports: &[Option<Range<usize>>]) -> (Vec<Piece>, Vec<Option<usize>>) {
        let (mut pieces, mut places) = (Vec::new(), Vec::new());
        lay_out(room, ports, &mut pieces, &mut places);
        (pieces, places)
    }

    #[test]
    fn neighbours_are_one_copy() {
        let ports = [Some(1088..1100), Some(1000..1060), None, Some(64..65), Some(700..700)];
        let (pieces, places) = laid_out(1000, &ports);
        let want = [Piece { pinned: 0, arena: 64..65 }, Piece { pinned: 64, arena: 1000..1100 }];
        assert_eq!(pieces, want);
        assert_eq!(places, [Some(152), Some(64), None, Some(0), Some(0)]);
        // The same place twice, and one behind a gap.
        let (pieces, places) = laid_out(1000, &[Some(0..8), Some(0..8), Some(128..136)]);
        assert_eq!(pieces.len(), 2);
        assert_eq!(places, [Some(0), Some(0), Some(64)]);
    }

    #[test]
    fn what_has_no_room_is_left_to_others() {
        let (pieces, places) = laid_out(100, &[Some(0..90), Some(128..150), Some(96..100)]);
        assert_eq!(pieces, [Piece { pinned: 0, arena: 0..100 }]);
        assert_eq!(places, [Some(0), None, Some(96)]);
        assert_eq!(laid_out(10, &[Some(0..11)]), (vec![], vec![None]));
    }
}
