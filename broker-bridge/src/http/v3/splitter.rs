//! JSON objects one behind the other, cut out of a body while it arrives.

use bytes::{Buf as _, Bytes, BytesMut};

/// Holds what is not yet a whole object, `max` bytes at most. Whether an object is JSON inside its braces is found when it is parsed.
pub(super) struct Splitter {
    buffer: BytesMut,
    /// How much of the buffer was looked at.
    seen: usize,
    depth: u32,
    in_string: bool,
    escaped: bool,
    max: usize,
    /// Bytes of the body before the buffer.
    gone: u64,
}

impl Splitter {
    pub(super) fn new(max: usize) -> Self {
        Self { buffer: BytesMut::new(), seen: 0, depth: 0, in_string: false, escaped: false, max, gone: 0 }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole object and the place of its first byte; `None` when more must arrive. An error is for good.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Bytes)>, String> {
        while self.seen < self.buffer.len() {
            let byte = self.buffer[self.seen];
            if self.depth == 0 {
                if byte.is_ascii_whitespace() {
                    self.buffer.advance(1);
                    self.gone += 1;
                    continue;
                }
                if byte != b'{' {
                    return Err(format!("at byte {}: a record begins with '{{', not with {:?}", self.place(), char::from(byte)));
                }
            }
            if self.seen == self.max {
                return Err(format!(
                    "the record that begins at byte {} is larger than {} bytes (produce.stream_bytes_max)",
                    self.gone, self.max
                ));
            }
            self.seen += 1;
            if self.in_string {
                self.in_string = self.escaped || byte != b'"';
                self.escaped = !self.escaped && byte == b'\\';
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth -= 1,
                _ => {}
            }
            if self.depth == 0 {
                let (at, object) = (self.gone, self.buffer.split_to(self.seen).freeze());
                self.gone += self.seen as u64;
                self.seen = 0;
                return Ok(Some((at, object)));
            }
        }
        Ok(None)
    }

    /// What must hold when the body has ended.
    pub(super) fn finish(&self) -> Result<(), String> {
        match self.depth {
            0 => Ok(()),
            _ => Err(format!("the body ends at byte {} within the record that begins at byte {}", self.place(), self.gone)),
        }
    }

    fn place(&self) -> u64 {
        self.gone + self.seen as u64
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn split(text: &str, piece: usize) -> (Vec<(u64, String)>, Option<String>) {
        let mut splitter = Splitter::new(100);
        let mut found = Vec::new();
        for bytes in text.as_bytes().chunks(piece) {
            splitter.push(bytes);
            loop {
                match splitter.next() {
                    Ok(Some((at, object))) => found.push((at, String::from_utf8(object.to_vec()).unwrap())),
                    Ok(None) => break,
                    Err(error) => return (found, Some(error)),
                }
            }
        }
        (found, splitter.finish().err())
    }

    #[test]
    fn objects_are_cut_wherever_the_pieces_end() {
        let text = " {\"a\":\"}\\\"{\",\"b\":[{},[]]}\r\n{}{\"ö\":1}\n";
        for piece in [1, 2, 3, 7, 100] {
            let (found, error) = split(text, piece);
            let objects: Vec<&str> = found.iter().map(|(_, object)| object.as_str()).collect();
            assert_eq!((objects.as_slice(), error), (["{\"a\":\"}\\\"{\",\"b\":[{},[]]}", "{}", "{\"ö\":1}"].as_slice(), None), "{piece}");
            assert_eq!(found[1].0, 27);
        }
    }

    #[test]
    fn what_is_no_object_too_large_or_cut_off_is_told_with_its_place() {
        for (text, objects, message) in [
            ("{}  ]", 1, "at byte 4: a record begins with '{', not with ']'"),
            ("{\"a\":1", 0, "ends at byte 6 within the record that begins at byte 0"),
            (&format!("{{}}{{\"a\":\"{}\"}}", "x".repeat(100)), 1, "begins at byte 2 is larger than 100 bytes"),
            (&"{\"a\":[".repeat(60), 0, "larger than 100 bytes"),
        ] {
            for piece in [1, 1000] {
                let (found, error) = split(text, piece);
                assert_eq!(found.len(), objects, "{text}");
                let error = error.unwrap();
                assert!(error.contains(message), "{error}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_body_in_any_pieces_is_cut_or_refused_within_bounds(bytes: Vec<u8>, piece in 1usize..50) {
            let mut splitter = Splitter::new(20);
            for bytes in bytes.chunks(piece) {
                splitter.push(bytes);
                loop {
                    match splitter.next() {
                        Ok(Some((_, object))) => assert!(object.len() <= 20),
                        Ok(None) => break,
                        Err(_) => return Ok(()),
                    }
                }
                assert!(splitter.buffer.len() <= 20, "{}", splitter.buffer.len());
            }
        }
    }
}
