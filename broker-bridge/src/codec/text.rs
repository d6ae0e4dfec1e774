//! UTF-8 text as a JSON string (Strimzi's format).

use bytes::Bytes;
use serde_json::value::RawValue;

use super::{Codec, Form};

pub(super) const CODEC: Codec =
    Codec { name: "text", content_type: "application/vnd.kafka.text.v2+json", form: Form::Plain { parse, write } };

fn parse(raw: &RawValue) -> Result<Bytes, String> {
    let text: String = serde_json::from_str(raw.get()).map_err(|error| match raw.get().starts_with('"') {
        true => format!("is not Unicode text ({error}); bytes go in the binary format"),
        false => "must be a string in the text format".to_owned(),
    })?;
    Ok(Bytes::from(text))
}

fn write(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("is not UTF-8 text ({error})"))?;
    serde_json::to_writer(out, text).map_err(|error| error.to_string())
}
