//! Which options of the kernel's configuration (Kconfig, `/boot/config-*`) a change of the ruleset needs: for errors.

use nix::errno::Errno;

use super::{Chain, Change, Condition, Dialect, Family, Field, Kind, Rule, Statement};

/// What has nf_tables at all.
pub(super) const NF_TABLES: &str = "the kernel needs CONFIG_NETFILTER_NETLINK and CONFIG_NF_TABLES";

/// What a kernel may lack that answers a change with this errno, as a sentence; `None` when the errno has other reasons.
///
/// nf_tables answers ENOENT for an expression, kind of chain or xtables match that it has no module for, and EOPNOTSUPP or
/// EAFNOSUPPORT for a family.
pub(super) fn lacking(change: &Change, errno: Errno) -> Option<String> {
    if !matches!(errno, Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT) {
        return None;
    }
    let mut options = match change {
        Change::AddTable(table) | Change::CreateTable(table) => {
            vec!["CONFIG_NF_TABLES", of_family(table.family)]
        }
        Change::AddChain(chain) | Change::CreateChain(chain) => of_chain(chain),
        Change::AddRule(rule) | Change::InsertRule(rule) | Change::InsertBefore(rule, _) => of_rule(rule),
        _ => return None,
    };
    options.sort_unstable();
    options.dedup();
    Some(format!("the kernel may lack {}", options.join(", ")))
}

fn of_family(family: Family) -> &'static str {
    match family {
        Family::Ip => "CONFIG_NF_TABLES_IPV4",
        Family::Ip6 => "CONFIG_NF_TABLES_IPV6",
        Family::Inet => "CONFIG_NF_TABLES_INET",
        Family::Bridge => "CONFIG_NF_TABLES_BRIDGE",
    }
}

fn of_chain(chain: &Chain) -> Vec<&'static str> {
    let mut options = vec![of_family(chain.table.family)];
    if chain.base.is_some_and(|base| base.kind == Kind::Nat) {
        options.push("CONFIG_NFT_NAT");
    }
    options
}

fn of_rule(rule: &Rule) -> Vec<&'static str> {
    let mut options = vec![of_family(rule.table.family)];
    let xtables = rule.dialect == Dialect::Iptables;
    if xtables {
        options.push("CONFIG_NFT_COMPAT");
        if rule.comment.is_some() {
            options.push("CONFIG_NETFILTER_XT_MATCH_COMMENT");
        }
    }
    for statement in &rule.statements {
        options.extend(match statement {
            Statement::Masquerade if xtables => Some("CONFIG_NETFILTER_XT_TARGET_MASQUERADE"),
            Statement::Masquerade => Some("CONFIG_NFT_MASQ"),
            Statement::Dnat(_) if xtables => Some("CONFIG_NETFILTER_XT_NAT"),
            Statement::Dnat(_) | Statement::DnatBy(..) => Some("CONFIG_NFT_NAT"),
            Statement::SetMark(_) if xtables => Some("CONFIG_NETFILTER_XT_MARK"),
            Statement::Established if xtables => Some("CONFIG_NETFILTER_XT_MATCH_CONNTRACK"),
            Statement::Established => Some("CONFIG_NFT_CT"),
            Statement::InputBridge(_) => Some("CONFIG_NFT_BRIDGE_META"),
            Statement::LookupAll(fields, _) => of_fields(fields),
            Statement::Only(condition) | Statement::Unless(condition) => of_condition(condition, xtables),
            _ => None,
        });
    }
    options
}

fn of_condition(condition: &Condition, xtables: bool) -> Option<&'static str> {
    match condition {
        Condition::DestinationPorts(_) => Some("CONFIG_NETFILTER_XT_MATCH_MULTIPORT"),
        Condition::Type(..) if xtables => Some("CONFIG_NETFILTER_XT_MATCH_ADDRTYPE"),
        Condition::Type(..) | Condition::LocalToLink(_) => Some("CONFIG_NFT_FIB_IPV4, CONFIG_NFT_FIB_IPV6"),
        Condition::Mark { .. } if xtables => Some("CONFIG_NETFILTER_XT_MARK"),
        Condition::In(fields, _) => of_fields(fields),
        Condition::Translated => Some("CONFIG_NFT_CT"),
        _ => None,
    }
}

fn of_fields(fields: &[Field]) -> Option<&'static str> {
    fields.contains(&Field::OriginalPort).then_some("CONFIG_NFT_CT")
}

#[cfg(test)]
mod tests {
    use super::super::Table;
    use super::*;

    #[test]
    fn a_kernel_without_an_expression_is_told_which_option_it_lacks() {
        let mut rule = Rule {
            table: Table { family: Family::Ip, name: "nat" },
            chain: "x".to_owned(),
            statements: vec![Statement::Masquerade],
            comment: Some("why".to_owned()),
            tag: None,
            dialect: Dialect::Nft,
        };
        let told = |rule: &Rule| lacking(&Change::AddRule(rule.clone()), Errno::ENOENT).unwrap();
        assert_eq!(told(&rule), "the kernel may lack CONFIG_NFT_MASQ, CONFIG_NF_TABLES_IPV4");
        rule.dialect = Dialect::Iptables;
        assert_eq!(
            told(&rule),
            "the kernel may lack CONFIG_NETFILTER_XT_MATCH_COMMENT, CONFIG_NETFILTER_XT_TARGET_MASQUERADE, CONFIG_NFT_COMPAT, \
             CONFIG_NF_TABLES_IPV4"
        );
        assert_eq!(lacking(&Change::AddRule(rule), Errno::EEXIST), None);
    }
}
