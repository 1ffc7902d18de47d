//! Patterns of `.dockerignore`.
