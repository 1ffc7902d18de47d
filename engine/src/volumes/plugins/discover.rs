//! Where plugins are found: as with docker, a socket `NAME.sock`, or a file `NAME.spec` or `NAME.json` that tells an address, in
//! one of the folders for them or in a folder `NAME` there. A file is read anew at each look, so that plugins come and go.

use serde::Deserialize;
use std::{
    collections::BTreeSet,
    fmt, io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

/// A description is a few lines.
const MOST: u64 = 64 << 10;

/// Where a plugin listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket.
    Unix(PathBuf),
    /// `HOST:PORT`, in plain text.
    Tcp(String),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

/// Why a description can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    #[error("read {path}")]
    Read {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{path}: {why}")]
    Bad { path: PathBuf, why: String },
}

/// Finds a plugin; `None` if no folder has one of this name.
pub fn find(folders: &[PathBuf], name: &str) -> Result<Option<Endpoint>, DescriptionError> {
    // It becomes a part of paths.
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
        return Ok(None);
    }
    for kind in ["sock", "spec", "json"] {
        let file = format!("{name}.{kind}");
        for path in folders.iter().flat_map(|folder| [folder.join(&file), folder.join(name).join(&file)]) {
            let Ok(meta) = std::fs::metadata(&path) else { continue };
            match kind {
                "sock" if meta.file_type().is_socket() => return Ok(Some(Endpoint::Unix(path))),
                "spec" | "json" if meta.is_file() => return describe(&path, kind).map(Some),
                _ => {}
            }
        }
    }
    Ok(None)
}

/// Names of all plugins, each once.
pub fn names(folders: &[PathBuf]) -> BTreeSet<String> {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let name_of = |path: &Path| {
        let known = path.extension().is_some_and(|kind| kind == "sock" || kind == "spec" || kind == "json");
        path.file_stem().filter(|_| known)?.to_str().map(str::to_owned)
    };
    let mut names = BTreeSet::new();
    for path in folders.iter().flat_map(|folder| entries(folder)).map(|entry| entry.path()) {
        match name_of(&path) {
            Some(name) => _ = names.insert(name),
            None => names.extend(entries(&path).filter_map(|entry| {
                name_of(&entry.path()).filter(|name| path.file_name().is_some_and(|folder| folder == name.as_str()))
            })),
        }
    }
    names
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    addr: String,
    #[serde(default, rename = "TLSConfig")]
    tls: Option<serde_json::Map<String, serde_json::Value>>,
}

fn describe(path: &Path, kind: &str) -> Result<Endpoint, DescriptionError> {
    let failed = |cause| DescriptionError::Read { path: path.to_owned(), cause };
    let bad = |why: String| DescriptionError::Bad { path: path.to_owned(), why };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    io::Read::read_to_string(&mut io::Read::take(file, MOST), &mut text).map_err(failed)?;
    if kind == "spec" {
        return endpoint(text.trim()).map_err(bad);
    }
    let described: Described = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    if described.tls.is_some_and(|tls| !tls.is_empty()) {
        return Err(bad("TLSConfig: plugins are not spoken to over TLS".into()));
    }
    endpoint(&described.addr).map_err(bad)
}

fn endpoint(address: &str) -> Result<Endpoint, String> {
    match address.split_once("://") {
        Some(("unix", path)) if path.starts_with('/') => Ok(Endpoint::Unix(path.into())),
        Some(("tcp" | "http", host)) if host.trim_end_matches('/').rsplit_once(':').is_some() => {
            Ok(Endpoint::Tcp(host.trim_end_matches('/').to_owned()))
        }
        _ => Err(format!("{address:?} is neither unix:///PATH nor tcp://HOST:PORT")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn sockets_and_descriptions_are_found_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("nested")).unwrap();
        let _sockets = [at("plain.sock"), at("nested/nested.sock")].map(|path| UnixListener::bind(path).unwrap());
        std::fs::write(at("far.spec"), "tcp://10.0.0.1:8080\n").unwrap();
        std::fs::write(at("near.json"), r#"{"Name":"near","Addr":"unix:///run/near.sock"}"#).unwrap();
        std::fs::write(at("secret.json"), r#"{"Addr":"tcp://h:1","TLSConfig":{"CAFile":"/ca"}}"#).unwrap();
        std::fs::write(at("odd.spec"), "ftp://x").unwrap();
        std::fs::write(at("file.sock"), "no socket").unwrap();
        std::fs::write(at("readme.txt"), "").unwrap();
        let folders = [at("missing"), folder.path().to_owned()];
        let find = |name: &str| find(&folders, name);
        assert_eq!(find("plain").unwrap(), Some(Endpoint::Unix(at("plain.sock"))));
        assert_eq!(find("nested").unwrap(), Some(Endpoint::Unix(at("nested/nested.sock"))));
        assert_eq!(find("far").unwrap().unwrap().to_string(), "tcp://10.0.0.1:8080");
        assert_eq!(find("near").unwrap().unwrap().to_string(), "unix:///run/near.sock");
        for (name, words) in [("secret", "TLSConfig"), ("odd", "neither unix:///PATH nor tcp://HOST:PORT")] {
            assert!(find(name).unwrap_err().to_string().contains(words), "{name}");
        }
        for name in ["nobody", "", "..", "../x", "nested/nested", "file"] {
            assert_eq!(find(name).unwrap(), None, "{name:?}");
        }
        assert_eq!(
            names(&folders).into_iter().collect::<Vec<_>>(),
            ["far", "file", "near", "nested", "odd", "plain", "secret"]
        );
    }
}
