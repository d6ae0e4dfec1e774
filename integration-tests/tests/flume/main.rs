//! The collector beside real Flume 1.11 and its peers: the same files, the same wires.

mod avro;
mod corpus;
mod file_channel;
mod files;
mod flume_channel;
mod ganglia;
mod groups;
mod hbase;
mod https;
mod interceptors;
mod kafka;
mod network;
mod operate;
mod otlp;
mod positions;
mod records;
mod s3;
mod uris;
