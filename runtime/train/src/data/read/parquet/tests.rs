//! Tables as they are written, and files that only look like it.

use std::sync::atomic::AtomicU64;

use ::parquet::{
    column::writer::ColumnWriter,
    data_type::ByteArray,
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use serde_json::json;

use super::*;
use crate::data::{
    files::{Kind, SourceFile},
    testing::{Folder, parquet},
};

const SCHEMA: &str = "message m { optional binary text (UTF8); optional binary raw; }";

fn records(folder: &Folder, bytes: &[u8], columns: &[&str]) -> Result<Vec<Record>, DataError> {
    let path = folder.write("a.parquet", bytes);
    let file = SourceFile { path, kind: Kind::Parquet };
    let cx = Reading { file: &file, columns, separator: None, done: &AtomicU64::new(0) };
    let mut out = Vec::new();
    cx.run(&mut |record| {
        out.push(record);
        ControlFlow::Continue(())
    })?;
    Ok(out)
}

fn fields(record: &Record) -> (u64, Value) {
    let Record::Row { number, fields } = record else { panic!("{record:?}") };
    (*number, Value::Object(fields.clone()))
}

#[test]
fn columns_are_read_group_by_group() {
    let folder = Folder::new("parquet");
    let texts = vec![Some("one"), Some(""), None, Some("vier"), Some("é")];
    let raw = vec![Some("1"), Some("2"), Some("3"), None, Some("5")];
    let bytes = parquet(SCHEMA, &[texts, raw], 2).unwrap();
    let rows = records(&folder, &bytes, &["text"]).unwrap();
    let rows: Vec<(u64, Value)> = rows.iter().map(fields).collect();
    assert_eq!(
        rows,
        [
            (1, json!({"text": "one"})),
            (2, json!({"text": ""})),
            (3, json!({"text": null})),
            (4, json!({"text": "vier"})),
            (5, json!({"text": "é"})),
        ]
    );
    let rows = records(&folder, &bytes, &["raw", "text", "tools"]).unwrap();
    assert_eq!(fields(&rows[4]), (5, json!({"text": "é", "raw": "5"})));
    let error = records(&folder, &bytes, &["content"]).unwrap_err().to_string();
    assert!(
        error.ends_with("has no column `content`; it has text, raw; name one by `data.column`")
    );
}

#[test]
fn conversations_are_lists_of_structures() {
    let schema = "message m { optional group messages (LIST) { repeated group list {
        optional group element {
            optional binary role (UTF8); optional binary content (UTF8);
        } } } }";
    let mut bytes = Vec::new();
    let schema = std::sync::Arc::new(parse_message_type(schema).unwrap());
    let properties = std::sync::Arc::new(WriterProperties::builder().build());
    let mut file = SerializedFileWriter::new(&mut bytes, schema, properties).unwrap();
    let mut group = file.next_row_group().unwrap();
    // Two conversations, of two messages and of one without content.
    let columns = [
        (["user", "assistant", "user"].as_slice(), [4, 4, 4]),
        (["Hi", "Hello"].as_slice(), [4, 4, 3]),
    ];
    for (values, levels) in columns {
        let values: Vec<ByteArray> = values.iter().map(|text| ByteArray::from(*text)).collect();
        let mut writer = group.next_column().unwrap().unwrap();
        let ColumnWriter::ByteArrayColumnWriter(column) = writer.untyped() else { panic!() };
        column.write_batch(&values, Some(&levels), Some(&[0, 1, 0])).unwrap();
        writer.close().unwrap();
    }
    group.close().unwrap();
    file.close().unwrap();
    let folder = Folder::new("parquet-chat");
    let rows = records(&folder, &bytes, &["messages"]).unwrap();
    let rows: Vec<(u64, Value)> = rows.iter().map(fields).collect();
    let first =
        json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]);
    assert_eq!(
        rows,
        [(1, json!({"messages": first})), (2, json!({"messages": [{"role": "user"}]}))]
    );
}

#[test]
fn damaged_files_are_an_error() {
    let folder = Folder::new("parquet-damage");
    let raw = vec![Some("1"); 50];
    let texts: Vec<Option<&str>> = vec![Some("a text of some length"); 50];
    let good = parquet(SCHEMA, &[texts, raw], 20).unwrap();
    for bytes in [&b""[..], b"PAR1", &good[..good.len() / 2]] {
        let error = records(&folder, bytes, &["text"]).unwrap_err().to_string();
        assert!(error.contains("a.parquet: cannot be read as Parquet"), "{error}");
    }
    let _ = records(&folder, &good[4..], &["text"]);
    for at in (0..good.len()).step_by(3) {
        let mut bytes = good.clone();
        bytes[at] ^= 0xff;
        let _ = records(&folder, &bytes, &["text"]);
    }
}
