//! The command line as clap reads it. Values are checked here as far as they can be without a
//! model.

mod values;

use std::{num::NonZeroUsize, path::PathBuf};

use clap::{Args, Parser, Subcommand};
use ir::DType;

pub(crate) use values::{Bound, Chosen, Family, GpuLibrary, Input, Quantize, TargetCpu, Tokens};
use values::{above_zero, at_least_zero, dtype, kv_dtype, non_empty, probability, share, target};

/// Compiles neural networks ahead of time and runs them.
///
/// A model is a folder as Hugging Face lays it out (config.json, safetensors, tokenizer.json) or an
/// .onnx file. `compile` makes one file of it, the artifact, that every other command runs. Where a
/// command is given a model instead, it is compiled into the user's cache first.
///
/// Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 the input is at fault,
/// 2 the flags are, 70 a bug in brolly.
#[derive(Debug, Parser)]
#[command(
    name = "brolly",
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  brolly compile ./Llama-3.2-1B -o llama.brolly
  brolly generate llama.brolly --prompt \"The sea was\"

An artifact is executable code: treat one from a stranger like a program from a stranger."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Flags of every command")]
pub(crate) struct Global {
    /// Threads to run on [default: the cores that affinity and control group allow]
    ///
    /// Results do not depend on it, bit for bit.
    #[arg(long, global = true, display_order = 1000, value_name = "N", value_parser = values::threads)]
    pub(crate) threads: Option<NonZeroUsize>,

    /// The GPU to run on what is compiled for one: `cuda:1` is the second [default: the first; of
    /// ranks, each one's own]
    #[arg(long, global = true, display_order = 1000, value_name = "DEVICE")]
    #[arg(value_parser = values::gpu)]
    pub(crate) device: Option<u32>,

    /// Write a timeline of compile stages, runs and kernels, for Perfetto or chrome://tracing
    #[arg(long, global = true, display_order = 1000, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Compile(Compile),
    Check(Check),
    Generate(Generate),
    Score(Score),
    Embed(Embed),
    Exec(Exec),
    Serve(Box<Serve>),
    Train(Train),
    Plan(Plan),
    Inspect(Inspect),
    Bench(Bench),
    Tune(Tune),
    Opt(Opt),
}

/// Build an artifact from a model, or from the configuration of a training run.
///
/// Prints the time of each stage, what was fused and what not and why, and the peak of memory,
/// which the artifact will never exceed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brolly compile ./Llama-3.2-1B -o llama.brolly --max-seq-len 4096
  brolly compile ./Llama-3.2-1B -o llama.brolly --quantize q4 --kv-dtype int8
  brolly compile model.onnx -o model.brolly --bound batch=1..8 --bound sequence=1..512
  brolly compile run.toml -o run.brolly")]
pub(crate) struct Compile {
    /// A folder with config.json and safetensors, an .onnx file, or a training run's configuration
    pub(crate) model: PathBuf,

    /// The artifact to write; replaced whole or not at all
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: PathBuf,

    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) options: CompileOptions,
}

/// Choices of a compile.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Compile options, for a model")]
pub(crate) struct CompileOptions {
    /// What to compile for: `cpu`, `cuda:sm_80`, `cuda:sm_90a`, or `cuda` for every NVIDIA GPU
    /// from Ampere on; several GPUs may be named [default: cpu]
    #[arg(long, value_name = "TARGET", value_parser = target)]
    pub(crate) target: Vec<Chosen>,

    /// The processor: `x86-64-v3`, or `native` for all that this machine has [default: x86-64-v3]
    #[arg(long, value_name = "CPU")]
    pub(crate) target_cpu: Option<TargetCpu>,

    /// Storage of matrices: f32, bf16 or f16 [default: as the model stores them]
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    pub(crate) dtype: Option<DType>,

    /// Make the weights of products integers of 8 or 4 bits, in blocks of 32 with an f16 scale, or
    /// fp8
    ///
    /// Under q8 activations are rounded to 13 bits as they meet them, under q4 to 8. Under q4 the
    /// product that gives the model's own result, a language model's head, keeps 8 bits.
    ///
    /// fp8 is for `--target cuda:sm_90a`: weights and activations of layers are e4m3, each with an
    /// f32 scale for every 128 numbers along the sum; the head keeps its weights.
    #[arg(long, value_name = "TYPE")]
    pub(crate) quantize: Option<Quantize>,

    /// How a language model keeps keys and values: f32, bf16, f16, int8 or fp8 [default: f32]
    ///
    /// Every command rounds them alike, so that scores and answers agree bit for bit. int8 and fp8
    /// (e4m3) have a scale for each token and head, 4 bytes beside the 64 or 128 of a head, and
    /// need no calibration. int8 loses less, but where a few elements of a head are far larger than
    /// the rest.
    #[arg(long, value_name = "TYPE", value_parser = kv_dtype)]
    pub(crate) kv_dtype: Option<DType>,

    /// Longest sequence, prompt and answer together [default: the model's own, at most 4096]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    #[arg(allow_negative_numbers = true)]
    pub(crate) max_seq_len: Option<u64>,

    /// Most tokens of one step [default: 512]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    #[arg(allow_negative_numbers = true)]
    pub(crate) max_batch_tokens: Option<u64>,

    /// Most sequences of one step [default: 64]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    #[arg(allow_negative_numbers = true)]
    pub(crate) max_sequences: Option<u64>,

    /// Range of a symbolic dimension of an ONNX graph; may be repeated
    #[arg(long = "bound", value_name = "NAME=LO..HI")]
    pub(crate) bounds: Vec<Bound>,

    /// Compile every kernel anew, and keep none for the next compile
    ///
    /// Otherwise kernels are kept beside the user's compiled models, at most 512 MiB of them. The
    /// artifact is the same, byte for byte.
    #[arg(long)]
    pub(crate) no_kernel_cache: bool,

    /// Take the model's shape alone: weights are random numbers, to time it without a checkpoint
    ///
    /// The model is a folder with config.json, or one of gpt2-124m, llama-1b, llama-8b and
    /// llama-70b. The artifact holds no weights: they are made where it is opened.
    #[arg(long)]
    pub(crate) random_weights: bool,

    /// Let NVIDIA's library compute products where it was measured to be faster: `cublaslt`
    ///
    /// For `--target cuda`, products with bf16 and f16 weights: those for which a table of `brolly
    /// tune --gpu-library cublaslt`, given by `--tuning`, has it faster than the generated kernel;
    /// without such a table, none. It costs a promise: the library chooses its kernels by the
    /// number of rows, so the bits of an answer may depend on what else is computed with it. The
    /// machine that runs the artifact needs libcublasLt.so of CUDA 12 or later.
    #[arg(long, value_name = "NAME")]
    pub(crate) gpu_library: Option<GpuLibrary>,

    /// Schedules of products that `brolly tune` found
    ///
    /// They change the time of a run, never a result.
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) tuning: Option<PathBuf>,
}

/// Find everything that would stop a compile, all at once.
///
/// Writes nothing. Exit code 1 if there is any problem.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  brolly check ./Llama-3.2-1B")]
pub(crate) struct Check {
    /// A folder with config.json and safetensors, or an .onnx file
    pub(crate) model: PathBuf,

    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) options: CompileOptions,
}

/// An artifact, or a model to compile into the cache.
#[derive(Debug, Args)]
pub(crate) struct Source {
    /// An artifact; or a model, which is compiled into the user's cache first
    #[arg(value_name = "ARTIFACT|MODEL")]
    pub(crate) path: PathBuf,

    #[command(flatten)]
    pub(crate) options: CompileOptions,
}

/// Continue a text.
///
/// Streams the new text; with --json prints `{"tokens":[..],"text":"..","logprobs":[..]}` of the
/// new tokens, each with its log-probability under the unscaled distribution. Ends after an
/// end-of-sequence token, before a stop string, or after exactly --max-tokens tokens.
///
/// Sampling follows the model's generation_config.json if that says to sample, flag by flag; else
/// it is greedy unless a sampling flag is given.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brolly generate llama.brolly --prompt \"The sea was\" --max-tokens 100
  brolly generate llama.brolly --chat \"Name three rivers.\" --temperature 0.8 --top-p 0.95 --seed 7
  brolly generate llama.brolly --tokens 1,306,626 --max-tokens 8 --json")]
pub(crate) struct Generate {
    #[command(flatten)]
    pub(crate) prompt: ChatOrPrompt,

    #[command(flatten)]
    pub(crate) sampling: Sampling,

    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) source: Source,
}

/// What to continue.
#[derive(Debug, Args)]
pub(crate) struct ChatOrPrompt {
    /// A text to continue
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    #[arg(required_unless_present_any = ["tokens", "chat"])]
    #[arg(conflicts_with_all = ["tokens", "chat"])]
    pub(crate) prompt: Option<String>,

    /// Token ids to continue: 1,2,3
    #[arg(long, value_name = "IDS", allow_hyphen_values = true, conflicts_with = "chat")]
    pub(crate) tokens: Option<Tokens>,

    /// A message to answer, through the model's chat template; repeated, user and assistant take
    /// turns
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) chat: Vec<String>,

    /// The system message before --chat
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    #[arg(requires = "chat", conflicts_with_all = ["prompt", "tokens"])]
    pub(crate) system: Option<String>,
}

/// How to choose tokens, and when to stop.
#[derive(Debug, Args)]
pub(crate) struct Sampling {
    /// Most new tokens [default: the model's max_new_tokens, or 256; never beyond the compiled
    /// bound]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) max_tokens: Option<u64>,

    /// Divides the logits; 0 always takes the likeliest token [default: the model's if it samples;
    /// 1 with --top-k, --top-p or --min-p; else 0]
    #[arg(long, value_name = "T", allow_negative_numbers = true, value_parser = at_least_zero)]
    pub(crate) temperature: Option<f64>,

    /// Divides the logits of tokens that occurred, in prompt or answer, and multiplies negative
    /// ones [default: the model's, or 1, which is none]
    #[arg(long, value_name = "R", allow_negative_numbers = true, value_parser = above_zero)]
    pub(crate) repetition_penalty: Option<f64>,

    /// Choose among the K likeliest tokens; 0 is all
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    pub(crate) top_k: Option<u32>,

    /// Choose among the likeliest tokens that reach probability P together
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = share)]
    pub(crate) top_p: Option<f64>,

    /// Choose among tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = probability)]
    pub(crate) min_p: Option<f64>,

    /// Seed of the random choices; the same seed gives the same text [default: a new one each time]
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    pub(crate) seed: Option<u64>,

    /// End before this text; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = non_empty)]
    pub(crate) stop: Vec<String>,

    /// Go on after end-of-sequence tokens
    #[arg(long)]
    pub(crate) ignore_eos: bool,
}

/// Log-probability of each token of a text given those before it.
///
/// With --json prints `{"tokens":[..],"logprobs":[null,-1.2,..]}`: nothing comes before the first.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  brolly score llama.brolly --prompt \"Once upon a time\" --json"
)]
pub(crate) struct Score {
    /// A text
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    #[arg(required_unless_present = "tokens", conflicts_with = "tokens")]
    pub(crate) prompt: Option<String>,

    /// Token ids: 1,2,3
    #[arg(long, value_name = "IDS", allow_hyphen_values = true)]
    pub(crate) tokens: Option<Tokens>,

    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) source: Source,
}

/// Train a model as a configuration says.
///
/// The step is compiled first: forward, loss, backward and the optimiser, with memory known before
/// anything runs. Checkpoints hold all that a run needs to go on bit for bit; the trained model is
/// written as a folder that transformers loads. Every problem of the configuration is told at once.
///
/// SIGTERM, SIGINT and SIGUSR1 write a checkpoint and end; a second SIGINT ends at once.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brolly train run.toml
  brolly train run.toml --resume
  brolly train run.toml --ranks 2               # [mesh] data = 2
  mpirun -n 4 brolly train run.toml             # [mesh] data = 4, zero = 2
  brolly compile run.toml -o run.brolly && brolly train run.toml --artifact run.brolly

A configuration:
  model = \"./Llama-3.2-1B\"
  [data]
  train = \"stories.jsonl\"
  seq_len = 1024
  micro_batch = 4
  [optimizer]
  lr = 1e-4
  schedule = \"cosine\"
  warmup_steps = 20
  [train]
  steps = 1000")]
pub(crate) struct Train {
    /// Go on from the newest checkpoint, if there is one
    #[arg(long)]
    pub(crate) resume: bool,

    /// Print the bytes of every kind of memory and what a step computes, and train nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Train as so many ranks, threads of this process, on the configuration's mesh; under mpirun,
    /// srun and torchrun each process is a rank
    #[arg(long, value_name = "N")]
    pub(crate) ranks: Option<NonZeroUsize>,

    /// Which way collectives of ranks on GPUs go [default: auto]
    ///
    /// `host`: by way of the host. `nccl`: between the devices, by NCCL; the same bits. `auto`: by
    /// NCCL where all ranks have it, else by the host. `nccl-sums`: NCCL adds as well, in an order
    /// of its own, so that results depend on how the ranks are connected.
    #[arg(long, value_name = "ROUTE", value_parser = values::route)]
    #[arg(default_value = "auto", hide_default_value = true)]
    pub(crate) collectives: exec::Route,

    /// Take the step from an artifact, which `brolly compile` made of such a configuration
    ///
    /// Data, rates and how long a run is may differ; what does not fit the artifact is told.
    #[arg(long, value_name = "FILE", conflicts_with = "target")]
    pub(crate) artifact: Option<PathBuf>,

    /// Where to train, as `brolly compile --target` has it: `cpu`, `cuda` [default: cpu]
    #[arg(long, value_name = "TARGET", value_parser = target)]
    pub(crate) target: Vec<Chosen>,

    /// The configuration, TOML
    pub(crate) config: PathBuf,
}

/// Say what a model or a training run takes of memory, by category and entry point.
///
/// Nothing is run: the plan is the artifact's, which is compiled into the user's cache first. Of a
/// language model there is one sequence of the greatest length. Exit code 1, with the largest
/// tensors, where the plan is over the cap.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brolly plan run.toml
  brolly plan run.toml --memory 24GiB --json
  brolly plan llama.brolly --threads 8")]
pub(crate) struct Plan {
    /// The cap: 80GiB, 512MiB [default: `memory.device` of a configuration, else what this process
    /// may use]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub(crate) memory: Option<u64>,

    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) source: Source,
}

/// Serve a model over HTTP, as OpenAI's API.
///
/// Language models answer /v1/completions and /v1/chat/completions, models of embeddings
/// /v1/embeddings; / is a page to chat with and to watch the engine, /metrics is for Prometheus,
/// /openapi.json says what every route takes. Memory is reserved at the start and never exceeded.
/// An answer depends on its request alone, whatever else is being served.
///
/// Ends on SIGTERM or SIGINT once every accepted request is answered; on a second one at once.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brolly serve llama.brolly
  brolly serve llama.brolly --host 0.0.0.0 --api-key-file keys.txt --kv-cache 8GiB
  brolly serve minilm.brolly --port 8001 --served-model-name minilm
  curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'")]
pub(crate) struct Serve {
    /// Name or address to listen at; 0.0.0.0 is every network
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub(crate) host: String,

    /// Port to listen at; 0 takes a free one and prints it
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    pub(crate) port: u16,

    /// A key that requests must have, as `Authorization: Bearer KEY`; may be repeated
    ///
    /// Every route but /health asks for it. Others on the machine can read flags: prefer
    /// --api-key-file.
    #[arg(long, value_name = "KEY", env = "BROLLY_API_KEY", hide_env_values = true)]
    pub(crate) api_key: Vec<String>,

    /// A file of such keys, one a line; empty lines and those that begin with # do not count
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,

    /// Certificate chain for TLS, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,

    /// Private key of the certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,

    /// What the model is called in requests and answers; may be repeated [default: the file's name]
    #[arg(long, value_name = "NAME", value_parser = non_empty)]
    pub(crate) served_model_name: Vec<String>,

    /// A file with a chat template to use in place of the model's own
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template: Option<PathBuf>,

    /// Key/value memory: 2GiB, 512MiB [default: for --max-num-seqs of the longest sequences, but no
    /// more than nine tenths of what is left beside the model]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub(crate) kv_cache: Option<u64>,

    /// Most sequences that run at once [default: what the model is compiled for]
    #[arg(long, value_name = "N")]
    pub(crate) max_num_seqs: Option<NonZeroUsize>,

    /// Most tokens of one step [default: what the model is compiled for]
    #[arg(long, value_name = "N")]
    pub(crate) max_num_batched_tokens: Option<NonZeroUsize>,

    /// Most tokens of prompts in a step in which other sequences get a token each
    ///
    /// More of them shorten the wait for first tokens, fewer the time between tokens.
    #[arg(long, value_name = "N", default_value_t = serve::EngineOptions::default().prefill_chunk)]
    pub(crate) prefill_chunk: NonZeroUsize,

    /// Most requests that wait; further ones are told to come back (429)
    #[arg(long, value_name = "N", default_value_t = serve::EngineOptions::default().max_queue)]
    pub(crate) max_queue: usize,

    /// Compute every prompt anew, even where another began alike
    #[arg(long)]
    pub(crate) no_prefix_cache: bool,

    /// Most seconds that an answer may take
    #[arg(long, value_name = "S", default_value_t = 3600)]
    pub(crate) request_timeout: u64,

    #[command(flatten)]
    pub(crate) source: Source,
}

/// Turn texts into vectors.
///
/// Prints a line of numbers per text; with --json `{"embeddings":[[..],..]}`. A text is cut to the
/// length that the model was made for; its embedding is the same alone and among others.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  brolly embed minilm.brolly --text \"A cat sleeps.\" --text \"A kitten naps.\" --json")]
pub(crate) struct Embed {
    /// A text, which may be empty; may be repeated
    #[arg(long = "text", value_name = "TEXT", allow_hyphen_values = true)]
    #[arg(required_unless_present = "tokens", conflicts_with = "tokens")]
    pub(crate) texts: Vec<String>,

    /// Token ids of a text, special ones included: 101,2023,102; may be repeated
    #[arg(long, value_name = "IDS", allow_hyphen_values = true)]
    pub(crate) tokens: Vec<Tokens>,

    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) source: Source,
}

/// Run a graph once on arrays.
///
/// Takes one .npy file per graph input and writes one per output, NAME.npy, with characters outside
/// `[A-Za-z0-9._-]` replaced by `_`. Nothing is cast: bf16 travels as uint16, f8 as uint8, 4-bit
/// integers one value a byte.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  brolly exec bert.brolly --input input_ids=ids.npy --input attention_mask=mask.npy --output-dir out")]
pub(crate) struct Exec {
    /// An input of the graph and its file; once per input
    #[arg(long = "input", value_name = "NAME=FILE.npy")]
    pub(crate) inputs: Vec<Input>,

    /// Folder for the outputs, made if it is not there
    #[arg(long, value_name = "DIR")]
    pub(crate) output_dir: PathBuf,

    /// Print one JSON document: files, types and shapes of the outputs
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) source: Source,
}

/// Look inside an artifact.
///
/// Prints a summary; --json has everything; --html writes one page with the graph by function, the
/// kernels with their cost, and the memory timeline.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brolly inspect llama.brolly
  brolly inspect llama.brolly --html llama.html")]
pub(crate) struct Inspect {
    /// Print one JSON document
    #[arg(long, conflicts_with = "html")]
    pub(crate) json: bool,

    /// Write one self-contained page
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) source: Source,
}

/// Measure speed and memory, against what this machine can do.
///
/// Checks the artifact first: every weight against its digest, and batched results against single
/// ones, bit for bit. Then measures read bandwidth and FMA peak, and times prefill and decode
/// between them; rates are totals over the streams. An encoder, or --gen-tokens 0, has no decode.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brolly bench llama.brolly --prompt-tokens 512 --gen-tokens 128
  brolly bench --random-weights llama-8b --target cuda --batch 64")]
pub(crate) struct Bench {
    /// Tokens of each prompt [default: 256, or half of what fits]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    #[arg(allow_negative_numbers = true)]
    pub(crate) prompt_tokens: Option<u64>,

    /// New tokens of each stream [default: 64, or what fits]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) gen_tokens: Option<u64>,

    /// Streams at once
    #[arg(long, value_name = "B", default_value_t = 1, allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) batch: u64,

    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) source: Source,
}

/// Search faster schedules of products for this machine.
///
/// Varies tiles, blocks and prefetching of the products of a model, or of common sizes. Every
/// candidate must give the default schedule's results bit for bit; then it is timed in turns with
/// the best so far. What is clearly faster is added to a table, for `compile --tuning`.
///
/// With `--target cuda` they are the tiles, stages and warps of this machine's first GPU, for each
/// number of rows that has a tile of its own, up to `--max-batch-tokens`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  brolly tune ./Llama-3.2-1B --quantize q4 -o llama.toml
  brolly compile ./Llama-3.2-1B --quantize q4 --tuning llama.toml -o llama.brolly
  brolly tune --family f32 --time-limit 120
  brolly tune ./Llama-3.1-8B --target cuda --max-batch-tokens 4096 -o h200.toml")]
pub(crate) struct Tune {
    /// A model whose products to search [default: common sizes]
    pub(crate) model: Option<PathBuf>,

    /// The table to write; entries that are there stay
    #[arg(short, long, value_name = "FILE.toml", default_value = "tuning.toml")]
    pub(crate) output: PathBuf,

    /// Products with weights of this type alone: f32, bf16, f16, q8, q4 or fp8; may be repeated
    #[arg(long = "family", value_name = "TYPE")]
    pub(crate) families: Vec<Family>,

    /// Try nothing new after this
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) time_limit: u64,

    /// Print one JSON document
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) options: CompileOptions,
}

/// Run one compiler pass on IR text and print the module.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  brolly opt --pass optimize graph.ir")]
pub(crate) struct Opt {
    /// The pass; an unknown name lists them
    #[arg(long, value_name = "NAME")]
    pub(crate) pass: String,

    /// The module; `-` for stdin
    pub(crate) file: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn senseless_values_are_refused_by_name() {
        let parse = |args: &str| Cli::try_parse_from(args.split(' '));
        let generate = "brolly generate m --prompt x";
        assert!(parse(generate).is_ok());
        for (flags, why) in [
            ("--temperature -1", "--temperature"),
            ("--temperature NaN", "--temperature"),
            ("--temperature inf", "--temperature"),
            ("--repetition-penalty 0", "--repetition-penalty"),
            ("--repetition-penalty inf", "--repetition-penalty"),
            ("--max-tokens -1", "--max-tokens"),
            ("--top-p 0", "--top-p"),
            ("--top-p 1.5", "--top-p"),
            ("--min-p -0.1", "--min-p"),
            ("--top-k -3", "--top-k"),
            ("--threads 0", "--threads"),
            ("--threads 99999999", "--threads"),
            ("--target cuda:sm_70", "`cuda:sm_80`"),
            ("--target tpu", "`cpu`"),
            ("--dtype i8", "f32, bf16, f16"),
            ("--kv-dtype i32", "f32, bf16, f16, int8, fp8"),
            ("--max-seq-len 0", "--max-seq-len"),
            ("--max-seq-len -5", "--max-seq-len"),
            ("--bound batch", "NAME=LO..HI"),
            ("--bound batch=4..1", "below"),
            ("--tokens 1", "--tokens"),
            ("--system x", "--system"),
        ] {
            let error = parse(&format!("{generate} {flags}")).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{flags}");
            assert!(error.to_string().contains(why), "{flags}: {error}");
        }
        let error = parse("brolly generate m --tokens 1,-2").unwrap_err();
        assert!(error.to_string().contains("`-2`"), "{error}");
        assert!(parse("brolly generate m").is_err());
        assert!(parse("brolly embed m --text").is_err());
    }
}
