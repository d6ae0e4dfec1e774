//! One stored entry: a line `millrace 1 <json bytes> <payload bytes> <crc32c of both, hex>`, the JSON, the payload.
//! `less` shows the first two parts; length and checksum show a torn file.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

const MAGIC: &str = "millrace 1";
const HEADER_BYTES_MAX: usize = 80;

/// Why an entry cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("cut short or altered")]
    Torn,
    #[error("written by another version ({0})")]
    Version(String),
}

pub fn encode<T: Serialize>(head: &T, payload: &[u8]) -> serde_json::Result<Vec<u8>> {
    let json = serde_json::to_vec(head)?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&json), payload);
    let mut out = format!("{MAGIC} {} {} {crc:08x}\n", json.len(), payload.len()).into_bytes();
    out.reserve_exact(json.len() + 1 + payload.len());
    out.extend_from_slice(&json);
    out.push(b'\n');
    out.extend_from_slice(payload);
    Ok(out)
}

pub fn decode<T: DeserializeOwned>(bytes: &Bytes) -> Result<(T, Bytes), FrameError> {
    let line_end = bytes.iter().take(HEADER_BYTES_MAX).position(|b| *b == b'\n').ok_or(FrameError::Torn)?;
    let line = std::str::from_utf8(&bytes[..line_end]).map_err(|_| FrameError::Torn)?;
    let fields: Vec<&str> = line.strip_prefix(MAGIC).unwrap_or_default().split_ascii_whitespace().collect();
    let [json_len, payload_len, crc] = fields[..] else {
        return Err(match line.strip_prefix("millrace ") {
            Some(rest) if !line.starts_with(MAGIC) => FrameError::Version(rest.into()),
            _ => FrameError::Torn,
        });
    };
    let json_len: usize = json_len.parse().map_err(|_| FrameError::Torn)?;
    let payload_len: usize = payload_len.parse().map_err(|_| FrameError::Torn)?;
    let crc = u32::from_str_radix(crc, 16).map_err(|_| FrameError::Torn)?;
    let body = bytes.slice(line_end + 1..);
    if json_len.checked_add(1).and_then(|n| n.checked_add(payload_len)) != Some(body.len()) {
        return Err(FrameError::Torn);
    }
    let (json, payload) = (body.slice(..json_len), body.slice(json_len + 1..));
    if crc32c::crc32c_append(crc32c::crc32c(&json), &payload) != crc {
        return Err(FrameError::Torn);
    }
    // The checksum fits, so the JSON is as it was written: by a version with other fields.
    let head = serde_json::from_slice(&json).map_err(|error| FrameError::Version(error.to_string()))?;
    Ok((head, payload))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_entry_is_readable_as_text() {
        let bytes = encode(&serde_json::json!({"id": 7}), b"state").unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), "millrace 1 8 5 fd24f1ef\n{\"id\":7}\nstate".replace("fd24f1ef", &crc(&bytes)));
        assert_eq!(decode::<serde_json::Value>(&bytes.into()).unwrap(), (serde_json::json!({"id": 7}), Bytes::from("state")));
    }

    fn crc(bytes: &[u8]) -> String {
        let body = b"{\"id\":7}state";
        assert!(bytes.ends_with(b"state"));
        format!("{:08x}", crc32c::crc32c(body))
    }

    #[test]
    fn another_version_is_said_to_be_one() {
        let error = decode::<serde_json::Value>(&Bytes::from("millrace 2 something\n{}")).unwrap_err();
        assert!(matches!(error, FrameError::Version(_)));
        let other = encode(&serde_json::json!({"other": true}), b"").unwrap();
        assert!(matches!(decode::<Vec<u8>>(&other.into()), Err(FrameError::Version(_))));
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(payload: Vec<u8>, head: String) {
            let bytes = encode(&head, &payload).unwrap();
            prop_assert_eq!(decode::<String>(&bytes.into()).unwrap(), (head, Bytes::from(payload)));
        }

        #[test]
        fn every_cut_and_every_changed_byte_is_seen(payload in proptest::collection::vec(any::<u8>(), 0..64), at: prop::sample::Index, flip in 1..=255_u8) {
            let bytes = encode(&"head", &payload).unwrap();
            let at = at.index(bytes.len());
            prop_assert!(decode::<String>(&Bytes::copy_from_slice(&bytes[..at])).is_err());
            let mut altered = bytes;
            altered[at] ^= flip;
            // Case of the checksum's hex digits and blanks between the fields carry nothing.
            if let Ok((head, read)) = decode::<String>(&altered.into()) {
                prop_assert_eq!((head.as_str(), &read[..]), ("head", &payload[..]));
            }
        }
    }
}
