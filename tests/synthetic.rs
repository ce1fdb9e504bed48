//! Models of random weights: always the same, of the kind that is promised, and fit to run.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use approx::assert_abs_diff_eq;
use torchless::Error;
use torchless::arch::{SHAPES, shape};
use torchless::format::bin::{Dtype, Tensor};
use torchless::format::convert::{Quant, RowLayout, Storage};
use torchless::format::synthetic::write_synthetic;
use torchless::kernels::{Kernels, Weight};
use torchless::runtime::{Session, SessionOptions};
use torchless::{Model, arch::Config};

fn small() -> Config {
    let mut config = shape("mistral-7b").unwrap();
    (config.hidden_size, config.intermediate_size, config.n_layers) = (128, 192, 2);
    (config.n_heads, config.n_kv_heads, config.head_dim) = (4, 2, 32);
    (config.vocab_size, config.sliding_window) = (300, Some(8));
    config
}

fn write(config: &Config, storage: impl Into<Storage>, dst: &Path) -> Result<(), Error> {
    write_synthetic(config, storage, dst, &mut |_| ControlFlow::Continue(())).map(drop)
}

#[test]
fn one_configuration_is_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| {
        let file = folder.path().join(name);
        write(&small(), Quant::Int8, &file).unwrap();
        std::fs::read(file).unwrap()
    });
    assert!(one == other);
}

/// What rows hold panels hold too, up to the rounding of a scale.
#[test]
fn panels_and_rows_are_of_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let [panels, rows] = [RowLayout::Panels, RowLayout::Rows].map(|layout| {
        let file = folder.path().join(format!("{layout:?}"));
        write(&small(), Quant::Int8.laid_out(layout), &file).unwrap();
        Model::open(file).unwrap()
    });
    for (in_panels, in_rows) in panels.file().tensors().iter().zip(rows.file().tensors()) {
        let (n, cols) = in_panels.rows_cols();
        let expected = match in_panels.shape().len() {
            1 => (Dtype::F32, Dtype::F32),
            _ => (Dtype::Int8Panels, Dtype::Int8),
        };
        assert_eq!((in_panels.dtype(), in_rows.dtype()), expected, "{}", in_panels.name());
        let (mut a, mut b) = (vec![0.0; cols], vec![0.0; cols]);
        for row in 0..n {
            Kernels::detect().weight_row(&panels.file().weight(in_panels), row, &mut a);
            Kernels::detect().weight_row(&rows.file().weight(in_rows), row, &mut b);
            assert_abs_diff_eq!(a[..], b[..], epsilon = 0.08 / 127.0);
        }
    }
}

/// Int4 is searched for as in other sources, with no column worth more than another.
#[test]
fn int4_is_of_the_same_weights() {
    let folder = tempfile::tempdir().unwrap();
    let [int4, again, f32] = [Quant::Int4, Quant::Int4, Quant::F32].map(|quant| {
        let file = folder.path().join("model.bin");
        write(&small(), quant, &file).unwrap();
        Model::open(file).unwrap()
    });
    assert!(int4.file().contents() == again.file().contents());
    for (in_int4, in_f32) in int4.file().tensors().iter().zip(f32.file().tensors()) {
        let name = in_int4.name();
        let expected = match in_int4.shape().len() {
            1 => Dtype::F32,
            _ if name.contains("v_proj") || name.contains("embed") || name.contains("head") => {
                Dtype::Int8Panels
            }
            _ => Dtype::Int4,
        };
        assert_eq!(in_int4.dtype(), expected, "{name}");
        let (rows, cols) = in_int4.rows_cols();
        let mut found = vec![0.0; cols];
        let (mut error, mut squares) = (0.0, 0.0);
        for row in 0..rows {
            Kernels::detect().weight_row(&int4.file().weight(in_int4), row, &mut found);
            let expected = &f32.file().vector(in_f32)[row * cols..][..cols];
            error += found.iter().zip(expected).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
            squares += expected.iter().map(|w| w * w).sum::<f32>();
        }
        assert!(error <= 0.08f32.powi(2) * squares, "{name}: {}", (error / squares).sqrt());
    }
}

fn values<'a>(model: &'a Model, tensor: &Tensor) -> &'a [f32] {
    let Weight::F32(w) = model.file().weight(tensor) else { panic!("asked for f32") };
    w.values()
}

#[test]
fn weights_are_those_that_everyone_has() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.bin");
    write(&small(), Quant::F32, &file).unwrap();
    let model = Arc::new(Model::open(&file).unwrap());
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/synthetic/weights.json");
    let golden: Vec<(usize, usize, [i32; 4])> =
        serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
    for (tensor, row, expected) in golden {
        let tensor = &model.file().tensors()[tensor];
        let found = &values(&model, tensor)[row * tensor.rows_cols().1..][..4];
        assert_eq!(
            found,
            expected.map(|sum| sum as f32 * (0.02 / 37_837.23)),
            "{}, row {row}",
            tensor.name()
        );
    }
}

#[test]
fn weights_are_a_bell_curve_and_logits_are_finite() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.bin");
    write(&small(), Quant::F32, &file).unwrap();
    let model = Arc::new(Model::open(&file).unwrap());
    for tensor in model.file().tensors().iter().filter(|t| t.shape().len() == 2) {
        let values = values(&model, tensor);
        let n = values.len() as f64;
        let moment = |power| values.iter().map(|&x| f64::from(x / 0.02).powi(power)).sum::<f64>() / n;
        // The kurtosis of a sum of four even distributions is 3 − 1.2 / 4; tolerances are some five deviations wide.
        let tolerance = 5.0 / n.sqrt();
        println!("{}", tensor.name());
        assert_abs_diff_eq!(moment(1), 0.0, epsilon = tolerance);
        assert_abs_diff_eq!(moment(2), 1.0, epsilon = 2.0 * tolerance);
        assert_abs_diff_eq!(moment(4), 2.7, epsilon = 10.0 * tolerance);
    }
    let options = SessionOptions { ctx: 40, ..SessionOptions::new(&model) };
    let mut session = Session::new(&model, &options).unwrap();
    let prompt = model.tokenizer().encode("random weights", Default::default());
    let logits = session.feed(&prompt).unwrap();
    assert!(logits.iter().all(|x| x.is_finite() && x.abs() < 10.0));
    assert!(logits.iter().any(|x| x.abs() > 0.01));
}

#[test]
fn every_shape_is_possible() {
    for name in SHAPES {
        shape(name).unwrap().check().unwrap();
    }
    assert!(shape("gpt-9").is_none());
}

#[test]
fn what_cannot_be_written_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.bin");
    let mut config = small();
    config.vocab_size = 259;
    let error = write(&config, Quant::Int8, &file).unwrap_err();
    assert!(error.to_string().contains("vocab_size is 259: at least 260"), "{error}");
    let stopped = write_synthetic(&small(), Quant::Int8, &file, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Interrupted)));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
