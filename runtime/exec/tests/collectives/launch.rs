//! What is made of the variables that launchers set.

use brolly_exec::collectives::{CollectiveError, Engine, Launch, Launcher, Options};

fn detect(variables: &[(&str, &str)]) -> Result<Launch, String> {
    let get = |name: &str| {
        let found = variables.iter().find(|(other, _)| *other == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    Launch::detect(get).map_err(|error| match error {
        CollectiveError::Launch(reason) => reason,
        other => panic!("{other:?}"),
    })
}

const TORCHRUN: [(&str, &str); 5] = [
    ("RANK", "3"),
    ("WORLD_SIZE", "4"),
    ("LOCAL_RANK", "1"),
    ("MASTER_ADDR", "node1"),
    ("MASTER_PORT", "29500"),
];

#[test]
fn without_variables_the_process_is_alone() {
    for variables in [&[][..], &[("SLURM_JOB_ID", "7"), ("SLURM_NTASKS", "4")], &[("RANK", "")]] {
        let launch = detect(variables).unwrap();
        assert_eq!((launch.rank, launch.ranks, launch.launcher), (0, 1, Launcher::Alone));
        let world = launch.join(&Options::default()).unwrap();
        world.all().barrier().unwrap();
    }
}

#[test]
fn torchrun_says_where_rank_0_is() {
    let launch = detect(&TORCHRUN).unwrap();
    assert_eq!((launch.rank, launch.ranks, launch.local_rank), (3, 4, Some(1)));
    assert_eq!((launch.launcher, launch.engine()), (Launcher::Torchrun, Engine::Tcp));
    assert_eq!(launch.meeting, Some(("node1".into(), 29500)));
    let elastic = [&TORCHRUN[..], &[("TORCHELASTIC_USE_AGENT_STORE", "True")]].concat();
    assert_eq!(detect(&elastic).unwrap().meeting, Some(("node1".into(), 29501)));
}

#[test]
fn mpirun_needs_no_meeting_and_takes_one() {
    let ranks = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")];
    let launch = detect(&ranks).unwrap();
    assert_eq!((launch.rank, launch.ranks, launch.engine()), (1, 2, Engine::Mpi));
    assert_eq!(launch.meeting, None);
    let both = [&ranks[..], &TORCHRUN[3..]].concat();
    assert_eq!(detect(&both).unwrap().meeting, Some(("node1".into(), 29500)));
    let pmi = detect(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")]).unwrap();
    assert_eq!((pmi.launcher, pmi.engine()), (Launcher::Pmi, Engine::Mpi));
}

#[test]
fn slurm_has_a_first_node_and_a_port_of_the_job() {
    let slurm = [
        ("SLURM_PROCID", "5"),
        ("SLURM_NTASKS", "8"),
        ("SLURM_LOCALID", "1"),
        ("SLURM_JOB_NODELIST", "gpu[03-04]"),
        ("SLURM_JOB_ID", "1234"),
    ];
    let launch = detect(&slurm).unwrap();
    assert_eq!((launch.rank, launch.ranks, launch.engine()), (5, 8, Engine::Tcp));
    let (host, port) = launch.meeting.unwrap();
    assert_eq!(host, "gpu03");
    assert!((12_000..32_000).contains(&port));
    let own = [&slurm[..], &[("MASTER_PORT", "5000")]].concat();
    assert_eq!(detect(&own).unwrap().meeting, Some(("gpu03".into(), 5000)));
    // `srun` speaks PMI as well.
    let pmi = [&slurm[..], &[("PMI_RANK", "5"), ("PMI_SIZE", "8")]].concat();
    assert_eq!(detect(&pmi).unwrap().launcher, Launcher::Slurm);
    assert!(detect(&slurm[..3]).unwrap_err().contains("SLURM_JOB_NODELIST"));
    let bad = [&slurm[..3], &[("SLURM_NODELIST", "gpu[")]].concat();
    assert!(detect(&bad).unwrap_err().contains("no list of nodes"));
}

#[test]
fn an_inner_launcher_holds() {
    // A batch script runs as task 0; `mpirun` in it counts its own.
    let slurm = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_JOB_NODELIST", "a")];
    let ompi = [("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "4")];
    let launch = detect(&[&slurm[..], &ompi].concat()).unwrap();
    assert_eq!((launch.rank, launch.launcher), (2, Launcher::OpenMpi));
    let launch = detect(&[&slurm[..], &TORCHRUN].concat()).unwrap();
    assert_eq!((launch.rank, launch.launcher), (3, Launcher::Torchrun));
}

#[test]
fn contradictions_are_told() {
    let ompi = [("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "4")];
    let text = detect(&[&TORCHRUN[..], &ompi].concat()).unwrap_err();
    let expected = "RANK=3 and WORLD_SIZE=4 contradict OMPI_COMM_WORLD_RANK=2 and \
                    OMPI_COMM_WORLD_SIZE=4; unset those that do not hold";
    assert_eq!(text, expected);
    let same = [("OMPI_COMM_WORLD_RANK", "3"), ("OMPI_COMM_WORLD_SIZE", "4")];
    assert_eq!(detect(&[&TORCHRUN[..], &same].concat()).unwrap().rank, 3);
    assert_eq!(
        detect(&[("RANK", "4"), TORCHRUN[1]]).unwrap_err(),
        "RANK is 4, and WORLD_SIZE is 4"
    );
}

#[test]
fn all_that_is_missing_is_told_at_once() {
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: [Case<'_>; 7] = [
        (&TORCHRUN[..1], &["RANK is set, and WORLD_SIZE is not"]),
        (&TORCHRUN[1..2], &["WORLD_SIZE is set, and RANK is not"]),
        (&TORCHRUN[..3], &["MASTER_ADDR is not set", "MASTER_PORT is not set"]),
        (&TORCHRUN[..4], &["MASTER_PORT is not set"]),
        (&TORCHRUN[3..], &["RANK and WORLD_SIZE are not"]),
        (&[("SLURM_PROCID", "1")], &["SLURM_STEP_NUM_TASKS is not"]),
        (&[("OMPI_COMM_WORLD_SIZE", "2")], &["OMPI_COMM_WORLD_RANK is not"]),
    ];
    for (variables, parts) in cases {
        let text = detect(variables).unwrap_err();
        for part in parts {
            assert!(text.contains(part), "{variables:?}: {text}");
        }
    }
}

#[test]
fn what_is_no_number_is_told() {
    for (name, value, part) in [
        ("RANK", "one", "RANK is `one`"),
        ("RANK", "-1", "RANK is `-1`"),
        ("WORLD_SIZE", "99999999999999999999", "WORLD_SIZE is `9999"),
        ("WORLD_SIZE", "0", "RANK is 3, and WORLD_SIZE is 0"),
        ("LOCAL_RANK", "x", "LOCAL_RANK is `x`"),
        ("MASTER_PORT", "0", "MASTER_PORT is `0`"),
        ("MASTER_PORT", "70000", "MASTER_PORT is `70000`"),
    ] {
        let mut variables = TORCHRUN;
        variables.iter_mut().filter(|(other, _)| *other == name).for_each(|v| v.1 = value);
        let text = detect(&variables).unwrap_err();
        assert!(text.contains(part), "{text}");
    }
}
