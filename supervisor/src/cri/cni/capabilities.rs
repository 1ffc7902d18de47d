//! What plugins may be told of a pod: arguments for all of them (CNI_ARGS), and `runtimeConfig` for those that declare a capability.

use std::{collections::BTreeMap, net::IpAddr};

use proto::runtime::v1 as cri;
use serde_json::{Value, json};

use super::{Pod, error::PodError};

/// Annotations that limit what a pod receives and sends, in bits per second; `kubectl` users write them.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// All of `runtimeConfig` that could be given, by capability.
pub(super) type Capabilities = BTreeMap<String, Value>;

/// CNI_ARGS of a pod. What can't stand in it is refused: a semicolon in a name would set arguments of its own, such as an address.
pub(super) fn arguments(pod: &Pod) -> Result<String, PodError> {
    let mut all = "IgnoreUnknown=1".to_owned();
    for (what, name, value) in [
        ("namespace", "K8S_POD_NAMESPACE", &pod.namespace),
        ("name", "K8S_POD_NAME", &pod.name),
        ("id", "K8S_POD_INFRA_CONTAINER_ID", &pod.id),
        ("uid", "K8S_POD_UID", &pod.uid),
    ] {
        if value.contains(|c: char| matches!(c, ';' | '=') || c.is_control() || c.is_whitespace()) {
            return Err(PodError::Argument { what, value: value.clone() });
        }
        all.extend([";", name, "=", value]);
    }
    Ok(all)
}

/// All that could be given of a pod, under the names of CNI's conventions and containerd's.
pub(super) fn of(pod: &Pod) -> Result<Capabilities, PodError> {
    let mut all = Capabilities::new();
    let mut give = |name: &str, value: Value| all.insert(name.to_owned(), value);
    let ports = ports(&pod.port_mappings)?;
    if !ports.is_empty() {
        give("portMappings", ports.into());
    }
    if let Some(bandwidth) = bandwidth(pod)? {
        give("bandwidth", bandwidth);
    }
    if let Some(dns) = &pod.dns
        && !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty())
    {
        give("dns", json!({ "servers": dns.servers, "searches": dns.searches, "options": dns.options }));
    }
    if !pod.ip_ranges.is_empty() {
        // A set of ranges gives one address: each subnet is a set of its own.
        give("ipRanges", pod.ip_ranges.iter().map(|subnet| json!([{ "subnet": subnet }])).collect());
    }
    if !pod.cgroup_parent.is_empty() {
        give("cgroupPath", pod.cgroup_parent.clone().into());
    }
    give("io.kubernetes.cri.pod-annotations", json!(pod.annotations));
    Ok(all)
}

fn ports(mappings: &[cri::PortMapping]) -> Result<Vec<Value>, PodError> {
    // Without a port of the host nothing is to be published.
    mappings.iter().filter(|mapping| mapping.host_port != 0).map(port).collect()
}

fn port(mapping: &cri::PortMapping) -> Result<Value, PodError> {
    let cri::PortMapping { protocol, container_port, host_port, ref host_ip } = *mapping;
    for (what, port) in [("container port", container_port), ("host port", host_port)] {
        if !(1..=65535).contains(&port) {
            return Err(PodError::Port { what, port });
        }
    }
    let protocol = match cri::Protocol::try_from(protocol) {
        Ok(cri::Protocol::Tcp) => "tcp",
        Ok(cri::Protocol::Udp) => "udp",
        Ok(cri::Protocol::Sctp) => "sctp",
        Err(_) => return Err(PodError::Protocol { port: container_port, protocol }),
    };
    let mut value = json!({ "hostPort": host_port, "containerPort": container_port, "protocol": protocol });
    if !host_ip.is_empty() {
        let address: IpAddr = host_ip.parse().map_err(|cause| PodError::HostAddress {
            port: container_port,
            address: host_ip.clone(),
            cause,
        })?;
        value["hostIP"] = address.to_string().into();
    }
    Ok(value)
}

fn bandwidth(pod: &Pod) -> Result<Option<Value>, PodError> {
    let mut value = json!({});
    for (annotation, rate, burst) in [(INGRESS, "ingressRate", "ingressBurst"), (EGRESS, "egressRate", "egressBurst")] {
        let Some(text) = pod.annotations.get(annotation) else { continue };
        let bits = quantity(text.trim()).filter(|bits| (1_000..=1_000_000_000_000_000).contains(bits));
        let bits = bits.ok_or_else(|| PodError::Rate { annotation, value: text.clone() })?;
        value[rate] = bits.into();
        // The annotations know no burst, and the plugin takes none for an error: the most that it takes is none at all.
        value[burst] = u32::MAX.into();
    }
    Ok(if value == json!({}) { None } else { Some(value) })
}

/// A quantity as Kubernetes writes them (`10M`, `1.5Gi`, `2e6`, `500k`), rounded up; none below zero.
fn quantity(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // Beyond that, digits don't matter to anybody, and would overflow.
    if whole.len() + fraction.len() > 18 || fraction.contains('.') {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (factor, exponent): (u128, i32) = match suffix {
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "" => (1, 0),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        exponent => {
            let exponent: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            ((-18..=18).contains(&exponent)).then_some((1, exponent))?
        }
    };
    let exponent = exponent - i32::try_from(fraction.len()).ok()?;
    let power = 10_u128.pow(exponent.unsigned_abs());
    let scaled = digits.checked_mul(factor)?;
    let value = if exponent >= 0 { scaled.checked_mul(power)? } else { scaled.div_ceil(power) };
    value.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        Pod { id: "p1".into(), name: "web".into(), namespace: "default".into(), uid: "u-1".into(), ..Pod::default() }
    }

    fn mapping(host_port: i32, container_port: i32, protocol: i32, host_ip: &str) -> cri::PortMapping {
        cri::PortMapping { protocol, container_port, host_port, host_ip: host_ip.into() }
    }

    #[test]
    fn arguments_are_containerds() {
        let wanted =
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=p1;K8S_POD_UID=u-1";
        assert_eq!(arguments(&pod()).unwrap(), wanted);
    }

    #[test]
    fn no_name_sets_arguments_of_its_own() {
        for name in ["web;IP=10.0.0.1", "a=b", "a\nb", "a b", "a\0"] {
            let error = arguments(&Pod { name: name.into(), ..pod() }).unwrap_err().to_string();
            assert!(error.starts_with("name \"") && error.contains("CNI_ARGS"), "{error}");
        }
    }

    #[test]
    fn only_what_there_is_is_given() {
        assert_eq!(
            of(&pod()).unwrap().into_iter().collect::<Vec<_>>(),
            [("io.kubernetes.cri.pod-annotations".to_owned(), json!({}))]
        );
        let dns = cri::DnsConfig { servers: vec!["10.0.0.10".into()], searches: vec!["svc".into()], options: vec![] };
        let annotations = [(INGRESS, "10M"), (EGRESS, "1.5Mi"), ("x", "y")];
        let all = of(&Pod {
            port_mappings: vec![mapping(0, 80, 0, ""), mapping(8080, 80, 0, ""), mapping(53, 53, 1, "::1")],
            annotations: annotations.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            dns: Some(dns),
            cgroup_parent: "/kubepods/p1".into(),
            ip_ranges: vec!["10.1.0.0/24".into(), "fd00::/64".into()],
            ..pod()
        });
        let wanted = json!({
            "portMappings": [
                { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
                { "hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "::1" },
            ],
            "bandwidth": {
                "ingressRate": 10_000_000, "ingressBurst": u32::MAX, "egressRate": 1_572_864, "egressBurst": u32::MAX,
            },
            "dns": { "servers": ["10.0.0.10"], "searches": ["svc"], "options": [] },
            "ipRanges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00::/64" }]],
            "cgroupPath": "/kubepods/p1",
            "io.kubernetes.cri.pod-annotations": { INGRESS: "10M", EGRESS: "1.5Mi", "x": "y" },
        });
        assert_eq!(json!(all.unwrap()), wanted);
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for (mapping, words) in [
            (mapping(-1, 80, 0, ""), "host port -1"),
            (mapping(65536, 80, 0, ""), "host port 65536"),
            (mapping(80, 0, 0, ""), "container port 0"),
            (mapping(80, 80, 99, ""), "protocol 99"),
            (mapping(80, 80, 0, "localhost"), "host address \"localhost\""),
        ] {
            let error = ports(&[mapping]).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn rates_beyond_reason_are_refused() {
        for text in ["999", "1.1P", "2P", "-1M", "much", "", "500m"] {
            let pod = Pod { annotations: [(INGRESS.to_owned(), text.to_owned())].into(), ..pod() };
            let error = of(&pod).unwrap_err().to_string();
            assert!(error.contains(INGRESS), "{text}: {error}");
        }
    }

    #[test]
    fn quantities() {
        for (text, value) in [
            ("10M", Some(10_000_000)),
            ("1Gi", Some(1 << 30)),
            ("1.5k", Some(1500)),
            (".5k", Some(500)),
            ("2.k", Some(2000)),
            ("2e6", Some(2_000_000)),
            ("2E3", Some(2000)),
            ("25e-1", Some(3)),
            ("1500m", Some(2)),
            ("1E", Some(1_000_000_000_000_000_000)),
            ("0", Some(0)),
            ("100E", None),
            ("1e99", None),
            ("1e", None),
            ("", None),
            (".", None),
            ("1.2.3", None),
            ("1K", None),
            ("+1", None),
            ("9999999999999999999", None),
        ] {
            assert_eq!(quantity(text), value, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_quantity_is_too_strange(text in "\\PC{0,6}|[0-9.]{0,20}[a-zA-Z]{0,2}[0-9-]{0,12}") {
            let _ = quantity(&text);
        }
    }
}
