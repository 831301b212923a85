//! What stands for cuBLASLt on a stand-in's device.

use std::sync::{Arc, Mutex, PoisonError};

use ir::{DType, Tensor};

use super::{Machine, StandIn, Used, fault, work::Work, work::size};
use crate::{
    cublaslt::{AlgorithmHandle, CublasLt, LtAnswer, LtError, LtHandle, Matmul, Places},
    driver::{Answer, StreamHandle},
};

/// Bytes at both ends of the workspace that are spoilt.
const SPOILT: u64 = 4096;

/// Products that are computed when a stream comes to them, as the driver's other work is.
#[derive(Debug)]
pub struct Products<M: Machine> {
    driver: Arc<StandIn<M>>,
    chosen: Mutex<Vec<(AlgorithmHandle, Matmul, Places<u32>)>>,
    /// Products of so many rows have no algorithm.
    refuses: Option<u64>,
}

impl<M: Machine> Products<M> {
    /// Those of a driver's device.
    pub fn new(driver: Arc<StandIn<M>>) -> Products<M> {
        Products { driver, chosen: Mutex::default(), refuses: None }
    }

    /// The same, without an algorithm for so many rows.
    #[must_use]
    pub fn refusing(self, rows: u64) -> Products<M> {
        Products { refuses: Some(rows), ..self }
    }
}

fn wrong(call: &'static str, text: impl std::fmt::Display) -> LtError {
    LtError { call, name: "CUBLAS_STATUS_INVALID_VALUE".into(), text: text.to_string() }
}

impl<M: Machine> CublasLt for Products<M> {
    fn create(&self) -> LtAnswer<LtHandle> {
        self.driver.state().refuse_while_recording("cuBLASLt is made ready");
        Ok(LtHandle(1))
    }

    fn destroy(&self, _: LtHandle) -> LtAnswer {
        Ok(())
    }

    fn choose(
        &self,
        _: LtHandle,
        matmul: &Matmul,
        aligned: &Places<u32>,
    ) -> LtAnswer<Option<AlgorithmHandle>> {
        if self.refuses == Some(matmul.m) {
            return Ok(None);
        }
        let call = "cublasLtMatmulAlgoGetHeuristic";
        let is_half = matches!(matmul.factors, DType::Bf16 | DType::F16);
        if !is_half || ![DType::F32, matmul.factors].contains(&matmul.results) {
            let Matmul { factors, results, .. } = matmul;
            return Err(wrong(call, format!("{factors} in {results}")));
        }
        if [matmul.m, matmul.n, matmul.k].contains(&0) {
            return Err(wrong(call, "a product of nothing"));
        }
        let number = AlgorithmHandle(self.driver.state().create(Used::Algorithm));
        let mut chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        chosen.push((number, matmul.clone(), *aligned));
        Ok(Some(number))
    }

    fn release(&self, algorithm: AlgorithmHandle) -> LtAnswer {
        self.driver.state().release(Used::Algorithm(algorithm.0));
        Ok(())
    }

    fn multiply(
        &self,
        _: LtHandle,
        algorithm: AlgorithmHandle,
        places: &Places<u64>,
        stream: StreamHandle,
    ) -> LtAnswer {
        let chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, matmul, aligned) =
            chosen.iter().find(|(number, ..)| *number == algorithm).expect("an algorithm");
        let mut state = self.driver.state();
        let mut uses = [Used::Algorithm(algorithm.0)].into_iter().collect();
        let mut check = |at: u64, bytes: u64, aligned: u32| {
            if !at.is_multiple_of(u64::from(aligned)) {
                state.mistakes.push(format!("{at:#x} is no multiple of {aligned} bytes"));
            }
            let memory = state.memory(at, bytes);
            std::collections::BTreeSet::extend(&mut uses, memory);
        };
        let bytes = matmul.bytes();
        let Places { x, w, bias, residual, y, workspace } = places;
        check(*x, bytes.x, aligned.x);
        check(*w, bytes.w, aligned.w);
        check(*y, bytes.y, aligned.y);
        check(*workspace, bytes.workspace, aligned.workspace);
        for (at, bytes) in [(bias, bytes.bias), (residual, bytes.residual)] {
            if let (Some(at), Some(bytes)) = (at, bytes) {
                check(*at, bytes, 1);
            }
        }
        state.queue(stream, Work::Multiply { matmul: matmul.clone(), places: *places }, uses);
        Ok(())
    }
}

/// Computes a product, and leaves the workspace as nobody wants it.
pub(super) fn multiply<M: Machine>(
    machine: &mut M,
    matmul: &Matmul,
    places: &Places<u64>,
) -> Answer {
    let Matmul { m, n, k, factors, results, transposed, .. } = *matmul;
    let spoilt = matmul.workspace_bytes.min(SPOILT);
    let end = places.workspace + matmul.workspace_bytes - spoilt;
    for at in [places.workspace, end] {
        machine.write(at, &vec![0xff; size(spoilt)]);
    }
    let mut rows = |at: u64, count: u64, columns: u64, stride: u64, dtype: DType| {
        let bytes = dtype.size() as u64;
        let row = |row| machine.read(at + row * stride * bytes, size(columns * bytes));
        let all = (0..count).map(row).collect::<Answer<Vec<_>>>()?.concat();
        let written: Option<Vec<u8>> = all.into_iter().collect();
        let written = written.ok_or_else(|| fault("cublasLtMatmul", "nothing has written it"))?;
        let shape = [size(count), size(columns)];
        Ok::<_, crate::DriverError>(Tensor::from_bytes(dtype, &shape, written).to_f64s())
    };
    let x = rows(places.x, m, k, matmul.x_stride, factors)?;
    let [outer, inner] = if transposed { [n, k] } else { [k, n] };
    let w = rows(places.w, outer, inner, matmul.w_stride, factors)?;
    let bias = places.bias.map(|at| rows(at, 1, n, n, results)).transpose()?;
    let residual = places.residual.zip(matmul.residual_stride);
    let residual = residual.map(|(at, stride)| rows(at, m, n, stride, results)).transpose()?;
    let [m, n, k] = [m, n, k].map(size);
    for row in 0..m {
        let sums = (0..n).map(|column| {
            let factor = |i: usize| if transposed { w[column * k + i] } else { w[i * n + column] };
            let sum: f64 = (0..k).map(|i| x[row * k + i] * factor(i)).sum();
            let residual = residual.as_ref().map_or(0.0, |r| r[row * n + column]);
            sum + residual + bias.as_ref().map_or(0.0, |bias| bias[column])
        });
        let row_bytes = matmul.y_stride * results.size() as u64;
        let y = Tensor::from_f64s(results, &[n], sums);
        machine.write(places.y + row as u64 * row_bytes, &y.to_bytes());
    }
    Ok(())
}
