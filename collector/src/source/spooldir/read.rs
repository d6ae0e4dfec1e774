//! Events out of a complete file: lines, or the file as a whole. The records of an Avro file are in `avro.rs`.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

use bytes::Bytes;

use crate::source::charset::Charset;

/// An event's body, and where the file goes on after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub body: Bytes,
    pub end: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Trying again does not help.
    #[error("{0}")]
    Content(String),
}

pub fn damaged(what: impl Into<String>) -> Fault {
    Fault::Content(format!("no whole Avro file: {}", what.into()))
}

pub trait Reader: Send {
    /// The next events: `max` at most, and about `bytes_max` bytes. None at the end of the file. What came before a fault
    /// is given first.
    fn read(&mut self, max: usize, bytes_max: usize) -> Result<Vec<Piece>, Fault>;

    /// Do the ends count bytes of the file? Otherwise they count events.
    fn counts_bytes(&self) -> bool {
        true
    }

    /// A header that all events have.
    fn header(&self) -> Option<(String, String)> {
        None
    }
}

/// Repeats what `next` gives until there is enough of it.
pub fn gather(max: usize, bytes_max: usize, mut next: impl FnMut() -> Result<Option<Piece>, Fault>) -> Result<Vec<Piece>, Fault> {
    let (mut pieces, mut bytes) = (Vec::new(), 0);
    while pieces.len() < max && bytes < bytes_max {
        match next() {
            Ok(Some(piece)) => {
                bytes += piece.body.len();
                pieces.push(piece);
            }
            Ok(None) => break,
            Err(_) if !pieces.is_empty() => break,
            Err(fault) => return Err(fault),
        }
    }
    Ok(pieces)
}

/// What becomes of bytes that are no text in the file's charset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    Fail,
    Replace,
    Ignore,
}

#[derive(Clone, Copy, Debug)]
pub struct LineSettings {
    /// In characters of Java: one outside the basic plane counts twice.
    pub length_max: usize,
    pub input: Charset,
    pub output: Charset,
    pub on_error: OnError,
}

/// Flume's `LINE`: a line is an event; after `maxLineLength` characters the rest is the next event. A carriage return stays.
pub struct Lines {
    file: Arc<File>,
    settings: LineSettings,
    /// Of the file, as it was picked up.
    length: u64,
    text: Bytes,
    /// Offset of `text`.
    begin: u64,
}

const BLOCK_BYTES: usize = 256 * 1024;

impl Lines {
    pub fn new(file: Arc<File>, settings: LineSettings, from: u64, length: u64) -> Self {
        Self { file, settings, length, text: Bytes::new(), begin: from }
    }

    /// Reads on after `text`; false at the end of the file.
    fn more(&mut self) -> io::Result<bool> {
        let at = self.begin + self.text.len() as u64;
        let left = usize::try_from(self.length.saturating_sub(at)).unwrap_or(usize::MAX);
        let mut text = Vec::with_capacity(self.text.len() + left.min(BLOCK_BYTES));
        text.extend_from_slice(&self.text);
        text.resize(self.text.len() + left.min(BLOCK_BYTES), 0);
        let count = read_at(&self.file, &mut text[self.text.len()..], at)?;
        text.truncate(self.text.len() + count);
        self.text = text.into();
        Ok(count > 0)
    }

    fn next(&mut self) -> Result<Option<Piece>, Fault> {
        let (length, newline) = loop {
            // Bytes that surely hold a line of full length.
            let enough = self.settings.length_max.saturating_mul(4);
            let within = &self.text[..self.text.len().min(enough)];
            let newline = memchr::memchr(b'\n', within);
            let line = &within[..newline.unwrap_or(within.len())];
            if let Some(cut) = self.cut(line) {
                break (cut, 0);
            }
            match newline {
                Some(at) => break (at, 1),
                None if self.more()? => {}
                None if self.text.is_empty() => return Ok(None),
                None => break (self.text.len(), 0),
            }
        };
        let body = self.decode(self.text.slice(..length))?;
        self.text = self.text.slice(length + newline..);
        self.begin += (length + newline) as u64;
        Ok(Some(Piece { body, end: self.begin }))
    }

    /// Bytes of the first `length_max` characters, if the line has so many.
    fn cut(&self, line: &[u8]) -> Option<usize> {
        let max = self.settings.length_max;
        // A character has one byte at least.
        if line.len() < max {
            return None;
        }
        match self.settings.input {
            Charset::Ascii | Charset::Latin1 => Some(max),
            Charset::Other(encoding) if encoding.is_single_byte() => Some(max),
            Charset::Other(encoding) => {
                let mut units = vec![0; max];
                let (result, read, _, _) = encoding.new_decoder_without_bom_handling().decode_to_utf16(line, &mut units, false);
                let cut = if result == encoding_rs::CoderResult::OutputFull { read } else { line.len() };
                (result == encoding_rs::CoderResult::OutputFull || line.len() >= max.saturating_mul(4)).then_some(cut.max(1))
            }
            Charset::Utf8 => {
                let (mut at, mut units) = (0, 0);
                while at < line.len() {
                    let (bytes, wide) = match line[at] {
                        0xc2..=0xdf => (2, 1),
                        0xe0..=0xef => (3, 1),
                        0xf0..=0xf4 => (4, 2),
                        _ => (1, 1),
                    };
                    // A pair is not split.
                    if units + wide > max && at > 0 {
                        return Some(at);
                    }
                    at = (at + bytes).min(line.len());
                    units += wide;
                    if units >= max {
                        return Some(at);
                    }
                }
                None
            }
        }
    }

    fn decode(&self, line: Bytes) -> Result<Bytes, Fault> {
        let LineSettings { input, output, on_error, .. } = self.settings;
        let text = match (input.decode_exactly(&line), on_error) {
            (Some(std::borrow::Cow::Borrowed(_)), _) if output == Charset::Utf8 => return Ok(line),
            (Some(text), _) => return Ok(output.encode(&text).into()),
            (None, OnError::Fail) => {
                return Err(Fault::Content(format!(
                    "the line at byte {} is not in the charset of inputCharset; set that, or decodeErrorPolicy",
                    self.begin
                )));
            }
            (None, OnError::Replace) => input.decode(&line),
            (None, OnError::Ignore) if input == Charset::Utf8 => line.utf8_chunks().map(|chunk| chunk.valid()).collect(),
            (None, OnError::Ignore) => input.decode(&line).replace(char::REPLACEMENT_CHARACTER, ""),
        };
        Ok(output.encode(&text).into())
    }
}

impl Reader for Lines {
    fn read(&mut self, max: usize, bytes_max: usize) -> Result<Vec<Piece>, Fault> {
        gather(max, bytes_max, || self.next())
    }
}

/// Morphline's `BlobDeserializer`: the file is an event; after `maxBlobLength` bytes the rest is the next one.
pub struct Blobs {
    pub file: Arc<File>,
    pub at: u64,
    pub length: u64,
    pub bytes_max: u64,
}

impl Reader for Blobs {
    fn read(&mut self, max: usize, bytes_max: usize) -> Result<Vec<Piece>, Fault> {
        gather(max, bytes_max, || {
            let length = self.length.saturating_sub(self.at).min(self.bytes_max);
            let mut body = vec![0; usize::try_from(length).map_err(|_| Fault::Content("the file is too large".into()))?];
            let count = read_at(&self.file, &mut body, self.at)?;
            body.truncate(count);
            self.at += count as u64;
            Ok((count > 0).then(|| Piece { body: body.into(), end: self.at }))
        })
    }
}

/// Fills the buffer, but for what is not in the file.
pub fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn settings(length_max: usize, on_error: OnError, input: &str, output: &str) -> LineSettings {
        LineSettings { length_max, input: Charset::of(input).unwrap(), output: Charset::of(output).unwrap(), on_error }
    }

    fn open(content: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Arc::new(file)
    }

    fn all(reader: &mut dyn Reader) -> Result<Vec<Piece>, Fault> {
        let mut pieces = Vec::new();
        loop {
            let some = reader.read(3, 1000)?;
            if some.is_empty() {
                return Ok(pieces);
            }
            pieces.extend(some);
        }
    }

    fn lines(content: &[u8], settings: LineSettings) -> Result<Vec<(String, u64)>, Fault> {
        let mut lines = Lines::new(open(content), settings, 0, content.len() as u64);
        Ok(all(&mut lines)?.into_iter().map(|piece| (String::from_utf8(piece.body.to_vec()).unwrap(), piece.end)).collect())
    }

    #[test]
    fn lines_are_cut_as_flume_cuts_them() {
        for (content, max, expected) in [
            ("", 10, &[][..]),
            ("a\nb\n", 10, &[("a", 2), ("b", 4)]),
            ("a\n\nb", 10, &[("a", 2), ("", 3), ("b", 4)]),
            ("a\r\n", 10, &[("a\r", 3)]),
            ("\n", 10, &[("", 1)]),
            ("abcdef\n", 4, &[("abcd", 4), ("ef", 7)]),
            // A line of full length leaves its newline to the next event.
            ("abcd\nx\n", 4, &[("abcd", 4), ("", 5), ("x", 7)]),
            ("abc\nx\n", 4, &[("abc", 4), ("x", 6)]),
            ("äöüß\n", 4, &[("äöüß", 8), ("", 9)]),
            ("äöü\n", 4, &[("äöü", 7)]),
            // Two of Java's characters each; the third is not split.
            ("😀😀😀\n", 5, &[("😀😀", 8), ("😀", 13)]),
            ("中中中中中", 2, &[("中中", 6), ("中中", 12), ("中", 15)]),
        ] {
            let expected: Vec<(String, u64)> = expected.iter().map(|(line, end)| (line.to_string(), *end)).collect();
            assert_eq!(lines(content.as_bytes(), settings(max, OnError::Fail, "UTF-8", "UTF-8")).unwrap(), expected, "{content:?}");
        }
    }

    #[test]
    fn what_is_no_text_fails_or_is_replaced_or_left_out() {
        let content = b"one\nt\xffwo\xc3\nthree\n";
        let read = |on_error| lines(content, settings(2048, on_error, "UTF-8", "UTF-8")).map(|lines| lines[1].0.clone());
        assert!(matches!(read(OnError::Fail), Err(Fault::Content(why)) if why.contains("byte 4")));
        assert_eq!((read(OnError::Replace).unwrap(), read(OnError::Ignore).unwrap()), ("t\u{fffd}wo\u{fffd}".into(), "two".into()));
        let mut reader = Lines::new(open(content), settings(2048, OnError::Fail, "UTF-8", "UTF-8"), 0, content.len() as u64);
        assert_eq!(reader.read(10, 1000).unwrap().len(), 1, "what came before is given first");
        assert!(reader.read(10, 1000).is_err());
    }

    #[test]
    fn charsets_are_translated() {
        for (input, output, content, body) in [
            ("ISO-8859-1", "UTF-8", &b"\xe9t\xe9\n"[..], "été".as_bytes()),
            ("UTF-8", "ISO-8859-1", "été 中\n".as_bytes(), b"\xe9t\xe9 ?"),
            ("GBK", "UTF-8", b"\xd6\xd0\xce\xc4\n", "中文".as_bytes()),
        ] {
            let mut reader = Lines::new(open(content), settings(2048, OnError::Fail, input, output), 0, content.len() as u64);
            assert_eq!(all(&mut reader).unwrap(), [Piece { body: Bytes::copy_from_slice(body), end: content.len() as u64 }], "{input}");
        }
        let cut = lines(b"\xd6\xd0\xce\xc4\xd6\xd0\n", settings(2, OnError::Fail, "GBK", "UTF-8")).unwrap();
        assert_eq!(cut.iter().map(|(line, _)| line.as_str()).collect::<String>(), "中文中");
    }

    #[test]
    fn a_file_is_one_blob_or_several() {
        let read = |content: &[u8], bytes_max| {
            let mut blobs = Blobs { file: open(content), at: 0, length: content.len() as u64, bytes_max };
            all(&mut blobs).unwrap().into_iter().map(|piece| (piece.body, piece.end)).collect::<Vec<_>>()
        };
        assert_eq!(read(b"a\nb", 100), [(Bytes::from_static(b"a\nb"), 3)]);
        assert_eq!(read(b"abcde", 2), [(Bytes::from_static(b"ab"), 2), (Bytes::from_static(b"cd"), 4), (Bytes::from_static(b"e"), 5)]);
        assert_eq!(read(b"", 100), []);
    }

    proptest! {
        /// Nothing is lost or repeated, wherever reading begins again.
        #[test]
        fn reading_goes_on_where_it_ended(content in prop::collection::vec(prop_oneof![Just(b'\n'), Just(0xc3), Just(0xa4), any::<u8>()], 0..300), max in 1usize..40, stop in 0usize..40) {
            let settings = settings(max, OnError::Replace, "UTF-8", "UTF-8");
            let whole = lines(&content, settings).unwrap();
            prop_assert_eq!(whole.last().map_or(0, |(_, end)| *end), content.len() as u64);
            let mut raw = Vec::new();
            let mut begin = 0;
            for (_, end) in &whole {
                raw.extend_from_slice(&content[begin..*end as usize]);
                begin = *end as usize;
            }
            prop_assert_eq!(&raw, &content);
            let from = whole.get(stop).map_or(0, |(_, end)| *end);
            let mut again = Lines::new(open(&content), settings, from, content.len() as u64);
            let rest: Vec<(String, u64)> = all(&mut again).unwrap().into_iter().map(|piece| (String::from_utf8(piece.body.to_vec()).unwrap(), piece.end)).collect();
            let expected = if from == 0 { whole } else { whole[stop + 1..].to_vec() };
            prop_assert_eq!(rest, expected);
        }

        #[test]
        fn no_charset_panics(content in prop::collection::vec(any::<u8>(), 0..200), max in 1usize..20, name in prop::sample::select(vec!["UTF-8", "US-ASCII", "ISO-8859-1", "GBK", "Shift_JIS", "EUC-KR", "windows-1251"])) {
            for on_error in [OnError::Fail, OnError::Replace, OnError::Ignore] {
                let mut reader = Lines::new(open(&content), settings(max, on_error, name, "UTF-8"), 0, content.len() as u64);
                match all(&mut reader) {
                    Ok(pieces) => prop_assert_eq!(pieces.last().map_or(0, |piece| piece.end), content.len() as u64),
                    Err(fault) => prop_assert!(on_error == OnError::Fail, "{}", fault),
                }
            }
        }
    }
}
