//! The configuration with types: each key is read by itself, so that a value of the wrong kind is named by its key.

use super::container::ContainerDefaults;
use crate::access::{Audit, Rule};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, path::PathBuf};

/// Another OCI runtime.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Runtime {
    /// Program.
    pub path: String,
    /// Arguments for it: a script adds them, as the shim's protocol has no place for them.
    #[serde(rename = "runtimeArgs")]
    pub args: Vec<String>,
    /// Type of a shim.
    #[serde(rename = "runtimeType")]
    pub kind: String,
    /// Options of that shim.
    pub options: Map<String, Value>,
}

/// Proxies of the supervisor that the engine starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
#[allow(missing_docs, reason = "the names are Docker's own")]
pub struct Proxies {
    pub http_proxy: String,
    pub https_proxy: String,
    pub no_proxy: String,
}

/// Where the subnets of new networks are taken from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressPool {
    /// A network.
    pub base: String,
    /// Prefix length of the subnets.
    pub size: u8,
}

/// What the file and the flags say together.
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "the names are those of the keys")]
pub struct Settings {
    pub access: Vec<Rule>,
    pub api_cors_header: Option<String>,
    pub audit: Option<Audit>,
    pub bip: Option<String>,
    pub bip6: Option<String>,
    pub bridge: Option<String>,
    pub builder: super::builder::Builder,
    pub cdi_spec_dirs: Vec<String>,
    pub containers: ContainerDefaults,
    pub data_root: Option<PathBuf>,
    pub debug: bool,
    pub default_address_pools: Vec<AddressPool>,
    pub default_network_opts: BTreeMap<String, BTreeMap<String, String>>,
    pub default_runtime: Option<String>,
    pub exec_root: Option<PathBuf>,
    pub experimental: bool,
    pub features: BTreeMap<String, bool>,
    pub fixed_cidr: Option<String>,
    pub fixed_cidr_v6: Option<String>,
    pub group: Option<String>,
    pub hosts: Vec<String>,
    pub icc: Option<bool>,
    pub image_budget: Option<String>,
    pub image_budget_named: bool,
    pub insecure_registries: Vec<String>,
    pub ip_masq: Option<bool>,
    pub ipv6: Option<bool>,
    pub labels: Vec<String>,
    pub log_budget: Option<String>,
    pub log_format: Option<String>,
    pub log_level: Option<String>,
    pub max_concurrent_downloads: Option<i64>,
    pub max_concurrent_uploads: Option<i64>,
    pub metrics_addr: Option<String>,
    pub min_api_version: Option<String>,
    pub mtu: Option<u32>,
    pub oom_score_adjust: Option<i32>,
    pub pidfile: Option<PathBuf>,
    pub plugin_dirs: Vec<PathBuf>,
    pub proxies: Proxies,
    pub registry_mirrors: Vec<String>,
    pub runtimes: BTreeMap<String, Runtime>,
    pub shutdown_timeout: Option<i64>,
    pub storage_driver: Option<String>,
    pub supervisor: Option<String>,
    pub tls: Option<bool>,
    pub tlscacert: Option<PathBuf>,
    pub tlscert: Option<PathBuf>,
    pub tlskey: Option<PathBuf>,
    pub tlsverify: Option<bool>,
}

fn read<T: DeserializeOwned>(key: &str, value: Value) -> Result<T, String> {
    let shown = value.to_string();
    serde_json::from_value(value).map_err(|error| format!("{key}: {shown} is of the wrong kind: {error}"))
}

impl Settings {
    /// Reads what [`super::keys::sort`] has left.
    pub fn read(map: Map<String, Value>) -> Result<Self, String> {
        let mut settings = Self::default();
        for (key, value) in map {
            settings.set(&key, value)?;
        }
        settings.containers.check()?;
        settings.check()?;
        Ok(settings)
    }

    fn set(&mut self, key: &str, value: Value) -> Result<(), String> {
        macro_rules! into {
            ($field:ident) => {
                self.$field = read(key, value)?
            };
        }
        match key {
            "access" => into!(access),
            "api-cors-header" => into!(api_cors_header),
            "audit" => into!(audit),
            "bip" => into!(bip),
            "bridge" => into!(bridge),
            "builder" => into!(builder),
            "cdi-spec-dirs" => into!(cdi_spec_dirs),
            "data-root" => into!(data_root),
            "debug" => into!(debug),
            "default-address-pools" => into!(default_address_pools),
            "default-runtime" => into!(default_runtime),
            "exec-opts" => check_exec_opts(read(key, value)?)?,
            "exec-root" => into!(exec_root),
            "experimental" => into!(experimental),
            "features" => into!(features),
            "group" => into!(group),
            "hosts" => into!(hosts),
            "image-budget" => into!(image_budget),
            "image-budget-named" => into!(image_budget_named),
            "insecure-registries" => into!(insecure_registries),
            "labels" => into!(labels),
            "log-budget" => into!(log_budget),
            "log-format" => into!(log_format),
            "log-level" => into!(log_level),
            "max-concurrent-downloads" => into!(max_concurrent_downloads),
            "max-concurrent-uploads" => into!(max_concurrent_uploads),
            "metrics-addr" => into!(metrics_addr),
            "min-api-version" => into!(min_api_version),
            "mtu" => into!(mtu),
            "oom-score-adjust" => into!(oom_score_adjust),
            "pidfile" => into!(pidfile),
            "plugin-dirs" => into!(plugin_dirs),
            "proxies" => into!(proxies),
            "registry-mirrors" => into!(registry_mirrors),
            "runtimes" => into!(runtimes),
            "shutdown-timeout" => into!(shutdown_timeout),
            "storage-driver" => into!(storage_driver),
            "supervisor" => into!(supervisor),
            "bip6" => into!(bip6),
            "default-network-opts" => into!(default_network_opts),
            "fixed-cidr" => into!(fixed_cidr),
            "fixed-cidr-v6" => into!(fixed_cidr_v6),
            "icc" => into!(icc),
            "ip-masq" => into!(ip_masq),
            "ipv6" => into!(ipv6),
            "tls" => into!(tls),
            "tlscacert" => into!(tlscacert),
            "tlscert" => into!(tlscert),
            "tlskey" => into!(tlskey),
            "tlsverify" => into!(tlsverify),
            key => self.containers.set(key, value)?,
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        for (what, number) in [("downloads", self.max_concurrent_downloads), ("uploads", self.max_concurrent_uploads)] {
            if let Some(number) = number.filter(|number| !(0..=64).contains(number)) {
                return Err(format!("invalid max concurrent {what}: {number}"));
            }
        }
        if let Some(seconds) = self.shutdown_timeout.filter(|seconds| *seconds < -1) {
            return Err(format!("invalid shutdown timeout: {seconds}"));
        }
        if let Some(label) = self.labels.iter().find(|label| !label.contains('=')) {
            return Err(format!("bad attribute format: {label}"));
        }
        let twice = self.labels.iter().find(|label| {
            let key = label.split('=').next();
            self.labels.iter().any(|other| other.split('=').next() == key && other != *label)
        });
        if let Some(label) = twice {
            return Err(format!("conflict labels for {label}"));
        }
        for (feature, on) in &self.features {
            match (feature.as_str(), on) {
                ("buildkit" | "cdi" | "containerd-snapshotter", true) | ("buildkit" | "cdi", false) => {}
                ("containerd-snapshotter", false) => {
                    return Err(
                        "features: containerd-snapshotter can't be turned off, images are always kept so".into()
                    );
                }
                _ => return Err(format!("features: nobody knows {feature} here")),
            }
        }
        for (name, runtime) in &self.runtimes {
            // It becomes the name of a file.
            if name.starts_with('.') || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
                return Err(format!("runtimes: {name:?}: a name has letters, digits, '.', '_' and '-' only"));
            }
            if !runtime.args.is_empty() && runtime.path.is_empty() {
                return Err(format!("runtimes: {name}: runtimeArgs go with a path only"));
            }
            if !runtime.options.is_empty() {
                return Err(format!("runtimes: {name}: options of shims can't be passed on"));
            }
            if runtime.path.is_empty() == runtime.kind.is_empty() {
                return Err(format!("runtimes: {name}: either path or runtimeType is to be given"));
            }
        }
        let level = self.log_level.as_deref().unwrap_or("info");
        if !["debug", "info", "warn", "error", "fatal", "trace", "panic"].contains(&level) {
            return Err(format!("invalid logging level: {level}"));
        }
        if !["text", "json"].contains(&self.log_format.as_deref().unwrap_or("text")) {
            return Err(format!("invalid log format: {}", self.log_format.as_deref().unwrap_or_default()));
        }
        Ok(())
    }
}

fn check_exec_opts(options: Vec<String>) -> Result<(), String> {
    for option in options {
        match option.split_once('=') {
            Some(("native.cgroupdriver", "cgroupfs")) => {}
            Some(("native.cgroupdriver", "systemd")) => {
                return Err(
                    "exec-opts: native.cgroupdriver=systemd can't be had: cgroups are made by the runtime itself"
                        .into(),
                );
            }
            _ => return Err(format!("exec-opts: invalid option {option:?}")),
        }
    }
    Ok(())
}
