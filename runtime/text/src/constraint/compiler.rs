//! From a structure to a constraint, within limits.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    earley::SlicedBiasComputer,
    toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv},
};
use serde_json::{Value, json};

use super::{BeforeMasks, Constraint, Structure, limits, vocabulary};
use crate::{
    error::TextError,
    reasoning::ReasoningFormat,
    tokenizer::{Tokenizer, guarded},
};

/// Whitespace between JSON's tokens: without a bound, models sometimes write nothing else.
const JSON_WHITESPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";

/// Characters of a compiler's message that are passed on.
const MAX_MESSAGE: usize = 400;

/// Compiles structures for one vocabulary; cloning it is cheap.
///
/// Building it takes as long as sorting the vocabulary, so build it once.
///
/// ```
/// # use brolly_text as text;
/// # let alphabet: Vec<String> = (33..127).map(|c: u8| format!("\"{}\": {c}",
/// #   (c as char).to_string().replace('\\', "\\\\").replace('"', "\\\""))).collect();
/// # let json = format!(r#"{{"model": {{"type": "BPE", "vocab": {{{}}}, "merges": []}},
/// #   "decoder": {{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
/// #   "use_regex": false}}}}"#, alphabet.join(","));
/// # let tokenizer = text::Tokenizer::from_bytes("tokenizer.json", json.as_bytes())?;
/// // A vocabulary of single characters, each at its own code; 126 ends a text.
/// let compiler = text::GrammarCompiler::new(&tokenizer, 127, &[126])?;
/// let yes_or_no = text::Structure::Choice(vec!["yes".to_owned(), "no".to_owned()]);
/// let mut constraint = compiler.compile(&yes_or_no)?;
/// let allowed = constraint.mask()?[3];
/// assert_eq!(allowed, 1 << (b'y' - 96) | 1 << (b'n' - 96));
/// constraint.accept(u32::from(b'n'))?;
/// constraint.accept(u32::from(b'o'))?;
/// assert!(constraint.is_finished());
/// # Ok::<(), text::TextError>(())
/// ```
#[derive(Clone)]
pub struct GrammarCompiler {
    shared: Arc<Shared>,
}

struct Shared {
    factory: ParserFactory,
    eos_ids: Box<[u32]>,
    vocab_size: usize,
    running: AtomicUsize,
    before: OnceLock<Arc<BeforeMasks>>,
}

impl GrammarCompiler {
    /// A compiler for a model with `vocab_size` logits, which may be more than the tokenizer has
    /// tokens, and the tokens that end its texts.
    ///
    /// # Errors
    /// [`TextError::Malformed`] if the tokenizer's tokens do not stand for bytes (WordPiece and
    /// others that join words), or a token that ends a text is outside the vocabulary.
    pub fn new(
        tokenizer: &Tokenizer,
        vocab_size: usize,
        eos_ids: &[u32],
    ) -> Result<Self, TextError> {
        let trie = vocabulary::trie(tokenizer, vocab_size, eos_ids)?;
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::general_slices();
        let factory = guarded(|| {
            let factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices);
            factory.map_err(|error| error.to_string().into())
        });
        let mut factory = factory
            .map_err(|reason| TextError::Malformed { file: tokenizer.file().to_owned(), reason })?;
        factory.quiet();
        *factory.limits_mut() = limits::parser();
        let (running, before) = (AtomicUsize::new(0), OnceLock::new());
        let shared = Shared { factory, eos_ids: eos_ids.into(), vocab_size, running, before };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Compiles a structure, with the first mask.
    ///
    /// The work is bounded whatever the structure says and however busy the machine is, but takes
    /// milliseconds and, for a big schema, a second: call it beside the loop that generates.
    ///
    /// # Errors
    /// [`TextError::Structure`] if the structure is malformed, asks for what cannot be enforced,
    /// accepts no text, or is too large.
    pub fn compile(&self, structure: &Structure) -> Result<Constraint, TextError> {
        limits::check(structure)?;
        let running = Running::start(self.shared.clone())?;
        let (result, results) = mpsc::channel();
        let (compiler, structure) = (self.clone(), structure.clone());
        // Schemas and expressions are walked recursively, as deep as the limits allow.
        let builder = thread::Builder::new().stack_size(limits::STACK_BYTES);
        let compiling = builder.spawn(move || {
            let _running = running;
            let compiled = guarded(|| Ok(compiler.compile_here(&structure)));
            // Nobody waits any more if it took too long.
            let _ = result.send(compiled.unwrap_or_else(|reason| Err(refuse(&reason))));
        });
        compiling.map_err(|error| refuse(&error.to_string()))?;
        results
            .recv_timeout(limits::DEADLINE)
            .unwrap_or_else(|_| Err(refuse("it takes too long to compile")))
    }

    /// As [`compile`](Self::compile), for an answer to `prompt` (of which the end matters) by a
    /// model that may reason first: the structure begins where a
    /// [`ReasoningParser`](crate::ReasoningParser) of the same format and prompt finds the answer.
    ///
    /// Reasoning is any text, and must be closed before the text may end. Where the text itself
    /// tells whether it is reasoning, it begins with the opening tag or as the structure says. A
    /// few line breaks may come between reasoning and answer; an answer after reasoning does not
    /// begin with one, since the parser drops it.
    ///
    /// The first call takes longer: it goes over the vocabulary.
    ///
    /// # Errors
    /// As [`compile`](Self::compile), and if every text of the structure begins with a line break.
    pub fn compile_after_reasoning(
        &self,
        structure: &Structure,
        format: ReasoningFormat,
        prompt: &str,
    ) -> Result<Constraint, TextError> {
        let constraint = self.compile(structure)?;
        let vocabulary = self.shared.factory.tok_env();
        let masks = self.shared.before.get_or_init(|| {
            let masks = BeforeMasks::new(vocabulary.tok_trie());
            Arc::new(masks)
        });
        let begins_within = format.begins_within(prompt);
        constraint.after_reasoning(masks.clone(), vocabulary.clone(), begins_within)
    }

    fn compile_here(&self, structure: &Structure) -> Result<Constraint, TextError> {
        let Shared { factory, eos_ids, vocab_size, .. } = &*self.shared;
        let matcher = Matcher::new(factory.create_parser(grammar(structure)));
        if let Some(error) = matcher.get_error() {
            return Err(refuse(&error));
        }
        let (eos_ids, vocab_size) = (eos_ids.clone(), *vocab_size);
        let (mask, before, ended) = (None, None, false);
        let mut constraint = Constraint { matcher, eos_ids, vocab_size, mask, before, ended };
        match constraint.mask() {
            Ok(_) => Ok(constraint),
            Err(TextError::Constraint { reason }) => Err(refuse(&reason)),
            Err(error) => Err(error),
        }
    }
}

/// One of the compilations at a time.
struct Running(Arc<Shared>);

impl Running {
    fn start(shared: Arc<Shared>) -> Result<Self, TextError> {
        let others = shared.running.fetch_add(1, Ordering::Relaxed);
        let running = Self(shared);
        if others < limits::MAX_AT_ONCE { Ok(running) } else { Err(refuse("too many at a time")) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarCompiler")
            .field("vocab_size", &self.shared.vocab_size)
            .field("eos_ids", &self.shared.eos_ids)
            .finish_non_exhaustive()
    }
}

/// llguidance appends states and backtraces to its messages.
pub(super) fn first_line(message: &str) -> &str {
    let end = ["\n<", "<backtrace>"].iter().filter_map(|tag| message.find(tag)).min();
    message[..end.unwrap_or(message.len())].trim_end()
}

fn refuse(message: &str) -> TextError {
    let message = first_line(message);
    // Some messages quote the whole expression.
    let end = message.char_indices().nth(MAX_MESSAGE).map_or(message.len(), |(at, _)| at);
    TextError::Structure { reason: message[..end].to_owned() }
}

fn grammar(structure: &Structure) -> TopLevelGrammar {
    match structure {
        Structure::JsonSchema(schema) => json_grammar(schema.clone()),
        Structure::JsonObject => json_grammar(json!({"type": "object"})),
        Structure::Regex(regex) => TopLevelGrammar::from_regex(unanchored(regex)),
        Structure::Grammar(lark) => TopLevelGrammar::from_lark(lark.clone()),
        Structure::Choice(choices) => TopLevelGrammar::from_regex(&any_of(choices)),
    }
}

/// `schema`, set to what output from this crate looks like.
pub(crate) fn with_json_options(mut schema: Value) -> Value {
    if let Value::Object(fields) = &mut schema {
        let options = json!({"whitespace_pattern": JSON_WHITESPACE});
        fields.insert("x-guidance".to_owned(), options);
    }
    schema
}

fn json_grammar(schema: Value) -> TopLevelGrammar {
    TopLevelGrammar::from_json_schema(with_json_options(schema))
}

/// The whole text is matched, so anchors say nothing.
fn unanchored(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    let Some(head) = regex.strip_suffix('$') else { return regex };
    let escapes = head.bytes().rev().take_while(|&byte| byte == b'\\').count();
    if escapes % 2 == 0 { head } else { regex }
}

/// One of the choices, letter for letter.
fn any_of(choices: &[String]) -> String {
    let escape = |choice: &String| {
        let escaped = |c: char| {
            let is_operator = r"\.+*?()|[]{}^$#&-~/".contains(c);
            is_operator.then_some('\\').into_iter().chain([c])
        };
        choice.chars().flat_map(escaped).collect::<String>()
    };
    choices.iter().map(escape).collect::<Vec<_>>().join("|")
}
