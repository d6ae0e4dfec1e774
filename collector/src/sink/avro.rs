//! `avro`: events to Flume's avro source, or the collector's.

use async_trait::async_trait;

use super::rpc::{
    BACKOFF, BATCH, CONNECT_TIMEOUT, Caller, HOSTNAME, PORT, REQUEST_BYTES, REQUEST_TIMEOUT, RESET, RpcSink, review_timeouts,
};
use super::{Setup, Sink};
use crate::event::Event;
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Property, Role};
use crate::rpc::{
    Incoming,
    avro::{Answer, Requestor, Status, read_frame, write_frame},
    connection::{COMPRESSION, LEVEL, Stream},
};
use crate::tls;

pub static KIND: Kind = Kind {
    role: Role::Sink,
    alias: Some("avro"),
    class: Some("org.apache.flume.sink.AvroSink"),
    doc: "Sends events to an avro source, Flume's or the collector's. A take is committed when the other side has the events in its channel.",
    properties: &[
        HOSTNAME,
        PORT,
        BATCH,
        CONNECT_TIMEOUT,
        REQUEST_TIMEOUT,
        RESET,
        COMPRESSION,
        LEVEL,
        tls::SSL,
        tls::TRUST_ALL,
        tls::TRUSTSTORE,
        tls::TRUSTSTORE_PASSWORD,
        tls::TRUSTSTORE_TYPE,
        tls::VERIFY_HOSTNAME,
        tls::INCLUDE_PROTOCOLS,
        tls::EXCLUDE_PROTOCOLS,
        tls::INCLUDE_CIPHERS,
        tls::EXCLUDE_CIPHERS,
        REQUEST_BYTES,
        BACKOFF,
        Property::integer("maxIoWorkers", 0, 65_536, None, "Without effect, as in Flume since 1.10."),
    ],
    deprecated: &[],
    misspelt: &[("host", "hostname"), ("batchSize", "batch-size"), ("compressionType", "compression-type")],
    adopt: adopts_nothing,
    batch: Some("batch-size"),
    review,
};

fn review(component: &Component, strict: bool) -> Vec<Finding> {
    review_timeouts(component).into_iter().chain(tls::review_client(component, strict)).collect()
}

pub fn build(component: &Component, _setup: Setup) -> anyhow::Result<Box<dyn Sink>> {
    Ok(Box::new(RpcSink::build(component, Box::new(|stream| Box::new(Connection::new(stream))))?))
}

struct Connection {
    stream: Stream,
    incoming: Incoming,
    requestor: Requestor,
    serial: i32,
}

impl Connection {
    fn new(stream: Stream) -> Self {
        Self { stream, incoming: Incoming::new(), requestor: Requestor::default(), serial: 0 }
    }
}

/// An answer is a handshake and a status, or an error's text.
const ANSWER_BYTES_MAX: usize = 1 << 20;

#[async_trait]
impl Caller for Connection {
    async fn append(&mut self, events: &[Event]) -> anyhow::Result<()> {
        loop {
            self.serial = self.serial.wrapping_add(1);
            write_frame(&mut self.stream, self.serial, &self.requestor.request(events)).await?;
            let frame = read_frame(&mut self.incoming, &mut self.stream, ANSWER_BYTES_MAX).await?;
            let Some((serial, message)) = frame else { anyhow::bail!("the connection was closed before the answer came") };
            anyhow::ensure!(serial == self.serial, "an answer to request {serial} came to request {}", self.serial);
            match self.requestor.answer(message)? {
                Answer::Again => {}
                Answer::Status(Status::Ok) => return Ok(()),
                Answer::Status(status) => anyhow::bail!("the answer is {status:?}: its channel is full, or cannot take the batch"),
                Answer::Error(error) => anyhow::bail!("the other side's error: {error}"),
            }
        }
    }
}
