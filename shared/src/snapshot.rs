//! Positions in the outbox: which transactions a reader has seen (PostgreSQL's `pg_snapshot`), and where it is within
//! what the next snapshot showed it.

use std::fmt;
use std::str::FromStr;

/// A `pg_snapshot`: every transaction below `xmin` is seen, none from `xmax` on, and of those between all but `xip`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    xmin: u64,
    xmax: u64,
    xip: Vec<u64>,
}

/// Not a snapshot or cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a position in the outbox")]
pub struct Malformed;

impl Snapshot {
    /// Whether the transaction had committed, if it did, when the snapshot was taken.
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && !self.xip.contains(&xid))
    }

    /// Whether this snapshot sees everything that the other sees.
    pub fn covers(&self, other: &Self) -> bool {
        self.xmax >= other.xmax && self.xip.iter().all(|xid| *xid >= other.xmax || other.xip.contains(xid))
    }

    /// What this snapshot sees of the transactions up to `last`. Who covers that has seen each of them that had ended.
    #[must_use]
    pub fn up_to(&self, last: u64) -> Self {
        let xmax = self.xmax.min(last.saturating_add(1));
        let xip = self.xip.iter().copied().filter(|xid| *xid < xmax).collect();
        Self { xmin: self.xmin.min(xmax), xmax, xip }
    }

    /// The greatest transaction that may be seen.
    pub fn last(&self) -> u64 {
        self.xmax.saturating_sub(1)
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (i, xid) in self.xip.iter().enumerate() {
            write!(f, "{}{xid}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for Snapshot {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let number = |text: &str| text.parse().map_err(|_| Malformed);
        let mut parts = text.splitn(3, ':');
        let mut next = || parts.next().ok_or(Malformed);
        let (xmin, xmax, list) = (number(next()?)?, number(next()?)?, next()?);
        let xip = list
            .split(',')
            .filter(|xid| !xid.is_empty())
            .map(number)
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self { xmin, xmax, xip })
    }
}

/// A reader's position: everything that `base` saw, and of what `page.0` saw beyond that, the events up to id `page.1`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Read to the end.
    pub base: Snapshot,
    /// Read in part.
    pub page: Option<(Snapshot, i64)>,
}

impl Cursor {
    /// Right after what the snapshot saw.
    pub fn after(base: Snapshot) -> Self {
        Self { base, page: None }
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.page {
            None => write!(f, "{}", self.base),
            Some((upto, id)) => write!(f, "{}/{upto}/{id}", self.base),
        }
    }
}

impl FromStr for Cursor {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let mut parts = text.split('/');
        let base = parts.next().ok_or(Malformed)?.parse()?;
        let page = match (parts.next(), parts.next(), parts.next()) {
            (None, ..) => None,
            (Some(upto), Some(id), None) => Some((upto.parse()?, id.parse().map_err(|_| Malformed)?)),
            _ => return Err(Malformed),
        };
        Ok(Self { base, page })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn snapshot() -> impl Strategy<Value = Snapshot> {
        (1_u64..50, 0_u64..20, proptest::collection::btree_set(0_u64..20, 0..6)).prop_map(
            |(xmin, width, open)| {
                let xmax = xmin + width;
                let xip = open.into_iter().map(|offset| xmin + offset).filter(|xid| *xid < xmax).collect();
                Snapshot { xmin, xmax, xip }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(base in snapshot(), upto in snapshot(), id: i64) {
            for cursor in [Cursor::after(base.clone()), Cursor { base: base.clone(), page: Some((upto, id)) }] {
                prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
            }
        }

        #[test]
        fn a_covering_snapshot_sees_all_that_the_other_sees(a in snapshot(), b in snapshot()) {
            let sees_all = (0..100).all(|xid| !b.sees(xid) || a.sees(xid));
            prop_assert!(!a.covers(&b) || sees_all);
        }

        #[test]
        fn what_is_cut_sees_the_same_up_to_there_and_is_covered(a in snapshot(), last in 0_u64..80) {
            let cut = a.up_to(last);
            prop_assert!((0..100).all(|xid| cut.sees(xid) == (xid <= last && a.sees(xid))));
            prop_assert!(a.covers(&cut));
        }
    }

    #[test]
    fn garbage_is_refused() {
        for bad in ["", "1:2", "a:b:c", "1:2:x", "1:2:/1:2:", "1:2:/1:2:/x", "1:2:/1:2:/3/4"] {
            assert_eq!(bad.parse::<Cursor>(), Err(Malformed), "{bad}");
        }
    }
}
