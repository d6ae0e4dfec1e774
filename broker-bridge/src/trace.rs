//! Carries a caller's trace into Kafka: the listener continues it from the request's `traceparent`, records get theirs here.

use bytes::Bytes;
use service_kit::{kafka::OutRecord, telemetry};
use tracing::Span;

pub(crate) const TRACEPARENT: &str = "traceparent";

/// Whether a header belongs to the trace, which may differ from one attempt to the next.
pub(crate) fn is_trace(header: &str) -> bool {
    [TRACEPARENT, "tracestate"].iter().any(|name| header.eq_ignore_ascii_case(name))
}

/// What records written for this request carry: the span where tracing is on, else what the caller sent, so that a bridge that does not
/// trace does not cut a trace that passes through it.
pub(crate) fn outgoing(span: &Span, incoming: Option<&str>) -> Option<Bytes> {
    let own = if telemetry::tracing_on() { telemetry::traceparent(span) } else { None };
    own.map(Bytes::from).or_else(|| incoming.filter(|value| well_formed(value)).map(|value| Bytes::copy_from_slice(value.as_bytes())))
}

/// Gives every record the trace, except those that bring their own.
pub(crate) fn inject(records: &mut [OutRecord], traceparent: &Bytes) {
    for record in records {
        if !record.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(TRACEPARENT)) {
            record.headers.push((TRACEPARENT.to_owned(), traceparent.clone()));
        }
    }
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, the ids not all zero.
fn well_formed(value: &str) -> bool {
    let parts: Vec<&str> = value.split('-').collect();
    let hex =
        |part: &str, length: usize| part.len() == length && part.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase());
    let zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    matches!(parts.as_slice(), ["00", trace, span, flags] if hex(trace, 32) && hex(span, 16) && hex(flags, 2) && !zero(trace) && !zero(span))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_bridge_that_does_not_trace_passes_the_callers_trace_on() {
        assert_eq!(outgoing(&Span::none(), Some(PARENT)).as_deref(), Some(PARENT.as_bytes()));
        for bad in ["", "00-4bf9-00f0-01", &PARENT.to_uppercase(), &PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32))] {
            assert_eq!(outgoing(&Span::none(), Some(bad)), None, "{bad}");
        }
    }

    #[test]
    fn a_record_keeps_the_trace_it_brings() {
        let record = |headers| OutRecord { topic: "t".into(), partition: None, key: None, value: None, headers, timestamp_ms: None };
        let mut records = [record(vec![]), record(vec![("Traceparent".to_owned(), Bytes::from_static(b"own"))])];
        inject(&mut records, &Bytes::from_static(PARENT.as_bytes()));
        assert_eq!(records[0].headers, [(TRACEPARENT.to_owned(), Bytes::from_static(PARENT.as_bytes()))]);
        assert_eq!(records[1].headers, [("Traceparent".to_owned(), Bytes::from_static(b"own"))]);
    }
}
