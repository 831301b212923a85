//! The way back through a joint graph: cotangents of results become cotangents of operands.

use std::{collections::BTreeSet, sync::Arc};

use ir::{Body, Expand, Node, NodeId, OpError, Value, Vjp, VjpCx, VjpRule};

use super::{
    activity::types,
    cut::Residual,
    forms::Form,
    joint::{Target, Walk},
};
use crate::PassError;

impl Walk<'_> {
    /// Walks nodes, which are in an order in which operands precede their readers, from the last.
    pub(super) fn backward(&mut self, nodes: &[NodeId]) {
        for id in nodes.iter().rev() {
            if let Err(why) = self.pull(*id) {
                let node = self.b.graph().node(*id);
                let loc = match &*node.loc {
                    "" => String::new(),
                    loc => format!(" (node `{loc}`)"),
                };
                let message = format!("`{}`{loc} {why}", node.op.name());
                self.errors.push(PassError::new(self.function, message));
            }
        }
    }

    /// Adds to the cotangents of a node's operands what those of its results come to.
    fn pull(&mut self, id: NodeId) -> Result<(), OpError> {
        let node = self.b.graph().node(id).clone();
        let results: Vec<Value> =
            (0..node.results().len()).map(|port| Value { node: id, port }).collect();
        let cotangents: Vec<_> = results.iter().map(|v| self.cotangents.get(v).copied()).collect();
        let active = |v: &Option<Value>| v.is_some_and(|v| self.active.contains(&v));
        let needs: Vec<bool> = node.inputs().iter().map(active).collect();
        if cotangents.iter().all(Option::is_none) || !needs.contains(&true) {
            return Ok(());
        }
        self.b.at(&node.loc);
        if let Some(form) = self.calls.get(&id).cloned() {
            return self.pull_call(&node, &results, &cotangents, &form);
        }
        let vjp = node.op.vjp(&node.attrs, &types(self.b.graph(), &node));
        match (vjp, node.op.body()) {
            (Vjp::Zero | Vjp::Structural, _) => Ok(()),
            (Vjp::Refused(why), _) => Err(OpError::new(why)),
            (Vjp::Rule(rule), _) => self.pull_rule(rule, &node, &results, &cotangents, &needs),
            (Vjp::Replaced(expand) | Vjp::Recomputed(expand), _)
            | (Vjp::Expansion, Body::Composite(expand)) => {
                self.pull_expansion(expand, &node, &cotangents)
            }
            (Vjp::Expansion, _) => Err(OpError::new("has no expansion to differentiate")),
        }
    }

    fn pull_rule(
        &mut self,
        rule: VjpRule,
        node: &Node,
        results: &[Value],
        cotangents: &[Option<Value>],
        needs: &[bool],
    ) -> Result<(), OpError> {
        let (args, attrs) = (node.inputs(), &node.attrs);
        let mut cx = VjpCx { b: &mut self.b, attrs, args, results, cotangents, needs };
        let pulled = cx.pull(rule)?;
        for (arg, cotangent) in args.iter().zip(pulled) {
            if let (Some(arg), Some(cotangent)) = (arg, cotangent) {
                self.accumulate(*arg, cotangent)?;
            }
        }
        Ok(())
    }

    /// Computes an expansion again, and walks it.
    fn pull_expansion(
        &mut self,
        expand: Expand,
        node: &Node,
        cotangents: &[Option<Value>],
    ) -> Result<(), OpError> {
        let first = self.b.graph().bound();
        let results = expand(&mut self.b, &node.attrs, node.inputs())?;
        let nodes = self.b.graph().nodes_from(first);
        self.mark(first);
        for (v, cotangent) in results.iter().zip(cotangents) {
            if let Some(cotangent) = cotangent {
                self.accumulate(*v, *cotangent)?;
            }
        }
        self.backward(&nodes);
        Ok(())
    }

    fn pull_call(
        &mut self,
        node: &Node,
        results: &[Value],
        cotangents: &[Option<Value>],
        form: &Form,
    ) -> Result<(), OpError> {
        let mut args: Vec<Value> = Vec::new();
        for residual in &form.residuals {
            args.push(match residual {
                Residual::Param(i) => node.input(*i),
                Residual::Result(i) => results[*i],
            });
        }
        for i in &form.cotangents {
            args.push(match cotangents[*i] {
                Some(v) => v,
                None => {
                    let ty = self.b.ty(results[*i]).clone();
                    self.b.full(ty.dtype, 0.0, &ty.shape)?
                }
            });
        }
        if form.grads.is_empty() {
            return Ok(());
        }
        let grads = self.b.call(&form.backward, &args)?;
        for (target, v) in form.grads.iter().zip(grads) {
            match target {
                Target::Param(i) => self.accumulate(node.input(*i), v)?,
                Target::Weight(name) => match self.own_weights.get(name) {
                    Some(own) => self.accumulate(*own, v)?,
                    None => {
                        let sum = self.weight_cotangents.get(name).copied();
                        let sum = sum.map_or(Ok(v), |sum| self.b.add(sum, v))?;
                        self.weight_cotangents.insert(name.clone(), sum);
                    }
                },
            }
        }
        Ok(())
    }

    /// Adds to the cotangent of an active value.
    pub(super) fn accumulate(&mut self, v: Value, cotangent: Value) -> Result<(), OpError> {
        if self.active.contains(&v) {
            let sum = match self.cotangents.get(&v) {
                Some(sum) => self.b.add(*sum, cotangent)?,
                None => cotangent,
            };
            self.cotangents.insert(v, sum);
        }
        Ok(())
    }

    /// The gradients that there are, by parameter and then by weight.
    pub(super) fn grads(
        &self,
        needs: &[bool],
        weights: &BTreeSet<Arc<str>>,
    ) -> Vec<(Target, Value)> {
        let params = self.b.graph().param_values().zip(needs).enumerate();
        let by_param = params
            .filter(|(_, (_, needs))| **needs)
            .filter_map(|(i, (p, _))| self.cotangents.get(&p).map(|v| (Target::Param(i), *v)));
        let by_weight = weights.iter().filter_map(|name| {
            let own = self.own_weights.get(name).and_then(|v| self.cotangents.get(v));
            let v = own.or_else(|| self.weight_cotangents.get(name))?;
            Some((Target::Weight(name.clone()), *v))
        });
        by_param.chain(by_weight).collect()
    }
}
