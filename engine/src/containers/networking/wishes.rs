//! What a container asks of networks: read from a request, checked, kept in its record.

use super::super::{
    Container, links, ports,
    record::{Joining, Record},
    validate::not_yet,
};
use crate::{
    api::{
        CreateRequest, HostConfig,
        config::EndpointSettings,
        serial::{Set, is_zero},
    },
    app::App,
    http::{ApiError, ApiResult},
    ids,
    networks::{Definition, Mac, NetworkKind},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

/// The prefix of a mode that shares another container's network.
const CONTAINER: &str = "container:";
/// What inspect shows and scripts send back.
const SHOWN: [&str; 9] = [
    "NetworkID",
    "EndpointID",
    "Gateway",
    "IPAddress",
    "IPPrefixLen",
    "IPv6Gateway",
    "GlobalIPv6Address",
    "GlobalIPv6PrefixLen",
    "DNSNames",
];

/// Which kind of network a container has.
pub fn kind(record: &Record) -> NetworkKind {
    if record.config.network_disabled { NetworkKind::None } else { kind_of(&record.host.network_mode) }
}

fn kind_of(mode: &str) -> NetworkKind {
    match mode {
        "host" => NetworkKind::Host,
        "none" => NetworkKind::None,
        mode if mode.starts_with(CONTAINER) => NetworkKind::Container,
        _ => NetworkKind::Bridge,
    }
}

/// The container whose network another one shares.
pub fn shared_with(app: &App, record: &Record) -> ApiResult<Arc<Container>> {
    let name = record.host.network_mode.strip_prefix(CONTAINER).unwrap_or_default();
    let other = app.containers.find(name)?;
    if other.id == record.id {
        return Err(ApiError::conflict(format!("container {} cannot join its own network", record.name)));
    }
    Ok(other)
}

/// The host name of the container whose network is shared; the mode names it by its id from now on, which no renaming changes.
pub fn shared_hostname(app: &App, host: &mut HostConfig) -> ApiResult<String> {
    let name = host.network_mode.strip_prefix(CONTAINER).unwrap_or_default();
    let other = app.containers.find(name)?;
    host.network_mode = format!("{CONTAINER}{}", other.id);
    let hostname = other.live().record.config.hostname.clone();
    Ok(hostname)
}

/// Whether a container joins a network that is called like this: by its name, its id or the beginning of its id.
pub fn is_called(record: &Record, network: &str) -> bool {
    network == record.host.network_mode
        || record.networks.iter().any(|joining| joining.name == network)
        || (network.len() >= 12
            && (record.networks.iter().any(|joining| joining.id.starts_with(network))
                || record.state.endpoint.iter().any(|endpoint| endpoint.network_id.starts_with(network))))
}

/// Refuses what can't go together with the network mode. Pure.
pub fn check_mode(request: &CreateRequest) -> ApiResult<()> {
    let (config, host) = (&request.config, &request.host_config);
    let conflict = |what: &str| Err(ApiError::invalid(format!("conflicting options: {what}")));
    let kind = kind_of(&host.network_mode);
    let some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
    if host.network_mode == CONTAINER {
        return Err(ApiError::invalid("Invalid network mode: invalid container format container:<name|id>"));
    }
    if kind == NetworkKind::Container {
        let cases = [
            (!config.hostname.is_empty(), "hostname and the network mode"),
            (!host.dns.is_empty(), "dns and the network mode"),
            (some(&host.extra_hosts), "custom host-to-IP mapping and the network mode"),
            (!config.mac_address.is_empty(), "mac-address and the network mode"),
            (
                !host.port_bindings.is_empty() || host.publish_all_ports,
                "port publishing and the container type network mode",
            ),
            (!config.exposed_ports.0.is_empty(), "port exposing and the container type network mode"),
        ];
        if let Some((_, what)) = cases.iter().find(|(is_so, _)| *is_so) {
            return conflict(what);
        }
    }
    let others = request.networking_config.endpoints_config.keys().filter(|name| *name != &host.network_mode);
    if matches!(kind, NetworkKind::Host | NetworkKind::None | NetworkKind::Container) && others.count() > 0 {
        return conflict(&format!(
            "a container of network mode {} can't be connected to other networks",
            host.network_mode
        ));
    }
    for (name, settings) in &request.networking_config.endpoints_config {
        joining(name, settings.as_ref())?;
    }
    ports::requests(host, &config.exposed_ports).map(drop)
}

/// Refuses ports that can't be published: of a container whose mode has none, or in words that say nothing. Pure.
pub fn check_ports(host: &HostConfig, exposed: &Set) -> ApiResult<()> {
    if kind_of(&host.network_mode) != NetworkKind::Bridge && !host.port_bindings.is_empty() {
        return Err(ApiError::invalid(format!(
            "ports can't be published of a container of network mode {}",
            host.network_mode
        )));
    }
    ports::requests(host, exposed).map(drop)
}

/// The networks of a container that is made: that of its mode, then the others in the order of their names.
pub fn joinings(app: &App, request: &CreateRequest) -> ApiResult<Vec<Joining>> {
    let host = &request.host_config;
    if request.config.network_disabled || kind_of(&host.network_mode) == NetworkKind::Container {
        return Ok(Vec::new());
    }
    let mut all: Vec<Joining> = vec![resolved(app, Joining { name: mode_name(host), ..Joining::default() })];
    for (name, settings) in &request.networking_config.endpoints_config {
        let name = if name == "default" { "bridge" } else { name };
        let wanted = resolved(app, joining(name, settings.as_ref())?);
        match all.iter_mut().find(|other| other.name == wanted.name) {
            Some(other) => *other = wanted,
            None => all.push(wanted),
        }
    }
    if all[0].mac.is_none() && !request.config.mac_address.is_empty() {
        all[0].mac = Some(request.config.mac_address.clone());
    }
    for wanted in &all {
        let kind = kind_of(&wanted.name);
        if all.len() > 1 && kind != NetworkKind::Bridge {
            return Err(ApiError::invalid(format!(
                "conflicting options: network {} can't be had beside other networks",
                wanted.name
            )));
        }
        if kind == NetworkKind::Bridge
            && let Ok(found) = super::find(app, wanted)
        {
            check_wish(wanted, app.networks.definition(&found.id).as_ref())?;
        }
    }
    Ok(all)
}

fn mode_name(host: &HostConfig) -> String {
    match host.network_mode.as_str() {
        "" | "default" => "bridge".to_owned(),
        mode => mode.to_owned(),
    }
}

/// Puts the network's own name and id in place of what the user calls it.
fn resolved(app: &App, wanted: Joining) -> Joining {
    match super::find(app, &wanted) {
        Ok(found) => Joining { name: found.name, id: found.id, ..wanted },
        Err(_) => wanted,
    }
}

/// Reads what is wanted of a network.
pub(super) fn joining(name: &str, settings: Option<&EndpointSettings>) -> ApiResult<Joining> {
    let mut joining = Joining { name: name.to_owned(), ..Joining::default() };
    let Some(settings) = settings else { return Ok(joining) };
    if !settings.mac_address.is_empty() {
        let mac: Mac = settings.mac_address.parse().map_err(|error| ApiError::invalid(format!("{error}")))?;
        joining.mac = Some(mac.to_string());
    }
    for (key, value) in settings.other.iter().filter(|(_, value)| !is_zero(value)) {
        let bad = || ApiError::invalid(format!("invalid value for {key} of network {name}"));
        match key.as_str() {
            "IPAMConfig" => {
                for (key, value) in value.as_object().ok_or_else(bad)?.iter().filter(|(_, value)| !is_zero(value)) {
                    let text = value.as_str().unwrap_or_default();
                    match key.as_str() {
                        "IPv4Address" => {
                            let wrong = || ApiError::invalid(format!("invalid IPv4 address: {text}"));
                            joining.ip = Some(text.parse::<Ipv4Addr>().map_err(|_| wrong())?.to_string());
                        }
                        "IPv6Address" => {
                            let wrong = || ApiError::invalid(format!("invalid IPv6 address: {text}"));
                            joining.ip6 = Some(text.parse::<Ipv6Addr>().map_err(|_| wrong())?.to_string());
                        }
                        other => return Err(not_yet(&format!("EndpointsConfig.{name}.IPAMConfig.{other}"))),
                    }
                }
            }
            "Aliases" => joining.aliases = Some(list(value).ok_or_else(bad)?),
            "Links" => {
                let links = list(value).ok_or_else(bad)?;
                for link in &links {
                    links::parse(link)?;
                }
                joining.links = Some(links);
            }
            "DriverOpts" => {
                joining.driver_opts = Some(serde_json::from_value::<BTreeMap<_, _>>(value.clone()).map_err(|_| bad())?);
            }
            "GwPriority" => joining.gateway_priority = value.as_i64().ok_or_else(bad)?,
            known if SHOWN.contains(&known) => {}
            other => return Err(not_yet(&format!("NetworkingConfig.EndpointsConfig.{name}.{other}"))),
        }
    }
    super::options::read(&joining)?;
    for alias in joining.aliases.iter().flatten() {
        if alias.is_empty() || alias.len() > 253 || alias.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(ApiError::invalid(format!("invalid alias {alias:?} in network {name}")));
        }
    }
    Ok(joining)
}

fn list(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|word| word.as_str().map(str::to_owned)).collect()
}

/// Refuses what a network doesn't give. `user` is none for the default one.
pub(super) fn check_wish(joining: &Joining, user: Option<&Definition>) -> ApiResult<()> {
    let aliases = joining.aliases.as_ref().is_some_and(|aliases| !aliases.is_empty());
    let ips = [&joining.ip, &joining.ip6].into_iter().flatten().filter_map(|ip| ip.parse::<IpAddr>().ok());
    let ips: Vec<IpAddr> = ips.collect();
    let Some(network) = user else {
        if !ips.is_empty() {
            return Err(ApiError::invalid("user specified IP address is supported on user defined networks only"));
        }
        if aliases {
            return Err(ApiError::invalid(
                "network-scoped alias is supported only for containers in user defined networks",
            ));
        }
        return Ok(());
    };
    for ip in ips {
        if !network.of_family(ip.is_ipv4()).any(|pooled| pooled.chosen) {
            return Err(ApiError::invalid(
                "user specified IP address is supported only when connecting to networks with user configured subnets",
            ));
        }
        if !network.of_family(ip.is_ipv4()).any(|pooled| pooled.address.contains(ip)) {
            return Err(ApiError::invalid(format!("no configured subnet contains IP address {ip}")));
        }
    }
    Ok(())
}

/// What a container's record says; a record of an older engine has it in other places.
pub(super) fn of_record(app: &App, record: &Record) -> Vec<Joining> {
    if !record.networks.is_empty() || record.config.network_disabled || kind(record) == NetworkKind::Container {
        return record.networks.clone();
    }
    let joining =
        Joining { name: mode_name(&record.host), ip: record.ip.clone(), mac: record.mac.clone(), ..Joining::default() };
    vec![resolved(app, joining)]
}

/// What a container is called in a network of the user: its name, its aliases, its short id, its host name.
pub(super) fn dns_names(record: &Record, joining: Option<&Joining>) -> Vec<String> {
    let mut names = vec![record.name.clone()];
    let aliases = joining.iter().flat_map(|joining| joining.aliases.iter().flatten()).cloned();
    let hostname = record.config.hostname.clone();
    for name in aliases.chain([ids::short(&record.id).to_owned(), hostname]) {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str) -> Result<(), String> {
        let request: CreateRequest = serde_json::from_str(json).expect("request");
        check_mode(&request).map_err(|error| format!("{} {}", error.status.as_u16(), error.message))
    }

    #[test]
    fn what_goes_with_which_mode() {
        for (json, expected) in [
            (r#"{"HostConfig":{"NetworkMode":"mynet"}}"#, None),
            (r#"{"HostConfig":{"NetworkMode":"container:x"}}"#, None),
            (r#"{"HostConfig":{"NetworkMode":"container:"}}"#, Some("400 Invalid network mode")),
            (
                r#"{"Hostname":"h","HostConfig":{"NetworkMode":"container:x"}}"#,
                Some("400 conflicting options: hostname"),
            ),
            (
                r#"{"HostConfig":{"NetworkMode":"container:x","PortBindings":{"80/tcp":[{"HostPort":"1"}]}}}"#,
                Some("400 conflicting options: port publishing"),
            ),
            (
                r#"{"HostConfig":{"NetworkMode":"host"},"NetworkingConfig":{"EndpointsConfig":{"mynet":{}}}}"#,
                Some("400 conflicting options: a container of network mode host"),
            ),
            (
                r#"{"HostConfig":{"NetworkMode":"a"},"NetworkingConfig":{"EndpointsConfig":{"a":{"Aliases":["x"]},
                   "b":{"IPAMConfig":{"IPv4Address":"10.0.0.9"},"GwPriority":5,"DriverOpts":{"k":"v"}}}}}"#,
                None,
            ),
            (
                r#"{"NetworkingConfig":{"EndpointsConfig":{"a":{"IPAMConfig":{"IPv4Address":"x"}}}}}"#,
                Some("400 invalid IPv4 address: x"),
            ),
            (r#"{"NetworkingConfig":{"EndpointsConfig":{"a":{"IPAMConfig":{"IPv6Address":"fd00::1"}}}}}"#, None),
            (
                r#"{"NetworkingConfig":{"EndpointsConfig":{"a":{"Nonsense":1}}}}"#,
                Some("501 NetworkingConfig.EndpointsConfig.a.Nonsense"),
            ),
            (r#"{"NetworkingConfig":{"EndpointsConfig":{"a":{"Aliases":["a b"]}}}}"#, Some("400 invalid alias")),
        ] {
            let got = check(json);
            match expected {
                None => assert_eq!(got, Ok(()), "{json}"),
                Some(text) => assert!(got.as_ref().is_err_and(|error| error.starts_with(text)), "{json}: {got:?}"),
            }
        }
    }
}
