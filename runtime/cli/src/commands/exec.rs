//! `brolly exec`: any graph, once, on NumPy arrays.

use std::{collections::HashSet, path::Path, sync::Arc};

use ir::{Program, Tensor, artifact::Artifact};
use serde::Serialize;
use serde_json::json;
use serve::{Session, SessionOptions};

use crate::{
    args::{Exec, Input},
    context::Context,
    failure::{Failure, Result},
    npy::{self, Array},
    output,
    session::failure,
    source,
    table::Table,
};

/// A file that was written.
#[derive(Serialize)]
struct Written {
    name: String,
    file: String,
    dtype: &'static str,
    shape: Vec<usize>,
}

pub(crate) fn exec(args: &Exec, cx: &Context) -> Result<()> {
    let artifact = source::open(&args.source, cx)?;
    let program = entry(&artifact)?;
    let inputs = read_inputs(program, &args.inputs)?;
    let files = output_files(program)?;
    std::fs::create_dir_all(&args.output_dir).map_err(|e| {
        Failure::input(format!("--output-dir {}: cannot be made: {e}", args.output_dir.display()))
    })?;

    let options = SessionOptions {
        gpu: cx.gpu(),
        threads: Some(cx.threads()),
        trace: cx.trace().cloned(),
        ..SessionOptions::default()
    };
    let mut session = Session::of(artifact.clone(), options).map_err(failure)?;
    let outputs = session.run(&inputs).map_err(failure)?;

    let written = outputs.iter().zip(&files).map(|((name, tensor), file)| {
        write(&args.output_dir.join(file), tensor)?;
        Ok(Written {
            name: name.to_string(),
            file: args.output_dir.join(file).display().to_string(),
            dtype: tensor.dtype().name(),
            shape: tensor.shape().to_vec(),
        })
    });
    let written = written.collect::<Result<Vec<_>>>()?;
    if args.json {
        return output::json(&json!({ "outputs": written }));
    }
    let mut table = Table::new(&["output", "type", "file"]);
    for Written { name, file, dtype, shape } in written {
        table.row([name, format!("{dtype}{shape:?}"), file]);
    }
    output::print(&table.render())
}

/// The one entry point that takes arrays: `main`, or an encoder's only one.
fn entry(artifact: &Arc<Artifact>) -> Result<&Program> {
    let programs = &artifact.manifest().programs;
    let main = programs.iter().find(|p| p.name == "main").or(match programs.as_slice() {
        [one] => Some(one),
        _ => None,
    });
    main.filter(|p| p.states.is_empty()).ok_or_else(|| {
        Failure::input(format!(
            "{}: {} keeps keys and values between runs, so it is no graph to run once; use `brolly \
             score` or `brolly generate`",
            artifact.path().display(),
            artifact.manifest().model.architecture
        ))
    })
}

/// Every input as a tensor of its type; otherwise all that is wrong with them.
fn read_inputs<'a>(program: &'a Program, given: &'a [Input]) -> Result<Vec<(&'a str, Tensor)>> {
    let mut problems = Vec::new();
    let mut tensors = Vec::new();
    for (i, input) in given.iter().enumerate() {
        let Input { name, file } = input;
        if given[..i].iter().any(|other| other.name == *name) {
            problems.push(format!("--input {name}: is given more than once"));
            continue;
        }
        let Some(port) = program.inputs.iter().find(|port| *port.name == **name) else {
            let known: Vec<_> = program.inputs.iter().map(|p| format!("`{}`", p.name)).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            problems.push(format!("--input {name}: the graph has no such input; it has {known}"));
            continue;
        };
        let tensor = Array::open(file).and_then(|array| {
            let tensor = array.tensor(port.ty.dtype)?;
            match misfit(program, port, array.shape()) {
                Some(why) => Err(why),
                None => Ok(tensor),
            }
        });
        match tensor {
            Ok(tensor) => tensors.push((name.as_str(), tensor)),
            Err(why) => problems.push(format!("--input {name}: {}: {why}", file.display())),
        }
    }
    for port in &program.inputs {
        if !given.iter().any(|input| input.name == *port.name) {
            problems.push(format!("--input {}: is missing; it is {}", port.name, port.ty));
        }
    }
    if problems.is_empty() {
        return Ok(tensors);
    }
    Err(Failure::inputs(format!("{} problems with the inputs", problems.len()), problems))
}

/// Why a shape cannot be that of an input, seen by itself.
fn misfit(program: &Program, port: &ir::Port, shape: &[usize]) -> Option<String> {
    let wanted = &port.ty;
    if wanted.rank() != shape.len() {
        return Some(format!("has shape {shape:?}, and the input is {wanted}"));
    }
    wanted.shape.iter().zip(shape).find_map(|(dim, extent)| {
        let bounds = dim.bounds(&program.symbols);
        let fits = i64::try_from(*extent).is_ok_and(|v| (bounds.lo..=bounds.hi).contains(&v));
        (!fits).then(|| match dim.as_const() {
            Some(_) => format!("has shape {shape:?}, and the input is {wanted}"),
            None => format!(
                "has shape {shape:?}, and the input is {wanted} with `{dim}` compiled for {}..{} \
                 (--bound)",
                bounds.lo, bounds.hi
            ),
        })
    })
}

/// A file name for each output.
fn output_files(program: &Program) -> Result<Vec<String>> {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let mut taken = HashSet::new();
    let names = program.outputs.iter().map(|port| {
        let file = format!("{}.npy", port.name.chars().map(safe).collect::<String>());
        if taken.insert(file.clone()) {
            return Ok(file);
        }
        let name = &port.name;
        Err(Failure::input(format!("outputs `{name}` and another would both be written to {file}")))
    });
    names.collect()
}

fn write(path: &Path, tensor: &Tensor) -> Result<()> {
    let bytes = tensor.as_bytes().map_or_else(|| tensor.to_bytes().into(), std::borrow::Cow::from);
    npy::write(path, tensor.dtype(), tensor.shape(), &bytes)
        .map_err(|why| Failure::input(format!("{}: {why}", path.display())))
}

#[cfg(test)]
mod tests {
    use ir::{Bounds, DType, Dim, Place, Port, Region, Symbols, TensorType};

    use super::*;

    fn program() -> Program {
        let port = |name: &str, dtype, shape: &[&str]| Port {
            name: name.into(),
            ty: TensorType::new(dtype, shape.iter().map(|d| d.parse::<Dim>().unwrap())),
            place: Place { region: Region::Arena, offset: Dim::from(0) },
        };
        Program {
            symbols: Symbols::from_iter([("N".into(), Bounds { lo: 1, hi: 4 })]),
            inputs: vec![port("x", DType::F32, &["N", "2"]), port("ids", DType::I64, &["N"])],
            outputs: vec![port("a/b", DType::F32, &["N"]), port("c:0", DType::F32, &[])],
            ..Program::default()
        }
    }

    fn problems(given: &[Input]) -> String {
        let Err(Failure::Input(found)) = read_inputs(&program(), given) else {
            panic!("no problems")
        };
        found.each().join("\n")
    }

    #[test]
    fn every_problem_with_inputs_is_told() {
        let dir = std::env::temp_dir().join(format!("brolly-exec-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = |name: &str, dtype, shape: &[usize]| {
            let path = dir.join(format!("{name}.npy"));
            let bytes = shape.iter().product::<usize>() * DType::size(dtype);
            npy::write(&path, dtype, shape, &vec![0; bytes]).unwrap();
            path
        };
        let input = |name: &str, file| Input { name: name.into(), file };
        let good = file("x", DType::F32, &[3, 2]);
        let found = problems(&[
            input("x", good.clone()),
            input("x", good.clone()),
            input("y", good.clone()),
        ]);
        assert!(found.contains("x: is given more than once"), "{found}");
        assert!(found.contains("y: the graph has no such input; it has `x`, `ids`"), "{found}");
        assert!(found.contains("ids: is missing; it is i64[N]"), "{found}");

        let found = problems(&[
            input("x", file("long", DType::F32, &[5, 2])),
            input("ids", file("i32", DType::I32, &[3])),
        ]);
        assert!(found.contains("`N` compiled for 1..4"), "{found}");
        assert!(found.contains("holds `<i4`, and int64 is wanted"), "{found}");
        assert!(problems(&[input("x", dir.join("none.npy"))]).contains("cannot be read"));

        let program = program();
        let given = [input("ids", file("ids", DType::I64, &[3])), input("x", good)];
        assert_eq!(read_inputs(&program, &given).unwrap().len(), 2);
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn names_of_outputs_become_names_of_files() {
        assert_eq!(output_files(&program()).unwrap(), ["a_b.npy", "c_0.npy"]);
        let mut clash = program();
        clash.outputs[1].name = "a:b".into();
        assert!(output_files(&clash).is_err());
    }
}
