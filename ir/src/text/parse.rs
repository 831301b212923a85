//! Reads modules: recursive descent over one line-counting cursor.

use std::collections::HashMap;

use crate::{
    Attr, AttrKind, Attrs, Builder, DType, Dim, Graph, Module, OpRef, Tensor, TensorType, Value,
};

/// Text that is not a module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

/// Reads a module from text.
///
/// # Errors
/// The first place where the text is not a well-typed module.
pub fn parse_module(text: &str) -> Result<Module, ParseError> {
    let mut c = Cursor { text, at: 0 };
    c.module().map_err(|message| {
        let before = &text[..c.at];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        ParseError { line, column, message }
    })
}

type Result1<T> = Result<T, String>;

struct Cursor<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Cursor<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            self.at += rest.len() - rest.trim_start().len();
            match self.rest().strip_prefix("//") {
                Some(comment) => self.at += 2 + comment.find('\n').unwrap_or(comment.len()),
                None => return,
            }
        }
    }

    fn peek(&mut self, token: &str) -> bool {
        self.skip();
        self.rest().starts_with(token)
    }

    fn eat(&mut self, token: &str) -> bool {
        let here = self.peek(token);
        if here {
            self.at += token.len();
        }
        here
    }

    fn expect(&mut self, token: &str) -> Result1<()> {
        if self.eat(token) {
            return Ok(());
        }
        let found: String = self.rest().chars().take(12).collect();
        Err(format!("expected `{token}`, found `{}`", found.escape_debug()))
    }

    /// Everything up to a character that `stop` accepts, at least one character.
    fn until(&mut self, what: &str, stop: impl Fn(char) -> bool) -> Result1<&'t str> {
        self.skip();
        let end = self.rest().find(stop).unwrap_or(self.rest().len());
        if end == 0 {
            return Err(format!("expected {what}"));
        }
        let word = &self.rest()[..end];
        self.at += end;
        Ok(word)
    }

    fn bare(&mut self, what: &str) -> Result1<&'t str> {
        self.until(what, |c| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'))
    }

    /// A plain or quoted name.
    fn name(&mut self, what: &str) -> Result1<String> {
        if self.peek("\"") { self.string() } else { self.bare(what).map(Into::into) }
    }

    /// A string as Rust's `{:?}` writes it.
    fn string(&mut self) -> Result1<String> {
        self.expect("\"")?;
        let mut out = String::new();
        let mut chars = self.rest().char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return Ok(out);
                }
                '\\' => {
                    let escape = chars.next().map(|(_, c)| c);
                    out.push(match escape {
                        Some('n') => '\n',
                        Some('r') => '\r',
                        Some('t') => '\t',
                        Some('0') => '\0',
                        Some(c @ ('"' | '\\' | '\'')) => c,
                        Some('u') => {
                            let code: String = chars
                                .by_ref()
                                .map(|(_, c)| c)
                                .skip_while(|c| *c == '{')
                                .take_while(|c| *c != '}')
                                .take(8)
                                .collect();
                            u32::from_str_radix(&code, 16)
                                .ok()
                                .and_then(char::from_u32)
                                .ok_or_else(|| format!("`\\u{{{code}}}` is no character"))?
                        }
                        _ => return Err("unknown escape in a string".into()),
                    });
                }
                c => out.push(c),
            }
        }
        Err("string without an end".into())
    }

    fn int(&mut self) -> Result1<i64> {
        let word = self.until("an integer", |c| !(c.is_ascii_digit() || c == '-'))?;
        word.parse().map_err(|e| format!("`{word}`: {e}"))
    }

    fn dim_list(&mut self, close: char) -> Result1<Vec<Dim>> {
        let mut dims = Vec::new();
        loop {
            self.skip();
            if self.rest().starts_with(close) {
                self.at += close.len_utf8();
                return Ok(dims);
            }
            if !dims.is_empty() {
                self.expect(",")?;
                self.skip();
            }
            // A size ends at a comma or the closing bracket outside parentheses.
            let line = self.rest().lines().next().unwrap_or("");
            let mut depth = 0i32;
            let end = line
                .char_indices()
                .find(|(_, c)| {
                    match c {
                        '(' => depth += 1,
                        ')' => depth -= 1,
                        _ => {}
                    }
                    depth <= 0 && (*c == ',' || *c == close)
                })
                .map_or(line.len(), |(i, _)| i);
            let text = &line[..end];
            dims.push(text.trim().parse().map_err(|e: crate::DimError| e.to_string())?);
            self.at += end;
        }
    }

    fn ty(&mut self) -> Result1<TensorType> {
        let dtype: DType = self.bare("an element type")?.parse()?;
        self.expect("[")?;
        Ok(TensorType::new(dtype, self.dim_list(']')?))
    }

    fn module(&mut self) -> Result1<Module> {
        self.expect("module")?;
        let mut m = Module::new(&self.string()?);
        loop {
            if self.eat("symbol ") {
                let name = self.bare("a symbol")?;
                self.expect("in")?;
                let lo = self.int()?;
                self.expect("..")?;
                let hi = self.int()?;
                m.symbol(name, lo, hi);
            } else if self.eat("weight ") {
                let name = self.string()?;
                self.expect(":")?;
                let ty = self.ty()?;
                m.weight(&name, ty);
            } else if self.eat("entry ") {
                let name = self.name("a function")?;
                m.entries.push(name.into());
            } else if self.eat("fn ") {
                let graph = self.function(&m)?;
                if m.function(&graph.name).is_some() {
                    return Err(format!("function `{}` is defined twice", graph.name));
                }
                m.add(graph);
            } else {
                self.skip();
                if self.rest().is_empty() {
                    return Ok(m);
                }
                return self.expect("fn").map(|()| m);
            }
        }
    }

    fn function(&mut self, module: &Module) -> Result1<Graph> {
        let name = self.name("a function")?;
        let mut b = module.builder(&name);
        let mut values: HashMap<String, Value> = HashMap::new();
        self.expect("(")?;
        while !self.eat(")") {
            if !b.graph().params().is_empty() {
                self.expect(",")?;
            }
            let token = self.value_token()?;
            let name = match token[1..].strip_prefix('"') {
                Some(quoted) => quoted[..quoted.len() - 1].to_string(),
                None => token[1..].to_string(),
            };
            self.expect(":")?;
            let ty = self.ty()?;
            let v = b.param(&name, ty).map_err(|e| e.to_string())?;
            values.insert(token, v);
        }
        self.expect("{")?;
        loop {
            if self.eat("return") {
                while !self.eat("}") {
                    if !b.graph().outputs.is_empty() {
                        self.expect(",")?;
                    }
                    let name = self.name("an output's name")?;
                    self.expect("=")?;
                    let v = self.value(&values)?;
                    b.output(&name, v);
                }
                return Ok(b.finish());
            }
            self.node(&mut b, &mut values)?;
        }
    }

    /// `%name`, `%12` or `%"any name"`, as written.
    fn value_token(&mut self) -> Result1<String> {
        self.expect("%")?;
        let start = self.at;
        if self.rest().starts_with('"') {
            let name = self.string()?;
            return Ok(format!("%\"{name}\""));
        }
        self.bare("a value's name")?;
        Ok(format!("%{}", &self.text[start..self.at]))
    }

    fn value(&mut self, values: &HashMap<String, Value>) -> Result1<Value> {
        self.skip();
        let start = self.at;
        let token = self.value_token()?;
        values.get(&token).copied().ok_or_else(|| {
            self.at = start;
            format!("no value `{token}` before this line")
        })
    }

    fn node(&mut self, b: &mut Builder<'_>, values: &mut HashMap<String, Value>) -> Result1<()> {
        let mut names = vec![self.value_token()?];
        while self.eat(",") {
            names.push(self.value_token()?);
        }
        self.expect("=")?;
        self.skip();
        let start = self.at;
        let name = self.bare("an operator")?;
        let op = OpRef::find(name).ok_or_else(|| format!("unknown operator `{name}`"))?;
        self.expect("(")?;
        let mut inputs = Vec::new();
        while !self.eat(")") {
            if !inputs.is_empty() {
                self.expect(",")?;
            }
            let absent = self.peek("_") && self.eat("_");
            inputs.push(if absent { None } else { Some(self.value(values)?) });
        }
        let mut attrs = Attrs::none();
        if self.eat("{") {
            while !self.eat("}") {
                if !attrs.0.is_empty() {
                    self.expect(",")?;
                }
                let name = self.bare("an attribute")?;
                let spec = op.signature().attrs.iter().find(|s| s.name == name);
                let spec =
                    spec.ok_or_else(|| format!("`{name}` is not an attribute of `{}`", op.name()))?;
                self.expect("=")?;
                attrs = attrs.with(name, self.attr(spec.kind)?);
            }
        }
        self.expect(":")?;
        self.skip();
        let types_at = self.at;
        let mut types = vec![self.ty()?];
        while self.eat(",") {
            types.push(self.ty()?);
        }
        let loc = if self.eat("@") { self.string()? } else { String::new() };
        let end = self.at;
        b.at(&loc);
        self.at = start;
        let results = match op.name() {
            "param" => return Err("parameters stand in the function's head".into()),
            "weight" => {
                let name = attrs.get("name").ok_or("`weight` needs a name")?;
                let Attr::Str(name) = name else { return Err("the name must be a string".into()) };
                vec![b.weight(name).map_err(|e| e.to_string())?]
            }
            _ => b.op(op.name(), attrs, &inputs).map_err(|e| e.to_string())?,
        };
        self.at = types_at;
        if results.len() != names.len() || results.len() != types.len() {
            return Err(format!("`{}` has {} results", op.name(), results.len()));
        }
        for ((v, ty), token) in results.iter().zip(&types).zip(names) {
            if b.ty(*v) != ty {
                return Err(format!("{token} is {ty}, inference gives {}", b.ty(*v)));
            }
            if values.insert(token.clone(), *v).is_some() {
                return Err(format!("{token} is defined twice"));
            }
        }
        self.at = end;
        Ok(())
    }

    fn attr(&mut self, kind: AttrKind) -> Result1<Attr> {
        let scalar =
            |c: &mut Self| c.until("a value", |c| c == ',' || c == '}' || c.is_whitespace());
        Ok(match kind {
            AttrKind::Int => Attr::Int(self.int()?),
            AttrKind::Float => {
                let word = scalar(self)?;
                Attr::from(word.parse::<f64>().map_err(|e| format!("`{word}`: {e}"))?)
            }
            AttrKind::Bool => match scalar(self)? {
                "true" => Attr::Bool(true),
                "false" => Attr::Bool(false),
                word => return Err(format!("`{word}` is neither true nor false")),
            },
            AttrKind::Str => Attr::from(self.string()?),
            AttrKind::DType => Attr::DType(scalar(self)?.parse()?),
            AttrKind::Ints => {
                self.expect("[")?;
                let dims = self.dim_list(']')?;
                let ints: Option<Vec<i64>> = dims.iter().map(Dim::as_const).collect();
                Attr::Ints(ints.ok_or("expected integers")?)
            }
            AttrKind::Dims => {
                self.expect("<")?;
                Attr::Dims(self.dim_list('>')?)
            }
            AttrKind::Tensor => {
                self.expect("dense<")?;
                let ty = self.ty()?;
                self.skip();
                let end = self.rest().find('>').ok_or("expected `>`")?;
                let hex = &self.rest()[..end];
                let bytes: Option<Vec<u8>> = hex
                    .as_bytes()
                    .chunks(2)
                    .map(|c| u8::from_str_radix(std::str::from_utf8(c).ok()?, 16).ok())
                    .collect();
                let bytes = bytes.ok_or("expected pairs of hexadecimal digits")?;
                let shape = ty.const_shape().ok_or("a constant has a constant shape")?;
                let need = shape.iter().try_fold(ty.dtype.size(), |n, d| n.checked_mul(*d));
                if need != Some(bytes.len()) {
                    return Err(format!("{} bytes do not fill {ty}", bytes.len()));
                }
                self.at += end + 1;
                Attr::from(Tensor::from_bytes(ty.dtype, &shape, bytes))
            }
        })
    }
}
