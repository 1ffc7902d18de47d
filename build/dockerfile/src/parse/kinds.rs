//! What each instruction takes.

use std::collections::{BTreeMap, VecDeque};

use super::{
    Fault,
    flags::{Flags, Takes},
    heredoc::heredoc,
    mount, values, words,
};
use crate::{
    instruction::{Add, Arg, Command, Copy, Healthcheck, Heredoc, Kind, Pair, Run, Sources, Stage},
    suggest,
};

const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];
const NETWORKS: [&str; 3] = ["default", "none", "host"];
const SECURITIES: [&str; 2] = ["sandbox", "insecure"];
/// Checks of health are not made oftener.
const SHORTEST_CHECK: i64 = 1_000_000;

/// An instruction in its parts.
pub struct Parts<'a> {
    pub keyword: &'a str,
    pub flags: Vec<String>,
    pub args: &'a str,
    /// The whole of it.
    pub text: &'a str,
    pub heredocs: Vec<Heredoc>,
    pub comment: &'a [String],
    pub escape: char,
}

pub enum Said {
    Stage(Box<Stage>),
    Kind(Kind),
}

impl Parts<'_> {
    pub fn read(self) -> Result<Said, Fault> {
        let name = self.keyword.to_ascii_uppercase();
        let name = name.as_str();
        let kind = match name {
            "ADD" => self.add()?,
            "ARG" => self.arg()?,
            "CMD" => Kind::Cmd(self.plain()?.command()?),
            "COPY" => self.copy()?,
            "ENTRYPOINT" => Kind::Entrypoint(self.plain()?.command()?),
            "ENV" => Kind::Env(self.plain()?.pairs(name)?),
            "EXPOSE" => Kind::Expose(self.plain()?.expose()?),
            "FROM" => return self.from().map(|stage| Said::Stage(Box::new(stage))),
            "HEALTHCHECK" => Kind::Healthcheck(self.healthcheck()?),
            "LABEL" => Kind::Label(self.plain()?.pairs(name)?),
            "MAINTAINER" => Kind::Maintainer(self.one(name)?),
            "ONBUILD" => self.onbuild()?,
            "RUN" => self.run()?,
            "SHELL" => Kind::Shell(self.plain()?.shell()?),
            "STOPSIGNAL" => Kind::Stopsignal(self.one(name)?),
            "USER" => Kind::User(self.one(name)?),
            "VOLUME" => Kind::Volume(self.volume()?),
            "WORKDIR" => Kind::Workdir(self.one(name)?),
            _ => return Err(self.unknown()),
        };
        Ok(Said::Kind(kind))
    }

    fn unknown(&self) -> Fault {
        let message = format!("unknown instruction: {}", self.keyword);
        let lower = self.keyword.to_lowercase();
        let known = KEYWORDS.map(str::to_lowercase);
        let hint = suggest::nearest(&lower, known.iter().map(String::as_str));
        let hint = hint.map(|hint| if lower == self.keyword { hint.to_owned() } else { hint.to_uppercase() });
        Fault::at(
            match hint {
                Some(hint) => format!("{message} (did you mean {hint}?)"),
                None => message,
            },
            self.keyword,
        )
    }

    /// For instructions without flags.
    fn plain(self) -> Result<Self, Fault> {
        Flags::new(&self.flags, &[])?;
        Ok(self)
    }

    /// All that follows, as one.
    fn one(self, name: &str) -> Result<String, Fault> {
        if self.args.is_empty() {
            return Err(Fault::end(format!("{name} requires exactly one argument")));
        }
        Ok(self.plain()?.args.to_owned())
    }

    fn json(&self) -> Result<Option<Vec<String>>, Fault> {
        words::json(self.args).map_err(|message| Fault::at(message, self.args))
    }

    fn command(&self) -> Result<Command, Fault> {
        Ok(match self.json()? {
            Some(words) => Command::Exec(words),
            None => Command::Shell(self.args.to_owned()),
        })
    }

    fn words(&self) -> Result<Vec<String>, Fault> {
        Ok(self.json()?.unwrap_or_else(|| words::plain(self.args)))
    }

    fn pairs(&self, name: &str) -> Result<Vec<Pair>, Fault> {
        pairs(name, self.args, self.escape)
    }

    fn add(self) -> Result<Kind, Fault> {
        let words = self.sources_and_target("ADD")?;
        let flags = Flags::new(
            &self.flags,
            &[
                ("chown", Takes::Value),
                ("chmod", Takes::Value),
                ("link", Takes::Bool),
                ("keep-git-dir", Takes::Bool),
                ("checksum", Takes::Value),
                ("unpack", Takes::Bool),
                ("exclude", Takes::Values),
            ],
        )?;
        let (checksum, keep_git_dir, unpack) =
            (flags.value("checksum"), flags.bool("keep-git-dir"), flags.bool("unpack"));
        Ok(Kind::Add(Add { sources: self.sources("ADD", words, &flags)?, checksum, keep_git_dir, unpack }))
    }

    fn copy(self) -> Result<Kind, Fault> {
        let words = self.sources_and_target("COPY")?;
        let flags = Flags::new(
            &self.flags,
            &[
                ("chown", Takes::Value),
                ("from", Takes::Value),
                ("chmod", Takes::Value),
                ("link", Takes::Bool),
                ("parents", Takes::Bool),
                ("exclude", Takes::Values),
            ],
        )?;
        let (from, parents) = (flags.value("from"), flags.bool("parents") == Some(true));
        Ok(Kind::Copy(Copy { sources: self.sources("COPY", words, &flags)?, from, parents }))
    }

    fn sources_and_target(&self, name: &str) -> Result<Vec<String>, Fault> {
        let words = self.words()?;
        match words.len() {
            0 | 1 => Err(Fault::end(format!(
                "{name} requires at least two arguments, but only one was provided. Destination could not be determined"
            ))),
            _ => Ok(words),
        }
    }

    fn sources(self, name: &str, mut words: Vec<String>, flags: &Flags) -> Result<Sources, Fault> {
        let target = words.pop().unwrap_or_default();
        let any = !self.heredocs.is_empty();
        let announces = |word: &str| heredoc(word).ok().flatten().filter(|_| any);
        if announces(&target).is_some() {
            return Err(Fault::at(format!("{name} cannot accept a heredoc as a destination"), &target));
        }
        let mut read: BTreeMap<String, VecDeque<Heredoc>> = BTreeMap::new();
        for heredoc in self.heredocs {
            read.entry(heredoc.name.clone()).or_default().push_back(heredoc);
        }
        let (mut paths, mut heredocs) = (Vec::new(), Vec::new());
        for word in words {
            match announces(&word) {
                Some(announced) => heredocs.extend(read.get_mut(&announced.name).and_then(VecDeque::pop_front)),
                None => paths.push(word),
            }
        }
        let (chown, chmod) = (flags.value("chown"), flags.value("chmod"));
        let (link, exclude) = (flags.bool("link") == Some(true), flags.values("exclude"));
        Ok(Sources { paths, heredocs, target, chown, chmod, link, exclude })
    }

    fn arg(self) -> Result<Kind, Fault> {
        let (comment, escape) = (self.comment, self.escape);
        let args = self.plain()?.args;
        let words = words::quoted(args, escape);
        if words.is_empty() {
            return Err(Fault::end("ARG requires at least one argument".into()));
        }
        let args = words.into_iter().map(|word| {
            let (name, default) = match word.split_once('=') {
                Some(("", _)) => return Err(Fault::at("ARG names can not be blank".into(), &word)),
                Some((name, default)) => (name.to_owned(), Some(default.to_owned())),
                None => (word, None),
            };
            Ok(Arg { comment: description(comment, &name).into_iter().collect(), name, default })
        });
        Ok(Kind::Arg(args.collect::<Result<_, _>>()?))
    }

    fn expose(&self) -> Result<Vec<String>, Fault> {
        let mut ports = words::plain(self.args);
        if ports.is_empty() {
            return Err(Fault::end("EXPOSE requires at least one argument".into()));
        }
        ports.sort();
        Ok(ports)
    }

    fn from(self) -> Result<Stage, Fault> {
        let words = words::plain(self.args);
        let (base, alias) = match words.as_slice() {
            [base] => (base, None),
            [base, keyword, name] if keyword.eq_ignore_ascii_case("as") => (base, Some((keyword, name))),
            _ => return Err(Fault::end("FROM requires either one or three arguments".into())),
        };
        if let Some((_, name)) = alias
            && !is_stage_name(&name.to_lowercase())
        {
            let message =
                format!("invalid name for build stage: {name:?}, name can't start with a number or contain symbols");
            return Err(Fault::at(message, name));
        }
        let flags = Flags::new(&self.flags, &[("platform", Takes::Value)])?;
        Ok(Stage {
            name: alias.map(|(_, name)| name.to_lowercase()),
            written_name: alias.map(|(_, name)| name.clone()),
            written_as: alias.map(|(keyword, _)| keyword.clone()),
            keyword: self.keyword.to_owned(),
            base: base.clone(),
            platform: flags.value("platform"),
            text: self.text.trim().to_owned(),
            comment: self.comment.to_vec(),
            ..Stage::default()
        })
    }

    fn healthcheck(self) -> Result<Healthcheck, Fault> {
        let (word, args) = match self.args.split_once(char::is_whitespace) {
            Some((word, args)) => (word, args.trim_start()),
            None => (self.args, ""),
        };
        match word.to_uppercase().as_str() {
            "" => return Err(Fault::end("HEALTHCHECK requires at least one argument".into())),
            "NONE" if !args.is_empty() => {
                return Err(Fault::at("HEALTHCHECK NONE takes no arguments".into(), args));
            }
            "NONE" => return Ok(Healthcheck::None),
            "CMD" => {}
            upper => {
                return Err(Fault::at(format!("Unknown type {upper:?} in HEALTHCHECK (try CMD)"), word));
            }
        }
        let flags = Flags::new(
            &self.flags,
            &[
                ("interval", Takes::Value),
                ("timeout", Takes::Value),
                ("start-period", Takes::Value),
                ("start-interval", Takes::Value),
                ("retries", Takes::Value),
            ],
        )?;
        let command = Self { args, ..self }.command()?;
        if matches!(&command, Command::Exec(words) if words.is_empty()) || args.is_empty() {
            return Err(Fault::end("Missing command after HEALTHCHECK CMD".into()));
        }
        let duration = |name: &str| {
            let Some(text) = flags.value(name) else { return Ok(None) };
            match values::duration(&text).map_err(|message| Fault::at(message, &text))? {
                0 => Ok(None),
                short if short < SHORTEST_CHECK => {
                    Err(Fault::at(format!("Interval {name:?} cannot be less than 1ms"), &text))
                }
                long => Ok(Some(long.unsigned_abs())),
            }
        };
        let retries = flags.value("retries").map(|text| {
            let message = match text.parse::<i32>() {
                Ok(number @ 0..) => return Ok(number.unsigned_abs()),
                Ok(number) => format!("--retries cannot be negative ({number})"),
                Err(error) => format!(
                    "strconv.ParseInt: parsing {text:?}: {}",
                    match error.kind() {
                        std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow =>
                            "value out of range",
                        _ => "invalid syntax",
                    }
                ),
            };
            Err(Fault::at(message, &text))
        });
        Ok(Healthcheck::Cmd {
            command,
            interval: duration("interval")?,
            timeout: duration("timeout")?,
            start_period: duration("start-period")?,
            start_interval: duration("start-interval")?,
            retries: retries.transpose()?.filter(|retries| *retries > 0),
        })
    }

    fn onbuild(self) -> Result<Kind, Fault> {
        let (keyword, rest) = words::keyword(self.args);
        let (_, args) = words::flags(rest);
        let upper = keyword.to_ascii_uppercase();
        let wrong = |message: String| Fault::at(message, keyword);
        match upper.as_str() {
            "" => return Err(Fault::end("ONBUILD requires at least one argument".into())),
            "ONBUILD" => return Err(wrong("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".into())),
            "MAINTAINER" | "FROM" => return Err(wrong(format!("{upper} isn't allowed as an ONBUILD trigger"))),
            "ENV" | "LABEL" => pairs(&upper, args, self.escape).map(drop)?,
            "ADD" | "CMD" | "COPY" | "ENTRYPOINT" | "RUN" | "SHELL" | "VOLUME" => {
                words::json(args).map_err(|message| Fault::at(message, args))?;
            }
            _ => {}
        }
        let mut text = self.text.trim_start()[self.keyword.len()..].trim_start().to_owned();
        for heredoc in &self.heredocs {
            text += &format!("\n{}{}", heredoc.content, heredoc.name);
        }
        self.plain()?;
        Ok(Kind::Onbuild(text))
    }

    fn run(self) -> Result<Kind, Fault> {
        let flags = Flags::new(
            &self.flags,
            &[
                ("mount", Takes::Values),
                ("network", Takes::Value),
                ("security", Takes::Value),
                ("device", Takes::Values),
            ],
        )?;
        let (network, security) = (flags.value("network"), flags.value("security"));
        if let Some(network) = &network
            && !NETWORKS.contains(&network.as_str())
        {
            return Err(Fault::at(format!("invalid network mode {network:?}"), network));
        }
        if let Some(security) = &security
            && !SECURITIES.contains(&security.as_str())
        {
            return Err(Fault::at(format!("security {security:?} is not valid"), security));
        }
        let mounts = flags.values("mount").iter().map(|text| mount::mount(text)).collect::<Result<_, _>>()?;
        let devices = flags.values("device").iter().map(|text| mount::device(text)).collect::<Result<_, _>>()?;
        Ok(Kind::Run(Run { command: self.command()?, heredocs: self.heredocs, mounts, network, security, devices }))
    }

    fn shell(&self) -> Result<Vec<String>, Fault> {
        match self.json()? {
            Some(words) if !words.is_empty() => Ok(words),
            None if !self.args.is_empty() => {
                Err(Fault::at("SHELL requires the arguments to be in JSON form".into(), self.args))
            }
            _ => Err(Fault::end("SHELL requires at least one argument".into())),
        }
    }

    fn volume(self) -> Result<Vec<String>, Fault> {
        let words = self.words()?;
        if words.is_empty() {
            return Err(Fault::end("VOLUME requires at least one argument".into()));
        }
        Flags::new(&self.flags, &[])?;
        let words = words.into_iter().map(|word| match word.trim() {
            "" => Err(Fault::at("VOLUME specified can not be an empty string".into(), self.args)),
            word => Ok(word.to_owned()),
        });
        words.collect()
    }
}

/// `name=value …`, or `name value` as docker once had it: the first word tells.
fn pairs(instruction: &str, args: &str, escape: char) -> Result<Vec<Pair>, Fault> {
    let words = words::quoted(args, escape);
    let Some(first) = words.first() else {
        return Err(Fault::end(format!("{instruction} requires at least one argument")));
    };
    if !first.contains('=') {
        let Some((name, value)) = args.split_once(words::BLANKS) else {
            return Err(Fault::end(format!("{instruction} must have two arguments")));
        };
        let value = value.trim_start_matches(words::BLANKS);
        return Ok(vec![Pair { name: name.into(), value: value.into(), old_form: true }]);
    }
    let pairs = words.iter().map(|word| match word.split_once('=') {
        None => {
            Err(Fault::at(format!("Syntax error - can't find = in {word:?}. Must be of the form: name=value"), word))
        }
        Some(("", _)) => Err(Fault::at(format!("{instruction} names can not be blank"), word)),
        Some((name, value)) => Ok(Pair { name: name.into(), value: value.into(), old_form: false }),
    });
    pairs.collect()
}

fn is_stage_name(name: &str) -> bool {
    name.starts_with(|letter: char| letter.is_ascii_lowercase())
        && name.chars().all(|letter| matches!(letter, 'a'..='z' | '0'..='9' | '-' | '_' | '.'))
}

/// What a comment says of `name`: `# name what it is for`.
pub fn description(comment: &[String], name: &str) -> Option<String> {
    let said = |line: &String| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned);
    if name.is_empty() { None } else { comment.iter().find_map(said) }
}
