//! Chat templates that want to take all time, memory or stack: each gives one line, soon, and in little memory.
//!
//! Each is rendered by a process of its own, which may not take more than a gigabyte nor more than a minute: a stack that
//! overflows ends the process, whatever a test does.
#![cfg(unix)]

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use torchless::chat::{ChatTemplate, Message, Role};
use torchless::tokenizer::{Spec, Tokenizer};

const FILE: &str = "TORCHLESS_TEST_TEMPLATE";

fn render(source: &str) -> Result<String, torchless::Error> {
    let vocab = ["<unk>", "<s>", "</s>", "a"].iter().zip(0..).map(|(p, id)| ((*p).to_owned(), id)).collect();
    let tokenizer = Tokenizer::new(Spec { vocab, ..Spec::default() }).unwrap();
    let template = ChatTemplate::new(source, &tokenizer)?;
    template.render(&[Message::new(Role::User, "a"), Message::new(Role::Assistant, "b")], true)
}

/// Not a test: what the processes run.
#[test]
fn in_a_process_of_its_own() {
    let Ok(path) = std::env::var(FILE) else { return };
    match render(&std::fs::read_to_string(path).unwrap()) {
        Ok(text) => println!("\nrendered: {} bytes", text.len()),
        Err(error) => println!("\nrefused: {error}\nend"),
    }
}

/// What becomes of a template.
fn outcome(source: &str) -> String {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(source.as_bytes()).unwrap();
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -v 1500000; exec \"$0\" --exact in_a_process_of_its_own --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .env(FILE, file.path())
        .env("RUST_TEST_THREADS", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            child.wait().unwrap();
            return "no end".to_owned();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() || errors.contains("panicked") {
        return format!("{}: {}", output.status, errors.chars().take(300).collect::<String>());
    }
    let result = text.split("\nrendered: ").nth(1).or_else(|| text.split("\nrefused: ").nth(1)).unwrap();
    let lines: Vec<_> = result.lines().take_while(|line| *line != "end").collect();
    if text.contains("\nrefused: ") {
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with("the chat template") && lines[0].len() < 700, "{lines:?}");
        return format!("refused: {}", lines[0]);
    }
    format!("rendered {}", lines[0])
}

fn refused(sources: &[String]) {
    for source in sources {
        let outcome = outcome(source);
        let beginning: String = source.chars().take(120).collect();
        assert!(outcome.starts_with("refused"), "{beginning}: {outcome}");
        assert!(!outcome.contains("has failed"), "{beginning}: {outcome}");
    }
}

fn harmless(sources: &[String]) {
    for source in sources {
        let outcome = outcome(source);
        let beginning: String = source.chars().take(120).collect();
        assert!(outcome.starts_with("refused") || outcome.starts_with("rendered"), "{beginning}: {outcome}");
        assert!(!outcome.contains("has failed"), "{beginning}: {outcome}");
    }
}

#[test]
fn honest_templates_are_rendered() {
    assert_eq!(outcome("{{ messages[1].content * 3 }}"), "rendered 3 bytes");
}

/// Two of itself in a list, forty times over: 2^40 values.
const MANY: &str =
    "{% set ns = namespace(s=['x']) %}{% for i in range(40) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}";

#[test]
fn values_that_hold_themselves_or_too_much() {
    let uses = [
        "{{ ns.s }}",
        "{{ ns.s ~ '' }}",
        "{{ ns.s | string }}",
        "{{ ns.s | tojson }}",
        "{{ ns.s | pprint }}",
        "{{ ns.s | join }}",
        "{{ ''.join(ns.s) }}",
        "{{ '%s' | format(ns.s) }}",
        "{{ '{}'.format(ns.s) }}",
        "{{ ns.s == [ns.s[0], ns.s[1], 1] }}",
        "{{ ns.s < ns.s }}",
        "{{ 1 in ns.s }}",
        "{{ ns.s in [ns.s] }}",
        "{{ ns.s.count(ns.s) }}",
        "{{ [ns.s, ns.s] | unique }}",
        "{{ [ns.s, ns.s] | sort }}",
        "{{ {ns.s: 1} }}",
        "{{ {}[ns.s] }}",
        "{{ ns.s is eq(ns.s) }}",
        "{{ ns.s | escape }}",
        "{{ dict(a=ns.s) }}",
        "{{ ns.s | map('string') | list }}",
        "{{ raise_exception(ns.s) }}",
        "{{ ns }}",
        "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(ns.s) }}",
        "{% for a in ns.s %}{{ a }}{% endfor %}",
        "{% filter replace('a', ns.s) %}a{% endfilter %}",
        "{% set x = ns.s %}{% set y %}{{ x }}{% endset %}",
    ];
    refused(&uses.map(|used| format!("{MANY}{used}")));
    refused(
        &[
            "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
            "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns | tojson }}",
            "{% set ns = namespace() %}{% set a, ns.b = 1, {'x': ns} %}{{ ns == ns.b }}",
            "{% set ns = namespace() %}{% set ns.a | default(ns, true) %}{% endset %}{{ ns }}",
            "{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{{ a }}",
            "{% macro m() %}{% endmacro %}{% set ns = namespace() %}{% set ns.m = m %}",
            "{% for a in [1] %}{{ [loop] }}{% endfor %}",
            "{% set ns = namespace(s=[1]) %}{% for i in range(90000) %}{% set ns.s = [ns.s] %}{% endfor %}",
            "{% set ns = namespace(s=[1]) %}{% for i in range(90000) %}{% set ns.s = {'a': ns.s} %}{% endfor %}",
            "{% set ns = namespace(s=[1]) %}{% for i in range(90000) %}{% set ns.s = (ns.s, 1) %}{% endfor %}",
            "{% set ns = namespace(s=[1]) %}{% for i in range(90000) %}{% set ns.s = dict(a=ns.s) %}{% endfor %}",
            "{% set ns = namespace(s=[1]) %}{% for i in range(90000) %}{% set ns.s = ns.s | batch(1) %}{% endfor %}",
            "{% set ns = namespace(s=[1]) %}{% for i in range(90000) %}{% set ns.s = [ns.s] | map('list') | list %}{% endfor %}",
            "{% macro f(s) %}{{ f([s, s]) }}{% endmacro %}{{ f([1]) }}",
            "{% set s = 'x' * 1000000 %}{% set l = [s] * 1000 %}{{ l ~ l }}",
            "{% set s = 'x' * 1000000 %}{% set l = [s] * 1000 %}{% for i in range(90000) %}{{ l == [i] }}{% endfor %}",
            "{{ debug() }}",
        ]
        .map(str::to_owned),
    );
}

#[test]
fn lazy_values_do_not_pile_up() {
    let start = "{% set ns = namespace(s=range(3), d={'a': 1}) %}{% for i in range(90000) %}";
    harmless(
        &[
            "{% set ns.s = ns.s[0:] %}",
            "{% set ns.s = ns.s | reverse %}",
            "{% set ns.s = ns.s * 1 %}",
            "{% set ns.s = ns.s + [] %}",
            "{% set ns.s = ns.s | chain([]) %}",
            "{% set ns.s = ns.s | zip([1, 2]) %}",
            "{% set ns.s = ns.d.items() | reverse %}",
            "{% set ns.s = [ns.s] | map('reverse') | list | first %}",
            "{% set ns.s = [ns.s] | map('reverse') | list %}",
            "{% set ns.s = ns.s | items %}",
            "{% set ns.d = dict(ns.d, b=1) %}",
            "{% set ns.d = ns.d | chain({'b': 1}) %}",
            "{% set ns.d = {'a': ns.d.items()} %}",
        ]
        .map(|step| format!("{start}{step}{{% endfor %}}{{{{ ns.s }}}}{{{{ ns.d }}}}")),
    );
}

#[test]
fn huge_numbers() {
    for huge in
        ["100000000000", "1000000000", "9223372036854775807", "-9223372036854775808", "-9223372036854775807"]
    {
        harmless(
            &[
                "'{:>N}'.format(1)",
                "'{:.N}'.format(1.5)",
                "'{:>{}}'.format(1, N)",
                "'{N}'.format(1)",
                "'%Nd' | format(1)",
                "'%.Nf' | format(1.5)",
                "'%*d' | format(N, 1)",
                "'abc'[::N]",
                "'abc'[N:]",
                "'abc'[:N]",
                "[1, 2, 3][::N]",
                "range(3)[::N]",
                "(1, 2)[::N]",
                "range(N)",
                "range(0, 9, N)",
                "range(N, 0, N)",
                "'a' * N",
                "[1] * N",
                "(1,) * N",
                "2 ** N",
                "N ** N",
                "N * N",
                "N + N",
                "N - N",
                "-N",
                "N // -1",
                "N % -1",
                "N / 0",
                "N // 0",
                "1.5 ** N",
                "N | abs",
                "'a' | indent(N)",
                "[1] | batch(N)",
                "[1] | batch(N, 1)",
                "[1] | slice(N)",
                "[1] | slice(N, 1)",
                "1.5 | round(N)",
                "[1, 2][N]",
                "'abc'[N]",
                "'a' | truncate(N)",
                "'a' | center(N)",
                "'a'.center(N)",
                "'a'.zfill(N)",
                "'a\\t'.expandtabs(N)",
                "'a b'.rsplit(' ', N)",
                "'abc'.find('b', N, N)",
                "'%Nd' % 1",
                "'%*d' % (N, 1)",
                "'a b' | wordwrap(N)",
                "messages | tojson(N)",
                "messages | tojson(indent=N)",
                "'a'.replace('a', 'b', N)",
                "'a b'.split(' ', N)",
                "'a' | replace('a', 'b', N)",
                "'a b' | split(' ', N)",
                "[N, N] | sum",
                "N | string",
                "N | float",
                "N | int",
                "lipsum(N)",
                "strftime_now('%Nd')",
                "[N] | map('abs') | list",
                "N is divisibleby(N)",
                "N is divisibleby(0)",
                "[1, 2] | slice(N) | list",
            ]
            .map(|e| format!("{{{{ {} }}}}", e.replace('N', huge))),
        );
    }
    let big = "{% set s = 'x' * 1000000 %}";
    refused(&[
        format!("{big}{{{{ ('{{0}}' * 100000).format(s) }}}}"),
        format!("{big}{{{{ ('%s' * 100000) | format(s) }}}}"),
        format!("{big}{{{{ ('{{:>999999}}' * 100000).format(1) }}}}"),
        format!("{big}{{{{ s.replace('x', s) }}}}"),
        format!("{big}{{{{ s.join(['a'] * 100000) }}}}"),
        format!("{big}{{{{ raise_exception(s * 50) }}}}"),
    ]);
}

#[test]
fn sources_that_are_too_long_or_too_deep() {
    let n = 100_000;
    let all = |deep: &[(&str, &str, &str)], n: usize| -> Vec<String> {
        deep.iter().map(|(before, part, after)| format!("{before}{}{after}", part.repeat(n))).collect()
    };
    let chains = [
        ("{{ 1", "+1", " }}"),
        ("{{ a", ".a", " }}"),
        ("{{ a", "[0]", " }}"),
        ("{{ a", "()", " }}"),
        ("{{ a", "|d", " }}"),
        ("{{ a", " is a", " }}"),
        ("{{ ", "not ", "a }}"),
        ("{{ ", "-", "1 }}"),
        ("{{ ", "- ", "1 }}"),
        ("{{ a", "~a", " }}"),
        ("{{ a", " if a else a", " }}"),
        ("{{ a", " or a", " }}"),
        ("{{ a", "==a", " }}"),
        ("{{ ", "[", " }}"),
        ("{{ ", "(", " }}"),
        ("{{ ", "{1:", " }}"),
        ("{% set ", "(", " %}"),
        ("{% set a", ".a", " = 1 %}"),
        ("{% for ", "(", " %}"),
        ("{% if a %}", "{% elif a %}", "{% endif %}"),
        ("", "{% if a %}", ""),
        ("", "{% for a in b %}", ""),
        ("", "{% macro a() %}", ""),
        ("", "{% filter a %}", ""),
        ("", "{% set a %}", ""),
        ("", "{% call a() %}", ""),
        ("{% filter a", "|d", " %}{% endfilter %}"),
    ];
    refused(&all(&chains, n));
    // As deep as may be.
    harmless(&all(&chains, 1020));
    harmless(&all(&chains, 500));
    refused(&["x".repeat(300 << 10), "{{ a }}".repeat(50_000), "{# #}".repeat(100_000)]);
    let nested =
        format!("{{{{ {}{}x{}{} }}}}", "(".repeat(70), "not ".repeat(1000), "|d".repeat(300), ")".repeat(70));
    harmless(&[nested]);
}

/// What the engine knows by name, each with odd things in all places: none of it panics.
#[test]
fn nothing_the_engine_knows_panics() {
    const FILTERS: &str = "abs attr batch bool capitalize chain count d default dictsort e escape first float \
        format groupby indent int items join last length lines list lower map max min pprint reject rejectattr replace \
        reverse round safe select selectattr slice sort split string sum title tojson trim truncate unique upper urlencode \
        wordcount center forceescape random zip";
    const TESTS: &str = "boolean callable defined divisibleby endingwith eq escaped even filter float ge gt in integer iterable le \
        lower lt mapping ne none number odd safe sameas sequence startingwith string test true undefined upper";
    const METHODS: &str = "casefold center copy expandtabs index isdecimal isprintable ljust partition removeprefix removesuffix \
        rindex rjust rpartition rsplit swapcase zfill capitalize count endswith find format get isalnum isalpha isascii isdigit islower isspace \
        isupper items join keys lower lstrip replace rfind rstrip split splitlines startswith strip title upper values";
    const FUNCTIONS: &str =
        "dict namespace range raise_exception strftime_now loop.cycle loop.changed loop debug caller";
    const ODD: [&str; 12] = [
        "''",
        "'é𝄞ß'",
        "'%c%5%'",
        "'{0.a[1]:>3}'",
        "[1, 'a', none]",
        "{'a': 1.5}",
        "0",
        "-1",
        "9223372036854775807",
        "-9223372036854775808",
        "(0 / 1) ** -1.5",
        "nothing",
    ];
    let mut all = vec![String::new()];
    all.extend(ODD.map(str::to_owned));
    let numbers = ODD.iter().filter(|odd| odd.parse::<i64>().is_ok());
    all.extend(numbers.clone().flat_map(|a| numbers.clone().map(move |b| format!("{a}, {b}"))));
    let mut expressions = Vec::new();
    for args in &all {
        expressions.extend(FUNCTIONS.split_whitespace().map(|f| format!("{f}({args})")));
        expressions
            .extend(ODD.map(|c| format!("range({args}{}{c})", if args.is_empty() { "" } else { ", " })));
        for odd in ODD {
            expressions.extend(FILTERS.split_whitespace().map(|f| format!("({odd}) | {f}({args}) | list")));
            expressions.extend(METHODS.split_whitespace().map(|m| format!("({odd}).{m}({args})")));
            let test = |t| {
                format!("({odd}) is {t}{}", if args.is_empty() { String::new() } else { format!("({args})") })
            };
            expressions.extend(TESTS.split_whitespace().map(test));
        }
    }
    for (a, b) in ODD.iter().flat_map(|a| ODD.map(|b| (a, b))) {
        expressions.extend(
            ["+", "-", "*", "/", "//", "%", "**", "~", "<", "in"].map(|op| format!("({a}) {op} ({b})")),
        );
        expressions.extend(ODD.map(|c| format!("('aé' ~ {a})[{b}:{c}]")));
        expressions.extend(ODD.map(|c| format!("[1, 2, {a}][::{b}][{c}:]")));
    }
    expressions.extend(["loop.cycle(*[])", "loop.cycle(*nothing)", "loop.cycle(**{})"].map(str::to_owned));
    let panics = |expression: &String| {
        let outcome = render(&format!("{{% for i in [1, 2] %}}{{{{ {expression} }}}}{{% endfor %}}"));
        outcome.is_err_and(|e| e.to_string().contains("has failed"))
    };
    let panicked: Vec<_> = expressions.into_iter().filter(panics).collect();
    assert!(panicked.is_empty(), "{panicked:?}");
}

/// A column beyond 16 bits.
#[test]
fn errors_far_to_the_right() {
    let far = "x".repeat(70_000);
    refused(&[
        format!("{far}{{%"),
        format!("{{% raw %}}{far}"),
        format!("{far}{{{{ a b }}}}"),
        format!("{{{{ '{far}"),
        format!("\n\n{{#{far}"),
        format!("{far}{{{{ 1 // 0 }}}}"),
    ]);
}
