//! Walks the tree and prints.

use super::funcs;
use super::parser::{Base, Command, Node, Operand, Pipeline, Range, Trees};
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
    "Status",
    "Endpoints",
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

/// How deep templates and blocks may call one another: Go's limit is far higher, and its stack grows.
const DEEPEST: usize = 120;

pub(super) fn execute(trees: &Trees, context: &Context) -> Result<String, TemplateError> {
    let mut run = Run {
        out: String::new(),
        context,
        trees,
        template: String::new(),
        variables: vec![("$".to_owned(), context.fields.clone())],
        depth: 0,
    };
    run.nodes(trees.get("").map(Vec::as_slice).unwrap_or_default(), &context.fields)?;
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
    trees: &'a Trees,
    /// Name of the template that is being executed.
    template: String,
    variables: Vec<(String, Value)>,
    depth: usize,
}

impl Run<'_> {
    fn fault(&self, at: usize, what: String, cause: String) -> TemplateError {
        TemplateError::Execute { at, what, cause, template: self.template.clone(), place: String::new() }
    }

    fn at(&self, operand: &Operand, cause: String) -> TemplateError {
        self.fault(operand.at, operand.text(), cause)
    }

    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow, TemplateError> {
        let visible = self.variables.len();
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(TemplateError::Parse { line: 1, cause: "nested too deeply".to_owned() });
        }
        let mut flow = Flow::Next;
        for node in nodes {
            flow = self.node(node, dot)?;
            if flow != Flow::Next {
                break;
            }
            if self.out.len() > LONGEST {
                return Err(TemplateError::Parse { line: 1, cause: "the output is too long".to_owned() });
            }
        }
        self.depth -= 1;
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
            }
            Node::If(arms, otherwise) => return self.branches(arms, otherwise, dot, false),
            Node::With(arms, otherwise) => return self.branches(arms, otherwise, dot, true),
            Node::Range(range) => return self.range(range, dot),
            Node::Template { name, argument, at } => self.call(name, argument.as_ref(), *at, dot)?,
        }
        Ok(Flow::Next)
    }

    fn branches(
        &mut self,
        arms: &[(Pipeline, Vec<Node>)],
        otherwise: &[Node],
        dot: &Value,
        with: bool,
    ) -> Result<Flow, TemplateError> {
        let visible = self.variables.len();
        for (condition, body) in arms {
            let value = self.pipeline(condition, dot)?;
            if funcs::truth(&value) {
                let flow = self.nodes(body, if with { &value } else { dot });
                self.variables.truncate(visible);
                return flow;
            }
        }
        let flow = self.nodes(otherwise, dot);
        self.variables.truncate(visible);
        flow
    }

    /// Another template: it sees what it is given, as dot and as "$".
    fn call(&mut self, name: &str, argument: Option<&Pipeline>, at: usize, dot: &Value) -> Result<(), TemplateError> {
        let text = || {
            let argument = argument.map(|pipeline| format!(" {}", pipeline.text())).unwrap_or_default();
            format!("{{{{template {name:?}{argument}}}}}")
        };
        let trees = self.trees;
        let Some(nodes) = trees.get(name).filter(|_| !name.is_empty()) else {
            return Err(self.fault(at, text(), format!("template {name:?} not defined")));
        };
        if self.depth >= DEEPEST {
            return Err(self.fault(at, text(), format!("exceeded maximum template depth ({DEEPEST})")));
        }
        let value = match argument {
            Some(pipeline) => self.pipeline(pipeline, dot)?,
            None => Value::Null,
        };
        let variables = std::mem::replace(&mut self.variables, vec![("$".to_owned(), value.clone())]);
        let template = std::mem::replace(&mut self.template, name.to_owned());
        self.nodes(nodes, &value)?;
        (self.variables, self.template) = (variables, template);
        Ok(())
    }

    fn range(&mut self, range: &Range, dot: &Value) -> Result<Flow, TemplateError> {
        let visible = self.variables.len();
        let over = self.pipeline(&range.pipeline, dot)?;
        let entries: Box<dyn Iterator<Item = (Value, Value)>> = match over {
            Value::Null => Box::new(std::iter::empty()),
            Value::Array(items) => Box::new((0..).map(|i: i64| Value::from(i)).zip(items)),
            Value::Object(mut fields) => {
                fields.sort_by(|a, b| a.0.cmp(&b.0));
                Box::new(fields.into_iter().map(|(key, value)| (Value::from(key), value)))
            }
            Value::Number(number) if number.is_i64() && range.variables.len() < 2 => {
                Box::new((0..number.as_i64().unwrap_or(0)).map(|i| (Value::from(i), Value::from(i))))
            }
            other => {
                let cause = match range.variables.len() {
                    2 if matches!(other, Value::Number(_)) => {
                        format!("can't use {} to iterate over more than one variable", funcs::print(&other))
                    }
                    _ => format!("range can't iterate over {}", funcs::print(&other)),
                };
                let text = range.pipeline.text();
                return Err(self.fault(range.pipeline.commands.first().map_or(0, Command::at), text, cause));
            }
        };
        let mut any = false;
        for (key, value) in entries {
            any = true;
            self.variables.truncate(visible);
            match (&range.variables[..], range.declare) {
                ([element], true) => self.variables.push((element.clone(), value.clone())),
                ([index, element], true) => {
                    self.variables.push((index.clone(), key));
                    self.variables.push((element.clone(), value.clone()));
                }
                ([element], false) => self.set(element, value.clone()),
                ([index, element], false) => {
                    self.set(index, key);
                    self.set(element, value.clone());
                }
                _ => {}
            }
            if self.nodes(&range.body, &value)? == Flow::Break {
                break;
            }
        }
        self.variables.truncate(visible);
        if any { Ok(Flow::Next) } else { self.nodes(&range.otherwise, dot) }
    }

    /// Gives a variable that is there another value.
    fn set(&mut self, name: &str, value: Value) {
        if let Some((_, slot)) = self.variables.iter_mut().rev().find(|(known, _)| known == name) {
            *slot = value;
        }
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
                if !self.variables.iter().any(|(known, _)| known == name) {
                    let last = pipeline.commands.last();
                    let (at, text) = last.map_or((0, String::new()), |command| (command.at(), command.text()));
                    return Err(self.fault(at, text, format!("undefined variable: {name}")));
                }
                self.set(name, value.clone());
            }
            None => {}
        }
        Ok(value)
    }

    fn command(&mut self, command: &Command, dot: &Value, piped: Option<Value>) -> Result<Value, TemplateError> {
        let Some((head, arguments)) = command.operands.split_first() else { return Ok(Value::Null) };
        if let Base::Function(name) = &head.base
            && head.fields.is_empty()
        {
            return self.function(name, command, arguments, dot, piped);
        }
        // The one method that templates of docker call with an argument.
        if head.fields.last().is_some_and(|name| name == "Label") && (piped.is_some() || !arguments.is_empty()) {
            let name = match (arguments, piped) {
                ([argument], None) => self.operand(argument, dot)?,
                ([], Some(value)) => value,
                (more, piped) => {
                    let count = more.len() + usize::from(piped.is_some());
                    return Err(self.at(head, format!("wrong number of args for Label: want 1 got {count}")));
                }
            };
            let Some(name) = name.as_str() else {
                return Err(self.at(head, "wrong type for value; expected string".to_owned()));
            };
            if let Value::String(_) = self.context.labels {
                // The titles of a table: a label's column is called by the last part of its name.
                return Ok(name.rsplit('.').next().unwrap_or(name).replace(['-', '_'], " ").into());
            }
            return Ok(self.context.labels.get(name).cloned().unwrap_or_else(|| "".into()));
        }
        if arguments.is_empty() && piped.is_none() {
            if matches!(head.base, Base::Nil) {
                return Err(self.at(head, "nil is not a command".to_owned()));
            }
            return self.operand(head, dot);
        }
        match head.fields.last() {
            Some(field) => {
                self.operand(head, dot)?;
                Err(self.at(head, format!("{field} has arguments but cannot be invoked as function")))
            }
            None => Err(self.at(head, format!("can't give argument to non-function {}", head.text()))),
        }
    }

    fn function(
        &mut self,
        name: &str,
        command: &Command,
        arguments: &[Operand],
        dot: &Value,
        piped: Option<Value>,
    ) -> Result<Value, TemplateError> {
        let head = &command.operands[0];
        let given = arguments.len() + usize::from(piped.is_some());
        if let Some(cause) = funcs::arity(name, given) {
            return Err(self.at(head, cause));
        }
        if name == "and" || name == "or" {
            return self.logic(name == "and", arguments, dot, piped);
        }
        let mut values = Vec::with_capacity(given);
        for (at, argument) in arguments.iter().enumerate() {
            let value = self.operand(argument, dot)?;
            let literal = match &argument.base {
                Base::Literal(..) | Base::Nil if argument.fields.is_empty() => Some(argument.text()),
                _ => None,
            };
            if let Some(cause) = funcs::mismatch(name, at, &value, literal.as_deref()) {
                return Err(self.at(argument, cause));
            }
            values.push(value);
        }
        let last = values.len();
        if let Some(value) = piped {
            if let Some(cause) = funcs::mismatch(name, last, &value, None) {
                return Err(self.at(head, cause));
            }
            values.push(value);
        }
        if name == "call"
            && let (Some(argument), Some(value)) = (arguments.first(), values.first())
            && *value != Value::Null
        {
            let cause = format!("error calling call: non-function {} of type {}", argument.text(), funcs::kind(value));
            return Err(self.fault(command.at(), command.text(), cause));
        }
        if matches!((name, arguments.first().map(|a| &a.base)), ("index" | "slice", Some(Base::Nil))) {
            let cause = format!("error calling {name}: {name} of untyped nil");
            return Err(self.fault(command.at(), command.text(), cause));
        }
        let called = funcs::call(name, &values);
        called.map_err(|cause| self.fault(command.at(), command.text(), format!("error calling {name}: {cause}")))
    }

    /// `and` and `or` give one of their arguments, and look no further than they must.
    fn logic(
        &mut self,
        all: bool,
        arguments: &[Operand],
        dot: &Value,
        piped: Option<Value>,
    ) -> Result<Value, TemplateError> {
        let mut last = Value::Null;
        for argument in arguments {
            last = self.operand(argument, dot)?;
            if funcs::truth(&last) != all {
                return Ok(last);
            }
        }
        Ok(piped.unwrap_or(last))
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Result<Value, TemplateError> {
        let base = match &operand.base {
            Base::Dot => return self.fields(dot, operand),
            Base::Variable(name) => {
                let known = self.variables.iter().rev().find(|(variable, _)| variable == name);
                return match known {
                    Some((_, value)) => self.fields(value, operand),
                    None => Err(self.at(operand, format!("undefined variable: {name}"))),
                };
            }
            Base::Literal(value, _) => value.clone(),
            Base::Overflow(text) => return Err(self.at(operand, format!("{text} overflows int"))),
            Base::Nil => Value::Null,
            Base::Function(name) => {
                if let Some(cause) = funcs::arity(name, 0) {
                    return Err(self.fault(operand.at, name.clone(), cause));
                }
                funcs::call(name, &[])
                    .map_err(|cause| self.fault(operand.at, name.clone(), format!("error calling {name}: {cause}")))?
            }
            Base::Paren(pipeline) => {
                let visible = self.variables.len();
                let value = self.pipeline(pipeline, dot)?;
                self.variables.truncate(visible);
                value
            }
        };
        self.fields(&base, operand)
    }

    fn fields(&self, base: &Value, operand: &Operand) -> Result<Value, TemplateError> {
        let mut value = base;
        let mut parent = "";
        let mut free = false;
        for name in &operand.fields {
            // What is below a map of the user's own has no names that must be there.
            free |= MAPS.contains(&parent);
            value = match value {
                Value::Object(all) => match find(all, name) {
                    Some(found) => found,
                    None if free => return Ok(Value::Null),
                    None if matches!(name.as_str(), "StopSignal" | "MacAddress") => return Ok("".into()),
                    None if OPTIONAL.contains(&name.as_str()) => return Ok(Value::Null),
                    None => return Err(self.at(operand, format!("map has no entry for key {name:?}"))),
                },
                Value::Null if MAPS.contains(&parent) => return Ok(Value::Null),
                Value::Null if free => {
                    return Err(self.at(operand, format!("nil pointer evaluating interface {{}}.{name}")));
                }
                Value::Null => return Err(self.at(operand, format!("nil pointer evaluating .{name}"))),
                other => {
                    return Err(self.at(operand, format!("can't evaluate field {name} in type {}", funcs::kind(other))));
                }
            };
            parent = name;
        }
        Ok(value.clone())
    }
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
        [above @ .., _] if above.iter().any(|field| MAPS.contains(&field.as_str())) => "<no value>".to_owned(),
        [] => "<no value>".to_owned(),
        _ => "<nil>".to_owned(),
    }
}
