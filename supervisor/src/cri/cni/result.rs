//! What an ADD results in: read in any version, turned into the configuration's, and what of it concerns the pod.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{
    Map, Value, json,
    value::{RawValue, to_raw_value},
};

use super::{
    INTERFACE,
    version::{self, Shape, Version},
};

/// A result in the version of its network, as the next plugin gets it.
#[derive(Debug)]
pub(super) struct AddResult(Map<String, Value>);

/// What of a result concerns the pod.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Interface {
    /// Its addresses, in the order of the result.
    pub(super) addresses: Vec<IpAddr>,
    /// Its hardware address, if the plugins tell it.
    pub(super) mac: Option<String>,
}

impl AddResult {
    /// Reads what a plugin printed. One that says no version has that of the configuration.
    pub(super) fn read(output: &[u8], wanted: Version) -> Result<Self, String> {
        if output.trim_ascii().is_empty() {
            return Err("nothing at all".to_owned());
        }
        let mut result: Map<String, Value> = serde_json::from_slice(output).map_err(|error| error.to_string())?;
        let version = match result.get("cniVersion") {
            None | Some(Value::Null) => wanted,
            Some(Value::String(name)) if name.is_empty() => wanted,
            Some(Value::String(name)) => Version::of(name).ok_or_else(|| version::unknown(name))?,
            Some(other) => return Err(format!("cniVersion is {other}")),
        };
        convert(&mut result, version.shape(), wanted.shape())?;
        result.insert("cniVersion".to_owned(), wanted.name().into());
        let result = Self(result);
        // Whatever can't be understood is refused now, while it can still be undone.
        result.interface(wanted)?;
        Ok(result)
    }

    /// As JSON.
    pub(super) fn raw(&self) -> Result<Box<RawValue>, serde_json::Error> {
        to_raw_value(&self.0)
    }

    /// What of it concerns the pod.
    pub(super) fn interface(&self, version: Version) -> Result<Interface, String> {
        let result = |error: serde_json::Error| error.to_string();
        if version.shape() == Shape::TwoAddresses {
            let old: Old = Old::deserialize(&self.0).map_err(result)?;
            let addresses = [old.ip4, old.ip6].into_iter().flatten().map(|config| address(&config.ip));
            return Ok(Interface { addresses: addresses.collect::<Result<_, _>>()?, mac: None });
        }
        let New { interfaces, ips } = New::deserialize(&self.0).map_err(result)?;
        let (interfaces, ips) = (interfaces.unwrap_or_default(), ips.unwrap_or_default());
        // A plugin that tells of no sandbox can only mean the pod's.
        let sandboxed = |link: &&Link| !link.sandbox.is_empty();
        let any_sandbox = interfaces.iter().any(|link| sandboxed(&link));
        let ours = |link: &Link| link.name == INTERFACE && (!any_sandbox || sandboxed(&link));
        let mac = interfaces.iter().find(|link| ours(link)).map(|link| link.mac.clone()).filter(|mac| !mac.is_empty());
        let mut addresses = Vec::new();
        for ip in ips {
            let address = address(&ip.address)?;
            let link = match ip.interface {
                None => None,
                Some(index) => {
                    let link = usize::try_from(index).ok().and_then(|index| interfaces.get(index));
                    Some(link.ok_or_else(|| format!("address {address} is at interface {index}, which is not there"))?)
                }
            };
            if link.is_none_or(ours) {
                addresses.push(address);
            }
        }
        Ok(Interface { addresses, mac })
    }
}

#[derive(Deserialize)]
struct Old {
    ip4: Option<OldAddress>,
    ip6: Option<OldAddress>,
}

#[derive(Deserialize)]
struct OldAddress {
    ip: String,
}

#[derive(Deserialize)]
struct New {
    interfaces: Option<Vec<Link>>,
    ips: Option<Vec<NewAddress>>,
}

#[derive(Deserialize)]
struct Link {
    name: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct NewAddress {
    address: String,
    interface: Option<i64>,
}

/// The address of `ADDRESS/PREFIX`.
fn address(text: &str) -> Result<IpAddr, String> {
    let parsed = text.split_once('/').and_then(|(address, prefix)| {
        let address: IpAddr = address.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some(address)
    });
    parsed.ok_or_else(|| format!("{text:?} is no address with a prefix"))
}

fn is_v4(text: &Value) -> bool {
    text.as_str().is_some_and(|text| !text.contains(':'))
}

/// Turns a result into that of another version. It is for plugins that answer in another version than they were asked in; between
/// versions of one shape nothing changes.
fn convert(result: &mut Map<String, Value>, from: Shape, to: Shape) -> Result<(), String> {
    if from == to {
        return Ok(());
    }
    if from == Shape::TwoAddresses {
        from_two_addresses(result);
    }
    // Now all of it is in `ips` and `routes`.
    let ips = match result.get_mut("ips") {
        None | Some(Value::Null) => &mut Vec::new(),
        Some(Value::Array(ips)) => ips,
        Some(other) => return Err(format!("ips is {other}")),
    };
    for ip in ips {
        let ip = ip.as_object_mut().ok_or("ips holds what is no object")?;
        let family = if is_v4(ip.get("address").unwrap_or(&Value::Null)) { "4" } else { "6" };
        match to {
            Shape::Plain => ip.remove("version"),
            Shape::WithFamilies | Shape::TwoAddresses => ip.insert("version".to_owned(), family.into()),
        };
    }
    if to == Shape::TwoAddresses {
        to_two_addresses(result);
    }
    Ok(())
}

fn from_two_addresses(result: &mut Map<String, Value>) {
    let (mut ips, mut routes) = (Vec::new(), Vec::new());
    for key in ["ip4", "ip6"] {
        let Some(Value::Object(mut config)) = result.remove(key) else { continue };
        if let Some(Value::Array(all)) = config.remove("routes") {
            routes.extend(all);
        }
        if let Some(address) = config.remove("ip") {
            config.insert("address".to_owned(), address);
        }
        ips.push(Value::Object(config));
    }
    result.insert("ips".to_owned(), ips.into());
    if !routes.is_empty() {
        result.insert("routes".to_owned(), routes.into());
    }
}

fn to_two_addresses(result: &mut Map<String, Value>) {
    let taken = |value: Option<Value>| if let Some(Value::Array(all)) = value { all } else { Vec::new() };
    let (ips, routes) = (taken(result.remove("ips")), taken(result.remove("routes")));
    result.remove("interfaces");
    for (key, v4) in [("ip4", true), ("ip6", false)] {
        let Some(ip) = ips.iter().find(|ip| is_v4(&ip["address"]) == v4) else { continue };
        let mut config = json!({ "ip": ip["address"] });
        if !ip["gateway"].is_null() {
            config["gateway"] = ip["gateway"].clone();
        }
        let routes: Vec<_> = routes.iter().filter(|route| is_v4(&route["dst"]) == v4).cloned().collect();
        if !routes.is_empty() {
            config["routes"] = routes.into();
        }
        result.insert(key.to_owned(), config);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &Value, wanted: Version) -> Result<AddResult, String> {
        AddResult::read(value.to_string().as_bytes(), wanted)
    }

    fn interface(value: &Value, version: Version) -> (Vec<String>, Option<String>) {
        let Interface { addresses, mac } = read(value, version).unwrap().interface(version).unwrap();
        (addresses.iter().map(ToString::to_string).collect(), mac)
    }

    fn old() -> Value {
        json!({
            "cniVersion": "0.2.0",
            "ip4": { "ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{ "dst": "0.0.0.0/0" }] },
            "ip6": { "ip": "fd00::5/64", "routes": [{ "dst": "::/0", "gw": "fd00::1" }] },
            "dns": { "nameservers": ["10.1.0.1"] },
        })
    }

    fn middle() -> Value {
        json!({
            "cniVersion": "0.4.0",
            "ips": [
                { "version": "4", "address": "10.1.0.5/16", "gateway": "10.1.0.1" },
                { "version": "6", "address": "fd00::5/64" },
            ],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0", "gw": "fd00::1" }],
            "dns": { "nameservers": ["10.1.0.1"] },
        })
    }

    fn with(mut value: Value, version: Version) -> Value {
        value["cniVersion"] = version.name().into();
        value
    }

    #[test]
    fn results_of_all_versions_become_those_of_all_others() {
        let new = {
            let mut new = with(middle(), Version::V1_0_0);
            for ip in new["ips"].as_array_mut().unwrap() {
                ip.as_object_mut().unwrap().remove("version");
            }
            new
        };
        let all = [(Version::V0_2_0, old()), (Version::V0_4_0, middle()), (Version::V1_0_0, new)];
        for (from, given) in &all {
            for (to, wanted) in &all {
                assert_eq!(Value::Object(read(given, *to).unwrap().0), *wanted, "{from} to {to}");
                assert_eq!(interface(given, *to).0, ["10.1.0.5", "fd00::5"], "{from} to {to}");
            }
        }
        // Between neighbours nothing is lost, known or not.
        let mut given = with(all[2].1.clone(), Version::V1_1_0);
        given["x"] = json!({ "y": 1 });
        assert_eq!(Value::Object(read(&given, Version::V1_0_0).unwrap().0), with(given, Version::V1_0_0));
    }

    #[test]
    fn addresses_are_those_of_the_pods_interface() {
        let result = json!({
            "interfaces": [
                { "name": "eth0", "mac": "02:00:00:00:00:01" },
                { "name": "veth1", "mac": "02:00:00:00:00:02" },
                { "name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/x" },
            ],
            "ips": [
                { "address": "fd00::5/64", "interface": 2 },
                { "address": "192.0.2.1/24", "interface": 0 },
                { "address": "192.0.2.2/24", "interface": 1 },
                { "address": "10.0.0.5/24" },
            ],
        });
        let mac = Some("02:00:00:00:00:03".to_owned());
        assert_eq!(interface(&result, Version::V1_0_0), (vec!["fd00::5".to_owned(), "10.0.0.5".to_owned()], mac));
        let bare = json!({ "interfaces": [{ "name": "eth0" }], "ips": [{ "address": "10.0.0.5/24", "interface": 0 }] });
        assert_eq!(interface(&bare, Version::V0_3_1), (vec!["10.0.0.5".to_owned()], None));
        assert_eq!(interface(&json!({}), Version::V1_0_0), (vec![], None));
        assert_eq!(interface(&json!({ "ips": null, "interfaces": null }), Version::V1_0_0), (vec![], None));
    }

    #[test]
    fn a_result_without_version_has_the_configurations() {
        for version in [Value::Null, "".into()] {
            let result = read(&json!({ "cniVersion": version, "ips": [] }), Version::V0_3_1).unwrap();
            assert_eq!(result.0["cniVersion"], "0.3.1");
        }
    }

    #[test]
    fn what_is_no_result_says_why() {
        for (output, words) in [
            ("", "nothing at all"),
            (" \n", "nothing at all"),
            ("null", "invalid type"),
            ("[]", "invalid type"),
            ("{", "EOF"),
            ("{} {}", "trailing"),
            (r#"{"cniVersion":"9.0.0"}"#, "\"9.0.0\" is none"),
            (r#"{"cniVersion":7}"#, "cniVersion is 7"),
            (r#"{"ips":[{"address":"10.0.0.5"}]}"#, "\"10.0.0.5\" is no address"),
            (r#"{"ips":[{"address":"10.0.0.5/33"}]}"#, "is no address"),
            (r#"{"ips":[{"address":"10.0.0.5/8","interface":0}]}"#, "interface 0, which is not there"),
            (r#"{"ips":[{"address":"10.0.0.5/8","interface":-1}]}"#, "interface -1"),
            (r#"{"ips":7}"#, "invalid type"),
            (r#"{"cniVersion":"0.4.0","ips":7}"#, "ips is 7"),
            (r#"{"cniVersion":"0.4.0","ips":[7]}"#, "no object"),
        ] {
            let error = AddResult::read(output.as_bytes(), Version::V1_0_0).unwrap_err();
            assert!(error.contains(words), "{output}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_output_is_too_strange(
            from in 0_usize..7, to in 0_usize..7,
            ips in "null|7|\\[\\]|\\[\\{\\}\\]|\\[null\\]|\\[\\{\"address\":(7|\"x\"|\"1.2.3.4/8\")\\}\\]",
            ip4 in "null|7|\\{\\}|\\{\"ip\":(7|\"1.2.3.4/8\"),\"routes\":(7|\\[7\\])\\}",
        ) {
            let all = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
            let text = format!(r#"{{"cniVersion":"{}","ips":{ips},"ip4":{ip4},"routes":{ips}}}"#, all[from]);
            let _ = AddResult::read(text.as_bytes(), Version::of(all[to]).unwrap());
        }
    }
}
