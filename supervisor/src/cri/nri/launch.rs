//! Plugins that are installed on this node: programs `NN-NAME`, and their configurations.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use tracing::warn;

use super::plugin::{is_index, is_name};

/// A plugin's program.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// Two digits.
    pub(super) index: String,
    /// The rest of its name.
    pub(super) base: String,
    /// The file.
    pub(super) at: PathBuf,
    /// What it is configured with.
    pub(super) config: String,
}

/// The programs of a folder in order of their names. One whose name or configuration is wrong is left out.
pub(super) fn programs(folder: &Path, configurations: &Path) -> Vec<Program> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            warn!(folder = %folder.display(), %error, "NRI plugins of this folder are not started");
            return Vec::new();
        }
    };
    let mut all = Vec::new();
    for entry in entries.flatten() {
        let at = entry.path();
        let runs = fs::metadata(&at).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
        if !runs {
            continue;
        }
        let name = entry.file_name();
        let parts = name.to_str().and_then(|name| name.split_once('-'));
        let Some((index, base)) = parts.filter(|(index, base)| is_index(index) && is_name(base)) else {
            warn!(at = %at.display(), "this is no NRI plugin: its name isn't two digits, - and a name");
            continue;
        };
        match configuration(configurations, index, base) {
            Ok(config) => all.push(Program { index: index.to_owned(), base: base.to_owned(), at, config }),
            Err(error) => warn!(at = %at.display(), %error, "NRI plugin not started: its configuration can't be read"),
        }
    }
    all.sort_by(|a, b| (&a.index, &a.base).cmp(&(&b.index, &b.base)));
    all
}

fn configuration(folder: &Path, index: &str, base: &str) -> io::Result<String> {
    for name in [format!("{index}-{base}.conf"), format!("{base}.conf")] {
        match fs::read_to_string(folder.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let (plugins, conf) = (folder.path().join("plugins"), folder.path().join("conf"));
        assert_eq!(programs(&plugins, &conf), []);
        fs::create_dir(&plugins).unwrap();
        fs::create_dir(&conf).unwrap();
        for (name, mode) in
            [("20-b", 0o755), ("10-a-x", 0o755), ("30-c", 0o644), ("x-d", 0o755), ("40", 0o755), ("10-", 0o755)]
        {
            fs::write(plugins.join(name), "").unwrap();
            fs::set_permissions(plugins.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(plugins.join("50-folder")).unwrap();
        fs::write(conf.join("20-b.conf"), "its own").unwrap();
        fs::write(conf.join("b.conf"), "of all b").unwrap();
        fs::write(conf.join("a-x.conf"), "by name").unwrap();
        let found = programs(&plugins, &conf);
        let found: Vec<_> = found.iter().map(|one| (&*one.index, &*one.base, &*one.config)).collect();
        assert_eq!(found, [("10", "a-x", "by name"), ("20", "b", "its own")]);
    }
}
