//! Bytes as base64 (standard alphabet, padded).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::value::RawValue;

use super::{Codec, Form};

pub(super) const CODEC: Codec =
    Codec { name: "binary", content_type: "application/vnd.kafka.binary.v2+json", form: Form::Plain { parse, write } };

fn parse(raw: &RawValue) -> Result<Bytes, String> {
    let text: String = serde_json::from_str(raw.get()).map_err(|_| "must be a base64 string in the binary format".to_owned())?;
    STANDARD.decode(text.as_bytes()).map(Bytes::from).map_err(|error| format!("is not padded base64: {error}"))
}

#[allow(clippy::unnecessary_wraps)] // the signature is every codec's
fn write(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    // Base64 needs no escaping.
    out.push(b'"');
    out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
    out.push(b'"');
    Ok(())
}
