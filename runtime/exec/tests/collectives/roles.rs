//! What this program does when it is started as a rank of a job.

use std::{env, fs, path::PathBuf, process, thread, time::Duration};

use brolly_exec::collectives::{Cause, CollectiveError, Launch, Options, Reduce, World};
use ir::DType;

use crate::script;

/// Plays the role that the environment asks for, and is no test otherwise.
#[test]
fn rank_of_another_test() {
    let Ok(role) = env::var("BROLLY_TEST_ROLE") else { return };
    let result = play(&role);
    match result {
        Ok(()) => process::exit(0),
        Err(error) => {
            eprintln!("error: {error}");
            process::exit(3);
        }
    }
}

fn play(role: &str) -> Result<(), CollectiveError> {
    let mut options = Options::default();
    let millis = |name: &str| -> Option<Duration> {
        Some(Duration::from_millis(env::var(name).ok()?.parse().ok()?))
    };
    options.deadline = millis("BROLLY_TEST_DEADLINE_MS").unwrap_or(options.deadline);
    options.silence = millis("BROLLY_TEST_SILENCE_MS").unwrap_or(options.silence);
    options.join_deadline = millis("BROLLY_TEST_JOIN_MS").unwrap_or(options.join_deadline);
    let launch = Launch::from_env()?;
    let world = launch.join(&options)?;
    note(&format!("pid.{}", world.rank()), process::id().to_string().as_bytes());
    match role {
        "script" => {
            let results = script::run(&world, true)?;
            note(&format!("result.{}", world.rank()), &results);
            Ok(())
        }
        "agree" => {
            let own = env::var("BROLLY_TEST_HASH").unwrap_or_default();
            world.agree("the schedule", own.as_bytes())
        }
        _ => steps(&world, role),
    }
}

/// Steps without end, in the third of which the last rank does mischief.
fn steps(world: &World, role: &str) -> Result<(), CollectiveError> {
    let group = world.all();
    let is_odd = world.rank() + 1 == world.ranks();
    for step in 1.. {
        world.set_step(step);
        if is_odd && step == 3 {
            match role {
                "fail" => return Err(world.fail(Cause::Failed("its disk is full".into()))),
                "panic" => panic!("on purpose"),
                "exit" => process::exit(0),
                "leave" => return Ok(()),
                "late" => thread::sleep(Duration::from_secs(60)),
                // To be stopped or killed from outside.
                _ => {}
            }
        }
        let mut data = vec![1u8; 1_000_000];
        group.all_reduce(Reduce::Sum, DType::F32, &mut data)?;
        if step == 3 {
            note(&format!("ready.{}", world.rank()), b"");
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Leaves something for the test, all at once.
fn note(name: &str, bytes: &[u8]) {
    let folder = PathBuf::from(env::var_os("BROLLY_TEST_FOLDER").unwrap());
    let partial = folder.join(format!("{name}.partial"));
    fs::write(&partial, bytes).unwrap();
    fs::rename(partial, folder.join(name)).unwrap();
}
