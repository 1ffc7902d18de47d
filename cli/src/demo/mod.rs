//! `berth demo`: an image that holds nothing but this very program, and what it does inside the container.

pub mod guest;
pub mod image;
