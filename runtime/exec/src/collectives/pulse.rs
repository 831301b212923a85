//! The thread by which a rank shows that it lives, sees that others do, and tells of failures.

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use super::{
    Cause, Failure,
    frame::{BODY, Frame},
    post::Post,
    watch::{State, lock, millis},
    wired::{LAST_WORDS, Wire},
};

/// Tells the others that this rank lives, and notices if one of them does not, until the rank ends
/// or the job fails, which is then told.
pub(super) fn watch(post: &Post, wire: &impl Wire) {
    let interval = (post.silence / 10).clamp(Duration::from_millis(10), Duration::from_secs(1));
    let mut last = Instant::now();
    let mut is_over = lock(&post.is_over);
    while !*is_over && post.watch.failure().is_none() {
        let wait = post.woken.wait_timeout(is_over, interval);
        is_over = wait.unwrap_or_else(PoisonError::into_inner).0;
        if *is_over || post.watch.failure().is_some() {
            break;
        }
        if last.elapsed() < interval {
            continue;
        }
        drop(is_over);
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
        let mut goes_on = || begun.elapsed() < LAST_WORDS;
        let _ = wire.send(rank, &header, &body, &mut goes_on);
    }
    post.watch.tell(failure);
    *lock(&post.is_told) = true;
    post.told.notify_all();
    wire.give_up(failure);
}
