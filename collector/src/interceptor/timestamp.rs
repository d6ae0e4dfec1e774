//! `timestamp`: the time at which the event passed, in milliseconds since 1970.

use super::Interceptor;
use crate::counters::unix_ms;
use crate::event::Event;
use crate::flume_conf::kinds::{adopts_nothing, nothing_to_say};
use crate::flume_conf::{Component, Kind, Property, Role};

pub static KIND: Kind = Kind {
    role: Role::Interceptor,
    alias: Some("timestamp"),
    class: Some("org.apache.flume.interceptor.TimestampInterceptor$Builder"),
    doc: "Sets a header to the time at which the event passed, in milliseconds since 1970.",
    properties: &[
        Property::text("headerName", Some("timestamp"), "The header to set."),
        Property::boolean("preserveExisting", "false", "Leave the header alone where the event has it already."),
    ],
    deprecated: &[],
    misspelt: &[("header", "headerName")],
    adopt: adopts_nothing,
    batch: None,
    review: nothing_to_say,
};

pub fn build(component: &Component) -> anyhow::Result<Box<dyn Interceptor>> {
    let preserve = component.boolean("preserveExisting");
    Ok(Box::new(Timestamp { header: component.text("headerName").to_owned(), preserve }))
}

struct Timestamp {
    header: String,
    preserve: bool,
}

impl Interceptor for Timestamp {
    fn intercept(&self, mut event: Event) -> Option<Event> {
        if !(self.preserve && event.header(&self.header).is_some()) {
            event.set_header(&self.header, unix_ms().to_string());
        }
        Some(event)
    }
}
