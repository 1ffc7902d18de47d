//! What BuildKit warns of, by its names for it.

use crate::error::Span;

/// A warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The rule: `JSONArgsRecommended`.
    pub rule: &'static str,
    /// What the rule is about.
    pub description: &'static str,
    /// Where to read about it.
    pub url: &'static str,
    /// What it found here.
    pub detail: String,
    /// Where.
    pub span: Span,
}
