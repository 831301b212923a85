//! Ranks that fail, panic, stop, leave or go astray: the others hear of it, soon and by name.

use std::{
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use brolly_exec::collectives::{
    Cause, CollectiveError, Failure, Options, Reduce, Shards, World, run_threads, worlds,
};
use ir::DType;

/// Short enough for tests, long enough for a loaded machine.
const DEADLINE: Duration = Duration::from_millis(1500);

/// What every rank says, and what was reported.
struct Outcome {
    errors: Vec<Option<CollectiveError>>,
    report: String,
    took: Duration,
}

fn run(ranks: usize, body: impl Fn(&World) -> Result<(), CollectiveError> + Sync) -> Outcome {
    let report = Arc::new(Mutex::new(String::new()));
    let mut options = Options::default();
    options.deadline = DEADLINE;
    let sink = report.clone();
    options.report = Arc::new(move |text| sink.lock().unwrap().push_str(text));
    let begun = Instant::now();
    let results = run_threads(ranks, &options, body);
    let errors = results.into_iter().map(Result::err).collect();
    let report = report.lock().unwrap().clone();
    Outcome { errors, report, took: begun.elapsed() }
}

fn failure(error: &CollectiveError) -> &Failure {
    match error {
        CollectiveError::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

fn ones(elements: usize) -> Vec<u8> {
    [1.0f32.to_ne_bytes()].concat().repeat(elements)
}

/// Steps of a job in which rank 2 does `mischief` in the third one.
fn steps(
    world: &World,
    elements: usize,
    mischief: impl Fn() -> Result<(), CollectiveError>,
) -> Result<(), CollectiveError> {
    for step in 1..=5 {
        world.set_step(step);
        if step == 3 && world.rank() == 2 {
            mischief()?;
        }
        world.all().all_reduce(Reduce::Sum, DType::F32, &mut ones(elements))?;
    }
    Ok(())
}

/// Short vectors, and long ones, which are lent to the other ranks meanwhile.
const LENGTHS: [usize; 2] = [10, 100_000];

#[test]
fn an_error_of_one_rank_is_one_of_all() {
    for elements in LENGTHS {
        let outcome =
            run(4, |world| steps(world, elements, || Err(CollectiveError::Mesh("made up".into()))));
        assert!(outcome.took < DEADLINE, "{:?}", outcome.took);
        for (rank, error) in outcome.errors.iter().enumerate() {
            let error = error.as_ref().unwrap();
            if rank == 2 {
                assert_eq!(error.to_string(), "mesh: made up");
                continue;
            }
            let failure = failure(error);
            assert_eq!((failure.rank, failure.step), (2, 3));
            assert_eq!(failure.cause, Cause::Failed("mesh: made up".into()));
            let op = format!("after #2 all_reduce(sum, {elements} x f32) of group `world`");
            assert_eq!(failure.place, op);
        }
    }
}

#[test]
fn a_panic_of_one_rank_is_an_error_of_all() {
    for elements in LENGTHS {
        let outcome = run(4, |world| steps(world, elements, || panic!("on purpose")));
        assert!(outcome.took < DEADLINE, "{:?}", outcome.took);
        for error in &outcome.errors {
            let failure = failure(error.as_ref().unwrap());
            assert_eq!((failure.rank, failure.step), (2, 3));
            assert_eq!(failure.cause, Cause::Panicked("on purpose".into()));
        }
    }
}

#[test]
fn a_rank_that_stops_is_named_by_the_first_that_has_waited_long_enough() {
    for elements in LENGTHS {
        let outcome = run(4, |world| {
            steps(world, elements, || {
                thread::sleep(2 * DEADLINE);
                Ok(())
            })
        });
        assert!(outcome.took < 4 * DEADLINE, "{:?}", outcome.took);
        for error in &outcome.errors {
            let failure = failure(error.as_ref().unwrap());
            assert_eq!((failure.rank, failure.step), (2, 3));
            assert!(matches!(failure.cause, Cause::Late { .. }), "{failure}");
            let place = format!("in #3 all_reduce(sum, {elements} x f32) of group `world`");
            assert_eq!(failure.place, place);
            let text = failure.to_string();
            assert!(text.contains("at step 3, after #2 all_reduce"), "{text}");
        }
        assert!(outcome.report.contains("rank 2 did not come within 1.5 s"), "{}", outcome.report);
        assert!(outcome.report.contains("step 2: #2 all_reduce"), "{}", outcome.report);
        assert!(outcome.report.contains("not ended"), "{}", outcome.report);
        assert_eq!(outcome.report.matches("the last collectives of rank").count(), 1);
    }
}

#[test]
fn a_rank_that_leaves_is_named_at_once() {
    let outcome = run(3, |world| match world.rank() {
        2 => Ok(()),
        _ => steps(world, 10, || Ok(())),
    });
    assert!(outcome.took < DEADLINE, "{:?}", outcome.took);
    for error in &outcome.errors[..2] {
        let failure = failure(error.as_ref().unwrap());
        assert_eq!((failure.rank, &failure.cause), (2, &Cause::Ended));
    }
    assert!(outcome.errors[2].is_none());
}

#[test]
fn who_waits_for_somebody_that_waits_is_not_told_the_wrong_name() {
    let mesh = brolly_exec::collectives::Mesh::new(&[("data", 2), ("tensor", 2)]).unwrap();
    let outcome = run(4, |world| {
        // 0 waits for 1, and 1 for 3, which has stopped.
        match world.rank() {
            0 => world.group(&mesh, &["tensor"])?.barrier(),
            1 => {
                thread::sleep(DEADLINE / 10);
                world.group(&mesh, &["data"])?.barrier()
            }
            3 => {
                thread::sleep(2 * DEADLINE);
                Ok(())
            }
            _ => Ok(()),
        }
    });
    for error in &outcome.errors[..2] {
        let failure = failure(error.as_ref().unwrap());
        assert_eq!((failure.rank, failure.noticed_by), (3, 0), "{failure}");
    }
}

#[test]
fn ranks_at_different_collectives_are_told_apart() {
    for elements in LENGTHS {
        let outcome = run(3, |world| {
            let group = world.all();
            group.barrier()?;
            let data = &mut ones(elements);
            match world.rank() {
                1 => group.all_reduce(Reduce::Max, DType::F32, data),
                _ => group.all_reduce(Reduce::Sum, DType::F32, data),
            }
        });
        assert!(outcome.took < DEADLINE, "{:?}", outcome.took);
        for error in &outcome.errors {
            let text = failure(error.as_ref().unwrap()).to_string();
            let spell = |op: &str| format!("#2 all_reduce({op}, {elements} x f32)");
            assert!(text.contains(&spell("sum")) && text.contains(&spell("max")), "{text}");
        }
    }
}

#[test]
fn every_difference_is_noticed() {
    type Meet = fn(&World) -> Result<(), CollectiveError>;
    let meetings: [Meet; 8] = [
        |w| w.all().barrier(),
        |w| w.all().broadcast(0, &mut [0; 4]),
        |w| w.all().broadcast(1, &mut [0; 4]),
        |w| w.all().broadcast(1, &mut [0; 5]),
        |w| w.all().all_reduce(Reduce::Sum, DType::F32, &mut [0; 4]),
        |w| w.all().all_reduce(Reduce::Sum, DType::I32, &mut [0; 4]),
        |w| w.all().turn()?.all_gather_in_place(DType::U8, &Shards::even(3, 3), &mut [0; 3]),
        |w| {
            let shards = Shards::of(&[0, 0, 3]).unwrap();
            w.all().turn()?.all_gather_in_place(DType::U8, &shards, &mut [0; 3])
        },
    ];
    for (index, usual) in meetings.iter().enumerate() {
        for odd in &meetings[index + 1..] {
            let outcome = run(3, |world| if world.rank() == 1 { odd(world) } else { usual(world) });
            assert!(outcome.took < DEADLINE, "{:?}", outcome.took);
            // Who has met the others before the odd one came may be gone, and well.
            let errors: Vec<_> = outcome.errors.iter().flatten().collect();
            assert!(!errors.is_empty());
            for error in errors {
                assert!(matches!(failure(error).cause, Cause::Mismatch(_)), "{error}");
            }
        }
    }
}

#[test]
fn a_message_of_another_length_is_an_error() {
    let outcome = run(2, |world| match world.rank() {
        0 => world.all().send(1, &[1, 2, 3]),
        _ => world.all().recv(0, &mut [0; 4]),
    });
    let text = outcome.errors[1].as_ref().unwrap().to_string();
    assert!(text.contains("#1 send(3 bytes)") && text.contains("#1 send(4 bytes)"), "{text}");
}

#[test]
fn what_was_started_fails_with_the_rest() {
    let outcome = run(3, |world| {
        let group = world.all();
        if world.rank() == 1 {
            return Err(world.fail(Cause::Failed("its disk is full".into())));
        }
        let started = group.start(|turn| turn.all_reduce(Reduce::Sum, DType::F32, &mut ones(9)));
        let next = group.barrier().unwrap_err();
        assert!(matches!(next, CollectiveError::Failed(_)));
        started.wait()
    });
    for error in &outcome.errors {
        assert_eq!(failure(error.as_ref().unwrap()).rank, 1);
    }
}

#[test]
fn a_panic_in_what_was_started_fails_the_job() {
    let outcome = run(2, |world| {
        let is_odd = world.rank() == 1;
        let started = world.all().start(move |turn| {
            assert!(!is_odd, "in the background");
            turn.barrier()
        });
        started.wait()
    });
    for error in &outcome.errors {
        let failure = failure(error.as_ref().unwrap());
        assert_eq!(failure.cause, Cause::Panicked("in the background".into()));
        assert_eq!(failure.rank, 1);
    }
}

#[test]
fn a_world_dropped_in_a_panic_fails_the_job() {
    let mut options = Options::default();
    options.report = Arc::new(|_| ());
    let mut worlds = worlds(2, &options);
    let (odd, world) = (worlds.pop().unwrap(), worlds.pop().unwrap());
    let thread = thread::spawn(move || {
        let _world = odd;
        panic!("and the world goes with it");
    });
    let error = world.all().barrier().unwrap_err();
    assert!(matches!(failure(&error).cause, Cause::Panicked(_)), "{error}");
    assert!(thread.join().is_err());
    assert_eq!(world.failure().unwrap().rank, 1);
}
