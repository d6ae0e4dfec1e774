//! Queues many records with one call of librdkafka (`rd_kafka_produce_batch`), which the `rdkafka` crate does not have.
//!
//! One call looks the topic up once, where `rd_kafka_producev` does so for every record, and the crate copies its name
//! besides. It knows neither headers nor timestamps, and it leaks a record whose explicit
//! partition does not exist (librdkafka 2.12, `rd_kafka_produce_batch`, the branch after `rd_kafka_toppar_get_avail`),
//! so [`fits`] leaves those to the crate's own call.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::Arc;

use parking_lot::Mutex;
use rdkafka::bindings;
use rdkafka::error::KafkaError as RdError;
use rdkafka::producer::Producer as _;
use rdkafka::types::RDKafkaRespErr;

use super::OutRecord;
use super::producer::Client;

/// Topics whose handles are kept; beyond that they are looked up anew.
const TOPICS_MAX: usize = 64;
/// librdkafka's "any partition".
const UNASSIGNED: i32 = -1;

/// A producer's topic handles.
pub(super) struct Topics {
    producer: Arc<Client>,
    handles: Mutex<HashMap<Arc<str>, Arc<Handle>>>,
}

/// Holds the producer that it belongs to: a handle must not outlive it.
struct Handle {
    native: *mut bindings::rd_kafka_topic_t,
    _producer: Arc<Client>,
}

// SAFETY: librdkafka's topic handles are reference counted and may be used by any thread.
unsafe impl Send for Handle {}
// SAFETY: as above; librdkafka takes the topic's lock where it changes it.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by `rd_kafka_topic_new`, destroyed here only; the producer is dropped after this.
        unsafe { bindings::rd_kafka_topic_destroy(self.native) }
    }
}

/// May this record go by [`Topics::queue`]?
pub(super) fn fits(record: &OutRecord) -> bool {
    record.headers.is_empty() && record.partition.is_none() && record.timestamp_ms.is_none()
}

impl Topics {
    pub(super) fn of(producer: Arc<Client>) -> Self {
        Self { producer, handles: Mutex::default() }
    }

    /// Queues records of one topic that [`fits`] them; `opaque` gives what the delivery of record n carries. Gives the
    /// records that were not queued, or None where the topic has no handle: nothing was queued then.
    pub(super) fn queue(&self, records: &[OutRecord], opaque: impl Fn(usize) -> usize) -> Option<Vec<(usize, RdError)>> {
        let topic = self.handle(&records.first()?.topic)?;
        let bytes =
            |bytes: Option<&bytes::Bytes>| bytes.map_or((null_mut(), 0), |bytes| (bytes.as_ptr().cast_mut().cast::<c_void>(), bytes.len()));
        let mut messages: Vec<bindings::rd_kafka_message_t> = Vec::with_capacity(records.len());
        for (index, record) in records.iter().enumerate() {
            let ((payload, len), (key, key_len)) = (bytes(record.value.as_ref()), bytes(record.key.as_ref()));
            messages.push(bindings::rd_kafka_message_t {
                err: RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR,
                rkt: null_mut(),
                partition: UNASSIGNED,
                payload,
                len,
                key,
                key_len,
                offset: 0,
                _private: opaque(index) as *mut c_void,
            });
        }
        let count = c_int::try_from(messages.len()).ok()?;
        // SAFETY: the handle lives as long as `topic`; `messages` holds `count` messages whose payloads and keys point into
        // `records` and are copied (`MSG_F_COPY`) before the call returns; the call writes to `err` alone.
        let queued = unsafe {
            bindings::rd_kafka_produce_batch(topic.native, UNASSIGNED, bindings::RD_KAFKA_MSG_F_COPY, messages.as_mut_ptr(), count)
        };
        if queued == count {
            return Some(Vec::new());
        }
        let refused = messages.iter().enumerate().filter(|(_, message)| message.err != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
        Some(refused.map(|(index, message)| (index, RdError::MessageProduction(message.err.into()))).collect())
    }

    fn handle(&self, topic: &Arc<str>) -> Option<Arc<Handle>> {
        let mut handles = self.handles.lock();
        if let Some(handle) = handles.get(topic) {
            return Some(Arc::clone(handle));
        }
        let name = CString::new(&**topic).ok()?;
        // SAFETY: the producer is alive, the name ends with a zero; a null configuration stands for the client's own.
        let native = unsafe {
            bindings::rd_kafka_topic_new(
                self.producer.client().native_ptr(),
                name.as_ptr(),
                null::<bindings::rd_kafka_topic_conf_t>().cast_mut(),
            )
        };
        if native.is_null() {
            return None;
        }
        if handles.len() >= TOPICS_MAX {
            handles.clear();
        }
        let handle = Arc::new(Handle { native, _producer: Arc::clone(&self.producer) });
        handles.insert(Arc::clone(topic), Arc::clone(&handle));
        Some(handle)
    }
}
