//! The body of a kernel: declarations, labels and instructions, with nested scopes.

use std::collections::HashMap;

use super::lexer::Tok;
use super::{Parsed, Parser, show};
use crate::fault::ParseError;
use crate::mods::{Mod, Mods};
use crate::module::{Arg, Guard, Inst, Kernel, Reg, RegId, Special, Symbol};
use crate::ops::{Op, Spec, needs_of_types};
use crate::ty::Ty;

/// A register or variable.
#[derive(Clone, Copy)]
enum Name {
    Reg(RegId),
    Symbol(Symbol),
}

struct Scope<'a> {
    parent: usize,
    names: HashMap<String, Name>,
    labels: HashMap<&'a str, usize>,
}

/// A branch whose label is not resolved yet.
struct Branch<'a> {
    inst: usize,
    scope: usize,
    label: &'a str,
    line: u32,
}

struct Body<'a, 'k> {
    kernel: &'k mut Kernel,
    scopes: Vec<Scope<'a>>,
    scope: usize,
    branches: Vec<Branch<'a>>,
    closed: bool,
}

const MAX_REGS: usize = 1 << 16;

impl<'a> Parser<'a> {
    /// Parses behind the opening brace of a kernel, up to and with the closing one.
    pub(super) fn body(&mut self, kernel: &mut Kernel, params: HashMap<&'a str, Symbol>) {
        kernel.shared_bytes = self.shared_bytes;
        let names = params.into_iter().map(|(name, it)| (name.to_owned(), Name::Symbol(it)));
        let root = Scope { parent: 0, names: names.collect(), labels: HashMap::new() };
        let mut body =
            Body { kernel, scopes: vec![root], scope: 0, branches: Vec::new(), closed: false };
        while !body.closed {
            if self.peek().is_none() {
                let line = self.line();
                self.errors.push(ParseError { line, reason: "a body has no end".to_owned() });
                break;
            }
            let start = self.at;
            if let Err(error) = self.statement(&mut body) {
                self.errors.push(error);
                self.recover();
                if self.at == start {
                    self.at += 1;
                }
            }
        }
        let branches = std::mem::take(&mut body.branches);
        for branch in branches {
            match body.label(branch.scope, branch.label) {
                Some(target) => body.kernel.code[branch.inst].args = vec![Arg::Target(target)],
                None => self.errors.push(ParseError {
                    line: branch.line,
                    reason: format!("label `{}` is not defined", branch.label),
                }),
            }
        }
        kernel.dynamic_offset = kernel.shared_bytes.next_multiple_of(self.dynamic_align);
    }

    fn statement(&mut self, body: &mut Body<'a, '_>) -> Parsed<()> {
        match self.peek() {
            Some(Tok::Punct('{')) => {
                self.at += 1;
                let (names, labels) = (HashMap::new(), HashMap::new());
                body.scopes.push(Scope { parent: body.scope, names, labels });
                body.scope = body.scopes.len() - 1;
                Ok(())
            }
            Some(Tok::Punct('}')) => {
                self.at += 1;
                body.closed = body.scope == 0;
                body.scope = body.scopes[body.scope].parent;
                Ok(())
            }
            Some(Tok::Punct(';')) => {
                self.at += 1;
                Ok(())
            }
            Some(Tok::Word(word)) if word.starts_with('.') => self.declaration(body),
            Some(Tok::Word(label))
                if self.tokens.get(self.at + 1).map(|t| t.tok) == Some(Tok::Punct(':')) =>
            {
                self.at += 2;
                let place = body.kernel.code.len();
                if body.scopes[body.scope].labels.insert(label, place).is_some() {
                    return self.error(format!("label `{label}` is defined twice"));
                }
                Ok(())
            }
            _ => self.instruction(body),
        }
    }

    fn declaration(&mut self, body: &mut Body<'a, '_>) -> Parsed<()> {
        let word = self.word()?;
        match word {
            ".reg" => self.registers(body),
            ".shared" | ".local" | ".global" | ".const" => {
                let (name, symbol) = self.local_variable(word, body.kernel)?;
                body.declare(name, Name::Symbol(symbol));
                Ok(())
            }
            ".loc" => {
                self.skip_line();
                Ok(())
            }
            ".pragma" => {
                self.next();
                self.expect(';')
            }
            _ => self.error(format!("unknown directive `{word}` in a body")),
        }
    }

    fn registers(&mut self, body: &mut Body<'a, '_>) -> Parsed<()> {
        let ty = self.ty()?;
        if ty.bits() > 64 {
            return self.error("registers of 128 bits are not emulated");
        }
        loop {
            let name = self.word()?;
            if self.accept('<') {
                let count = self.integer()?;
                self.expect('>')?;
                if count as usize > MAX_REGS || body.kernel.regs.len() > MAX_REGS {
                    return self.error("too many registers");
                }
                for index in 0..count {
                    body.register(format!("{name}{index}"), ty);
                }
            } else {
                body.register(name.to_owned(), ty);
            }
            if !self.accept(',') {
                return self.expect(';');
            }
        }
    }

    fn instruction(&mut self, body: &mut Body<'a, '_>) -> Parsed<()> {
        let line = self.line();
        let mut guard = None;
        if self.accept('@') {
            let negated = self.accept('!');
            let name = self.word()?;
            match self.lookup(body, name) {
                Some(Arg::Reg(reg)) if body.kernel.regs[reg].ty == Ty::Pred => {
                    guard = Some(Guard { reg, negated });
                }
                _ => return self.error(format!("`{name}` is no predicate")),
            }
        }
        let opcode = self.word()?;
        let Some((spec, rest)) = Spec::find(opcode) else {
            return self.error(format!("unknown instruction `{opcode}`"));
        };
        let mut inst = Inst {
            line,
            guard,
            op: spec.op,
            name: spec.name,
            needs: spec.needs,
            mods: Mods::default(),
            ty: Vec::new(),
            shape: None,
            args: Vec::new(),
            regs: Vec::new(),
        };
        for part in rest.split('.').skip(1) {
            self.qualifier(spec, part, &mut inst)?;
        }
        if inst.ty.len() != spec.types {
            let (found, needed) = (inst.ty.len(), spec.types);
            return self.error(format!("`{opcode}` has {found} types, needs {needed}"));
        }
        if inst.op == Op::Bra {
            let label = self.word()?;
            let inst_at = body.kernel.code.len();
            body.branches.push(Branch { inst: inst_at, scope: body.scope, label, line });
        } else if self.peek() != Some(Tok::Punct(';')) {
            loop {
                let arg = self.operand(body)?;
                inst.args.push(arg);
                if !self.accept(',') {
                    break;
                }
            }
        }
        let (min, max) = spec.args;
        if inst.op != Op::Bra && !(min..=max).contains(&inst.args.len()) {
            let found = inst.args.len();
            return self.error(format!("`{opcode}` has {found} operands, needs {min} to {max}"));
        }
        self.expect(';')?;
        inst.needs = inst.needs.max(needs_of_types(inst.op, &inst.ty));
        inst.regs = inst.args.iter().flat_map(Arg::registers).collect();
        inst.regs.extend(guard.map(|guard| guard.reg));
        body.kernel.code.push(inst);
        Ok(())
    }

    fn qualifier(&self, spec: &Spec, part: &str, inst: &mut Inst) -> Parsed<()> {
        if spec.allows(part)
            && let Some(item) = Mod::parse(part)
        {
            inst.mods.insert(item);
        } else if let Some(ty) = Ty::parse(part).filter(|ty| ty.bits() <= 64) {
            inst.ty.push(ty);
        } else if let Some(shape) = shape(part).filter(|_| matches!(spec.op, Op::Mma | Op::Wgmma)) {
            inst.shape = Some(shape);
        } else {
            return self.error(format!("`{}` has no qualifier `.{part}` here", spec.name));
        }
        Ok(())
    }

    fn operand(&mut self, body: &Body<'a, '_>) -> Parsed<Arg> {
        let arg = match self.peek() {
            Some(Tok::Punct('{')) => {
                self.at += 1;
                Arg::Vec(self.list(body)?)
            }
            Some(Tok::Punct('[')) => {
                self.at += 1;
                return self.address(body);
            }
            Some(Tok::Punct('!')) => {
                self.at += 1;
                match self.value(body)? {
                    Arg::Reg(reg) => Arg::NotReg(reg),
                    _ => return self.error("`!` needs a predicate"),
                }
            }
            _ => self.value(body)?,
        };
        if self.accept('|') {
            return Ok(Arg::Pair(Box::new(arg), Box::new(self.value(body)?)));
        }
        Ok(arg)
    }

    /// The elements of `{..}`, behind the opening brace.
    fn list(&mut self, body: &Body<'a, '_>) -> Parsed<Vec<Arg>> {
        let mut items = Vec::new();
        loop {
            items.push(self.value(body)?);
            if !self.accept(',') {
                self.expect('}')?;
                return Ok(items);
            }
        }
    }

    fn address(&mut self, body: &Body<'a, '_>) -> Parsed<Arg> {
        let base = Box::new(self.value(body)?);
        let arg = if self.accept(',') {
            self.expect('{')?;
            Arg::Tensor(base, self.list(body)?)
        } else {
            Arg::Addr(base, self.offset()?)
        };
        self.expect(']')?;
        Ok(arg)
    }

    fn offset(&mut self) -> Parsed<i64> {
        let negative = match self.peek() {
            Some(Tok::Punct('+')) => {
                self.at += 1;
                self.accept('-')
            }
            Some(Tok::Punct('-')) => {
                self.at += 1;
                true
            }
            _ => return Ok(0),
        };
        let value = self.integer()? as i64;
        Ok(if negative { value.wrapping_neg() } else { value })
    }

    fn value(&mut self, body: &Body<'a, '_>) -> Parsed<Arg> {
        match self.peek() {
            Some(Tok::Int(value)) => {
                self.at += 1;
                Ok(Arg::Imm(value))
            }
            Some(Tok::Decimal(value)) => {
                self.at += 1;
                Ok(Arg::Imm(u64::from((value as f32).to_bits())))
            }
            Some(Tok::Punct('-')) => {
                self.at += 1;
                Ok(Arg::Imm(self.integer()?.wrapping_neg()))
            }
            Some(Tok::Word("_")) => {
                self.at += 1;
                Ok(Arg::Sink)
            }
            Some(Tok::Word(name)) => {
                let Some(arg) = self.lookup(body, name) else {
                    return self.error(format!("`{name}` is not declared"));
                };
                self.at += 1;
                match arg {
                    Arg::Sym(symbol, _) => Ok(Arg::Sym(symbol, self.offset()?)),
                    arg => Ok(arg),
                }
            }
            Some(tok) => self.error(format!("expected an operand, found {}", show(tok))),
            None => self.error("expected an operand, found the end of the text"),
        }
    }

    fn lookup(&self, body: &Body<'a, '_>, name: &str) -> Option<Arg> {
        let mut scope = body.scope;
        loop {
            match body.scopes[scope].names.get(name) {
                Some(Name::Reg(reg)) => return Some(Arg::Reg(*reg)),
                Some(Name::Symbol(symbol)) => return Some(Arg::Sym(*symbol, 0)),
                None if scope == 0 => break,
                None => scope = body.scopes[scope].parent,
            }
        }
        let module = self.names.get(name).map(|symbol| Arg::Sym(*symbol, 0));
        module.or_else(|| Special::parse(name).map(Arg::Special))
    }
}

impl Body<'_, '_> {
    fn declare(&mut self, name: &str, what: Name) {
        self.scopes[self.scope].names.insert(name.to_owned(), what);
    }

    fn register(&mut self, name: String, ty: Ty) {
        self.declare(&name, Name::Reg(self.kernel.regs.len()));
        self.kernel.regs.push(Reg { name, ty });
    }

    fn label(&self, mut scope: usize, name: &str) -> Option<usize> {
        loop {
            if let Some(place) = self.scopes[scope].labels.get(name) {
                return Some(*place);
            }
            if scope == 0 {
                return None;
            }
            scope = self.scopes[scope].parent;
        }
    }
}

/// `m16n8k16`.
fn shape(part: &str) -> Option<[u32; 3]> {
    let (m, rest) = part.strip_prefix('m')?.split_once('n')?;
    let (n, k) = rest.split_once('k')?;
    Some([m.parse().ok()?, n.parse().ok()?, k.parse().ok()?])
}
