//! `VolumesFrom`: the mounts of another container, read-only if wanted.

use super::record::{MountKind, MountPoint};
use crate::{
    app::App,
    http::{ApiError, ApiResult},
};

/// `container` or `container:mode`.
fn parse(text: &str) -> ApiResult<(&str, &str)> {
    let (name, mode) = text.split_once(':').unwrap_or((text, "rw"));
    if name.is_empty() {
        return Err(ApiError::invalid("volumes-from specification must not be an empty string"));
    }
    let words: Vec<&str> = mode.split(',').collect();
    let known = |word: &&str| matches!(*word, "ro" | "rw" | "z" | "Z" | "nocopy");
    let both = words.contains(&"ro") && words.contains(&"rw");
    if !words.iter().all(known) || both {
        return Err(ApiError::invalid(format!("invalid mode: {mode}")));
    }
    Ok((name, mode))
}

/// Checks the forms.
pub fn check(list: &[String]) -> ApiResult<()> {
    list.iter().try_for_each(|text| parse(text).map(drop))
}

/// All mounts of the others; of two at one place the later one's.
pub fn inherit(app: &App, list: &[String]) -> ApiResult<Vec<MountPoint>> {
    let mut all: Vec<MountPoint> = Vec::new();
    for text in list {
        let (name, mode) = parse(text)?;
        // Not 404: clients take that for a missing image, and pull it.
        let other = app.containers.find(name).map_err(|error| ApiError::invalid(error.message))?;
        let record = other.record();
        let host = &record.host;
        // What is in memory is nobody else's, unless it was asked for as a mount.
        let shared =
            |mount: &&MountPoint| mount.kind != MountKind::Tmpfs || !host.tmpfs.contains_key(&mount.destination);
        for mount in record.mounts.iter().filter(shared) {
            let mut mount = mount.clone();
            if mode.split(',').any(|word| word == "ro") {
                mount.writable = false;
                mount.read_only_tree = mount.kind == MountKind::Bind;
            }
            // A view of one's own, that lives as long as oneself.
            mount.snapshot = None;
            all.retain(|have| have.destination != mount.destination);
            all.push(mount);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(parse("a").unwrap(), ("a", "rw"));
        assert_eq!(parse("a:ro,z").unwrap(), ("a", "ro,z"));
        for (bad, text) in [("a:xx", "invalid mode: xx"), ("a:ro,rw", "invalid mode: ro,rw"), ("a:", "invalid mode: ")]
        {
            assert_eq!(parse(bad).unwrap_err().message, text);
        }
        assert!(check(&["".to_owned()]).is_err());
    }
}
