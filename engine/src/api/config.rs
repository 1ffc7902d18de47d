//! `Config`: what runs in a container, and the body of a create request around it.

use super::{
    HostConfig,
    serial::{Set, null_if_empty, nullable, words},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What runs in a container, independent of the host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are Docker's own, documented there")]
pub struct Config {
    #[serde(deserialize_with = "nullable")]
    pub hostname: String,
    #[serde(deserialize_with = "nullable")]
    pub domainname: String,
    #[serde(deserialize_with = "nullable")]
    pub user: String,
    #[serde(deserialize_with = "nullable")]
    pub attach_stdin: bool,
    #[serde(deserialize_with = "nullable")]
    pub attach_stdout: bool,
    #[serde(deserialize_with = "nullable")]
    pub attach_stderr: bool,
    #[serde(skip_serializing_if = "no_set")]
    pub exposed_ports: Set,
    #[serde(deserialize_with = "nullable")]
    pub tty: bool,
    #[serde(deserialize_with = "nullable")]
    pub open_stdin: bool,
    #[serde(deserialize_with = "nullable")]
    pub stdin_once: bool,
    #[serde(serialize_with = "null_if_empty", deserialize_with = "nullable")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "words")]
    pub cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    #[serde(skip_serializing_if = "std::ops::Not::not", deserialize_with = "nullable")]
    pub args_escaped: bool,
    #[serde(deserialize_with = "nullable")]
    pub image: String,
    #[serde(serialize_with = "set_or_null")]
    pub volumes: Set,
    #[serde(deserialize_with = "nullable")]
    pub working_dir: String,
    #[serde(deserialize_with = "words")]
    pub entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "std::ops::Not::not", deserialize_with = "nullable")]
    pub network_disabled: bool,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub mac_address: String,
    pub on_build: Option<Vec<String>>,
    #[serde(deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub stop_signal: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "words")]
    pub shell: Option<Vec<String>>,
}

fn no_set(set: &Set) -> bool {
    set.0.is_empty()
}

fn set_or_null<S: serde::Serializer>(set: &Set, serializer: S) -> Result<S::Ok, S::Error> {
    if set.0.is_empty() { serializer.serialize_none() } else { set.serialize(serializer) }
}

/// A health check; durations are nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are Docker's own, documented there")]
pub struct Healthcheck {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub test: Vec<String>,
    #[serde(skip_serializing_if = "is_unset", deserialize_with = "nullable")]
    pub interval: i64,
    #[serde(skip_serializing_if = "is_unset", deserialize_with = "nullable")]
    pub timeout: i64,
    #[serde(skip_serializing_if = "is_unset", deserialize_with = "nullable")]
    pub start_period: i64,
    #[serde(skip_serializing_if = "is_unset", deserialize_with = "nullable")]
    pub start_interval: i64,
    #[serde(skip_serializing_if = "is_unset", deserialize_with = "nullable")]
    pub retries: i64,
}

fn is_unset(value: &i64) -> bool {
    *value == 0
}

/// Body of `POST /containers/create`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "the names are Docker's own, documented there")]
pub struct CreateRequest {
    #[serde(flatten)]
    pub config: Config,
    #[serde(deserialize_with = "nullable")]
    pub host_config: HostConfig,
    #[serde(deserialize_with = "nullable")]
    pub networking_config: NetworkingConfig,
}

/// Which networks a container joins at create.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkingConfig {
    /// By name of the network.
    #[serde(deserialize_with = "nullable")]
    pub endpoints_config: BTreeMap<String, Option<EndpointSettings>>,
}

/// What is wanted of one network.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct EndpointSettings {
    /// A certain MAC address.
    #[serde(deserialize_with = "nullable")]
    pub mac_address: String,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}
