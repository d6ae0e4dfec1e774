//! Java's names of charsets, and text in them.

use std::borrow::Cow;

use encoding_rs::{Encoding, UTF_8};

/// Those in which no part of a character is a newline, so that lines can be cut before they are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charset {
    Utf8,
    Ascii,
    Latin1,
    Other(&'static Encoding),
}

impl Charset {
    pub fn of(name: &str) -> Option<Self> {
        let name = name.trim();
        let is = |names: &[&str]| names.iter().any(|known| known.eq_ignore_ascii_case(name));
        if is(&["utf-8", "utf8"]) {
            return Some(Self::Utf8);
        }
        if is(&["us-ascii", "ascii", "iso646-us"]) {
            return Some(Self::Ascii);
        }
        if is(&["iso-8859-1", "iso8859-1", "iso8859_1", "iso_8859-1", "latin1", "l1"]) {
            return Some(Self::Latin1);
        }
        let encoding = Encoding::for_label(name.as_bytes())?;
        (encoding.is_ascii_compatible() && encoding != UTF_8).then_some(Self::Other(encoding))
    }

    /// Why a name is refused.
    pub fn fault(name: &str) -> Option<String> {
        match Self::of(name) {
            Some(_) => None,
            None => Some(format!("charset `{name}` is not known, or its newline is not one byte")),
        }
    }

    /// The text, where every byte of it has a meaning.
    pub fn decode_exactly<'t>(self, text: &'t [u8]) -> Option<Cow<'t, str>> {
        match self {
            Self::Utf8 => std::str::from_utf8(text).ok().map(Cow::Borrowed),
            Self::Ascii => std::str::from_utf8(text).ok().filter(|text| text.is_ascii()).map(Cow::Borrowed),
            Self::Latin1 => Some(Cow::Owned(text.iter().map(|&byte| char::from(byte)).collect())),
            Self::Other(encoding) => encoding.decode_without_bom_handling_and_without_replacement(text),
        }
    }

    pub fn is_valid(self, text: &[u8]) -> bool {
        self.decode_exactly(text).is_some()
    }

    /// The text, with U+FFFD for what has no meaning.
    pub fn decode(self, text: &[u8]) -> String {
        match self {
            Self::Utf8 => String::from_utf8_lossy(text).into_owned(),
            Self::Ascii => text.iter().map(|&byte| if byte.is_ascii() { char::from(byte) } else { char::REPLACEMENT_CHARACTER }).collect(),
            Self::Latin1 => text.iter().map(|&byte| char::from(byte)).collect(),
            Self::Other(encoding) => encoding.decode_without_bom_handling(text).0.into_owned(),
        }
    }

    /// The text in bytes, with `?` for what the charset has not.
    pub fn encode(self, text: &str) -> Vec<u8> {
        let below = |bound: u32| {
            text.chars().map(|char| u8::try_from(u32::from(char)).ok().filter(|_| u32::from(char) < bound).unwrap_or(b'?')).collect()
        };
        match self {
            Self::Utf8 => text.as_bytes().to_vec(),
            Self::Ascii => below(0x80),
            Self::Latin1 => below(0x100),
            Self::Other(encoding) => {
                let mut bytes = Vec::with_capacity(text.len());
                let mut buffer = [0; 8];
                for char in text.chars() {
                    let (encoded, _, missing) = encoding.encode(char.encode_utf8(&mut buffer));
                    if missing { bytes.push(b'?') } else { bytes.extend_from_slice(&encoded) }
                }
                bytes
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_and_written_as_java_does() {
        for (name, bytes, text) in [
            ("UTF-8", "é中".as_bytes(), "é中"),
            ("utf8", b"a\xff", "a\u{fffd}"),
            ("US-ASCII", b"a\xe9", "a\u{fffd}"),
            ("ISO-8859-1", b"a\xe9\x80", "aé\u{80}"),
            ("windows-1252", b"\x80", "€"),
            ("GBK", b"\xd6\xd0", "中"),
            ("Shift_JIS", b"\x92\x86", "中"),
        ] {
            let charset = Charset::of(name).unwrap();
            assert_eq!(charset.decode(bytes), text, "{name}");
            assert_eq!(charset.is_valid(bytes), !text.contains('\u{fffd}'), "{name}");
            if !text.contains('\u{fffd}') {
                assert_eq!(charset.encode(text), bytes, "{name}");
            }
        }
        assert_eq!(
            (Charset::Ascii.encode("aé"), Charset::Latin1.encode("é中"), Charset::of("KOI8-R").unwrap().encode("中я")),
            (b"a?".to_vec(), b"\xe9?".to_vec(), b"?\xd1".to_vec())
        );
        for name in ["UTF-16", "UTF-32", "ISO-2022-JP", "x-klingon", ""] {
            assert!(Charset::fault(name).is_some(), "{name}");
        }
    }
}
