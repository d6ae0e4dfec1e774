//! The columns of a struct: what its `Deserialize` asks for, told by walking through it once without a value.

use std::any::type_name;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

/// A type that contains itself has no end.
const DEPTH_MAX: usize = 32;

/// In the order of the struct's fields.
pub(super) fn fields_of<T: DeserializeOwned>() -> anyhow::Result<Vec<Field>> {
    let mut column = Column { path: String::new(), depth: 0, found: None, nullable: false };
    let walked = T::deserialize(&mut column);
    match (walked, column.found) {
        (Ok(_), Some(DataType::Struct(fields))) => Ok(fields.iter().map(|field| field.as_ref().clone()).collect()),
        (Ok(_), _) => anyhow::bail!("to_df: {} is no struct with named fields; map the values to one first", type_name::<T>()),
        (Err(error), _) => anyhow::bail!("to_df: {}: {error}; give record batches to create_data_frame instead", type_name::<T>()),
    }
}

/// One column, or a part of one.
struct Column {
    path: String,
    depth: usize,
    found: Option<DataType>,
    nullable: bool,
}

impl Column {
    fn part(&self, path: String) -> Self {
        Self { path, depth: self.depth + 1, found: None, nullable: false }
    }

    fn field(self, name: &str) -> Result<Field, Error> {
        let (path, found) = (self.path, self.found);
        let data_type = found.ok_or_else(|| Error::custom(format_args!("`{path}` has no type that a column can have")))?;
        Ok(Field::new(name, data_type, self.nullable))
    }

    fn no_column<T>(&self, what: &str) -> Result<T, Error> {
        Err(Error::custom(format_args!("`{}` is {what}, for which there is no column", self.path)))
    }
}

/// Methods for types that a column holds as they are.
macro_rules! plain {
    ($($method:ident => $data_type:ident, $visit:ident($value:expr);)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.found = Some(DataType::$data_type);
            visitor.$visit($value).map_err(|error: Error| Error::custom(format_args!("`{}`: {error}", self.path)))
        }
    )*};
}

impl<'de> Deserializer<'de> for &mut Column {
    type Error = Error;

    plain! {
        deserialize_bool => Boolean, visit_bool(false);
        deserialize_i8 => Int8, visit_i8(0);
        deserialize_i16 => Int16, visit_i16(0);
        deserialize_i32 => Int32, visit_i32(0);
        deserialize_i64 => Int64, visit_i64(0);
        deserialize_u8 => UInt8, visit_u8(0);
        deserialize_u16 => UInt16, visit_u16(0);
        deserialize_u32 => UInt32, visit_u32(0);
        deserialize_u64 => UInt64, visit_u64(0);
        deserialize_f32 => Float32, visit_f32(0.0);
        deserialize_f64 => Float64, visit_f64(0.0);
        deserialize_char => Utf8, visit_char('a');
        deserialize_str => Utf8, visit_str("");
        deserialize_string => Utf8, visit_str("");
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.nullable = true;
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.depth == DEPTH_MAX {
            return self.no_column("nested too deeply");
        }
        let mut item = Some(self.part(format!("{}[]", self.path)));
        let mut walked = None;
        let value = visitor.visit_seq(Items { item: &mut item, walked: &mut walked })?;
        let item = match walked {
            Some(item) => item.field("item")?,
            None => return self.no_column("a list of nothing"),
        };
        self.found = Some(DataType::List(Arc::new(item)));
        Ok(value)
    }

    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, names: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        if self.depth == DEPTH_MAX {
            return self.no_column("nested too deeply");
        }
        let mut fields = Vec::with_capacity(names.len());
        let value = visitor.visit_map(Fields { of: self, names: names.iter(), name: "", fields: &mut fields })?;
        self.found = Some(DataType::Struct(fields.into()));
        Ok(value)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        self.no_column("of any type")
    }

    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], _: V) -> Result<V::Value, Error> {
        self.no_column("an enum")
    }

    fn deserialize_map<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        self.no_column("a map")
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        self.no_column("a tuple")
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(self, _: &'static str, _: usize, _: V) -> Result<V::Value, Error> {
        self.no_column("a tuple")
    }

    forward_to_deserialize_any! { i128 u128 bytes byte_buf unit unit_struct identifier ignored_any }
}

/// One item, so that its type is walked.
struct Items<'a> {
    item: &'a mut Option<Column>,
    walked: &'a mut Option<Column>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some(mut item) = self.item.take() else { return Ok(None) };
        let value = seed.deserialize(&mut item)?;
        *self.walked = Some(item);
        Ok(Some(value))
    }
}

/// Each field once.
struct Fields<'a> {
    of: &'a Column,
    names: std::slice::Iter<'static, &'static str>,
    name: &'static str,
    fields: &'a mut Vec<Field>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some(name) = self.names.next() else { return Ok(None) };
        self.name = name;
        let name: StrDeserializer<'_, Error> = name.into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let path = if self.of.path.is_empty() { self.name.to_owned() } else { format!("{}.{}", self.of.path, self.name) };
        let mut column = self.of.part(path);
        let value = seed.deserialize(&mut column)?;
        self.fields.push(column.field(self.name)?);
        Ok(value)
    }
}
