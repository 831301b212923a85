//! With a model: the language model of the repository, compiled once for all tests.

use std::{
    fs,
    io::Read as _,
    path::Path,
    process::{Output, Stdio},
    sync::LazyLock,
};

use crate::{DIR, accepted, brolly, file, refused};

/// The language model of the repository, compiled once.
static MODEL: LazyLock<String> = LazyLock::new(|| {
    let path = DIR.join("stories.brolly").to_str().unwrap().to_owned();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/stories");
    let shown = accepted(&["compile", source.to_str().unwrap(), "-o", &path]);
    for part in ["codegen", "total", "attention", "6 of 6", "predicted peak"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    path
});

fn json(args: &[&str]) -> serde_json::Value {
    let text = accepted(args);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
}

#[test]
fn every_command_prints_one_json_document() {
    let model = MODEL.as_str();
    let prompt = "The king had three sons.";
    let greedy = ["--max-tokens", "5", "--temperature", "0", "--ignore-eos", "--json"];
    let generated = json(&[&["generate", model, "--prompt", prompt], &greedy[..]].concat());
    let tokens = generated["tokens"].as_array().unwrap();
    assert_eq!((tokens.len(), generated["logprobs"].as_array().unwrap().len()), (5, 5));
    assert!(generated["text"].is_string() && generated["finish_reason"] == "length");
    let again = ["generate", model, "--prompt", prompt, "--threads", "1"];
    assert_eq!(json(&[&again, &greedy[..]].concat()), generated);

    let scored = json(&["score", model, "--prompt", prompt, "--json"]);
    let prompt_tokens = scored["tokens"].as_array().unwrap();
    assert!(scored["logprobs"][0].is_null());
    let all: Vec<String> = prompt_tokens.iter().chain(tokens).map(ToString::to_string).collect();
    let whole = json(&["score", model, "--tokens", &all.join(","), "--json"]);
    let whole = whole["logprobs"].as_array().unwrap();
    let n = prompt_tokens.len();
    assert_eq!(whole[..n], *scored["logprobs"].as_array().unwrap());
    assert_eq!(whole[n..], *generated["logprobs"].as_array().unwrap());

    let inspected = json(&["inspect", model, "--json"]);
    let attention = inspected["fusions"].as_array().unwrap();
    let attention = attention.iter().find(|f| f["kind"] == "attention").unwrap();
    assert!(attention["count"] == 6 && attention["why_not"].as_array().unwrap().is_empty());
    assert!(inspected["predicted_peak_bytes"].as_u64().unwrap() > 1 << 20);

    let sizes = ["--prompt-tokens", "20", "--gen-tokens", "4", "--batch", "2", "--json"];
    let bench = json(&[&["bench", model], &sizes[..]].concat());
    for rate in ["prefill_tokens_per_s", "decode_tokens_per_s", "read_bandwidth", "peak_flops"] {
        assert!(bench[rate].as_f64().unwrap() > 0.0, "{rate} in {bench}");
    }
    let peak = |which: &str| bench[format!("{which}_peak_bytes")].as_u64().unwrap();
    assert!(peak("measured") <= peak("predicted"), "{bench}");
    let none = json(&["bench", model, "--prompt-tokens", "5", "--gen-tokens", "0", "--json"]);
    assert!(none["decode_tokens_per_s"].is_null());
}

#[test]
fn keys_and_values_are_kept_as_asked() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/stories");
    let [path, fp8] = ["int8", "fp8"].map(|dtype| {
        let path = DIR.join(format!("{dtype}.brolly")).to_str().unwrap().to_owned();
        accepted(&["compile", source.to_str().unwrap(), "-o", &path, "--kv-dtype", dtype]);
        path
    });
    // Six layers, two heads of 32 elements of keys and of values.
    for (model, dtype, bytes) in
        [(&*MODEL, "f32", 6 * 4 * 128), (&path, "int8", 6 * 4 * 36), (&fp8, "fp8", 6 * 4 * 36)]
    {
        let inspected = json(&["inspect", model, "--json"]);
        assert_eq!(inspected["keys_values"]["dtype"], dtype);
        assert_eq!(inspected["keys_values"]["bytes_per_token"], bytes);
        assert!(accepted(&["inspect", model]).contains(&format!("{dtype}, ")));
    }
    let bench = |model: &str| {
        let sizes = ["--prompt-tokens", "20", "--gen-tokens", "4", "--json"];
        let bench = json(&[&["bench", model], &sizes[..]].concat());
        bench["decode_bytes_per_step"].as_f64().unwrap()
    };
    assert!(bench(&path) < bench(&MODEL));
}

#[test]
fn what_a_model_cannot_do_is_the_inputs_fault() {
    let model = MODEL.as_str();
    for (args, why) in [
        (&["generate", model, "--prompt", ""][..], "empty"),
        (&["generate", model, "--tokens", ""], "empty"),
        (&["generate", model, "--tokens", "1,2048"], "vocabulary"),
        (&["generate", model, "--tokens", "1", "--max-tokens", "512"], "512"),
        (&["embed", model, "--text", "x"], "does not embed"),
        (&["exec", model, "--output-dir", "out"], "brolly generate"),
        (&["bench", model, "--prompt-tokens", "512"], "--prompt-tokens"),
        (&["bench", model, "--batch", "1000000000"], "--batch 1000000000"),
    ] {
        let said = refused(args, 1);
        assert!(said.contains(why), "{args:?}: {said}");
    }
    let said = refused(&["score", model, "--prompt", "x", "--max-seq-len", "9"], 2);
    assert!(said.contains("compiled already"), "{said}");
}

#[test]
fn a_reader_that_has_enough_ends_the_command_quietly() {
    let mut child =
        brolly(&["generate", &MODEL, "--prompt", "Once", "--seed", "1", "--ignore-eos"])
            .args(["--max-tokens", "300"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
    let mut some = [0; 3];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert!(status.success() && stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
}

#[test]
fn a_timeline_and_a_page_are_written() {
    let [trace, page] = ["trace.json", "page.html"].map(|f| DIR.join(f));
    let [trace_path, page_path] = [&trace, &page].map(|p| p.to_str().unwrap());
    accepted(&["score", &MODEL, "--prompt", "A king", "--trace", trace_path]);
    let trace: serde_json::Value = serde_json::from_slice(&fs::read(&trace).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    assert!(events.iter().any(|e| e["name"].as_str().unwrap().contains("paged_attention")));
    assert_eq!(accepted(&["inspect", &MODEL, "--html", page_path]), "");
    let page = fs::read_to_string(&page).unwrap();
    assert!(page.contains("layer × 6") && page.contains("class=\"timeline\""));
}

#[test]
fn models_compile_into_the_cache_and_problems_come_all_at_once() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/stories");
    let args =
        ["score", source.to_str().unwrap(), "--tokens", "1,2", "--json", "--max-seq-len", "64"];
    assert_eq!(accepted(&args), accepted(&args));
    let cached = || -> Vec<_> {
        let files = fs::read_dir(DIR.join("cache")).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with("stories")).collect()
    };
    assert_eq!(cached().len(), 1);
    // Neither threads nor what lies beside the model count.
    let more = [&args[..], &["--threads", "1"]].concat();
    assert_eq!(accepted(&more), accepted(&args));
    assert_eq!(cached().len(), 1);
    // What is damaged in the cache is made again.
    fs::write(&cached()[0], b"damaged").unwrap();
    accepted(&args);

    let folder = DIR.join("broken");
    fs::create_dir_all(&folder).unwrap();
    let config = "{\"architectures\": [\"LlamaForCausalLM\"], \"num_attention_heads\": 0}";
    fs::write(folder.join("config.json"), config).unwrap();
    fs::write(folder.join("tokenizer.json"), "{").unwrap();
    let said = refused(&["check", folder.to_str().unwrap()], 1);
    for part in ["num_attention_heads", "tokenizer.json", "safetensors", "problems"] {
        assert!(said.contains(part), "{part} in {said}");
    }
}

#[test]
fn a_model_is_never_written_over() {
    let folder = DIR.join("precious");
    fs::create_dir_all(&folder).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/stories");
    for entry in fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let model = folder.to_str().unwrap();
    let weights = folder.join("model.safetensors");
    let before = fs::metadata(&weights).unwrap().len();
    let link = DIR.join("link.brolly");
    std::os::unix::fs::symlink(&weights, &link).unwrap();
    for (output, why) in [
        (weights.to_str().unwrap(), "a file of the model"),
        (link.to_str().unwrap(), "a file of the model"),
        (model, "a folder"),
        ("/dev/null", "no regular file"),
    ] {
        let said = refused(&["compile", model, "-o", output], 1);
        assert!(said.contains("--output") && said.contains(why), "{output}: {said}");
    }
    assert_eq!(fs::metadata(&weights).unwrap().len(), before);
}

#[test]
fn a_graph_that_does_not_fit_into_memory_is_refused_before_it_runs() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR"));
    let data = data.join("../../tests/data/onnx/bert-torchscript-eager");
    let names = ["input_ids", "attention_mask", "token_type_ids"];
    let inputs =
        names.map(|name| format!("{name}={}", data.join(format!("0.{name}.npy")).display()));
    let (model, out) = (data.join("model.onnx"), DIR.join("out"));
    let mut args = vec!["exec", model.to_str().unwrap(), "--output-dir", out.to_str().unwrap()];
    args.extend(inputs.iter().flat_map(|input| ["--input", input]));
    let said = refused(&[&args[..], &["--bound", "batch=1..100000000"]].concat(), 1);
    assert!(said.contains("arena") && said.contains("this process may use"), "{said}");
    accepted(&[&args[..], &["--bound", "batch=1..8"]].concat());
}

#[test]
fn opt_runs_a_pass_on_text() {
    let text = "module \"m\"\nsymbol T in 1..8\nentry main\n\nfn main(%x: f32[T]) {\n  \
                %0 = neg(%x) : f32[T]\n  %1 = neg(%x) : f32[T]\n  return y = %0, z = %1\n}\n";
    let path = file("m.ir", text.as_bytes());
    let printed = accepted(&["opt", "--pass", "canonicalize", &path]);
    assert_eq!(printed.matches("neg(").count(), 1, "{printed}");
    let said = refused(&["opt", "--pass", "nothing", &path], 1);
    assert!(said.contains("canonicalize"), "{said}");
    let wrong =
        file("wrong.ir", text.replace("neg(%x) : f32[T]\n  %1", "neg(%q)\n  %1").as_bytes());
    let said = refused(&["opt", "--pass", "canonicalize", &wrong], 1);
    assert!(said.contains("wrong.ir") && said.contains("line 6") && said.contains("%q"), "{said}");
}

/// Products that a library computes are named where kernels are, and only asked for on GPUs.
#[test]
fn a_library_is_asked_for_and_named() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = source.join("../../tests/data/families/llama-rope-llama3");
    let source = source.to_str().unwrap();
    let asked = ["--gpu-library", "cublaslt"];
    let (table, out) = (file("library.toml", b""), file("library.brolly", b""));
    let said = refused(&[&["compile", source, "-o", &out], &asked[..]].concat(), 2);
    assert!(said.contains("--gpu-library is for GPUs"), "{said}");
    let quantized = ["compile", source, "-o", &out, "--target", "cuda", "--quantize", "q8"];
    let said = refused(&[&quantized, &asked[..]].concat(), 2);
    assert!(said.contains("leave `--quantize` away"), "{said}");

    let mut entries = String::new();
    for (n, k) in (3..12).flat_map(|n| (3..12).map(move |k| (1 << n, 1 << k))) {
        entries += &format!(
            "[[entry]]\ntarget = \"sm_80\"\nfamily = \"bf16\"\nn = {n}\nk = {k}\n\
             library = [{{ rows = 1, generated_ns = 9, cublaslt_ns = 1 }}]\n"
        );
    }
    fs::write(&table, entries).unwrap();
    let target = ["--target", "cuda:sm_80", "--dtype", "bf16", "--max-batch-tokens", "32"];
    let compile = [&["compile", source, "-o", &out], &target[..], &asked].concat();
    let said = brolly(&compile).output().unwrap();
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("no table has measured costs of it for sm_80"), "{said}");
    let compiled = json(&[&compile[..], &["--tuning", &table, "--json"]].concat());
    let note = compiled["gpu_library"].as_str().unwrap();
    assert!(note.starts_with("cuBLASLt computes ") && note.contains(" launches"), "{note}");
    let inspected = json(&["inspect", &out, "--json"]);
    let kernels = inspected["programs"][0]["kernels"].as_array().unwrap();
    assert!(kernels.iter().any(|kernel| kernel["symbol"] == "cublasLtMatmul"), "{kernels:?}");
    assert!(accepted(&["inspect", &out]).contains("products that cuBLASLt computes"));
}
