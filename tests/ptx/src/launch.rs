//! What a launch takes and what it reports.

use std::collections::BTreeMap;

/// A kernel's argument.
#[derive(Clone, Debug, PartialEq)]
pub enum Param {
    /// 64 bits, also a pointer.
    U64(u64),
    /// 32 bits.
    U32(u32),
    /// 16 bits.
    U16(u16),
    /// A single.
    F32(f32),
    /// A double.
    F64(f64),
    /// A structure, such as a tensor map.
    Bytes(Vec<u8>),
}

impl Param {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Param::U64(value) => value.to_le_bytes().to_vec(),
            Param::U32(value) => value.to_le_bytes().to_vec(),
            Param::U16(value) => value.to_le_bytes().to_vec(),
            Param::F32(value) => value.to_le_bytes().to_vec(),
            Param::F64(value) => value.to_le_bytes().to_vec(),
            Param::Bytes(bytes) => bytes.clone(),
        }
    }
}

/// How a kernel is launched.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Blocks of the grid.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// The arguments, in order.
    pub params: Vec<Param>,
    /// Decides in which order warps run and when asynchronous operations end.
    pub seed: u64,
    /// Runs only the clusters that hold these blocks, in this order; all of them if `None`.
    pub blocks: Option<Vec<[u32; 3]>>,
    /// The launch may begin before those before it have ended: until a thread has waited for them
    /// by `griddepcontrol.wait`, it may read the allocations that begin here, touch no other
    /// global memory, and not end. `None` where it begins when they have ended.
    pub early: Option<Vec<u64>>,
    /// The most instructions a cluster's warps may execute, against endless loops.
    pub max_steps: u64,
}

impl Default for Launch {
    fn default() -> Launch {
        Launch {
            grid: [1; 3],
            block: [32, 1, 1],
            cluster: [1; 3],
            dynamic_shared: 0,
            params: Vec::new(),
            seed: 0,
            blocks: None,
            early: None,
            max_steps: 1 << 28,
        }
    }
}

/// What a launch did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Instructions that warps executed, by name without types and qualifiers.
    pub instructions: BTreeMap<&'static str, u64>,
    /// Bytes that threads and copies read from global memory.
    pub global_read_bytes: u64,
    /// Bytes that threads and copies wrote to global memory.
    pub global_write_bytes: u64,
    /// Sectors of 32 bytes that the loads and stores of warps touched in global memory.
    pub global_sectors: u64,
    /// Bytes that threads, copies and matrix instructions read from shared memory.
    pub shared_read_bytes: u64,
    /// Bytes that threads and copies wrote to shared memory.
    pub shared_write_bytes: u64,
    /// Additional passes over the 32 banks that loads, stores and `ldmatrix` took.
    pub bank_conflicts: u64,
}

impl Report {
    /// Instructions that warps executed, all together.
    #[must_use]
    pub fn total_instructions(&self) -> u64 {
        self.instructions.values().sum()
    }

    /// How often warps executed an instruction, such as `"mma.sync.aligned"`.
    #[must_use]
    pub fn executed(&self, name: &str) -> u64 {
        self.instructions.get(name).copied().unwrap_or(0)
    }
}
