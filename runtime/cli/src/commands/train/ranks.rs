//! The ranks of a run: threads of this process, or processes that a launcher has started.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use exec::collectives::{Cause, CollectiveError, Launch, Options, World, run_threads};
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
        return body(&Rank::alone(), Share(1)).and_then(|end| end.map_or(Ok(()), Err));
    }
    match ranks {
        Some(_) => threads(world_size, mesh, body),
        None => process(&launch, mesh, body),
    }
}

/// Among how many ranks the machine's threads are shared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share(usize);

impl Share {
    /// The memory of one of them.
    pub(super) fn of_bytes(self, bytes: u64) -> u64 {
        bytes / self.0 as u64
    }

    /// The threads of one of them.
    pub(super) fn of(self, threads: NonZeroUsize) -> NonZeroUsize {
        NonZeroUsize::new(threads.get() / self.0).unwrap_or(NonZeroUsize::MIN)
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
    let body = |world: &World| body(&Rank::new(world, mesh)?, Share(ranks));
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
    let end = Rank::new(&world, mesh).map_err(Failure::from);
    match end.and_then(|rank| body(&rank, Share(on_machine))) {
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
