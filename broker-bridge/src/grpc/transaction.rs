//! Transactions: translated and passed on.

use std::time::Duration;

use proto::data::v1::{
    BeginTransactionRequest, EndTransactionRequest, ProduceRequest, TransactionOffsetsRequest, TransactionProduceRequest,
    TransactionResponse,
};
use service_kit::kafka::TopicPartition;

use super::{Services, produce::out_records};
use crate::{error::Result, transaction::Transactions};

pub(super) async fn write_all(services: &Services, request: ProduceRequest) -> Result<TransactionResponse> {
    let records = out_records(services, &request.topic, request.encoding, request.records).await?;
    let written = records.len() as u64;
    services.transactions.write_all(records).await?;
    Ok(TransactionResponse { records: written, ..TransactionResponse::default() })
}

pub(super) async fn begin(transactions: &Transactions, request: BeginTransactionRequest) -> Result<TransactionResponse> {
    let begun = transactions.begin(request.lease_ms.map(Duration::from_millis)).await?;
    let lease_ms = u64::try_from(begun.lease.as_millis()).unwrap_or(u64::MAX);
    Ok(TransactionResponse { transaction_id: begun.id, lease_ms, records: 0 })
}

pub(super) async fn produce(services: &Services, request: TransactionProduceRequest) -> Result<TransactionResponse> {
    let records = out_records(services, &request.topic, request.encoding, request.records).await?;
    let written = services.transactions.produce(&request.transaction_id, records).await?;
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
