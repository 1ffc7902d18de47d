//! image_ref
