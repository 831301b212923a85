//! Ranks on GPUs, each a thread with an emulated device: what these send each other has the bits
//! that collectives on the host give, the ranks train as on CPUs, and none waits for one that has
//! failed.

mod channels;
mod fabric;

use std::{
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use ::driver::{Codegen, CompileOptions, sums};
use exec::{
    Executable, Groups, Model, Route, States,
    collectives::{CollectiveError, Mesh, Options, World, run_threads},
};
use ir::{
    Bounds, Collective, CollectiveOp, CudaArch, DType, Dim, ModelInfo, ModelKind, Place, Port,
    Program, Region, Shard, Symbols, Target, Tensor, TensorType,
    artifact::{Artifact, Contents, Digest, write},
};

use cuda::{
    driver::{Answer, Driver as _},
    standin::{self, Ahead, Machine},
};

use self::fabric::{Emulated, Fabric};
use super::driver::{Driver, device, driver};
use crate::{support::scratch, train};

/// The most elements of a test's vector.
const MOST: i64 = 40_000;

/// A device for each rank, the drivers behind them, and what is between.
fn devices(ranks: usize, ahead: Ahead) -> (Vec<exec::Device>, Vec<Arc<Driver>>, Arc<Fabric>) {
    let fabric = Arc::new(Fabric::default());
    let one = |_| {
        let driver = Arc::new(driver(CudaArch::Sm80, ahead));
        let nccl = Arc::new(Emulated::new(fabric.clone(), driver.clone()));
        let device = cuda::Device::with(driver.clone()).meeting_by(nccl);
        (exec::Device::cuda(device, NonZeroUsize::new(1)).unwrap(), driver)
    };
    let (devices, drivers) = (0..ranks).map(one).unzip();
    (devices, drivers, fabric)
}

fn quiet() -> Options {
    let mut options = Options::default();
    options.report = Arc::new(|_| ());
    options
}

/// `sum` is the sum of all ranks' `x`, made in place of a copy of it; `all` what they gather of
/// their shards of the sum of `sum`.
fn program(dtype: DType, ranks: usize) -> Program {
    let bytes = MOST * i64::try_from(dtype.size()).unwrap();
    let at = |index: i64| Place { region: Region::Arena, offset: Dim::from(index * bytes) };
    let port = |name: &str, index: i64| Port {
        name: name.into(),
        ty: TensorType::new(dtype, [Dim::symbol("N")]),
        place: at(index),
    };
    let collective = |op: CollectiveOp, from: i64, to: i64, start: u32| Collective {
        op,
        axis: "data".into(),
        ranks: u32::try_from(ranks).unwrap(),
        dtype,
        elements: Dim::symbol("N"),
        input: at(from),
        output: at(to),
        start,
        end: 0,
        label: format!("{} {from} {to}", op.name()),
    };
    Program {
        name: "main".into(),
        symbols: Symbols::from_iter([
            ("N".into(), Bounds { lo: 0, hi: MOST }),
            (Shard::symbol("data").as_str().into(), Bounds { lo: 0, hi: 8 }),
        ]),
        inputs: vec![port("x", 0), port("copy", 1)],
        outputs: vec![port("sum", 1), port("apart", 2), port("all", 4)],
        collectives: vec![
            collective(CollectiveOp::AllReduce, 1, 1, 0),
            collective(CollectiveOp::AllReduce, 0, 2, 0),
            collective(CollectiveOp::ReduceScatter, 1, 3, 0),
            collective(CollectiveOp::AllGather, 3, 4, 0),
        ],
        arena_bytes: u64::try_from(5 * bytes).unwrap(),
        ..Program::default()
    }
}

fn artifact(dtype: DType, ranks: usize) -> Arc<Artifact> {
    store(&format!("sums-{dtype}-{ranks}"), vec![program(dtype, ranks)])
}

/// An artifact without weights, and with no code but that of sums.
fn store(name: &str, programs: Vec<Program>) -> Arc<Artifact> {
    let sums = sums(&programs);
    let specs: Vec<_> = sums.iter().map(|sum| sum.spec.clone()).collect();
    let codegen = Codegen::new(Target::sm_80()).for_gpus(&[Target::sm_80()]);
    let code = codegen.compile(&specs, &|_, _| ()).unwrap();
    let folds = sums.iter().zip(&code.kernels).map(|(sum, k)| sum.fold(k.clone())).collect();
    let contents = Contents {
        compiler: "test".into(),
        target: Target::sm_80(),
        model: ModelInfo {
            architecture: "Test".into(),
            kind: ModelKind::Graph,
            vocab_size: 0,
            hidden_size: 0,
            max_seq_len: 0,
            parameters: 0,
        },
        source_digest: Digest::default(),
        code: &code.image,
        modules: code.modules.clone(),
        random: None,
        text: serde_json::Value::Null,
        report: serde_json::Value::Null,
        programs,
        folds,
        weights: vec![],
    };
    let path = scratch().join(format!("{name}.brolly"));
    write(&path, contents, |_| Err::<Tensor, _>("no weights")).unwrap();
    Arc::new(Artifact::open(&path).unwrap())
}

/// Numbers of many sizes, so that the order of a sum shows.
fn numbers(dtype: DType, rank: usize, count: usize) -> Vec<u8> {
    let number = |i: usize| {
        let seed = (i * 7919 + rank * 104_729 + 13) % 10_007;
        let size = [1e-3f32, 1.0, 300.0, 1e5][(i + rank) % 4];
        (seed as f32 / 5000.0 - 1.0) * size
    };
    let values: Vec<f32> = (0..count).map(number).collect();
    Tensor::from_f32s(&[count], &values).cast(dtype).to_bytes()
}

/// A rank of a test, ready to run.
fn load(
    artifact: &Arc<Artifact>,
    world: &World,
    device: &exec::Device,
    route: Route,
) -> Result<(Executable, Option<String>), CollectiveError> {
    let mut groups = Groups::new(world, &Mesh::new(&[("data", world.ranks())])?)?;
    let by_host = groups.link(device, route).unwrap();
    let model = Model::load(artifact.clone(), device.clone()).unwrap();
    let rank = i64::try_from(world.rank()).unwrap();
    let mut main = Executable::load(&model, "main", &[(&Shard::symbol("data"), rank)]).unwrap();
    main.join(&groups).unwrap();
    Ok((main, by_host))
}

fn run(main: &mut Executable, dtype: DType, count: usize, rank: usize) -> Result<(), String> {
    let x = numbers(dtype, rank, count);
    let symbols = [("N", i64::try_from(count).unwrap())];
    let run = main.run(&mut States::none(), &symbols, &[("x", &x), ("copy", &x)]);
    run.map_err(|error| error.to_string())
}

/// What rank 0 has after runs of these sizes; all ranks have the same.
fn outputs(
    artifact: &Arc<Artifact>,
    (dtype, ranks): (DType, usize),
    (route, ahead): (Route, Ahead),
    counts: &[usize],
) -> Vec<Vec<u8>> {
    let (devices, drivers, fabric) = devices(ranks, ahead);
    let results = run_threads(ranks, &quiet(), |world| {
        let (mut main, by_host) = load(artifact, world, &devices[world.rank()], route)?;
        assert_eq!(by_host, None);
        let mut outputs = Vec::new();
        for count in counts {
            run(&mut main, dtype, *count, world.rank()).unwrap();
            for name in ["sum", "apart", "all"] {
                outputs.push(main.output::<u8>(name).unwrap().to_vec());
            }
        }
        Ok::<_, CollectiveError>(outputs)
    });
    let results: Vec<_> = results.into_iter().map(Result::unwrap).collect();
    assert!(results.iter().all(|other| *other == results[0]), "ranks have different results");
    assert_eq!(fabric.faults(), [""; 0]);
    let has_met = drivers.iter().all(|driver| driver.counts().meetings > 0);
    assert_eq!(has_met, route != Route::Host, "{route:?}");
    results.into_iter().next().unwrap()
}

#[test]
fn devices_add_in_the_order_of_the_ranks() {
    // Of one rank alone, in odd parts, in steps of the kernel, short and long.
    let counts = [1, 5, 48, 0, 1000, 9_999, 40_000];
    for (dtype, ranks) in [(DType::F32, 2), (DType::F32, 3), (DType::Bf16, 3), (DType::F16, 2)] {
        let artifact = artifact(dtype, ranks);
        let host = (Route::Host, Ahead::First);
        let want = outputs(&artifact, (dtype, ranks), host, &counts);
        for ahead in [Ahead::First, Ahead::Last] {
            let got = outputs(&artifact, (dtype, ranks), (Route::Nccl, ahead), &counts);
            assert!(got == want, "{dtype} over {ranks} ranks, {ahead:?}");
        }
        assert_eq!(want[0], want[1]);
        if dtype == DType::F32 {
            let first =
                |rank| f32::from_ne_bytes(numbers(dtype, rank, 5)[16..].try_into().unwrap());
            let sum = (1..ranks).fold(first(0), |sum, rank| sum + first(rank));
            assert_eq!(want[3][16..], sum.to_ne_bytes());
        }
    }
}

#[test]
fn nccl_adds_only_where_it_is_asked_to() {
    let (dtype, ranks, counts) = (DType::F32, 3, [999, 1000]);
    let artifact = artifact(dtype, ranks);
    let exact = outputs(&artifact, (dtype, ranks), (Route::Nccl, Ahead::First), &counts);
    let fast = outputs(&artifact, (dtype, ranks), (Route::NcclSums, Ahead::First), &counts);
    assert!(exact != fast, "the other order of a sum shows");
    let numbers = |bytes: &[u8]| -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()
    };
    for (exact, fast) in exact.iter().zip(&fast) {
        for (exact, fast) in numbers(exact).into_iter().zip(numbers(fast)) {
            assert!((exact - fast).abs() <= 0.5, "{exact} and {fast}");
        }
    }
}

/// What every rank of a failing run says, and after how long.
fn failures(
    body: impl Fn(&World, &mut Executable) -> Result<(), String> + Sync,
) -> (Vec<String>, Duration) {
    static ARTIFACT: OnceLock<Arc<Artifact>> = OnceLock::new();
    let artifact = ARTIFACT.get_or_init(|| artifact(DType::F32, 2));
    let (devices, ..) = devices(2, Ahead::First);
    let failed = Mutex::new(vec![String::new(); 2]);
    let begun = Instant::now();
    run_threads(2, &quiet(), |world| {
        let (mut main, _) = load(artifact, world, &devices[world.rank()], Route::Auto)?;
        let result = run(&mut main, DType::F32, 100, world.rank());
        result.and_then(|()| body(world, &mut main)).map_err(|why| {
            failed.lock().unwrap()[world.rank()] = why.clone();
            CollectiveError::Mesh(why)
        })
    });
    (failed.into_inner().unwrap(), begun.elapsed())
}

#[test]
fn a_device_waits_for_no_rank_that_has_failed() {
    let (said, took) = failures(|world, main| match world.rank() {
        0 => run(main, DType::F32, 100, 0),
        _ => Err("the disk is full".into()),
    });
    assert!(said[0].contains("rank 1 has failed"), "{said:?}");
    assert!(said[0].contains("the disk is full"), "{said:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn a_device_waits_for_no_rank_that_has_ended() {
    let (said, took) = failures(|world, main| match world.rank() {
        0 => run(main, DType::F32, 100, 0),
        _ => Ok(()),
    });
    assert!(said[0].contains("rank 1 has ended while others waited for it"), "{said:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn ranks_with_different_sizes_are_told() {
    let (said, took) =
        failures(|world, main| run(main, DType::F32, 100 + 50 * world.rank(), world.rank()));
    assert!(said.iter().any(|said| said.contains("came to another collective")), "{said:?}");
    assert!(said.iter().any(|said| said.contains("program(4 collectives")), "{said:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

/// On the way of the host each rank says why, or that another one lacks NCCL.
#[test]
fn without_nccl_collectives_go_by_way_of_the_host() {
    let artifact = artifact(DType::F32, 2);
    // These look for NCCL itself, which this machine may have: then its devices are no CUDA ones.
    if cuda::Device::with(device(CudaArch::Sm80).1).nccl().is_ok() {
        return;
    }
    let results = run_threads(2, &quiet(), |world| {
        let (plain, _) = device(CudaArch::Sm80);
        let device = exec::Device::cuda(plain, NonZeroUsize::new(1)).unwrap();
        let mut groups = Groups::new(world, &Mesh::new(&[("data", 2)])?)?;
        let asked = groups.link(&device, Route::Nccl).unwrap_err().to_string();
        let (mut main, by_host) = load(&artifact, world, &device, Route::Auto)?;
        run(&mut main, DType::F32, 100, world.rank()).unwrap();
        Ok::<_, CollectiveError>((asked, by_host.unwrap()))
    });
    for result in results {
        let (asked, by_host) = result.unwrap();
        assert!(asked.contains("collectives cannot go between the GPUs"), "{asked}");
        assert!(asked.contains("libnccl") && asked.contains("BROLLY_NCCL"), "{asked}");
        assert!(by_host.contains("libnccl"), "{by_host}");
    }
}

/// A moment of a device.
#[derive(Debug)]
struct Moment(Instant);

impl standin::Meeting for Moment {
    fn attempt(&self, _: &mut dyn Machine) -> Answer<bool> {
        Ok(self.0.elapsed() > Duration::from_millis(50))
    }

    fn places(&self) -> Vec<(u64, u64)> {
        Vec::new()
    }

    fn wait(&self) {
        thread::sleep(Duration::from_millis(2));
    }
}

/// Lets devices work also while nobody waits for them: another one may, whose rank is waited for.
fn working<R>(drivers: &[Arc<Driver>], body: impl FnOnce() -> R) -> R {
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for driver in drivers {
            scope.spawn(|| {
                let stream = driver.create_stream().unwrap();
                while !is_over.load(Relaxed) {
                    driver.meet(Arc::new(Moment(Instant::now())), stream);
                    driver.synchronize(stream).unwrap();
                }
                driver.destroy_stream(stream).unwrap();
            });
        }
        let _over = Over(&is_over);
        body()
    })
}

/// Products in parts, with sums of activations and of their gradients; and layers in stages, whose
/// devices hand each other activations and cotangents, and add up what the ends share.
#[test]
fn ranks_on_gpus_train_as_on_cpus() {
    let tensor = train::Ranks { pipeline: 1, data: 1, tensor: 2, zero: 0, steps: 2 };
    let stages = train::Ranks { pipeline: 2, tensor: 1, steps: 1, ..tensor };
    let cases = [("llama-even", tensor, Ahead::First), ("qwen3-mqa-tied", stages, Ahead::Last)];
    for (case, mesh, ahead) in cases {
        let cpus = || (0..2).map(|_| exec::Device::cpu(NonZeroUsize::new(1)).unwrap()).collect();
        let want = train::steps_of_ranks(case, mesh, |_| (), (cpus(), Route::Host));
        let on_gpu = |options: &mut CompileOptions| {
            options.target = Target::sm_80();
            options.gpus = vec![Target::sm_80()];
        };
        let (plain, ..) = devices(2, ahead);
        let by_host = train::steps_of_ranks(case, mesh, on_gpu, (plain, Route::Host));
        let (devices, drivers, fabric) = devices(2, ahead);
        let steps = || train::steps_of_ranks(case, mesh, on_gpu, (devices, Route::Auto));
        let got = if mesh.pipeline > 1 { working(&drivers, steps) } else { steps() };
        assert_eq!(got, by_host, "{mesh:?}: the route changes bits");
        for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
            let off = (got - want).abs() / want.abs();
            assert!(off <= 1e-4, "{mesh:?}: {got}, not {want}");
        }
        assert_eq!(fabric.faults(), [""; 0]);
        for driver in drivers {
            let counts = driver.counts();
            assert!(counts.replays > 0 || mesh.steps == 1, "{mesh:?}: {counts:?}");
            assert!(counts.meetings > 0, "{mesh:?}: {counts:?}");
        }
    }
}
