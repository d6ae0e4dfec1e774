//! Any JSON value, stored without insignificant white space, so that equal keys are equal bytes however a client spaces them.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::{Codec, Form};

pub(super) const CODEC: Codec =
    Codec { name: "json", content_type: "application/vnd.kafka.json.v2+json", form: Form::Plain { parse, write } };

#[allow(clippy::unnecessary_wraps)] // the signature is every codec's
fn parse(raw: &RawValue) -> Result<Bytes, String> {
    Ok(compact(raw.get()))
}

fn write(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    serde_json::from_slice::<&RawValue>(bytes).map_err(|error| format!("is not JSON ({error})"))?;
    out.extend_from_slice(bytes);
    Ok(())
}

/// Drops white space outside of strings. The input is valid JSON; numbers keep their digits.
pub(crate) fn compact(json: &str) -> Bytes {
    if !json.bytes().any(|byte| byte.is_ascii_whitespace()) {
        return Bytes::copy_from_slice(json.as_bytes());
    }
    let mut out = Vec::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for byte in json.bytes() {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else if byte.is_ascii_whitespace() {
            continue;
        } else {
            in_string = byte == b'"';
        }
        out.push(byte);
    }
    Bytes::from(out)
}
