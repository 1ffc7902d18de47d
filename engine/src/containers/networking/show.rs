//! The networks of a container as `inspect` and `ps` show them.

use super::super::record::{Joining, Record};
use super::wishes;
use crate::{app::App, networks::Endpoint};
use serde_json::{Map, Value, json};

/// `NetworkSettings.Networks`.
pub fn networks(app: &App, record: &Record) -> Map<String, Value> {
    let endpoint = record.state.endpoint.as_ref();
    let mut all = Map::new();
    for joining in wishes::of_record(app, record) {
        all.insert(joining.name.clone(), one(app, record, &joining, endpoint));
    }
    all
}

fn one(app: &App, record: &Record, joining: &Joining, endpoint: Option<&Endpoint>) -> Value {
    let member = endpoint.and_then(|endpoint| endpoint.member(&joining.id));
    let address = member.as_ref().map(|member| &member.address);
    let internal = app.networks.definition(&joining.id).is_some_and(|network| network.internal);
    // On network none there is an endpoint without an address.
    let endpoint_id = match (&member, endpoint) {
        (Some(member), _) => member.endpoint_id.as_str(),
        (None, Some(endpoint)) if endpoint.network_id == joining.id => endpoint.endpoint_id.as_str(),
        (None, _) => "",
    };
    let user = app.networks.definition(&joining.id).is_some();
    let of = |is_ipv4: bool| address.and_then(|address| address.of(is_ipv4));
    let gateway = |is_ipv4: bool| {
        let gateway = of(is_ipv4).filter(|_| !internal).and_then(|own| own.gateway);
        gateway.map_or(String::new(), |gateway| gateway.to_string())
    };
    let ip = |is_ipv4: bool| of(is_ipv4).map_or(String::new(), |own| own.ip.to_string());
    let prefix = |is_ipv4: bool| of(is_ipv4).map_or(0, |own| own.prefix);
    let asked = [("IPv4Address", &joining.ip), ("IPv6Address", &joining.ip6)];
    let asked: Map<String, Value> =
        asked.into_iter().filter_map(|(key, ip)| Some((key.to_owned(), ip.clone()?.into()))).collect();
    json!({
        "IPAMConfig": (!asked.is_empty()).then_some(asked),
        "Links": joining.links,
        "Aliases": joining.aliases,
        "MacAddress": address.map_or(String::new(), |a| a.mac.to_string()),
        "DriverOpts": joining.driver_opts,
        "GwPriority": joining.gateway_priority,
        "NetworkID": joining.id,
        "EndpointID": endpoint_id,
        "Gateway": gateway(true),
        "IPAddress": ip(true),
        "IPPrefixLen": prefix(true),
        "IPv6Gateway": gateway(false),
        "GlobalIPv6Address": ip(false),
        "GlobalIPv6PrefixLen": prefix(false),
        "DNSNames": user.then(|| wishes::dns_names(record, Some(joining))),
    })
}

/// A container as a network shows it, if it is in that network.
pub fn member_of(record: &Record, network_id: &str) -> Option<Value> {
    let endpoint = record.state.endpoint.as_ref().filter(|_| record.state.phase.is_live())?;
    let member = endpoint.member(network_id);
    if member.is_none() && endpoint.network_id != network_id {
        return None;
    }
    let address = member.as_ref().map(|member| &member.address);
    let text = |is_ipv4: bool| {
        let own = address.and_then(|address| address.of(is_ipv4));
        own.map_or(String::new(), |own| format!("{}/{}", own.ip, own.prefix))
    };
    Some(json!({
        "Name": record.name,
        "EndpointID": member.as_ref().map_or(&endpoint.endpoint_id, |member| &member.endpoint_id),
        "MacAddress": address.map_or(String::new(), |a| a.mac.to_string()),
        "IPv4Address": text(true),
        "IPv6Address": text(false),
    }))
}
