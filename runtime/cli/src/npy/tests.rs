//! Round trips, and refusals of what is not a `.npy` file.

use super::*;

fn file(name: &str) -> std::path::PathBuf {
    let dir = std::env::temp_dir().join(format!("brolly-npy-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir.join(name)
}

fn with_header(text: &str, values: &[u8]) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap().to_le_bytes();
    [b"\x93NUMPY\x01\x00", &length[..], text.as_bytes(), values].concat()
}

#[test]
fn every_type_and_rank_round_trips() {
    for dtype in DType::ALL {
        for shape in [&[][..], &[3], &[2, 1, 3], &[0, 4]] {
            let n = shape.iter().product::<usize>();
            let values = (0..n).map(|i| (i % 2) as i64);
            let tensor = Tensor::from_i64s(*dtype, shape, values);
            let path = file(&format!("round-{dtype}-{}.npy", shape.len()));
            write(&path, *dtype, shape, &tensor.to_bytes()).unwrap();
            assert_eq!(std::fs::read(&path).unwrap().len() % 64, (n * dtype.size()) % 64);
            let array = Array::open(&path).unwrap();
            assert_eq!(array.shape(), shape);
            assert_eq!(array.tensor(*dtype).unwrap(), tensor);
        }
    }
}

#[test]
fn what_numpy_writes_is_read() {
    // numpy.save of numpy.asfortranarray([[1, 2, 3], [4, 5, 6]], dtype=int16).
    let text = "{'descr': '<i2', 'fortran_order': True, 'shape': (2, 3), }     \n";
    let values = [1, 0, 4, 0, 2, 0, 5, 0, 3, 0, 6, 0];
    let path = file("numpy.npy");
    std::fs::write(&path, with_header(text, &values)).unwrap();
    let tensor = Array::open(&path).unwrap().tensor(DType::I16).unwrap();
    assert_eq!((tensor.shape(), tensor.to_i64s()), (&[2, 3][..], vec![1, 2, 3, 4, 5, 6]));
}

#[test]
fn nothing_is_cast() {
    let path = file("cast.npy");
    write(&path, DType::I64, &[2], &[0; 16]).unwrap();
    let error = Array::open(&path).unwrap().tensor(DType::I32).unwrap_err();
    assert!(error.contains("holds `<i8`") && error.contains("int32 is wanted"), "{error}");
    write(&path, DType::U8, &[1], &[2]).unwrap();
    let array = Array::open(&path).unwrap();
    assert!(array.tensor(DType::F8E4M3).is_ok() && array.tensor(DType::Bool).is_err());
    write(&path, DType::Bool, &[1], &[2]).unwrap();
    let error = Array::open(&path).unwrap().tensor(DType::Bool).unwrap_err();
    assert_eq!(error, "holds 2, which is outside of bool's 0..1");
}

#[test]
fn other_types_and_sizes_are_refused() {
    let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n";
    assert!(parse(&with_header(good, &[0; 4])).is_ok());
    let cases = [
        (with_header(good, &[0; 3]), "3 bytes of values"),
        (with_header(good, &[0; 5]), "5 bytes of values"),
        (with_header(&good.replace("<f4", ">f4"), &[0; 4]), "big-endian"),
        (with_header(&good.replace("<f4", "|O"), &[0; 4]), "numbers and bools"),
        (with_header(&good.replace("<f4", "<f3"), &[0; 3]), "numbers and bools"),
        (with_header(&good.replace("(1,)", "(4294967296, 4294967296)"), &[]), "overflows"),
    ];
    for (bytes, why) in cases {
        let error = parse(&bytes).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}
