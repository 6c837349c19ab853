//! Changes of the ruleset that are recorded and not made; see [`crate::kernel::dry_run`]. What is asked for afterwards is as
//! if they had been made, except that rules which would be added are not listed.

use super::{Change, Element, ListedChain, ListedRule, Map, Socket, Statement, Table, Value, Verdict};
use crate::cni::Result;
use crate::kernel::dry_run;

/// What would have been changed; empty when changes are made.
#[derive(Default)]
pub(super) struct Planned {
    /// Oldest first.
    changes: Vec<Change>,
    /// Chains that got or lost a use (see [`ListedChain::uses`]): table, name, how many.
    uses: Vec<(Table, String, i32)>,
}

impl Socket {
    /// Records changes: those of one batch, in order. What is made only if it is not there is said once.
    ///
    /// # Errors
    /// The kernel cannot be asked what a change is about.
    pub(super) fn plan(&mut self, changes: &[Change]) -> Result<()> {
        for change in changes {
            let line = change.to_string();
            dry_run::with(|recording| recording.push_once(&line));
            self.count_uses(change)?;
            self.planned.changes.push(change.clone());
        }
        Ok(())
    }

    fn count_uses(&mut self, change: &Change) -> Result<()> {
        let mut uses: Vec<(Table, String, i32)> = Vec::new();
        match change {
            Change::CreateElement(map, element) => {
                uses.extend(target(&element.data).map(|chain| (map.table, chain, 1)));
            }
            Change::DestroyElement(map, key) => {
                let element = self.element(map, key)?;
                uses.extend(element.and_then(|e| target(&e.data)).map(|chain| (map.table, chain, -1)));
            }
            Change::AddRule(rule) | Change::InsertRule(rule) | Change::InsertBefore(rule, _) => {
                uses.push((rule.table, rule.chain.clone(), 1));
                let targets = rule.statements.iter().filter_map(|statement| match statement {
                    Statement::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => Some(chain.clone()),
                    _ => None,
                });
                uses.extend(targets.map(|chain| (rule.table, chain, 1)));
            }
            Change::DeleteRule { table, chain, handle } => {
                let rules = self.rules(*table, Some(chain))?;
                for rule in rules.iter().filter(|rule| rule.handle == *handle) {
                    uses.push((*table, chain.clone(), -1));
                    uses.extend(rule.target().map(|target| (*table, target.to_owned(), -1)));
                }
            }
            Change::FlushChain { table, chain } => {
                for rule in self.rules(*table, Some(chain))? {
                    uses.push((*table, chain.clone(), -1));
                    uses.extend(rule.target().map(|target| (*table, target.to_owned(), -1)));
                }
            }
            _ => {}
        }
        self.planned.uses.extend(uses);
        Ok(())
    }

    /// The chain with the uses that it would have.
    fn used(&self, table: Table, mut chain: ListedChain) -> ListedChain {
        let changes = self.planned.uses.iter().filter(|(t, name, _)| *t == table && *name == chain.name);
        let change: i32 = changes.map(|(.., change)| change).sum();
        chain.uses = chain.uses.saturating_add_signed(change);
        chain
    }

    pub(super) fn planned_table(&self, table: Table, found: bool) -> bool {
        let adds = |change: &Change| match change {
            Change::AddTable(t) | Change::CreateTable(t) => *t == table,
            _ => false,
        };
        found || self.planned.changes.iter().any(adds)
    }

    pub(super) fn planned_chain(
        &self,
        table: Table,
        name: &str,
        found: Option<ListedChain>,
    ) -> Option<ListedChain> {
        let found = self.planned.changes.iter().fold(found, |found, change| match change {
            Change::AddChain(chain) | Change::CreateChain(chain)
                if chain.table == table && chain.name == name =>
            {
                Some(found.unwrap_or_else(|| ListedChain::planned(chain)))
            }
            Change::DeleteChain { table: t, chain } if *t == table && chain == name => None,
            _ => found,
        });
        found.map(|chain| self.used(table, chain))
    }

    pub(super) fn planned_chains(&self, table: Table, found: Vec<ListedChain>) -> Vec<ListedChain> {
        let found = self.planned.changes.iter().fold(found, |mut found, change| {
            match change {
                Change::AddChain(chain) | Change::CreateChain(chain)
                    if chain.table == table && !found.iter().any(|f| f.name == chain.name) =>
                {
                    found.push(ListedChain::planned(chain));
                }
                Change::DeleteChain { table: t, chain } if *t == table => found.retain(|f| f.name != *chain),
                _ => {}
            }
            found
        });
        found.into_iter().map(|chain| self.used(table, chain)).collect()
    }

    pub(super) fn planned_rules(&self, table: Table, mut found: Vec<ListedRule>) -> Vec<ListedRule> {
        for change in &self.planned.changes {
            match change {
                Change::DeleteRule { table: t, chain, handle } if *t == table => {
                    found.retain(|rule| rule.chain != *chain || rule.handle != *handle);
                }
                Change::FlushChain { table: t, chain } if *t == table => {
                    found.retain(|rule| rule.chain != *chain)
                }
                _ => {}
            }
        }
        found
    }

    pub(super) fn planned_elements(&self, map: &Map, found: Vec<Element>) -> Vec<Element> {
        self.planned.changes.iter().fold(found, |mut found, change| {
            match change {
                Change::CreateElement(m, element) if m == map => found.push(element.clone()),
                Change::DestroyElement(m, key) if m == map => found.retain(|element| element.key != *key),
                _ => {}
            }
            found
        })
    }

    pub(super) fn planned_element(&self, map: &Map, key: &Value, found: Option<Element>) -> Option<Element> {
        let found = self.planned_elements(map, found.into_iter().collect());
        found.into_iter().find(|element| element.key == *key)
    }
}

/// The chain that a verdict leads to.
fn target(value: &Value) -> Option<String> {
    match value {
        Value::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => Some(chain.clone()),
        _ => None,
    }
}
