//! The decoders against the `gguf` package, to the bit.

use std::fs;

use super::SourceType;
use half::{bf16, f16};
use safetensors::SafeTensors;

#[test]
fn every_quantised_type_decodes_to_the_bits_of_the_reference() {
    let file = fs::read("tests/fixtures/convert/dequant.safetensors").unwrap();
    let goldens = SafeTensors::deserialize(&file).unwrap();
    let types = [
        ("Q4_0", 2),
        ("Q4_1", 3),
        ("Q5_0", 6),
        ("Q5_1", 7),
        ("Q8_0", 8),
        ("Q2_K", 10),
        ("Q3_K", 11),
        ("Q4_K", 12),
        ("Q5_K", 13),
        ("Q6_K", 14),
    ];
    for (name, id) in types {
        let blocks = goldens.tensor(&format!("{name}.blocks")).unwrap();
        let expected = goldens.tensor(&format!("{name}.values")).unwrap();
        let expected: Vec<f32> =
            expected.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let encoding = SourceType::from_ggml(id).unwrap();
        assert_eq!(encoding.bytes(expected.len()), Some(blocks.data().len()), "{name}");
        let mut values = vec![f32::NAN; expected.len()];
        encoding.decode(blocks.data(), &mut values);
        for (i, (value, expected)) in values.iter().zip(&expected).enumerate() {
            assert_eq!(
                value.to_bits(),
                expected.to_bits(),
                "{name}, value {i}: {value:?}, expected {expected:?}"
            );
        }
    }
    assert_eq!(goldens.len(), 2 * types.len(), "every golden is compared");
}

#[test]
fn every_half_decodes_exactly() {
    for bits in 0..=u16::MAX {
        let mut value = [0.0];
        SourceType::F16.decode(&bits.to_le_bytes(), &mut value);
        let expected = f16::from_bits(bits);
        assert!(value[0] == expected.to_f32() || value[0].is_nan() && expected.is_nan(), "{bits:#x}");
        SourceType::Bf16.decode(&bits.to_le_bytes(), &mut value);
        let expected = bf16::from_bits(bits);
        assert!(value[0] == expected.to_f32() || value[0].is_nan() && expected.is_nan(), "{bits:#x}");
    }
}

#[test]
fn whole_blocks_only() {
    let q4_k = SourceType::from_ggml(12).unwrap();
    assert_eq!(q4_k.bytes(512), Some(288));
    assert_eq!(q4_k.bytes(32), None);
    assert_eq!(SourceType::F32.bytes(usize::MAX), None);
    let types: Vec<u32> = (0..=100).filter(|&id| SourceType::from_ggml(id).is_ok()).collect();
    assert_eq!(types, [0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 30]);
    assert!(SourceType::from_ggml(20).unwrap_err().0.contains("IQ4_NL"));
}
