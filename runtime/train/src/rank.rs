//! A rank's place in a training job, and what ranks tell each other between programs.

use std::{panic::resume_unwind, thread, time::Duration};

use exec::{
    Groups,
    collectives::{CollectiveError, Group, Mesh, Reduce, Shards, World},
};
use ir::{DType, Shard};

use crate::MeshConfig;

/// The axis along which ranks compute different rows.
pub(crate) const DATA: &str = "data";

/// How often ranks that wait for the first look whether it is done.
const GLANCE: Duration = Duration::from_millis(10);

/// One rank of a job.
#[derive(Clone, Debug, Default)]
pub struct Rank {
    groups: Groups,
    index: usize,
}

impl Rank {
    /// The only one.
    #[must_use]
    pub fn alone() -> Rank {
        Rank::default()
    }

    /// A rank of a job on a mesh.
    ///
    /// # Errors
    /// [`CollectiveError::Mesh`] if the mesh has another number of ranks than the job.
    pub fn new(world: &World, mesh: &MeshConfig) -> Result<Rank, CollectiveError> {
        let mesh = Mesh::new(&[
            ("pipeline", mesh.pipeline),
            (DATA, mesh.data),
            ("sequence", mesh.sequence),
            ("tensor", mesh.tensor),
        ])?;
        Ok(Rank { groups: Groups::new(world, &mesh)?, index: world.rank() })
    }

    /// Its number in the job, from 0.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Whether it is the one that reports and writes.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.index == 0
    }

    /// Ranks that compute different rows.
    #[must_use]
    pub fn data_ranks(&self) -> usize {
        self.data().map_or(1, Group::size)
    }

    /// Its place among these.
    #[must_use]
    pub fn data_rank(&self) -> usize {
        self.data().map_or(0, Group::index)
    }

    fn data(&self) -> Option<&Group> {
        self.groups.along(DATA)
    }

    /// Whom its programs meet.
    #[must_use]
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// The symbol that says which place along the data axis a rank has, and its value there.
    #[must_use]
    pub fn symbol(data_rank: usize) -> (String, i64) {
        (Shard::symbol(DATA), i64::try_from(data_rank).unwrap_or(i64::MAX))
    }

    /// Values of the symbols that say where it is.
    pub(crate) fn symbols(&self) -> Vec<(String, i64)> {
        vec![Rank::symbol(self.data_rank())]
    }

    /// What all ranks of the data axis say, in their order: `N` numbers each.
    ///
    /// # Errors
    /// [`CollectiveError::Failed`] if the job has failed.
    pub fn all<const N: usize>(&self, own: [f64; N]) -> Result<Vec<[f64; N]>, CollectiveError> {
        let Some(group) = self.data() else { return Ok(vec![own]) };
        let mut all = vec![0.0f64; group.size() * N];
        let shards = Shards::even(all.len(), group.size());
        let (own, out) = (bytemuck::cast_slice(&own[..]), bytemuck::cast_slice_mut(&mut all));
        group.all_gather(DType::F64, &shards, own, out)?;
        Ok(all.as_chunks().0.to_vec())
    }

    /// Says which step it is at, for reports of failures.
    pub(crate) fn set_step(&self, step: u64) {
        if let Some(group) = self.data() {
            group.set_step(step);
        }
    }

    /// The sum of what all ranks of the data axis count.
    ///
    /// # Errors
    /// As [`all`](Self::all).
    pub fn sum(&self, own: u64) -> Result<u64, CollectiveError> {
        let Some(group) = self.data() else { return Ok(own) };
        let mut sum = [i64::try_from(own).unwrap_or(i64::MAX)];
        group.all_reduce(Reduce::Sum, DType::I64, bytemuck::cast_slice_mut(&mut sum))?;
        Ok(u64::try_from(sum[0]).unwrap_or(0))
    }

    /// Whether any rank says so.
    ///
    /// # Errors
    /// As [`all`](Self::all).
    pub fn any(&self, own: bool) -> Result<bool, CollectiveError> {
        let all = self.all([f64::from(u8::from(own))])?;
        Ok(all.iter().any(|[said]| *said != 0.0))
    }

    /// Does something on the first rank, however long it takes, while the others wait; `None` on
    /// these.
    ///
    /// # Errors
    /// As [`all`](Self::all).
    pub fn first<R: Send>(
        &self,
        work: impl FnOnce() -> R + Send,
    ) -> Result<Option<R>, CollectiveError> {
        if self.data().is_none() {
            return Ok(Some(work()));
        }
        // Nobody waits in a collective for longer than a glance, so no deadline passes.
        let wait = |is_done: &dyn Fn() -> bool| -> Result<(), CollectiveError> {
            while !self.any(self.is_first() && is_done())? {
                thread::sleep(GLANCE);
            }
            Ok(())
        };
        if !self.is_first() {
            wait(&|| false)?;
            return Ok(None);
        }
        thread::scope(|scope| {
            let worker = scope.spawn(work);
            let waited = wait(&|| worker.is_finished());
            let result = worker.join().unwrap_or_else(|payload| resume_unwind(payload));
            waited.map(|()| Some(result))
        })
    }
}
