//! The header of a `.npy` file: a Python dictionary literal with three known keys.

use std::fmt;

/// Element type, order and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Byte order, kind and size, as NumPy's `dtype.str`.
    pub(super) descr: String,
    /// Whether the first axis varies fastest.
    pub(super) fortran_order: bool,
    /// Extents.
    pub(super) shape: Vec<usize>,
}

impl Header {
    /// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
    ///
    /// # Errors
    /// What is wrong, as the rest of a sentence about the file.
    pub(super) fn parse(text: &str) -> Result<Header, String> {
        let mut p = Parser { rest: text };
        let (mut descr, mut order, mut shape) = (None, None, None);
        p.expect('{')?;
        while !p.eat('}') {
            let key = p.string()?;
            p.expect(':')?;
            let is_new = match key {
                "descr" => descr.replace(p.descr()?).is_none(),
                "fortran_order" => order.replace(p.bool()?).is_none(),
                "shape" => shape.replace(p.tuple()?).is_none(),
                other => return Err(format!("has a header with an unknown key `{other}`")),
            };
            if !is_new {
                return Err(format!("has a header that gives `{key}` twice"));
            }
            if !p.eat(',') {
                p.expect('}')?;
                break;
            }
        }
        p.end()?;
        let missing = |key: &str| format!("has a header without `{key}`");
        Ok(Header {
            descr: descr.ok_or_else(|| missing("descr"))?.to_owned(),
            fortran_order: order.ok_or_else(|| missing("fortran_order"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
        })
    }

    /// Bytes of all values; `None` where that overflows.
    pub(super) fn bytes(&self) -> Option<usize> {
        let size = self.descr.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().ok()?;
        self.shape.iter().try_fold(size, |n: usize, d| n.checked_mul(*d))
    }
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = if self.fortran_order { "True" } else { "False" };
        write!(f, "{{'descr': '{}', 'fortran_order': {order}, 'shape': (", self.descr)?;
        for (i, d) in self.shape.iter().enumerate() {
            write!(f, "{}{d}", if i > 0 { ", " } else { "" })?;
        }
        write!(f, "{}), }}", if self.shape.len() == 1 { "," } else { "" })
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn eat(&mut self, c: char) -> bool {
        self.rest = self.rest.trim_start();
        let Some(rest) = self.rest.strip_prefix(c) else { return false };
        self.rest = rest;
        true
    }

    fn expect(&mut self, c: char) -> Result<(), String> {
        if self.eat(c) { Ok(()) } else { Err(self.unexpected(&format!("`{c}`"))) }
    }

    fn end(&mut self) -> Result<(), String> {
        if self.rest.trim().is_empty() { Ok(()) } else { Err(self.unexpected("its end")) }
    }

    fn string(&mut self) -> Result<&'a str, String> {
        let quote = if self.eat('\'') {
            '\''
        } else if self.eat('"') {
            '"'
        } else {
            return Err(self.unexpected("a string"));
        };
        let (text, rest) =
            self.rest.split_once(quote).ok_or("has a header with a string that does not end")?;
        self.rest = rest;
        Ok(text)
    }

    fn descr(&mut self) -> Result<&'a str, String> {
        if self.eat('[') {
            return Err("holds structures; one plain type is read".into());
        }
        let text = self.string()?;
        let kind = text.trim_start_matches(['<', '|', '=', '>']);
        if text.starts_with('>') && !kind.ends_with('1') {
            return Err(format!("is big-endian (`{text}`); save it little-endian"));
        }
        let size = kind.get(1..).unwrap_or_default();
        let is_plain = kind.starts_with(['f', 'i', 'u', 'b', 'c'])
            && matches!(size, "1" | "2" | "4" | "8" | "16")
            && text.len() <= kind.len() + 1;
        if !is_plain {
            return Err(format!("holds `{text}`; numbers and bools are read"));
        }
        Ok(text.trim_start_matches('>'))
    }

    fn bool(&mut self) -> Result<bool, String> {
        self.rest = self.rest.trim_start();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(self.unexpected("True or False"))
    }

    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        let mut out = Vec::new();
        self.expect('(')?;
        while !self.eat(')') {
            self.rest = self.rest.trim_start();
            let digits =
                self.rest.len() - self.rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, rest) = self.rest.split_at(digits);
            let extent = number.parse().map_err(|_| self.unexpected("an extent"))?;
            // NumPy has no arrays of more axes.
            if out.len() == 64 {
                return Err("has more than 64 axes".into());
            }
            out.push(extent);
            // Python 2 wrote long integers with a suffix.
            self.rest = rest.strip_prefix('L').unwrap_or(rest);
            if !self.eat(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(out)
    }

    fn unexpected(&self, wanted: &str) -> String {
        let found: String = self.rest.chars().take(12).collect();
        format!("has a malformed header: {wanted} expected, found `{}`", found.escape_debug())
    }
}
