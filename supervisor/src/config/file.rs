//! The configuration file: its keys with their defaults, and a strict reading of it. What is not known is refused with the
//! line and the nearest name that is known; all faults are found at once, not one at a time.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::{Deserialize, Serialize};
use toml::{
    Spanned, Table, Value,
    de::{DeTable, DeValue},
};

use super::{LogFormat, period::Period};
use crate::{gc::GcConfig, snapshots::SnapshotConfig};

/// Every key of the file. A key without value of its own is empty: so each is there in a dump, and known to the reader.
/// What belongs to one part of the program is a section of its own. Unknown keys are found by `Reading`, with their lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct Settings {
    /// Folder for what must outlive a reboot.
    pub(crate) data_root: PathBuf,
    /// Folder for sockets and what runs.
    pub(crate) run_root: PathBuf,
    /// Address of the API.
    pub(crate) listen: String,
    /// A level, or a list of `target=level`.
    pub(crate) log_level: String,
    /// How log lines look.
    pub(crate) log_format: LogFormat,
    /// Where log lines go, if not to stderr.
    pub(crate) log_file: PathBuf,
    /// Address of the metrics.
    pub(crate) metrics: String,
    /// How long requests in hand may take at the end.
    pub(crate) drain: Period,
    /// What is told to every shim.
    pub(crate) shim: ShimSettings,
    /// What is kept of images.
    pub(crate) content: ContentSettings,
    /// How layers are kept.
    pub(crate) snapshots: SnapshotConfig,
    /// When garbage is collected.
    pub(crate) gc: GcSettings,
    /// How registries are reached.
    pub(crate) registry: RegistrySettings,
    /// What the kubelet is served with.
    pub(crate) cri: CriSettings,
    /// Runtime names and the shim binaries that serve them.
    pub(crate) runtimes: BTreeMap<String, PathBuf>,
}

/// What is told to every shim.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct ShimSettings {
    /// Whether it should be talkative.
    pub(crate) debug: bool,
}

/// What is kept of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct ContentSettings {
    /// Whether blobs of layers stay once they are unpacked.
    pub(crate) keep_layers: bool,
}

impl Default for ContentSettings {
    fn default() -> Self {
        Self { keep_layers: true }
    }
}

/// When garbage is collected: as `GcConfig`, in the file's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct GcSettings {
    schedule_delay: Period,
    startup_delay: Period,
    deletion_threshold: u32,
    mutation_threshold: u32,
    pause_percent: u8,
}

impl Default for GcSettings {
    fn default() -> Self {
        let GcConfig { schedule_delay, startup_delay, deletion_threshold, mutation_threshold, pause_percent } =
            GcConfig::default();
        Self {
            schedule_delay: Period(schedule_delay),
            startup_delay: Period(startup_delay),
            deletion_threshold,
            mutation_threshold,
            pause_percent,
        }
    }
}

impl From<GcSettings> for GcConfig {
    fn from(settings: GcSettings) -> Self {
        let GcSettings { schedule_delay, startup_delay, deletion_threshold, mutation_threshold, pause_percent } =
            settings;
        Self {
            schedule_delay: schedule_delay.0,
            startup_delay: startup_delay.0,
            deletion_threshold,
            mutation_threshold,
            pause_percent,
        }
    }
}

/// How registries are reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct RegistrySettings {
    /// Folders of hosts, in the order in which they count.
    pub(crate) config_path: Vec<PathBuf>,
    /// How long a connection may be silent.
    pub(crate) silence: Period,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        let folders = ["/etc/berth/certs.d", "/etc/docker/certs.d", "/etc/containerd/certs.d"];
        Self { config_path: folders.map(PathBuf::from).into(), silence: Period::seconds(60) }
    }
}

/// What the kubelet is served with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct CriSettings {
    /// Folder of network configurations.
    pub(crate) cni_conf_dir: PathBuf,
    /// Folders of their plugins, in the order in which they count.
    pub(crate) cni_bin_dirs: Vec<PathBuf>,
    /// How long one call of a plugin may take.
    pub(crate) cni_plugin_limit: Period,
    /// Folders of descriptions of devices (CDI), the last that has one counts.
    pub(crate) cdi_spec_dirs: Vec<PathBuf>,
    /// Where exec, attach and port-forward are served.
    pub(crate) streaming_address: String,
    /// Plugins that change containers.
    pub(crate) nri: NriSettings,
    /// Handlers of RuntimeClass: an OCI runtime's program, or a runtime that has a shim of its own.
    pub(crate) handlers: BTreeMap<String, String>,
}

impl Default for CriSettings {
    fn default() -> Self {
        Self {
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_bin_dirs: ["/opt/cni/bin", "/usr/lib/cni"].map(PathBuf::from).into(),
            cni_plugin_limit: Period::seconds(120),
            cdi_spec_dirs: ["/etc/cdi", "/var/run/cdi"].map(PathBuf::from).into(),
            streaming_address: "127.0.0.1:0".into(),
            nri: NriSettings::default(),
            handlers: BTreeMap::new(),
        }
    }
}

/// Plugins that change containers (NRI), in containerd's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct NriSettings {
    /// Whether there are none.
    pub(crate) disable: bool,
    /// Where plugins connect.
    pub(crate) socket_path: PathBuf,
    /// Whether they may not.
    pub(crate) disable_connections: bool,
    /// Folder of those that are started by us.
    pub(crate) plugin_path: PathBuf,
    /// Folder of their configurations.
    pub(crate) plugin_config_path: PathBuf,
    /// How long one may take until it has said who it is.
    pub(crate) plugin_registration_timeout: Period,
    /// How long one may take to answer.
    pub(crate) plugin_request_timeout: Period,
}

impl Default for NriSettings {
    fn default() -> Self {
        Self {
            disable: true,
            socket_path: "/var/run/nri/nri.sock".into(),
            disable_connections: false,
            plugin_path: "/opt/nri/plugins".into(),
            plugin_config_path: "/etc/nri/conf.d".into(),
            plugin_registration_timeout: Period::seconds(5),
            plugin_request_timeout: Period::seconds(2),
        }
    }
}

/// Sections whose keys are the user's own words.
const FREE: [&str; 2] = ["runtimes", "cri.handlers"];

/// The commented file that says all this to people.
pub(crate) const DEFAULT: &str = include_str!("default.toml");

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_root: "/var/lib/berth".into(),
            run_root: "/run/berth".into(),
            listen: String::new(),
            log_level: "info".into(),
            log_format: LogFormat::Text,
            log_file: PathBuf::new(),
            metrics: String::new(),
            drain: Period::seconds(5),
            shim: ShimSettings::default(),
            content: ContentSettings::default(),
            snapshots: SnapshotConfig::default(),
            gc: GcSettings::default(),
            registry: RegistrySettings::default(),
            cri: CriSettings::default(),
            runtimes: BTreeMap::new(),
        }
    }
}

/// One thing that is wrong in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    /// Its line, counted from 1.
    pub(crate) line: usize,
    /// What is wrong.
    pub(crate) what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// A file that could be read: its values, and where they are.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    /// The values.
    pub(crate) settings: Settings,
    lines: BTreeMap<String, usize>,
}

impl Reading {
    /// Reads the text of a file, or says everything that is wrong with it.
    pub(crate) fn of(text: &str) -> Result<Self, Vec<Problem>> {
        let problem = |error: &toml::de::Error| Problem {
            line: error.span().map_or(1, |span| line(text, span.start)),
            what: error.message().replace('\n', " "),
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let mut problems: Vec<_> = errors.iter().map(problem).collect();
            problems.sort();
            return Err(problems);
        }
        let known = Table::try_from(Settings::default()).unwrap_or_default();
        let (mut lines, mut problems) = (BTreeMap::new(), Vec::new());
        look(text, table.get_ref(), &known, "", &mut lines, &mut problems);
        match toml::from_str::<Settings>(text) {
            Ok(settings) if problems.is_empty() => return Ok(Self { settings, lines }),
            Ok(_) => {}
            // It stops at the first fault, which may be one that is known by now.
            Err(error) => {
                let new = problem(&error);
                if problems.iter().all(|other| other.line != new.line) {
                    problems.push(new);
                }
            }
        }
        problems.sort();
        Err(problems)
    }

    /// The line of a key, if the file has it.
    pub(crate) fn line(&self, key: &str) -> Option<usize> {
        self.lines.get(key).copied()
    }
}

fn line(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1
}

// Notes where keys are, and complains of those that aren't known.
fn look(
    text: &str,
    table: &DeTable<'_>,
    known: &Table,
    above: &str,
    lines: &mut BTreeMap<String, usize>,
    problems: &mut Vec<Problem>,
) {
    let entries: Vec<(&Spanned<_>, &Spanned<DeValue<'_>>)> = table.iter().collect();
    for (key, value) in entries {
        let name: &str = key.get_ref();
        let (path, line) = (format!("{above}{name}"), line(text, key.span().start));
        if FREE.iter().any(|free| above.strip_suffix('.') == Some(free)) {
            lines.insert(path, line);
            continue;
        }
        let Some(default) = known.get(name) else {
            problems.push(Problem { line, what: format!("unknown key {path:?}{}", hint(name, known, above)) });
            continue;
        };
        if let (DeValue::Table(inner), Value::Table(known)) = (value.get_ref(), default) {
            look(text, inner, known, &format!("{path}."), lines, problems);
        }
        lines.insert(path, line);
    }
}

fn hint(name: &str, known: &Table, above: &str) -> String {
    let wanted = name.to_lowercase().replace('_', "-");
    let nearest = known.keys().min_by_key(|key| distance(&wanted, key));
    match nearest.filter(|key| distance(&wanted, key) <= key.len().max(3) / 3) {
        Some(key) => format!(": did you mean \"{above}{key}\"?"),
        None => {
            let all: Vec<_> = known.keys().map(String::as_str).collect();
            format!(" (known here: {})", all.join(", "))
        }
    }
}

/// How many letters must be changed, added or taken away to make one word of the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        Reading::of(text).expect_err(text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_commented_file_is_the_default() {
        let reading = Reading::of(DEFAULT).unwrap();
        assert_eq!(reading.settings, Settings::default());
        for key in Table::try_from(Settings::default()).unwrap().keys() {
            assert!(reading.line(key).is_some(), "{key} is missing in default.toml");
        }
        assert_eq!(Settings::default(), toml::from_str(&toml::to_string(&Settings::default()).unwrap()).unwrap());
    }

    #[test]
    fn everything_that_is_wrong_is_said_with_its_line() {
        let table: [(&str, &[&str]); 8] = [
            ("data-rot = '/d'", &["line 1: unknown key \"data-rot\": did you mean \"data-root\"?"]),
            (
                "\nlog_level = 'x'\n[shim]\ndebog = true\n",
                &[
                    "line 2: unknown key \"log_level\": did you mean \"log-level\"?",
                    "line 4: unknown key \"shim.debog\": did you mean \"shim.debug\"?",
                ],
            ),
            ("[shim]\nx = 1", &["line 2: unknown key \"shim.x\" (known here: debug)"]),
            ("\n\nlisten = 1", &["line 3: invalid type: integer `1`, expected a string"]),
            ("drain = '5'", &["line 1: \"5\" is not a period"]),
            ("log-format = 'xml'\nnonsense-of-mine = 1", &["line 1: unknown variant `xml`", "line 2: unknown key"]),
            ("a = \n\nb", &["line 1:", "line 3:"]),
            ("listen = ''\nlisten = ''", &["line 2: duplicate key"]),
        ];
        for (text, wanted) in table {
            let found = problems(text);
            assert_eq!(found.len(), wanted.len(), "{text:?}: {found:?}");
            for (found, wanted) in found.iter().zip(wanted) {
                assert!(found.starts_with(wanted), "{text:?}: {found}");
            }
        }
    }

    #[test]
    fn names_of_runtimes_are_free() {
        let reading = Reading::of("[runtimes]\n'io.containerd.x.v1' = '/x'\n").unwrap();
        assert_eq!(reading.line("runtimes.io.containerd.x.v1"), Some(2));
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_strange(text in "\\PC{0,40}([=\\[\\]\"'\n#.]\\PC{0,10}){0,6}") {
            if let Err(problems) = Reading::of(&text) {
                assert!(!problems.is_empty());
            }
        }
    }
}
