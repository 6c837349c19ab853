//! Rules of the tables `ip filter` and `ip6 filter`, which iptables-nft owns: the words that `rules.rs` and
//! `isolation.rs` share, and the jumps of chain FORWARD, whose order matters to both.

use crate::cni::Result;
use crate::kernel::nft::{
    Base, Chain, Change, Dialect, Family, Hook, Kind, ListedRule, Rule, Socket, Statement, Step, Table,
    Verdict, program,
};

/// The chain that every forwarded packet passes.
pub const FORWARD: &str = "FORWARD";
/// The chain with the rules of all attachments.
pub const CNI_FORWARD: &str = "CNI-FORWARD";
/// The chain that tells which packets leave an isolated bridge.
pub const STAGE_1: &str = "CNI-ISOLATION-STAGE-1";
/// The chain that drops those that would enter another one.
pub const STAGE_2: &str = "CNI-ISOLATION-STAGE-2";
/// Comment of the jump to [`CNI_FORWARD`].
const COMMENT: &str = "CNI firewall plugin rules";
/// Comment of what all isolated bridges share.
pub const SHARED_COMMENT: &str = "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)";

/// The table of one family.
pub fn table(family: Family) -> Table {
    Table { family, name: "filter" }
}

/// A rule as iptables-nft writes it.
pub fn rule(family: Family, chain: &str, statements: Vec<Statement>, comment: Option<&str>) -> Rule {
    Rule {
        table: table(family),
        chain: chain.to_owned(),
        statements,
        comment: comment.map(str::to_owned),
        tag: None,
        dialect: Dialect::Iptables,
    }
}

/// A rule that jumps to a chain, whatever the packet.
pub fn jump(family: Family, from: &str, to: &str, comment: &str) -> Rule {
    rule(family, from, vec![Statement::Verdict(Verdict::Jump(to.to_owned()))], Some(comment))
}

/// Whether a listed rule does what another does: counters and comments aside.
pub fn does(listed: &ListedRule, steps: &[Step]) -> bool {
    let matters = |step: &&Step| match step {
        Step::Counter => false,
        Step::Match(name, _) => name != "comment",
        _ => true,
    };
    listed.steps.iter().filter(matters).eq(steps.iter().filter(matters))
}

/// The listed rules that do what `wanted` does.
pub fn equal<'a>(listed: &'a [ListedRule], wanted: &Rule) -> Result<Vec<&'a ListedRule>> {
    let steps = program(wanted)?;
    Ok(listed.iter().filter(|rule| does(rule, &steps)).collect())
}

/// What removes a listed rule.
pub fn delete(family: Family, rule: &ListedRule) -> Change {
    Change::DeleteRule { table: table(family), chain: rule.chain.clone(), handle: rule.handle }
}

/// Makes the chains of one family that rules go into, and the jumps to them: those of the `rules` module when there is an
/// administrators' chain, and those of isolation.
pub fn ensure(
    nft: &mut Socket,
    family: Family,
    admin: Option<&str>,
    isolation: bool,
    changes: &mut Vec<Change>,
) -> Result<()> {
    let mut chains = vec![FORWARD];
    if let Some(admin) = admin {
        chains.extend([CNI_FORWARD, admin]);
    }
    if isolation {
        chains.extend([STAGE_1, STAGE_2]);
    }
    ensure_chains(nft, family, &chains, changes)?;
    ensure_jumps(nft, family, admin.is_some(), isolation, changes)
}

fn ensure_chains(nft: &mut Socket, family: Family, names: &[&str], changes: &mut Vec<Change>) -> Result<()> {
    let table = table(family);
    for name in names {
        if nft.chain(table, name)?.is_some() {
            continue;
        }
        // As iptables-nft makes it. Made by another process meanwhile, it keeps its policy: this one is refused then.
        let base = Base { kind: Kind::Filter, hook: Hook::Forward, priority: 0 };
        let base = (*name == FORWARD).then_some(base);
        changes.push(Change::AddTable(table));
        changes.push(Change::CreateChain(Chain { table, name: (*name).to_owned(), base }));
    }
    Ok(())
}

/// Whether a jump to [`STAGE_1`] is in front of the one to [`CNI_FORWARD`], whose rules accept.
fn in_order(listed: &[ListedRule], stage: &[&ListedRule], forward: &[&ListedRule]) -> bool {
    let place = |rule: &ListedRule| listed.iter().position(|other| other.handle == rule.handle);
    let (Some(stage), Some(forward)) = (stage.first(), forward.first()) else { return true };
    place(stage) < place(forward)
}

/// Makes chain FORWARD jump to [`CNI_FORWARD`] (`rules`) and to [`STAGE_1`] (`isolation`), the latter first. A jump that
/// is there already stays, and stays where it is unless the order is wrong.
fn ensure_jumps(
    nft: &mut Socket,
    family: Family,
    rules: bool,
    isolation: bool,
    changes: &mut Vec<Change>,
) -> Result<()> {
    let listed = nft.rules(table(family), Some(FORWARD))?;
    let to_rules = jump(family, FORWARD, CNI_FORWARD, COMMENT);
    let to_stage = jump(family, FORWARD, STAGE_1, SHARED_COMMENT);
    let (forward, stage) = (equal(&listed, &to_rules)?, equal(&listed, &to_stage)?);
    let new = rules && forward.is_empty();
    if new {
        changes.push(Change::InsertRule(to_rules));
    }
    let misplaced = !stage.is_empty() && (new || !in_order(&listed, &stage, &forward));
    if misplaced {
        changes.extend(stage.iter().map(|rule| delete(family, rule)));
    }
    if misplaced || (isolation && stage.is_empty()) {
        changes.push(Change::InsertRule(to_stage));
    }
    Ok(())
}

/// The first difference from the jumps that [`ensure`] makes.
pub fn check_jumps(nft: &mut Socket, family: Family, rules: bool, isolation: bool) -> Result<Option<String>> {
    let listed = nft.rules(table(family), Some(FORWARD))?;
    let to_rules = jump(family, FORWARD, CNI_FORWARD, COMMENT);
    let to_stage = jump(family, FORWARD, STAGE_1, SHARED_COMMENT);
    let (forward, stage) = (equal(&listed, &to_rules)?, equal(&listed, &to_stage)?);
    Ok(match () {
        () if rules && forward.is_empty() => Some(format!("missing: {to_rules}")),
        () if isolation && stage.is_empty() => Some(format!("missing: {to_stage}")),
        () if isolation && !in_order(&listed, &stage, &forward) => {
            Some(format!("behind the jump to {CNI_FORWARD}: {to_stage}"))
        }
        () => None,
    })
}
