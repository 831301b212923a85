//! The header of NumPy's `.npy` files, one array a file, as NEP 1 and `numpy.lib.format` have it: a
//! Python dictionary literal with three known keys, behind a magic string, a version and a length.

use std::fmt;

/// What every file begins with.
const MAGIC: &[u8] = b"\x93NUMPY";

/// What a file says of its array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Byte order, kind and size, as NumPy's `dtype.str`.
    pub descr: String,
    /// Whether the first axis varies fastest.
    pub fortran_order: bool,
    /// Extents.
    pub shape: Vec<usize>,
}

impl Header {
    /// Reads a file's beginning; the header, and where the values begin.
    ///
    /// # Errors
    /// What is wrong, as the rest of a sentence about the file.
    pub fn read(bytes: &[u8]) -> Result<(Header, usize), String> {
        let Some(rest) = bytes.strip_prefix(MAGIC) else {
            return Err("is not a .npy file: it does not begin with \\x93NUMPY".into());
        };
        let early = || "ends within its header".to_owned();
        let (version, rest) = rest.split_first_chunk::<2>().ok_or_else(early)?;
        let (length, text) = match version {
            [1, 0] => {
                let (n, rest) = rest.split_first_chunk::<2>().ok_or_else(early)?;
                (usize::from(u16::from_le_bytes(*n)), rest)
            }
            [2 | 3, 0] => {
                let (n, rest) = rest.split_first_chunk::<4>().ok_or_else(early)?;
                (usize::try_from(u32::from_le_bytes(*n)).unwrap_or(usize::MAX), rest)
            }
            [major, minor] => {
                return Err(format!(
                    "has format version {major}.{minor}; 1.0, 2.0 and 3.0 are read"
                ));
            }
        };
        let values_at = bytes.len() - text.len() + length.min(text.len());
        let text = text.get(..length).ok_or_else(early)?;
        let text =
            std::str::from_utf8(text).map_err(|_| "has a header that is not text".to_owned())?;
        let fields = Fields::parse(text)?;
        let missing = |key: &str| format!("has a header without `{key}`");
        let header = Header {
            descr: fields.descr.ok_or_else(|| missing("descr"))?,
            fortran_order: fields.fortran_order.ok_or_else(|| missing("fortran_order"))?,
            shape: fields.shape.ok_or_else(|| missing("shape"))?,
        };
        Ok((header, values_at))
    }

    /// Checks that a file has as many bytes of values as its shape of elements of so many bytes.
    ///
    /// # Errors
    /// What is wrong, as the rest of a sentence about the file.
    pub fn check_values(&self, element_bytes: usize, values: usize) -> Result<(), String> {
        let Header { descr, shape, .. } = self;
        let wanted = shape.iter().try_fold(element_bytes, |n, d| n.checked_mul(*d));
        let wanted = wanted.ok_or_else(|| format!("has a shape {shape:?} whose size overflows"))?;
        match values == wanted {
            true => Ok(()),
            false => Err(format!(
                "has {values} bytes of values, and its shape {shape:?} of `{descr}` needs {wanted}"
            )),
        }
    }

    /// Everything before the values, padded to a multiple of 64 bytes.
    #[must_use]
    pub fn preamble(&self) -> Vec<u8> {
        let mut text = self.to_string();
        let short = MAGIC.len() + 2 + 2;
        let is_short = short + text.len() + 64 <= usize::from(u16::MAX);
        let prefix = if is_short { short } else { short + 2 };
        let padding = (prefix + text.len() + 1).next_multiple_of(64) - (prefix + text.len() + 1);
        text.push_str(&" ".repeat(padding));
        text.push('\n');
        let mut out = MAGIC.to_vec();
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes();
        if is_short {
            out.extend([1, 0]);
            out.extend(&length[..2]);
        } else {
            out.extend([2, 0]);
            out.extend(length);
        }
        out.extend(text.as_bytes());
        out
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

#[derive(Default)]
struct Fields {
    descr: Option<String>,
    fortran_order: Option<bool>,
    shape: Option<Vec<usize>>,
}

impl Fields {
    fn parse(text: &str) -> Result<Fields, String> {
        let mut p = Parser { rest: text };
        let mut fields = Fields::default();
        p.expect('{')?;
        while !p.eat('}') {
            let key = p.string()?;
            p.expect(':')?;
            let is_new = match key {
                "descr" => fields.descr.replace(p.string()?.to_owned()).is_none(),
                "fortran_order" => fields.fortran_order.replace(p.bool()?).is_none(),
                "shape" => fields.shape.replace(p.tuple()?).is_none(),
                other => {
                    let key: String = other.chars().take(32).collect();
                    return Err(format!("has a header with an unknown key `{key}`"));
                }
            };
            if !is_new {
                return Err(format!("has a header that gives `{key}` twice"));
            }
            if !p.eat(',') {
                p.expect('}')?;
                break;
            }
        }
        if p.rest.trim().is_empty() { Ok(fields) } else { Err(p.unexpected("its end")) }
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

    fn string(&mut self) -> Result<&'a str, String> {
        let quote = ['\'', '"'].into_iter().find(|quote| self.eat(*quote));
        let Some(quote) = quote else {
            let holds_structures = self.rest.starts_with('[');
            return Err(match holds_structures {
                true => "holds structures; one plain type is read".to_owned(),
                false => self.unexpected("a string"),
            });
        };
        let (text, rest) =
            self.rest.split_once(quote).ok_or("has a header with a string that does not end")?;
        self.rest = rest;
        Ok(text)
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
            let digits = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
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

#[cfg(test)]
mod tests;
