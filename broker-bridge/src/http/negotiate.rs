//! Content types: what a request may be (else 415) and what an answer may be (else 406).

use axum::http::{HeaderMap, header};

use super::{JSON, V2};
use crate::{
    codec::{self, CODECS, Codec},
    error::{BridgeError, Code, Result},
};

/// The embedded format of a produce request.
pub(super) fn produce_format(headers: &HeaderMap) -> Result<&'static Codec> {
    let given = content_type(headers);
    given.as_deref().and_then(codec::by_content_type).ok_or_else(|| {
        let known: Vec<&str> = CODECS.iter().map(|codec| codec.content_type).collect();
        unsupported(given.as_deref(), &known.join(", "))
    })
}

/// The same where plain JSON is the json format.
pub(super) fn produce_format_or_json(headers: &HeaderMap) -> Result<&'static Codec> {
    match content_type(headers).as_deref() {
        Some(JSON | V2) => codec::by_name("json").ok_or_else(|| unsupported(None, JSON)),
        _ => produce_format(headers),
    }
}

/// A request with plain JSON.
pub(super) fn json_body(headers: &HeaderMap) -> Result<()> {
    match content_type(headers).as_deref() {
        Some(V2 | JSON | "application/vnd.kafka+json") => Ok(()),
        Some(other) if codec::by_content_type(other).is_some() => Ok(()),
        other => Err(unsupported(other, &format!("{V2}, {JSON}"))),
    }
}

/// An answer with plain JSON.
pub(super) fn json_answer(headers: &HeaderMap) -> Result<()> {
    let offered: Vec<&str> =
        [V2, JSON, "application/vnd.kafka+json"].into_iter().chain(CODECS.iter().map(|codec| codec.content_type)).collect();
    if accepts(headers, &offered) {
        return Ok(());
    }
    Err(BridgeError::new(Code::NotAcceptable, format!("Accept: {} is none of what this path answers: {V2}, {JSON}", accept(headers))))
}

/// An answer with records in the format of the instance.
pub(super) fn records_answer(headers: &HeaderMap, codec: &Codec) -> Result<()> {
    if accepts(headers, &[codec.content_type, V2, JSON]) {
        return Ok(());
    }
    Err(BridgeError::new(
        Code::FormatMismatch,
        format!(
            "Accept: {} does not fit the instance's format {}; accept {}, or create an instance with another format",
            accept(headers),
            codec.name,
            codec.content_type
        ),
    ))
}

fn unsupported(given: Option<&str>, known: &str) -> BridgeError {
    let given = given.unwrap_or("(none)");
    BridgeError::new(Code::UnsupportedMediaType, format!("Content-Type {given} is not understood here; send one of {known}"))
}

/// Without parameters, in lower case.
fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

fn accept(headers: &HeaderMap) -> String {
    let values: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    values.join(", ")
}

/// No header accepts everything; `q=0` excludes.
pub(super) fn accepts(headers: &HeaderMap, offered: &[&str]) -> bool {
    let accept = accept(headers);
    if accept.trim().is_empty() {
        return true;
    }
    accept.split(',').any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let excluded = parts.any(|part| part.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()) == Some(0.0));
        !excluded && (kind == "*/*" || kind == "application/*" || offered.contains(&kind.as_str()))
    })
}

#[cfg(test)]
mod tests {

    use super::*;

    fn with(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn content_types_of_produce() {
        for (given, format) in [
            ("application/vnd.kafka.binary.v2+json", "binary"),
            ("application/vnd.kafka.json.v2+json; charset=utf-8", "json"),
            ("Application/vnd.kafka.TEXT.v2+json", "text"),
            ("application/vnd.kafka.avro.v2+json", "avro"),
            ("application/vnd.kafka.jsonschema.v2+json", "jsonschema"),
            ("application/vnd.kafka.protobuf.v2+json", "protobuf"),
        ] {
            assert_eq!(produce_format(&with(header::CONTENT_TYPE, given)).unwrap().name, format);
        }
        for given in ["application/json", "application/vnd.kafka.thrift.v2+json", "text/plain", V2] {
            let error = produce_format(&with(header::CONTENT_TYPE, given)).unwrap_err();
            assert_eq!(error.code, Code::UnsupportedMediaType);
            assert!(error.message.contains("application/vnd.kafka.json.v2+json"), "{error}");
        }
        assert_eq!(produce_format(&HeaderMap::new()).unwrap_err().code, Code::UnsupportedMediaType);
    }

    #[test]
    fn accept_follows_the_instances_format() {
        let json = codec::by_name("json").unwrap();
        for accept in ["*/*", "application/*", "application/vnd.kafka.json.v2+json", "text/html, application/vnd.kafka.v2+json;q=0.5"] {
            records_answer(&with(header::ACCEPT, accept), json).unwrap();
        }
        records_answer(&HeaderMap::new(), json).unwrap();
        for accept in ["application/vnd.kafka.binary.v2+json", "text/html", "application/vnd.kafka.json.v2+json;q=0"] {
            assert_eq!(records_answer(&with(header::ACCEPT, accept), json).unwrap_err().code, Code::FormatMismatch, "{accept}");
        }
        assert_eq!(json_answer(&with(header::ACCEPT, "text/html")).unwrap_err().code, Code::NotAcceptable);
    }
}
