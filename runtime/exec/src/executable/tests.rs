//! Programs of two tiny kernels: results, states, symbols, errors, timing, memory.

mod graphs;

use ir::DType;

use super::{
    ports::{SEGMENTS, check_segments},
    *,
};
use crate::{Memory, testing};

fn bytes(values: &[f32]) -> &[u8] {
    bytemuck::cast_slice(values)
}

#[test]
fn a_program_runs_at_every_size_and_number_of_threads() {
    for threads in [1, 2, 3] {
        let model =
            testing::model(&format!("sizes-{threads}"), vec![testing::program("f", 7)], threads);
        let mut f = Executable::load(&model, "f", &[("M", 3)]).unwrap();
        let mut states = States::new(f.program(), &[("M", 3)]).unwrap();
        let mut total = 0;
        for n in [1, 64, 0, 33, 5, 60, 2] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            f.run(&mut states, &[("N", n)], &[("x", bytes(&x))]).unwrap();
            let want: Vec<f32> = x.iter().map(|x| x + 17.5).collect();
            assert_eq!(f.output::<f32>("y").unwrap(), want);
            total += n + 1;
            let memory = states.read("memory").unwrap().unwrap();
            assert_eq!(bytemuck::cast_slice::<u8, i64>(&memory), [0, 0, total]);
        }
    }
}

#[test]
fn rows_of_outputs_are_read_one_by_one() {
    let model = testing::model("rows", vec![testing::program("f", 1)], 1);
    let mut f = Executable::load(&model, "f", &[("M", 1)]).unwrap();
    let mut states = States::new(f.program(), &[("M", 1)]).unwrap();
    f.leave_outputs(&["y"]).unwrap();
    let error = |result: Result<Vec<Box<[f32]>>, ExecError>| result.unwrap_err().to_string();
    assert!(f.output_rows::<f32>("y", &[0]).is_err());
    f.run(&mut states, &[("N", 3)], &[("x", bytes(&[1.0, 2.0, 3.0]))]).unwrap();
    assert_eq!(f.output_rows::<f32>("y", &[2, 1]).unwrap().concat(), [5.5, 4.5]);
    assert!(f.output_rows::<f32>("y", &[]).unwrap().is_empty());
    let why = error(f.output_rows("y", &[2, 3]));
    assert!(why.contains("has 3 rows, and row 3 is asked for"), "{why}");
    assert!(error(f.output_rows("z", &[0])).contains("`z` does not exist"));
    assert!(f.output_rows::<f64>("y", &[0]).is_err());
    assert!(f.leave_outputs(&["z"]).is_err());
}

#[test]
fn entries_share_states_by_name() {
    let model =
        testing::model("share", vec![testing::program("f", 1), testing::program("g", 2)], 2);
    let bound = [("M", 1)];
    let mut f = Executable::load(&model, "f", &bound).unwrap();
    let mut g = Executable::load(&model, "g", &bound).unwrap();
    let mut states = States::new(f.program(), &bound).unwrap();
    f.run(&mut states, &[("N", 1)], &[("x", bytes(&[1.0]))]).unwrap();
    g.run(&mut states, &[("N", 1)], &[("x", bytes(&[1.0]))]).unwrap();
    assert_eq!(f.output::<f32>("y").unwrap(), [3.5]);
    assert_eq!(g.output::<f32>("y").unwrap(), [6.0]);
    assert_eq!(*states.read("memory").unwrap().unwrap(), 4i64.to_le_bytes());
}

#[test]
fn errors_name_entry_and_port() {
    let model = testing::model("errors", vec![testing::program("f", 1)], 1);
    let error = Executable::load(&model, "g", &[]).unwrap_err().to_string();
    assert!(error.ends_with("has no entry point `g`; it has `f`"), "{error}");
    let error = Executable::load(&model, "f", &[("M", 0)]).unwrap_err().to_string();
    assert!(error.contains("symbol `M` is 0, outside of the bounds 1..1000"), "{error}");

    let mut f = Executable::load(&model, "f", &[("M", 2)]).unwrap();
    let mut states = States::new(f.program(), &[("M", 2)]).unwrap();
    let two = [1.0, 2.0];
    let x = ("x", bytes(&two));
    let mut run = |states: &mut States, n: i64, inputs: &[(&str, &[u8])]| {
        f.run(states, &[("N", n)], inputs).map_err(|e| e.to_string())
    };
    let mut fails = |n, inputs: &[(&str, &[u8])]| run(&mut states, n, inputs).unwrap_err();
    assert!(fails(65, &[x]).contains("symbol `N` is 65, outside of the bounds 0..64"));
    assert_eq!(fails(3, &[x]), "entry `f`: input `x` has 8 bytes, which is not f32[N]");
    assert_eq!(fails(2, &[]), "entry `f`: input `x` of type f32[N] is missing");
    assert_eq!(fails(2, &[x, x]), "entry `f`: input `x` is given twice");
    assert_eq!(fails(2, &[x, ("z", &[])]), "entry `f`: input `z` does not exist; there are `x`");
    let error = run(&mut States::none(), 2, &[x]).unwrap_err();
    assert_eq!(error, "entry `f`: state `memory` is missing");
    let mut small = States::new(&testing::program("f", 1), &[("M", 1)]).unwrap();
    let error = run(&mut small, 2, &[x]).unwrap_err();
    assert_eq!(error, "entry `f`: state `memory` has 8 bytes instead of 16");
    let error = States::new(&testing::program("f", 1), &[]).unwrap_err().to_string();
    assert_eq!(error, "entry `f`: symbol `M` has no value");

    run(&mut states, 2, &[x]).unwrap();
    assert_eq!(f.output::<f32>("y").unwrap(), [3.5, 4.5]);
    assert_eq!(f.output::<u8>("y").unwrap().len(), 8);
    assert!(f.output::<f64>("y").unwrap_err().to_string().contains("elements of type f32"));
    assert!(f.output::<f32>("q").unwrap_err().to_string().contains("there are `y`"));
}

#[test]
fn tensors_fix_the_symbols() {
    let mut program = testing::program("f", 2);
    program.states.clear();
    program.launches.pop();
    let model = testing::model("tensors", vec![program], 2);
    let mut f = Executable::load(&model, "f", &[("M", 1)]).unwrap();
    let x = Tensor::from_f32s(&[3], &[1.0, 2.0, 3.0]);
    let outputs = f.run_tensors(&[("x", x.clone())]).unwrap();
    assert_eq!(outputs, [("y".into(), Tensor::from_f32s(&[3], &[6.0, 7.0, 8.0]))]);
    let mut fails = |inputs: &[(&str, Tensor)]| f.run_tensors(inputs).unwrap_err().to_string();
    assert!(fails(&[("x", x.reshape(&[1, 3]))]).contains("has shape [1, 3], not that of f32[N]"));
    assert!(fails(&[("x", x.cast(DType::F64))]).contains("elements of type f64, not f32"));
    assert!(fails(&[]).contains("`x` of type f32[N] is missing"));
    assert!(fails(&[("x", x.clone()), ("q", x.clone())]).contains("`q` does not exist"));
}

#[test]
fn segments_must_split_the_tokens() {
    let check = |tokens: usize, segments: &[i32]| {
        let tokens = vec![0i32; tokens];
        let tokens = ("tokens", bytemuck::cast_slice(&tokens));
        check_segments(&[tokens, (SEGMENTS, bytemuck::cast_slice(segments))])
    };
    assert_eq!(check(5, &[0, 2, 5]), Ok(()));
    assert_eq!(check(5, &[0, 5]), Ok(()));
    for wrong in [&[][..], &[0], &[0, 4], &[1, 5], &[0, 3, 3, 5], &[0, 6, 5], &[0, -1, 5]] {
        assert_eq!(check(5, wrong), Err("must rise from 0 to the 5 tokens".into()), "{wrong:?}");
    }
    assert_eq!(check_segments(&[("x", &[])]), Ok(()));
}

#[test]
fn launches_are_timed_and_traced_on_request() {
    let model = testing::model("trace", vec![testing::program("f", 2)], 2);
    let mut f = Executable::load(&model, "f", &[("M", 1)]).unwrap();
    let mut states = States::new(f.program(), &[("M", 1)]).unwrap();
    let x = [0.0; 8];
    let mut run =
        |f: &mut Executable| f.run(&mut states, &[("N", 8)], &[("x", bytes(&x))]).unwrap();
    run(&mut f);
    assert_eq!(f.launch_times().count(), 0);
    let trace = Trace::new();
    f.set_trace(Some(trace.clone()));
    run(&mut f);
    run(&mut f);
    let times: Vec<_> = f.launch_times().map(|t| (t.label.to_owned(), t.flops, t.bytes)).collect();
    let want = ["add.0", "add.1", "count"].map(|label| (label.to_owned(), 8, 800_000));
    assert_eq!(times, want);
    let mut json = Vec::new();
    trace.write(&mut json).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let events = json["traceEvents"].as_array().unwrap();
    assert_eq!(events.len(), 8);
    assert!(events.iter().all(|e| e["ph"] == "X" && e["dur"].as_f64() >= Some(0.0)));
}

#[test]
fn the_prediction_holds_what_is_touched() {
    let model = testing::model("memory", vec![testing::program("f", 2)], 2);
    let manifest = model.artifact().manifest();
    let predicted = Memory::predict(manifest, &["f"], 2, &[("M", 1000)]).unwrap();
    let mut f = Executable::load(&model, "f", &[("M", 1000)]).unwrap();
    let mut states = States::new(f.program(), &[("M", 1000)]).unwrap();
    let before = Memory::measure(&[&f], &states);
    assert_eq!((before.arena_bytes, before.state_bytes, before.scratch_bytes), (0, 0, 0));
    let x = [0.0; 64];
    f.run(&mut states, &[("N", 64)], &[("x", bytes(&x))]).unwrap();
    let measured = Memory::measure(&[&f], &states);
    assert_eq!((predicted.weight_bytes, measured.weight_bytes), (4096, 4096));
    assert_eq!(predicted.arena_bytes, 512);
    assert_eq!((measured.arena_bytes, measured.scratch_bytes), (512, 4096));
    assert_eq!((predicted.state_bytes, measured.state_bytes), (8000, 4096));
    assert!(measured.total() <= predicted.total());
    predicted.check_limit(model.device()).unwrap();
    let absurd = Memory { arena_bytes: 1 << 60, ..predicted };
    assert!(
        absurd
            .check_limit(model.device())
            .unwrap_err()
            .to_string()
            .contains("this process may use")
    );
}
