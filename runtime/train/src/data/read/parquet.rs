//! Rows of a Parquet file, one row group after the other, only the columns that are asked for.

use std::{
    fs::File,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
};

use parquet::{
    errors::ParquetError,
    file::{reader::FileReader as _, serialized_reader::SerializedFileReader},
    record::{Field, Row},
    schema::types::Type,
};
use serde_json::{Map, Value};

use super::{Reading, Record, Sink};
use crate::data::{error::DataError, files::unreadable};

pub(super) fn read(cx: &Reading<'_>, sink: &mut Sink<'_>) -> Result<(), DataError> {
    let path = &cx.file.path;
    let file = File::open(path).map_err(|error| unreadable(path, error))?;
    let total = file.metadata().map_err(|error| unreadable(path, error))?.len();
    // The crate indexes and unwraps by what the file says.
    let outcome = catch_unwind(AssertUnwindSafe(|| read_file(cx, file, total, sink)));
    outcome.unwrap_or_else(|_| Err(cx.fail("is damaged: its parts contradict each other")))
}

fn read_file(
    cx: &Reading<'_>,
    file: File,
    total: u64,
    sink: &mut Sink<'_>,
) -> Result<(), DataError> {
    let fail = |error: ParquetError| cx.fail(format!("cannot be read as Parquet: {error}"));
    let reader = SerializedFileReader::new(file).map_err(fail)?;
    let projection = projection(cx, reader.metadata().file_metadata().schema())?;
    let groups = reader.num_row_groups();
    let mut number = 0;
    for group in 0..groups {
        let group = reader.get_row_group(group).map_err(fail)?;
        for row in group.get_row_iter(Some(projection.clone())).map_err(fail)? {
            number += 1;
            if let ControlFlow::Break(()) = sink(record(number, row.map_err(fail)?)) {
                return Ok(());
            }
        }
        cx.advance(total / groups as u64);
    }
    Ok(())
}

/// The schema with the columns that are asked for, the first of which must be there.
fn projection(cx: &Reading<'_>, schema: &Type) -> Result<Type, DataError> {
    let Some(column) = cx.columns.first() else { return Err(cx.fail("has no column to read")) };
    let fields = schema.get_fields();
    let names = || fields.iter().map(|field| field.name());
    if !names().any(|name| name == *column) {
        return Err(DataError::Column {
            path: cx.file.path.clone(),
            column: (*column).to_owned(),
            columns: names().map(str::to_owned).collect(),
        });
    }
    let wanted = fields.iter().filter(|field| cx.columns.contains(&field.name()));
    Type::group_type_builder(schema.name())
        .with_fields(wanted.cloned().collect())
        .build()
        .map_err(|error| cx.fail(format!("has a schema that cannot be read: {error}")))
}

fn record(number: u64, row: Row) -> Record {
    let mut fields = Map::new();
    for (name, field) in row.into_columns() {
        match value(field) {
            Ok(value) => fields.extend([(name, value)]),
            Err(reason) => {
                return Record::Bad { number, reason: format!("has in `{name}` {reason}") };
            }
        }
    }
    Record::Row { number, fields }
}

/// A field as JSON. Fields of structures that are null are left out: tables have them in every row,
/// and a template asks whether they are there.
fn value(field: Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(x) => x.into(),
        Field::Byte(x) => x.into(),
        Field::Short(x) => x.into(),
        Field::Int(x) => x.into(),
        Field::Long(x) => x.into(),
        Field::UByte(x) => x.into(),
        Field::UShort(x) => x.into(),
        Field::UInt(x) => x.into(),
        Field::ULong(x) => x.into(),
        Field::Float(x) => f64::from(x).into(),
        Field::Double(x) => x.into(),
        Field::Str(text) => text.into(),
        // Older writers do not say that bytes are text.
        Field::Bytes(bytes) => match String::from_utf8(bytes.data().to_vec()) {
            Ok(text) => text.into(),
            Err(_) => return Err("bytes that are not UTF-8".to_owned()),
        },
        Field::Group(row) => {
            let mut object = Map::new();
            for (name, field) in row.into_columns() {
                if !matches!(field, Field::Null) {
                    object.insert(name, value(field)?);
                }
            }
            object.into()
        }
        Field::ListInternal(list) => {
            let items = list.elements().iter().cloned().map(value);
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        other => return Err(format!("a value of a kind that is no text: {other}")),
    })
}

#[cfg(test)]
mod tests;
