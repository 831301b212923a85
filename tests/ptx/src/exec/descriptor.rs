//! Matrix descriptors of `wgmma`: where the elements of an operand lie in shared memory.
//!
//! In chunks of 16 bytes, the canonical layouts of the ISA (section "Asynchronous warpgroup level
//! matrix shared memory layout") are, of row `r` or column `k` the chunk `c`,
//! with `W` chunks in the span of the swizzle:
//!
//! - along k, plain: `r % 8 · 16 + r / 8 · SBO + c · LBO`
//! - along k, swizzled: `r % 8 · 16 W + r / 8 · SBO + c · 16`
//! - along rows, plain: `c · SBO + k % 8 · 16 + k / 8 · LBO`
//! - along rows, swizzled: `c % W · 16 + c / W · LBO + k % 8 · 16 W + k / 8 · SBO`
//!
//! and the swizzle is applied to the address that results.

use crate::fault::FaultKind;
use crate::tensor_map::Swizzle;

/// A decoded descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    bits: u64,
    start: u32,
    leading: u32,
    stride: u32,
    swizzle: Swizzle,
}

/// Along which dimension elements are adjacent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Major {
    K,
    Row,
}

impl Descriptor {
    pub(super) fn decode(bits: u64) -> Result<Descriptor, FaultKind> {
        let field = |from: u32| ((bits >> from & 0x3fff) as u32) << 4;
        let swizzle = match bits >> 62 {
            0 => Swizzle::None,
            1 => Swizzle::B128,
            2 => Swizzle::B64,
            _ => Swizzle::B32,
        };
        let descriptor =
            Descriptor { bits, start: field(0), leading: field(16), stride: field(32), swizzle };
        if bits & 0x3ff1_c000_c000_c000 != 0 {
            return Err(descriptor.bad("reserved bits are set"));
        }
        if bits >> 49 & 7 != 0 {
            return Err(descriptor.bad("base offsets are not emulated: align the pattern"));
        }
        let phase = descriptor.start & (swizzle.span() / 16 - 1) << 7;
        if phase != 0 {
            return Err(descriptor.bad("it begins within the swizzle's pattern, base offset 0"));
        }
        Ok(descriptor)
    }

    pub(super) fn bad(&self, reason: &str) -> FaultKind {
        FaultKind::Descriptor { descriptor: self.bits, reason: reason.to_owned() }
    }

    /// Checks that the strides an operand of `rows` by `k_bytes` needs are given.
    pub(super) fn check(&self, rows: usize, major: Major) -> Result<(), FaultKind> {
        let span = self.swizzle.span() as usize;
        let (needs_leading, needs_stride) = match (self.swizzle, major) {
            (Swizzle::None, Major::K) => (true, rows > 8),
            (_, Major::K) => (false, rows > 8),
            (Swizzle::None, Major::Row) => (true, rows > 8),
            (_, Major::Row) => (rows * 2 > span, true),
        };
        if needs_leading && self.leading == 0 {
            return Err(self.bad("the leading dimension's offset is zero"));
        }
        if needs_stride && self.stride == 0 {
            return Err(self.bad("the stride dimension's offset is zero"));
        }
        if major == Major::K && span > 16 && self.start as usize % span + 32 > span {
            return Err(self.bad("the step along k leaves the swizzle's span"));
        }
        Ok(())
    }

    /// The address of a chunk: of row `row` the `chunk`-th along k, or, if rows are adjacent, of
    /// `k = row` the `chunk`-th along rows.
    pub(super) fn chunk(&self, row: usize, chunk: usize, major: Major) -> u32 {
        let (row, chunk, width) = (row as u32, chunk as u32, self.swizzle.span() / 16);
        let (leading, stride) = (self.leading, self.stride);
        let offset = match (self.swizzle, major) {
            (Swizzle::None, Major::K) => row % 8 * 16 + row / 8 * stride + chunk * leading,
            (_, Major::K) => row % 8 * 16 * width + row / 8 * stride + chunk * 16,
            (Swizzle::None, Major::Row) => chunk * stride + row % 8 * 16 + row / 8 * leading,
            (_, Major::Row) => {
                let along = chunk % width * 16 + chunk / width * leading;
                along + row % 8 * 16 * width + row / 8 * stride
            }
        };
        self.swizzle.apply(self.start + offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The offset of element (`row`, `k`) in elements, by the layouts that the ISA works out as
    /// examples, before the swizzle.
    type Exact = fn(usize, usize) -> usize;

    struct Example {
        swizzle: u64,
        major: Major,
        element_bytes: usize,
        leading: usize,
        stride: usize,
        rows: usize,
        k: usize,
        exact: Exact,
    }

    #[test]
    fn the_worked_examples_of_the_isa() {
        let examples = [
            // Swizzle<0,4,3> o ((8,2),(4,4)):((4,32),(1,64)), tf32
            Example {
                swizzle: 0,
                major: Major::K,
                element_bytes: 4,
                leading: 64,
                stride: 32,
                rows: 16,
                k: 8,
                exact: |r, k| r % 8 * 4 + r / 8 * 32 + k % 4 + k / 4 * 64,
            },
            // Swizzle<1,4,3> o ((8,2),(4,4)):((8,64),(1,4)), tf32
            Example {
                swizzle: 3,
                major: Major::K,
                element_bytes: 4,
                leading: 0,
                stride: 64,
                rows: 16,
                k: 8,
                exact: |r, k| r % 8 * 8 + r / 8 * 64 + k % 4 + k / 4 * 4,
            },
            // Swizzle<0,4,3> o ((8,1,2),(8,2)):((1,8,64),(8,128)), bf16
            Example {
                swizzle: 0,
                major: Major::Row,
                element_bytes: 2,
                leading: 128,
                stride: 64,
                rows: 16,
                k: 16,
                exact: |r, k| r % 8 + r / 8 * 64 + k % 8 * 8 + k / 8 * 128,
            },
            // Swizzle<1,4,3> o ((8,2,2),(8,2)):((1,8,128),(16,256)), bf16
            Example {
                swizzle: 3,
                major: Major::Row,
                element_bytes: 2,
                leading: 128,
                stride: 256,
                rows: 32,
                k: 16,
                exact: |r, k| r % 8 + r / 8 % 2 * 8 + r / 16 * 128 + k % 8 * 16 + k / 8 * 256,
            },
            // Swizzle<2,4,3> o ((8,4,2),(8,2)):((1,8,256),(32,512)), bf16
            Example {
                swizzle: 2,
                major: Major::Row,
                element_bytes: 2,
                leading: 256,
                stride: 512,
                rows: 64,
                k: 16,
                exact: |r, k| r % 8 + r / 8 % 4 * 8 + r / 32 * 256 + k % 8 * 32 + k / 8 * 512,
            },
        ];
        for example in examples {
            let Example { swizzle, major, element_bytes, leading, stride, rows, k, exact } =
                example;
            let bits = swizzle << 62
                | ((stride * element_bytes) as u64 >> 4) << 32
                | ((leading * element_bytes) as u64 >> 4) << 16
                | 0x1000 >> 4;
            let descriptor = Descriptor::decode(bits).unwrap();
            let shift = [0, 3, 2, 1][swizzle as usize];
            let cute = |address: usize| address ^ (address >> 3 & ((1 << shift) - 1) << 4);
            let each = 16 / element_bytes;
            for row in 0..rows {
                for k in 0..k {
                    let found = match major {
                        Major::K => {
                            descriptor.chunk(row, k / each, major) as usize
                                + k % each * element_bytes
                        }
                        Major::Row => {
                            descriptor.chunk(k, row / each, major) as usize
                                + row % each * element_bytes
                        }
                    };
                    let expected = cute(0x1000 + exact(row, k) * element_bytes);
                    assert_eq!(found, expected, "swizzle {swizzle} {major:?} {row} {k}");
                }
            }
        }
    }

    #[test]
    fn bad_descriptors_are_refused() {
        let good = 1u64 << 62 | 64 << 32 | 1 << 16 | 0x400 >> 4;
        assert!(Descriptor::decode(good).is_ok());
        assert!(Descriptor::decode(good | 1 << 14).is_err());
        assert!(Descriptor::decode(good | 1 << 50).is_err());
        assert!(Descriptor::decode(good | 1 << 55).is_err());
        assert!(Descriptor::decode(good + 8).is_err(), "in the middle of the pattern");
        let steps: Vec<bool> = (0..5)
            .map(|step| {
                Descriptor::decode(good + 2 * step).is_ok_and(|it| it.check(64, Major::K).is_ok())
            })
            .collect();
        assert_eq!(steps, [true, true, true, true, false]);
    }
}
