//! The thread by which a rank shows that it lives, sees that others do, and tells of failures.

use std::{
    sync::PoisonError,
    thread,
    time::{Duration, Instant},
};

use super::{
    Cause, Failure,
    frame::{BODY, Frame},
    post::{GRACE, Post},
    watch::{State, lock, millis},
    wired::{LAST_WORDS, Wire},
};

/// How often processes of the same machine are looked at. Open MPI kills the others a second after
/// it has noticed that one of them has ended.
const GLANCE: Duration = Duration::from_millis(50);

/// Tells the others that this rank lives, and notices if one of them does not, until the rank ends
/// or the job fails, which is then told.
pub(super) fn watch(post: &Post, wire: &impl Wire) {
    let interval = (post.silence / 10).clamp(Duration::from_millis(10), Duration::from_secs(1));
    let wait = if wire.notices_ends() { interval } else { interval.min(GLANCE) };
    let mut is_first = true;
    let mut last = Instant::now();
    let mut is_over = lock(&post.is_over);
    while !*is_over && post.watch.failure().is_none() {
        let woken = post.woken.wait_timeout(is_over, wait);
        is_over = woken.unwrap_or_else(PoisonError::into_inner).0;
        if *is_over || post.watch.failure().is_some() {
            break;
        }
        drop(is_over);
        let gone = |rank: usize| {
            let process = post.watch.process(rank).filter(|process| process.is_gone());
            process.map(|process| (rank, process))
        };
        let gone = (!wire.notices_ends()).then(|| post.others().find_map(gone)).flatten();
        if let Some((rank, process)) = gone {
            // What it said before may still be on its way: that it ends well, or why not.
            thread::sleep(GRACE);
            if post.watch.process(rank).is_some() {
                let cause = Cause::Lost(format!("its process {} has ended", process.pid));
                post.raise(post.blame(rank, cause));
            }
        }
        if last.elapsed() < interval && !is_first {
            is_over = lock(&post.is_over);
            continue;
        }
        is_first = false;
        let was_stopped = last.elapsed() > post.silence / 2;
        last = Instant::now();
        if was_stopped {
            post.forgive();
        }
        let mut body = serde_json::to_vec(&post.watch.state(post.rank)).unwrap_or_default();
        if body.len() > BODY {
            body = serde_json::to_vec(&State::default()).unwrap_or_default();
        }
        let header = Frame::Alive.encode(body.len());
        post.others().for_each(|rank| wire.offer(rank, &header, &body));
        if let Some((rank, silent)) = post.silent() {
            let cause = Cause::Silent { silent_ms: millis(silent) };
            post.raise(post.blame(rank, cause));
        }
        is_over = lock(&post.is_over);
    }
    drop(is_over);
    if let Some(failure) = post.watch.failure() {
        tell(post, wire, &failure);
    }
}

/// Sends the news of a failure, last to the one that is to blame and may not take it.
fn tell(post: &Post, wire: &impl Wire, failure: &Failure) {
    let mut body = serde_json::to_vec(failure).unwrap_or_default();
    if body.len() > BODY {
        let cause = Cause::Failed("its message is too long to be sent".into());
        body = serde_json::to_vec(&Failure { cause, ..failure.clone() }).unwrap_or_default();
    }
    let header = Frame::Failed.encode(body.len());
    let mut ranks: Vec<usize> = post.others().collect();
    ranks.sort_by_key(|&rank| rank == failure.rank);
    let begun = Instant::now();
    for rank in ranks {
        if rank == failure.rank {
            // It may not take it, and a launcher may end this process meanwhile.
            post.watch.tell(failure);
        }
        let mut goes_on = || begun.elapsed() < LAST_WORDS;
        let _ = wire.send(rank, &header, &body, &mut goes_on);
    }
    if failure.rank == post.rank {
        post.watch.tell(failure);
    }
    *lock(&post.is_told) = true;
    post.told.notify_all();
    wire.give_up(failure);
}
