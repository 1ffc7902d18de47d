//! Network configurations: which there are, what is wrong with them, what a plugin is told of its own.
//!
//! The folder is read whenever somebody needs the network. That costs some microseconds beside plugins that take milliseconds, and
//! there is nothing to watch: a folder that doesn't exist yet, links, and file systems that don't tell of changes are no special cases.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::OnceCell;

use super::{
    capabilities::Capabilities,
    version::{self, Version},
};

/// Longest file; libcni's users take no more either.
const FILE_LIMIT: u64 = 2 << 20;

/// A JSON object whose values stay as they were written: numbers lose no digit on their way to a plugin.
type Object = BTreeMap<String, Box<RawValue>>;

/// One plugin of a network, as configured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Plugin {
    /// The name of its program.
    pub(super) kind: String,
    config: Object,
}

/// A network.
#[derive(Debug, Clone)]
pub(super) struct Network {
    /// Its name.
    pub(super) name: String,
    /// Versions that the configuration allows and we speak, the newest first; at least one.
    pub(super) versions: Vec<Version>,
    /// Its plugins, in the order of ADD; at least one.
    pub(super) plugins: Vec<Plugin>,
}

/// A network and the files that it comes from.
#[derive(Debug)]
pub(super) struct Source {
    /// The file that counts.
    pub(super) at: PathBuf,
    texts: Vec<Vec<u8>>,
    /// What it says.
    pub(super) network: Network,
    /// The version that all plugins speak, once they have been asked.
    pub(super) agreed: OnceCell<Version>,
}

impl Source {
    /// Whether nothing has changed.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.at == other.at && self.texts == other.texts
    }
}

/// What is found in a folder.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The first network that is sound.
    pub(super) source: Option<Source>,
    /// What is wrong with those before it.
    pub(super) problems: Vec<String>,
}

/// Looks for the network of pods: the first by name whose file is sound.
pub(super) fn find(folder: &Path) -> Found {
    let mut found = Found::default();
    let files = match files(folder, &["conf", "conflist", "json"]) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return found,
        Err(error) => {
            found.problems.push(format!("read {}: {error}", folder.display()));
            return found;
        }
    };
    for at in files {
        match load(&at) {
            Ok(source) => {
                found.source = Some(source);
                return found;
            }
            Err(why) => found.problems.push(format!("{}: {why}", at.display())),
        }
    }
    found
}

/// Files with one of these extensions, by name.
fn files(folder: &Path, extensions: &[&str]) -> io::Result<Vec<PathBuf>> {
    let wanted = |at: &Path| at.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted));
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if wanted(&entry.path()) && !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.push(entry.path());
        }
    }
    all.sort();
    Ok(all)
}

fn read(at: &Path) -> io::Result<Vec<u8>> {
    // A FIFO would keep us waiting.
    let file = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(at)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut text = Vec::new();
    file.take(FILE_LIMIT + 1).read_to_end(&mut text)?;
    if text.len() as u64 > FILE_LIMIT {
        return Err(io::Error::other(format!("more than {FILE_LIMIT} bytes")));
    }
    Ok(text)
}

fn load(at: &Path) -> Result<Source, String> {
    let text = read(at).map_err(|error| error.to_string())?;
    if at.extension().is_none_or(|extension| extension != "conflist") {
        let network = single(&text)?;
        return Ok(Source { at: at.to_owned(), texts: vec![text], network, agreed: OnceCell::new() });
    }
    let (mut network, more) = list(&text)?;
    let mut texts = vec![text];
    if more {
        // As libcni has it since 1.3: what is installed beside a network joins it by a file of its own.
        let folder = at.with_file_name(&network.name);
        let files = match files(&folder, &["conf"]) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            files => files.map_err(|error| format!("read {}: {error}", folder.display()))?,
        };
        for at in files {
            let problem = |why: String| format!("{}: {why}", at.display());
            let text = read(&at).map_err(|error| problem(error.to_string()))?;
            network.plugins.push(object(&text).and_then(Plugin::new).map_err(problem)?);
            texts.push(text);
        }
    }
    if network.plugins.is_empty() {
        return Err("there are no plugins".to_owned());
    }
    Ok(Source { at: at.to_owned(), texts, network, agreed: OnceCell::new() })
}

fn object(text: &[u8]) -> Result<Object, String> {
    serde_json::from_slice(text).map_err(|error| error.to_string())
}

/// A file of one plugin, which makes a network of its own.
fn single(text: &[u8]) -> Result<Network, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        #[serde(default)]
        name: String,
        cni_version: Option<String>,
    }
    let Head { name, cni_version } = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let config = object(text)?;
    if config.contains_key("plugins") && !config.contains_key("type") {
        return Err("a list of plugins has to be in a file named .conflist".to_owned());
    }
    Ok(Network { name: name_of(name)?, versions: versions(cni_version, None)?, plugins: vec![Plugin::new(config)?] })
}

/// What a switch may be in a configuration: Go's libraries write it either way.
#[derive(Deserialize)]
#[serde(untagged)]
enum Switch {
    Bool(bool),
    Text(String),
}

/// A file with a list of plugins; and whether files beside it may add to them.
fn list(text: &[u8]) -> Result<(Network, bool), String> {
    // `disableCheck` and `disableGC` forbid what we don't do.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct List {
        #[serde(default)]
        name: String,
        cni_version: Option<String>,
        cni_versions: Option<Vec<String>>,
        load_only_inlined_plugins: Option<Switch>,
        #[serde(default)]
        plugins: Vec<Object>,
    }
    let list: List = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let alone = match list.load_only_inlined_plugins {
        None => false,
        Some(Switch::Bool(alone)) => alone,
        Some(Switch::Text(text)) => {
            text.to_lowercase().parse().map_err(|_| format!("loadOnlyInlinedPlugins is {text:?}"))?
        }
    };
    let name = name_of(list.name)?;
    let versions = versions(list.cni_version, list.cni_versions)?;
    let plugins = list.plugins.into_iter().enumerate();
    let plugins = plugins.map(|(at, config)| Plugin::new(config).map_err(|why| format!("plugin {at}: {why}")));
    Ok((Network { name, versions, plugins: plugins.collect::<Result<_, _>>()? }, !alone))
}

/// Plugins make files and rules of the name.
fn name_of(name: String) -> Result<String, String> {
    if name.is_empty() {
        return Err("there is no name".to_owned());
    }
    if is_identifier(&name) { Ok(name) } else { Err(format!("name {name:?} is none that plugins take")) }
}

/// What libcni takes for ids and names.
pub(super) fn is_identifier(text: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    text.starts_with(|first: char| first.is_ascii_alphanumeric()) && text.bytes().all(inside)
}

/// Whether a program may be called so: one that leads out of the folders of plugins would run anything (CVE-2021-20206).
pub(super) fn is_program(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

/// The versions that we may use, the newest first.
fn versions(one: Option<String>, several: Option<Vec<String>>) -> Result<Vec<Version>, String> {
    let one = one.filter(|name| !name.is_empty());
    let Some(several) = several else {
        let Some(name) = one else { return Ok(vec![Version::V0_1_0]) };
        return Ok(vec![Version::of(&name).ok_or_else(|| version::unknown(&name))?]);
    };
    // Those that are newer than we are may be among them: that is what the list is for.
    let mut known: Vec<_> = several.iter().chain(&one).filter_map(|name| Version::of(name)).collect();
    known.sort_by(|a, b| b.cmp(a));
    known.dedup();
    match (known.is_empty(), several.iter().chain(&one).next()) {
        (false, _) => Ok(known),
        (true, Some(name)) => Err(version::unknown(name)),
        (true, None) => Ok(vec![Version::V0_1_0]),
    }
}

impl Plugin {
    fn new(config: Object) -> Result<Self, String> {
        let text = |key: &str| -> Result<Option<String>, String> {
            let value = config.get(key).map(|raw| serde_json::from_str(raw.get()));
            value.transpose().map_err(|_| format!("{key} is no text"))
        };
        let kind = text("type")?.ok_or("there is no type")?;
        if !is_program(&kind) {
            return Err(format!("type {kind:?} can't be the name of a plugin"));
        }
        let plugin = Self { kind, config };
        plugin.declared().map_err(|error| format!("capabilities: {error}"))?;
        if let Some(kind) = plugin.address_plugin()
            && !kind.is_empty()
            && !is_program(&kind)
        {
            return Err(format!("ipam: type {kind:?} can't be the name of a plugin"));
        }
        Ok(plugin)
    }

    fn address_plugin(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Ipam {
            r#type: String,
        }
        let ipam: Ipam = serde_json::from_str(self.config.get("ipam")?.get()).ok()?;
        Some(ipam.r#type)
    }

    fn declared(&self) -> Result<BTreeMap<String, bool>, serde_json::Error> {
        let declared = self.config.get("capabilities").map(|raw| serde_json::from_str::<Option<_>>(raw.get()));
        Ok(declared.transpose()?.flatten().unwrap_or_default())
    }

    /// Whether it wants to be told of something.
    pub(super) fn wants(&self, capability: &str) -> bool {
        self.declared().is_ok_and(|declared| declared.get(capability).is_some_and(|wanted| *wanted))
    }

    /// What it reads from its standard input. `capabilities` stays in, as libcni leaves it: plugins that call others look for it.
    pub(super) fn input(
        &self,
        network: &str,
        version: Version,
        capabilities: &Capabilities,
        previous: Option<&RawValue>,
    ) -> Result<Vec<u8>, serde_json::Error> {
        let mut config = self.config.clone();
        config.insert("name".to_owned(), to_raw_value(network)?);
        config.insert("cniVersion".to_owned(), to_raw_value(version.name())?);
        let wanted: BTreeMap<_, _> = capabilities.iter().filter(|(name, _)| self.wants(name)).collect();
        if !wanted.is_empty() {
            config.insert("runtimeConfig".to_owned(), to_raw_value(&wanted)?);
        }
        if let Some(previous) = previous {
            config.insert("prevResult".to_owned(), previous.to_owned());
        }
        serde_json::to_vec(&config)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let at = folder.path().join(name);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            fs::write(at, text).unwrap();
        }
        folder
    }

    fn found(files: &[(&str, &str)]) -> Result<Network, String> {
        let Found { source, problems } = find(folder(files).path());
        source.map(|source| source.network).ok_or_else(|| problems.join("\n"))
    }

    fn kinds(network: &Network) -> Vec<&str> {
        network.plugins.iter().map(|plugin| plugin.kind.as_str()).collect()
    }

    const LIST: &str = r#"{"name":"n","cniVersion":"1.0.0","disableCheck":"true","disableGC":false,"plugins":[{"type":"a"},{"type":"b"}]}"#;
    const SINGLE: &str = r#"{"name":"s","cniVersion":"0.3.1","type":"c","big":12345678901234567890123}"#;

    #[test]
    fn the_first_by_name_that_is_sound() {
        let network = found(&[("10-x.conflist", LIST), ("20-y.conf", SINGLE)]).unwrap();
        assert_eq!(
            (&*network.name, kinds(&network), &*network.versions),
            ("n", vec!["a", "b"], &[Version::V1_0_0][..])
        );
        for name in ["09-y.conf", "09-y.json"] {
            let network = found(&[("10-x.conflist", LIST), (name, SINGLE)]).unwrap();
            assert_eq!((&*network.name, kinds(&network), &*network.versions), ("s", vec!["c"], &[Version::V0_3_1][..]));
        }
        let bad = folder(&[("10-bad.conflist", "{"), ("11-x.conflist", LIST), ("01.txt", SINGLE), ("0.conf/x", "")]);
        let found = find(bad.path());
        assert!(found.source.is_some());
        assert_eq!(found.problems.len(), 1);
        assert!(found.problems[0].contains("10-bad.conflist: EOF"), "{:?}", found.problems);
    }

    #[test]
    fn a_folder_that_is_not_there_is_empty() {
        let found = find(Path::new("/nonexistent/net.d"));
        assert!(found.source.is_none() && found.problems.is_empty());
    }

    #[test]
    fn what_is_not_sound_says_why() {
        for (name, text, words) in [
            ("a.conflist", r#"{"plugins":[{"type":"a"}]}"#, "no name"),
            ("a.conflist", r#"{"name":"../x","plugins":[{"type":"a"}]}"#, "name \"../x\""),
            ("a.conflist", r#"{"name":"n","plugins":[]}"#, "no plugins"),
            ("a.conflist", r#"{"name":"n"}"#, "no plugins"),
            ("a.conflist", r#"{"name":"n","plugins":[{"type":"a"},{}]}"#, "plugin 1: there is no type"),
            ("a.conflist", r#"{"name":"n","plugins":[{"type":"../sh"}]}"#, "type \"../sh\" can't be"),
            ("a.conflist", r#"{"name":"n","plugins":[{"type":".."}]}"#, "type \"..\" can't be"),
            ("a.conflist", r#"{"name":"n","plugins":[{"type":"a","ipam":{"type":"/bin/sh"}}]}"#, "ipam: type"),
            ("a.conflist", r#"{"name":"n","plugins":[{"type":"a","capabilities":{"x":1}}]}"#, "capabilities: "),
            ("a.conflist", r#"{"name":"n","cniVersion":"7.0.0","plugins":[{"type":"a"}]}"#, "\"7.0.0\" is none"),
            ("a.conflist", r#"{"name":"n","cniVersions":["7.0.0"],"plugins":[{"type":"a"}]}"#, "\"7.0.0\" is none"),
            ("a.conflist", r#"{"name":"n","loadOnlyInlinedPlugins":"no","plugins":[{"type":"a"}]}"#, "is \"no\""),
            ("a.conflist", r#"{"name":"n","loadOnlyInlinedPlugins":true}"#, "no plugins"),
            ("a.conflist", "[]", "a.conflist: "),
            ("a.conf", r#"{"type":"a"}"#, "no name"),
            ("a.conf", LIST, ".conflist"),
            ("a.conf", r#"{"name":"n","type":7}"#, "type is no text"),
        ] {
            let error = found(&[(name, text)]).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn no_file_keeps_us_waiting() {
        let folder = folder(&[("b.conflist", LIST)]);
        nix::unistd::mkfifo(&folder.path().join("a.conflist"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let found = find(folder.path());
        assert!(found.source.is_some() && found.problems[0].contains("a.conflist: not a file"), "{:?}", found.problems);
        fs::write(folder.path().join("0.json"), vec![b' '; FILE_LIMIT as usize + 1]).unwrap();
        assert!(find(folder.path()).problems[0].contains("0.json: more than"));
    }

    #[test]
    fn versions_of_a_configuration() {
        let of = |one: &str, several: Option<&[&str]>| {
            let several = several.map(|all| all.iter().map(|&name| name.to_owned()).collect());
            versions(Some(one.to_owned()), several).map(|all| all.into_iter().map(Version::name).collect::<Vec<_>>())
        };
        assert_eq!(of("", None).unwrap(), ["0.1.0"]);
        assert_eq!(versions(None, None), Ok(vec![Version::V0_1_0]));
        assert_eq!(of("0.4.0", None).unwrap(), ["0.4.0"]);
        assert_eq!(of("0.4.0", Some(&["1.1.0", "0.4.0", "2.0.0", "1.0.0"])).unwrap(), ["1.1.0", "1.0.0", "0.4.0"]);
        assert_eq!(of("", Some(&[])).unwrap(), ["0.1.0"]);
    }

    #[test]
    fn files_beside_a_list_add_plugins() {
        let files = [("a.conflist", LIST), ("n/20.conf", r#"{"type":"z"}"#), ("n/10.conf", r#"{"type":"y"}"#)];
        assert_eq!(kinds(&found(&files).unwrap()), ["a", "b", "y", "z"]);
        let alone = LIST.replace("\"disableGC\":false", "\"loadOnlyInlinedPlugins\":true");
        assert_eq!(kinds(&found(&[("a.conflist", &alone), files[1]]).unwrap()), ["a", "b"]);
        let error = found(&[files[0], ("n/1.conf", "{}")]).unwrap_err();
        assert!(error.contains("n/1.conf: there is no type"), "{error}");
    }

    #[test]
    fn a_change_is_seen() {
        let folder = folder(&[("a.conflist", LIST), ("n/10.conf", r#"{"type":"y"}"#)]);
        let look = || find(folder.path()).source.unwrap();
        let before = look();
        assert!(before.same(&look()));
        fs::write(folder.path().join("n/10.conf"), r#"{"type":"z"}"#).unwrap();
        assert!(!before.same(&look()));
    }

    #[test]
    fn a_plugin_is_told_what_it_wants_to_know() {
        let text = br#"{"type":"p","name":"other","num":12345678901234567890123,"capabilities":{"a":true,"b":false}}"#;
        let plugin = Plugin::new(object(text).unwrap()).unwrap();
        let capabilities = ["a", "b", "c"].map(|name| (name.to_owned(), json!([name]))).into();
        let result: Box<RawValue> = serde_json::from_str(r#"{"ips":[]}"#).unwrap();
        let input = plugin.input("net", Version::V1_0_0, &capabilities, Some(&result)).unwrap();
        let wanted = concat!(
            r#"{"capabilities":{"a":true,"b":false},"cniVersion":"1.0.0","name":"net","num":12345678901234567890123,"#,
            r#""prevResult":{"ips":[]},"runtimeConfig":{"a":["a"]},"type":"p"}"#
        );
        assert_eq!(String::from_utf8(input).unwrap(), wanted);
        let bare = Plugin::new(object(br#"{"type":"p","capabilities":null}"#).unwrap()).unwrap();
        let input = bare.input("net", Version::V1_0_0, &capabilities, None).unwrap();
        assert!(!String::from_utf8(input).unwrap().contains("runtimeConfig"));
    }
}
