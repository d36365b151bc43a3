//! What bets may cost: each is paid for, and those that are won pay back more than they cost.

/// Bets in a row that are won before more is risked on the next one.
const TRUSTED_AFTER: usize = 4;

/// A balance, in units that its owner chooses.
#[derive(Debug)]
pub(crate) struct Credit {
    left: usize,
    start: usize,
    most: usize,
    /// Bets that were won since the balance was last too small.
    won: usize,
}

impl Credit {
    /// `start` is what may be lost before anything is won, `most` what may be lost after that.
    pub(crate) fn new(start: usize, most: usize) -> Self {
        Self { left: start, start, most, won: 0 }
    }

    /// Pays for a bet. False if there is not enough, and then nothing is trusted any more.
    pub(crate) fn pay(&mut self, cost: usize) -> bool {
        let Some(left) = self.left.checked_sub(cost) else {
            self.won = 0;
            return false;
        };
        self.left = left;
        true
    }

    /// A bet was not made after all.
    pub(crate) fn give_back(&mut self, cost: usize) {
        self.left = self.most.min(self.left + cost);
    }

    /// A bet was won.
    pub(crate) fn win(&mut self, gain: usize) {
        self.give_back(gain);
        self.won = self.won.saturating_add(1);
    }

    /// Gives one unit, up to the balance of the start: in time, what was lost is tried again.
    pub(crate) fn recover(&mut self) {
        self.left = self.left.max(self.start.min(self.left + 1));
    }

    pub(crate) fn is_trusted(&self) -> bool {
        self.won >= TRUSTED_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_bounded_and_what_is_won_is_trusted() {
        let mut credit = Credit::new(8, 12);
        assert_eq!((0..100).filter(|_| credit.pay(2)).count(), 4, "what may be lost");
        credit.recover();
        assert!(!credit.pay(2) && credit.pay(1));
        for _ in 0..TRUSTED_AFTER {
            assert!(!credit.is_trusted());
            credit.win(3);
        }
        assert!(credit.is_trusted());
        credit.win(3);
        credit.recover();
        assert_eq!((0..100).filter(|_| credit.pay(2)).count(), 6, "and no more after success");
        assert!(!credit.is_trusted());
        for _ in 0..100 {
            credit.recover();
        }
        assert_eq!((0..100).filter(|_| credit.pay(2)).count(), 4);
    }
}
