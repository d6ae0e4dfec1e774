//! Transactions: translated and passed on.

use std::{sync::Arc, time::Duration};

use proto::data::v1::{
    BeginTransactionRequest, EndTransactionRequest, ProduceRequest, Record, TransactionOffsetsRequest, TransactionProduceRequest,
    TransactionResponse,
};
use service_kit::kafka::{OutRecord, TopicPartition};

use super::produce::out_record;
use crate::{error::Result, transaction::Transactions};

fn out_records(topic: &str, records: Vec<Record>) -> Result<Vec<OutRecord>> {
    let default: Arc<str> = topic.into();
    records.into_iter().enumerate().map(|(index, record)| out_record(&default, index, record)).collect()
}

pub(super) async fn write_all(transactions: &Transactions, request: ProduceRequest) -> Result<TransactionResponse> {
    let records = out_records(&request.topic, request.records)?;
    let written = records.len() as u64;
    transactions.write_all(records).await?;
    Ok(TransactionResponse { records: written, ..TransactionResponse::default() })
}

pub(super) async fn begin(transactions: &Transactions, request: BeginTransactionRequest) -> Result<TransactionResponse> {
    let begun = transactions.begin(request.lease_ms.map(Duration::from_millis)).await?;
    let lease_ms = u64::try_from(begun.lease.as_millis()).unwrap_or(u64::MAX);
    Ok(TransactionResponse { transaction_id: begun.id, lease_ms, records: 0 })
}

pub(super) async fn produce(transactions: &Transactions, request: TransactionProduceRequest) -> Result<TransactionResponse> {
    let records = out_records(&request.topic, request.records)?;
    let written = transactions.produce(&request.transaction_id, records).await?;
    Ok(TransactionResponse { transaction_id: request.transaction_id, records: written as u64, lease_ms: 0 })
}

pub(super) async fn offsets(transactions: &Transactions, request: TransactionOffsetsRequest) -> Result<TransactionResponse> {
    let offsets = request.offsets.into_iter().map(|one| (TopicPartition::new(one.topic, one.partition), one.offset, one.metadata));
    transactions.offsets(&request.transaction_id, &request.group, offsets.collect()).await?;
    Ok(TransactionResponse { transaction_id: request.transaction_id, ..TransactionResponse::default() })
}

pub(super) async fn end(transactions: &Transactions, request: EndTransactionRequest) -> Result<TransactionResponse> {
    let id = request.transaction_id;
    if request.commit {
        transactions.commit(&id).await?
    } else {
        transactions.abort(&id).await?
    }
    Ok(TransactionResponse { transaction_id: id, ..TransactionResponse::default() })
}
