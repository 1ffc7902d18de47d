//! Fills in variables.
