//! Versions of the CNI specification: which are spoken here, and how they differ in what a plugin prints.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A version of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
pub(super) enum Version {
    /// What a configuration without a version is taken for.
    V0_1_0,
    /// The last whose results have one address of each family.
    V0_2_0,
    /// Lists of plugins.
    V0_3_0,
    /// The same, corrected.
    V0_3_1,
    /// CHECK, and results for DEL.
    V0_4_0,
    /// Addresses without a family of their own.
    V1_0_0,
    /// STATUS and GC.
    V1_1_0,
}

const NAMES: [(&str, Version); 7] = [
    ("0.1.0", Version::V0_1_0),
    ("0.2.0", Version::V0_2_0),
    ("0.3.0", Version::V0_3_0),
    ("0.3.1", Version::V0_3_1),
    ("0.4.0", Version::V0_4_0),
    ("1.0.0", Version::V1_0_0),
    ("1.1.0", Version::V1_1_0),
];

/// How a result says what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// `ip4` and `ip6`.
    TwoAddresses,
    /// `ips`, each with the `version` of its family.
    WithFamilies,
    /// `ips`.
    Plain,
}

impl Version {
    /// The newest.
    pub(super) const NEWEST: Self = Self::V1_1_0;

    /// The version of this name, if it is spoken here.
    pub(super) fn of(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, version)| *version)
    }

    /// Its name.
    pub(super) fn name(self) -> &'static str {
        NAMES[self as usize].0
    }

    /// How its results look.
    pub(super) fn shape(self) -> Shape {
        match self {
            Self::V0_1_0 | Self::V0_2_0 => Shape::TwoAddresses,
            Self::V0_3_0 | Self::V0_3_1 | Self::V0_4_0 => Shape::WithFamilies,
            Self::V1_0_0 | Self::V1_1_0 => Shape::Plain,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<Version> for &'static str {
    fn from(version: Version) -> Self {
        version.name()
    }
}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::of(&name).ok_or_else(|| unknown(&name))
    }
}

/// The sentence about a version that isn't spoken here.
pub(super) fn unknown(name: &str) -> String {
    let (first, last) = (NAMES[0].0, Version::NEWEST);
    format!("cniVersion {name:?} is none that is known here ({first} to {last})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_order() {
        for (at, (name, version)) in NAMES.into_iter().enumerate() {
            assert_eq!((version as usize, version.name(), Version::of(name)), (at, name, Some(version)));
            assert_eq!(serde_json::from_str::<Version>(&serde_json::to_string(&version).unwrap()).unwrap(), version);
        }
        assert!(Version::V0_3_1 < Version::V0_4_0 && Version::V0_4_0 < Version::V1_0_0);
        assert_eq!(Version::of("1.2.0").or(Version::of("")), None);
        assert!(serde_json::from_str::<Version>("\"9.9.9\"").unwrap_err().to_string().contains("9.9.9"));
    }
}
