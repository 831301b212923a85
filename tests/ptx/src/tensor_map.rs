//! Tensor maps: how bulk tensor copies cut boxes out of tensors in global memory.
//!
//! The rules are those of `cuTensorMapEncodeTiled` without interleaving. The 128 bytes that a
//! kernel gets are opaque, here as on the device; the encoding is the emulator's own.

use crate::fault::FaultKind;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Elem {
    /// Unsigned bytes, also for E4M3 and E5M2.
    #[default]
    U8,
    /// 16 bits.
    U16,
    /// 32 bits.
    U32,
    /// 64 bits.
    U64,
    /// Halves.
    F16,
    /// bfloat16.
    Bf16,
    /// Singles.
    F32,
    /// Doubles.
    F64,
}

const ELEMS: [Elem; 8] =
    [Elem::U8, Elem::U16, Elem::U32, Elem::U64, Elem::F16, Elem::Bf16, Elem::F32, Elem::F64];

impl Elem {
    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Elem::U8 => 1,
            Elem::U16 | Elem::F16 | Elem::Bf16 => 2,
            Elem::U32 | Elem::F32 => 4,
            Elem::U64 | Elem::F64 => 8,
        }
    }

    /// What fills elements that are out of bounds, if NaN is asked for.
    fn nan(self) -> Option<u64> {
        match self {
            Elem::F16 | Elem::Bf16 => Some(0x7fff),
            Elem::F32 => Some(0x7fff_ffff),
            Elem::F64 => Some(0x7fff_ffff_ffff_ffff),
            _ => None,
        }
    }
}

/// How the chunks of 16 bytes of a row are permuted in shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swizzle {
    /// Not at all.
    #[default]
    None,
    /// Within 32 bytes; the pattern repeats after 256 bytes.
    B32,
    /// Within 64 bytes; the pattern repeats after 512 bytes.
    B64,
    /// Within 128 bytes; the pattern repeats after 1024 bytes.
    B128,
}

impl Swizzle {
    /// The bytes within which chunks are permuted; 16 if they are not.
    #[must_use]
    pub fn span(self) -> u32 {
        match self {
            Swizzle::None => 16,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }

    /// Where the byte of an address lies: bits 7 and up are added without carry to bits 4 and up.
    #[must_use]
    pub fn apply(self, address: u32) -> u32 {
        address ^ ((address >> 7) & (self.span() / 16 - 1)) << 4
    }
}

/// What a tensor map says.
///
/// `dims`, `box_dims` and `element_strides` have one entry a dimension, the innermost first;
/// `strides` has one less, in bytes, since elements of the innermost dimension are adjacent. An
/// empty `element_strides` means ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorMap {
    /// The address of the first element.
    pub base: u64,
    /// The elements' type.
    pub elem: Elem,
    /// The sizes of the tensor.
    pub dims: Vec<u64>,
    /// The distances between elements of the second and further dimensions.
    pub strides: Vec<u64>,
    /// The sizes of the box that a copy moves.
    pub box_dims: Vec<u32>,
    /// Of how many elements one is copied, by dimension.
    pub element_strides: Vec<u32>,
    /// How the box lies in shared memory.
    pub swizzle: Swizzle,
    /// Whether elements that are out of bounds are NaN instead of zero.
    pub nan_fill: bool,
}

const MAGIC: u32 = 0x7e50_4d61;

/// A decoded map, in arrays.
#[derive(Clone, Debug)]
pub(crate) struct Boxes {
    pub(crate) map: TensorMap,
    /// Elements of the box, by dimension.
    pub(crate) counts: Vec<usize>,
}

impl TensorMap {
    /// The 128 bytes that a kernel takes.
    pub(crate) fn encode(&self) -> Result<[u8; 128], FaultKind> {
        self.check().map_err(FaultKind::TensorMap)?;
        let mut words: Vec<u64> = vec![
            u64::from(MAGIC) << 32
                | (self.dims.len() as u64) << 16
                | (self.elem as u64) << 8
                | (self.swizzle as u64) << 4
                | u64::from(self.nan_fill),
            self.base,
        ];
        words.extend(&self.dims);
        words.extend(&self.strides);
        for (axis, size) in self.box_dims.iter().enumerate() {
            let step = self.element_strides.get(axis).copied().unwrap_or(1);
            words.push(u64::from(*size) << 32 | u64::from(step));
        }
        // Five dimensions take 2 + 5 + 4 + 5 words, which is all there is room for.
        let mut bytes = [0; 128];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        Ok(bytes)
    }

    fn check(&self) -> Result<(), String> {
        let rank = self.dims.len();
        let fits = self.strides.len() + 1 == rank && self.box_dims.len() == rank;
        let steps = self.element_strides.len();
        if !(1..=5).contains(&rank) || !fits || (steps != 0 && steps != rank) {
            return Err(format!("{rank} dimensions, or not as many sizes of each kind"));
        }
        if !self.base.is_multiple_of(16) {
            return Err(format!("the base {:#x} is no multiple of 16", self.base));
        }
        if let Some(dim) = self.dims.iter().find(|dim| **dim == 0 || **dim > 1 << 32) {
            return Err(format!("a size of {dim}"));
        }
        let bad = |stride: &&u64| !stride.is_multiple_of(16) || **stride >= 1 << 40;
        if let Some(stride) = self.strides.iter().find(bad) {
            return Err(format!("the stride {stride} is no multiple of 16 below 2^40"));
        }
        if let Some(size) = self.box_dims.iter().find(|size| !(1..=256).contains(*size)) {
            return Err(format!("a box of {size} elements"));
        }
        if let Some(step) = self.element_strides.iter().find(|step| !(1..=8).contains(*step)) {
            return Err(format!("an element stride of {step}"));
        }
        let inner = self.box_dims[0] * self.elem.bytes() as u32;
        if !inner.is_multiple_of(16) {
            return Err(format!("the box's rows of {inner} bytes are no multiple of 16"));
        }
        if self.swizzle != Swizzle::None && inner != self.swizzle.span() {
            let span = self.swizzle.span();
            let narrower = "CUDA allows narrower ones, which are not emulated";
            return Err(format!("rows of {inner} bytes with a swizzle of {span}; {narrower}"));
        }
        if self.nan_fill && self.elem.nan().is_none() {
            return Err("only floats can be filled with NaN".to_owned());
        }
        Ok(())
    }
}

/// The part of a box's row that is in bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Where it begins in the row, in bytes.
    pub(crate) offset: usize,
    /// Where it lies in global memory.
    pub(crate) address: u64,
    pub(crate) bytes: usize,
}

impl Boxes {
    pub(crate) fn decode(bytes: &[u8; 128]) -> Result<Boxes, FaultKind> {
        let word = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[index * 8..][..8]);
            u64::from_le_bytes(word)
        };
        let head = word(0);
        let rank = (head >> 16 & 7) as usize;
        if head >> 32 != u64::from(MAGIC) || !(1..=5).contains(&rank) {
            return Err(FaultKind::TensorMap("there is no tensor map".to_owned()));
        }
        let shape = |axis: usize| word(2 + rank + rank - 1 + axis);
        let swizzles = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];
        let map = TensorMap {
            base: word(1),
            elem: ELEMS[(head >> 8 & 7) as usize],
            dims: (0..rank).map(|axis| word(2 + axis)).collect(),
            strides: (0..rank - 1).map(|axis| word(2 + rank + axis)).collect(),
            box_dims: (0..rank).map(|axis| (shape(axis) >> 32) as u32).collect(),
            // The innermost dimension has none.
            element_strides: (0..rank)
                .map(|axis| if axis == 0 { 1 } else { shape(axis) as u32 })
                .collect(),
            swizzle: swizzles[(head >> 4 & 3) as usize],
            nan_fill: head & 1 != 0,
        };
        map.check().map_err(FaultKind::TensorMap)?;
        let count = |axis: usize| map.box_dims[axis].div_ceil(map.element_strides[axis]) as usize;
        Ok(Boxes { counts: (0..rank).map(count).collect(), map })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.counts.iter().product::<usize>() * self.map.elem.bytes()
    }

    /// The rows of the box at `corner`: for each its offset in the box, and what is in bounds.
    pub(crate) fn rows(&self, corner: &[i32]) -> Vec<(usize, Option<Part>)> {
        let size = self.map.elem.bytes();
        let width = self.counts[0];
        let outer: usize = self.counts[1..].iter().product();
        let first = i64::from(corner[0]);
        let (from, to) = (
            (-first).clamp(0, width as i64),
            (self.map.dims[0] as i64 - first).clamp(0, width as i64),
        );
        let row = |index: usize| {
            let mut rest = index;
            let mut address = self.map.base.wrapping_add_signed((first + from) * size as i64);
            let mut inside = from < to;
            for (axis, from) in corner.iter().enumerate().skip(1) {
                let step = i64::from(self.map.element_strides[axis]);
                let at = i64::from(*from) + (rest % self.counts[axis]) as i64 * step;
                rest /= self.counts[axis];
                inside &= (0..self.map.dims[axis] as i64).contains(&at);
                address =
                    address.wrapping_add((at as u64).wrapping_mul(self.map.strides[axis - 1]));
            }
            let (offset, bytes) = (from as usize * size, (to - from).max(0) as usize * size);
            let part = Part { offset, address, bytes };
            (index * width * size, inside.then_some(part))
        };
        (0..outer).map(row).collect()
    }

    /// What out-of-bounds elements are.
    pub(crate) fn fill(&self, data: &mut [u8]) {
        let Some(nan) = self.map.elem.nan().filter(|_| self.map.nan_fill) else { return };
        let size = self.map.elem.bytes();
        data.chunks_exact_mut(size).for_each(|to| to.copy_from_slice(&nan.to_le_bytes()[..size]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> TensorMap {
        TensorMap {
            base: 0x1000,
            elem: Elem::Bf16,
            dims: vec![100, 50],
            strides: vec![208],
            box_dims: vec![64, 8],
            swizzle: Swizzle::B128,
            ..TensorMap::default()
        }
    }

    #[test]
    fn maps_survive_their_encoding() {
        let decoded = Boxes::decode(&map().encode().unwrap()).unwrap();
        assert_eq!(decoded.map, TensorMap { element_strides: vec![1, 1], ..map() });
        assert_eq!((decoded.counts.clone(), decoded.bytes()), (vec![64, 8], 1024));
        assert!(Boxes::decode(&[0; 128]).is_err());
    }

    #[test]
    fn the_rules_of_cuda_hold() {
        let bad = [
            TensorMap { base: 0x1008, ..map() },
            TensorMap { strides: vec![200], ..map() },
            TensorMap { strides: vec![], ..map() },
            TensorMap { box_dims: vec![64, 257], ..map() },
            TensorMap { box_dims: vec![128, 8], ..map() },
            TensorMap { box_dims: vec![4, 8], swizzle: Swizzle::None, ..map() },
            TensorMap { dims: vec![0, 50], ..map() },
            TensorMap { element_strides: vec![1, 9], ..map() },
            TensorMap { elem: Elem::U16, nan_fill: true, ..map() },
        ];
        for map in bad {
            assert!(matches!(map.encode(), Err(FaultKind::TensorMap(_))), "{map:?}");
        }
    }

    #[test]
    fn rows_are_cut_at_the_bounds() {
        let boxes = Boxes::decode(&map().encode().unwrap()).unwrap();
        let rows = boxes.rows(&[64, 47]);
        let part = |offset, address, bytes| Some(Part { offset, address, bytes });
        assert_eq!(rows[0], (0, part(0, 0x1000 + 128 + 47 * 208, 72)));
        assert_eq!(rows[2], (256, part(0, 0x1000 + 128 + 49 * 208, 72)));
        assert_eq!(rows[3], (384, None));
        let rows = boxes.rows(&[-2, -1]);
        assert_eq!(rows[0].1, None);
        assert_eq!(rows[1].1, part(4, 0x1000, 124));
    }

    #[test]
    fn swizzles_are_those_of_cute() {
        // Swizzle<B, 4, 3>: bits 4.. are combined with bits 7...
        assert_eq!(Swizzle::B128.apply(0x3f0), 0x3f0 ^ 0x70);
        assert_eq!(Swizzle::B64.apply(0x3f0), 0x3f0 ^ 0x30);
        assert_eq!(Swizzle::B32.apply(0x3f0), 0x3f0 ^ 0x10);
        assert_eq!(Swizzle::None.apply(0x3f0), 0x3f0);
        assert_eq!(Swizzle::B128.apply(0x405), 0x405);
    }
}
