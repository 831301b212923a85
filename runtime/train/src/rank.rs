//! A rank's place in a training job, and what ranks tell each other between programs.

use std::{panic::resume_unwind, thread, time::Duration};

use exec::{
    Device, ExecError, Groups, Route,
    collectives::{CollectiveError, Group, Mesh, Reduce, Shards, World},
};
use ir::{DType, Shard};

use crate::MeshConfig;

/// The axis along which ranks compute different rows.
pub(crate) const DATA: &str = "data";

/// The axis along which ranks compute parts of every product.
const TENSOR: &str = "tensor";

/// The axis along which ranks compute different layers.
const PIPELINE: &str = "pipeline";

/// The axis along which ranks compute parts of every row.
const SEQUENCE: &str = "sequence";

/// The stages of a pipeline: by the axis, what goes on; what goes back; the first and the last.
pub(crate) const FORWARD: &str = PIPELINE;
pub(crate) const BACK: &str = "pipeline back";
pub(crate) const ENDS: &str = "pipeline ends";

/// How often ranks that wait for the first look whether it is done.
const GLANCE: Duration = Duration::from_millis(10);

/// The axes of a mesh and their sizes; ranks along the last one are neighbours.
fn axes(mesh: &MeshConfig) -> [(&'static str, usize); 4] {
    [(PIPELINE, mesh.pipeline), (DATA, mesh.data), (SEQUENCE, mesh.sequence), (TENSOR, mesh.tensor)]
}

/// The symbol for a rank's place along an axis, and its value.
fn symbol(axis: &str, place: usize) -> (String, i64) {
    (Shard::symbol(axis), i64::try_from(place).unwrap_or(i64::MAX))
}

/// One rank of a job.
#[derive(Clone, Debug, Default)]
pub struct Rank {
    groups: Groups,
    /// All ranks of the job; `None` where there is one.
    all: Option<Group>,
    /// Of all ranks, those of this one's place along the data axis.
    replica: Vec<usize>,
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
        let mesh = Mesh::new(&axes(mesh))?;
        let all = world.group(&mesh, &[PIPELINE, DATA, SEQUENCE, TENSOR])?;
        let replica = mesh.members(world.rank(), &[PIPELINE, SEQUENCE, TENSOR])?;
        let mut groups = Groups::new(world, &mesh)?;
        let stages = mesh.members(world.rank(), &[PIPELINE])?;
        if stages.len() > 1 {
            groups.add(BACK, world.group_of_ranks(BACK, &stages)?);
        }
        match &stages[..] {
            [first, .., last] if [first, last].contains(&&world.rank()) => {
                groups.add(ENDS, world.group_of_ranks(ENDS, &[*first, *last])?);
            }
            _ => {}
        }
        Ok(Rank { groups, all: Some(all), replica, index: world.rank() })
    }

    /// The stage of layers that it computes.
    #[must_use]
    pub fn stage(&self) -> usize {
        self.place(PIPELINE)
    }

    /// Stages that layers are shared among.
    #[must_use]
    pub fn stages(&self) -> usize {
        self.groups.along(PIPELINE).map_or(1, Group::size)
    }

    /// The ranks that compute the other layers for its rows, by their stages.
    pub(crate) fn pipeline(&self) -> Option<&Group> {
        self.groups.along(PIPELINE).filter(|group| group.size() > 1)
    }

    /// All ranks of the job.
    pub(crate) fn everybody(&self) -> Option<&Group> {
        self.all.as_ref()
    }

    /// Whether it is in the pipeline of the first rank.
    pub(crate) fn leads_pipeline(&self) -> bool {
        [DATA, SEQUENCE, TENSOR].iter().all(|axis| self.place(axis) == 0)
    }

    fn place(&self, axis: &str) -> usize {
        self.groups.along(axis).map_or(0, Group::index)
    }

    /// Whether it speaks for what all ranks along the tensor axis have alike.
    pub(crate) fn leads_tensor(&self) -> bool {
        self.place(TENSOR) == 0
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

    /// Lets its programs on a GPU meet others between the devices, if so they are to; why they go
    /// by way of the host instead, if they do. All ranks call it together.
    ///
    /// # Errors
    /// As [`Groups::link`].
    pub fn link(&mut self, device: &Device, route: Route) -> Result<Option<String>, ExecError> {
        self.groups.link(device, route)
    }

    /// Whom its programs meet.
    #[must_use]
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// The symbols that say which places along the axes of a mesh a rank has, and their values.
    ///
    /// # Errors
    /// [`CollectiveError::Mesh`] if there is no such rank.
    pub fn symbols_of(
        mesh: &MeshConfig,
        index: usize,
    ) -> Result<Vec<(String, i64)>, CollectiveError> {
        let places = Mesh::new(&axes(mesh))?.coords(index)?;
        let symbol = |((axis, _), place)| symbol(axis, place);
        Ok(axes(mesh).into_iter().zip(places).map(symbol).collect())
    }

    /// The stage of layers that a rank of a mesh computes.
    ///
    /// # Errors
    /// As [`symbols_of`](Self::symbols_of).
    pub fn stage_of(mesh: &MeshConfig, index: usize) -> Result<usize, CollectiveError> {
        let places = Mesh::new(&axes(mesh))?.coords(index)?;
        let stage = axes(mesh).into_iter().zip(places).find(|((axis, _), _)| *axis == PIPELINE);
        Ok(stage.map_or(0, |(_, place)| place))
    }

    /// Values of the symbols that say where it is.
    #[must_use]
    pub fn symbols(&self) -> Vec<(String, i64)> {
        [PIPELINE, DATA, SEQUENCE, TENSOR].map(|axis| symbol(axis, self.place(axis))).into()
    }

    /// Whether it is the only one.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        self.all.is_none()
    }

    /// What all ranks say, in their order: `N` numbers each.
    ///
    /// # Errors
    /// [`CollectiveError::Failed`] if the job has failed.
    pub fn all<const N: usize>(&self, own: [f64; N]) -> Result<Vec<[f64; N]>, CollectiveError> {
        let Some(group) = &self.all else { return Ok(vec![own]) };
        let mut all = vec![0.0f64; group.size() * N];
        let shards = Shards::even(all.len(), group.size());
        let (own, out) = (bytemuck::cast_slice(&own[..]), bytemuck::cast_slice_mut(&mut all));
        group.all_gather(DType::F64, &shards, own, out)?;
        Ok(all.as_chunks().0.to_vec())
    }

    /// As [`all`](Self::all), of the ranks alone that have this one's rows: the parts of one
    /// replica of the model.
    ///
    /// # Errors
    /// As [`all`](Self::all).
    pub(crate) fn all_of_replica<const N: usize>(
        &self,
        own: [f64; N],
    ) -> Result<Vec<[f64; N]>, CollectiveError> {
        if self.replica.len() <= 1 {
            return Ok(vec![own]);
        }
        let all = self.all(own)?;
        Ok(self.replica.iter().map(|rank| all[*rank]).collect())
    }

    /// Says which step it is at, for reports of failures.
    pub(crate) fn set_step(&self, step: u64) {
        if let Some(group) = &self.all {
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
        if self.is_alone() {
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
