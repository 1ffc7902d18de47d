//! What SIGHUP changes: the part of the configuration that is looked up anew for each use.

use super::settings::{Runtime, Settings};
use crate::registries::{Registries, RegistriesError};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

/// How long requests in flight may take after SIGTERM, unless the configuration says otherwise.
const DRAIN: Duration = Duration::from_secs(5);

/// Values that a reload replaces.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// Filter of log messages.
    pub log_filter: String,
    /// Whether that tells more than usual.
    pub debug: bool,
    /// `KEY=VALUE` of this engine.
    pub labels: Vec<String>,
    /// What is said about registries.
    pub registries: Registries,
    insecure: Vec<String>,
    mirrors: Vec<String>,
    /// OCI runtime of containers that name none; empty means the shim's own choice (berth-runtime).
    pub runtime: String,
    /// Runtimes with names.
    pub runtimes: BTreeMap<String, Runtime>,
    /// Layers that are fetched at the same time; 0 leaves it to the supervisor.
    pub downloads: u32,
    /// The same for pushes.
    pub uploads: u32,
    /// How long requests in hand may take after SIGTERM.
    pub drain: Duration,
    /// Features by name.
    pub features: BTreeMap<String, bool>,
}

impl Live {
    /// From the settings; `environment` is `BERTH_LOG`.
    pub fn new(settings: &Settings, environment: Option<String>) -> Result<Self, RegistriesError> {
        let level = match settings.log_level.as_deref().unwrap_or("info") {
            "fatal" | "panic" => "error",
            level => level,
        };
        let debug = settings.debug || matches!(level, "debug" | "trace");
        let filter = if settings.debug { "debug,h2=info,hyper=info,tower=info" } else { level };
        Ok(Self {
            log_filter: environment.filter(|text| !text.is_empty()).unwrap_or_else(|| filter.to_owned()),
            debug,
            labels: settings.labels.clone(),
            registries: Registries::parse(&settings.insecure_registries, &settings.registry_mirrors)?,
            insecure: settings.insecure_registries.clone(),
            mirrors: settings.registry_mirrors.clone(),
            runtime: settings.default_runtime.clone().unwrap_or_default(),
            runtimes: settings.runtimes.clone(),
            downloads: settings.max_concurrent_downloads.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            uploads: settings.max_concurrent_uploads.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            drain: match settings.shutdown_timeout {
                None => DRAIN,
                // As long as it takes, within a service manager's patience.
                Some(seconds) => u64::try_from(seconds).map_or(Duration::from_secs(3600), Duration::from_secs),
            },
            features: settings.features.clone(),
        })
    }

    /// The program, or the type of a shim, behind a runtime's name; names that nobody configured stand for themselves.
    pub fn runtime<'a>(&'a self, name: &'a str) -> &'a str {
        match self.runtimes.get(name) {
            Some(runtime) if runtime.path.is_empty() => &runtime.kind,
            Some(runtime) => &runtime.path,
            None => name,
        }
    }

    /// Name of the default runtime.
    pub fn default_runtime(&self) -> &str {
        if self.runtime.is_empty() { "berth-runtime" } else { &self.runtime }
    }

    /// `Runtimes` of `GET /info`.
    pub fn shown_runtimes(&self) -> Value {
        let mut all = Map::new();
        all.insert("berth-runtime".into(), json!({"path": "berth-runtime"}));
        all.insert(self.default_runtime().to_owned(), json!({"path": self.runtime(self.default_runtime())}));
        for (name, runtime) in &self.runtimes {
            let shown = match runtime.path.is_empty() {
                true => json!({"runtimeType": runtime.kind}),
                false => json!({"path": runtime.path}),
            };
            all.insert(name.clone(), shown);
        }
        all.into()
    }

    /// Attributes of the event that tells of a reload: what holds now.
    pub fn attributes(&self) -> HashMap<String, String> {
        let text = |value: Value| value.to_string();
        HashMap::from([
            ("debug".into(), self.debug.to_string()),
            ("labels".into(), text(json!(self.labels))),
            ("insecure-registries".into(), text(json!(self.insecure))),
            ("registry-mirrors".into(), text(json!(self.mirrors))),
            ("default-runtime".into(), self.default_runtime().to_owned()),
            (
                "runtimes".into(),
                self.runtimes.keys().map(|name| format!(" {name}")).collect::<String>().trim().to_owned(),
            ),
            ("live-restore".into(), "true".into()),
            ("max-concurrent-downloads".into(), self.downloads.to_string()),
            ("max-concurrent-uploads".into(), self.uploads.to_string()),
            ("shutdown-timeout".into(), self.drain.as_secs().to_string()),
            ("features".into(), text(json!(self.features))),
        ])
    }
}
