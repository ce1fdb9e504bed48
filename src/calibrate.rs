//! Converting to int4 with an eye on what the weights are multiplied with: a text runs through the model, layer by layer, and
//! what its activations have in common decides how each matrix is rounded (see `format/encoding/int4/feedback.rs`).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use torchless_kernels::{Activations, Allocator, Kernels, MatMut, Strided, add_product};

use crate::format::convert::{Convertible, OnProgress, Quant, Report, Storage};
use crate::format::encoding::int4::Feedback;
use crate::format::fs::{folder_of, temporary};
use crate::kv::{KvCache, KvType, PageTable, pages_of_a_sequence};
use crate::model::forward::{Pass, Site};
use crate::model::segment::Segment;
use crate::model::workspace::{Room, Workspace};
use crate::parallel::spread::spread;
use crate::parallel::threads::Threads;
use crate::{Error, Model};

/// Tokens that the text is cut into: each piece is read from its own start.
const CHUNK: usize = 512;

/// The most tokens of a text that are read: more tell little more, and each costs.
pub const MOST_TOKENS: usize = 8192;

/// The fewest: fewer tell nothing of most columns.
pub const LEAST_TOKENS: usize = 256;

/// As [`Convertible::write`], with a text to calibrate on: `tokens` are its first 256 to 8192.
///
/// The model runs as int8: where `src` is no model file already, one is written beside `dst` and removed again. Of the memory,
/// `4 · cols²` bytes are needed for the widest matrix, and as much as a residual stream of all tokens.
///
/// # Errors
/// As [`Convertible::write`]; when the text has too few tokens, or nothing would be rounded to four bits: what a source holds in 4
/// bits keeps them.
pub fn convert(
    src: &Path,
    model: &Convertible,
    dst: &Path,
    storage: impl Into<Storage>,
    text: &str,
    progress: &mut OnProgress,
) -> Result<Report, Error> {
    let storage = storage.into();
    if !model.rounds_to_int4(storage) {
        return Err(Error::file(
            src,
            "has no matrix that would be rounded to four bits: convert it without a text",
        ));
    }
    let mut tokens = model.tokenizer().encode(text, Default::default());
    tokens.truncate(MOST_TOKENS);
    if tokens.len() < LEAST_TOKENS {
        let n = tokens.len();
        let problem = format!(
            "a text of {n} tokens says too little: {LEAST_TOKENS} are needed, and {MOST_TOKENS} used"
        );
        return Err(Error::Request(problem));
    }
    let (path, _folder) = runnable(src, model, dst, progress)?;
    let runnable = Arc::new(Model::open(&path)?);
    let mut calibration = Calibration::new(runnable, &tokens)?;
    model.write_with(dst, storage, &mut |name| calibration.feedback(name), progress)
}

/// A model file to run: the source, if it is one, or one in a folder of its own.
fn runnable(
    src: &Path,
    model: &Convertible,
    dst: &Path,
    progress: &mut OnProgress,
) -> Result<(PathBuf, Option<temporary::Folder>), Error> {
    if model.is_model_file() {
        return Ok((src.to_owned(), None));
    }
    let mut prefix = OsString::from(".");
    prefix.push(dst.file_name().unwrap_or_default());
    prefix.push(".calibration.");
    temporary::remove_abandoned(folder_of(dst), &prefix);
    let folder = temporary::Folder::new(folder_of(dst), &prefix).map_err(Error::io(dst))?;
    let path = folder.path().join("int8.bin");
    model.write(&path, Quant::Int8, progress)?;
    Ok((path, Some(folder)))
}

/// A text on its way through a model's layers.
struct Calibration {
    model: Arc<Model>,
    threads: Threads,
    cache: KvCache,
    table: PageTable,
    workspace: Workspace,
    /// Before layer `layer`: the residual stream of each chunk, `[tokens][hidden_size]`.
    residuals: Vec<Vec<f32>>,
    layer: usize,
    /// After it, once it has been run.
    next: Vec<Vec<f32>>,
    /// What was found last, and of whose input.
    last: Option<(usize, Site, Option<Arc<Feedback>>)>,
}

impl Calibration {
    fn new(model: Arc<Model>, tokens: &[u32]) -> Result<Self, Error> {
        let (config, chunk) = (model.config(), CHUNK.min(model.config().max_position_embeddings));
        let threads = Threads::new(std::thread::available_parallelism().map_or(1, usize::from))?;
        let pages = pages_of_a_sequence(None, chunk, chunk);
        let cache = KvCache::new(config, KvType::F32, pages)
            .ok_or_else(|| Error::OutOfMemory { ctx: chunk, problem: "does not fit in memory".to_owned() })?;
        let mut table = PageTable::with_room_for(chunk);
        (0..pages as u32).for_each(|page| table.push(page));
        let room = Room { ctx: chunk, chunk, sequences: 1, threads: threads.count() };
        let mut workspace = Workspace::new(&mut Allocator::heap(), &model, room);
        let hidden = config.hidden_size;
        let residuals = threads.with_team(|team| {
            let pass = Pass { model: &model, kernels: Kernels::detect(), team, on_input: None };
            let chunks = tokens.chunks(chunk);
            let embedded = chunks.map(|tokens| {
                pass.embed(tokens, &mut workspace.x);
                workspace.x.get(..tokens.len().saturating_mul(hidden)).unwrap_or_default().to_vec()
            });
            embedded.collect()
        });
        let next = Vec::new();
        Ok(Self { model, threads, cache, table, workspace, residuals, layer: 0, next, last: None })
    }

    /// How errors in the columns of matrix `name` go together. Matrices must be asked for in the order of the layers.
    fn feedback(&mut self, name: &str) -> Result<Option<Arc<Feedback>>, Error> {
        let Some((layer, site)) = site_of(name) else { return Ok(None) };
        if let Some((_, _, feedback)) = self.last.as_ref().filter(|(l, s, _)| (*l, *s) == (layer, site)) {
            return Ok(feedback.clone());
        }
        // Before the next one is made: they are large.
        self.last = None;
        while self.layer < layer {
            if self.next.is_empty() {
                self.run(None);
            }
            self.residuals = std::mem::take(&mut self.next);
            self.layer = self.layer.saturating_add(1);
        }
        let feedback = self.run(Some(site)).and_then(|(h, n)| Feedback::new(h, n)).map(Arc::new);
        self.last = Some((layer, site, feedback.clone()));
        Ok(feedback)
    }

    /// Takes all chunks through the layer; returns `Σ x·xᵀ` over the inputs of `site`, as far as it is on or below the diagonal,
    /// and how many columns they have.
    fn run(&mut self, site: Option<Site>) -> Option<(Vec<f32>, usize)> {
        let Self { model, threads, cache, table, workspace, residuals, layer, next, .. } = self;
        let KvCache::F32(cache) = cache else { return None };
        let sum: Mutex<Option<(Vec<f32>, usize)>> = Mutex::new(None);
        let on_input = |at: Site, x: &Activations| {
            if site == Some(at) {
                let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                let (h, _) = sum.get_or_insert_with(|| (vec![0.0; x.cols() * x.cols()], x.cols()));
                add_squares(x, h);
            }
        };
        next.clear();
        threads.with_team(|team| {
            let pass = Pass { model, kernels: Kernels::detect(), team, on_input: Some(&on_input) };
            for before in residuals.iter() {
                let tokens = before.len() / model.config().hidden_size;
                let x = &mut workspace.x[..before.len()];
                x.copy_from_slice(before);
                // In f32 nothing overflows that is not infinite already.
                let overflowed = AtomicBool::new(false);
                let segment =
                    [Segment { rows: 0..tokens, start: 0, long: false, table, overflowed: &overflowed }];
                pass.place(workspace, &segment);
                pass.layer(*layer, cache, workspace, &segment);
                next.push(workspace.x[..before.len()].to_vec());
            }
        });
        sum.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `h += Σ x·xᵀ` over some tokens, on and below the diagonal.
fn add_squares(x: &Activations, h: &mut [f32]) {
    const ROWS: usize = 96;
    let (tokens, n) = (x.tokens(), x.cols());
    let mut values = vec![0.0; tokens * n];
    values.chunks_mut(n).enumerate().for_each(|(t, out)| x.token(t, out));
    let all = Strided::new(&values, [tokens, n], [n, 1]);
    spread(h.chunks_mut(ROWS * n).enumerate(), |(i, rows)| {
        let (first, count) = (i * ROWS, rows.len() / n);
        let own = Strided::new(&values[first..], [tokens, count], [n, 1]).transposed();
        let (columns, _) = MatMut::new(rows, count, n).split_cols(first + count);
        add_product(1.0, own, all.cols(first + count), columns);
    });
}

/// Which layer a matrix is of, and what its input is.
fn site_of(name: &str) -> Option<(usize, Site)> {
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let site = match part {
        "self_attn.q_proj.weight" | "self_attn.k_proj.weight" | "self_attn.v_proj.weight" => Site::Qkv,
        "self_attn.o_proj.weight" => Site::O,
        "mlp.gate_proj.weight" | "mlp.up_proj.weight" => Site::GateUp,
        "mlp.down_proj.weight" => Site::Down,
        _ => return None,
    };
    Some((layer.parse().ok()?, site))
}
