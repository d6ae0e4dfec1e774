//! A stream that is zlib on the wire, in both directions. Every flush ends a block, so that the other side can read all of it.
//!
//! What zlib needs (some 300 KB) and the buffers are there from the first byte on: a connection that is silent costs nothing.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of the wire kept on each side.
const BUFFER_BYTES: usize = 16 << 10;
/// Of the first read, which may wait for long.
const FIRST_BYTES: usize = 256;

pub struct Deflated<S> {
    inner: S,
    inflate: Option<Decompress>,
    /// Read from the wire; `taken` of it is inflated.
    input: Vec<u8>,
    taken: usize,
    ended: bool,
    level: Compression,
    deflate: Option<Compress>,
    /// For the wire; `given` of it is written.
    output: Vec<u8>,
    given: usize,
    /// Something was written since the last flush.
    unflushed: bool,
}

impl<S> Deflated<S> {
    /// `level` is zlib's, 0 to 9.
    pub fn new(inner: S, level: u32) -> Self {
        Self {
            inner,
            inflate: None,
            input: Vec::new(),
            taken: 0,
            ended: false,
            level: Compression::new(level),
            deflate: None,
            output: Vec::new(),
            given: 0,
            unflushed: false,
        }
    }

    /// Compresses `data` into the output. Its last block is ended by a flush that is not `None`.
    fn compress(&mut self, mut data: &[u8], flush: FlushCompress) -> io::Result<()> {
        let deflate = self.deflate.get_or_insert_with(|| Compress::new(self.level, true));
        loop {
            self.output.reserve(BUFFER_BYTES);
            let before = deflate.total_in();
            deflate.compress_vec(data, &mut self.output, flush).map_err(io::Error::other)?;
            data = &data[usize::try_from(deflate.total_in() - before).unwrap_or(data.len())..];
            // Room left over: there was no more to write.
            if data.is_empty() && self.output.len() < self.output.capacity() {
                return Ok(());
            }
        }
    }
}

fn corrupt(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a zlib stream ({error}); does the other side have compression-type = deflate?"))
}

impl<S: AsyncWrite + Unpin> Deflated<S> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.given < self.output.len() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.output[self.given..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.given += written;
        }
        self.output.clear();
        self.given = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Deflated<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.ended || buf.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if let Some(inflate) = &mut this.inflate {
                // Also without input: there may be output from before that had no room.
                let (read, made) = (inflate.total_in(), inflate.total_out());
                let status =
                    inflate.decompress(&this.input[this.taken..], buf.initialize_unfilled(), FlushDecompress::None).map_err(corrupt)?;
                let count = |total: u64, before: u64| usize::try_from(total - before).unwrap_or_default();
                let (read, made) = (count(inflate.total_in(), read), count(inflate.total_out(), made));
                this.taken += read;
                buf.advance(made);
                this.ended = status == Status::StreamEnd;
                if made > 0 {
                    return Poll::Ready(Ok(()));
                }
                if this.ended || read > 0 {
                    continue;
                }
                if this.taken < this.input.len() {
                    return Poll::Ready(Err(corrupt("no progress")));
                }
            }
            this.taken = 0;
            let came = if this.inflate.is_none() {
                let mut first = [0; FIRST_BYTES];
                let mut wire = ReadBuf::new(&mut first);
                ready!(Pin::new(&mut this.inner).poll_read(cx, &mut wire))?;
                this.input.extend_from_slice(wire.filled());
                wire.filled().len()
            } else {
                this.input.resize(BUFFER_BYTES, 0);
                let mut wire = ReadBuf::new(&mut this.input);
                let outcome = Pin::new(&mut this.inner).poll_read(cx, &mut wire);
                let came = wire.filled().len();
                this.input.truncate(came);
                ready!(outcome)?;
                came
            };
            if came == 0 {
                return Poll::Ready(Ok(()));
            }
            this.inflate.get_or_insert_with(|| Decompress::new(true));
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Deflated<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.output.len() >= BUFFER_BYTES {
            ready!(this.poll_drain(cx))?;
        }
        let part = &data[..data.len().min(BUFFER_BYTES)];
        this.compress(part, FlushCompress::None)?;
        this.unflushed = true;
        Poll::Ready(Ok(part.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.unflushed) {
            this.compress(&[], FlushCompress::Sync)?;
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    /// What is flushed can be read before more is written, over a pipe that holds little.
    #[test]
    fn every_flush_is_readable() {
        block_on(async {
            let (a, b) = tokio::io::duplex(100);
            let (mut near, mut far) = (Deflated::new(a, 6), Deflated::new(b, 1));
            for length in [1usize, 10, 50_000, 0, 3, 200_000] {
                let sent: Vec<u8> = (0..length).map(|at| (at * 7 % 251) as u8 ^ (at >> 9) as u8).collect();
                let write = async {
                    near.write_all(&sent).await.unwrap();
                    near.flush().await.unwrap();
                };
                let mut came = vec![0; length];
                let (_, read) = tokio::join!(write, far.read_exact(&mut came));
                read.unwrap();
                assert!(came == sent);
            }
            near.shutdown().await.unwrap();
            assert_eq!(far.read(&mut [0; 8]).await.unwrap(), 0);
        });
    }

    #[test]
    fn a_silent_connection_holds_no_memory() {
        block_on(async {
            let (near, mut far) = tokio::io::duplex(100);
            let mut near = Deflated::new(near, 6);
            let waited = tokio::time::timeout(std::time::Duration::ZERO, near.read(&mut [0; 8])).await;
            assert!(waited.is_err() && near.inflate.is_none() && near.deflate.is_none());
            assert_eq!(near.input.capacity() + near.output.capacity(), 0);
            far.write_all(&[0x78, 0x9c]).await.unwrap();
            let _more = tokio::time::timeout(std::time::Duration::ZERO, near.read(&mut [0; 8])).await;
            assert!(near.inflate.is_some());
        });
    }

    #[test]
    fn plain_bytes_are_refused_with_the_remedy() {
        let error = block_on(Deflated::new(&b"\0\0\0\x01\0\0\0\x01"[..], 6).read(&mut [0; 8])).unwrap_err();
        assert!(error.to_string().contains("compression-type"), "{error}");
    }

    proptest! {
        /// Whatever comes, reading ends; and a bomb gives no more than there is room for.
        #[test]
        fn no_stream_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), header: bool) {
            let wire = [if header { &[0x78, 0x9c][..] } else { &[] }, &bytes].concat();
            block_on(async {
                let mut stream = Deflated::new(wire.as_slice(), 6);
                let mut room = [0; 64];
                while stream.read(&mut room).await.is_ok_and(|read| read > 0) {}
            });
        }
    }
}
