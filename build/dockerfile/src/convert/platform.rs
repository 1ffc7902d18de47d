//! Platforms: `linux/arm64/v8`, written in many ways and meant as one; and the arguments that tell a Dockerfile of them.

use super::vars::Vars;
use proto::pb::Platform;
use std::collections::BTreeMap;

const SYSTEMS: [&str; 21] = [
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "wasip1",
    "wasi",
    "windows",
    "zos",
    "macos",
    "any",
];

const ARCHITECTURES: [&str; 21] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc", "ppc64", "ppc64le",
    "riscv", "riscv64", "s390", "s390x", "sparc", "sparc64", "wasm", "armbe", "arm64be",
];

/// Reads `os`, `arch`, `os/arch` or `os/arch/variant`; an operating system may have its version behind it: `windows(10.0)`.
pub fn parse(text: &str) -> Result<Platform, String> {
    if text.contains('*') {
        return Err(format!("{text:?}: wildcards not yet supported: invalid argument"));
    }
    let mut parts: Vec<&str> = text.split('/').collect();
    let mut version = String::new();
    if let Some((os, rest)) = parts[0].split_once('(') {
        let Some(inside) = rest.strip_suffix(')') else {
            return Err(format!("{:?} is an invalid OS component of {text:?}: invalid argument", parts[0]));
        };
        version = inside.to_owned();
        parts[0] = os;
    }
    let good = |part: &&str| {
        !part.is_empty() && part.chars().all(|letter| letter.is_ascii_alphanumeric() || "_.-".contains(letter))
    };
    if let Some(bad) = parts.iter().find(|part| !good(part)) {
        return Err(format!(
            "{bad:?} is an invalid component of {text:?}: platform specifier component must match \
             \"^[A-Za-z0-9_.-]+$\": invalid argument"
        ));
    }
    let platform = |os: &str, architecture: &str, variant: &str| Platform {
        os: os.into(),
        architecture: architecture.into(),
        variant: variant.into(),
        os_version: version.clone(),
        os_features: Vec::new(),
    };
    match parts[..] {
        [one] => {
            let os = system(one);
            if SYSTEMS.contains(&os.as_str()) {
                return Ok(normalize(&platform(&os, here(), "")));
            }
            let (architecture, variant) = architecture(one, "");
            if ARCHITECTURES.contains(&architecture.as_str()) {
                let variant = if architecture == "arm" && variant == "v7" { String::new() } else { variant };
                return Ok(platform("linux", &architecture, &variant));
            }
            Err(format!("{text:?}: unknown operating system or architecture: invalid argument"))
        }
        [os, arch] => {
            let (architecture, variant) = architecture(arch, "");
            let variant = if architecture == "arm" && variant == "v7" { String::new() } else { variant };
            Ok(platform(&system(os), &architecture, &variant))
        }
        [os, arch, variant] => {
            let (architecture, mut variant) = architecture(arch, variant);
            if architecture == "arm64" && variant.is_empty() {
                variant = "v8".into();
            }
            Ok(platform(&system(os), &architecture, &variant))
        }
        _ => Err(format!("{text:?}: cannot parse platform specifier: invalid argument")),
    }
}

/// The architecture of this program, by Go's name for it.
fn here() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        other => other,
    }
}

fn system(text: &str) -> String {
    match text.to_lowercase().as_str() {
        "macos" => "darwin".into(),
        other => other.into(),
    }
}

/// Architecture and variant as Go names them.
fn architecture(text: &str, variant: &str) -> (String, String) {
    let (text, variant) = (text.to_lowercase(), variant.to_lowercase());
    let (architecture, variant) = match (text.as_str(), variant.as_str()) {
        ("i386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
        ("aarch64", variant) => ("arm64", variant),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "6") => ("arm", "v6"),
        ("arm", "8") => ("arm", "v8"),
        (other, variant) => (other, variant),
    };
    (architecture.into(), variant.into())
}

/// The one way to write a platform that may be written in several.
pub fn normalize(platform: &Platform) -> Platform {
    let (architecture, variant) = architecture(&platform.architecture, &platform.variant);
    Platform { os: system(&platform.os), architecture, variant, ..platform.clone() }
}

/// `linux/arm/v7`
pub fn format(platform: &Platform) -> String {
    if platform.os.is_empty() {
        return "unknown".into();
    }
    let os = match platform.os_version.as_str() {
        "" => platform.os.clone(),
        version => format!("{}({version})", platform.os),
    };
    [os.as_str(), &platform.architecture, &platform.variant]
        .iter()
        .filter(|part| !part.is_empty())
        .copied()
        .collect::<Vec<_>>()
        .join("/")
}

/// Arguments that every Dockerfile has before its first line. What the client gives for them counts more.
pub(super) fn arguments(build: &Platform, target: &Platform, stage: &str, given: &BTreeMap<String, String>) -> Vars {
    let mut vars = Vars::default();
    for (name, value) in [
        ("BUILDPLATFORM", format(build).as_str()),
        ("BUILDOS", &build.os),
        ("BUILDOSVERSION", &build.os_version),
        ("BUILDARCH", &build.architecture),
        ("BUILDVARIANT", &build.variant),
        ("TARGETPLATFORM", format(target).as_str()),
        ("TARGETOS", &target.os),
        ("TARGETOSVERSION", &target.os_version),
        ("TARGETARCH", &target.architecture),
        ("TARGETVARIANT", &target.variant),
        ("TARGETSTAGE", if stage.is_empty() { "default" } else { stage }),
    ] {
        vars.set(name, given.get(name).map_or(value, String::as_str));
    }
    vars
}

/// `->arm64` for a step that runs on `base` and makes something for what its variables say.
pub(super) fn crossing(base: &Platform, vars: &Vars) -> String {
    let Some(mut target) = from_vars(vars) else { return String::new() };
    if target.os.is_empty() {
        target.os.clone_from(&base.os);
    }
    if target.architecture.is_empty() {
        target.architecture.clone_from(&base.architecture);
    }
    let target = normalize(&target);
    if target.os != base.os {
        return format!("->{}", format(&target));
    }
    match target.variant.as_str() {
        _ if target.architecture == base.architecture => String::new(),
        "" => format!("->{}", target.architecture),
        variant => format!("->{}/{variant}", target.architecture),
    }
}

fn from_vars(vars: &Vars) -> Option<Platform> {
    if let Some(platform) = vars.get("TARGETPLATFORM").and_then(|text| parse(text).ok()) {
        return Some(platform);
    }
    let parts = ["TARGETOS", "TARGETARCH", "TARGETVARIANT"].map(|name| vars.get(name));
    if parts.iter().all(Option::is_none) {
        return None;
    }
    let [os, architecture, variant] = parts.map(|part| part.unwrap_or_default().to_owned());
    Some(Platform { os, architecture, variant, ..Platform::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read() {
        for (text, written) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64/v8"),
            ("Linux/AMD64", "linux/amd64"),
            ("linux/arm/v7", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/arm", "linux/arm"),
            ("linux/armhf", "linux/arm"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/i386", "linux/386"),
            ("arm64", "linux/arm64"),
            ("s390x", "linux/s390x"),
            ("macos/arm64", "darwin/arm64"),
            ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
        ] {
            // `linux/arm64/v8` written out keeps its variant, as containerd has it.
            assert_eq!(parse(text).map(|platform| format(&platform)), Ok(written.into()), "{text}");
        }
        for text in ["", "linux/", "a/b/c/d", "linux/amd 64", "nonsense", "*", "linux(1/amd64"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn crossing_is_told() {
        let base = parse("linux/amd64").unwrap();
        let mut vars = Vars::default();
        assert_eq!(crossing(&base, &vars), "");
        vars.set("TARGETARCH", "arm64");
        assert_eq!(crossing(&base, &vars), "->arm64");
        vars.set("TARGETPLATFORM", "linux/amd64");
        assert_eq!(crossing(&base, &vars), "");
        vars.set("TARGETPLATFORM", "windows/amd64");
        assert_eq!(crossing(&base, &vars), "->windows/amd64");
        vars.set("TARGETPLATFORM", "linux/arm/v6");
        assert_eq!(crossing(&base, &vars), "->arm/v6");
    }
}
