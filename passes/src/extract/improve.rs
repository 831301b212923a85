//! Local search over a choice.
//!
//! A move switches one class, or all classes that could read one unused class together: query, key
//! and value reading one merged product. What a move needs besides is chosen anew, everything else
//! that is used being free. A move that lowers the total stays.

use std::collections::{BTreeMap, BTreeSet};

use super::Problem;

/// Rounds of trying every move.
const ROUNDS: usize = 8;
/// Evaluations of a whole choice, times the number of classes.
const WORK: usize = 200_000_000;
/// Nesting of terms that a move may bring into use.
const DEPTH: usize = 16;

/// Classes, each with the node to switch to.
type Move = Vec<(usize, usize)>;

impl Problem {
    pub(super) fn improve(&mut self) {
        let Ok(mut best) = self.total() else { return };
        let mut budget = WORK / self.classes.len().max(1);
        for _ in 0..ROUNDS {
            let before = best;
            for mut moves in self.moves() {
                if budget == 0 {
                    return;
                }
                budget -= 1;
                self.complete(&mut moves);
                let old: Move =
                    moves.iter().filter_map(|(c, _)| Some((*c, self.choice[*c]?))).collect();
                self.switch(&moves);
                match self.total() {
                    Ok(cost) if cost < best * (1.0 - 1e-12) => best = cost,
                    _ => self.switch(&old),
                }
            }
            if best >= before {
                return;
            }
        }
    }

    fn switch(&mut self, moves: &[(usize, usize)]) {
        for (class, node) in moves {
            self.choice[*class] = Some(*node);
        }
    }

    /// Moves to try.
    fn moves(&self) -> Vec<Move> {
        let used = self.used(&BTreeSet::new());
        let mut single = Vec::new();
        let mut joint: BTreeMap<usize, Move> = BTreeMap::new();
        for (i, class) in self.classes.iter().enumerate().filter(|(i, _)| used[*i]) {
            for (j, node) in class.nodes.iter().enumerate() {
                if self.choice[i] == Some(j) {
                    continue;
                }
                single.push(vec![(i, j)]);
                for c in node.children.iter().filter(|c| !used[**c]) {
                    let group = joint.entry(*c).or_default();
                    if group.iter().all(|(k, _)| *k != i) {
                        group.push((i, j));
                    }
                }
            }
        }
        let joint = joint.into_values().filter(|g| g.len() > 1);
        joint.chain(single).collect()
    }

    /// Classes that the roots depend on otherwise than through `cut`.
    fn used(&self, cut: &BTreeSet<usize>) -> Vec<bool> {
        let mut used = vec![false; self.classes.len()];
        let mut stack = self.roots.clone();
        while let Some(i) = stack.pop() {
            if !std::mem::replace(&mut used[i], true) && !cut.contains(&i) {
                let choice = self.choice[i].and_then(|c| self.classes[i].nodes.get(c));
                stack.extend(choice.iter().flat_map(|n| &n.children));
            }
        }
        used
    }

    /// Adds choices for the classes that a move brings into use.
    fn complete(&self, moves: &mut Move) {
        let cut: BTreeSet<usize> = moves.iter().map(|(c, _)| *c).collect();
        let used = self.used(&cut);
        let mut memo = BTreeMap::new();
        let mut stack: Vec<usize> =
            moves.iter().flat_map(|(c, n)| self.classes[*c].nodes[*n].children.clone()).collect();
        let mut seen = cut;
        while let Some(class) = stack.pop() {
            if used[class] || !seen.insert(class) {
                continue;
            }
            let (_, node) = self.cheapest(class, &used, &mut memo, 0);
            moves.push((class, node));
            stack.extend(&self.classes[class].nodes[node].children);
        }
    }

    /// The cheapest node of an unused class, used classes being free.
    fn cheapest(
        &self,
        class: usize,
        used: &[bool],
        memo: &mut BTreeMap<usize, (f64, usize)>,
        depth: usize,
    ) -> (f64, usize) {
        if let Some(known) = memo.get(&class) {
            return *known;
        }
        let mut best = (f64::INFINITY, self.choice[class].unwrap_or(0));
        // A term that needs itself is no term.
        memo.insert(class, best);
        for (j, node) in self.classes[class].nodes.iter().enumerate() {
            let mut cost = node.cost;
            for c in node.children.iter().filter(|c| !used[**c]) {
                cost += match depth < DEPTH {
                    true => self.cheapest(*c, used, memo, depth + 1).0,
                    false => f64::INFINITY,
                };
            }
            if cost < best.0 {
                best = (cost, j);
            }
        }
        memo.insert(class, best);
        best
    }
}
