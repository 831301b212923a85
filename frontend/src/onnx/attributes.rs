//! Attributes of a node, read by name. What nobody has read is unknown and refused.

use std::cell::RefCell;

use ir::{Attr, OpError};
use onnx_protobuf::{AttributeProto, attribute_proto::AttributeType};

/// The attributes of one node.
pub(super) struct Attributes<'a> {
    list: &'a [AttributeProto],
    read: RefCell<Vec<String>>,
}

impl<'a> Attributes<'a> {
    pub(super) fn new(list: &'a [AttributeProto]) -> Attributes<'a> {
        Attributes { list, read: RefCell::default() }
    }

    fn find(&self, name: &str, kind: AttributeType) -> Result<Option<&'a AttributeProto>, OpError> {
        self.read.borrow_mut().push(name.into());
        let Some(a) = self.list.iter().find(|a| a.name == name) else { return Ok(None) };
        if !a.ref_attr_name.is_empty() {
            return Err(OpError::attr(name, "refers to an attribute of a function"));
        }
        match a.type_.enum_value() {
            Ok(k) if k == kind || k == AttributeType::UNDEFINED => Ok(Some(a)),
            Ok(k) => Err(OpError::attr(name, format_args!("is of kind {k:?}, not {kind:?}"))),
            Err(k) => Err(OpError::attr(name, format_args!("is of unknown kind {k}"))),
        }
    }

    pub(super) fn int(&self, name: &str) -> Result<Option<i64>, OpError> {
        Ok(self.find(name, AttributeType::INT)?.map(|a| a.i))
    }

    pub(super) fn int_or(&self, name: &str, default: i64) -> Result<i64, OpError> {
        Ok(self.int(name)?.unwrap_or(default))
    }

    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, OpError> {
        match self.int(name)? {
            None => Ok(default),
            Some(v @ (0 | 1)) => Ok(v == 1),
            Some(v) => Err(OpError::attr(name, format_args!("must be 0 or 1, got {v}"))),
        }
    }

    pub(super) fn float(&self, name: &str) -> Result<Option<f64>, OpError> {
        Ok(self.find(name, AttributeType::FLOAT)?.map(|a| f64::from(a.f)))
    }

    pub(super) fn float_or(&self, name: &str, default: f32) -> Result<f64, OpError> {
        Ok(self.float(name)?.unwrap_or(f64::from(default)))
    }

    pub(super) fn ints(&self, name: &str) -> Result<Option<&'a [i64]>, OpError> {
        Ok(self.find(name, AttributeType::INTS)?.map(|a| &*a.ints))
    }

    pub(super) fn tensor(
        &self,
        name: &str,
    ) -> Result<Option<&'a onnx_protobuf::TensorProto>, OpError> {
        Ok(self.find(name, AttributeType::TENSOR)?.and_then(|a| a.t.as_ref()))
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&'a str>, OpError> {
        match self.find(name, AttributeType::STRING)? {
            None => Ok(None),
            Some(a) => {
                std::str::from_utf8(&a.s).map(Some).map_err(|_| OpError::attr(name, "is not UTF-8"))
            }
        }
    }

    /// An attribute that maps to one of the operator table as it stands.
    pub(super) fn plain(&self, name: &str) -> Result<Option<Attr>, OpError> {
        let Some(a) = self.list.iter().find(|a| a.name == name) else { return Ok(None) };
        Ok(match a.type_.enum_value() {
            Ok(AttributeType::INT) => self.int(name)?.map(Attr::from),
            Ok(AttributeType::FLOAT) => self.float(name)?.map(Attr::from),
            Ok(AttributeType::INTS) => self.ints(name)?.map(|v| Attr::from(v.to_vec())),
            Ok(AttributeType::STRING) => self.text(name)?.map(Attr::from),
            _ => return Err(OpError::attr(name, "is of a kind that is not supported here")),
        })
    }

    /// Attributes that nobody has asked for.
    pub(super) fn unread(&self) -> Vec<&'a str> {
        let read = self.read.borrow();
        self.list.iter().map(|a| &*a.name).filter(|n| read.iter().all(|r| r != n)).collect()
    }
}
