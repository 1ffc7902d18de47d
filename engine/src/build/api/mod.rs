//! BuildKit's services and docker's own endpoints.
