//! Configuration of an image, with docker's own fields: what is passed on from a base, and what is written at the end.

use super::text;
use proto::pb::Platform;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, HashMap};

/// What steps of BuildKit's frontend are signed with.
const COMMENT: &str = "buildkit.dockerfile.v0";
/// Where programs are looked for if the image doesn't say.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An image's configuration as far as a build passes it on; other fields of a base are dropped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub(super) struct Image {
    #[serde(skip_serializing)]
    pub(super) created: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub(super) author: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) architecture: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub(super) variant: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) os: String,
    #[serde(rename = "os.version", skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub(super) os_version: String,
    #[serde(rename = "os.features", skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(super) os_features: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(super) rootfs: RootFs,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(super) history: Vec<History>,
    #[serde(deserialize_with = "nullable")]
    pub(super) config: Config,
    /// Where variables stand in `config.env`, once one was set.
    #[serde(skip)]
    places: HashMap<String, usize>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) diff_ids: Vec<String>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".into(), diff_ids: Vec::new() }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub(super) struct History {
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    created_by: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    author: String,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    comment: String,
    #[serde(skip_serializing_if = "is_false", deserialize_with = "nullable")]
    empty_layer: bool,
}

/// `{}`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub(super) struct Set {}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Config {
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub(super) user: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub(super) exposed_ports: BTreeMap<String, Set>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(super) env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(super) entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(super) cmd: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub(super) volumes: BTreeMap<String, Set>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub(super) working_dir: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub(super) stop_signal: String,
    #[serde(skip_serializing_if = "is_false", deserialize_with = "nullable")]
    pub(super) args_escaped: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) healthcheck: Option<Health>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(super) on_build: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stop_timeout: Option<i64>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(super) shell: Vec<String>,
}

/// HEALTHCHECK; times are nanoseconds, zero stands for what the engine takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Health {
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub(super) test: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) interval: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) timeout: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) start_period: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) start_interval: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) retries: u64,
}

/// Go writes `null` for what is empty.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl Image {
    /// `FROM scratch`
    pub(super) fn empty(platform: &Platform) -> Self {
        Self {
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone(),
            os: platform.os.clone(),
            os_version: platform.os_version.clone(),
            config: Config { env: vec![format!("PATH={PATH}")], working_dir: "/".into(), ..Config::default() },
            ..Self::default()
        }
    }

    /// Reads a base's configuration.
    pub(super) fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        let image: Self = serde_json::from_slice(json)?;
        Ok(Self { created: None, ..image })
    }

    /// Whether there are no files in it.
    pub(super) fn is_empty(&self) -> bool {
        self.rootfs.diff_ids.is_empty() && self.history.iter().all(|entry| entry.empty_layer)
    }

    /// How much memory it takes, about.
    pub(super) fn size(&self) -> usize {
        let history: usize = self.history.iter().map(|entry| entry.created_by.len() + 150).sum();
        let env: usize = self.config.env.iter().map(|line| line.len() + 100).sum();
        let labels: usize = self.config.labels.iter().map(|(name, value)| name.len() + value.len() + 80).sum();
        let names = self.config.exposed_ports.keys().chain(self.config.volumes.keys());
        history + env + labels + names.map(|name| name.len() + 60).sum::<usize>()
    }

    /// What it is for, as far as it says.
    pub(super) fn platform(&self) -> Option<Platform> {
        if self.os.is_empty() || self.architecture.is_empty() {
            return None;
        }
        Some(Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            variant: self.variant.clone(),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
        })
    }

    /// Sets a variable where it stands, or behind the others.
    pub(super) fn set_env(&mut self, name: &str, value: &str) {
        let env = &mut self.config.env;
        if self.places.is_empty() {
            // The first one counts, if there are several of a name.
            let places = env.iter().enumerate().rev().map(|(place, line)| (split(line).0.to_owned(), place));
            self.places = places.collect();
        }
        let line = format!("{name}={value}");
        match self.places.get(name) {
            Some(place) => env[*place] = line,
            None => {
                self.places.insert(name.into(), env.len());
                env.push(line);
            }
        }
    }

    /// A command for the shell as a list of words.
    pub(super) fn with_shell(&self, command: &str) -> Vec<String> {
        let mut words = match self.config.shell.is_empty() {
            true => vec!["/bin/sh".into(), "-c".into()],
            false => self.config.shell.clone(),
        };
        words.push(command.into());
        words
    }

    /// Adds a line to the history.
    pub(super) fn record(&mut self, what: String, layer: bool, epoch: Option<i64>) {
        self.history.push(History {
            created: epoch.map(text::timestamp),
            created_by: what,
            author: String::new(),
            comment: COMMENT.into(),
            empty_layer: !layer,
        });
    }
}

/// `NAME=value`
pub(super) fn split(line: &str) -> (&str, &str) {
    line.split_once('=').unwrap_or((line, ""))
}
