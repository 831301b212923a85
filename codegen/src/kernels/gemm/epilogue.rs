//! From sums in registers to y: bias, activation, gate, residual, a loop behind the product,
//! rounding.
//!
//! Both tensor core instructions leave the same two columns of rows `g` and `g + 8` of each block
//! of 16 x 8 sums in a lane: columns `2t` and `2t + 1` for lane `4g + t`.

use super::{Gemm, Matrix, PANEL};
use crate::{
    emit::{Cmp, Elem, Emitter, Ty, Val},
    kernels::matmul::Activation,
    math,
};

/// A strip of eight rows, every fourth pair of columns: what a lane holds of it.
pub(super) struct Strip<'a> {
    /// The lane's row of y, i32.
    pub(super) row: Val,
    /// The lane's first column in the stored weight, i32.
    pub(super) column: Val,
    /// Two sums for every eight columns.
    pub(super) sums: &'a [[Val; 2]],
}

/// Addresses of a row of the matrices that are read and written.
struct Row {
    residual: Option<Val>,
    /// Operands of the loop behind the product.
    operands: Vec<Val>,
    results: Vec<Val>,
}

/// Writes strips of y.
pub(super) struct Epilogue<'a> {
    pub(super) e: &'a Emitter,
    pub(super) spec: &'a Gemm,
    /// Number of rows, i32.
    pub(super) rows: Val,
    /// Whether every column of a tile is a column of y.
    pub(super) whole: bool,
}

impl Epilogue<'_> {
    /// Writes a strip where its row is one of y; every lane of the warp must come here.
    pub(super) fn store(&self, strip: &Strip<'_>) {
        let e = self.e;
        let blocks = self.spec.outputs(strip.sums.len() as i64);
        if self.in_units() && blocks % 4 == 0 {
            return self.store_units(strip);
        }
        self.row(strip.row, |row| {
            if self.spec.gated {
                self.gated(strip, row);
            } else {
                for (j, sums) in (0..).zip(strip.sums) {
                    let column = e.add_const(strip.column, 8 * j);
                    self.pair(column, *sums, None, row);
                }
            }
        });
    }

    /// Matrices that are written.
    fn results(&self) -> impl Iterator<Item = &Matrix> {
        let more = self.spec.map.iter().flat_map(|map| &map.results);
        std::iter::once(&self.spec.y).chain(more)
    }

    /// Matrices that are read.
    fn operands(&self) -> impl Iterator<Item = &Matrix> {
        let spec = self.spec;
        spec.residual.iter().chain(spec.map.iter().flat_map(|map| &map.operands))
    }

    /// Whether 32 columns of a result are 64 bytes at a multiple of sixteen, all of them in it or
    /// none.
    fn in_units(&self) -> bool {
        let whole = |m: &Matrix| matches!(m.elem, Elem::Bf16 | Elem::F16) && m.stride % 8 == 0;
        let even = |m: &Matrix| m.stride % 2 == 0;
        self.spec.n % 32 == 0 && self.results().all(whole) && self.operands().all(even)
    }

    /// Writes a strip in units of sixteen bytes: four lanes, who have a pair each of every eight
    /// columns, exchange pairs so that each has eight columns. A store of the warp is then whole
    /// sectors of memory, and a quarter as many.
    fn store_units(&self, strip: &Strip<'_>) {
        let (e, spec) = (self.e, self.spec);
        let within = e.rem_unsigned(strip.column, e.i32(PANEL));
        let first = if spec.gated {
            e.add(e.shr(e.sub(strip.column, within), 1), within)
        } else {
            strip.column
        };
        let blocks: Vec<([Val; 2], Option<[Val; 2]>)> = if spec.gated {
            let halves = |quad: &[[Val; 2]]| [(quad[0], Some(quad[2])), (quad[1], Some(quad[3]))];
            strip.sums.chunks_exact(4).flat_map(halves).collect()
        } else {
            strip.sums.iter().map(|sums| (*sums, None)).collect()
        };
        let inside = e.cmp(Cmp::Lt, strip.row, self.rows);
        // Lanes whose row is not one of y take part in the exchange.
        let row = self.places(e.min(strip.row, e.add_const(self.rows, -1)));
        // The lane's pair among four.
        let pair = e.shr(within, 1);
        for (i, four) in (0..).zip(blocks.chunks_exact(4)) {
            let column = e.add_const(first, 32 * i);
            let write = || {
                let words: Vec<Vec<Val>> = (0..)
                    .zip(four)
                    .map(|(j, (sums, up))| {
                        let column = e.add_const(column, 8 * j);
                        let values = self.values(2, column, *sums, *up, &row);
                        self.results().zip(values).map(|(m, v)| rounded(e, m.elem, v)).collect()
                    })
                    .collect();
                let column = e.add(e.sub(column, e.shl(pair, 1)), e.shl(pair, 3));
                for (i, (m, base)) in self.results().zip(&row.results).enumerate() {
                    let words = exchange(e, pair, [0, 1, 2, 3].map(|j: usize| words[j][i]));
                    let zero = e.zero(Ty::Vector(Elem::I32, 4));
                    let unit =
                        (0..).zip(words).fold(zero, |unit, (i, word)| e.insert(word, unit, i));
                    let to = e.at(*base, m.elem, e.cast(column, Elem::I64));
                    e.if_then(inside, || e.store_whole(unit, to));
                }
            };
            if self.whole {
                write();
            } else {
                let base = e.sub(column, e.shl(pair, 1));
                e.if_then(e.cmp(Cmp::Lt, base, e.i32(spec.n)), write);
            }
        }
    }

    /// Writes what a lane has of a row: two neighbours of every panel, those of y at `column` and
    /// sixteen columns on.
    pub(super) fn store_panels(&self, row: Val, column: Val, sums: &[[Val; 2]]) {
        self.row(row, |row| {
            let panels = if self.spec.gated { 2 } else { 1 };
            for (j, sums) in (0..).zip(sums.chunks(panels)) {
                let column = self.e.add_const(column, PANEL * j);
                self.pair(column, sums[0], sums.get(1).copied(), row);
            }
        });
    }

    /// Calls `body` with the addresses of a row, if there is such a row.
    fn row(&self, row: Val, body: impl FnOnce(&Row)) {
        let e = self.e;
        e.if_then(e.cmp(Cmp::Lt, row, self.rows), || body(&self.places(row)));
    }

    fn places(&self, row: Val) -> Row {
        let e = self.e;
        let row = e.cast(row, Elem::I64);
        let place = |m: &Matrix| e.at(e.arg(m.arg), m.elem, e.mul_const(row, m.stride));
        Row {
            results: self.results().map(place).collect(),
            residual: self.spec.residual.as_ref().map(place),
            operands: self.spec.map.iter().flat_map(|map| &map.operands).map(place).collect(),
        }
    }

    /// Of four blocks of eight columns, the first two are the gate's.
    fn gated(&self, strip: &Strip<'_>, row: &Row) {
        let e = self.e;
        // The lane's place within eight columns is not halved.
        let within = e.rem_unsigned(strip.column, e.i32(2 * PANEL));
        let first = e.add(e.shr(e.sub(strip.column, within), 1), within);
        for (pair, sums) in (0..).zip(strip.sums.chunks_exact(4)) {
            for half in 0..2 {
                let column = e.add_const(first, pair * PANEL + 8 * half);
                let half = usize::try_from(half).expect("0 or 1");
                self.pair(column, sums[half], Some(sums[2 + half]), row);
            }
        }
    }

    /// What results are at one or two columns from `column` on.
    fn values(
        &self,
        lanes: u32,
        column: Val,
        sums: [Val; 2],
        up: Option<[Val; 2]>,
        row: &Row,
    ) -> Vec<Val> {
        let (e, spec) = (self.e, self.spec);
        let place = e.cast(column, Elem::I64);
        let load = |base: Val, elem: Elem| {
            let from = e.at(base, elem, place);
            e.cast(e.load_whole(Ty::of(elem, lanes), from), Elem::F32)
        };
        let gather = |values: [Val; 2]| match lanes {
            1 => values[0],
            _ => {
                let zero = e.zero(Emitter::f32s(2));
                e.insert(values[1], e.insert(values[0], zero, 0), 1)
            }
        };
        let mut value = gather(sums);
        if let Some((bias, elem)) = spec.bias {
            value = e.add(value, load(e.arg(bias), elem));
        }
        value = activate(e, spec.activation, value);
        if let Some(up) = up {
            value = e.mul(value, gather(up));
        }
        if let (Some(base), Some(matrix)) = (row.residual, &spec.residual) {
            value = e.add(value, load(base, matrix.elem));
        }
        let Some(map) = &spec.map else { return vec![value] };
        let others = row.operands.iter().zip(&map.operands).map(|(base, m)| load(*base, m.elem));
        let elements: Vec<Val> = std::iter::once(value).chain(others).collect();
        map.function.emit(e, &elements)
    }

    fn pair(&self, column: Val, sums: [Val; 2], up: Option<[Val; 2]>, row: &Row) {
        let (e, spec) = (self.e, self.spec);
        let vector = self.results().chain(self.operands()).all(|m| m.stride % 2 == 0);
        let write = |lanes: u32, first: usize| {
            let column = e.add_const(column, first as i64);
            let picked = |values: [Val; 2]| if lanes == 1 { [values[first]; 2] } else { values };
            let values = self.values(lanes, column, picked(sums), up.map(picked), row);
            for ((m, base), value) in self.results().zip(&row.results).zip(values) {
                let to = e.at(*base, m.elem, e.cast(column, Elem::I64));
                e.store_whole(e.cast(value, m.elem), to);
            }
        };
        let guarded = |lanes: u32, first: usize| {
            let last = e.add_const(column, first as i64);
            let inside = e.cmp(Cmp::Lt, last, e.i32(spec.n));
            e.if_then(inside, || write(lanes, first));
        };
        match (vector, self.whole) {
            (true, true) => write(2, 0),
            (true, false) if spec.n % 2 == 0 => guarded(2, 0),
            // The last column has no neighbour.
            (true, false) => {
                let inside = e.cmp(Cmp::Lt, e.add_const(column, 1), e.i32(spec.n));
                e.either(inside, || write(2, 0), || guarded(1, 0));
            }
            (false, true) => [0, 1].into_iter().for_each(|i| write(1, i)),
            (false, false) => [0, 1].into_iter().for_each(|i| guarded(1, i)),
        }
    }
}

/// Two f32 as a word of a narrow type.
fn rounded(e: &Emitter, elem: Elem, value: Val) -> Val {
    let name = if elem == Elem::F16 { "f16" } else { "bf16" };
    let pair = [0, 1].map(|lane| e.extract(value, lane));
    // The first operand becomes the upper half.
    let round = format!("cvt.rn.{name}x2.f32 $0, $2, $1;");
    e.ptx_pure(&round, &[Ty::Scalar(Elem::I32)], &pair)[0]
}

/// Transposes four words of four neighbouring lanes, of which this is the one of number `lane`:
/// word `i` becomes word `lane` of lane `i`.
fn exchange(e: &Emitter, lane: Val, words: [Val; 4]) -> [Val; 4] {
    let odd = e.cmp(Cmp::Ne, e.and(lane, e.i32(1)), e.i32(0));
    let upper = e.cmp(Cmp::Ge, lane, e.i32(2));
    let [a, b, c, d] = words;
    let low = e.shuffle_xor(e.select(odd, a, b), 1);
    let high = e.shuffle_xor(e.select(odd, c, d), 1);
    let (a, b) = (e.select(odd, low, a), e.select(odd, b, low));
    let (c, d) = (e.select(odd, high, c), e.select(odd, d, high));
    let first = e.shuffle_xor(e.select(upper, a, c), 2);
    let second = e.shuffle_xor(e.select(upper, b, d), 2);
    [
        e.select(upper, first, a),
        e.select(upper, second, b),
        e.select(upper, c, first),
        e.select(upper, d, second),
    ]
}

/// The activation of f32.
pub(super) fn activate(e: &Emitter, activation: Activation, x: Val) -> Val {
    match activation {
        Activation::None => x,
        Activation::Relu => math::relu(e, x),
        Activation::GeluErf => math::gelu_erf(e, x),
        Activation::GeluTanh => math::gelu_tanh(e, x),
        Activation::Silu => math::silu(e, x),
        Activation::Tanh => math::tanh(e, x),
        Activation::Sigmoid => math::sigmoid(e, x),
    }
}
