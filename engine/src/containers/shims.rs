//! Which shim and which OCI runtime a container gets. Pure.

/// Berth's shim, by containerd's name of its type.
pub const BERTH: &str = "io.containerd.berth.v1";
/// What a containerd has of its own.
pub const RUNC: &str = "io.containerd.runc.v2";

/// Shim and runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The shim's type.
    pub shim: String,
    /// Name or path of the OCI runtime; empty means the shim's own choice.
    pub runtime: String,
    /// Whether the shim writes logs and serves attachments, below a supervisor that passes them on.
    pub attaches: bool,
}

/// Chooses by what the container asks for and what the engine's `--runtime` says: each is the type of a shim
/// (`io.containerd.…`), the name or path of a runtime, or empty. `attaches` is false for a supervisor that isn't Berth's: it
/// may know no shim but its own.
pub fn choose(asked: &str, configured: &str, attaches: bool) -> Choice {
    let is_shim = |name: &str| name.starts_with("io.containerd.");
    let standard = if attaches { BERTH } else { RUNC };
    let shim = [asked, configured].into_iter().find(|name| is_shim(name)).unwrap_or(standard);
    let runtime = match (asked, configured) {
        // The configured runtime is a program for the standard shim.
        ("", name) if !is_shim(name) => name,
        (asked, name) if asked == standard && !is_shim(name) => name,
        (asked, _) if !is_shim(asked) => asked,
        _ => "",
    };
    Choice { shim: shim.to_owned(), runtime: runtime.to_owned(), attaches: attaches && shim == BERTH }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shim_and_runtime() {
        for (asked, configured, attaches, shim, runtime) in [
            ("", "", true, BERTH, ""),
            ("", "", false, RUNC, ""),
            ("runc", "", true, BERTH, "runc"),
            ("", "/bin/crun", true, BERTH, "/bin/crun"),
            ("", "/bin/crun", false, RUNC, "/bin/crun"),
            (BERTH, "/bin/crun", true, BERTH, "/bin/crun"),
            (RUNC, "/bin/crun", true, RUNC, ""),
            ("", RUNC, true, RUNC, ""),
            ("youki", RUNC, true, RUNC, "youki"),
            (BERTH, "", false, BERTH, ""),
        ] {
            let chosen = choose(asked, configured, attaches);
            assert_eq!((&*chosen.shim, &*chosen.runtime), (shim, runtime), "{asked} {configured} {attaches}");
        }
        assert!(choose("", "", true).attaches);
        assert!(!choose(BERTH, "", false).attaches && !choose(RUNC, "", true).attaches);
    }
}
