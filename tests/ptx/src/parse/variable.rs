//! Declarations of variables in shared, local, global and constant memory.

use super::lexer::Tok;
use super::{Parsed, Parser};
use crate::module::{Kernel, Symbol, Variable};
use crate::ty::Ty;

/// `.align 16 .b8 name[4][8] = {1, 2}`, without the state space.
struct Declared<'a> {
    name: &'a str,
    align: u64,
    bytes: u64,
    unsized_array: bool,
    init: Vec<u8>,
}

impl<'a> Parser<'a> {
    /// A variable outside of functions.
    pub(super) fn module_variable(&mut self, external: bool) -> Parsed<()> {
        let space = self.word()?;
        let declared = self.declared()?;
        let symbol = if space == ".shared" {
            if external || declared.unsized_array {
                self.dynamic_align = self.dynamic_align.max(declared.align);
                Symbol::DynamicShared
            } else {
                let offset = self.shared_bytes.next_multiple_of(declared.align);
                self.shared_bytes = offset + declared.bytes;
                Symbol::Shared(offset)
            }
        } else if external {
            return self.error(format!("`{}` is external", declared.name));
        } else {
            self.global(&declared)
        };
        self.names.insert(declared.name, symbol);
        Ok(())
    }

    /// A variable inside of a function.
    pub(super) fn local_variable(
        &mut self,
        space: &str,
        kernel: &mut Kernel,
    ) -> Parsed<(&'a str, Symbol)> {
        let declared = self.declared()?;
        let place = |end: &mut u64| {
            let offset = end.next_multiple_of(declared.align);
            *end = offset + declared.bytes;
            offset
        };
        let symbol = match space {
            ".shared" => Symbol::Shared(place(&mut kernel.shared_bytes)),
            ".local" => Symbol::Local(place(&mut kernel.local_bytes)),
            _ => self.global(&declared),
        };
        Ok((declared.name, symbol))
    }

    fn global(&mut self, declared: &Declared<'a>) -> Symbol {
        let Declared { align, bytes, ref init, .. } = *declared;
        self.module.globals.push(Variable { align, bytes, init: init.clone() });
        Symbol::Global(self.module.globals.len() - 1)
    }

    fn declared(&mut self) -> Parsed<Declared<'a>> {
        let align = if self.accept_word(".align") { Some(self.integer()?) } else { None };
        let vector = match self.peek() {
            Some(Tok::Word(".v2")) => 2,
            Some(Tok::Word(".v4")) => 4,
            _ => 1,
        };
        self.at += usize::from(vector > 1);
        let ty = self.ty()?;
        let name = self.word()?;
        let mut count: u64 = vector;
        let mut unsized_array = false;
        while self.accept('[') {
            if self.accept(']') {
                unsized_array = true;
                continue;
            }
            count = count.saturating_mul(self.integer()?);
            self.expect(']')?;
        }
        let init = if self.accept('=') { self.initialiser(ty)? } else { Vec::new() };
        if self.peek() == Some(Tok::Punct(',')) {
            return self.error("one variable a declaration, please");
        }
        self.expect(';')?;
        let align = self.alignment(align.unwrap_or(ty.bytes() as u64 * vector))?;
        let bytes = if unsized_array { init.len() as u64 } else { self.size(ty, count)? };
        if init.len() as u64 > bytes {
            return self.error(format!("`{name}` has more initial values than room"));
        }
        Ok(Declared { name, align, bytes, unsized_array, init })
    }

    fn initialiser(&mut self, ty: Ty) -> Parsed<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut depth = 0;
        loop {
            match self.next() {
                Some(Tok::Punct('{')) => depth += 1,
                Some(Tok::Punct('}')) => depth -= 1,
                Some(Tok::Punct(',')) => {}
                Some(Tok::Punct('-')) => {
                    let value = self.integer()?.wrapping_neg();
                    bytes.extend_from_slice(&value.to_le_bytes()[..ty.bytes().min(8)]);
                }
                Some(Tok::Int(value)) => {
                    bytes.extend_from_slice(&value.to_le_bytes()[..ty.bytes().min(8)]);
                }
                _ => return self.error("only numbers initialise variables here"),
            }
            if depth <= 0 && self.peek() != Some(Tok::Punct(',')) {
                return Ok(bytes);
            }
        }
    }
}
