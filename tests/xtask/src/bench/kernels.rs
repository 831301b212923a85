//! Kernels, by the bench of the code generator.

use super::{Args, peers, report::Measured};
use crate::llvm::Llvm;
use crate::process::{Failure, Result, cargo, run_lines};
use serde_json::Value;

/// Every family, or those asked for.
pub(super) fn measure(args: &Args, llvm: &Llvm) -> Result<Vec<Measured>> {
    let mut bench = cargo(llvm, ["bench", "-p", "brolly-codegen", "--bench", "kernels", "--"]);
    bench.args(["--only", &args.only, "--threads", &args.threads().to_string()]);
    bench.args(args.quick.then_some("--quick")).args(args.native.then_some("--native"));
    if let Some(library) = args.openblas.clone().or_else(peers::openblas) {
        bench.arg("--openblas").arg(library);
    }
    let mut measured = Vec::new();
    let mut wrong = None;
    run_lines(&mut bench, |line| {
        if line.starts_with('{') {
            match parse(line) {
                Some(row) => {
                    eprintln!("{}", row.line());
                    measured.push(row);
                }
                None => wrong = Some(line.to_owned()),
            }
        }
    })?;
    match wrong {
        None => Ok(measured),
        Some(line) => Err(Failure::Explained(format!("the bench printed no case: {line}"))),
    }
}

/// A case as the bench prints it.
fn parse(line: &str) -> Option<Measured> {
    let value: Value = serde_json::from_str(line).ok()?;
    let quartiles = |key: &str| {
        let of = |i: usize| value[key].get(i)?.as_f64();
        Some([of(0)?, of(1)?, of(2)?])
    };
    let roofline = Some([quartiles("peak_flops")?[1], quartiles("read_bandwidth")?[1]]);
    Some(Measured {
        what: value["family"].as_str()?.to_owned(),
        case: value["case"].as_str()?.to_owned(),
        threads: usize::try_from(value["threads"].as_u64()?).ok()?,
        unit: value["unit"].as_str()?.to_owned(),
        speed: quartiles("speed")?,
        of_roofline: Some(quartiles("ratio")?),
        peers: quartiles("openblas").map(|q| ("OpenBLAS".to_owned(), q)).into_iter().collect(),
        roofline,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_bench_is_a_row() {
        let line = "{\"family\":\"gemm f32\",\"case\":\"2x3x4\",\"threads\":2,\"unit\":\"GFLOP/s\",\
                    \"speed\":[1,2,3],\"ratio\":[0.1,0.2,0.3],\"peak_flops\":[4,5,6],\
                    \"read_bandwidth\":[7,8,9],\"openblas\":[1.5,1.5,2]}";
        let row = parse(line).expect("it is a row");
        assert_eq!((row.threads, row.speed), (2, [1.0, 2.0, 3.0]));
        assert_eq!(row.roofline, Some([5.0, 8.0]));
        assert_eq!(row.peers, [("OpenBLAS".to_owned(), [1.5, 1.5, 2.0])]);
        assert!(parse(&line.replace("[1.5,1.5,2]", "null")).expect("a row").peers.is_empty());
        assert!(parse("{}").is_none());
    }
}
