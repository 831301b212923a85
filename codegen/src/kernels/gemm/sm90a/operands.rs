//! What a stage has, and the descriptors by which `wgmma` reads it.
//!
//! Rows of `a`, and columns of a weight that are dense, are 128 bytes of k, permuted over 1024
//! bytes. Dense rows of a weight are 128 bytes of columns. PTX ISA, "Asynchronous Warpgroup Level
//! Matrix Shared Memory Layout" and "Strides".
//!
//! A packed weight's panel has 32 bytes of columns at every k; four of them are a row of the copy
//! engine, which permutes its sixteen-byte units by exclusive-or with the row's number modulo 8.
//! Of an address, bit 4 is the half of the 32 bytes, bits 5 and 6 are k % 4, and bits 7 to 9 are
//! k / 4 % 8; so bit 4 is turned by bit 2 of k, and k % 4 by k / 8 % 4. The first is what `wgmma`
//! expects of columns permuted over 256 bytes; the second it does not see, so that in the eight
//! places of number j it finds k % 4 exclusive-ored with j % 4: [`Order::Turned`].

use ir::{DType, Dim};

use super::{
    super::{Form, Gemm, Order, PANEL},
    K, Tile,
};
use crate::{
    cuda::{Swizzle, TensorMap},
    emit::{Elem, Emitter, Val},
};

/// Steps over k of a panel that are one row of a copy.
const STEPS: i64 = 4;

/// The operands of a product in shared memory.
pub(super) struct Operands<'a> {
    spec: &'a Gemm,
    tile: Tile,
}

/// How `wgmma` finds its way from a start address.
pub(crate) struct Walk {
    /// Bytes to the next columns, where those lie together.
    pub(crate) leading: i64,
    /// Bytes to the next eight rows or steps.
    pub(crate) stride: i64,
    pub(crate) swizzle: Swizzle,
    /// Bytes to the next sixteen steps over k.
    pub(crate) step: i64,
}

impl Walk {
    fn descriptor(&self) -> i64 {
        let layout = match self.swizzle {
            Swizzle::Bytes128 => 1,
            Swizzle::Bytes64 => 2,
            Swizzle::Bytes32 => 3,
        };
        (self.leading >> 4) << 16 | (self.stride >> 4) << 32 | layout << 62
    }

    /// Descriptor of sixteen-wide step `step` from the address `from`.
    pub(crate) fn at(&self, e: &Emitter, from: Val, step: i64) -> Val {
        let start = e.and(e.shr(e.add_const(from, step * self.step), 4), e.i32(0x3fff));
        let wide = e.extend_unsigned(start, Elem::I64);
        e.or(wide, e.i64(self.descriptor()))
    }
}

/// Rows of 128 bytes of k.
pub(crate) const ALONG_K: Walk =
    Walk { leading: 16, stride: 1024, swizzle: Swizzle::Bytes128, step: 32 };

/// Dense rows of the other axis, in pieces of 128 bytes of a row.
pub(super) const DENSE_ROWS: Walk =
    Walk { leading: K * 128, stride: 1024, swizzle: Swizzle::Bytes128, step: 2048 };

impl<'a> Operands<'a> {
    /// Whether the copy engine can read the weight, and it or threads in sixteen bytes `a`.
    pub(super) fn can_copy(spec: &Gemm) -> bool {
        let weight = match spec.form {
            Form::Panels => spec.k % STEPS == 0,
            Form::Columns(stride) | Form::Rows(stride) => stride % 8 == 0,
        };
        let each = 16 / spec.a.elem.bytes().cast_signed();
        let whole = Operands::engine_copies(spec) || spec.k % each == 0;
        weight && whole && spec.a.stride % each == 0
    }

    /// Whether the copy engine can write `a` as it is read.
    fn engine_copies(spec: &Gemm) -> bool {
        spec.a.elem == spec.w_elem && spec.order() == Order::Plain
    }

    /// Whether the copy engine writes `a` too.
    pub(super) fn engine(&self) -> bool {
        Operands::engine_copies(self.spec)
    }

    pub(super) const fn new(spec: &'a Gemm, tile: Tile) -> Self {
        Operands { spec, tile }
    }

    fn a_bytes(&self) -> i64 {
        self.tile.m() * K * 2
    }

    pub(super) fn stage_bytes(&self) -> i64 {
        self.a_bytes() + self.tile.n * K * 2
    }

    /// Bytes of a stage that the copy engine writes.
    pub(super) fn copied_bytes(&self) -> i64 {
        if self.engine() { self.stage_bytes() } else { self.stage_bytes() - self.a_bytes() }
    }

    /// The maps of `a`, where the copy engine reads it, and of the weight.
    pub(super) fn maps(&self) -> Vec<TensorMap> {
        let (spec, tile) = (self.spec, self.tile);
        let dtype = if spec.w_elem == Elem::F16 { DType::F16 } else { DType::Bf16 };
        let size = |n: i64| u32::try_from(n).expect("a small box");
        let map = |arg, extents: &[Dim], strides: &[i64], boxes: &[i64], swizzle| TensorMap {
            arg,
            dtype,
            extents: extents.to_vec(),
            strides: strides.iter().map(|s| Dim::from(2 * s)).collect(),
            boxes: boxes.iter().map(|n| size(*n)).collect(),
            swizzle,
        };
        let (k, n) = (Dim::from(spec.k), Dim::from(spec.n));
        let a = map(
            spec.a.arg,
            &[k.clone(), spec.rows.clone()],
            &[spec.a.stride],
            &[K, tile.m()],
            Swizzle::Bytes128,
        );
        let w = match spec.form {
            Form::Panels => map(
                spec.w,
                &[Dim::from(STEPS * PANEL), Dim::from(spec.k / STEPS), Dim::from(spec.panels())],
                &[STEPS * PANEL, spec.k * PANEL],
                &[STEPS * PANEL, K / STEPS, tile.n / PANEL],
                Swizzle::Bytes128,
            ),
            Form::Columns(stride) => {
                map(spec.w, &[k, n], &[stride], &[K, tile.n], Swizzle::Bytes128)
            }
            Form::Rows(stride) => {
                map(spec.w, &[n, k], &[stride], &[self.width(), K], Swizzle::Bytes128)
            }
        };
        if self.engine() { vec![w, a] } else { vec![w] }
    }

    /// Columns of one copy of dense rows.
    fn width(&self) -> i64 {
        self.tile.n.min(64)
    }

    /// Starts the copies of a stage: the tile at row, column and k of `first`.
    pub(super) fn copy(&self, e: &Emitter, first: [Val; 3], to: Val, full: Val) {
        let [row, column, k] = first;
        if self.engine() {
            bulk(e, 1, &[k, row], to, full);
        }
        let to = e.add_const(to, self.a_bytes());
        match self.spec.form {
            Form::Panels => {
                let panel = e.div_unsigned(column, e.i32(PANEL));
                bulk(e, 0, &[e.i32(0), e.shr(k, STEPS.ilog2()), panel], to, full);
            }
            Form::Columns(_) => bulk(e, 0, &[k, column], to, full),
            Form::Rows(_) => {
                for i in 0..self.tile.n / self.width() {
                    let column = e.add_const(column, i * self.width());
                    let to = e.add_const(to, i * self.width() * K * 2);
                    bulk(e, 0, &[column, k], to, full);
                }
            }
        }
    }

    /// Issues the products of the stage at `from` for the rows of warpgroup `group`, and waits
    /// until the groups before this one are done.
    pub(super) fn multiply(&self, e: &Emitter, from: Val, group: Val, sums: &[Val]) -> Vec<Val> {
        let (n, name) = (self.tile.n, self.spec.type_name());
        let (w, along_n) = match self.spec.form {
            Form::Columns(_) => (ALONG_K, 0),
            Form::Panels => {
                let leading = K * PANEL * 2;
                (Walk { leading, stride: 256, swizzle: Swizzle::Bytes32, step: 512 }, 1)
            }
            Form::Rows(_) => (DENSE_ROWS, 1),
        };
        let a_from = e.add(from, e.mul_const(group, 64 * K * 2));
        let w_from = e.add_const(from, self.a_bytes());
        let list: Vec<String> = (0..sums.len()).map(|i| format!("${i}")).collect();
        let list = list.join(", ");
        let mut text = "wgmma.fence.sync.aligned;\n".to_owned();
        let mut operands = Vec::new();
        for step in 0..K / 16 {
            let [a, b] = [0, 1].map(|i| 2 * sums.len() + operands.len() + i);
            operands.extend([ALONG_K.at(e, a_from, step), w.at(e, w_from, step)]);
            text += &format!(
                "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{name}.{name} {{{list}}}, ${a}, ${b}, \
                 1, 1, 1, 0, {along_n};\n"
            );
        }
        text += "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;";
        e.ptx_update(&text, sums, &operands)
    }
}

/// Starts one copy of tensor map `map` at these coordinates, innermost first.
pub(in crate::kernels::gemm) fn bulk(e: &Emitter, map: u32, at: &[Val], to: Val, full: Val) {
    let rank = at.len();
    let coordinates: Vec<String> = (0..rank).map(|i| format!("${}", i + 2)).collect();
    let text = format!(
        "cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes [$0], [$1, \
         {{{}}}], [${}];",
        coordinates.join(", "),
        rank + 2
    );
    let mut operands = vec![to, e.map(map)];
    operands.extend(at);
    operands.push(full);
    e.ptx(&text, &operands);
}
