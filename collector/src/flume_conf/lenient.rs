//! Values that Flume cannot read and does not drop a component for.

use super::component::Component;
use super::kinds::{Property, Role, Type};

/// What Flume makes of a value that the property's type refuses.
pub(super) struct Leniency {
    pub flume: &'static str,
    /// Does the component run?
    pub runs: bool,
    /// What it runs with, where that is not the default.
    pub instead: Option<(&'static str, &'static str)>,
}

const fn default() -> Leniency {
    Leniency { flume: "takes the default", runs: true, instead: None }
}

const fn drops() -> Leniency {
    Leniency { flume: "drops the component", runs: false, instead: None }
}

const fn never() -> Leniency {
    Leniency { flume: "never gets it started", runs: false, instead: None }
}

const fn as_it_is() -> Leniency {
    Leniency { flume: "takes it as it is, and fails or works when it runs", runs: false, instead: None }
}

pub(super) fn leniency(component: &Component, property: &Property, value: &str) -> Leniency {
    let kind = component.kind;
    let number = value.trim().parse::<i64>().is_ok();
    match (kind.role, kind.alias.unwrap_or_default(), property.name) {
        // The Kafka channel has a class name only; it looks at numbers as the file channel does, and at their range never.
        (Role::Channel, "", _) if number => as_it_is(),
        (Role::Channel, alias, _) if property.kind != Type::Boolean && (number || !["file", ""].contains(&alias)) => default(),
        (Role::Channel, ..) if property.kind != Type::Boolean => {
            Leniency { flume: "drops the channel and what is attached to it alone", runs: false, instead: None }
        }
        (Role::Sink, "logger", "maxBytesToLog") => default(),
        (Role::Sink, "hdfs", "hdfs.roundUnit") => Leniency { flume: "does not round", runs: true, instead: Some(("hdfs.round", "false")) },
        (Role::Source, "spooldir", "deletePolicy") | (_, "avro", "compression-type") | (Role::Sink, "hdfs", "hdfs.fileType") => never(),
        (Role::Source, "seq", "batchSize") | (Role::Sink, "null", "batchSize") | (Role::Sink, "hdfs", "hdfs.batchSize") => drops(),
        _ if property.kind == Type::Boolean => Leniency { flume: "reads it as false", runs: true, instead: Some((property.name, "false")) },
        // Numbers are looked at where they are used, if at all.
        _ if number => as_it_is(),
        _ => drops(),
    }
}
