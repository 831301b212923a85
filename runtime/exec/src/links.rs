//! Ranks on GPUs: their devices send each other what the collectives of programs are about, and
//! what programs hand each other.
//!
//! The ranks have met before, on the host, and tell each other there how to meet by NCCL. Devices
//! wait for each other without deadlines; so a thread looks whether the job has failed, and ends
//! their wait.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
    time::Duration,
};

use cuda::{Communicator, CudaError, Stream, nccl::ID_BYTES};
use ir::DType;

use crate::{
    ExecError,
    collectives::{Cause, CollectiveError, Failure, Group, Shards},
    gpu::Gpu,
};

/// How often is looked whether the job has failed.
const GLANCE: Duration = Duration::from_millis(20);
/// What is being done, for people.
const LABEL: &str = "ranks on GPUs";

/// Which way goes what programs on GPUs send each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// Between the devices by NCCL where all ranks have it, else by way of the host. Both give the
    /// same bits.
    #[default]
    Auto,
    /// By way of the host.
    Host,
    /// Between the devices by NCCL, which must be there.
    Nccl,
    /// The same, and NCCL adds: in an order of its own, which depends on the number of ranks, how
    /// they are connected and NCCL's version.
    NcclSums,
}

/// A rank's connections, by the names of its groups.
#[derive(Debug)]
pub(crate) struct Links {
    groups: BTreeMap<String, Link>,
    adds: bool,
    gpu: Gpu,
    stream: Stream,
    staging: Mutex<Option<cuda::Memory>>,
}

/// The connections of one group.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) group: Group,
    pub(crate) communicator: Communicator,
}

impl Links {
    /// Connects the devices of the ranks of some groups; all ranks call it, with the same axes.
    /// Where that is not to be, says why.
    pub(crate) fn new(
        gpu: &Gpu,
        groups: &BTreeMap<String, Group>,
        route: Route,
    ) -> Result<Result<Arc<Links>, String>, ExecError> {
        let nccl = gpu.device().nccl().map(drop);
        let mut linked = BTreeMap::new();
        let mut reason = None;
        for (name, group) in groups.iter().filter(|(_, group)| group.size() > 1) {
            let lacking = lacking(group, nccl.is_ok())?;
            if let Some(rank) = lacking {
                let theirs = || format!("rank {rank} cannot open NCCL");
                let why = nccl.as_ref().map_or_else(ToString::to_string, |()| theirs());
                reason.get_or_insert(why);
                continue;
            }
            let mut id = [0; ID_BYTES];
            if group.index() == 0 {
                id = gpu.device().unique_id()?;
            }
            group.broadcast(0, &mut id).map_err(failed)?;
            let gives_up = || group.failure().is_some();
            let (size, index) = (group.size(), group.index());
            let made = Communicator::new(gpu.device(), size, &id, index, &gives_up);
            let communicator = made.map_err(|error| match group.failure() {
                Some(failure) => failed(failure.into()),
                None => error.into(),
            })?;
            linked.insert(name.clone(), Link { group: group.clone(), communicator });
        }
        match reason {
            Some(reason) if route != Route::Auto => return Err(ExecError::Route { reason }),
            Some(reason) if linked.is_empty() => return Ok(Err(reason)),
            _ => {}
        }
        let (stream, adds) = (Stream::new(gpu.device())?, route == Route::NcclSums);
        let staging = Mutex::default();
        let gpu = gpu.clone();
        let links = Arc::new(Links { groups: linked, adds, gpu, stream, staging });
        links.watch();
        Ok(Ok(links))
    }

    /// The connections of a group, such as that along an axis, if there are some.
    pub(crate) fn along(&self, group: &str) -> Option<&Link> {
        self.groups.get(group)
    }

    /// This rank's device.
    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Whether NCCL is to add.
    pub(crate) fn adds(&self) -> bool {
        self.adds
    }

    /// The stream that collectives go to.
    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Sees to it that there is so much memory for what comes before it is added.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<(), CudaError> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes > staging.as_ref().map_or(0, cuda::Memory::bytes) {
            *staging = None;
            *staging = Some(self.gpu.zeros(bytes)?);
        }
        Ok(())
    }

    /// That memory.
    pub(crate) fn staging(&self) -> Option<cuda::Memory> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The failure that has ended the job, if one has.
    pub(crate) fn failure(&self) -> Option<Arc<Failure>> {
        self.groups.values().find_map(|link| link.group.failure())
    }

    /// Has a thread look after the devices.
    fn watch(self: &Arc<Links>) {
        let links = Arc::downgrade(self);
        // Without a thread a failure is noticed when the others' processes end.
        let _ = thread::Builder::new().name("nccl-watch".into()).spawn(move || watch(&links));
    }

    fn abort(&self) {
        self.groups.values().for_each(|link| link.communicator.abort());
    }
}

impl Link {
    /// An error of the ranks together, if it is one; one of this rank's NCCL ends the job.
    pub(crate) fn explain(&self, label: &str, error: ExecError) -> ExecError {
        let failed =
            |source: CollectiveError| ExecError::Collective { label: label.into(), source };
        match (self.group.failure(), error) {
            (Some(failure), _) => failed(failure.into()),
            (None, ExecError::Cuda(error @ (CudaError::Nccl(_) | CudaError::Aborted))) => {
                failed(self.fail(&error))
            }
            (None, error) => error,
        }
    }

    /// Ends the job by an error of this rank's NCCL; what it fails by.
    fn fail(&self, error: &CudaError) -> CollectiveError {
        self.group.fail(Cause::Failed(error.to_string()))
    }
}

fn failed(source: CollectiveError) -> ExecError {
    ExecError::Collective { label: LABEL.into(), source }
}

/// The first rank of a group that lacks NCCL, in the job.
fn lacking(group: &Group, is_there: bool) -> Result<Option<usize>, ExecError> {
    let mut all = vec![0; group.size()];
    let shards = Shards::even(group.size(), group.size());
    let own = [u8::from(is_there)];
    group.all_gather(DType::U8, &shards, &own, &mut all).map_err(failed)?;
    Ok(all.iter().position(|said| *said == 0).map(|index| group.members()[index]))
}

/// Ends what devices wait for when the job has failed.
fn watch(links: &Weak<Links>) {
    while let Some(links) = links.upgrade() {
        if links.failure().is_some() {
            return links.abort();
        }
        for link in links.groups.values() {
            if let Err(error) = link.communicator.check() {
                link.fail(&error);
                return links.abort();
            }
        }
        drop(links);
        thread::sleep(GLANCE);
    }
}
