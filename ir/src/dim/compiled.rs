//! Dimensions over numbered symbols, for evaluation many times a second.

use super::{Atom, Dim, DimError, Symbols};

/// A [`Dim`] whose symbols are positions in a slice of values.
///
/// ```
/// # use brolly_ir::{Bounds, Dim, Symbols};
/// let bounds = Bounds { lo: 1, hi: 64 };
/// let symbols = Symbols::from_iter([("T".into(), bounds), ("S".into(), bounds)]);
/// let size: Dim = "floor_div(T + 15, 16)*S".parse()?;
/// assert_eq!(size.compile(&symbols)?.eval(&[33, 2]), Some(6));
/// # Ok::<(), brolly_ir::DimError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CompiledDim(Form);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Form {
    Const(i64),
    Symbol(usize),
    Sum(Vec<(i64, Vec<Factor>)>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Factor {
    Symbol(usize),
    FloorDiv(Form, i64),
    Max(Form, Form),
    Min(Form, Form),
}

impl Dim {
    /// Numbers the symbols by their position in `symbols`.
    ///
    /// # Errors
    /// [`DimError::Unbound`] for a symbol that is not there.
    pub fn compile(&self, symbols: &Symbols) -> Result<CompiledDim, DimError> {
        Ok(CompiledDim(form(self, symbols)?))
    }
}

impl CompiledDim {
    /// The value for the given values of the symbols; `None` if it overflows.
    ///
    /// # Panics
    /// If there are fewer values than symbols.
    pub fn eval(&self, values: &[i64]) -> Option<i64> {
        self.0.eval(values)
    }

    /// The value, where this is a constant.
    pub fn as_const(&self) -> Option<i64> {
        match self.0 {
            Form::Const(value) => Some(value),
            _ => None,
        }
    }
}

fn form(dim: &Dim, symbols: &Symbols) -> Result<Form, DimError> {
    if let Some(value) = dim.as_const() {
        return Ok(Form::Const(value));
    }
    let index =
        |name: &str| symbols.get_index_of(name).ok_or_else(|| DimError::Unbound(name.into()));
    if let Some(symbol) = dim.as_symbol() {
        return Ok(Form::Symbol(index(symbol)?));
    }
    let factor = |atom: &Atom| {
        Ok(match atom {
            Atom::Symbol(name) => Factor::Symbol(index(name)?),
            Atom::FloorDiv(d, n) => Factor::FloorDiv(form(d, symbols)?, *n),
            Atom::Max(a, b) => Factor::Max(form(a, symbols)?, form(b, symbols)?),
            Atom::Min(a, b) => Factor::Min(form(a, symbols)?, form(b, symbols)?),
        })
    };
    let terms = dim.terms.iter().map(|(key, c)| {
        let factors: Result<Vec<Factor>, DimError> = key.iter().map(factor).collect();
        Ok((*c, factors?))
    });
    Ok(Form::Sum(terms.collect::<Result<_, DimError>>()?))
}

impl Form {
    fn eval(&self, values: &[i64]) -> Option<i64> {
        match self {
            Form::Const(value) => Some(*value),
            Form::Symbol(index) => Some(values[*index]),
            Form::Sum(terms) => terms.iter().try_fold(0i64, |sum, (c, factors)| {
                let product = factors.iter().try_fold(*c, |p, f| p.checked_mul(f.eval(values)?))?;
                sum.checked_add(product)
            }),
        }
    }
}

impl Factor {
    fn eval(&self, values: &[i64]) -> Option<i64> {
        Some(match self {
            Factor::Symbol(index) => values[*index],
            Factor::FloorDiv(d, n) => d.eval(values)?.div_euclid(*n),
            Factor::Max(a, b) => a.eval(values)?.max(b.eval(values)?),
            Factor::Min(a, b) => a.eval(values)?.min(b.eval(values)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::{Bounds, Dim, DimError, Env, Symbols};

    #[test]
    fn agrees_with_the_expression() {
        let bounds = Bounds { lo: 0, hi: 100 };
        let symbols = Symbols::from_iter([("A".into(), bounds), ("B".into(), bounds)]);
        for text in ["7", "B", "A*B - 3", "floor_div(A + 15, 16)*B*B", "max(A, min(B, 9)) + A"] {
            let dim: Dim = text.parse().unwrap();
            let compiled = dim.compile(&symbols).unwrap();
            for (a, b) in [(0, 0), (3, 40), (99, 1)] {
                let env = Env::from([("A".into(), a), ("B".into(), b)]);
                assert_eq!(compiled.eval(&[a, b]), Some(dim.eval(&env).unwrap()), "{text}");
            }
        }
        let square: Dim = "A*A".parse().unwrap();
        assert_eq!(square.compile(&symbols).unwrap().eval(&[i64::MAX, 0]), None);
        assert_eq!(Dim::symbol("C").compile(&symbols), Err(DimError::Unbound("C".into())));
    }
}
