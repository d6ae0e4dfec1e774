//! `Produce` and `ProduceStream`.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _, stream};
use proto::data::v1::{Encoding, ProduceRequest, ProduceResponse, Record, RecordResult};
use serde_json::value::RawValue;
use service_kit::kafka::OutRecord;
use tonic::{Status, Streaming};

use super::Services;
use crate::{
    auth,
    codec::{self, CODECS, Codec, Schemas, Writers},
    error::{BridgeError, Code, Result},
    produce::Receipt,
};

/// Batches of one stream that are written at a time; answers keep the order.
const STREAM_BATCHES_MAX: usize = 32;

pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<ProduceResponse, Status>> + Send>>;

pub(super) async fn batch(services: &Services, request: ProduceRequest, traceparent: Option<&str>) -> Result<ProduceResponse> {
    let topics: Vec<String> =
        request.records.iter().map(|record| if record.topic.is_empty() { request.topic.clone() } else { record.topic.clone() }).collect();
    let records = out_records(services, &request.topic, request.encoding, request.records).await?;
    let receipt = services.produce.send(Some(&request.batch_id), records, traceparent).await?;
    Ok(response(request.batch_id, topics, &receipt))
}

/// Answers in the order of the requests. A request that cannot be written at all ends the stream with its error.
pub(super) fn stream(services: Services, requests: Streaming<ProduceRequest>, traceparent: Option<String>) -> Answers {
    let traceparent: Option<Arc<str>> = traceparent.map(Arc::from);
    let (ended, carrier) = (services.shutdown.clone().cancelled_owned(), auth::carrier());
    let answers = requests
        .take_until(ended)
        .map(move |request| {
            let (services, traceparent) = (services.clone(), traceparent.clone());
            carrier.clone().run(async move { Ok(batch(&services, request?, traceparent.as_deref()).await?) })
        })
        .buffered(STREAM_BATCHES_MAX);
    // The stream ends at the first error: what the client sends after it is not written.
    Box::pin(stream::unfold(Some(Box::pin(answers)), async |state| {
        let mut answers = state?;
        match answers.next().await? {
            Ok(answer) => Some((Ok(answer), Some(answers))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

/// Records as they are to lie in Kafka: as they came, or made of JSON texts.
pub(super) async fn out_records(
    services: &Services,
    topic: &str,
    encoding: Option<Encoding>,
    records: Vec<Record>,
) -> Result<Vec<OutRecord>> {
    let default: Arc<str> = topic.into();
    let out = records.into_iter().enumerate().map(|(index, record)| out_record(&default, index, record));
    let mut out = out.collect::<Result<Vec<_>>>()?;
    let Some(mut writers) = encoding.map(writers).transpose()?.flatten() else { return Ok(out) };
    for (index, record) in out.iter_mut().enumerate() {
        let (_, writer) = writers.of(&services.topics, &services.registry, &record.topic).await?;
        if let Some(key) = &record.key {
            record.key = Some(writer.key(json(key, index, "key")?, index)?);
        }
        if let Some(value) = &record.value {
            record.value = Some(writer.value(json(value, index, "value")?, index)?);
        }
    }
    Ok(out)
}

/// `None`: everything stays as it is.
fn writers(encoding: Encoding) -> Result<Option<Writers>> {
    let Encoding { format, key_schema, key_schema_id, value_schema, value_schema_id } = encoding;
    let codec = codec_named("encoding.format", &format)?;
    Ok(codec.map(|codec| Writers::new(codec, Schemas { key_schema, key_schema_id, value_schema, value_schema_id })))
}

/// `None` for `binary`, also where nothing is said: bytes need no other form here.
pub(super) fn codec_named(field: &str, format: &str) -> Result<Option<&'static Codec>> {
    let found = if format.is_empty() { Some(&CODECS[0]) } else { codec::by_name(format) };
    let names = || CODECS.iter().map(|codec| codec.name).collect::<Vec<_>>().join(", ");
    let found =
        found.ok_or_else(|| BridgeError::new(Code::Unprocessable, format!("{field} = {format:?} is not possible; give {}", names())))?;
    Ok((found.name != CODECS[0].name).then_some(found))
}

fn json<'a>(bytes: &'a [u8], index: usize, part: &str) -> Result<&'a RawValue> {
    serde_json::from_slice(bytes).map_err(|error| {
        BridgeError::new(Code::InvalidPayload, format!("records[{index}].{part} is not JSON, as encoding.format needs it: {error}"))
    })
}

fn out_record(default: &Arc<str>, index: usize, record: Record) -> Result<OutRecord> {
    let topic = if record.topic.is_empty() { Arc::clone(default) } else { record.topic.as_str().into() };
    if topic.is_empty() {
        return Err(BridgeError::new(
            Code::Unprocessable,
            format!("records[{index}] has no topic, and neither has the request; set one of them"),
        ));
    }
    if record.timestamp_ms.is_some_and(|timestamp| timestamp < 0) {
        return Err(BridgeError::new(
            Code::Unprocessable,
            format!("records[{index}].timestamp_ms is negative; it counts milliseconds since 1970"),
        ));
    }
    let headers = record.headers.into_iter().map(|header| match header.value {
        Some(value) => Ok((header.key, value)),
        // An empty value is another one than none.
        None => Err(BridgeError::new(
            Code::Unprocessable,
            format!(
                "records[{index}].headers {:?} has no value, which cannot be written; send an empty one, or leave the header out",
                header.key
            ),
        )),
    });
    Ok(OutRecord {
        topic,
        partition: record.partition,
        key: record.key,
        value: record.value,
        headers: headers.collect::<Result<_>>()?,
        timestamp_ms: record.timestamp_ms,
    })
}

fn response(batch_id: String, topics: Vec<String>, receipt: &Receipt) -> ProduceResponse {
    let results = topics.into_iter().zip(receipt.results.iter()).map(|(topic, result)| match result {
        Ok(written) => RecordResult { topic, partition: written.partition, offset: written.offset, ..RecordResult::default() },
        Err(error) => RecordResult {
            topic,
            partition: -1,
            offset: -1,
            error: error.message.clone(),
            retryable: error.retryable(),
            error_code: error.code.number(),
        },
    });
    ProduceResponse { batch_id, results: results.collect(), replayed: receipt.replayed }
}

#[cfg(test)]
mod tests {

    use proto::data::v1::Header;

    use super::*;

    #[test]
    fn what_kafka_could_not_hold_is_refused_by_the_records_place() {
        let topic: Arc<str> = "t".into();
        let header = |value: Option<&'static [u8]>| Header { key: "h".into(), value: value.map(bytes::Bytes::from_static) };
        let record = out_record(&topic, 0, Record { headers: vec![header(Some(b""))], ..Record::default() }).unwrap();
        assert_eq!(record.headers, [("h".to_owned(), bytes::Bytes::new())]);
        for (record, message) in [
            (Record { headers: vec![header(None)], ..Record::default() }, "records[3].headers \"h\" has no value"),
            (Record { timestamp_ms: Some(-7), ..Record::default() }, "records[3].timestamp_ms is negative"),
        ] {
            let error = out_record(&topic, 3, record).unwrap_err();
            assert!(error.code == Code::Unprocessable && error.message.contains(message), "{error}");
        }
    }
}
