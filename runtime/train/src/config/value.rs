//! Values of TOML as numbers, and as words in messages.

use toml::de::DeValue;

pub(super) fn number(value: &DeValue<'_>) -> Option<f64> {
    match value {
        DeValue::Float(float) => float.as_str().parse().ok(),
        #[allow(clippy::cast_precision_loss, reason = "as decimal places do")]
        value => integer(value).map(|i| i as f64),
    }
}

pub(super) fn integer(value: &DeValue<'_>) -> Option<i64> {
    let DeValue::Integer(integer) = value else { return None };
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

pub(super) fn unquoted(value: &DeValue<'_>) -> Option<&'static str> {
    let text = value.as_str()?;
    text.trim().parse::<f64>().ok().map(|_| "write it without quotes")
}

/// A value in a message.
pub(super) fn told(value: &DeValue<'_>) -> String {
    const MAX_CHARS: usize = 60;
    match value {
        DeValue::String(text) if text.chars().count() > MAX_CHARS => {
            format!("a text of {} characters", text.chars().count())
        }
        DeValue::String(text) => format!("{:?}", &**text),
        DeValue::Integer(integer) => integer.to_string(),
        DeValue::Float(float) => float.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => format!("the time {time}"),
        DeValue::Array(list) if list.len() <= 8 => {
            let items: Vec<String> = list.iter().map(|item| told(item.get_ref())).collect();
            format!("[{}]", items.join(", "))
        }
        DeValue::Array(list) => format!("a list of {}", list.len()),
        DeValue::Table(_) => "a table".into(),
    }
}

/// `a, b or c`.
pub(super) fn either(names: &[String]) -> String {
    match names {
        [] => "nothing".into(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}
