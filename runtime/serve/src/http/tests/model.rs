//! Stand-ins for models, and a tokenizer of bytes.

use std::{thread::sleep, time::Duration};

use exec::Memory;
use ir::{ModelInfo, ModelKind};
use serde_json::{Map, Value, json};
use text::{GenerationDefaults, SpecialTokens, TextBundle};

use crate::{
    Batch, BlockCopy, Limits, Logits, ServeError, StepModel,
    engine::{Engine, EngineOptions, Identity},
    testing::Mock,
};

/// Every byte, `<s>` and `</s>`.
pub(super) const VOCAB_SIZE: usize = 258;
pub(super) const EOS: u32 = 257;

/// Writes a message as `role:text>`.
const TEMPLATE: &str = "\
{%- for message in messages -%}
{{ message.role }}:{{ message.content }}{% for call in message.tool_calls %}\
{{ call.function.name }}({{ call.function.arguments | tojson }}){% endfor %}>
{%- endfor -%}
{%- if tools %}tools:{{ tools | length }}>{% endif -%}
{%- if enable_thinking is defined %}thinking:{{ enable_thinking }}>{% endif -%}
{%- if add_generation_prompt %}assistant:{% endif -%}";

pub(super) fn bundle() -> TextBundle {
    TextBundle {
        tokenizer_json: Some(tokenizer().to_string()),
        special_tokens: SpecialTokens {
            by_role: [("bos_token", "<s>"), ("eos_token", "</s>")]
                .map(|(role, token)| (role.to_owned(), token.to_owned()))
                .into(),
            additional: vec![],
        },
        chat_templates: [("default".to_owned(), TEMPLATE.to_owned())].into(),
        generation: GenerationDefaults {
            eos_token_ids: vec![EOS],
            ..GenerationDefaults::default()
        },
        ..TextBundle::default()
    }
}

/// GPT-2's alphabet, so that id and byte are the same.
fn tokenizer() -> Value {
    let is_plain = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100..;
    let token = |byte: u8| match is_plain(byte) {
        true => char::from(byte),
        false => char::from_u32(next.next().unwrap()).unwrap(),
    };
    let vocab: Map<String, Value> =
        (0..=255).map(token).zip(0..).map(|(c, id): (char, u32)| (c.into(), id.into())).collect();
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false})
    };
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
        "use_regex": false});
    json!({
        "version": "1.0",
        "added_tokens": [added(256, "<s>"), added(EOS, "</s>")],
        "pre_tokenizer": level,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}}},
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []}
    })
}

pub(super) fn info(kind: ModelKind) -> ModelInfo {
    ModelInfo {
        architecture: "MockForCausalLM".into(),
        kind,
        vocab_size: VOCAB_SIZE as u64,
        hidden_size: 3,
        max_seq_len: 128,
        parameters: 1,
    }
}

pub(super) fn engine(
    model: impl StepModel + Send + 'static,
    change: impl FnOnce(&mut TextBundle),
) -> Engine {
    let options = EngineOptions { prefix_cache: false, ..EngineOptions::default() };
    engine_with(model, change, &options)
}

pub(super) fn engine_with(
    model: impl StepModel + Send + 'static,
    change: impl FnOnce(&mut TextBundle),
    options: &EngineOptions,
) -> Engine {
    let mut bundle = bundle();
    change(&mut bundle);
    let identity = Identity { info: info(ModelKind::Decoder), bundle, memory: Memory::default() };
    Engine::of_model(model, identity, options).unwrap()
}

pub(super) fn hashing() -> Mock {
    super::mock()
}

/// Says a text, byte by byte, after each `assistant:` in its context, and then ends.
pub(super) struct Script {
    limits: Limits,
    text: Vec<u32>,
    memory: Vec<u32>,
    logits: Vec<f32>,
    sums: Vec<f32>,
}

impl Script {
    pub(super) fn new(text: &str) -> Script {
        let limits = Limits {
            vocab_size: VOCAB_SIZE,
            max_seq_len: 512,
            max_batch_tokens: 64,
            max_sequences: 8,
            max_rows: 64,
            block_size: 16,
            blocks: 64,
            table_len: 32,
            window: None,
        };
        let text = text.bytes().map(u32::from).chain([EOS]).collect();
        Script { limits, text, memory: vec![0; 1024], logits: vec![], sums: vec![] }
    }

    fn next(&self, context: &[u32]) -> u32 {
        let mark: Vec<u32> = b"assistant:".iter().map(|b| u32::from(*b)).collect();
        let at = context.windows(mark.len()).position(|window| *window == mark);
        let said = at.map_or(0, |at| context.len() - at - mark.len());
        self.text.get(said).copied().unwrap_or(EOS)
    }
}

impl StepModel for Script {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn step(&mut self, batch: &Batch, _: &mut dyn FnMut()) -> Result<Logits<'_>, ServeError> {
        let at = |i: i32| usize::try_from(i).unwrap();
        for (token, slot) in batch.tokens.iter().zip(&batch.slots) {
            self.memory[at(*slot)] = token.cast_unsigned();
        }
        self.logits.clear();
        for row in &batch.logit_rows {
            let sequence = batch.cu_seqlens.iter().filter(|c| *c <= row).count() - 1;
            let table = &batch.block_tables[sequence * self.limits.table_len..];
            let size = self.limits.block_size;
            let slot = |p: usize| at(table[p / size]) * size + p % size;
            let context: Vec<u32> =
                (0..=at(batch.positions[at(*row)])).map(|p| self.memory[slot(p)]).collect();
            let next = self.next(&context) as usize;
            let start = self.logits.len();
            self.logits.resize(start + VOCAB_SIZE, -50.0);
            self.logits[start + next] = 0.0;
        }
        self.sums.clear();
        self.sums.resize(batch.logit_rows.len(), 0.0);
        Ok(Logits::new(&self.logits, &self.sums, VOCAB_SIZE))
    }

    fn copy_block(&mut self, copy: BlockCopy) -> Result<(), ServeError> {
        let size = self.limits.block_size;
        let at = |block: u32| block as usize * size;
        self.memory.copy_within(at(copy.from)..at(copy.from) + size, at(copy.to));
        Ok(())
    }
}

/// A model whose steps take a while.
pub(super) struct Slow<M>(pub(super) M, pub(super) Duration);

impl<M: StepModel> StepModel for Slow<M> {
    fn limits(&self) -> &Limits {
        self.0.limits()
    }

    fn step(&mut self, batch: &Batch, beside: &mut dyn FnMut()) -> Result<Logits<'_>, ServeError> {
        sleep(self.1);
        self.0.step(batch, beside)
    }

    fn copy_block(&mut self, copy: BlockCopy) -> Result<(), ServeError> {
        self.0.copy_block(copy)
    }
}
