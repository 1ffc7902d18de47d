//! Linux as safe functions.
