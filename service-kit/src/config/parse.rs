//! Values that are checked when they are read, so that a wrong one is reported with its file and line.

use http::Uri;
use serde::{Deserialize, Deserializer, de::Error};

/// `#[serde(with = "service_kit::config::duration")]`: `20s`, `1m 30s`, `500ms`.
pub mod duration {
    use std::{fmt, time::Duration};

    use serde::{
        Deserializer, Serializer,
        de::{Error, Unexpected, Visitor},
    };

    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        deserializer.deserialize_str(Text)
    }

    struct Text;

    impl Visitor<'_> for Text {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration such as 500ms, 20s or 1m 30s")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
            let value = humantime::parse_duration(text).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))?;
            // Far enough for every purpose, and near enough to be added to a clock.
            if value > Duration::from_secs(366 * 86_400) { Err(E::custom(format!("`{text}` is longer than a year"))) } else { Ok(value) }
        }
    }
}

/// `#[serde(with = "service_kit::config::period")]`: as [`duration`], but not zero: for a time within which something must happen.
pub mod period {
    use std::time::Duration;

    use serde::{Deserializer, de::Error};

    pub use super::duration::serialize;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let value = super::duration::deserialize(deserializer)?;
        if value.is_zero() { Err(D::Error::custom("must be longer than 0")) } else { Ok(value) }
    }
}

/// `#[serde(deserialize_with = "service_kit::config::at_least_one")]`: a count of something without which there is no work.
pub fn at_least_one<'de, T: Deserialize<'de> + Default + PartialEq, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let value = T::deserialize(deserializer)?;
    if value == T::default() { Err(D::Error::custom("must be 1 or more")) } else { Ok(value) }
}

pub(super) fn log_filter<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    crate::telemetry::parse_filter(&text).map_err(D::Error::custom)?;
    Ok(text)
}

pub(super) fn otlp_endpoint<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    // An empty variable switches off what the file switches on.
    let Some(text) = Option::<String>::deserialize(deserializer)?.filter(|text| !text.is_empty()) else { return Ok(None) };
    let uri: Option<Uri> = text.parse().ok();
    match uri.as_ref().map(|uri| (uri.scheme_str(), uri.authority())) {
        Some((Some("http"), Some(_))) => Ok(Some(text)),
        Some((Some("https"), Some(_))) => Err(D::Error::custom(format!(
            "`{text}`: traces leave without TLS; send them to a collector on this host, http://127.0.0.1:4317"
        ))),
        _ => Err(D::Error::custom(format!("`{text}` is not a URL; write http://127.0.0.1:4317"))),
    }
}

pub(super) fn ratio<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let value = f64::deserialize(deserializer)?;
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err(D::Error::custom(format!("{value} is not between 0 and 1"))) }
}

// The HTTP implementation does not work with a smaller buffer.
pub(super) fn header_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let value = u32::deserialize(deserializer)?;
    if value >= 8192 { Ok(value) } else { Err(D::Error::custom(format!("{value} is less than 8192"))) }
}

// The HTTP implementation parses up to this many without an allocation for each request.
pub(super) fn headers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let value = u32::deserialize(deserializer)?;
    if (1..=100).contains(&value) { Ok(value) } else { Err(D::Error::custom(format!("{value} is not between 1 and 100"))) }
}
