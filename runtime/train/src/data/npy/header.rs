//! The header of a `.npy` file, as NEP 1 and `numpy.lib.format` define it: a Python dictionary
//! literal with three known keys, behind a magic string, a version and a length.

const MAGIC: &[u8] = b"\x93NUMPY";

/// What a file says of its array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Byte order, kind and size, as NumPy's `dtype.str`.
    pub(super) descr: String,
    /// Whether the first axis varies fastest.
    pub(super) fortran_order: bool,
    /// Extents.
    pub(super) shape: Vec<u64>,
    /// Where the values begin.
    pub(super) values_at: usize,
}

impl Header {
    /// Reads a file's beginning.
    ///
    /// # Errors
    /// What is wrong, as the rest of a sentence about the file.
    pub(super) fn parse(bytes: &[u8]) -> Result<Header, String> {
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
                return Err(format!("has format version {major}.{minor}; 1.0 to 3.0 are read"));
            }
        };
        let values_at = bytes.len() - text.len() + length.min(text.len());
        let text = text.get(..length).ok_or_else(early)?;
        let text =
            std::str::from_utf8(text).map_err(|_| "has a header that is not text".to_owned())?;
        let fields = Fields::parse(text)?;
        let missing = |key: &str| format!("has a header without `{key}`");
        Ok(Header {
            descr: fields.descr.ok_or_else(|| missing("descr"))?,
            fortran_order: fields.fortran_order.ok_or_else(|| missing("fortran_order"))?,
            shape: fields.shape.ok_or_else(|| missing("shape"))?,
            values_at,
        })
    }
}

#[derive(Default)]
struct Fields {
    descr: Option<String>,
    fortran_order: Option<bool>,
    shape: Option<Vec<u64>>,
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
                true => "holds structures, and plain integers are wanted".to_owned(),
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

    fn tuple(&mut self) -> Result<Vec<u64>, String> {
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
