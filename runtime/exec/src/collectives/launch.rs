//! Which rank this process is, by what its launcher has put into the environment.
//!
//! Four families of variables are known. Those of an inner launcher hold: an `mpirun` or `torchrun`
//! in a Slurm job inherits variables of the job that count something else. Between the others, and
//! within each, contradictions and gaps are errors, for a guess here trains alone or hangs.

use std::env;

use super::{CollectiveError, Options, World, local::alone, mpi, shards::digest, slurm, tcp};

/// By what the ranks of different processes talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Sockets between all pairs of ranks.
    Tcp,
    /// The MPI library of the machine.
    Mpi,
}

/// What has started the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// None that is known: the process is alone.
    Alone,
    /// `torchrun`, or whoever sets the same variables.
    Torchrun,
    /// `mpirun` of Open MPI.
    OpenMpi,
    /// `mpiexec` of MPICH, or another one that speaks PMI.
    Pmi,
    /// `srun`.
    Slurm,
}

/// This process's place in the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// This rank.
    pub rank: usize,
    /// How many there are.
    pub ranks: usize,
    /// Its number among those of the same machine, if the launcher says.
    pub local_rank: Option<usize>,
    /// Who says so.
    pub launcher: Launcher,
    /// Where rank 0 waits for the others, if they are to meet over TCP.
    pub meeting: Option<(String, u16)>,
    /// What tells jobs apart.
    pub(super) job: u64,
}

/// The names that a launcher uses.
struct Family {
    launcher: Launcher,
    rank: &'static str,
    ranks: &'static [&'static str],
    local_rank: &'static str,
}

const FAMILIES: [Family; 4] = [
    Family {
        launcher: Launcher::Torchrun,
        rank: "RANK",
        ranks: &["WORLD_SIZE"],
        local_rank: "LOCAL_RANK",
    },
    Family {
        launcher: Launcher::OpenMpi,
        rank: "OMPI_COMM_WORLD_RANK",
        ranks: &["OMPI_COMM_WORLD_SIZE"],
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
    },
    Family {
        launcher: Launcher::Pmi,
        rank: "PMI_RANK",
        ranks: &["PMI_SIZE"],
        local_rank: "MPI_LOCALRANKID",
    },
    Family {
        launcher: Launcher::Slurm,
        rank: "SLURM_PROCID",
        ranks: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
        local_rank: "SLURM_LOCALID",
    },
];

/// What a family says.
struct Claim {
    family: &'static Family,
    rank: usize,
    ranks: usize,
    local_rank: Option<usize>,
}

impl Launch {
    /// From the environment.
    ///
    /// # Errors
    /// [`CollectiveError::Launch`] with all that is missing, malformed or contradictory.
    pub fn from_env() -> Result<Launch, CollectiveError> {
        Launch::detect(|name| env::var(name).ok())
    }

    /// From these variables.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn detect(get: impl Fn(&str) -> Option<String>) -> Result<Launch, CollectiveError> {
        let get = |name: &str| get(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let mut problems = Vec::new();
        let mut claims = Vec::new();
        for family in &FAMILIES {
            // Slurm comes last, and what is set of it in a job says nothing about a step.
            let is_outer = family.launcher == Launcher::Slurm;
            if !is_outer || (claims.is_empty() && get(family.rank).is_some()) {
                claims.extend(claim(family, &get, &mut problems));
            } else if let Some(claim) = claim(family, &get, &mut Vec::new()) {
                // `srun` sets the variables of PMI as well: then it is the launcher.
                let is_same = |c: &Claim| {
                    c.family.launcher == Launcher::Pmi
                        && (c.rank, c.ranks) == (claim.rank, claim.ranks)
                };
                if claims.len() == 1 && claims.iter().all(is_same) {
                    claims = vec![claim];
                }
            }
        }
        if let [first, others @ ..] = claims.as_slice() {
            let differs = |c: &&Claim| (c.rank, c.ranks) != (first.rank, first.ranks);
            problems.extend(others.iter().filter(differs).map(|c| contradiction(first, c)));
        }
        let masters = (get("MASTER_ADDR"), get("MASTER_PORT"));
        let launcher = claims.first().map_or(Launcher::Alone, |claim| claim.family.launcher);
        if claims.is_empty() && problems.is_empty() && masters != (None, None) {
            problems
                .push("MASTER_ADDR or MASTER_PORT is set, and RANK and WORLD_SIZE are not".into());
        }
        let ranks = claims.first().map_or(1, |claim| claim.ranks);
        let meeting = match launcher {
            _ if ranks == 1 => None,
            Launcher::Slurm => slurm_meeting(masters, &get, &mut problems),
            _ => meeting(launcher, masters, &get, &mut problems),
        };
        if !problems.is_empty() {
            return Err(CollectiveError::Launch(problems.join("; ")));
        }
        let names = ["TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID", "BROLLY_JOB"];
        let job = digest(names.into_iter().filter_map(&get).flat_map(String::into_bytes));
        let (rank, local_rank) = claims.first().map_or((0, None), |c| (c.rank, c.local_rank));
        Ok(Launch { rank, ranks, local_rank, launcher, meeting, job })
    }

    /// What the ranks talk by unless told otherwise.
    pub fn engine(&self) -> Engine {
        match self.launcher {
            Launcher::OpenMpi | Launcher::Pmi => Engine::Mpi,
            Launcher::Alone | Launcher::Torchrun | Launcher::Slurm => Engine::Tcp,
        }
    }

    /// Brings the ranks together; a rank that is the only one needs no connection.
    ///
    /// # Errors
    /// [`CollectiveError::Join`] if some do not come, or come with another idea of the job;
    /// [`CollectiveError::Mpi`] if the MPI library cannot be used.
    pub fn join(&self, options: &Options) -> Result<World, CollectiveError> {
        match options.engine.unwrap_or_else(|| self.engine()) {
            _ if self.ranks == 1 => Ok(alone(options)),
            Engine::Tcp => tcp::join(self, options),
            Engine::Mpi => mpi::join(self, options),
        }
    }
}

/// What a family says; `None` if it says nothing, or not all.
fn claim(
    family: &'static Family,
    get: &impl Fn(&str) -> Option<String>,
    problems: &mut Vec<String>,
) -> Option<Claim> {
    let mut number = |name: &str| -> Option<Option<usize>> {
        let text = get(name)?;
        let number = text.parse().ok().filter(|&number: &usize| u32::try_from(number).is_ok());
        if number.is_none() {
            problems.push(format!("{name} is `{text}`, which is no rank or number of ranks"));
        }
        Some(number)
    };
    let rank = number(family.rank);
    let size_name = family.ranks.iter().find(|name| get(name).is_some());
    let size_name = size_name.unwrap_or(&family.ranks[0]);
    let ranks = number(size_name);
    let local_rank = number(family.local_rank).flatten();
    let (rank, ranks) = match (rank, ranks) {
        (Some(rank), Some(ranks)) => (rank?, ranks?),
        (Some(_), None) => {
            problems.push(format!("{} is set, and {size_name} is not", family.rank));
            return None;
        }
        (None, Some(_)) => {
            problems.push(format!("{size_name} is set, and {} is not", family.rank));
            return None;
        }
        (None, None) => return None,
    };
    if rank >= ranks {
        problems.push(format!("{} is {rank}, and {size_name} is {ranks}", family.rank));
        return None;
    }
    Some(Claim { family, rank, ranks, local_rank })
}

fn contradiction(a: &Claim, b: &Claim) -> String {
    let text = |claim: &Claim| {
        let Claim { family, rank, ranks, .. } = claim;
        format!("{}={rank} and {}={ranks}", family.rank, family.ranks[0])
    };
    format!("{} contradict {}; unset those that do not hold", text(a), text(b))
}

fn port(text: &str, problems: &mut Vec<String>) -> Option<u16> {
    let port = text.parse().ok().filter(|&port| port > 0);
    if port.is_none() {
        problems.push(format!("MASTER_PORT is `{text}`, which is no port"));
    }
    port
}

/// Where the variables of `torchrun` say that rank 0 is.
fn meeting(
    launcher: Launcher,
    masters: (Option<String>, Option<String>),
    get: &impl Fn(&str) -> Option<String>,
    problems: &mut Vec<String>,
) -> Option<(String, u16)> {
    let (host, port) = match masters {
        (Some(host), Some(text)) => (host, port(&text, problems)?),
        (None, None) if launcher != Launcher::Torchrun => return None,
        (host, port) => {
            let names = [("MASTER_ADDR", host), ("MASTER_PORT", port)];
            let missing = names.iter().filter(|(_, value)| value.is_none());
            problems.extend(
                missing
                    .map(|(name, _)| format!("{name} is not set, by which the ranks find rank 0")),
            );
            return None;
        }
    };
    // Then `torchrun` itself listens there.
    let is_taken = get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
    Some((host, if is_taken { port.checked_add(1).unwrap_or(port - 1) } else { port }))
}

/// Slurm's first node, and a port that follows from the job.
fn slurm_meeting(
    (host, port_text): (Option<String>, Option<String>),
    get: &impl Fn(&str) -> Option<String>,
    problems: &mut Vec<String>,
) -> Option<(String, u16)> {
    let lists = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"];
    let host = match (host, lists.into_iter().find_map(|name| Some((name, get(name)?)))) {
        (Some(host), _) => Some(host),
        (None, Some((name, list))) => {
            let host = slurm::first_host(&list);
            if host.is_none() {
                problems.push(format!("{name} is `{list}`, which is no list of nodes"));
            }
            host
        }
        (None, None) => {
            problems.push("neither MASTER_ADDR nor SLURM_JOB_NODELIST is set".into());
            None
        }
    };
    let ids = ["SLURM_JOB_ID", "SLURM_STEP_ID"].into_iter().filter_map(get);
    let own =
        12_000 + u16::try_from(digest(ids.flat_map(String::into_bytes)) % 20_000).unwrap_or(0);
    let port = port_text.map_or(Some(own), |text| port(&text, problems));
    Some((host?, port?))
}
