//! The collector beside real Flume 1.11 and its peers: the same files, the same wires.

mod avro;
mod file_channel;
mod files;
mod groups;
mod interceptors;
mod network;
mod operate;
mod positions;
mod uris;
