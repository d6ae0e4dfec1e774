//! What librdkafka's binding lacks, encoded by hand and sent over connections of their own ([`super::dial`]): `DescribeLogDirs` v1 (Kafka 1.0 to 4.x), `Metadata` v2 for the controller's id and the racks and v12 (Kafka 3.1 and later) for a
//! topic's id, `ApiVersions` v0 to see whether a broker answers; and the requests of [`super::manage`].
//!
//! Frame: int32 length, then the message. Request header v1: int16 api key, int16 version, int32 correlation id,
//! nullable string client id. Response header v0: int32 correlation id. Everything big-endian.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::dial::{Dialer, Duplex};
use super::{KafkaError, access};

const METADATA: (i16, i16) = (3, 2);
const METADATA_WITH_IDS: (i16, i16) = (3, 12);
const DESCRIBE_LOG_DIRS: (i16, i16) = (35, 1);
const API_VERSIONS: (i16, i16) = (18, 0);
pub(super) const SASL_HANDSHAKE: (i16, i16) = (17, 1);
pub(super) const SASL_AUTHENTICATE: (i16, i16) = (36, 0);
const CORRELATION_ID: i32 = 1;
const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// Bytes of all logs in all directories of one broker.
pub(super) async fn log_bytes(dialer: &Dialer, address: &str, bound: Duration) -> Result<i64, KafkaError> {
    // A null list of topics: all.
    let body = ask(dialer, address, DESCRIBE_LOG_DIRS, &(-1i32).to_be_bytes(), bound).await?;
    parse_log_bytes(&body).map_err(|reason| malformed(address, &reason))
}

/// One broker's address as the cluster advertises it.
pub(super) struct Node {
    pub(super) id: i32,
    host: String,
    port: i32,
    pub(super) rack: Option<String>,
}

impl Node {
    pub(super) fn address(&self) -> String {
        if self.host.contains(':') { format!("[{}]:{}", self.host, self.port) } else { format!("{}:{}", self.host, self.port) }
    }
}

/// All brokers, and the id of the controller, as one broker sees them.
pub(super) async fn nodes(dialer: &Dialer, address: &str, bound: Duration) -> Result<(Vec<Node>, Option<i32>), KafkaError> {
    // An empty list of topics: none.
    let body = ask(dialer, address, METADATA, &0i32.to_be_bytes(), bound).await?;
    parse_nodes(&body).map_err(|reason| malformed(address, &reason))
}

/// Id of the controller as one broker sees it.
pub(super) async fn controller(dialer: &Dialer, address: &str, bound: Duration) -> Result<Option<i32>, KafkaError> {
    Ok(nodes(dialer, address, bound).await?.1)
}

/// The id that Kafka gave a topic; `None` where there is no such topic.
pub(super) async fn topic_id(dialer: &Dialer, address: &str, name: &str, bound: Duration) -> Result<Option<[u8; 16]>, KafkaError> {
    // No topic's name is longer than 249 bytes.
    let Ok(length) = u8::try_from(name.len() + 1) else { return Ok(None) };
    // Header: no tagged fields. One topic: no id, its name, no tagged fields; do not create it; no authorized operations.
    let mut body = vec![0, 2];
    body.extend([0; 16]);
    match length {
        0..128 => body.push(length),
        _ => body.extend([length, 1]),
    }
    body.extend(name.as_bytes());
    body.extend([0, 0, 0, 0]);
    let body = ask(dialer, address, METADATA_WITH_IDS, &body, bound).await?;
    parse_topic_id(&body).map_err(|reason| malformed(address, &reason))
}

/// The request every broker answers before anything else, also before a login.
pub(super) fn api_versions() -> Vec<u8> {
    request(API_VERSIONS, &[])
}

/// One request and its answer, without their headers.
pub(super) async fn ask(dialer: &Dialer, address: &str, api: (i16, i16), body: &[u8], bound: Duration) -> Result<Vec<u8>, KafkaError> {
    let exchange = async {
        let dial = match dialer.dial().await {
            Ok(dial) => dial,
            Err(error) => return Ok(Err(error)),
        };
        let mut stream = match dial.connect(address).await? {
            Ok(stream) => stream,
            Err(reason) => {
                let principal = access::principal(&dialer.config);
                let text = format!("broker {address} refuses the login of {principal} (sasl.jaas.config, sasl.mechanism): {reason}");
                return Ok(Err(KafkaError::Auth(text)));
            }
        };
        Ok::<_, std::io::Error>(Ok(round_trip(&mut stream, api, body).await?))
    };
    match timeout(bound, exchange).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => Err(KafkaError::Unreachable(format!("asking broker {address}: {error}"))),
        Err(_) => Err(KafkaError::Timeout(format!("broker {address} did not answer within {bound:?}"))),
    }
}

pub(super) async fn round_trip(stream: &mut Box<dyn Duplex>, api: (i16, i16), body: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(&request(api, body)).await?;
    // TLS may hold back what was written.
    stream.flush().await?;
    let length = usize::try_from(stream.read_i32().await?).unwrap_or(usize::MAX);
    if !(4..=RESPONSE_BYTES_MAX).contains(&length) {
        return Err(std::io::Error::other(format!("a response of {length} bytes")));
    }
    let mut response = vec![0; length];
    stream.read_exact(&mut response).await?;
    Ok(response.split_off(4))
}

fn request((key, version): (i16, i16), body: &[u8]) -> Vec<u8> {
    const CLIENT_ID: &[u8] = b"millrace";
    let mut message = Vec::new();
    message.extend(key.to_be_bytes());
    message.extend(version.to_be_bytes());
    message.extend(CORRELATION_ID.to_be_bytes());
    message.extend((CLIENT_ID.len() as i16).to_be_bytes());
    message.extend(CLIENT_ID);
    message.extend(body);
    let mut frame = (message.len() as i32).to_be_bytes().to_vec();
    frame.append(&mut message);
    frame
}

pub(super) fn malformed(address: &str, reason: &str) -> KafkaError {
    KafkaError::Fatal(format!("broker {address} sent an answer that cannot be read: {reason}"))
}

fn parse_log_bytes(body: &[u8]) -> Result<i64, String> {
    let mut input = Input(body);
    let _throttle_ms = input.i32()?;
    let mut bytes = 0;
    for _ in 0..input.count()? {
        let error = input.i16()?;
        let directory = input.string()?;
        if error != 0 {
            return Err(format!("error {error} for directory {}", directory.unwrap_or_default()));
        }
        for _ in 0..input.count()? {
            let _topic = input.string()?;
            for _ in 0..input.count()? {
                let _partition = input.i32()?;
                bytes += input.i64()?;
                let _lag = input.i64()?;
                let _is_future = input.take(1)?;
            }
        }
    }
    Ok(bytes)
}

fn parse_nodes(body: &[u8]) -> Result<(Vec<Node>, Option<i32>), String> {
    let mut input = Input(body);
    let mut nodes = Vec::new();
    for _ in 0..input.count()? {
        let (id, host, port) = (input.i32()?, input.string()?.unwrap_or_default(), input.i32()?);
        nodes.push(Node { id, host, port, rack: input.string()? });
    }
    let _cluster_id = input.string()?;
    Ok((nodes, Some(input.i32()?).filter(|id| *id >= 0)))
}

fn parse_topic_id(body: &[u8]) -> Result<Option<[u8; 16]>, String> {
    let mut input = Input(body);
    input.tags()?;
    let _throttle_ms = input.i32()?;
    for _ in 1..input.varint()? {
        let _id = input.i32()?;
        input.compact()?;
        let _port = input.i32()?;
        input.compact()?;
        input.tags()?;
    }
    input.compact()?;
    let _controller = input.i32()?;
    if input.varint()? < 2 {
        return Ok(None);
    }
    let error = input.i16()?;
    input.compact()?;
    let id: [u8; 16] = input.array()?;
    Ok(Some(id).filter(|id| error == 0 && *id != [0; 16]))
}

/// A consumer's assignment as groups keep it: int16 version, then topics with partitions, then the user's data.
pub(super) fn parse_assignment(bytes: &[u8]) -> Result<Vec<(String, Vec<i32>)>, String> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let mut input = Input(bytes);
    let _version = input.i16()?;
    let mut topics = Vec::new();
    for _ in 0..input.count()? {
        let topic = input.string()?.unwrap_or_default();
        let partitions = (0..input.count()?).map(|_| input.i32()).collect::<Result<_, _>>()?;
        topics.push((topic, partitions));
    }
    Ok(topics)
}

/// The unread rest of a message.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let Some((head, rest)) = self.0.split_at_checked(count) else {
            return Err(format!("{count} bytes expected, {} left", self.0.len()));
        };
        self.0 = rest;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    pub(super) fn i8(&mut self) -> Result<i8, String> {
        Ok(i8::from_be_bytes(self.array()?))
    }

    pub(super) fn bool(&mut self) -> Result<bool, String> {
        Ok(self.i8()? != 0)
    }

    pub(super) fn i16(&mut self) -> Result<i16, String> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    pub(super) fn i32(&mut self) -> Result<i32, String> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    pub(super) fn i64(&mut self) -> Result<i64, String> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// Length of an array; null counts as empty. Every element takes a byte at least, so more than the rest is a lie.
    pub(super) fn count(&mut self) -> Result<usize, String> {
        let count = usize::try_from(self.i32()?).unwrap_or(0);
        if count > self.0.len() {
            return Err(format!("an array of {count} elements in {} bytes", self.0.len()));
        }
        Ok(count)
    }

    /// As flexible versions write lengths: plus one, seven bits a byte.
    pub(super) fn varint(&mut self) -> Result<usize, String> {
        let mut value = 0;
        for shift in (0..35).step_by(7) {
            let [byte] = self.array()?;
            value |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("a number of more than five bytes".into())
    }

    /// Passes over a string of a flexible version.
    pub(super) fn compact(&mut self) -> Result<(), String> {
        let length = self.varint()?.saturating_sub(1);
        self.take(length).map(drop)
    }

    /// A string of a flexible version.
    pub(super) fn compact_string(&mut self) -> Result<Option<String>, String> {
        match self.varint()?.checked_sub(1) {
            None => Ok(None),
            Some(length) => Ok(Some(String::from_utf8_lossy(self.take(length)?).into_owned())),
        }
    }

    /// Length of an array of a flexible version; null counts as empty.
    pub(super) fn compact_count(&mut self) -> Result<usize, String> {
        let count = self.varint()?.saturating_sub(1);
        if count > self.0.len() {
            return Err(format!("an array of {count} elements in {} bytes", self.0.len()));
        }
        Ok(count)
    }

    /// Passes over tagged fields.
    pub(super) fn tags(&mut self) -> Result<(), String> {
        for _ in 0..self.varint()? {
            let _tag = self.varint()?;
            let length = self.varint()?;
            self.take(length)?;
        }
        Ok(())
    }

    pub(super) fn string(&mut self) -> Result<Option<String>, String> {
        let Ok(length) = usize::try_from(self.i16()?) else { return Ok(None) };
        Ok(Some(String::from_utf8_lossy(self.take(length)?).into_owned()))
    }
}

/// A message as it is written.
#[derive(Default)]
pub(super) struct Output(Vec<u8>);

impl Output {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(super) fn i8(&mut self, value: i8) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(super) fn bool(&mut self, value: bool) -> &mut Self {
        self.i8(i8::from(value))
    }

    pub(super) fn i16(&mut self, value: i16) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(super) fn i32(&mut self, value: i32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    /// Length of an array, or of bytes.
    pub(super) fn count(&mut self, count: usize) -> &mut Self {
        self.i32(i32::try_from(count).unwrap_or(i32::MAX))
    }

    pub(super) fn null_array(&mut self) -> &mut Self {
        self.i32(-1)
    }

    /// Cut where the protocol cannot hold more; the broker then refuses what it does not know.
    pub(super) fn string(&mut self, text: &str) -> &mut Self {
        let bytes = &text.as_bytes()[..text.len().min(i16::MAX as usize)];
        self.i16(i16::try_from(bytes.len()).unwrap_or(i16::MAX)).raw(bytes)
    }

    pub(super) fn nullable(&mut self, text: Option<&str>) -> &mut Self {
        match text {
            Some(text) => self.string(text),
            None => self.i16(-1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as i16).to_be_bytes(), text.as_bytes()].concat()
    }

    /// One directory, one topic, partitions of 700 and 42 bytes.
    fn log_dirs() -> Vec<u8> {
        let mut body = Vec::new();
        body.extend(0i32.to_be_bytes());
        body.extend(1i32.to_be_bytes());
        body.extend(0i16.to_be_bytes());
        body.extend(string("/data"));
        body.extend(1i32.to_be_bytes());
        body.extend(string("t"));
        body.extend(2i32.to_be_bytes());
        for (partition, bytes) in [(0i32, 700i64), (1, 42)] {
            body.extend(partition.to_be_bytes());
            body.extend(bytes.to_be_bytes());
            body.extend(0i64.to_be_bytes());
            body.push(0);
        }
        body
    }

    #[test]
    fn a_request_is_framed() {
        let frame = request((35, 1), &[9]);
        assert_eq!(frame.len(), 4 + 2 + 2 + 4 + 2 + 8 + 1);
        assert_eq!(frame[..8], [0, 0, 0, 19, 0, 35, 0, 1]);
    }

    #[test]
    fn log_sizes_are_summed() {
        assert_eq!(parse_log_bytes(&log_dirs()), Ok(742));
    }

    #[test]
    fn a_cut_or_lying_answer_is_an_error() {
        let body = log_dirs();
        for length in 0..body.len() {
            assert!(parse_log_bytes(&body[..length]).is_err(), "{length} of {}", body.len());
        }
        let mut lying = body;
        lying[4..8].copy_from_slice(&i32::MAX.to_be_bytes());
        assert!(parse_log_bytes(&lying).unwrap_err().contains("elements"));
    }

    #[test]
    fn a_topics_id_is_read() {
        let answer = |error: i16, id: [u8; 16]| {
            let mut body = vec![0];
            body.extend(0i32.to_be_bytes());
            body.push(2);
            body.extend(1i32.to_be_bytes());
            body.extend([5, b'h', b'o', b's', b't']);
            body.extend(9092i32.to_be_bytes());
            body.extend([0, 0, 2, b'c']);
            body.extend(1i32.to_be_bytes());
            body.push(2);
            body.extend(error.to_be_bytes());
            body.extend([2, b't']);
            body.extend(id);
            body
        };
        assert_eq!(parse_topic_id(&answer(0, [7; 16])), Ok(Some([7; 16])));
        assert_eq!(parse_topic_id(&answer(3, [0; 16])), Ok(None), "unknown topic");
        let whole = answer(0, [7; 16]);
        for length in 0..whole.len() {
            assert!(parse_topic_id(&whole[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn an_assignment_is_read() {
        let mut bytes = 1i16.to_be_bytes().to_vec();
        bytes.extend(1i32.to_be_bytes());
        bytes.extend(string("t"));
        bytes.extend(2i32.to_be_bytes());
        bytes.extend(3i32.to_be_bytes());
        bytes.extend(5i32.to_be_bytes());
        bytes.extend((-1i32).to_be_bytes());
        assert_eq!(parse_assignment(&bytes), Ok(vec![("t".into(), vec![3, 5])]));
        assert_eq!(parse_assignment(&[]), Ok(vec![]));
        assert!(parse_assignment(&bytes[..9]).is_err());
    }
}
