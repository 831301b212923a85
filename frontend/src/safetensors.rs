//! The safetensors format: a JSON header that says where each tensor lies, then the tensors.
//!
//! ```text
//! u64 LE: length N of the header | N bytes of JSON | tensors, one after another
//! {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, "__metadata__": {..}}
//! ```
//!
//! Read as strictly as the format is written down: tensors cover the data without holes or
//! overlaps and nothing follows them, so that a file has one meaning to every reader. Tensors are
//! views of the file's bytes; nothing is copied.

use std::{fmt, path::Path, sync::Arc};

use indexmap::{IndexMap, map::Entry};
use ir::{Bytes, DType, Tensor};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::{
    FrontendError,
    json::{self, Unique},
};

/// Tensors by name, in the order of the header.
pub type Tensors = IndexMap<String, Tensor>;

/// The longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;

/// Element types of the format.
const DTYPES: &[(&str, DType)] = &[
    ("F64", DType::F64),
    ("F32", DType::F32),
    ("F16", DType::F16),
    ("BF16", DType::Bf16),
    ("F8_E4M3", DType::F8E4M3),
    ("F8_E5M2", DType::F8E5M2),
    ("I64", DType::I64),
    ("I32", DType::I32),
    ("I16", DType::I16),
    ("I8", DType::I8),
    ("U8", DType::U8),
    ("BOOL", DType::Bool),
];

/// Maps a file and reads its header.
///
/// # Errors
/// Every problem found; each names the file, and the tensor where it is about one.
pub fn open(file: &Path) -> Result<Tensors, Vec<FrontendError>> {
    let mapped = ir::map_file(file)
        .map_err(|e| vec![FrontendError::file(file, format!("cannot be read: {e}"))])?;
    let bytes: Arc<dyn Bytes> = Arc::new(mapped);
    parse(file, &bytes)
}

/// Reads the header of a file's bytes.
///
/// # Errors
/// As [`open`].
pub fn parse(file: &Path, bytes: &Arc<dyn Bytes>) -> Result<Tensors, Vec<FrontendError>> {
    let header =
        header((**bytes).as_ref()).map_err(|reason| vec![FrontendError::file(file, reason)])?;
    let mut errors = Vec::new();
    let data = header.len() + 8;
    let len = ((**bytes).as_ref().len() - data) as u64;

    let entries = entries(file, header, &mut errors);
    if errors.is_empty() {
        check_cover(file, &entries, len, &mut errors);
    }
    let mut tensors = Tensors::with_capacity(entries.len());
    for (name, e) in entries {
        let at = usize::try_from(e.begin).ok().and_then(|b| b.checked_add(data));
        let tensor = at.map(|at| Tensor::new(e.dtype, &e.shape, bytes.clone(), at));
        match tensor {
            Some(Ok(tensor)) => {
                tensors.insert(name, tensor);
            }
            // What is left here is a tensor beyond the end, which `check_cover` has reported.
            _ if !errors.is_empty() => {}
            _ => errors.push(FrontendError::tensor(file, &name, "lies outside of the file")),
        }
    }
    if errors.is_empty() { Ok(tensors) } else { Err(errors) }
}

/// The JSON of the header.
fn header(bytes: &[u8]) -> Result<&[u8], String> {
    let Some((len, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!(
            "has {} bytes, too few for a safetensors file; is it complete?",
            bytes.len()
        ));
    };
    let len = u64::from_le_bytes(*len);
    if len > MAX_HEADER {
        return Err(format!(
            "says that its header has {len} bytes, the format allows {MAX_HEADER}; this is not a \
             safetensors file, or a damaged one"
        ));
    }
    let header = usize::try_from(len).ok().and_then(|len| rest.get(..len)).ok_or_else(|| {
        let have = rest.len();
        format!("says that its header has {len} bytes, but {have} follow; is it complete?")
    })?;
    if header.first() != Some(&b'{') {
        return Err("has a header that does not begin with `{`; this is not safetensors".into());
    }
    Ok(header)
}

/// One tensor as the header declares it, consistent in itself.
struct Declared {
    dtype: DType,
    shape: Vec<usize>,
    begin: u64,
    end: u64,
}

/// Reads every entry, reporting those that make no sense.
fn entries(
    file: &Path,
    header: &[u8],
    errors: &mut Vec<FrontendError>,
) -> IndexMap<String, Declared> {
    let mut entries = IndexMap::new();
    let mut found = Vec::new();
    let mut de = serde_json::Deserializer::from_slice(header);
    let read = Header { file, entries: &mut entries, errors: &mut found }
        .deserialize(&mut de)
        .and_then(|()| de.end());
    if let Err(e) = read {
        errors.push(FrontendError::file(file, format!("has a header that is not valid JSON: {e}")));
    }
    errors.append(&mut found);
    entries
}

/// Deserializes the header entry by entry, so that a large one is never held as a tree.
struct Header<'a> {
    file: &'a Path,
    entries: &'a mut IndexMap<String, Declared>,
    errors: &'a mut Vec<FrontendError>,
}

impl<'de> DeserializeSeed<'de> for Header<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<(), D::Error> {
        de.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Header<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut metadata = 0;
        while let Some(name) = map.next_key::<String>()? {
            let mut repeated = Vec::new();
            let value = map.next_value_seed(Unique { path: "", repeated: &mut repeated })?;
            let mut fail = |reason: String| {
                self.errors.push(FrontendError::tensor(self.file, &name, reason));
            };
            for key in repeated {
                fail(format!("repeats the key `{key}`"));
            }
            if name == "__metadata__" {
                metadata += 1;
                if metadata > 1 || !is_metadata(&value) {
                    let reason = "has a `__metadata__` that is repeated or no object of strings";
                    self.errors.push(FrontendError::file(self.file, reason));
                }
                continue;
            }
            match declared(&value) {
                Ok(declared) => match self.entries.entry(name.clone()) {
                    Entry::Vacant(slot) => {
                        slot.insert(declared);
                    }
                    Entry::Occupied(_) => fail("is declared more than once".into()),
                },
                Err(reasons) => reasons.into_iter().for_each(fail),
            }
        }
        Ok(())
    }
}

fn is_metadata(value: &Value) -> bool {
    value.as_object().is_some_and(|m| m.values().all(Value::is_string))
}

/// Reads one entry.
fn declared(value: &Value) -> Result<Declared, Vec<String>> {
    let Some(map) = value.as_object() else {
        return Err(vec![format!("is declared by {}, not an object", json::kind(value))]);
    };
    let mut reasons = Vec::new();
    for key in map.keys().filter(|k| !["dtype", "shape", "data_offsets"].contains(&k.as_str())) {
        reasons.push(format!("has an unknown key `{key}`"));
    }
    let mut field = |name: &str, wanted: &str| match map.get(name) {
        Some(v) => reasons.push(format!("has `{name}` {}, expected {wanted}", json::shown(v))),
        None => reasons.push(format!("has no `{name}`")),
    };
    let numbers = |name: &str| {
        let list = map.get(name)?.as_array()?;
        list.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>()
    };
    let dtype = map.get("dtype").and_then(Value::as_str);
    let dtype = DTYPES.iter().find(|(name, _)| Some(*name) == dtype).map(|(_, d)| *d);
    if dtype.is_none() {
        let known: Vec<&str> = DTYPES.iter().map(|(name, _)| *name).collect();
        field("dtype", &format!("one of {}", known.join(", ")));
    }
    let shape = numbers("shape");
    if shape.is_none() {
        field("shape", "a list of sizes");
    }
    let offsets = numbers("data_offsets").and_then(|v| <[u64; 2]>::try_from(v).ok());
    if offsets.is_none_or(|[begin, end]| begin > end) {
        field("data_offsets", "[begin, end] with begin not above end");
    }
    let (Some(dtype), Some(shape), Some([begin, end]), true) =
        (dtype, shape, offsets, reasons.is_empty())
    else {
        return Err(reasons);
    };
    // An empty tensor may have large extents, but strides over them must not overflow either.
    let span = shape.iter().try_fold(dtype.size() as u64, |n, d| n.checked_mul((*d).max(1)));
    if span.is_none_or(|n| isize::try_from(n).is_err()) {
        return Err(vec![format!("has the shape {shape:?}, too large for any memory")]);
    }
    let bytes = shape.iter().product::<u64>() * dtype.size() as u64;
    let extents: Option<Vec<usize>> = shape.iter().map(|d| usize::try_from(*d).ok()).collect();
    match extents {
        Some(shape) if bytes == end - begin => Ok(Declared { dtype, shape, begin, end }),
        _ => Err(vec![format!("has {} bytes, but {dtype}{shape:?} takes {bytes}", end - begin)]),
    }
}

/// Checks that the tensors cover `0..len` once.
fn check_cover(
    file: &Path,
    entries: &IndexMap<String, Declared>,
    len: u64,
    errors: &mut Vec<FrontendError>,
) {
    let mut order: Vec<(&String, &Declared)> = entries.iter().collect();
    order.sort_by_key(|(_, e)| (e.begin, e.end));
    let mut covered = 0;
    let mut last = "the beginning of the data";
    for (name, e) in order {
        let mut fail = |reason: String| errors.push(FrontendError::tensor(file, name, reason));
        if e.begin < covered {
            fail(format!("begins at {}, inside of {last}, which ends at {covered}", e.begin));
        } else if e.begin > covered {
            fail(format!("begins at {}, leaving a hole after {last} at {covered}", e.begin));
        }
        if e.end > len {
            fail(format!("ends at {}, but the file holds {len} bytes; is it complete?", e.end));
        }
        if e.end >= covered {
            covered = e.end;
            last = name;
        }
    }
    if covered < len {
        let extra = len - covered;
        let reason = format!("has {extra} bytes after its last tensor, where it must end");
        errors.push(FrontendError::file(file, reason));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = r#"{"__metadata__":{"format":"pt"},
        "b":{"dtype":"BF16","shape":[3,2],"data_offsets":[8,20]},
        "a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
        "e":{"dtype":"I64","shape":[0,4],"data_offsets":[20,20]}}  "#;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend((0..data).map(|i| u8::try_from(i % 251).unwrap()));
        bytes
    }

    fn read(bytes: Vec<u8>) -> Result<Tensors, Vec<FrontendError>> {
        let bytes: Arc<dyn Bytes> = Arc::new(bytes);
        parse(Path::new("m.safetensors"), &bytes)
    }

    fn problems(bytes: Vec<u8>) -> Vec<String> {
        match read(bytes) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn tensors_are_views_in_the_order_of_the_header() {
        let tensors = read(file(GOOD, 20)).unwrap();
        let names: Vec<_> = tensors.keys().map(String::as_str).collect();
        assert_eq!(names, ["b", "a", "e"]);
        assert_eq!(tensors["b"].shape(), [3, 2]);
        assert_eq!(tensors["b"].dtype(), DType::Bf16);
        assert_eq!(tensors["b"].as_bytes().unwrap(), (8..20).collect::<Vec<u8>>());
        assert!(tensors["e"].is_empty());
    }

    #[test]
    fn an_empty_header_is_an_empty_file_of_tensors() {
        assert!(read(file("{}", 0)).unwrap().is_empty());
    }

    #[test]
    fn every_element_type_of_the_format_is_read() {
        for (name, dtype) in DTYPES {
            let end = dtype.size() * 3;
            let header =
                format!(r#"{{"x":{{"dtype":"{name}","shape":[3],"data_offsets":[0,{end}]}}}}"#);
            let tensors = read(file(&header, end)).unwrap();
            assert_eq!(tensors["x"].dtype(), *dtype);
        }
    }

    #[test]
    fn lies_about_the_header_are_refused() {
        let good = file(GOOD, 20);
        for n in 0..good.len() {
            assert!(!problems(good[..n].to_vec()).is_empty(), "cut to {n} bytes");
        }
        let with_length = |n: u64| {
            let mut bytes = good.clone();
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            problems(bytes).remove(0)
        };
        assert!(with_length(u64::MAX).contains("the format allows"));
        assert!(with_length(MAX_HEADER + 1).contains("the format allows"));
        assert!(with_length(10_000).contains("says that its header has 10000 bytes"));
        assert!(with_length(0).contains("does not begin with"));
        assert!(with_length(40).contains("not valid JSON"));
    }

    #[test]
    fn all_problems_of_all_tensors_are_reported() {
        let header = r#"{"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]},
            "b":{"dtype":"F32","shape":[-2],"data_offsets":[8]},
            "c":{"dtype":"F32","shape":[3],"data_offsets":[8,16]},
            "d":{"dtype":"F32","dtype":"F16","shape":[0,4294967296,4294967296],"data_offsets":[0,0]},
            "e":7, "c2":{"dtype":"U8","shape":[1],"data_offsets":[3,2],"more":1},
            "f":{"dtype":"U8","shape":[],"data_offsets":[0,1]},
            "f":{"dtype":"U8","shape":[],"data_offsets":[0,1]},
            "__metadata__":{"n":1}}"#;
        let problems = problems(file(header, 16));
        for expected in [
            "tensor `a` has `dtype` \"F31\", expected one of F64, F32",
            "tensor `b` has `shape` [-2], expected a list of sizes",
            "tensor `b` has `data_offsets` [8], expected",
            "tensor `c` has 8 bytes, but f32[3] takes 12",
            "tensor `d` repeats the key `dtype`",
            "tensor `d` has the shape [0, 4294967296, 4294967296], too large",
            "tensor `e` is declared by a number, not an object",
            "tensor `c2` has an unknown key `more`",
            "tensor `c2` has `data_offsets` [3,2], expected",
            "tensor `f` is declared more than once",
            "`__metadata__` that is repeated or no object of strings",
        ] {
            assert!(problems.iter().any(|p| p.contains(expected)), "{expected}\n{problems:#?}");
        }
        assert_eq!(problems.len(), 11, "{problems:#?}");
    }

    #[test]
    fn tensors_must_cover_the_data_exactly() {
        let two = |a: [u64; 2], b: [u64; 2], data: usize| {
            let entry = |[begin, end]: [u64; 2]| {
                let n = end - begin;
                format!(r#"{{"dtype":"U8","shape":[{n}],"data_offsets":[{begin},{end}]}}"#)
            };
            problems(file(&format!(r#"{{"b":{},"a":{}}}"#, entry(b), entry(a)), data)).join("\n")
        };
        assert_eq!(two([0, 4], [4, 8], 8), "");
        assert!(two([0, 4], [3, 7], 7).contains("`b` begins at 3, inside of a, which ends at 4"));
        assert!(two([0, 4], [0, 4], 4).contains("begins at 0, inside of"));
        assert!(two([0, 4], [5, 9], 9).contains("`b` begins at 5, leaving a hole after a at 4"));
        assert!(two([1, 4], [4, 8], 8).contains("leaving a hole after the beginning of the data"));
        assert!(two([0, 4], [4, 8], 7).contains("ends at 8, but the file holds 7 bytes"));
        assert!(two([0, 4], [4, 8], 9).contains("has 1 bytes after its last tensor"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn noise_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(read(bytes).is_err());
        }

        #[test]
        fn a_damaged_file_is_refused_or_still_lies_within_its_bytes(
            edits in prop::collection::vec((0..230usize, any::<u8>()), 1..6),
            data in 0..40usize,
        ) {
            let mut bytes = file(GOOD, data);
            for (at, byte) in edits {
                let n = bytes.len();
                bytes[at % n] = byte;
            }
            if let Ok(tensors) = read(bytes) {
                let total: usize = tensors.values().map(|t| t.as_bytes().unwrap().len()).sum();
                prop_assert_eq!(total, data);
            }
        }
    }
}
