//! Instructions that only say something of the image, and WORKDIR and USER, which later steps go by.

use super::{
    image::{Health, Set},
    llb::{self, About, Files},
    path,
    stages::{Converter, Step},
    text,
};
use crate::{
    Error,
    instruction::{Command, Healthcheck, Kind, Pair},
};
use proto::pb::{self, file_action::Action};

impl Converter<'_> {
    /// All but those with a file of their own.
    pub(super) fn meta(&mut self, at: usize, step: &Step, kind: &Kind) -> Result<(), Error> {
        match kind {
            Kind::Env(pairs) => {
                let pairs = self.pairs(at, step, pairs)?;
                let stage = &mut self.stages[at];
                for (name, value) in &pairs {
                    stage.env.set(name, value);
                    stage.image.set_env(name, value);
                }
                self.record(at, format!("ENV{}", told(&pairs)), false);
            }
            Kind::Label(pairs) => {
                let pairs = self.pairs(at, step, pairs)?;
                self.record(at, format!("LABEL{}", told(&pairs)), false);
                self.stages[at].image.config.labels.extend(pairs);
            }
            Kind::Maintainer(name) => {
                self.stages[at].image.author.clone_from(name);
                self.record(at, format!("MAINTAINER {name}"), false);
            }
            Kind::Onbuild(text) => self.stages[at].image.config.on_build.push(text.clone()),
            Kind::Cmd(command) => {
                let words = self.command(at, command);
                self.record(at, format!("CMD {}", text::quoted_list(&words)), false);
                let stage = &mut self.stages[at];
                stage.cmd_set = true;
                stage.image.config.cmd = words;
                stage.image.config.args_escaped = true;
            }
            Kind::Entrypoint(command) => {
                let words = self.command(at, command);
                self.record(at, format!("ENTRYPOINT {}", text::quoted_list(&words)), false);
                let stage = &mut self.stages[at];
                stage.image.config.entrypoint = words;
                // A base's CMD was for the base's ENTRYPOINT.
                if !stage.cmd_set {
                    stage.image.config.cmd.clear();
                }
            }
            Kind::Healthcheck(check) => self.healthcheck(at, check),
            Kind::Expose(ports) => self.expose(at, step, ports)?,
            Kind::User(user) => {
                let user = self.word(at, user, step)?;
                self.record(at, format!("USER {user}"), false);
                let stage = &mut self.stages[at];
                stage.user.clone_from(&user);
                stage.image.config.user = user;
            }
            Kind::Volume(volumes) => {
                let volumes = self.words(at, volumes, step)?;
                if volumes.iter().any(String::is_empty) {
                    return Err(step.error("VOLUME specified can not be an empty string"));
                }
                self.record(at, format!("VOLUME {}", text::list(&volumes)), false);
                let known = &mut self.stages[at].image.config.volumes;
                known.extend(volumes.into_iter().map(|volume| (volume, Set {})));
            }
            Kind::Stopsignal(signal) => {
                let signal = self.word(at, signal, step)?;
                if !is_signal(&signal) {
                    return Err(step.error(format!("invalid signal: {signal}")));
                }
                self.record(at, format!("STOPSIGNAL {signal}"), false);
                self.stages[at].image.config.stop_signal = signal;
            }
            Kind::Shell(words) => {
                self.record(at, format!("SHELL {}", text::list(words)), false);
                self.stages[at].image.config.shell.clone_from(words);
            }
            Kind::Workdir(folder) => self.workdir(at, step, folder)?,
            // They have their own files.
            Kind::Add(_) | Kind::Arg(_) | Kind::Copy(_) | Kind::Run(_) => (),
        }
        Ok(())
    }

    /// Names and values filled in with what was set before this instruction.
    fn pairs(&mut self, at: usize, step: &Step, pairs: &[Pair]) -> Result<Vec<(String, String)>, Error> {
        let pair = |pair: &Pair| Ok((self.word(at, &pair.name, step)?, self.word(at, &pair.value, step)?));
        pairs.iter().map(pair).collect()
    }

    fn command(&self, at: usize, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(words) => words.clone(),
            Command::Shell(line) => self.stages[at].image.with_shell(line),
        }
    }

    fn healthcheck(&mut self, at: usize, check: &Healthcheck) {
        let health = match check {
            Healthcheck::None => Health { test: vec!["NONE".into()], ..Health::default() },
            Healthcheck::Cmd { command, interval, timeout, start_period, start_interval, retries } => {
                let mut test: Vec<String> = Vec::new();
                match command {
                    Command::Exec(words) => {
                        test.push("CMD".into());
                        test.extend_from_slice(words);
                    }
                    Command::Shell(line) => test.extend(["CMD-SHELL".into(), line.clone()]),
                }
                Health {
                    test,
                    interval: interval.unwrap_or(0),
                    timeout: timeout.unwrap_or(0),
                    start_period: start_period.unwrap_or(0),
                    start_interval: start_interval.unwrap_or(0),
                    retries: retries.unwrap_or(0).into(),
                }
            }
        };
        let told = format!(
            "HEALTHCHECK {{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
            text::list(&health.test),
            text::duration(health.interval),
            text::duration(health.timeout),
            text::duration(health.start_period),
            text::duration(health.start_interval),
            health.retries
        );
        self.record(at, told, false);
        self.stages[at].image.config.healthcheck = Some(health);
    }

    fn expose(&mut self, at: usize, step: &Step, written: &[String]) -> Result<(), Error> {
        let mut ports = Vec::new();
        for text in written {
            let words = self.lexer.words(text, &self.stages[at].env);
            for word in words.map_err(|error| step.error(error.to_string()))? {
                if text.contains('$') {
                    self.linter.port(&word, &step.instruction);
                }
                let read = read_ports(&word).map_err(|problem| step.error(problem))?;
                self.count(100 * read.len(), step.span())?;
                ports.extend(read);
            }
        }
        self.record(at, format!("EXPOSE {}", text::list(&ports)), false);
        self.stages[at].image.config.exposed_ports.extend(ports.into_iter().map(|port| (port, Set {})));
        Ok(())
    }

    fn workdir(&mut self, at: usize, step: &Step, folder: &str) -> Result<(), Error> {
        let folder = self.word(at, folder, step)?;
        let stage = &mut self.stages[at];
        let folder = path::join(&stage.image.config.working_dir, &folder);
        stage.image.config.working_dir.clone_from(&folder);
        stage.dir.clone_from(&folder);
        let layer = folder != "/";
        if layer {
            let (tree, user, env) = (stage.tree, stage.image.config.user.clone(), stage.env.clone());
            let mut files = Files::on(tree);
            let owner = (!user.is_empty()).then(|| llb::owner(&user, files.base()));
            let timestamp = self.file_time();
            files.add(Action::Mkdir(pb::FileActionMkDir {
                path: folder.clone(),
                mode: 0o755,
                make_parents: true,
                owner,
                timestamp,
            }));
            let lexer = self.lexer;
            self.count(env.size(), step.span())?;
            let shown = self.shown(&step.instruction.text, &lexer, &env, step.span())?;
            let name = self.next_name(at, &shown, &env, step.trigger);
            let (op, inputs) = files.finish();
            let about = About { span: Some(step.span()), ..About::named(name) };
            let tree = self.graph.add(op, inputs, None, about);
            self.stages[at].tree = Some(tree);
        }
        self.record(at, format!("WORKDIR {folder}"), layer);
        Ok(())
    }
}

/// ` a=1 b=2`
fn told(pairs: &[(String, String)]) -> String {
    pairs.iter().map(|(name, value)| format!(" {name}={value}")).collect()
}

/// `[[ip:]port:]port[-port][/protocol]` as `port/protocol`, one per port. What is in front of the container's ports means
/// nothing, but must be right.
fn read_ports(text: &str) -> Result<Vec<String>, String> {
    let (front, container) = text.rsplit_once(':').map_or((None, text), |(front, last)| (Some(front), last));
    let (container, protocol) = container.split_once('/').unwrap_or((container, ""));
    if container.is_empty() {
        return Err(format!("no port specified: {text}<empty>"));
    }
    let protocol = match protocol.to_lowercase().as_str() {
        "" => "tcp".to_owned(),
        known @ ("tcp" | "udp" | "sctp") => known.to_owned(),
        other => return Err(format!("invalid proto: {other}")),
    };
    let (first, last) = range(container).ok_or_else(|| format!("invalid containerPort: {container}"))?;
    if let Some(front) = front {
        let (ip, host) = front.rsplit_once(':').map_or(("", front), |(ip, host)| (ip, host));
        let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
        if !bare.is_empty() && bare.parse::<std::net::IpAddr>().is_err() {
            return Err(format!("invalid IP address: {ip}"));
        }
        if !host.is_empty() {
            let (from, to) = range(host).ok_or_else(|| format!("invalid hostPort: {host}"))?;
            if to - from != last - first && last != first {
                return Err(format!("invalid ranges specified for container and host Ports: {container} and {host}"));
            }
        }
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// `port` or `port-port`
fn range(text: &str) -> Option<(u16, u16)> {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (digits(first)?, digits(last)?),
        None => (digits(text)?, digits(text)?),
    };
    (first <= last).then_some((first, last))
}

/// A number, or a name with or without `SIG`.
fn is_signal(text: &str) -> bool {
    const NAMES: [&str; 36] = [
        "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
        "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
        "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
    ];
    if let Ok(number) = text.parse::<i64>() {
        return number != 0;
    }
    let name = text.to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let offset = |prefix: &str, most: u8| {
        name.strip_prefix(prefix)
            .and_then(|number| number.parse::<u8>().ok())
            .is_some_and(|number| (1..=most).contains(&number))
    };
    NAMES.contains(&name) || offset("RTMIN+", 15) || offset("RTMAX-", 14)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        for (text, ports) in [
            ("80", &["80/tcp"][..]),
            ("80/UDP", &["80/udp"]),
            ("8000-8002/sctp", &["8000/sctp", "8001/sctp", "8002/sctp"]),
            ("8080:80", &["80/tcp"]),
            ("127.0.0.1:8080:80", &["80/tcp"]),
            ("[::1]:8080:80/udp", &["80/udp"]),
            ("1-5:80", &["80/tcp"]),
            ("80/", &["80/tcp"]),
        ] {
            assert_eq!(read_ports(text).unwrap(), ports, "{text}");
        }
        for (text, problem) in [
            ("", "no port specified: <empty>"),
            ("/tcp", "no port specified: /tcp<empty>"),
            ("80/icmp", "invalid proto: icmp"),
            ("http", "invalid containerPort: http"),
            ("70000", "invalid containerPort: 70000"),
            ("90-80", "invalid containerPort: 90-80"),
            ("x:80", "invalid hostPort: x"),
            ("h:1:80", "invalid IP address: h"),
            ("1-3:80-81", "invalid ranges specified for container and host Ports: 80-81 and 1-3"),
        ] {
            assert_eq!(read_ports(text).unwrap_err(), problem, "{text}");
        }
    }

    #[test]
    fn signals() {
        for good in ["9", "SIGTERM", "term", "RTMIN+3", "SIGRTMAX-2", "rtmin"] {
            assert!(is_signal(good), "{good}");
        }
        for bad in ["", "0", "SIGFOO", "RTMIN+16", "SIG"] {
            assert!(!is_signal(bad), "{bad}");
        }
    }
}
