//! Either engine, as cases see it: a socket, a folder, clients.

use integration_tests::{Stack, dockerd::Dockerd, http::Api, images};
use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A private engine with the images of the cases.
#[derive(Debug)]
pub enum Engine {
    /// Debian's.
    Dockerd(Box<Dockerd>),
    /// Ours.
    Berth(Box<Stack>),
}

impl Engine {
    /// dockerd, if it is installed.
    pub fn dockerd() -> Option<Self> {
        Some(Self::Dockerd(Box::new(Dockerd::start()?)).prepared())
    }

    /// Berth; always there.
    #[allow(clippy::unnecessary_wraps, reason = "the twin of the one above")]
    pub fn berth() -> Option<Self> {
        Some(Self::Berth(Box::new(Stack::start())).prepared())
    }

    /// A name for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Dockerd(_) => "dockerd",
            Self::Berth(_) => "berth",
        }
    }

    /// The folder that holds everything of it.
    pub fn path(&self) -> &Path {
        match self {
            Self::Dockerd(dockerd) => dockerd.path(),
            Self::Berth(stack) => stack.path(),
        }
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        match self {
            Self::Dockerd(dockerd) => dockerd.socket(),
            Self::Berth(stack) => stack.engine_socket(),
        }
    }

    /// Its API.
    pub fn api(&self) -> Api {
        Api::new(self.socket())
    }

    /// A client program, prepared to talk to it.
    pub fn client(&self, program: impl AsRef<OsStr>) -> Command {
        match self {
            Self::Dockerd(dockerd) => dockerd.client(program),
            Self::Berth(stack) => stack.client(program),
        }
    }

    // `busybox:latest`, and `rich:1` whose configuration has everything that an image can say.
    fn prepared(self) -> Self {
        let layer = images::busybox_rootfs();
        let config = serde_json::json!({
            "Cmd": ["-c", "echo from the image; sleep 1000"], "Entrypoint": ["sh"], "Env": ["PATH=/bin", "RICH=1"],
            "Labels": {"origin": "image", "shared": "image"}, "User": "1000:50", "WorkingDir": "/tmp",
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Volumes": {"/data": {}}, "StopSignal": "SIGINT",
            "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 1_000_000_000_i64},
            "OnBuild": ["RUN true"], "Shell": ["/bin/sh", "-c"],
        });
        let busybox = fs::read(images::busybox_archive(self.path())).expect("busybox archive");
        for archive in [busybox, images::docker_archive("rich:1", &layer, config)] {
            let kind = "Content-Type: application/x-tar\r\n";
            let answer = self.api().open_bytes("POST", "/images/load?quiet=1", &archive, kind).expect("load");
            answer.finish().expect(200);
        }
        self
    }
}
