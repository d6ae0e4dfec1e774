//! Lines out of a byte stream, as slices of the read buffers.

use bytes::{Bytes, BytesMut};

/// Splits at newlines; one carriage return before a newline goes too.
#[derive(Default)]
pub struct Lines {
    buffer: BytesMut,
    /// Bytes at the beginning of the buffer that hold no newline.
    searched: usize,
}

impl Lines {
    /// Where to read into.
    pub fn buffer(&mut self) -> &mut BytesMut {
        self.buffer.reserve(64 * 1024);
        &mut self.buffer
    }

    /// What is there without a newline at the end of the stream, or when it has grown to `bytes_max`.
    pub fn rest(&mut self, bytes_max: usize) -> Option<Bytes> {
        if self.buffer.is_empty() || self.buffer.len() < bytes_max {
            return None;
        }
        self.searched = 0;
        Some(self.buffer.split().freeze())
    }
}

impl Iterator for Lines {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let Some(at) = memchr::memchr(b'\n', &self.buffer[self.searched..]) else {
            self.searched = self.buffer.len();
            return None;
        };
        let mut line = self.buffer.split_to(self.searched + at + 1).freeze();
        self.searched = 0;
        line.truncate(line.len() - 1);
        if line.last() == Some(&b'\r') {
            line.truncate(line.len() - 1);
        }
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whatever_the_pieces_were() {
        let text = b"a\nbb\r\n\n\r\nc\rd\nlast";
        for size in 1..=text.len() {
            let (mut lines, mut seen) = (Lines::default(), Vec::new());
            for piece in text.chunks(size) {
                lines.buffer().extend_from_slice(piece);
                seen.extend(lines.by_ref());
            }
            seen.extend(lines.rest(1));
            assert_eq!(seen, ["a", "bb", "", "", "c\rd", "last"].map(Bytes::from), "pieces of {size}");
            assert_eq!(lines.rest(0), None);
        }
    }
}
