//! Loops behind a product on a GPU: the product's kernel computes them of its sums.

use std::{collections::BTreeMap, sync::Arc};

use ir::{Dim, Graph, KernelSpec, NodeId, Target, Value};

use super::{Code, Step};
use crate::{
    cuda::CudaKernel,
    emit::{Emitter, Val},
    kernels::gemm::{Elementwise, Gemm, Map},
    lower::{
        LowerError,
        cx::{operand_types, refuse},
        gemm, linear, matmul,
    },
    schedule::Tuning,
};

/// The product that a loop's body begins with, if it does.
pub(super) fn product(body: &Graph) -> Option<NodeId> {
    let is_product = |id: &NodeId| matches!(body.node(*id).op.name(), "matmul" | "linear");
    body.topo().into_iter().find(is_product)
}

/// Its operands, by their numbers among the body's.
fn operands(body: &Graph, product: NodeId) -> Result<Vec<Option<usize>>, String> {
    let params: BTreeMap<Value, usize> = body.param_values().zip(0..).collect();
    let number = |v: &Option<Value>| match v {
        Some(v) => params.get(v).copied().map(Some).ok_or("a product of what a loop computes"),
        None => Ok(None),
    };
    let numbers = body.node(product).inputs().iter().map(number);
    numbers.collect::<Result<_, _>>().map_err(str::to_owned)
}

/// The rest of a body.
#[derive(Debug)]
struct Behind {
    code: Code,
    /// Where the elements of each operand of the body are among those of the loop.
    places: Vec<usize>,
}

impl Elementwise for Behind {
    fn emit(&self, e: &Emitter, elements: &[Val]) -> Vec<Val> {
        let lanes = elements[0].lanes();
        let operand = |i: usize| elements[self.places[i]];
        self.code.emit_on(
            e,
            lanes,
            operand,
            |_| unreachable!("refused"),
            |_| unreachable!("refused"),
        )
    }
}

/// Kernels of a product and of the loop behind it.
pub(super) fn kernels(spec: &KernelSpec, target: &Target) -> Result<Vec<CudaKernel>, LowerError> {
    let gemm = mapped(spec).map_err(|reason| refuse(spec, reason))?;
    gemm::kernels(spec, &gemm, target, &Tuning::default())
}

fn mapped(spec: &KernelSpec) -> Result<Gemm, String> {
    let body = spec.body.as_ref().ok_or("no loop")?;
    let id = product(body).ok_or("no product")?;
    let numbers = operands(body, id)?;
    let node = body.node(id);
    let [y, rest @ ..] = &spec.results[..] else { return Err("no result".into()) };
    let inner = KernelSpec {
        op: node.op.name(),
        attrs: node.attrs.clone(),
        operands: numbers.iter().map(|i| i.and_then(|i| spec.operands[i].clone())).collect(),
        results: vec![y.clone()],
        body: None,
        symbols: spec.symbols.clone(),
    };
    let mut gemm = match inner.op {
        "matmul" => matmul::product(&inner)?,
        _ => linear::cuda::product(&inner)?,
    };
    if gemm.w_elem.bits() != 16 || gemm.bits.is_some() || gemm.a.elem != gemm.w_elem {
        return Err("loops are behind products of narrow operands".into());
    }
    let arg = |i: usize| u32::try_from(i).expect("few operands");
    let of = |i: u32| numbers[i as usize].map(arg).ok_or("an operand that is not there");
    (gemm.a.arg, gemm.w) = (of(gemm.a.arg)?, of(gemm.w)?);
    if let Some((bias, _)) = &mut gemm.bias {
        *bias = of(*bias)?;
    }
    if let Some(residual) = &mut gemm.residual {
        residual.arg = of(residual.arg)?;
    }
    let count = spec.operands.len();
    gemm.y.arg = arg(count);
    let others: Vec<usize> = (0..count).filter(|i| !numbers.contains(&Some(*i))).collect();
    let matrix = |i: usize, layout: &ir::Layout| {
        if layout.ty.shape != y.ty.shape {
            return Err(format!("{layout} beside a product of {y}"));
        }
        matmul::matrix(arg(i), layout).map(|(_, matrix)| matrix)
    };
    let operand = |i: &usize| matrix(*i, spec.operands[*i].as_ref().ok_or("no operand")?);
    let mut code = Code { rounds: true, ..Code::default() };
    code.read(body, y.ty.rank())?;
    let odd = |(step, _): &(Step, _)| matches!(step, Step::Size(_) | Step::Coordinate(_));
    if code.steps.iter().any(odd) {
        return Err("a loop that asks where it is".into());
    }
    let place = |i: usize| 1 + others.iter().position(|other| *other == i).unwrap_or_default();
    let mut places: Vec<usize> = (0..count).map(place).collect();
    places.push(0);
    gemm.map = Some(Map {
        operands: others.iter().map(operand).collect::<Result<_, _>>()?,
        results: (1..).zip(rest).map(|(i, r)| matrix(count + i, r)).collect::<Result<_, _>>()?,
        function: Arc::new(Behind { code, places }),
    });
    Ok(gemm)
}

/// Operations of a product and of the loop behind it.
pub(super) fn flops(spec: &KernelSpec, body: &Graph, id: NodeId) -> Dim {
    let types = operand_types(spec);
    let Ok(numbers) = operands(body, id) else { return Dim::from(0) };
    let args: Vec<_> = numbers.iter().map(|i| i.and_then(|i| types[i].clone())).collect();
    let node = body.node(id);
    let results = [spec.results[0].ty.clone()];
    node.op.flops(&node.attrs, &args, &results)
}
