//! Launches as data: what is packed, what is refused, what is read and written.

use ir::DType;

use super::standin::device;
use crate::{CudaError, Kernel, Launch, Param, Stream, Swizzle, TensorMap};

fn map() -> TensorMap {
    TensorMap {
        arg: 1,
        dtype: DType::Bf16,
        extents: vec![64, 100],
        strides: vec![128],
        boxes: vec![64, 8],
        swizzle: Swizzle::Bytes128,
    }
}

fn launch() -> Launch {
    Launch {
        symbol: "k_linear".into(),
        params: vec![
            Param::Pointer { arg: 2, align: 16 },
            Param::Map(map()),
            Param::Size(-3),
            Param::Pointer { arg: 0, align: 1 },
        ],
        grid: [132, 2, 1],
        block: 384,
        cluster: 2,
        shared_bytes: 200 << 10,
        dependent: true,
    }
}

#[test]
fn parameters_are_packed_in_order() {
    let (device, driver) = device(&[8, 128, 8, 8]);
    let stream = Stream::new(&device).unwrap();
    let memory = device.allocate(4096).unwrap();
    let kernel = Kernel::load(&device, b"\x7fELF", "k_linear").unwrap();
    let args = [memory.at(7), memory.at(256), memory.at(1024)];
    stream.launch(&kernel, &launch(), &args).unwrap();
    stream.synchronize().unwrap();
    let machine = driver.machine();
    let (shape, values) = &machine.launches[0];
    assert_eq!((shape.grid, shape.block, shape.cluster), ([132, 2, 1], 384, 2));
    assert_eq!((shape.shared_bytes, machine.shared), (200 << 10, 200 << 10));
    let word = |i: usize| u64::from_le_bytes(values[i][..8].try_into().unwrap());
    let base = memory.at(0).device();
    assert_eq!([word(0), word(1), word(3)], [base + 1024, base + 256, base + 7]);
    assert_eq!(word(2), (-3i64).cast_unsigned());
    assert_eq!(values.iter().map(Vec::len).collect::<Vec<_>>(), [8, 128, 8, 8]);
}

/// What a launch is refused for.
fn refused(change: impl Fn(&mut Launch), sizes: &[usize], args: usize) -> String {
    let (device, driver) = device(sizes);
    let stream = Stream::new(&device).unwrap();
    let memory = device.allocate(4096).unwrap();
    let kernel = Kernel::load(&device, b"\x7fELF", "k_linear").unwrap();
    let mut launch = launch();
    change(&mut launch);
    let args: Vec<_> = (0..args as u64).map(|i| memory.at(264 * i)).collect();
    let error = stream.launch(&kernel, &launch, &args).unwrap_err();
    stream.synchronize().unwrap();
    assert!(driver.machine().launches.is_empty());
    assert!(matches!(error, CudaError::Invalid { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn what_cannot_be_launched_says_why() {
    let sizes = [8, 128, 8, 8];
    let several = refused(
        |launch| {
            launch.grid = [133, 0, 1];
            launch.block = 2000;
            launch.shared_bytes = 1 << 20;
            let Param::Map(map) = &mut launch.params[1] else { unreachable!() };
            map.strides = vec![120];
            map.boxes[0] = 128;
        },
        &sizes,
        3,
    );
    for part in [
        "grid of 133 x 0 x 1",
        "block of 2000",
        "clusters of 2 in a grid of 133",
        "1048576 bytes of shared memory, 232448 at most",
        "strides [120]",
        "rows of 256 bytes",
    ] {
        assert!(several.contains(part), "{part}: {several}");
    }
    let few = refused(|_| (), &sizes, 2);
    assert!(few.contains("parameter 0 is argument 2, there are 2"), "{few}");
    let align = |launch: &mut Launch| launch.params[3] = Param::Pointer { arg: 1, align: 16 };
    let odd = refused(align, &sizes, 3);
    assert!(odd.contains("no multiple"), "{odd}");
    let other = refused(|_| (), &[8, 8], 3);
    assert!(other.contains("[8, 128, 8, 8] bytes, the kernel takes [8, 8]"), "{other}");
    let name = refused(|launch| launch.symbol = "k_other".into(), &sizes, 3);
    assert!(name.contains("the kernel is `k_linear`"), "{name}");
}

#[test]
fn launches_are_read_as_they_were_written() {
    let text = serde_json::to_string(&launch()).unwrap();
    assert_eq!(serde_json::from_str::<Launch>(&text).unwrap(), launch());
    let error = |from: &str, to: &str| {
        assert!(text.contains(from), "{text}");
        serde_json::from_str::<Launch>(&text.replace(from, to)).unwrap_err().to_string()
    };
    assert!(error("\"block\":384", "\"block\":-1").contains("-1"));
    assert!(error("\"cluster\"", "\"clusters\"").contains("unknown field `clusters`"));
    assert!(error("\"cluster\":2,", "").contains("missing field `cluster`"));
    assert!(error("bytes128", "bytes256").contains("bytes256"));
}
