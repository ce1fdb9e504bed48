//! A template's source made into instructions whose costs are bounded.
//!
//! Minijinja's fuel pays for instructions and text, but not for what the parser's recursion takes from the stack, nor for walks
//! through values: a list of two lists of two lists … prints for ever, and one that holds itself prints until the stack
//! overflows. So a tag may have so many tokens and no more, and every value that is handed to an operator, a filter, a
//! function, a container or the output goes through a filter of `walk.rs` first, which refuses such values.

use minijinja::machinery::ast::{
    AutoEscape, BinOp, BinOpKind, Break, Call, CallArg, CallBlock, Compare, CompareOp, CompareOpKind, Const,
    Continue, Do, EmitExpr, EmitRaw, Expr, Filter, FilterBlock, ForLoop, GetAttr, GetItem, IfCond, IfExpr,
    List, Macro, Map, Set, SetBlock, Slice, Spanned, Stmt, Template, Test, Tuple, UnaryOp, UnaryOpKind, Var,
    WithBlock,
};
use minijinja::machinery::{
    CodeGenerator, Instructions, Span, Token, eval, make_string_output, parse, tokenize,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};

use super::python::operators::{ADD, CONCAT, IN, ITERATED, ORDER, REM};
use super::walk::{FLAT, SOME, STEP, STORED, WALKED};

/// Bytes of a template; the longest public one has 30 000.
const MAX_SOURCE: usize = 256 << 10;

/// Bytes of a line: the parser counts columns in 16 bits, and an error beyond them makes it panic.
const MAX_LINE: usize = 60_000;

/// Tokens between `{{` and `}}`: how deep an expression can be.
const MAX_TAG: usize = 2048;

/// `elif`s of a template: each is nested in the one before.
const MAX_ELIF: usize = 1024;

/// Filters whose work is one step for each item, whatever the item holds.
const SHALLOW: [&str; 9] =
    ["count", "d", "default", "first", "last", "length", "list", "rejectattr", "selectattr"];

/// Filters that iterate over what they are given: over `None` they cannot.
const ITERATING: [&str; 11] =
    ["batch", "groupby", "join", "list", "max", "min", "slice", "sort", "sum", "unique", "random"];

/// Checks that a template can be compiled.
pub(super) fn check(source: &str) -> Result<(), Error> {
    compile(source).map(drop)
}

/// Renders a template.
pub(super) fn render(environment: &Environment<'_>, source: &str, variables: Value) -> Result<String, Error> {
    let instructions = compile(source)?;
    let mut text = String::new();
    let blocks = std::collections::BTreeMap::new();
    let mut out = make_string_output(&mut text);
    eval(environment, &instructions, variables, &blocks, &mut out, minijinja::AutoEscape::None)?;
    Ok(text)
}

fn compile(source: &str) -> Result<Instructions<'_>, Error> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    check_size(source, syntax.clone())?;
    let template = statement(&parse(source, "chat template", syntax)?);
    let mut code = CodeGenerator::new("chat template", source);
    code.compile_stmt(&template);
    Ok(code.finish().0)
}

fn check_size(source: &str, syntax: SyntaxConfig) -> Result<(), Error> {
    let refuse = |what: String| Err(Error::new(ErrorKind::SyntaxError, what));
    if source.len() > MAX_SOURCE {
        return refuse(format!("it has {} bytes, more than {MAX_SOURCE}", source.len()));
    }
    if let Some((_, line)) = source.lines().zip(1..).find(|(line, _)| line.len() > MAX_LINE) {
        return refuse(format!("line {line}: it has more than {MAX_LINE} bytes"));
    }
    let (mut tag, mut elifs) = (0, 0);
    for token in tokenize(source, false, syntax) {
        let (token, span) = token?;
        match token {
            Token::BlockStart | Token::VariableStart => tag = 0,
            Token::Ident("elif") => elifs += 1,
            _ => {}
        }
        tag += 1;
        if tag > MAX_TAG {
            return refuse(format!("line {}: a tag has more than {MAX_TAG} tokens", span.start_line));
        }
        if elifs > MAX_ELIF {
            return refuse(format!("line {}: there are more than {MAX_ELIF} elif", span.start_line));
        }
    }
    Ok(())
}

/// A node like one of the same place in the source.
macro_rules! node {
    ($kind:path, $from:expr, $node:expr) => {
        $kind(Spanned::new($node, $from.span()))
    };
}

fn statements<'a>(body: &[Stmt<'a>]) -> Vec<Stmt<'a>> {
    body.iter().map(statement).collect()
}

/// The statement, with what it computes checked.
fn statement<'a>(stmt: &Stmt<'a>) -> Stmt<'a> {
    match stmt {
        Stmt::Template(s) => node!(Stmt::Template, s, Template { children: statements(&s.children) }),
        Stmt::EmitExpr(s) => node!(Stmt::EmitExpr, s, EmitExpr { expr: walked(&s.expr) }),
        Stmt::EmitRaw(s) => node!(Stmt::EmitRaw, s, EmitRaw { raw: s.raw }),
        Stmt::ForLoop(s) => {
            let node = ForLoop {
                target: target(&s.target),
                iter: filter(ITERATED, expression(&s.iter)),
                filter_expr: s.filter_expr.as_ref().map(expression),
                recursive: s.recursive,
                body: statements(&s.body),
                else_body: statements(&s.else_body),
            };
            node!(Stmt::ForLoop, s, node)
        }
        Stmt::IfCond(s) => {
            let (true_body, false_body) = (statements(&s.true_body), statements(&s.false_body));
            node!(Stmt::IfCond, s, IfCond { expr: expression(&s.expr), true_body, false_body })
        }
        Stmt::WithBlock(s) => {
            let assignments = s.assignments.iter().map(|(to, value)| (target(to), expression(value)));
            let node = WithBlock { assignments: assignments.collect(), body: statements(&s.body) };
            node!(Stmt::WithBlock, s, node)
        }
        Stmt::Set(s) => {
            let expr = if sets_attribute(&s.target) {
                filter(STORED, expression(&s.expr))
            } else {
                expression(&s.expr)
            };
            node!(Stmt::Set, s, Set { target: target(&s.target), expr })
        }
        Stmt::SetBlock(s) => {
            let chain = s.filter.as_ref().map(expression);
            let chain = match sets_attribute(&s.target) {
                true => chain.map(|chain| filter(STORED, chain)),
                false => chain,
            };
            let node = SetBlock { target: target(&s.target), filter: chain, body: statements(&s.body) };
            node!(Stmt::SetBlock, s, node)
        }
        Stmt::AutoEscape(s) => {
            let node = AutoEscape { enabled: expression(&s.enabled), body: statements(&s.body) };
            node!(Stmt::AutoEscape, s, node)
        }
        Stmt::FilterBlock(s) => {
            let node = FilterBlock {
                filter: expression(&s.filter),
                filter_span: s.filter_span,
                body: statements(&s.body),
            };
            node!(Stmt::FilterBlock, s, node)
        }
        Stmt::Macro(s) => node!(Stmt::Macro, s, declaration(s)),
        Stmt::CallBlock(s) => {
            let node = CallBlock {
                call: Spanned::new(call(&s.call), s.call.span()),
                call_expr_span: s.call_expr_span,
                macro_decl: Spanned::new(declaration(&s.macro_decl), s.macro_decl.span()),
            };
            node!(Stmt::CallBlock, s, node)
        }
        Stmt::Continue(s) => node!(Stmt::Continue, s, Continue),
        Stmt::Break(s) => node!(Stmt::Break, s, Break),
        Stmt::Do(s) => node!(Stmt::Do, s, Do { call: Spanned::new(call(&s.call), s.call.span()) }),
    }
}

/// What is assigned to, as it is: names, and attributes of namespaces.
fn target<'a>(expr: &Expr<'a>) -> Expr<'a> {
    match expr {
        Expr::List(e) => node!(Expr::List, e, List { items: e.items.iter().map(target).collect() }),
        expr => expression(expr),
    }
}

/// Whether an assignment goes to a namespace.
fn sets_attribute(target: &Expr<'_>) -> bool {
    match target {
        Expr::List(list) => list.items.iter().any(sets_attribute),
        target => !matches!(target, Expr::Var(_)),
    }
}

fn declaration<'a>(node: &Macro<'a>) -> Macro<'a> {
    Macro {
        name: node.name,
        args: node.args.iter().map(target).collect(),
        defaults: node.defaults.iter().map(expression).collect(),
        body: statements(&node.body),
    }
}

fn call<'a>(node: &Call<'a>) -> Call<'a> {
    let expr = match &node.expr {
        Expr::GetAttr(method) if !matches!(&method.expr, Expr::Var(var) if var.id == "loop") => {
            node!(Expr::GetAttr, method, GetAttr { expr: flat(&method.expr), name: method.name })
        }
        expr => expression(expr),
    };
    let cycles = matches!(&node.expr, Expr::GetAttr(method) if method.name == "cycle");
    let args = if cycles { cycled(&node.args, node.expr.span()) } else { arguments(&node.args) };
    Call { expr, args }
}

/// What `loop.cycle` is given, which must be something: it divides by how many there are.
fn cycled<'a>(args: &[CallArg<'a>], span: Span) -> Vec<CallArg<'a>> {
    let some = |values| CallArg::PosSplat(filter(SOME, values));
    if args.is_empty() {
        return vec![some(Expr::List(Spanned::new(List { items: Vec::new() }, span)))];
    }
    let argument = |arg| match arg {
        CallArg::PosSplat(values) => some(values),
        CallArg::KwargSplat(values) => CallArg::KwargSplat(filter(SOME, values)),
        arg => arg,
    };
    arguments(args).into_iter().map(argument).collect()
}

fn arguments<'a>(args: &[CallArg<'a>]) -> Vec<CallArg<'a>> {
    let argument = |arg: &CallArg<'a>| match arg {
        CallArg::Pos(value) => CallArg::Pos(walked(value)),
        CallArg::Kwarg(name, value) => CallArg::Kwarg(name, walked(value)),
        CallArg::PosSplat(values) => CallArg::PosSplat(walked(values)),
        CallArg::KwargSplat(values) => CallArg::KwargSplat(walked(values)),
    };
    args.iter().map(argument).collect()
}

fn filter<'a>(name: &'static str, expr: Expr<'a>) -> Expr<'a> {
    let span = expr.span();
    Expr::Filter(Spanned::new(Filter { name, expr: Some(expr), args: Vec::new() }, span))
}

/// An operation, as Python has it.
fn operation<'a>(op: BinOpKind, left: Expr<'a>, right: Expr<'a>, span: Span) -> Expr<'a> {
    let (name, op) = match op {
        BinOpKind::Add => (ADD, None),
        BinOpKind::Lt => (ORDER, Some("<")),
        BinOpKind::Lte => (ORDER, Some("<=")),
        BinOpKind::Gt => (ORDER, Some(">")),
        BinOpKind::Gte => (ORDER, Some(">=")),
        BinOpKind::In => (IN, None),
        BinOpKind::Rem => (REM, None),
        BinOpKind::Concat => (CONCAT, None),
        op => return Expr::BinOp(Spanned::new(BinOp { op, left, right }, span)),
    };
    let op = op.map(|op| CallArg::Pos(Expr::Const(Spanned::new(Const { value: Value::from(op) }, span))));
    let args = op.into_iter().chain([CallArg::Pos(right)]).collect();
    Expr::Filter(Spanned::new(Filter { name, expr: Some(left), args }, span))
}

/// The same of an operator that can be one of a chain.
fn comparison<'a>(op: CompareOpKind, left: Expr<'a>, right: Expr<'a>, span: Span) -> Expr<'a> {
    let kind = match op {
        CompareOpKind::Eq => BinOpKind::Eq,
        CompareOpKind::Ne => BinOpKind::Ne,
        CompareOpKind::Lt => BinOpKind::Lt,
        CompareOpKind::Lte => BinOpKind::Lte,
        CompareOpKind::Gt => BinOpKind::Gt,
        CompareOpKind::Gte => BinOpKind::Gte,
        CompareOpKind::In | CompareOpKind::NotIn => BinOpKind::In,
    };
    let compared = operation(kind, left, right, span);
    match op {
        CompareOpKind::NotIn => {
            Expr::UnaryOp(Spanned::new(UnaryOp { op: UnaryOpKind::Not, expr: compared }, span))
        }
        _ => compared,
    }
}

/// Whether an expression gives a constant, a truth value or text.
fn is_small(expr: &Expr<'_>) -> bool {
    match expr {
        // The output of a recursive loop, written as it comes.
        Expr::Call(call) => matches!(&call.expr, Expr::Var(var) if var.id == "loop"),
        Expr::Const(_) | Expr::Test(_) | Expr::Compare(_) | Expr::UnaryOp(_) => true,
        Expr::BinOp(op) => matches!(
            op.op,
            BinOpKind::Eq
                | BinOpKind::Ne
                | BinOpKind::Lt
                | BinOpKind::Lte
                | BinOpKind::Gt
                | BinOpKind::Gte
                | BinOpKind::In
        ),
        _ => false,
    }
}

/// An expression whose value is walked through before it is used.
fn walked<'a>(expr: &Expr<'a>) -> Expr<'a> {
    if is_small(expr) { expression(expr) } else { filter(WALKED, expression(expr)) }
}

/// An expression whose value is a list or a map that exists, if it is one.
fn flat<'a>(expr: &Expr<'a>) -> Expr<'a> {
    if is_small(expr) { expression(expr) } else { filter(FLAT, expression(expr)) }
}

fn expressions<'a>(items: &[Expr<'a>]) -> Vec<Expr<'a>> {
    items.iter().map(walked).collect()
}

/// The expression, with what its parts give checked before it is used.
fn expression<'a>(expr: &Expr<'a>) -> Expr<'a> {
    match expr {
        Expr::Var(e) => node!(Expr::Var, e, Var { id: e.id }),
        Expr::Const(e) => node!(Expr::Const, e, Const { value: e.value.clone() }),
        Expr::Slice(e) => {
            let node = Slice {
                expr: flat(&e.expr),
                start: e.start.as_ref().map(expression),
                stop: e.stop.as_ref().map(expression),
                step: e.step.as_ref().map(|step| filter(STEP, expression(step))),
            };
            node!(Expr::Slice, e, node)
        }
        Expr::UnaryOp(e) => {
            let is_not = matches!(e.op, UnaryOpKind::Not);
            let op = if is_not { UnaryOpKind::Not } else { UnaryOpKind::Neg };
            node!(Expr::UnaryOp, e, UnaryOp { op, expr: expression(&e.expr) })
        }
        Expr::BinOp(e) => {
            let part = if matches!(e.op, BinOpKind::ScAnd | BinOpKind::ScOr) { expression } else { walked };
            operation(e.op, part(&e.left), part(&e.right), e.span())
        }
        Expr::Compare(e) => {
            // Longer chains are the engine's: what stands between two operators is worked out once.
            if let [one] = &e.ops[..] {
                return comparison(one.op, walked(&e.expr), walked(&one.expr), e.span());
            }
            let ops = e.ops.iter().map(|op| CompareOp { op: op.op, expr: walked(&op.expr) });
            node!(Expr::Compare, e, Compare { expr: walked(&e.expr), ops: ops.collect() })
        }
        Expr::IfExpr(e) => {
            let node = IfExpr {
                test_expr: expression(&e.test_expr),
                true_expr: expression(&e.true_expr),
                false_expr: e.false_expr.as_ref().map(expression),
            };
            node!(Expr::IfExpr, e, node)
        }
        Expr::Filter(e) => {
            let part = if SHALLOW.contains(&e.name) { flat } else { walked };
            // The filters of a block have no expression before the first.
            let input = e.expr.as_ref().map(part);
            let input = match ITERATING.contains(&e.name) {
                true => input.map(|input| filter(ITERATED, input)),
                false => input,
            };
            node!(Expr::Filter, e, Filter { name: e.name, expr: input, args: arguments(&e.args) })
        }
        Expr::Test(e) => {
            let part = if e.args.is_empty() { expression } else { walked };
            node!(Expr::Test, e, Test { name: e.name, expr: part(&e.expr), args: arguments(&e.args) })
        }
        Expr::GetAttr(e) => node!(Expr::GetAttr, e, GetAttr { expr: expression(&e.expr), name: e.name }),
        Expr::GetItem(e) => {
            let node = GetItem { expr: expression(&e.expr), subscript_expr: walked(&e.subscript_expr) };
            node!(Expr::GetItem, e, node)
        }
        Expr::Call(e) => node!(Expr::Call, e, call(e)),
        Expr::List(e) => node!(Expr::List, e, List { items: expressions(&e.items) }),
        Expr::Tuple(e) => node!(Expr::Tuple, e, Tuple { items: expressions(&e.items) }),
        Expr::Map(e) => {
            node!(Expr::Map, e, Map { keys: expressions(&e.keys), values: expressions(&e.values) })
        }
    }
}
