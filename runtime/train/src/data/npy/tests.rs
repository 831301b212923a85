//! Arrays as NumPy writes them, and files that only look like it.

use proptest::prelude::*;

use super::*;
use crate::data::testing::{Folder, npy};

fn open(folder: &Folder, bytes: &[u8], seq_len: usize) -> Result<Npy, DataError> {
    let path = folder.write("a.npy", bytes);
    Npy::open(&path, seq_len, 100, &Watch::nobody())
}

#[test]
fn rows_of_every_type_and_version_are_read() {
    let folder = Folder::new("npy-types");
    let tokens = [3i64, 1, 4, 1, 5, 99];
    for version in 1..=3 {
        for descr in ["<i4", "<i8", "<u2"] {
            let npy = open(&folder, &npy(version, descr, 2, 3, &tokens), 3).unwrap();
            assert_eq!(npy.rows(), 2);
            assert_eq!(npy.row(1).collect::<Vec<_>>(), [1, 5, 99]);
        }
    }
}

#[test]
fn tokens_that_the_model_lacks_are_named_by_row_and_column() {
    let folder = Folder::new("npy-vocabulary");
    let error = open(&folder, &npy(1, "<i4", 2, 3, &[0, 1, 2, 3, -4, 100]), 3).unwrap_err();
    let path = folder.path("a.npy");
    assert_eq!(
        error.to_string(),
        format!(
            "{0}: 2 rows cannot be used\n\
             {0}: row 1 holds -4 in column 1, and tokens are 0 to 99\n\
             {0}: row 1 holds 100 in column 2, and tokens are 0 to 99",
            path.display()
        )
    );
    let many = open(&folder, &npy(1, "<u2", 10, 3, &[500; 30]), 3).unwrap_err().to_string();
    assert_eq!(many.lines().count(), 22);
    assert!(many.ends_with("and 10 more"), "{many}");
}

#[test]
fn other_arrays_are_refused() {
    let folder = Folder::new("npy-refused");
    let good = npy(1, "<i4", 2, 3, &[1; 6]);
    let with = |from: &str, to: &str| {
        let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut bytes = good.clone();
        bytes.splice(at..at + from.len(), to.bytes());
        bytes
    };
    for (bytes, why) in [
        (
            good[..good.len() - 1].to_vec(),
            "has 23 bytes of values, and its shape [2, 3] of `<i4` needs 24",
        ),
        ([&good[..], &[0]].concat(), "has 25 bytes of values"),
        (with("<i4", ">i4"), "holds `>i4`"),
        (with("<i4", "<f4"), "holds `<f4`"),
        (with("(2, 3)", "(3, 2)"), "has rows of 2 tokens, and `data.seq_len` is 3"),
        (with("(2, 3)", "(6,  )"), "has 1 axes"),
        (with("False", "True "), "is in Fortran order"),
        (b"PK\x03\x04".to_vec(), "is not a .npy file"),
        (Vec::new(), "is not a .npy file"),
        (npy(1, "<i4", 0, 3, &[]), "has no rows"),
    ] {
        let error = open(&folder, &bytes, 3).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let missing = Npy::open(&folder.path("none.npy"), 3, 9, &Watch::nobody()).unwrap_err();
    assert!(missing.to_string().contains("none.npy: cannot be read"), "{missing}");
}

proptest! {
    /// Sizes are compared before anything is allocated for them.
    #[test]
    fn no_bytes_are_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = layout(&bytes, 3);
        let _ = layout(&[b"\x93NUMPY\x01\x00", &bytes[..]].concat(), 3);
    }

    #[test]
    fn no_altered_header_is_a_panic(at in 0..128usize, with: Vec<u8>, end in 0..140usize) {
        let mut bytes = npy(2, "<i4", 2, 3, &[1; 6]);
        let at = at.min(bytes.len());
        let stop = (at + with.len()).min(bytes.len());
        bytes.splice(at..stop, with);
        let _ = layout(&bytes, 3);
        let _ = layout(&bytes[..end.min(bytes.len())], 3);
    }

    #[test]
    fn huge_shapes_are_an_error(rows: u64, columns in 1..=u64::MAX) {
        let text = format!("{{'descr': '<i8', 'fortran_order': False, 'shape': ({rows}, {columns})}}");
        let length = u16::try_from(text.len()).unwrap().to_le_bytes();
        let bytes = [b"\x93NUMPY\x01\x00", &length[..], text.as_bytes()].concat();
        let seq_len = usize::try_from(columns).unwrap();
        prop_assert!(layout(&bytes, seq_len).is_err());
    }
}
