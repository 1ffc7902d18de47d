//! Outputs of a build.
