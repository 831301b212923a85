//! Where everything lies in the file: offsets and header follow from the manifest alone.

use std::{fmt::Write as _, ops::Range};

use super::{Digest, Manifest, PAGE};
use crate::DType;

/// Names of the metadata entries.
pub(super) const MANIFEST_KEY: &str = "brolly.manifest";
pub(super) const DIGEST_KEY: &str = "brolly.digest";

/// Sections smaller than a page begin on a multiple of a cache line.
const LINE: u64 = 64;

/// What other readers of safetensors accept as a header.
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A tensor of the safetensors file.
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: &'static str,
    pub(super) shape: Vec<u64>,
    pub(super) range: Range<u64>,
}

impl Entry {
    pub(super) fn is_padding(&self) -> bool {
        self.name.starts_with(PADDING)
    }
}

const PADDING: &str = "__pad.";
const METADATA: &str = "__metadata__";
const SECTIONS: [&str; 4] = ["__code.cpu", "__code.cuda", "__text", "__report"];

/// Whether a name is one that the file uses for itself.
pub(super) fn is_reserved(name: &str) -> bool {
    name == METADATA || SECTIONS.contains(&name) || name.starts_with(PADDING)
}

/// The offset of each section (code, text, report, then weights) for its bytes, and the end of the
/// last. `None` where the sum leaves 63 bits.
pub(super) fn offsets(manifest: &Manifest) -> Option<(Vec<u64>, u64)> {
    let mut end = 0u64;
    let mut offsets = Vec::with_capacity(3 + manifest.weights.len());
    for bytes in sizes(manifest) {
        let align = if bytes >= PAGE { PAGE } else { LINE };
        let offset = end.checked_next_multiple_of(align)?;
        offsets.push(offset);
        end = offset.checked_add(bytes).filter(|end| i64::try_from(*end).is_ok())?;
    }
    Some((offsets, end))
}

/// Writes the offsets that follow from the sizes into the manifest; returns the bytes of the data
/// in the file.
pub(super) fn place(manifest: &mut Manifest) -> Option<u64> {
    let (offsets, end) = offsets(manifest)?;
    let Manifest { code, text, report, weights, .. } = manifest;
    let fields = [&mut code.offset, &mut text.offset, &mut report.offset];
    let fields = fields.into_iter().chain(weights.iter_mut().map(|w| &mut w.offset));
    for (field, offset) in fields.zip(offsets) {
        *field = offset;
    }
    // What is in the file ends with the report where weights are made.
    let stored = manifest.report.offset + manifest.report.bytes;
    Some(if manifest.random.is_some() { stored } else { end })
}

/// Every tensor of the file in order, padding included. The manifest's offsets must be those of
/// [`place`].
pub(super) fn entries(manifest: &Manifest) -> Vec<Entry> {
    let Manifest { code, text, report, weights, .. } = manifest;
    let [cpu, cuda, text_name, report_name] = SECTIONS;
    let code_name = if manifest.target.cuda.is_some() { cuda } else { cpu };
    let names = [code_name, text_name, report_name];
    let sections = names.into_iter().zip([code, text, report]).map(|(name, s)| Entry {
        name: name.to_owned(),
        dtype: "U8",
        shape: vec![s.bytes],
        range: s.offset..s.offset + s.bytes,
    });
    let stored = if manifest.random.is_some() { &[][..] } else { weights };
    let weights = stored.iter().map(|w| Entry {
        name: w.name.clone(),
        dtype: safetensors_dtype(w.dtype),
        shape: w.shape.clone(),
        range: w.offset..w.offset + w.bytes,
    });
    let mut out: Vec<Entry> = Vec::new();
    let (mut end, mut pads) = (0, 0);
    for entry in sections.chain(weights) {
        let gap = end..entry.range.start;
        if !gap.is_empty() {
            let (name, bytes) = (format!("{PADDING}{pads}"), gap.end - gap.start);
            out.push(Entry { name, dtype: "U8", shape: vec![bytes], range: gap });
            pads += 1;
        }
        end = entry.range.end;
        out.push(entry);
    }
    out
}

/// The first bytes of the file: length and JSON, padded so that the data begin on a page boundary.
pub(super) fn header(manifest: &Manifest) -> Vec<u8> {
    let manifest_text = serde_json::to_string(manifest).unwrap_or_default();
    let digest = Digest::of(manifest_text.as_bytes());
    let mut json = format!(
        "{{\"{METADATA}\":{{\"{DIGEST_KEY}\":\"{digest}\",\"{MANIFEST_KEY}\":{}}}",
        quoted(&manifest_text)
    );
    for Entry { name, dtype, shape, range } in entries(manifest) {
        let name = quoted(&name);
        let (start, end) = (range.start, range.end);
        // Writing to a String cannot fail.
        let _ = write!(
            json,
            ",{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{start},{end}]}}"
        );
    }
    json.push('}');
    let page = usize::try_from(PAGE).unwrap_or(usize::MAX);
    let bytes = (8 + json.len()).next_multiple_of(page) - 8;
    let mut out = Vec::with_capacity(8 + bytes);
    out.extend_from_slice(&(bytes as u64).to_le_bytes());
    out.extend_from_slice(json.as_bytes());
    out.resize(8 + bytes, b' ');
    out
}

fn sizes(manifest: &Manifest) -> impl Iterator<Item = u64> + '_ {
    let Manifest { code, text, report, weights, .. } = manifest;
    [code.bytes, text.bytes, report.bytes].into_iter().chain(weights.iter().map(|w| w.bytes))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Four-bit types, which safetensors lacks, travel as bytes, one value each as in memory.
fn safetensors_dtype(dtype: DType) -> &'static str {
    match dtype {
        DType::F64 => "F64",
        DType::F32 => "F32",
        DType::Bf16 => "BF16",
        DType::F16 => "F16",
        DType::F8E4M3 => "F8_E4M3",
        DType::F8E5M2 => "F8_E5M2",
        DType::I64 => "I64",
        DType::I32 => "I32",
        DType::I16 => "I16",
        DType::I8 => "I8",
        DType::Bool => "BOOL",
        DType::U8 | DType::I4 | DType::U4 => "U8",
    }
}
