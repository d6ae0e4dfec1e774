//! `service_kit::kafka` against a real broker: the contract of each role, run for each implementation of it, and the
//! findings on the client crates that its design rests on.
//!
//! Needs `KAFKA_BOOTSTRAP_SERVERS` (a broker on loopback; outages are made by proxies in front of it). Every test works
//! in topics of its own and deletes them.
#![allow(clippy::unwrap_used)]

mod support;

mod admin;
mod findings;
mod member;
mod outage;
mod own_broker;
mod producer;
mod reader;
mod slots;
mod transaction;
