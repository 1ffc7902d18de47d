//! Clients of builds, who serve files, secrets and credentials.
