//! docker's protocol for plugins of the command line: programs `docker-NAME` in known folders, which are run as `berth NAME`.
//!
//! A plugin is asked once with `docker-cli-plugin-metadata` and answers with JSON. It is then run with the whole command line,
//! global flags included, and with the engine's address in DOCKER_HOST, so that it reaches the engine that berth would.

pub mod build;
pub mod hooks;
pub mod run;

use crate::config::Config;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

/// What every plugin's program is called.
const PREFIX: &str = "docker-";
/// What asks a plugin for its description.
const METADATA: &str = "docker-cli-plugin-metadata";
/// Tells a plugin which command line started it.
pub const ORIGINAL: &str = "DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND";
/// Folders of the system: berth's own, then docker's.
const FOLDERS: [&str; 8] = [
    "/usr/local/lib/berth/cli-plugins",
    "/usr/local/libexec/berth/cli-plugins",
    "/usr/lib/berth/cli-plugins",
    "/usr/libexec/berth/cli-plugins",
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
];

/// What a plugin says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Metadata {
    /// "0.1.0"
    pub schema_version: String,
    /// Who made it.
    pub vendor: String,
    /// Its version.
    pub version: String,
    /// What it does.
    pub short_description: String,
    /// Where more is said.
    #[serde(rename = "URL")]
    pub url: String,
    /// Not in help.
    pub hidden: bool,
}

/// A plugin, or what calls itself one.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// "compose"
    pub name: String,
    /// The program.
    pub path: PathBuf,
    /// What it says, or why it is none.
    pub metadata: Result<Metadata, String>,
}

/// The plugins that can be found.
#[derive(Debug, Default)]
pub struct Plugins {
    /// Name and program; the first folder that has a name wins.
    found: BTreeMap<String, PathBuf>,
}

impl Plugins {
    /// Looks into all folders.
    pub fn find(config: &Config) -> Self {
        let mut folders: Vec<PathBuf> =
            config.file.list("cliPluginsExtraDirs").into_iter().map(PathBuf::from).collect();
        folders.extend(config.dir.as_ref().map(|dir| dir.join("cli-plugins")));
        folders.extend(FOLDERS.map(PathBuf::from));
        Self::in_folders(&folders)
    }

    fn in_folders(folders: &[PathBuf]) -> Self {
        let mut found = BTreeMap::new();
        for folder in folders {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let file = entry.file_name();
                let Some(name) = file.to_str().and_then(|file| file.strip_prefix(PREFIX)) else { continue };
                if entry.path().is_file() {
                    found.entry(name.to_owned()).or_insert_with(|| entry.path());
                }
            }
        }
        Self { found }
    }

    /// A plugin by its name, asked for its description.
    pub fn get(&self, name: &str) -> Option<Plugin> {
        self.found.get(name).map(|path| ask(name, path))
    }

    /// Names, unasked.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.found.keys().map(String::as_str)
    }

    /// All of them, asked at the same time.
    pub fn all(&self) -> Vec<Plugin> {
        thread::scope(|scope| {
            let asked: Vec<_> =
                self.found.iter().map(|(name, path)| (name, path, scope.spawn(move || ask(name, path)))).collect();
            let answer = |(name, path, thread): (&String, &PathBuf, thread::ScopedJoinHandle<'_, Plugin>)| {
                thread.join().unwrap_or_else(|_| Plugin {
                    name: name.clone(),
                    path: path.clone(),
                    metadata: Err("it could not be asked".to_owned()),
                })
            };
            asked.into_iter().map(answer).collect()
        })
    }
}

fn ask(name: &str, path: &Path) -> Plugin {
    Plugin { name: name.to_owned(), path: path.to_owned(), metadata: metadata(name, path) }
}

fn metadata(name: &str, path: &Path) -> Result<Metadata, String> {
    let lower = |c: char| c.is_ascii_lowercase();
    if !name.starts_with(lower) || !name.chars().all(|c| lower(c) || c.is_ascii_digit()) {
        return Err(format!("plugin candidate {name:?} did not match \"^[a-z][a-z0-9]*$\""));
    }
    let failed = |cause: io::Error| format!("failed to fetch metadata: {cause}");
    if fs::metadata(path).map_err(failed)?.permissions().mode() & 0o111 == 0 {
        return Err("failed to fetch metadata: the file is not executable".to_owned());
    }
    let output =
        Command::new(path).arg(METADATA).env(ORIGINAL, original()).stdin(Stdio::null()).output().map_err(failed)?;
    if !output.status.success() {
        return Err(format!("failed to fetch metadata: {}", output.status));
    }
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).map_err(|error| format!("invalid metadata: {error}"))?;
    if metadata.schema_version != "0.1.0" {
        return Err(format!("plugin SchemaVersion {:?} is not valid, must be 0.1.0", metadata.schema_version));
    }
    if metadata.vendor.is_empty() {
        return Err("plugin metadata does not define a vendor".to_owned());
    }
    Ok(metadata)
}

/// How berth was started.
pub fn original() -> std::ffi::OsString {
    std::env::args_os().next().unwrap_or_else(|| "berth".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin(folder: &Path, name: &str, script: &str) {
        fs::create_dir_all(folder).unwrap();
        let path = folder.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn what_is_a_plugin() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let good = r#"[ "$1" = docker-cli-plugin-metadata ] && echo '{"SchemaVersion":"0.1.0","Vendor":"V","Version":"'$0'","ShortDescription":"does x"}'"#;
        plugin(&one, "docker-x", good);
        plugin(&two, "docker-x", good);
        plugin(&two, "docker-y2", good);
        plugin(&two, "docker-Bad", good);
        plugin(&two, "docker-old", r#"echo '{"SchemaVersion":"0.2.0","Vendor":"V"}'"#);
        plugin(&two, "docker-anon", r#"echo '{"SchemaVersion":"0.1.0"}'"#);
        plugin(&two, "docker-text", "echo hello");
        plugin(&two, "docker-fails", "exit 3");
        plugin(&two, "other", good);
        fs::write(two.join("docker-plain"), "x").unwrap();
        fs::create_dir(two.join("docker-folder")).unwrap();
        let plugins = Plugins::in_folders(&[one.clone(), two, dir.path().join("none")]);
        let all = plugins.all();
        let said = |name: &str| {
            let plugin = all.iter().find(|plugin| plugin.name == name).unwrap();
            plugin.metadata.clone().map(|metadata| metadata.short_description)
        };
        assert_eq!(plugins.names().collect::<Vec<_>>(), ["Bad", "anon", "fails", "old", "plain", "text", "x", "y2"]);
        assert_eq!((said("x"), said("y2")), (Ok("does x".into()), Ok("does x".into())));
        assert_eq!(plugins.get("x").unwrap().path, one.join("docker-x"), "the first folder wins");
        for (name, part) in [
            ("Bad", "did not match"),
            ("old", "SchemaVersion \"0.2.0\" is not valid, must be 0.1.0"),
            ("anon", "does not define a vendor"),
            ("text", "invalid metadata"),
            ("fails", "exit status: 3"),
            ("plain", "not executable"),
        ] {
            let error = said(name).unwrap_err();
            assert!(error.contains(part), "{name}: {error}");
        }
        assert!(plugins.get("folder").is_none() && plugins.get("nope").is_none());
    }
}
