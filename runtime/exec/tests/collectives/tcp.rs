//! Ranks that are processes and talk over TCP.

use std::{
    io::Write,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use crate::{bitwise, processes::Job, script};

const SOON: Duration = Duration::from_secs(20);
/// So that tests need not wait for what a job waits for.
const FAST: &[(&str, &str)] =
    &[("BROLLY_TEST_SILENCE_MS", "2500"), ("BROLLY_TEST_DEADLINE_MS", "4000")];

#[test]
fn results_are_those_of_threads_bit_for_bit() {
    for ranks in [2, 3, 4] {
        let expected = bitwise::run(ranks, |world| script::run(world, false));
        let mut job = Job::start(&format!("script-{ranks}"), ranks, "script", &[]);
        for (rank, expected) in expected.iter().enumerate() {
            let code = job.code(rank, 3 * SOON);
            assert_eq!(code, Some(0), "rank {rank}: {}", job.errors(rank));
            assert!(job.folder.read(&format!("result.{rank}")) == *expected, "rank {rank}");
        }
    }
}

/// Runs steps in which the last of three ranks does mischief; what the others say.
fn errors_of(role: &str, mischief: impl Fn(&Job)) -> Vec<String> {
    let mut job = Job::start(role, 3, role, FAST);
    mischief(&job);
    let codes = [0, 1].map(|rank| job.code(rank, SOON));
    let errors: Vec<String> = (0..3).map(|rank| job.errors(rank)).collect();
    assert_eq!(codes, [Some(3); 2], "{errors:#?}");
    for text in &errors[..2] {
        let error = text.lines().rev().find(|line| line.starts_with("error: ")).unwrap();
        assert!(error.starts_with("error: rank 2 "), "{text}");
        assert!(text.contains("all_reduce(sum, 250000 x f32) of group `world`"), "{text}");
        assert!(text.contains("the last collectives of rank"), "{text}");
    }
    errors
}

#[test]
fn a_rank_that_fails_tells_why() {
    for text in errors_of("fail", |_| ()) {
        assert!(
            text.contains("rank 2 has failed: its disk is full (at step 3, after #2"),
            "{text}"
        );
    }
}

#[test]
fn a_rank_that_panics_is_named() {
    for text in &errors_of("panic", |_| ())[..2] {
        assert!(text.contains("rank 2 has panicked") && text.contains("at step 3"), "{text}");
    }
}

#[test]
fn a_rank_that_exits_is_named() {
    for text in &errors_of("exit", |_| ())[..2] {
        assert!(text.contains("rank 2 is gone: its connection"), "{text}");
        assert!(text.contains("at step 3, in #3"), "{text}");
    }
}

#[test]
fn a_rank_that_leaves_is_named() {
    for text in &errors_of("leave", |_| ())[..2] {
        assert!(text.contains("rank 2 has ended while others waited for it"), "{text}");
    }
}

#[test]
fn a_rank_that_is_late_is_named() {
    for text in &errors_of("late", |_| ())[..2] {
        assert!(text.contains("rank 2 did not come within 4.0 s"), "{text}");
        assert!(text.contains("it was last at step 3, after #2 all_reduce"), "{text}");
    }
}

#[test]
fn a_rank_that_is_killed_is_named() {
    let kill = |job: &Job| {
        job.folder.read("ready.2");
        job.signal(2, "KILL");
    };
    for text in &errors_of("killed", kill)[..2] {
        assert!(text.contains("rank 2 is gone: its connection"), "{text}");
    }
}

#[test]
fn a_rank_that_is_stopped_is_named() {
    let stop = |job: &Job| {
        job.folder.read("ready.2");
        job.signal(2, "STOP");
    };
    for text in &errors_of("stopped", stop)[..2] {
        assert!(text.contains("rank 2 has stopped or is cut off"), "{text}");
    }
}

#[test]
fn by_default_a_stopped_rank_ends_the_job_within_30_s() {
    let mut job = Job::start("default", 3, "stopped", &[]);
    job.folder.read("ready.1");
    job.signal(1, "STOP");
    let begun = Instant::now();
    for rank in [0, 2] {
        assert_eq!(job.code(rank, Duration::from_secs(30)), Some(3));
        assert!(job.errors(rank).contains("error: rank 1 has stopped"), "{}", job.errors(rank));
    }
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_rank_that_pauses_goes_on() {
    let mut job = Job::start("paused", 2, "stopped", FAST);
    job.folder.read("ready.0");
    job.signal(0, "STOP");
    thread::sleep(Duration::from_millis(1000));
    job.signal(0, "CONT");
    thread::sleep(Duration::from_millis(1000));
    for rank in &mut job.ranks {
        assert!(rank.try_wait().unwrap().is_none());
    }
}

#[test]
fn another_schedule_is_refused() {
    let mut job = Job::start("agree", 2, "agree", &[("BROLLY_TEST_HASH", "same")]);
    assert_eq!([0, 1].map(|rank| job.code(rank, SOON)), [Some(0); 2]);
    let mut job = Job::start("differ", 0, "agree", &[]);
    let hashes = ["same", "same", "other"];
    job.start_each(&hashes.map(|hash| [("BROLLY_TEST_HASH", hash), ("WORLD_SIZE", "3")]));
    for rank in 0..3 {
        assert_eq!(job.code(rank, SOON), Some(3));
        let text = job.errors(rank);
        assert!(text.contains("the schedule of rank 2 differs from the other ranks'"), "{text}");
    }
}

#[test]
fn ranks_that_do_not_come_are_named() {
    let mut job = Job::start("absent", 0, "script", &[]);
    let short = ("BROLLY_TEST_JOIN_MS", "1500");
    job.start_each(&[[("WORLD_SIZE", "4"), short]; 2]);
    for rank in 0..2 {
        assert_eq!(job.code(rank, SOON), Some(3));
        let text = job.errors(rank);
        assert!(text.contains("of 4 ranks, ranks 2 and 3 have not come to 127.0.0.1:"), "{text}");
    }
}

#[test]
fn ranks_with_other_ideas_of_the_job_are_refused() {
    let mut job = Job::start("sizes", 0, "script", &[]);
    job.start_each(&[[("WORLD_SIZE", "2")], [("WORLD_SIZE", "3")]]);
    for rank in 0..2 {
        assert_eq!(job.code(rank, SOON), Some(3));
        let text = job.errors(rank);
        assert!(text.contains("rank 0 is told that there are 2 ranks, and rank 1"), "{text}");
    }
    let mut job = Job::start("twice", 0, "script", &[]);
    job.start_each(
        &[0, 1, 1].map(|rank| [("WORLD_SIZE", "3"), ("RANK", if rank == 0 { "0" } else { "1" })]),
    );
    assert_eq!(job.code(0, SOON), Some(3));
    assert!(job.errors(0).contains("two processes say that they are rank 1"), "{}", job.errors(0));
}

#[test]
fn strangers_do_not_disturb() {
    let mut job = Job::start("strangers", 0, "agree", &[]);
    job.start_each(&[[("WORLD_SIZE", "2")]]);
    let begun = Instant::now();
    let knock = || loop {
        match TcpStream::connect(("127.0.0.1", job.port)) {
            Ok(stream) => return stream,
            Err(error) => assert!(begun.elapsed() < SOON, "{error}"),
        }
        thread::sleep(Duration::from_millis(20));
    };
    let _silent = knock();
    let mut garbled = knock();
    let _ = garbled.write_all(b"GET / HTTP/1.1\r\n\r\n");
    drop(knock());
    job.start_each(&[[("WORLD_SIZE", "2")]]);
    for rank in 0..2 {
        assert_eq!(job.code(rank, SOON), Some(0), "{}", job.errors(rank));
    }
}
