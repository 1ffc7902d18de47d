//! Bad input of every kind: one line that names the thing, and nothing left behind.

mod failed_create;
mod hostile_state;
