//! Communicators wait, end and keep as they must.

use std::{
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use super::standin::{Blank, device};
use crate::{
    Communicator, CudaError, Device, Message, Stream,
    driver::StreamHandle,
    nccl::{CommHandle, ID_BYTES, Nccl, NcclAnswer, NcclError, Sum, UniqueId},
    standin::StandIn,
};

/// Records calls, and is ready so many questions after the last.
#[derive(Debug, Default)]
struct Recorder {
    delay: usize,
    state: Mutex<Recorded>,
}

#[derive(Debug, Default)]
struct Recorded {
    calls: Vec<String>,
    asked: usize,
    fails: bool,
}

impl Recorder {
    fn note(&self, call: String) -> NcclAnswer {
        let mut state = self.state.lock().unwrap();
        state.calls.push(call);
        state.asked = 0;
        Ok(())
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().calls)
    }
}

impl Nccl for Recorder {
    fn unique_id(&self) -> NcclAnswer<UniqueId> {
        Ok([7; ID_BYTES])
    }

    fn init_rank(&self, ranks: usize, id: &UniqueId, rank: usize) -> NcclAnswer<CommHandle> {
        self.note(format!("init {rank} of {ranks} by {}", id[0]))?;
        Ok(CommHandle(1))
    }

    fn is_ready(&self, _: CommHandle) -> NcclAnswer<bool> {
        let mut state = self.state.lock().unwrap();
        if state.fails {
            return Err(NcclError { call: "is_ready", text: "the network is down".into() });
        }
        state.asked += 1;
        Ok(state.asked > self.delay)
    }

    fn group_start(&self) -> NcclAnswer {
        self.note("(".into())
    }

    fn group_end(&self) -> NcclAnswer {
        self.note(")".into())
    }

    fn send(
        &self,
        _: CommHandle,
        _: u64,
        bytes: usize,
        peer: usize,
        _: StreamHandle,
    ) -> NcclAnswer {
        self.note(format!("send {bytes} to {peer}"))
    }

    fn recv(
        &self,
        _: CommHandle,
        _: u64,
        bytes: usize,
        peer: usize,
        _: StreamHandle,
    ) -> NcclAnswer {
        self.note(format!("recv {bytes} from {peer}"))
    }

    fn all_gather(
        &self,
        _: CommHandle,
        from: u64,
        to: u64,
        bytes: usize,
        _: StreamHandle,
    ) -> NcclAnswer {
        self.note(format!("gather {bytes}, own at {}", from - to))
    }

    fn all_reduce(&self, _: CommHandle, _: u64, _: u64, sum: Sum, _: StreamHandle) -> NcclAnswer {
        self.note(format!("reduce {} x {}", sum.elements, sum.dtype))
    }

    fn reduce_scatter(
        &self,
        _: CommHandle,
        _: u64,
        _: u64,
        sum: Sum,
        _: StreamHandle,
    ) -> NcclAnswer {
        self.note(format!("scatter {} x {}", sum.elements, sum.dtype))
    }

    fn finalize(&self, _: CommHandle) -> NcclAnswer {
        self.note("finalize".into())
    }

    fn destroy(&self, _: CommHandle) -> NcclAnswer {
        self.note("destroy".into())
    }

    fn abort(&self, _: CommHandle) -> NcclAnswer {
        self.note("abort".into())
    }
}

/// Rank 1 of 2.
fn meet(
    delay: usize,
) -> (Device, Arc<StandIn<Blank>>, Arc<Recorder>, Result<Communicator, CudaError>) {
    let (device, driver) = device(&[]);
    let nccl = Arc::new(Recorder { delay, ..Recorder::default() });
    let device = device.meeting_by(nccl.clone());
    let id = device.unique_id().unwrap();
    let made = Communicator::new(&device, 2, &id, 1, &|| delay == usize::MAX);
    (device, driver, nccl, made)
}

#[test]
fn a_communicator_is_waited_for_and_ends_with_the_others() {
    let (device, _, nccl, made) = meet(3);
    assert_eq!(nccl.calls(), ["init 1 of 2 by 7"]);
    assert_eq!(nccl.state.lock().unwrap().asked, 4, "until it was ready");
    let stream = Stream::new(&device).unwrap();
    let memory = device.allocate(512).unwrap();
    let made = made.unwrap();
    made.all_gather(&stream, &memory.at(256), &memory.at(0), 256).unwrap();
    assert_eq!(nccl.calls(), ["(", "gather 256, own at 256", ")"]);
    assert_eq!(nccl.state.lock().unwrap().asked, 4);
    drop(made);
    assert_eq!(nccl.calls(), ["finalize", "destroy"]);
}

#[test]
fn ranks_that_do_not_come_are_given_up() {
    let (_, _, nccl, made) = meet(usize::MAX);
    assert_eq!(made.unwrap_err(), CudaError::Aborted);
    assert_eq!(nccl.calls(), ["init 1 of 2 by 7", "abort"]);
}

#[test]
fn what_is_under_way_is_ended_by_another_thread() {
    let (device, _, nccl, made) = meet(2);
    let made = made.unwrap();
    nccl.state.lock().unwrap().fails = true;
    assert!(made.check().unwrap_err().to_string().contains("the network is down"));
    nccl.state.lock().unwrap().fails = false;
    let stream = Stream::new(&device).unwrap();
    let place = device.allocate(64).unwrap().at(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(5));
            made.abort();
        });
        let message = || [Message { peer: 0, place: place.clone(), bytes: 64 }];
        let error = loop {
            if let Err(error) = made.exchange(&stream, &message(), &[]) {
                break error;
            }
        };
        assert_eq!(error, CudaError::Aborted);
    });
    assert_eq!(made.check(), Err(CudaError::Aborted));
    let calls = nccl.calls();
    assert_eq!(calls.iter().filter(|call| **call == "abort").count(), 1);
    drop(made);
    assert_eq!(nccl.calls(), [""; 0], "it is gone");
}

#[test]
fn messages_are_within_memory_that_is_kept_until_the_stream_has_come_to_them() {
    let (device, driver, nccl, made) = meet(0);
    let made = made.unwrap();
    let stream = Stream::new(&device).unwrap();
    nccl.calls();
    let place = device.allocate(64).unwrap().at(32);
    let message = |bytes| Message { peer: 0, place: place.clone(), bytes };
    let error = made.exchange(&stream, &[message(33)], &[]).unwrap_err();
    assert_eq!(error, CudaError::Range { offset: 32, bytes: 33, size: 64 });
    made.exchange(&stream, &[message(0)], &[message(0)]).unwrap();
    assert_eq!(nccl.calls(), [""; 0], "nothing was sent");
    made.exchange(&stream, &[message(8)], &[message(0), message(32)]).unwrap();
    assert_eq!(nccl.calls(), ["(", "send 8 to 0", "recv 32 from 0", ")"]);
    drop(place);
    assert_eq!(driver.alive().len(), 1, "still in use");
    stream.synchronize().unwrap();
    assert_eq!(driver.alive(), []);
}
