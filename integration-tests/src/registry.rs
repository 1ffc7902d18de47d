//! A real registry (Debian's docker-registry) on a loopback port of its own.

use crate::eventually;
use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

/// A running registry; ends when dropped.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    port: u16,
}

/// User "u", password "p"; at the least cost, since the registry pays it with every request.
const HTPASSWD: &str = "u:$2b$04$cRlf9m/PKviKyXFP.xfGxumGg88vNpMDti89eDXKX2PTF7TfS.eK6\n";

impl Registry {
    /// Starts a registry that keeps its blobs below `folder`.
    pub fn start(folder: &Path) -> Self {
        Self::start_with(folder, "")
    }

    /// The same for user "u" with password "p" only.
    pub fn with_password(folder: &Path) -> Self {
        let file = folder.join("htpasswd");
        fs::write(&file, HTPASSWD).unwrap();
        Self::start_with(folder, &format!("auth: {{ htpasswd: {{ realm: test, path: {} }} }}\n", file.display()))
    }

    fn start_with(folder: &Path, auth: &str) -> Self {
        let port = testing::free_port();
        let config = folder.join("registry.yml");
        let root = folder.join("registry");
        let text = format!(
            "version: 0.1\nlog: {{ level: error }}\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n  delete: {{ enabled: true }}\nhttp: {{ addr: '127.0.0.1:{port}' }}\n{auth}",
            root.display()
        );
        fs::write(&config, text).unwrap();
        let log = fs::File::create(folder.join("registry.log")).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("start docker-registry");
        eventually("the registry listens", || TcpStream::connect(("127.0.0.1", port)).ok());
        Self { child, port }
    }

    /// `127.0.0.1:PORT`, as it stands in image references.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
