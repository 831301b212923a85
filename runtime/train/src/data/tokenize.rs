//! One file to one shard, on all threads.
//!
//! A thread reads records in batches and deals them to workers in turn; the caller takes what the
//! workers made of them in the same turn, so order needs no bookkeeping and a slow worker holds up
//! the rest instead of letting finished work pile up: at most a few megabytes a thread are in
//! memory, whatever the size of the file.

use std::{
    ops::ControlFlow,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use super::{
    document::Encoded,
    error::DataError,
    read::{Record, Sink},
};

/// Bytes of records that go to a worker at once.
const BATCH: usize = 1 << 20;
/// Batches that wait before and behind a worker.
const WAITING: usize = 2;

/// Reads, encodes and hands over in the order of the file.
///
/// # Errors
/// That of `read`, or of `take`, which ends the work.
pub(super) fn run(
    threads: usize,
    read: impl FnOnce(&mut Sink<'_>) -> Result<(), DataError> + Send,
    encode: impl Fn(&Record) -> Encoded + Sync,
    mut take: impl FnMut(Vec<Encoded>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    thread::scope(|scope| {
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for _ in 0..threads.max(1) {
            let (input, records) = sync_channel(WAITING);
            let (done, output) = sync_channel(WAITING);
            let encode = &encode;
            scope.spawn(move || work(&records, &done, encode));
            inputs.push(input);
            outputs.push(output);
        }
        let reader = scope.spawn(move || deal(read, &inputs));
        let mut result = Ok(());
        for output in outputs.iter().cycle() {
            let Ok(batch) = output.recv() else { break };
            result = take(batch);
            if result.is_err() {
                break;
            }
        }
        // Workers that have nobody to hand over to end, and the reader with them.
        drop(outputs);
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result.and(read)
    })
}

fn deal(
    read: impl FnOnce(&mut Sink<'_>) -> Result<(), DataError>,
    inputs: &[SyncSender<Vec<Record>>],
) -> Result<(), DataError> {
    let mut turns = inputs.iter().cycle();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let mut send = |batch: Vec<Record>| match turns.next().map(|input| input.send(batch)) {
        Some(Ok(())) => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    read(&mut |record| {
        bytes += record.bytes();
        batch.push(record);
        if bytes < BATCH {
            return ControlFlow::Continue(());
        }
        bytes = 0;
        send(std::mem::take(&mut batch))
    })?;
    if !batch.is_empty() {
        // Whoever is gone has told why.
        let _ = send(batch);
    }
    Ok(())
}

fn work(
    records: &Receiver<Vec<Record>>,
    done: &SyncSender<Vec<Encoded>>,
    encode: &impl Fn(&Record) -> Encoded,
) {
    for batch in records {
        if done.send(batch.iter().map(encode).collect()).is_err() {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, path::PathBuf, time::Duration};

    use super::*;
    use crate::data::token::Token;

    fn records(n: u64, sink: &mut Sink<'_>) -> Result<(), DataError> {
        for number in 1..=n {
            let bytes = vec![0; 300_000];
            if sink(Record::Line { number, bytes }).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn number(record: &Record) -> u32 {
        let Record::Line { number, .. } = record else { panic!("a line") };
        u32::try_from(*number).unwrap()
    }

    #[test]
    fn order_is_kept_whatever_takes_long() {
        for threads in [1, 3, 8] {
            let encode = |record: &Record| {
                let number = number(record);
                thread::sleep(Duration::from_millis(u64::from(number * 7 % 5)));
                Encoded::Tokens(vec![Token::new(number)])
            };
            let mut taken = Vec::new();
            run(
                threads,
                |sink| records(50, sink),
                encode,
                |batch| {
                    taken.extend(batch);
                    Ok(())
                },
            )
            .unwrap();
            let wanted: Vec<Encoded> =
                (1..=50).map(|n| Encoded::Tokens(vec![Token::new(n)])).collect();
            assert_eq!(taken, wanted);
        }
    }

    #[test]
    fn errors_end_the_work() {
        let path = PathBuf::from("a");
        let full = || DataError::Write {
            path: path.clone(),
            source: io::Error::from(io::ErrorKind::StorageFull),
        };
        let written = run(2, |sink| records(1 << 40, sink), |_| Encoded::Nothing, |_| Err(full()));
        assert!(matches!(written, Err(DataError::Write { .. })));
        let fails = |sink: &mut Sink<'_>| {
            records(9, sink)?;
            Err(DataError::Missing { path: path.clone() })
        };
        let mut taken = 0;
        let read = run(
            2,
            fails,
            |_| Encoded::Nothing,
            |batch| {
                taken += batch.len();
                Ok(())
            },
        );
        assert!(matches!(read, Err(DataError::Missing { .. })));
        assert_eq!(taken, 8, "what was dealt before the error is handed over");
    }
}
