//! The UUID interceptor: a random identifier for every event.

use super::Interceptor;
use crate::event::Event;
use crate::flume_conf::kinds::{adopts_nothing, nothing_to_say};
use crate::flume_conf::{Component, Kind, Property, Role};

pub static KIND: Kind = Kind {
    role: Role::Interceptor,
    alias: None,
    class: Some("org.apache.flume.sink.solr.morphline.UUIDInterceptor$Builder"),
    doc: "Sets a header to a random UUID on every event.",
    properties: &[
        Property::text("headerName", Some("id"), "The header to set."),
        Property::boolean("preserveExisting", "true", "Leave the header alone where the event has it already."),
        Property::text("prefix", None, "Text before each UUID."),
    ],
    deprecated: &[],
    misspelt: &[],
    adopt: adopts_nothing,
    batch: None,
    review: nothing_to_say,
};

pub fn build(component: &Component) -> anyhow::Result<Box<dyn Interceptor>> {
    let text = |key| component.text(key).to_owned();
    Ok(Box::new(Uuid { header: text("headerName"), prefix: text("prefix"), preserve: component.boolean("preserveExisting") }))
}

struct Uuid {
    header: String,
    prefix: String,
    preserve: bool,
}

impl Interceptor for Uuid {
    fn intercept(&self, mut event: Event) -> Option<Event> {
        if !(self.preserve && event.header(&self.header).is_some()) {
            event.set_header(&self.header, format!("{}{}", self.prefix, uuid::Uuid::new_v4()));
        }
        Some(event)
    }
}
