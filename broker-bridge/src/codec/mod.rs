//! Embedded formats: how a record's key and value stand in a JSON body.
//!
//! A new format is one file and one line in `CODECS`.

mod binary;
mod json;
mod text;

use bytes::Bytes;
use serde_json::value::RawValue;

/// One embedded format. `null` is the absence of a key or value in every format and never reaches a codec.
pub(crate) struct Codec {
    /// As in `format` of a consumer instance, and in the content type `application/vnd.kafka.<name>.v2+json`.
    pub(crate) name: &'static str,
    pub(crate) content_type: &'static str,
    /// From a request; the error says what was expected.
    pub(crate) parse: fn(&RawValue) -> Result<Bytes, String>,
    /// Appends the JSON form to an answer; on an error `out` is left as it was.
    pub(crate) write: fn(&[u8], &mut Vec<u8>) -> Result<(), String>,
}

/// The first is the default of consumer instances.
pub(crate) const CODECS: &[Codec] = &[binary::CODEC, json::CODEC, text::CODEC];

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
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn check(format: &str, json: &str, bytes: &[u8]) {
        let codec = by_name(format).unwrap();
        let raw = RawValue::from_string(json.to_owned()).unwrap();
        assert_eq!((codec.parse)(&raw).unwrap(), bytes, "{format} {json}");
        let mut out = Vec::new();
        (codec.write)(bytes, &mut out).unwrap();
        let (written, given): (serde_json::Value, serde_json::Value) =
            (serde_json::from_slice(&out).unwrap(), serde_json::from_str(json).unwrap());
        assert_eq!(written, given, "{format} {json}");
    }

    fn refused(format: &str, json: &str, message: &str) {
        let raw = RawValue::from_string(json.to_owned()).unwrap();
        let error = (by_name(format).unwrap().parse)(&raw).unwrap_err();
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
            assert!((by_name(format).unwrap().write)(bytes, &mut out).is_err(), "{format} {bytes:?}");
            assert_eq!(out, b"before");
        }
    }

    #[test]
    fn content_types_carry_the_names() {
        for codec in CODECS {
            assert_eq!(codec.content_type, format!("application/vnd.kafka.{}.v2+json", codec.name));
            assert_eq!(by_content_type(codec.content_type).unwrap().name, codec.name);
        }
        assert!(by_name("avro").is_none());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_survive_binary_and_any_text_survives_text(bytes: Vec<u8>, text: String) {
            for (format, bytes) in [("binary", bytes.as_slice()), ("text", text.as_bytes())] {
                let codec = by_name(format).unwrap();
                let mut out = Vec::new();
                (codec.write)(bytes, &mut out).unwrap();
                let raw = RawValue::from_string(String::from_utf8(out).unwrap()).unwrap();
                assert_eq!((codec.parse)(&raw).unwrap(), bytes);
            }
        }
    }
}
