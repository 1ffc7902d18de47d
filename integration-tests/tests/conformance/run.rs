//! One case on one engine: what is asked, and what is kept of the answers.

use crate::{engine::Engine, mask::Mask};
use integration_tests::{
    eventually_within,
    http::{Answer, Api, Stream},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Write},
    net::Shutdown,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A script of requests.
#[derive(Clone, Copy)]
pub struct Case {
    /// What it is about; unique.
    pub name: &'static str,
    /// What it does.
    pub script: fn(&mut Run),
}

/// What is kept of one step.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    /// What was asked.
    pub step: String,
    /// What was answered, masked.
    pub said: Value,
    /// What an error said, for whoever reads of a difference.
    pub text: String,
}

/// All that was said in a case.
#[derive(Debug, Serialize, Deserialize)]
pub struct Said {
    /// The name of the case.
    pub case: String,
    /// What was said.
    pub records: Vec<Record>,
    /// Where an answer is not what the case says.
    pub wrong: Vec<String>,
}

/// What was kept of the same cases before, if it is there.
pub fn read(file: &Path, cases: &[Case]) -> Option<Vec<Said>> {
    let all: Vec<Said> = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    let found: Vec<Said> = all.into_iter().filter(|said| cases.iter().any(|case| case.name == said.case)).collect();
    (found.len() == cases.len()).then_some(found)
}

/// Keeps what was said.
pub fn write(file: &Path, said: &[Said]) {
    std::fs::write(file, serde_json::to_vec(said).expect("json")).expect("write");
}

/// A case that runs.
#[derive(Debug)]
pub struct Run {
    case: &'static str,
    records: Vec<Record>,
    wrong: Vec<String>,
    api: Api,
    engine: &'static str,
    folder: PathBuf,
    mask: Mask,
    steps: BTreeMap<String, usize>,
    networks: BTreeSet<String>,
    since: f64,
}

/// Headers that clients look at.
const HEADERS: [&str; 8] = [
    "content-type",
    "docker-experimental",
    "ostype",
    "connection",
    "upgrade",
    "cache-control",
    "pragma",
    "x-docker-container-path-stat",
];

/// The API that dockerd 20.10 serves, asked of both.
pub const VERSION: &str = "/v1.41";

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("clock").as_secs_f64()
}

/// `sh -c SCRIPT` on busybox.
pub fn sh(script: &str) -> Value {
    json!({ "Image": "busybox", "Cmd": ["sh", "-c", script] })
}

/// A shell that waits for SIGTERM and then ends at once.
pub fn waiting() -> Value {
    sh("trap 'exit 0' TERM; while :; do usleep 20000; done")
}

/// `config` with a `HostConfig`.
pub fn with_host(mut config: Value, host: Value) -> Value {
    config["HostConfig"] = host;
    config
}

impl Run {
    /// Plays a case on an engine and removes what it made.
    pub fn play(engine: &Engine, case: &Case) -> Said {
        let mut run = Self {
            case: case.name,
            records: Vec::new(),
            wrong: Vec::new(),
            api: engine.api(),
            engine: engine.name(),
            folder: engine.path().to_owned(),
            mask: Mask::new(engine.path()),
            steps: BTreeMap::new(),
            networks: BTreeSet::new(),
            since: now(),
        };
        run.networks = run.network_names();
        run.since = now();
        if catch_unwind(AssertUnwindSafe(|| (case.script)(&mut run))).is_err() {
            run.wrong.push(format!("{}: the script panicked on {}", run.case, run.engine));
            run.note("the script came to its end", json!(false));
        }
        run.clean();
        Said { case: run.case.to_owned(), records: run.records, wrong: run.wrong }
    }

    fn network_names(&self) -> BTreeSet<String> {
        let listed = self.api.get("/networks").json();
        listed.as_array().into_iter().flatten().filter_map(|n| n["Name"].as_str().map(str::to_owned)).collect()
    }

    fn clean(&self) {
        let api = &self.api;
        for container in api.get("/containers/json?all=1").json().as_array().into_iter().flatten() {
            let id = container["Id"].as_str().unwrap_or_default();
            api.delete(&format!("/containers/{id}?force=1&v=1"));
        }
        for volume in api.get("/volumes").json()["Volumes"].as_array().into_iter().flatten() {
            api.delete(&format!("/volumes/{}?force=1", volume["Name"].as_str().unwrap_or_default()));
        }
        for network in self.network_names().difference(&self.networks) {
            api.delete(&format!("/networks/{network}"));
        }
        for image in api.get("/images/json").json().as_array().into_iter().flatten() {
            for tag in image["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !["busybox:latest", "rich:1"].contains(&tag) {
                    api.delete(&format!("/images/{tag}?force=1"));
                }
            }
        }
        api.post("/images/prune", None);
    }

    /// A folder of the engine's, for host paths; masked as ROOT.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Keeps something under a name of the case's own.
    pub fn note(&mut self, step: &str, said: Value) {
        let step = self.mask.text(step);
        let count = self.steps.entry(step.clone()).or_default();
        *count += 1;
        let step = if *count > 1 { format!("{step} #{count}") } else { step };
        let said = self.mask.value(said);
        self.records.push(Record { step, said, text: String::new() });
    }

    fn keep(&mut self, step: &str, expected: u16, answer: &Answer) {
        // 20.10 answers 500 to much bad input that newer ones, and the cases, call 4xx.
        let old = self.engine == "dockerd" && answer.status == 500 && (400..500).contains(&expected);
        if answer.status != expected && !old {
            let text = answer.text();
            self.wrong.push(format!("{}: {step}: {} instead of {expected}: {}", self.case, answer.status, text.trim()));
        }
        let headers: Map<String, Value> = HEADERS
            .iter()
            .filter_map(|name| answer.header(name).map(|value| ((*name).to_owned(), json!(value))))
            .collect();
        let body = if answer.body.is_empty() {
            json!("nothing")
        } else {
            serde_json::from_slice(&answer.body).unwrap_or_else(|_| json!(answer.text()))
        };
        // What an error says is compared where a case asks for it; that it has this shape, everywhere.
        let body = match body {
            Value::Object(mut fields) if answer.status >= 400 && fields.contains_key("message") => {
                fields.insert("message".into(), json!("text"));
                Value::Object(fields)
            }
            body => body,
        };
        self.note(step, json!({ "status": answer.status, "headers": headers, "body": body }));
        if answer.status >= 400 {
            self.records.last_mut().expect("the record of now").text = answer.text();
        }
    }

    /// Asks for something, with a JSON body or none, and keeps the answer; gives the JSON of it, null if it isn't.
    pub fn ask(&mut self, expected: u16, method: &str, path: &str, body: Option<&Value>) -> Value {
        self.asked(expected, method, path, body).1
    }

    fn asked(&mut self, expected: u16, method: &str, path: &str, body: Option<&Value>) -> (String, Value) {
        let answer = self.api.request(method, &format!("{VERSION}{path}"), body);
        self.keep(&format!("{method} {path}"), expected, &answer);
        if answer.status == 204
            && let Some((name, "start" | "restart")) =
                path.strip_prefix("/containers/").and_then(|path| path.split('?').next()?.split_once('/'))
        {
            self.until_it_listens(name);
        }
        (answer.text(), serde_json::from_slice(&answer.body).unwrap_or_default())
    }

    /// Waits until the shell of a container that begins with a trap has set it: until then a signal ends it, or does nothing.
    fn until_it_listens(&self, name: &str) {
        let inspected = self.api.get(&format!("{VERSION}/containers/{name}/json")).json();
        let script = inspected["Config"]["Cmd"].as_array().and_then(|words| words.last()?.as_str());
        let pid = inspected["State"]["Pid"].as_u64().unwrap_or_default();
        if pid == 0 || !script.is_some_and(|script| script.starts_with("trap")) {
            return;
        }
        let caught = || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
            u64::from_str_radix(mask.trim(), 16).ok()
        };
        eventually_within(Duration::from_secs(15), "the trap is set, or all is over", || {
            // Of its children the shell hears from the beginning.
            caught().is_none_or(|mask| mask & !(1 << (nix::libc::SIGCHLD - 1)) != 0).then_some(())
        });
    }

    /// A GET.
    pub fn get(&mut self, expected: u16, path: &str) -> Value {
        self.ask(expected, "GET", path, None)
    }

    /// A POST without body.
    pub fn post(&mut self, expected: u16, path: &str) -> Value {
        self.ask(expected, "POST", path, None)
    }

    /// A DELETE.
    pub fn delete(&mut self, expected: u16, path: &str) -> Value {
        self.ask(expected, "DELETE", path, None)
    }

    /// Asks for what is refused, and wants the message to hold `text`: scripts and clients match on it.
    pub fn refused(&mut self, expected: u16, method: &str, path: &str, body: Option<&Value>, text: &str) {
        let (answer, _) = self.asked(expected, method, path, body);
        let says = serde_json::from_str::<Value>(&answer).ok().and_then(|v| v["message"].as_str().map(str::to_owned));
        let says = says.unwrap_or_default();
        let holds = says.contains(text);
        if !holds {
            self.wrong.push(format!("{}: {method} {path} says {says:?}, which lacks {text:?}", self.case));
        }
        let seen = if holds { text.to_owned() } else { says };
        self.note(&format!("message of {method} {path}"), json!(seen));
    }

    /// Sends bytes of any kind, with header lines that say which, and keeps the answer.
    pub fn send(&mut self, expected: u16, method: &str, path: &str, body: &[u8], headers: &str) -> Answer {
        let answer = self.api.open_bytes(method, &format!("{VERSION}{path}"), body, headers).expect("answer").finish();
        self.keep(&format!("{method} {path} with {headers:?}, {} bytes", body.len()), expected, &answer);
        answer
    }

    /// Sends a tar whose size differs from engine to engine, and gives status and answer.
    pub fn api_send(&self, path: &str, body: &[u8]) -> Value {
        let kind = "Content-Type: application/x-tar\r\n";
        let answer = self.api.open_bytes("POST", &format!("{VERSION}{path}"), body, kind).expect("answer").finish();
        json!([answer.status, answer.text()])
    }

    /// Asks without version in the path, and with whatever is in the path.
    pub fn plain(&mut self, expected: u16, method: &str, path: &str) -> Answer {
        let answer = self.api.open(method, path, None, "").expect("answer").finish();
        self.keep(&format!("{method} {path} as it is"), expected, &answer);
        answer
    }

    /// Asks and keeps nothing: for what only prepares a step.
    pub fn quietly(&mut self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.api.request(method, &format!("{VERSION}{path}"), body)
    }

    /// Makes a container, which has to work.
    pub fn create(&mut self, name: &str, config: &Value) -> String {
        let made = self.ask(201, "POST", &format!("/containers/create?name={name}"), Some(config));
        made["Id"].as_str().unwrap_or_default().to_owned()
    }

    /// Makes a container and starts it.
    pub fn start(&mut self, name: &str, config: &Value) -> String {
        let id = self.create(name, config);
        self.post(204, &format!("/containers/{name}/start"));
        id
    }

    /// Makes a container, runs it to its end and keeps what it printed.
    pub fn runs(&mut self, name: &str, config: &Value) {
        self.start(name, config);
        self.ended(name);
        self.output(name);
    }

    /// Waits for the end of a container, keeping nothing but the code.
    pub fn ended(&mut self, name: &str) {
        let answer = self.quietly("POST", &format!("/containers/{name}/wait"), None);
        let code: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        self.note(&format!("{name} ended with"), code["StatusCode"].clone());
    }

    /// Keeps both streams of a container's log.
    pub fn output(&mut self, name: &str) {
        self.logs(name, "stdout=1&stderr=1");
    }

    /// Keeps what a request for logs gives.
    pub fn logs(&mut self, name: &str, query: &str) {
        let path = format!("{VERSION}/containers/{name}/logs?{query}");
        let mut stream = self.api.open("GET", &path, None, "").expect("answer");
        let (status, headers) = (stream.status, kept(&stream));
        let said = if status == 200 { both(&mut stream) } else { json!(null) };
        self.note(&format!("logs of {name} with {query}"), json!({"status": status, "headers": headers, "said": said}));
    }

    /// Opens a stream and keeps its header.
    pub fn open(&mut self, method: &str, path: &str, body: Option<&Value>, headers: &str) -> Stream {
        let stream = self.api.open(method, &format!("{VERSION}{path}"), body, headers).expect("answer");
        let (status, kept) = (stream.status, kept(&stream));
        self.note(&format!("{method} {path} opens with {headers:?}"), json!({ "status": status, "headers": kept }));
        stream
    }

    /// Opens a stream as clients upgrade it.
    pub fn upgrade(&mut self, path: &str, body: Option<&Value>) -> Stream {
        self.open("POST", path, body, "Connection: Upgrade\r\nUpgrade: tcp\r\n")
    }

    /// Keeps what comes from a stream of frames until it ends.
    pub fn frames(&mut self, step: &str, mut stream: Stream) {
        let said = both(&mut stream);
        self.note(step, said);
    }

    /// Keeps what comes from a raw stream until it ends.
    pub fn bytes(&mut self, step: &str, mut stream: Stream) {
        let mut text = Vec::new();
        stream.raw().read_to_end(&mut text).ok();
        self.note(step, json!(String::from_utf8_lossy(&text)));
    }

    /// Writes to a hijacked stream, and closes that direction if `close`.
    pub fn write(&mut self, stream: &mut Stream, text: &str, close: bool) {
        let socket = stream.raw().get_mut();
        socket.write_all(text.as_bytes()).expect("write");
        if close {
            socket.shutdown(Shutdown::Write).expect("shutdown");
        }
    }

    /// Waits until `pointer` of what inspect says is `value`.
    pub fn until(&mut self, name: &str, pointer: &str, value: &Value) {
        let api = self.api.clone();
        let path = format!("{VERSION}/containers/{name}/json");
        let came = catch_unwind(AssertUnwindSafe(|| {
            eventually_within(Duration::from_secs(15), pointer, || {
                (api.get(&path).json().pointer(pointer) == Some(value)).then_some(())
            });
        }));
        self.note(&format!("{name} comes to {pointer} = {value}"), json!(came.is_ok()));
        if came.is_err() {
            self.wrong.push(format!("{}: {name} doesn't come to {pointer} = {value}", self.case));
        }
    }

    /// Keeps parts of what inspect says.
    pub fn inspect(&mut self, name: &str, pointers: &[&str]) {
        let all = self.quietly("GET", &format!("/containers/{name}/json"), None);
        let all: Value = serde_json::from_slice(&all.body).unwrap_or_default();
        let parts: Map<String, Value> = pointers
            .iter()
            .map(|pointer| ((*pointer).to_owned(), all.pointer(pointer).cloned().unwrap_or(json!("missing"))))
            .collect();
        self.note(&format!("inspect of {name}"), Value::Object(parts));
    }

    /// Keeps the events since the case began that `filters` lets through.
    pub fn events(&mut self, step: &str, filters: &Value) {
        let filters = encode(&filters.to_string());
        // The last event may be on its way still.
        std::thread::sleep(Duration::from_millis(120));
        let path = format!("{VERSION}/events?since={:.9}&until={:.9}&filters={filters}", self.since, now());
        let text = self.api.get(&path).text();
        let events: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        self.note(step, json!(events));
    }
}

fn kept(stream: &Stream) -> Value {
    let found = stream.headers.iter().filter(|(name, _)| HEADERS.contains(&name.as_str()));
    Value::Object(found.map(|(name, value)| (name.clone(), json!(value))).collect())
}

/// Percent-encodes whatever isn't plain.
pub fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

// Frames may come inside chunks, or bare. Adjacent ones are one: where a write is cut is chance.
fn both(stream: &mut Stream) -> Value {
    let chunked = stream.headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let mut bytes = Vec::new();
    if chunked {
        while let Some(chunk) = stream.chunk() {
            bytes.extend(chunk);
        }
    } else {
        stream.raw().read_to_end(&mut bytes).ok();
    }
    let mut said: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut rest = &bytes[..];
    while let Some((head, tail)) = rest.split_at_checked(8) {
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let Some((data, tail)) = tail.split_at_checked(length).filter(|_| head[0] < 4 && head[1..4] == [0, 0, 0])
        else {
            break;
        };
        said.entry(head[0].to_string()).or_default().extend(data);
        rest = tail;
    }
    if !rest.is_empty() {
        said.insert("unframed".into(), rest.to_vec());
    }
    let texts = said.into_iter().map(|(kind, data)| (kind, json!(String::from_utf8_lossy(&data))));
    Value::Object(texts.collect())
}
