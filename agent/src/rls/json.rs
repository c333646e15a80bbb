//! Questions and answers as proto3 JSON: <https://protobuf.dev/programming-guides/json/>.
//!
//! Names may be written both ways (`hitsAddend`, `hits_addend`), numbers as texts, enums as names
//! or numbers, and `null` is the default. Unknown fields are errors, as they are in the original
//! (`src/server/server_impl.go` by protojson).

use envoy_types::pb::{
    envoy::{
        config::core::v3::HeaderValue,
        extensions::common::ratelimit::v3::{
            RateLimitDescriptor,
            rate_limit_descriptor::{Entry, RateLimitOverride},
        },
        service::ratelimit::v3::{
            RateLimitRequest, RateLimitResponse,
            rate_limit_response::{Code, DescriptorStatus, RateLimit, rate_limit::Unit},
        },
        r#type::v3::RateLimitUnit,
    },
    google::protobuf::{Duration, Struct, UInt64Value, Value, value::Kind},
};
use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, json};

/// Reads a question.
pub(super) fn read(body: &[u8]) -> Result<RateLimitRequest, serde_json::Error> {
    // A list of values in the order of the fields would do for serde.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(de::Error::custom("a list stands where an object should"));
    }
    let Request { domain, descriptors, hits_addend } = serde_json::from_slice(body)?;
    let descriptors = descriptors.into_iter().map(Descriptor::into).collect();
    Ok(RateLimitRequest { domain, descriptors, hits_addend: hits_addend.0 })
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Request {
    #[serde(deserialize_with = "or_default")]
    domain: String,
    #[serde(deserialize_with = "or_default")]
    descriptors: Vec<Descriptor>,
    #[serde(rename = "hitsAddend", alias = "hits_addend", deserialize_with = "or_default")]
    hits_addend: Number<u32>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Descriptor {
    #[serde(deserialize_with = "or_default")]
    entries: Vec<KeyValue>,
    limit: Option<Override>,
    #[serde(rename = "hitsAddend", alias = "hits_addend")]
    hits_addend: Option<Number<u64>>,
    #[serde(
        rename = "isNegativeHits",
        alias = "is_negative_hits",
        deserialize_with = "or_default"
    )]
    is_negative_hits: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct KeyValue {
    #[serde(deserialize_with = "or_default")]
    key: String,
    #[serde(deserialize_with = "or_default")]
    value: String,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Override {
    #[serde(
        rename = "requestsPerUnit",
        alias = "requests_per_unit",
        deserialize_with = "or_default"
    )]
    requests_per_unit: Number<u32>,
    #[serde(deserialize_with = "unit")]
    unit: i32,
}

impl From<Descriptor> for RateLimitDescriptor {
    fn from(descriptor: Descriptor) -> Self {
        let entry = |KeyValue { key, value }| Entry { key, value };
        let limit = |limit: Override| RateLimitOverride {
            requests_per_unit: limit.requests_per_unit.0,
            unit: limit.unit,
        };
        Self {
            entries: descriptor.entries.into_iter().map(entry).collect(),
            limit: descriptor.limit.map(limit),
            hits_addend: descriptor.hits_addend.map(|Number(value)| UInt64Value { value }),
            is_negative_hits: descriptor.is_negative_hits,
        }
    }
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// A number, or a text that is one.
#[derive(Clone, Copy, Default)]
struct Number<T>(T);

impl<'de, T: Deserialize<'de> + std::str::FromStr> Deserialize<'de> for Number<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a whole number that is not negative")]
        enum Either<T> {
            Number(T),
            Text(String),
        }
        match Either::deserialize(from)? {
            Either::Number(number) => Ok(Self(number)),
            Either::Text(text) => text.parse().map(Self).map_err(|_| {
                de::Error::custom(format!("`{text}` is no whole number, or out of range"))
            }),
        }
    }
}

fn unit<'de, D: Deserializer<'de>>(from: D) -> Result<i32, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a unit like \"MINUTE\"")]
    enum Either {
        Number(i32),
        Name(String),
    }
    match Option::deserialize(from)? {
        None => Ok(0),
        Some(Either::Number(number)) => Ok(number),
        Some(Either::Name(name)) => RateLimitUnit::from_str_name(&name)
            .map(|unit| unit as i32)
            .ok_or_else(|| de::Error::custom(format!("`{name}` is no unit"))),
    }
}

/// Writes an answer. What has its default is left out.
pub(super) fn write(answer: &RateLimitResponse) -> serde_json::Value {
    let mut fields = Fields::default();
    fields.set("overallCode", code(answer.overall_code));
    fields.list("statuses", answer.statuses.iter().map(status));
    fields.list("responseHeadersToAdd", answer.response_headers_to_add.iter().map(header));
    fields.list("requestHeadersToAdd", answer.request_headers_to_add.iter().map(header));
    fields.set("dynamicMetadata", answer.dynamic_metadata.as_ref().map(object));
    fields.into()
}

/// The fields of a message that are set.
#[derive(Default)]
struct Fields(Map<String, serde_json::Value>);

impl Fields {
    fn set(&mut self, name: &str, value: Option<impl Into<serde_json::Value>>) {
        if let Some(value) = value {
            self.0.insert(name.to_owned(), value.into());
        }
    }

    fn text(&mut self, name: &str, text: &str) {
        self.set(name, Some(text).filter(|text| !text.is_empty()));
    }

    fn number(&mut self, name: &str, number: u32) {
        self.set(name, Some(number).filter(|number| *number != 0));
    }

    fn list(&mut self, name: &str, items: impl Iterator<Item = serde_json::Value>) {
        let items: Vec<_> = items.collect();
        self.set(name, Some(items).filter(|items| !items.is_empty()));
    }
}

impl From<Fields> for serde_json::Value {
    fn from(fields: Fields) -> Self {
        Self::Object(fields.0)
    }
}

/// An enum's name; its number where it has none.
fn named(number: i32, name: Option<&str>) -> Option<serde_json::Value> {
    (number != 0).then(|| name.map_or_else(|| json!(number), |name| json!(name)))
}

fn code(number: i32) -> Option<serde_json::Value> {
    named(number, Code::try_from(number).ok().map(|code| code.as_str_name()))
}

fn status(status: &DescriptorStatus) -> serde_json::Value {
    let mut fields = Fields::default();
    fields.set("code", code(status.code));
    fields.set("currentLimit", status.current_limit.as_ref().map(limit));
    fields.number("limitRemaining", status.limit_remaining);
    fields.set("durationUntilReset", status.duration_until_reset.as_ref().map(duration));
    fields.into()
}

fn limit(limit: &RateLimit) -> serde_json::Value {
    let mut fields = Fields::default();
    fields.text("name", &limit.name);
    fields.number("requestsPerUnit", limit.requests_per_unit);
    let name = Unit::try_from(limit.unit).ok();
    fields.set("unit", named(limit.unit, name.map(|unit| unit.as_str_name())));
    fields.into()
}

/// Seconds with as many digits as are needed of 0, 3, 6 or 9.
fn duration(duration: &Duration) -> String {
    let Duration { seconds, nanos } = duration;
    let sign = if *seconds < 0 || *nanos < 0 { "-" } else { "" };
    let (seconds, nanos) = (seconds.unsigned_abs(), nanos.unsigned_abs());
    match nanos {
        0 => format!("{sign}{seconds}s"),
        _ if nanos % 1_000_000 == 0 => format!("{sign}{seconds}.{:03}s", nanos / 1_000_000),
        _ if nanos % 1000 == 0 => format!("{sign}{seconds}.{:06}s", nanos / 1000),
        _ => format!("{sign}{seconds}.{nanos:09}s"),
    }
}

fn header(header: &HeaderValue) -> serde_json::Value {
    let mut fields = Fields::default();
    fields.text("key", &header.key);
    fields.text("value", &header.value);
    fields.into()
}

fn object(object: &Struct) -> serde_json::Value {
    let fields = object.fields.iter().map(|(name, field)| (name.clone(), value(field)));
    serde_json::Value::Object(fields.collect())
}

fn value(of: &Value) -> serde_json::Value {
    match &of.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::NumberValue(number)) => json!(number),
        Some(Kind::StringValue(text)) => json!(text),
        Some(Kind::BoolValue(truth)) => json!(truth),
        Some(Kind::StructValue(fields)) => object(fields),
        Some(Kind::ListValue(list)) => list.values.iter().map(value).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_may_be_written_both_ways() {
        let camel = br#"{"domain":"shop","hitsAddend":2,"descriptors":[{"entries":[{"key":"a",
            "value":"b"}],"limit":{"requestsPerUnit":7,"unit":"HOUR"},"hitsAddend":"3",
            "isNegativeHits":true}]}"#;
        let snake = br#"{"domain":"shop","hits_addend":"2","descriptors":[{"entries":[{"key":"a",
            "value":"b"}],"limit":{"requests_per_unit":"7","unit":3},"hits_addend":3,
            "is_negative_hits":true}]}"#;
        let request = read(camel).unwrap();
        assert_eq!(request, read(snake).unwrap());
        assert_eq!((request.domain.as_str(), request.hits_addend), ("shop", 2));
        let descriptor = &request.descriptors[0];
        assert_eq!(descriptor.hits_addend, Some(UInt64Value { value: 3 }));
        assert!(descriptor.is_negative_hits);
        assert_eq!(descriptor.limit.unwrap().unit, RateLimitUnit::Hour as i32);
    }

    #[test]
    fn what_is_left_out_or_null_is_the_default() {
        assert_eq!(read(b"{}").unwrap(), RateLimitRequest::default());
        let nulls = br#"{"domain":null,"descriptors":[{"entries":null,"limit":null}]}"#;
        assert_eq!(read(nulls).unwrap().descriptors, [RateLimitDescriptor::default()]);
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for (text, why) in [
            ("", "EOF"),
            ("[]", "where an object should"),
            (r#"{"domian":"x"}"#, "unknown field `domian`"),
            (r#"{"hitsAddend":-1}"#, "not negative"),
            (r#"{"hitsAddend":"4294967296"}"#, "out of range"),
            (r#"{"descriptors":[{"limit":{"unit":"FORTNIGHT"}}]}"#, "`FORTNIGHT` is no unit"),
        ] {
            let error = read(text.as_bytes()).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn an_answer_leaves_out_what_has_its_default() {
        let status = DescriptorStatus {
            code: Code::OverLimit as i32,
            current_limit: Some(RateLimit {
                name: String::new(),
                requests_per_unit: 1,
                unit: Unit::Minute as i32,
            }),
            limit_remaining: 0,
            duration_until_reset: Some(Duration { seconds: 40, nanos: 0 }),
            quota: None,
        };
        let answer = RateLimitResponse {
            overall_code: Code::OverLimit as i32,
            statuses: vec![status, DescriptorStatus { code: 1, ..DescriptorStatus::default() }],
            response_headers_to_add: vec![HeaderValue {
                key: "RateLimit-Reset".to_owned(),
                value: "40".to_owned(),
                ..HeaderValue::default()
            }],
            ..RateLimitResponse::default()
        };
        assert_eq!(
            write(&answer),
            json!({
                "overallCode": "OVER_LIMIT",
                "statuses": [
                    {
                        "code": "OVER_LIMIT",
                        "currentLimit": { "requestsPerUnit": 1, "unit": "MINUTE" },
                        "durationUntilReset": "40s",
                    },
                    { "code": "OK" },
                ],
                "responseHeadersToAdd": [{ "key": "RateLimit-Reset", "value": "40" }],
            })
        );
        let duration = |seconds, nanos| duration(&Duration { seconds, nanos });
        assert_eq!(duration(1, 500_000_000), "1.500s");
        assert_eq!(duration(0, 1_000), "0.000001s");
        assert_eq!(duration(0, -1), "-0.000000001s");
    }
}
