//! Platforms as Docker and OCI write them: `linux/arm64/v8`.

use proto::containerd::types;
use serde::Deserialize;
use std::fmt;

/// Operating system, processor and its variant.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// `linux`
    #[serde(default)]
    pub os: String,
    /// Go's name: `amd64`, `arm64`.
    #[serde(default)]
    pub architecture: String,
    /// `v7`, `v8`; empty where there is none.
    #[serde(default)]
    pub variant: String,
}

/// A text that names no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: cannot parse platform specifier: it has the form os[/architecture[/variant]]")]
pub struct PlatformError(String);

impl Platform {
    /// The platform of this machine.
    pub fn host() -> Self {
        Self::new("linux", std::env::consts::ARCH, "")
    }

    fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let (os, architecture) = (os.to_ascii_lowercase(), architecture.to_ascii_lowercase());
        let variant = variant.to_ascii_lowercase();
        // Same words for the same thing, with the default variant left out.
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("i386" | "i686" | "x86", _) => ("386", ""),
            ("arm", "") => ("arm", "v7"),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            (architecture, variant) => (architecture, variant),
        };
        Self { os, architecture: architecture.to_owned(), variant: variant.to_owned() }
    }

    /// The same with one word for each thing.
    pub fn normalized(&self) -> Self {
        Self::new(&self.os, &self.architecture, &self.variant)
    }

    /// Reads `linux`, `linux/arm64`, `linux/arm/v7`, or an architecture alone.
    pub fn parse(text: &str) -> Result<Self, PlatformError> {
        let bad = || PlatformError(text.chars().take(60).collect());
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        if !parts.iter().all(|part| word(part)) {
            return Err(bad());
        }
        match parts[..] {
            [one @ ("linux" | "windows" | "darwin" | "freebsd")] => Ok(Self { os: one.to_owned(), ..Self::host() }),
            [architecture] => Ok(Self::new("linux", architecture, "")),
            [os, architecture] => Ok(Self::new(os, architecture, "")),
            [os, architecture, variant] => Ok(Self::new(os, architecture, variant)),
            _ => Err(bad()),
        }
    }

    /// As containerd's API carries it.
    pub fn to_proto(&self) -> types::Platform {
        types::Platform { os: self.os.clone(), architecture: self.architecture.clone(), variant: self.variant.clone() }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let cases = [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("Linux/ARM/v6", "linux/arm/v6"),
        ];
        for (text, expected) in cases {
            assert_eq!(Platform::parse(text).unwrap().to_string(), expected);
        }
        for bad in ["", "/", "a/b/c/d", "linux/", "li nux"] {
            assert!(Platform::parse(bad).is_err(), "{bad}");
        }
    }
}
