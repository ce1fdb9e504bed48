//! What a server gives to several people at a time: each asks, reads the answer as it comes, and asks again. It speaks OpenAI's API, so any
//! server of that kind can be measured.

use std::io::{BufRead, BufReader};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Error;

/// How much is asked of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// How many ask at the same time.
    pub streams: usize,
    /// How often each asks.
    pub requests: usize,
    /// Words of a prompt, about as many tokens.
    pub prompt: usize,
    /// Tokens of an answer.
    pub generate: usize,
}

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Served {
    /// Tokens of all answers together, as the server counts them.
    pub tokens: usize,
    /// Tokens of all prompts together.
    pub prompt_tokens: usize,
    /// From the first question to the end of the last answer.
    pub time: Duration,
    /// From each question to the first piece of its answer, in ascending order.
    pub first: Vec<Duration>,
    /// From each piece of an answer to its next, in ascending order.
    pub gaps: Vec<Duration>,
}

impl Served {
    /// Tokens a second, of all answers together.
    pub fn tokens_per_s(&self) -> f64 {
        self.tokens as f64 / self.time.as_secs_f64()
    }
}

/// The time that this part of `times`, which are in ascending order, does not exceed; zero where there are none.
pub fn quantile(times: &[Duration], part: f64) -> Duration {
    let last = times.len().saturating_sub(1);
    times.get((part * last as f64).round() as usize).copied().unwrap_or_default()
}

/// What one question came to.
struct Answer {
    tokens: usize,
    prompt_tokens: usize,
    first: Duration,
    gaps: Vec<Duration>,
}

/// Asks the server at `url`, such as `http://127.0.0.1:8080`, with a key if it wants one. `round` makes prompts of their own, so that no
/// server has seen them before. `answered` is called after each answer.
///
/// # Errors
/// [`Error::Request`] if the server cannot be reached, refuses a question, or breaks an answer off.
pub fn run(
    url: &str,
    key: Option<&str>,
    load: Load,
    round: usize,
    answered: impl Fn() + Sync,
) -> Result<Served, Error> {
    let agent = ureq::Agent::new_with_config(
        // A connection for each question: a server may close one that it has answered on. What went wrong is said by the server.
        ureq::Agent::config_builder().max_idle_connections(0).http_status_as_error(false).build(),
    );
    let start = Instant::now();
    let answers = thread::scope(|scope| {
        let ask = |stream: usize| {
            let (agent, answered) = (&agent, &answered);
            let questions = (0..load.requests).map(move |request| {
                let number = (round * load.streams + stream) * load.requests + request;
                let answer = ask(agent, url, key, load, number)?;
                answered();
                Ok(answer)
            });
            scope.spawn(move || questions.collect::<Result<Vec<_>, Error>>())
        };
        let streams: Vec<_> = (0..load.streams).map(ask).collect();
        let lost = || Error::Request("a thread that asks the server has failed".to_owned());
        let all = streams.into_iter().map(|stream| stream.join().unwrap_or_else(|_| Err(lost())));
        all.collect::<Result<Vec<_>, Error>>()
    })?;
    let time = start.elapsed();
    let answers: Vec<Answer> = answers.into_iter().flatten().collect();
    let mut first: Vec<_> = answers.iter().map(|answer| answer.first).collect();
    let mut gaps: Vec<_> = answers.iter().flat_map(|answer| answer.gaps.iter().copied()).collect();
    first.sort_unstable();
    gaps.sort_unstable();
    let tokens = answers.iter().map(|answer| answer.tokens).sum();
    Ok(Served { tokens, prompt_tokens: answers.iter().map(|a| a.prompt_tokens).sum(), time, first, gaps })
}

/// Asks one question and reads the answer.
fn ask(
    agent: &ureq::Agent,
    url: &str,
    key: Option<&str>,
    load: Load,
    number: usize,
) -> Result<Answer, Error> {
    let problem = |what: String| Error::Request(format!("{url}: {what}"));
    let mut request = agent.post(format!("{}/v1/completions", url.trim_end_matches('/')));
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let question = json!({
        "prompt": words(load.prompt, number),
        "max_tokens": load.generate,
        "temperature": 0.8,
        "seed": number,
        "ignore_eos": true,
        "stream": true,
        "stream_options": { "include_usage": true },
    });
    let start = Instant::now();
    let request = request.header("content-type", "application/json");
    let response = request.send(question.to_string()).map_err(|error| problem(error.to_string()))?;
    let status = response.status();
    let body = BufReader::new(response.into_body().into_reader());
    if !status.is_success() {
        let said: String = body.lines().map_while(Result::ok).take(20).collect();
        return Err(problem(format!("{status}: {said}")));
    }
    let mut pieces = Vec::with_capacity(load.generate);
    let mut usage = None;
    for line in body.lines() {
        let line = line.map_err(|error| problem(error.to_string()))?;
        let Some(event) = line.strip_prefix("data: ").filter(|event| *event != "[DONE]") else { continue };
        let event: Value =
            serde_json::from_str(event).map_err(|error| problem(format!("{error} in {event}")))?;
        if let Some(error) = event.get("error") {
            return Err(problem(error.to_string()));
        }
        if event.pointer("/choices/0").is_some() {
            pieces.push(start.elapsed());
        }
        let count = |name| event.pointer(name).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        usage = count("/usage/completion_tokens").zip(count("/usage/prompt_tokens")).or(usage);
    }
    let (tokens, prompt_tokens) =
        usage.ok_or_else(|| problem("the answer ends without saying how many tokens it has".to_owned()))?;
    let first = *pieces.first().ok_or_else(|| problem("the answer has no tokens".to_owned()))?;
    let gaps = pieces.iter().zip(pieces.iter().skip(1)).map(|(a, b)| *b - *a).collect();
    Ok(Answer { tokens, prompt_tokens, first, gaps })
}

/// A text of `n` words that no other number has.
fn words(n: usize, number: usize) -> String {
    const WORDS: [&str; 16] = [
        "river", "stone", "window", "green", "letter", "music", "seven", "horse", "paper", "cloud", "garden",
        "table", "light", "north", "bread", "silver",
    ];
    let mut state = number as u64 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        WORDS.get((state >> 60) as usize).copied().unwrap_or("word")
    };
    (0..n.max(1)).map(|_| next()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_differ_from_their_beginning() {
        let texts: std::collections::BTreeSet<String> = (0..1000).map(|number| words(12, number)).collect();
        assert_eq!(texts.len(), 1000);
        assert!(texts.iter().all(|text| text.split(' ').count() == 12));
    }

    #[test]
    fn quantiles_are_of_what_there_is() {
        let times: Vec<Duration> = (0..=100).map(Duration::from_millis).collect();
        assert_eq!([0.0, 0.5, 0.95, 1.0].map(|part| quantile(&times, part).as_millis()), [0, 50, 95, 100]);
        assert_eq!(quantile(&[], 0.5), Duration::ZERO);
    }
}
