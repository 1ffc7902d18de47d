//! Docker's layout of certificates: in a registry's folder, `*.crt` are CA certificates, `*.cert` and `*.key` client
//! certificates with their keys.

use std::{fs, path::Path};

use super::HostsError;
use crate::registry::tls::{Pair, Trust};

/// Reads a folder's names; the files themselves are read when they are needed.
pub(super) fn read(folder: &Path) -> Result<Trust, HostsError> {
    let wrong = |at: &Path, why: String| HostsError::Folder { at: at.to_owned(), why };
    let entries = fs::read_dir(folder).map_err(|error| wrong(folder, error.to_string()))?;
    let mut files = Vec::new();
    for entry in entries {
        files.push(entry.map_err(|error| wrong(folder, error.to_string()))?.path());
    }
    files.sort();
    let mut trust = Trust::default();
    for file in files {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => trust.ca.push(file),
            Some("cert") => {
                let key = file.with_extension("key");
                if !key.exists() {
                    let why = format!(
                        "its key {} is missing (CA certificates have the extension .crt)",
                        key.file_name().unwrap_or_default().to_string_lossy()
                    );
                    return Err(wrong(&file, why));
                }
                trust.client.push(Pair { certificate: file, key });
            }
            Some("key") if !file.with_extension("cert").exists() => {
                let name = file.with_extension("cert");
                let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
                return Err(wrong(&file, format!("the client certificate {name} that it belongs to is missing")));
            }
            _ => {}
        }
    }
    if trust.client.len() > 1 {
        return Err(wrong(folder, "more than one client certificate for a host".into()));
    }
    Ok(trust)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_and_keys_go_together() {
        let table: [(&[&str], &str); 6] = [
            (&[], "0 0"),
            (&["b.crt", "a.crt", "README"], "2 0"),
            (&["ca.crt", "client.cert", "client.key"], "1 1"),
            (&["client.cert"], "client.key is missing (CA certificates have the extension .crt)"),
            (&["client.key"], "client certificate client.cert that it belongs to is missing"),
            (&["a.cert", "a.key", "b.cert", "b.key"], "more than one client certificate"),
        ];
        for (names, wanted) in table {
            let dir = tempfile::tempdir().unwrap();
            for name in names {
                fs::write(dir.path().join(name), "").unwrap();
            }
            let found = match read(dir.path()) {
                Ok(trust) => format!("{} {}", trust.ca.len(), trust.client.len()),
                Err(error) => error.to_string(),
            };
            assert!(found.contains(wanted), "{names:?}: {found}");
        }
    }
}
