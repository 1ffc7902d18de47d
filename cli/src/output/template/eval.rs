//! Walks the tree and prints.

use super::funcs;
use super::parser::{Base, Command, Node, Operand, Pipeline, Range};
use super::{Context, TemplateError};
use crate::output::value::Value;

/// Fields of docker's own structures that are lists, and print as such when the engine sends null.
const LISTS: &[&str] = &[
    "Args",
    "Env",
    "Cmd",
    "Entrypoint",
    "OnBuild",
    "Shell",
    "Binds",
    "CapAdd",
    "CapDrop",
    "Dns",
    "DnsOptions",
    "DnsSearch",
    "ExtraHosts",
    "GroupAdd",
    "Links",
    "SecurityOpt",
    "VolumesFrom",
    "Mounts",
    "Devices",
    "DeviceCgroupRules",
    "DeviceRequests",
    "Ulimits",
    "MaskedPaths",
    "ReadonlyPaths",
    "ExecIDs",
    "Aliases",
    "DNSNames",
    "RepoTags",
    "RepoDigests",
    "Layers",
    "BlkioWeightDevice",
    "BlkioDeviceReadBps",
    "BlkioDeviceWriteBps",
    "BlkioDeviceReadIOps",
    "BlkioDeviceWriteIOps",
    "SecondaryIPAddresses",
    "SecondaryIPv6Addresses",
];

/// Fields of docker's own structures that are maps with free keys: a missing key is no error there.
const MAPS: &[&str] = &[
    "Labels",
    "Volumes",
    "ExposedPorts",
    "PortBindings",
    "Ports",
    "Networks",
    "Options",
    "DriverOpts",
    "Sysctls",
    "Tmpfs",
    "StorageOpt",
    "Annotations",
    "Containers",
    "IPAMConfig",
];

/// Fields of docker's own structures that the engine leaves out when they are empty: they can be asked for all the same.
const OPTIONAL: &[&str] = &[
    "Health",
    "Healthcheck",
    "ExposedPorts",
    "MacAddress",
    "StopSignal",
    "StopTimeout",
    "Shell",
    "Mounts",
    "Init",
    "Annotations",
    "Sysctls",
    "Tmpfs",
    "StorageOpt",
    "SizeRw",
    "SizeRootFs",
];

/// Longest output: a template can't be used to fill the memory.
const LONGEST: usize = 64 << 20;

pub(super) fn execute(nodes: &[Node], context: &Context) -> Result<String, TemplateError> {
    let mut run = Run { out: String::new(), context, variables: vec![("$".to_owned(), context.fields.clone())] };
    run.nodes(nodes, &context.fields)?;
    Ok(run.out)
}

/// What follows a node.
#[derive(PartialEq)]
enum Flow {
    Next,
    Break,
    Continue,
}

struct Run<'a> {
    out: String,
    context: &'a Context,
    variables: Vec<(String, Value)>,
}

impl Run<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, TemplateError> {
        let visible = self.variables.len();
        let mut flow = Flow::Next;
        for node in nodes {
            flow = self.node(node, dot)?;
            if flow != Flow::Next {
                break;
            }
        }
        self.variables.truncate(visible);
        Ok(flow)
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<Flow, TemplateError> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
            Node::Print(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                if pipeline.assign.is_none() {
                    self.out.push_str(&shown(&value, pipeline));
                }
                if self.out.len() > LONGEST {
                    return Err(TemplateError::Parse("the output is too long".to_owned()));
                }
            }
            Node::If(arms, otherwise) => {
                let visible = self.variables.len();
                for (condition, body) in arms {
                    if funcs::truth(&self.pipeline(condition, dot)?) {
                        let flow = self.nodes(body, dot);
                        self.variables.truncate(visible);
                        return flow;
                    }
                }
                let flow = self.nodes(otherwise, dot);
                self.variables.truncate(visible);
                return flow;
            }
            Node::With(pipeline, body, otherwise) => {
                let visible = self.variables.len();
                let value = self.pipeline(pipeline, dot)?;
                let flow = if funcs::truth(&value) { self.nodes(body, &value) } else { self.nodes(otherwise, dot) };
                self.variables.truncate(visible);
                return flow;
            }
            Node::Range(range) => return self.range(range, dot),
        }
        Ok(Flow::Next)
    }

    fn range(&mut self, range: &Range, dot: &Value) -> Result<Flow, TemplateError> {
        let visible = self.variables.len();
        let over = self.pipeline(&range.pipeline, dot)?;
        let entries: Vec<(Value, Value)> = match over {
            Value::Null => Vec::new(),
            Value::Array(items) => (0..).map(|i: i64| Value::from(i)).zip(items).collect(),
            Value::Object(mut fields) => {
                fields.sort_by(|a, b| a.0.cmp(&b.0));
                fields.into_iter().map(|(key, value)| (Value::from(key), value)).collect()
            }
            other => {
                let cause = format!("range can't iterate over {}", funcs::print(&other));
                return Err(fault(first(&range.pipeline), cause));
            }
        };
        if entries.is_empty() {
            return self.nodes(&range.otherwise, dot);
        }
        for (key, value) in entries {
            self.variables.truncate(visible);
            match &range.variables[..] {
                [element] => self.variables.push((element.clone(), value.clone())),
                [index, element] => {
                    self.variables.push((index.clone(), key));
                    self.variables.push((element.clone(), value.clone()));
                }
                _ => {}
            }
            if self.nodes(&range.body, &value)? == Flow::Break {
                break;
            }
        }
        self.variables.truncate(visible);
        Ok(Flow::Next)
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value, TemplateError> {
        let mut value = None;
        for command in &pipeline.commands {
            value = Some(self.command(command, dot, value)?);
        }
        let value = value.unwrap_or_default();
        match &pipeline.assign {
            Some((name, true)) => self.variables.push((name.clone(), value.clone())),
            Some((name, false)) => {
                if let Some((_, slot)) = self.variables.iter_mut().rev().find(|(known, _)| known == name) {
                    *slot = value.clone();
                }
            }
            None => {}
        }
        Ok(value)
    }

    fn command(&mut self, command: &Command, dot: &Value, piped: Option<Value>) -> Result<Value, TemplateError> {
        let [head, arguments @ ..] = &command.operands[..] else {
            return Err(TemplateError::Parse("missing value for command".to_owned()));
        };
        if let Base::Function(name) = &head.base
            && head.fields.is_empty()
        {
            if name == "and" || name == "or" {
                return self.logic(name == "and", head, arguments, dot, piped);
            }
            let mut values = arguments.iter().map(|a| self.operand(a, dot)).collect::<Result<Vec<_>, _>>()?;
            values.extend(piped);
            return funcs::call(name, &values).map_err(|cause| fault(head, format!("error calling {name}: {cause}")));
        }
        if arguments.is_empty() && piped.is_none() {
            return self.operand(head, dot);
        }
        // The one method that templates of docker call with an argument.
        if head.fields.last().is_some_and(|name| name == "Label") {
            let name = match (arguments, piped) {
                ([argument], None) => self.operand(argument, dot)?,
                ([], Some(value)) => value,
                _ => return Err(fault(head, "wrong number of args for Label: want 1".to_owned())),
            };
            let label = name.as_str().and_then(|name| self.context.labels.get(name));
            return Ok(label.cloned().unwrap_or_else(|| "".into()));
        }
        Err(fault(head, format!("can't give argument to non-function {}", text_of(head))))
    }

    /// `and` and `or` give one of their arguments, and look no further than they must.
    fn logic(
        &mut self,
        all: bool,
        head: &Operand,
        arguments: &[Operand],
        dot: &Value,
        piped: Option<Value>,
    ) -> Result<Value, TemplateError> {
        let mut last = None;
        for argument in arguments {
            let value = self.operand(argument, dot)?;
            if funcs::truth(&value) != all {
                return Ok(value);
            }
            last = Some(value);
        }
        piped.or(last).ok_or_else(|| fault(head, "wrong number of args: want at least 1 got 0".to_owned()))
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value, TemplateError> {
        let base = match &operand.base {
            Base::Dot => return fields(dot, operand),
            Base::Variable(name) => {
                let known = self.variables.iter().rev().find(|(variable, _)| variable == name);
                return match known {
                    Some((_, value)) => fields(value, operand),
                    None => Err(fault(operand, format!("undefined variable: {name}"))),
                };
            }
            Base::Literal(value) => value.clone(),
            Base::Nil => Value::Null,
            Base::Function(name) => {
                funcs::call(name, &[]).map_err(|cause| fault(operand, format!("error calling {name}: {cause}")))?
            }
            Base::Paren(pipeline) => self.pipeline(pipeline, dot)?,
        };
        fields(&base, operand)
    }
}

fn fields(base: &Value, operand: &Operand) -> Result<Value, TemplateError> {
    let mut value = base;
    let mut parent = "";
    for (depth, name) in operand.fields.iter().enumerate() {
        let fault = |cause| fault_at(operand, depth, cause);
        value = match value {
            Value::Object(all) => match find(all, name) {
                Some(found) => found,
                // A key nobody set, in a map that is the user's own.
                None if MAPS.contains(&parent) => return Ok(Value::Null),
                None if matches!(name.as_str(), "StopSignal" | "MacAddress") => return Ok("".into()),
                None if OPTIONAL.contains(&name.as_str()) => return Ok(Value::Null),
                None => return Err(fault(format!("map has no entry for key {name:?}"))),
            },
            Value::Null if MAPS.contains(&parent) => return Ok(Value::Null),
            Value::Null => return Err(fault(format!("nil pointer evaluating .{name}"))),
            other => {
                return Err(fault(format!("can't evaluate field {name} in type {}", funcs::kind(other))));
            }
        };
        parent = name;
    }
    Ok(value.clone())
}

/// docker's templates use Go's names of fields, which differ from the API's in case only (ID and Id).
fn find<'v>(fields: &'v [(String, Value)], name: &str) -> Option<&'v Value> {
    let exact = fields.iter().find(|(key, _)| key == name);
    exact.or_else(|| fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))).map(|(_, value)| value)
}

/// The text of a result; what null stands for depends on the field that held it.
fn shown(value: &Value, pipeline: &Pipeline) -> String {
    if *value != Value::Null {
        return funcs::print(value);
    }
    let operand = match &pipeline.commands[..] {
        [Command { operands }] if operands.len() == 1 => &operands[0],
        _ => return "<no value>".to_owned(),
    };
    match &operand.fields[..] {
        [.., last] if LISTS.contains(&last.as_str()) => "[]".to_owned(),
        [.., last] if MAPS.contains(&last.as_str()) => "map[]".to_owned(),
        [.., parent, _] if MAPS.contains(&parent.as_str()) => "<no value>".to_owned(),
        [] => "<no value>".to_owned(),
        _ => "<nil>".to_owned(),
    }
}

fn first(pipeline: &Pipeline) -> &Operand {
    // Every command has an operand and every pipeline a command, or it had not been read.
    &pipeline.commands[0].operands[0]
}

fn fault(operand: &Operand, cause: String) -> TemplateError {
    TemplateError::Execute { at: operand.at, what: text_of(operand), cause }
}

/// A fault of one of the fields: Go points at the field, and shows the operand.
fn fault_at(operand: &Operand, depth: usize, cause: String) -> TemplateError {
    let base = match &operand.base {
        Base::Variable(name) => name.len(),
        _ => 0,
    };
    let before: usize = operand.fields[..depth].iter().map(|field| field.len() + 1).sum();
    TemplateError::Execute { at: operand.at + base + before, what: text_of(operand), cause }
}

fn text_of(operand: &Operand) -> String {
    let base = match &operand.base {
        Base::Dot if operand.fields.is_empty() => ".".to_owned(),
        Base::Dot => String::new(),
        Base::Variable(name) | Base::Function(name) => name.clone(),
        Base::Literal(value) => crate::output::json::line(value),
        Base::Nil => "nil".to_owned(),
        Base::Paren(_) => "(...)".to_owned(),
    };
    operand.fields.iter().fold(base, |text, field| format!("{text}.{field}"))
}
