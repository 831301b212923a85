//! What ranks on GPUs hand each other between programs: in order, as it was, kept until it has
//! come, and with nobody waiting for one that has failed.

use exec::{Channel, ExecError};

use super::*;

/// The name of the group.
const WAY: &str = "on";

/// `give` has `handed.0` and `handed.1`, which are its inputs; `take` reads `hidden.0`, of as many
/// elements, which is `y`.
fn programs() -> Vec<Program> {
    let at = |region: Region, index: i64| Place { region, offset: Dim::from(index * MOST * 4) };
    let port = |name: &str, place: Place| Port {
        name: name.into(),
        ty: TensorType::new(DType::F32, [Dim::symbol("N")]),
        place,
    };
    // What nobody else adds to is copied.
    let copy = |from: Place, to: Place| Collective {
        op: CollectiveOp::AllReduce,
        axis: "nobody".into(),
        ranks: 1,
        dtype: DType::F32,
        elements: Dim::symbol("N"),
        input: from,
        output: to,
        start: 0,
        end: 0,
        label: "a copy".into(),
    };
    let bounds = Bounds { lo: 0, hi: MOST };
    let program = |name: &str| Program {
        name: name.into(),
        symbols: Symbols::from_iter([("N".into(), bounds)]),
        arena_bytes: u64::try_from(4 * 4 * MOST).unwrap(),
        ..Program::default()
    };
    let arena = |index| at(Region::Arena, index);
    let give = Program {
        inputs: vec![port("x", arena(0)), port("z", arena(1))],
        outputs: vec![port("handed.0", arena(2)), port("handed.1", arena(3))],
        collectives: vec![copy(arena(0), arena(2)), copy(arena(1), arena(3))],
        ..program("give")
    };
    let take = Program {
        states: vec![port("hidden.0", at(Region::State(0), 0))],
        outputs: vec![port("y", arena(0))],
        collectives: vec![copy(at(Region::State(0), 0), arena(0))],
        ..program("take")
    };
    // A device takes no artifact without code.
    vec![give, take, super::program(DType::F32, 2)]
}

/// A rank of a chain, each of which takes what the one before gives.
struct Link {
    rank: usize,
    channel: Channel,
    give: Executable,
    take: Executable,
    states: States,
}

impl Link {
    fn new(world: &World, device: &exec::Device, route: Route) -> Link {
        static ARTIFACT: OnceLock<Arc<Artifact>> = OnceLock::new();
        let artifact = ARTIFACT.get_or_init(|| store("channels", programs()));
        let all: Vec<usize> = (0..world.ranks()).collect();
        let mut groups = Groups::default();
        groups.add(WAY, world.group_of_ranks(WAY, &all).unwrap());
        assert_eq!(groups.link(device, route).unwrap(), None);
        let channel = groups.channel(WAY).unwrap().unwrap();
        let model = Model::load(artifact.clone(), device.clone()).unwrap();
        let load = |entry: &str| {
            let mut exe = Executable::load(&model, entry, &[]).unwrap();
            exe.join(&groups).unwrap();
            exe
        };
        let (mut give, take) = (load("give"), load("take"));
        channel.prepare(&mut give, &["handed.0", "handed.1"]).unwrap();
        let mut states = States::on(device);
        states.add(take.program(), &[("N", MOST)]).unwrap();
        Link { rank: world.rank(), channel, give, take, states }
    }

    /// Gives the next rank the inputs of a turn, and these once more, for which it has no state.
    fn give(&mut self, x: &[u8]) -> Result<(), ExecError> {
        let count = i64::try_from(x.len() / 4).unwrap();
        self.give.run(&mut States::none(), &[("N", count)], &[("x", x), ("z", x)])?;
        self.channel.send(self.rank + 1, &mut self.give, &["handed.0", "handed.1"])
    }

    fn take(&mut self, count: usize) -> Result<Vec<u8>, ExecError> {
        let parts = [("hidden.0".into(), 4 * count), ("hidden.1".into(), 4 * count)];
        self.channel.receive(self.rank - 1, &parts, &mut self.states)?;
        self.take.run(&mut self.states, &[("N", i64::try_from(count).unwrap())], &[])?;
        Ok(self.take.output::<u8>("y")?.to_vec())
    }
}

#[test]
fn devices_pass_on_what_they_were_given() {
    let counts = [100, 40_000, 0, 1, 9_999, 9_999, 9_999, 100];
    let of = |turn: usize| numbers(DType::F32, turn, counts[turn]);
    for (route, ahead) in
        [(Route::Host, Ahead::First), (Route::Nccl, Ahead::First), (Route::Nccl, Ahead::Last)]
    {
        let (devices, drivers, fabric) = devices(3, ahead);
        let ends = run_threads(3, &quiet(), |world| {
            let rank = world.rank();
            let mut link = Link::new(world, &devices[rank], route);
            for (turn, count) in counts.iter().enumerate() {
                let x = match rank {
                    0 => of(turn),
                    _ => link.take(*count).unwrap(),
                };
                assert!(x == of(turn), "turn {turn} on rank {rank}, {route:?}, {ahead:?}");
                if rank < 2 {
                    link.give(&x).unwrap();
                }
            }
            Ok::<_, CollectiveError>(())
        });
        ends.into_iter().for_each(|end| end.unwrap());
        assert_eq!(fabric.faults(), [""; 0]);
        for driver in drivers {
            assert_eq!(driver.mistakes(), [""; 0]);
            assert_eq!(driver.counts().meetings > 0, route == Route::Nccl);
        }
    }
}

/// Memory of a program that has gone is kept until what was sent of it has come.
#[test]
fn what_is_sent_outlives_its_program() {
    let (devices, drivers, fabric) = devices(2, Ahead::First);
    let x = numbers(DType::F32, 0, 100);
    let ends = run_threads(2, &quiet(), |world| {
        let mut link = Link::new(world, &devices[world.rank()], Route::Nccl);
        if world.rank() == 1 {
            world.all().barrier()?;
            assert!(link.take(100).unwrap() == x);
            return Ok(());
        }
        link.give(&x).unwrap();
        let Link { channel, .. } = link;
        world.all().barrier()?;
        drop(channel);
        Ok::<_, CollectiveError>(())
    });
    ends.into_iter().for_each(|end| end.unwrap());
    assert_eq!(fabric.faults(), [""; 0]);
    drivers.iter().for_each(|driver| assert_eq!(driver.mistakes(), [""; 0]));
}

/// What both ranks say when the second does something else than to take twice what it is given.
fn ends(
    first: impl Fn(&mut Link) -> Result<(), ExecError> + Sync,
    second: impl Fn(&mut Link) -> Result<(), String> + Sync,
) -> Vec<String> {
    let (devices, ..) = devices(2, Ahead::First);
    let failed = Mutex::new(vec![String::new(); 2]);
    let begun = Instant::now();
    run_threads(2, &quiet(), |world| {
        let mut link = Link::new(world, &devices[world.rank()], Route::Auto);
        let done = match world.rank() {
            0 => first(&mut link).map_err(|error| error.to_string()),
            _ => second(&mut link),
        };
        done.map_err(|why| {
            failed.lock().unwrap()[world.rank()] = why.clone();
            CollectiveError::Mesh(why)
        })
    });
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    failed.into_inner().unwrap()
}

fn give_twice(link: &mut Link) -> Result<(), ExecError> {
    let x = numbers(DType::F32, 0, 100);
    link.give(&x)?;
    link.give(&x)
}

#[test]
fn a_sender_waits_for_no_rank_that_has_failed() {
    let said = ends(give_twice, |_| {
        thread::sleep(Duration::from_millis(300));
        Err("the disk is full".into())
    });
    assert!(said[0].contains("rank 1 has failed: mesh: the disk is full"), "{said:?}");
}

#[test]
fn a_sender_waits_for_no_rank_that_has_ended() {
    let said = ends(give_twice, |_| Ok(()));
    assert!(said[0].contains("rank 1 has ended while others waited for it"), "{said:?}");
}

#[test]
fn a_receiver_waits_for_no_rank_that_has_ended() {
    let said = ends(|_| Ok(()), |link| link.take(100).map(drop).map_err(|e| e.to_string()));
    assert!(said[1].contains("rank 0 has ended while others waited for it"), "{said:?}");
}

#[test]
fn messages_of_other_lengths_are_told() {
    let said = ends(give_twice, |link| link.take(99).map(drop).map_err(|e| e.to_string()));
    let want = "rank 0 came to another collective: #1 send(800 bytes) of group `on`";
    assert!(said.iter().all(|said| said.contains(want)), "{said:?}");
}
