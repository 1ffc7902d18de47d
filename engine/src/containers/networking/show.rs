//! The networks of a container as `inspect` and `ps` show them.

use super::super::record::{Joining, Record};
use super::wishes;
use crate::{
    app::App,
    networks::{Endpoint, Member},
};
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
    let is_way_out = |member: &Member| {
        endpoint.and_then(Endpoint::gateway_member).is_some_and(|gateway| gateway.network_id == member.network_id)
    };
    let internal = app.networks.definition(&joining.id).is_some_and(|network| network.internal);
    // On network none there is an endpoint without an address.
    let endpoint_id = match (&member, endpoint) {
        (Some(member), _) => member.endpoint_id.as_str(),
        (None, Some(endpoint)) if endpoint.network_id == joining.id => endpoint.endpoint_id.as_str(),
        (None, _) => "",
    };
    let user = app.networks.definition(&joining.id).is_some();
    let gateway = member.as_ref().filter(|member| is_way_out(member) || !internal);
    json!({
        "IPAMConfig": joining.ip.as_ref().map(|ip| json!({"IPv4Address": ip})),
        "Links": joining.links,
        "Aliases": joining.aliases,
        "MacAddress": address.map_or(String::new(), |a| a.mac.to_string()),
        "DriverOpts": joining.driver_opts,
        "GwPriority": joining.gateway_priority,
        "NetworkID": joining.id,
        "EndpointID": endpoint_id,
        "Gateway": gateway.map_or(String::new(), |member| member.address.gateway.to_string()),
        "IPAddress": address.map_or(String::new(), |a| a.ip.to_string()),
        "IPPrefixLen": address.map_or(0, |a| a.prefix),
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
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
    Some(json!({
        "Name": record.name,
        "EndpointID": member.as_ref().map_or(&endpoint.endpoint_id, |member| &member.endpoint_id),
        "MacAddress": address.map_or(String::new(), |a| a.mac.to_string()),
        "IPv4Address": address.map_or(String::new(), |a| format!("{}/{}", a.ip, a.prefix)),
        "IPv6Address": "",
    }))
}
