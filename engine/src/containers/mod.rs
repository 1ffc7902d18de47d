//! Containers: what was asked for, what is so, and how the one follows the other.
