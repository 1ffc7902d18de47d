//! `--mount`: fields separated by commas, as CSV.

use crate::args::values;
use serde_json::{Map, Value, json};

/// One entry of `HostConfig.Mounts`.
#[derive(Debug, Clone, PartialEq)]
pub struct Mount(pub Value);

/// Why a mount was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// No target.
    #[error("target is required")]
    Target,
    /// No type.
    #[error("type is required")]
    Type,
    /// A field that needs "=value".
    #[error("invalid field '{0}' must be a key=value pair")]
    Pair(String),
    /// An unknown field.
    #[error("unknown option '{key}' in '{field}'")]
    Key {
        /// Its name.
        key: String,
        /// The whole field.
        field: String,
    },
    /// A value that does not fit the field.
    #[error("invalid value for {key}: {value}")]
    Value {
        /// The field.
        key: String,
        /// The value.
        value: String,
    },
    /// A field of another type of mount.
    #[error("cannot mix '{options}' options with mount type '{kind}'")]
    Mixed {
        /// The group of options.
        options: &'static str,
        /// The mount's type.
        kind: String,
    },
    /// CSV that is none.
    #[error("bad quoting in {0:?}")]
    Quotes(String),
}

/// Options of one type of mount, as the API groups them.
#[derive(Default)]
struct Groups {
    bind: Map<String, Value>,
    volume: Map<String, Value>,
    tmpfs: Map<String, Value>,
    image: Map<String, Value>,
}

/// Reads one `--mount`.
pub fn parse(text: &str) -> Result<Mount, MountError> {
    let mut mount = Map::new();
    let mut kind = "volume".to_owned();
    let mut groups = Groups::default();
    let (mut labels, mut driver, mut driver_options) = (Map::new(), Map::new(), Map::new());
    for field in csv(text)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_ascii_lowercase(), value),
            None => {
                let key = field.to_ascii_lowercase();
                if !matches!(
                    key.as_str(),
                    "readonly" | "ro" | "volume-nocopy" | "bind-nonrecursive" | "bind-create-src"
                ) {
                    return Err(MountError::Pair(field));
                }
                (key, "true")
            }
        };
        let bad = || MountError::Value { key: key.clone(), value: value.to_owned() };
        let boolean = || values::boolean(value).map_err(|_| bad());
        let put = |group: &mut Map<String, Value>, name: &str, value: Value| {
            group.insert(name.to_owned(), value);
        };
        match key.as_str() {
            "type" => {
                kind = value.to_ascii_lowercase();
                if kind.is_empty() {
                    return Err(MountError::Type);
                }
            }
            "source" | "src" => put(&mut mount, "Source", json!(absolute(value))),
            "target" | "dst" | "destination" => put(&mut mount, "Target", json!(value)),
            "readonly" | "ro" => put(&mut mount, "ReadOnly", json!(boolean()?)),
            "consistency" => put(&mut mount, "Consistency", json!(value.to_ascii_lowercase())),
            "bind-propagation" => put(&mut groups.bind, "Propagation", json!(value.to_ascii_lowercase())),
            "bind-nonrecursive" => put(&mut groups.bind, "NonRecursive", json!(boolean()?)),
            "bind-create-src" => put(&mut groups.bind, "CreateMountpoint", json!(boolean()?)),
            "bind-recursive" => match value {
                "enabled" => {}
                "disabled" => put(&mut groups.bind, "NonRecursive", json!(true)),
                "writable" => put(&mut groups.bind, "ReadOnlyNonRecursive", json!(true)),
                "readonly" => put(&mut groups.bind, "ReadOnlyForceRecursive", json!(true)),
                _ => return Err(bad()),
            },
            "volume-subpath" => put(&mut groups.volume, "Subpath", json!(value)),
            "volume-nocopy" => put(&mut groups.volume, "NoCopy", json!(boolean()?)),
            "volume-label" => pair(&mut labels, value),
            "volume-driver" => put(&mut driver, "Name", json!(value)),
            "volume-opt" => pair(&mut driver_options, value),
            "image-subpath" => put(&mut groups.image, "Subpath", json!(value)),
            "tmpfs-size" => put(&mut groups.tmpfs, "SizeBytes", json!(values::bytes(value).map_err(|_| bad())?.0)),
            "tmpfs-mode" => {
                put(&mut groups.tmpfs, "Mode", json!(u32::from_str_radix(value, 8).map_err(|_| bad())?));
            }
            _ => return Err(MountError::Key { key, field }),
        }
    }
    if mount.get("Target").and_then(Value::as_str).unwrap_or_default().is_empty() {
        return Err(MountError::Target);
    }
    for (outer, name, inner) in [(&mut driver, "Options", driver_options), (&mut groups.volume, "Labels", labels)] {
        if !inner.is_empty() {
            outer.insert(name.to_owned(), Value::Object(inner));
        }
    }
    if !driver.is_empty() {
        groups.volume.insert("DriverConfig".to_owned(), Value::Object(driver));
    }
    for (options, name, group, own) in [
        ("bind-*", "BindOptions", groups.bind, "bind"),
        ("volume-*", "VolumeOptions", groups.volume, "volume"),
        ("tmpfs-*", "TmpfsOptions", groups.tmpfs, "tmpfs"),
        ("image-*", "ImageOptions", groups.image, "image"),
    ] {
        if group.is_empty() {
            continue;
        }
        if kind != own {
            return Err(MountError::Mixed { options, kind });
        }
        mount.insert(name.to_owned(), Value::Object(group));
    }
    mount.insert("Type".to_owned(), json!(kind));
    Ok(Mount(Value::Object(mount)))
}

/// A source that begins with "." is below the working directory.
fn absolute(source: &str) -> String {
    if source != "." && !source.starts_with("./") && source != ".." && !source.starts_with("../") {
        return source.to_owned();
    }
    match std::env::current_dir() {
        Ok(cwd) => super::volumes::clean(&cwd.join(source)).to_string_lossy().into_owned(),
        Err(_) => source.to_owned(),
    }
}

fn pair(map: &mut Map<String, Value>, text: &str) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    map.insert(key.to_owned(), json!(value));
}

/// One record of CSV: commas separate, a field in double quotes may hold them.
pub fn csv(text: &str) -> Result<Vec<String>, MountError> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut field = String::new();
            let mut body = quoted;
            loop {
                let end = body.find('"').ok_or_else(|| MountError::Quotes(text.to_owned()))?;
                field.push_str(&body[..end]);
                body = &body[end + 1..];
                match body.strip_prefix('"') {
                    Some(after) => {
                        field.push('"');
                        body = after;
                    }
                    None => break,
                }
            }
            fields.push(field);
            rest = match body.strip_prefix(',') {
                Some(after) => after,
                None if body.is_empty() => return Ok(fields),
                None => return Err(MountError::Quotes(text.to_owned())),
            };
            continue;
        }
        match rest.split_once(',') {
            Some((field, after)) => {
                fields.push(field.to_owned());
                rest = after;
            }
            None => {
                fields.push(rest.to_owned());
                return Ok(fields);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mounts() {
        for (text, want) in [
            ("type=bind,src=/x,dst=/y,ro", json!({"Type":"bind","Source":"/x","Target":"/y","ReadOnly":true})),
            ("target=/y", json!({"Type":"volume","Target":"/y"})),
            (
                "type=volume,src=v,dst=/d,volume-nocopy,volume-opt=a=b,\"volume-opt=o=x,y\",volume-label=k=v,volume-driver=d",
                json!({"Type":"volume","Source":"v","Target":"/d","VolumeOptions":{"NoCopy":true,"Labels":{"k":"v"},
                    "DriverConfig":{"Name":"d","Options":{"a":"b","o":"x,y"}}}}),
            ),
            (
                "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1777",
                json!({"Type":"tmpfs","Target":"/t","TmpfsOptions":{"SizeBytes":1048576,"Mode":1023}}),
            ),
            (
                "type=bind,src=/a,dst=/b,bind-propagation=rshared,bind-recursive=disabled",
                json!({"Type":"bind","Source":"/a","Target":"/b","BindOptions":{"Propagation":"rshared","NonRecursive":true}}),
            ),
            (
                "type=image,src=i,dst=/i,image-subpath=q",
                json!({"Type":"image","Source":"i","Target":"/i","ImageOptions":{"Subpath":"q"}}),
            ),
        ] {
            assert_eq!(parse(text), Ok(Mount(want)), "{text}");
        }
    }

    #[test]
    fn refused() {
        for (text, message) in [
            ("type=foo", "target is required"),
            ("type=,dst=/x", "type is required"),
            ("dst=/x,what=1", "unknown option 'what' in 'what=1'"),
            ("dst=/x,src", "invalid field 'src' must be a key=value pair"),
            ("dst=/x,ro=maybe", "invalid value for ro: maybe"),
            ("type=bind,dst=/x,tmpfs-size=1m", "cannot mix 'tmpfs-*' options with mount type 'bind'"),
            ("type=tmpfs,dst=/x,tmpfs-mode=9", "invalid value for tmpfs-mode: 9"),
            ("\"dst=/x", "bad quoting in \"\\\"dst=/x\""),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z=,\"/-]{0,40}") {
            let _ = parse(&text);
        }
    }
}
