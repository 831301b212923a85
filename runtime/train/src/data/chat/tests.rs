//! Which part of a conversation is learned, under templates of several manners.

use serde_json::json;

use super::*;
use crate::data::testing::stories;

const CHATML: &str = "{% for m in messages %}{{ '<s>' + m.role + '\\n' + m.content + '</s>' + '\\n' }}\
                      {% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}";

fn chat(template: &str) -> Chat {
    let mut bundle = stories();
    bundle.chat_templates.insert("default".to_owned(), template.to_owned());
    let tokenizer = bundle.tokenizer().unwrap().unwrap();
    Chat::new(&bundle, &tokenizer).unwrap()
}

fn render(template: &str, fields: Value) -> Result<(String, Vec<String>), String> {
    let Value::Object(fields) = fields else { panic!("an object") };
    let rendered = chat(template).render("messages", &fields)?;
    let learned = rendered.learned.iter().map(|span| rendered.text[span.clone()].to_owned());
    let learned = learned.collect();
    Ok((rendered.text, learned))
}

fn conversation() -> Value {
    json!({"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "I."},
    ]})
}

#[test]
fn turns_are_learned_with_their_end_and_nothing_else() {
    let (text, learned) = render(CHATML, conversation()).unwrap();
    assert!(text.starts_with("<s>system\nBe brief.</s>\n<s>user\nHi</s>\n<s>assistant\nHello!"));
    assert_eq!(learned, ["Hello!</s>", "I.</s>"]);
}

#[test]
fn generation_blocks_are_taken_at_their_word() {
    let marked = "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}\
                  {% generation %} {{ m.content }}</s>\n{% endgeneration %}\
                  {% else %} {{ m.content }}{% endif %}{% endfor %}";
    let (_, learned) = render(marked, conversation()).unwrap();
    assert_eq!(learned, [" Hello!</s>", " I.</s>"]);
}

#[test]
fn templates_without_generation_prompt_or_end_work() {
    let lines = "{% for m in messages %}{{ m.content }}{% if not loop.last %}{{ '\\n' }}{% endif %}\
                 {% endfor %}";
    let (_, learned) = render(lines, conversation()).unwrap();
    assert_eq!(learned, ["\nHello!", "\nI."]);
}

#[test]
fn templates_that_rewrite_turns_are_refused() {
    let forgets = "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' and loop.last %}\
                   <think>{% endif %}{{ m.content }}{% endfor %}";
    let error = render(forgets, conversation()).unwrap_err();
    assert!(error.contains("writes message 2 otherwise once there are later ones"), "{error}");
    assert!(error.contains("{% generation %}"), "{error}");
    let other = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\
                 {% if add_generation_prompt %}[assistant]{% endif %}";
    let error = render(other, conversation()).unwrap_err();
    assert!(error.contains("begins message 2 otherwise than it asks for it"), "{error}");
    let raises = "{% if not messages[-1].role == 'assistant' %}{{ raise_exception('no') }}\
                  {% endif %}x";
    let error = render(raises, conversation()).unwrap_err();
    assert!(error.contains("does not render the 2 messages before a turn"), "{error}");
}

#[test]
fn tools_and_variables_reach_the_template() {
    let template =
        "{{ tools | length }}{{ mood }}{% for m in messages %}|{{ m.content }}{% endfor %}";
    let mut record = conversation();
    record["chat_template_kwargs"] = json!({"mood": "calm"});
    for tools in [json!([{"name": "a"}, {"name": "b"}]), json!("[{\"name\": \"a\"}, 2]")] {
        record["tools"] = tools;
        let (text, _) = render(template, record.clone()).unwrap();
        assert!(text.starts_with("2calm|"), "{text}");
    }
}

#[test]
fn the_date_is_always_the_same() {
    let dated = "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}|{{ m.content }}{% endfor %}";
    let (text, _) = render(dated, conversation()).unwrap();
    assert!(text.starts_with("2025-01-01|"), "{text}");
}

#[test]
fn records_that_are_no_conversations_are_told() {
    for (record, why) in [
        (json!({"messages": "hi"}), "has in `messages` no list of messages"),
        (json!({"messages": []}), "has no messages in `messages`"),
        (json!({"messages": [{"content": "hi"}]}), "has in `messages[0]` no object with a `role`"),
        (json!({"messages": [{"role": "user", "content": "hi"}]}), "has no assistant's turn"),
        (
            json!({"messages": [{"role": "assistant", "content": "hi"}], "tools": 3}),
            "has in `tools` no list",
        ),
    ] {
        let error = render(CHATML, record).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}
