//! What containers get that don't say otherwise (`default-ulimits`, `dns`, `log-driver` and so on): filled into the HostConfig of
//! a create request, so that inspect shows what holds.

use super::budget::parse_size;
use crate::{
    api::HostConfig,
    http::{ApiError, ApiResult},
};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The defaults, by their keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContainerDefaults {
    /// As in the configuration; empty where nothing is said.
    keys: Map<String, Value>,
    /// Text of the seccomp profile.
    seccomp: Option<String>,
}

impl ContainerDefaults {
    /// Notes a key.
    pub fn set(&mut self, key: &str, value: Value) -> Result<(), String> {
        let words = |value: &Value| value.as_array().is_some_and(|list| list.iter().all(Value::is_string));
        let texts = |value: &Value| value.as_object().is_some_and(|map| map.values().all(Value::is_string));
        let fits = match key {
            "dns" | "dns-opts" | "dns-search" => words(&value),
            "init" | "no-new-privileges" => value.is_boolean(),
            "log-opts" => texts(&value),
            "default-ulimits" => value.is_object(),
            "default-shm-size" => value.is_string() || value.is_u64(),
            _ => value.is_string(),
        };
        if !fits {
            return Err(format!("{key}: {value} is of the wrong kind"));
        }
        if key == "seccomp-profile" {
            self.seccomp = read_profile(value.as_str().unwrap_or_default())?;
        }
        self.keys.insert(key.to_owned(), value);
        Ok(())
    }

    fn text(&self, key: &str) -> &str {
        self.keys.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    fn words(&self, key: &str) -> Vec<String> {
        self.keys.get(key).and_then(|value| serde_json::from_value(value.clone()).ok()).unwrap_or_default()
    }

    /// Name of the log driver.
    pub fn log_driver(&self) -> &str {
        Some(self.text("log-driver")).filter(|name| !name.is_empty()).unwrap_or("json-file")
    }

    /// Whether containers get an init.
    pub fn init(&self) -> bool {
        self.keys.get("init") == Some(&Value::Bool(true))
    }

    /// The program of their init, if one was chosen in the place of Berth's own.
    pub fn init_path(&self) -> Option<PathBuf> {
        Some(self.text("init-path")).filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    /// `SecurityOptions` of `GET /info`.
    pub fn security_options(&self) -> Vec<String> {
        let profile = match self.text("seccomp-profile") {
            "" => "builtin",
            profile => profile,
        };
        let mut options = vec![format!("name=seccomp,profile={profile}")];
        if self.text("default-cgroupns-mode") != "host" {
            options.push("name=cgroupns".into());
        }
        if self.keys.get("no-new-privileges") == Some(&Value::Bool(true)) {
            options.push("name=no-new-privileges".into());
        }
        options
    }

    fn shm_size(&self) -> Option<i64> {
        match self.keys.get("default-shm-size")? {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => parse_size(text).and_then(|n| i64::try_from(n).ok()),
            _ => None,
        }
    }

    /// Says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        for server in self.words("dns") {
            server.parse::<std::net::IpAddr>().map_err(|_| format!("{server} is not an ip address"))?;
        }
        let ip = self.text("ip");
        if !ip.is_empty() && ip.parse::<std::net::Ipv4Addr>().is_err() {
            return Err(format!("ip: {ip} is not an IPv4 address"));
        }
        if self.init_path().is_some_and(|path| !path.is_absolute()) {
            return Err(format!("init-path: {} is not an absolute path", self.text("init-path")));
        }
        for (key, known) in
            [("default-ipc-mode", ["private", "shareable"]), ("default-cgroupns-mode", ["private", "host"])]
        {
            let mode = self.text(key);
            if !mode.is_empty() && !known.contains(&mode) {
                return Err(format!("{key} {mode:?} is invalid: {} or {}", known[0], known[1]));
            }
        }
        if self.keys.contains_key("default-shm-size") && self.shm_size().is_none_or(|size| size <= 0) {
            return Err(format!("default-shm-size: {} is no size", self.keys["default-shm-size"]));
        }
        for (name, limit) in self.keys.get("default-ulimits").and_then(Value::as_object).into_iter().flatten() {
            let number = |key: &str| limit.get(key).and_then(Value::as_i64);
            match (number("Soft"), number("Hard")) {
                (Some(soft), Some(hard)) if hard < 0 || (0..=hard).contains(&soft) => {}
                (Some(_), Some(_)) => {
                    return Err(format!("default-ulimits: {name}: the soft limit is above the hard one"));
                }
                _ => return Err(format!("default-ulimits: {name}: Soft and Hard are to be numbers")),
            }
        }
        Ok(())
    }

    /// Fills in what a request leaves open.
    pub fn apply(&self, host: &mut HostConfig) -> ApiResult<()> {
        if self.keys.is_empty() {
            return Ok(());
        }
        // By way of JSON: these are the fields as the API names them, however they are kept.
        let mut value = serde_json::to_value(&*host).map_err(|e| ApiError::unexpected(&e))?;
        if let Some(fields) = value.as_object_mut() {
            self.fill(fields);
        }
        *host = serde_json::from_value(value).map_err(|e| ApiError::unexpected(&e))?;
        Ok(())
    }

    fn fill(&self, host: &mut Map<String, Value>) {
        let is_open = |host: &Map<String, Value>, key: &str| host.get(key).is_none_or(crate::api::serial::is_zero);
        for (key, field) in [
            ("default-ipc-mode", "IpcMode"),
            ("default-cgroupns-mode", "CgroupnsMode"),
            ("cgroup-parent", "CgroupParent"),
            ("dns", "Dns"),
            ("dns-opts", "DnsOptions"),
            ("dns-search", "DnsSearch"),
        ] {
            if let Some(value) = self.keys.get(key).filter(|_| is_open(host, field)) {
                host.insert(field.into(), value.clone());
            }
        }
        if let Some(size) = self.shm_size().filter(|_| is_open(host, "ShmSize")) {
            host.insert("ShmSize".into(), size.into());
        }
        if self.init() && host.get("Init").is_none_or(Value::is_null) {
            host.insert("Init".into(), true.into());
        }
        let log = host.entry("LogConfig").or_insert_with(|| json!({}));
        let asked = log["Type"].as_str().unwrap_or_default().to_owned();
        let driver = self.log_driver();
        // Options are those of the default driver: they fit no other.
        if asked.is_empty() || asked == driver {
            log["Type"] = driver.into();
            let mut options = self.keys.get("log-opts").and_then(Value::as_object).cloned().unwrap_or_default();
            options.extend(log["Config"].as_object().cloned().unwrap_or_default());
            log["Config"] = options.into();
        }
        if let Some(limits) = self.keys.get("default-ulimits").and_then(Value::as_object) {
            let list = host.entry("Ulimits").or_insert(Value::Null);
            if !list.is_array() {
                *list = json!([]);
            }
            for (name, limit) in limits {
                if let Some(list) = list.as_array_mut().filter(|list| !list.iter().any(|own| own["Name"] == **name)) {
                    list.push(json!({"Name": name, "Soft": limit["Soft"], "Hard": limit["Hard"]}));
                }
            }
        }
        self.fill_security(host);
        if let Some(ip) = self.keys.get("ip").filter(|ip| !crate::api::serial::is_zero(ip)) {
            let bindings =
                host.get_mut("PortBindings").and_then(Value::as_object_mut).into_iter().flat_map(|m| m.values_mut());
            for binding in bindings.filter_map(Value::as_array_mut).flatten() {
                if binding["HostIp"] == "" {
                    binding["HostIp"] = ip.clone();
                }
            }
        }
    }

    fn fill_security(&self, host: &mut Map<String, Value>) {
        let privileged = host.get("Privileged") == Some(&Value::Bool(true));
        let mut options: Vec<String> =
            host.get("SecurityOpt").and_then(|value| serde_json::from_value(value.clone()).ok()).unwrap_or_default();
        let before = options.len();
        let has = |options: &[String], name: &str| {
            options
                .iter()
                .any(|o| o == name || o.starts_with(&format!("{name}=")) || o.starts_with(&format!("{name}:")))
        };
        if let Some(profile) = self.seccomp.as_ref().filter(|_| !privileged && !has(&options, "seccomp")) {
            options.push(format!("seccomp={profile}"));
        }
        if self.keys.get("no-new-privileges") == Some(&Value::Bool(true)) && !has(&options, "no-new-privileges") {
            options.push("no-new-privileges".into());
        }
        if options.len() > before {
            host.insert("SecurityOpt".into(), json!(options));
        }
    }
}

/// The text of a profile, as a client would send it; `None` for ours.
fn read_profile(path: &str) -> Result<Option<String>, String> {
    match path {
        "" | "builtin" => Ok(None),
        "unconfined" => Ok(Some("unconfined".into())),
        path => {
            let text =
                std::fs::read_to_string(Path::new(path)).map_err(|e| format!("seccomp-profile: read {path}: {e}"))?;
            let value: Value = serde_json::from_str(&text).map_err(|e| format!("seccomp-profile: {path}: {e}"))?;
            Ok(Some(value.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults(value: Value) -> Result<ContainerDefaults, String> {
        let mut defaults = ContainerDefaults::default();
        for (key, value) in value.as_object().unwrap() {
            defaults.set(key, value.clone())?;
        }
        defaults.check().map(|()| defaults)
    }

    fn filled(settings: &Value, host: Value) -> Value {
        let mut host: HostConfig = serde_json::from_value(host).unwrap();
        defaults(settings.clone()).unwrap().apply(&mut host).unwrap();
        serde_json::to_value(host).unwrap()
    }

    #[test]
    fn open_fields_are_filled_and_others_stay() {
        let settings = json!({
            "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 10, "Hard": 20}}, "default-shm-size": "32M", "init": true,
            "dns": ["9.9.9.9"], "log-driver": "local", "log-opts": {"max-size": "1m"}, "no-new-privileges": true,
            "seccomp-profile": "unconfined", "cgroup-parent": "/p", "default-ipc-mode": "shareable", "ip": "127.0.0.1",
        });
        let open = filled(
            &settings,
            json!({"PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "1"}, {"HostIp": "1.2.3.4"}]}}),
        );
        assert_eq!(open["Ulimits"], json!([{"Name": "nofile", "Soft": 10, "Hard": 20}]));
        assert_eq!(
            (&open["ShmSize"], &open["Init"], &open["IpcMode"]),
            (&json!(32 << 20), &json!(true), &json!("shareable"))
        );
        assert_eq!((&open["Dns"], &open["CgroupParent"]), (&json!(["9.9.9.9"]), &json!("/p")));
        assert_eq!(open["LogConfig"], json!({"Type": "local", "Config": {"max-size": "1m"}}));
        assert_eq!(open["SecurityOpt"], json!(["seccomp=unconfined", "no-new-privileges"]));
        assert_eq!(open["PortBindings"]["80/tcp"][0]["HostIp"], "127.0.0.1");
        assert_eq!(open["PortBindings"]["80/tcp"][1]["HostIp"], "1.2.3.4");
        let said = json!({
            "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}], "ShmSize": 5, "Init": false, "Dns": ["1.1.1.1"],
            "LogConfig": {"Type": "json-file", "Config": {"max-file": "2"}}, "SecurityOpt": ["seccomp=x", "no-new-privileges=false"],
            "IpcMode": "private", "CgroupParent": "/q",
        });
        let kept = filled(&settings, said.clone());
        for (key, value) in said.as_object().unwrap() {
            assert_eq!(&kept[key], value, "{key}");
        }
        let mixed = filled(&settings, json!({"LogConfig": {"Type": "local", "Config": {"max-file": "2"}}}));
        assert_eq!(mixed["LogConfig"]["Config"], json!({"max-size": "1m", "max-file": "2"}));
    }

    #[test]
    fn bad_values_are_named() {
        for (value, words) in [
            (json!({"dns": ["x"]}), "x is not an ip address"),
            (json!({"dns": "1.1.1.1"}), "dns: \"1.1.1.1\" is of the wrong kind"),
            (json!({"default-ipc-mode": "host"}), "default-ipc-mode \"host\" is invalid"),
            (json!({"default-shm-size": "much"}), "default-shm-size"),
            (json!({"default-ulimits": {"nofile": {"Soft": 3, "Hard": 2}}}), "soft limit is above"),
            (json!({"seccomp-profile": "/nowhere"}), "seccomp-profile: read /nowhere"),
            (json!({"init": "yes"}), "init: \"yes\""),
            (json!({"init-path": "rel"}), "init-path: rel"),
            (json!({"ip": "::1"}), "ip: ::1"),
        ] {
            let error = defaults(value.clone()).unwrap_err();
            assert!(error.contains(words), "{value}: {error}");
        }
    }
}
