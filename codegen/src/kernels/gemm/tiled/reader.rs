//! From global memory to registers, as 32-bit words, and from those to numbers.

use super::{Dense, PANEL, Place, Source, Stride, within};
use crate::emit::{Cmp, Elem, Emitter, Ty, Val};

const WORD: Ty = Ty::Scalar(Elem::I32);

/// A thread's share of an operand's part in a tile.
pub(super) struct Reader<'a> {
    e: &'a Emitter,
    source: Source,
    /// Neighbours of a unit: 4 or 8.
    unit: i64,
    /// Steps over k of a stage.
    depth: i64,
    /// Length of the sums.
    k: Val,
    pub(super) units: Vec<Unit>,
}

/// Neighbours along the dense axis that a thread reads at once.
pub(super) struct Unit {
    /// The first one's line within the tile, i32.
    pub(super) line: Val,
    /// The first one's k within the stage, i32.
    pub(super) k: Val,
    /// Offset of the first one in the first stage, i64.
    start: Val,
    /// Whether its line is one of the operand, or each of its lines.
    inside: Vec<Val>,
}

impl<'a> Reader<'a> {
    /// Of `lines` lines from `first` on, for so many threads.
    pub(super) fn new(
        e: &'a Emitter,
        source: &Source,
        (first, lines): (Val, i64),
        [unit, depth]: [i64; 2],
        (k, threads): (Val, u32),
    ) -> Reader<'a> {
        let mut reader = Reader { e, source: *source, unit, depth, k, units: Vec::new() };
        let threads = i64::from(threads);
        assert_eq!(lines * depth / unit % threads, 0, "threads share a stage evenly");
        for i in 0..lines * depth / unit / threads {
            let index = e.add_const(e.thread(), i * threads);
            reader.units.push(reader.unit(first, lines, index));
        }
        reader
    }

    fn unit(&self, first: Val, lines: i64, index: Val) -> Unit {
        let (e, source) = (self.e, &self.source);
        let across = match source.dense() {
            Dense::K => self.depth,
            Dense::Lines => lines,
            Dense::Panels => PANEL,
        } / self.unit;
        let low = e.mul_const(e.rem_unsigned(index, e.i32(across)), self.unit);
        let high = e.div_unsigned(index, e.i32(across));
        let (line, k) = match source.dense() {
            Dense::K => (high, low),
            Dense::Lines => (low, high),
            Dense::Panels => {
                let panel = e.div_unsigned(high, e.i32(self.depth));
                (e.add(e.mul_const(panel, PANEL), low), e.rem_unsigned(high, e.i32(self.depth)))
            }
        };
        let own = e.add(first, line);
        let start = match source.place {
            Place::Strides([lines, steps]) => e.add(lines.times(e, own), steps.times(e, k)),
            Place::Panels(size) => {
                let panel = Stride::Const(size * PANEL).times(e, e.shr(own, 4));
                let within = e.add(e.shl(k, 4), e.and(own, e.i32(PANEL - 1)));
                e.add(panel, e.cast(within, Elem::I64))
            }
        };
        let count = match source.dense() {
            Dense::Lines if !source.whole => self.unit,
            _ => 1,
        };
        let inside = |i: i64| e.cmp(Cmp::Lt, e.add_const(own, i), source.lines);
        Unit { line, k, start, inside: (0..count).map(inside).collect() }
    }

    /// The words of each unit in stage `step` (i32).
    pub(super) fn load(&self, step: Val) -> Vec<Vec<Val>> {
        let (e, source) = (self.e, &self.source);
        let ahead = match source.place {
            Place::Strides([_, steps]) => steps.times(e, e.mul_const(step, self.depth)),
            Place::Panels(_) => Stride::Const(self.depth * PANEL).times(e, step),
        };
        let first = e.mul_const(step, self.depth);
        let words = |unit: &Unit| {
            let at = e.add(first, unit.k);
            let from = e.at(source.base, source.elem, e.add(unit.start, ahead));
            if source.whole || source.dense() == Dense::Panels {
                return self.load_whole(from, within(e, unit.inside[0], at, self.k));
            }
            let bytes = source.elem.bytes();
            let one = |i: i64| {
                let (along_k, along_lines) = match source.dense() {
                    Dense::K => (i, 0),
                    _ => (0, usize::try_from(i).expect("few neighbours")),
                };
                let inside = unit.inside[along_lines];
                let inside = within(e, inside, e.add_const(at, along_k), self.k);
                self.load_one(self.neighbour(from, i), inside)
            };
            let elements: Vec<Val> = (0..self.unit).map(one).collect();
            if bytes == 4 {
                return elements;
            }
            let wide = |half: Val| e.extend_unsigned(half, Elem::I32);
            let pair = |pair: &[Val]| e.or(wide(pair[0]), e.shl(wide(pair[1]), 16));
            elements.chunks_exact(2).map(pair).collect()
        };
        self.units.iter().map(words).collect()
    }

    /// Address of the neighbour number `i` of the one at `from`.
    fn neighbour(&self, from: Val, i: i64) -> Val {
        let (e, elem) = (self.e, self.source.elem);
        match (self.source.dense(), self.source.place) {
            (Dense::Lines, Place::Strides([Stride::Const(stride), _])) => {
                e.at_const(from, elem, i * stride)
            }
            (Dense::Lines, Place::Strides([stride, _])) => {
                e.at(from, elem, stride.times(e, e.i32(i)))
            }
            _ => e.at_const(from, elem, i),
        }
    }

    /// The words of a whole unit, zero unless it is `inside`.
    fn load_whole(&self, from: Val, inside: Val) -> Vec<Val> {
        let e = self.e;
        let inside = e.cast(inside, Elem::I32);
        let count = self.unit * self.source.elem.bytes().cast_signed() / 4;
        let each = count.min(4);
        let zero: String = (0..each).map(|i| format!("mov.b32 ${i}, 0;\n")).collect();
        let names: Vec<String> = (0..each).map(|i| format!("${i}")).collect();
        let (address, flag) = (each, each + 1);
        let load = |at: i64| {
            // The predicate first: a result may be in the register of an operand.
            let text = format!(
                "{{\n.reg .pred some;\nsetp.ne.s32 some, ${flag}, 0;\n{zero}@some \
                 ld.global.v{each}.b32 {{{}}}, [${address}+{at}];\n}}",
                names.join(", ")
            );
            let types = vec![WORD; usize::try_from(each).expect("few words")];
            e.ptx_values(&text, &types, &[from, inside])
        };
        (0..count).step_by(4).flat_map(|word| load(4 * word)).collect()
    }

    /// One element's bits, zero unless it is `inside`.
    fn load_one(&self, from: Val, inside: Val) -> Val {
        let e = self.e;
        let bits = self.source.elem.bits();
        let text = format!(
            "{{\n.reg .pred some;\nsetp.ne.s32 some, $2, 0;\nmov.b{bits} $0, 0;\n@some \
             ld.global.b{bits} $0, [$1];\n}}"
        );
        let ty = Ty::Scalar(self.source.elem.to_int());
        e.ptx_values(&text, &[ty], &[from, e.cast(inside, Elem::I32)])[0]
    }

    pub(super) fn dense(&self) -> Dense {
        self.source.dense()
    }

    /// A unit's words as f32.
    pub(super) fn floats(&self, words: &[Val]) -> Vec<Val> {
        let e = self.e;
        let float = |word: Val| e.bitcast(word, Emitter::f32s(1));
        let halves = |word: Val| match self.source.elem {
            Elem::Bf16 => [e.shl(word, 16), e.and(word, e.i32(-0x1_0000))].map(float),
            _ => [word, e.shr(word, 16)].map(|word| {
                let half = e.bitcast(e.cast(word, Elem::I16), Ty::Scalar(Elem::F16));
                e.cast(half, Elem::F32)
            }),
        };
        match self.source.elem {
            Elem::F32 => words.iter().copied().map(float).collect(),
            _ => words.iter().copied().flat_map(halves).collect(),
        }
    }

    /// A unit's words as pairs of `elem`, bf16 or f16, rounded to nearest even.
    pub(super) fn pairs(&self, words: &[Val], elem: Elem) -> Vec<Val> {
        if self.source.elem == elem {
            return words.to_vec();
        }
        let name = if elem == Elem::F16 { "f16" } else { "bf16" };
        let text = format!("cvt.rn.{name}x2.f32 $0, $2, $1;");
        let floats = self.floats(words);
        floats.chunks_exact(2).map(|pair| self.e.ptx_pure(&text, &[WORD], pair)[0]).collect()
    }
}
