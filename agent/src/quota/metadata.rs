//! The response's dynamic metadata, for filters behind the rate limit filter.

use std::collections::HashMap;

use envoy_types::pb::{
    envoy::service::ratelimit::v3::{
        RateLimitRequest,
        rate_limit_response::{Code, DescriptorStatus},
    },
    google::protobuf::{ListValue, Struct, Value, value::Kind},
};

use super::{
    decide::{Found, Judged},
    rules::Rules,
    unit::Unit,
};

/// What was asked, and the metadata of what is not over its limit. The first to say something wins,
/// and structures are merged.
pub(super) fn of(
    rules: &Rules,
    request: &RateLimitRequest,
    judged: &[Judged],
    statuses: &[DescriptorStatus],
) -> Struct {
    let mut fields = HashMap::new();
    fields.insert("domain".to_owned(), text(&request.domain));
    let descriptors = request.descriptors.iter().map(|descriptor| {
        let mut fields = HashMap::new();
        let entries = descriptor.entries.iter();
        let entries = entries.map(|entry| text(&format!("{}={}", entry.key, entry.value)));
        fields.insert("entries".to_owned(), list(entries.collect()));
        if let Some(limit) = &descriptor.limit {
            let unit = Unit::from_proto(limit.unit).map(|unit| unit.proto().as_str_name());
            let limit = HashMap::from([
                ("requests_per_unit".to_owned(), number(limit.requests_per_unit.into())),
                ("unit".to_owned(), text(unit.unwrap_or("UNKNOWN"))),
            ]);
            fields.insert("limit".to_owned(), structure(limit));
        }
        if let Some(hits) = &descriptor.hits_addend {
            fields.insert("hitsAddend".to_owned(), number(hits.value as f64));
        }
        structure(fields)
    });
    fields.insert("descriptors".to_owned(), list(descriptors.collect()));
    if request.hits_addend != 0 {
        fields.insert("hitsAddend".to_owned(), number(request.hits_addend.into()));
    }
    let mut metadata = Struct::default();
    for (judged, status) in judged.iter().zip(statuses) {
        let Found::Rule(id, _) = judged.found else { continue };
        let rule = rules.rule(id).filter(|_| !judged.is_replaced);
        let exceeded = status.code == Code::OverLimit as i32;
        if let Some(more) = rule.and_then(|rule| rule.metadata.as_ref()).filter(|_| !exceeded) {
            merge(&mut metadata, more);
        }
    }
    if !metadata.fields.is_empty() {
        fields.insert("metadata".to_owned(), Value { kind: Some(Kind::StructValue(metadata)) });
    }
    Struct { fields }
}

fn merge(into: &mut Struct, more: &Struct) {
    for (key, value) in &more.fields {
        match into.fields.get_mut(key).and_then(|known| known.kind.as_mut()) {
            None => {
                into.fields.insert(key.clone(), value.clone());
            }
            Some(Kind::StructValue(known)) => {
                if let Some(Kind::StructValue(more)) = &value.kind {
                    merge(known, more);
                }
            }
            Some(_) => {}
        }
    }
}

fn text(text: &str) -> Value {
    Value { kind: Some(Kind::StringValue(text.to_owned())) }
}

fn number(number: f64) -> Value {
    Value { kind: Some(Kind::NumberValue(number)) }
}

fn list(values: Vec<Value>) -> Value {
    Value { kind: Some(Kind::ListValue(ListValue { values })) }
}

fn structure(fields: HashMap<String, Value>) -> Value {
    Value { kind: Some(Kind::StructValue(Struct { fields })) }
}
