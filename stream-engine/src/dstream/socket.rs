//! Receivers of sockets: the program connects, as in Spark, and connects again when the other side ends.

use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::{Buf as _, BytesMut};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpStream, lookup_host},
};

use super::receiver::{Receiver, ReceiverSupervisor};
use super::state::{StateValue, read};
use super::{DStream, StreamingContext};

/// Bytes of one value at most.
const VALUE_BYTES_MAX: usize = 16 << 20;
const READ_BYTES: usize = 64 << 10;

/// Takes the next value out of what has come; `None`: it is not complete. The flag says that no more comes.
type Convert<T> = dyn Fn(&mut BytesMut, bool) -> anyhow::Result<Option<T>> + Send + Sync;

struct Socket<T> {
    host: String,
    port: u16,
    convert: Arc<Convert<T>>,
}

#[async_trait]
impl<T: StateValue> Receiver<T> for Socket<T> {
    async fn on_start(&self, supervisor: &ReceiverSupervisor<T>) -> anyhow::Result<()> {
        let stopping = supervisor.stopping();
        tokio::select! {
            biased;
            () = stopping.cancelled() => Ok(()),
            received = self.receive(supervisor) => received,
        }
    }
}

impl<T: StateValue> Socket<T> {
    async fn receive(&self, supervisor: &ReceiverSupervisor<T>) -> anyhow::Result<()> {
        let (host, port) = (self.host.as_str(), self.port);
        let addresses: Vec<_> = lookup_host((host, port)).await.with_context(|| format!("cannot find {host}"))?.collect();
        let mut stream = TcpStream::connect(addresses.as_slice()).await.with_context(|| format!("cannot connect to {host}:{port}"))?;
        tracing::info!(host, port, "connected");
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_BYTES);
            let end = stream.read_buf(&mut buffer).await.with_context(|| format!("cannot read from {host}:{port}"))? == 0;
            while let Some(value) = (self.convert)(&mut buffer, end)? {
                supervisor.store(value).await?;
            }
            anyhow::ensure!(!end, "{host}:{port} ended the connection");
            anyhow::ensure!(buffer.len() <= VALUE_BYTES_MAX, "{host}:{port} sent {VALUE_BYTES_MAX} bytes without the end of a value");
        }
    }
}

/// A line without its end (`\n` or `\r\n`). Bytes that are no UTF-8 become U+FFFD.
pub(super) fn line(bytes: &mut BytesMut, end: bool) -> Option<String> {
    let line = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(at) => {
            let line = bytes.split_to(at);
            bytes.advance(1);
            line
        }
        None if end && !bytes.is_empty() => bytes.split(),
        None => return None,
    };
    Some(String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(&line)).into_owned())
}

/// A length of 4 bytes, most significant first, and so many bytes of MessagePack.
fn raw<T: StateValue>(bytes: &mut BytesMut, end: bool) -> anyhow::Result<Option<Vec<T>>> {
    let length = bytes.first_chunk().map(|length| u32::from_be_bytes(*length) as usize);
    match length {
        Some(length) if bytes.len() - 4 >= length => {
            bytes.advance(4);
            let block = bytes.split_to(length);
            read(&block).context("a block is not MessagePack of this stream's type").map(Some)
        }
        Some(length) if length > VALUE_BYTES_MAX => anyhow::bail!("a block of {length} bytes is larger than {VALUE_BYTES_MAX}"),
        _ if end && !bytes.is_empty() => anyhow::bail!("the connection ended within a block"),
        _ => Ok(None),
    }
}

impl StreamingContext {
    /// Lines of UTF-8 that whoever listens at `host:port` sends. Connects again, after `spark.streaming.receiverRestartDelay`, when
    /// the connection ends. A sender is not told what was stored, so what is on its way when the process dies is lost.
    pub fn socket_text_stream(&self, host: &str, port: u16) -> DStream<String> {
        self.socket_stream(host, port, |bytes, end| Ok(line(bytes, end)))
    }

    /// As [`Self::socket_text_stream`], with values of the program's own: `converter` takes the next value out of the bytes that
    /// have come, or leaves them there until more is; its flag says that no more comes. A value has 16 MiB at most.
    pub fn socket_stream<T: StateValue>(
        &self,
        host: &str,
        port: u16,
        converter: impl Fn(&mut BytesMut, bool) -> anyhow::Result<Option<T>> + Send + Sync + 'static,
    ) -> DStream<T> {
        let socket = Socket { host: host.into(), port, convert: Arc::new(converter) };
        self.received(&format!("socket({host}:{port})"), socket, Ok)
    }

    /// As [`Self::socket_text_stream`], with blocks of values: a length in bytes (4 bytes, most significant first), then as many
    /// bytes of MessagePack values, one after the other, structs with the names of their fields.
    pub fn raw_socket_stream<T: StateValue>(&self, host: &str, port: u16) -> DStream<T> {
        self.socket_stream(host, port, raw::<T>).flat_map(|block| block)
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::write;
    use super::*;

    #[test]
    fn lines_end_with_either_end_and_the_last_one_with_the_connection() {
        let mut bytes = BytesMut::from(&b"a\r\n\nb\xff\nrest"[..]);
        let mut lines = Vec::new();
        while let Some(line) = line(&mut bytes, false) {
            lines.push(line);
        }
        assert_eq!(lines, ["a", "", "b\u{fffd}"]);
        assert_eq!((line(&mut bytes, true).as_deref(), line(&mut bytes, true)), (Some("rest"), None));
    }

    #[test]
    fn raw_blocks_are_taken_when_they_are_whole() {
        let mut block = Vec::new();
        for n in [1_u64, 70_000] {
            write(&n, &mut block).unwrap();
        }
        let mut whole = u32::try_from(block.len()).unwrap().to_be_bytes().to_vec();
        whole.extend(block);
        for cut in 0..whole.len() {
            let mut bytes = BytesMut::from(&whole[..cut]);
            assert!(raw::<u64>(&mut bytes, false).unwrap().is_none());
            assert_eq!(raw::<u64>(&mut bytes, true).is_err(), cut > 0);
            bytes.extend_from_slice(&whole[cut..]);
            assert_eq!(raw(&mut bytes, false).unwrap(), Some(vec![1_u64, 70_000]));
        }
        let mut large = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 1][..]);
        assert!(raw::<u64>(&mut large, false).unwrap_err().to_string().contains("larger than"));
    }
}
