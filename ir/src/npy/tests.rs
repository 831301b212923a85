//! Round trips, and refusals of what is not a header.

use proptest::prelude::*;

use super::*;

fn file(version: u8, text: &str) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend([version, 0]);
    let length = u32::try_from(text.len()).unwrap().to_le_bytes();
    out.extend(if version == 1 { &length[..2] } else { &length[..] });
    out.extend(text.as_bytes());
    out
}

#[test]
fn what_numpy_writes_is_read() {
    let text = "{'descr': '<i2', 'fortran_order': True, 'shape': (2, 3), }     \n";
    let want = Header { descr: "<i2".into(), fortran_order: true, shape: vec![2, 3] };
    for version in [1, 2, 3] {
        let bytes = file(version, text);
        assert_eq!(Header::read(&bytes), Ok((want.clone(), bytes.len())));
    }
}

#[test]
fn what_is_no_header_is_refused() {
    let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n";
    let cases = [
        (file(1, &good.replace("'<f4'", "[('a', '<f4')]")), "structures"),
        (file(1, &good.replace("'descr': '<f4', ", "")), "without `descr`"),
        (file(1, &good.replace("(1,)", "(1,), 'shape': (1,)")), "`shape` twice"),
        (file(1, &good.replace("(1,)", "(-1,)")), "an extent expected"),
        (file(1, &good.replace("False", "0")), "True or False expected"),
        (file(1, &good.replace("descr", "colour")), "unknown key `colour`"),
        (file(4, good), "format version 4.0"),
        (b"PK\x03\x04".to_vec(), "not a .npy file"),
        (Vec::new(), "not a .npy file"),
    ];
    for (bytes, why) in cases {
        let error = Header::read(&bytes).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let whole = file(2, good);
    for end in 0..whole.len() {
        assert!(Header::read(&whole[..end]).is_err());
    }
}

#[test]
fn sizes_are_compared_without_overflow() {
    let header = |shape: &[usize]| Header {
        descr: "<f4".into(),
        fortran_order: false,
        shape: shape.to_vec(),
    };
    assert_eq!(header(&[2, 3]).check_values(4, 24), Ok(()));
    let short = header(&[2, 3]).check_values(4, 23).unwrap_err();
    assert_eq!(short, "has 23 bytes of values, and its shape [2, 3] of `<f4` needs 24");
    let huge = header(&[1 << 32, 1 << 32]).check_values(4, 24).unwrap_err();
    assert!(huge.contains("overflows"), "{huge}");
}

proptest! {
    #[test]
    fn headers_round_trip(
        descr in "[<|][fiub][1248]",
        fortran_order: bool,
        shape in prop::collection::vec(0..1000usize, 0..9),
    ) {
        let header = Header { descr, fortran_order, shape };
        let bytes = header.preamble();
        prop_assert_eq!(bytes.len() % 64, 0);
        let at = bytes.len();
        prop_assert_eq!(Header::read(&bytes), Ok((header, at)));
    }

    #[test]
    fn no_bytes_are_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Header::read(&bytes);
        let _ = Header::read(&[b"\x93NUMPY\x01\x00", &bytes[..]].concat());
    }

    #[test]
    fn no_altered_header_is_a_panic(at in 0..128usize, with: Vec<u8>, end in 0..140usize) {
        let text = "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 3), }\n";
        let mut bytes = file(2, text);
        let at = at.min(bytes.len());
        let stop = (at + with.len()).min(bytes.len());
        bytes.splice(at..stop, with);
        let _ = Header::read(&bytes);
        let _ = Header::read(&bytes[..end.min(bytes.len())]);
    }
}
