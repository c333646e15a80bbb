//! The configuration as xDS resources (`ratelimit.config.ratelimit.v3.RateLimitConfig`), as Envoy
//! Gateway sends it.

use envoy_types::pb::{
    google::protobuf::Any,
    ratelimit::config::ratelimit::v3::{RateLimitConfig, RateLimitDescriptor, RateLimitPolicy},
};
use prost::{Message as _, Name as _};

use super::{
    model::{Access, Amount, Configuration, Descriptor, Domain, Limit, Own, Scope},
    unit::Unit,
};
use crate::policy::{Place, Problem};

/// The type of the resources.
pub fn type_url() -> String {
    RateLimitConfig::type_url()
}

/// Takes resources out of their wrapping.
pub fn decode(resources: &[Any]) -> Result<Vec<RateLimitConfig>, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut read = Vec::new();
    for (resource, number) in resources.iter().zip(1..) {
        let mut error = |what: String| {
            let place = Place::Resource { name: format!("number {number}"), part: "all".into() };
            problems.push(Problem::error(place, what, type_url()));
        };
        if resource.type_url != type_url() {
            error(format!("its type is `{}`", resource.type_url));
            continue;
        }
        match RateLimitConfig::decode(&*resource.value) {
            Ok(config) => read.push(config),
            Err(cause) => error(format!("it cannot be decoded: {cause}")),
        }
    }
    if problems.is_empty() { Ok(read) } else { Err(problems) }
}

/// Reads resources, whose limits count for the node or the fleet. The original's rules for files
/// hold here too; `value_to_metric` and `share_threshold` cannot be said.
pub fn read(resources: &[RateLimitConfig], scope: Scope) -> Result<Configuration, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut domains: Vec<_> =
        resources.iter().map(|resource| domain(resource, &mut problems)).collect();
    for descriptor in domains.iter_mut().flat_map(|domain| &mut domain.descriptors) {
        share(descriptor, scope);
    }
    if problems.is_empty() { Ok(Configuration { domains }) } else { Err(problems) }
}

fn share(descriptor: &mut Descriptor, scope: Scope) {
    descriptor.own.scope = scope;
    for below in &mut descriptor.descriptors {
        share(below, scope);
    }
}

/// A resource has no lines; it is told by its name and path.
fn place(resource: &RateLimitConfig, path: &str) -> Place {
    Place::Resource { name: resource.name.clone(), part: path.to_owned() }
}

fn domain(resource: &RateLimitConfig, problems: &mut Vec<Problem>) -> Domain {
    if resource.domain.is_empty() {
        let at = place(resource, "domain");
        problems.push(Problem::error(at, "the resource has no domain", "a name"));
    }
    let descriptors = resource.descriptors.iter();
    Domain {
        name: resource.domain.clone(),
        place: place(resource, &resource.domain),
        descriptors: descriptors
            .map(|one| descriptor(resource, one, &resource.domain, problems))
            .collect(),
        access: Access::default(),
    }
}

fn descriptor(
    resource: &RateLimitConfig,
    from: &RateLimitDescriptor,
    parent: &str,
    problems: &mut Vec<Problem>,
) -> Descriptor {
    let separator = if from.value.is_empty() { "" } else { "_" };
    let path = format!("{parent}.{}{separator}{}", from.key, from.value);
    let at = place(resource, &path);
    if from.key.is_empty() {
        problems.push(Problem::error(at.clone(), "the descriptor has no key", "a key"));
    }
    // prost reads up to 100 levels of messages, so this recursion ends; `compile` refuses long before.
    let descriptors = from.descriptors.iter();
    Descriptor {
        key: from.key.clone(),
        value: from.value.clone(),
        limit: from.rate_limit.as_ref().and_then(|policy| limit(policy, &at, problems)),
        descriptors: descriptors.map(|one| descriptor(resource, one, &path, problems)).collect(),
        shadow_mode: from.shadow_mode,
        quota_mode: from.quota_mode,
        detailed_metric: from.detailed_metric,
        value_to_metric: false,
        share_threshold: false,
        metadata: from.metadata.clone(),
        own: Own::default(),
        own_place: at.clone(),
        place: at,
    }
}

fn limit(policy: &RateLimitPolicy, at: &Place, problems: &mut Vec<Problem>) -> Option<Limit> {
    let mut error = |what: String, expected: &str| {
        problems.push(Problem::error(at.clone(), what, expected));
    };
    let unit = Unit::from_proto(policy.unit);
    let amount = match (policy.unlimited, unit) {
        (true, None) => Amount::Unlimited,
        (true, Some(_)) => {
            error("an unlimited `rate_limit` has a unit".to_owned(), "no unit");
            return None;
        }
        (false, Some(unit)) => Amount::PerUnit { requests: policy.requests_per_unit, unit },
        (false, None) => {
            error(format!("the unit {} is unknown", policy.unit), "a `RateLimitUnit`");
            return None;
        }
    };
    let mut replaces = Vec::new();
    for replaced in &policy.replaces {
        if replaced.name.is_empty() {
            error("an entry of `replaces` has no name".to_owned(), "a name");
        } else if replaced.name == policy.name {
            error(format!("the limit `{}` replaces itself", policy.name), "names of other limits");
        } else {
            replaces.push(replaced.name.clone());
        }
    }
    Some(Limit { amount, name: policy.name.clone(), replaces })
}
