//! The families of models that Hugging Face folders hold.
//!
//! A family is one short file that reads `config.json` into a [`Model`] over the shared blocks, and
//! one line in the table [`FAMILIES`].

mod bert;
mod gpt2;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;
mod read;

use serde_json::Value;

use crate::{
    blocks::Slot,
    config::Fields,
    decoder::{Decoder, Positions},
    encoder::Encoder,
    json,
    stack::Stack,
};

/// A family of models.
pub(crate) struct Family {
    /// `model_type` in the config.
    pub(crate) model_type: &'static str,
    /// Names in the config's `architectures`; the first is meant where there are none.
    pub(crate) architectures: &'static [&'static str],
    /// Prefix of the base model's tensors; a checkpoint has it on all of them or on none.
    pub(crate) prefix: &'static str,
    /// Whether models are encoders, which sentence-transformers' files go with.
    pub(crate) encoder: bool,
    /// Reads the config.
    pub(crate) read: fn(&Fields<'_>) -> Option<Model>,
    /// Whether a tensor, its prefix removed, is known to belong to files of the family but is not
    /// needed: a buffer that older releases stored, or a head that is not used.
    pub(crate) ignored: fn(&str) -> bool,
    /// Endings of tensor names, and what older files have instead.
    pub(crate) aliases: &'static [(&'static str, &'static str)],
}

/// Every family.
static FAMILIES: &[&Family] = &[
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &gpt2::FAMILY,
    &bert::FAMILY,
];

/// Names of all supported architectures.
pub fn architectures() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().flat_map(|f| f.architectures.iter().copied())
}

/// A model as its config describes it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Model {
    Decoder(Decoder),
    Encoder(Encoder),
}

impl Model {
    /// Every weight, with its full name.
    pub(crate) fn slots(&self, prefix: &str) -> Vec<Slot> {
        match self {
            Model::Decoder(m) => m.slots(prefix),
            Model::Encoder(m) => m.slots(prefix),
        }
    }

    /// Positions that the model was made for, and whether it has no others.
    pub(crate) fn positions(&self) -> (u64, bool) {
        match self {
            Model::Decoder(m) => (m.max_positions, matches!(m.positions, Positions::Learned(_))),
            Model::Encoder(m) => (m.max_positions, true),
        }
    }

    pub(crate) fn layers_mut(&mut self) -> &mut Stack {
        match self {
            Model::Decoder(m) => &mut m.layers,
            Model::Encoder(m) => &mut m.layers,
        }
    }

    pub(crate) fn layers(&self) -> &Stack {
        match self {
            Model::Decoder(m) => &m.layers,
            Model::Encoder(m) => &m.layers,
        }
    }
}

/// The family of a config, by its architecture or else its model type, and the architecture's name.
pub(crate) fn find_family(c: &Fields<'_>) -> Option<(&'static Family, String)> {
    let supported = || architectures().collect::<Vec<_>>().join(", ");
    if let Some(list) = c.get("architectures") {
        let names: Option<Vec<&str>> =
            list.as_array().and_then(|l| l.iter().map(Value::as_str).collect());
        let [name] = names.as_deref().unwrap_or_default() else {
            let list = json::shown(list);
            c.refuse("architectures", format!("is {list}, expected a list of one name"));
            return None;
        };
        let family = FAMILIES.iter().find(|f| f.architectures.contains(name));
        if family.is_none() {
            let why =
                format!("has `{name}`, which is not supported; supported are {}", supported());
            c.refuse("architectures", why);
        }
        return family.map(|f| (*f, (*name).to_owned()));
    }
    let Some(kind) = c.text("model_type").optional()? else {
        let why = format!("is missing, expected one of {}", supported());
        c.refuse("architectures", why);
        return None;
    };
    let family = FAMILIES.iter().find(|f| f.model_type == kind);
    if family.is_none() {
        let why = format!("is `{kind}`, which is not supported; supported are {}", supported());
        c.refuse("model_type", why);
    }
    family.map(|f| (*f, f.architectures[0].to_owned()))
}
