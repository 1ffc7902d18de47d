//! A volume plugin for tests: docker's protocol over a unix or a TCP socket, volumes as folders, every call noted.

use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::Duration,
};

/// What it does with calls of one method.
#[derive(Debug, Clone)]
pub enum Mood {
    /// Nothing ever comes back.
    Hangs,
    /// `Err` with this text.
    Refuses(String),
    /// These bytes are the body.
    Says(Vec<u8>),
}

#[derive(Debug, Default)]
pub struct State {
    /// Method and body of each call.
    pub calls: Vec<(String, Value)>,
    /// Name to options.
    pub volumes: BTreeMap<String, Value>,
    /// Mounts that have not ended: volume and number.
    pub mounts: Vec<(String, String)>,
    pub moods: BTreeMap<String, Mood>,
}

/// The plugin; its threads end with the test's process.
#[derive(Debug, Clone)]
pub struct Plugin {
    state: Arc<Mutex<State>>,
    data: PathBuf,
}

impl Plugin {
    fn new(data: &Path) -> Self {
        std::fs::create_dir_all(data).unwrap();
        Self { state: Arc::default(), data: data.to_owned() }
    }

    pub fn on_unix(socket: &Path, data: &Path) -> Self {
        let plugin = Self::new(data);
        let listener = UnixListener::bind(socket).unwrap();
        let server = plugin.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                thread::spawn(move || server.serve(stream));
            }
        });
        plugin
    }

    /// Gives its port too.
    pub fn on_tcp(data: &Path) -> (Self, u16) {
        let plugin = Self::new(data);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = plugin.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                thread::spawn(move || server.serve(stream));
            }
        });
        (plugin, port)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn folder(&self, volume: &str) -> PathBuf {
        self.data.join(volume)
    }

    /// Bodies of all calls of a method.
    pub fn calls(&self, method: &str) -> Vec<Value> {
        self.state().calls.iter().filter(|(called, _)| called == method).map(|(_, body)| body.clone()).collect()
    }

    pub fn set(&self, method: &str, mood: Option<Mood>) {
        let mut state = self.state();
        match mood {
            Some(mood) => _ = state.moods.insert(method.to_owned(), mood),
            None => _ = state.moods.remove(method),
        }
    }

    fn serve(&self, stream: impl Read + Write) {
        let mut stream = BufReader::new(stream);
        let (mut line, mut length) = (String::new(), 0);
        stream.read_line(&mut line).unwrap();
        let method = line.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
        loop {
            let mut header = String::new();
            if stream.read_line(&mut header).unwrap_or(0) <= 2 {
                break;
            }
            if let Some((_, value)) = header.to_lowercase().split_once("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let mood = {
            let mut state = self.state();
            state.calls.push((method.clone(), body.clone()));
            state.moods.get(&method).cloned()
        };
        let answer = match mood {
            Some(Mood::Hangs) => {
                thread::sleep(Duration::from_secs(600));
                return;
            }
            Some(Mood::Says(bytes)) => bytes,
            Some(Mood::Refuses(text)) => json!({ "Err": text }).to_string().into_bytes(),
            None => self.answer(&method, &body).to_string().into_bytes(),
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.plugins.v1.1+json\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        let stream = stream.get_mut();
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&answer));
    }

    fn answer(&self, method: &str, body: &Value) -> Value {
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        let (name, id) = (text("Name"), text("ID"));
        let folder = self.folder(&name);
        let mut state = self.state();
        let mounted = |state: &State, name: &str| state.mounts.iter().any(|(volume, _)| volume == name);
        let told = |state: &State, name: &str| {
            let place = if mounted(state, name) { self.folder(name).display().to_string() } else { String::new() };
            json!({"Name": name, "Mountpoint": place, "CreatedAt": "2024-01-02T03:04:05Z", "Status": {"mounts": state.mounts.len()}})
        };
        let known = state.volumes.contains_key(&name);
        match method {
            "Plugin.Activate" => json!({"Implements": ["VolumeDriver"]}),
            "VolumeDriver.Capabilities" => json!({"Capabilities": {"Scope": "global"}}),
            "VolumeDriver.List" => {
                let volumes: Vec<_> = state.volumes.keys().map(|name| told(&state, name)).collect();
                json!({"Volumes": volumes, "Err": ""})
            }
            "VolumeDriver.Create" => {
                std::fs::create_dir_all(&folder).unwrap();
                state.volumes.insert(name, body["Opts"].clone());
                json!({"Err": ""})
            }
            _ if !known => json!({"Err": format!("no such volume here: {name}")}),
            "VolumeDriver.Get" => json!({"Volume": told(&state, &name), "Err": ""}),
            "VolumeDriver.Remove" if mounted(&state, &name) => json!({"Err": "it is mounted"}),
            "VolumeDriver.Remove" => {
                std::fs::remove_dir_all(&folder).unwrap();
                state.volumes.remove(&name);
                json!({"Err": ""})
            }
            "VolumeDriver.Mount" => {
                state.mounts.push((name, id));
                json!({"Mountpoint": folder, "Err": ""})
            }
            "VolumeDriver.Unmount" => {
                state.mounts.retain(|mount| *mount != (name.clone(), id.clone()));
                json!({"Err": ""})
            }
            "VolumeDriver.Path" => json!({"Mountpoint": folder, "Err": ""}),
            _ => json!({"Err": "what?"}),
        }
    }
}
