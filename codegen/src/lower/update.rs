//! Updates of parameters and of an optimiser's state, in place: the operator's own expansion as one
//! elementwise loop, so that every state is read and written once.

use std::sync::Arc;

use ir::{Body, Builder, Graph, KernelSpec, Module, OpRef, Target};

use super::{Emitted, Lower, LowerError, cx::refuse, fused::Fused};
use crate::cuda::CudaKernel;

/// The family.
pub(super) struct Update;

impl Lower for Update {
    fn ops(&self) -> &'static [&'static str] {
        &["accumulate", "adamw_step", "lion_step", "sgd_step", "sgd_momentum_step"]
    }

    fn supports(&self, spec: &KernelSpec) -> Result<(), String> {
        let in_place = KernelSpec::in_place(spec.op);
        let differs = |&(result, operand): &(usize, usize)| {
            spec.operands.get(operand).and_then(Option::as_ref) != spec.results.get(result)
        };
        if in_place.iter().any(differs) {
            return Err("the states are updated in place, so layouts must agree".into());
        }
        Fused::LOOPS.supports(&as_loop(spec)?)
    }

    fn emit(&self, spec: &KernelSpec, target: &Target) -> Result<Emitted, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let spec = as_loop(spec).map_err(|reason| refuse(spec, reason))?;
        Fused::LOOPS.emit(&spec, target)
    }

    fn emit_cuda(&self, spec: &KernelSpec, target: &Target) -> Result<Vec<CudaKernel>, LowerError> {
        self.supports(spec).map_err(|reason| refuse(spec, reason))?;
        let spec = as_loop(spec).map_err(|reason| refuse(spec, reason))?;
        Fused::LOOPS.emit_cuda(&spec, target)
    }
}

/// The same specification with the expansion as its function.
fn as_loop(spec: &KernelSpec) -> Result<KernelSpec, String> {
    let body = Arc::new(expansion(spec)?);
    Ok(KernelSpec { body: Some(body), ..spec.clone() })
}

fn expansion(spec: &KernelSpec) -> Result<Graph, String> {
    let mut module = Module::new(spec.op);
    module.symbols = (*spec.symbols).clone();
    let mut b = Builder::new(&module, spec.op);
    let mut args = Vec::new();
    for (i, layout) in spec.operands.iter().enumerate() {
        let layout = layout.as_ref().ok_or_else(|| format!("operand {i} is missing"))?;
        args.push(Some(b.param(&i.to_string(), layout.ty.clone()).map_err(|e| e.to_string())?));
    }
    let Some(Body::Composite(expand)) = OpRef::find(spec.op).map(|op| op.body()) else {
        return Err("has no expansion".into());
    };
    let results = expand(&mut b, &spec.attrs, &args).map_err(|e| e.to_string())?;
    for (i, v) in results.into_iter().enumerate() {
        b.output(&i.to_string(), v);
    }
    Ok(b.finish())
}
