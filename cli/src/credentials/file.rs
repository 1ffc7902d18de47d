//! Changes of config.json: what berth doesn't know stays as it is, the file is replaced as a whole and is for its owner only.

use crate::output::value::Value;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde_json::ser::PrettyFormatter;
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Why config.json was not changed.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Neither DOCKER_CONFIG nor HOME.
    #[error("there is no place for config.json: neither --config nor DOCKER_CONFIG nor HOME is set")]
    NoHome,
    /// It can't be read or written.
    #[error("{operation} {path}: {cause}")]
    Io {
        /// What was done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        cause: io::Error,
    },
    /// It is not a config file.
    #[error("{path} is not a docker config file: {cause}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: serde_json::Error,
    },
}

/// An entry of "auths".
pub fn entry(auth: Option<String>, identity_token: Option<String>) -> Value {
    let fields = [("auth", auth), ("identitytoken", identity_token)];
    Value::Object(fields.into_iter().filter_map(|(name, text)| Some((name.to_owned(), Value::from(text?)))).collect())
}

/// Puts an entry into "auths"; `store` is a store that was found and shall be kept to.
pub fn put(config: &mut Value, key: &str, entry: Value, store: Option<&str>) {
    set(config.field("auths"), key, entry);
    if let Some(store) = store {
        set(config, "credsStore", store.into());
    }
}

/// Takes an entry out of "auths".
pub fn remove(config: &mut Value, key: &str) {
    if let Value::Object(fields) = config.field("auths") {
        fields.retain(|(name, _)| name != key);
    }
}

/// Puts a text under a key, or takes the key out for "".
pub fn put_text(config: &mut Value, key: &str, text: &str) {
    if !text.is_empty() {
        set(config, key, text.into());
    } else if let Value::Object(fields) = config {
        fields.retain(|(name, _)| name != key);
    }
}

fn set(object: &mut Value, name: &str, value: Value) {
    *object.field(name) = value;
}

/// Reads config.json, changes it and replaces it. Two that do so at once wait for one another.
pub fn edit(path: &Path, change: impl FnOnce(&mut Value)) -> Result<(), FileError> {
    // A link stays one: what it leads to is replaced.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let fault = |operation| {
        let path = path.clone();
        move |cause| FileError::Io { operation, path, cause }
    };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fault("make the folder of"))?;
    let handle = File::open(dir).map_err(fault("open the folder of"))?;
    let _lock = Flock::lock(handle, FlockArg::LockExclusive)
        .map_err(|(_, errno)| fault("lock the folder of")(io::Error::from(errno)))?;
    let mut config = match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|cause| FileError::Json { path: path.clone(), cause })?,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Value::Object(Vec::new()),
        Err(cause) => return Err(fault("read")(cause)),
    };
    change(&mut config);
    let temporary = dir.join(format!(".config.json.{}", std::process::id()));
    let written = write(&temporary, &path, &config).and_then(|()| fs::rename(&temporary, &path));
    if written.is_err() {
        // The error that counts is the one above.
        let _ = fs::remove_file(&temporary);
    }
    written.and_then(|()| File::open(dir)?.sync_all()).map_err(fault("write"))
}

fn write(temporary: &Path, path: &Path, config: &Value) -> io::Result<()> {
    let mut text = Vec::new();
    config.serialize(&mut serde_json::Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"\t")))?;
    match fs::remove_file(temporary) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    // Secrets are for the owner only, whatever mode the file had before.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    if let Ok(before) = fs::metadata(path) {
        let now = file.metadata()?;
        if (before.uid(), before.gid()) != (now.uid(), now.gid()) {
            // sudo keeps HOME: the file stays its owner's.
            std::os::unix::fs::fchown(&file, Some(before.uid()), Some(before.gid()))?;
        }
    }
    file.write_all(&text)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_unknown_stays_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/config.json");
        edit(&path, |config| put(config, "a", entry(Some("x".into()), None), None)).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\n\t\"auths\": {\n\t\t\"a\": {\n\t\t\t\"auth\": \"x\"\n\t\t}\n\t}\n}"
        );
        fs::write(&path, r#"{"z":{"k":[1,null]},"auths":{"a":{"auth":"x","email":"e"}},"b":1.5}"#).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let link = dir.path().join("link.json");
        std::os::unix::fs::symlink("deep/config.json", &link).unwrap();
        edit(&link, |config| put(config, "c", entry(None, Some("t".into())), Some("pass"))).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        edit(&path, |config| remove(config, "a")).unwrap();
        let text: String = fs::read_to_string(&path).unwrap().split_whitespace().collect();
        assert_eq!(text, r#"{"z":{"k":[1,null]},"auths":{"c":{"identitytoken":"t"}},"b":1.5,"credsStore":"pass"}"#);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left in the folder");
    }

    #[test]
    fn a_broken_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, "{").unwrap();
        assert!(matches!(edit(&path, |_| {}), Err(FileError::Json { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "{");
    }

    #[test]
    fn logins_at_once_are_all_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::thread::scope(|scope| {
            for number in 0..8 {
                let path = &path;
                scope.spawn(move || edit(path, |c| put(c, &format!("r{number}"), entry(None, None), None)).unwrap());
            }
        });
        let config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(config.get("auths").unwrap().fields().len(), 8);
    }
}
