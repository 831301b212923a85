//! The file itself: protobuf, and what the model declares of itself.

use std::path::Path;

use onnx_protobuf::{Message, ModelProto};

use crate::FrontendError;

/// Oldest opset of the default domain that is imported; before it, broadcasting was an attribute.
pub const OLDEST_OPSET: i64 = 7;

/// Newest opset of the default domain that is known.
pub const NEWEST_OPSET: i64 = 28;

/// Parses a file. Nesting is limited by the parser, and no length is believed before its bytes are
/// there.
///
/// # Errors
/// Where the file cannot be read or is not an ONNX model.
pub(super) fn read(path: &Path) -> Result<ModelProto, Vec<FrontendError>> {
    let fail = |reason: String| vec![FrontendError::file(path, reason)];
    let bytes = ir::map_file(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
    let model = ModelProto::parse_from_bytes(bytes.as_ref())
        .map_err(|e| fail(format!("is not an ONNX model, or is damaged or cut off: {e}")))?;
    if model.graph.is_none() {
        return Err(fail("is not an ONNX model: it holds no graph".into()));
    }
    Ok(model)
}

/// The opset of the default domain that the model asks for.
///
/// # Errors
/// Where it names none, two that differ, or one that is not supported.
pub(super) fn opset(path: &Path, model: &ModelProto) -> Result<i64, Vec<FrontendError>> {
    let fail = |reason: String| Err(vec![FrontendError::file(path, reason)]);
    let mut versions = model
        .opset_import
        .iter()
        .filter(|o| default_domain(&o.domain))
        .map(|o| o.version)
        .collect::<Vec<_>>();
    versions.dedup();
    match versions.as_slice() {
        [v] if (OLDEST_OPSET..=NEWEST_OPSET).contains(v) => Ok(*v),
        [v] => fail(format!(
            "asks for opset {v}; {OLDEST_OPSET} to {NEWEST_OPSET} are supported: export it again \
             with an opset in that range"
        )),
        [] => fail("asks for no opset of the default domain (`opset_import`)".into()),
        all => fail(format!("asks for several opsets of the default domain: {all:?}")),
    }
}

/// Whether a domain is that of the standard operators.
pub(super) fn default_domain(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}
