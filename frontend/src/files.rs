//! The files that a model consists of, found without importing it.
//!
//! For whoever must know whether a model has changed: what is not listed has no influence on what
//! is compiled. The tokenizer's files are among them, since artifacts carry their text. Of an
//! `.onnx` file only the names of external data are looked for, by a walk over the protobuf that
//! steps over everything else.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

use serde_json::Value;

/// Files at the top of a folder whose contents a compile reads, where they are there.
const TOP: &[&str] = &[
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
];

/// Further chat templates.
const TEMPLATES: &str = "additional_chat_templates";

/// Every file that a model consists of, in order and each once; those only that are there.
///
/// A model that cannot be imported has a list too: of what can be found.
pub fn model_files(model: &Path) -> Vec<PathBuf> {
    let mut files: BTreeSet<PathBuf> = BTreeSet::new();
    if model.is_dir() {
        files.extend(TOP.iter().map(|name| model.join(name)));
        files.extend(shards(model).iter().filter_map(|name| below(model, name)));
        files.extend(pooling(model));
        let templates = fs::read_dir(model.join(TEMPLATES)).into_iter().flatten();
        let templates = templates.filter_map(|entry| Some(entry.ok()?.path()));
        files.extend(templates.filter(|path| path.extension().is_some_and(|e| e == "jinja")));
    } else {
        files.insert(model.into());
        let folder = model.parent().unwrap_or(Path::new(""));
        let bytes = ir::map_file(model);
        let names = bytes.map(|bytes| external_data(bytes.as_ref())).unwrap_or_default();
        files.extend(names.iter().filter_map(|name| below(folder, name)));
    }
    files.into_iter().filter(|file| file.is_file()).collect()
}

/// A name that does not lead out of the folder; others are refused when they are imported.
fn below(folder: &Path, name: &str) -> Option<PathBuf> {
    let plain = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
    let is_plain = !name.contains('\0') && Path::new(name).components().all(plain);
    is_plain.then(|| folder.join(name))
}

fn json(file: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

/// Names of a checkpoint's shards.
fn shards(folder: &Path) -> Vec<String> {
    let index = json(&folder.join("model.safetensors.index.json"));
    let map = index.as_ref().and_then(|index| index.get("weight_map")?.as_object());
    let names = map.into_iter().flat_map(|map| map.values()).filter_map(Value::as_str);
    names.map(str::to_owned).collect()
}

/// Configs of the modules of a sentence-transformers model.
fn pooling(folder: &Path) -> Vec<PathBuf> {
    let modules = json(&folder.join("modules.json"));
    let modules = modules.as_ref().and_then(Value::as_array).into_iter().flatten();
    let paths = modules.filter_map(|module| below(folder, module.get("path")?.as_str()?));
    paths.map(|path| path.join("config.json")).collect()
}

/// A message of the ONNX schema, as far as it leads to external data.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Graph,
    Function,
    Node,
    Attribute,
    Sparse,
    Tensor,
    Entry,
}

impl Message {
    /// The message in a field.
    fn field(self, number: u64) -> Option<Message> {
        use Message::*;
        Some(match (self, number) {
            (Model, 7) | (Attribute, 6 | 11) => Graph,
            (Model, 25) => Function,
            (Graph, 1) | (Function, 7) => Node,
            (Node, 5) => Attribute,
            (Graph, 5) | (Attribute, 5 | 10) | (Sparse, 1 | 2) => Tensor,
            (Graph, 15) | (Attribute, 22 | 23) => Sparse,
            (Tensor, 13) => Entry,
            _ => return None,
        })
    }
}

/// Nesting beyond which the importer's parser gives up as well.
const DEEPEST: usize = 100;

/// The `location`s of the external data of a file's tensors.
fn external_data(bytes: &[u8]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    walk(Message::Model, bytes, 0, &mut names);
    names
}

fn walk(message: Message, mut bytes: &[u8], depth: usize, names: &mut BTreeSet<String>) {
    let (mut key, mut value) = (&[][..], &[][..]);
    while let Some((number, payload)) = field(&mut bytes) {
        match (message, number) {
            (Message::Entry, 1) => key = payload,
            (Message::Entry, 2) => value = payload,
            _ => {
                if let Some(inner) = message.field(number).filter(|_| depth < DEEPEST) {
                    walk(inner, payload, depth + 1, names);
                }
            }
        }
    }
    if key == b"location"
        && let Ok(name) = std::str::from_utf8(value)
    {
        names.insert(name.to_owned());
    }
}

/// The next field and its bytes, none for a number; `None` at the end or where bytes make no sense.
fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, &'a [u8])> {
    let tag = varint(bytes)?;
    let length = match tag & 7 {
        0 => {
            varint(bytes)?;
            0
        }
        1 => 8,
        2 => usize::try_from(varint(bytes)?).ok()?,
        5 => 4,
        _ => return None,
    };
    let (payload, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some((tag >> 3, payload))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use onnx_protobuf::{
        AttributeProto, GraphProto, Message as _, ModelProto, NodeProto, StringStringEntryProto,
        TensorProto,
    };

    use super::*;

    fn tensor(location: &str) -> TensorProto {
        let entry = |key: &str, value: &str| StringStringEntryProto {
            key: key.into(),
            value: value.into(),
            ..Default::default()
        };
        TensorProto {
            raw_data: vec![7; 300],
            external_data: vec![entry("offset", "4096"), entry("location", location)],
            ..Default::default()
        }
    }

    #[test]
    fn external_data_are_found_wherever_tensors_are() {
        let inner = GraphProto { initializer: vec![tensor("deep.bin")], ..Default::default() };
        let attribute = AttributeProto {
            t: Some(tensor("sub/constant.bin")).into(),
            graphs: vec![inner],
            i: -1,
            f: 0.5,
            ..Default::default()
        };
        let node = NodeProto { attribute: vec![attribute], ..Default::default() };
        let graph = GraphProto {
            node: vec![node],
            initializer: vec![tensor("weights.bin"), tensor("weights.bin")],
            ..Default::default()
        };
        let model = ModelProto { ir_version: 9, graph: Some(graph).into(), ..Default::default() };
        let bytes = model.write_to_bytes().unwrap();
        let names: Vec<_> = external_data(&bytes).into_iter().collect();
        assert_eq!(names, ["deep.bin", "sub/constant.bin", "weights.bin"]);
        for end in 0..bytes.len() {
            external_data(&bytes[..end]);
        }
    }

    #[test]
    fn a_model_is_its_files_and_nothing_beside_them() {
        let root = std::env::temp_dir().join(format!("brolly-files-{}", std::process::id()));
        let put = |name: &str, text: &[u8]| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let list = |model: &str| -> Vec<String> {
            let files = model_files(&root.join(model));
            let name = |file: &PathBuf| file.strip_prefix(&root).unwrap().display().to_string();
            files.iter().map(name).collect()
        };
        let index =
            r#"{"weight_map": {"a": "x-1.safetensors", "b": "../no", "c": "x-1.safetensors"}}"#;
        put("m/config.json", b"{}");
        put("m/model.safetensors.index.json", index.as_bytes());
        put("m/x-1.safetensors", b"");
        put("m/modules.json", br#"[{"path": "", "type": "T"}, {"path": "1_Pooling"}]"#);
        put("m/1_Pooling/config.json", b"{}");
        put("m/additional_chat_templates/rag.jinja", b"");
        put("m/out.json", b"");
        put("m/other.safetensors", b"");
        put("no", b"");
        assert_eq!(
            list("m"),
            [
                "m/1_Pooling/config.json",
                "m/additional_chat_templates/rag.jinja",
                "m/config.json",
                "m/model.safetensors.index.json",
                "m/modules.json",
                "m/x-1.safetensors",
            ]
        );
        let graph = GraphProto {
            initializer: vec![tensor("data/w.bin"), tensor("/etc/passwd"), tensor("missing")],
            ..Default::default()
        };
        let model = ModelProto { graph: Some(graph).into(), ..Default::default() };
        put("o/model.onnx", &model.write_to_bytes().unwrap());
        put("o/data/w.bin", b"");
        put("o/y.npy", b"");
        assert_eq!(list("o/model.onnx"), ["o/data/w.bin", "o/model.onnx"]);
        fs::remove_dir_all(root).unwrap();
    }
}
