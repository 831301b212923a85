//! Cases that are whole, and what is said of those that are not.

use std::{env, fs, process};

use cuda::Launch;
use ir::Attrs;

use super::*;
use crate::{Output, Same, Timing};

/// A folder of its own, which is removed with this.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = env::temp_dir().join(format!("gpu-check-{name}-{}", process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn case(folder: &Folder) -> Case {
    let file = folder.write_data(&[0; 24]).unwrap();
    let module = folder.write_kernel(".version 8.0", "ptx", || Ok(b"text".to_vec())).unwrap();
    let operand = |source| Some(Operand { dtype: DType::F32, shape: vec![2, 3], source });
    Case {
        name: "a case".into(),
        family: "family".into(),
        target: "sm_80".into(),
        module,
        launch: Launch {
            symbol: "k".into(),
            params: vec![
                Param::Pointer { arg: 0, align: 16 },
                Param::Pointer { arg: 3, align: 16 },
            ],
            grid: [1; 3],
            block: 32,
            cluster: 1,
            shared_bytes: 0,
            dependent: false,
        },
        operands: vec![operand(Source::File(file.clone())), None, operand(Source::Noise(1))],
        results: vec![Output { dtype: DType::F32, shape: vec![2, 3], in_place: None }],
        check: Check::Whole { files: vec![file], tolerance: 1e-5 },
        same: vec![Same { name: "all".into(), offset: 8, bytes: 16 }],
        timing: Some(Timing { flops: 6.0, bytes: 48.0, peer: "a peer".into() }),
    }
}

#[test]
fn cases_are_read_as_they_were_written() {
    let scratch = Scratch::new("whole");
    let folder = Folder::new(&scratch.0);
    let one = case(&folder);
    let rows = Check::Rows {
        op: "silu".into(),
        attrs: Attrs::none().with("n", 4i64).into(),
        rows: vec![0],
        panels: None,
        tolerance: 1e-3,
    };
    let other = Case { name: "other".into(), check: rows, ..one.clone() };
    folder.write_case(&other).unwrap();
    folder.write_case(&one).unwrap();
    folder.write_case(&one).unwrap();
    assert_eq!(folder.read().unwrap(), [one, other]);
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let scratch = Scratch::new("wrong");
    let folder = Folder::new(&scratch.0);
    let whole = case(&folder);
    let write = |name: &str, change: &dyn Fn(&mut Case)| {
        let mut case = whole.clone();
        case.name = name.into();
        change(&mut case);
        folder.write_case(&case).unwrap();
    };
    write("absent", &|case| case.launch.params[0] = Param::Pointer { arg: 1, align: 16 });
    write("beyond", &|case| case.launch.params[1] = Param::Pointer { arg: 4, align: 16 });
    write("kernel", &|case| case.module = "none.cubin".into());
    write("size", &|case| case.operands[0].as_mut().unwrap().shape = vec![2, 4]);
    write("huge", &|case| case.operands[2].as_mut().unwrap().shape = vec![usize::MAX, 4]);
    write("lanes", &|case| {
        case.operands[2].as_mut().unwrap().source = Source::Lanes { bits: 4, seed: 1 };
    });
    write("place", &|case| case.results[0].in_place = Some(1));
    write("bits", &|case| case.same[0].bytes = 17);
    write("files", &|case| case.check = Check::Whole { files: vec![], tolerance: 0.0 });
    fs::write(scratch.0.join("cases/family-json.json"), "{\"name\": 3}").unwrap();
    let error = folder.read().unwrap_err().to_string();
    for part in [
        "parameter 0 is argument 1, which there is not",
        "parameter 1 is argument 4, which there is not",
        "kernels/none.cubin",
        "has 24 bytes, not 32",
        "operand 2 is f32 [18446744073709551615, 4]",
        "Lanes",
        "result 0 does not fit the memory it is in",
        "bytes 8+17 of 24 are compared",
        "0 expected results, 1 results",
        "family-json.json: invalid type",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(error.lines().count(), 11, "{error}");
}

#[test]
fn an_empty_folder_is_an_error() {
    let scratch = Scratch::new("empty");
    let folder = Folder::new(&scratch.0);
    assert!(matches!(folder.read(), Err(CaseError::File { .. })));
    fs::create_dir(scratch.0.join("cases")).unwrap();
    assert!(folder.read().unwrap_err().to_string().contains("holds no cases"));
}
