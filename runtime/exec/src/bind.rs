//! Values of a program's symbols: checked against their bounds, or found from the shapes of inputs.

use ir::{Dim, Port, Program};

use crate::ExecError;

/// Values by the number of the symbol; `None` where not given.
pub(crate) type Values = Vec<Option<i64>>;

/// A program's symbols, with its name for errors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Symbolic<'a> {
    program: &'a Program,
}

impl<'a> Symbolic<'a> {
    pub(crate) fn new(program: &'a Program) -> Symbolic<'a> {
        Symbolic { program }
    }

    /// Numbers the given symbols.
    pub(crate) fn values(self, given: &[(&str, i64)]) -> Result<Values, ExecError> {
        let mut values = vec![None; self.program.symbols.len()];
        self.set(given, &mut values)?;
        Ok(values)
    }

    /// Sets the values of the given symbols.
    pub(crate) fn set(
        self,
        given: &[(&str, i64)],
        values: &mut [Option<i64>],
    ) -> Result<(), ExecError> {
        for (name, value) in given {
            let Some((index, _, bounds)) = self.program.symbols.get_full(*name) else {
                let known: Vec<_> = self.program.symbols.keys().map(|s| format!("`{s}`")).collect();
                let reason = format!("does not exist; there are {}", known.join(", "));
                return Err(self.symbol(name, reason));
            };
            if !(bounds.lo..=bounds.hi).contains(value) {
                let reason = format!(
                    "is {value}, outside of the bounds {}..{} that the model was compiled for",
                    bounds.lo, bounds.hi
                );
                return Err(self.symbol(name, reason));
            }
            values[index] = Some(*value);
        }
        Ok(())
    }

    /// Every value, in place of what is in `all`, or which symbol has none.
    pub(crate) fn complete(
        self,
        values: &[Option<i64>],
        all: &mut Vec<i64>,
    ) -> Result<(), ExecError> {
        all.clear();
        for (name, value) in self.program.symbols.keys().zip(values) {
            all.push(value.ok_or_else(|| self.symbol(name, "has no value"))?);
        }
        Ok(())
    }

    /// Values of the symbols for which the inputs have the given shapes.
    pub(crate) fn solve<'b>(
        self,
        shapes: impl IntoIterator<Item = (&'b Port, &'b [usize])>,
        bound: &Values,
    ) -> Result<Vec<i64>, ExecError> {
        let mut values = bound.clone();
        let mut compound = Vec::new();
        for (port, shape) in shapes {
            let mismatch = || self.shape_error(port, shape);
            if port.ty.rank() != shape.len() {
                return Err(mismatch());
            }
            for (dim, extent) in port.ty.shape.iter().zip(shape) {
                let extent = i64::try_from(*extent).map_err(|_| mismatch())?;
                match dim.as_symbol() {
                    Some(name) => {
                        let given = self.values(&[(name, extent)])?;
                        for (value, given) in values.iter_mut().zip(given) {
                            if value.is_some() && given.is_some() && *value != given {
                                return Err(mismatch());
                            }
                            *value = value.or(given);
                        }
                    }
                    None => compound.push((dim, extent, port, shape)),
                }
            }
        }
        // Such as `S + 1`: try each value that an otherwise unknown symbol may have, by bisection.
        for (dim, extent, _, _) in &compound {
            if let [symbol] = &dim.symbols()[..]
                && let Some((index, _, bounds)) = self.program.symbols.get_full(symbol)
                && values[index].is_none()
            {
                let at = |value: i64| self.eval(dim, &[(symbol, value)]);
                let (mut lo, mut hi) = (bounds.lo, bounds.hi);
                while lo < hi {
                    let middle = lo + (hi - lo) / 2;
                    if at(middle).is_some_and(|v| v >= *extent) {
                        hi = middle
                    } else {
                        lo = middle + 1
                    }
                }
                values[index] = Some(lo);
            }
        }
        let mut all = Vec::new();
        self.complete(&values, &mut all)?;
        for (dim, extent, port, shape) in compound {
            if dim.compile(&self.program.symbols).ok().and_then(|d| d.eval(&all)) != Some(extent) {
                return Err(self.shape_error(port, shape));
            }
        }
        Ok(all)
    }

    /// Bytes of a port, all of whose symbols must have values.
    pub(crate) fn port_bytes(
        self,
        role: &'static str,
        port: &Port,
        values: &[Option<i64>],
    ) -> Result<u64, ExecError> {
        let known: Vec<i64> = values.iter().map(|v| v.unwrap_or(0)).collect();
        let mut bytes = port.ty.dtype.size() as u64;
        for dim in &port.ty.shape {
            for symbol in dim.symbols() {
                let index = self.program.symbols.get_index_of(&symbol);
                if index.is_none_or(|i| values[i].is_none()) {
                    return Err(self.symbol(&symbol, "has no value"));
                }
            }
            let extent = dim.compile(&self.program.symbols).ok().and_then(|d| d.eval(&known));
            let extent = extent.and_then(|v| u64::try_from(v).ok());
            bytes = extent.and_then(|v| bytes.checked_mul(v)).ok_or_else(|| {
                self.port(role, &port.name, format!("of type {} is too large", port.ty))
            })?;
        }
        Ok(bytes)
    }

    /// A size; `None` if a symbol has no value.
    pub(crate) fn eval_with(self, dim: &Dim, values: &[Option<i64>]) -> Option<i64> {
        let known = |symbol| {
            let index = self.program.symbols.get_index_of(&symbol)?;
            values[index].map(|_| ())
        };
        dim.symbols().into_iter().map(known).collect::<Option<Vec<()>>>()?;
        let all: Vec<i64> = values.iter().map(|v| v.unwrap_or(0)).collect();
        dim.compile(&self.program.symbols).ok()?.eval(&all)
    }

    pub(crate) fn symbol(self, symbol: &str, reason: impl Into<String>) -> ExecError {
        let entry = self.program.name.clone();
        ExecError::Symbol { entry, symbol: symbol.into(), reason: reason.into() }
    }

    pub(crate) fn port(
        self,
        role: &'static str,
        name: &str,
        reason: impl Into<String>,
    ) -> ExecError {
        let entry = self.program.name.clone();
        ExecError::Port { entry, role, name: name.into(), reason: reason.into() }
    }

    fn shape_error(self, port: &Port, shape: &[usize]) -> ExecError {
        let reason = format!("has shape {shape:?}, not that of {}", port.ty);
        self.port("input", &port.name, reason)
    }

    fn eval(self, dim: &Dim, symbols: &[(&str, i64)]) -> Option<i64> {
        let env = symbols.iter().map(|(name, value)| ((*name).into(), *value)).collect();
        dim.eval(&env).ok()
    }
}

#[cfg(test)]
mod tests {
    use ir::{Bounds, DType, Place, Region, Symbols, TensorType};

    use super::*;

    fn port(name: &str, shape: &[&str]) -> Port {
        let shape = shape.iter().map(|d| d.parse::<Dim>().unwrap());
        let place = Place { region: Region::Arena, offset: Dim::from(0) };
        Port { name: name.into(), ty: TensorType::new(DType::F32, shape), place }
    }

    fn program(inputs: Vec<Port>) -> Program {
        let bounds = Bounds { lo: 1, hi: 50 };
        let symbols = ["T", "S"].map(|s| (s.into(), bounds));
        Program {
            name: "main".into(),
            symbols: Symbols::from_iter(symbols),
            inputs,
            ..Program::default()
        }
    }

    fn solve(inputs: &[&[&str]], shapes: &[&[usize]]) -> Result<Vec<i64>, String> {
        let ports = inputs.iter().enumerate().map(|(i, s)| port(&format!("x{i}"), s)).collect();
        let program = program(ports);
        let pairs = program.inputs.iter().zip(shapes.iter().copied());
        let none = vec![None; 2];
        Symbolic::new(&program).solve(pairs, &none).map_err(|e| e.to_string())
    }

    #[test]
    fn shapes_fix_symbols() {
        let inputs: &[&[&str]] = &[&["T", "3"], &["S + 1"], &["2*T + S"]];
        assert_eq!(solve(inputs, &[&[7, 3], &[3], &[16]]), Ok(vec![7, 2]));
        let wrong = |shapes: &[&[usize]]| solve(inputs, shapes).unwrap_err();
        assert_eq!(
            wrong(&[&[7, 4], &[3], &[16]]),
            "entry `main`: input `x0` has shape [7, 4], not that of f32[T, 3]"
        );
        assert!(wrong(&[&[7, 3], &[3], &[17]]).contains("`x2` has shape [17]"));
        assert!(wrong(&[&[7], &[3], &[16]]).contains("`x0` has shape [7]"));
        assert!(wrong(&[&[51, 3], &[3], &[16]]).contains("`T` is 51, outside of the bounds 1..50"));
        assert!(wrong(&[&[7, 3], &[90], &[16]]).contains("`x1` has shape [90]"));
        assert!(solve(&[&["T"]], &[&[4]]).unwrap_err().contains("symbol `S` has no value"));
        assert!(solve(&[&["T"], &["T", "S"]], &[&[4], &[5, 1]]).unwrap_err().contains("[5, 1]"));
    }

    #[test]
    fn values_are_checked() {
        let program = program(vec![]);
        let symbolic = Symbolic::new(&program);
        assert_eq!(symbolic.values(&[("S", 50)]).unwrap(), [None, Some(50)]);
        let error = symbolic.values(&[("X", 1)]).unwrap_err().to_string();
        assert_eq!(error, "entry `main`: symbol `X` does not exist; there are `T`, `S`");
        assert!(symbolic.values(&[("T", 0)]).is_err());
    }
}
