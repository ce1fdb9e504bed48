//! A reader of `.bin` files that shares nothing with the library: the format note, literally.

use std::fs;
use std::path::Path;

use serde_json::Value;

pub struct BinFile {
    pub file: Vec<u8>,
    pub header: Value,
    base: usize,
}

impl BinFile {
    pub fn read(path: &Path) -> Self {
        let file = fs::read(path).unwrap();
        let header_size = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let base = 8 + header_size;
        assert_eq!(base % 64, 0, "the payload is aligned");
        // The original exporter fills up with zero bytes.
        let json = file[8..base].split(|byte| *byte == 0).next().unwrap();
        let header = serde_json::from_slice(json).unwrap();
        Self { file, header, base }
    }

    pub fn metadata(&self, key: &str) -> &str {
        self.header["metadata"][key].as_str().unwrap_or_else(|| panic!("metadata.{key} is not a string"))
    }

    /// Names in the file's order.
    pub fn names(&self) -> Vec<&str> {
        self.header["tensors"].as_object().unwrap().keys().map(String::as_str).collect()
    }

    pub fn dtype(&self, name: &str) -> &str {
        self.header["tensors"][name]["dtype"].as_str().unwrap()
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        let shape = self.header["tensors"][name]["shape"].as_array().unwrap();
        shape.iter().map(|size| size.as_u64().unwrap() as usize).collect()
    }

    pub fn f32s(&self, name: &str) -> Vec<f32> {
        assert_eq!(self.dtype(name), "f32");
        f32s(self.bytes(name, "offset", 4 * self.len(name)))
    }

    /// The values and scales of an int8 tensor.
    pub fn int8s(&self, name: &str) -> (Vec<i8>, Vec<f32>) {
        assert_eq!(self.dtype(name), "int8");
        let values = self.bytes(name, "offset", self.len(name));
        let scales = self.header["tensors"][name]["scale_size"].as_u64().unwrap() as usize;
        assert_eq!(scales, self.len(name).div_ceil(64));
        let scales = f32s(self.bytes(name, "scale_offset", 4 * scales));
        (values.iter().map(|&byte| byte as i8).collect(), scales)
    }

    /// The weights of an int8 tensor in panels, each found by the formula of docs/format.md.
    pub fn panels(&self, name: &str) -> Vec<f32> {
        assert_eq!(self.dtype(name), "int8_panels");
        let [rows, cols] = self.shape(name)[..] else { panic!("{name} is no matrix") };
        let groups = rows.div_ceil(16) * (cols / 64);
        let values = self.bytes(name, "offset", 1024 * groups);
        assert_eq!(self.header["tensors"][name]["scale_size"], 16 * groups);
        let scales = self.bytes(name, "scale_offset", 2 * 16 * groups);
        let weight = |row: usize, col: usize| {
            let group = row / 16 * (cols / 64) + col / 64;
            let value = values[1024 * group + col % 64 / 4 * 64 + row % 16 * 4 + col % 4] as i8;
            let scale = &scales[2 * (16 * group + row % 16)..][..2];
            f32::from(value) * half::f16::from_le_bytes(scale.try_into().unwrap()).to_f32()
        };
        (0..rows)
            .flat_map(|row| (0..cols).map(move |col| (row, col)))
            .map(|(row, col)| weight(row, col))
            .collect()
    }

    /// An int4 tensor, each weight found by the formulas of docs/format.md.
    pub fn int4(&self, name: &str) -> Int4 {
        let [rows, cols] = self.shape(name)[..] else { panic!("{name} is no matrix") };
        let (panels, groups) = (rows.div_ceil(16), rows.div_ceil(16) * (cols / 64));
        let dtype = self.dtype(name);
        let (columns, group_bytes, width) = match dtype {
            "int4" => (16, 64, 1),
            "int4_by_32" => (32, 64, 2),
            "int4_by_32_minimum" => (32, 128, 2),
            other => panic!("{name} is {other}"),
        };
        let bytes = self.bytes(name, "offset", 512 * groups);
        let size = 64 + 64 * panels + group_bytes * groups;
        assert_eq!(self.header["tensors"][name]["scale_size"], size);
        let scales = self.bytes(name, "scale_offset", size);
        let codes: [i8; 16] = std::array::from_fn(|i| scales[i] as i8);
        let row_scale = |row: usize| f32s(&scales[64 + 4 * row..][..4])[0];
        let whole = |at: usize| match width {
            1 => i32::from(scales[at] as i8),
            _ => i32::from(i16::from_le_bytes([scales[at], scales[at + 1]])),
        };
        let of = |row: usize, col: usize| {
            let group = row / 16 * (cols / 64) + col / 64;
            let byte = bytes[512 * group + 64 * (col % 64 / 8) + 4 * (row % 16) + col % 4];
            let nibble = if col % 8 < 4 { byte & 15 } else { byte >> 4 };
            let at = 64 + 64 * panels + group_bytes * group;
            let at = at + 16 * width * (col % 64 / columns) + width * (row % 16);
            let minimum = if dtype == "int4_by_32_minimum" { whole(at + 64) } else { 0 };
            (nibble, whole(at) * i32::from(codes[usize::from(nibble)]) - minimum)
        };
        for row in rows..16 * panels {
            assert_eq!(row_scale(row).to_bits(), 0, "{name}: behind the last row");
            assert!((0..cols).all(|col| of(row, col) == (0, 0)), "{name}: behind the last row");
        }
        let all = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col)));
        let weight = |(row, col)| of(row, col).1 as f32 * row_scale(row);
        Int4 {
            codes,
            nibbles: all.clone().map(|(row, col)| of(row, col).0).collect(),
            weights: all.map(weight).collect(),
        }
    }

    fn len(&self, name: &str) -> usize {
        self.shape(name).iter().product()
    }

    fn bytes(&self, name: &str, offset: &str, len: usize) -> &[u8] {
        let offset = self.header["tensors"][name][offset].as_u64().unwrap() as usize;
        assert_eq!(offset % 64, 0, "{name} is aligned");
        &self.file[self.base + offset..][..len]
    }
}

/// What an int4 tensor holds, row after row.
pub struct Int4 {
    pub codes: [i8; 16],
    pub nibbles: Vec<u8>,
    pub weights: Vec<f32>,
}

pub fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}
