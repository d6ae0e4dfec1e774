//! Embedded formats: how a record's key and value stand in a JSON body.
//!
//! A new format is one line in `CODECS`; what a plain one does is a file of its own, what schemas do is in `bound` and the registry.

mod binary;
mod bound;
mod json;
mod text;

use bytes::Bytes;
use serde_json::value::RawValue;

pub(crate) use self::{
    bound::{Reader, Schemas, Unreadable, Writer, Writers},
    json::compact,
};
use crate::registry::Kind;

/// One embedded format. `null` is the absence of a key or value in every format and never reaches a codec.
pub(crate) struct Codec {
    /// As in `format` of a consumer instance, and in the content type `application/vnd.kafka.<name>.v2+json`.
    pub(crate) name: &'static str,
    pub(crate) content_type: &'static str,
    pub(crate) form: Form,
}

pub(crate) enum Form {
    /// A value is all there is.
    Plain {
        /// From a request; the error says what was expected.
        parse: fn(&RawValue) -> Result<Bytes, String>,
        /// Appends the JSON form to an answer; on an error `out` is left as it was.
        write: fn(&[u8], &mut Vec<u8>) -> Result<(), String>,
    },
    /// Every value has a schema of this type in the registry: see [`Writer`] and [`Reader`].
    Schema(Kind),
}

const AVRO: Codec = Codec { name: "avro", content_type: "application/vnd.kafka.avro.v2+json", form: Form::Schema(Kind::Avro) };
const JSON_SCHEMA: Codec =
    Codec { name: "jsonschema", content_type: "application/vnd.kafka.jsonschema.v2+json", form: Form::Schema(Kind::Json) };
const PROTOBUF: Codec =
    Codec { name: "protobuf", content_type: "application/vnd.kafka.protobuf.v2+json", form: Form::Schema(Kind::Protobuf) };

/// The first is the default of consumer instances.
pub(crate) const CODECS: &[Codec] = &[binary::CODEC, json::CODEC, text::CODEC, AVRO, JSON_SCHEMA, PROTOBUF];

pub(crate) fn by_name(name: &str) -> Option<&'static Codec> {
    CODECS.iter().find(|codec| codec.name == name)
}

pub(crate) fn by_content_type(content_type: &str) -> Option<&'static Codec> {
    CODECS.iter().find(|codec| codec.content_type == content_type)
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn parse(format: &str, raw: &RawValue) -> Result<Bytes, String> {
        let Form::Plain { parse, .. } = by_name(format).unwrap().form else { panic!("{format} has schemas") };
        parse(raw)
    }

    fn write(format: &str, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
        let Form::Plain { write, .. } = by_name(format).unwrap().form else { panic!("{format} has schemas") };
        write(bytes, out)
    }

    fn check(format: &str, json: &str, bytes: &[u8]) {
        let raw = RawValue::from_string(json.to_owned()).unwrap();
        assert_eq!(parse(format, &raw).unwrap(), bytes, "{format} {json}");
        let mut out = Vec::new();
        write(format, bytes, &mut out).unwrap();
        let (written, given): (serde_json::Value, serde_json::Value) =
            (serde_json::from_slice(&out).unwrap(), serde_json::from_str(json).unwrap());
        assert_eq!(written, given, "{format} {json}");
    }

    fn refused(format: &str, json: &str, message: &str) {
        let raw = RawValue::from_string(json.to_owned()).unwrap();
        let error = parse(format, &raw).unwrap_err();
        assert!(error.contains(message), "{format} {json}: {error}");
    }

    #[test]
    fn every_format_gives_back_what_it_took() {
        check("binary", r#""S2Fma2E=""#, b"Kafka");
        check("binary", r#""""#, b"");
        check("binary", r#""AP8=""#, &[0, 255]);
        check("json", r#"{"a":[1,2.50,null],"b":"ö"}"#, r#"{"a":[1,2.50,null],"b":"ö"}"#.as_bytes());
        check("json", "{ \"a b\" :\n\t1 , \"c\\\" d\" : \"e  f\" }", br#"{"a b":1,"c\" d":"e  f"}"#);
        check("json", r#""text""#, br#""text""#);
        check("json", "12345678901234567890123", b"12345678901234567890123");
        check("text", r#""Zeile\n\"zwei\" ö""#, "Zeile\n\"zwei\" ö".as_bytes());
    }

    #[test]
    fn what_a_format_cannot_hold_is_refused_with_the_reason() {
        refused("binary", "1", "base64");
        refused("binary", r#""%%%""#, "base64");
        refused("binary", r#""AP8""#, "base64");
        refused("text", r#"{"a":1}"#, "must be a string");
        refused("text", r#""\ud800""#, "not Unicode text");
        for (format, bytes) in
            [("json", b"{not json".as_slice()), ("json", b""), ("json", b"1 2"), ("text", &[0xff, 0xfe]), ("json", &[b'"', 0xff, b'"'])]
        {
            let mut out = b"before".to_vec();
            assert!(write(format, bytes, &mut out).is_err(), "{format} {bytes:?}");
            assert_eq!(out, b"before");
        }
    }

    #[test]
    fn content_types_carry_the_names() {
        for codec in CODECS {
            assert_eq!(codec.content_type, format!("application/vnd.kafka.{}.v2+json", codec.name));
            assert_eq!(by_content_type(codec.content_type).unwrap().name, codec.name);
        }
        assert!(by_name("thrift").is_none());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_survive_binary_and_any_text_survives_text(bytes: Vec<u8>, text: String) {
            for (format, bytes) in [("binary", bytes.as_slice()), ("text", text.as_bytes())] {
                let mut out = Vec::new();
                write(format, bytes, &mut out).unwrap();
                let raw = RawValue::from_string(String::from_utf8(out).unwrap()).unwrap();
                assert_eq!(parse(format, &raw).unwrap(), bytes);
            }
        }
    }
}
