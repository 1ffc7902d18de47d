//! Tokens to trees: the template itself, and those that it defines.

use super::TemplateError;
use super::lexer::{Kind, Piece, Token, cut};
use crate::output::value::Value;
use std::collections::BTreeMap;

/// A piece of a tree.
#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    Print(Pipeline),
    /// `if` and every `else if`, then `else`.
    If(Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    /// `with` and every `else with`, then `else`.
    With(Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    Range(Box<Range>),
    /// Another template, with what is its dot.
    Template {
        name: String,
        argument: Option<Pipeline>,
        at: usize,
    },
    Break,
    Continue,
}

/// `range`
#[derive(Debug)]
pub(super) struct Range {
    /// Variables for element, or for index and element.
    pub(super) variables: Vec<String>,
    /// The variables are new ones.
    pub(super) declare: bool,
    pub(super) pipeline: Pipeline,
    pub(super) body: Vec<Node>,
    pub(super) otherwise: Vec<Node>,
}

/// Commands, each given the result of the one before as its last argument.
#[derive(Debug)]
pub(super) struct Pipeline {
    /// A variable that takes the result, and whether it is a new one.
    pub(super) assign: Option<(String, bool)>,
    pub(super) commands: Vec<Command>,
}

/// A function or method with its arguments, or a value.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) operands: Vec<Operand>,
}

/// A value and fields below it.
#[derive(Debug)]
pub(super) struct Operand {
    pub(super) base: Base,
    pub(super) fields: Vec<String>,
    /// Where Go says that it stands: at the first field that is below another thing.
    pub(super) at: usize,
}

/// Where a value comes from.
#[derive(Debug)]
pub(super) enum Base {
    Dot,
    Variable(String),
    /// A value, and how it is written.
    Literal(Value, String),
    /// A number that is too large, as it is written.
    Overflow(String),
    Nil,
    Function(String),
    Paren(Pipeline),
}

impl Pipeline {
    pub(super) fn text(&self) -> String {
        let commands: Vec<String> = self.commands.iter().map(Command::text).collect();
        match &self.assign {
            Some((name, declare)) => {
                format!("{name} {} {}", if *declare { ":=" } else { "=" }, commands.join(" | "))
            }
            None => commands.join(" | "),
        }
    }
}

impl Command {
    pub(super) fn text(&self) -> String {
        self.operands.iter().map(Operand::text).collect::<Vec<_>>().join(" ")
    }

    /// Where it begins.
    pub(super) fn at(&self) -> usize {
        self.operands.first().map_or(0, |operand| operand.at)
    }
}

impl Operand {
    pub(super) fn text(&self) -> String {
        let base = match &self.base {
            Base::Dot if self.fields.is_empty() => ".".to_owned(),
            Base::Dot => String::new(),
            Base::Variable(name) | Base::Function(name) => name.clone(),
            Base::Literal(_, text) | Base::Overflow(text) => text.clone(),
            Base::Nil => "nil".to_owned(),
            Base::Paren(pipeline) => format!("({})", pipeline.text()),
        };
        self.fields.iter().fold(base, |text, field| format!("{text}.{field}"))
    }
}

/// How deep parentheses and blocks may be nested: a template from a command line must not exhaust the stack.
const DEEPEST: usize = 100;

/// The trees of a template, by name; its own is "".
pub(super) type Trees = BTreeMap<String, Vec<Node>>;

pub(super) fn parse(template: &str) -> Result<Trees, TemplateError> {
    let mut parser = Parser {
        template,
        pieces: cut(template)?.into_iter(),
        at: 0,
        ranges: 0,
        depth: 0,
        variables: vec!["$".to_owned()],
        trees: Trees::new(),
    };
    match parser.block(true)? {
        (nodes, End::Input) => {
            parser.trees.insert(String::new(), nodes);
            Ok(parser.trees)
        }
        (_, End::Closed) => Err(parser.bad("unexpected {{end}}")),
        (_, End::Else(_)) => Err(parser.bad("unexpected {{else}}")),
    }
}

/// What ended a block.
enum End {
    Input,
    /// `end`
    Closed,
    /// `else`, with the words after it.
    Else(Vec<Token>),
}

struct Parser<'t> {
    template: &'t str,
    pieces: std::vec::IntoIter<Piece>,
    /// Where the last action ended.
    at: usize,
    /// How many `range` are open.
    ranges: usize,
    depth: usize,
    /// Variables in sight.
    variables: Vec<String>,
    trees: Trees,
}

impl Parser<'_> {
    fn bad(&self, text: impl AsRef<str>) -> TemplateError {
        TemplateError::parse(self.template, self.at, text.as_ref())
    }

    fn deeper(&mut self) -> Result<(), TemplateError> {
        self.depth += 1;
        if self.depth > DEEPEST { Err(self.bad("nested too deeply")) } else { Ok(()) }
    }

    fn block(&mut self, top: bool) -> Result<(Vec<Node>, End), TemplateError> {
        self.deeper()?;
        let visible = self.variables.len();
        let mut nodes = Vec::new();
        let end = loop {
            let tokens = match self.pieces.next() {
                None => {
                    self.at = self.template.len();
                    break End::Input;
                }
                Some(Piece::Text(text)) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Some(Piece::Action(tokens, end)) => {
                    self.at = end;
                    tokens
                }
            };
            let word = match tokens.first().map(|t| &t.kind) {
                Some(Kind::Word(word)) => word.as_str(),
                _ => "",
            };
            match word {
                "end" | "break" | "continue" if tokens.len() > 1 => {
                    let clause = if word == "end" { "end".to_owned() } else { format!("{{{{{word}}}}}") };
                    return Err(self.bad(format!("unexpected {:?} in {clause}", tokens[1].text)));
                }
                "end" => break End::Closed,
                "else" => break End::Else(tokens[1..].to_vec()),
                "if" | "with" => nodes.push(self.branches(word, &tokens[1..])?),
                "range" => nodes.push(self.range(&tokens[1..])?),
                "break" | "continue" if self.ranges == 0 => {
                    return Err(self.bad(format!("{{{{{word}}}}} outside {{{{range}}}}")));
                }
                "break" => nodes.push(Node::Break),
                "continue" => nodes.push(Node::Continue),
                "define" if !top => return Err(self.bad("unexpected <define> in command")),
                "define" => self.define(&tokens[1..])?,
                "template" => nodes.push(self.template(&tokens[1..])?),
                "block" => nodes.push(self.defined_here(&tokens[1..])?),
                _ => nodes.push(Node::Print(self.whole(&tokens, "command")?)),
            }
        };
        self.variables.truncate(visible);
        self.depth -= 1;
        Ok((nodes, end))
    }

    /// The name after `define`, `template` or `block`.
    fn name<'k>(&self, tokens: &'k [Token], clause: &str) -> Result<(String, &'k [Token]), TemplateError> {
        match tokens.split_first() {
            Some((Token { kind: Kind::Literal(Value::String(name)), .. }, rest)) => Ok((name.clone(), rest)),
            Some((token, _)) => Err(self.bad(format!("unexpected {:?} in {clause} clause", token.text))),
            None => Err(self.bad(format!("unexpected \"}}}}\" in {clause} clause"))),
        }
    }

    fn define(&mut self, tokens: &[Token]) -> Result<(), TemplateError> {
        let (name, rest) = self.name(tokens, "define")?;
        if let Some(token) = rest.first() {
            return Err(self.bad(format!("unexpected {:?} in define clause", token.text)));
        }
        self.body_of(name)
    }

    /// The body of a template up to its `end`; nothing of what is around can be seen in it.
    fn body_of(&mut self, name: String) -> Result<(), TemplateError> {
        let outside = (std::mem::replace(&mut self.variables, vec!["$".to_owned()]), std::mem::take(&mut self.ranges));
        let (nodes, end) = self.block(false)?;
        (self.variables, self.ranges) = outside;
        match end {
            End::Input => return Err(self.bad("unexpected EOF")),
            End::Else(_) => return Err(self.bad("unexpected {{else}} in define clause")),
            End::Closed => {}
        }
        let blank = |nodes: &[Node]| nodes.iter().all(|n| matches!(n, Node::Text(text) if text.trim().is_empty()));
        match self.trees.get(&name) {
            Some(known) if !blank(known) && !blank(&nodes) => {
                Err(self.bad(format!("template: multiple definition of template {name:?}")))
            }
            Some(known) if !blank(known) => Ok(()),
            _ => {
                self.trees.insert(name, nodes);
                Ok(())
            }
        }
    }

    fn template(&mut self, tokens: &[Token]) -> Result<Node, TemplateError> {
        let (name, rest) = self.name(tokens, "template")?;
        let argument = if rest.is_empty() { None } else { Some(self.whole(rest, "template clause")?) };
        Ok(Node::Template { name, argument, at: tokens[0].at })
    }

    /// `block`: a definition that is used where it stands.
    fn defined_here(&mut self, tokens: &[Token]) -> Result<Node, TemplateError> {
        let (name, rest) = self.name(tokens, "block")?;
        let argument = self.whole(rest, "block clause")?;
        self.body_of(name.clone())?;
        Ok(Node::Template { name, argument: Some(argument), at: tokens[0].at })
    }

    /// `if` and `with`
    fn branches(&mut self, word: &str, condition: &[Token]) -> Result<Node, TemplateError> {
        let outside = self.variables.len();
        let mut arms = Vec::new();
        let mut condition = condition.to_vec();
        let otherwise = loop {
            let pipeline = self.whole(&condition, word)?;
            let (body, end) = self.block(false)?;
            arms.push((pipeline, body));
            match end {
                End::Input => return Err(self.bad("unexpected EOF")),
                End::Closed => break Vec::new(),
                End::Else(words) if words.is_empty() => break self.last_block()?,
                End::Else(words) if words[0].kind == Kind::Word(word.to_owned()) => condition = words[1..].to_vec(),
                End::Else(words) => return Err(self.bad(format!("unexpected {:?} in else", words[0].text))),
            }
        };
        self.variables.truncate(outside);
        Ok(if word == "if" { Node::If(arms, otherwise) } else { Node::With(arms, otherwise) })
    }

    fn range(&mut self, tokens: &[Token]) -> Result<Node, TemplateError> {
        let outside = self.variables.len();
        let kinds: Vec<&Kind> = tokens.iter().map(|t| &t.kind).collect();
        let declares = |kind: &Kind| *kind == Kind::Declare;
        let (variables, declare, rest) = match kinds[..] {
            [Kind::Variable(a), Kind::Comma, Kind::Variable(b), kind @ (Kind::Declare | Kind::Assign), ..] => {
                (vec![a.clone(), b.clone()], declares(kind), &tokens[4..])
            }
            [Kind::Variable(a), kind @ (Kind::Declare | Kind::Assign), ..] => {
                (vec![a.clone()], declares(kind), &tokens[2..])
            }
            [Kind::Variable(_), Kind::Comma, Kind::Variable(_), Kind::Comma, ..] => {
                return Err(self.bad("too many declarations in range"));
            }
            [Kind::Variable(_), Kind::Comma, ..] => return Err(self.bad("range can only initialize variables")),
            _ => (Vec::new(), true, tokens),
        };
        let pipeline = self.whole(rest, "range")?;
        if declare {
            self.variables.extend(variables.iter().cloned());
        }
        self.ranges += 1;
        let (body, end) = self.block(false)?;
        self.ranges -= 1;
        let otherwise = match end {
            End::Input => return Err(self.bad("unexpected EOF")),
            End::Closed => Vec::new(),
            End::Else(words) if words.is_empty() => self.last_block()?,
            End::Else(words) => return Err(self.bad(format!("unexpected {:?} in else", words[0].text))),
        };
        self.variables.truncate(outside);
        Ok(Node::Range(Box::new(Range { variables, declare, pipeline, body, otherwise })))
    }

    fn last_block(&mut self) -> Result<Vec<Node>, TemplateError> {
        match self.block(false)? {
            (nodes, End::Closed) => Ok(nodes),
            (_, End::Input) => Err(self.bad("unexpected EOF")),
            (_, End::Else(_)) => Err(self.bad("expected end; found {{else}}")),
        }
    }

    /// A pipeline that takes up all the tokens.
    fn whole(&mut self, tokens: &[Token], context: &str) -> Result<Pipeline, TemplateError> {
        let mut rest = tokens;
        let pipeline = self.pipeline(&mut rest, context)?;
        match rest.first() {
            None => Ok(pipeline),
            Some(token) => Err(self.bad(format!("unexpected {:?} in {context}", token.text))),
        }
    }

    fn pipeline(&mut self, rest: &mut &[Token], context: &str) -> Result<Pipeline, TemplateError> {
        self.deeper()?;
        let mut assign = None;
        match rest {
            [Token { kind: Kind::Variable(name), .. }, Token { kind, .. }, after @ ..]
                if matches!(kind, Kind::Declare | Kind::Assign) =>
            {
                assign = Some((name.clone(), *kind == Kind::Declare));
                *rest = after;
            }
            [Token { kind: Kind::Variable(_), .. }, Token { kind: Kind::Comma, .. }, ..] => {
                return Err(self.bad(format!("too many declarations in {context}")));
            }
            _ => {}
        }
        let mut commands: Vec<Command> = Vec::new();
        loop {
            match rest.first().map(|token| &token.kind) {
                None | Some(Kind::Close) => break,
                Some(Kind::Pipe) => return Err(self.bad("unexpected \"|\" in command")),
                _ => {}
            }
            let command = self.command(rest)?;
            let first = command.operands.first();
            let fixed = first.is_some_and(|operand| {
                operand.fields.is_empty()
                    && matches!(operand.base, Base::Dot | Base::Nil | Base::Literal(..) | Base::Overflow(_))
            });
            if fixed && !commands.is_empty() {
                return Err(self.bad(format!("non executable command in pipeline stage {}", commands.len() + 1)));
            }
            commands.push(command);
            // A last "|" with nothing after it is read over, as Go does.
            match rest.first() {
                Some(Token { kind: Kind::Pipe, .. }) => *rest = &rest[1..],
                _ => break,
            }
        }
        if commands.is_empty() {
            return Err(self.bad(format!("missing value for {context}")));
        }
        if let Some((name, true)) = &assign {
            self.variables.push(name.clone());
        }
        self.depth -= 1;
        Ok(Pipeline { assign, commands })
    }

    fn command(&mut self, rest: &mut &[Token]) -> Result<Command, TemplateError> {
        let mut operands: Vec<Operand> = Vec::new();
        while let Some((token, after)) = rest.split_first() {
            if matches!(token.kind, Kind::Pipe | Kind::Close) {
                break;
            }
            *rest = after;
            if let (Kind::Field(name), true, Some(operand)) = (&token.kind, token.glued, operands.last_mut()) {
                if let Base::Literal(..) | Base::Nil | Base::Overflow(_) = operand.base {
                    return Err(self.bad(format!("unexpected . after term {:?}", operand.text())));
                }
                if operand.fields.len() == usize::from(matches!(operand.base, Base::Dot)) {
                    operand.at = token.at;
                }
                operand.fields.push(name.clone());
                continue;
            }
            if token.glued && !operands.is_empty() && !matches!(token.kind, Kind::Open) {
                let shown = if token.kind == Kind::Dot { "<.>".to_owned() } else { format!("{:?}", token.text) };
                return Err(self.bad(format!("unexpected {shown} in operand")));
            }
            operands.push(self.operand(token, rest)?);
        }
        if operands.is_empty() {
            return Err(self.bad("missing value for command"));
        }
        Ok(Command { operands })
    }

    fn operand(&mut self, token: &Token, rest: &mut &[Token]) -> Result<Operand, TemplateError> {
        let mut fields = Vec::new();
        let base = match &token.kind {
            Kind::Dot => Base::Dot,
            Kind::Field(name) => {
                fields.push(name.clone());
                Base::Dot
            }
            Kind::Variable(name) => {
                if !self.variables.contains(name) {
                    return Err(self.bad(format!("undefined variable {name:?}")));
                }
                Base::Variable(name.clone())
            }
            Kind::Literal(value) => Base::Literal(value.clone(), token.text.clone()),
            Kind::Overflow => Base::Overflow(token.text.clone()),
            Kind::Word(word) => match word.as_str() {
                "true" => Base::Literal(true.into(), token.text.clone()),
                "false" => Base::Literal(false.into(), token.text.clone()),
                "nil" => Base::Nil,
                "if" | "else" | "end" | "range" | "with" | "define" | "template" | "block" | "break" | "continue" => {
                    return Err(self.bad(format!("unexpected <{word}> in command")));
                }
                _ if super::funcs::known(word) => Base::Function(word.clone()),
                _ => return Err(self.bad(format!("function {word:?} not defined"))),
            },
            Kind::Open => {
                let inner = self.pipeline(rest, "parenthesized pipeline")?;
                match rest.split_first() {
                    Some((Token { kind: Kind::Close, .. }, after)) => *rest = after,
                    _ => return Err(self.bad("unclosed left paren")),
                }
                Base::Paren(inner)
            }
            Kind::Comma | Kind::Declare | Kind::Assign | Kind::Sign(_) | Kind::Pipe | Kind::Close => {
                return Err(self.bad(format!("unexpected {:?} in command", token.text)));
            }
        };
        Ok(Operand { base, fields, at: token.at })
    }
}
