//! The collector beside real Flume 1.11 and its peers: the same files, the same wires.

mod avro;
mod file_channel;
mod files;
mod ganglia;
mod groups;
mod https;
mod interceptors;
mod network;
mod otlp;
mod uris;
