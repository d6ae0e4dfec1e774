//! gRPC: the data API (produce, consume) and the operators' API, both on the control port. Translates and calls; decides nothing.

#[cfg(test)]
mod access_tests;
mod admin;
mod consume;
mod control;
mod produce;
#[cfg(test)]
mod reference;
mod transaction;

use proto::data::v1 as data;
use proto::{control::v1::bridge_server::BridgeServer, data::v1::bridge_data_server::BridgeDataServer};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap, service::Routes};

use crate::{
    config,
    connect::Connection,
    lag::{Lag, Resets},
    lint::Linter,
    produce::Produce,
    registry::Registry,
    session::Sessions,
    topics::Topics,
    trace::TRACEPARENT,
    transaction::Transactions,
};

/// What the calls work with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) produce: Produce,
    pub(crate) transactions: Transactions,
    pub(crate) sessions: Sessions,
    pub(crate) topics: Topics,
    pub(crate) lag: Lag,
    pub(crate) resets: Resets,
    pub(crate) linter: Linter,
    pub(crate) kafka: Connection,
    pub(crate) registry: Registry,
    pub(crate) consume: config::Consume,
    pub(crate) shutdown: CancellationToken,
}

pub(crate) fn routes(services: Services) -> Routes {
    Routes::new(BridgeServer::new(services.clone())).add_service(BridgeDataServer::new(services))
}

fn traceparent(metadata: &MetadataMap) -> Option<String> {
    metadata.get(TRACEPARENT)?.to_str().ok().map(str::to_owned)
}

#[tonic::async_trait]
impl proto::data::v1::bridge_data_server::BridgeData for Services {
    async fn produce(
        &self,
        request: Request<proto::data::v1::ProduceRequest>,
    ) -> Result<Response<proto::data::v1::ProduceResponse>, Status> {
        let traceparent = traceparent(request.metadata());
        Ok(Response::new(produce::batch(self, request.into_inner(), traceparent.as_deref()).await?))
    }

    type ProduceStreamStream = produce::Answers;

    async fn produce_stream(
        &self,
        request: Request<Streaming<proto::data::v1::ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStreamStream>, Status> {
        let traceparent = traceparent(request.metadata());
        Ok(Response::new(produce::stream(self.clone(), request.into_inner(), traceparent)))
    }

    type ConsumeStream = consume::Batches;

    async fn consume(&self, request: Request<Streaming<proto::data::v1::ConsumeRequest>>) -> Result<Response<Self::ConsumeStream>, Status> {
        Ok(Response::new(consume::stream(self.clone(), request.into_inner())))
    }

    async fn produce_atomically(&self, request: Request<data::ProduceRequest>) -> Result<Response<data::TransactionResponse>, Status> {
        Ok(Response::new(transaction::write_all(self, request.into_inner()).await?))
    }

    async fn begin_transaction(
        &self,
        request: Request<data::BeginTransactionRequest>,
    ) -> Result<Response<data::TransactionResponse>, Status> {
        Ok(Response::new(transaction::begin(&self.transactions, request.into_inner()).await?))
    }

    async fn transaction_produce(
        &self,
        request: Request<data::TransactionProduceRequest>,
    ) -> Result<Response<data::TransactionResponse>, Status> {
        Ok(Response::new(transaction::produce(self, request.into_inner()).await?))
    }

    async fn transaction_offsets(
        &self,
        request: Request<data::TransactionOffsetsRequest>,
    ) -> Result<Response<data::TransactionResponse>, Status> {
        Ok(Response::new(transaction::offsets(&self.transactions, request.into_inner()).await?))
    }

    async fn end_transaction(&self, request: Request<data::EndTransactionRequest>) -> Result<Response<data::TransactionResponse>, Status> {
        Ok(Response::new(transaction::end(&self.transactions, request.into_inner()).await?))
    }
}
