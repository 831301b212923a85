//! PTX text to a [`Module`]: directives, variables and functions.
//!
//! All errors are collected: after one, parsing goes on behind the next semicolon.

mod body;
mod lexer;
mod variable;

use std::collections::HashMap;

use crate::fault::{ParseError, ParseErrors};
use crate::module::{Kernel, Module, ParamDecl, Symbol};
use crate::ops::Needs;
use crate::ty::Ty;
use lexer::{Tok, Token};

impl Module {
    /// Parses PTX text.
    ///
    /// # Errors
    /// Everything that is wrong, each with its line: an instruction or qualifier that the emulator
    /// does not know, a name that is not declared, a malformed statement.
    pub fn parse(text: &str) -> Result<Module, ParseErrors> {
        let mut errors = Vec::new();
        let tokens = lexer::lex(text, &mut errors);
        let mut parser = Parser {
            tokens: &tokens,
            at: 0,
            errors,
            module: Module { kernels: HashMap::new(), globals: Vec::new(), target: Needs::Sm80 },
            names: HashMap::new(),
            shared_bytes: 0,
            dynamic_align: 1,
        };
        parser.module();
        let Parser { mut errors, module, .. } = parser;
        if errors.is_empty() {
            return Ok(module);
        }
        errors.sort_by_key(|error| error.line);
        Err(ParseErrors(errors))
    }
}

struct Parser<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
    errors: Vec<ParseError>,
    module: Module,
    /// Variables of the module.
    names: HashMap<&'a str, Symbol>,
    shared_bytes: u64,
    dynamic_align: u64,
}

type Parsed<T> = Result<T, ParseError>;

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<Tok<'a>> {
        self.tokens.get(self.at).map(|token| token.tok)
    }

    fn line(&self) -> u32 {
        let token = self.tokens.get(self.at).or(self.tokens.last());
        token.map_or(1, |token| token.line)
    }

    fn next(&mut self) -> Option<Tok<'a>> {
        let tok = self.peek();
        self.at += usize::from(tok.is_some());
        tok
    }

    fn error<T>(&self, reason: impl Into<String>) -> Parsed<T> {
        Err(ParseError { line: self.line(), reason: reason.into() })
    }

    fn accept(&mut self, punct: char) -> bool {
        let found = self.peek() == Some(Tok::Punct(punct));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, punct: char) -> Parsed<()> {
        if self.accept(punct) {
            return Ok(());
        }
        match self.peek() {
            Some(tok) => self.error(format!("expected `{punct}`, found {}", show(tok))),
            None => self.error(format!("expected `{punct}`, found the end of the text")),
        }
    }

    fn accept_word(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(Tok::Word(word));
        self.at += usize::from(found);
        found
    }

    fn word(&mut self) -> Parsed<&'a str> {
        match self.peek() {
            Some(Tok::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            Some(tok) => self.error(format!("expected a name, found {}", show(tok))),
            None => self.error("expected a name, found the end of the text"),
        }
    }

    fn integer(&mut self) -> Parsed<u64> {
        match self.peek() {
            Some(Tok::Int(value)) => {
                self.at += 1;
                Ok(value)
            }
            Some(tok) => self.error(format!("expected an integer, found {}", show(tok))),
            None => self.error("expected an integer, found the end of the text"),
        }
    }

    /// `.type`, without its dot.
    fn ty(&mut self) -> Parsed<Ty> {
        let word = self.word()?;
        match word.strip_prefix('.').and_then(Ty::parse) {
            Some(ty) => Ok(ty),
            None => self.error(format!("`{word}` is no type")),
        }
    }

    /// Goes on behind the next semicolon, or at the next brace.
    fn recover(&mut self) {
        while let Some(tok) = self.peek() {
            match tok {
                Tok::Punct('{' | '}') => return,
                Tok::Punct(';') => {
                    self.at += 1;
                    return;
                }
                _ => self.at += 1,
            }
        }
    }

    fn skip_line(&mut self) {
        let line = self.line();
        while self.peek().is_some() && self.line() == line {
            self.at += 1;
        }
    }

    /// Skips `{ .. }` with all that is nested in it.
    fn skip_block(&mut self) {
        let mut depth = 0;
        while let Some(tok) = self.next() {
            match tok {
                Tok::Punct('{') => depth += 1,
                Tok::Punct('}') if depth <= 1 => return,
                Tok::Punct('}') => depth -= 1,
                _ => {}
            }
        }
    }

    fn module(&mut self) {
        while self.peek().is_some() {
            let start = self.at;
            if let Err(error) = self.item() {
                self.errors.push(error);
                self.recover();
                if self.peek() == Some(Tok::Punct('{')) {
                    self.skip_block();
                }
            }
            self.at = self.at.max(start + 1);
        }
    }

    fn item(&mut self) -> Parsed<()> {
        let word = self.word()?;
        match word {
            ".version" | ".address_size" | ".file" | ".loc" => self.skip_line(),
            ".target" => {
                let target = self.word()?;
                self.module.target = match target {
                    "sm_80" | "sm_86" | "sm_87" | "sm_89" => Needs::Sm80,
                    "sm_90" => Needs::Sm90,
                    "sm_90a" => Needs::Sm90a,
                    _ => return self.error(format!("target `{target}` is not emulated")),
                };
                self.skip_line();
            }
            ".section" => {
                self.word()?;
                self.skip_block();
            }
            ".visible" | ".extern" | ".weak" | ".common" => return self.linked(word == ".extern"),
            ".entry" => return self.entry(),
            ".func" => return self.error("functions other than kernels are not emulated"),
            ".global" | ".const" | ".shared" => {
                self.at -= 1;
                return self.module_variable(false);
            }
            _ => return self.error(format!("unknown directive `{word}`")),
        }
        Ok(())
    }

    fn linked(&mut self, external: bool) -> Parsed<()> {
        match self.peek() {
            Some(Tok::Word(".global" | ".const" | ".shared")) => self.module_variable(external),
            _ => self.item(),
        }
    }

    fn entry(&mut self) -> Parsed<()> {
        let name = self.word()?;
        let mut kernel = Kernel::default();
        let mut params = HashMap::new();
        if self.accept('(') && !self.accept(')') {
            let mut offset = 0;
            loop {
                let (name, decl) = self.param(offset)?;
                offset = decl.offset + decl.bytes;
                params.insert(name, Symbol::Param(decl.offset));
                kernel.params.push(decl);
                if !self.accept(',') {
                    break;
                }
            }
            self.expect(')')?;
        }
        loop {
            match self.next() {
                Some(Tok::Punct('{')) => break,
                Some(Tok::Punct(';')) => return Ok(()),
                Some(Tok::Word(".maxntid")) => kernel.max_threads = Some(self.triple()?),
                Some(Tok::Word(".reqntid")) => kernel.required_threads = Some(self.triple()?),
                Some(Tok::Word(".reqnctapercluster")) => {
                    kernel.required_cluster = Some(self.triple()?);
                }
                Some(Tok::Word(".minnctapersm" | ".maxnreg" | ".maxclusterrank")) => {
                    self.integer()?;
                }
                Some(Tok::Word(".explicitcluster" | ".blocksareclusters" | ".noreturn")) => {}
                Some(Tok::Word(".pragma")) => {
                    self.next();
                    self.accept(';');
                }
                Some(tok) => return self.error(format!("{} before a body", show(tok))),
                None => return self.error(format!("`{name}` has no body")),
            }
        }
        self.body(&mut kernel, params);
        if self.module.kernels.insert(name.to_owned(), kernel).is_some() {
            return self.error(format!("`{name}` is defined twice"));
        }
        Ok(())
    }

    fn triple(&mut self) -> Parsed<[u32; 3]> {
        let mut triple = [1; 3];
        for (index, extent) in triple.iter_mut().enumerate() {
            if index > 0 && !self.accept(',') {
                break;
            }
            *extent = self.integer()? as u32;
        }
        Ok(triple)
    }

    /// `.param .align 64 .b8 name[128]`, `.param .u64 .ptr .global .align 1 name`.
    fn param(&mut self, end: u64) -> Parsed<(&'a str, ParamDecl)> {
        if !self.accept_word(".param") {
            return self.error("expected `.param`");
        }
        let mut align = if self.accept_word(".align") { Some(self.integer()?) } else { None };
        let ty = self.ty()?;
        if self.accept_word(".ptr") {
            loop {
                match self.peek() {
                    Some(Tok::Word(".global" | ".shared" | ".local" | ".const" | ".param")) => {
                        self.at += 1;
                    }
                    Some(Tok::Word(".align")) => {
                        self.at += 1;
                        self.integer()?;
                    }
                    _ => break,
                }
            }
        }
        let name = self.word()?;
        let mut count = 1;
        if self.accept('[') {
            count = self.integer()?;
            self.expect(']')?;
        }
        let align = self.alignment(align.take().unwrap_or(ty.bytes() as u64))?;
        let bytes = self.size(ty, count)?;
        Ok((name, ParamDecl { offset: end.next_multiple_of(align), bytes }))
    }

    fn alignment(&self, align: u64) -> Parsed<u64> {
        if align.is_power_of_two() && align <= 1 << 16 {
            return Ok(align);
        }
        self.error(format!("alignment {align} is no power of two"))
    }

    fn size(&self, ty: Ty, count: u64) -> Parsed<u64> {
        match count.checked_mul(ty.bytes() as u64) {
            Some(bytes) if bytes <= 1 << 26 => Ok(bytes),
            _ => self.error("the variable is larger than 64 MiB"),
        }
    }
}

fn show(tok: Tok<'_>) -> String {
    match tok {
        Tok::Word(word) => format!("`{word}`"),
        Tok::Int(value) => format!("`{value}`"),
        Tok::Decimal(value) => format!("`{value}`"),
        Tok::Str => "a string".to_owned(),
        Tok::Punct(punct) => format!("`{punct}`"),
    }
}
