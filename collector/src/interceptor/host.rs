//! `host`: the name or address of the machine.

use std::net::{IpAddr, ToSocketAddrs};

use super::Interceptor;
use crate::event::Event;
use crate::flume_conf::kinds::{adopts_nothing, nothing_to_say};
use crate::flume_conf::{Component, Kind, Property, Role};

pub static KIND: Kind = Kind {
    role: Role::Interceptor,
    alias: Some("host"),
    class: Some("org.apache.flume.interceptor.HostInterceptor$Builder"),
    doc: "Sets a header to the address or the name of the machine that collects.",
    properties: &[
        Property::text("hostHeader", Some("host"), "The header to set."),
        Property::boolean("useIP", "true", "The address that the machine's name stands for; otherwise the name that this address has."),
        Property::boolean("preserveExisting", "false", "Leave the header alone where the event has it already."),
    ],
    deprecated: &[],
    misspelt: &[("header", "hostHeader"), ("headerName", "hostHeader"), ("hostHeaderName", "hostHeader")],
    adopt: adopts_nothing,
    batch: None,
    review: nothing_to_say,
};

pub fn build(component: &Component) -> anyhow::Result<Box<dyn Interceptor>> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let address = address(&name);
    let value = if component.boolean("useIP") { address.map(|address| address.to_string()) } else { address.map(full_name) };
    if value.is_none() {
        // As Flume: the header is not set.
        tracing::warn!(interceptor = component.name, machine = name, "the machine's name stands for no address; the header is not set");
    }
    Ok(Box::new(Host { header: component.text("hostHeader").to_owned(), value, preserve: component.boolean("preserveExisting") }))
}

/// The first IPv4 address, or else the first one.
fn address(name: &str) -> Option<IpAddr> {
    let addresses = addresses(name);
    addresses.iter().find(|address| address.is_ipv4()).or(addresses.first()).copied()
}

fn addresses(name: &str) -> Vec<IpAddr> {
    (name, 0).to_socket_addrs().into_iter().flatten().map(|address| address.ip()).collect()
}

/// The name that the address has, if the name has the address too; otherwise the address, as in Java.
fn full_name(address: IpAddr) -> String {
    let name = dns_lookup::lookup_addr(&address).ok().filter(|name| addresses(name).contains(&address));
    name.unwrap_or_else(|| address.to_string())
}

struct Host {
    header: String,
    value: Option<String>,
    preserve: bool,
}

impl Interceptor for Host {
    fn intercept(&self, mut event: Event) -> Option<Event> {
        if let Some(value) = &self.value
            && !(self.preserve && event.header(&self.header).is_some())
        {
            event.set_header(&self.header, value.clone());
        }
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_an_address_and_back() {
        assert_eq!(address("localhost"), Some(IpAddr::from([127, 0, 0, 1])));
        assert_eq!(address("no.such.invalid"), None);
        // No machine has this one: it is for documentation.
        assert_eq!(full_name(IpAddr::from([192, 0, 2, 1])), "192.0.2.1");
    }
}
