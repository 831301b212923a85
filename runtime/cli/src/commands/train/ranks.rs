//! The ranks of a run: threads of this process, or processes that a launcher has started.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use exec::{
    Device,
    collectives::{Cause, CollectiveError, Launch, Options, World, run_threads},
};
use train::{MeshConfig, Rank};

use crate::failure::{Failure, Result};

/// How one rank of a run ends: with a failure at which all ranks have arrived together, or of its
/// own.
pub(super) type End = Result<Option<Failure>>;

/// How long the stages of a pipeline wait for each other: as long as one may compute a micro-batch,
/// which is no failure. That a process is gone is noticed sooner.
const STAGE_DEADLINE: Duration = Duration::from_secs(900);

fn options(mesh: &MeshConfig) -> Options {
    let mut options = Options::default();
    if mesh.pipeline > 1 {
        options.deadline = STAGE_DEADLINE;
    }
    options
}

/// Runs `body` as every rank of the mesh that this process is to be; `ranks` are threads.
pub(super) fn run(
    ranks: Option<NonZeroUsize>,
    mesh: &MeshConfig,
    body: impl Fn(&Rank, Share) -> End + Sync,
) -> Result<()> {
    let launch = Launch::from_env().map_err(|e| Failure::Usage(e.to_string()))?;
    let world_size = match ranks {
        Some(ranks) if launch.ranks > 1 => {
            return Err(Failure::Usage(format!(
                "--ranks {ranks} makes ranks of threads, and a launcher has started {} processes: \
                 leave one of the two",
                launch.ranks
            )));
        }
        Some(ranks) => ranks.get(),
        None => launch.ranks,
    };
    mesh.check(world_size).map_err(|e| {
        Failure::Usage(format!("{e} (`--ranks N`, `mpirun -n N`, `srun -n N` or `torchrun`)"))
    })?;
    if world_size == 1 {
        return body(&Rank::alone(), Share { among: 1, local_rank: 0, is_process: false })
            .and_then(|end| end.map_or(Ok(()), Err));
    }
    match ranks {
        Some(_) => threads(world_size, mesh, body),
        None => process(&launch, mesh, body),
    }
}

/// What of a machine is a rank's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// Among how many ranks its threads are shared.
    among: usize,
    /// Which of these it is.
    local_rank: usize,
    /// Whether it is a process, of which a launcher may show each one a GPU of its own.
    is_process: bool,
}

impl Share {
    /// The memory of one of them.
    pub(super) fn of_bytes(self, bytes: u64) -> u64 {
        bytes / self.among as u64
    }

    /// The threads of one of them.
    pub(super) fn of(self, threads: NonZeroUsize) -> NonZeroUsize {
        NonZeroUsize::new(threads.get() / self.among).unwrap_or(NonZeroUsize::MIN)
    }

    /// The number of its GPU, from the one on that is asked for: each rank has one to itself.
    pub(super) fn gpu(self, first: Option<u32>) -> Result<u32> {
        let own = u32::try_from(self.local_rank).unwrap_or(u32::MAX);
        let is_shown_one = self.is_process && first.is_none() && self.local_rank > 0;
        if is_shown_one && Device::gpus().map_err(Failure::input)? == 1 {
            return Ok(0);
        }
        Ok(first.unwrap_or(0).saturating_add(own))
    }
}

fn threads(
    ranks: usize,
    mesh: &MeshConfig,
    body: impl Fn(&Rank, Share) -> End + Sync,
) -> Result<()> {
    // What a rank fails by is told below.
    let mut options = options(mesh);
    options.report = Arc::new(|_| ());
    let body = |world: &World| {
        let share = Share { among: ranks, local_rank: world.rank(), is_process: false };
        body(&Rank::new(world, mesh)?, share)
    };
    let ends = run_threads(ranks, &options, body);
    let mut echo = None;
    for end in ends {
        match end {
            Ok(None) => {}
            Err(Failure::Ranks(e)) => echo = echo.or(Some(Failure::Ranks(e))),
            Ok(Some(failure)) | Err(failure) => return Err(failure),
        }
    }
    echo.map_or(Ok(()), Err)
}

fn process(launch: &Launch, mesh: &MeshConfig, body: impl Fn(&Rank, Share) -> End) -> Result<()> {
    let world = launch.join(&options(mesh))?;
    // A launcher that says nothing of machines is taken to have one of them.
    let on_machine = std::env::var("OMPI_COMM_WORLD_LOCAL_SIZE")
        .or_else(|_| std::env::var("LOCAL_WORLD_SIZE"))
        .or_else(|_| std::env::var("MPI_LOCALNRANKS"))
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(launch.ranks);
    let place = || -> Result<(Rank, Share)> {
        let local_rank = match launch.local_rank {
            Some(local_rank) => local_rank,
            None => world.local_rank()?,
        };
        let share = Share { among: on_machine, local_rank, is_process: true };
        Ok((Rank::new(&world, mesh)?, share))
    };
    match place().and_then(|(rank, share)| body(&rank, share)) {
        Ok(None) => Ok(()),
        Ok(Some(failure)) if world.rank() == 0 => Err(failure),
        Ok(Some(failure)) => Err(Failure::Told(failure.code())),
        Err(failure) => {
            if !matches!(failure, Failure::Ranks(CollectiveError::Failed(_))) {
                world.fail(Cause::Failed(failure.to_string()));
            }
            Err(failure)
        }
    }
}
