//! Filesystems of builds: snapshots at the supervisor.
