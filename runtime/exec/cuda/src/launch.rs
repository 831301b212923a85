//! A launch as plain data, with all sizes evaluated.

use ir::DType;
pub use ir::Swizzle;
use serde::{Deserialize, Serialize};

use crate::{
    Address, CudaError, Facts,
    driver::{Driver, MAP_BYTES},
};

/// All that a launch needs beside the code and where the operands are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// Name of the kernel's entry in its module.
    pub symbol: String,
    /// Its parameters, in order.
    pub params: Vec<Param>,
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Blocks of a cluster, along x.
    pub cluster: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// The kernel waits itself for what was launched before it, so that it may begin earlier.
    #[serde(default)]
    pub dependent: bool,
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Param {
    /// Address of an operand or result, which must be a multiple of `align` bytes.
    Pointer {
        /// Operands first, then results.
        arg: u32,
        /// In bytes.
        align: u32,
    },
    /// A size.
    Size(i64),
    /// 128 bytes that describe a tensor to the copy engine.
    Map(TensorMap),
}

/// What a `CUtensorMap` is made of. Elements outside of the tensor are read as zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorMap {
    /// The operand; its address must be a multiple of 16 bytes.
    pub arg: u32,
    /// Element type.
    pub dtype: DType,
    /// Extents, innermost first.
    pub extents: Vec<u64>,
    /// Bytes between neighbours along every axis but the innermost, which is dense.
    pub strides: Vec<u64>,
    /// Elements of a copy along each axis.
    pub boxes: Vec<u32>,
    /// How a copy is laid out in shared memory.
    pub swizzle: Swizzle,
}

/// A parameter's bytes, aligned as the driver asks for a tensor map's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(128))]
pub struct Value {
    bytes: [u8; MAP_BYTES],
    len: usize,
}

impl Value {
    /// As the kernel takes them.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn of(bytes: &[u8]) -> Value {
        let mut value = Value { bytes: [0; MAP_BYTES], len: bytes.len() };
        value.bytes[..bytes.len()].copy_from_slice(bytes);
        value
    }
}

impl Param {
    /// Bytes that the kernel takes.
    pub(crate) const fn size(&self) -> usize {
        match self {
            Param::Pointer { .. } | Param::Size(_) => 8,
            Param::Map(_) => MAP_BYTES,
        }
    }
}

impl Launch {
    /// Checks the launch against what the device can do.
    ///
    /// # Errors
    /// [`CudaError::Invalid`], with everything that is wrong.
    pub fn check(&self, facts: &Facts) -> Result<(), CudaError> {
        let mut wrong = Vec::new();
        let [x, y, z] = self.grid;
        if x == 0 || y == 0 || z == 0 || x > i32::MAX.cast_unsigned() || y > 65535 || z > 65535 {
            wrong.push(format!("a grid of {x} x {y} x {z} blocks"));
        }
        if self.block == 0 || self.block > 1024 {
            wrong.push(format!("a block of {} threads", self.block));
        }
        if self.cluster == 0 || self.cluster > 8 || !x.is_multiple_of(self.cluster.max(1)) {
            wrong.push(format!("clusters of {} in a grid of {x}", self.cluster));
        }
        if self.cluster > 1 && facts.capability.0 < 9 {
            wrong.push(format!("{} has no clusters", facts.name));
        }
        if self.shared_bytes > facts.shared_bytes {
            let most = facts.shared_bytes;
            wrong.push(format!("{} bytes of shared memory, {most} at most", self.shared_bytes));
        }
        for (index, param) in self.params.iter().enumerate() {
            if let Param::Map(map) = param {
                wrong.extend(map.problems().into_iter().map(|p| format!("parameter {index}: {p}")));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(self.invalid(wrong.join("; "))) }
    }

    pub(crate) fn invalid(&self, reason: String) -> CudaError {
        CudaError::Invalid { kernel: self.symbol.clone(), reason }
    }

    /// The parameters' bytes, in order, for operands and results at these addresses.
    pub(crate) fn pack(
        &self,
        driver: &dyn Driver,
        args: &[Address],
    ) -> Result<Vec<Value>, CudaError> {
        let address = |index: usize, arg: u32, align: u64| {
            let found = args.get(arg as usize).map(Address::device);
            let found = found.ok_or_else(|| {
                let count = args.len();
                self.invalid(format!("parameter {index} is argument {arg}, there are {count}"))
            })?;
            if found.is_multiple_of(align.max(1)) {
                return Ok(found);
            }
            let reason = format!("argument {arg} is at {found:#x}, no multiple of {align} bytes");
            Err(self.invalid(reason))
        };
        let pack = |(index, param): (usize, &Param)| match param {
            Param::Pointer { arg, align } => {
                Ok(Value::of(&address(index, *arg, u64::from(*align))?.to_le_bytes()))
            }
            Param::Size(size) => Ok(Value::of(&size.to_le_bytes())),
            Param::Map(map) => {
                let bytes = driver.encode_map(map, address(index, map.arg, 16)?);
                let explain = |e| self.invalid(format!("parameter {index}, {map:?}: {e}"));
                Ok(Value::of(&bytes.map_err(explain)?))
            }
        };
        self.params.iter().enumerate().map(pack).collect()
    }
}

impl TensorMap {
    /// What breaks the rules of `cuTensorMapEncodeTiled`.
    fn problems(&self) -> Vec<String> {
        let rank = self.extents.len();
        let mut wrong = Vec::new();
        if !(1..=5).contains(&rank) || self.strides.len() + 1 != rank || self.boxes.len() != rank {
            let counts = (rank, self.strides.len(), self.boxes.len());
            return vec![format!("extents, strides and boxes are {counts:?} numbers")];
        }
        if !matches!(self.dtype, DType::F16 | DType::Bf16 | DType::U8) {
            wrong.push(format!("no tensor maps of {}", self.dtype));
        }
        if self.extents.iter().any(|extent| *extent == 0 || *extent > 1 << 32) {
            wrong.push(format!("extents {:?}", self.extents));
        }
        if self.strides.iter().any(|stride| !stride.is_multiple_of(16) || *stride >= 1 << 40) {
            wrong.push(format!("strides {:?} are no multiples of 16", self.strides));
        }
        if self.boxes.iter().any(|size| *size == 0 || *size > 256) {
            wrong.push(format!("boxes {:?}", self.boxes));
        }
        let span = match self.swizzle {
            Swizzle::Bytes32 => 32,
            Swizzle::Bytes64 => 64,
            Swizzle::Bytes128 => 128,
        };
        let row = self.boxes[0] as usize * self.dtype.size();
        if row > span || !row.is_multiple_of(16) {
            wrong.push(format!("rows of {row} bytes, permuted within {span}"));
        }
        wrong
    }
}
