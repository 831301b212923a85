//! Nothing is released, or written over, before the work that uses it is done.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use super::standin::{BYTES, Blank, device};
use crate::{
    CudaError, Device, Event, Kernel, Launch, Param, Stream,
    driver::Driver,
    standin::{StandIn, Used},
};

fn launch(params: u32) -> Launch {
    Launch {
        symbol: "k".into(),
        params: (0..params).map(|i| Param::Pointer { arg: i, align: 16 }).collect(),
        grid: [1; 3],
        block: 32,
        cluster: 1,
        shared_bytes: 0,
        dependent: false,
    }
}

fn is_module(used: &Used) -> bool {
    matches!(used, Used::Module(_))
}

fn assert_clean(driver: &StandIn<Blank>) {
    assert_eq!(driver.mistakes(), [""; 0]);
}

#[test]
fn memory_and_kernels_outlive_their_launches() {
    let (device, driver) = device(&[8]);
    let stream = Stream::new(&device).unwrap();
    {
        let memory = device.allocate(1024).unwrap();
        let kernel = Kernel::load(&device, b".version 8.0", "k").unwrap();
        stream.launch(&kernel, &launch(1), &[memory.at(512)]).unwrap();
    }
    assert_eq!(driver.alive().len(), 2, "still in use");
    stream.synchronize().unwrap();
    assert_eq!(driver.alive(), []);
    assert_clean(&driver);
}

#[test]
fn work_that_another_thread_gives_while_a_wait_ends_is_kept() {
    let (device, driver) = device(&[8]);
    let stream = Arc::new(Stream::new(&device).unwrap());
    let (given, on) = (stream.clone(), device.clone());
    driver.behind_wait(move || {
        let memory = on.allocate(64).unwrap();
        let kernel = Kernel::load(&on, b"\x7fELF", "k").unwrap();
        given.launch(&kernel, &launch(1), &[memory.at(0)]).unwrap();
    });
    stream.synchronize().unwrap();
    assert_eq!(driver.alive().len(), 2, "still in use");
    stream.synchronize().unwrap();
    assert_eq!(driver.alive(), []);
    assert_clean(&driver);
}

#[test]
fn threads_may_give_a_stream_work_that_others_wait_for() {
    let (device, driver) = device(&[]);
    let stream = Stream::new(&device).unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                stream.synchronize().unwrap();
            }
        });
        for _ in 0..2000 {
            stream.fill(&device.allocate(64).unwrap().at(0), 1, 64).unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
        waiting.join().unwrap();
    });
    stream.synchronize().unwrap();
    assert_eq!(driver.alive(), []);
    assert_clean(&driver);
}

#[test]
fn a_stream_ends_its_work_before_it_goes() {
    let (device, driver) = device(&[]);
    let stream = Stream::new(&device).unwrap();
    stream.fill(&device.allocate(64).unwrap().at(0), 1, 64).unwrap();
    drop(stream);
    assert_eq!(driver.alive(), []);
    assert_clean(&driver);
}

#[test]
fn graphs_keep_what_their_launches_use() {
    let (device, driver) = device(&[8]);
    let stream = Stream::new(&device).unwrap();
    let graph = {
        let memory = device.allocate(1024).unwrap();
        let kernel = Kernel::load(&device, b"\x7fELF", "k").unwrap();
        let twice = |stream: &Stream| {
            (0..2).try_for_each(|_| stream.launch(&kernel, &launch(1), &[memory.at(0)]))
        };
        stream.capture(twice).unwrap()
    };
    stream.synchronize().unwrap();
    assert_eq!(driver.alive().len(), 3, "the graph may be launched again");
    stream.launch_graph(&graph).unwrap();
    drop(graph);
    assert_eq!(driver.alive().len(), 3, "it is running");
    stream.synchronize().unwrap();
    assert_eq!(driver.alive(), []);
    assert_clean(&driver);
}

#[test]
fn graphs_do_not_keep_what_they_are_given() {
    let (device, driver) = device(&[8, 8]);
    let stream = Stream::new(&device).unwrap();
    let (arena, state) = (device.allocate(1024).unwrap(), device.allocate(1024).unwrap());
    let kernel = Kernel::load(&device, b"\x7fELF", "k").unwrap();
    let given = [state.at(64)];
    let args = [arena.at(0), state.at(128)];
    let graph = stream.capture_with(&given, |s| s.launch(&kernel, &launch(2), &args)).unwrap();
    drop((arena, args));
    stream.launch_graph_with(&graph, &given).unwrap();
    stream.synchronize().unwrap();
    // At other places, or none, it would compute on what it was recorded with.
    for wrong in [&[][..], &[state.at(0)], &[device.allocate(1024).unwrap().at(64)]] {
        let refused = stream.launch_graph_with(&graph, wrong);
        assert!(matches!(refused, Err(CudaError::Invalid { .. })), "{refused:?}");
    }
    let [place] = given.each_ref().map(crate::Address::downgrade);
    stream.launch_graph_with(&graph, &given).unwrap();
    drop((state, given));
    assert!(place.is_alive(), "it is running");
    stream.synchronize().unwrap();
    assert!(!place.is_alive());
    let memories = |used: &Used| matches!(used, Used::Memory(_));
    assert_eq!(driver.alive().into_iter().filter(memories).count(), 1, "the arena");
    assert!(!graph.takes(&[device.allocate(1024).unwrap().at(64)]), "later memory is another");
    assert_clean(&driver);
}

#[test]
fn a_capture_that_fails_leaves_nothing() {
    let (device, driver) = device(&[8]);
    let stream = Stream::new(&device).unwrap();
    let failed = stream.capture(|stream| {
        let kernel = Kernel::load(&device, b"\x7fELF", "k")?;
        stream.launch(&kernel, &launch(1), &[])
    });
    assert!(matches!(failed, Err(CudaError::Invalid { .. })), "{failed:?}");
    drop(stream);
    assert_eq!(driver.alive().into_iter().filter(is_module).count(), 0);
    assert_clean(&driver);
}

#[test]
fn staging_is_written_only_when_its_copy_is_done() {
    let (device, driver) = device(&[]);
    let stream = Stream::new(&device).unwrap();
    let memory = device.allocate(1000).unwrap();
    let mut staging = device.staging(64).unwrap();
    staging.upload(&stream, &memory.at(10), &[1; 900]).unwrap();
    assert_eq!(driver.counts().waits, 13, "15 copies by two halves");
    staging.download(&stream, &memory.at(10), &mut [0; 900]).unwrap();
    let long = staging.upload(&stream, &memory.at(200), &[1; 801]);
    assert_eq!(long, Err(CudaError::Range { offset: 200, bytes: 801, size: 1000 }));
    staging.upload(&stream, &memory.at(0), &[1; 128]).unwrap();
    drop(staging);
    drop(stream);
    assert_clean(&driver);
}

#[test]
fn pinned_memory_is_refused_while_graphs_may_copy_it() {
    let (device, driver) = device(&[]);
    let stream = Stream::new(&device).unwrap();
    let memory = device.allocate(100).unwrap();
    let mut pinned = device.pin(96).unwrap();
    pinned.write(32, &[7; 64]).unwrap();
    let graph = stream.capture(|stream| {
        stream.upload(&memory.at(36), (&pinned, 32), 64)?;
        stream.download((&pinned, 0), &memory.at(36), 32)
    });
    let graph = graph.unwrap();
    stream.synchronize().unwrap();
    assert_eq!(driver.counts().uploads, 0, "it was recorded");
    for replays in 1..=2 {
        pinned.write(64, &[replays; 32]).unwrap();
        stream.launch_graph(&graph).unwrap();
        assert_eq!(pinned.write(0, &[0; 1]), Err(CudaError::Busy));
        assert_eq!(pinned.read(0, &mut [0; 1]), Err(CudaError::Busy));
        Stream::new(&device).unwrap().synchronize().unwrap();
        assert_eq!(pinned.read(0, &mut [0; 1]), Err(CudaError::Busy), "another stream");
        stream.synchronize().unwrap();
        pinned.read(0, &mut [0; 32]).unwrap();
    }
    assert_eq!((driver.counts().uploads, driver.counts().downloads), (2, 2));
    let long = CudaError::Range { offset: 90, bytes: 7, size: 96 };
    assert_eq!(pinned.write(90, &[0; 7]), Err(long.clone()));
    assert_eq!(stream.upload(&memory.at(0), (&pinned, 90), 7), Err(long));
    drop((pinned, memory));
    stream.launch_graph(&graph).unwrap();
    drop(graph);
    assert_eq!(driver.alive().len(), 3, "it is running");
    stream.synchronize().unwrap();
    assert_eq!(driver.alive(), []);
    assert_clean(&driver);
}

#[test]
fn too_much_memory_is_refused_with_numbers() {
    let (device, driver) = device(&[]);
    let held = device.allocate(BYTES - 100).unwrap();
    let error = device.allocate(101).unwrap_err();
    assert_eq!(error, CudaError::Memory { needed: 101, free: 100, total: BYTES });
    assert!(error.to_string().contains("101 bytes of device memory are needed and 100 of"));
    drop(held);
    device.allocate(101).unwrap();
    assert_clean(&driver);
}

#[test]
fn a_lost_device_names_the_kernels_that_ran() {
    let (device, driver) = device(&[8]);
    let stream = Stream::new(&device).unwrap();
    let memory = device.allocate(64).unwrap();
    let kernel = Kernel::load(&device, b"\x7fELF", "k").unwrap();
    stream.launch(&kernel, &launch(1), &[memory.at(0)]).unwrap();
    driver.fail();
    let error = stream.synchronize().unwrap_err();
    assert!(error.is_fatal());
    assert!(error.to_string().contains("while it ran `k`"), "{error}");
}

/// The stand-in sees what it is there to see.
#[test]
fn mistakes_are_seen() {
    let seen = |what: &str, mistake: &dyn Fn(&Device, &StandIn<Blank>)| {
        let (device, driver) = device(&[8]);
        mistake(&device, &driver);
        let mistakes = driver.mistakes();
        assert!(mistakes.iter().any(|mistake| mistake.contains(what)), "{what}: {mistakes:?}");
    };
    seen("is released while a fill uses it", &|_, driver| {
        let (stream, memory) = (driver.create_stream().unwrap(), driver.allocate(64).unwrap());
        driver.fill(memory, 0, 64, stream).unwrap();
        driver.free(memory).unwrap();
    });
    seen("pinned memory is written while an upload uses it", &|device, driver| {
        let (stream, memory) = (Stream::new(device).unwrap(), device.allocate(64).unwrap());
        let pinned = driver.pin(64).unwrap();
        driver.upload(memory.at(0).device(), pinned, 0, 64, stream.handle()).unwrap();
        driver.write_pinned(pinned, 0, &[0; 64]);
    });
    seen("pinned memory is read while a graph uses it", &|_, driver| {
        let (stream, memory) = (driver.create_stream().unwrap(), driver.allocate(64).unwrap());
        let pinned = driver.pin(64).unwrap();
        driver.begin_capture(stream).unwrap();
        driver.download(pinned, 0, memory, 64, stream).unwrap();
        let graph = driver.end_capture(stream).unwrap();
        driver.launch_graph(graph, stream).unwrap();
        driver.read_pinned(pinned, 0, &mut [0; 64]);
    });
    seen("that nothing has written", &|_, driver| {
        let pinned = driver.pin(64).unwrap();
        driver.write_pinned(pinned, 0, &[0; 63]);
        driver.read_pinned(pinned, 0, &mut [0; 64]);
    });
    seen("a stream is waited for while work is recorded", &|_, driver| {
        let stream = driver.create_stream().unwrap();
        driver.begin_capture(stream).unwrap();
        driver.synchronize(stream).unwrap();
        driver.end_capture(stream).unwrap();
    });
    seen("are not allocated", &|_, driver| {
        let stream = driver.create_stream().unwrap();
        driver.fill(0x7000_0000, 0, 64, stream).unwrap();
    });
    seen("is released twice", &|_, driver| {
        let memory = driver.allocate(64).unwrap();
        driver.free(memory).unwrap();
        driver.free(memory).unwrap();
    });
}

/// On a machine with a device, bytes come back as they were sent.
#[test]
fn bytes_come_back_from_a_device() {
    let device = match Device::open(0) {
        Ok(device) => device,
        Err(CudaError::NoDriver | CudaError::NoDevice { .. }) => {
            println!("skipped: no device");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let stream = Stream::new(&device).unwrap();
    let memory = device.allocate(100_000).unwrap();
    let mut staging = device.staging(4096).unwrap();
    let sent: Vec<u8> = (0..50_000u32).map(|i| (i * 7 % 251) as u8).collect();
    staging.upload(&stream, &memory.at(3), &sent).unwrap();
    stream.copy(&memory.at(50_003), &memory.at(3), 40_000).unwrap();
    let done = Event::new(&device).unwrap();
    done.record(&stream).unwrap();
    done.synchronize().unwrap();
    let mut got = vec![0; 40_000];
    staging.download(&stream, &memory.at(50_003), &mut got).unwrap();
    assert_eq!(got, sent[..40_000]);
}
