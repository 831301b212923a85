//! Products that a library computes.

use cuda::{
    Address, Multiplier, Stream,
    cublaslt::{Matmul, Places},
};
use ir::{CudaMatmul, CudaMatrix, Dim};

use crate::{ExecError, executable::sizes::Sizes};

/// A product with its sizes by number.
#[derive(Debug)]
pub(super) struct Product {
    multiplier: Multiplier,
    /// All but sizes.
    matmul: Matmul,
    /// Rows, columns of the result, columns of the first factor.
    sizes: [usize; 3],
    x: Matrix,
    w: Matrix,
    bias: Option<usize>,
    residual: Option<Matrix>,
    y: Matrix,
    workspace: usize,
}

/// An argument, and the number of its stride.
#[derive(Clone, Copy, Debug)]
struct Matrix {
    arg: usize,
    stride: usize,
}

impl Product {
    pub(super) fn new(
        product: &CudaMatmul,
        multiplier: Multiplier,
        number: &mut impl FnMut(&Dim) -> Result<usize, ExecError>,
    ) -> Result<Product, ExecError> {
        let CudaMatmul { m, n, k, factors, results, transposed, .. } = product;
        let CudaMatmul { x, w, bias, residual, y, workspace, workspace_bytes, .. } = product;
        let sizes = [number(m)?, number(n)?, number(k)?];
        let mut matrix = |matrix: &CudaMatrix| {
            let stride = number(&matrix.stride)?;
            Ok::<_, ExecError>(Matrix { arg: matrix.arg as usize, stride })
        };
        let (x, w, y) = (matrix(x)?, matrix(w)?, matrix(y)?);
        let residual = residual.as_ref().map(matrix).transpose()?;
        let matmul = Matmul {
            m: 0,
            n: 0,
            k: 0,
            factors: *factors,
            results: *results,
            transposed: *transposed,
            x_stride: 0,
            w_stride: 0,
            residual_stride: None,
            y_stride: 0,
            has_bias: bias.is_some(),
            workspace_bytes: *workspace_bytes,
        };
        let (bias, workspace) = (bias.map(|arg| arg as usize), *workspace as usize);
        Ok(Product { multiplier, matmul, sizes, x, w, bias, residual, y, workspace })
    }

    /// Gives the product of arguments to a stream; whether there was anything to multiply.
    pub(super) fn launch(
        &self,
        stream: &Stream,
        sizes: &Sizes,
        args: &[Address],
    ) -> Result<bool, ExecError> {
        let count = |number: usize| sizes.count(number) as u64;
        let [m, n, k] = self.sizes.map(count);
        if m == 0 {
            return Ok(false);
        }
        let stride = |matrix: Matrix| count(matrix.stride);
        let matmul = Matmul {
            m,
            n,
            k,
            x_stride: stride(self.x),
            w_stride: stride(self.w),
            residual_stride: self.residual.map(stride),
            y_stride: stride(self.y),
            ..self.matmul.clone()
        };
        let arg = |number: usize| args[number].clone();
        let places = Places {
            x: arg(self.x.arg),
            w: arg(self.w.arg),
            bias: self.bias.map(arg),
            residual: self.residual.map(|matrix| arg(matrix.arg)),
            y: arg(self.y.arg),
            workspace: arg(self.workspace),
        };
        stream.multiply(&self.multiplier, &matmul, &places)?;
        Ok(true)
    }
}
