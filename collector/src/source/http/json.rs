//! The body that Flume's `JSONHandler` takes: `[{"headers": {"name": "value"}, "body": "text"}, …]`.

use std::{collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::event::Event;

/// How request and bodies are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Utf8,
    Utf16,
    Utf32,
}

impl Encoding {
    /// From the request's `Content-Type`; UTF-8 where it says nothing.
    pub fn of(content_type: Option<&str>) -> Result<Self, String> {
        let parameters = content_type.unwrap_or_default().split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
        let charset = parameters.into_iter().find(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
        let Some((_, charset)) = charset else { return Ok(Self::Utf8) };
        let charset = charset.trim().trim_matches('"');
        let known = [("utf-8", Self::Utf8), ("utf-16", Self::Utf16), ("utf-32", Self::Utf32)];
        let found = known.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(charset));
        found.map(|(_, encoding)| encoding).ok_or_else(|| format!("charset `{charset}` is none of UTF-8, UTF-16, UTF-32"))
    }

    /// The text; what has no meaning becomes U+FFFD, as in Java. Big-endian unless a byte order mark says otherwise.
    fn decode(self, text: &[u8]) -> String {
        match self {
            Self::Utf8 => String::from_utf8_lossy(text).into_owned(),
            Self::Utf16 => {
                let (text, little) = match text {
                    [0xfe, 0xff, rest @ ..] => (rest, false),
                    [0xff, 0xfe, rest @ ..] => (rest, true),
                    text => (text, false),
                };
                let unit = |pair: &[u8]| {
                    let pair = [pair[0], pair.get(1).copied().unwrap_or_default()];
                    if little { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) }
                };
                char::decode_utf16(text.chunks(2).map(unit)).map(|char| char.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
            }
            Self::Utf32 => {
                let (text, little) = match text {
                    [0, 0, 0xfe, 0xff, rest @ ..] => (rest, false),
                    [0xff, 0xfe, 0, 0, rest @ ..] => (rest, true),
                    text => (text, false),
                };
                let char = |four: &[u8]| {
                    let four: [u8; 4] = four.try_into().unwrap_or([0xff; 4]);
                    let code = if little { u32::from_le_bytes(four) } else { u32::from_be_bytes(four) };
                    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
                };
                text.chunks(4).map(char).collect()
            }
        }
    }

    /// As Java's `getBytes` writes it: UTF-16 with a byte order mark, UTF-32 without.
    fn encode(self, text: &str) -> Vec<u8> {
        match self {
            Self::Utf8 => text.as_bytes().to_vec(),
            Self::Utf16 if text.is_empty() => Vec::new(),
            Self::Utf16 => [0xfe, 0xff].into_iter().chain(text.encode_utf16().flat_map(u16::to_be_bytes)).collect(),
            Self::Utf32 => text.chars().flat_map(|char| u32::from(char).to_be_bytes()).collect(),
        }
    }
}

#[derive(Deserialize)]
struct JsonEvent<'a> {
    #[serde(default)]
    headers: Option<Headers>,
    #[serde(borrow, default)]
    body: Option<&'a RawValue>,
}

struct Headers(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InMap;

        impl<'de> Visitor<'de> for InMap {
            type Value = Headers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("headers as an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
                let mut headers = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                    let value = scalar(value).map_err(|fault| A::Error::custom(format!("header `{name}` {fault}")))?;
                    // An event cannot have a header without a value.
                    let Some(value) = value else { continue };
                    if headers.insert(name.clone(), value.into_owned()).is_some() {
                        return Err(A::Error::custom(format!("header `{name}` twice")));
                    }
                }
                Ok(Headers(headers))
            }
        }

        deserializer.deserialize_map(InMap)
    }
}

/// A text; numbers and truth values as they are written, as Gson takes them; `None` for `null`.
fn scalar(value: &RawValue) -> Result<Option<std::borrow::Cow<'_, str>>, String> {
    let text = value.get();
    match text.as_bytes().first() {
        Some(b'"') => match serde_json::from_str::<&str>(text) {
            Ok(plain) => Ok(Some(plain.into())),
            Err(_) => serde_json::from_str::<String>(text).map(|text| Some(text.into())).map_err(|error| error.to_string()),
        },
        Some(b'{' | b'[') => Err("is no text".into()),
        Some(b'n') => Ok(None),
        _ => Ok(Some(text.into())),
    }
}

/// The events of a request. The error is for whoever sent it.
pub fn events(request: &Bytes, encoding: Encoding) -> Result<Vec<Event>, String> {
    let decoded;
    let text = match std::str::from_utf8(request) {
        Ok(text) if encoding == Encoding::Utf8 => text,
        _ => {
            decoded = encoding.decode(request);
            &decoded
        }
    };
    let parsed: Vec<JsonEvent<'_>> = serde_json::from_str(text.trim_start_matches('\u{feff}'))
        .map_err(|error| format!("not an array of events like [{{\"headers\": {{\"a\": \"b\"}}, \"body\": \"text\"}}]: {error}"))?;
    let event = |(number, event): (usize, JsonEvent<'_>)| {
        let body = event.body.map(scalar).transpose().map_err(|fault| format!("the body of event {number} {fault}"))?.flatten();
        let body = match body {
            None => Bytes::new(),
            // A text without escapes is a slice of the request.
            Some(std::borrow::Cow::Borrowed(body)) if encoding == Encoding::Utf8 && is_within(request, body) => {
                request.slice_ref(body.as_bytes())
            }
            Some(body) => encoding.encode(&body).into(),
        };
        let headers = event.headers.map(|headers| headers.0).filter(|headers| !headers.is_empty()).map(Arc::new);
        Ok(Event { headers, ..Event::new(body) })
    };
    parsed.into_iter().enumerate().map(event).collect()
}

fn is_within(whole: &[u8], part: &str) -> bool {
    let (whole, part) = (whole.as_ptr_range(), part.as_bytes().as_ptr_range());
    whole.start <= part.start && part.end <= whole.end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, String> {
        let show = |event: &Event| {
            let headers = event.headers.iter().flat_map(|headers| headers.iter()).map(|(name, value)| format!("{name}={value}"));
            (headers.collect::<Vec<_>>().join(" "), String::from_utf8(event.body.to_vec()).unwrap())
        };
        events(&Bytes::copy_from_slice(text.as_bytes()), Encoding::Utf8).map(|events| events.iter().map(show).collect())
    }

    #[test]
    fn events_are_read_as_gson_reads_them() {
        for (text, expected) in [
            ("[]", &[][..]),
            (r#"[{"headers":{"a":"b","c":"d"},"body":"one"},{"body":"two"}]"#, &[("a=b c=d", "one"), ("", "two")]),
            (r#" [ { "body" : "é\n\"\u4e2d" , "headers" : { } } ] "#, &[("", "é\n\"中")]),
            (r#"[{"headers":{"n":1.10,"t":true,"e":1e3,"z":null},"body":5}]"#, &[("e=1e3 n=1.10 t=true", "5")]),
            (r#"[{"headers":null,"body":null,"other":[1,{"x":2}]},{}]"#, &[("", ""), ("", "")]),
            ("\u{feff}[{\"body\":\"bom\"}]", &[("", "bom")]),
        ] {
            let expected = expected.iter().map(|(headers, body)| (headers.to_string(), body.to_string())).collect::<Vec<_>>();
            assert_eq!(read(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "null",
            "{}",
            "[",
            r#"{"body":"x"}"#,
            "[1]",
            "[null]",
            r#"[{"body":["x"]}]"#,
            r#"[{"body":{"x":1}}]"#,
            r#"[{"headers":{"a":{}}}]"#,
            r#"[{"headers":["a"]}]"#,
            r#"[{"headers":{"a":"1","a":"2"}}]"#,
            r#"[{"body":"x"}] more"#,
            "plain text",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_body_is_a_slice_of_the_request() {
        let request = Bytes::from_static(br#"[{"body":"plain"},{"body":"es\tcaped"}]"#);
        let events = events(&request, Encoding::Utf8).unwrap();
        let shared: Vec<bool> = events.iter().map(|event| is_within(&request, std::str::from_utf8(&event.body).unwrap())).collect();
        assert_eq!(shared, [true, false]);
    }

    #[test]
    fn bodies_are_in_the_requests_charset() {
        let text = r#"[{"headers":{"h":"é"},"body":"a😀"}]"#;
        let utf16_le: Vec<u8> = [0xff, 0xfe].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect();
        let utf16_be: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        let utf32: Vec<u8> = text.chars().flat_map(|char| u32::from(char).to_be_bytes()).collect();
        let in_utf16 = b"\xfe\xff\x00a\xd8\x3d\xde\x00".to_vec();
        for (content_type, request, body) in [
            (None, text.as_bytes().to_vec(), "a😀".as_bytes().to_vec()),
            (Some("application/json"), text.as_bytes().to_vec(), "a😀".as_bytes().to_vec()),
            (Some("application/json; charset=UTF-8"), text.as_bytes().to_vec(), "a😀".as_bytes().to_vec()),
            (Some("application/json;charset=\"utf-16\""), utf16_le, in_utf16.clone()),
            (Some("application/json; charset=UTF-16"), utf16_be, in_utf16),
            (Some("text/json; x=y; Charset=utf-32"), utf32, b"\x00\x00\x00a\x00\x01\xf6\x00".to_vec()),
        ] {
            let events = events(&request.into(), Encoding::of(content_type).unwrap()).unwrap();
            assert_eq!((events[0].header("h"), events[0].body.to_vec()), (Some("é"), body), "{content_type:?}");
        }
        assert!(Encoding::of(Some("application/json; charset=ISO-8859-1")).is_err());
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(request in prop::collection::vec(any::<u8>(), 0..200)) {
            for encoding in [Encoding::Utf8, Encoding::Utf16, Encoding::Utf32] {
                drop(events(&request.clone().into(), encoding));
            }
        }

        #[test]
        fn nothing_like_json_makes_it_panic(text in r#"(\[|\{|\]|\}|,|:|"headers"|"body"|"a"|"\\u[0-9a-f]{4}"|null|true|-?[0-9]{1,3}(\.[0-9]+)?|[^\\]){0,40}"#) {
            drop(read(&text));
        }

        #[test]
        fn every_event_of_a_request_comes_out(sent in prop::collection::vec((prop::collection::btree_map(any::<String>(), any::<String>(), 0..4), any::<String>()), 0..6)) {
            let json: Vec<_> = sent.iter().map(|(headers, body)| serde_json::json!({"headers": headers, "body": body})).collect();
            let text = serde_json::to_string(&json).unwrap();
            for encoding in [Encoding::Utf8, Encoding::Utf16, Encoding::Utf32] {
                let got = events(&encoding.encode(&text).into(), encoding).unwrap();
                prop_assert_eq!(got.len(), sent.len());
                for (event, (headers, body)) in got.iter().zip(&sent) {
                    prop_assert_eq!(event.headers.as_deref().cloned().unwrap_or_default(), headers.clone());
                    prop_assert_eq!(&event.body[..], &encoding.encode(body)[..]);
                }
            }
        }
    }
}
