//! The broker-bridge: Kafka for programs that speak HTTP or gRPC, and for people who look after it.
//!
//! | module | question it answers |
//! |---|---|
//! | [`config`] | what can be set |
//! | `cli` | the command line |
//! | `service` | how the parts are put together, started and drained |
//! | `connect` | the bridge's own connection to Kafka |
//! | `auth` | who calls, what they may do, how much of it |
//! | `trust` | TLS as a client |
//! | `error` | every error a caller can meet: code, status, kind |
//! | `http` | Confluent REST v2, Strimzi's admin path and v3; translates, then calls the parts below |
//! | `grpc` | the same by gRPC, with streams |
//! | `produce` | records in: checks, results per record, repeated batches |
//! | `session` | records out: consumer instances, their offsets and their end |
//! | `transaction` | transactions of callers: their leases, writers and ends |
//! | `codec` | embedded formats: binary, json, text; avro, jsonschema, protobuf with schemas of the registry |
//! | `registry` | schemas: Confluent's registry API, kept in Kafka |
//! | `topics` | topics and brokers, and how many partitions a topic should have |
//! | `lag` | how far groups are behind, and how they are |
//! | `manage` | settings and access control lists |
//! | `lint` | what is wrong with topics |
//! | `monitor` | the broker's health, watched in the background; gauges |
//! | `gate` | whether work is taken now: paused, broker away, draining |
//! | `control` | status, pause and drain for operators |

// A stream of records under its caller nests deeper than the default.
#![recursion_limit = "256"]

mod auth;
mod cli;
mod codec;
pub mod config;
mod connect;
mod control;
mod error;
mod gate;
mod grpc;
mod http;
mod lag;
mod lint;
mod manage;
mod monitor;
mod produce;
mod registry;
mod service;
mod session;
#[cfg(test)]
mod testing;
mod topics;
mod trace;
mod transaction;
mod trust;

pub use cli::main;
