//! The kernels of every instruction set of this CPU, on one core: the cases of `torchless kernels`, by criterion.
//!
//! `cargo bench --bench kernels -- gemv_i8` runs those whose name contains `gemv_i8`. `torchless kernels` shows the same at
//! a glance and checks equality; this is for comparing two builds.

#[allow(dead_code, reason = "results are compared by `torchless kernels`")]
#[path = "../src/cli/kernels/cases.rs"]
mod cases;

use cases::{Case, Unit, cases};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use torchless_kernels::{Isa, Kernels};

/// What limits a case, for a run: bytes, or multiply-adds as "elements".
fn throughput(case: &Case) -> Throughput {
    match case.unit {
        Unit::Bytes => Throughput::Bytes(case.bytes as u64),
        Unit::MultiplyAdds => Throughput::Elements(case.operations as u64),
    }
}

/// The scalar reference takes seconds for more multiply-adds.
const MOST_FOR_SCALAR: f64 = (1 << 28) as f64;

fn kernels(c: &mut Criterion) {
    for (name, make) in cases(false) {
        let mut case = make();
        let mut group = c.benchmark_group(name);
        group.sample_size(10).throughput(throughput(&case));
        for kernels in Isa::ALL.into_iter().filter_map(|isa| Kernels::new(isa).ok()) {
            if kernels.isa() != Isa::Scalar || case.operations < MOST_FOR_SCALAR {
                let id = BenchmarkId::new(kernels.isa().name(), &case.shape);
                group.bench_function(id, |b| b.iter(|| case.task.run(kernels)));
            }
        }
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
