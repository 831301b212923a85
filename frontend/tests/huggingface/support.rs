//! Fixtures, folders made from them, and the interpreter.

use std::{
    fs,
    path::{Path, PathBuf},
};

use brolly_frontend::{FrontendError, ImportOptions, Imported, import, safetensors};
use ir::{DType, Env, Interpreter, ModelKind, Precision, Tensor};
use serde_json::{Value, json};

/// A folder of `tests/data/families`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/families").join(name)
}

/// A folder of its own, copied from a fixture, to be changed.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    /// Copies a fixture; `test` names the copy.
    pub(crate) fn copy(test: &str, name: &str) -> Folder {
        let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
        let _ = fs::remove_dir_all(&to);
        fs::create_dir_all(&to).unwrap();
        for entry in fixture(name).read_dir().unwrap() {
            let from = entry.unwrap().path();
            fs::copy(&from, to.join(from.file_name().unwrap())).unwrap();
        }
        Folder(to)
    }

    pub(crate) fn write(&self, file: &str, bytes: impl AsRef<[u8]>) {
        let path = self.0.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Changes a JSON file.
    pub(crate) fn edit(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&fs::read(self.0.join(file)).unwrap()).unwrap();
        change(&mut value);
        self.write(file, value.to_string());
    }

    /// The tensors of `model.safetensors`.
    pub(crate) fn tensors(&self) -> Vec<(String, Tensor)> {
        safetensors::open(&self.0.join("model.safetensors")).unwrap().into_iter().collect()
    }

    /// Replaces `model.safetensors`.
    pub(crate) fn store(&self, tensors: &[(String, Tensor)]) {
        // The old file stays mapped by views: replace it, never write into it.
        let _ = fs::remove_file(self.0.join("model.safetensors"));
        self.write("model.safetensors", encode(tensors));
    }

    pub(crate) fn import(&self, options: &ImportOptions) -> Result<Imported, Vec<FrontendError>> {
        import(&self.0, options)
    }

    /// The problems that importing finds, the folder's path left out.
    pub(crate) fn problems(&self, options: &ImportOptions) -> Vec<String> {
        let errors = self.import(options).map(|_| ()).expect_err("a folder that is refused");
        let folder = format!("{}/", self.0.display());
        errors.iter().map(|e| e.to_string().replace(&folder, "")).collect()
    }
}

/// A safetensors file of f32, bf16 and f16 tensors.
pub(crate) fn encode(tensors: &[(String, Tensor)]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, tensor) in tensors {
        let begin = data.len();
        data.extend(tensor.to_bytes());
        let dtype = match tensor.dtype() {
            DType::F32 => "F32",
            DType::Bf16 => "BF16",
            DType::F16 => "F16",
            DType::I64 => "I64",
            other => panic!("{other}"),
        };
        let entry = json!({"dtype": dtype, "shape": tensor.shape(),
            "data_offsets": [begin, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// Evaluates the model's entry on packed prompts, logits of every row.
pub(crate) fn run(imported: &Imported, prompts: &[Vec<i64>]) -> Vec<Tensor> {
    let ints = |values: Vec<i64>| Tensor::from_i64s(DType::I32, &[values.len()], values);
    let index = |n: usize| i64::try_from(n).unwrap();
    let tokens = prompts.concat();
    let rows = index(tokens.len());
    let positions = prompts.iter().flat_map(|p| 0..index(p.len())).collect();
    let mut ends = vec![0];
    ends.extend(prompts.iter().scan(0, |end, p| {
        *end += index(p.len());
        Some(*end)
    }));
    let mut inputs = vec![ints(tokens), ints(positions), ints(ends)];
    if imported.info.kind == ModelKind::Decoder {
        inputs.push(ints((0..rows).collect()));
    }
    let entry = imported.module.entries[0].clone();
    Interpreter::new(&imported.module, &*imported.weights, Precision::F32)
        .run(&entry, &inputs, &Env::new())
        .unwrap()
}
