//! What is made of numbers: medians, quantiles, fairness.

/// The middle of the values with their extremes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// Of no values there is none.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let (below, above) = (sorted.get((sorted.len() - 1) / 2)?, sorted.get(sorted.len() / 2)?);
        Some(Self { median: f64::midpoint(*below, *above), least, most })
    }
}

/// The smallest value that so many of a hundred do not exceed (nearest rank); `percent` is above 0 and at most 100.
pub(crate) fn percentile(values: &[f64], percent: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// Jain's index of fairness: 1 when all have the same, 1/n when one of n has everything. Of nothing at all there is none.
pub(crate) fn jain(shares: &[f64]) -> Option<f64> {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    (squares > 0.0).then(|| sum * sum / (shares.len() as f64 * squares))
}

/// The median of each round's ratio, of the rounds that have both; rounds are compared with themselves, since the machine may
/// have been another in each.
pub(crate) fn ratio(values: &[(usize, f64)], base: &[(usize, f64)]) -> Option<f64> {
    let of = |round| base.iter().find(|(of, value)| *of == round && *value > 0.0).map(|(_, value)| value);
    let ratios: Vec<f64> = values.iter().filter_map(|(round, value)| Some(value / of(*round)?)).collect();
    Spread::of(&ratios).map(|spread| spread.median)
}
