//! Prints modules and functions.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write},
    sync::Arc,
};

use crate::{Attr, Graph, Module, Value};

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "module {:?}", self.name)?;
        for (name, b) in &self.symbols {
            writeln!(f, "symbol {name} in {}..{}", b.lo, b.hi)?;
        }
        for (name, ty) in &self.weights {
            writeln!(f, "weight {:?} : {ty}", &**name)?;
        }
        for name in &self.entries {
            writeln!(f, "entry {}", word(name))?;
        }
        let mut done = BTreeSet::new();
        for name in self.functions.keys() {
            print_after_callees(self, name, &mut done, f)?;
        }
        Ok(())
    }
}

/// Text defines functions before it calls them.
fn print_after_callees(
    module: &Module,
    name: &Arc<str>,
    done: &mut BTreeSet<Arc<str>>,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    if !done.insert(name.clone()) {
        return Ok(());
    }
    let Some(graph) = module.function(name) else { return Ok(()) };
    for id in graph.topo() {
        if let Some(Attr::Str(callee)) = graph.node(id).attrs.get("callee") {
            print_after_callees(module, callee, done, f)?;
        }
    }
    write!(f, "\n{graph}")
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: BTreeMap<Value, String> = BTreeMap::new();
        let mut params = String::new();
        for v in self.param_values() {
            let name = format!("%{}", word(self.param_name(v.node)));
            write!(params, "{}{name}: {}", if params.is_empty() { "" } else { ", " }, self.ty(v))?;
            names.insert(v, name);
        }
        writeln!(f, "fn {}({params}) {{", word(&self.name))?;
        let mut next = 0;
        for id in self.topo() {
            let node = self.node(id);
            if node.op.name() == "param" {
                continue;
            }
            f.write_str("  ")?;
            for (port, _) in node.results().iter().enumerate() {
                let name = format!("%{next}");
                next += 1;
                write!(f, "{}{name}", if port > 0 { ", " } else { "" })?;
                names.insert(Value { node: id, port }, name);
            }
            write!(f, " = {}(", node.op.name())?;
            for (i, v) in node.inputs().iter().enumerate() {
                let name = v.as_ref().map_or("_", |v| &names[v]);
                write!(f, "{}{name}", if i > 0 { ", " } else { "" })?;
            }
            f.write_str(")")?;
            let mut open = false;
            for (name, value) in &node.attrs.0 {
                let spec = node.op.signature().attrs.iter().find(|s| s.name == &**name);
                if spec.and_then(|s| s.default).is_some_and(|d| d() == *value) {
                    continue;
                }
                write!(f, "{}{name} = {value}", if open { ", " } else { " {" })?;
                open = true;
            }
            f.write_str(if open { "} :" } else { " :" })?;
            for (i, r) in node.results().iter().enumerate() {
                write!(f, "{} {}", if i > 0 { "," } else { "" }, r.ty)?;
            }
            if !node.loc.is_empty() {
                write!(f, " @ {:?}", &*node.loc)?;
            }
            f.write_str("\n")?;
        }
        f.write_str("  return")?;
        for (i, (name, v)) in self.outputs.iter().enumerate() {
            write!(f, "{} {} = {}", if i > 0 { "," } else { "" }, word(name), names[v])?;
        }
        f.write_str("\n}\n")
    }
}

/// A name as it stands where it is one word that does not start with a digit, quoted elsewhere.
fn word(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
    if plain { name.into() } else { format!("{name:?}") }
}
