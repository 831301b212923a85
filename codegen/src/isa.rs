//! What schedules need to know of a CPU: register file and caches.

use ir::Target;

/// Vector registers and cache sizes that a kernel is scheduled for.
///
/// Schedules differ only in speed: every one of them gives the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Isa {
    /// f32 lanes of a vector register.
    pub vector_lanes: u32,
    /// Number of vector registers.
    pub vector_registers: u32,
    /// Private L1 data cache, bytes.
    pub l1_bytes: u64,
    /// Private L2 cache, bytes.
    pub l2_bytes: u64,
}

impl Isa {
    /// What schedules need to know of a target.
    #[must_use]
    pub fn of(target: &Target) -> Self {
        let base = if target.vector_width >= 16 { Self::x86_64_v4() } else { Self::x86_64_v3() };
        Self { l2_bytes: target.l2_bytes, ..base }
    }

    /// Vector registers of sixteen floats, a panel's row.
    #[must_use]
    pub const fn panel_registers(&self) -> u64 {
        if self.vector_lanes >= 16 { 1 } else { 16 / self.vector_lanes as u64 }
    }

    /// Rows and panels of a register tile whose sums leave room for the weight and x.
    #[must_use]
    pub const fn register_tile(&self) -> (u64, u64) {
        if self.vector_registers >= 32 { (12, 2) } else { (6, 1) }
    }

    /// AVX2 and FMA: 16 registers of 8 lanes.
    #[must_use]
    pub const fn x86_64_v3() -> Self {
        Self { vector_lanes: 8, vector_registers: 16, l1_bytes: 32 << 10, l2_bytes: 512 << 10 }
    }

    /// AVX-512: 32 registers of 16 lanes.
    #[must_use]
    pub const fn x86_64_v4() -> Self {
        Self { vector_lanes: 16, vector_registers: 32, l1_bytes: 48 << 10, l2_bytes: 1 << 20 }
    }
}
