//! `ldmatrix`, `stmatrix`, `movmatrix`: 8x8 matrices of 16-bit elements.
//!
//! Lane `8 m + r` gives the address of row `r` of matrix `m`. Register `m` of lane `l` holds
//! elements `2 (l % 4)` and the next one of row `l / 4`; with `.trans`, of column `l / 4`. A warp
//! reads and writes collectively: every lane may vouch for it at a barrier.

use super::memory::{Place, bank_conflicts};
use super::{At, Machine, Run};
use crate::fault::{Blame, operand};
use crate::mods::Mod;
use crate::module::{Arg, Inst};
use crate::shadow::{Author, Kind};
use crate::shared::Use;

/// By row, then column.
type Matrix = [[u16; 8]; 8];

impl<'a> Machine<'a> {
    pub(super) fn ldmatrix(&mut self, at: At, inst: &'a Inst) -> Run {
        let count = self.matrix_count(inst, 0)?;
        let author = self.collective_author(at, inst);
        for index in 0..count {
            let mut matrix = Matrix::default();
            for (row, values) in matrix.iter_mut().enumerate() {
                let lane = (index * 8 + row) as u32;
                let (cta, address) = self.row(at, lane, inst, 1)?;
                let view = &self.clocks[self.slot(at, lane)];
                let shared = &mut self.ctas[cta].shared;
                let offset = shared.offset(address, 16, 16).lane(lane)?;
                let by = Use { author, kind: Kind::READ, view };
                let bytes = shared.read(offset, 16, by).lane(lane)?;
                for (value, pair) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                    *value = u16::from_le_bytes([pair[0], pair[1]]);
                }
            }
            self.set_matrix(at, inst, index, &matrix)?;
        }
        self.finish_collective(at, author);
        self.report.shared_read_bytes += count as u64 * 128;
        self.count_conflicts(at, inst, 1, count)
    }

    pub(super) fn stmatrix(&mut self, at: At, inst: &'a Inst) -> Run {
        let count = self.matrix_count(inst, 1)?;
        let author = self.collective_author(at, inst);
        for index in 0..count {
            let matrix = self.get_matrix(at, inst, index)?;
            for (row, values) in matrix.iter().enumerate() {
                let lane = (index * 8 + row) as u32;
                let (cta, address) = self.row(at, lane, inst, 0)?;
                let mut bytes = [0; 16];
                for (pair, value) in bytes.chunks_exact_mut(2).zip(values) {
                    pair.copy_from_slice(&value.to_le_bytes());
                }
                let view = &self.clocks[self.slot(at, lane)];
                let shared = &mut self.ctas[cta].shared;
                let offset = shared.offset(address, 16, 16).lane(lane)?;
                let by = Use { author, kind: Kind::WRITE, view };
                shared.write(offset, &bytes, by).lane(lane)?;
            }
        }
        self.finish_collective(at, author);
        self.report.shared_write_bytes += count as u64 * 128;
        self.count_conflicts(at, inst, 0, count)
    }

    pub(super) fn movmatrix(&mut self, at: At, inst: &'a Inst) -> Run {
        let mut matrix = Matrix::default();
        for lane in 0..32 {
            let value = self.source(at, lane, inst, 1)?;
            let (row, column) = (lane as usize / 4, lane as usize % 4 * 2);
            matrix[row][column] = value as u16;
            matrix[row][column + 1] = (value >> 16) as u16;
        }
        self.set_matrix(at, inst, 0, &matrix)
    }

    fn matrix_count(&self, inst: &Inst, registers: usize) -> Run<usize> {
        let count = match inst.mods.which(&[Mod::X1, Mod::X2, Mod::X4]) {
            Some(Mod::X2) => 2,
            Some(Mod::X4) => 4,
            _ => 1,
        };
        match self.arg(inst, registers)? {
            Arg::Vec(parts) if parts.len() != count => {
                operand(format!("{} registers for {count} matrices", parts.len()))
            }
            Arg::Vec(_) => Ok(count),
            _ if count == 1 => Ok(count),
            _ => operand("a vector of registers is needed"),
        }
    }

    fn row(&self, at: At, lane: u32, inst: &Inst, index: usize) -> Run<(usize, u32)> {
        let address = self.source(at, lane, inst, index)?;
        let spaces = [Mod::Shared, Mod::SharedCta];
        let place = if inst.mods.which(&spaces).is_some() {
            self.shared_place(at, address)
        } else {
            self.place(at, address, inst.mods)
        };
        match place.lane(lane)? {
            Place::Shared(cta, address) if cta == at.cta => Ok((cta, address)),
            _ => operand("matrices lie in the shared memory of the block").lane(lane),
        }
    }

    fn set_matrix(&mut self, at: At, inst: &Inst, index: usize, matrix: &Matrix) -> Run {
        let target = match self.arg(inst, 0)? {
            Arg::Vec(parts) => &parts[index],
            target => target,
        };
        for lane in 0..32 {
            let (row, column) = (lane as usize / 4, lane as usize % 4 * 2);
            let [low, high] = [column, column + 1].map(|column| {
                u64::from(if inst.has(Mod::Trans) {
                    matrix[column][row]
                } else {
                    matrix[row][column]
                })
            });
            self.set(at, lane, target, high << 16 | low)?;
        }
        Ok(())
    }

    fn get_matrix(&self, at: At, inst: &Inst, index: usize) -> Run<Matrix> {
        let source = match self.arg(inst, 1)? {
            Arg::Vec(parts) => &parts[index],
            source => source,
        };
        let mut matrix = Matrix::default();
        for lane in 0..32 {
            let value = self.value(at, lane, source)?;
            let (row, column) = (lane as usize / 4, lane as usize % 4 * 2);
            for (column, value) in [(column, value as u16), (column + 1, (value >> 16) as u16)] {
                if inst.has(Mod::Trans) {
                    matrix[column][row] = value;
                } else {
                    matrix[row][column] = value;
                }
            }
        }
        Ok(matrix)
    }

    fn collective_author(&mut self, at: At, inst: &Inst) -> Author {
        let slot = self.warp_slot(at);
        let warp = self.warp_mut(at);
        warp.collective_epoch += 1;
        Author { slot, epoch: warp.collective_epoch, line: inst.line }
    }

    fn finish_collective(&mut self, at: At, author: Author) {
        for lane in 0..32 {
            let slot = self.slot(at, lane);
            self.clocks[slot].saw_warp(author.epoch);
        }
    }

    fn count_conflicts(&mut self, at: At, inst: &Inst, index: usize, count: usize) -> Run {
        for matrix in 0..count as u32 {
            let rows = (matrix * 8..matrix * 8 + 8).map(|lane| self.row(at, lane, inst, index));
            let rows = rows.map(|row| Ok(row?.1)).collect::<Run<Vec<u32>>>()?;
            self.report.bank_conflicts += bank_conflicts(&rows, 16);
        }
        Ok(())
    }
}
