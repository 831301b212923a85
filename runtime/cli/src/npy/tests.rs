//! Round trips, and refusals of what is not a `.npy` file.

use super::*;

fn file(name: &str) -> std::path::PathBuf {
    let dir = std::env::temp_dir().join(format!("brolly-npy-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir.join(name)
}

fn with_header(version: u8, text: &str, values: &[u8]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend([version, 0]);
    let length = u32::try_from(text.len()).unwrap().to_le_bytes();
    out.extend(if version == 1 { &length[..2] } else { &length[..] });
    out.extend(text.as_bytes());
    out.extend(values);
    out
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
    // numpy.save of numpy.asfortranarray([[1, 2, 3], [4, 5, 6]], dtype=int16), and a version 2
    // file.
    let text = "{'descr': '<i2', 'fortran_order': True, 'shape': (2, 3), }     \n";
    let values = [1, 0, 4, 0, 2, 0, 5, 0, 3, 0, 6, 0];
    for version in [1, 2, 3] {
        let path = file(&format!("numpy-{version}.npy"));
        std::fs::write(&path, with_header(version, text, &values)).unwrap();
        let tensor = Array::open(&path).unwrap().tensor(DType::I16).unwrap();
        assert_eq!((tensor.shape(), tensor.to_i64s()), (&[2, 3][..], vec![1, 2, 3, 4, 5, 6]));
    }
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
fn what_is_no_npy_file_is_refused() {
    let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n";
    assert!(parse(&with_header(1, good, &[0; 4])).is_ok());
    let cases = [
        (with_header(1, good, &[0; 3]), "3 bytes of values"),
        (with_header(1, good, &[0; 5]), "5 bytes of values"),
        (with_header(1, &good.replace("<f4", ">f4"), &[0; 4]), "big-endian"),
        (with_header(1, &good.replace("<f4", "|O"), &[0; 4]), "numbers and bools"),
        (with_header(1, &good.replace("'<f4'", "[('a', '<f4')]"), &[0; 4]), "structures"),
        (with_header(1, &good.replace("'descr': '<f4', ", ""), &[]), "without `descr`"),
        (with_header(1, &good.replace("(1,)", "(1,), 'shape': (1,)"), &[]), "`shape` twice"),
        (with_header(1, &good.replace("(1,)", "(-1,)"), &[]), "an extent expected"),
        (with_header(1, &good.replace("(1,)", "(4294967296, 4294967296)"), &[]), "overflows"),
        (with_header(1, &good.replace("False", "0"), &[]), "True or False expected"),
        (with_header(4, good, &[]), "format version 4.0"),
        (b"PK\x03\x04".to_vec(), "not a .npy file"),
        (Vec::new(), "not a .npy file"),
    ];
    for (bytes, why) in cases {
        let error = parse(&bytes).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let whole = with_header(2, good, &[0; 4]);
    for end in 0..whole.len() {
        assert!(parse(&whole[..end]).is_err());
    }
    for at in 0..whole.len() {
        for byte in [0, b'\'', b'(', b'9', 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            let _ = parse(&bytes);
        }
    }
}
