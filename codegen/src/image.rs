//! Links relocatable objects into one position-independent, import-free image.
//!
//! The image is one span: all code, then all read-only data. Only PC-relative references within it
//! are allowed (`R_X86_64_PC32`, `R_X86_64_PLT32`), and they are resolved here, so the image can be
//! mapped read-execute from a file at any page, by any number of processes, with nothing to patch.
//! A reference to a symbol outside, a GOT entry, an absolute address or writable data is an error:
//! a generator emitted something that has no place in a kernel.
//!
//! x86-64 ELF only. The order of the objects fixes the bytes.

use object::read::elf::ElfFile64;
use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags,
    RelocationTarget, SectionIndex, SectionKind, SymbolSection, elf,
};
use rustc_hash::FxHashMap;
use std::collections::BTreeMap;

/// Executable code of many kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// To be mapped read-execute at a page boundary.
    pub bytes: Vec<u8>,
    /// Offset of each kernel in `bytes`, by symbol.
    pub symbols: BTreeMap<String, u64>,
}

/// Why an object cannot be part of an image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkError {
    /// The object is not one that the compiler makes.
    #[error("kernel `{kernel}`: not an x86-64 ELF object: {reason}")]
    Malformed {
        /// The kernel.
        kernel: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A reference that the image cannot hold.
    #[error("kernel `{kernel}`: relocation {relocation} against `{symbol}` is not import-free")]
    Relocation {
        /// The kernel.
        kernel: String,
        /// The ELF relocation type, or `external`.
        relocation: String,
        /// What it refers to.
        symbol: String,
    },
    /// Data that would have to be writable or zero-filled.
    #[error("kernel `{kernel}`: section `{section}` holds writable data")]
    Writable {
        /// The kernel.
        kernel: String,
        /// The section.
        section: String,
    },
    /// Two kernels of one name.
    #[error("kernel `{kernel}`: symbol `{symbol}` is defined twice")]
    Duplicate {
        /// The second kernel.
        kernel: String,
        /// The symbol.
        symbol: String,
    },
}

/// Links `(kernel name, object)` pairs.
///
/// # Errors
/// Every [`LinkError`] of every object.
pub fn link(objects: &[(&str, &[u8])]) -> Result<Image, Vec<LinkError>> {
    let mut errors = Vec::new();
    let mut parts = Vec::new();
    for &(kernel, bytes) in objects {
        match Part::parse(kernel, bytes) {
            Ok(part) => parts.push(part),
            Err(mut found) => errors.append(&mut found),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut bytes = Vec::new();
    for wanted in [SectionKind::Text, SectionKind::ReadOnlyData] {
        for part in &mut parts {
            part.place(wanted, &mut bytes);
        }
        bytes.resize(bytes.len().next_multiple_of(64), TRAP);
    }
    let mut symbols = BTreeMap::new();
    for part in &parts {
        errors.extend(part.relocate(&mut bytes));
        for (symbol, offset) in part.definitions() {
            if symbols.insert(symbol.clone(), offset).is_some() {
                errors.push(LinkError::Duplicate { kernel: part.kernel.to_owned(), symbol });
            }
        }
    }
    if errors.is_empty() { Ok(Image { bytes, symbols }) } else { Err(errors) }
}

/// `int3`: padding that nobody runs.
const TRAP: u8 = 0xcc;

/// One object and where its sections went.
struct Part<'a> {
    kernel: &'a str,
    file: ElfFile64<'a, Endianness>,
    sections: Vec<(SectionIndex, SectionKind)>,
    offsets: FxHashMap<SectionIndex, usize>,
}

impl<'a> Part<'a> {
    fn parse(kernel: &'a str, bytes: &'a [u8]) -> Result<Self, Vec<LinkError>> {
        let malformed =
            |reason: String| vec![LinkError::Malformed { kernel: kernel.to_owned(), reason }];
        let file = ElfFile64::<Endianness>::parse(bytes).map_err(|e| malformed(e.to_string()))?;
        if file.architecture() != object::Architecture::X86_64 {
            return Err(malformed(format!("architecture {:?}", file.architecture())));
        }
        let mut sections = Vec::new();
        let mut errors = Vec::new();
        for section in file.sections() {
            let kind = match section.kind() {
                SectionKind::Text => SectionKind::Text,
                SectionKind::ReadOnlyData | SectionKind::ReadOnlyString => {
                    SectionKind::ReadOnlyData
                }
                SectionKind::Data
                | SectionKind::UninitializedData
                | SectionKind::ReadOnlyDataWithRel
                | SectionKind::Tls
                | SectionKind::UninitializedTls
                    if section.size() > 0 =>
                {
                    let section = section.name().unwrap_or("?").to_owned();
                    errors.push(LinkError::Writable { kernel: kernel.to_owned(), section });
                    continue;
                }
                _ => continue,
            };
            // Unwind tables: kernels are `nounwind`, nothing ever walks through them.
            if section.size() > 0 && section.name() != Ok(".eh_frame") {
                sections.push((section.index(), kind));
            }
        }
        if errors.is_empty() {
            Ok(Self { kernel, file, sections, offsets: FxHashMap::default() })
        } else {
            Err(errors)
        }
    }

    /// Appends the sections of one kind.
    fn place(&mut self, wanted: SectionKind, bytes: &mut Vec<u8>) {
        for &(index, kind) in &self.sections {
            let Ok(section) = self.file.section_by_index(index) else { continue };
            if kind != wanted {
                continue;
            }
            let align = usize::try_from(section.align()).unwrap_or(1).max(16);
            bytes.resize(bytes.len().next_multiple_of(align), TRAP);
            self.offsets.insert(index, bytes.len());
            bytes.extend_from_slice(section.data().unwrap_or_default());
        }
    }

    fn relocate(&self, bytes: &mut [u8]) -> Vec<LinkError> {
        let mut errors = Vec::new();
        for (index, _) in &self.sections {
            let Ok(section) = self.file.section_by_index(*index) else { continue };
            let base = self.offsets[index];
            for (offset, relocation) in section.relocations() {
                let place = base + usize::try_from(offset).unwrap_or(usize::MAX / 2);
                match self.resolve(&relocation) {
                    Ok(target) => {
                        let distance = target - i64::try_from(place).unwrap_or(i64::MAX);
                        let field = bytes.get_mut(place..place + 4);
                        match (i32::try_from(distance), field) {
                            (Ok(distance), Some(field)) => {
                                field.copy_from_slice(&distance.to_le_bytes());
                            }
                            _ => errors.push(self.refuse("out of range", "?")),
                        }
                    }
                    Err(error) => errors.push(error),
                }
            }
        }
        errors
    }

    /// Image offset plus addend of what a relocation refers to.
    fn resolve(&self, relocation: &object::Relocation) -> Result<i64, LinkError> {
        let RelocationTarget::Symbol(index) = relocation.target() else {
            return Err(self.refuse("without symbol", "?"));
        };
        let symbol = self.file.symbol_by_index(index).map_err(|_| self.refuse("dangling", "?"))?;
        let section_name = || {
            let section = self.file.section_by_index(symbol.section_index()?).ok()?;
            Some(section.name().ok()?.to_owned())
        };
        let name = match symbol.name() {
            Ok(name) if !name.is_empty() => name.to_owned(),
            _ => section_name().unwrap_or_default(),
        };
        match relocation.flags() {
            RelocationFlags::Elf { r_type: elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 } => {}
            RelocationFlags::Elf { r_type } => {
                return Err(self.refuse(&format!("type {r_type:?}"), &name));
            }
            flags => return Err(self.refuse(&format!("{flags:?}"), &name)),
        }
        let SymbolSection::Section(section) = symbol.section() else {
            return Err(self.refuse("external", &name));
        };
        let base = *self.offsets.get(&section).ok_or_else(|| self.refuse("to no code", &name))?;
        let base = i64::try_from(base).unwrap_or(i64::MAX);
        Ok(base + symbol.address().cast_signed() + relocation.addend())
    }

    fn refuse(&self, relocation: &str, symbol: &str) -> LinkError {
        LinkError::Relocation {
            kernel: self.kernel.to_owned(),
            relocation: relocation.to_owned(),
            symbol: symbol.to_owned(),
        }
    }

    /// Global functions and their offsets.
    fn definitions(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        self.file
            .symbols()
            .filter(|symbol| symbol.is_global() && symbol.is_definition())
            .filter_map(|symbol| {
                let base = *self.offsets.get(&symbol.section_index()?)?;
                let offset = u64::try_from(base).ok()? + symbol.address();
                Some((symbol.name().ok()?.to_owned(), offset))
            })
    }
}

#[cfg(test)]
mod tests;
