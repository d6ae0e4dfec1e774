//! `static`: the same header on every event.

use super::Interceptor;
use crate::event::Event;
use crate::flume_conf::kinds::{adopts_nothing, nothing_to_say};
use crate::flume_conf::{Component, Kind, Property, Role};

pub static KIND: Kind = Kind {
    role: Role::Interceptor,
    alias: Some("static"),
    class: Some("org.apache.flume.interceptor.StaticInterceptor$Builder"),
    doc: "Sets one header to the same value on every event.",
    properties: &[
        Property::text("key", Some("key"), "The header to set."),
        Property::text("value", Some("value"), "Its value."),
        Property::boolean("preserveExisting", "true", "Leave the header alone where the event has it already."),
    ],
    deprecated: &[],
    misspelt: &[],
    adopt: adopts_nothing,
    batch: None,
    review: nothing_to_say,
};

pub fn build(component: &Component) -> anyhow::Result<Box<dyn Interceptor>> {
    let text = |key| component.text(key).to_owned();
    Ok(Box::new(Fixed { key: text("key"), value: text("value"), preserve: component.boolean("preserveExisting") }))
}

struct Fixed {
    key: String,
    value: String,
    preserve: bool,
}

impl Interceptor for Fixed {
    fn intercept(&self, mut event: Event) -> Option<Event> {
        if !(self.preserve && event.header(&self.key).is_some()) {
            event.set_header(&self.key, self.value.clone());
        }
        Some(event)
    }
}
