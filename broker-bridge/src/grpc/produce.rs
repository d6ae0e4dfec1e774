//! `Produce` and `ProduceStream`.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _, stream};
use proto::data::v1::{ProduceRequest, ProduceResponse, Record, RecordResult};
use service_kit::kafka::OutRecord;
use tonic::{Status, Streaming};

use super::Services;
use crate::{
    auth,
    error::{BridgeError, Code, Result},
    produce::{Produce, Receipt},
};

/// Batches of one stream that are written at a time; answers keep the order.
const STREAM_BATCHES_MAX: usize = 32;

pub(super) type Answers = Pin<Box<dyn Stream<Item = Result<ProduceResponse, Status>> + Send>>;

pub(super) async fn batch(produce: &Produce, request: ProduceRequest, traceparent: Option<&str>) -> Result<ProduceResponse> {
    let topics: Vec<String> =
        request.records.iter().map(|record| if record.topic.is_empty() { request.topic.clone() } else { record.topic.clone() }).collect();
    let default: Arc<str> = request.topic.as_str().into();
    let records =
        request.records.into_iter().enumerate().map(|(index, record)| out_record(&default, index, record)).collect::<Result<Vec<_>>>()?;
    let receipt = produce.send(Some(&request.batch_id), records, traceparent).await?;
    Ok(response(request.batch_id, topics, &receipt))
}

/// Answers in the order of the requests. A request that cannot be written at all ends the stream with its error.
pub(super) fn stream(services: Services, requests: Streaming<ProduceRequest>, traceparent: Option<String>) -> Answers {
    let traceparent: Option<Arc<str>> = traceparent.map(Arc::from);
    let (ended, carrier) = (services.shutdown.clone().cancelled_owned(), auth::carrier());
    let answers = requests
        .take_until(ended)
        .map(move |request| {
            let (produce, traceparent) = (services.produce.clone(), traceparent.clone());
            carrier.clone().run(async move { Ok(batch(&produce, request?, traceparent.as_deref()).await?) })
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

pub(super) fn out_record(default: &Arc<str>, index: usize, record: Record) -> Result<OutRecord> {
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
