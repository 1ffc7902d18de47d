//! typeurl
