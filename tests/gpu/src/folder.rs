//! A folder of cases.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use cuda::Param;
use ir::DType;

use crate::{Case, Check, Operand, Source};

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaseError {
    /// A file or folder cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Cases that are wrong, all of them.
    #[error("the cases are not whole; write the folder again:\n  {}", .0.join("\n  "))]
    Cases(Vec<String>),
}

/// A folder of cases.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> CaseError {
    let path = path.to_path_buf();
    move |source| CaseError::File { path, source }
}

/// The beginning of a digest, as text.
fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..16].to_owned()
}

impl Folder {
    /// The folder at `root`.
    #[must_use]
    pub fn new(root: &Path) -> Folder {
        Folder { root: root.to_path_buf() }
    }

    /// Writes bytes to `data/` and returns the name; the same bytes are written once.
    ///
    /// # Errors
    /// [`CaseError::File`].
    pub fn write_data(&self, bytes: &[u8]) -> Result<String, CaseError> {
        let name = format!("{}.bin", digest(bytes));
        self.write("data", &name, || Ok(bytes.to_vec()))?;
        Ok(name)
    }

    /// Writes what `assemble` makes of a PTX text to `kernels/` and returns the name; for the same
    /// text and extension, it is made once.
    ///
    /// # Errors
    /// [`CaseError::File`], also of `assemble`.
    pub fn write_kernel(
        &self,
        ptx: &str,
        extension: &str,
        assemble: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> Result<String, CaseError> {
        let name = format!("{}.{extension}", digest(ptx.as_bytes()));
        self.write("kernels", &name, assemble)?;
        Ok(name)
    }

    /// Writes a case.
    ///
    /// # Errors
    /// [`CaseError::File`].
    pub fn write_case(&self, case: &Case) -> Result<(), CaseError> {
        let text = serde_json::to_string_pretty(case).expect("plain data");
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let stem: String = case.name.chars().map(plain).collect();
        let name = format!("{}-{stem}-{}.json", case.family, &digest(text.as_bytes())[..8]);
        self.write("cases", &name, || Ok(text.into_bytes()))
    }

    /// Writes a file that is not there yet, in one step: several threads may write the same.
    fn write(
        &self,
        part: &str,
        name: &str,
        bytes: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> Result<(), CaseError> {
        let folder = self.root.join(part);
        let path = folder.join(name);
        if path.exists() {
            return Ok(());
        }
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
        let bytes = bytes().map_err(failed(&path))?;
        let thread = format!("{:?}", std::thread::current().id());
        let draft = folder.join(format!(".{name}.{}.{thread}", std::process::id()));
        fs::write(&draft, bytes).map_err(failed(&draft))?;
        fs::rename(&draft, &path).map_err(failed(&path))
    }

    /// Reads a file of `data/`.
    ///
    /// # Errors
    /// [`CaseError::File`].
    pub fn data(&self, name: &str) -> Result<Vec<u8>, CaseError> {
        let path = self.root.join("data").join(name);
        fs::read(&path).map_err(failed(&path))
    }

    /// Reads a file of `kernels/`.
    ///
    /// # Errors
    /// [`CaseError::File`].
    pub fn kernel(&self, name: &str) -> Result<Vec<u8>, CaseError> {
        let path = self.root.join("kernels").join(name);
        fs::read(&path).map_err(failed(&path))
    }

    /// Reads all cases, sorted by the names of their files.
    ///
    /// # Errors
    /// [`CaseError::Cases`] with all that is wrong with any of them: no JSON, unknown or missing
    /// fields, files that are missing or of the wrong size, arguments that do not exist.
    pub fn read(&self) -> Result<Vec<Case>, CaseError> {
        let folder = self.root.join("cases");
        let entries = fs::read_dir(&folder).map_err(failed(&folder))?;
        let entries = entries.collect::<io::Result<Vec<_>>>().map_err(failed(&folder))?;
        let mut paths: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
        paths.retain(|path| path.extension().is_some_and(|e| e == "json"));
        paths.sort();
        let (mut cases, mut wrong) = (Vec::new(), Vec::new());
        for path in &paths {
            let text = fs::read_to_string(path).map_err(failed(path))?;
            match serde_json::from_str::<Case>(&text) {
                Ok(case) => {
                    let problems = self.problems(&case);
                    wrong.extend(problems.into_iter().map(|p| format!("{}: {p}", path.display())));
                    cases.push(case);
                }
                Err(error) => wrong.push(format!("{}: {error}", path.display())),
            }
        }
        if cases.is_empty() && wrong.is_empty() {
            wrong.push(format!("{} holds no cases", folder.display()));
        }
        if wrong.is_empty() { Ok(cases) } else { Err(CaseError::Cases(wrong)) }
    }

    /// What is wrong with a case.
    fn problems(&self, case: &Case) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut file = |part: &str, name: &str, bytes: Option<usize>| {
            let path = self.root.join(part).join(name);
            match fs::metadata(&path) {
                Err(error) => wrong.push(format!("{part}/{name}: {error}")),
                Ok(found) if bytes.is_some_and(|bytes| found.len() != bytes as u64) => {
                    let (has, needs) = (found.len(), bytes.unwrap_or_default());
                    wrong.push(format!("{part}/{name} has {has} bytes, not {needs}"));
                }
                Ok(_) => {}
            }
        };
        file("kernels", &case.module, None);
        for operand in case.operands.iter().flatten() {
            if let Source::File(name) = &operand.source {
                file("data", name, operand.bytes());
            }
        }
        if let Check::Whole { files, .. } = &case.check {
            for (name, result) in files.iter().zip(&case.results) {
                file("data", name, result.bytes());
            }
            if files.len() != case.results.len() {
                let (files, results) = (files.len(), case.results.len());
                wrong.push(format!("{files} expected results, {results} results"));
            }
        }
        for (index, operand) in case.operands.iter().enumerate() {
            let Some(operand) = operand else { continue };
            let suits = match operand.source {
                Source::File(_) => true,
                Source::Noise(_) => matches!(operand.dtype, DType::Bf16 | DType::F32),
                Source::Lanes { bits, .. } => is_lanes(operand, bits),
                Source::E4m3 { values, .. } => {
                    let rest = operand.shape.last().and_then(|unit| unit.checked_sub(values));
                    operand.dtype == DType::U8 && rest.is_some_and(|rest| rest % 4 == 0)
                }
            };
            if !suits || operand.bytes().is_none() {
                let (dtype, shape) = (operand.dtype, &operand.shape);
                wrong.push(format!("operand {index} is {dtype} {shape:?}: {:?}", operand.source));
            }
        }
        for (index, result) in case.results.iter().enumerate() {
            let shares = result.in_place.map(|operand| case.operands.get(operand as usize));
            let fits = match shares {
                None => result.bytes().is_some(),
                Some(operand) => operand
                    .and_then(Option::as_ref)
                    .is_some_and(|o| o.bytes() == result.bytes() && o.bytes().is_some()),
            };
            if !fits {
                wrong.push(format!("result {index} does not fit the memory it is in: {result:?}"));
            }
        }
        wrong.extend(arguments(case));
        for same in &case.same {
            let all = case.results.first().and_then(crate::Output::bytes).unwrap_or(0);
            if same.offset.checked_add(same.bytes).is_none_or(|end| end > all) {
                wrong.push(format!("bytes {}+{} of {all} are compared", same.offset, same.bytes));
            }
        }
        wrong
    }
}

fn is_lanes(operand: &Operand, bits: usize) -> bool {
    let group = operand.shape.last().copied();
    operand.dtype == DType::U8 && matches!(bits, 4 | 8) && group == Some(ir::quant_lane_bytes(bits))
}

/// Arguments that do not exist.
fn arguments(case: &Case) -> Vec<String> {
    let count = case.operands.len() + case.results.len();
    let absent = |arg: u32| {
        let arg = arg as usize;
        arg >= count || case.operands.get(arg).is_some_and(Option::is_none)
    };
    let wrong = |(index, param): (usize, &Param)| {
        let arg = match param {
            Param::Pointer { arg, .. } => *arg,
            Param::Map(map) => map.arg,
            Param::Size(_) => return None,
        };
        absent(arg).then(|| format!("parameter {index} is argument {arg}, which there is not"))
    };
    case.launch.params.iter().enumerate().filter_map(wrong).collect()
}

#[cfg(test)]
mod tests;
