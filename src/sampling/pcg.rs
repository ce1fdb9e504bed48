//! Random numbers that are the same everywhere for ever.

/// PCG-XSH-RR 64/32 (O'Neill 2014), stream 54.
#[derive(Debug, Clone)]
pub(super) struct Pcg32 {
    state: u64,
}

impl Pcg32 {
    const MULTIPLIER: u64 = 6_364_136_223_846_793_005;
    const INCREMENT: u64 = (54 << 1) | 1;

    pub fn new(seed: u64) -> Self {
        let mut rng = Self { state: 0 };
        rng.next();
        rng.state = rng.state.wrapping_add(seed);
        rng.next();
        rng
    }

    fn next(&mut self) -> u32 {
        let old = self.state;
        self.state = old.wrapping_mul(Self::MULTIPLIER).wrapping_add(Self::INCREMENT);
        let shifted = (((old >> 18) ^ old) >> 27) as u32;
        shifted.rotate_right((old >> 59) as u32)
    }

    /// A multiple of 2⁻²⁴ in 0..1.
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 8) as f32 / (1 << 24) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generator_matches_its_published_demo() {
        let mut rng = Pcg32::new(42);
        let first: Vec<u32> = (0..6).map(|_| rng.next()).collect();
        assert_eq!(first, [0xa15c02b7, 0x7b47f409, 0xba1d3330, 0x83d2f293, 0xbfa4784b, 0xcbed606e]);
    }
}
