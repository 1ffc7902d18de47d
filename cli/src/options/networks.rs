//! `--network` and the flags that go with it.

use super::OptionError;
use super::mounts::csv;
use crate::args::run::NetworkFlags;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// One `--network`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attachment {
    /// Name, id or mode.
    pub target: String,
    /// More names in that network.
    pub aliases: Vec<String>,
    /// Options of its driver.
    pub driver_opts: BTreeMap<String, String>,
    /// IPv4 address.
    pub ip: String,
    /// IPv6 address.
    pub ip6: String,
    /// Link-local addresses.
    pub link_local: Vec<String>,
    /// MAC address.
    pub mac: String,
    /// Which network gives the default route.
    pub gateway_priority: i64,
}

/// Why a network was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Not a list of fields.
    #[error("invalid field {0}")]
    Field(String),
    /// An unknown field.
    #[error("invalid field key {0}")]
    Key(String),
    /// No name.
    #[error("network name/id is not specified")]
    Name,
    /// Not a number.
    #[error("invalid gw-priority ({0})")]
    Priority(String),
}

/// Reads a name, or name=,alias=,ip=,ip6=,mac-address=,link-local-ip=,driver-opt=,gw-priority=.
pub fn parse(text: &str) -> Result<Attachment, NetworkError> {
    let mut attachment = Attachment::default();
    if !text.contains('=') {
        attachment.target = text.to_owned();
        return Ok(attachment);
    }
    for field in csv(text).map_err(|_| NetworkError::Field(text.to_owned()))? {
        let (key, value) = field.split_once('=').ok_or_else(|| NetworkError::Field(field.clone()))?;
        let value = value.trim();
        match key.trim().to_ascii_lowercase().as_str() {
            "name" => attachment.target = value.to_owned(),
            "alias" => attachment.aliases.push(value.to_owned()),
            "ip" => attachment.ip = value.to_owned(),
            "ip6" => attachment.ip6 = value.to_owned(),
            "mac-address" => attachment.mac = value.to_owned(),
            "link-local-ip" => attachment.link_local.push(value.to_owned()),
            "driver-opt" => {
                let (key, value) = value.split_once('=').ok_or_else(|| NetworkError::Field(field.clone()))?;
                attachment.driver_opts.insert(key.to_owned(), value.to_owned());
            }
            "gw-priority" => {
                attachment.gateway_priority = value.parse().map_err(|_| NetworkError::Priority(value.to_owned()))?;
            }
            other => return Err(NetworkError::Key(other.to_owned())),
        }
    }
    if attachment.target.is_empty() {
        return Err(NetworkError::Name);
    }
    Ok(attachment)
}

/// Networks of one container.
#[derive(Debug, PartialEq)]
pub struct Networks {
    /// `HostConfig.NetworkMode`
    pub mode: String,
    /// `NetworkingConfig.EndpointsConfig`
    pub endpoints: Map<String, Value>,
    /// MAC address of the first, which engines before API 1.44 expect in `Config`.
    pub mac: String,
}

/// Puts the flags together: those without a network of their own belong to the first one.
pub fn resolve(flags: &NetworkFlags) -> Result<Networks, OptionError> {
    let mut attachments = flags.network.clone();
    if attachments.is_empty() {
        attachments.push(Attachment { target: "default".to_owned(), ..Attachment::default() });
    }
    apply(&mut attachments[0], flags)?;
    let user_defined = attachments.iter().filter(|a| is_user_defined(&a.target)).count();
    if user_defined > 0 && user_defined < attachments.len() {
        return Err(OptionError::Conflict("cannot attach both user-defined and non-user-defined network-modes"));
    }
    let mut endpoints = Map::new();
    for attachment in &attachments {
        if !attachment.mac.is_empty() && !is_mac(&attachment.mac) {
            return Err(OptionError::Invalid(format!("{} is not a valid mac address", attachment.mac)));
        }
        if !attachment.aliases.is_empty() && !is_user_defined(&attachment.target) {
            let text = "network-scoped aliases are only supported for user-defined networks";
            return Err(OptionError::Invalid(text.to_owned()));
        }
        let settings = settings(attachment, &flags.link);
        if attachments.len() == 1 && settings.is_empty() {
            continue;
        }
        if endpoints.insert(attachment.target.clone(), Value::Object(settings)).is_some() {
            return Err(OptionError::Invalid(format!("network {:?} is specified multiple times", attachment.target)));
        }
    }
    let first = &attachments[0];
    Ok(Networks { mode: first.target.clone(), endpoints, mac: first.mac.clone() })
}

fn apply(first: &mut Attachment, flags: &NetworkFlags) -> Result<(), OptionError> {
    type Both<'a> = (bool, bool, &'static str);
    let both: [Both<'_>; 4] = [
        (
            !first.aliases.is_empty(),
            !flags.network_alias.is_empty(),
            "cannot specify both --network-alias and per-network alias",
        ),
        (!first.ip.is_empty(), !flags.ip.is_empty(), "cannot specify both --ip and per-network IPv4 address"),
        (!first.ip6.is_empty(), !flags.ip6.is_empty(), "cannot specify both --ip6 and per-network IPv6 address"),
        (
            !first.link_local.is_empty(),
            !flags.link_local_ip.is_empty(),
            "cannot specify both --link-local-ip and per-network link-local IP addresses",
        ),
    ];
    if let Some((_, _, conflict)) = both.iter().find(|(own, flag, _)| *own && *flag) {
        return Err(OptionError::Conflict(conflict));
    }
    if !first.mac.is_empty() && !flags.mac_address.is_empty() && first.mac != flags.mac_address {
        return Err(OptionError::Conflict("cannot specify both --mac-address and per-network MAC address"));
    }
    first.aliases.extend(flags.network_alias.iter().cloned());
    first.link_local.extend(flags.link_local_ip.iter().cloned());
    for (own, flag) in [(&mut first.ip, &flags.ip), (&mut first.ip6, &flags.ip6), (&mut first.mac, &flags.mac_address)]
    {
        if !flag.is_empty() {
            own.clone_from(flag);
        }
    }
    Ok(())
}

fn settings(attachment: &Attachment, links: &[String]) -> Map<String, Value> {
    let mut ipam = Map::new();
    if !attachment.ip.is_empty() {
        ipam.insert("IPv4Address".into(), json!(attachment.ip));
    }
    if !attachment.ip6.is_empty() {
        ipam.insert("IPv6Address".into(), json!(attachment.ip6));
    }
    if !attachment.link_local.is_empty() {
        ipam.insert("LinkLocalIPs".into(), json!(attachment.link_local));
    }
    let mut settings = Map::new();
    if !ipam.is_empty() {
        settings.insert("IPAMConfig".into(), Value::Object(ipam));
    }
    if !attachment.aliases.is_empty() {
        settings.insert("Aliases".into(), json!(attachment.aliases));
    }
    if !attachment.driver_opts.is_empty() {
        settings.insert("DriverOpts".into(), json!(attachment.driver_opts));
    }
    if !attachment.mac.is_empty() {
        settings.insert("MacAddress".into(), json!(attachment.mac));
    }
    if attachment.gateway_priority != 0 {
        settings.insert("GwPriority".into(), json!(attachment.gateway_priority));
    }
    if !links.is_empty() && is_user_defined(&attachment.target) {
        settings.insert("Links".into(), json!(links));
    }
    settings
}

fn is_user_defined(target: &str) -> bool {
    !matches!(target, "default" | "bridge" | "host" | "none") && !target.starts_with("container:")
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split([':', '-']).collect();
    parts.len() == 6 && parts.iter().all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(networks: &[&str], change: impl Fn(&mut NetworkFlags)) -> Result<Networks, String> {
        let network = networks.iter().map(|text| parse(text)).collect::<Result<_, _>>().map_err(|e| e.to_string())?;
        let mut flags = NetworkFlags { network, ..NetworkFlags::default() };
        change(&mut flags);
        resolve(&flags).map_err(|e| e.to_string())
    }

    #[test]
    fn modes_and_endpoints() {
        let plain = of(&[], |_| ()).unwrap();
        assert_eq!((plain.mode.as_str(), plain.endpoints.len()), ("default", 0));
        let one = of(&["net1"], |f| {
            f.network_alias = vec!["al".into()];
            f.ip = "10.0.0.2".into();
            f.mac_address = "02:42:ac:11:00:02".into();
            f.link = vec!["a:b".into()];
        })
        .unwrap();
        let want = json!({"net1":{"IPAMConfig":{"IPv4Address":"10.0.0.2"},"Links":["a:b"],"Aliases":["al"],
            "MacAddress":"02:42:ac:11:00:02"}});
        assert_eq!((one.mode.as_str(), Value::Object(one.endpoints)), ("net1", want));
        let two = of(&["name=n1,alias=q,ip=1.2.3.4,driver-opt=a=b,gw-priority=3", "n2"], |_| ()).unwrap();
        let want = json!({"n1":{"IPAMConfig":{"IPv4Address":"1.2.3.4"},"Aliases":["q"],"DriverOpts":{"a":"b"},
            "GwPriority":3},"n2":{}});
        assert_eq!((two.mode.as_str(), Value::Object(two.endpoints)), ("n1", want));
    }

    #[test]
    fn refused() {
        for (networks, part) in [
            (&["a", "host"][..], "cannot attach both user-defined"),
            (&["a", "a"], "network \"a\" is specified multiple times"),
            (&["name=host,alias=x"], "network-scoped aliases are only supported for user-defined networks"),
            (&["alias=x"], "network name/id is not specified"),
            (&["name=a,what=1"], "invalid field key what"),
            (&["name=a,mac-address=zz"], "zz is not a valid mac address"),
        ] {
            let error = of(networks, |_| ()).unwrap_err();
            assert!(error.contains(part), "{networks:?}: {error}");
        }
        let error = of(&["name=a,ip=1.1.1.1"], |f| f.ip = "2.2.2.2".into()).unwrap_err();
        assert!(error.contains("both --ip and per-network IPv4"), "{error}");
    }
}
