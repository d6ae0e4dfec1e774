//! A JSON object: what serde derives for a struct takes a list of its fields' values, too.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(fields))
            }
        }

        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

#[cfg(test)]
mod tests {

    use serde_json::value::RawValue;

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Pair<'a> {
        #[serde(borrow)]
        a: &'a RawValue,
        #[serde(default)]
        b: Option<i32>,
    }

    #[test]
    fn an_object_is_taken_as_ever_and_a_list_is_not() {
        let Object(pair) = serde_json::from_str::<Object<Pair<'_>>>(r#"{"a": [1, {"x": 2}], "b": 3}"#).unwrap();
        assert_eq!((pair.a.get(), pair.b), (r#"[1, {"x": 2}]"#, Some(3)));
        for (text, told) in [
            ("[1, 2]", "invalid type: sequence, expected an object at line 1 column 0"),
            (r#"{"a": 1, "c": 2}"#, "unknown field `c`, expected `a` or `b` at line 1 column 12"),
            (r#"{"a": 1, "b": "x"}"#, "invalid type: string \"x\", expected i32 at line 1 column 17"),
            (r#"{"b": 1}"#, "missing field `a` at line 1 column 8"),
        ] {
            let error = serde_json::from_str::<Object<Pair<'_>>>(text).map(drop).unwrap_err();
            assert_eq!(error.to_string(), told, "{text}");
        }
    }
}
