//! `thrift`: events to Flume's thrift source, or the collector's.

use async_trait::async_trait;

use super::rpc::{
    BACKOFF, BATCH, CONNECT_TIMEOUT, Caller, HOSTNAME, PORT, REQUEST_BYTES, REQUEST_TIMEOUT, RESET, RpcSink, review_timeouts,
};
use super::{Setup, Sink};
use crate::event::Event;
use crate::flume_conf::kinds::adopts_nothing;
use crate::flume_conf::{Component, Finding, Kind, Role};
use crate::rpc::{
    Incoming,
    connection::Stream,
    thrift::{Answer, Protocol, Status, answer, append_batch, read_frame, write_frame},
};
use crate::source::thrift::{KERBEROS, PROTOCOL, review_kerberos};
use crate::tls;

pub static KIND: Kind = Kind {
    role: Role::Sink,
    alias: Some("thrift"),
    class: Some("org.apache.flume.sink.ThriftSink"),
    doc: "Sends events to a thrift source, Flume's or the collector's. A take is committed when the other side has the events in its channel.",
    properties: &[
        HOSTNAME,
        PORT,
        BATCH,
        CONNECT_TIMEOUT,
        REQUEST_TIMEOUT,
        RESET,
        PROTOCOL,
        KERBEROS,
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
    ],
    deprecated: &[],
    misspelt: &[("host", "hostname"), ("batchSize", "batch-size")],
    adopt: adopts_nothing,
    batch: Some("batch-size"),
    review,
};

fn review(component: &Component, strict: bool) -> Vec<Finding> {
    let kerberos = review_kerberos(component).into_iter();
    kerberos.chain(review_timeouts(component)).chain(tls::review_client(component, strict)).collect()
}

pub fn build(component: &Component, _setup: Setup) -> anyhow::Result<Box<dyn Sink>> {
    let protocol = Protocol::named(component.text(PROTOCOL.name));
    let speak = move |stream| -> Box<dyn Caller> { Box::new(Connection { stream, incoming: Incoming::new(), protocol, number: 0 }) };
    Ok(Box::new(RpcSink::build(component, Box::new(speak))?))
}

struct Connection {
    stream: Stream,
    incoming: Incoming,
    protocol: Protocol,
    number: i32,
}

/// An answer is a status, or an exception's text.
const ANSWER_BYTES_MAX: usize = 1 << 20;

#[async_trait]
impl Caller for Connection {
    async fn append(&mut self, events: &[Event]) -> anyhow::Result<()> {
        self.number = self.number.wrapping_add(1);
        write_frame(&mut self.stream, &append_batch(self.protocol, self.number, events)).await?;
        let frame = read_frame(&mut self.incoming, &mut self.stream, ANSWER_BYTES_MAX).await?;
        let Some(message) = frame else { anyhow::bail!("the connection was closed before the answer came") };
        match answer(self.protocol, self.number, message)? {
            Answer::Status(Status::Ok) => Ok(()),
            Answer::Status(status) => anyhow::bail!("the answer is {status:?}: its channel is full, or cannot take the batch"),
            Answer::Error(error) => anyhow::bail!("the other side's error: {error}"),
        }
    }
}
