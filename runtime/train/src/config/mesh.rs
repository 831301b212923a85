//! `[mesh]`: how ranks share the work.

use std::fmt;

use serde::Serialize;

use super::section::Section;

/// The most ranks along an axis.
const MAX_RANKS: u64 = 1 << 20;

/// Ranks along each axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MeshConfig {
    /// Copies of the model, each with rows of its own.
    pub data: usize,
    /// Parts of every product.
    pub tensor: usize,
    /// Parts of the stack of layers.
    pub pipeline: usize,
    /// Parts of the experts, over ranks of the data axis.
    pub expert: usize,
    /// Parts of every row.
    pub sequence: usize,
    /// What the data axis parts: nothing, optimizer state, gradients too, weights too.
    pub zero: u8,
}

impl Default for MeshConfig {
    fn default() -> MeshConfig {
        MeshConfig { data: 1, tensor: 1, pipeline: 1, expert: 1, sequence: 1, zero: 0 }
    }
}

/// As in `4 ranks (data 2 x tensor 2), ZeRO stage 1`.
impl fmt::Display for MeshConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let axes = [
            ("pipeline", self.pipeline),
            ("data", self.data),
            ("sequence", self.sequence),
            ("tensor", self.tensor),
        ];
        let axes = axes.iter().filter(|(_, size)| *size > 1);
        let axes: Vec<String> = axes.map(|(name, size)| format!("{name} {size}")).collect();
        write!(f, "{} ranks ({}), ZeRO stage {}", self.ranks(), axes.join(" x "), self.zero)
    }
}

/// A mesh that the ranks at hand cannot form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the mesh has {} ranks (data {} x tensor {} x pipeline {} x sequence {}), and {world_size} \
     take part; start so many, or change [mesh]",
    .mesh.ranks(), .mesh.data, .mesh.tensor, .mesh.pipeline, .mesh.sequence
)]
pub struct MeshError {
    /// The mesh.
    pub mesh: MeshConfig,
    /// The ranks at hand.
    pub world_size: usize,
}

impl MeshConfig {
    /// Ranks that the mesh takes: data x tensor x pipeline x sequence. Experts add none.
    #[must_use]
    pub fn ranks(&self) -> u128 {
        [self.data, self.tensor, self.pipeline, self.sequence].iter().map(|n| *n as u128).product()
    }

    /// Whether so many ranks form the mesh.
    ///
    /// # Errors
    /// [`MeshError`] with both numbers if not.
    pub fn check(&self, world_size: usize) -> Result<(), MeshError> {
        let fits = self.ranks() == world_size as u128;
        if fits { Ok(()) } else { Err(MeshError { mesh: *self, world_size }) }
    }
}

pub(super) fn read(mut table: Section<'_>) -> MeshConfig {
    let mut axis = |key| table.size(key, 1..=MAX_RANKS).unwrap_or(1);
    let [data, tensor, pipeline, expert, sequence] =
        ["data", "tensor", "pipeline", "expert", "sequence"].map(&mut axis);
    let zero = table.count("zero", 0..=3).and_then(|n| u8::try_from(n).ok()).unwrap_or(0);
    if data % expert != 0 {
        let reason = format!("is {expert}, which does not divide `mesh.data`, {data}");
        table.problem("expert", reason, Some("experts are spread over ranks of the data axis"));
    }
    if zero > 0 && data == 1 {
        table.note("zero", "has no effect: there is one rank along `mesh.data`");
    }
    table.finish();
    MeshConfig { data, tensor, pipeline, expert, sequence, zero }
}
