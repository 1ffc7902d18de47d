//! Every key that a configuration may have, and what becomes of those that ask for something Berth hasn't: they are refused by
//! name with the reason, never ignored.

use crate::{api::serial::is_zero, http::suggest};
use serde_json::{Map, Value};

/// Keys of ours under other names: as docker calls it, as we did.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("listen", "hosts"),
    ("run-root", "exec-root"),
    ("runtime", "default-runtime"),
    ("containerd", "supervisor"),
    ("graph", "data-root"),
];

/// Keys with a meaning here.
const HONOURED: &[&str] = &[
    "access",
    "api-cors-header",
    "audit",
    "bip",
    "bip6",
    "bridge",
    "builder",
    "cdi-spec-dirs",
    "cgroup-parent",
    "data-root",
    "debug",
    "default-address-pools",
    "default-cgroupns-mode",
    "default-ipc-mode",
    "default-network-opts",
    "default-runtime",
    "default-shm-size",
    "default-ulimits",
    "dns",
    "dns-opts",
    "dns-search",
    "exec-opts",
    "exec-root",
    "experimental",
    "features",
    "fixed-cidr",
    "fixed-cidr-v6",
    "group",
    "hosts",
    "icc",
    "image-budget",
    "image-budget-named",
    "init",
    "init-path",
    "insecure-registries",
    "ip",
    "ip-masq",
    "ipv6",
    "labels",
    "log-budget",
    "log-driver",
    "log-format",
    "log-level",
    "log-opts",
    "max-concurrent-downloads",
    "max-concurrent-uploads",
    "metrics-addr",
    "min-api-version",
    "mtu",
    "no-new-privileges",
    "oom-score-adjust",
    "pidfile",
    "plugin-dirs",
    "proxies",
    "registry-mirrors",
    "runtimes",
    "seccomp-profile",
    "shutdown-timeout",
    "storage-driver",
    "supervisor",
    "tls",
    "tlscacert",
    "tlscert",
    "tlskey",
    "tlsverify",
];

/// Which values of a key that we have no choice about are fine.
enum Only {
    /// What nobody set.
    Unset,
    /// Yes, which is how it is.
    Yes,
    /// Either way: what it asks for is so.
    Either,
    /// This word.
    Word(&'static str),
}

/// Keys that can't be honoured in full: what is fine, and why not the rest.
const FIXED: &[(&str, Only, &str)] = &[
    (
        "allow-nondistributable-artifacts",
        Only::Unset,
        "registries have given up foreign layers; layers are always pushed",
    ),
    (
        "authorization-plugins",
        Only::Unset,
        "there are no plugins; access rules say who may do what (keys access and audit)",
    ),
    ("cluster-advertise", Only::Unset, "there is no swarm here"),
    ("cluster-store", Only::Unset, "there is no swarm here"),
    ("cluster-store-opts", Only::Unset, "there is no swarm here"),
    ("containerd-namespace", Only::Word("berth"), "containers are in the supervisor's namespace berth"),
    ("containerd-plugins-namespace", Only::Unset, "there are no plugins"),
    ("cpu-rt-period", Only::Unset, "real-time scheduling can't be given to all containers together"),
    ("cpu-rt-runtime", Only::Unset, "real-time scheduling can't be given to all containers together"),
    ("cri-containerd", Only::Unset, "the supervisor serves the CRI itself: see supervisor.toml"),
    ("default-gateway", Only::Unset, "the bridge is the gateway of its containers"),
    ("default-gateway-v6", Only::Unset, "IPv6 is not on the default bridge yet"),
    ("firewall-backend", Only::Word("nftables"), "rules are made with nftables"),
    ("host-gateway-ip", Only::Unset, "host-gateway is the address of the bridge"),
    ("host-gateway-ips", Only::Unset, "host-gateway is the address of the bridge"),
    ("ip-forward", Only::Yes, "without forwarding no container has a network"),
    ("ip6tables", Only::Either, ""),
    ("iptables", Only::Yes, "published ports are firewall rules, in a table of their own"),
    ("live-restore", Only::Yes, "containers never depend on the engine, there is no other mode"),
    ("max-download-attempts", Only::Unset, "the supervisor decides on retries: see [registry] in supervisor.toml"),
    ("network-control-plane-mtu", Only::Unset, "there is no swarm here"),
    ("node-generic-resources", Only::Unset, "there is no swarm here"),
    ("raw-logs", Only::Either, ""),
    ("rootless", Only::Unset, "the engine runs as root"),
    ("selinux-enabled", Only::Unset, "containers get no SELinux labels"),
    ("storage-opts", Only::Unset, "snapshotters have no options"),
    ("swarm-default-advertise-addr", Only::Unset, "there is no swarm here"),
    ("userland-proxy", Only::Either, ""),
    ("userland-proxy-path", Only::Unset, "ports are published by the kernel, no process is started for one"),
    ("userns-remap", Only::Unset, "user namespaces for all containers are not built yet"),
];

impl Only {
    fn fits(&self, value: &Value) -> bool {
        match self {
            Self::Unset => is_zero(value),
            Self::Yes => *value == Value::Bool(true),
            Self::Either => value.is_boolean(),
            Self::Word(word) => value == word || *value == "",
        }
    }
}

/// Whether the configuration may have this key at all.
fn is_known(key: &str) -> bool {
    HONOURED.contains(&key) || FIXED.iter().any(|(name, ..)| *name == key)
}

/// Gives keys their one name, names those that nobody knows, and refuses what can't be had. What is left is honoured.
pub fn sort(map: Map<String, Value>) -> Result<Map<String, Value>, String> {
    let name =
        |key: String| OTHER_NAMES.iter().find(|(other, _)| *other == key).map_or(key, |(_, name)| (*name).to_owned());
    let map: Map<String, Value> = map.into_iter().map(|(key, value)| (name(key), value)).collect();
    let unknown: Vec<String> = map
        .keys()
        .filter(|key| !is_known(key))
        .map(|key| match suggest::nearest(key, HONOURED.iter().copied().chain(FIXED.iter().map(|(name, ..)| *name))) {
            Some(near) => format!("{key} (did you mean {near}?)"),
            None => key.clone(),
        })
        .collect();
    if !unknown.is_empty() {
        return Err(format!("the following directives don't match any configuration option: {}", unknown.join(", ")));
    }
    for (key, only, why) in FIXED {
        if let Some(value) = map.get(*key).filter(|value| !only.fits(value)) {
            let kind = if why.is_empty() { "it is neither true nor false" } else { why };
            return Err(format!("{key}: {value} can't be had: {kind}"));
        }
    }
    Ok(map.into_iter().filter(|(key, value)| HONOURED.contains(&key.as_str()) && !value.is_null()).collect())
}

/// Keys that are given twice, in dockerd's words. Runtimes add up.
pub fn conflicts(flags: &Map<String, Value>, file: &Map<String, Value>) -> Result<(), String> {
    let shown = |value: &Value| match value {
        Value::Array(list) => {
            format!("[{}]", list.iter().map(|v| v.as_str().unwrap_or("…")).collect::<Vec<_>>().join(" "))
        }
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let both: Vec<String> = flags
        .iter()
        .filter(|(key, _)| key.as_str() != "runtimes")
        .filter_map(|(key, flag)| {
            Some(format!("{key}: (from flag: {}, from file: {})", shown(flag), shown(file.get(key)?)))
        })
        .collect();
    match both.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "the following directives are specified both as a flag and in the configuration file: {}",
            both.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sorted(value: Value) -> Result<Value, String> {
        sort(value.as_object().unwrap().clone()).map(Value::Object)
    }

    #[test]
    fn every_key_of_dockers_file_is_known() {
        // The keys of dockerd's configuration that exist on Linux.
        for key in "allow-nondistributable-artifacts api-cors-header authorization-plugins bip bip6 bridge builder cdi-spec-dirs cgroup-parent \
                    containerd containerd-namespace containerd-plugins-namespace cpu-rt-period cpu-rt-runtime data-root debug \
                    default-address-pools default-cgroupns-mode default-gateway default-gateway-v6 default-ipc-mode default-network-opts \
                    default-runtime default-shm-size default-ulimits dns dns-opts dns-search exec-opts exec-root experimental features \
                    firewall-backend fixed-cidr fixed-cidr-v6 group host-gateway-ip host-gateway-ips hosts icc init init-path insecure-registries ip \
                    ip-forward ip-masq ip6tables iptables ipv6 labels live-restore log-driver log-format log-level log-opts \
                    max-concurrent-downloads max-concurrent-uploads max-download-attempts metrics-addr min-api-version mtu \
                    network-control-plane-mtu no-new-privileges node-generic-resources oom-score-adjust pidfile proxies raw-logs \
                    registry-mirrors runtimes seccomp-profile selinux-enabled shutdown-timeout storage-driver storage-opts \
                    swarm-default-advertise-addr tls tlscacert tlscert tlskey tlsverify userland-proxy userland-proxy-path userns-remap"
            .split_whitespace()
        {
            assert!(sorted(json!({ key: null })).is_err_and(|e| !e.contains("don't match")) || sorted(json!({ key: null })).is_ok(), "{key}");
        }
    }

    #[test]
    fn what_is_unknown_is_named_and_what_cant_be_had_is_refused() {
        for (value, words) in [
            (json!({"log-lvel": "x"}), "don't match any configuration option: log-lvel (did you mean log-level?)"),
            (json!({"zzz": 1, "debug": true}), "option: zzz"),
            (json!({"live-restore": false}), "live-restore: false can't be had: containers never depend"),
            (json!({"userns-remap": "default"}), "userns-remap: \"default\" can't be had"),
            (json!({"iptables": false}), "table of their own"),
            (json!({"raw-logs": 1}), "neither true nor false"),
            (json!({"containerd-namespace": "moby"}), "namespace berth"),
        ] {
            let error = sorted(value.clone()).unwrap_err();
            assert!(error.contains(words), "{value}: {error}");
        }
        assert_eq!(
            sorted(json!({"live-restore": true, "listen": ["unix:///a"], "userland-proxy": true, "storage-opts": [], "runtime": "r"})).unwrap(),
            json!({"hosts": ["unix:///a"], "default-runtime": "r"})
        );
    }

    #[test]
    fn conflicts_are_dockers() {
        let map = |value: Value| value.as_object().unwrap().clone();
        let flags = map(json!({"debug": true, "hosts": ["unix:///z"], "runtimes": {}}));
        let file = map(json!({"debug": true, "hosts": ["unix:///x"], "runtimes": {}, "bip": "b"}));
        assert_eq!(
            conflicts(&flags, &file).unwrap_err(),
            "the following directives are specified both as a flag and in the configuration file: debug: (from flag: true, from file: true), hosts: (from flag: [unix:///z], from file: [unix:///x])"
        );
        assert!(conflicts(&flags, &map(json!({"bip": "b", "runtimes": {}}))).is_ok());
    }
}
